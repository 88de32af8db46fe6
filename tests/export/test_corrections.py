"""Corrections before quantising: an equalised network is the same one, and corrected biases take the mean error away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from narrow_network import CLASSES, NARROW, exporter_in, write_checkpoint
from onnx import numpy_helper

from alexnet_edge.artifact import layer_types
from alexnet_edge.cli.rebuild import rebuild_command
from alexnet_edge.errors import UserError
from alexnet_edge.export.graphs.targets import TARGETS, GivenRanges, this_machine
from alexnet_edge.export.quantising.corrections import IMAGES, channel_peaks, corrected, mean_inputs
from alexnet_edge.images.datasets import ImageSet, batches, open_images
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network import layers
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.equalise import equalisable, equalised, from_text, steps_for, to_text
from alexnet_edge.network.layers import LAYER_NAMES, architecture
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.network.quantize import quantize_blocks_full, quantize_weight
from alexnet_edge.proof.bisect import bisect
from alexnet_edge.proof.layerwise import convolve, tensors
from alexnet_edge.proof.parity import compare_outputs
from alexnet_edge.sessions import open_session
from alexnet_edge.sessions.onnxruntime import OnnxRuntimeSession
from alexnet_edge.sessions.openvino import int8_overflows

TARGET = TARGETS["cpu-avx2"]
"""Weights of 7 bits, so that errors are large."""
GROUPED = replace(
    NARROW,
    layers=tuple(
        replace(spec, **{"conv3": {"out_channels": 16}, "conv4": {"in_channels": 16, "groups": 2}}.get(spec.name, {}))
        for spec in NARROW.layers
    ),
)


@pytest.fixture(scope="module")
def images(image_folder: Path) -> ImageSet:
    return open_images(image_folder / "train", classes=CLASSES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors"))


@pytest.fixture(scope="module")
def x_NCHW(checkpoint: Checkpoint, images: ImageSet) -> FloatArray:
    (batch,) = batches(images, checkpoint.info.preprocessing, batch=len(images))
    return batch.x_NCHW


def inside(checkpoint: Checkpoint, x_NCHW: FloatArray, arch: Any = NARROW) -> dict[str, FloatArray]:
    return {step.name: value for step, value in tensors(arch, checkpoint.weights, x_NCHW)}


def planted(checkpoint: Checkpoint, factor: float) -> Checkpoint:
    """One channel between conv4 and conv5 is `factor` times as large, and its weights in conv5 as much smaller."""
    weights = {name: value.copy() for name, value in checkpoint.weights.items()}
    weights["conv4.weight"][5] *= factor
    weights["conv4.bias"][5] *= factor
    weights["conv5.weight"][:, 5] /= factor
    return replace(checkpoint, weights=weights, sha256="0" * 64)


def test_nothing_is_equalised_across_a_normalisation() -> None:
    behind = [("conv3", "conv4"), ("conv4", "conv5"), ("conv5", "fc6")]
    for arch, before in (("two-tower", []), ("torchvision", [("conv1", "conv2"), ("conv2", "conv3")])):
        assert [(first.name, second.name) for first, second in equalisable(architecture(arch))] == [*before, *behind]


@pytest.mark.parametrize("arch", [NARROW, GROUPED], ids=["plain", "grouped"])
def test_an_equalised_network_answers_the_same(
    arch: Any, checkpoint: Checkpoint, x_NCHW: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(layers.ARCHITECTURES, NARROW.name, arch)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.1, (spec.out_channels,) if name.endswith("bias") else spec.weight_shape).astype(
            np.float32
        )
        for spec in arch.layers
        for name in (f"{spec.name}.weight", f"{spec.name}.bias")
    }
    before = replace(checkpoint, weights=weights)
    steps = {first.name: rng.integers(-16, 17, first.out_channels) for first, _ in equalisable(arch)}
    after = equalised(before, steps)
    assert after.sha256 != before.sha256
    exact, scaled = inside(before, x_NCHW[:3], arch), inside(after, x_NCHW[:3], arch)
    np.testing.assert_allclose(scaled["fc8"], exact["fc8"], rtol=0, atol=1e-5 * np.abs(exact["fc8"]).max())
    for name in ("conv3", "conv4", "conv5"):
        y_NCHW, scale_C = scaled[f"{name}/relu"], 2.0 ** (steps[name] / 4)
        expected = exact[f"{name}/relu"] / scale_C[:, None, None]
        np.testing.assert_allclose(y_NCHW, expected, rtol=0, atol=1e-5 * expected.max())
    np.testing.assert_array_equal(scaled["conv2/relu"], exact["conv2/relu"])
    read = from_text(to_text(steps), arch)
    assert all(np.array_equal(read[name], value) for name, value in steps.items())


def test_a_channel_that_is_larger_than_the_others_is_brought_down(
    checkpoint: Checkpoint, images: ImageSet, x_NCHW: FloatArray
) -> None:
    wide = planted(checkpoint, 16)
    peaks = channel_peaks(wide, images)
    largest_C = inside(wide, x_NCHW)["conv4/relu"].max(axis=(0, 2, 3))
    np.testing.assert_allclose(peaks["conv5"], largest_C, rtol=1e-4)
    assert peaks["fc6"].shape == (32,)
    plain = steps_for(checkpoint, channel_peaks(checkpoint, images))["conv4"]
    steps_C = steps_for(wide, peaks)["conv4"]
    assert steps_C[5] - plain[5] > 10, "root of 16 for the values times root of 16 for the weights is 16 steps"
    assert np.ptp(np.delete(steps_C - plain, 5)) <= 1


def stored(weight: FloatArray, kind: str, bits: int) -> FloatArray:
    if kind == "int8":
        values, scale = quantize_weight(weight, bits=bits)
        return values * scale.reshape(-1, *[1] * (weight.ndim - 1))
    values, scale = quantize_blocks_full(weight, 128)
    return (values.reshape(*scale.shape, 128) * scale[:, :, None]).reshape(weight.shape)


@pytest.mark.parametrize("form", ["portable", "lowered"])
def test_corrected_biases_take_the_mean_error_away(
    form: str, checkpoint: Checkpoint, images: ImageSet, x_NCHW: FloatArray
) -> None:
    """Each layer by itself: every image through the rounded layer, against the layer in FP32."""
    lowering = TARGET.lowerings["openvino"] if form == "lowered" else None
    plan = dict.fromkeys(LAYER_NAMES, "int8") | ({} if lowering is None else {"fc7": "int4", "conv3": "fp32"})
    values = inside(checkpoint, x_NCHW)
    inputs = dict(zip(LAYER_NAMES, (x_NCHW, *(values[name] for name in (
        "conv1/pool", "conv2/pool", "conv3/relu", "conv4/relu", "conv5/pool", "fc6/relu", "fc7/relu"
    ))), strict=True))  # fmt: skip
    amax = {name: float(np.abs(value).max()) * 0.8 for name, value in inputs.items()}
    means = mean_inputs(checkpoint, images, GivenRanges(amax=amax), lowering)
    after, largest = corrected(checkpoint, plan, means, lowering)
    assert set(largest) == {name for name, kind in plan.items() if kind != "fp32"}
    for spec in NARROW.layers:
        bias_name, kind = f"{spec.name}.bias", plan[spec.name]
        if kind == "fp32":
            np.testing.assert_array_equal(after.weights[bias_name], checkpoint.weights[bias_name])
            continue
        x = inputs[spec.name].reshape(len(x_NCHW), -1) if spec.kind == "fc" else inputs[spec.name]
        rounded = x
        if kind == "int8":
            unsigned = lowering is not None and spec.name != "conv1"
            step = amax[spec.name] / (255 if unsigned else 127)
            limits = (0, 255) if unsigned else (-128, 127)
            rounded = (np.clip(np.rint(x / step), *limits) * step).astype(np.float32)
        weight = checkpoint.weights[f"{spec.name}.weight"]
        zero = np.zeros(spec.out_channels, np.float32)
        exact = _output(x, weight, checkpoint.weights[bias_name], spec)
        bits = 7 if lowering is not None else 8
        before = _output(rounded, stored(weight, kind, bits), checkpoint.weights[bias_name], spec) - exact
        now = _output(rounded, stored(weight, kind, bits), after.weights[bias_name], spec) - exact
        assert np.abs(_output(x, weight, zero, spec)).max() > 0
        assert np.abs(before).max() > 0
        assert np.abs(now).max() <= 2e-2 * np.abs(before).max() + 1e-5 * np.abs(exact).max()
        assert largest[spec.name] == pytest.approx(np.abs(before).max(), rel=0.05)


def _output(x: FloatArray, weight: FloatArray, bias: FloatArray, spec: Any) -> FloatArray:
    """Mean over images and positions of each channel before the ReLU."""
    y = convolve(x, weight, spec) if spec.kind == "conv" else x @ weight.T
    mean: FloatArray = y.mean(axis=(0, *range(2, y.ndim)), dtype=np.float64) + bias
    return mean


def exact_sums(session: OnnxRuntimeSession) -> Any:
    """Options of ONNX Runtime with which INT8 sums are exact without VNNI, by slower kernels.

    Source: onnxruntime_session_options_config_keys.h, kOrtSessionOptionsAvx2PrecisionMode.
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@pytest.mark.parametrize("form", ["portable", "lowered"])
def test_an_equalised_artifact_is_better_says_so_and_can_be_bisected(
    form: str,
    checkpoint: Checkpoint,
    images: ImageSet,
    x_NCHW: FloatArray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A planted channel that is 16 times as large as the others."""
    wide = planted(checkpoint, 16)
    options: dict[str, Any] = {} if form == "portable" else {"target": this_machine()}
    reference_NK = inside(wide, x_NCHW)["fc8"]
    exports, errors = {}, {}
    for name, corrections in (("plain", {}), ("both", {"equalise": True, "correct_bias": True})):
        exporter = exporter_in(tmp_path / name, wide, images, **options, **corrections)
        exports[name] = exporter.build_only("onnx", "int8", tmp_path / name / "artifacts")
        with open_session(exports[name], threads=1) as session:
            errors[name] = compare_outputs(reference_NK, session.run(x_NCHW)).sqnr_db
    manifest = exports["both"].manifest
    record = manifest.build["corrections"]
    assert set(record) == {"equalised", "bias"}
    assert set(record["bias"]) == set(LAYER_NAMES)
    assert "corrections" not in exports["plain"].manifest.build
    assert "--equalise --correct-bias" in rebuild_command(manifest)
    assert manifest.checkpoint_sha256 == wide.sha256
    assert errors["both"] > errors["plain"] + 3
    if form == "portable" and int8_overflows() is not None:  # ONNX Runtime's sums with 8-bit weights saturate as well
        monkeypatch.setattr(OnnxRuntimeSession, "session_options", exact_sums)
    bisection = bisect(exports["both"], wide, images, limit=4)
    assert bisection.passed, bisection.first
    damaged = {**record["equalised"], "conv4": "x" * 8}
    build = {**manifest.build, "corrections": {"equalised": damaged}}
    with pytest.raises(UserError, match="not of this network"):
        bisect(replace(exports["both"], manifest=replace(manifest, build=build)), wide, images)


def test_other_precisions_are_left_alone(checkpoint: Checkpoint, images: ImageSet, tmp_path: Path) -> None:
    wide = planted(checkpoint, 16)
    exporter = exporter_in(tmp_path, wide, images, equalise=True, correct_bias=True)
    source, record = exporter.quantiser.source("fp16", layer_types("fp16"), None)
    assert source is wide
    assert record == {}
    ranges = exporter.quantiser.calibration("fp8")
    assert ranges.amax == exporter_in(tmp_path, wide, images).quantiser.calibration("fp8").amax
    assert exporter.quantiser.calibration("int8").amax["conv5"] < ranges.amax["conv5"] / 4
    assert len(images) <= IMAGES


def test_an_engine_is_built_from_the_corrected_graph(checkpoint: Checkpoint, images: ImageSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    wide = planted(checkpoint, 16)
    exporter = exporter_in(tmp_path, wide, images, equalise=True, correct_bias=True, runtime="rtx")
    folder = tmp_path / "staging"
    built = exporter.build_only("trt", "int8", folder)
    assert set(built.manifest.build["corrections"]) == {"equalised", "bias"}
    constants = {
        entry.name: numpy_helper.to_array(entry)
        for entry in onnx.load(str(folder / "building_int8.onnx")).graph.initializer
    }
    source, _ = exporter.quantiser.source("int8", layer_types("int8"), None)
    np.testing.assert_array_equal(constants["conv4.bias"], source.weights["conv4.bias"])
    assert np.abs(constants["conv4.bias"] - wide.weights["conv4.bias"]).max() > 0
    assert constants["conv4.weight_scale"][5] < wide.weights["conv4.weight"][5].max() / 127 / 4
