"""The same files through several libraries: what differs is found, and laid on the step that it comes from."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_network import CLASSES, exporter_in, write_checkpoint
from PIL import Image

from alexnet_edge.errors import UserError
from alexnet_edge.images.datasets import ImageSet, open_images, synthetic
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof import decoders as module
from alexnet_edge.proof.decoders import compare_preprocessing


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Images with fine detail, larger than the network's input, as a camera gives them."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((800, 600))
        pixels = np.asarray(coarse, np.int16) + rng.integers(-40, 41, (600, 800, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / "0.jpg", quality=92)
    return open_images(root, classes=CLASSES)


def test_resizing_without_averaging_is_what_differs(checkpoint: Checkpoint, large: ImageSet) -> None:
    pytest.importorskip("cv2")
    pytest.importorskip("torchvision")
    report = compare_preprocessing(checkpoint, large)
    ways = {way.name: way for way in report.ways}
    own = ways["PIL (this package)"]
    assert (own.decode_mean, own.resize_mean, own.input_mean, own.flips, own.top1_agreement) == (0, 0, 0, 0, 1)
    assert report.num_resized == report.num_images == 4
    for coarse, fine in (
        ("OpenCV, INTER_LINEAR", "OpenCV, INTER_AREA"),
        ("torchvision tensors, no antialias", "torchvision tensors, antialias"),
    ):
        assert (ways[coarse].resize_mean or 0) > 3 * (ways[fine].resize_mean or math.inf)
        assert ways[coarse].input_mean > ways[fine].input_mean
    assert any("INTER_LINEAR" in text and "from resizing" in text for text in report.findings)


def test_an_artifact_s_own_flips_stand_beside_them(checkpoint: Checkpoint, large: ImageSet, tmp_path: Path) -> None:
    artifact = exporter_in(tmp_path, checkpoint, large).export("onnx", "fp32")
    report = compare_preprocessing(checkpoint, large, artifact=artifact)
    assert report.artifact_flips == 0
    assert any("onnx fp32 alone changes 0" in text for text in report.findings)


def test_images_of_the_right_size_are_not_resized(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    report = compare_preprocessing(checkpoint, open_images(tmp_path))
    assert report.num_resized == 0
    for way in report.ways:
        assert (way.decode_max, way.resize_mean, way.input_max, way.accuracy) == (0, None, 0, None)
    assert report.findings[-1].startswith("1 of 1 images have the right size")


def test_another_decoder_is_noticed(checkpoint: Checkpoint, large: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(content: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(content)))[:, :, ::-1]

    def resize(pixels: Any, width: int, height: int) -> Any:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), 2))

    swapped = module._Library(name="blue first", decode=decode, resize=resize)
    monkeypatch.setattr(module, "_libraries", lambda: ([swapped], []))
    report = compare_preprocessing(checkpoint, large)
    assert report.ways[1].decode_mean > 10
    assert report.ways[1].resize_mean == 0
    assert "most of the drift is from decoding" in report.findings[0]


def test_what_is_not_installed_is_said(
    checkpoint: Checkpoint, large: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    report = compare_preprocessing(checkpoint, large)
    assert [way.name for way in report.ways] == ["PIL (this package)"]
    assert len(report.missing) == 2
    assert "pip install opencv-python-headless" in report.missing[0]


def test_generated_images_have_nothing_to_decode(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="image files"):
        compare_preprocessing(checkpoint, synthetic("val").spread(2))


def test_the_command(run_cli: Any, tmp_path: Path, large: ImageSet) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors")
    folder = large.source["path"]
    result = run_cli("check", "--preprocessing", "--checkpoint", path, "--images", folder, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["num_images"] == 4
    shown = run_cli("check", "--preprocessing", "--checkpoint", path, "--images", folder)
    assert "PIL (this package)" in shown.stdout
    message = run_cli.refuses("check", "--bisect", "--checkpoint", path)
    assert "--bisect is a command of its own now; write: alexnet-edge bisect" in message
