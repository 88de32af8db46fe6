"""Building through `trtexec`, with a stand-in that has a real version's help and refuses what that help does not list."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_information import DYNAMIC_8, FORMATS_8, engine, tensor
from trtexec_stand_in import DATA, VERSIONS, WEIGHTS, StandIn, write_stand_in

from alexnet_edge.artifact import Precision, layer_types
from alexnet_edge.errors import ArtifactError, MissingComponentError, PrecisionError, UserError
from alexnet_edge.export.engines.calibrators import calibration_table
from alexnet_edge.export.engines.features import check
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import BuiltEngine
from alexnet_edge.export.engines.trtexec import Trtexec, build_with_trtexec, probe, version_of
from alexnet_edge.network.layers import LAYER_NAMES, architecture
from alexnet_edge.progress import QuietReporter

MakeStandIn = Callable[..., StandIn]
ON_DLA = {"max_batch": 1, "dla_core": 0}
NAMES_ONLY = json.dumps({"Layers": [f"{name} + {name}/relu" for name in LAYER_NAMES]})
"""What the inspector answers of an engine built without detailed profiling verbosity."""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeStandIn:
    """`stand_in("8.6", "fp16", size=0)` is the trtexec of this machine from then on: it builds FP16, and is told more."""

    def make(version: str, precision: Precision = "fp32", **told: Any) -> StandIn:
        program = write_stand_in(tmp_path, version)
        program.builds(layer_types(precision))
        program.tell(**told)
        monkeypatch.setenv("TRTEXEC", str(program.path))
        return program

    return make


def write_graph(path: Path, *, batch: int | str = "N", element: str = "fp32", int4: Sequence[str] = ()) -> Path:
    """A small graph with this network's input, a layer of each name, and two nodes that stay in FP32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    types = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}
    kind, numpy_kind = types[element]
    nodes = [helper.make_node("LRN", ["input"], ["conv1/lrn"], name="conv1/lrn", size=5)]
    nodes.append(helper.make_node("Cast", ["conv1/lrn"], ["cast"], name="cast", to=kind))
    head, weights = "cast", []
    for name in LAYER_NAMES:
        weight = f"{name}.weight"
        if name in int4:
            weights.append(helper.make_tensor(weight, TensorProto.INT4, [8, 8], b"\x11" * 32, raw=True))
            weights.append(numpy_helper.from_array(np.ones((1, 8), numpy_kind), f"{weight}_scale"))
            inputs, weight = [weight, f"{weight}_scale"], f"{weight}_dq"
            nodes.append(helper.make_node("DequantizeLinear", inputs, [weight], name=weight, axis=0, block_size=8))
        else:
            weights.append(numpy_helper.from_array(np.ones((8, 8), numpy_kind), weight))
        nodes.append(helper.make_node("MatMul", [head, weight], [name], name=name))
        head = name
    nodes.append(helper.make_node("Softmax", [head], ["probabilities"], name="probabilities"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("probabilities", kind, [batch, 3, 8, 8])],
        weights,
    )
    opset, ir_version = (21, 10) if int4 else (17, 8)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save_model(onnx.shape_inference.infer_shapes(model), str(path))
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx")


def build(graph: Path, precision: Precision = "fp32", **options: Any) -> BuiltEngine:
    """With options of the engine by name, and `calibration_table` and `reporter`."""
    table, reporter = options.pop("calibration_table", None), options.pop("reporter", QuietReporter())
    return build_with_trtexec(
        graph,
        graph.with_name("model.engine"),
        check(EngineOptions(**options), precision, probe().features, "trtexec"),
        weight_bytes=WEIGHTS,
        calibration_table=table,
        reporter=reporter,
    )


def write_table(folder: Path, arch: str = "one-tower", version: str = "8601", *, for_dla: bool = False) -> Path:
    """A calibration table of a TensorRT version with the same range everywhere."""
    amax = dict.fromkeys(LAYER_NAMES, 2.0)
    header = f"TRT-{version}-EntropyCalibration2"
    text = calibration_table(architecture(arch), amax, amax, header=header, for_dla=for_dla)
    (folder / "ranges.table").write_text(text, encoding="utf-8")
    return folder / "ranges.table"


def left_over(graph: Path) -> list[str]:
    return sorted(path.name for path in graph.parent.iterdir() if not path.name.startswith("trtexec-"))


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("8601", "8.6.1"),
        ("8502", "8.5.2"),
        ("8510", "8.5.10"),
        ("100300", "10.3.0"),
        ("101602", "10.16.2"),
        ("11.1.0.106", "11.1.0.106"),
    ],
)
def test_the_banner_tells_the_version(banner: str, version: str) -> None:
    assert version_of(banner) == version


def test_the_program_tells_version_typing_and_options(stand_in: MakeStandIn) -> None:
    programs = {}
    for version in VERSIONS:
        path = stand_in(version).path
        programs[version] = probe()
        assert programs[version].path == path
        assert programs[version].version.startswith(version)
    assert [programs[version].features.typing for version in VERSIONS] == ["weak", "weak", "strong", "strong"]
    options = {version: program.options for version, program in programs.items()}
    assert {"--fp16", "--vc", "--versionCompatible", "--calib"} <= options["8.6"]
    assert "--bf16" not in options["8.6"]
    assert "--stronglyTyped" in options["10.6"]
    assert "--markUnfusedTensorsAsDebugTensors" in options["11.0"]
    assert not {"--fp16", "--int8", "--calib", "--layerPrecisions"} & options["11.0"]


def test_a_missing_trtexec_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRTEXEC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("alexnet_edge.nvidia.libraries.TRTEXEC_FOLDERS", ())
    with pytest.raises(MissingComponentError, match="trtexec is not here; install"):
        probe()


@pytest.mark.parametrize("script", ["#!/bin/sh\necho hello\n", "#!/bin/sh\nexit 3\n", "#!/no/such/program\n"])
def test_another_program_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "trtexec"
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv("TRTEXEC", str(path))
    with pytest.raises(MissingComponentError) as caught:
        probe()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["8.6", "10.6"])
def test_below_10_12_fp16_is_weakly_typed_from_the_fp32_graph(stand_in: MakeStandIn, graph: Path, version: str) -> None:
    program = stand_in(version, "fp16")
    built = build(graph, "fp16")
    seen = program.arguments
    assert built.build["typing"] == "weak"
    assert {"--fp16", "--noTF32", "--skipInference"} <= seen.keys()
    assert "--stronglyTyped" not in seen
    assert seen["--precisionConstraints"] == "obey"
    layers = ",".join(f"{name}:fp16" for name in LAYER_NAMES)
    assert seen["--layerPrecisions"] == f"{layers},conv1/lrn:fp32,probabilities:fp32"
    assert seen["--layerOutputTypes"] == "conv1/lrn:fp32,probabilities:fp32"
    assert seen["--profilingVerbosity"] == "detailed"


@pytest.mark.parametrize(("version", "flags"), [("10.13", {"--stronglyTyped"}), ("11.0", set())])
def test_from_10_12_the_graph_has_the_types(stand_in: MakeStandIn, graph: Path, version: str, flags: set[str]) -> None:
    program = stand_in(version, "fp16")
    assert build(graph, "fp16").build["typing"] == "strong"
    of_types = {"--fp16", "--stronglyTyped", "--layerPrecisions", "--precisionConstraints"}
    assert program.arguments.keys() & of_types == flags


@pytest.mark.parametrize(
    ("precision", "flags"),
    [("fp32", set()), ("int8", {"--int8"}), ("bf16", {"--bf16"}), ("fp8", {"--fp8", "--fp16"})],
)
def test_weak_typing_allows_only_what_was_asked_for(
    stand_in: MakeStandIn, graph: Path, precision: Precision, flags: set[str]
) -> None:
    program = stand_in("10.6", precision)
    build(graph, precision)
    assert program.arguments.keys() & {"--fp16", "--bf16", "--int8", "--fp8", "--int4", "--best"} == flags


def test_tf32_is_used_only_when_asked_for(stand_in: MakeStandIn, graph: Path) -> None:
    program = stand_in("10.6")
    build(graph, tf32=True)
    assert "--noTF32" not in program.arguments


def test_a_graph_with_a_fixed_batch_gets_no_shapes(stand_in: MakeStandIn, tmp_path: Path) -> None:
    program = stand_in("8.6", "fp16", static=True)
    graph = write_graph(tmp_path / "dla.onnx", batch=4)
    pool = ("dla-local-dram=64", "dla-managed-sram=1")
    batches = {"min_batch": 4, "opt_batch": 4, "max_batch": 4}
    built = build(graph, "fp16", **batches, dla_core=1, gpu_fallback=True, pool=pool)
    assert program.arguments["--memPoolSize"] == "dlaLocalDRAM:64,dlaSRAM:1"
    assert program.arguments["--useDLACore"] == "1"
    assert "--allowGPUFallback" in program.arguments
    assert built.build["dla_core"] == 1
    with pytest.raises(UserError, match="fixed batch"):
        build(graph, "fp16", max_batch=8)


@pytest.mark.parametrize(
    ("version", "options", "flags"),
    [
        ("8.6", {"workspace": 512}, {"--memPoolSize": "workspace:512"}),
        ("10.6", {"pool": ("tactic-shared-memory=1",)}, {"--memPoolSize": "tacticSharedMem:1"}),
        ("10.6", {"memory_cap": 2048}, {"--memPoolSize": "workspace:1024", "--maxAuxStreams": "0"}),
        ("8.6", {"optimization_level": 5}, {"--builderOptimizationLevel": "5"}),
        ("8.6", {"sparsity": True}, {"--sparsity": "enable"}),
        ("8.6", {"version_compatible": True}, {"--versionCompatible": "", "--excludeLeanRuntime": ""}),
        ("8.6", {"hardware_compatibility": "ampere-plus"}, {"--hardwareCompatibilityLevel": "ampere+"}),
        ("10.13", {"hardware_compatibility": "same-compute-capability"}, {"--hardwareCompatibilityLevel": "sameComputeCapability"}),
        ("8.6", {"refit": True}, {"--refit": ""}),
        ("10.6", {"stripped": True}, {"--stripWeights": ""}),
        ("10.13", {"weight_streaming": True}, {"--allowWeightStreaming": ""}),
        ("11.0", {"weight_streaming": True}, {"--allowWeightStreaming": ""}),
        ("8.6", {"min_batch": 1, "opt_batch": 4, "max_batch": 16},
         {"--minShapes": "input:1x3x8x8", "--optShapes": "input:4x3x8x8", "--maxShapes": "input:16x3x8x8"}),
    ],
)  # fmt: skip
def test_every_option_reaches_trtexec(
    stand_in: MakeStandIn, graph: Path, version: str, options: dict[str, Any], flags: dict[str, str]
) -> None:
    program = stand_in(version)
    built = build(graph, **options)
    assert program.arguments.items() >= flags.items()
    assert built.build["options"] == EngineOptions(**options).changed()
    assert flags.keys() <= {argument.partition("=")[0] for argument in built.build["flags"]}


@pytest.mark.parametrize(
    ("version", "precision", "options", "problem"),
    [
        ("8.6", "bf16", {}, "does not build this precision: bf16"),
        ("8.6", "fp32", {"stripped": True}, "lacks stripped plans"),
        ("8.6", "fp32", {"pool": ("tactic-shared-memory=1",)}, "lacks memory pool tactic-shared-memory"),
        ("10.6", "fp32", {"pool": ("tactic-dram=64",)}, "cannot bound the memory pool: tactic-dram"),
        ("10.6", "fp32", {"hardware_compatibility": "same-compute-capability"}, "lacks hardware compatibility same-compute"),
        ("10.6", "fp32", {"weight_streaming": True}, "strongly typed"),
        ("10.6", "fp32", {"compute_capability": ("sm87",)}, "builds for the GPU it runs on"),
        ("10.6", "int8", {"calibrator": "entropy2"}, "calibrates on random data"),
        ("10.13", "int8", {"calibrator": "table"}, "a calibrator needs weak typing"),
        ("11.0", "int8", {"calibrator": "table"}, "a calibrator needs weak typing"),
        ("8.6", "fp32", {"timing_cache": Path("t"), "timing_cache_mode": "require"}, "lacks a required timing cache"),
        ("10.6", "fp32", {"timing_cache": Path("t"), "timing_cache_mode": "load"}, "no such timing cache"),
    ],
)  # fmt: skip
def test_what_a_version_lacks_is_refused_before_it_runs(
    stand_in: MakeStandIn, graph: Path, version: str, precision: Precision, options: dict[str, Any], problem: str
) -> None:
    program = stand_in(version)
    with pytest.raises(UserError, match=problem) as caught:
        build(graph, precision, **options)
    assert "\n" not in str(caught.value)
    assert not program.seen.exists()
    assert left_over(graph) == ["model.onnx"]


def test_a_timing_cache_is_extended_only_in_mode_update(stand_in: MakeStandIn, graph: Path, tmp_path: Path) -> None:
    program, cache = stand_in("10.6"), tmp_path / "caches" / "timing.cache"
    for mode, content in (
        ("update", b"+measured"),
        ("load", b"+measured"),
        ("require", b"+measured"),
        ("update", b"+measured+measured"),
    ):
        build(graph, timing_cache=cache, timing_cache_mode=mode)
        assert cache.read_bytes() == content
        assert ("--errorOnTimingCacheMiss" in program.arguments) == (mode == "require")
    with pytest.raises(PrecisionError):
        build(graph, "fp16", timing_cache=cache)
    assert cache.read_bytes() == content, "a failed build does not touch it"


def test_a_calibration_table_gives_the_ranges(stand_in: MakeStandIn, graph: Path, tmp_path: Path) -> None:
    program = stand_in("8.6", "int8")
    built = build(graph, "int8", calibrator="table", calibration_table=write_table(tmp_path))
    assert {"--int8", "--calib"} <= program.arguments.keys()
    assert program.arguments["--layerPrecisions"].startswith("conv1:int8,conv2:int8,")
    assert all(layer.holds for layer in built.layers)


def test_calibration_on_random_data_is_never_accepted(stand_in: MakeStandIn, graph: Path, tmp_path: Path) -> None:
    """What trtexec does with a table of another version."""
    stand_in("10.6", "int8")
    with pytest.raises(ArtifactError, match="calibrated on random data"):
        build(graph, "int8", calibrator="table", calibration_table=write_table(tmp_path))
    assert "model.engine" not in left_over(graph)


def test_the_result_says_what_was_built_and_how(stand_in: MakeStandIn, graph: Path) -> None:
    warning = "ModelImporter.cpp:994: Make sure output z has Int64 binding."
    stand_in("10.6", log=[["W", f"[TRT] {warning}"], ["I", "nothing"]])
    built = build(graph, memory_cap=2048)
    assert graph.with_name("model.engine").read_bytes() == b"e" * WEIGHTS
    expected = {"builder": "trtexec", "version": "10.6.0", "sm": "sm87", "fallback": [], "compute_capabilities": []}
    assert built.build.items() >= expected.items()
    unbounded = "trtexec cannot bound the memory that kernels are tried in; the cap bounds the rest"
    assert built.build["messages"] == [unbounded, warning]
    assert all(layer.holds and layer.placement == "GPU" for layer in built.layers)
    assert "--saveEngine=model.engine" in built.build["flags"]
    assert left_over(graph) == ["model.engine", "model.onnx"]
    json.dumps(built.build)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_fp32_engine_under_fp16_is_refused_and_the_old_one_kept(
    stand_in: MakeStandIn, graph: Path, version: str
) -> None:
    graph.with_name("model.engine").write_bytes(b"old")
    stand_in(version)
    with pytest.raises(PrecisionError, match="conv1 is fp32, not fp16"):
        build(graph, "fp16")
    assert graph.with_name("model.engine").read_bytes() == b"old"
    assert left_over(graph) == ["model.engine", "model.onnx"]


def test_an_accepted_difference_is_recorded(stand_in: MakeStandIn, graph: Path) -> None:
    program = stand_in("10.6")
    program.builds({**layer_types("fp16"), "fc8": "fp32"})
    built = build(graph, "fp16", allow_fallback=True)
    assert program.arguments["--precisionConstraints"] == "prefer"
    assert built.build["fallback"] == ["fc8 is fp32, not fp16"]


def test_a_layer_that_left_the_dla_is_recorded_or_refused(stand_in: MakeStandIn, tmp_path: Path) -> None:
    stand_in("8.6", "fp16")
    graph = write_graph(tmp_path / "dla.onnx", batch=1)
    built = build(graph, "fp16", **ON_DLA, gpu_fallback=True)
    assert "fc6 runs on the GPU, not on the DLA" in built.build["fallback"]
    with pytest.raises(PrecisionError, match="conv1 runs on the GPU"):
        build(graph, "fp16", **ON_DLA)


def test_a_dla_is_asked_for_no_fp32_and_takes_int8_ranges_from_a_table(stand_in: MakeStandIn, tmp_path: Path) -> None:
    region = {"Name": "{ForeignNode[conv1...fc8]}", "LayerType": "DLA", "Inputs": [tensor("input", FORMATS_8["int8"])]}
    program = stand_in("8.6", information=engine([region]))
    graph = write_graph(tmp_path / "dla.onnx", batch=1)
    with pytest.raises(UserError, match="takes its INT8 ranges from a calibrator"):
        build(graph, "int8", **ON_DLA)
    table = write_table(tmp_path, "torchvision", for_dla=True)
    built = build(graph, "int8", **ON_DLA, calibrator="table", calibration_table=table)
    assert {"--int8", "--fp16", "--calib"} <= program.arguments.keys()  # FP16 for what a DLA has no INT8 for
    assert "fp32" not in program.arguments["--layerPrecisions"]
    assert "--layerOutputTypes" not in program.arguments
    assert {layer.placement for layer in built.layers} == {"DLA"}


def test_a_layer_whose_name_was_lost_is_known_from_the_strongly_typed_graph_only(
    stand_in: MakeStandIn, tmp_path: Path
) -> None:
    graph = write_graph(tmp_path / "half.onnx", element="fp16")
    nameless = {"Name": "__myl_Fc_myl0_1", "LayerType": "kgen", "Inputs": [tensor("x", "Half")], "Metadata": ""}
    stand_in("11.0", information=engine([nameless]))
    assert all(layer.holds for layer in build(graph, "fp16").layers)
    stand_in("10.6", information=engine([nameless]))
    with pytest.raises(PrecisionError, match="conv1 is missing, not fp16"):
        build(graph, "fp16")


def test_types_the_inspector_does_not_tell_come_from_the_strongly_typed_graph(
    stand_in: MakeStandIn, tmp_path: Path
) -> None:
    program = stand_in("10.13", information=NAMES_ONLY)
    graph = write_graph(tmp_path / "half.onnx", element="fp16")
    built = build(graph, "fp16")
    assert all(layer.holds for layer in built.layers)
    assert built.layers[0].evidence == "element types in the ONNX graph, which a strongly typed engine keeps"
    program.tell(size=64 << 20)
    with pytest.raises(PrecisionError, match="was not built in the precision asked for"):
        build(graph, "fp16")


def test_weakly_typed_the_graph_is_no_proof(stand_in: MakeStandIn, graph: Path) -> None:
    stand_in("10.6", information=NAMES_ONLY)
    with pytest.raises(PrecisionError, match="conv1 is unknown, not fp32"):
        build(graph)


def test_int4_weights_unpacked_in_the_kernel_are_proved_by_the_size(stand_in: MakeStandIn, tmp_path: Path) -> None:
    program = stand_in("10.6", "int4-fc")
    types = layer_types("int4-fc")
    graph = write_graph(tmp_path / "int4.onnx", element="fp16", int4=[name for name in types if types[name] == "int4"])
    built = build(graph, "int4-fc")
    assert {layer.name: layer.built for layer in built.layers} == types
    assert "element types in the ONNX graph, weights unpacked inside the kernel" in built.layers[-1].evidence
    assert f"size: {WEIGHTS:,} bytes for {WEIGHTS:,} of weights" in built.build["proof"]
    program.tell(size=64 << 20)
    with pytest.raises(PrecisionError, match="was not built in the precision asked for"):
        build(graph, "int4-fc")


def test_what_tensorrt_8_tells_only_of_a_set_shape_is_asked_again(stand_in: MakeStandIn, graph: Path) -> None:
    region = {"Name": "{ForeignNode[conv1...fc8]}", "LayerType": "Myelin"}
    program = stand_in("8.6", information=engine([{**region, "Inputs": [tensor("x", DYNAMIC_8)]}]))
    with pytest.raises(PrecisionError, match="conv1 is unknown, not fp32"):
        build(graph)
    program.tell(loaded=engine([{**region, "Inputs": [tensor("x", FORMATS_8["fp32"])]}]))
    built = build(graph)
    assert all(layer.holds for layer in built.layers)
    assert "at the border of a fused region" in built.layers[0].evidence


def test_the_first_error_is_the_reason(stand_in: MakeStandIn, graph: Path) -> None:
    recorded = (DATA / "failed-10.13.log").read_text(encoding="utf-8").splitlines()
    stand_in("10.13", log=[[line[23], line[26:]] for line in recorded if line.startswith("[")], fails=True)
    with pytest.raises(ArtifactError, match=r"could not build the engine \(Error\[3\]: In node -1") as caught:
        build(graph)
    assert "Engine set up failed" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_over(graph) == ["model.onnx"]


def test_a_build_that_says_passed_and_writes_nothing_is_a_failure(stand_in: MakeStandIn, graph: Path) -> None:
    stand_in("10.6", size=0)
    with pytest.raises(ArtifactError, match="could not build the engine"):
        build(graph)


def wait_for(started: Path) -> int:
    """The number of trtexec's process, once it is at work."""
    while not (started.exists() and started.read_text(encoding="utf-8")):
        time.sleep(0.02)
    return int(started.read_text(encoding="utf-8"))


def test_a_killed_trtexec_is_one_line(stand_in: MakeStandIn, graph: Path, tmp_path: Path) -> None:
    started = tmp_path / "trtexec-pid"
    stand_in("10.6", sleep=60, pid=str(started))
    threading.Thread(target=lambda: os.kill(wait_for(started), signal.SIGKILL), daemon=True).start()
    with pytest.raises(ArtifactError, match=r"ended by SIGKILL; if memory ran out"):
        build(graph)
    assert left_over(graph) == ["model.onnx"]


def test_ctrl_c_stops_trtexec_and_leaves_nothing(stand_in: MakeStandIn, graph: Path, tmp_path: Path) -> None:
    started = tmp_path / "trtexec-pid"
    stand_in("10.6", sleep=60, pid=str(started), log=[["I", "at work"]])

    class Interrupting(QuietReporter):
        def update(self, completed: int, detail: str = "") -> None:
            if detail == "at work":
                wait_for(started)
                raise KeyboardInterrupt

    graph.with_name("model.engine").write_bytes(b"old")
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build(graph, reporter=Interrupting())
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):  # it has ended, and was waited for
        os.kill(wait_for(started), 0)
    assert graph.with_name("model.engine").read_bytes() == b"old"
    assert left_over(graph) == ["model.engine", "model.onnx"]


def test_an_option_is_refused_by_name() -> None:
    bare = Trtexec(path=Path("trtexec"), version="8.4.1", options=frozenset({"--fp16"}))
    assert bare.option("--fp16", "FP16") == "--fp16"
    with pytest.raises(UserError, match=r"trtexec of TensorRT 8\.4\.1 has no --refit, which refitting needs"):
        bare.option("--refit", "refitting")
