"""Quantised values and scales: symmetric, zero point 0, as TensorRT requires.

Sources: TensorRT documentation, "Working with Quantized Types" and "Quantization Schemes": symmetric quantisation, per-tensor
activations; INT8 weights per output channel; INT4 weights in blocks of 64 or 128 along the input axis. FP8 weights have one
scale per tensor: per-channel ones are for matrix products on some GPUs only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_edge.errors import needs
from alexnet_edge.images.preprocess import FloatArray

INT8_MAX = 127
"""Largest magnitude used; -128 is left out so that the range is symmetric."""
INT4_MIN, INT4_MAX = -8, 7
"""Values of INT4; `quantize_blocks` leaves -8 out so that its range is symmetric."""
INT4_BLOCK = 128
"""Weights along the input axis that share one INT4 scale; TensorRT takes 64 or 128."""
FP8_MAX = 448
"""Largest magnitude of the E4M3 format, which has no infinity."""

HalfArray = npt.NDArray[np.float16]


def quantize_weight(weight: FloatArray, *, bits: int = 8) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Quantise a weight per output channel.

    Args:
        weight: `(C_out, ...)`, float32.
        bits: that the values use: with 7 they are within 63.

    Returns:
        int8 values in the same shape, and float32 scales `(C_out,)`; `values * scale` is within half a scale of `weight`.
        A channel of zeros, or of weights too small for a normal float32 scale, gets the scale 1.
    """
    largest = INT8_MAX >> (8 - bits)
    scale = np.abs(weight.reshape(len(weight), -1)).max(axis=1) / np.float32(largest)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    values = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(values, -largest, largest).astype(np.int8), scale


def quantize_tensor(weight: FloatArray) -> tuple[npt.NDArray[Any], HalfArray]:
    """Quantise a weight to FP8 (E4M3) with one scale.

    Args:
        weight: any shape, float32, magnitudes in the range of FP16.

    Returns:
        `float8_e4m3fn` values in the same shape, and a float16 scale `()`. `values * scale` keeps four significant bits of
        each weight above 2e-2 scales; below that the error is at most a thousandth of the scale.
    """
    with needs("export"):
        import ml_dtypes
    scale = half_scale(np.abs(weight).max(), FP8_MAX)
    return (weight / scale.astype(np.float32)).astype(ml_dtypes.float8_e4m3fn), scale


def quantize_blocks(weight: FloatArray) -> tuple[npt.NDArray[np.int8], HalfArray]:
    """Quantise a weight to INT4, each `INT4_BLOCK` weights along the input axis with a scale of their own.

    Args:
        weight: `(C_out, C_in)`, float32, magnitudes in the range of FP16; C_in is a multiple of `INT4_BLOCK`.

    Returns:
        int8 values between -7 and 7 in the same shape, and float16 scales `(C_out, C_in / INT4_BLOCK)`; `values * scale` is
        within half a scale of `weight`. A block of zeros gets the scale 1.
    """
    blocks = weight.reshape(len(weight), -1, INT4_BLOCK)
    scale = half_scale(np.abs(blocks).max(axis=2), INT4_MAX)
    values = np.rint(blocks / scale.astype(np.float32)[:, :, None])
    return values.astype(np.int8).reshape(weight.shape), scale


def quantize_blocks_full(weight: FloatArray, block: int) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """Quantise a weight to INT4 with all 16 values, each `block` weights along the input axis with a scale of their own.

    The largest magnitude of a block falls on -8, so its scale has the other sign: a step is 7/8 of that in `quantize_blocks`,
    which is for TensorRT, whose scales are positive.

    Args:
        weight: `(C_out, C_in)`, float32; C_in is a multiple of `block`.
        block: weights that share a scale.

    Returns:
        int8 values between -8 and 7 in the same shape, and float32 scales `(C_out, C_in / block)`; `values * scale` is within
        half a scale of `weight`, but for a weight beyond 7 scales, which may be off by a whole one. A block of zeros, or of
        weights too small for a normal float32 scale, gets the scale 1.
    """
    blocks = weight.reshape(len(weight), -1, block)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
    scale = extreme / np.float32(INT4_MIN)
    scale = np.where(np.abs(scale) >= np.finfo(np.float32).tiny, scale, np.float32(1))
    values = np.clip(np.rint(blocks / scale), INT4_MIN, INT4_MAX).astype(np.int8)
    return values.reshape(weight.shape), scale[:, :, 0]


def half_scale(amax: FloatArray | np.float32, levels: int) -> HalfArray:
    """The smallest float16 scales with which `levels` steps reach `amax`; 1 where `amax` is 0.

    Rounded up, so that the largest value is never clipped, however coarse float16 is near its smallest numbers.
    """
    exact = np.asarray(amax, np.float32) / np.float32(levels)
    scale = exact.astype(np.float16)
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    return np.asarray(np.where(exact > 0, scale, np.float16(1)), np.float16)
