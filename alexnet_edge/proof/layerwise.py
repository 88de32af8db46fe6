"""The network step by step in NumPy: what every tensor inside should be, independent of every exporter and runtime.

Needs numpy only, so that it also runs on a device. Slow, and meant for a few images.

Letters: N batch, C channels, H height, W width, G groups, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network import layers
from alexnet_edge.network.layers import Architecture, LayerSpec

StepKind = Literal["layer", "lrn", "pool"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A part of the network between two tensors that an exported graph has too."""

    name: str
    """Of the tensor it ends in, in the graphs of this package: `conv1/relu`, `conv1/lrn`, `conv1/pool`, `fc8`."""
    layer: str
    """The layer it belongs to, one of `LAYER_NAMES`."""
    kind: StepKind
    """`layer`: the convolution or product with its bias and ReLU."""
    spec: LayerSpec

    def run(self, x: FloatArray, weights: Mapping[str, FloatArray]) -> FloatArray:
        """What comes out for the input `x`: `(N, C, H, W)`, or `(N, C)` behind fc6; float32."""
        if self.kind == "lrn":
            return normalise(x)
        if self.kind == "pool":
            return pool(x)
        weight, bias = weights[f"{self.layer}.weight"], weights.get(f"{self.layer}.bias")
        y = convolve(x, weight, self.spec) if self.spec.kind == "conv" else x.reshape(len(x), -1) @ weight.T
        if bias is not None:
            y += bias.reshape(1, -1, *[1] * (y.ndim - 2))
        return np.maximum(y, 0) if self.spec.relu else y


def steps(arch: Architecture) -> list[Step]:
    """The steps of an architecture in their order, without the head's softmax."""
    return [
        Step(name=f"{spec.name}{suffix}", layer=spec.name, kind=kind, spec=spec)
        for spec in arch.layers
        for kind, suffix, present in _parts(spec)
        if present
    ]


def _parts(spec: LayerSpec) -> tuple[tuple[StepKind, str, bool], ...]:
    """Each step that a layer may have, with the end of its tensor's name, and whether it has it."""
    return ("layer", "/relu" if spec.relu else "", True), ("lrn", "/lrn", spec.lrn), ("pool", "/pool", spec.pool)


def tensors(
    arch: Architecture, weights: Mapping[str, FloatArray], x_NCHW: FloatArray
) -> Iterator[tuple[Step, FloatArray]]:
    """Every step with the tensor it ends in, float32."""
    value = x_NCHW
    for step in steps(arch):
        value = step.run(value, weights)
        yield step, value


def convolve(x_NCHW: FloatArray, weight: FloatArray, spec: LayerSpec) -> FloatArray:
    """Convolution without bias: `(N, C, H, W)` and `(C_out, C / G, k, k)` to `(N, C_out, H', W')`, one image at a time."""
    padding, groups, kernel = spec.padding, spec.groups, spec.kernel
    padded = np.pad(x_NCHW, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    side = (padded.shape[2] - kernel) // spec.stride + 1
    matrix_GOI = weight.reshape(groups, len(weight) // groups, -1)
    y = np.empty((len(x_NCHW), len(weight), side, side), np.float32)
    for image_CHW, y_CHW in zip(padded, y, strict=True):
        windows = sliding_window_view(image_CHW, (kernel, kernel), (1, 2))[:, :: spec.stride, :: spec.stride]
        columns_GIP = windows.transpose(0, 3, 4, 1, 2).reshape(groups, matrix_GOI.shape[2], side * side)
        y_CHW[:] = (matrix_GOI @ columns_GIP).reshape(y_CHW.shape)
    return y


def normalise(x_NCHW: FloatArray) -> FloatArray:
    """Local response normalisation, as `alexnet_edge.network.layers` states it."""
    reach = layers.LRN_SIZE // 2
    squares = np.pad(x_NCHW.astype(np.float64) ** 2, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    sums = sum(squares[:, first : first + x_NCHW.shape[1]] for first in range(layers.LRN_SIZE))
    return np.asarray(
        x_NCHW / (layers.LRN_K + layers.LRN_ALPHA / layers.LRN_SIZE * sums) ** layers.LRN_BETA, np.float32
    )


def pool(x_NCHW: FloatArray) -> FloatArray:
    """3x3/2 max pooling without padding."""
    windows = sliding_window_view(x_NCHW, (layers.POOL_KERNEL, layers.POOL_KERNEL), (2, 3))
    y_NCHW: FloatArray = windows[:, :, :: layers.POOL_STRIDE, :: layers.POOL_STRIDE].max(axis=(4, 5))
    return y_NCHW
