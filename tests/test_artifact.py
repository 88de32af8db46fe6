"""An artifact and its manifest: loaded as a whole pair or refused in one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import MANIFEST

from alexnet_edge import records
from alexnet_edge.artifact import Manifest, commit, decode_manifest, load_artifact, manifest_path
from alexnet_edge.errors import ArtifactError, OutputError
from alexnet_edge.files import sha256_file
from alexnet_edge.sessions.open import open_artifact


def exported(
    folder: Path, content: bytes = b"the network", name: str = "a.onnx", manifest: Manifest = MANIFEST
) -> Path:
    temporary = folder / f".{name}.tmp"
    temporary.write_bytes(content)
    return commit(temporary, folder / name, manifest).path


def refused(path: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        load_artifact(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    assert "; " in text
    assert error.value.exit_code == 2
    return text


def refused_with(folder: Path, **change: Any) -> str:
    """With fields of its manifest changed, or removed where they are `...`."""
    path = exported(folder)
    value = {**json.loads(manifest_path(path).read_text(encoding="utf-8")), **change}
    value = {name: entry for name, entry in value.items() if entry is not ...}
    manifest_path(path).write_text(json.dumps(value), encoding="utf-8")
    return refused(path)


def test_round_trip(tmp_path: Path) -> None:
    temporary, path = tmp_path / "elsewhere.tmp", tmp_path / "a.onnx"
    temporary.write_bytes(b"the network")
    written = commit(temporary, path, MANIFEST)
    loaded = load_artifact(path)
    assert loaded == written
    assert loaded.manifest == replace(MANIFEST, sha256=sha256_file(path), bytes=len(b"the network"))
    assert loaded.label == "onnx int8"
    trusted = replace(loaded, manifest=replace(MANIFEST, format="trt", build={"trusted": True}))
    assert trusted.label == "trt of unknown precision"
    assert path.read_bytes() == b"the network"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "a.onnx.json"]


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    value = json.loads(manifest_path(exported(tmp_path)).read_text(encoding="utf-8"))
    assert value["schema"] == 1
    assert value["classes"] == ["daisy", "Löwenzahn"]
    assert value["input"]["shape"] == [3, 227, 227]
    assert json.loads(json.dumps(records.to_builtins(decode_manifest(json.dumps(value))))) == value


def test_layer_precision_holds() -> None:
    layer = MANIFEST.layers[0]
    assert [replace(layer, built=built).holds for built in ("int8", "fp32", "unknown")] == [True, False, False]


@pytest.mark.parametrize(
    "content", [b"uhe network", b"the nduwork", b"the networj", b"", b"t", b"the networ", b"the network "]
)
def test_bytes_that_are_not_those_of_the_manifest(tmp_path: Path, content: bytes) -> None:
    path = exported(tmp_path)
    path.write_bytes(content)
    line = refused(path)
    assert "does not match its manifest" in line
    assert line.endswith("copy it again, or export it again")


def test_missing(tmp_path: Path) -> None:
    assert "no such artifact" in refused(tmp_path / "none.onnx")
    assert "no such artifact" in refused(tmp_path)
    path = exported(tmp_path)
    manifest_path(path).unlink()
    assert "has no manifest (a.onnx.json)" in refused(path)


def test_trust_does_not_replace_a_manifest(tmp_path: Path) -> None:
    """Only an engine may come without one, and a manifest that is there is held against the file."""
    path = exported(tmp_path, name="a.engine", manifest=replace(MANIFEST, format="trt", runtime="tensorrt"))
    assert open_artifact(path, trust=True) == load_artifact(path)
    path.write_bytes(b"another network")
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        open_artifact(path, trust=True)
    manifest_path(path).write_text("{")
    with pytest.raises(ArtifactError, match="the manifest is damaged"):
        open_artifact(path, trust=True)
    manifest_path(path).unlink()
    assert "the engine has no manifest (a.engine.json), and loading one may run code that it carries" in refused(path)
    other = exported(tmp_path)
    manifest_path(other).unlink()
    with pytest.raises(ArtifactError, match="the artifact has no manifest"):
        open_artifact(other, trust=True)


@pytest.mark.parametrize("first", [False, True])
def test_killed_between_the_two_renames(tmp_path: Path, first: bool) -> None:
    """The new file is there, its manifest still under the waiting name: the pair is recognised and completed."""
    if not first:
        exported(tmp_path, b"old")
    path, newer = tmp_path / "a.onnx", exported(tmp_path, b"new", "newer.onnx")
    newer.replace(path)
    manifest_path(newer).rename(tmp_path / "a.onnx.json.next")
    assert load_artifact(path).manifest.bytes == 3
    assert json.loads(manifest_path(path).read_text(encoding="utf-8"))["sha256"] == sha256_file(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.onnx", "a.onnx.json"]
    assert load_artifact(path).path.read_bytes() == b"new"


def test_killed_before_the_first_rename(tmp_path: Path) -> None:
    """The old file with the next one's manifest beside it: the old pair stands."""
    path = exported(tmp_path, b"old")
    newer = exported(tmp_path, b"newer", "newer.onnx")
    manifest_path(newer).rename(tmp_path / "a.onnx.json.next")
    assert load_artifact(path).manifest.bytes == 3
    newest = exported(tmp_path, b"newest")
    assert load_artifact(newest).manifest.bytes == 6
    assert not (tmp_path / "a.onnx.json.next").exists()


WRITER = """
import sys
from pathlib import Path
from alexnet_edge.artifact import Manifest, commit, load_artifact

folder, start = Path(sys.argv[1]), int(sys.argv[2])
manifest = load_artifact(folder / "a.onnx").manifest
print("started", flush=True)
for value in range(start, start + 1_000_000):
    temporary = folder / ".writer.tmp"
    temporary.write_bytes(f"{value:08d}".encode() * 100_000)
    commit(temporary, folder / "a.onnx", manifest)
"""


def test_killed_writer_leaves_a_pair(tmp_path: Path) -> None:
    """Killed at any moment, and read while it is written: always one whole pair."""
    path = exported(tmp_path)
    pauses = random.Random(1)
    seen = set()
    for attempt in range(8):
        command = [sys.executable, "-c", WRITER, tmp_path, str(attempt * 1_000_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"started\n"
                until = time.monotonic() + pauses.uniform(0.05, 0.2)
                while time.monotonic() < until:
                    seen.add(load_artifact(path).manifest.sha256)
            finally:
                writer.kill()
        artifact = load_artifact(path)
        assert artifact.manifest.sha256 == sha256_file(path)
        content = path.read_bytes()
        assert content == content[:8] * 100_000
    assert len(seen) > 2, "the reader never met a change: nothing was shown"


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    path = exported(tmp_path)
    texts = (b"", b"null", b"[]", b"5", b'"text"', b"{}", b"{", b'{"schema": 1}', b'{"schema": 1e999}')
    for content in (*texts, b"[" * 100_000, b"\xff\xfe\x00", b"\0" * 100):
        manifest_path(path).write_bytes(content)
        assert "the manifest is damaged" in refused(path)
    manifest_path(path).unlink()
    manifest_path(path).mkdir()
    assert "the manifest is damaged" in refused(path)


INPUT = {"name": "input", "dtype": "float32", "shape": [3, 227, 227], "min_batch": 1, "max_batch": 16}
PIXELS = {"resize": 256, "crop": 227, "mean": [0, 0, 0], "std": [1, 1, 1]}
LAYER = {"name": "conv1", "requested": "int8", "built": "int8", "evidence": ""}


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"format": "exe"},
        {"format": ["onnx"]},
        {"precision": "int3"},
        {"precision": []},
        {"head": "tail"},
        {"classes": None},
        {"classes": 5},
        {"sha256": 5},
        {"sha256": None},
        {"runtime": 5},
        {"architecture": {}},
        {"preprocessing": {}},
        {"preprocessing": {**PIXELS, "resize": 1e999}},
        {"preprocessing": {**PIXELS, "mean": "abc"}},
        {"input": None},
        {"input": {**INPUT, "dtype": "object"}},
        {"input": {**INPUT, "shape": 5}},
        {"input": {**INPUT, "shape": [3, "x"]}},
        {"output": {"name": "logits", "dtype": "float32", "shape": [2], "min_batch": None, "max_batch": None}},
        {"layers": 5},
        {"layers": [{"name": "conv1"}]},
        {"layers": [{"nonsense": 1}]},
        {"layers": [5]},
        {"build": 5},
        {"environment": []},
        {"parity": None},
    ],
)
def test_hostile_manifest_field(tmp_path: Path, change: dict[str, Any]) -> None:
    assert "the manifest is damaged" in refused_with(tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"classes": ["a", "b", "c"]}, "classes: expected 2 names, got 3"),
        ({"classes": ["a", 5]}, "classes[1]: expected str, got int"),
        ({"bytes": 5.5}, "bytes: expected int, got float"),
        ({"bytes": -1}, "bytes: expected int >= 0"),
        ({"more": 1}, "more: unknown, expected one of schema, format"),
        ({"head": "probabilities"}, "head: expected logits of two-tower, got probabilities"),
        ({"input": {**INPUT, "shape": [3, 224, 224]}}, "input.shape: expected [3, 227, 227], got [3, 224, 224]"),
        ({"input": {**INPUT, "min_batch": 1e308}}, "input.min_batch: expected int, got float"),
        ({"input": {**INPUT, "min_batch": 17}}, "input.max_batch: expected 17 or more, got 16"),
        ({"input": {**INPUT, "names": "x"}}, "input.names: unknown, expected one of name, dtype"),
        ({"layers": [LAYER, {**LAYER, "name": "conv9"}]}, "layers[1].name: expected each of conv1, conv2"),
        ({"layers": [LAYER, LAYER]}, "layers[1].name: expected each of conv1, conv2"),
        ({"layers": [{**LAYER, "built": 8}]}, "layers[0].built: expected str, got int"),
        ({"layers": [{**LAYER, "requested": "int3"}]}, "layers[0].requested: expected one of fp32, fp16"),
        ({"build": {"target": "cpu"}}, "build.target: expected object, got str"),
        ({"build": {"target": {"name": "cpu"}}}, "build.target.machines: missing"),
        (
            {"preprocessing": {**PIXELS, "std": [1, -1, 1]}},
            "preprocessing: mean and std must be finite, and std above 0",
        ),
        (
            {"preprocessing": {**PIXELS, "crop": 30}, "input": {**INPUT, "shape": [3, 30, 30]}},
            "preprocessing.crop: 30 pixels leave 0 values before fc6 of two-tower, which takes 9216",
        ),
        *(({name: ...}, f"{name}: missing)") for name in sorted({*Manifest.__dataclass_fields__} - {"companion"})),
    ],
)
def test_a_manifest_that_lies_is_refused_with_the_path(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    assert f"the manifest is damaged ({line}" in refused_with(tmp_path, **change)


def test_reading_a_manifest_of_1000_classes_takes_less_than_a_millisecond() -> None:
    value = records.to_builtins(MANIFEST)
    value["classes"] = [f"class {index}" for index in range(1000)]
    value["output"]["shape"] = [1000]
    text = json.dumps(value).encode()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        decode_manifest(text)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    temporary = tmp_path / "finished.tmp"
    temporary.write_bytes(b"network")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        commit(temporary, tmp_path / "file" / "a.onnx", MANIFEST)
    with pytest.raises(OutputError, match="cannot write"):
        commit(tmp_path / "not there", tmp_path / "a.onnx", MANIFEST)
