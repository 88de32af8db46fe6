"""Quantised weights: symmetric, nothing clipped, at most half a step from the weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from alexnet_edge.network.quantize import (
    FP8_MAX,
    INT4_BLOCK,
    INT4_MAX,
    INT8_MAX,
    half_scale,
    quantize_blocks,
    quantize_tensor,
    quantize_weight,
)

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
IN_HALF = st.floats(-60000, 60000, width=32)
"""What FP16 can represent, as it must be able to in a network that computes in it."""


def any_shape(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=elements)


def is_half_a_scale_away(values: np.ndarray, wide: np.ndarray, weight: np.ndarray) -> bool:
    """At most; float32 division rounds 127.00001 levels."""
    error = np.abs(values * wide.astype(np.float64) - weight.astype(np.float64))
    return bool((error <= wide.astype(np.float64) * (0.5 + 1e-4)).all())


@settings(deadline=None, max_examples=200)
@given(any_shape(FINITE))
def test_at_most_half_a_scale_away(weight: np.ndarray) -> None:
    values, scale = quantize_weight(weight)
    assert (values.dtype, values.shape) == (np.int8, weight.shape)
    assert (scale.dtype, scale.shape) == (np.float32, (len(weight),))
    assert ((scale > 0) & np.isfinite(scale)).all()
    assert values.min() >= -INT8_MAX
    assert is_half_a_scale_away(values, scale.reshape(-1, *[1] * (weight.ndim - 1)), weight)
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    used = np.abs(values.reshape(len(weight), -1).astype(int)).max(axis=1)
    assert (used[largest > 1e-30] == INT8_MAX).all(), "the largest weight of a channel must use the whole range"


def test_a_channel_of_zeros() -> None:
    weight = np.zeros((3, 2, 2, 2), np.float32)
    weight[1] = 0.5
    values, scale = quantize_weight(weight)
    assert scale.tolist() == [1.0, pytest.approx(0.5 / 127), 1.0]
    assert values[1].tolist() == np.full((2, 2, 2), 127).tolist()
    assert not values[[0, 2]].any()


def test_channels_do_not_share_a_scale() -> None:
    weight = np.array([[1.0, -2.0], [0.001, 0.0005]], np.float32)
    values, scale = quantize_weight(weight)
    assert scale == pytest.approx([2 / 127, 0.001 / 127])
    assert values.tolist() == [[64, -127], [127, 64]]


@pytest.mark.parametrize("tiny", [1e-45, 1e-43, 1e-38])
def test_weights_too_small_for_a_scale(tiny: float) -> None:
    weight = np.full((1, 4), tiny, np.float32)
    values, scale = quantize_weight(weight)
    assert scale[0] > 0
    assert np.isfinite(scale).all()
    assert (np.abs(values * scale.astype(np.float64) - weight) <= 0.51 * scale).all()


# --- FP8 and INT4, whose scales are float16 ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.floats(0, 60000, width=32), st.sampled_from([INT4_MAX, FP8_MAX]))
def test_a_half_scale_reaches_the_largest_value(amax: float, levels: int) -> None:
    scale = half_scale(np.float32(amax), levels)
    assert scale.dtype == np.float16
    assert scale > 0
    exact = np.float32(amax) / np.float32(levels)
    if exact == 0:
        assert scale == 1
        return
    assert scale >= exact, "rounded down it would clip"
    below = np.nextafter(scale, np.float16(0))
    assert below < exact, "not the smallest such scale"


BLOCKS = st.tuples(st.integers(1, 3), st.sampled_from([INT4_BLOCK, 2 * INT4_BLOCK]))


@settings(deadline=None, max_examples=100)
@given(arrays(np.float32, BLOCKS, elements=IN_HALF))
def test_int4_is_at_most_half_a_scale_away(weight: np.ndarray) -> None:
    values, scale = quantize_blocks(weight)
    assert values.shape == weight.shape
    assert scale.shape == (len(weight), weight.shape[1] // INT4_BLOCK)
    assert np.abs(values).max() <= INT4_MAX
    assert is_half_a_scale_away(values, np.repeat(scale, INT4_BLOCK, axis=1), weight)


def test_int4_blocks_do_not_share_a_scale() -> None:
    weight = np.zeros((2, 2 * INT4_BLOCK), np.float32)
    weight[0, 0], weight[0, 1], weight[0, INT4_BLOCK], weight[1, -1] = 7.0, -2.2, 0.007, -70.0
    values, scale = quantize_blocks(weight)
    assert scale[0].tolist() == [1.0, pytest.approx(0.001, rel=1e-3)]
    assert scale[1].tolist() == [1.0, 10.0]
    assert values[0, :2].tolist() == [7, -2]
    assert values[0, INT4_BLOCK] == 7
    assert values[1, -1] == -7
    assert np.count_nonzero(values) == 4


@settings(deadline=None, max_examples=200)
@given(any_shape(IN_HALF))
def test_fp8_keeps_four_bits(weight: np.ndarray) -> None:
    values, scale = quantize_tensor(weight)
    assert values.shape == weight.shape
    assert scale.shape == ()
    stored = values.astype(np.float64)
    assert np.isfinite(stored).all(), "beyond 448 there is only NaN"
    wide = float(scale)
    error = np.abs(stored * wide - weight.astype(np.float64))
    assert (error <= np.maximum(np.abs(weight) * 2.0**-4, wide * 2.0**-10) * (1 + 1e-4)).all()


def test_fp8_of_zeros() -> None:
    values, scale = quantize_tensor(np.zeros((2, 3), np.float32))
    assert scale == 1
    assert not values.astype(np.float32).any()
