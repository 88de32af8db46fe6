"""The samples of training: random views of images, or features computed once.

A view is cut from the same resized image and scaled by the same arithmetic as `alexnet_edge.images.preprocess`: the central,
unmirrored view in unchanged light equals it bit for bit. `augment.py` describes the views.

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
from dataclasses import KW_ONLY, dataclass, field
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
"""Bytes of resized images to keep in memory; the other images are decoded every time."""

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


@dataclass(eq=False)
class ImageFeed:
    """Views of the images of a set, made by workers ahead of training.

    Resized images are kept in memory as far as `budget` goes; worker processes share it out among them. On a CUDA device
    batches travel through pinned memory, one ahead, beside the computation.
    """

    images: ImageSet
    spec: Preprocessing
    _: KW_ONLY
    workers: int
    """Threads or processes that read ahead; 0 reads in the caller's thread, when a batch is needed."""
    on_bad_image: OnBadImage
    """`fail` raises at the first image that cannot be used, `skip` leaves it out."""
    budget: int = CACHE_BYTES
    """Bytes of resized images to keep."""
    lighting: Lighting | None = None
    """The change of light that a draw's `light` is of; None leaves it."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where batches are put."""
    augment_on: AugmentOn = "workers"
    """`device` sends bytes, a quarter of the size, and mirrors, lights and normalises them there."""
    pool: Pool = "threads"
    """What the workers are."""
    bad: dict[int, ImageError] = field(default_factory=dict, init=False)
    """The error of each image that cannot be used, by position."""

    def __post_init__(self) -> None:
        self._kind: Kind = "uint8" if self.augment_on == "device" else "float32"
        self._in_processes = self.pool == "processes" and self.workers > 0
        self._share = self.budget // self.workers if self._in_processes else self.budget
        self._reader = ViewReader(self.images, self.spec, lighting=self.lighting, budget=self._share)
        self._executor: Executor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises ImageError when an image cannot be used and bad images are not skipped."""
        with closing(self._read(order, draws, batch)) as host_batches:
            if self.device.type == "cuda":
                yield from _moved(host_batches, self.device)
            else:
                yield from (_finished(*tensors) for tensors in host_batches)

    def close(self) -> None:
        """End the workers; another call of `batches` starts new ones."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _read(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Generator[_Batch, None, None]:
        executor = self._executor = self._executor or self._start()
        ahead = BATCHES_AHEAD if self.workers else 0
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
            problem = "a process that reads images ended unasked: it was killed, perhaps for want of memory"
            raise DataError(problem, fix="use fewer workers, or threads") from error
        finally:
            for pending in waiting:  # their memory is freed only when nobody writes into it any more
                pending.abandon()

    def _start(self) -> Executor:
        if not self.workers:
            return _Inline()
        if not self._in_processes:
            return ThreadPoolExecutor(self.workers, thread_name_prefix="reader")
        # torch has threads, so a fork of this process could hang; a server that forks could be stopped by itself
        return ProcessPoolExecutor(
            self.workers,
            mp_context=get_context("spawn"),
            initializer=start_process,
            initargs=(self.images, self.spec, self.lighting, self._share),
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
            x = torch.empty(shape, dtype=getattr(torch, self._kind), pin_memory=self.device.type == "cuda")
        pending = _Pending(x, order, draws, memory)
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
                if self.on_bad_image == "fail":
                    raise error
                self.bad[index] = error
        x, order, draws = pending.x, list(pending.order), pending.draws
        if len(keep) < len(errors):
            x, order, draws = x[keep], [order[row] for row in keep], [draws[row] for row in keep]
        labels_N = torch.from_numpy(self.images.labels_N[order])
        if self._kind == "float32":
            return x, labels_N
        shift_NC = np.zeros((len(order), 3), np.float32)
        if self.lighting is not None and order:
            shift_NC = np.stack([self.lighting.shift(draw.light) for draw in draws])
        mirror_N = torch.tensor([draw.mirror >= 0.5 for draw in draws], dtype=torch.bool)
        mean_NC = torch.from_numpy(np.asarray(self.spec.mean, np.float32) - shift_NC)
        return x, labels_N, mirror_N, mean_NC, torch.tensor(self.spec.std, dtype=torch.float32)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM in this thread and in the processes that it starts, which later set their own rules."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Inline(Executor):
    """Does each task at once, in the caller's thread."""

    def submit(self, call: Callable[..., Result], /, *args: Any, **options: Any) -> Future[Result]:
        future = Future[Result]()
        future.set_result(call(*args, **options))
        return future


_Batch = tuple[Tensor, ...]
"""Float32 views `(N, C, H, W)` and labels; or bytes `(N, H, W, C)`, labels, and what `augment` needs to finish the views."""


@dataclass(eq=False, slots=True)
class _Pending:
    """A batch that workers are writing."""

    x: Tensor
    order: Sequence[int]
    draws: Sequence[Draw]
    memory: int
    """File descriptor; below 0 where the batch is in this process's own memory."""
    futures: list[Future[list[ImageError | None]]] = field(default_factory=list)

    def abandon(self) -> None:
        """Take no more work, and close the memory's descriptor (not the memory) when nobody opens it any more."""
        wait([future for future in self.futures if not future.cancel()])
        if self.memory >= 0:
            with suppress(OSError):
                os.close(self.memory)
            self.memory = -1


def augment(pixels_NHWC: Tensor, mirror_N: Tensor, mean_NC: Tensor, std_C: Tensor) -> Tensor:
    """Mirror, light and normalise a batch of bytes on the device that it is on; float32 `(N, C, H, W)`.

    Operation by operation what `preprocess.normalise` does, so that the values are the same, to the bit on a processor. On
    the 0-1 scale, `mean_NC` (the mean, less each image's change of light) is taken off R, G, B, and `std_C` divides them.
    """
    x_NCHW = pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    x_NCHW /= torch.full((), 255.0, device=x_NCHW.device)  # a plain 255 is multiplied by 1/255 on a GPU
    x_NCHW -= mean_NC[:, :, None, None]
    x_NCHW /= std_C[:, None, None]
    return torch.where(mirror_N[:, None, None, None], x_NCHW.flip(3), x_NCHW)


def _finished(x: Tensor, labels_N: Tensor, *finish: Tensor) -> tuple[Tensor, Tensor]:
    return (augment(x, *finish) if finish else x), labels_N


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

    waiting = deque[tuple[tuple[Tensor, Tensor], torch.cuda.Event]]()
    for batch in batches:
        with torch.cuda.stream(copying):
            tensors = _finished(*map(sent, batch))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(copying)
        waiting.append((tensors, copied))
        if len(waiting) > 1:
            yield ready(*waiting.popleft())
    yield from (ready(*last) for last in waiting)


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
    low, high = 0.0, 1 - 1e-9
    corners = [(low, low), (high, low), (low, high), (high, high)]
    places = [(CENTRE.left, CENTRE.top), *corners]
    return [Draw(left, top, mirror) for left, top in places for mirror in (0.0, 1.0)][:count]


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
        problem = f"the features of {count} images in {views} views take {size / 2**30:.1f} GiB of memory"
        raise UserError(problem, fix="use fewer views or images, or train without freezing")
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
