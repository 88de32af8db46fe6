"""Which layer of an artifact first leaves tolerance, and what to do about it.

Every step of the network is judged by itself: what the artifact makes of *its own* input to that step is compared with what
the checkpoint's layer makes of the same input (in NumPy, `layerwise.py`). So an error that a layer only passes on is not
counted against it, and the first step that is out of tolerance is where the fault is. The error that has added up since the
image is shown beside it.

Layers in INT8 and FP8 have a second point, their input's quantisation: the values the quantiser gives back against those it
got, and its step against the calibration that the manifest records.

Letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from alexnet_edge.artifact import Artifact
from alexnet_edge.errors import UserError
from alexnet_edge.images.datasets import ImageSet, OnBadImage, batches
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.equalise import equalised, from_text
from alexnet_edge.network.layers import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE
from alexnet_edge.proof.layerwise import Step, steps
from alexnet_edge.proof.observe import Observed, Observer, open_observer
from alexnet_edge.sessions import open_session

IMAGES = 8
"""Images looked at by default: every tensor of each is kept in memory, and thousands of values per tensor are plenty."""

OWN_ERROR: dict[str, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2, "fp8": 0.15, "int8": 0.15, "int4": 0.3}
"""Largest relative error, |error| / |value| in the Euclidean norm, that a step may add by itself, by the type it is in.

Some times what layers of the trained flowers network add: docs/quantization.md has the figures.
"""
CHANNEL_FACTOR = 5.0
"""How many times larger the relative error of the worst channel may be: one channel has fewer values to average over."""
QUIET_CHANNEL = 0.5
"""A channel's error is held against its own size, but never against less than this share of the mean channel's."""
STEP_SLACK = 0.02
"""Relative difference from the calibrated step that is still rounding."""
SATURATED = 0.01
"""Share of saturated values above which a range is called too narrow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One step of the network in the artifact."""

    name: str
    """Of the tensor it ends in; `conv3/input` is the quantisation of a layer's input."""
    layer: str
    kind: str
    """`layer`, `lrn`, `pool` or `input`; several where the artifact has fused them: `layer+lrn`."""
    type: str
    """What it is computed in, as the manifest read it back."""
    own_error: float | None
    """Relative error that the step adds by itself; None where something is not finite, and of an input's quantisation where
    the runtime's operators take the integers as they are."""
    worst_channel: int | None = None
    """Channel with the largest error of its own."""
    worst_channel_error: float | None = None
    total_error: float | None = None
    """Relative error since the image; None for an input's quantisation, and where something is not finite."""
    tolerance: float
    reasons: tuple[str, ...] = ()
    """Why it is out of tolerance; empty when it is not."""

    @property
    def holds(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, kw_only=True, slots=True)
class Bisection:
    """The points of one artifact in their order, and the first that is out of tolerance."""

    points: tuple[Point, ...]
    num_images: int
    first: Point | None
    """The first point out of tolerance; None when none is."""
    cause: str
    """What is wrong there; where nothing is, which layer adds most."""
    fix: str
    """What to do about it."""
    warnings: tuple[str, ...]
    passed: bool
    """Whether no point is out of tolerance."""


def bisect(
    artifact: Artifact,
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    limit: int = IMAGES,
    threads: int | None = None,
    on_bad_image: OnBadImage = "fail",
) -> Bisection:
    """Judge every step of an ONNX or OpenVINO file against the layer of the checkpoint it was exported from.

    Args:
        artifact: the file.
        checkpoint: what it was exported from.
        images: real images; `limit` of them are used, evenly spread.
        limit: how many.
        threads: processor threads of the runtime.
        on_bad_image: what to do with an image that cannot be read.

    Raises:
        UserError: for a format whose tensors cannot be read, or when there is no image.
        ImageError: when an image cannot be used and `on_bad_image` is `fail`.
    """
    if len(images) == 0:
        raise UserError("a bisect needs images", value=0, fix="give a folder with images")
    scales = (artifact.manifest.build.get("corrections") or {}).get("equalised")
    if scales is not None:
        checkpoint = equalised(checkpoint, from_text(scales, checkpoint.info.arch))
    spec = checkpoint.info.preprocessing
    parts = batches(images.spread(limit), spec, batch=limit, on_bad_image=on_bad_image)
    x_NCHW = np.concatenate([part.x_NCHW for part in parts])
    return _Bisect(artifact, checkpoint, open_observer(artifact, threads=threads), x_NCHW).run(threads)


@dataclass(slots=True)
class _Bisect:
    """One bisect under way."""

    artifact: Artifact
    checkpoint: Checkpoint
    observer: Observer
    x_NCHW: FloatArray
    layer_inputs: dict[str, FloatArray] = field(default_factory=dict)
    """What each layer took as its input."""

    @np.errstate(invalid="ignore", over="ignore")  # what is not finite is reported
    def run(self, threads: int | None) -> Bisection:
        all_steps = steps(self.checkpoint.info.arch)
        names = {step.name: name for step in all_steps if (name := self._tensor_of(step)) is not None}
        end = names.get(all_steps[-1].name)
        if len(names) < 2 or end is None:
            raise UserError(
                "the file has none of the tensors that this package writes",
                value=self.artifact.path,
                fix="export again",
            )
        seen = self.observer.run(self.x_NCHW, list(names.values()))
        points = self._with_inputs(self._points(all_steps, {step: seen[name] for step, name in names.items()}))
        first = next((point for point in points if not point.holds), None)
        cause, fix = _most(points) if first is None else self._explain(first)
        return Bisection(
            points=tuple(points),
            num_images=len(self.x_NCHW),
            first=first,
            cause=cause,
            fix=fix,
            warnings=self._disturbed(seen[end].values, threads),
            passed=first is None,
        )

    def _tensor_of(self, step: Step) -> str | None:
        """The artifact's name of the tensor that a step ends in; a lowered graph may have no ReLU of its own."""
        arch = self.checkpoint.info.arch
        candidates = [step.name, step.layer] if step.kind == "layer" else [step.name]
        if step.layer == arch.layers[-1].name and arch.head == "logits":
            candidates = [arch.head]
        return next((name for name in candidates if name in self.observer.names), None)

    def _points(self, all_steps: Sequence[Step], seen: Mapping[str, Observed]) -> list[Point]:
        weights, manifest = self.checkpoint.weights, self.artifact.manifest
        types = {layer.name: layer.built for layer in manifest.layers}
        plain = "fp16" if manifest.precision in ("fp16", "bf16", "fp8", "int4-fc") else "fp32"  # of what is no layer
        points = list[Point]()
        expected = exact = self.x_NCHW  # from the artifact's own last tensor, and from the image
        segment = list[Step]()
        for step in all_steps:
            if step.kind == "layer":
                self.layer_inputs[step.layer] = expected
            expected, exact = step.run(expected, weights), step.run(exact, weights)
            segment.append(step)
            if step.name not in seen:
                continue  # fused with what follows
            kinds = {plain, seen[step.name].stored}
            if any(part.kind == "layer" for part in segment):
                kinds.add(types.get(step.layer, plain))
            kind = max(kinds, key=lambda name: OWN_ERROR.get(name, 0.0))
            values = seen[step.name].values.reshape(expected.shape)
            wrong = self._wrong_attributes(step.name) if step.kind == "lrn" else ""
            points.append(_point(segment, kind, values, expected, exact, wrong))
            expected, segment = values, []
        return points

    def _with_inputs(self, points: list[Point]) -> list[Point]:
        """The points with that of its input's quantisation before each layer that has one."""
        quantised = [name for name in self.layer_inputs if f"{name}/input_dq" in self.observer.names]
        seen = self.observer.run(self.x_NCHW, [f"{name}/input_dq" for name in quantised]) if quantised else {}
        inputs = {}
        for name in self.layer_inputs:
            stored = self.observer.constant(f"{name}/input_scale")
            if name in quantised:
                inputs[name] = self._input_point(name, seen[f"{name}/input_dq"].values)
            elif stored is not None:  # integer operators, whose inputs never are numbers
                inputs[name] = self._input_point(name, None, stored)
        merged = list[Point]()
        for point in points:
            if "layer" in point.kind.split("+") and point.layer in inputs:
                merged.append(inputs[point.layer])
            merged.append(point)
        return merged

    def _input_point(self, layer: str, back: FloatArray | None, step: float | None = None) -> Point:
        """From what the quantiser gave back, or from the step that the file names where that cannot be seen."""
        kind = next((entry.built for entry in self.artifact.manifest.layers if entry.name == layer), "int8")
        tolerance = OWN_ERROR.get(kind, OWN_ERROR["int8"])
        own, reasons = None, list[str]()
        if back is not None:
            own, reasons = _relative(back, self.layer_inputs[layer].reshape(back.shape)), _not_finite(back)
            step = _step_of(back) if kind == "int8" else None
        if own is not None and own > tolerance:
            reasons.append(f"relative error {own:.2g} is above {tolerance:g}")
        calibrated = self._calibrated_step(layer)
        if calibrated and step and not math.isclose(step, calibrated, rel_tol=STEP_SLACK):
            reasons.append(f"its step is {step:.4g}, {step / calibrated:.3g} times the calibrated {calibrated:.4g}")
        name, reason = f"{layer}/input", tuple(reasons)
        return Point(
            name=name, layer=layer, kind="input", type=kind, own_error=own, tolerance=tolerance, reasons=reason
        )

    def _calibrated_step(self, layer: str) -> float | None:
        """The step that the manifest's calibration asks for at the input of a layer; None where it records none.

        A lowered graph gives values that are never negative all 256 steps.
        """
        calibration, arch = self.artifact.manifest.calibration or {}, self.checkpoint.info.arch
        amax = (calibration.get("amax") or {}).get(layer)
        if not amax:
            return None
        rectified = any(spec.relu and after.name == layer for spec, after in pairwise(arch.layers))
        return float(amax) / (255 if rectified and "target" in self.artifact.manifest.build else 127)

    def _disturbed(self, last: FloatArray, threads: int | None) -> tuple[str, ...]:
        """A warning where looking inside changed the answers by more than rounding."""
        with open_session(self.artifact, threads=threads) as session:
            answers = session.run(self.x_NCHW)
        change = _relative(last.reshape(answers.shape), answers)
        if self.checkpoint.info.arch.head != "logits" or (change is not None and change <= OWN_ERROR["fp16"]):
            return ()
        by = "not finite" if change is None else f"{change:.2g} relative"
        return (
            f"looking inside changed the answers ({by}): the runtime fuses otherwise then, and a fault that only "
            "the fused kernels have would not be seen",
        )

    def _explain(self, first: Point) -> tuple[str, str]:
        if first.kind == "input":
            return self._explain_input(first)
        if first.own_error is None:
            return f"{first.name} has values that are not finite", (
                "FP16 ends at 65504: keep this layer in FP32, or export in --bf16, which has FP32's range"
                if first.type == "fp16"
                else "check the model: an FP32 graph of finite weights gives finite values"
            )
        if first.kind == "pool":
            return f"the pooling in {first.name} is not the checkpoint's", "export again"
        if first.kind != "lrn":
            return self._explain_layer(first)
        wrong = self._wrong_attributes(first.name)
        if wrong:
            return f"local response normalisation {first.name}: {wrong}", "export again with these values"
        return (
            f"the local response normalisation {first.name} is not the checkpoint's",
            "check its window, alpha (divided by the window's size here), beta and k, and that it is computed in FP32",
        )

    def _explain_input(self, first: Point) -> tuple[str, str]:
        name = f"{first.layer}/input_dq"
        other_step = (
            f"the quantiser's scale at the input of {first.layer} is not the calibrated one ({first.reasons[-1]})",
            "export again with the calibration that is to be used",
        )
        if name not in self.observer.names:
            return other_step
        back = self.observer.run(self.x_NCHW, [name])[name].values
        layer_input = self.layer_inputs[first.layer].reshape(back.shape)
        gain, remainder = _gain(back, layer_input)
        largest, limit = float(np.abs(layer_input).max()), float(np.abs(back).max())
        saturated = float((np.abs(layer_input) > limit * (1 + STEP_SLACK)).mean())
        if remainder < 0.5 * first.tolerance and abs(gain - 1) > 0.1:
            return (
                f"the input of {first.layer} comes back {gain:.3g} times as large: the scales of its quantise and "
                "dequantise nodes differ",
                "export again: both must be the calibrated one",
            )
        if any("calibrated" in reason for reason in first.reasons):
            return other_step
        if saturated > SATURATED:
            return (
                f"{saturated:.1%} of the values at the input of {first.layer} saturate: they reach {largest:.3g}, its "
                f"range ends at {limit:.3g}",
                "calibrate on images like these, or with --method minmax or percentile",
            )
        return (
            f"the range at the input of {first.layer} is too wide for its values: 127 steps are too coarse",
            "calibrate with --method mse or entropy, or keep this layer in higher precision: export --int8 auto",
        )

    def _wrong_attributes(self, name: str) -> str:
        """What the file says of this local response normalisation that is not the network's; empty where nothing is."""
        attributes = self.observer.lrn(name) or {}
        right = {"size": LRN_SIZE, "alpha": LRN_ALPHA, "beta": LRN_BETA, "bias": LRN_K}
        return ", ".join(
            f"{key} is {attributes[key]:g}, not {value:g}"
            for key, value in right.items()
            if key in attributes and not math.isclose(attributes[key], value, rel_tol=1e-6)
        )

    def _explain_layer(self, first: Point) -> tuple[str, str]:
        layer, weights = first.layer, self.checkpoint.weights
        right = weights[f"{layer}.weight"]
        stored = self.observer.weight(layer)
        if stored is not None and stored.shape == right.shape:
            gain, remainder = _gain(stored, right)
            if abs(gain - 1) > STEP_SLACK and remainder < OWN_ERROR["int4"]:
                return (
                    f"the weights of {layer} as stored are {gain:.3g} times the checkpoint's: their scale is wrong",
                    "export again; if they were scaled on purpose, scale the next layer's inversely",
                )
            errors_C, peaks_C = (np.abs(some.reshape(len(right), -1)).max(axis=1) for some in (stored - right, right))
            wrong = np.flatnonzero(errors_C > 0.2 * peaks_C + 1e-12)
            if len(wrong):
                return (
                    f"the weights of {layer} as stored are not the checkpoint's in {len(wrong)} of {len(right)} "
                    f"output channels, first channel {wrong[0]}",
                    "export again from this checkpoint",
                )
        step = next(step for step in steps(self.checkpoint.info.arch) if step.name == first.name)
        tensor = self._tensor_of(step)
        assert tensor is not None, "the point was observed"
        observed = self.observer.run(self.x_NCHW, [tensor])[tensor].values
        expected = step.run(self.layer_inputs[layer], weights) if first.kind.endswith("layer") else observed
        gain, remainder = _gain(observed.reshape(expected.shape), expected)
        if abs(gain - 1) > STEP_SLACK and remainder < max(first.tolerance, 0.05):
            return (
                f"{first.name} comes out {gain:.3g} times as large: a scale of {layer} is wrong",
                "export again; check the scales of its input, weights and output",
            )
        if first.worst_channel_error is not None and (first.own_error or 0.0) <= first.tolerance:
            return (
                f"channel {first.worst_channel} of {layer} is wrong by {first.worst_channel_error:.2g} relative, the "
                "others are right",
                "look at this channel's weights, scale and bias; export again",
            )
        if first.type in ("int8", "fp8", "int4"):
            return (
                f"{layer} loses too much in {first.type.upper()} ({first.own_error:.2g} relative)",
                f"keep {layer} in higher precision (export --int8 auto), or try --method mse or percentile",
            )
        return (
            f"{layer} is not the checkpoint's layer ({first.own_error:.2g} relative): its weights, bias or attributes "
            "(stride, padding, groups) differ",
            "export again from this checkpoint",
        )


def _most(points: Sequence[Point]) -> tuple[str, str]:
    """Where no step is out of tolerance: which adds most to the error at the end."""
    most = max((point for point in points if point.own_error is not None), key=lambda point: point.own_error or 0.0)
    cause = f"no step is out of tolerance; {most.name} adds most by itself ({most.own_error:.2g} relative)"
    if most.type in ("int8", "fp8", "int4"):
        return cause, f"if the answers are not good enough, give {most.layer} more bits: export --int8 auto"
    return cause, "nothing: what differs is rounding"


def _point(
    segment: Sequence[Step], kind: str, observed: FloatArray, expected: FloatArray, exact: FloatArray, wrong: str
) -> Point:
    """The point at the end of the steps of `segment`; `wrong` is what the file itself says that is not right."""
    tolerance = OWN_ERROR.get(kind, OWN_ERROR["int4"])
    own, total = _relative(observed, expected), _relative(observed, exact)
    channel, channel_error = _worst_channel(observed, expected) if own is not None else (None, None)
    reasons = _not_finite(observed)
    if own is not None and own > tolerance:
        reasons.append(f"relative error {own:.2g} is above {tolerance:g}")
    elif channel_error is not None and channel_error > CHANNEL_FACTOR * tolerance:
        reasons.append(f"channel {channel}: relative error {channel_error:.2g} is above {CHANNEL_FACTOR * tolerance:g}")
    if wrong:
        reasons.append(wrong)
    return Point(
        name=segment[-1].name,
        layer=segment[-1].layer,
        kind="+".join(dict.fromkeys(step.kind for step in segment)),
        type=kind,
        own_error=own,
        worst_channel=channel,
        worst_channel_error=channel_error,
        total_error=total,
        tolerance=tolerance,
        reasons=tuple(reasons),
    )


def _not_finite(values: FloatArray) -> list[str]:
    count = int((~np.isfinite(values)).sum())
    return [f"{count} of {values.size} values are NaN or infinite"] if count else []


def _relative(observed: FloatArray, expected: FloatArray) -> float | None:
    """|observed - expected| / |expected| in the Euclidean norm; None where something is not finite."""
    error = float(np.linalg.norm((observed - expected).astype(np.float64)))
    size = float(np.linalg.norm(expected.astype(np.float64)))
    if not math.isfinite(error) or not math.isfinite(size):
        return None
    return error / size if size else (0.0 if error == 0 else math.inf)


def _worst_channel(observed: FloatArray, expected: FloatArray) -> tuple[int | None, float | None]:
    axes = tuple(axis for axis in range(observed.ndim) if axis != 1)
    errors_C = np.sqrt(((observed - expected).astype(np.float64) ** 2).mean(axis=axes))
    sizes_C = np.sqrt((expected.astype(np.float64) ** 2).mean(axis=axes))
    floor = QUIET_CHANNEL * float(sizes_C.mean())
    if floor == 0:
        return None, None
    relative_C = errors_C / np.maximum(sizes_C, floor)
    worst = int(relative_C.argmax())
    return worst, float(relative_C[worst])


def _gain(observed: FloatArray, expected: FloatArray) -> tuple[float, float]:
    """The factor that brings `expected` nearest to `observed`, and the relative error that remains."""
    a, b = observed.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    power = float(b @ b)
    if not power:
        return 1.0, 0.0
    gain = float(a @ b) / power
    size = float(np.linalg.norm(a))
    return gain, float(np.linalg.norm(a - gain * b)) / size if size else 0.0


def _step_of(back: FloatArray) -> float | None:
    """The step of a quantiser, from what it gave back: the smallest magnitude above 0, of which all others are multiples.

    What is smaller than any step can be is the rounding of a zero that was shifted and shifted back.
    """
    magnitudes = np.abs(back)
    steps_seen = magnitudes[magnitudes > 0.25 * magnitudes.max(initial=0.0) / 127]
    return float(steps_seen.min()) if steps_seen.size else None
