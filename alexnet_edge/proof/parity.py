"""Does an artifact give the checkpoint's answers? Figures, tolerances, and the verdict.

Needs numpy only, so that it also runs on a device; sessions bring their own runtimes.

Letters: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.artifact import Artifact
from alexnet_edge.errors import DataError, ImageError, ParityError, UserError
from alexnet_edge.images.datasets import ImageSet, IntArray, OnBadImage
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.proof.evaluate import Head, labels_for, outputs_NK
from alexnet_edge.proof.stats import CONFIDENCE, Array, mcnemar_exact, wilson_interval
from alexnet_edge.sessions import Session, open_session, reference_session
from alexnet_edge.sessions.base import Device

_SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 has no logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """The bounds that one format and precision must keep, judged on the point estimates; None sets no bound."""

    reason: str
    """Why these bounds."""
    max_abs_error: float | None = None
    """Largest difference of any output from the checkpoint's, in the outputs' own unit."""
    min_top1_agreement: float | None = None
    """Share of images whose largest output is of the same class as the checkpoint's, 0 to 1."""
    max_accuracy_drop: float | None = None
    """Top-1 accuracy that may be lost against the labels, 0.01 meaning one point; applies when labels are there."""


_COARSE = {
    "int8": "8-bit weights and activations: some images near a tie change class, right and wrong ones alike",
    "fp8": "4 significant bits of weights and activations, over a wide range: about INT8's error, spread otherwise",
    "int8-int4-fc": "8-bit weights and activations in the convolutions, 16 values for the weights of fc6 to fc8, in blocks "
    "with scales: some images near a tie change class, right and wrong ones alike",
    "mixed": "a plan of types per layer, of which the coarsest decides: the bounds of INT8 and INT4",
    "int4-fc": "15 values for the weights of fc6 to fc8, which are nearly all, in blocks with scales; activations stay FP16",
}
_ROUNDED: dict[str, Tolerance] = {
    "fp16": Tolerance(
        min_top1_agreement=0.995, reason="11 significant bits: only images near a tie may change their class"
    ),
    "bf16": Tolerance(
        min_top1_agreement=0.99,
        reason="8 significant bits, in FP32's range: images near a tie may change their class, a few more than with FP16",
    ),
    **{
        precision: Tolerance(min_top1_agreement=0.98, max_accuracy_drop=0.01, reason=reason)
        for precision, reason in _COARSE.items()
    },
}
"""By precision, where weights or activations are rounded: the same for a graph and for the engine built from it."""
_SAME_ARITHMETIC = "the same float32 arithmetic by another library's kernels, which sum in another order"

TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("torchscript", "fp32"): Tolerance(
        max_abs_error=1e-4, reason="the same float32 kernels; freezing may fuse them and change the order of sums"
    ),
    ("pt2", "fp32"): Tolerance(
        max_abs_error=1e-4, reason="the same float32 operators, from a graph instead of from Python"
    ),
    ("onnx", "fp32"): Tolerance(max_abs_error=1e-3, reason=_SAME_ARITHMETIC),
    ("openvino", "fp32"): Tolerance(
        max_abs_error=1e-3,
        reason=f"{_SAME_ARITHMETIC}; BF16, which keeps 8 significant bits and which OpenVINO takes by itself where the "
        "processor has it, is not allowed to it",
    ),
    ("trt", "fp32"): Tolerance(
        max_abs_error=1e-2,
        min_top1_agreement=0.995,
        reason="TensorRT may compute float32 layers in TF32, which keeps 11 significant bits of each factor",
    ),
    **{(format, precision): bounds for format in ("onnx", "trt") for precision, bounds in _ROUNDED.items()},
    **{("openvino", precision): _ROUNDED[precision] for precision in ("fp16", "int8", "int8-int4-fc", "mixed")},
}
"""By format and precision; meant for a trained network judged on some hundred real images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityFigures:
    """How the outputs of two networks on the same images differ.

    Error figures are None when an output is not finite. Intervals are Wilson's, 95 %.
    """

    num_images: int
    num_classes: int
    num_not_finite: int
    """Outputs of the candidate that are NaN or infinite, of `num_images * num_classes`."""
    num_labelled: int
    reference_top_share: float
    """Share of images that the reference puts into its most frequent class: near 1, agreement proves little."""
    reference_entropy: float
    """Mean entropy of the reference's probabilities over the largest possible: 1 means undecided everywhere."""
    reference_variation: float
    """Spread of an output over the images against the spread of all outputs: near 0, every image gets the same answer."""
    max_abs_error: float | None = None
    mean_abs_error: float | None = None
    cosine_min: float | None = None
    """Cosine between the two output vectors of an image: the lowest of all images."""
    cosine_mean: float | None = None
    sqnr_db: float | None = None
    """Power of the reference outputs over power of the error, in decibel; None when there is no error at all."""
    kl_mean: float | None = None
    """Kullback-Leibler divergence of the candidate's probabilities from the reference's, in nat, mean over images."""
    top1_agreement: float | None = None
    top1_agreement_interval: tuple[float, float] | None = None
    top5_agreement: float | None = None
    """Shared classes of the two top-5 lists over 5, mean over images; None with five classes or fewer."""
    flips: int | None = None
    """Images whose top-1 class changed."""
    flip_rate: float | None = None
    flip_rate_interval: tuple[float, float] | None = None
    reference_accuracy: float | None = None
    """Top-1 against the labels, 0 to 1; None without labels."""
    majority_share: float | None = None
    """Share of the most frequent label: the accuracy of answering that class always."""
    candidate_accuracy: float | None = None
    accuracy_change: float | None = None
    """Candidate minus reference: negative is a drop."""
    lost: int | None = None
    """Labelled images that only the reference gets right."""
    won: int | None = None
    """Labelled images that only the candidate gets right."""
    mcnemar_p: float | None = None
    """Exact p-value of "equally often right", from `lost` and `won`."""


def compare_outputs(
    reference_NK: FloatArray, candidate_NK: FloatArray, *, labels_N: IntArray | None = None, head: Head = "logits"
) -> ParityFigures:
    """Compare two networks' float32 outputs `(N, K)` on the same images; the reference's must be finite.

    `labels_N` are the true classes, negative where unlabelled.

    Raises:
        UserError: when the shapes differ, there is no image, or the reference is not finite.
    """
    reference, candidate = np.asarray(reference_NK, np.float64), np.asarray(candidate_NK, np.float64)
    labels = np.full(len(reference), -1) if labels_N is None else np.asarray(labels_N)
    _require_comparable(reference, candidate, labels)
    log_p = _log_probabilities(reference, head)
    num_not_finite = int((~np.isfinite(candidate)).sum())
    figures = {"num_not_finite": num_not_finite, **_reference_figures(reference, labels, log_p)}
    if not num_not_finite:
        figures |= _differences(reference, candidate) | _label_differences(reference, candidate, labels)
        log_q = _log_probabilities(candidate, head)
        figures["kl_mean"] = max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))
    return ParityFigures(**figures)


def _require_comparable(reference: Array, candidate: Array, labels: IntArray) -> None:
    if reference.ndim != 2 or reference.shape != candidate.shape:
        raise UserError(
            "outputs to compare must have one shape (N, K)",
            value=f"{reference.shape} and {candidate.shape}",
            fix="compare an artifact with the checkpoint it was exported from, on the same images",
        )
    if not reference.size:
        raise UserError("there is no image to compare the outputs on", value=len(reference), fix="give some images")
    if not np.isfinite(reference).all():
        raise UserError(
            "the checkpoint's own outputs are not finite", value="NaN or infinity", fix="use an earlier checkpoint"
        )
    if labels.shape != (len(reference),):
        raise UserError("labels must be one per image", value=labels.shape, fix=f"give {len(reference)} labels")


def _reference_figures(reference: Array, labels: IntArray, log_p: Array) -> dict[str, Any]:
    """The figures of the checkpoint alone: how decided it is, how much its outputs depend on the image, how often right."""
    num_images, num_classes = reference.shape
    answers, spread, labelled = reference.argmax(axis=1), float(reference.std()), labels >= 0
    entropy = -(np.exp(log_p) * log_p).sum(axis=1).mean()
    figures = {
        "num_images": num_images,
        "num_classes": num_classes,
        "num_labelled": int(labelled.sum()),
        "reference_top_share": float(np.bincount(answers).max() / num_images),
        "reference_entropy": float(entropy / math.log(num_classes)) if num_classes > 1 else 0.0,
        "reference_variation": float(reference.std(axis=0).mean() / spread) if spread else 0.0,
    }
    if labelled.any():
        figures["reference_accuracy"] = float((answers == labels)[labelled].mean())
        figures["majority_share"] = float(np.bincount(labels[labelled]).max() / labelled.sum())
    return figures


def _differences(reference: Array, candidate: Array) -> dict[str, Any]:
    """How far the outputs are apart, and how many answers change."""
    num_images = len(reference)
    error = candidate - reference
    error_power, power = float((error**2).sum()), float((reference**2).sum())
    flips = int((candidate.argmax(axis=1) != reference.argmax(axis=1)).sum())
    cosine = _cosine(reference, candidate)
    return {
        "max_abs_error": float(np.abs(error).max()),
        "mean_abs_error": float(np.abs(error).mean()),
        "cosine_min": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "sqnr_db": 10 * math.log10(power / error_power) if error_power and power else None,
        "top1_agreement": 1 - flips / num_images,
        "top1_agreement_interval": wilson_interval(num_images - flips, num_images),
        "top5_agreement": _top_overlap(reference, candidate, 5) if reference.shape[1] > 5 else None,
        "flips": flips,
        "flip_rate": flips / num_images,
        "flip_rate_interval": wilson_interval(flips, num_images),
    }


def _label_differences(reference: Array, candidate: Array, labels: IntArray) -> dict[str, Any]:
    """How many labelled images only one of the two gets right; nothing without labels."""
    labelled = labels >= 0
    if not labelled.any():
        return {}
    before, after = ((outputs.argmax(axis=1) == labels)[labelled] for outputs in (reference, candidate))
    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return {
        "candidate_accuracy": float(after.mean()),
        "accuracy_change": (won - lost) / len(after),
        "lost": lost,
        "won": won,
        "mcnemar_p": mcnemar_exact(lost, won),
    }


def _log_probabilities(outputs: Array, head: Head) -> Array:
    if head == "probabilities":
        return np.asarray(np.log(np.maximum(outputs, _SMALLEST)))
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _cosine(first: Array, second: Array) -> Array:
    """Of each image: 1 where both outputs are zero, 0 where one is."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine: Array = np.asarray(~first.any(axis=1) & ~second.any(axis=1), np.float64)
    np.divide((first * second).sum(axis=1), lengths, out=cosine, where=lengths > 0)
    return cosine


def _top_overlap(first: Array, second: Array, count: int) -> float:
    """Shared classes of the two lists of the `count` largest outputs, over `count`, mean over images."""
    top_first, top_second = (np.argsort(-outputs, axis=1, kind="stable")[:, :count] for outputs in (first, second))
    return float((top_first[:, :, None] == top_second[:, None, :]).any(axis=2).mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """The verdict on one artifact, with everything it rests on."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it failed; empty when it passed."""
    warnings: tuple[str, ...]
    """What weakens the verdict."""
    tolerance: Tolerance
    figures: ParityFigures
    images_sha256: str
    """Of the ordered images and labels."""
    images_source: Mapping[str, Any]
    """How to open the same images again."""
    images_skipped: int
    """Images that could not be used; not counted in the figures."""
    candidate: Mapping[str, Any]
    """What ran: runtime, library version, threads."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The form kept in `Manifest.parity` and copied into results."""
        return {
            "verdict": "passed" if self.passed else "failed",
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            "tolerance": records.to_builtins(self.tolerance),
            "figures": records.to_builtins(self.figures),
            "images": {
                "count": self.figures.num_images,
                "skipped": self.images_skipped,
                "sha256": self.images_sha256,
                "source": dict(self.images_source),
            },
            "candidate": dict(self.candidate),
            "confidence": CONFIDENCE,
            "seconds": round(self.seconds, 3),
        }

    def require(self, subject: object) -> None:
        """Raise when it failed.

        Raises:
            ParityError: with `subject` and every reason, in one line.
        """
        if not self.passed:
            raise ParityError(f"{subject} does not give the checkpoint's answers: {'; '.join(self.reasons)}")


def parity_not_run(reason: str) -> dict[str, Any]:
    """What `Manifest.parity` holds for an artifact that could not be run where it was built."""
    return {"verdict": "not run", "reasons": [reason], "warnings": []}


def tolerance_of(artifact: Artifact) -> Tolerance:
    """The bounds for the artifact's format and precision.

    Raises:
        UserError: when there are none.
    """
    key = (artifact.manifest.format, artifact.manifest.precision)
    if key not in TOLERANCES:
        raise UserError("no tolerance is defined for", value=artifact.label, fix="give one")
    return TOLERANCES[key]


def check_parity(
    candidate: Session | Artifact,
    reference: FloatArray | Checkpoint,
    images: ImageSet,
    *,
    tolerance: Tolerance | None = None,
    batch: int = 32,
    device: Device | None = "cpu",
    threads: int | None = None,
    on_bad_image: OnBadImage = "fail",
) -> ParityReport:
    """Run the artifact and its checkpoint on `images` and judge how far the answers differ.

    Args:
        candidate: the artifact, or an open session on it (then `tolerance` must be given).
        reference: the checkpoint, or its outputs `(len(images), K)`, float32, in the images' order.
        images: labelled images also give the accuracy figures.
        tolerance: by default that of the artifact's format and precision.
        batch: images per inference.
        device: where an artifact opened here runs, None for where its kind runs; the checkpoint runs on the CPU.
        threads: processor threads of the sessions opened here.
        on_bad_image: `skip` leaves out images that cannot be used and counts them.

    Raises:
        UserError: when there is no image, the two do not fit together, or one cannot be opened.
        ImageError: when an image cannot be used and `on_bad_image` is `fail`.
    """
    start = time.perf_counter_ns()
    if len(images) == 0:
        raise UserError("parity needs images", value=0, fix="give a folder with images")
    bad: list[ImageError] = []
    with ExitStack() as stack:
        if isinstance(candidate, Artifact):
            tolerance = tolerance or tolerance_of(candidate)
            candidate = stack.enter_context(open_session(candidate, device=device, threads=threads))
        if tolerance is None:
            raise UserError("a session alone does not say which tolerance applies", fix="give the tolerance")
        candidate_NK, indices_N = outputs_NK(candidate, images, batch=batch, on_bad_image=on_bad_image, bad=bad)
        details, head, classes = candidate.details(), candidate.head, candidate.classes
    reference_NK = _reference_outputs(reference, images, indices_N, batch=batch, threads=threads)
    labels_N = None
    with suppress(DataError):  # answers can be compared on images of any class; `weaknesses` says when that matters
        labels_N = labels_for(classes, images)[indices_N]
    figures = compare_outputs(reference_NK, candidate_NK, labels_N=labels_N, head=head)
    reasons = judge(figures, tolerance)
    return ParityReport(
        passed=not reasons,
        reasons=tuple(reasons),
        warnings=tuple(weaknesses(figures, tolerance)),
        tolerance=tolerance,
        figures=figures,
        images_sha256=images.content_hash(),
        images_source=images.source,
        images_skipped=len(bad),
        candidate=details,
        seconds=(time.perf_counter_ns() - start) / 1e9,
    )


def _reference_outputs(
    reference: FloatArray | Checkpoint, images: ImageSet, indices_N: IntArray, *, batch: int, threads: int | None
) -> FloatArray:
    """The reference's outputs for the images `indices_N`."""
    if not isinstance(reference, np.ndarray):
        with reference_session(reference, threads=threads) as session:
            return outputs_NK(session, images.subset(list(indices_N)), batch=batch)[0]
    if len(reference) != len(images):
        raise UserError(
            "reference outputs must have one row per image", value=len(reference), fix=f"give {len(images)} rows"
        )
    return reference[indices_N]


def judge(figures: ParityFigures, tolerance: Tolerance) -> list[str]:
    """Every bound that is broken, in words; empty when all hold."""
    if figures.num_not_finite:
        total = figures.num_images * figures.num_classes
        return [f"{figures.num_not_finite} of {total} outputs are NaN or infinite"]
    assert figures.max_abs_error is not None
    assert figures.top1_agreement is not None
    reasons = []
    if tolerance.max_abs_error is not None and not figures.max_abs_error <= tolerance.max_abs_error:
        reasons.append(f"max abs error {figures.max_abs_error:.2e} is above {tolerance.max_abs_error:.0e}")
    if tolerance.min_top1_agreement is not None and not figures.top1_agreement >= tolerance.min_top1_agreement:
        reasons.append(
            f"top-1 agreement {figures.top1_agreement:.2%} ({figures.flips} of {figures.num_images} images differ) "
            f"is below {tolerance.min_top1_agreement:.1%}"
        )
    if tolerance.max_accuracy_drop is not None and figures.accuracy_change is not None:
        drop = -figures.accuracy_change
        if drop > tolerance.max_accuracy_drop + 1e-12:  # won - lost over n is exact to a few ulp
            reasons.append(
                f"top-1 accuracy fell by {100 * drop:.2f} points ({figures.lost} images lost, {figures.won} won), "
                f"more than {100 * tolerance.max_accuracy_drop:g}"
            )
    return reasons


def weaknesses(figures: ParityFigures, tolerance: Tolerance) -> list[str]:
    """What weakens the verdict: too few images, or a network that answers the same to most of them."""
    texts = []
    bound = tolerance.min_top1_agreement
    if bound is not None and figures.top1_agreement_interval is not None and figures.top1_agreement is not None:
        low = figures.top1_agreement_interval[0]
        if low < bound <= figures.top1_agreement:
            texts.append(
                f"{figures.num_images} images support a top-1 agreement of {low:.1%} or more ({CONFIDENCE:.0%} interval), "
                f"not yet the {bound:.1%} asked for"
            )
    if tolerance.max_accuracy_drop is not None and not figures.num_labelled:
        texts.append("the accuracy drop is not judged: no image has a label of this network's classes")
    if figures.num_classes == 1:
        return texts
    little = "agreement on this network proves little"
    if figures.num_images >= 10 and figures.reference_top_share >= 0.95:
        texts.append(f"the checkpoint gives {figures.reference_top_share:.0%} of the images one class: {little}")
    if figures.num_images >= 10 and figures.reference_variation < 0.1:
        texts.append(f"the checkpoint's outputs hardly depend on the image: {little}")
    if figures.reference_accuracy is not None and figures.majority_share is not None and figures.num_labelled >= 10:
        hits = round(figures.reference_accuracy * figures.num_labelled)
        if wilson_interval(hits, figures.num_labelled)[0] <= figures.majority_share:
            texts.append(
                f"the checkpoint itself is right about {figures.reference_accuracy:.0%} of the labelled images, "
                f"where always answering one class gives {figures.majority_share:.0%}: {little}"
            )
    if figures.reference_entropy > 0.98:
        texts.append(f"the checkpoint is undecided between its classes (untrained?): {little}")
    return texts
