"""What training reads: random views of images, or features computed once.

A view is cut from the same resized image and scaled by the same arithmetic as `alexnet_edge.images.preprocess`: the central,
unmirrored view in unchanged light equals it bit for bit. `augment.py` says which views there are.

Letters: N batch, C channels, H height, W width, F features, V views.
"""

from __future__ import annotations

import mmap
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

import numpy as np

from alexnet_edge.environment import memory_bytes
from alexnet_edge.errors import DataError, ImageError, UserError, needs
from alexnet_edge.images.augment import CENTRE, Draw, Lighting
from alexnet_edge.images.datasets import ImageSet, OnBadImage
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.images.reader import AugmentOn, Kind, Pool, ViewReader, fill_mapped, start_process
from alexnet_edge.progress import Reporter

with needs("train"):
    import torch
    from torch import Tensor

CACHE_BYTES = 2 << 30
"""Decoded and resized images are kept in memory up to so many bytes; the others are decoded every time."""

BATCHES_AHEAD = 2
"""Batches that workers prepare beyond the one that training has."""

IMAGES_PER_TASK = 8
"""Images that a worker takes at a time."""

Result = TypeVar("Result")


class Feed(Protocol):
    """Training samples by position."""

    def __len__(self) -> int: ...

    def batches(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the samples in `order`, `batch` at a time, each seen as its draw says.

        There are as many batches as `order` fills, the last one smaller; samples that cannot be used are left out of
        theirs, which may then be empty.
        """


class ImageFeed:
    """Views of the images of a set, made by workers ahead of training.

    Resized images are kept in memory as far as `budget` goes; worker processes share it out among them. On a CUDA device
    batches travel through pinned memory, one ahead, beside the computation.
    """

    def __init__(
        self,
        images: ImageSet,
        spec: Preprocessing,
        *,
        workers: int,
        on_bad_image: OnBadImage,
        budget: int = CACHE_BYTES,
        lighting: Lighting | None = None,
        device: torch.device | None = None,
        augment_on: AugmentOn = "workers",
        pool: Pool = "threads",
    ) -> None:
        """
        Args:
            images: what to read.
            spec: the preprocessing.
            workers: threads or processes that read ahead; 0 reads in the caller's thread, when asked.
            on_bad_image: `fail` raises at the first image that cannot be used, `skip` leaves it out.
            budget: bytes of resized images to keep.
            lighting: the change of light that a draw's `light` is of; None leaves it.
            device: where batches are put; None is the processor.
            augment_on: `device` sends bytes, a quarter of the size, and mirrors, lights and normalises them there.
            pool: what the workers are.
        """
        self.images = images
        self.spec = spec
        self.bad: dict[int, ImageError] = {}
        """The error of each image that cannot be used, by position."""
        self._workers = workers
        self._on_bad_image = on_bad_image
        self._lighting = lighting
        self._device = device or torch.device("cpu")
        self._kind: Kind = "uint8" if augment_on == "device" else "float32"
        self._in_processes = pool == "processes" and workers > 0
        self._budget = budget // workers if self._in_processes else budget
        self._reader = ViewReader(images, spec, lighting=lighting, budget=self._budget)
        self._executor: Executor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises ImageError when an image cannot be used and bad images are not skipped."""
        with closing(self._read(order, draws, batch)) as host_batches:
            yield from (
                _moved(host_batches, self._device) if self._device.type == "cuda" else map(_finished, host_batches)
            )

    def close(self) -> None:
        """End the workers; another call of `batches` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _read(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Generator[_Batch, None, None]:
        executor = self._executor = self._executor or self._start()
        ahead = BATCHES_AHEAD if self._workers else 0
        waiting = deque[_Pending]()
        try:
            for first in range(0, len(order), batch):
                rows = slice(first, first + batch)
                waiting.append(self._begin(executor, order[rows], draws[rows]))
                if len(waiting) > ahead:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        except BrokenExecutor as error:
            self._executor = None
            raise DataError(
                "a process that reads images ended unasked: it was killed, perhaps for want of memory",
                fix="use fewer workers, or threads",
            ) from error
        finally:
            for pending in waiting:  # their memory is let go only when nobody writes into it any more
                pending.abandon()

    def _start(self) -> Executor:
        if not self._workers:
            return _Inline()
        if not self._in_processes:
            return ThreadPoolExecutor(self._workers, thread_name_prefix="reader")
        # torch has threads, so a fork of this process could hang; a server that forks could be stopped by itself
        return ProcessPoolExecutor(
            self._workers,
            mp_context=get_context("spawn"),
            initializer=start_process,
            initargs=(self.images, self.spec, self._lighting, self._budget),
        )

    def _begin(self, executor: Executor, order: Sequence[int], draws: Sequence[Draw]) -> _Pending:
        side = self.spec.crop
        shape = (len(order), 3, side, side) if self._kind == "float32" else (len(order), side, side, 3)
        memory = -1
        if self._in_processes:
            memory = os.memfd_create("alexnet-edge batch")
            size = int(np.prod(shape)) * np.dtype(self._kind).itemsize
            os.ftruncate(memory, size)
            x = torch.frombuffer(mmap.mmap(memory, size), dtype=getattr(torch, self._kind)).view(shape)
        else:
            x = torch.empty(shape, dtype=getattr(torch, self._kind), pin_memory=self._device.type == "cuda")
        pending = _Pending(x=x, order=order, draws=draws, memory=memory)
        for first in range(0, len(order), IMAGES_PER_TASK):
            rows = slice(first, first + IMAGES_PER_TASK)
            if self._in_processes:
                path = f"/proc/{os.getpid()}/fd/{memory}"
                with _signals_held():  # it starts processes as they are needed
                    future = executor.submit(fill_mapped, path, shape, self._kind, first, order[rows], draws[rows])
            else:
                future = executor.submit(self._reader.fill, x.numpy()[rows], order[rows], draws[rows])
            pending.futures.append(future)
        return pending

    def _collect(self, pending: _Pending) -> _Batch:
        """Wait for a batch and leave out what cannot be used."""
        try:
            errors = [error for future in pending.futures for error in future.result()]
        finally:
            pending.abandon()
        keep = [row for row, error in enumerate(errors) if error is None]
        for index, error in zip(pending.order, errors, strict=True):
            if error is not None:
                if self._on_bad_image == "fail":
                    raise error
                self.bad[index] = error
        x, order, draws = pending.x, list(pending.order), pending.draws
        if len(keep) < len(errors):
            x, order, draws = x[keep], [order[row] for row in keep], [draws[row] for row in keep]
        labels_N = torch.from_numpy(self.images.labels_N[order])
        if self._kind == "float32":
            return _Batch(x, labels_N, None)
        shift_NC = np.zeros((len(order), 3), np.float32)
        if self._lighting is not None and order:
            shift_NC = np.stack([self._lighting.shift(draw.light) for draw in draws])
        finish = _Finish(
            mirror_N=torch.tensor([draw.mirror >= 0.5 for draw in draws], dtype=torch.bool),
            mean_NC=torch.from_numpy(np.asarray(self.spec.mean, np.float32) - shift_NC),
            std_C=torch.tensor(self.spec.std, dtype=torch.float32),
        )
        return _Batch(x, labels_N, finish)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off in this thread; processes started meanwhile begin so, until they know whom to obey."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Inline(Executor):
    """Does everything at once, in the thread that asks."""

    def submit(self, call: Callable[..., Result], /, *args: Any, **options: Any) -> Future[Result]:
        future = Future[Result]()
        future.set_result(call(*args, **options))
        return future


@dataclass(frozen=True, slots=True)
class _Finish:
    """What is left to do to a batch of bytes."""

    mirror_N: Tensor
    mean_NC: Tensor
    """The mean on the 0-1 scale, less each image's change of light."""
    std_C: Tensor


@dataclass(frozen=True, slots=True)
class _Batch:
    x: Tensor
    """Float32 views `(N, C, H, W)`, or bytes `(N, H, W, C)`."""
    labels_N: Tensor
    finish: _Finish | None
    """None when the views are finished."""


class _Pending:
    """A batch that workers are writing."""

    def __init__(self, *, x: Tensor, order: Sequence[int], draws: Sequence[Draw], memory: int) -> None:
        self.x = x
        self.order = order
        self.draws = draws
        self.futures: list[Future[list[ImageError | None]]] = []
        self._memory = memory  # file descriptor, or below 0

    def abandon(self) -> None:
        """Take no more work, and close the memory's descriptor (not the memory) when nobody opens it any more."""
        wait([future for future in self.futures if not future.cancel()])
        if self._memory >= 0:
            with suppress(OSError):
                os.close(self._memory)
            self._memory = -1


def augment(pixels_NHWC: Tensor, mirror_N: Tensor, mean_NC: Tensor, std_C: Tensor) -> Tensor:
    """Mirror, light and normalise a batch of bytes on the device that it is on; float32 `(N, C, H, W)`.

    Operation by operation what `preprocess.normalise` does, so that the values are the same, to the bit on a processor.

    Args:
        pixels_NHWC: crops, uint8.
        mirror_N: which ones are mirrored.
        mean_NC: taken off R, G, B on the 0-1 scale: the mean, less each image's change of light.
        std_C: divides R, G, B after that.
    """
    x_NCHW = pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    x_NCHW /= torch.full((), 255.0, device=x_NCHW.device)  # a plain 255 is multiplied by 1/255 on a GPU
    x_NCHW -= mean_NC[:, :, None, None]
    x_NCHW /= std_C[:, None, None]
    return torch.where(mirror_N[:, None, None, None], x_NCHW.flip(3), x_NCHW)


def _finished(batch: _Batch) -> tuple[Tensor, Tensor]:
    if batch.finish is None:
        return batch.x, batch.labels_N
    return augment(batch.x, batch.finish.mirror_N, batch.finish.mean_NC, batch.finish.std_C), batch.labels_N


def _moved(batches: Iterator[_Batch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches on a CUDA device: each is copied, on a stream of its own, while the one before it is used."""
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sent(value: Tensor) -> Tensor:
        if value.numel() and not value.is_pinned():
            value = value.pin_memory()
        return value.to(device, non_blocking=True)

    def ready(tensors: tuple[Tensor, Tensor], copied: torch.cuda.Event) -> tuple[Tensor, Tensor]:
        using = torch.cuda.current_stream(device)
        using.wait_event(copied)
        for value in tensors:
            value.record_stream(using)  # made on the other stream: its memory is not reused before this one is done
        return tensors

    waiting: tuple[tuple[Tensor, Tensor], torch.cuda.Event] | None = None
    for batch in batches:
        finish = batch.finish
        with torch.cuda.stream(copying):
            if finish is not None:
                finish = _Finish(sent(finish.mirror_N), sent(finish.mean_NC), sent(finish.std_C))
            tensors = _finished(_Batch(sent(batch.x), sent(batch.labels_N), finish))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(copying)
        if waiting is not None:
            yield ready(*waiting)
        waiting = (tensors, copied)
    if waiting is not None:
        yield ready(*waiting)


class FeatureFeed:
    """Features of fixed views of the images, computed once: what the layers after frozen ones are trained on."""

    def __init__(self, features_VNF: Tensor, labels_N: Tensor) -> None:
        self.features_VNF = features_VNF
        self.labels_N = labels_N

    def __len__(self) -> int:
        return len(self.labels_N)

    def batches(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        views = len(self.features_VNF)
        for first in range(0, len(order), batch):
            rows = torch.tensor(order[first : first + batch])
            chosen = torch.tensor([int(draw.left * views) for draw in draws[first : first + batch]])
            yield self.features_VNF[chosen.clamp(min=0), rows], self.labels_N[rows]


def fixed_views(count: int) -> list[Draw]:
    """The first `count` of: centre, mirrored centre, then the four corners and their mirror images.

    Raises:
        UserError: when `count` is not from 1 to 10.
    """
    if not 1 <= count <= 10:
        raise UserError("views must be from 1 to 10", value=count, fix="2 is the centre and its mirror image")
    almost = 1 - 1e-9
    corners = [(0.0, 0.0), (almost, 0.0), (0.0, almost), (almost, almost)]
    draws = [CENTRE, Draw(CENTRE.left, CENTRE.top, 1.0)]
    return (draws + [Draw(x0, y0, mirror) for x0, y0 in corners for mirror in (0.0, 1.0)])[:count]


def compute_features(
    feed: ImageFeed,
    features: Callable[[Tensor], Tensor],
    width: int,
    *,
    views: int,
    reporter: Reporter,
    split: str,
    batch: int = 64,
) -> FeatureFeed:
    """Run `features`, which gives `width` numbers per image, once over `views` fixed views of every image of a split.

    Raises:
        UserError: when the features would not fit into half of the memory.
        DataError: when no image can be used.
        ImageError: when an image cannot be used and bad images are not skipped.
    """
    count = len(feed)
    size = views * count * width * 4
    if size > (memory_bytes() or size) / 2:
        raise UserError(
            f"the features of {count} images in {views} views take {size / 2**30:.1f} GiB of memory",
            fix="use fewer views or images, or train without freezing",
        )
    tables, labels_N = list[Tensor](), torch.empty(0, dtype=torch.int64)
    reporter.start(f"Features, {split}", views * count)
    done = 0
    for draw in fixed_views(views):
        rows, labels = list[Tensor](), list[Tensor]()
        for x_NCHW, labels_n in feed.batches(range(count), [draw] * count, batch):
            with torch.inference_mode():
                if len(labels_n):
                    rows.append(features(x_NCHW).cpu())
            labels.append(labels_n.cpu())
            done += len(labels_n)
            reporter.update(done)
        if not rows:
            raise DataError(f"none of the {count} images can be used", value=feed.images.source.get("path"))
        tables.append(torch.cat(rows))
        labels_N = torch.cat(labels)
    reporter.finish(f"{len(labels_N)} images, {views} view{'s' if views > 1 else ''}")
    return FeatureFeed(torch.stack(tables), labels_N)
