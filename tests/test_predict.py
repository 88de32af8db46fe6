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


EXP = np.exp([3.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ([1.0, 3.0, 2.0, 0.0], {}, dict(zip("bcad", EXP / EXP.sum(), strict=True))),
        ([0.1, 0.2, 0.7], {"head": "probabilities"}, {"c": 0.7, "b": 0.2, "a": 0.1}),
        ([1000.0, 999.0, -1000.0], {}, {"a": 1 / (1 + np.exp(-1)), "b": 1 / (1 + np.exp(1)), "c": 0}),
        ([0.2, 0.2, 0.4, 0.2], {"head": "probabilities"}, {"c": 0.4, "a": 0.2, "b": 0.2, "d": 0.2}),
        ([0.1, 0.6, 0.3], {"head": "probabilities", "top": 2}, {"b": 0.6, "c": 0.3}),
        ([0.1, 0.6, 0.3], {"head": "probabilities", "top": 99}, {"b": 0.6, "c": 0.3, "a": 0.1}),
    ],
    ids=["logits", "probabilities", "large logits", "ties", "top 2", "top 99"],
)
def test_names_and_probabilities_best_first(
    folder: Path, row: list[float], options: dict[str, Any], expected: dict[str, float]
) -> None:
    answer = guesses(row, folder / "2.png", **options)
    assert [name for name, _ in answer] == list(expected)
    assert [probability for _, probability in answer] == pytest.approx(list(expected.values()))


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


@pytest.mark.parametrize(
    ("names", "top", "error", "words"),
    [
        (["."], 0, UserError, "1 or more: 0"),
        ([], 5, UserError, "no image named"),
        (["empty"], 5, DataError, "no images in the folder"),
        (["nothing.jpg"], 5, ImageError, "no such image"),
    ],
)
def test_wrong_inputs(folder: Path, names: list[str], top: int, error: type[UserError], words: str) -> None:
    (folder / "empty").mkdir()
    with Fixed([0.0, 1.0]) as session, pytest.raises(error, match=words):
        predict(session, [folder / name for name in names], top=top)
