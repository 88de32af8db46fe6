"""The bisect: NumPy's layers against PyTorch's, and planted faults, each of which it must name, in every layer."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from narrow_network import CLASSES, exporter_in, write_checkpoint
from onnx import numpy_helper

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, commit
from alexnet_edge.errors import UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs.targets import TARGETS, GivenRanges
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import ImageSet, batches, open_images
from alexnet_edge.network.checkpoint import Checkpoint, save_checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof.bisect import Bisection, Point, bisect
from alexnet_edge.proof.layerwise import tensors
from alexnet_edge.sessions.openvino import int8_overflows
from alexnet_edge.sessions.torch import CheckpointSession

MakeCheckpoint = Callable[..., Path]
IMAGES = 4
LOWERED_FOR = TARGETS["cpu-avx2" if int8_overflows() else "cpu-avx512-vnni"]
"""This processor's."""


@pytest.fixture(scope="module")
def images(image_folder: Path) -> ImageSet:
    return open_images(image_folder / "val", classes=CLASSES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Neighbouring weights of fc7 have opposite signs: processors without VNNI add the products of each pair in 16 bits,
    which two large weights of one sign overflow, and the bisect would rightly name that layer."""
    path = write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors")
    drawn = load_checkpoint(path)
    fc7_OF = np.abs(drawn.weights["fc7.weight"])
    fc7_OF[:, 1::2] *= -1
    save_checkpoint(path, {**drawn.weights, "fc7.weight": fc7_OF}, drawn.info)
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def exporter(checkpoint: Checkpoint, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    root = tmp_path_factory.mktemp("narrow-export")
    return Exporter(
        checkpoint, ExportSettings(out=root / "artifacts", cache=root), proof_images=images, calibration_images=images
    )


@pytest.fixture(scope="module")
def graphs(exporter: Exporter) -> dict[str, Artifact]:
    """The narrow network's ONNX files; proved elsewhere, and with random weights some would not agree on every image."""
    out = exporter.settings.out
    return {
        precision: exporter.build_only("onnx", precision, out / precision) for precision in ("fp32", "fp16", "int8")
    }


@pytest.fixture(scope="module")
def lowered(checkpoint: Checkpoint, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """INT8 in ONNX Runtime's integer operators, in pairs for OpenVINO's reader, and with INT4 weights."""
    root = tmp_path_factory.mktemp("lowered")
    exporter = exporter_in(root, checkpoint, images, target=LOWERED_FOR)
    plain = dict.fromkeys(LAYER_NAMES, "int8")
    small = {**plain, "fc6": "int4", "fc7": "int4", "fc8": "int4"}
    plans = {"operators": ("onnx", plain), "int4": ("onnx", small)}
    if importlib.util.find_spec("openvino"):
        plans["openvino"] = ("openvino", small)
    return {name: exporter.build_only(format, "mixed", root / name, plan) for name, (format, plan) in plans.items()}


Change = Callable[[onnx.GraphProto], None]
Look = Callable[..., Bisection]


@pytest.fixture
def look(checkpoint: Checkpoint, images: ImageSet, tmp_path: Path) -> Look:
    """`look(artifact)` bisects it; `look(artifact, change)` a copy with a changed graph, for which its manifest vouches."""

    def look(artifact: Artifact, change: Change | None = None) -> Bisection:
        if change is not None:
            model = onnx.load(str(artifact.path))
            change(model.graph)
            onnx.save_model(model, str(tmp_path / "changed.onnx"))
            artifact = commit(tmp_path / "changed.onnx", tmp_path / artifact.path.name, artifact.manifest)
        return bisect(artifact, checkpoint, images, limit=IMAGES)

    return look


def first(result: Bisection) -> Point:
    assert result.first is not None
    return result.first


def named(entries: Any, name: str) -> Any:
    return next(entry for entry in entries if entry.name == name)


def scaled(name: str, factor: Any) -> Change:
    """The constant of that name times a number or an array."""

    def change(graph: onnx.GraphProto) -> None:
        entry = named(graph.initializer, name)
        value = numpy_helper.to_array(entry)
        entry.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), name))

    return change


def scaled_for(node: str, constant: str, factor: float) -> Change:
    """The constant times `factor`, for this node only, which has it as its second input."""

    def change(graph: onnx.GraphProto) -> None:
        value = numpy_helper.to_array(named(graph.initializer, constant))
        graph.initializer.append(numpy_helper.from_array(value * np.float32(factor), "other"))
        named(graph.node, node).input[1] = "other"

    return change


def with_attribute(node: str, attribute: str, value: float) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        named(named(graph.node, node).attribute, attribute).f = value

    return change


@pytest.mark.parametrize("arch", ["narrow-two-tower", "narrow-torchvision"])
def test_steps_in_numpy_end_in_pytorch_s_answers(arch: str, tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint(arch))
    size = checkpoint.info.preprocessing.crop
    x_NCHW = np.random.default_rng(0).normal(0, 50, (2, 3, size, size)).astype(np.float32)
    *_, (step, y_NK) = tensors(checkpoint.info.arch, checkpoint.weights, x_NCHW)
    with CheckpointSession(checkpoint, threads=2) as session:
        expected_NK = session.run(x_NCHW)
    assert step.name == "fc8"
    assert np.abs(y_NK - expected_NK).max() <= 1e-4 * np.abs(expected_NK).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nothing_is_found_in_a_right_artifact(precision: str, graphs: dict[str, Artifact], look: Look) -> None:
    result = look(graphs[precision])
    assert result.passed, result.first
    assert result.first is None
    if precision != "int8" or not int8_overflows():  # ONNX Runtime's fused kernels overflow there, too
        assert result.warnings == ()
    names = [point.name for point in result.points]
    expected = [
        "conv1/relu", "conv1/lrn", "conv1/pool", "conv2/relu", "conv2/lrn", "conv2/pool",
        "conv3/relu", "conv4/relu", "conv5/relu", "conv5/pool", "fc6/relu", "fc7/relu", "fc8",
    ]  # fmt: skip
    assert [name for name in names if not name.endswith("/input")] == expected
    inputs = [f"{name}/input" for name in LAYER_NAMES] if precision == "int8" else []
    assert [name for name in names if name.endswith("/input")] == inputs
    errors = [point.own_error for point in result.points if point.kind == "layer" and point.own_error is not None]
    if precision != "fp32":
        assert min(errors) > 1e-5, "what is rounded differs"
    value = records.to_builtins(result)
    assert (value["passed"], value["num_images"]) == (True, IMAGES)
    assert value["points"][0]["name"] == ("conv1/input" if precision == "int8" else "conv1/relu")


@pytest.mark.parametrize("layer", LAYER_NAMES)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_wrong_weight_scale_is_named(layer: str, factor: float, graphs: dict[str, Artifact], look: Look) -> None:
    result = look(graphs["int8"], scaled(f"{layer}.weight_scale", factor))
    assert (first(result).layer, first(result).kind) == (layer, "layer")
    assert f"weights of {layer} as stored are {factor:.3g} times" in result.cause


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_doubled_input_scale_is_named(layer: str, graphs: dict[str, Artifact], look: Look) -> None:
    result = look(graphs["int8"], scaled(f"{layer}/input_scale", 2))
    assert (first(result).name, first(result).kind) == (f"{layer}/input", "input")
    assert "not the calibrated one" in result.cause


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_scale_doubled_in_one_of_the_pair_is_named(layer: str, graphs: dict[str, Artifact], look: Look) -> None:
    result = look(graphs["int8"], scaled_for(f"{layer}/input_dq", f"{layer}/input_scale", 2))
    assert first(result).name == f"{layer}/input"
    factor = re.search(r"comes back (\S+) times as large", result.cause)
    assert factor is not None, result.cause
    # where fused kernels overflow, the two readings that are compared differ a little
    assert float(factor[1]) == pytest.approx(2, abs=0.1 if int8_overflows() else 0.005)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize(("attribute", "value"), [("alpha", 5e-4), ("beta", 0.5), ("bias", 1.0)])
def test_a_changed_normalisation_is_named(
    layer: str, attribute: str, value: float, precision: str, graphs: dict[str, Artifact], look: Look
) -> None:
    result = look(graphs[precision], with_attribute(f"{layer}/lrn", attribute, value))
    assert first(result).name == f"{layer}/lrn"
    assert f"{attribute} is {value:g}" in result.cause


@pytest.mark.parametrize("layer", LAYER_NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scaled_weights_are_named(layer: str, precision: str, graphs: dict[str, Artifact], look: Look) -> None:
    result = look(graphs[precision], scaled(f"{layer}.weight", 2))
    assert (first(result).layer, first(result).kind) == (layer, "layer")
    wrong_layers = [point.layer for point in result.points if not point.holds]
    assert wrong_layers == [layer], "what a layer passes on is not counted against the next"


def test_one_wrong_channel_is_named(
    graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, look: Look
) -> None:
    x_NCHW = next(batches(images.spread(IMAGES), checkpoint.info.preprocessing, batch=IMAGES)).x_NCHW
    values = {step.name: value for step, value in tensors(checkpoint.info.arch, checkpoint.weights, x_NCHW)}
    fc7_NF = values["fc7/relu"]
    channel = int(fc7_NF.sum(axis=0).argmax())  # ReLU hides what changes in a channel that is below zero
    factors_F1 = np.ones((fc7_NF.shape[1], 1), np.float32)
    factors_F1[channel] = 1.002
    result = look(graphs["fp32"], scaled("fc7.weight", factors_F1))
    assert (first(result).layer, first(result).worst_channel) == ("fc7", channel)


def test_values_that_are_not_finite_are_named(graphs: dict[str, Artifact], look: Look) -> None:
    def change(graph: onnx.GraphProto) -> None:
        entry = named(graph.initializer, "conv4.bias")
        value = numpy_helper.to_array(entry).copy()
        value[3] = np.inf
        entry.CopyFrom(numpy_helper.from_array(value, entry.name))

    result = look(graphs["fp16"], change)
    assert first(result).layer == "conv4"
    assert "conv4/relu has values that are not finite" in result.cause
    assert "--bf16" in result.fix


def test_a_range_that_saturates_is_named(exporter: Exporter, graphs: dict[str, Artifact], look: Look) -> None:
    from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
    from alexnet_edge.export.precision import onnx_precisions

    amax = exporter.quantiser.calibration("int8").amax
    amax = {**amax, "conv4": amax["conv4"] / 20}
    path = exporter.settings.out / "otherwise.onnx"
    write_onnx(onnx_from_checkpoint(exporter.checkpoint, precision="int8", amax=amax), path)
    layers = onnx_precisions(path, "int8")
    manifest = replace(graphs["int8"].manifest, calibration={"amax": amax}, layers=layers)
    result = look(commit(path, path.with_name("otherwise_kept.onnx"), manifest))
    assert first(result).name == "conv4/input"
    assert "saturate" in result.cause
    assert "--method minmax" in result.fix


# --- graphs lowered for a processor --------------------------------------------------------------------------------------


def form_of(lowered: dict[str, Artifact], form: str) -> Artifact:
    if form not in lowered:
        pytest.skip("OpenVINO is not installed")
    return lowered[form]


@pytest.mark.parametrize("form", ["operators", "int4", "openvino"])
def test_nothing_is_found_in_a_right_lowered_artifact(form: str, lowered: dict[str, Artifact], look: Look) -> None:
    result = look(form_of(lowered, form))
    assert result.passed, result.first
    types = {point.name: point.type for point in result.points}
    assert {"conv1/relu", "conv1/lrn", "conv2/relu", "conv3/relu", "conv5/relu", "fc6/relu", "fc8"} <= types.keys()
    assert types.get("fc7/relu") == ("int8" if form == "operators" else "int4")


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_doubled_weight_scale_of_integer_operators_is_named(
    layer: str, lowered: dict[str, Artifact], look: Look
) -> None:
    result = look(lowered["operators"], scaled(f"{layer}.weight_scale", 2))
    assert first(result).layer == layer
    assert "scale" in result.cause


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_doubled_input_scale_of_integer_operators_is_named(
    layer: str, lowered: dict[str, Artifact], look: Look
) -> None:
    result = look(lowered["operators"], scaled(f"{layer}/input_scale", 2))
    assert layer in [point.layer for point in result.points if not point.holds]
    assert "2 times the calibrated" in named(result.points, f"{layer}/input").reasons[-1]


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize(("constant", "factor", "reader"), [("lrn/k", 1.01, "s"), ("lrn/alpha", 5.0, "mean")])
def test_a_changed_normalisation_in_a_lowered_graph_is_named(
    constant: str, factor: float, reader: str, layer: str, lowered: dict[str, Artifact], look: Look
) -> None:
    result = look(lowered["operators"], scaled_for(f"{layer}/lrn/{reader}", constant, factor))
    assert (first(result).name, first(result).kind) == (f"{layer}/lrn", "lrn")


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_wrong_scale_in_an_openvino_file_is_named(
    layer: str, graphs: dict[str, Artifact], look: Look, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    from alexnet_edge.export.graphs.openvino import write_openvino

    if int8_overflows():
        pytest.skip(f"{int8_overflows()}")
    model = onnx.load(str(graphs["int8"].path))
    scaled(f"{layer}.weight_scale", 2)(model.graph)
    onnx.save_model(model, str(tmp_path / "graph.onnx"))
    built = write_openvino(tmp_path / "graph.onnx", tmp_path / "building.xml", "int8", source_sha256="0" * 64)
    manifest = replace(graphs["int8"].manifest, format="openvino", runtime="openvino", layers=built.layers)
    result = look(commit(tmp_path / "building.xml", tmp_path / "wrong.xml", manifest))
    assert (first(result).layer, first(result).kind) == (layer, "layer")


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_a_changed_normalisation_in_an_openvino_file_is_named(
    layer: str, checkpoint: Checkpoint, lowered: dict[str, Artifact], look: Look, tmp_path: Path
) -> None:
    from alexnet_edge.export.graphs.lower import lowered_onnx
    from alexnet_edge.export.graphs.openvino import write_openvino

    manifest = form_of(lowered, "openvino").manifest
    plan = manifest.build["target"]["plan"]
    ranges = GivenRanges(amax=manifest.calibration["amax"])
    model = lowered_onnx(checkpoint, LOWERED_FOR, plan, ranges, runtime="openvino")
    with_attribute(f"{layer}/lrn", "alpha", 5e-4)(model.graph)
    graph, building = tmp_path / "graph.onnx", tmp_path / "building.xml"
    onnx.save_model(model, str(graph))
    lowering = LOWERED_FOR.lowerings["openvino"]
    write_openvino(graph, building, "mixed", source_sha256="0" * 64, plan=plan, lowering=lowering)
    result = look(commit(building, tmp_path / "wrong.xml", manifest))
    assert (first(result).name, first(result).kind) == (f"{layer}/lrn", "lrn")
    assert "alpha is 0.0005" in result.cause


def test_a_format_without_named_tensors_is_refused(graphs: dict[str, Artifact], look: Look) -> None:
    other = replace(graphs["fp32"], manifest=replace(graphs["fp32"].manifest, format="torchscript"))
    with pytest.raises(UserError, match="only the tensors of ONNX and OpenVINO"):
        look(other)
