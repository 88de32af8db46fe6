"""Corrections before quantising: channels brought to like ranges, and the mean error of a layer taken off its bias.

Cross-layer equalisation: between two layers with nothing but ReLU and max pooling in between, a channel may be divided by a
positive number in the first and multiplied by it in the second; in FP32 the answers stay the same but for its rounding.
Across a local response normalisation that does not hold: it is not proportional to its input. Behind fc6 it would hold and is
not done: the channels there are alike, and scaling them spreads the weights in an INT4 block (docs/quantization.md).

Bias correction: rounding weights and inputs moves the mean of a layer's output. The mean over calibration images of what
each output channel is off, in front of the ReLU, is subtracted from the channel's bias. A layer is linear, so the mean
of its outputs is its output for the mean of its inputs: one pass over the images in FP32 serves for every plan.

Letters: N batch, C channels, H height, W width.

Sources: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721); the ranges of activations instead of weights alone as in G. Xiao et al., "SmoothQuant"
(arXiv:2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_edge.artifact import Plan
from alexnet_edge.export.graphs.targets import Lowering, Ranges
from alexnet_edge.export.quantising.calibrate import QUIETLY, Collecting, observed
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint, Weights
from alexnet_edge.network.equalise import equalisable
from alexnet_edge.network.layers import LayerSpec
from alexnet_edge.network.quantize import quantize_blocks_full, quantize_weight
from alexnet_edge.proof.layerwise import convolve

IMAGES = 128
"""Calibration images of which channels' ranges and means are taken, evenly spread."""


def channel_peaks(checkpoint: Checkpoint, images: ImageSet, how: Collecting = QUIETLY) -> dict[str, FloatArray]:
    """The largest magnitude of each channel, `(C,)`, at the input of each layer behind another one it is paired with.

    Raises:
        DataError: when no image could be used.
        ImageError: when an image cannot be read and `on_bad_image` is `fail`.
        MissingComponentError: when onnx or ONNX Runtime is not installed.
    """
    from alexnet_edge.export.graphs.onnx import layer_inputs

    arch = checkpoint.info.arch
    channels = {second.name: first.out_channels for first, second in equalisable(arch)}
    taps = {name: tensor for name, tensor in layer_inputs(arch).items() if name in channels}
    peaks = {name: np.zeros(count, np.float32) for name, count in channels.items()}
    for values in observed(checkpoint, images, taps, "ranges of the channels", how):
        for name, tensor in values.items():
            by_channel = np.abs(tensor).reshape(len(tensor), channels[name], -1)
            peaks[name] = np.maximum(peaks[name], by_channel.max(axis=(0, 2), initial=0.0))
    return peaks


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanInputs:
    """Means over images of what each layer takes, by layer name: `(C, H, W)`, or `(C,)` from fc6 on; float64."""

    exact: Mapping[str, npt.NDArray[np.float64]]
    """As it is in FP32."""
    rounded: Mapping[str, npt.NDArray[np.float64]]
    """Rounded to INT8, each value of each image by itself."""


def mean_inputs(
    checkpoint: Checkpoint, images: ImageSet, ranges: Ranges, lowering: Lowering | None, how: Collecting = QUIETLY
) -> MeanInputs:
    """Collect what `corrected` needs, of the network as it is equalised; without a `lowering` activations are symmetric.

    Raises:
        DataError: when no image could be used.
        ImageError: when an image cannot be read and `on_bad_image` is `fail`.
        MissingComponentError: when onnx or ONNX Runtime is not installed.
    """
    from alexnet_edge.export.graphs.onnx import layer_inputs

    arch = checkpoint.info.arch
    taps = layer_inputs(arch)
    positive = {second.name: first.relu for first, second in zip(arch.layers, arch.layers[1:], strict=False)}
    exact: dict[str, Any] = dict.fromkeys(taps, 0.0)
    rounded: dict[str, Any] = dict.fromkeys(taps, 0.0)
    used = 0
    for values in observed(checkpoint, images, taps, "means of the inputs", how):
        for name, tensor in values.items():
            unsigned = lowering is not None and positive.get(name, False)
            step = np.float32(ranges.amax[name] / (255 if unsigned else 127))
            limits = (0, 255) if unsigned else (-128, 127)
            exact[name] = exact[name] + tensor.sum(axis=0, dtype=np.float64)
            steps = np.clip(np.rint(tensor / step), *limits)
            rounded[name] = rounded[name] + steps.sum(axis=0, dtype=np.float64) * step
        used += len(tensor)
    return MeanInputs(
        exact={name: value / used for name, value in exact.items()},
        rounded={name: value / used for name, value in rounded.items()},
    )


def corrected(
    checkpoint: Checkpoint, plan: Plan, means: MeanInputs, lowering: Lowering | None
) -> tuple[Checkpoint, dict[str, float]]:
    """The network with the mean error of each layer in INT8 or INT4 taken off its bias; a layer without a bias stays.

    Returns:
        The network, with the hash of the other, and the largest correction of each layer, by layer name.
    """
    weights: Weights = dict(checkpoint.weights)
    largest = {}
    for spec in checkpoint.info.arch.layers:
        weight, bias = weights[f"{spec.name}.weight"], weights.get(f"{spec.name}.bias")
        if bias is None or plan[spec.name] not in ("int8", "int4"):
            continue
        inputs = means.rounded if plan[spec.name] == "int8" else means.exact
        stored = _stored(weight, plan[spec.name], lowering)
        error_C = _mean_output(inputs[spec.name], stored, spec) - _mean_output(means.exact[spec.name], weight, spec)
        weights[f"{spec.name}.bias"] = (bias - error_C).astype(np.float32)
        largest[spec.name] = float(np.abs(error_C).max())
    return replace(checkpoint, weights=weights), largest


def _stored(weight: FloatArray, kind: str, lowering: Lowering | None) -> FloatArray:
    """What the integers stand for that a weight is stored in."""
    if kind == "int8":
        values, scale = quantize_weight(weight, bits=8 if lowering is None else lowering.weight_bits)
        return values * scale.reshape(-1, *[1] * (weight.ndim - 1))
    assert lowering is not None, "a portable graph has no INT4 with INT8"
    values, scale = quantize_blocks_full(weight, lowering.int4_block)
    blocks: FloatArray = values.reshape(*scale.shape, -1) * scale[:, :, None]
    return blocks.reshape(weight.shape)


def _mean_output(mean: npt.NDArray[np.float64], weight: FloatArray, spec: LayerSpec) -> npt.NDArray[np.float64]:
    """The mean over images and positions of each output channel, `(C,)`, without bias, for the mean of the inputs."""
    x = mean.astype(np.float32)
    if spec.kind == "fc":
        return np.asarray(weight @ x, np.float64)
    return np.asarray(convolve(x[None], weight, spec)[0].mean(axis=(1, 2), dtype=np.float64))
