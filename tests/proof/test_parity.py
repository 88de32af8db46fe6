"""Parity: the figures on known outputs, the verdict on planted faults."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering import Answering

from alexnet_edge import records
from alexnet_edge.errors import ParityError, UserError
from alexnet_edge.images.datasets import ImageSet, open_images, synthetic
from alexnet_edge.images.preprocess import FloatArray, preset
from alexnet_edge.proof.evaluate import outputs_NK
from alexnet_edge.proof.parity import TOLERANCES, check_parity, compare_outputs, judge, parity_not_run, weaknesses

FP32 = TOLERANCES["onnx", "fp32"]
FP16 = TOLERANCES["onnx", "fp16"]
INT8 = TOLERANCES["onnx", "int8"]


class MeanSession(Answering):
    """A network of a few numbers: the images' mean colours times a matrix, then a planted fault."""

    def __init__(self, classes: tuple[str, ...], *, scale: float = 1.0, swap: bool = False, nan_at: int = -1) -> None:
        weights = np.random.default_rng(0).normal(0, 4, (3, len(classes))).astype(np.float32)

        def answers(x_NCHW: FloatArray) -> FloatArray:
            y_NK = x_NCHW.mean(axis=(2, 3)) @ weights * np.float32(scale)
            first = sum(self.batches) - len(y_NK)
            if first <= nan_at < first + len(y_NK):
                y_NK[nan_at - first, 0] = np.nan
            return y_NK[:, ::-1] if swap else y_NK

        super().__init__(answers, classes, preset("imagenet-227"))


def trained_like(count: int, classes: int = 10, *, seed: int = 0) -> tuple[FloatArray, np.ndarray]:
    """Logits that put 3 in 4 images firmly into their class, and the labels."""
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(classes, size=count)
    logits_NK = rng.normal(0, 1, (count, classes))
    logits_NK[np.arange(count), labels_N] += np.where(rng.random(count) < 0.75, 8, 0)
    return logits_NK.astype(np.float32), labels_N


def test_equal_outputs_pass_every_tolerance() -> None:
    reference, labels = trained_like(400)
    figures = compare_outputs(reference, reference.copy(), labels_N=labels)
    assert (figures.max_abs_error, figures.flips, figures.lost, figures.won) == (0, 0, 0, 0)
    assert figures.sqnr_db is None
    assert figures.cosine_min == pytest.approx(1)
    assert figures.kl_mean == 0
    assert figures.mcnemar_p == 1
    for tolerance in TOLERANCES.values():
        assert judge(figures, tolerance) == []
    assert weaknesses(figures, INT8) == []


def test_figures_of_a_small_example() -> None:
    reference = np.array([[2, 0, 1], [0, 3, 0]], np.float32)
    candidate = np.array([[2, 0, 3], [0, 3, 0]], np.float32)
    figures = compare_outputs(reference, candidate, labels_N=np.array([0, 1]))
    assert figures.max_abs_error == 2
    assert figures.mean_abs_error == pytest.approx(2 / 6)
    assert figures.sqnr_db == pytest.approx(10 * math.log10(14 / 4))
    assert figures.cosine_min == pytest.approx(7 / math.sqrt(5 * 13))
    assert (figures.flips, figures.top1_agreement, figures.lost, figures.won) == (1, 0.5, 1, 0)
    assert (figures.reference_accuracy, figures.candidate_accuracy, figures.accuracy_change) == (1, 0.5, -0.5)
    assert figures.top5_agreement is None
    p = np.exp(reference) / np.exp(reference).sum(axis=1, keepdims=True)
    q = np.exp(candidate) / np.exp(candidate).sum(axis=1, keepdims=True)
    assert figures.kl_mean == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())


def test_top5_agreement_is_the_shared_part_of_the_lists() -> None:
    reference = np.arange(10, dtype=np.float32)[None]
    candidate = reference.copy()
    candidate[0, 0] = 6.5  # pushes class 5 out of the list 9, 8, 7, 6, 5
    assert compare_outputs(reference, candidate).top5_agreement == pytest.approx(0.8)


def test_kl_of_probabilities_holds_at_zero() -> None:
    reference = np.array([[1, 0], [0.5, 0.5]], np.float32)
    assert compare_outputs(reference, reference, head="probabilities").kl_mean == 0


def test_scaled_logits_fail_the_error_bound_though_every_class_agrees() -> None:
    reference, labels = trained_like(400)
    figures = compare_outputs(reference, reference * np.float32(1.01), labels_N=labels)
    assert figures.top1_agreement == 1
    (reason,) = judge(figures, FP32)
    assert "max abs error" in reason


def test_swapped_classes_fail_agreement_and_accuracy() -> None:
    reference, labels = trained_like(400)
    candidate = reference[:, [1, 0, *range(2, 10)]]
    figures = compare_outputs(reference, candidate, labels_N=labels)
    reasons = judge(figures, INT8)
    assert len(reasons) == 2
    assert "top-1 agreement" in reasons[0]
    assert "accuracy fell" in reasons[1]
    assert figures.mcnemar_p is not None
    assert figures.mcnemar_p < 0.001


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_not_finite_fails_every_tolerance(value: float) -> None:
    reference, labels = trained_like(50)
    candidate = reference.copy()
    candidate[7, 3] = value
    figures = compare_outputs(reference, candidate, labels_N=labels)
    for tolerance in TOLERANCES.values():
        assert judge(figures, tolerance) == ["1 of 500 outputs are NaN or infinite"]
    json.dumps(records.to_builtins(figures), allow_nan=False)
    absent = (figures.max_abs_error, figures.top1_agreement, figures.flip_rate, figures.kl_mean, figures.cosine_min)
    assert absent == (None,) * 5, "absent, not zero"


@pytest.mark.parametrize(("flipped", "passes"), [(6, True), (7, False)])
def test_the_bound_is_judged_on_the_point_estimate(flipped: int, passes: bool) -> None:
    """325 images at 98 %: 6 flips are 98.15 %, 7 are 97.85 %."""
    reference, _ = trained_like(325)
    candidate = reference.copy()
    candidate[:flipped] = np.roll(candidate[:flipped], 1, axis=1)
    figures = compare_outputs(reference, candidate)
    assert figures.flips == flipped
    assert (judge(figures, INT8) == []) is passes
    assert figures.top1_agreement_interval is not None
    assert figures.top1_agreement_interval[0] < 0.98


def test_accuracy_drop_of_exactly_the_bound_passes() -> None:
    reference = np.tile(np.array([[3, 0]], np.float32), (300, 1))
    candidate = reference.copy()
    candidate[:3] = candidate[:3, ::-1]
    labels = np.zeros(300, np.int64)
    assert judge(compare_outputs(reference, candidate, labels_N=labels), INT8) == []
    candidate[3] = candidate[3, ::-1]
    assert "fell by 1.33 points" in judge(compare_outputs(reference, candidate, labels_N=labels), INT8)[0]


def test_gains_do_not_hide_behind_losses_nor_losses_behind_gains() -> None:
    reference, labels = trained_like(400)
    candidate = np.full_like(reference, 0)
    candidate[np.arange(400), labels] = 9
    figures = compare_outputs(reference, candidate, labels_N=labels)
    assert figures.accuracy_change is not None
    assert figures.accuracy_change > 0.1
    assert [reason.split()[0] for reason in judge(figures, INT8)] == ["top-1"]


def test_what_proves_little_is_said() -> None:
    reference, labels = trained_like(10)
    figures = compare_outputs(reference, reference, labels_N=labels)
    assert judge(figures, INT8) == []
    (warning,) = weaknesses(figures, INT8)
    assert warning.startswith("10 images support a top-1 agreement of 72.2%")

    rng = np.random.default_rng(1)
    untrained = (rng.normal(0, 0.01, 100) + rng.normal(0, 1e-4, (300, 100))).astype(np.float32)
    warnings = " ".join(weaknesses(compare_outputs(untrained, untrained), FP32))
    for text in ("gives 100% of the images one class", "hardly depend on the image", "undecided"):
        assert text in warnings

    reference, labels = trained_like(400)
    guessed = np.random.default_rng(2).permutation(labels)
    (warning,) = weaknesses(compare_outputs(reference, reference, labels_N=guessed), FP32)
    assert warning.startswith("the checkpoint itself is right about")
    assert weaknesses(compare_outputs(reference, reference, labels_N=labels), FP32) == []


def test_unlabelled_images_cannot_judge_accuracy() -> None:
    reference, labels = trained_like(400)
    figures = compare_outputs(reference, reference, labels_N=np.full_like(labels, -1))
    assert figures.reference_accuracy is None
    assert "no image has a label" in weaknesses(figures, INT8)[0]


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (np.zeros((3, 4), np.float32), np.zeros((3, 5), np.float32)),
        (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)),
        (np.full((3, 4), np.nan, np.float32), np.zeros((3, 4), np.float32)),
        (np.zeros(3, np.float32), np.zeros(3, np.float32)),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(reference: FloatArray, candidate: FloatArray) -> None:
    with pytest.raises(UserError):
        compare_outputs(reference, candidate)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return synthetic("val").spread(48)


def test_check_parity_passes_the_same_network(images: ImageSet) -> None:
    with MeanSession(images.classes) as session:
        report = check_parity(session, outputs_NK(session, images)[0], images, tolerance=FP32, batch=20)
    assert report.passed
    assert report.figures.num_images == report.figures.num_labelled == 48
    assert report.images_sha256 == images.content_hash()
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (value["verdict"], value["images"]["count"]) == ("passed", 48)
    report.require("the same network")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [({"scale": 1.2}, "max abs error"), ({"swap": True}, "max abs error"), ({"nan_at": 47}, "NaN or infinite")],
)
def test_check_parity_fails_planted_faults(images: ImageSet, fault: dict[str, Any], reason: str) -> None:
    with MeanSession(images.classes) as reference, MeanSession(images.classes, **fault) as candidate:
        report = check_parity(candidate, outputs_NK(reference, images)[0], images, tolerance=FP32)
    assert not report.passed
    assert reason in report.reasons[0]
    assert report.to_json()["verdict"] == "failed"
    with pytest.raises(ParityError, match=reason):
        report.require("mean.onnx")


def test_check_parity_takes_reference_outputs_in_the_images_order(images: ImageSet) -> None:
    with MeanSession(images.classes) as session:
        reference_NK, _ = outputs_NK(session, images)
        assert check_parity(session, reference_NK, images, tolerance=FP32).passed
        assert not check_parity(session, reference_NK[::-1], images, tolerance=FP32).passed
        for arguments, message in (
            ((reference_NK[:-1], images, FP32), "one row per image"),
            ((reference_NK[:0], images.subset([]), FP32), "needs images"),
            ((reference_NK, images, None), "tolerance"),
        ):
            with pytest.raises(UserError, match=message):
                check_parity(session, *arguments[:2], tolerance=arguments[2])


def test_check_parity_on_images_of_other_classes_judges_answers_only(images: ImageSet) -> None:
    with MeanSession(tuple(f"other {index}" for index in range(len(images.classes)))) as session:
        report = check_parity(session, outputs_NK(session, images)[0], images, tolerance=INT8)
    assert report.passed
    assert report.figures.num_labelled == 0
    assert any("accuracy drop is not judged" in warning for warning in report.warnings)


def test_check_parity_skips_and_counts_bad_images(tmp_path: Path) -> None:
    good = synthetic("val").spread(6)
    for index in range(len(good)):
        good.image(index).save(tmp_path / f"{index}.png")
    with MeanSession(("a", "b", "c")) as session:
        reference_NK, _ = outputs_NK(session, open_images(tmp_path))
        (tmp_path / "3.png").write_bytes(b"not an image")
        report = check_parity(session, reference_NK, open_images(tmp_path), tolerance=FP32, on_bad_image="skip")
    assert report.passed
    assert (report.figures.num_images, report.images_skipped) == (5, 1)


def test_not_run_is_neither_passed_nor_failed() -> None:
    assert parity_not_run("no GPU here") == {"verdict": "not run", "reasons": ["no GPU here"], "warnings": []}


def test_defaults_hold_the_agreed_bounds() -> None:
    assert {key: value.max_abs_error for key, value in TOLERANCES.items() if key[1] == "fp32" and key[0] != "trt"} == {
        ("torchscript", "fp32"): 1e-4,
        ("pt2", "fp32"): 1e-4,
        ("onnx", "fp32"): 1e-3,
        ("openvino", "fp32"): 1e-3,
    }
    assert FP16.min_top1_agreement == 0.995
    assert (INT8.min_top1_agreement, INT8.max_accuracy_drop) == (0.98, 0.01)
    assert all(value.reason for value in TOLERANCES.values())
