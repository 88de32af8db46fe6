"""INT8 weights: symmetric, at most half a scale from the weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from alexnet_edge.export.quantize import INT8_MAX, quantize_weight

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(deadline=None, max_examples=200)
@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=FINITE))
def test_at_most_half_a_scale_away(weight: np.ndarray) -> None:
    values, scale = quantize_weight(weight)
    assert values.dtype == np.int8
    assert values.shape == weight.shape
    assert scale.dtype == np.float32
    assert scale.shape == (len(weight),)
    assert (scale > 0).all()
    assert np.isfinite(scale).all()
    assert values.min() >= -INT8_MAX
    wide = scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    error = np.abs(values * wide - weight.astype(np.float64))
    assert (error <= wide * (0.5 + 1e-4)).all()  # float32 division rounds 127.00001 levels
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
