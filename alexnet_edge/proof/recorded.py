"""The images that a checkpoint records: for training, calibration and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_edge.artifact import SUFFIXES
from alexnet_edge.errors import UserError
from alexnet_edge.images.datasets import ImageSet, open_images, reopen
from alexnet_edge.network.checkpoint import Checkpoint

CALIBRATION_IMAGES = 512
"""Images taken by default from the checkpoint's training data, evenly spread over the classes."""


def calibration_images(
    checkpoint: Checkpoint, named: str | None, count: int | None, class_list: Path | None = None
) -> ImageSet:
    """The images to calibrate on: `count` of them, evenly spread, by default `CALIBRATION_IMAGES` of the training data.

    `named` is a folder of images, whose classes `class_list` gives, `synthetic`, or `random` for random pixels: real
    activations look different, so these are only used when asked for by name.

    Raises:
        UserError: when the checkpoint records no data and none is named, or `count` is not positive.
        DataError: when there are no such images.
    """
    count = CALIBRATION_IMAGES if count is None else count
    if named == "random":
        if count < 1:
            raise UserError("the number of images must be 1 or more", value=count, fix="give a positive number")
        return random_images(count)
    if named is not None:
        return open_images(named, limit=count, class_list=class_list)
    return training_images(checkpoint).spread(count)


def training_images(checkpoint: Checkpoint) -> ImageSet:
    """The training images that the checkpoint records.

    Raises:
        UserError: when it records none.
        DataError: when they are gone.
    """
    return _recorded(checkpoint, "train", "calibration images", "--calibration")


def validation_images(checkpoint: Checkpoint) -> ImageSet:
    """The validation images that the checkpoint records.

    Raises:
        UserError: when it records none.
        DataError: when they are gone.
    """
    return _recorded(checkpoint, "val", "images to prove the answers on", "--images")


def _recorded(checkpoint: Checkpoint, split: str, purpose: str, option: str) -> ImageSet:
    data = checkpoint.info.data
    source = (data if split == "train" else data.get(split, {})).get("source")
    if not source:
        problem = f"the checkpoint records no {split} data to take {purpose} from"
        if checkpoint.path.suffix == SUFFIXES["onnx"]:
            problem = f"an ONNX file records no {purpose}"
        raise UserError(problem, value=checkpoint.path, fix=f"name a folder of real images with {option}")
    return reopen(source)


class _RandomItem:
    """An image of random pixels."""

    def __init__(self, index: int) -> None:
        self.name = f"random/{index:06d}"
        self._index = index

    def image(self) -> Image.Image:
        pixels_HWC = np.random.default_rng(self._index).integers(0, 256, (256, 256, 3), dtype=np.uint8)
        return Image.fromarray(pixels_HWC)

    def content(self) -> bytes:
        return self.image().tobytes()


def random_images(count: int) -> ImageSet:
    """Images of random pixels, for those who ask for them by name; the manifest records that calibration used them."""
    return ImageSet(
        [_RandomItem(index) for index in range(count)], [-1] * count, (), {"kind": "random", "count": count}
    )
