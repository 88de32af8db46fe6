"""How well a network does on labelled images, in any runtime.

Letters: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from alexnet_edge.data import ImageSet, IntArray, OnBadImage, batches
from alexnet_edge.errors import DataError, ImageError, UserError
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions.base import Session

Head = Literal["logits", "probabilities"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassAccuracy:
    """One class among the images evaluated."""

    name: str
    count: int
    correct: int
    """Images whose highest output is this class."""

    @property
    def top1(self) -> float:
        return self.correct / self.count


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Accuracy and loss over `count` images."""

    count: int
    top1: float
    """Share of images whose class has the highest output, 0-1."""
    top5: float
    """Share of images whose class is among the five highest outputs, 0-1; 1 when there are five classes or fewer."""
    loss: float
    """Mean cross-entropy, in nats."""
    classes: tuple[ClassAccuracy, ...]
    """The classes that occur, in the order of the network's outputs."""
    skipped: tuple[str, ...] = ()
    """What was wrong with each image left out."""

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        value["classes"] = [{**asdict(entry), "top1": entry.top1} for entry in self.classes]
        value["skipped"] = list(self.skipped)
        return value


def outputs_NK(
    session: Session,
    images: ImageSet,
    *,
    batch: int = 32,
    on_bad_image: OnBadImage = "fail",
    bad: list[ImageError] | None = None,
    workers: int = 0,
) -> tuple[FloatArray, IntArray]:
    """Run the open `session` over `images` through its own preprocessing.

    Args:
        session: an open session.
        images: what to answer.
        batch: images per inference; brought within what the session takes, a short last batch is filled up if it must be.
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
    if session.preprocessing is None:
        raise UserError(
            "this session does not say how images are preprocessed", value=session.runtime, fix="use another"
        )
    if session.input.max_batch is not None:
        batch = min(batch, session.input.max_batch)
    least = session.input.min_batch
    outputs, indices = list[FloatArray](), list[IntArray]()
    for part in batches(
        images,
        session.preprocessing,
        batch=max(batch, least),
        on_bad_image=on_bad_image,
        bad=bad,
        workers=workers,
    ):
        count = len(part.x_NCHW)
        x_NCHW = part.x_NCHW
        if count < least:
            x_NCHW = np.concatenate([x_NCHW, np.repeat(x_NCHW[-1:], least - count, axis=0)])
        outputs.append(session.run(x_NCHW)[:count].copy())
        indices.append(part.indices_N)
    return np.concatenate(outputs), np.concatenate(indices)


def evaluate(
    session: Session,
    images: ImageSet,
    *,
    batch: int = 32,
    on_bad_image: OnBadImage = "fail",
    workers: int = 0,
) -> Evaluation:
    """Accuracy and loss of an open session over labelled images.

    Raises:
        DataError: when an image has no label, or the images' classes are not the network's.
        ImageError: when an image cannot be used and `on_bad_image` is `fail`.
    """
    labels_N = labels_for(session.classes, images)
    bad: list[ImageError] = []
    y_NK, indices_N = outputs_NK(session, images, batch=batch, on_bad_image=on_bad_image, bad=bad, workers=workers)
    return score(
        y_NK, labels_N[indices_N], classes=session.classes, head=session.head, skipped=[str(error) for error in bad]
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
    if images.classes == tuple(classes):
        return images.labels_N
    if len(images.classes) == len(classes) and list(classes) == [f"class {index}" for index in range(len(classes))]:
        return images.labels_N
    index_of = {name: index for index, name in enumerate(classes)}
    labels = images.labels_N.tolist()
    unknown = sorted({images.classes[label] for label in labels} - set(index_of))
    if unknown:
        raise DataError(
            f"the images show {unknown[0]!r}, which is not among the network's {len(classes)} classes",
            value=images.source.get("path"),
            fix="use images of its classes, or give the class list",
        )
    return np.asarray([index_of[images.classes[label]] for label in labels], np.int64)


def score(
    y_NK: FloatArray, labels_N: IntArray, *, classes: Sequence[str], head: Head, skipped: Sequence[str] = ()
) -> Evaluation:
    """Accuracy and loss of outputs `(N, K)` against labels `(N,)`, N at least 1.

    Raises:
        DataError: when an output is not finite.
    """
    assert len(y_NK) == len(labels_N) > 0
    if not np.isfinite(y_NK).all():
        raise DataError("the network's outputs are not finite", value="NaN or infinity", fix="use another checkpoint")
    own_N = y_NK[np.arange(len(y_NK)), labels_N]
    # ties count against the network: an answer of all zeros is not right about every image
    rank_N = (y_NK >= own_N[:, None]).sum(axis=1) - 1
    if head == "probabilities":
        log_own_N = np.log(np.maximum(own_N.astype(np.float64), np.finfo(np.float32).tiny))
    else:
        shifted_NK = y_NK.astype(np.float64) - y_NK.max(axis=1, keepdims=True)
        log_own_N = shifted_NK[np.arange(len(y_NK)), labels_N] - np.log(np.exp(shifted_NK).sum(axis=1))
    rows = tuple(
        ClassAccuracy(
            name=classes[label],
            count=int((labels_N == label).sum()),
            correct=int((rank_N[labels_N == label] == 0).sum()),
        )
        for label in np.unique(labels_N).tolist()
    )
    return Evaluation(
        count=len(y_NK),
        top1=float((rank_N == 0).mean()),
        top5=float((rank_N < 5).mean()),
        loss=float(-log_own_N.mean()),
        classes=rows,
        skipped=tuple(skipped),
    )
