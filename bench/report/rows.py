"""One row per subject, read from the results' JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from alexnet_edge.bench.report.numbers import in_ms, plural
from alexnet_edge.bench.timing.subjects import PEER, distinct_labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One subject in the scorecard; None is not available."""

    label: str
    """Names one subject: its file is added where subjects of different files are labelled alike."""
    group: str
    """The same without the number of threads: subjects of one file on one device share it."""
    file: str
    format: str
    precision: str
    runtime: str
    device: str | None
    threads: int | None
    proof: str
    """`passed`, `failed`, `not run`; `reference` for a checkpoint, `peer` for another tool, whose answers are only shown."""
    proof_notes: tuple[str, ...]
    """Why it failed or was not run, and what weakens it."""
    accuracy: float | None
    """Top-1 on the proof's labelled images, 0 to 1."""
    accuracy_images: int | None
    accuracy_change: float | None
    accuracy_p: float | None
    """McNemar's p-value that it is as often right as the checkpoint."""
    agreement: float | None
    """Top-1 agreement with the checkpoint, 0 to 1."""
    agreement_interval: tuple[float, float] | None
    agreement_images: int | None
    max_abs_error: float | None
    measured: str
    """`VALID`, `INVALID`, `not run`, `error`, or empty when nobody measured it."""
    measured_notes: tuple[str, ...]
    p50_ms: float | None
    """Of the first batch, as are the next four."""
    p50_interval_ms: tuple[float, float] | None
    tail_ms: float | None
    """The percentile that `tail_of` names."""
    cold_p50_ms: float | None
    """With weights out of the processor's caches before every inference."""
    valid: bool
    """Whether the first batch is."""
    images_per_s: float | None
    """The highest of all batches."""
    images_per_s_batch: int | None
    mj_per_image: float | None
    """Energy of one image, of the first batch; the machine's idling included."""
    net_mj_per_image: float | None
    """The same above idling."""
    roofline: float | None
    """The machine's floor over the median: 1 is as fast as the machine can."""
    worst_layer: str | None
    """The layer with the most time above its floor."""
    megabytes: float
    load_ms: float | None
    """Median over rounds, as are the next two."""
    first_ms: float | None
    memory_mb: float | None
    speed_up: float | None
    """Median latency of the checkpoint in PyTorch over this one's, at the first batch."""
    speed_up_interval: tuple[float, float] | None

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return PurePath(self.file).name

    @property
    def setup(self) -> str:
        """What it ran on: `onnxruntime, cpu, 4 threads`; as much as is known."""
        parts = [self.runtime, self.device if self.measured in ("VALID", "INVALID") else None]
        if self.device == "cpu" and self.threads and parts[1]:
            parts.append(plural(self.threads, "thread"))
        return ", ".join(filter(None, parts))


def rows_of(subjects: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None) -> list[Row]:
    """The scorecard: `subjects` as in the results' JSON, `settings` as measured, None when nothing was."""
    labels = distinct_labels([str(subject["label"]) for subject in subjects], [subject["file"] for subject in subjects])
    rows = []
    for subject, label, group in zip(subjects, labels, _groups(subjects, labels), strict=True):
        measured, notes = _measured(subject)
        roofline = subject.get("roofline") or {}
        row = Row(
            label=label,
            group=group,
            **{name: subject[name] for name in ("file", "format", "precision", "runtime")},
            device=subject.get("device"),
            threads=subject.get("threads"),
            **_proof(subject, subjects),
            measured=measured,
            measured_notes=notes,
            **_latency(subject, settings, failed=measured == "error"),
            roofline=roofline.get("share"),
            worst_layer=roofline.get("worst"),
            megabytes=subject["bytes"] / 1e6,
            load_ms=_median_over_rounds(subject, "load_ns"),
            first_ms=_median_over_rounds(subject, "first_ns"),
            memory_mb=_median_over_rounds(subject, "peak_memory_bytes"),
        )
        rows.append(row)
    return rows


def dig(value: Mapping[str, Any] | None, *keys: str) -> Any:
    """What stands under `keys`, one inside the other; None where one of them is null or absent."""
    for key in keys:
        if value is None:
            return None
        value = value.get(key)
    return value


def tail_of(settings: Mapping[str, Any] | None) -> str:
    """The percentile shown beside the median: the highest that was requested, for example `p99`, and at least `p90`."""
    return f"p{max(90.0, settings['percentile']):g}" if settings else "p99"


def first_entry(subject: Mapping[str, Any], settings: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The summary of the first batch, whose latency is the one reported."""
    batch = settings["batches"][0] if settings else None
    return next((entry for entry in subject["batches"] if entry["batch"] == batch), None)


def _groups(subjects: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    """For each subject what its label shares with those of the same file on the same device."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    keys = [(subject["sha256"], subject["file"], str(subject.get("device"))) for subject in subjects]
    for key, label in zip(keys, labels, strict=True):
        parts = label.split(", ")
        known = shared.setdefault(key, parts)
        alike = [part for part, other in zip(known, parts, strict=False) if part == other]
        shared[key] = alike or known
    names = [", ".join(shared[key]) for key in keys]
    for name in set(names):
        if len({key for key, own in zip(keys, names, strict=True) if own == name}) > 1:  # the device tells them apart
            names = [f"{own} on {key[2]}" if own == name else own for key, own in zip(keys, names, strict=True)]
    return names


def _proof(subject: Mapping[str, Any], subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row's fields about answers."""
    parity = subject["parity"]
    figures = parity.get("figures", {})
    accuracy, images = figures.get("candidate_accuracy"), figures.get("num_labelled")
    proof = parity.get("verdict", "not run")
    notes = [*parity.get("reasons", ()), *parity.get("warnings", ())]
    if not parity:
        notes = ["its manifest has no parity verdict"]
    if subject["format"] == "checkpoint":
        accuracy, images = _reference_accuracy(subject, subjects)
        proof, notes = "reference", []
    elif subject["format"] == PEER:
        proof, notes = PEER, notes if not parity else []
    if stand_in := parity.get("stand_in"):
        notes.append(f"proved instead: {stand_in['what']}: {stand_in['verdict']}")
    return {
        "proof": proof,
        "proof_notes": tuple(notes),
        "accuracy": accuracy,
        "accuracy_images": images or None,
        "accuracy_change": figures.get("accuracy_change"),
        "accuracy_p": figures.get("mcnemar_p"),
        "agreement": figures.get("top1_agreement"),
        "agreement_interval": _pair(figures.get("top1_agreement_interval")),
        "agreement_images": figures.get("num_images"),
        "max_abs_error": figures.get("max_abs_error"),
    }


def _latency(subject: Mapping[str, Any], settings: Mapping[str, Any] | None, *, failed: bool) -> dict[str, Any]:
    """The row's fields about time and energy: of the first batch, and the throughput of the fastest."""
    first = first_entry(subject, settings)
    fastest = max(subject["batches"], key=lambda entry: float(entry["images_per_s"]), default=None)
    return {
        "p50_ms": in_ms(dig(first, "percentiles_ns", "p50")),
        "p50_interval_ms": _pair(dig(first, "median_interval_ns"), 1e6),
        "tail_ms": in_ms(dig(first, "percentiles_ns", tail_of(settings))),
        "cold_p50_ms": in_ms(dig(first, "cold", "percentiles_ns", "p50")),
        "valid": first is not None and bool(first["valid"]) and not failed,
        "images_per_s": dig(fastest, "images_per_s"),
        "images_per_s_batch": dig(fastest, "batch"),
        "mj_per_image": dig(first, "energy", "mj_per_image"),
        "net_mj_per_image": dig(first, "energy", "net_mj_per_image"),
        "speed_up": dig(first, "speed_up", "ratio"),
        "speed_up_interval": _pair(dig(first, "speed_up", "interval")),
    }


def _reference_accuracy(
    checkpoint: Mapping[str, Any], subjects: Sequence[Mapping[str, Any]]
) -> tuple[float | None, int | None]:
    """The checkpoint's accuracy as found while proving its artifacts: on the same images as theirs."""
    for other in subjects:
        figures = other["parity"].get("figures", {})
        if other["checkpoint_sha256"] == checkpoint["sha256"] and figures.get("reference_accuracy") is not None:
            return figures["reference_accuracy"], figures["num_labelled"]
    return None, None


def _measured(subject: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    if subject["error"]:
        return "error", (subject["error"],)
    if subject["skipped"]:
        return "not run", (subject["skipped"],)
    if not subject["batches"]:
        return "", ()
    batches_of: dict[str, list[str]] = {}
    for entry in subject["batches"]:
        if entry["reasons"]:
            more = len(entry["reasons"]) - 1  # the first is the likeliest cause; "every batch" has them all
            text = entry["reasons"][0] + (f" (and {more} more)" if more else "")
            batches_of.setdefault(text, []).append(str(entry["batch"]))
    notes = tuple(f"batch {', '.join(names)}: {text}" for text, names in batches_of.items())
    return ("INVALID" if notes else "VALID"), notes


def _median_over_rounds(subject: Mapping[str, Any], key: str) -> float | None:
    """In milliseconds of nanoseconds, or in MB of bytes: the factor is the same."""
    values = [float(round_[key]) for round_ in subject["rounds"] if round_.get(key) is not None]
    return statistics.median(values) / 1e6 if values else None


def _pair(values: Sequence[float] | None, divisor: float = 1.0) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]) / divisor, float(values[1]) / divisor)


def fastest_of_each(rows: Sequence[Row]) -> list[Row]:
    """One row per group, in order: the one with the lowest median, a valid one where there is one."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [min(own, key=lambda row: (row.p50_ms is None, not row.valid, row.p50_ms or 0.0)) for own in groups.values()]


def worst_layer(roofline: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of the layer with the most time above its floor; None where no layer was timed."""
    timed = (layer for layer in roofline["layers"] if layer["above_ns"] is not None)
    return next((layer for layer in timed if layer["name"] == roofline["worst"]), None)
