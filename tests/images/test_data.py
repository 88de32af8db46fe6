"""Folders, class lists, the synthetic set, and what happens to images that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_edge.errors import DataError, ImageError
from alexnet_edge.images.class_list import read_class_list
from alexnet_edge.images.datasets import (
    SYNTHETIC_CLASSES,
    SYNTHETIC_COUNTS,
    ImageSet,
    batches,
    open_for_evaluation,
    open_images,
    open_split,
    read_ahead,
    reopen,
    synthetic,
)
from alexnet_edge.images.preprocess import Preprocessing, load_rgb, preprocess_image

SPEC = Preprocessing(resize=32, crop=24)
WNIDS = ("n00000003", "n00000001")


def fill(root: Path, names: dict[str, int]) -> Path:
    """`names[folder]` small images in each folder."""
    for folder, count in names.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour = (index * 7 % 256, len(folder) * 20 % 256, 90)
            Image.new("RGB", (40, 33), colour).save(root / folder / f"{index:03d}.png")
    return root


def write_classes(path: Path) -> Path:
    path.write_text("wnid,index,name\nn00000001,0,crane\nn00000002,1,tench\nn00000003,2,crane\nn00000004,3,hen\n")
    return path


def names_of(images: ImageSet) -> list[str]:
    return [images.name(index) for index in range(len(images))]


def test_train_and_val_folders(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/b": 2, "train/a": 3, "val/a": 1, "val/b": 1})
    train, val = open_split(root, "train"), open_split(str(root), "val")
    assert train.classes == val.classes == ("a", "b")
    assert names_of(train) == ["a/000.png", "a/001.png", "a/002.png", "b/000.png", "b/001.png"]
    assert train.labels_N.tolist() == [0, 0, 0, 1, 1]
    assert train.labelled
    assert train.image(4).size == (40, 33)


def test_validation_lacking_a_class_keeps_the_indices(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a": 1, "train/b": 1, "train/c": 1, "val/c": 2})
    val = open_split(root, "val")
    assert val.classes == ("a", "b", "c")
    assert val.labels_N.tolist() == [2, 2]
    fill(root, {"val/d": 1})
    with pytest.raises(DataError, match=r"folder is not a known class: .*val/d; add it to .*train"):
        open_split(root, "val")


def test_class_folders_alone_are_divided_by_name(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 30, "b": 11, "c": 2, "d": 1})
    train, val = open_split(root, "train"), open_split(root, "val")
    assert np.bincount(val.labels_N, minlength=4).tolist() == [3, 1, 1, 0]
    assert sorted(names_of(train) + names_of(val)) == names_of(open_images(root))
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert names_of(open_split(moved, "val")) == names_of(val)


def test_order_hidden_files_other_files_and_suffix_case(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a/deep": 1, "train/b": 1, "train/.hidden": 1})
    image = root / "train/b/000.png"
    for name in ("B.JPG", "a.JpEg", ".secret.png", "notes.txt", "Thumbs.db"):
        shutil.copy(image, root / "train/b" / name)
    fill(root, {"val/a": 1})
    assert names_of(open_split(root, "train")) == ["a/deep/000.png", "b/000.png", "b/B.JPG", "b/a.JpEg"]


@pytest.mark.parametrize("where", ["train/a/loop", "train/a/self"])
def test_loops_of_links_end(tmp_path: Path, where: str) -> None:
    root = fill(tmp_path, {"train/a": 1, "train/b": 1})
    (root / where).symlink_to(root / where if where.endswith("self") else root / "train", target_is_directory=True)
    assert names_of(open_split(root, "train"))[0] == "a/000.png"
    assert len(open_images(root)) == 2


def test_linked_class_folder_is_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"train/a": 1})
    (root / "train/b").symlink_to(fill(tmp_path / "store", {"pictures": 2}) / "pictures")
    assert open_split(root, "train").labels_N.tolist() == [0, 1, 1]


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a": 1, "train/b": 1})
    odd = os.fsencode(root / "train/a") + b"/caf\xe9.png"
    try:
        shutil.copy(os.fsencode(root / "train/a/000.png"), odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    images = open_split(root, "train")
    assert names_of(images)[1] == "a/caf\\xe9.png"
    assert images.image(1).size == (40, 33)
    assert len(images.content_hash()) == 64


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda root: open_split(root / "none", "train"), "no such folder of images: .*none"),
    "empty": (lambda root: open_split(root, "train"), "it has no class folders"),
    "loose": (lambda root: open_split(fill(root, {".": 2}), "train"), "it has 2 images but no class folders"),
    "file": (lambda root: open_split(fill(root, {".": 1}) / "000.png", "train"), "this is a file"),
    "one class": (lambda root: open_split(fill(root, {"a": 9}), "train"), "two classes or more"),
    "one": (lambda root: open_split(fill(root, {"train/a": 1, "val/a": 1}), "train"), "two classes or more"),
    "no val": (lambda root: open_split(fill(root, {"train/a": 1, "train/b": 1}), "val"), "no val/ beside train/"),
    "no train": (lambda root: open_split(fill(root, {"val/a": 1}), "train"), "no train/ beside val/"),
    "bare": (lambda root: open_split(fill(root, {"train/a": 1, "train/b": 0}), "train"), "has no images: .*train/b"),
    "bare val": (lambda root: open_split(fill(root, {"train/a": 1, "val/a": 0}), "val"), "no images for val"),
    "nothing": (lambda root: open_images(root), "no images in the folder"),
    "limit": (lambda root: open_images(fill(root, {"a": 2}), limit=0), "1 or more: 0"),
    "list": (lambda root: open_split(fill(root, {"a": 2}), "train", class_list=root / "x.csv"), "no such class list"),
}


@pytest.mark.parametrize(("make", "reason"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_opened_gets_one_line(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        make(tmp_path)
    assert caught.value.exit_code == 2
    assert str(caught.value).count("\n") == 0
    assert "; " in str(caught.value)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, {"train/a": 1, "train/b": 1})
    listing = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)  # permissions would not stop root
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\): .*train/b"):
        open_split(root, "train")


def test_subset_of_imagenet_gets_the_lists_indices(tmp_path: Path) -> None:
    root = fill(tmp_path, dict.fromkeys([f"train/{name}" for name in WNIDS], 1) | {"val/n00000004": 2})
    write_classes(root / "classes.csv")
    train, val = open_split(root, "train"), open_split(root, "val")
    assert train.classes == ("crane (n00000001)", "tench", "crane (n00000003)", "hen")
    assert train.labels_N.tolist() == [0, 2]
    assert val.labels_N.tolist() == [3, 3]
    assert open_images(root / "val").labels_N.tolist() == [3, 3], "found in the parent folder"


def test_wordnet_folders_without_a_list_or_not_in_it(tmp_path: Path) -> None:
    root = fill(tmp_path, dict.fromkeys([f"train/{name}" for name in WNIDS], 1))
    assert open_split(root, "train").classes == ("n00000001", "n00000003")
    assert open_images(root / "train").classes == (), "without a list their index among 1000 is not known"
    fill(root, {"train/n99999999": 2})
    write_classes(root / "classes.csv")
    with pytest.raises(DataError, match=r"not a known class: .*n99999999; add it to .*classes\.csv, or rename"):
        open_split(root, "train")


def test_given_list_takes_names_too_and_one_class_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"tench": 2, "hen": 2})
    listed = write_classes(tmp_path / "list.csv")
    assert sorted(set(open_split(root, "train", class_list=listed).labels_N.tolist())) == [1, 3]
    fill(root, {"n00000004": 2})
    with pytest.raises(DataError, match="two folders are the same class: hen; merge them"):
        open_split(root, "train", class_list=listed)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"wnid,index,name\nn00000001,0,a\nn00000001,1,b\n", "wnid n00000001 more than once"),
        (b"wnid,index,name\nn00000001,0,a\nn00000002,0,b\n", "index 0 more than once"),
        (b"wnid,index,name\nn00000001,0,a\nn00000002,2,b\n", "not 0, 1, 2"),
        (b"wnid,index,name\nn00000001,zero,a\n", "not readable"),
        (b"wnid,index,name\nn00000001\n", "not readable"),
        (b"wnid,index,name\n\n", "not 0, 1, 2"),
        (b"id;name\n1;a\n", "column 'wnid' is missing"),
        (b"\xff\xfe\x00wnid", "not readable"),
        (None, "cannot be read"),
    ],
)
def test_damaged_class_list(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "classes.csv"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_class_list(path)


def test_real_imagenet_subset_is_mapped_by_its_list(data_root: Path) -> None:
    images = open_split(data_root / "imagenet-samples", "val")
    assert len(images) == 300
    assert len(images.classes) == 1000
    listed = dict(line.split(",")[:2] for line in (data_root / "imagenet-samples/classes.csv").read_text().splitlines())
    for index in (0, 150, 299):
        assert images.labels_N[index] == int(listed[images.name(index).split("/")[0]])


def test_labels_come_from_folders_that_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path, {"x/hen": 2, "y/cat": 1})
    assert open_images(root, classes=["cat", "dog", "hen"]).labels_N.tolist() == [2, 2, 0]
    assert open_images(root).labels_N.tolist() == [-1, -1, -1]
    fill(root, {"z/cow": 1})
    partly = open_images(root, classes=["cat", "dog", "hen"])
    assert partly.classes == ()
    assert set(partly.labels_N.tolist()) == {-1}, "an accuracy over the rest would mislead"


def test_wordnet_folders_map_to_a_networks_names_and_numbers(tmp_path: Path) -> None:
    root = fill(tmp_path, {"n00000004": 1, "n00000002": 1})
    write_classes(root / "classes.csv")
    assert open_images(root, classes=["hen", "tench"]).labels_N.tolist() == [1, 0]
    numbered = [f"class {index}" for index in range(4)]
    assert open_images(root, classes=numbered).labels_N.tolist() == [1, 3]


def test_one_file(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 2})
    images = open_images(root / "a/001.png")
    assert names_of(images) == ["001.png"]
    assert reopen(images.source).content_hash() == images.content_hash()


def test_spread_is_even_over_classes_and_steady(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 40, "b": 40, "c": 3})
    images = open_images(root, classes=["a", "b", "c"], limit=23)
    assert np.bincount(images.labels_N).tolist() == [10, 10, 3]
    assert names_of(images) == sorted(names_of(images))
    assert names_of(open_images(root, limit=23)) == names_of(images), "unlabelled: over the folders"
    assert len(open_images(root, limit=1000)) == 83
    assert np.bincount(images.spread(3).labels_N).tolist() == [1, 1, 1]


def test_evaluation_set(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a": 3, "val/a": 1, "val/b": 1})
    assert names_of(open_for_evaluation(root, classes=["b", "a"])) == ["a/000.png", "b/000.png"]
    assert open_for_evaluation(root / "val", classes=["b", "a"]).labels_N.tolist() == [1, 0]
    assert len(open_for_evaluation("synthetic", classes=SYNTHETIC_CLASSES)) == SYNTHETIC_COUNTS["val"]
    with pytest.raises(DataError, match=r"not in folders named by the network's classes \(x, y\)"):
        open_for_evaluation(root, classes=["x", "y"])


def test_every_set_opens_again_from_its_record(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 20, "b": 20})
    sets = [
        open_split(root, "val"),
        open_images(root, limit=7, classes=["b", "a"]),
        open_images(root),
        open_split(root, "train").subset([5, 3, 30]).subset([2, 0]),
        synthetic("train", count=12, seed=4).spread(10),
    ]
    for images in sets:
        again = reopen(json.loads(json.dumps(images.source)))
        assert names_of(again) == names_of(images)
        assert again.classes == images.classes
        assert again.content_hash() == images.content_hash()


def test_record_of_a_folder_that_is_gone_or_shrunk(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 20, "b": 20})
    source = open_images(root).subset([39]).source
    (root / "b/019.png").unlink()
    with pytest.raises(DataError, match="cannot be opened again"):
        reopen(source)
    shutil.rmtree(root)
    with pytest.raises(DataError, match="no such folder of images"):
        reopen(source)
    for damaged in ({}, {"kind": "magic"}, {"kind": "synthetic", "split": "train", "count": "many", "seed": 1}):
        with pytest.raises(DataError, match=r"cannot be opened again|unknown kind"):
            reopen(damaged)


def test_content_hash_sees_bytes_names_and_labels(tmp_path: Path) -> None:
    root = fill(tmp_path / "set", {"a": 2, "b": 2})

    def current() -> str:
        return open_images(root, classes=["a", "b"]).content_hash()

    first = current()
    assert open_images(root, classes=["b", "a"]).content_hash() != first
    os.utime(root / "a/000.png", (1, 1))
    assert current() == first
    (root / "a/000.png").rename(root / "a/00.png")
    renamed = current()
    assert renamed != first
    Image.new("RGB", (3, 3)).save(root / "a/00.png")
    assert current() not in {first, renamed}


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_are_the_shared_preprocessing_in_order(tmp_path: Path, workers: int) -> None:
    root = fill(tmp_path, {"a": 4, "b": 3})
    images = open_images(root, classes=["a", "b"])
    parts = list(batches(images, SPEC, batch=3, workers=workers))
    assert [len(part.x_NCHW) for part in parts] == [3, 3, 1]
    assert np.concatenate([part.indices_N for part in parts]).tolist() == list(range(7))
    assert np.concatenate([part.labels_N for part in parts]).tolist() == [0, 0, 0, 0, 1, 1, 1]
    x_NCHW = np.concatenate([part.x_NCHW for part in parts])
    assert x_NCHW.dtype == np.float32
    for index in range(7):
        assert np.array_equal(x_NCHW[index], preprocess_image(load_rgb(root / images.name(index)), SPEC))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_stop_or_are_left_out_and_listed(tmp_path: Path, workers: int) -> None:
    root = fill(tmp_path, {"a": 5})
    (root / "a/001.png").write_bytes(b"not an image")
    (root / "a/003.png").write_bytes((root / "a/000.png").read_bytes()[:50])
    images = open_images(root)
    with pytest.raises(ImageError, match=r"a/001\.png"):
        list(batches(images, SPEC, batch=2, workers=workers))
    bad: list[ImageError] = []
    parts = list(batches(images, SPEC, batch=2, on_bad_image="skip", bad=bad, workers=workers))
    assert [part.indices_N.tolist() for part in parts] == [[0, 2], [4]]
    assert [Path(str(error.value)).name for error in bad] == ["001.png", "003.png"]


def test_no_usable_image_and_no_batch(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 2})
    images = open_images(root)
    with pytest.raises(DataError, match="batch must be 1 or more: 0"):
        next(batches(images, SPEC, batch=0))
    for path in (root / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 2 images can be used"):
        list(batches(images, SPEC, batch=2, on_bad_image="skip"))


def test_reading_ahead_is_bounded_and_ends_its_threads() -> None:
    before = threading.active_count()
    called: list[int] = []

    def call(index: int) -> int:
        called.append(index)
        return index * index

    reading = read_ahead(call, range(100), workers=2, ahead=4)
    assert next(reading) == (0, 0)
    assert len(called) <= 6
    assert next(reading) == (1, 1)
    reading.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_synthetic_images_depend_on_seed_split_and_index_alone() -> None:
    train, val = open_split("synthetic", "train"), open_images("synthetic")
    assert (len(train), len(val)) == (SYNTHETIC_COUNTS["train"], SYNTHETIC_COUNTS["val"])
    assert train.classes == SYNTHETIC_CLASSES
    assert np.bincount(train.labels_N).tolist() == [len(train) // 10] * 10
    first = np.asarray(train.image(0))
    assert first.shape == (256, 256, 3)
    assert np.array_equal(first, np.asarray(synthetic("train", count=10).image(0)))
    others = [val.image(0), train.image(10), synthetic("train", seed=1).image(0)]
    assert not any(np.array_equal(first, np.asarray(other)) for other in others)


def test_synthetic_colour_does_not_tell_the_class() -> None:
    images = synthetic("train", count=400)
    colours = np.stack([np.asarray(images.image(index)).mean((0, 1)) for index in range(400)])
    labels = images.labels_N
    centres = np.stack([colours[:300][labels[:300] == label].mean(0) for label in range(10)])
    nearest = np.linalg.norm(colours[300:, None] - centres, axis=2).argmin(1)
    assert (nearest == labels[300:]).mean() < 0.45


def test_synthetic_set_is_the_same_in_another_process_without_torch() -> None:
    code = (
        "import sys, alexnet_edge.images.datasets as d; images = d.synthetic('val', count=20); "
        "next(d.batches(images, d.Preprocessing(), batch=1)); print(images.content_hash()); "
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == synthetic("val", count=20).content_hash()


@pytest.mark.parametrize(("options", "reason"), [({"count": 9}, "each class: 9"), ({"seed": -1}, "seed must not")])
def test_synthetic_limits(options: dict[str, int], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        synthetic("train", **options)
