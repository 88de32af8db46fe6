"""OpenVINO: the pair of files as one artifact, what each precision really is, and a session that computes as it was proved."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import MANIFEST as ONNX_MANIFEST
from narrow_network import write_checkpoint

from alexnet_edge import records
from alexnet_edge.artifact import (
    Artifact,
    Companion,
    Manifest,
    Precision,
    _locked,
    commit,
    layer_types,
    load_artifact,
    manifest_path,
)
from alexnet_edge.errors import ArtifactError, MissingComponentError, ParityError, PrecisionError, UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.graphs import openvino as writer
from alexnet_edge.export.selection import unavailable
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import sha256_file
from alexnet_edge.images.datasets import open_images
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.sessions import open_session, runnable
from alexnet_edge.sessions import openvino as sessions
from alexnet_edge.sessions.openvino import ExecutedNode, OpenVINOSession, int8_overflows

OVERFLOWS = int8_overflows()
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16") if OVERFLOWS else ("fp32", "fp16", "int8")
"""What this processor computes rightly, and so can write."""
needs_int8 = pytest.mark.skipif(OVERFLOWS is not None, reason=str(OVERFLOWS))
each_precision = pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("int8", marks=needs_int8)])
MANIFEST = replace(ONNX_MANIFEST, format="openvino", runtime="openvino")


def written(
    folder: Path,
    graph: bytes = b"<net/>",
    weights: bytes = b"weights",
    name: str = "a.xml",
    precision: Precision = "int8",
) -> Artifact:
    temporary = folder / f"staged-{name}"
    temporary.write_bytes(graph)
    temporary.with_suffix(".bin").write_bytes(weights)
    return commit(temporary, folder / name, replace(MANIFEST, precision=precision))


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        load_artifact(path)
    text = str(error.value)
    assert "\n" not in text
    assert "; " in text
    return text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run_python(code: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_round_trip(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    assert load_artifact(tmp_path / "a.xml") == artifact
    assert artifact.companion == tmp_path / "a.bin"
    assert artifact.label == "openvino int8"
    manifest = artifact.manifest
    assert manifest.bytes == len(b"<net/>") + len(b"weights"), "both files"
    assert manifest.sha256 == sha256_file(tmp_path / "a.xml")
    assert manifest.companion == Companion(sha256=sha256_file(tmp_path / "a.bin"), bytes=7)
    assert records.decode(Manifest, json.dumps(records.to_builtins(manifest))) == manifest
    assert names(tmp_path) == ["a.bin", "a.xml", "a.xml.json"]


def test_renamed_together(tmp_path: Path) -> None:
    written(tmp_path)
    for suffix in ("xml", "bin", "xml.json"):
        (tmp_path / f"a.{suffix}").rename(tmp_path / f"b.{suffix}")
    assert load_artifact(tmp_path / "b.xml").companion == tmp_path / "b.bin"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.bin", b""),
        ("a.bin", b"weight"),
        ("a.bin", b"weightz"),
        ("a.bin", b"weights of another model"),
        ("a.xml", b"<o/>"),
    ],
)
def test_another_graph_or_other_weights(tmp_path: Path, name: str, content: bytes) -> None:
    written(tmp_path)
    (tmp_path / name).write_bytes(content)
    line = refused(tmp_path / "a.xml")
    assert f"does not match its manifest (sha256 {sha256_file(tmp_path / name)[:12]}, not" in line
    assert f"{tmp_path / name}; it was changed or cut short: copy it again, or export it again" in line


def test_the_weights_are_missing(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "a.bin").unlink()
    assert refused(tmp_path / "a.xml").startswith(f"a file of the artifact is missing: {tmp_path / 'a.bin'}; copy it")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    written(folder)
    (folder / "a.bin").rename(tmp_path / "outside.bin")
    (folder / "a.bin").symlink_to(tmp_path / "outside.bin")
    assert "leads out of its folder" in refused(folder / "a.xml")


def test_a_whole_set_may_be_linked_to(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    store.mkdir()
    folder.mkdir()
    written(store)
    for name in names(store):
        (folder / name).symlink_to(store / name)
    assert load_artifact(folder / "a.xml").companion == folder / "a.bin"


@pytest.mark.parametrize(
    "companion",
    [
        None,
        {"path": "../secret", "sha256": "ab", "bytes": 7},
        {"path": "/etc/passwd", "sha256": "ab", "bytes": 7},
        {"sha256": 5, "bytes": 7},
        {"sha256": "ab", "bytes": "7"},
        {"sha256": "ab", "bytes": True},
        {"sha256": "ab"},
        [],
        "a.bin",
    ],
)
def test_a_manifest_that_says_something_else_of_the_second_file(tmp_path: Path, companion: Any) -> None:
    """The manifest has no say in where the second file is."""
    written(tmp_path)
    sidecar = manifest_path(tmp_path / "a.xml")
    value = json.loads(sidecar.read_text(encoding="utf-8"))
    sidecar.write_text(json.dumps({**value, "companion": companion}))
    assert "the manifest is damaged" in refused(tmp_path / "a.xml")
    del value["companion"]
    sidecar.write_text(json.dumps(value))
    assert "the manifest is damaged (companion: missing)" in refused(tmp_path / "a.xml")


def test_another_format_has_none(tmp_path: Path) -> None:
    (tmp_path / "staged").write_bytes(b"network")
    path = commit(tmp_path / "staged", tmp_path / "a.onnx", ONNX_MANIFEST).path
    value = json.loads(manifest_path(path).read_text(encoding="utf-8"))
    assert value.pop("companion") is None
    manifest_path(path).write_text(json.dumps(value))
    assert load_artifact(path).companion is None, "manifests written before the field still load"
    manifest_path(path).write_text(json.dumps({**value, "companion": {"sha256": "ab", "bytes": 1}}))
    assert "companion: onnx has no second file" in refused(path)


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from alexnet_edge import artifact
from test_openvino import written

folder, graph, calls = Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
replaced = []
original = Path.replace

def replace(self, target):
    if len(replaced) == calls:
        os.kill(os.getpid(), signal.SIGKILL)
    replaced.append(target)
    return original(self, target)

Path.replace = replace
written(folder, graph, b"new weights")
print(len(replaced))
"""


@pytest.mark.parametrize("graph", ["<net/>", "<new/>"])
def test_killed_at_every_rename(tmp_path: Path, graph: str) -> None:
    """Whether or not the graph itself changes: each time the whole old set or the whole new one is there."""
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1] / 'support'}"}
    found = []
    for calls in range(6):
        folder = tmp_path / str(calls)
        folder.mkdir()
        old = written(folder, b"<net/>", b"old weights")
        run = run_python(KILLED_WHILE_REPLACING, folder, graph, calls, env=environment)
        loaded = load_artifact(old.path)
        assert loaded.companion is not None
        state = (loaded.path.read_bytes(), loaded.companion.read_bytes())
        assert state in {(b"<net/>", b"old weights"), (graph.encode(), b"new weights")}
        assert loaded.manifest.companion is not None
        assert loaded.manifest.companion.sha256 == sha256_file(loaded.companion)
        assert load_artifact(old.path) == loaded
        found.append(state[1] == b"new weights")
        assert written(folder, b"<net/>", b"newest weights") == load_artifact(old.path)
        assert [name for name in names(folder) if name[0] != "."] == ["a.bin", "a.xml", "a.xml.json"]
        if run.returncode == 0:
            assert calls == int(run.stdout) == 5, "what is replaced: the manifest twice, the weights twice, the graph"
            break
        assert run.returncode == -9, run.stderr
    assert found == sorted(found)
    assert (found[0], found[-1]) == (False, True)


def test_a_read_only_folder_in_the_middle_of_a_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new weights still have their waiting name and cannot be renamed: they are run from there."""
    written(tmp_path)
    (tmp_path / "a.bin").rename(tmp_path / "a.bin.next")
    (tmp_path / "a.xml.json").rename(tmp_path / "a.xml.json.next")
    (tmp_path / "a.bin").write_bytes(b"old weights")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(30, "read-only")

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", refuse)
        assert load_artifact(tmp_path / "a.xml").companion == tmp_path / "a.bin.next"
    assert load_artifact(tmp_path / "a.xml").companion == tmp_path / "a.bin"
    assert names(tmp_path) == ["a.bin", "a.xml", "a.xml.json"]


READER = """
import sys
from pathlib import Path
from alexnet_edge.artifact import load_artifact
found, reads = [], 0
while reads < int(sys.argv[2]) or len(found) < int(sys.argv[3]):
    manifest = load_artifact(Path(sys.argv[1])).manifest
    state = (manifest.sha256, manifest.companion.sha256)
    reads += 1
    if found[-1:] != [state]:
        found.append(state)
"""


def test_read_while_it_is_replaced(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    path = written(tmp_path).path
    command = [sys.executable, "-c", READER, str(path), "400", "20"]  # least readings, and least changes seen
    reader = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    rng = random.Random(seed)
    while reader.poll() is None:
        turn = rng.randrange(4)
        written(tmp_path, b"<net/>" if turn < 2 else b"<new/>", f"weights {turn}".encode())
        time.sleep(rng.uniform(0, 0.002))
    assert reader.communicate()[1] == "", f"seed {seed}"
    assert reader.returncode == 0, f"seed {seed}"


def test_a_reader_waits_for_the_writer_before_it_complains(tmp_path: Path) -> None:
    """A writer has renamed both files and not yet the manifest, which the reader looked for before there was a waiting one."""
    written(tmp_path)
    (tmp_path / "other").mkdir()
    newer = written(tmp_path / "other", b"<new/>", b"new weights")
    for name in ("a.xml", "a.bin"):
        shutil.copy(tmp_path / "other" / name, tmp_path / name)
    found: list[Artifact] = []
    reader = threading.Thread(target=lambda: found.append(load_artifact(tmp_path / "a.xml")))
    with _locked(tmp_path) as locked:
        assert locked
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        shutil.copy(tmp_path / "other" / "a.xml.json", tmp_path / "a.xml.json")
    reader.join(10)
    assert [artifact.manifest for artifact in found] == [newer.manifest]


IMPORTS = """
import socket, subprocess, sys, multiprocessing
def never(*arguments, **options):
    raise SystemExit("it was about to connect or to start a process")
socket.socket.connect = multiprocessing.Process.start = subprocess.Popen.__init__ = never
from alexnet_edge.sessions.openvino import load_library
print(load_library().__name__)
print("openvino_telemetry" in sys.modules)
"""


def test_the_import_sends_nothing(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    run = run_python(IMPORTS, env={**environment, "HOME": str(tmp_path)})
    assert (run.returncode, run.stdout.split()) == (0, ["openvino", "False"]), run.stderr
    assert names(tmp_path) == [], "it would keep a client's number in the home folder"


def test_whoever_imported_the_sender_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", marker)
    sessions.import_quietly()
    assert sys.modules["openvino_telemetry"] is marker


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ModuleNotFoundError("No module named 'openvino'", name="openvino"),
            "openvino is not installed; run: pip install 'alexnet-edge[openvino]'",
        ),
        (
            ImportError("libopenvino.so: cannot open\nshared object file"),
            "openvino cannot be imported (libopenvino.so: cannot open shared object file); "
            "run: pip install 'alexnet-edge[openvino]' --force-reinstall",
        ),
    ],
)
def test_a_library_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch, error: ImportError, line: str) -> None:
    def fail() -> Any:
        raise error

    monkeypatch.setattr(sessions, "import_quietly", fail)
    with pytest.raises(MissingComponentError) as caught:
        sessions.load_library()
    assert str(caught.value) == line


def test_export_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else object())
    assert "pip install 'alexnet-edge[openvino]'" in str(unavailable("openvino"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors"))


def exporter_of(checkpoint: Any, out: Path, image_folder: Path) -> Exporter:
    return Exporter(
        checkpoint,
        ExportSettings(out=out, cache=out.parent / "cache"),
        proof_images=open_images(image_folder / "val"),
        calibration_images=open_images(image_folder / "train"),
    )


@pytest.fixture(scope="module")
def artifacts(narrow: Any, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The narrow network in each of `PRECISIONS`; do not change the files."""
    made = exporter_of(narrow, tmp_path_factory.mktemp("openvino") / "artifacts", image_folder)
    return {precision: made.export("openvino", precision) for precision in PRECISIONS}


@pytest.fixture
def copied(artifacts: dict[str, Artifact], tmp_path: Path) -> Callable[[str], Path]:
    """`copied("int8")` is a copy of that artifact that may be changed."""

    def copy(precision: str) -> Path:
        shutil.copytree(artifacts[precision].path.parent, tmp_path / "copy")
        return tmp_path / "copy" / artifacts[precision].path.name

    return copy


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 227, 227)).astype(np.float32)


def test_what_an_export_leaves(artifacts: dict[str, Artifact], narrow: Any) -> None:
    folder = artifacts["fp32"].path.parent
    files = [f"alexnet_{precision}.{suffix}" for precision in PRECISIONS for suffix in ("bin", "xml", "xml.json")]
    assert names(folder) == sorted(files)
    for precision, artifact in artifacts.items():
        manifest = artifact.manifest
        assert load_artifact(artifact.path).manifest.companion == manifest.companion
        assert (manifest.format, manifest.runtime, manifest.precision) == ("openvino", "openvino", precision)
        assert manifest.parity["verdict"] == "passed", manifest.parity["reasons"]
        assert manifest.parity["candidate"]["inference_precision"] == "f32"
        assert manifest.build["inference_precision"] == "f32"
        assert manifest.build["ir_version"] >= 10
        assert list(manifest.sources) == [f"alexnet_{'int8' if precision == 'int8' else 'fp32'}.onnx"]
        assert next(iter(manifest.sources.values())) in artifact.path.read_text(encoding="utf-8")
        assert manifest.environment["versions"]["openvino"]
        assert (manifest.calibration is not None) == (precision == "int8")
        assert manifest.checkpoint_sha256 == narrow.sha256
    sizes = [artifacts[precision].manifest.bytes for precision in PRECISIONS]
    weights = [artifact.companion.stat().st_size for artifact in artifacts.values() if artifact.companion]
    assert sizes == [artifacts[p].path.stat().st_size + size for p, size in zip(PRECISIONS, weights, strict=True)]
    for bound, size in zip((1, 0.52, 0.30), weights, strict=False):
        assert size <= bound * weights[0]


def test_built_is_what_the_plugin_executes(artifacts: dict[str, Artifact]) -> None:
    computed = {"fp32": "fp32", "fp16": "fp32", "int8": "int8"}
    for precision, artifact in artifacts.items():
        rows = artifact.manifest.layers
        assert [row.name for row in rows] == list(LAYER_NAMES)
        assert {(row.requested, row.built) for row in rows} == {(precision, computed[precision])}
        for row in rows:
            assert f"weights stored in {precision.upper()}" in row.evidence
            assert re.search(rf"kernel \w+_{'i8' if precision == 'int8' else 'f32'} ", row.evidence, re.IGNORECASE)
            assert row.kernel.startswith(row.name)
        assert artifact.manifest.build["stored_weights"] == dict.fromkeys(LAYER_NAMES, precision)
        warnings = ["weights are stored in FP16 and computed in FP32"] if precision == "fp16" else []
        assert artifact.manifest.build["warnings"] == warnings


def test_a_graph_without_quantise_nodes_is_not_called_int8(
    narrow: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exporter_of(narrow, tmp_path / "artifacts", image_folder)
    monkeypatch.setattr(writer, "GRAPHS", {"int8": "fp32"})
    monkeypatch.setattr(writer, "int8_overflows", lambda: None)  # a graph in FP32 has no INT8 sums
    with pytest.raises(
        PrecisionError, match=r"openvino int8: the weights of conv1 are stored in fp32.*fc8 is fp32, not"
    ):
        made.export("openvino", "int8")
    assert names(made.settings.out) == []


def node(primitive: str, *inputs: str, kind: str = "Convolution", fused: tuple[str, ...] = ("conv1",)) -> ExecutedNode:
    return ExecutedNode(name="n", kind=kind, primitive=primitive, inputs=inputs, fused=fused)


@pytest.mark.parametrize(
    ("executed", "built"),
    [
        (node("brgconv_avx512_I8", "u8", "i8"), "int8"),
        (node("brgemm_avx512_i8", "i8", "i8", "f32"), "int8"),
        (node("brgconv_avx512_I8", "f32", "i8"), "mixed"),
        (node("brgconv_avx512_f32", "f32", "i8"), "fp32"),
        (node("brgconv_avx512_bf16", "bf16", "f32"), "bf16"),
        (node("jit_gemm", "f32", "f32"), "unknown"),
        (node("jit_uni_f32", "f32", kind="Reorder"), "missing"),
        (node("brgconv_avx512_f32", "f32", "f32", fused=("conv1/lrn",)), "missing"),
    ],
)
def test_the_kernel_says_what_a_layer_computes_in(executed: ExecutedNode, built: str) -> None:
    rows = writer.layer_precisions([executed], dict.fromkeys(LAYER_NAMES, "int8"), layer_types("int8"))
    assert rows[0].built == built
    assert {row.built for row in rows[1:]} == {"missing"}


@pytest.mark.parametrize(
    ("originals", "expected"),
    [
        ("conv1/WithoutBiases,conv1/relu,Multiply_24862", ("conv1", "conv1/relu")),
        (
            "fc6/WithoutBiases/DequantizationMultiply,fc6,fc6/relu,fc7/input_q",
            ("fc6", "fc6/relu", "fc7/input_q"),
        ),
        ("fc8", ("fc8",)),
        ("", ()),
    ],
)
def test_names_of_the_graph(originals: str, expected: tuple[str, ...]) -> None:
    assert sessions._graph_names(originals) == expected


def test_a_wrong_one_is_kept_aside_whole(
    narrow: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exporter_of(narrow, tmp_path / "artifacts", image_folder)
    made.prover.expected_NK = made.prover.reference_NK()[:, ::-1].copy()
    with pytest.raises(ParityError, match=r"kept aside as .*alexnet_fp32\.failed\.xml"):
        made.export("openvino", "fp32")
    assert names(made.settings.out) == [f"alexnet_fp32.failed.{suffix}" for suffix in ("bin", "xml", "xml.json")]
    assert load_artifact(made.settings.out / "alexnet_fp32.failed.xml").manifest.parity["verdict"] == "failed"


def test_precisions_it_is_not_written_in(narrow: Any, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="openvino is written in fp32 and fp16 and int8 only: bf16"):
        exporter_of(narrow, tmp_path / "artifacts", image_folder).export("openvino", "bf16")


def test_answers(artifacts: dict[str, Artifact], narrow: Any) -> None:
    x = images(5)
    with open_session(narrow.path, threads=1) as session:
        expected = session.run(x)
    spread = float(np.abs(expected).max())
    bounds = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.2}
    for precision, artifact in artifacts.items():
        with open_session(artifact.path, threads=1) as session:
            assert isinstance(session, OpenVINOSession)
            y = session.run(x)
            assert (y.dtype, y.shape) == (np.float32, expected.shape)
            np.testing.assert_allclose(y, expected, atol=bounds[precision] * spread, rtol=0)
            one_by_one = np.concatenate([session.run(x[index : index + 1]) for index in range(5)])
            np.testing.assert_allclose(one_by_one, y, atol=1e-5 * spread, rtol=0)


def test_memory_is_shared_and_answers_are_the_callers_own(artifacts: dict[str, Artifact]) -> None:
    first, second = images(2), images(2, seed=1)
    with open_session(artifacts["fp32"].path, threads=1) as session:
        expected = session.run(second)
        session.prepare(first)
        session.enqueue()
        kept = session.fetch()
        before = kept.copy()
        first[:] = second  # what was prepared is read where it lies
        session.enqueue()
        np.testing.assert_array_equal(session.fetch(), expected)
        np.testing.assert_array_equal(kept, before)
        session.prepare(second[:, :, ::-1, ::-1])  # neither contiguous
        session.enqueue()
        session.prepare(np.frombuffer(first.tobytes(), np.float32).reshape(first.shape))  # nor writable
        session.enqueue()
        np.testing.assert_array_equal(session.fetch(), expected)


def test_details_are_what_the_runtime_answers(artifacts: dict[str, Artifact]) -> None:
    import openvino

    with open_session(artifacts[PRECISIONS[-1]].path, threads=1) as session:
        details = session.details()
    assert details["version"] == openvino.__version__.split("-")[0]
    assert {key: details[key] for key in ("runtime", "device", "threads", "streams", "pinned")} == {
        "runtime": "openvino",
        "device": "cpu",
        "threads": 1,
        "streams": 1,
        "pinned": False,
    }
    assert details["inference_precision"] == "f32"
    assert details["device_name"]
    json.dumps(details, allow_nan=False)


def test_another_type_than_the_pinned_one_is_refused(
    artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a plugin computes in BF16 whatever it was asked for."""
    monkeypatch.setattr(
        OpenVINOSession, "_property", lambda self, name: "bf16" if name == "INFERENCE_PRECISION_HINT" else 1
    )
    with pytest.raises(MissingComponentError, match="OpenVINO computes in bf16 here, where f32 was asked for"):
        open_session(artifacts["fp32"].path).__enter__()


@each_precision
def test_every_batch_is_computed_as_it_was_proved(artifacts: dict[str, Artifact], precision: str) -> None:
    """The file's batch is free, and what the plugin makes of it for one batch is not what it makes for another."""
    stored = {layer.name: layer.requested for layer in artifacts[precision].manifest.layers}
    inputs = images(7)
    with open_session(artifacts[precision].path, threads=1) as session:
        assert isinstance(session, OpenVINOSession)
        whole = session.run(inputs)
        for batch in (1, 2, 7, 3, 1):
            found = session.run(inputs[:batch])
            np.testing.assert_allclose(found, whole[:batch], rtol=0, atol=1e-4 * np.abs(whole).max())
            layers = writer.layer_precisions(sessions.executed_nodes(session._compiled), stored, layer_types(precision))
            wanted = "fp32" if precision == "fp16" else precision
            assert {layer.name: layer.built for layer in layers} == dict.fromkeys(LAYER_NAMES, wanted), batch


def test_another_batch_comes_from_the_weights_that_were_loaded(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    """Also when another export has taken the file's place meanwhile."""
    for suffix in (".xml", ".bin", ".xml.json"):
        shutil.copy(artifacts["fp32"].path.with_suffix(suffix), tmp_path / f"a{suffix}")
    with open_session(artifacts["fp32"].path, threads=1) as session:
        wanted = session.run(images(3))
    with open_session(tmp_path / "a.xml", threads=1) as session:
        for suffix in (".xml", ".bin"):
            (tmp_path / f"new{suffix}").write_bytes(b"another network")
            (tmp_path / f"new{suffix}").replace(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(session.run(images(3)), wanted)


@each_precision
def test_node_times(artifacts: dict[str, Artifact], precision: str) -> None:
    with open_session(artifacts[precision].path, threads=1) as session:
        before = session.run(images(2))
        nodes = session.node_times(images(2), runs=3)
        np.testing.assert_array_equal(session.run(images(2)), before)
    assert nodes is not None
    own = {name: [node for node in nodes if node.name.split(" + ")[0] == name] for name in LAYER_NAMES}
    for name, found in own.items():
        assert len(found) == 1, name
        assert re.search(r"conv|fullyconnected|matmul", found[0].kind, re.IGNORECASE)
        assert found[0].kind.endswith("(i8)" if precision == "int8" else "(f32)")
    assert sum(node.ns for node in nodes) > 0
    assert all(node.ns >= 0 for node in nodes)
    assert any(node.kind.startswith("LRN") for node in nodes)
    assert [name for node in nodes for name in LAYER_NAMES if node is own[name][0]] == list(LAYER_NAMES), "in order"


@pytest.mark.parametrize(
    ("machine", "features", "wrong"),
    [
        ("x86_64", ["avx2", "avx512f"], True),
        ("AMD64", [], True),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("x86_64", ["avx512f", "avx512_vnni"], False),
        ("aarch64", ["asimddp"], False),
    ],
)
def test_a_processor_whose_int8_sums_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, features: list[str], wrong: bool
) -> None:
    int8, fp32 = written(tmp_path, name="int8.xml"), written(tmp_path, name="fp32.xml", precision="fp32")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(sessions, "cpu_features", lambda: features)
    assert (runnable(int8) is not None) == wrong
    assert runnable(fp32) is None
    if wrong:
        with pytest.raises(ArtifactError, match=r"no VNNI instructions.*int8\.xml; run the FP32 one"):
            open_session(int8.path)
        with pytest.raises(MissingComponentError, match="no VNNI instructions"):
            writer.write_openvino(Path("graph.onnx"), Path("a.xml"), "int8", source_sha256="")


def test_another_device(artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(
        UserError, match="an OpenVINO file runs on the processor only: --device cuda; leave --device out"
    ):
        open_session(artifacts["fp32"].path, device="cuda")
    with pytest.raises(UserError, match="threads must be 1 or more"):
        open_session(artifacts["fp32"].path, threads=0)


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        (lambda text: text.replace('version="11"', 'version="99"', 1), None, r"\(.*not an IR of a version that it reads"),
        (lambda text: text[:5000], None, r"\(.*Error parsing"),
        (str, 1000, r"\(.*weights"),
        (lambda text: text.replace('names="input"', 'names="image"'), None,
         r"the file's input is image float32 Nx3x227x227, its manifest says input float32 Nx3x227x227: "),
    ],
    ids=["newer IR", "cut graph", "cut weights", "other input"],
)  # fmt: skip
def test_files_that_their_checksums_hold_for(
    copied: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
    change: Callable[[str], str],
    weights: int | None,
    message: str,
) -> None:
    """Changed behind the manifest's back, with a manifest that has their checksums."""
    path = copied("fp32")
    manifest = load_artifact(path).manifest
    staged = path.with_name("staged.xml")
    staged.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    staged.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:weights])
    commit(staged, path, manifest)
    with pytest.raises(ArtifactError) as error, open_session(path):
        pass
    line = str(error.value)
    assert re.match(message.replace(r"\(", r"OpenVINO \S+ cannot load the file \("), line)
    assert "Exception" not in line, "places in its source are of no use to the reader"
    assert "\n" not in line
    assert re.search("export( it)? again", line)
    assert capfd.readouterr() == ("", ""), "nothing is printed by readers of other formats"


def test_the_version_that_wrote_it_is_named(copied: Callable[[str], Path]) -> None:
    path = copied("fp32")
    manifest = replace(load_artifact(path).manifest, environment={"versions": {"openvino": "2031.1.0"}})
    staged = path.with_name("staged.xml")
    staged.write_text("<net/>", encoding="utf-8")
    shutil.copy(path.with_suffix(".bin"), staged.with_suffix(".bin"))
    commit(staged, path, manifest)
    with pytest.raises(
        ArtifactError, match=r"or install the OpenVINO that wrote it: pip install openvino==2031\.1\.0$"
    ):
        open_session(path).__enter__()


def test_a_killed_export_leaves_the_old_set_or_the_new(
    narrow: Any, artifacts: dict[str, Artifact], copied: Callable[[str], Path], image_folder: Path, tmp_path: Path
) -> None:
    path = copied(PRECISIONS[-1])
    old = load_artifact(path).manifest
    code = (
        "import sys; from pathlib import Path; from alexnet_edge.network.load import load_checkpoint\n"
        "from alexnet_edge.images.datasets import open_images; from alexnet_edge.export.exporter import Exporter\n"
        "from alexnet_edge.export.settings import ExportSettings\n"
        "settings = ExportSettings(out=Path(sys.argv[2]), cache=Path(sys.argv[4]))\n"
        "made = Exporter(load_checkpoint(Path(sys.argv[1])), settings,\n"
        "    proof_images=open_images(sys.argv[3] + '/val'), calibration_images=open_images(sys.argv[3] + '/train'))\n"
        "print('begins', flush=True)\n"
        "made.export('openvino', sys.argv[5])\n"
    )
    command = [sys.executable, "-c", code, str(narrow.path), str(path.parent), str(image_folder), str(tmp_path / "c")]
    command.append(PRECISIONS[-1])
    seed = random.randrange(10**6)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    time.sleep(random.Random(seed).uniform(0.5, 4))
    process.kill()
    process.communicate()
    found = load_artifact(path).manifest
    assert found.companion is not None
    assert found.checkpoint_sha256 == old.checkpoint_sha256, f"seed {seed}"
    with open_session(path, threads=1) as session:
        assert np.isfinite(session.run(images(1))).all()


INTERRUPTED = """
import faulthandler, signal, sys
from pathlib import Path
from alexnet_edge.sessions import open_session
faulthandler.enable()  # gives the thread a stack for signals, as pytest and `python -X faulthandler` do
for _ in range(2):
    first, second = (open_session(Path(sys.argv[1]), threads=1).__enter__() for _ in range(2))
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    del first, second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_sessions_that_overlapped(artifacts: dict[str, Artifact]) -> None:
    result = run_python(INTERRUPTED, artifacts["fp32"].path)
    assert (result.returncode, result.stdout) == (0, "interrupted\n"), result.stderr
