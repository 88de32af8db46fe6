"""The work of a feed's workers: read an image, cut its view, write it into the batch. Needs no torch.

Workers are threads or processes. Processes map the memory of the batch itself and write into it: only numbers and errors
travel between them.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alexnet_edge.errors import ImageError
from alexnet_edge.images.augment import Draw, Lighting, Pixels, view
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.preprocess import Preprocessing, normalise, resize_shorter

Pool = Literal["threads", "processes"]
AugmentOn = Literal["workers", "device"]
Array = npt.NDArray[Any]
Kind = Literal["float32", "uint8"]
"""`float32`: finished views `(C, H, W)`. `uint8`: crops `(H, W, C)`, to be mirrored, lit and normalised elsewhere."""


class ViewReader:
    """Reads views of the images of a set; keeps resized images in memory up to `budget` bytes."""

    def __init__(self, images: ImageSet, spec: Preprocessing, *, lighting: Lighting | None, budget: int) -> None:
        self.images = images
        self.spec = spec
        self.lighting = lighting
        self._left = budget
        self._kept: dict[int, Pixels] = {}
        self._bad: dict[int, ImageError] = {}
        self._lock = threading.Lock()

    def fill(self, out_N: Array, indices: Sequence[int], draws: Sequence[Draw]) -> list[ImageError | None]:
        """Write one view per row of `out_N`, of either `Kind`; the row of an image that cannot be used stays as it is."""
        return [self._write(row, index, draw) for row, index, draw in zip(out_N, indices, draws, strict=True)]

    def _write(self, row: Array, index: int, draw: Draw) -> ImageError | None:
        try:
            pixels_HWC = self._resized(index)
        except ImageError as error:
            return error
        if row.dtype == np.uint8:
            row[...] = view(pixels_HWC, self.spec, replace(draw, mirror=0.0))
        else:
            shift_C = None if self.lighting is None else self.lighting.shift(draw.light)
            normalise(view(pixels_HWC, self.spec, draw), self.spec, shift_C=shift_C, out=row)
        return None

    def _resized(self, index: int) -> Pixels:
        if index in self._bad:
            raise self._bad[index]
        pixels_HWC = self._kept.get(index)
        if pixels_HWC is None:
            try:
                image = resize_shorter(self.images.image(index), self.spec, path=Path(self.images.name(index)))
            except ImageError as error:
                self._bad[index] = error
                raise
            pixels_HWC = np.asarray(image)
            with self._lock:
                if index not in self._kept and self._left >= pixels_HWC.nbytes:
                    self._left -= pixels_HWC.nbytes
                    self._kept[index] = pixels_HWC
        return pixels_HWC


_reader: ViewReader | None = None


def start_process(images: ImageSet, spec: Preprocessing, lighting: Lighting | None, budget: int) -> None:
    """Make this process a worker that ends with its parent, and not before it.

    A signal to every process of a job (Ctrl-C, a batch system, a service manager) is for the parent, which still needs its
    batches to stop in good order.
    """
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    _reader = ViewReader(images, spec, lighting=lighting, budget=budget)
    os.setsid()
    parent = parent_process()
    assert parent is not None, "only a worker process calls this"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)  # the parent was killed: nobody else would end this process

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(1)

    for target in (watch, obey):
        threading.Thread(target=target, daemon=True).start()


def fill_mapped(
    path: str, shape: tuple[int, ...], kind: Kind, first: int, indices: Sequence[int], draws: Sequence[Draw]
) -> list[ImageError | None]:
    """`ViewReader.fill` into the rows from `first` on of an array of `shape` that is the file `path`."""
    assert _reader is not None, "the process was not started as a worker"
    whole_N = np.memmap(path, dtype=kind, mode="r+", shape=shape)
    return _reader.fill(whole_N[first : first + len(indices)], indices, draws)
