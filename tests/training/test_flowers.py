"""A real network: trained filters, freshly trained fc6 to fc8, on real photographs of five kinds of flowers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_device import LoopbackDevice

from alexnet_edge.artifact import Format, Precision, layer_types, load_artifact
from alexnet_edge.export.exporter import Exporter, Outcome
from alexnet_edge.export.selection import PRECISIONS, every_artifact
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import open_images, reopen
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof.evaluate import evaluate
from alexnet_edge.proof.recorded import validation_images
from alexnet_edge.sessions import open_session
from alexnet_edge.training.history import TrainResult
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.run import train

pytestmark = pytest.mark.slow

Outcomes = dict[tuple[Format, Precision], Outcome]


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    start = {"data": str(data_root / "flowers"), "init": str(data_root / "bvlc_alexnet_conv_filters.npz")}
    runs = str(tmp_path_factory.mktemp("runs"))
    return train(TrainSettings(**start, arch="two-tower", recipe="frozen", views=1, epochs=5, runs=runs))


@pytest.fixture(scope="module")
def checkpoint(run: TrainResult) -> Checkpoint:
    return load_checkpoint(run.checkpoint)


def test_accuracy_and_filters(run: TrainResult, checkpoint: Checkpoint, data_root: Path) -> None:
    assert run.best.top1 >= 0.82
    assert run.history[-1].loss < run.history[0].loss
    assert run.skipped == ()
    assert checkpoint.info.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert checkpoint.info.preprocessing == preset("caffe-227")
    with np.load(data_root / "bvlc_alexnet_conv_filters.npz") as filters:
        for name in ("conv2", "conv3", "conv4", "conv5"):
            assert np.array_equal(checkpoint.weights[f"{name}.weight"], filters[name])


def test_evaluation_from_the_files_gives_the_same_accuracy(checkpoint: Checkpoint, data_root: Path) -> None:
    with open_session(checkpoint.path) as session:
        result = evaluate(session, reopen(checkpoint.info.data["val"]["source"]), workers=2)
        by_folder = evaluate(session, open_images(data_root / "flowers/val", limit=50, classes=session.classes))
    assert result.count == 325
    assert result.top1 == checkpoint.info.metrics["top1"]
    assert result.loss == pytest.approx(checkpoint.info.metrics["val_loss"], rel=1e-3)
    assert [entry.count for entry in result.classes] == [65] * 5
    assert min(entry.top1 for entry in result.classes) > 0.6
    assert by_folder.top1 > 0.7


@pytest.fixture(scope="module")
def outcomes(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    exporter = Exporter(
        checkpoint,
        ExportSettings(out=tmp_path_factory.mktemp("artifacts"), cache=tmp_path_factory.mktemp("cache")),
        proof_images=validation_images(checkpoint),
    )
    further: list[tuple[Format, Precision]] = [("onnx", "fp8"), ("onnx", "int4-fc")]
    further += [("trt", precision) for precision in ("bf16", "fp8", "int4-fc")]
    outcomes = exporter.export_all([*every_artifact(), *further])
    return {(outcome.format, outcome.precision): outcome for outcome in outcomes}


def figures_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.artifact is not None, outcome.error
    parity = load_artifact(outcome.artifact.path).manifest.parity
    assert parity["verdict"] == "passed", parity
    assert parity["figures"]["num_images"] == 325
    return dict(parity["figures"])


def test_exports_answer_alike(outcomes: Outcomes) -> None:
    assert figures_of(outcomes["torchscript", "fp32"])["max_abs_error"] <= 1e-4
    assert figures_of(outcomes["pt2", "fp32"])["max_abs_error"] <= 1e-4
    assert figures_of(outcomes["onnx", "fp32"])["max_abs_error"] <= 1e-3
    assert figures_of(outcomes["onnx", "fp16"])["top1_agreement"] >= 0.995
    int8 = figures_of(outcomes["onnx", "int8"])
    assert int8["top1_agreement"] >= 0.98
    assert int8["accuracy_change"] >= -0.01
    assert int8["max_abs_error"] > 0.01, "INT8 that differs by nothing is not INT8"
    for precision in ("fp8", "int4-fc"):
        figures = figures_of(outcomes["onnx", precision])
        assert figures["top1_agreement"] >= 0.98
        assert figures["accuracy_change"] >= -0.01
        assert figures["sqnr_db"] > 20, "ONNX Runtime's own pass over FP8 graphs leaves 10 dB"
        assert figures["max_abs_error"] > 0.01


def test_engines_are_built_in_the_precision_asked_for_and_not_called_proved(
    outcomes: Outcomes,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    sizes = {}
    for precision in PRECISIONS:
        artifact = outcomes["trt", precision].artifact
        assert artifact is not None, outcomes["trt", precision].error
        assert {layer.name: layer.built for layer in artifact.manifest.layers} == layer_types(precision)
        assert artifact.manifest.parity["verdict"] == "not run"
        assert artifact.manifest.parity["stand_in"]["verdict"] == "passed"
        sizes[precision] = artifact.path.stat().st_size
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.6 * sizes["fp16"]
    assert sizes["int4-fc"] < 35e6


def test_int8_calibrated_on_imagenet_images(checkpoint: Checkpoint, data_root: Path, tmp_path: Path) -> None:
    exporter = Exporter(
        checkpoint,
        ExportSettings(out=tmp_path, cache=tmp_path / "cache"),
        proof_images=validation_images(checkpoint),
        calibration_images=open_images(data_root / "imagenet-samples/calib", limit=256),
    )
    artifact = exporter.export("onnx", "int8")
    assert artifact.manifest.calibration is not None
    assert artifact.manifest.calibration["num_images"] == 256
    assert artifact.manifest.parity["figures"]["top1_agreement"] >= 0.98


def test_prediction_names_the_flower(outcomes: Outcomes, data_root: Path, run_cli: Any) -> None:
    artifact = outcomes["onnx", "int8"].artifact
    assert artifact is not None
    image = data_root / "flowers/val/roses/10894627425_ec76bbc757_n.jpg"
    answer = json.loads(run_cli("predict", image, "--artifact", artifact.path, "--json").stdout)
    guesses = answer["predictions"][0]["guesses"]
    assert guesses[0]["name"] == "roses"
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)


def test_deployed_over_ssh_with_real_images_and_rolled_back(
    outcomes: Outcomes, run_cli: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """INT8 built on the device from the FP32 file is, byte for byte, the one built here; then FP16, then back."""
    folder = tmp_path_factory.mktemp("device")
    device = LoopbackDevice(folder, folder / "environments")
    try:
        device.root("edge")
        common = ("board", "--ssh-config", device.folder / "ssh_config", "--python", sys.executable, "--root", "edge")
        bench = ("--bench-seconds", "0.3", "--rounds", "1", "--percentile", "50", "--no-cold", "--limit", "50")
        artifacts = {name: outcomes["onnx", name].artifact for name in ("fp32", "fp16", "int8")}
        fp32, fp16, int8 = (artifacts[name] for name in ("fp32", "fp16", "int8"))
        assert fp32 is not None
        assert fp16 is not None
        assert int8 is not None
        first = run_cli("deploy", *common, *bench, "--artifact", fp32.path, "--int8", "--json", timeout=600)
        assert first.returncode == 0, first.stderr
        result = json.loads(first.stdout)["board"]
        build = result["state"]["steps"]["build"]
        assert (build["sha256"], build["built_here"]) == (int8.manifest.sha256, True)
        assert build["layers"] == "8 of 8 int8"
        assert build["parity"]["images"] == 50
        assert build["parity"]["top1_agreement"] >= 0.98
        page = (run_cli.folder / result["page"]).read_text()
        assert "AlexNet on board" in page
        assert "onnx int8" in page
        second = run_cli("deploy", *common, *bench, "--artifact", fp16.path, timeout=600)
        assert second.returncode == 0, second.stderr
        assert "as it was sent, layers as asked: 8 of 8 fp16" in second.stderr
        back = run_cli("deploy", "rollback", *common)
        assert f"{result['release']} serves now" in back.stdout
        assert (device.home / "edge" / "current").resolve().name == result["release"]
    finally:
        device.kill()
