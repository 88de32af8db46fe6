"""Cross-layer equalisation: the scale of each channel as an exponent, and the weights scaled by it.

`export/quantising/corrections.py` decides where it is used.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from alexnet_edge.errors import UserError
from alexnet_edge.files import sha256_json
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint, Weights
from alexnet_edge.network.layers import Architecture, LayerSpec

STEPS_PER_OCTAVE = 4
"""Scales are powers of the fourth root of two, so that one character holds one."""
LARGEST_STEP = 4 * STEPS_PER_OCTAVE
"""Channels are scaled by 1/16 to 16."""
_DIGITS = (string.digits + string.ascii_lowercase)[: 2 * LARGEST_STEP + 1]

Steps = Mapping[str, npt.NDArray[np.int64]]
"""Exponents of the scale of each output channel, from `-LARGEST_STEP`, by the layer that is divided by it."""


def equalisable(arch: Architecture) -> list[tuple[LayerSpec, LayerSpec]]:
    """A convolution and the layer behind it, with nothing but ReLU and max pooling in between."""
    pairs = zip(arch.layers, arch.layers[1:], strict=False)
    return [(first, second) for first, second in pairs if first.kind == "conv" and not first.lrn]


def steps_for(checkpoint: Checkpoint, peaks: Mapping[str, FloatArray]) -> dict[str, npt.NDArray[np.int64]]:
    """The scales that bring the channels between two layers to like ranges.

    Activations have one scale per tensor, so a channel loses least where its values are as large as the others'. The next
    layer's weights have a scale per output channel, so there the weights that read this channel should be as large as the
    others. The scale is the root of the ratio of the two. This layer's own weights have a scale per channel in any case.

    Args:
        checkpoint: the network.
        peaks: the largest magnitude of each channel, `(C,)`, at the input of each layer, by layer name.
    """
    exponents = {}
    for first, second in equalisable(checkpoint.info.arch):
        weight = np.abs(checkpoint.weights[f"{second.name}.weight"]).reshape(second.out_channels, -1)
        share = weight / np.maximum(weight.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        if second.kind == "conv":  # (G, C_out / G, C_in / G, k * k)
            each = share.reshape(second.groups, -1, second.in_channels // second.groups, second.kernel**2)
            columns_C = each.max(axis=(1, 3)).reshape(-1)
        else:
            columns_C = share.max(axis=0).reshape(first.out_channels, -1).max(axis=1)
        values_C = peaks[second.name].astype(np.float64)
        used = (values_C > 0) & (columns_C > 0)
        exponent_C = np.zeros(first.out_channels)
        exponent_C[used] = 0.5 * STEPS_PER_OCTAVE * np.log2(values_C[used] / columns_C[used])
        exponent_C[used] -= exponent_C[used].mean() if used.any() else 0.0
        limited = np.clip(np.rint(exponent_C), -LARGEST_STEP, LARGEST_STEP)
        exponents[first.name] = limited.astype(np.int64)
    return exponents


def equalised(checkpoint: Checkpoint, steps: Steps) -> Checkpoint:
    """The network with its channels scaled; in FP32 it gives the same answers up to rounding.

    It has a hash of its own, so that a calibration of the original is not used for it.
    """
    weights: Weights = dict(checkpoint.weights)
    for first, second in equalisable(checkpoint.info.arch):
        if first.name not in steps:
            continue
        scale_C = np.exp2(steps[first.name] / STEPS_PER_OCTAVE).astype(np.float32)
        for name in (f"{first.name}.weight", f"{first.name}.bias"):
            if name in weights:
                weights[name] = weights[name] / scale_C.reshape(-1, *[1] * (weights[name].ndim - 1))
        weight = weights[f"{second.name}.weight"]
        each = weight.reshape(second.groups, second.out_channels // second.groups, -1)
        repeated = np.repeat(scale_C, each.shape[2] * second.groups // first.out_channels)
        weights[f"{second.name}.weight"] = (each * repeated.reshape(second.groups, 1, -1)).reshape(weight.shape)
    sha256 = sha256_json({"of": checkpoint.sha256, "equalised": to_text(steps)})
    return replace(checkpoint, sha256=sha256, weights=weights)


def to_text(steps: Steps) -> dict[str, str]:
    """One character a channel, for manifests."""
    return {name: "".join(_DIGITS[int(value) + LARGEST_STEP] for value in values) for name, values in steps.items()}


def from_text(texts: Mapping[str, str], arch: Architecture) -> dict[str, npt.NDArray[np.int64]]:
    """Read what `to_text` wrote for `arch`.

    Raises:
        UserError: when it is not of this network.
    """
    channels = {first.name: first.out_channels for first, _ in equalisable(arch)}
    if {name: len(text) for name, text in texts.items()} != channels or set("".join(texts.values())) - set(_DIGITS):
        raise UserError(
            "the manifest's scales of equalised channels are not of this network",
            value=", ".join(texts),
            fix="export again",
        )
    return {
        name: np.array([_DIGITS.index(character) for character in text], np.int64) - LARGEST_STEP
        for name, text in texts.items()
    }
