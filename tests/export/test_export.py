"""An export: every artifact proved and described, and nothing half-done left behind by a failure."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from alexnet_edge.artifact import Format, Precision, load_artifact, manifest_path
from alexnet_edge.errors import MissingComponentError, OutputError, ParityError, PrecisionError, UserError
from alexnet_edge.export import exporter as build
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.exporter import Exporter, require_outcomes
from alexnet_edge.export.graphs import onnx as writer
from alexnet_edge.export.selection import EVERYDAY, every_artifact
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import sha256_file
from alexnet_edge.images.datasets import ImageSet, open_images
from alexnet_edge.network.checkpoint import Checkpoint, save_checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof.recorded import random_images
from alexnet_edge.sessions.openvino import int8_overflows

MakeCheckpoint = Callable[..., Path]
Exported = dict[tuple[str, str], Path]

HAVE_RTX = importlib.util.find_spec("tensorrt_rtx") is not None
needs_rtx = pytest.mark.skipif(not HAVE_RTX, reason="tensorrt_rtx is not installed: no engine can be built here")


@pytest.fixture(scope="module")
def proof(image_folder: Path) -> ImageSet:
    return open_images(image_folder / "val", limit=4)


@pytest.fixture(scope="module")
def reference_NK(checkpoint: Checkpoint, proof: ImageSet) -> np.ndarray:
    return Exporter(checkpoint, ExportSettings(out=Path()), proof_images=proof).prover.reference_NK()


@pytest.fixture
def exporter(checkpoint: Checkpoint, proof: ImageSet, reference_NK: np.ndarray, tmp_path: Path) -> Exporter:
    """Writes into `tmp_path/artifacts`; the checkpoint's answers are known already."""
    return Exporter(
        checkpoint,
        ExportSettings(out=tmp_path / "artifacts", cache=tmp_path / "cache"),
        proof_images=proof,
        reference_NK=reference_NK,
    )


def files_of(path: Path) -> list[Path]:
    """The files of an artifact but for its manifest."""
    return [part for part in (path, load_artifact(path).companion) if part is not None]


def content(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_every_artifact_is_described_and_proved(exported: Exported, tiny_checkpoint: MakeCheckpoint) -> None:
    expected = {entry for entry in every_artifact() if entry[0] != "trt" or HAVE_RTX}
    expected -= {("openvino", "int8")} if int8_overflows() is not None else set()
    assert set(exported) == expected
    source = tiny_checkpoint()
    for (format, precision), path in exported.items():
        manifest = load_artifact(path).manifest
        assert (manifest.format, manifest.precision) == (format, precision)
        assert path.stem.startswith(f"alexnet_{precision}")
        assert manifest.sha256 == sha256_file(path)
        assert manifest.bytes == sum(part.stat().st_size for part in files_of(path))
        assert manifest.checkpoint == str(source)
        assert manifest.checkpoint_sha256 == sha256_file(source)
        assert [layer.name for layer in manifest.layers] == list(LAYER_NAMES)
        computed = "fp32" if (format, precision) == ("openvino", "fp16") else precision
        assert {(layer.requested, layer.built) for layer in manifest.layers} == {(precision, computed)}
        assert manifest.build_seconds > 0
        assert manifest.environment["versions"]["python"]
        assert (manifest.calibration is not None) == (precision == "int8")
        parity = manifest.parity
        if format == "trt":
            assert parity["verdict"] == "not run"
            assert "not run" in parity["reasons"][0]
            assert parity["stand_in"]["verdict"] == "passed"
            assert parity["stand_in"]["figures"]["num_images"] == 12
        else:
            assert parity["verdict"] == "passed"
            assert parity["reasons"] == []
            assert parity["figures"]["num_images"] == 12
            assert parity["images"]["count"] == 12
    folders = {path.parent for path in exported.values()}
    assert len(folders) == 1
    names = {entry.name for entry in folders.pop().iterdir()}
    parts = {part.name for path in exported.values() for part in files_of(path)}
    assert names == parts | {f"{path.name}.json" for path in exported.values()}


def test_int8_records_its_calibration(exported: Exported, image_folder: Path) -> None:
    recorded = load_artifact(exported["onnx", "int8"]).manifest.calibration
    assert recorded is not None
    assert recorded["method"] == "entropy"
    assert recorded["num_images"] == 24
    assert recorded["source"]["path"] == str(image_folder / "train")
    assert set(recorded["amax"]) == set(recorded["saturated"]) == set(LAYER_NAMES)
    graph = onnx.load(str(exported["onnx", "int8"])).graph
    scales = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    for name, amax in recorded["amax"].items():
        assert float(scales[f"{name}/input_scale"]) == pytest.approx(amax / 127, rel=1e-6)


@needs_rtx
def test_an_engine_names_the_graph_it_was_built_from(exported: Exported) -> None:
    for precision in EVERYDAY:
        manifest = load_artifact(exported["trt", precision]).manifest
        assert manifest.runtime == "tensorrt-rtx"
        assert manifest.sources == {f"alexnet_{precision}.onnx": sha256_file(exported["onnx", precision])}
        assert (manifest.input.min_batch, manifest.input.max_batch) == (1, 16)
        assert manifest.build["compute_capabilities"] == []  # a portable engine
        assert manifest.build["version"]


@needs_rtx
def test_an_engine_for_chosen_gpus(exporter: Exporter) -> None:
    """Without an ONNX export before it: its own graph is proved."""
    options = EngineOptions(min_batch=2, opt_batch=3, max_batch=4, compute_capability=("sm86", "sm89"))
    exporter.settings = replace(exporter.settings, engine=options)
    manifest = exporter.export("trt", "fp16").manifest
    assert manifest.build["compute_capabilities"] == ["sm86", "sm89"]
    assert (manifest.input.min_batch, manifest.input.max_batch) == (2, 4)
    assert manifest.parity["stand_in"]["verdict"] == "passed"
    assert content(exporter.settings.out).keys() == {"alexnet_fp16_rtx.engine", "alexnet_fp16_rtx.engine.json"}


@needs_rtx
def test_a_gpu_that_it_does_not_build_for(exporter: Exporter) -> None:
    exporter.settings = replace(exporter.settings, engine=EngineOptions(compute_capability=("sm87",)))
    with pytest.raises(UserError, match=r"does not build for this GPU architecture.*choose from sm75, sm80, sm86"):
        exporter.export("trt", "fp16")
    assert not exporter.settings.out.exists(), "refused before any work"


def test_random_calibration_is_recorded(exporter: Exporter, checkpoint: Checkpoint, proof: ImageSet) -> None:
    settings = replace(exporter.settings, method="minmax")
    exporter = Exporter(checkpoint, settings, proof_images=proof, calibration_images=random_images(2))
    assert exporter.quantiser.calibration().to_json()["source"] == {"kind": "random", "count": 2}
    recorded = exporter.quantiser.record("onnx", "int8", proof)
    assert recorded is not None
    assert recorded["source"] == {"kind": "random", "count": 2}
    assert recorded["num_images"] == 2


def test_images_that_cannot_be_read_are_left_out_of_the_proof(
    checkpoint: Checkpoint, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, path in enumerate(sorted((image_folder / "val").glob("*/*.jpg"))[:3]):
        (folder / f"{index}.jpg").write_bytes(path.read_bytes())
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:300])
    made = Exporter(checkpoint, ExportSettings(out=tmp_path, on_bad_image="skip"), proof_images=open_images(folder))
    assert len(made.prover.reference_NK()) == len(made.prover.images) == 2


@pytest.mark.parametrize(("format", "precision"), [("torchscript", "fp16"), ("pt2", "int8"), ("torchscript", "int8")])
def test_a_precision_that_the_format_has_not(exporter: Exporter, format: Format, precision: Precision) -> None:
    with pytest.raises(UserError, match=f"{format} is written in fp32 only: {precision}; choose --format onnx or "):
        exporter.export(format, precision)
    assert not exporter.settings.out.exists()


def test_a_wrong_graph_is_kept_aside(
    exporter: Exporter, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exporter.export("onnx", "fp16")
    before = content(exporter.settings.out)
    weights = {**checkpoint.weights, "fc8.weight": -checkpoint.weights["fc8.weight"]}
    wrong = replace(checkpoint, weights=weights)
    original = writer.onnx_from_checkpoint
    monkeypatch.setattr(writer, "onnx_from_checkpoint", lambda _, **options: original(wrong, **options))
    with pytest.raises(ParityError, match=r"onnx fp16 does not answer like the checkpoint: top-1 agreement") as error:
        exporter.export("onnx", "fp16")
    assert error.value.exit_code == 1
    kept = exporter.settings.out / "alexnet_fp16.failed.onnx"
    assert str(kept) in str(error.value)
    assert load_artifact(kept).manifest.parity["verdict"] == "failed"
    after = content(exporter.settings.out)
    assert {name: digest for name, digest in after.items() if "failed" not in name} == before
    assert after.keys() - before.keys() == {kept.name, f"{kept.name}.json"}
    assert load_artifact(right.path).manifest.sha256 == right.manifest.sha256


@needs_rtx
def test_an_engine_of_a_wrong_graph_is_kept_aside(
    exporter: Exporter, reference_NK: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter.prover, "expected_NK", reference_NK[:, ::-1].copy())
    (outcome,) = exporter.export_all([("trt", "fp16")])
    assert isinstance(outcome.error, ParityError)
    assert outcome.artifact is None
    assert content(exporter.settings.out).keys() == {
        "alexnet_fp16_rtx.failed.engine",
        "alexnet_fp16_rtx.failed.engine.json",
    }
    with pytest.raises(ParityError):
        require_outcomes([outcome], everything=True)


def test_a_layer_in_another_precision_leaves_nothing(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is made to ignore the request, as a published exporter did."""
    original = writer.onnx_from_checkpoint
    monkeypatch.setattr(writer, "onnx_from_checkpoint", lambda checkpoint, **options: original(checkpoint))
    with pytest.raises(PrecisionError, match="onnx fp16: conv1 is fp32, not fp16"):
        exporter.export("onnx", "fp16")
    assert content(exporter.settings.out) == {}


def test_one_failure_does_not_stop_the_others(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = MissingComponentError("torch is not installed", fix="run: pip")
    monkeypatch.setattr(build, "unavailable", lambda format, *_, **__: missing if format == "pt2" else None)
    first, second = exporter.export_all([("pt2", "fp32"), ("onnx", "fp16")])
    assert first.error is missing
    nothing = {"file": None, "error": str(missing), "manifest": None}
    assert json.loads(json.dumps(first.to_json())) == {"format": "pt2", "precision": "fp32", **nothing}
    assert second.artifact is not None
    assert second.to_json()["manifest"]["sha256"] == second.artifact.manifest.sha256
    require_outcomes([first, second], everything=True)
    for everything, outcomes in ((False, [first, second]), (True, [first])):
        with pytest.raises(MissingComponentError):
            require_outcomes(outcomes, everything=everything)


def test_a_folder_that_cannot_be_made(exporter: Exporter, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    exporter.settings = replace(exporter.settings, out=tmp_path / "file" / "artifacts")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        exporter.export("onnx", "fp32")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_artifact_s_place(exporter: Exporter) -> None:
    exporter.path("onnx", "fp16").mkdir(parents=True)
    with pytest.raises(OutputError, match="the path is a folder, not a file"):
        exporter.export("onnx", "fp16")
    assert not list(exporter.settings.out.glob(".*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(megabytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount command: a full disk cannot be made here")
        if done.returncode:
            pytest.skip("mounting needs root: a full disk cannot be made here")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def large(tiny_checkpoint: MakeCheckpoint, proof: ImageSet, tmp_path: Path) -> Exporter:
    """Of the full-size network, whose files fill a disk."""
    checkpoint = load_checkpoint(tiny_checkpoint("two-tower"))
    return Exporter(
        checkpoint, ExportSettings(out=tmp_path / "artifacts", cache=tmp_path / "cache"), proof_images=proof
    )


def test_a_full_disk_is_refused_before_the_work(large: Exporter, small_disk: Callable[[int], Path]) -> None:
    large.settings = replace(large.settings, out=small_disk(160))
    artifact = large.export("onnx", "fp16")
    before = content(large.settings.out)
    with pytest.raises(OutputError, match=r"onnx fp16 takes \d+ MB and \d+ MB are free: .*; free some space"):
        large.export("onnx", "fp16")
    assert content(large.settings.out) == before
    assert load_artifact(artifact.path).manifest.sha256 == artifact.manifest.sha256


@pytest.mark.parametrize("format", ["torchscript", "pt2", "onnx"])
def test_a_disk_that_fills_up_during_the_work(
    large: Exporter, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, format: Format
) -> None:
    """Somebody else took the space after it was looked at."""
    monkeypatch.setattr(Exporter, "_need_space", lambda self, *_: None)
    large.settings = replace(large.settings, out=small_disk(60))
    with pytest.raises(OutputError, match=r"cannot write, .*; .*choose another output folder"):
        large.export(format, "fp32")
    assert content(large.settings.out) == {}


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from alexnet_edge.artifact import load_artifact
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.images.datasets import open_images
from alexnet_edge.export.graphs import onnx
from alexnet_edge.export import precision
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.sessions import torch as _
import onnxruntime

out, images, seed, *sources = sys.argv[1:]
rng = random.Random(int(seed))
exporters = []
for source in sources:
    settings = ExportSettings(out=Path(out), threads=1)
    exporter = Exporter(load_checkpoint(Path(source)), settings, proof_images=open_images(images, limit=1))
    exporters.append(exporter)
target = load_artifact(Path(out) / "alexnet_fp16.onnx").path
exporters[1].export("onnx", "fp16")
start = time.perf_counter()
exporters[0].export("onnx", "fp16")
seconds = time.perf_counter() - start
for turn in range(8):
    child = os.fork()
    if child == 0:
        exporters[(turn + 1) % 2].export("onnx", "fp16")
        os._exit(0)
    time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(load_artifact(target).manifest.checkpoint, os.WIFSIGNALED(status), flush=True)
"""


@pytest.mark.slow
def test_a_killed_export_leaves_the_old_artifact_or_the_new(
    exporter: Exporter, checkpoint: Checkpoint, image_folder: Path, tmp_path: Path
) -> None:
    """Two checkpoints are exported over each other and killed at random moments; each time a whole artifact is there."""
    exporter.export("onnx", "fp16")
    other = tmp_path / "other.safetensors"
    bias = checkpoint.weights["fc8.bias"] + np.float32(1)
    save_checkpoint(other, {**checkpoint.weights, "fc8.bias": bias}, checkpoint.info)
    seed = random.randrange(10**6)
    sources = [str(checkpoint.path), str(other)]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(exporter.settings.out), str(image_folder / "val"), str(seed), *sources],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, f"seed {seed}: {run.stderr}"
    turns = [line.rsplit(" ", 1) for line in run.stdout.splitlines()]
    assert len(turns) == 8
    assert {name for name, _ in turns} <= set(sources)
    assert "True" in {killed for _, killed in turns}, f"seed {seed}: no export was killed before its end"
    artifact = load_artifact(exporter.path("onnx", "fp16"))
    assert manifest_path(artifact.path).is_file()
    exporter.export("onnx", "fp16")
    assert not list(exporter.settings.out.glob(".staging-*")), "what killed exports left is removed by the next one"
