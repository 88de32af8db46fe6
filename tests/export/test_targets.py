"""Targets: which fits a processor, what each refuses, and the network lowered for each giving the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from narrow_network import NARROW, exporter_in, write_checkpoint

from alexnet_edge.artifact import Precision, layer_types, load_artifact, manifest_path
from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs import targets
from alexnet_edge.export.graphs.lower import lowered_onnx
from alexnet_edge.export.graphs.onnx import layer_inputs, onnx_from_checkpoint
from alexnet_edge.export.graphs.targets import TARGETS, GivenRanges, Target
from alexnet_edge.export.precision import onnx_precisions
from alexnet_edge.export.selection import every_artifact, selection
from alexnet_edge.images.datasets import open_images
from alexnet_edge.network import layers
from alexnet_edge.network.checkpoint import Checkpoint, CheckpointInfo, parameter_shapes
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.network.quantize import quantize_blocks_full, quantize_weight
from alexnet_edge.sessions import open_session, runnable
from alexnet_edge.sessions.openvino import shared_core

LOWERED = [target for target in TARGETS.values() if target.lowerings]
VNNI = TARGETS["cpu-avx512-vnni"]
INT8, MIXED = layer_types("int8"), layer_types("int8-int4-fc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors"))


@pytest.fixture(scope="module")
def x_NCHW() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 60, (4, 3, 227, 227)).astype(np.float32)


@pytest.fixture(scope="module")
def ranges(checkpoint: Checkpoint, x_NCHW: np.ndarray) -> GivenRanges:
    return ranges_of(checkpoint, x_NCHW)


def answers(
    model: onnx.ModelProto, x_NCHW: np.ndarray, names: list[str] | None = None, *, exact: bool = False
) -> list[np.ndarray]:
    """With `exact`, sums of unsigned values with 8-bit weights do not saturate on a processor without VNNI."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, {"input": x_NCHW}))


def ranges_of(checkpoint: Checkpoint, x_NCHW: np.ndarray) -> GivenRanges:
    """The largest magnitudes of every tensor that lowering asks for."""
    model = onnx_from_checkpoint(checkpoint)
    inputs = layer_inputs(checkpoint.info.arch)
    known = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(known[name] for name in inputs.values() if name in known)
    outputs = {spec.name: f"{spec.name}/relu" for spec in checkpoint.info.arch.layers if spec.lrn}
    model.graph.output.extend(known[name] for name in outputs.values())
    names = [*(name for name in inputs.values() if name != "input"), *outputs.values()]
    values = dict(zip(names, answers(model, x_NCHW, names), strict=True))
    values["input"] = x_NCHW
    return GivenRanges(
        amax={layer: float(np.abs(values[name]).max()) for layer, name in inputs.items()},
        output_amax={layer: float(np.abs(values[name]).max()) for layer, name in outputs.items()},
    )


def decibel(reference: np.ndarray, candidate: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((candidate - reference) ** 2).sum()))


def changed(target: Target, runtime: targets.LoweredRuntime = "onnxruntime", **fields: Any) -> Target:
    lowering = replace(target.lowerings[runtime], **fields)
    return replace(target, lowerings={**target.lowerings, runtime: lowering})


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], "cpu-avx512-vnni"),
        ("AMD64", ["avx2", "avx512f", "avx512_vnni", "amx_int8"], "cpu-avx512-vnni"),
        ("x86_64", ["avx2", "avx512f"], "cpu-avx2"),
        ("x86_64", ["avx2", "avx_vnni"], "cpu-avx2"),
        ("aarch64", ["asimddp"], "cpu-arm64"),
        ("aarch64", [], None),
        ("x86_64", [], None),
        ("riscv64", ["avx2"], None),
    ],
)
def test_the_target_of_a_processor(
    machine: str, features: list[str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    monkeypatch.setattr(targets, "cpu_features", lambda: features)
    target = targets.this_machine_or_none()
    assert (target.name if target else None) == name
    if name is None:
        with pytest.raises(UserError, match="no target fits this processor") as error:
            targets.this_machine()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_target_recommends_what_can_be_written(target: Target) -> None:
    format, precision = target.recommended
    assert target.recommended in every_artifact(target)
    targets.check_target(target, format, precision)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({}, "the plan names no type: conv1, conv2"),
        ({**INT8, "conv9": "int8"}, "unknown layer: conv9"),
        ({**INT8, "conv2": "int7"}, "conv2 has an unknown type: int7"),
        ({**INT8, "conv2": "int4"}, "convolutions are not stored in INT4"),
    ],
)
def test_a_plan_that_cannot_be_written(plan: dict[str, str], words: str, checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match=words):
        lowered_onnx(checkpoint, VNNI, plan, GivenRanges())


def test_a_range_is_missing(checkpoint: Checkpoint, ranges: GivenRanges) -> None:
    some = replace(ranges, amax={name: value for name, value in ranges.amax.items() if name != "conv3"})
    with pytest.raises(UserError, match="no range for the input of conv3"):
        lowered_onnx(checkpoint, VNNI, INT8, some)
    with pytest.raises(UserError, match="no range for the output of conv1"):
        lowered_onnx(checkpoint, VNNI, INT8, replace(ranges, output_amax={}))
    with pytest.raises(UserError, match="tensorrt takes the portable graph"):
        lowered_onnx(checkpoint, TARGETS["tensorrt"], INT8, ranges)


def test_what_all_means() -> None:
    assert selection("onnx", None) == [("onnx", "fp32")]
    assert selection("trt", "int8") == [("trt", "int8")]
    assert selection("all", None) == every_artifact()
    assert selection("all", "fp16") == [("onnx", "fp16"), ("openvino", "fp16"), ("trt", "fp16")]
    assert len(every_artifact()) == 11
    assert selection("all", None, VNNI) == [*every_artifact(), ("openvino", "int8-int4-fc")]
    assert ("onnx", "int8-int4-fc") in selection("all", "int8-int4-fc", VNNI)
    assert selection("all", "int8", VNNI) == selection("all", "int8")
    assert set(selection("all", None, VNNI, lower_fp32=True)) == {
        (format, precision) for format in ("onnx", "openvino") for precision in ("fp32", "int8", "int8-int4-fc")
    }


@pytest.mark.parametrize("target", LOWERED, ids=lambda target: target.name)
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-int4-fc"])
def test_answers_and_types(
    target: Target,
    precision: Precision,
    checkpoint: Checkpoint,
    ranges: GivenRanges,
    x_NCHW: np.ndarray,
    tmp_path: Path,
) -> None:
    plan = layer_types(precision)
    model = lowered_onnx(checkpoint, target, plan, ranges)
    onnx.save_model(model, str(tmp_path / "a.onnx"))
    assert {layer.name: layer.built for layer in onnx_precisions(tmp_path / "a.onnx", precision)} == plan
    (reference,) = answers(onnx_from_checkpoint(checkpoint), x_NCHW)
    (y_NK,) = answers(model, x_NCHW)
    assert y_NK.shape == reference.shape
    least = {"fp32": 100, "int8": 20 if target.name == "cpu-avx2" else 25, "int8-int4-fc": 15}[precision]
    assert decibel(reference, y_NK) > least


def test_signed_and_unsigned_are_the_same(checkpoint: Checkpoint, ranges: GivenRanges, x_NCHW: np.ndarray) -> None:
    """An unsigned integer with zero point 0 and a signed one with -128 take the same steps."""
    (unsigned,) = answers(lowered_onnx(checkpoint, VNNI, INT8, ranges), x_NCHW, exact=True)
    (signed,) = answers(lowered_onnx(checkpoint, TARGETS["cpu-arm64"], INT8, ranges), x_NCHW)
    np.testing.assert_allclose(signed, unsigned, rtol=1e-6, atol=1e-6)


def test_normalisation_lowered(checkpoint: Checkpoint, ranges: GivenRanges, x_NCHW: np.ndarray) -> None:
    model = lowered_onnx(checkpoint, changed(VNNI, lrn="sums"), layer_types("fp32"), ranges)
    assert "LRN" not in {node.op_type for node in model.graph.node}
    (native,) = answers(lowered_onnx(checkpoint, changed(VNNI, lrn="native"), layer_types("fp32"), ranges), x_NCHW)
    (lowered,) = answers(model, x_NCHW)
    np.testing.assert_allclose(lowered, native, rtol=0, atol=1e-5 * np.abs(native).max())


def test_pooling_on_integers_is_exact(checkpoint: Checkpoint, ranges: GivenRanges, x_NCHW: np.ndarray) -> None:
    early = lowered_onnx(checkpoint, changed(VNNI, lrn="native"), INT8, ranges)
    late = lowered_onnx(checkpoint, changed(VNNI, lrn="native", pool_quantised=False), INT8, ranges)
    order = [node.op_type for node in early.graph.node]
    assert order.index("QuantizeLinear", 3) < order.index("MaxPool")
    assert order != [node.op_type for node in late.graph.node]
    np.testing.assert_array_equal(answers(early, x_NCHW)[0], answers(late, x_NCHW)[0])


@pytest.mark.parametrize(
    ("name", "others", "kind"),
    [
        (name, others, kind)
        for name in LAYER_NAMES
        for others, kind in (("int8", "fp32"), ("fp32", "int8"), ("int8", "int4"), ("fp32", "int4"))
        if kind != "int4" or name.startswith("fc")
    ],
)
def test_every_mixture(
    name: str, others: str, kind: str, checkpoint: Checkpoint, ranges: GivenRanges, x_NCHW: np.ndarray, tmp_path: Path
) -> None:
    plan = {**dict.fromkeys(LAYER_NAMES, others), name: kind}
    model = lowered_onnx(checkpoint, VNNI, plan, ranges)
    onnx.save_model(model, str(tmp_path / "a.onnx"))
    assert {layer.name: layer.built for layer in onnx_precisions(tmp_path / "a.onnx", "mixed", plan)} == plan
    (reference,) = answers(onnx_from_checkpoint(checkpoint), x_NCHW[:1])
    assert decibel(reference, answers(model, x_NCHW[:1])[0]) > 15


def test_layers_without_relu_and_a_softmax_head(x_NCHW: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the notebook has them: what goes into fc7 and fc8 may be negative."""
    bare = replace(
        NARROW,
        name="bare",
        head="probabilities",
        layers=tuple(replace(spec, relu=spec.kind == "conv") for spec in NARROW.layers),
    )
    monkeypatch.setitem(layers.ARCHITECTURES, "bare", bare)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape, np.float32)
        * np.float32(np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        for name, shape in parameter_shapes(bare).items()
    }
    weights["fc8.weight"] *= np.float32(0.02)  # so that no class has all of the probability
    info = CheckpointInfo(
        architecture="bare", classes=("a", "b", "c", "d"), preprocessing=layers_preprocessing(bare.preprocessing)
    )
    checkpoint = Checkpoint(path=Path("bare"), sha256="0", info=info, weights=weights)
    ranges = ranges_of(checkpoint, x_NCHW)
    (reference,) = answers(onnx_from_checkpoint(checkpoint), x_NCHW)
    for target in LOWERED:
        for plan in (INT8, MIXED):
            (y_NK,) = answers(lowered_onnx(checkpoint, target, plan, ranges), x_NCHW)
            np.testing.assert_allclose(y_NK, reference, atol=0.05)
            np.testing.assert_allclose(y_NK.sum(axis=1), 1, atol=1e-5)


def layers_preprocessing(name: str) -> Any:
    from alexnet_edge.images.preprocess import preset

    return preset(name)


def test_weights_of_seven_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 100)).astype(np.float32)
    values, scale = quantize_weight(weight, bits=7)
    assert np.abs(values).max() == 63
    assert np.abs(values * scale[:, None] - weight).max() <= scale.max() / 2 * 1.001
    assert 255 * 2 * 63 < 2**15, "what two products of unsigned 8 bits and these add up to"


def test_int4_uses_all_sixteen_values() -> None:
    weight = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    weight[3, :128] = 0
    values, scale = quantize_blocks_full(weight, 128)
    assert (values.min(), values.max()) == (-8, 7)
    blocks = weight.reshape(16, 2, 128)
    error = np.abs(values.reshape(16, 2, 128) * scale[:, :, None] - blocks)
    assert (error.max(axis=2) <= np.abs(scale) * 1.001).all()
    assert np.median(error.max(axis=2) / np.abs(scale)) < 0.6, "half a scale but for weights beyond 7 scales"
    assert scale[3, 0] == 1
    assert not values[3, :128].any()


@pytest.fixture(scope="module")
def exporter(checkpoint: Checkpoint, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    images = open_images(image_folder / "val", limit=8)
    return exporter_in(tmp_path_factory.mktemp("targets"), checkpoint, images, outputs=True)


def exported(exporter: Exporter, target: Target, format: Any, precision: Precision, **fields: Any) -> Path:
    exporter.settings = replace(exporter.settings, target=target, lower_fp32=fields.get("lower_fp32", False))
    exporter.plan = fields.get("plan")
    return exporter.export(format, precision).path


def test_the_manifest_names_the_target(exporter: Exporter) -> None:
    target = targets.this_machine()
    path = exported(exporter, target, "onnx", "int8-int4-fc")
    assert path.name == "alexnet_int8-int4-fc.onnx"
    manifest = load_artifact(path).manifest
    assert manifest.build["target"]["name"] == target.name
    assert {layer.name: layer.built for layer in manifest.layers} == MIXED
    assert manifest.parity["verdict"] == "passed"
    assert manifest.calibration is not None
    with open_session(path, threads=1) as session:
        assert session.run(np.zeros((1, 3, 227, 227), np.float32)).shape == (1, 4)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_plan_of_ones_own(format: str, exporter: Exporter) -> None:
    plan = {**INT8, "conv1": "fp32", "fc7": "int4"}
    path = exported(exporter, targets.this_machine(), format, "mixed", plan=plan)
    assert {layer.name: layer.built for layer in load_artifact(path).manifest.layers} == plan
    with pytest.raises(UserError, match="mixed precision needs a plan"):
        exported(exporter, targets.this_machine(), format, "mixed")


def test_fp32_is_lowered_where_asked(exporter: Exporter) -> None:
    target = targets.this_machine()
    plain, lowered = (
        exported(exporter, target, "onnx", "fp32"),
        exported(exporter, target, "onnx", "fp32", lower_fp32=True),
    )
    assert (plain.name, lowered.name) == ("alexnet_fp32.onnx", f"alexnet_fp32_{target.name}.onnx")
    operators = [{node.op_type for node in onnx.load(str(path)).graph.node} for path in (plain, lowered)]
    assert ["LRN" in kinds for kinds in operators] == [True, False]


def test_for_another_machine(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proved by its operators, and neither run nor called passed here."""
    other = TARGETS["cpu-arm64"] if targets.this_machine().name != "cpu-arm64" else VNNI
    path = exported(exporter, other, "onnx", "int8")
    assert path.name == f"alexnet_int8_{other.name}.onnx"
    artifact = load_artifact(path)
    assert artifact.manifest.parity["verdict"] == "not run"
    assert artifact.manifest.parity["stand_in"]["verdict"] == "passed"
    assert f"lowered for {other.name}, and this machine is" in str(runnable(artifact))
    with pytest.raises(ArtifactError, match="export it here, or for this machine with --target"):
        open_session(path)


def test_a_processor_that_lacks_an_instruction(exporter: Exporter) -> None:
    path = exported(exporter, targets.this_machine(), "onnx", "int8")
    sidecar = manifest_path(path)
    value = json.loads(sidecar.read_text(encoding="utf-8"))
    value["build"]["target"]["instructions"].append("avx1024_vnni")
    sidecar.write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match="this processor has no avx1024_vnni"):
        open_session(path)


def test_a_portable_graph_for_a_gpu_target(exporter: Exporter) -> None:
    path = exported(exporter, TARGETS["tensorrt"], "onnx", "int8")
    assert path.name == "alexnet_int8_tensorrt.onnx"
    graph = onnx.load(str(path)).graph
    assert {"LRN", "QuantizeLinear"} <= {node.op_type for node in graph.node}
    assert "QLinearConv" not in {node.op_type for node in graph.node}
    with pytest.raises(UserError, match="int8-int4-fc"):
        exported(exporter, TARGETS["tensorrt"], "onnx", "int8-int4-fc")


AVX2 = """
import sys
import numpy as np
from alexnet_edge.sessions.openvino import executed_nodes, shared_core
compiled = shared_core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
y_NK = compiled(np.load(sys.argv[2]))[0]
np.save(sys.argv[3], y_NK)
print(*{node.primitive for node in executed_nodes(compiled) if "conv1" in node.fused})
"""


@pytest.mark.skipif("avx512f" not in targets.cpu_features(), reason="needs a processor whose kernels can be limited")
def test_seven_bits_do_not_overflow_without_vnni(
    checkpoint: Checkpoint, ranges: GivenRanges, x_NCHW: np.ndarray, tmp_path: Path
) -> None:
    """OpenVINO with its kernels limited to AVX2; the same weights in 8 bits do overflow there."""
    np.save(tmp_path / "x.npy", x_NCHW)
    bright = {**checkpoint.weights, "conv1.weight": np.abs(checkpoint.weights["conv1.weight"])}  # all products add up
    harsh = replace(checkpoint, weights=bright)
    found_ranges = ranges_of(harsh, x_NCHW)
    errors = {}
    for target in (TARGETS["cpu-avx2"], VNNI):
        onnx.save_model(lowered_onnx(harsh, target, INT8, found_ranges, runtime="openvino"), str(tmp_path / "a.onnx"))
        answer = {}
        for isa in ("AVX2", "DEFAULT"):
            run = subprocess.run(
                [sys.executable, "-c", AVX2, *(str(tmp_path / name) for name in ("a.onnx", "x.npy", "y.npy"))],
                env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "OV_CPU_MAX_ISA": isa},
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            assert ("avx512" in run.stdout) == (isa == "DEFAULT"), run.stdout
            answer[isa] = np.load(tmp_path / "y.npy")
        scale = np.abs(answer["DEFAULT"]).max()
        errors[target.name] = float(np.abs(answer["AVX2"] - answer["DEFAULT"]).max() / scale)
    assert errors["cpu-avx2"] < 1e-4, "the same integers"
    assert errors["cpu-avx512-vnni"] > 1e-2


@pytest.mark.parametrize("group", [None, 64])
def test_a_file_says_how_its_int4_layers_group_their_inputs(group: int | None, exporter: Exporter) -> None:
    """What the plugin takes from the file when anybody loads it, this package or not."""
    target = changed(targets.this_machine(), "openvino", input_group=group)
    artifact = load_artifact(exported(exporter, target, "openvino", "int8-int4-fc"))
    compiled = shared_core().compile_model(str(artifact.path), "CPU")
    assert int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")) == artifact.manifest.build["input_group"]
    if group is not None:
        assert artifact.manifest.build["input_group"] == group
