"""Random views of images, as in section 4.1 of the paper: crops, mirror images and a change of light. Needs no torch.

The numbers of a view depend on the seed, the epoch and the place in it alone. The number of workers or processes does not
change them, and a resumed run draws the same.

Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012).

Letters: N images, C channels, H height, W width, K principal components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from alexnet_edge import records
from alexnet_edge.errors import DataError, ImageError
from alexnet_edge.images.datasets import ImageSet, OnBadImage
from alexnet_edge.images.preprocess import FloatArray, Preprocessing, centre_offset, resize_shorter

Pixels = npt.NDArray[np.uint8]
Doubles = npt.NDArray[np.float64]

LIGHTING_SAMPLE = 1000
"""Images, evenly spaced in the training set, whose pixels the change of light is measured on."""


@dataclass(frozen=True, slots=True)
class Draw:
    """The numbers that choose one view."""

    left: float
    """0 to below 1, from the leftmost crop to the rightmost; below 0 for the centre."""
    top: float
    """The same from top to bottom."""
    mirror: float
    """Mirrored from 0.5 on."""
    light: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Along each principal component of the colours, in standard deviations; `Lighting` says how far that is."""


CENTRE = Draw(-1.0, -1.0, 0.0)
"""The view that evaluation uses."""


class Draws(Sequence[Draw]):
    """The draws of many views, kept as two tables."""

    def __init__(self, views_N3: Doubles, light_NK: Doubles) -> None:
        self._views_N3 = views_N3
        self._light_NK = light_NK

    def __len__(self) -> int:
        return len(self._views_N3)

    @overload
    def __getitem__(self, place: int) -> Draw: ...

    @overload
    def __getitem__(self, place: slice) -> Draws: ...

    def __getitem__(self, place: int | slice) -> Draw | Draws:
        if isinstance(place, slice):
            return Draws(self._views_N3[place], self._light_NK[place])
        left, top, mirror = self._views_N3[place].tolist()
        first, second, third = self._light_NK[place].tolist()
        return Draw(left, top, mirror, (first, second, third))

    def at(self, places: Sequence[int]) -> Draws:
        """Those at `places`, in that order."""
        return Draws(self._views_N3[places], self._light_NK[places])


def epoch_draws(count: int, *, seed: int, epoch: int) -> Draws:
    """The views of one epoch: number `i` depends on `(seed, epoch, i)` alone, not on `count`."""
    return Draws(
        np.random.default_rng((seed, epoch, 1)).random((count, 3)),
        np.random.default_rng((seed, epoch, 2)).standard_normal((count, 3)),
    )


def view(pixels_HWC: Pixels, spec: Preprocessing, draw: Draw) -> Pixels:
    """The crop `(spec.crop, spec.crop, 3)` that `draw` chooses from a resized image; its light is not changed.

    The paper crops from the central 256x256 of the resized image; this, as torchvision's `RandomCrop` and `ten_crops`, from
    all of it, which is the same for square images.
    """
    height, width, _ = pixels_HWC.shape
    if draw.left < 0:
        x0, y0 = centre_offset(width, height, spec.crop)
    else:
        x0 = int(draw.left * (width - spec.crop + 1))
        y0 = int(draw.top * (height - spec.crop + 1))
    crop = pixels_HWC[y0 : y0 + spec.crop, x0 : x0 + spec.crop]
    return crop[:, ::-1] if draw.mirror >= 0.5 else crop


@dataclass(frozen=True, kw_only=True, slots=True)
class Lighting:
    """The paper's change of light: all pixels of an image are moved along the principal components of the colours.

    The paper adds the sum of p_k * alpha_k * lambda_k, with eigenvectors p and eigenvalues lambda of the covariance of the
    R, G, B values and alpha normal with deviation `sigma`. It names no scale; on 0-255 the sum would be hundreds of times
    the whole range. Here, as in the published implementations, values are on the 0-1 scale. They are not clipped, as in
    the paper.
    """

    sigma: float
    """Standard deviation of alpha; 0.1 in the paper."""
    eigenvalues: tuple[float, float, float]
    """Of the covariance on the 0-1 scale, from the largest to the smallest."""
    eigenvectors: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    """R, G, B of the direction of each eigenvalue, of length 1."""
    images: int
    """How many images they were measured on."""

    def shift(self, light: Sequence[float]) -> FloatArray:
        """What is added to R, G, B, float32 `(3,)` on the 0-1 scale; zeros where `light` is."""
        alpha_K = self.sigma * np.asarray(light, np.float64)
        return ((alpha_K * self.eigenvalues) @ np.asarray(self.eigenvectors, np.float64)).astype(np.float32)


def measure_lighting(images: ImageSet, spec: Preprocessing, *, sigma: float, on_bad_image: OnBadImage) -> Lighting:
    """The principal components of the R, G, B values of `LIGHTING_SAMPLE` of the `images`, resized as for training.

    Every pixel has the same weight. The sums are of whole numbers, so the covariance does not depend on their order.

    Raises:
        DataError: when no image of the sample can be used.
        ImageError: when an image cannot be used and bad images are not skipped.
    """
    count = len(images)
    pixels, used = 0, 0
    sum_C, products_CC = np.zeros(3), np.zeros((3, 3))
    for index in sorted({place * count // LIGHTING_SAMPLE for place in range(LIGHTING_SAMPLE)}):
        try:
            resized = resize_shorter(images.image(index), spec, path=Path(images.name(index)))
        except ImageError:
            if on_bad_image == "fail":
                raise
            continue
        values_NC = np.asarray(resized, np.float64).reshape(-1, 3)
        pixels, used = pixels + len(values_NC), used + 1
        sum_C += values_NC.sum(0)
        products_CC += values_NC.T @ values_NC
    if not used:
        raise DataError("no training image can be used", value=images.source.get("path"), fix="replace them")
    mean_C = sum_C / pixels
    covariance_CC = (products_CC / pixels - np.outer(mean_C, mean_C)) / 255**2
    values_K, vectors_CK = np.linalg.eigh(covariance_CC)
    vectors_KC = np.stack([_upright(vector_C) for vector_C in vectors_CK.T[::-1]])
    measured = {"eigenvalues": np.maximum(values_K[::-1], 0.0).tolist(), "eigenvectors": vectors_KC.tolist()}
    return records.convert(Lighting, {"sigma": sigma, **measured, "images": used})


def _upright(vector_C: Doubles) -> Doubles:
    """The direction with its largest component above 0: the sign of an eigenvector is arbitrary."""
    largest = vector_C[np.abs(vector_C).argmax()]
    return vector_C if largest > 0 else -vector_C
