"""The bisect: NumPy's layers against PyTorch's, and planted faults, each of which it must name, in every layer."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from narrow_network import CLASSES, write_checkpoint
from onnx import numpy_helper

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, Precision, commit, load_artifact
from alexnet_edge.errors import UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs.targets import GivenRanges, find_target
from alexnet_edge.images.datasets import ImageSet, batches, open_images
from alexnet_edge.network.checkpoint import Checkpoint, save_checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof.bisect import Bisection, bisect
from alexnet_edge.proof.layerwise import tensors
from alexnet_edge.sessions.openvino import int8_overflows
from alexnet_edge.sessions.torch import CheckpointSession

MakeCheckpoint = Callable[..., Path]
IMAGES = 4
LOWERED_FOR = find_target("cpu-avx2" if int8_overflows() else "cpu-avx512-vnni")
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
    return Exporter(checkpoint, out=root / "artifacts", proof_images=images, calibration_images=images, cache=root)


@pytest.fixture(scope="module")
def graphs(exporter: Exporter) -> dict[str, Artifact]:
    """The narrow network's ONNX files; proved elsewhere, and with random weights some would not agree on every image."""
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        target = exporter.path("onnx", precision)
        exporter.out.mkdir(exist_ok=True)
        built = exporter._build("onnx", precision, exporter.out)
        found[precision] = commit(built.path, target, exporter._manifest("onnx", precision, built, 0.0))
    return found


def planted(artifact: Artifact, folder: Path, change: Callable[[onnx.GraphProto], None]) -> Artifact:
    """A copy of the artifact with a changed graph, whose manifest vouches for the changed file."""
    model = onnx.load(str(artifact.path))
    change(model.graph)
    path = folder / "changed.onnx"
    onnx.save_model(model, str(path))
    return commit(path, folder / artifact.path.name, artifact.manifest)


def scaled(graph: onnx.GraphProto, name: str, factor: float) -> None:
    entry = next(entry for entry in graph.initializer if entry.name == name)
    value = numpy_helper.to_array(entry)
    entry.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), name))


@pytest.mark.parametrize("arch", ["narrow-two-tower", "narrow-torchvision"])
def test_steps_in_numpy_end_in_pytorch_s_answers(arch: str, tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint(arch))
    size = checkpoint.info.preprocessing.crop
    x_NCHW = np.random.default_rng(0).normal(0, 50, (2, 3, size, size)).astype(np.float32)
    *_, (step, found_NK) = tensors(checkpoint.info.arch, checkpoint.weights, x_NCHW)
    with CheckpointSession(checkpoint, threads=2) as session:
        expected_NK = session.run(x_NCHW)
    assert step.name == "fc8"
    assert np.abs(found_NK - expected_NK).max() <= 1e-4 * np.abs(expected_NK).max()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nothing_is_found_in_a_right_artifact(
    precision: str, graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet
) -> None:
    found = bisect(graphs[precision], checkpoint, images, limit=IMAGES)
    assert found.passed, found.first
    assert found.first is None
    if precision != "int8" or not int8_overflows():  # ONNX Runtime's fused kernels overflow there, too
        assert found.warnings == ()
    names = [point.name for point in found.points]
    expected = [
        "conv1/relu", "conv1/lrn", "conv1/pool", "conv2/relu", "conv2/lrn", "conv2/pool",
        "conv3/relu", "conv4/relu", "conv5/relu", "conv5/pool", "fc6/relu", "fc7/relu", "fc8",
    ]  # fmt: skip
    assert [name for name in names if not name.endswith("/input")] == expected
    assert [name for name in names if name.endswith("/input")] == (
        [f"{name}/input" for name in LAYER_NAMES] if precision == "int8" else []
    )
    layer_errors = [point.own_error for point in found.points if point.kind == "layer" and point.own_error is not None]
    if precision != "fp32":
        assert min(layer_errors) > 1e-5, "what is rounded differs"


@pytest.mark.parametrize("layer", LAYER_NAMES)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_wrong_weight_scale_is_named(
    layer: str, factor: float, graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, tmp_path: Path
) -> None:
    wrong = planted(graphs["int8"], tmp_path, lambda graph: scaled(graph, f"{layer}.weight_scale", factor))
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.layer, found.first.kind) == (layer, "layer")
    assert f"weights of {layer} as stored are {factor:.3g} times" in found.cause


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_doubled_input_scale_is_named(
    layer: str, graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, tmp_path: Path
) -> None:
    wrong = planted(graphs["int8"], tmp_path, lambda graph: scaled(graph, f"{layer}/input_scale", 2))
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.name, found.first.kind) == (f"{layer}/input", "input")
    assert "not the calibrated one" in found.cause


# --- graphs lowered for a processor --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lowered(checkpoint: Checkpoint, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """INT8 in ONNX Runtime's integer operators, in pairs for OpenVINO's reader, and with INT4 weights."""
    root = tmp_path_factory.mktemp("lowered")
    exporter = Exporter(
        checkpoint,
        out=root / "artifacts",
        proof_images=images,
        calibration_images=images,
        method="minmax",
        target=LOWERED_FOR,
        cache=root,
    )
    plain = dict.fromkeys(LAYER_NAMES, "int8")
    small = {**plain, "fc6": "int4", "fc7": "int4", "fc8": "int4"}
    found = {}
    for name, plan in (("operators", plain), ("int4", small)):
        found[name] = exporter.build_only("onnx", plan, root / name)
    if importlib.util.find_spec("openvino"):
        found["openvino"] = exporter.build_only("openvino", small, root / "openvino")
    return found


def without(found: dict[str, Artifact], form: str) -> Artifact:
    if form not in found:
        pytest.skip("OpenVINO is not installed")
    return found[form]


@pytest.mark.parametrize("form", ["operators", "int4", "openvino"])
def test_nothing_is_found_in_a_right_lowered_artifact(
    form: str, lowered: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet
) -> None:
    found = bisect(without(lowered, form), checkpoint, images, limit=IMAGES)
    assert found.passed, found.first
    names = {point.name for point in found.points}
    assert {"conv1/relu", "conv1/lrn", "conv2/relu", "conv3/relu", "conv5/relu", "fc6/relu", "fc8"} <= names
    assert {point.type for point in found.points if point.name == "fc7/relu"} == {
        "int8" if form == "operators" else "int4"
    }


@pytest.mark.parametrize("layer", LAYER_NAMES)
@pytest.mark.parametrize(("what", "kind"), [("weight_scale", "layer"), ("input_scale", "input")])
def test_a_doubled_scale_of_integer_operators_is_named(
    what: str,
    kind: str,
    layer: str,
    lowered: dict[str, Artifact],
    checkpoint: Checkpoint,
    images: ImageSet,
    tmp_path: Path,
) -> None:
    name = f"{layer}.{what}" if kind == "layer" else f"{layer}/{what}"
    wrong = planted(lowered["operators"], tmp_path, lambda graph: scaled(graph, name, 2))
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert layer in [point.layer for point in found.points if not point.holds]
    if kind == "layer":
        assert found.first.layer == layer
        assert "scale" in found.cause
    else:
        point = next(point for point in found.points if point.name == f"{layer}/input")
        assert "2 times the calibrated" in point.reasons[-1]


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize(("constant", "factor", "reader"), [("lrn/k", 1.01, "s"), ("lrn/alpha", 5.0, "mean")])
def test_a_changed_normalisation_in_a_lowered_graph_is_named(
    constant: str,
    factor: float,
    reader: str,
    layer: str,
    lowered: dict[str, Artifact],
    checkpoint: Checkpoint,
    images: ImageSet,
    tmp_path: Path,
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        entry = next(entry for entry in graph.initializer if entry.name == constant)
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(entry) * np.float32(factor), "other"))
        node = next(node for node in graph.node if node.name == f"{layer}/lrn/{reader}")
        node.input[1] = "other"

    found = bisect(planted(lowered["operators"], tmp_path, change), checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.name, found.first.kind) == (f"{layer}/lrn", "lrn")


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_scale_doubled_in_one_of_the_pair_is_named(
    layer: str, graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, tmp_path: Path
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        entry = next(entry for entry in graph.initializer if entry.name == f"{layer}/input_scale")
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(entry) * np.float32(2), "other_scale"))
        node = next(node for node in graph.node if node.name == f"{layer}/input_dq")
        node.input[1] = "other_scale"

    found = bisect(planted(graphs["int8"], tmp_path, change), checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert found.first.name == f"{layer}/input"
    factor = re.search(r"comes back (\S+) times as large", found.cause)
    assert factor is not None, found.cause
    # where fused kernels overflow, the two readings that are compared differ a little
    assert float(factor[1]) == pytest.approx(2, abs=0.1 if int8_overflows() else 0.005)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
@pytest.mark.parametrize(("attribute", "value"), [("alpha", 5e-4), ("beta", 0.5), ("bias", 1.0)])
def test_a_changed_normalisation_is_named(
    layer: str,
    attribute: str,
    value: float,
    precision: str,
    graphs: dict[str, Artifact],
    checkpoint: Checkpoint,
    images: ImageSet,
    tmp_path: Path,
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.name == f"{layer}/lrn")
        next(entry for entry in node.attribute if entry.name == attribute).f = value

    found = bisect(planted(graphs[precision], tmp_path, change), checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert found.first.name == f"{layer}/lrn"
    assert f"{attribute} is {value:g}" in found.cause


@pytest.mark.parametrize("layer", LAYER_NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scaled_weights_are_named(
    layer: str,
    precision: str,
    graphs: dict[str, Artifact],
    checkpoint: Checkpoint,
    images: ImageSet,
    tmp_path: Path,
) -> None:
    wrong = planted(graphs[precision], tmp_path, lambda graph: scaled(graph, f"{layer}.weight", 2))
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.layer, found.first.kind) == (layer, "layer")
    wrong_layers = [point.layer for point in found.points if not point.holds]
    assert wrong_layers == [layer], "what a layer passes on is not counted against the next"


def test_one_wrong_channel_is_named(
    graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, tmp_path: Path
) -> None:
    x_NCHW = next(batches(images.spread(IMAGES), checkpoint.info.preprocessing, batch=IMAGES)).x_NCHW
    values = {step.name: value for step, value in tensors(checkpoint.info.arch, checkpoint.weights, x_NCHW)}
    fc7_NF = values["fc7/relu"]
    channel = int(fc7_NF.sum(axis=0).argmax())  # ReLU hides what changes in a channel that is below zero

    def change(graph: onnx.GraphProto) -> None:
        entry = next(entry for entry in graph.initializer if entry.name == "fc7.weight")
        value = numpy_helper.to_array(entry).copy()
        value[channel] *= 1.002
        entry.CopyFrom(numpy_helper.from_array(value, entry.name))

    found = bisect(planted(graphs["fp32"], tmp_path, change), checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.layer, found.first.worst_channel) == ("fc7", channel)


def test_values_that_are_not_finite_are_named(
    graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, tmp_path: Path
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        entry = next(entry for entry in graph.initializer if entry.name == "conv4.bias")
        value = numpy_helper.to_array(entry).copy()
        value[3] = np.inf
        entry.CopyFrom(numpy_helper.from_array(value, entry.name))

    wrong = planted(graphs["fp16"], tmp_path, change)
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert found.first.layer == "conv4"
    assert "conv4/relu has values that are not finite" in found.cause
    assert "--bf16" in found.fix


def test_a_range_that_saturates_is_named(checkpoint: Checkpoint, exporter: Exporter, images: ImageSet) -> None:
    narrow = exporter.calibration("int8")
    amax = {**narrow.amax, "conv4": narrow.amax["conv4"] / 20}
    found = bisect(written(exporter, "int8", amax), checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert found.first.name == "conv4/input"
    assert "saturate" in found.cause
    assert "--method minmax" in found.fix


def written(exporter: Exporter, precision: Precision, amax: dict[str, float]) -> Artifact:
    """An artifact calibrated otherwise, whose manifest says so."""
    from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
    from alexnet_edge.export.precision import onnx_precisions

    path = exporter.out / "otherwise.onnx"
    write_onnx(onnx_from_checkpoint(exporter.checkpoint, precision=precision, amax=amax), path)
    manifest = load_artifact(exporter.path("onnx", precision)).manifest
    manifest = replace(manifest, calibration={"amax": amax}, layers=onnx_precisions(path, precision))
    return commit(path, exporter.out / "otherwise_kept.onnx", manifest)


@pytest.mark.parametrize("layer", LAYER_NAMES)
def test_a_wrong_scale_in_an_openvino_file_is_named(
    layer: str, checkpoint: Checkpoint, exporter: Exporter, images: ImageSet, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    from alexnet_edge.export.graphs.openvino import write_openvino
    from alexnet_edge.sessions.openvino import int8_overflows

    if int8_overflows():
        pytest.skip(f"{int8_overflows()}")
    source = load_artifact(exporter.path("onnx", "int8")) if exporter.path("onnx", "int8").exists() else None
    if source is None:
        source = written(exporter, "int8", dict(exporter.calibration("int8").amax))
    model = onnx.load(str(source.path))
    scaled(model.graph, f"{layer}.weight_scale", 2)
    onnx.save_model(model, str(tmp_path / "graph.onnx"))
    built = write_openvino(tmp_path / "graph.onnx", tmp_path / "building.xml", "int8", source_sha256="0" * 64)
    manifest = replace(source.manifest, format="openvino", runtime="openvino", layers=built.layers)
    wrong = commit(tmp_path / "building.xml", tmp_path / "wrong.xml", manifest)
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.layer, found.first.kind) == (layer, "layer")


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_a_changed_normalisation_in_an_openvino_file_is_named(
    layer: str, checkpoint: Checkpoint, lowered: dict[str, Artifact], images: ImageSet, tmp_path: Path
) -> None:
    from alexnet_edge.export.graphs.lower import lowered_onnx
    from alexnet_edge.export.graphs.openvino import write_openvino

    manifest = without(lowered, "openvino").manifest
    plan = manifest.build["target"]["plan"]
    ranges = GivenRanges(amax=manifest.calibration["amax"])
    model = lowered_onnx(checkpoint, LOWERED_FOR, plan, ranges, runtime="openvino")
    node = next(node for node in model.graph.node if node.name == f"{layer}/lrn")
    next(entry for entry in node.attribute if entry.name == "alpha").f = 5e-4
    onnx.save_model(model, str(tmp_path / "graph.onnx"))
    write_openvino(
        tmp_path / "graph.onnx",
        tmp_path / "building.xml",
        "mixed",
        source_sha256="0" * 64,
        plan=plan,
        lowering=LOWERED_FOR.lowerings["openvino"],
    )
    wrong = commit(tmp_path / "building.xml", tmp_path / "wrong.xml", manifest)
    found = bisect(wrong, checkpoint, images, limit=IMAGES)
    assert found.first is not None
    assert (found.first.name, found.first.kind) == (f"{layer}/lrn", "lrn")
    assert "alpha is 0.0005" in found.cause


def test_a_format_without_named_tensors_is_refused(
    graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet, tmp_path: Path
) -> None:
    shutil.copy(graphs["fp32"].path, tmp_path / "graph.ts")
    other = replace(graphs["fp32"], manifest=replace(graphs["fp32"].manifest, format="torchscript"))
    with pytest.raises(UserError, match="only the tensors of ONNX and OpenVINO"):
        bisect(other, checkpoint, images)


def test_json(graphs: dict[str, Artifact], checkpoint: Checkpoint, images: ImageSet) -> None:
    found: Bisection = bisect(graphs["int8"], checkpoint, images, limit=2)
    value = records.to_builtins(found)
    assert value["passed"] is True
    assert value["num_images"] == 2
    assert value["points"][0]["name"] == "conv1/input"
