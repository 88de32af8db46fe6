"""Accuracy and loss against hand-computed values, through sessions with every kind of batch limit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_edge.artifact import TensorSpec
from alexnet_edge.data import ImageSet, batches, open_images, synthetic
from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.evaluate import evaluate, labels_for, outputs_NK, score
from alexnet_edge.preprocess import FloatArray, Preprocessing
from alexnet_edge.sessions import Session
from alexnet_edge.sessions.null import NullSession

CLASSES = ("dark", "middle", "bright")
SPEC = Preprocessing(resize=16, crop=8, mean=(0, 0, 0), std=(1, 1, 1))


class Brightness(Session):
    """Answers by the mean brightness; remembers the batches it was given."""

    runtime = "brightness"

    def __init__(self, *, min_batch: int = 1, max_batch: int | None = None, classes: tuple[str, ...] = CLASSES) -> None:
        super().__init__(
            input=TensorSpec(name="input", dtype="float32", shape=(3, 8, 8), min_batch=min_batch, max_batch=max_batch),
            output=TensorSpec(name="logits", dtype="float32", shape=(3,)),
            device="cpu",
            threads=1,
            classes=classes,
            preprocessing=SPEC,
        )
        self.given: list[int] = []

    def _load(self) -> None:
        """Nothing to load."""

    def _prepare(self, x_NCHW: FloatArray) -> None:
        self.given.append(len(x_NCHW))
        self._x_NCHW = x_NCHW

    def _enqueue(self) -> None:
        mean_N = self._x_NCHW.mean((1, 2, 3))
        self._y_NK = -np.abs(mean_N[:, None] - np.asarray([0.1, 0.5, 0.9], np.float32)).astype(np.float32)

    def _fetch(self) -> FloatArray:
        return self._y_NK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, gray in (("bright", 250), ("dark", 10), ("middle", 128)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (20, 20), gray).save(tmp_path / name / f"{index}.png")
    Image.new("L", (20, 20), 120).save(tmp_path / "dark" / "2.png")  # looks like `middle`
    return tmp_path


def opened(folder: Path, classes: tuple[str, ...] = CLASSES) -> ImageSet:
    return open_images(folder, classes=classes)


def test_accuracy_per_class(folder: Path) -> None:
    with Brightness() as session:
        result = evaluate(session, opened(folder))
    assert (result.count, result.top1, result.top5) == (9, 8 / 9, 1.0)
    rows = {entry.name: (entry.count, entry.correct) for entry in result.classes}
    assert rows == {"dark": (3, 2), "middle": (3, 3), "bright": (3, 3)}
    value = json.loads(json.dumps(result.to_json()))
    assert value["classes"][0] == {"name": "dark", "count": 3, "correct": 2, "top1": 2 / 3}
    assert value["skipped"] == []


@pytest.mark.parametrize(
    ("least", "most", "given"),
    [(1, None, [4, 4, 1]), (1, 2, [2, 2, 2, 2, 1]), (4, 4, [4, 4, 4]), (6, 8, [6, 6]), (16, 16, [16])],
)
def test_batches_are_brought_within_what_the_session_takes(
    folder: Path, least: int, most: int | None, given: list[int]
) -> None:
    images = opened(folder)
    with Brightness() as session:
        expected, _ = outputs_NK(session, images, batch=9)
    with Brightness(min_batch=least, max_batch=most) as session:
        y_NK, indices_N = outputs_NK(session, images, batch=4)
        assert session.given == given
    assert np.array_equal(y_NK, expected)
    assert indices_N.tolist() == list(range(9))


def test_outputs_are_those_of_the_shared_preprocessing(folder: Path) -> None:
    images = opened(folder)
    with Brightness() as session:
        y_NK, _ = outputs_NK(session, images)
        by_hand = np.concatenate([session.run(part.x_NCHW) for part in batches(images, SPEC, batch=1)])
    assert np.allclose(y_NK, by_hand, atol=1e-6)


def test_bad_images_are_counted(folder: Path) -> None:
    (folder / "dark" / "0.png").write_bytes(b"x")
    with Brightness() as session:
        with pytest.raises(ImageError, match=r"dark/0\.png"):
            evaluate(session, opened(folder))
        result = evaluate(session, opened(folder), on_bad_image="skip", workers=2)
    assert result.count == 8
    assert result.top1 == 7 / 8
    assert len(result.skipped) == 1
    assert "dark/0.png" in result.skipped[0]


def test_score_against_hand_computed_values() -> None:
    y_NK = np.asarray([[2, 0, 0], [0, 1, 3], [1, 1, 1]], np.float32)
    result = score(y_NK, np.asarray([0, 1, 2]), classes=CLASSES, head="logits")
    total = [math.exp(2) + 2, 1 + math.e + math.exp(3), 3 * math.e]
    own = [math.exp(2), math.e, math.e]
    assert result.loss == pytest.approx(-sum(math.log(a / b) for a, b in zip(own, total, strict=True)) / 3, rel=1e-9)
    assert result.top1 == 1 / 3, "a tie of all classes is not a right answer"


def test_top5_counts_the_five_highest() -> None:
    y_NK = np.tile(np.arange(10, dtype=np.float32), (2, 1))
    result = score(y_NK, np.asarray([5, 4]), classes=[str(index) for index in range(10)], head="logits")
    assert (result.top1, result.top5) == (0.0, 0.5)


def test_probabilities_need_no_softmax() -> None:
    probabilities = np.asarray([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], np.float32)
    result = score(probabilities, np.asarray([0, 1]), classes=CLASSES, head="probabilities")
    assert result.loss == pytest.approx(-math.log(0.7) / 2, rel=1e-6)
    wrong = score(probabilities, np.asarray([0, 0]), classes=CLASSES, head="probabilities")
    assert 40 < wrong.loss < 100, "a probability of 0 costs much, not infinitely much"


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        score(np.asarray([[math.nan, 1, 2]], np.float32), np.asarray([0]), classes=CLASSES, head="logits")


def test_labels_are_matched_by_name(folder: Path) -> None:
    images = opened(folder)
    assert np.array_equal(labels_for(CLASSES, images), images.labels_N)
    assert labels_for(("bright", "x", "middle", "dark"), images).tolist() == [0, 0, 0, 3, 3, 3, 2, 2, 2]
    assert np.array_equal(labels_for(("class 0", "class 1", "class 2"), images), images.labels_N)
    with pytest.raises(DataError, match="the images show 'dark', which is not among the network's 2 classes"):
        labels_for(("bright", "middle"), images)


def test_unlabelled_images_and_sessions_without_preprocessing(folder: Path) -> None:
    with Brightness() as session, pytest.raises(DataError, match="the images have no labels"):
        evaluate(session, open_images(folder))
    with NullSession(num_classes=10) as null, pytest.raises(UserError, match="how images are preprocessed"):
        outputs_NK(null, synthetic("val", count=10))
