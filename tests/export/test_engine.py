"""Engines through the command line: which graph a builder is fed, what is kept, recorded and printed, what is refused.

TensorRT-RTX builds for real. In trtexec's place is a program with a real version's help, see trtexec_stand_in.py: what these
tests show of it is what it is given and what is made of its answers, not that NVIDIA's own program takes them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Cli
from narrow_network import NARROW, python_path, write_checkpoint
from onnx import TensorProto
from trtexec_stand_in import StandIn, write_stand_in

from alexnet_edge.artifact import Manifest, commit, layer_types, load_artifact, manifest_path
from alexnet_edge.cli import main
from alexnet_edge.environment import memory_bytes
from alexnet_edge.export.engines.calibrators import read_calibration_table
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs.onnx import layer_inputs, write_onnx
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import sha256_file
from alexnet_edge.images.datasets import open_images
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
without_tensorrt = pytest.mark.skipif(
    find_spec("tensorrt") is not None, reason="TensorRT's bindings are installed here"
)
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc")
FP16_ENGINE = "alexnet_fp16.engine"


@pytest.fixture(scope="module", autouse=True)
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the narrow network."""
    return write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors")


class Export:
    """`alexnet-edge export` of the narrow checkpoint in this process: exit code, output, and the folder it wrote to."""

    def __init__(self, checkpoint: Path, images: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.source: tuple[str | Path, ...] = ("--checkpoint", checkpoint)
        self.images = images
        self.folder = folder / "artifacts"
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, format: str = "trt") -> tuple[int, str, str]:
        self._capsys.readouterr()
        given = (*self.source, "--images", self.images / "val", "--format", format, "-q", *arguments)
        with pytest.raises(SystemExit) as end:
            main(["export", *map(str, given)])
        out, err = self._capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    def done(self, *arguments: str | Path, format: str = "trt") -> str:
        """What an export prints that must succeed."""
        code, out, err = self(*arguments, format=format)
        assert (code, err) == (0, ""), err
        return out

    def refuses(self, *arguments: str | Path, format: str = "trt") -> str:
        """The one line of an export that must end with exit code 2 and leave every file as it was.

        What this machine lacks is also told with the results: an export of every format goes on without it.
        """
        before = self.content()
        code, out, err = self(*arguments, format=format)
        assert code == 2, out + err
        assert all(": not written: " in text for text in out.splitlines()[:1]), out
        (line,) = err.strip().splitlines()
        assert line.startswith("alexnet-edge: ")
        assert self.content() == before
        return line

    def manifest(self, name: str) -> Manifest:
        return load_artifact(self.folder / name).manifest

    def content(self) -> dict[str, str]:
        """The checksum of every artifact, manifest and unfinished file, by name."""
        files = self.folder.rglob("*") if self.folder.exists() else ()
        return {str(path.relative_to(self.folder)): sha256_file(path) for path in files if path.is_file()}


@pytest.fixture
def export(
    narrow: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Export:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("TRTEXEC", raising=False)
    return Export(narrow, image_folder, tmp_path, capsys)


UseTrtexec = Callable[..., StandIn]


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UseTrtexec:
    """`trtexec("8.6", layer_types("fp16"))` is the trtexec of this machine from then on; its engines have these types.

    What it is given stays in `given/`.
    """

    def use(version: str, types: Mapping[str, str]) -> StandIn:
        program = write_stand_in(tmp_path, version)
        program.builds(types)
        program.keeps(tmp_path / "given")
        monkeypatch.setenv("TRTEXEC", str(program.path))
        return program

    return use


def layer_table(output: str) -> dict[str, str]:
    """What an export prints that each layer was built in."""
    rows = [line.split() for line in output.splitlines()]
    return {row[0]: row[1] for row in rows if row and row[0] in LAYER_NAMES}


def exporter(checkpoint: Path, image_folder: Path, folder: Path, **more: Any) -> Exporter:
    settings = ExportSettings(out=folder / "artifacts", cache=folder / "cache", **more)
    return Exporter(load_checkpoint(checkpoint), settings, proof_images=open_images(image_folder / "val"))


def given_graph(tmp_path: Path) -> onnx.ModelProto:
    """The graph that trtexec was given."""
    return onnx.load(str(tmp_path / "given" / "onnx"))


def weight_type(model: onnx.ModelProto, name: str) -> int:
    (found,) = [entry.data_type for entry in model.graph.initializer if entry.name == f"{name}.weight"]
    return int(found)


@pytest.mark.parametrize(
    ("version", "typing", "source", "element"),
    [
        ("8.6", "weak", "alexnet_fp32.onnx", TensorProto.FLOAT),
        ("10.13", "strong", "alexnet_fp16.onnx", TensorProto.FLOAT16),
    ],
)
def test_fp16_by_the_version(
    export: Export, trtexec: UseTrtexec, tmp_path: Path, version: str, typing: str, source: str, element: int
) -> None:
    program = trtexec(version, layer_types("fp16"))
    out = export.done("--fp16", "--runtime", "trtexec")
    assert export.content().keys() == {FP16_ENGINE, f"{FP16_ENGINE}.json"}
    manifest = export.manifest(FP16_ENGINE)
    assert (manifest.runtime, manifest.precision) == ("tensorrt", "fp16")
    assert (manifest.build["builder"], manifest.build["typing"]) == ("trtexec", typing)
    assert manifest.build["version"].startswith(version)
    assert manifest.sources == {source: sha256_file(tmp_path / "given" / "onnx")}
    assert {weight_type(given_graph(tmp_path), name) for name in LAYER_NAMES} == {element}
    assert ("--fp16" in program.arguments) == (typing == "weak")
    assert ("--stronglyTyped" in program.arguments) == (typing == "strong")
    assert layer_table(out) == layer_types("fp16")
    assert manifest.parity["verdict"] == "not run"
    stand_in = manifest.parity["stand_in"]
    assert "the graph in its precision, on ONNX Runtime" in stand_in["what"]
    assert stand_in["verdict"] == "passed"
    assert stand_in["figures"]["max_abs_error"] > 1e-5  # of FP16: that of an FP32 graph is smaller
    assert "not run" in out
    assert "proved instead: the graph in its precision, on ONNX Runtime (top-1 agreement" in out


def test_an_fp32_engine_is_proved_by_an_fp32_graph(export: Export, trtexec: UseTrtexec) -> None:
    trtexec("8.6", layer_types("fp32"))
    export.done("--runtime", "trtexec")
    stand_in = export.manifest("alexnet_fp32.engine").parity["stand_in"]
    assert stand_in["what"] == "the graph in its precision, on ONNX Runtime"
    assert stand_in["figures"]["max_abs_error"] < 1e-5


@without_tensorrt
def test_trtexec_comes_before_rtx(export: Export, trtexec: UseTrtexec) -> None:
    trtexec("8.6", layer_types("fp16"))
    export.done("--fp16")
    assert export.manifest(FP16_ENGINE).build["builder"] == "trtexec"


@pytest.mark.parametrize(
    ("precision", "source"), [("int8", "alexnet_int8.onnx"), ("bf16", "alexnet_fp32.onnx"), ("fp8", "alexnet_fp8.onnx")]
)
def test_quantised_graphs_go_to_weak_typing_too(
    export: Export, trtexec: UseTrtexec, precision: str, source: str
) -> None:
    program = trtexec("10.6", layer_types(precision))  # type: ignore[arg-type]
    calibration = () if precision == "bf16" else ("--calibration", export.images / "train")
    export.done(f"--{precision}", *calibration, "--runtime", "trtexec")
    manifest = export.manifest(f"alexnet_{precision}.engine")
    assert list(manifest.sources) == [source]
    assert f"--{precision}" in program.arguments
    assert (manifest.calibration is None) == (precision == "bf16")


def test_the_exporter_without_a_command_line(
    narrow: Path, image_folder: Path, tmp_path: Path, trtexec: UseTrtexec
) -> None:
    trtexec("10.13", layer_types("int4-fc"))
    artifact = exporter(narrow, image_folder, tmp_path, runtime="trtexec").export("trt", "int4-fc")
    assert artifact.path == tmp_path / "artifacts" / "alexnet_int4-fc.engine"
    assert {layer.name: layer.built for layer in artifact.manifest.layers} == layer_types("int4-fc")


@pytest.fixture(scope="module")
def fp16_engine(narrow: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FP16 engine of trtexec with its manifest; do not change it."""
    folder = tmp_path_factory.mktemp("engine")
    program = write_stand_in(folder, "8.6")
    program.builds(layer_types("fp16"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRTEXEC", str(program.path))
        return exporter(narrow, image_folder, folder, runtime="trtexec").export("trt", "fp16").path


@pytest.fixture
def kept(export: Export, trtexec: UseTrtexec, fp16_engine: Path) -> tuple[Export, StandIn]:
    """An export with a good FP16 engine in its folder, and the trtexec that would build the next."""
    shutil.copytree(fp16_engine.parent, export.folder)
    return export, trtexec("8.6", layer_types("fp16"))


def test_an_fp32_engine_is_no_fp16_engine(kept: tuple[Export, StandIn]) -> None:
    export, program = kept
    before = export.content()
    program.builds(layer_types("fp32"))
    code, _, err = export("--fp16", "--runtime", "trtexec")
    assert code == 1
    (line,) = err.strip().splitlines()
    assert "conv1 is fp32, not fp16" in line
    assert export.content() == before


def test_an_accepted_difference_is_recorded_and_printed(kept: tuple[Export, StandIn]) -> None:
    export, program = kept
    program.builds(layer_types("fp32"))
    out = export.done("--fp16", "--runtime", "trtexec", "--allow-fallback")
    manifest = export.manifest(FP16_ENGINE)
    differences = [f"{name} is fp32, not fp16" for name in LAYER_NAMES]
    assert manifest.build["fallback"] == differences
    assert {layer.built for layer in manifest.layers} == {"fp32"}
    assert {layer.requested for layer in manifest.layers} == {"fp16"}
    for difference in differences:
        assert f"trt fp16: {difference}" in out
    assert program.arguments["--precisionConstraints"] == "prefer"


def test_a_failed_build_leaves_the_engine_before(kept: tuple[Export, StandIn]) -> None:
    export, program = kept
    program.tell(fails=True, log=[["E", "[TRT] 10: Could not find any implementation for node conv1."]])
    assert "Could not find any implementation for node conv1." in export.refuses("--fp16", "--runtime", "trtexec")


def ranges_of(table: Path) -> dict[str, float]:
    """The ranges at the layers' inputs in a calibration table."""
    ranges = read_calibration_table(table.read_text(encoding="utf-8"))
    return {layer: ranges[tensor] for layer, tensor in layer_inputs(NARROW).items()}


def test_trtexec_is_given_the_ranges_of_this_package(export: Export, trtexec: UseTrtexec, tmp_path: Path) -> None:
    program = trtexec("8.6", layer_types("int8"))
    table = tmp_path / "ranges.table"
    train = ("--calibration", export.images / "train", "--calibration-images", "8")
    export.done("--int8", "--calibrator", "table", *train, "--calibration-table", table, "--runtime", "trtexec")
    manifest = export.manifest("alexnet_int8.engine")
    assert {"--int8", "--calib"} <= program.arguments.keys()
    assert manifest.calibration is not None
    assert manifest.calibration["num_images"] == 8
    given = tmp_path / "given" / "calib"
    assert table.read_bytes() == given.read_bytes(), "the file and the engine have the same ranges"
    assert ranges_of(given) == pytest.approx(manifest.calibration["amax"], rel=1e-6)
    assert given.read_text(encoding="utf-8").startswith("TRT-8601-EntropyCalibration2\n")
    tensors = {name for node in given_graph(tmp_path).graph.node for name in (*node.input, *node.output)}
    assert read_calibration_table(given.read_text(encoding="utf-8")).keys() <= tensors
    assert manifest.sources.keys() == {"alexnet_fp32.onnx", "calibration.table"}
    assert manifest.sources["calibration.table"] == sha256_file(given)
    assert manifest.parity["stand_in"]["what"] == "the graph in its precision, on ONNX Runtime"


def test_the_table_of_a_dla_is_for_its_graph(export: Export, trtexec: UseTrtexec, tmp_path: Path) -> None:
    trtexec("8.6", layer_types("int8"))
    train = ("--calibration", export.images / "train", "--calibration-images", "8")
    dla = ("--dla-core", "0", "--gpu-fallback")
    export.done("--int8", "--calibrator", "table", *dla, *train, "--runtime", "trtexec")
    table = read_calibration_table((tmp_path / "given" / "calib").read_text(encoding="utf-8"))
    tensors = {name for node in given_graph(tmp_path).graph.node for name in (*node.input, *node.output)}
    assert table.keys() <= tensors


def test_the_ranges_are_also_a_file(export: Export, tmp_path: Path) -> None:
    """With an ONNX file as well as with an engine, for the TensorRT version that is named."""
    table = tmp_path / "ranges.table"
    given = ("--int8", "--calibration", export.images / "train", "--calibration-images", "8")
    export.done(*given, "--calibration-table", table, "--table-for", "10.3.0", format="onnx")
    calibration = export.manifest("alexnet_int8.onnx").calibration
    assert calibration is not None
    assert table.read_text(encoding="utf-8").startswith("TRT-100300-EntropyCalibration2\n")
    assert ranges_of(table) == pytest.approx(calibration["amax"], rel=1e-6)


def test_no_ranges_for_a_format_without_int8(export: Export, tmp_path: Path) -> None:
    table = tmp_path / "ranges.table"
    line = export.refuses("--calibration-table", table, "--table-for", "10.3.0", format="torchscript")
    assert "only INT8 and FP8 are calibrated: --calibration-table" in line
    assert not table.exists()


@pytest.mark.parametrize("calibrator", ["entropy2", "minmax"])
def test_trtexec_does_not_calibrate_on_images(
    export: Export, trtexec: UseTrtexec, monkeypatch: pytest.MonkeyPatch, calibrator: str
) -> None:
    """It would on random data. Said before the graph is written, which takes 230 MB for a network of full size."""
    program = trtexec("8.6", layer_types("int8"))
    written: list[Path] = []

    def spy(model: onnx.ModelProto, path: Path) -> None:
        written.append(path)
        write_onnx(model, path)

    monkeypatch.setattr("alexnet_edge.export.engines.engine.write_onnx", spy)
    train = ("--calibration", export.images / "train", "--runtime", "trtexec")
    line = export.refuses("--int8", "--calibrator", calibrator, *train)
    assert "trtexec calibrates on random data" in line
    assert line.endswith("choose --calibrator table")
    assert not program.seen.exists()
    assert written == []


def test_a_dla_gets_a_graph_of_its_own(export: Export, trtexec: UseTrtexec, tmp_path: Path) -> None:
    program = trtexec("8.6", layer_types("fp16"))
    program.tell(static=True)
    out = export.done("--dla-core", "0", "--gpu-fallback", "--fp16", "--opt-batch", "2", "--runtime", "trtexec")
    graph = given_graph(tmp_path).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 227, 227]
    (fc6,) = [node for node in graph.node if node.name == "fc6"]
    (weight,) = [entry for entry in graph.initializer if entry.name == "fc6.weight"]
    assert fc6.op_type == "Conv"
    assert list(weight.dims) == [128, 32, 6, 6]
    assert program.arguments["--useDLACore"] == "0"
    manifest = export.manifest(FP16_ENGINE)
    assert list(manifest.sources) == ["alexnet_fp32_dla.onnx"]
    assert (manifest.input.min_batch, manifest.input.max_batch) == (2, 2)
    assert manifest.build["dla_core"] == 0
    assert "fc6 runs on the GPU, not on the DLA" in manifest.build["fallback"]  # the stand-in has no DLA
    assert "fc6 runs on the GPU, not on the DLA" in out


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("/nowhere/trtexec", "the variable TRTEXEC names no program that can be run: /nowhere/trtexec"),
        ("/bin/true", "this is no trtexec that can be used"),
    ],
)
def test_a_variable_that_names_no_trtexec(
    kept: tuple[Export, StandIn], monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setenv("TRTEXEC", program)
    assert message in kept[0].refuses("--fp16", "--runtime", "trtexec")


@without_tensorrt
def test_tensorrt_without_its_bindings(kept: tuple[Export, StandIn]) -> None:
    assert "TensorRT is not installed; run: " in kept[0].refuses("--fp16", "--runtime", "tensorrt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workspace {more}", "the workspace is larger than the memory of "),
        ("--memory-cap {more}", "the memory cap is larger than the memory of "),
        ("--pool tactic-dram=4", "trtexec cannot bound the memory pool: tactic-dram"),
        ("--stripped", "lacks stripped plans"),
        ("--compute-capability sm87", "builds for the GPU it runs on: sm87"),
        ("--calibrator table", "a calibrator is for INT8: fp16"),
        ("--timing-cache nothing --timing-cache-mode load", "no such timing cache"),
    ],
)
def test_options_that_cannot_be_met(kept: tuple[Export, StandIn], arguments: str, message: str) -> None:
    export, program = kept
    more = (memory_bytes() or 1 << 50) // (1 << 20) * 2
    line = export.refuses("--fp16", "--runtime", "trtexec", *arguments.format(more=more).split())
    assert message in line
    assert not program.seen.exists()


def test_options_for_engines_are_refused_where_none_is_written(kept: tuple[Export, StandIn]) -> None:
    line = kept[0].refuses("--fp16", "--workspace", "64", format="onnx")
    assert "this option is for TensorRT engines only: --workspace" in line


@needs_rtx
def test_rtx_cannot_require_a_timing_cache(kept: tuple[Export, StandIn], tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"known")
    mode = ("--timing-cache", cache, "--timing-cache-mode", "require")
    line = kept[0].refuses("--fp16", "--runtime", "rtx", *mode)
    assert "has no timing cache, so it cannot require one" in line
    assert cache.read_bytes() == b"known"


@pytest.fixture(scope="module")
def onnx_source(narrow: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alexnet_fp32.onnx` with its manifest; do not change it."""
    return exporter(narrow, image_folder, tmp_path_factory.mktemp("source")).export("onnx", "fp32").path


Change = Callable[[onnx.ModelProto], Any]


def artifact_of(content: bytes, source: Path, folder: Path) -> Path:
    """An ONNX artifact with this content, and a manifest that belongs to it."""
    folder.mkdir()
    raw = folder / "raw.onnx"
    raw.write_bytes(content)
    return commit(raw, folder / "alexnet_fp32.onnx", load_artifact(source).manifest).path


def _newer(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _renamed(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = f"/features/{node.name}"


def _wider(model: onnx.ModelProto) -> None:
    for entry in model.graph.initializer:
        if entry.name == "conv3.weight":
            shape = [entry.dims[0] * 2, *entry.dims[1:]]
            entry.CopyFrom(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), entry.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_newer, "its operator set is 99, this onnx package "),
        (_renamed, "not narrow with 4 classes (conv1 is missing)"),
        (_wider, "not narrow with 4 classes (conv3.weight is [16, 8, 3, 3], not [8, 8, 3, 3])"),
    ],
)
def test_an_onnx_file_that_is_no_source(
    kept: tuple[Export, StandIn], onnx_source: Path, tmp_path: Path, change: Change, message: str
) -> None:
    export, program = kept
    model = onnx.load(str(onnx_source))
    change(model)
    export.source = ("--onnx", artifact_of(model.SerializeToString(), onnx_source, tmp_path / "changed"))
    assert message in export.refuses("--fp16", "--runtime", "trtexec")
    assert not program.seen.exists()


def test_a_truncated_onnx_file(kept: tuple[Export, StandIn], onnx_source: Path, tmp_path: Path) -> None:
    export, _ = kept
    content = onnx_source.read_bytes()[:-1000]
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(content)
    export.source = ("--onnx", cut)
    assert "cut.onnx" in export.refuses("--fp16", "--runtime", "trtexec")  # without a manifest
    shutil.copyfile(manifest_path(onnx_source), manifest_path(cut))
    assert "does not match its manifest" in export.refuses("--fp16", "--runtime", "trtexec")
    export.source = ("--onnx", artifact_of(content, onnx_source, tmp_path / "cut"))
    assert "not a readable ONNX file" in export.refuses("--fp16", "--runtime", "trtexec")


def test_an_onnx_file_records_no_images(
    kept: tuple[Export, StandIn], onnx_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, _ = kept
    export.source = ("--onnx", onnx_source)
    assert "name a folder of real images with --calibration" in export.refuses("--int8", "--runtime", "trtexec")
    with pytest.raises(SystemExit):
        main(["export", "--onnx", str(onnx_source), "--format", "trt", "--fp16"])
    assert "name a folder of real images with --images" in capsys.readouterr().err


def test_a_quantised_onnx_file_is_no_source(kept: tuple[Export, StandIn], tmp_path: Path) -> None:
    export, _ = kept
    export.done("--fp16", format="onnx")
    export.source = ("--onnx", export.folder / "alexnet_fp16.onnx")
    line = export.refuses("--runtime", "trtexec")
    assert "only an FP32 ONNX file holds the checkpoint's weights, this is onnx fp16" in line


@pytest.mark.parametrize("version", ["8.6", "10.13"])
def test_trtexec_is_given_the_same_graph_from_onnx(
    export: Export, trtexec: UseTrtexec, onnx_source: Path, tmp_path: Path, version: str
) -> None:
    trtexec(version, layer_types("fp16"))
    export.done("--fp16", "--runtime", "trtexec")
    first = export.manifest(FP16_ENGINE)
    export.source = ("--onnx", onnx_source)
    export.done("--fp16", "--runtime", "trtexec")
    second = export.manifest(FP16_ENGINE)
    assert second.sources == first.sources
    assert second.checkpoint_sha256 == first.checkpoint_sha256
    assert second.checkpoint == str(onnx_source)


@pytest.fixture
def board(tmp_path: Path) -> dict[str, str]:
    """The environment of a process without torch and safetensors, as on a board."""
    return {"PYTHONPATH": python_path(tmp_path / "site", without=("torch", "safetensors"))}


def test_the_board_has_no_torch(run_cli: Cli, board: dict[str, str], narrow: Path, image_folder: Path) -> None:
    images = ("--images", image_folder / "val")
    line = run_cli.refuses("export", "--checkpoint", narrow, *images, "--format", "onnx", env=board)
    assert "torch is not installed" in line or "safetensors is not installed" in line


@needs_rtx
def test_a_board_needs_no_torch(
    export: Export, run_cli: Cli, board: dict[str, str], onnx_source: Path, image_folder: Path
) -> None:
    """From the ONNX artifact, in a process without torch: what the checkpoint gives."""
    export.done("--fp16", "--runtime", "rtx")
    expected = export.manifest("alexnet_fp16_rtx.engine")
    images = ("--images", image_folder / "val")
    made = run_cli("export", "--onnx", onnx_source, *images, "--format", "trt", "--fp16", "--runtime", "rtx", env=board)
    assert made.returncode == 0, made.stderr
    found = load_artifact(run_cli.folder / "artifacts" / "alexnet_fp16_rtx.engine").manifest
    assert found.layers == expected.layers
    assert found.sources == expected.sources
    assert found.checkpoint_sha256 == expected.checkpoint_sha256
    assert found.parity["stand_in"]["verdict"] == "passed"


@pytest.mark.parametrize("on_board", [False, True])
def test_check_proves_against_the_onnx_source(
    run_cli: Cli, board: dict[str, str], onnx_source: Path, image_folder: Path, on_board: bool
) -> None:
    """An FP16 graph made from the ONNX artifact."""
    env = board if on_board else {}
    images = ("--images", image_folder / "val")
    made = run_cli("export", "--onnx", onnx_source, *images, "--format", "onnx", "--fp16", env=env)
    assert made.returncode == 0, made.stderr
    assert load_artifact(run_cli.folder / "artifacts" / "alexnet_fp16.onnx").manifest.checkpoint == str(onnx_source)
    checked = run_cli("check", "artifacts/alexnet_fp16.onnx", *images, "--json", env=env)
    assert checked.returncode == 0, checked.stderr
    (report,) = json.loads(checked.stdout).values()
    assert report["verdict"] == "passed"
    assert report["images"]["count"] == 12


@needs_rtx
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rtx_builds_each_precision(export: Export, precision: str) -> None:
    calibration = ("--calibration", export.images / "train", "--calibration-images", "8")
    given = () if precision == "fp32" else (f"--{precision}", *(calibration if precision in ("int8", "fp8") else ()))
    out = export.done(*given, "--runtime", "rtx")
    engine = f"alexnet_{precision}_rtx.engine"
    assert export.content().keys() == {engine, f"{engine}.json"}
    manifest = export.manifest(engine)
    wanted = layer_types(precision)  # type: ignore[arg-type]
    assert {layer.name: layer.built for layer in manifest.layers} == wanted
    assert all(layer.holds for layer in manifest.layers)
    assert (manifest.runtime, manifest.build["typing"]) == ("tensorrt-rtx", "strong")
    assert list(manifest.sources) == [f"alexnet_{precision}.onnx"]
    assert manifest.parity["verdict"] == "not run"
    assert manifest.parity["stand_in"]["verdict"] == "passed"
    assert manifest.parity["stand_in"]["images"]["count"] == 12
    assert layer_table(out) == wanted
