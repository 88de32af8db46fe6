"""What training reads: random views of images, or features computed once.

The random view is the crop and mirror of section 4.1 of the paper, cut from the same resized image and scaled by the same
arithmetic as `alexnet_edge.preprocess`: the central, unmirrored view equals it bit for bit.

Letters: N batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from alexnet_edge.data import ImageSet, OnBadImage, read_ahead
from alexnet_edge.environment import memory_bytes
from alexnet_edge.errors import DataError, ImageError, UserError, needs
from alexnet_edge.preprocess import Preprocessing, centre_offset, normalise, resize_shorter
from alexnet_edge.progress import Reporter

with needs("train"):
    import torch
    from torch import Tensor

CACHE_BYTES = 2 << 30
"""Decoded and resized images are kept in memory up to so many bytes; the others are decoded every time."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Draw:
    """The numbers that choose one view."""

    left: float
    """0 to below 1, from the leftmost crop to the rightmost; below 0 for the centre."""
    top: float
    """The same from top to bottom."""
    mirror: float
    """Mirrored from 0.5 on."""


CENTRE = Draw(-1.0, -1.0, 0.0)
"""The view that evaluation uses."""


def view(pixels_HWC: Pixels, spec: Preprocessing, draw: Draw) -> Pixels:
    """The crop `(spec.crop, spec.crop, 3)` that `draw` chooses from a resized image."""
    height, width, _ = pixels_HWC.shape
    if draw.left < 0:
        left, top = centre_offset(width, height, spec.crop)
    else:
        left = int(draw.left * (width - spec.crop + 1))
        top = int(draw.top * (height - spec.crop + 1))
    crop = pixels_HWC[top : top + spec.crop, left : left + spec.crop]
    return crop[:, ::-1] if draw.mirror >= 0.5 else crop


class Feed(Protocol):
    """Training samples by position."""

    def __len__(self) -> int: ...

    def batches(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of the samples in `order`, `batch` at a time, each seen as its draw says.

        A batch keeps its place when samples in it are skipped; it is empty when all are.
        """


class ImageFeed:
    """Views of the images of a set, decoded by threads, kept resized in memory as far as `CACHE_BYTES` goes."""

    def __init__(
        self,
        images: ImageSet,
        spec: Preprocessing,
        *,
        workers: int,
        on_bad_image: OnBadImage,
        budget: int = CACHE_BYTES,
    ) -> None:
        self.images = images
        self.spec = spec
        self.bad: dict[int, ImageError] = {}
        """The error of each image that cannot be used, by position."""
        self._workers = workers
        self._on_bad_image = on_bad_image
        self._kept: dict[int, Pixels] = {}
        self._left = budget

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: Sequence[int], draws: Sequence[Draw], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises ImageError when an image cannot be used and bad images are not skipped."""

        def look(place: int) -> Pixels | ImageError:
            try:
                return view(self._resized(order[place]), self.spec, draws[place])
            except ImageError as error:
                return error

        pixels, labels = list[Pixels](), list[int]()
        last = len(order) - 1
        for place, seen in read_ahead(look, range(len(order)), workers=self._workers, ahead=2 * batch):
            if isinstance(seen, ImageError):
                if self._on_bad_image == "fail":
                    raise seen
                self.bad[order[place]] = seen
            else:
                pixels.append(seen)
                labels.append(int(self.images.labels_N[order[place]]))
            if (place + 1) % batch == 0 or place == last:
                seen_NHWC = np.stack(pixels) if pixels else np.empty((0, self.spec.crop, self.spec.crop, 3), np.uint8)
                yield torch.from_numpy(normalise(seen_NHWC, self.spec)), torch.tensor(labels, dtype=torch.int64)
                pixels, labels = [], []

    def _resized(self, index: int) -> Pixels:
        if index in self.bad:
            raise self.bad[index]
        kept = self._kept.get(index)
        if kept is None:
            name = Path(self.images.name(index))
            kept = np.asarray(resize_shorter(self.images.image(index), self.spec, path=name))
            if self._left >= kept.nbytes:
                self._left -= kept.nbytes
                self._kept[index] = kept
        return kept


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
    return (draws + [Draw(left, top, mirror) for left, top in corners for mirror in (0.0, 1.0)])[:count]


def compute_features(
    feed: ImageFeed,
    features: Callable[[Tensor], Tensor],
    width: int,
    *,
    views: int,
    batch: int,
    device: torch.device,
    reporter: Reporter,
    description: str,
) -> FeatureFeed:
    """Run `features` once over `views` fixed views of every image.

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
    order = range(count)
    tables, labels_N = list[Tensor](), torch.empty(0, dtype=torch.int64)
    reporter.start(description, views * count)
    done = 0
    for draw in fixed_views(views):
        rows, labels = list[Tensor](), list[Tensor]()
        for x_NCHW, labels_n in feed.batches(order, [draw] * count, batch):
            if not len(x_NCHW):
                continue
            with torch.inference_mode():
                rows.append(features(x_NCHW.to(device)).cpu())
            labels.append(labels_n)
            done += len(labels_n)
            reporter.update(done)
        if not rows:
            raise DataError(f"none of the {count} images can be used", value=feed.images.source.get("path"))
        tables.append(torch.cat(rows))
        labels_N = torch.cat(labels)
    reporter.finish(f"{len(labels_N)} images, {views} view{'s' if views > 1 else ''}")
    return FeatureFeed(torch.stack(tables), labels_N)
