"""How well a network does on labelled images, in any runtime: accuracy, confusions, calibration.

One rule for equal outputs: a network's answer is the class with the highest output and, of equal ones, the first. It is the
rule of `numpy.argmax`, of `predict` and of `proof.parity`. A network whose outputs are all alike thus answers its first
class always; `Evaluation.ties` says for how many images the rule had to decide.

Letters: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.images.datasets import ImageSet, IntArray, OnBadImage, usable
from alexnet_edge.images.preprocess import FloatArray, Preprocessing, preprocess_image, ten_crops
from alexnet_edge.proof.stats import Array
from alexnet_edge.sessions.base import Session

Head = Literal["logits", "probabilities"]

CALIBRATION_BINS = 15
"""Bins of equal width, as in Guo et al. 2017."""

MOST_CLASSES_IN_MATRIX = 100
"""With more classes the confusion matrix is left out, and the most frequent confusions alone are listed."""

MOST_CONFUSIONS = 20
"""Longest list of confusions."""

_SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 has no logarithm

_CHUNK = 1024  # images scored at once: 64-bit copies of all outputs of a large set would not fit into a board's memory


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassAccuracy:
    """One class among the images evaluated."""

    name: str
    count: int
    """Images of this class: its support."""
    correct: int
    """Images of this class that were answered so."""
    predicted: int
    """Images of any class that were answered so."""
    top1: float
    """Share of the images of this class that were answered so."""
    precision: float | None
    """Share of these answers that were right; None where none was given."""
    recall: float
    """The same as `top1`."""
    f1: float
    """Harmonic mean of precision and recall: twice the right answers over answers plus images; 0 when none is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Confused:
    """Images of one class that were answered as another."""

    actual: str
    predicted: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Which classes were taken for which."""

    classes: tuple[str, ...]
    """Every class of the network, in the order of its outputs."""
    matrix: list[list[int]] | None
    """`(K, K)`: images by class (row) and answer (column); None with more than `MOST_CLASSES_IN_MATRIX` classes."""
    reason: str | None
    """Why there is no matrix."""
    most: tuple[Confused, ...]
    """The most frequent wrong answers, most frequent first, `MOST_CONFUSIONS` at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """The images whose confidence, the probability given to the answer, is above `low` and up to `high`."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean confidence; None in an empty bin."""
    accuracy: float | None
    """Share of right answers; None in an empty bin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reliability:
    """Calibration: whether the network is right as often as its probabilities say.

    Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017), section 2; Brier,
    "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950).
    """

    expected_error: float
    """ECE: |accuracy - mean confidence| of each bin, averaged with the bins' shares of the images, 0-1."""
    maximum_error: float
    """MCE: the largest |accuracy - mean confidence| of a bin that is not empty, 0-1."""
    brier: float
    """Brier's score: squared differences between the probabilities and (0, ..., 1, ..., 0), summed over the classes, mean
    over the images; 0 at best, 2 at worst."""
    negative_log_likelihood: float
    """Mean of -ln(probability of the image's class), in nats: the same as `Evaluation.loss`."""
    bins: tuple[ReliabilityBin, ...]
    """`CALIBRATION_BINS` of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Accuracy, loss, confusions and calibration over `count` images."""

    count: int
    top1: float
    """Share of images whose class has the highest output, 0-1."""
    top5: float
    """Share of images whose class is among the five highest outputs, 0-1; 1 when there are five classes or fewer."""
    loss: float
    """Mean cross-entropy, in nats."""
    classes: tuple[ClassAccuracy, ...]
    """The classes that occur, in the order of the network's outputs."""
    ties: int
    """Images with more than one highest output; the first is the answer."""
    confusion: Confusion
    calibration: Reliability
    crops: int
    """Views of each image that were averaged: 1 or 10."""
    coinciding: bool
    """Whether the shorter side is resized to just the crop, so that some of ten crops are the same."""
    skipped: tuple[str, ...]
    """What was wrong with each image left out."""
    correct: int
    """Images answered right: `top1` of `count`."""
    balanced_accuracy: float
    """Mean recall of the classes that occur: top-1 if every class had as many images."""
    macro_f1: float
    """Mean F1 of the classes that occur."""


def outputs_NK(
    session: Session,
    images: ImageSet,
    *,
    batch: int = 32,
    ten_crop: bool = False,
    on_bad_image: OnBadImage = "fail",
    bad: list[ImageError] | None = None,
    workers: int = 0,
) -> tuple[FloatArray, IntArray]:
    """Run the open `session` over `images` through its own preprocessing.

    Args:
        session: an open session.
        images: what to answer.
        batch: inputs per inference; brought within what the session takes, a short last batch is filled up if it must be.
        ten_crop: give probabilities, whatever the session's head: the mean of the softmax outputs of the ten views of each
            image, see `preprocess.ten_crops`. A batch may hold views of several images.
        on_bad_image: `fail` raises at the first image that cannot be used, `skip` leaves it out.
        bad: receives the error of each image left out.
        workers: threads that decode ahead.

    Returns:
        The outputs `(N, K)` float32, and the positions in `images` they belong to.

    Raises:
        ImageError: when an image cannot be used and `on_bad_image` is `fail`.
        DataError: when no image is left.
        UserError: when the session names no preprocessing.
    """
    spec, batch = _preprocessing(session), _batch_within(session, batch)
    prepare = partial(ten_crops if ten_crop else preprocess_image, spec=spec)
    ahead = workers if ten_crop else 2 * batch
    read = usable(images, prepare, on_bad_image=on_bad_image, bad=bad, workers=workers, ahead=ahead)
    indices = list[int]()

    def views() -> Iterator[FloatArray]:
        for index, x in read:
            indices.append(index)
            yield from x.reshape(-1, *x.shape[-3:])  # C,H,W or ten of them

    def answers() -> Iterator[FloatArray]:
        waiting = views()
        while part := list(islice(waiting, batch)):
            yield from _run(session, np.stack(part))

    rows, outputs = answers(), list[FloatArray]()
    while part := list(islice(rows, 10 if ten_crop else 1)):
        y_NK = np.stack(part)
        outputs.append(probabilities(y_NK, session.head).mean(axis=0).astype(np.float32) if ten_crop else y_NK[0])
    return np.stack(outputs), np.asarray(indices, np.int64)


def _preprocessing(session: Session) -> Preprocessing:
    if session.preprocessing is None:
        raise UserError(
            "this session does not say how images are preprocessed", value=session.runtime, fix="use another"
        )
    return session.preprocessing


def _batch_within(session: Session, batch: int) -> int:
    """`batch`, brought within what the session takes."""
    return max(min(batch, session.input.max_batch or batch), session.input.min_batch)


def _run(session: Session, x_NCHW: FloatArray) -> FloatArray:
    """The outputs `(N, K)` of a batch that may be smaller than the session takes: it is filled up."""
    count = len(x_NCHW)
    filling = max(session.input.min_batch - count, 0)
    if filling:
        x_NCHW = np.concatenate([x_NCHW, np.repeat(x_NCHW[-1:], filling, axis=0)])
    y_NK: FloatArray = session.run(x_NCHW)[:count].copy()
    return y_NK


def evaluate(
    session: Session,
    images: ImageSet,
    *,
    ten_crop: bool = False,
    on_bad_image: OnBadImage = "fail",
    workers: int = 0,
) -> Evaluation:
    """Accuracy, loss, confusions and calibration of an open session over labelled images.

    The arguments and errors are those of `outputs_NK`.

    Raises:
        DataError: also when there is no image, one has no label, the images' classes are not the network's, or the outputs
            are not what they should be.
    """
    if len(images) == 0:
        raise DataError(
            "there is no image to evaluate on", value=images.source.get("path"), fix="name a folder with images"
        )
    labels_N = labels_for(session.classes, images)
    spec = _preprocessing(session)
    bad: list[ImageError] = []
    y_NK, indices_N = outputs_NK(
        session, images, ten_crop=ten_crop, on_bad_image=on_bad_image, bad=bad, workers=workers
    )
    return score(
        y_NK,
        labels_N[indices_N],
        classes=session.classes,
        head="probabilities" if ten_crop else session.head,
        crops=10 if ten_crop else 1,
        coinciding=ten_crop and spec.resize == spec.crop,
        skipped=[str(error) for error in bad],
    )


def labels_for(classes: Sequence[str], images: ImageSet) -> IntArray:
    """The images' labels as output indices of a network with these `classes`, matched by name.

    A network whose classes have numbers only (`class 0`, ...: imported weights) takes the images' own indices.

    Raises:
        DataError: when an image has no label, or a class that occurs is not one of the network's.
    """
    if not images.labelled:
        raise DataError(
            "the images have no labels", value=images.source.get("path"), fix="put each class in a folder of its name"
        )
    numbered = tuple(f"class {index}" for index in range(len(images.classes)))
    if tuple(classes) in (images.classes, numbered):
        return images.labels_N
    index_of = {name: index for index, name in enumerate(classes)}
    names = [images.classes[label] for label in images.labels_N.tolist()]
    unknown = sorted(set(names) - set(index_of))
    if unknown:
        raise DataError(
            f"the images show {unknown[0]!r}, which is not among the network's {len(classes)} classes",
            value=images.source.get("path"),
            fix="use images of its classes, or give the class list",
        )
    return np.asarray([index_of[name] for name in names], np.int64)


def probabilities(y_NK: FloatArray, head: Head) -> Array:
    """Outputs `(N, K)` as probabilities, float64: their softmax, or themselves where the network ends in one.

    Raises:
        DataError: when an output is not finite, or what should be a probability is far outside 0 to 1.
    """
    if not np.isfinite(y_NK).all():
        raise DataError("the network's outputs are not finite", value="NaN or infinity", fix="use another checkpoint")
    y = y_NK.astype(np.float64)
    if head == "probabilities":
        low, high = float(y.min()), float(y.max())
        if low < -0.01 or high > 1.01:  # reduced precision rounds, to a little more than 1 at most
            raise DataError(
                "the network is said to answer with probabilities, but its outputs are not from 0 to 1",
                value=f"{low:.4g} to {high:.4g}",
                fix="use another checkpoint or export again",
            )
        return y.clip(0, 1)
    exponents = np.exp(y - y.max(axis=1, keepdims=True))
    result: Array = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def score(
    y_NK: FloatArray,
    labels_N: IntArray,
    *,
    classes: Sequence[str],
    head: Head,
    crops: int = 1,
    coinciding: bool = False,
    skipped: Sequence[str] = (),
) -> Evaluation:
    """Accuracy, loss, confusions and calibration of outputs `(N, K)` against labels `(N,)`, N at least 1.

    `crops`, `coinciding` and `skipped` are passed on. A probability below 1.2e-38 costs as much as that, 87 nats.

    Raises:
        DataError: when an output is not finite, or what should be a probability is far outside 0 to 1.
    """
    num_images, num_classes = y_NK.shape
    assert num_images == len(labels_N) > 0
    assert num_classes == len(classes)
    parts = [
        _score_images(y_NK[start : start + _CHUNK], labels_N[start : start + _CHUNK], head)
        for start in range(0, num_images, _CHUNK)
    ]
    answer_N, rank_N, tied_N, confidence_N, loss_N, brier_N = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    loss = float(loss_N.mean())
    figures_K = [
        np.bincount(some_N, minlength=num_classes).tolist() for some_N in (labels_N, labels_N[rank_N == 0], answer_N)
    ]
    rows = [_class_accuracy(*row) for row in zip(classes, *figures_K, strict=True) if row[1]]
    return Evaluation(
        count=num_images,
        top1=float((rank_N == 0).mean()),
        top5=float((rank_N < 5).mean()),
        loss=loss,
        classes=tuple(rows),
        ties=int(tied_N.sum()),
        confusion=confusion(labels_N, answer_N, classes),
        calibration=reliability(confidence_N, rank_N == 0, brier=float(brier_N.mean()), negative_log_likelihood=loss),
        crops=crops,
        coinciding=coinciding,
        skipped=tuple(skipped),
        correct=sum(row.correct for row in rows),
        balanced_accuracy=sum(row.recall for row in rows) / len(rows),
        macro_f1=sum(row.f1 for row in rows) / len(rows),
    )


def _class_accuracy(name: str, count: int, correct: int, predicted: int) -> ClassAccuracy:
    return ClassAccuracy(
        name=name,
        count=count,
        correct=correct,
        predicted=predicted,
        top1=correct / count,
        precision=correct / predicted if predicted else None,
        recall=correct / count,
        f1=2 * correct / (count + predicted),
    )


def _score_images(y_NK: FloatArray, labels_N: IntArray, head: Head) -> tuple[npt.NDArray[Any], ...]:
    """Of each image: answer, rank of its class (0 is the best), whether answers tie, confidence, loss, Brier's score."""
    p_NK = probabilities(y_NK, head)
    images_N = np.arange(len(y_NK))
    answer_N = y_NK.argmax(axis=1)  # of the outputs: their probabilities may round to equal ones
    own_N = y_NK[images_N, labels_N][:, None]
    first_N = np.arange(y_NK.shape[1]) < labels_N[:, None]
    rank_N = ((y_NK > own_N) | ((y_NK == own_N) & first_N)).sum(axis=1)
    tied_N = (y_NK == y_NK[images_N, answer_N][:, None]).sum(axis=1) > 1
    if head == "probabilities":
        loss_N = -np.log(np.maximum(p_NK[images_N, labels_N], _SMALLEST))
    else:
        shifted_NK = y_NK.astype(np.float64) - y_NK.max(axis=1, keepdims=True)
        loss_N = np.log(np.exp(shifted_NK).sum(axis=1)) - shifted_NK[images_N, labels_N]
    confidence_N = p_NK[images_N, answer_N]
    p_NK[images_N, labels_N] -= 1
    return answer_N, rank_N, tied_N, confidence_N, loss_N, (p_NK**2).sum(axis=1)


def confusion(labels_N: IntArray, answer_N: IntArray, classes: Sequence[str]) -> Confusion:
    """Which of the `classes` were taken for which: `labels_N` and `answer_N` are output indices `(N,)`.

    Equally frequent confusions are in the order of the network's outputs.
    """
    num_classes = len(classes)
    pairs, counts = np.unique(labels_N * num_classes + answer_N, return_counts=True)
    actual, predicted = pairs // num_classes, pairs % num_classes
    wrong = np.flatnonzero(actual != predicted)
    wrong = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_CONFUSIONS]
    matrix, reason = None, None
    if num_classes <= MOST_CLASSES_IN_MATRIX:
        matrix_KK = np.zeros((num_classes, num_classes), np.int64)
        matrix_KK[actual, predicted] = counts
        matrix = matrix_KK.tolist()
    else:
        reason = f"{num_classes} classes, more than {MOST_CLASSES_IN_MATRIX}: the most frequent are listed"
    return Confusion(
        classes=tuple(classes),
        matrix=matrix,
        reason=reason,
        most=tuple(
            Confused(actual=classes[actual[at]], predicted=classes[predicted[at]], count=int(counts[at]))
            for at in wrong.tolist()
        ),
    )


def reliability(
    confidence_N: Array, right_N: npt.NDArray[np.bool_], *, brier: float, negative_log_likelihood: float
) -> Reliability:
    """The table of how often answers of each confidence, the probability given to them, were right, and its errors.

    `brier` and `negative_log_likelihood` are passed on.
    """
    edges = np.arange(CALIBRATION_BINS + 1) / CALIBRATION_BINS
    bin_N = np.searchsorted(edges[1:-1], confidence_N, side="left")  # a bin ends with its upper edge, the first has 0
    bins = list[ReliabilityBin]()
    gaps = np.zeros(CALIBRATION_BINS)
    for index, (low, high) in enumerate(pairwise(edges.tolist())):
        inside = bin_N == index
        count, confidence, accuracy = int(inside.sum()), None, None
        if count:
            confidence, accuracy = float(confidence_N[inside].mean()), float(right_N[inside].mean())
            gaps[index] = abs(accuracy - confidence)
        bins.append(ReliabilityBin(low=low, high=high, count=count, confidence=confidence, accuracy=accuracy))
    shares = np.asarray([entry.count for entry in bins]) / len(confidence_N)
    return Reliability(
        expected_error=float((gaps * shares).sum()),
        maximum_error=float(gaps.max()),
        brier=brier,
        negative_log_likelihood=negative_log_likelihood,
        bins=tuple(bins),
    )
