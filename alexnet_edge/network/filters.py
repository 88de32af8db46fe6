"""The first layer's filters as a picture. Needs no torch.

Letters: O filters, C channels, H height, W width.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_edge.images.preprocess import FloatArray


def filter_grid(filters_OCHW: FloatArray, *, zoom: int = 4) -> npt.NDArray[np.uint8]:
    """Filters `(O, 3, H, W)` side by side as a picture `(rows, columns, 3)`, each filter from black to white, `zoom` pixels to a
    weight, a grey line between two."""
    count, channels, height, width = filters_OCHW.shape
    assert channels == 3, "only a first layer's filters have colours"
    flat_OX = filters_OCHW.reshape(count, -1)
    low_O1, high_O1 = flat_OX.min(1, keepdims=True), flat_OX.max(1, keepdims=True)
    even_OX = (flat_OX - low_O1) / np.maximum(high_O1 - low_O1, np.finfo(np.float32).tiny)
    tiles_OHWC = np.round(255 * even_OX).astype(np.uint8).reshape(filters_OCHW.shape).transpose(0, 2, 3, 1)
    across = int(np.ceil(np.sqrt(count * height / width)))
    down = -(-count // across)
    grid = np.full((down * (height + 1) - 1, across * (width + 1) - 1, 3), 128, np.uint8)
    for number, tile_HWC in enumerate(tiles_OHWC):
        y0, x0 = number // across * (height + 1), number % across * (width + 1)
        grid[y0 : y0 + height, x0 : x0 + width] = tile_HWC
    return grid.repeat(zoom, 0).repeat(zoom, 1)


def filter_png(filters_OCHW: FloatArray) -> bytes:
    """`filter_grid` of filters `(O, 3, H, W)` as the bytes of a PNG file."""
    out = io.BytesIO()
    Image.fromarray(filter_grid(filters_OCHW)).save(out, "PNG", optimize=True)
    return out.getvalue()
