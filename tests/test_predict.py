"""Predictions: the session's answers as probabilities with names, best first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering import Answering
from PIL import Image

from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.images.preprocess import preset
from alexnet_edge.predict import predict

NAMES = ("a", "b", "c", "d")


class Fixed(Answering):
    """Answers every image with the same row."""

    def __init__(self, row: list[float], head: Any = "logits") -> None:
        super().__init__(
            lambda x_NCHW: np.repeat([row], len(x_NCHW), axis=0), NAMES[: len(row)], preset("imagenet-227"), head=head
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("2.png", "10.png", "sub/1.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (9, 99, 199)).save(path)
    return tmp_path / "images"


def guesses(row: list[float], path: Path, **options: Any) -> list[tuple[str, float]]:
    head = options.pop("head", "logits")
    with Fixed(row, head) as session:
        (prediction,) = predict(session, [path], **options)
    return [(guess.name, guess.probability) for guess in prediction.guesses]


def test_logits_become_probabilities(folder: Path) -> None:
    found = guesses([1.0, 3.0, 2.0, 0.0], folder / "2.png")
    expected = np.exp([3.0, 2.0, 1.0, 0.0]) / np.exp([3.0, 2.0, 1.0, 0.0]).sum()
    assert [name for name, _ in found] == ["b", "c", "a", "d"]
    assert [probability for _, probability in found] == pytest.approx(expected.tolist())


def test_probabilities_are_left_as_they_are(folder: Path) -> None:
    assert guesses([0.1, 0.2, 0.7], folder / "2.png", head="probabilities") == [
        ("c", pytest.approx(0.7)),
        ("b", pytest.approx(0.2)),
        ("a", pytest.approx(0.1)),
    ]


def test_large_logits_do_not_overflow(folder: Path) -> None:
    found = guesses([1000.0, 999.0, -1000.0], folder / "2.png")
    assert found[0] == ("a", pytest.approx(1 / (1 + np.exp(-1))))
    assert sum(probability for _, probability in found) == pytest.approx(1.0)


def test_ties_keep_the_classes_order(folder: Path) -> None:
    assert [name for name, _ in guesses([1.0, 1.0, 2.0, 1.0], folder / "2.png")] == ["c", "a", "b", "d"]


def test_top_cuts_the_list(folder: Path) -> None:
    assert [name for name, _ in guesses([1.0, 3.0, 2.0], folder / "2.png", top=2)] == ["b", "c"]
    assert len(guesses([1.0, 3.0, 2.0], folder / "2.png", top=99)) == 3


def test_a_folder_stands_for_all_its_images_in_order(folder: Path) -> None:
    with Fixed([0.0, 1.0]) as session:
        found = predict(session, [folder / "10.png", folder])
    names = [entry.image for entry in found]
    assert names[0] == str(folder / "10.png")
    assert sorted(names[1:]) == sorted(str(folder / name) for name in ("10.png", "2.png", "sub/1.png"))


def test_bad_images(folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    with Fixed([0.0, 1.0]) as session:
        with pytest.raises(ImageError, match=r"2\.png"):
            predict(session, [folder])
        bad: list[ImageError] = []
        found = predict(session, [folder], on_bad_image="skip", bad=bad)
        assert len(found) == 2
        assert not any(entry.image.endswith("2.png") for entry in found)
        (error,) = bad
        assert "2.png" in str(error)
        assert predict(session, [folder / "2.png"], on_bad_image="skip", bad=[]) == []


def test_wrong_inputs(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with Fixed([0.0, 1.0]) as session:
        with pytest.raises(UserError, match="1 or more: 0"):
            predict(session, [folder], top=0)
        with pytest.raises(UserError, match="no image named"):
            predict(session, [])
        with pytest.raises(DataError, match="no images in the folder"):
            predict(session, [tmp_path / "empty"])
        with pytest.raises(ImageError, match="no such image"):
            predict(session, [tmp_path / "nothing.jpg"])
