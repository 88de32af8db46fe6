"""The calibration audit: each fault planted in a set of images, and found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from alexnet_edge.export.quantising.audit import CalibrationAudit, audit, difference_hash, distances
from alexnet_edge.export.quantising.calibrate import Calibration
from alexnet_edge.images.datasets import ImageSet, open_images, open_split
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.proof.recorded import random_images

CLASSES = ("left", "right")


def ranges(saturated: float = 0.0) -> Calibration:
    return Calibration(
        amax=dict.fromkeys(LAYER_NAMES, 1.0),
        saturated={**dict.fromkeys(LAYER_NAMES, 0.0), "fc6": saturated},
        method="entropy",
        num_images=1,
        images_sha256="",
        source={},
    )


def scene(seed: int, size: tuple[int, int] = (320, 256)) -> Image.Image:
    """A picture with large shapes, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`train` and `val` with 40 and 4 pictures of each of two classes, none alike."""
    for split, count in (("train", 40), ("val", 4)):
        for number, name in enumerate(CLASSES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed = 1000 * number + index + (500 if split == "val" else 0)
                scene(seed).save(folder / f"{index}.png")
    return tmp_path


def found_in(root: Path, saturated: float = 0.0) -> CalibrationAudit:
    train, val = open_split(root, "train"), open_split(root, "val")
    return audit(ranges(saturated), train, val, classes=CLASSES)


def test_nothing_is_found_in_a_good_set(root: Path) -> None:
    audited = found_in(root)
    assert audited.warnings == ()
    assert audited.classes == {"left": 40, "right": 40}
    assert audited.balance == pytest.approx(1)
    assert (audited.num_overlaps, audited.duplicates, audited.overlaps) == (
        {"file": 0, "pixels": 0, "looks alike": 0},
        0,
        (),
    )
    assert (audited.num_images, audited.evaluation_images) == (80, 8)


SAME, ALIKE = "1 of 80 calibration images are evaluation images too", "1 of 80 calibration images look like evaluation"


@pytest.mark.parametrize(
    ("save", "how", "warning"),
    [
        (lambda path, copy: shutil.copy(path, copy), "file", SAME),
        (lambda path, copy: Image.open(path).save(copy, compress_level=1), "pixels", SAME),
        (lambda path, copy: Image.open(path).resize((200, 160)).save(copy), "looks alike", ALIKE),
        (lambda path, copy: ImageEnhance.Brightness(Image.open(path)).enhance(1.15).save(copy), "looks alike", ALIKE),
        (lambda path, copy: Image.open(path).save(copy.with_suffix(".jpg"), quality=60), "looks alike", ALIKE),
    ],
    ids=["file", "pixels", "smaller", "brighter", "jpeg"],
)
def test_an_image_of_the_evaluation_is_found(
    root: Path, save: Callable[[Path, Path], object], how: str, warning: str
) -> None:
    copy = root / "train/right/7.png"
    if how == "looks alike":
        copy.unlink()
    save(root / "val/left/2.png", copy)
    audited = found_in(root)
    assert audited.num_overlaps == {"file": 0, "pixels": 0, "looks alike": 0, how: 1}
    assert (audited.overlaps[0].calibration[:-4], audited.overlaps[0].evaluation) == ("right/7", "left/2.png")
    assert warning in audited.warnings[0]


def test_copies_among_them_are_found(root: Path) -> None:
    shutil.copy(root / "train/left/2.png", root / "train/left/3.png")
    audited = found_in(root)
    assert audited.duplicates == 1
    assert "1 calibration images are copies" in audited.warnings[0]


def test_an_unbalanced_set_is_found(root: Path) -> None:
    for index in range(30):
        (root / f"train/left/{index}.png").unlink()
    audited = found_in(root)
    assert audited.balance is not None
    assert audited.balance < 0.8
    assert audited.warnings == (
        "calibrated on 50 images: fewer than 64 miss rare large values",
        "calibration images are unbalanced: right has 40, left 10",
    )


def test_a_class_without_an_image_is_found(root: Path) -> None:
    train = open_split(root, "train")
    one_class = train.subset([index for index in range(len(train)) if train.labels_N[index] == 0])
    audited = audit(ranges(), one_class, open_split(root, "val"), classes=CLASSES)
    assert audited.missing == ("right",)
    assert "no calibration image of right" in audited.warnings


def test_saturation_is_told(root: Path) -> None:
    assert "fc6 3.0%" in found_in(root, saturated=0.03).warnings[0]


def test_random_pixels_are_told(root: Path) -> None:
    audited = audit(ranges(), random_images(64), open_split(root, "val"), classes=CLASSES)
    assert audited.warnings == ("calibrated on random pixels: real activations look different",)
    assert audited.classes == {}


def test_plain_pictures_do_not_look_alike(tmp_path: Path) -> None:
    for folder, colour in (("a", (200, 10, 10)), ("b", (10, 200, 10))):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), colour).save(tmp_path / folder / "0.png")
    audited = audit(ranges(), open_images(tmp_path / "a"), open_images(tmp_path / "b"))
    assert audited.num_overlaps["looks alike"] == 0


def test_distances_are_counted_bits() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2, (count, 256)).astype(np.uint8) for count in (5, 7))
    expected = (a[:, None] != b[None]).sum(axis=2)
    assert np.array_equal(distances(a, b), expected)
    assert difference_hash(scene(1)).shape == (256,)


def test_it_is_in_the_manifest_and_printed(
    tiny_checkpoint: Any, image_folder: Path, run_cli: Any, tmp_path: Path
) -> None:
    from alexnet_edge.artifact import load_artifact

    result = run_cli(
        "export", "--format", "onnx", "--int8", "--checkpoint", tiny_checkpoint(),
        "--images", image_folder / "val", "--calibration", image_folder / "val", "--quiet",
    )  # fmt: skip
    assert "12 of 12 calibration images are evaluation images too" in result.stdout, result.stderr
    name = next((tmp_path / "cli/artifacts").glob("alexnet_int8*.onnx"))
    manifest = load_artifact(name).manifest
    assert manifest.calibration is not None
    assert manifest.calibration["audit"]["num_overlaps"]["file"] == 12
    assert set(manifest.calibration["audit"]["saturated"]) == set(LAYER_NAMES)


@pytest.mark.slow
def test_real_photographs_are_told_apart(data_root: Path) -> None:
    def hashes(images: ImageSet) -> Any:
        return np.stack([difference_hash(images.image(index)) for index in range(len(images))])

    first = hashes(open_images(data_root / "imagenet-samples/calib"))
    second = hashes(open_images(data_root / "imagenet-samples/val"))
    assert distances(first, second).min() > 16
