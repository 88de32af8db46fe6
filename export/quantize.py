"""INT8 values and scales: symmetric, zero point 0, as TensorRT requires.

Source: TensorRT documentation, "Working with Quantized Types": symmetric quantisation, per-tensor activations, per-channel
weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from alexnet_edge.preprocess import FloatArray

INT8_MAX = 127
"""Largest magnitude used; -128 is left out so that the range is symmetric."""


def quantize_weight(weight: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Quantise a weight per output channel.

    Args:
        weight: `(C_out, ...)`, float32.

    Returns:
        int8 values in the same shape, and float32 scales `(C_out,)`; `values * scale` is within half a scale of `weight`.
        A channel of zeros, or of weights too small for a normal float32 scale, gets the scale 1.
    """
    scale = np.abs(weight.reshape(len(weight), -1)).max(axis=1) / np.float32(INT8_MAX)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    values = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(values, -INT8_MAX, INT8_MAX).astype(np.int8), scale
