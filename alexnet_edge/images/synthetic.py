"""The drawings of the built-in synthetic set: patterns and shapes, from random numbers and arithmetic alone.

Letters: H height, W width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SYNTHETIC_CLASSES = (
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "checkerboard",
    "dots",
    "rings",
    "rays",
    "grid",
    "blotches",
    "disc",
)
"""Names of the synthetic classes, by output index."""

SYNTHETIC_SIZE = 256
"""Height and width of a synthetic image, in pixels."""

_Plane = npt.NDArray[np.float32]


def draw(pattern: str, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One image `(256, 256, 3)` of the class `pattern`.

    How much of each pixel the pattern covers mixes two random colours; uneven light and noise are added. Size, place and
    angle are random; a mirror image is of the same class.
    """
    size = SYNTHETIC_SIZE
    angle = random.uniform(-0.2, 0.2) + (random.choice((-1, 1)) * np.pi / 4 if pattern == "diagonal stripes" else 0)
    centre_x, centre_y = random.uniform(0.36, 0.64, 2) * size
    axis = np.arange(size, dtype=np.float32)
    across, down = axis[None, :] - np.float32(centre_x), axis[:, None] - np.float32(centre_y)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    coverage_HW = _coverage(pattern, across * cos + down * sin, down * cos - across * sin, random)

    front, back = random.uniform(140, 255, 3), random.uniform(0, 110, 3)
    slope_x, slope_y = random.uniform(-0.15, 0.15, 2).astype(np.float32)
    light_HW = 1 + slope_x * (axis[None, :] / size - 0.5) + slope_y * (axis[:, None] / size - 0.5)
    noise_HW = random.standard_normal((size, size), np.float32) * np.float32(random.uniform(2, 16))
    pixels = np.empty((size, size, 3), np.uint8)
    for channel in range(3):
        low, high = np.float32(back[channel]), np.float32(front[channel])
        plane_HW = (low + coverage_HW * (high - low)) * light_HW + noise_HW
        pixels[..., channel] = np.clip(np.rint(plane_HW), 0, 255)
    return pixels


def _coverage(pattern: str, x_HW: _Plane, y_HW: _Plane, random: np.random.Generator) -> _Plane:
    """How much of each pixel the pattern covers, 0-1; edges are about one pixel soft."""
    period = np.float32(random.uniform(32, 64))
    radius = np.float32(random.uniform(0.22, 0.36) * SYNTHETIC_SIZE)
    share = np.float32(random.uniform(0.25, 0.36))

    def wave(values_HW: _Plane) -> _Plane:
        """About how many pixels inside every second band each pixel lies."""
        inside: _Plane = np.sin(values_HW * np.float32(2 * np.pi / period)) * np.float32(period / (2 * np.pi))
        return inside

    def folded(values_HW: _Plane) -> _Plane:
        """Distance in pixels to the nearest multiple of the period."""
        distance: _Plane = np.abs((values_HW + period / 2) % period - period / 2)
        return distance

    inside_HW: _Plane
    if pattern in {"horizontal stripes", "diagonal stripes"}:
        inside_HW = wave(y_HW)
    elif pattern == "vertical stripes":
        inside_HW = wave(x_HW)
    elif pattern == "checkerboard":
        inside_HW = wave(x_HW) * wave(y_HW)
    elif pattern == "dots":
        inside_HW = period * share - np.hypot(folded(x_HW), folded(y_HW))
    elif pattern == "rings":
        inside_HW = wave(np.hypot(x_HW, y_HW))
    elif pattern == "rays":
        spokes = np.float32(random.integers(5, 9))
        inside_HW = np.hypot(x_HW, y_HW) / spokes * np.sin(np.arctan2(y_HW, x_HW) * spokes)
    elif pattern == "grid":
        inside_HW = period * (share - np.float32(0.14)) - np.minimum(folded(x_HW), folded(y_HW))
    elif pattern == "blotches":
        inside_HW = np.zeros_like(x_HW)
        for direction in random.uniform(0, 2 * np.pi, 7).astype(np.float32):
            shift = np.float32(random.uniform(0, SYNTHETIC_SIZE))
            inside_HW += wave(x_HW * np.cos(direction) + y_HW * np.sin(direction) + shift)
    else:
        assert pattern == "disc", pattern
        inside_HW = radius - np.hypot(x_HW, y_HW)
    coverage_HW: _Plane = np.clip(inside_HW + np.float32(0.5), 0, 1)
    return coverage_HW
