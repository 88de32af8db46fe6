"""Accuracy, confusions, calibration and ten crops against plain references, through sessions with every kind of batch
limit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering import Answering
from narrow_network import CLASSES as NARROW_CLASSES
from narrow_network import write_checkpoint
from PIL import Image

from alexnet_edge import records
from alexnet_edge.cli.show.training import show_evaluation
from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import ImageSet, batches, open_images, synthetic
from alexnet_edge.images.preprocess import FloatArray, Preprocessing
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof.evaluate import (
    Evaluation,
    Head,
    confusion,
    evaluate,
    labels_for,
    outputs_NK,
    probabilities,
    reliability,
    score,
)
from alexnet_edge.proof.parity import compare_outputs
from alexnet_edge.proof.stats import wilson_interval
from alexnet_edge.sessions import Session, open_session
from alexnet_edge.sessions.null import NullSession

CLASSES = ("dark", "middle", "bright")
SPEC = Preprocessing(resize=16, crop=8, mean=(0, 0, 0), std=(1, 1, 1))


def by_brightness(x_NCHW: FloatArray) -> FloatArray:
    return -np.abs(x_NCHW.mean((1, 2, 3))[:, None] - np.asarray([0.1, 0.5, 0.9], np.float32))


class Brightness(Answering):
    """Answers by the mean brightness."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(by_brightness, CLASSES, SPEC, **limits)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, gray in (("bright", 250), ("dark", 10), ("middle", 128)):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (20, 20), gray).save(tmp_path / name / f"{index}.png")
    Image.new("L", (20, 20), 120).save(tmp_path / "dark" / "2.png")  # looks like `middle`
    return tmp_path


def opened(folder: Path) -> ImageSet:
    return open_images(folder, classes=CLASSES)


def test_accuracy_per_class(folder: Path) -> None:
    with Brightness() as session:
        result = evaluate(session, opened(folder))
    assert (result.count, result.top1, result.top5) == (9, 8 / 9, 1.0)
    rows = {entry.name: (entry.count, entry.correct) for entry in result.classes}
    assert rows == {"dark": (3, 2), "middle": (3, 3), "bright": (3, 3)}
    value = json.loads(json.dumps(records.to_builtins(result)))
    figures = {"top1": 2 / 3, "precision": 1.0, "recall": 2 / 3, "f1": 0.8}
    assert value["classes"][0] == {"name": "dark", "count": 3, "correct": 2, "predicted": 2, **figures}
    assert value["classes"][1]["precision"] == 3 / 4
    assert (value["correct"], value["balanced_accuracy"], value["crops"]) == (8, pytest.approx(8 / 9), 1)
    assert value["macro_f1"] == pytest.approx((0.8 + 6 / 7 + 1) / 3)
    assert value["confusion"] == {
        "classes": list(CLASSES),
        "matrix": [[2, 1, 0], [0, 3, 0], [0, 0, 3]],
        "reason": None,
        "most": [{"actual": "dark", "predicted": "middle", "count": 1}],
    }
    assert value["skipped"] == []


@pytest.mark.parametrize(
    ("least", "most", "batch_sizes"),
    [(1, None, [4, 4, 1]), (1, 2, [2, 2, 2, 2, 1]), (4, 4, [4, 4, 4]), (6, 8, [6, 6]), (16, 16, [16])],
)
def test_batches_are_brought_within_what_the_session_takes(
    folder: Path, least: int, most: int | None, batch_sizes: list[int]
) -> None:
    images = opened(folder)
    with Brightness() as session:
        expected, _ = outputs_NK(session, images, batch=9)
    with Brightness(min_batch=least, max_batch=most) as session:
        y_NK, indices_N = outputs_NK(session, images, batch=4)
        assert session.batches == batch_sizes
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
    assert (result.top1, result.ties) == (1 / 3, 1), "of equal outputs the first is the answer"


def test_top5_counts_the_five_highest() -> None:
    y_NK = np.tile(np.arange(10, dtype=np.float32), (2, 1))
    result = score(y_NK, np.asarray([5, 4]), classes=[str(index) for index in range(10)], head="logits")
    assert (result.top1, result.top5) == (0.0, 0.5)


def test_probabilities_need_no_softmax() -> None:
    p_NK = np.asarray([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], np.float32)
    result = score(p_NK, np.asarray([0, 1]), classes=CLASSES, head="probabilities")
    assert result.loss == pytest.approx(-math.log(0.7) / 2, rel=1e-6)
    wrong = score(p_NK, np.asarray([0, 0]), classes=CLASSES, head="probabilities")
    assert 40 < wrong.loss < 100, "a probability of 0 costs much, not infinitely much"
    assert probabilities(np.asarray([[1.001, 0, 0]], np.float32), "probabilities").tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("y_K", "head", "message"),
    [
        ([math.nan, 1, 2], "logits", "not finite"),
        ([3, -1, 0], "probabilities", "not from 0 to 1: -1 to 3; use another"),
    ],
)
def test_outputs_that_are_none_are_refused(y_K: list[float], head: Head, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(np.asarray([y_K], np.float32), np.asarray([0]), classes=CLASSES, head=head)


def test_labels_are_matched_by_name(folder: Path) -> None:
    images = opened(folder)
    assert np.array_equal(labels_for(CLASSES, images), images.labels_N)
    assert labels_for(("bright", "x", "middle", "dark"), images).tolist() == [0, 0, 0, 3, 3, 3, 2, 2, 2]
    assert np.array_equal(labels_for(("class 0", "class 1", "class 2"), images), images.labels_N)
    with pytest.raises(DataError, match="the images show 'dark', which is not among the network's 2 classes"):
        labels_for(("bright", "middle"), images)


def test_what_cannot_be_evaluated_is_refused(folder: Path) -> None:
    with Brightness() as session:
        with pytest.raises(DataError, match="the images have no labels"):
            evaluate(session, open_images(folder))
        with pytest.raises(DataError, match="there is no image to evaluate on"):
            evaluate(session, opened(folder).subset([]))
    with NullSession(num_classes=10) as null, pytest.raises(UserError, match="how images are preprocessed"):
        outputs_NK(null, synthetic("val", count=10))


# --- ties ---------------------------------------------------------------------------------------------------------------


def test_of_equal_outputs_the_first_is_the_answer_as_in_parity() -> None:
    rng = np.random.default_rng(0)
    y_NK = rng.integers(0, 3, (500, 8)).astype(np.float32)  # hardly a row without ties
    labels_N = rng.integers(0, 8, 500)
    result = score(y_NK, labels_N, classes=list("abcdefgh"), head="logits")
    figures = compare_outputs(y_NK, y_NK, labels_N=labels_N)
    assert result.top1 == figures.candidate_accuracy == (y_NK.argmax(axis=1) == labels_N).mean()
    five = np.argsort(-y_NK, axis=1, kind="stable")[:, :5]
    assert result.top5 == (five == labels_N[:, None]).any(axis=1).mean()
    assert result.ties == sum((row == row.max()).sum() > 1 for row in y_NK)
    assert result.ties > 250
    assert result.confusion.matrix is not None
    assert np.trace(result.confusion.matrix) == result.correct


def test_the_same_outputs_for_every_image_answer_the_first_class() -> None:
    result = score(np.zeros((4, 3), np.float32), np.asarray([0, 1, 2, 2]), classes=CLASSES, head="logits")
    assert (result.top1, result.ties) == (0.25, 4)
    assert [entry.precision for entry in result.classes] == [0.25, None, None]
    assert [entry.f1 for entry in result.classes] == [0.4, 0.0, 0.0]
    assert json.loads(json.dumps(records.to_builtins(result), allow_nan=False))["classes"][1]["precision"] is None


# --- confusions ---------------------------------------------------------------------------------------------------------


def test_confusions_of_many_classes_are_listed() -> None:
    names = [f"c{index}" for index in range(101)]
    labels_N = np.asarray([5] * 4 + [7] * 3 + [9] * 3 + list(range(101)))
    answer_N = np.asarray([6] * 4 + [8, 8, 100] + [1, 1, 9] + list(range(101)))
    result = confusion(labels_N, answer_N, names)
    pairs = [(entry.actual, entry.predicted, entry.count) for entry in result.most]
    assert pairs == [("c5", "c6", 4), ("c7", "c8", 2), ("c9", "c1", 2), ("c7", "c100", 1)]
    assert result.matrix is None
    assert result.reason is not None
    assert "101 classes" in result.reason
    matrix = confusion(labels_N[:4], answer_N[:4], names[:100]).matrix
    assert matrix is not None
    assert np.shape(matrix) == (100, 100)
    assert matrix[5][6] == np.sum(matrix) == 4


def test_the_list_of_confusions_has_an_end() -> None:
    labels_N = np.arange(30)
    result = confusion(labels_N, (labels_N + 1) % 30, [str(index) for index in range(30)])
    assert [entry.actual for entry in result.most] == [str(index) for index in range(20)]


# --- calibration --------------------------------------------------------------------------------------------------------


def test_calibration_against_plain_loops() -> None:
    rng = np.random.default_rng(1)
    y_NK = (3 * rng.standard_normal((5000, 6))).astype(np.float32)  # more than one chunk
    labels_N = np.where(rng.random(5000) < 0.6, y_NK.argmax(axis=1), rng.integers(0, 6, 5000))
    result = score(y_NK, labels_N, classes=list("abcdef"), head="logits")
    squares, losses = 0.0, 0.0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for y_K, label in zip(y_NK.astype(np.float64), labels_N, strict=True):
        p_K = np.exp(y_K) / np.exp(y_K).sum()
        squares += sum((p - (index == label)) ** 2 for index, p in enumerate(p_K))
        losses -= math.log(p_K[label])
        bins[math.ceil(15 * p_K.max()) - 1].append((p_K.max(), p_K.argmax() == label))
    gaps = [abs(np.mean([p - right for p, right in rows])) if rows else 0.0 for rows in bins]
    table = result.calibration
    assert [entry.count for entry in table.bins] == [len(rows) for rows in bins]
    assert table.expected_error == pytest.approx(np.dot(gaps, [len(rows) / 5000 for rows in bins]), rel=1e-9)
    assert table.maximum_error == pytest.approx(max(gaps), rel=1e-9)
    assert table.brier == pytest.approx(squares / 5000, rel=1e-9)
    assert table.negative_log_likelihood == result.loss == pytest.approx(losses / 5000, rel=1e-9)


def test_quite_sure_and_half_right() -> None:
    y_NK = np.tile(np.asarray([[1, 0]], np.float32), (10, 1))
    result = score(y_NK, np.asarray([0, 1] * 5), classes=("a", "b"), head="probabilities").calibration
    assert (result.expected_error, result.maximum_error, result.brier) == (0.5, 0.5, 1.0)
    first, *_, last = records.to_builtins(result)["bins"]
    assert last == {"low": 14 / 15, "high": 1.0, "count": 10, "confidence": 1.0, "accuracy": 0.5}
    assert first == {"low": 0.0, "high": 1 / 15, "count": 0, "confidence": None, "accuracy": None}


def test_as_often_right_as_it_says() -> None:
    y_NK = np.tile(np.asarray([[0.75, 0.25]], np.float32), (40, 1))
    result = score(y_NK, np.asarray([0, 0, 0, 1] * 10), classes=("a", "b"), head="probabilities").calibration
    assert (result.expected_error, result.maximum_error) == (0, 0)
    assert result.brier == pytest.approx(0.75 * 2 * 0.25**2 + 0.25 * 2 * 0.75**2)


def test_a_bin_ends_with_its_upper_edge() -> None:
    values = np.asarray([0.0, 1 / 15, np.nextafter(1 / 15, 1), 0.2, 1.0])
    result = reliability(values, np.ones(5, bool), brier=0.0, negative_log_likelihood=0.0)
    counts = [entry.count for entry in result.bins]
    assert (counts[0], counts[1], counts[2], counts[14]) == (2, 1, 1, 1)


# --- ten crops ----------------------------------------------------------------------------------------------------------


class Patches(Answering):
    """Answers by a fixed linear map of the input, so that each view has an answer of its own."""

    def __init__(self, *, head: Head = "logits", spec: Preprocessing = SPEC, **limits: Any) -> None:
        columns = np.random.default_rng(3).standard_normal((3 * spec.crop**2, 3)) * 20 / spec.crop

        def answers(x_NCHW: FloatArray) -> FloatArray:
            y_NK: FloatArray = x_NCHW.reshape(len(x_NCHW), -1) @ columns.astype(np.float32)
            return softmax(y_NK) if head == "probabilities" else y_NK

        super().__init__(answers, CLASSES, spec, head=head, **limits)


def softmax(y_NK: FloatArray) -> FloatArray:
    exponents_NK = np.exp(y_NK.astype(np.float64))
    return np.asarray(exponents_NK / exponents_NK.sum(axis=1, keepdims=True))


def by_hand(session: Session, image: Image.Image) -> FloatArray:
    """The mean of the softmax of ten crops, each cut, mirrored and scaled on its own."""
    spec = session.preprocessing
    assert spec is not None
    width, height = image.size
    shorter, size = min(width, height), spec.crop
    width, height = int(spec.resize * width / shorter), int(spec.resize * height / shorter)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    right, bottom = width - size, height - size
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
    crops = [image.crop((x0, y0, x0 + size, y0 + size)) for x0, y0 in corners]
    views = []
    for crop in (*crops, *(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for crop in crops)):
        scaled = (np.asarray(crop) / 255 - np.asarray(spec.mean)) / np.asarray(spec.std)
        views.append(scaled.transpose(2, 0, 1).astype(np.float32))
    assert len(views) == 10
    rows = [session.run(np.repeat(view[None], session.input.min_batch, axis=0))[:1] for view in views]
    y_NK = np.concatenate(rows)
    return np.asarray((y_NK if session.head == "probabilities" else softmax(y_NK)).mean(axis=0))


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    sizes = [(20, 31), (40, 17), (16, 16), (25, 25), (19, 64), (8, 9)]
    for name, pair in zip(CLASSES, (sizes[:2], sizes[2:4], sizes[4:]), strict=True):
        (tmp_path / name).mkdir()
        for index, (width, height) in enumerate(pair):
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("head", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("least", "most", "batch_sizes"),
    [(1, None, [32, 28]), (1, 1, [1] * 60), (1, 7, [7] * 8 + [4]), (16, 16, [16] * 4), (64, 64, [64])],
)
def test_ten_crops_are_the_mean_of_ten_softmax_outputs(
    noise: Path, head: Head, least: int, most: int | None, batch_sizes: list[int]
) -> None:
    images = opened(noise)
    with Patches(head=head, min_batch=least, max_batch=most) as session:
        p_NK, indices_N = outputs_NK(session, images, ten_crop=True)
        assert session.batches == batch_sizes
        expected = [by_hand(session, images.image(index)) for index in range(6)]
        result = evaluate(session, images, ten_crop=True, workers=2)
        single = evaluate(session, images)
    assert indices_N.tolist() == list(range(6))
    assert np.allclose(p_NK, expected, atol=1e-5)
    assert np.abs(p_NK.max(axis=1) - 1 / 3).max() > 0.1, "the answers differ, or the comparison would prove little"
    assert (result.crops, single.crops, result.coinciding) == (10, 1, False)
    assert result.loss == pytest.approx(-np.log(p_NK[np.arange(6), images.labels_N]).mean(), rel=1e-6)
    assert result.loss != pytest.approx(single.loss, rel=1e-3)


def test_ten_crops_that_coincide_equal_the_centre(tmp_path: Path) -> None:
    spec = Preprocessing(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    (tmp_path / "dark").mkdir()
    half = np.random.default_rng(5).integers(0, 256, (8, 4, 3), np.uint8)
    Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)).save(tmp_path / "dark" / "0.png")
    with Patches(spec=spec) as session:
        ten = evaluate(session, opened(tmp_path), ten_crop=True)
        central = evaluate(session, opened(tmp_path))
    assert (ten.coinciding, central.coinciding) == (True, False)
    assert ten.loss == pytest.approx(central.loss, rel=5e-5)  # a probability near 1 has steps of 5e-6 of this loss


def test_bad_images_are_left_out_of_ten_crops(noise: Path) -> None:
    (noise / "middle" / "0.png").write_bytes(b"x")
    with Patches() as session:
        with pytest.raises(ImageError, match=r"middle/0\.png"):
            evaluate(session, opened(noise), ten_crop=True)
        result = evaluate(session, opened(noise), ten_crop=True, on_bad_image="skip", workers=2)
        assert result.count == 5
        assert len(result.skipped) == 1
        for path in noise.glob("*/*.png"):
            path.write_bytes(b"x")
        with pytest.raises(DataError, match="none of the 6 images can be used"):
            evaluate(session, opened(noise), ten_crop=True, on_bad_image="skip")


def test_ten_crops_of_real_images(data_root: Path) -> None:
    images = open_images(data_root / "flowers/val")
    with Patches(spec=Preprocessing()) as session:
        chosen = images.subset(range(0, len(images), 20))
        assert len(chosen) > 10
        p_NK, _ = outputs_NK(session, chosen, batch=16, ten_crop=True)
        expected = [by_hand(session, chosen.image(index)) for index in range(len(chosen))]
    assert np.allclose(p_NK, expected, atol=1e-4)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> tuple[Path, Path]:
    """A checkpoint of the narrow network, and the ONNX file of it."""
    root = tmp_path_factory.mktemp("narrow")
    checkpoint = write_checkpoint(root / "model.safetensors")
    proof_images = open_images(image_folder / "val", classes=NARROW_CLASSES)
    exporter = Exporter(load_checkpoint(checkpoint), ExportSettings(out=root, threads=1), proof_images=proof_images)
    return checkpoint, exporter.export("onnx", "fp32").path


def test_ten_crops_through_an_artifact_and_its_checkpoint(narrow: tuple[Path, Path], image_folder: Path) -> None:
    images = open_images(image_folder / "val", classes=NARROW_CLASSES)
    answers = []
    for source in narrow:
        with open_session(source, threads=1) as session:
            answers.append(outputs_NK(session, images, ten_crop=True)[0])
            for index in (0, 5, 11):
                assert np.allclose(answers[-1][index], by_hand(session, images.image(index)), atol=1e-4)
    assert np.allclose(*answers, atol=1e-4)


# --- for people ---------------------------------------------------------------------------------------------------------


def test_the_command_line(narrow: tuple[Path, Path], image_folder: Path, run_cli: Any, tmp_path: Path) -> None:
    _, artifact = narrow
    done = run_cli("evaluate", artifact, "--images", image_folder, "--ten-crop", "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    with open_session(artifact, threads=1) as session:
        result = evaluate(session, open_images(image_folder / "val", classes=NARROW_CLASSES), ten_crop=True)
    assert (value["crops"], value["count"], value["correct"]) == (10, 12, result.correct)
    assert value["loss"] == pytest.approx(result.loss, rel=1e-4)
    assert value["top1_interval"] == pytest.approx(wilson_interval(result.correct, 12))
    assert len(value["calibration"]["bins"]) == 15


def answered(names: Sequence[str]) -> Evaluation:
    """Everything right but two images of the first class, which are taken for the second."""
    count = len(names)
    labels_N = np.asarray([*range(count), 0, 0])
    y_NK = np.eye(count, dtype=np.float32)[[*range(count), 1, 1]]
    return score(y_NK, labels_N, classes=names, head="probabilities", crops=10, coinciding=True)


def test_few_classes_are_shown_as_a_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(Path("a.onnx"), answered(["cat", "[dog]", "cow"]), (0.2, 0.9))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert "a.onnx: 5 images, each the mean of 10 crops" in out
    assert "top-1 60.00% (95 % interval 20.00% to 90.00%)" in out
    assert "ECE 40.00%   MCE 40.00%   Brier 0.8000" in out
    assert "corner crops coincide" in out
    assert ["class", "\\", "answer", "cat", "[dog]", "cow"] in lines
    assert ["cat", "1", "2", "·"] in lines
    assert ["cat", "3", "1", "33.3", "100.0", "50.0"] in lines


def test_of_many_classes_the_pairs_confused_most_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation(Path("a.onnx"), answered([f"c{index}" for index in range(30)]), (0.2, 0.9))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["most", "confused", "answered", "images"] in lines
    assert lines[-1] == ["c0", "c1", "2"]
    assert ["...", "and", "10", "classes", "more:", "see", "--json"] in lines


def test_ties_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = score(np.zeros((2, 3), np.float32), np.asarray([0, 1]), classes=CLASSES, head="logits")
    show_evaluation(Path("a"), result, (0, 1))
    assert "2 images have more than one highest output: the first of them is the answer" in capsys.readouterr().out
