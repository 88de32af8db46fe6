"""Results as rows, tables, Markdown and CSV. Everything is read from the results' JSON, so a file from another machine will do.

A `Table` is made once and shown twice: as Markdown here, as HTML in the page. What a file does not have is left out, and
its reason is said; it is never 0.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from alexnet_edge.bench.subjects import PEER

NOT_AVAILABLE = "–"
"""Shown where a figure does not exist; never 0."""

NOT_MEASURED = "not measured"
"""The reason given where a results file gives none."""


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
    labels = _labels(subjects)
    groups = _groups(subjects, labels)
    return [
        _row(subject, subjects, settings, label, group)
        for subject, label, group in zip(subjects, labels, groups, strict=True)
    ]


def tail_of(settings: Mapping[str, Any] | None) -> str:
    """The percentile shown beside the median: the highest asked for, `p99` say, and at least `p90`."""
    return f"p{max(90.0, settings['percentile']):g}" if settings else "p99"


def first_entry(subject: Mapping[str, Any], settings: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The summary of the first batch, whose latency is the one reported."""
    batch = settings["batches"][0] if settings else None
    return next((entry for entry in subject["batches"] if entry["batch"] == batch), None)


def _labels(subjects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels, each of one subject only: two files of one format and precision are told apart by their names."""
    labels = [str(subject["label"]) for subject in subjects]
    for whole_path in (False, True):
        files = [subject["file"] if whole_path else PurePath(subject["file"]).name for subject in subjects]
        labels = [
            f"{subject['label']} ({file})" if labels.count(label) > 1 else label
            for subject, file, label in zip(subjects, files, labels, strict=True)
        ]
    return labels


def _groups(subjects: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    """For each subject what its label shares with those of the same file on the same device."""
    shared: dict[tuple[str, str, str], list[str]] = {}
    keys = [(subject["sha256"], subject["file"], str(subject.get("device"))) for subject in subjects]
    for key, label in zip(keys, labels, strict=True):
        parts = label.split(", ")
        known = shared.setdefault(key, parts)
        alike = [one for one, other in zip(known, parts, strict=False) if one == other]
        shared[key] = alike or known
    names = [", ".join(shared[key]) for key in keys]
    for name in set(names):
        if len({key for key, own in zip(keys, names, strict=True) if own == name}) > 1:  # the device tells them apart
            names = [f"{own} on {key[2]}" if own == name else own for key, own in zip(keys, names, strict=True)]
    return names


def _row(
    subject: Mapping[str, Any],
    subjects: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any] | None,
    label: str,
    group: str,
) -> Row:
    batches = subject["batches"]
    first = first_entry(subject, settings)
    fastest = max(batches, key=lambda entry: float(entry["images_per_s"]), default=None)
    parity = subject["parity"]
    is_reference, is_peer = subject["format"] == "checkpoint", subject["format"] == PEER
    figures = parity.get("figures", {})
    accuracy, images = figures.get("candidate_accuracy"), figures.get("num_labelled")
    if is_reference:
        accuracy, images = _reference_accuracy(subject, subjects)
    notes = [] if is_peer else [*parity.get("reasons", ()), *parity.get("warnings", ())]
    if proved := parity.get("stand_in"):
        notes.append(f"proved instead: {proved['what']}: {proved['verdict']}")
    measured, measured_notes = _measured(subject)
    energy = (first or {}).get("energy") or {}
    cold = (first or {}).get("cold")
    roofline = subject.get("roofline") or {}
    return Row(
        label=label,
        group=group,
        file=subject["file"],
        format=subject["format"],
        precision=subject["precision"],
        runtime=subject["runtime"],
        device=subject.get("device"),
        threads=subject.get("threads"),
        proof="reference" if is_reference else PEER if is_peer else parity.get("verdict", "not run"),
        proof_notes=tuple(notes) if parity or is_reference else ("its manifest has no parity verdict",),
        accuracy=accuracy,
        accuracy_images=images or None,
        accuracy_change=figures.get("accuracy_change"),
        accuracy_p=figures.get("mcnemar_p"),
        agreement=figures.get("top1_agreement"),
        agreement_interval=_pair(figures.get("top1_agreement_interval")),
        agreement_images=figures.get("num_images"),
        max_abs_error=figures.get("max_abs_error"),
        measured=measured,
        measured_notes=measured_notes,
        p50_ms=None if first is None else _ms(first["percentiles_ns"]["p50"]),
        p50_interval_ms=None if first is None else _pair([value / 1e6 for value in first["median_interval_ns"]]),
        tail_ms=None if first is None else _ms(first["percentiles_ns"].get(tail_of(settings))),
        cold_p50_ms=None if not cold else _ms(cold["percentiles_ns"]["p50"]),
        valid=first is not None and bool(first["valid"]) and measured != "error",
        images_per_s=fastest and fastest["images_per_s"],
        images_per_s_batch=fastest and fastest["batch"],
        mj_per_image=energy.get("mj_per_image"),
        net_mj_per_image=energy.get("net_mj_per_image"),
        roofline=roofline.get("share"),
        worst_layer=roofline.get("worst"),
        megabytes=subject["bytes"] / 1e6,
        load_ms=_ms(_median_over_rounds(subject, "load_ns")),
        first_ms=_ms(_median_over_rounds(subject, "first_ns")),
        memory_mb=_ms(_median_over_rounds(subject, "peak_memory_bytes")),  # bytes to MB is the same factor
        speed_up=first["speed_up"]["ratio"] if first and first["speed_up"] else None,
        speed_up_interval=_pair(first["speed_up"]["interval"]) if first and first["speed_up"] else None,
    )


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
    values = [taken[key] for taken in subject["rounds"] if taken.get(key) is not None]
    return float(np.median(values)) if values else None


def _ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


def fastest_of_each(rows: Sequence[Row]) -> list[Row]:
    """One row per group, in order: the one with the lowest median, a valid one where there is one."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [min(own, key=lambda row: (row.p50_ms is None, not row.valid, row.p50_ms or 0.0)) for own in groups.values()]


# --- numbers as text ----------------------------------------------------------------------------------------------------


def show(value: float | None, form: str = ".3g", scale: float = 1.0) -> str:
    """`value * scale` in `form`, or the sign for not available."""
    return NOT_AVAILABLE if value is None else format(value * scale, form)


def show_ms(value: float | None) -> str:
    """Milliseconds (or any other unit) with three significant digits, at most four decimals and no exponent; never 0 for what is not."""
    if value is None:
        return NOT_AVAILABLE
    if value == 0:
        return "0"
    if abs(value) < 0.00005:
        return "<0.0001" if value > 0 else ">-0.0001"
    rounded = float(f"{value:.3g}")  # 9.996 is 10.0, not 10.00
    decimals = 2 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{min(max(decimals, 0), 4)}f}"


def show_percent(value: float | None) -> str:
    """A share, in percent without the sign."""
    return NOT_AVAILABLE if value is None else f"{100 * value:.1f}"


def plural(count: int, noun: str) -> str:
    """`1 thread`, `4 threads`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _between(values: Sequence[float] | None, form: Callable[[float], str]) -> str:
    return "" if values is None else f"{form(values[0])}–{form(values[1])}"


def headline(rows: Sequence[Row]) -> str:
    """How much is proved and measured, in one sentence."""
    artifacts = {row.group: row for row in rows if row.proof not in ("reference", PEER)}
    proved = sum(row.proof == "passed" for row in artifacts.values())
    measured = [row for row in rows if row.measured in ("VALID", "INVALID")]
    valid = sum(row.measured == "VALID" for row in measured)
    text = f"{proved} of {len(artifacts)} artifacts proved"
    if measured:
        validly = "all validly" if valid == len(measured) else f"{valid} validly"
        text += f"; {len(measured)} of {len(rows)} subjects measured, {validly}"
    return text


def fastest_proved(rows: Sequence[Row]) -> Row | None:
    """The artifact with the lowest median among those proved and validly measured."""
    sound = [row for row in rows if row.proof == "passed" and row.valid and row.p50_ms is not None]
    return min(sound, key=lambda row: row.p50_ms or 0.0, default=None)


def verdict(rows: Sequence[Row], settings: Mapping[str, Any] | None) -> str:
    """What to deploy, in one sentence, or why nothing can be advised: only what is proved and validly measured counts."""
    artifacts = {row.group: row for row in rows if row.proof not in ("reference", PEER)}
    proved = [row for row in artifacts.values() if row.proof == "passed"]
    if not artifacts:
        return "Only the checkpoint is here: there is no artifact to judge"
    if not proved:
        return "No artifact is proved to answer as the checkpoint does: none can be advised"
    best = fastest_proved(rows)
    if best is None:
        what = "timed" if all(not row.measured for row in rows) else "validly timed"
        return f"{len(proved)} of {len(artifacts)} artifacts answer as the checkpoint does; none is {what} yet"
    batch = settings["batches"][0] if settings else 1
    took = f"{show_ms(best.p50_ms)} ms {'an image' if batch == 1 else f'per batch of {batch}'}"
    text = f"Fastest proved: {best.label}, {took}"
    valid_reference = any(row.proof == "reference" and row.valid for row in rows)
    if best.speed_up is not None and best.speed_up_interval is not None and valid_reference:
        if best.speed_up_interval[0] > 1:
            text += f", {best.speed_up:.1f} times as fast as the checkpoint in PyTorch"
        elif best.speed_up_interval[1] < 1:
            text += ", slower than the checkpoint in PyTorch"
        else:
            text += ", about as fast as the checkpoint in PyTorch"
    if best.agreement is not None:
        text += f", the same answer on {show_percent(best.agreement)} % of {best.agreement_images or 'the'} images"
    return text


def open_points(
    rows: Sequence[Row], peers_left_out: Mapping[str, str] | None = None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is not proved or not validly measured, and why: for each subject, or subjects that share them, `(what, why)`."""
    points = {f"peer {name}": [("left out", reason)] for name, reason in (peers_left_out or {}).items()}
    for row in rows:
        if row.proof in ("failed", "not run"):
            points.setdefault(row.label, []).append((f"proof {row.proof}", "; ".join(row.proof_notes)))
        elif row.proof_notes:
            points.setdefault(row.label, []).append(("proof passed, but", "; ".join(row.proof_notes)))
        if row.measured in ("INVALID", "not run", "error"):
            what = {"INVALID": "measurement invalid", "not run": "not measured", "error": "measurement failed"}
            points.setdefault(row.label, []).append((what[row.measured], "; ".join(row.measured_notes)))
    shared: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for label, found in points.items():
        shared.setdefault(tuple(found), []).append(label)
    return [(", ".join(_together(labels, rows)), list(found)) for found, labels in shared.items()]


def _together(labels: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """`labels`, those of a whole group (every number of threads) as the group's name."""
    left = dict.fromkeys(labels)
    named: dict[str, None] = {}
    for row in rows:
        if row.label in left:
            whole = all(other.label in left for other in rows if other.group == row.group)
            named[row.group if whole else row.label] = None
    known = {row.label for row in rows}
    return [*named, *(label for label in left if label not in known)]


# --- tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A figure as text, and its small print: an interval, a unit, a batch."""

    text: str
    small: str = ""
    badge: Literal["", "good", "bad", "note"] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    head: str
    unit: str = ""
    kind: Literal["figure", "text", "name"] = "figure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Columns and rows; `absent` says what is not there and why."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    absent: tuple[str, ...] = ()


_Maker = Callable[[Any], Cell | str]


def _table(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[tuple[Column, _Maker]],
    entries: Iterable[Any],
    absent: Sequence[str] = (),
) -> Table:
    """A table without the columns of which no entry has anything."""
    rows = [[cell if isinstance(cell, Cell) else Cell(text=cell) for _, make in columns for cell in [make(entry)]]
            for entry in entries]  # fmt: skip
    kept = [index for index in range(len(columns)) if any(row[index].text not in ("", NOT_AVAILABLE) for row in rows)]
    return Table(
        name=name,
        title=title,
        caption=caption,
        columns=tuple(columns[index][0] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in rows),
        absent=tuple(absent),
    )


def reasons_of(what: str, found: Iterable[tuple[str, str]], rows: Sequence[Row]) -> list[str]:
    """`(label, reason)` pairs as lines `what: unavailable: reason (labels)`; without labels where it is all of `rows`."""
    labels: dict[str, dict[str, None]] = {}
    for label, reason in found:
        labels.setdefault(reason or NOT_MEASURED, {})[label] = None
    everyone = {row.label for row in rows}
    return [
        f"{what} unavailable: {reason}" + ("" if set(named) == everyone else f" ({', '.join(_together(named, rows))})")
        for reason, named in labels.items()
    ]


_BADGES: dict[str, Literal["good", "bad"]] = {
    "passed": "good",
    "VALID": "good",
    "failed": "bad",
    "INVALID": "bad",
    "error": "bad",
}


def _badge(text: str) -> Cell:
    return Cell(text=text or NOT_AVAILABLE, badge=_BADGES.get(text, "note") if text else "")


_SUBJECT: tuple[Column, _Maker] = (Column(head="subject", kind="name"), lambda pair: str(pair[0].label))


def scorecard(rows: Sequence[Row], settings: Mapping[str, Any] | None, *, name: str = "scorecard") -> Table:
    """Every subject's proof, latency, throughput, size, energy and verdict."""
    batch = settings["batches"][0] if settings else None
    swept = len({row.group for row in rows}) < len(rows)
    columns: list[tuple[Column, _Maker]] = [
        (
            Column(head="subject", kind="name"),
            lambda row: Cell(text=row.label if swept else row.group, small=row.setup),
        ),
        (Column(head="proof", kind="text"), lambda row: _badge(row.proof)),
        (Column(head="measured", kind="text"), lambda row: _badge(row.measured)),
        (
            Column(head="top-1", unit="%"),
            lambda row: Cell(
                text=show_percent(row.accuracy),
                small=f"{100 * row.accuracy_change:+.1f}" if row.accuracy_change else "",
            ),
        ),
        (
            Column(head="agreement", unit="%"),
            lambda row: Cell(
                text=show_percent(row.agreement), small=_between(row.agreement_interval, lambda v: f"{100 * v:.1f}")
            ),
        ),
        (Column(head="max abs error"), lambda row: "0" if row.max_abs_error == 0 else show(row.max_abs_error, ".1e")),
        (
            Column(head="p50", unit="ms"),
            lambda row: Cell(text=show_ms(row.p50_ms), small=_between(row.p50_interval_ms, show_ms)),
        ),
        (Column(head=tail_of(settings), unit="ms"), lambda row: show_ms(row.tail_ms)),
        (Column(head="cold p50", unit="ms"), lambda row: show_ms(row.cold_p50_ms)),
        (
            Column(head="best", unit="images/s"),
            lambda row: Cell(
                text=show_ms(row.images_per_s), small=f"batch {row.images_per_s_batch}" if row.images_per_s else ""
            ),
        ),
        (
            Column(head="speed-up", unit="×"),
            lambda row: Cell(text=show(row.speed_up, ".2f"), small=_between(row.speed_up_interval, "{:.2f}".format)),
        ),
        (Column(head="roofline", unit="%"), lambda row: show_percent(row.roofline)),
        (
            Column(head="energy", unit="mJ/image"),
            lambda row: Cell(
                text=show_ms(row.mj_per_image),
                small="" if row.net_mj_per_image is None else f"net {show_ms(row.net_mj_per_image)}",
            ),
        ),
        (Column(head="file", unit="MB"), lambda row: show(row.megabytes, ".1f")),
        (Column(head="memory", unit="MB"), lambda row: show(row.memory_mb, ".0f")),
        (
            Column(head="load", unit="ms"),
            lambda row: Cell(text=show_ms(row.load_ms), small=f"first {show_ms(row.first_ms)}" if row.first_ms else ""),
        ),
    ]
    caption = ""
    if batch is not None:
        caption = f"Latencies and energy at batch {batch}. Small print: 95 % interval, change against the checkpoint, net of idling, and the first inference after loading. "
    if any(row.speed_up is not None for row in rows):
        caption += "Speed-up: against the checkpoint in PyTorch, eager, with the same threads. "
    return _table(name, "Scorecard", f"{caption}{NOT_AVAILABLE} is not available.", columns, rows)


_Entry = tuple[Row, Mapping[str, Any]]


def _entries(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> list[_Entry]:
    return [(row, entry) for row, subject in zip(rows, subjects, strict=True) for entry in subject["batches"]]


_BATCH: tuple[Column, _Maker] = (Column(head="batch"), lambda pair: str(pair[1]["batch"]))


def _measured_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.images_per_s is not None]


def batch_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """Every batch of every subject, warm and cold."""

    def percentile(name: str) -> tuple[Column, _Maker]:
        return Column(head=name, unit="ms"), lambda pair: show_ms(_ms(pair[1]["percentiles_ns"][name]))

    def cold(pair: _Entry) -> Cell:
        value = pair[1].get("cold")
        if not value:
            return Cell(text=NOT_AVAILABLE)
        return Cell(
            text=show_ms(_ms(value["percentiles_ns"]["p50"])), small="" if value.get("valid", True) else "invalid"
        )

    def against_peer(pair: _Entry) -> Cell:
        found = pair[1].get("against_fastest_peer")
        if not found:
            return Cell(text=NOT_AVAILABLE)
        interval = _between(found["interval"], "{:.2f}".format)
        return Cell(text=show(found["ratio"], ".2f"), small=f"{interval}, {found['against']}")

    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        _BATCH,
        (Column(head="samples"), lambda pair: str(pair[1]["count"])),
        (Column(head="mean", unit="ms"), lambda pair: show_ms(pair[1]["mean_ns"] / 1e6)),
        *(percentile(name) for name in ("p50", "p90", "p95", "p99", "p99.9")),
        (Column(head="CV", unit="%"), lambda pair: show_percent(pair[1]["cv"])),
        (Column(head="cold p50", unit="ms"), cold),
        (Column(head="images/s"), lambda pair: show_ms(pair[1]["images_per_s"])),
        (Column(head="queries/s"), lambda pair: show_ms(pair[1]["queries_per_s"])),
        (Column(head="× fastest peer"), against_peer),
        (Column(head="result", kind="text"), lambda pair: _badge(pair[1]["verdict"])),
        (Column(head="why invalid", kind="text"), lambda pair: ", ".join(pair[1]["reasons"])),
    ]
    entries = _entries(rows, subjects)
    lacking = [(row.label, _reason(entry, "cold")) for row, entry in entries if not entry.get("cold")]
    return _table(
        "batches",
        "Every batch",
        "Host end-to-end, warm. A percentile is left out where the samples are too few for it. "
        "CV: coefficient of variation; lower is steadier. × fastest peer: the median of the fastest other tool over this one.",
        columns,
        entries,
        reasons_of("cold cache:", lacking, _measured_rows(rows)),
    )


def _reason(entry: Mapping[str, Any], what: str) -> str:
    return str(entry.get("unavailable", {}).get(what) or NOT_MEASURED)


def device_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """The accelerator's own clock: copies, compute, launching, graphs, and inferences in flight."""

    def median(*keys: str) -> _Maker:
        def make(pair: _Entry) -> str:
            value: Any = pair[1]["device"]
            for key in keys:
                value = None if value is None else value.get(key)
            return show_ms(None if value is None else _ms(value["p50"]))

        return make

    def pipelined(pair: _Entry) -> Cell:
        value = pair[1].get("pipelined")
        if not value:
            return Cell(text=NOT_AVAILABLE)
        return Cell(text=show_ms(value["images_per_s"]), small=f"{value['in_flight']} in flight")

    entries = _entries(rows, subjects)
    shown = [pair for pair in entries if pair[1].get("device")]
    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        _BATCH,
        (Column(head="copy in (H2D)", unit="ms"), median("h2d_ns")),
        (Column(head="compute", unit="ms"), median("compute_ns")),
        (Column(head="copy out (D2H)", unit="ms"), median("d2h_ns")),
        (Column(head="all three", unit="ms"), median("latency_ns")),
        (Column(head="enqueue", unit="ms"), median("enqueue_ns")),
        (Column(head="compute in a CUDA graph", unit="ms"), median("graph", "compute_ns")),
        (Column(head="pipelined", unit="images/s"), pipelined),
        (Column(head="warnings", kind="text"), lambda pair: ", ".join(pair[1]["device"].get("warnings", ()))),
    ]
    absent = reasons_of(
        "device clock:",
        [(row.label, _reason(entry, "device")) for row, entry in entries if not entry.get("device")],
        _measured_rows(rows),
    )
    lacking = {
        "graph": [pair for pair in shown if not pair[1]["device"].get("graph")],
        "pipelined": [pair for pair in shown if not pair[1].get("pipelined")],
    }
    for what, pairs in lacking.items():
        found = [(f"{row.label} at batch {entry['batch']}", _reason(entry, what)) for row, entry in pairs]
        absent += reasons_of(f"{what}:", found, _measured_rows(rows))
    return _table(
        "device",
        "On the device's clock",
        "Medians. Enqueue is the processor's time to launch the work: where it is above compute, the GPU waits for the "
        "processor. Lower is faster; pipelined throughput overlaps copies with compute, and higher is faster.",
        columns,
        shown,
        absent,
    )


def energy_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """Power and energy of every batch that was metered."""
    entries = _entries(rows, subjects)
    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        _BATCH,
        (Column(head="rail", kind="text"), lambda pair: str(pair[1]["energy"].get("rail") or NOT_AVAILABLE)),
        _energy("power", "W", "watts"),
        _energy("idle", "W", "idle_watts"),
        _energy("energy", "mJ/image", "mj_per_image"),
        _energy("net of idling", "mJ/image", "net_mj_per_image"),
        _energy("efficiency", "images/s/W", "images_per_s_per_watt"),
        (Column(head="start–end", unit="°C"), lambda pair: _ends(pair[1]["energy"].get("temperature_c"))),
        (Column(head="clocks", kind="text"), lambda pair: _clocks(pair[1]["energy"].get("clocks"))),
        (Column(head="why incomplete", kind="text"), lambda pair: "; ".join(pair[1]["energy"].get("reasons") or ())),
    ]
    return _table(
        "energy",
        "Power and energy",
        "Energy is mean power over the timed inferences, divided by images per second; net: less the power of the idle "
        "machine. Lower energy and higher efficiency are better.",
        columns,
        [pair for pair in entries if pair[1].get("energy")],
        reasons_of(
            "energy:",
            [(row.label, _reason(entry, "energy")) for row, entry in entries if not entry.get("energy")],
            _measured_rows(rows),
        ),
    )


def _energy(head: str, unit: str, key: str) -> tuple[Column, _Maker]:
    return Column(head=head, unit=unit), lambda pair: show_ms(pair[1]["energy"].get(key))


def _ends(values: Sequence[float | None] | None) -> str:
    known = [value for value in values or () if value is not None]
    return "–".join(f"{value:.1f}" for value in known) or NOT_AVAILABLE


def _clocks(clocks: Mapping[str, Sequence[float]] | None) -> str:
    parts = []
    for name, ends in (clocks or {}).items():
        text = "–".join(dict.fromkeys(f"{value:.0f}" for value in ends))
        parts.append(f"{name} {text} MHz")
    return ", ".join(parts) or NOT_AVAILABLE


def roofline_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """Each subject's median against the least time that the machine's own peaks allow."""
    pairs = list(zip(rows, subjects, strict=True))
    shown = [(row, subject["roofline"]) for row, subject in pairs if subject.get("roofline")]

    def worst(pair: _Entry) -> Cell:
        layer = worst_layer(pair[1])
        if layer is None:
            return Cell(text=NOT_AVAILABLE)
        return Cell(text=layer["name"], small=f"{show_ms(_ms(layer['above_ns']))} ms above its floor")

    def by_round(pair: _Entry) -> Cell:
        found = pair[1].get("by_round")
        if found is None:
            return Cell(text=NOT_AVAILABLE)
        return Cell(text=show_percent(found["share"]), small=_between(found["interval"], lambda v: f"{100 * v:.1f}"))

    def bound(pair: _Entry) -> str:
        layers = [layer["name"] for layer in pair[1]["layers"] if layer["bound"] == "memory"]
        return ", ".join(layers) or "none"

    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        (Column(head="batch"), lambda pair: str(pair[1]["batch"])),
        (Column(head="floor", unit="ms"), lambda pair: show_ms(_ms(pair[1]["floor_ns"]))),
        (Column(head="p50", unit="ms"), lambda pair: show_ms(_ms(pair[1]["p50_ns"]))),
        (Column(head="of the roofline", unit="%"), lambda pair: show_percent(pair[1]["share"])),
        (Column(head="round by round", unit="%"), by_round),
        (Column(head="most above its floor", kind="text"), worst),
        (Column(head="in no layer", unit="ms"), lambda pair: show_ms(_ms(pair[1]["other_ns"]))),
        (Column(head="bound by memory", kind="text"), bound),
    ]
    absent = reasons_of(
        "roofline:",
        [
            (row.label, str(subject.get("unavailable", {}).get("roofline") or NOT_MEASURED))
            for row, subject in pairs
            if subject["batches"] and not subject.get("roofline")
        ],
        _measured_rows(rows),
    )
    absent += reasons_of(
        "time by layer:",
        [(row.label, roofline["unavailable"]) for row, roofline in shown if roofline["unavailable"]],
        _measured_rows(rows),
    )
    notes: dict[str, list[str]] = {}
    for row, roofline in shown:
        if roofline.get("notes"):
            notes.setdefault("; ".join(roofline["notes"]), []).append(row.label)
    absent += [f"{', '.join(labels)}: {text}" for text, labels in notes.items()]
    return _table(
        "roofline",
        "Roofline",
        "The floor is the least time in which this machine can move the network's bytes and do its multiply-adds, "
        "layer by layer, at the best that any round reached. Nearer to 100 % leaves less to gain. Round by round: each "
        "round's median against the median rates of the same round, with its 95 % interval: for machines whose speed changes.",
        columns,
        shown,
        absent,
    )


def worst_layer(roofline: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry of the layer with the most time above its floor; None where no layer was timed."""
    timed = (layer for layer in roofline["layers"] if layer["above_ns"] is not None)
    return next((layer for layer in timed if layer["name"] == roofline["worst"]), None)


def worst_overall(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> str:
    """The sentence naming the layer with the most time above its floor: of the fastest proved artifact, and of all.

    Empty where no layer was timed. Left out is a profile whose nodes do not add up to the latency: it was taken while the
    machine was busy, or profiling itself took the time.
    """
    found = [
        (row, layer)
        for row, subject in zip(rows, subjects, strict=True)
        if subject.get("roofline")
        and subject["roofline"].get("profile_fits") is not False
        and (layer := worst_layer(subject["roofline"])) is not None
    ]
    if not found:
        return ""
    best, worst = fastest_proved(rows), max(found, key=lambda pair: float(pair[1]["above_ns"]))
    chosen = [pair for pair in found if pair[0] is best]
    if worst[0] is not best:
        chosen.append(worst)
    parts = [
        f"{layer['name']} of {row.label}{' (fastest proved)' if row is best else ''}, {show_ms(_ms(layer['above_ns']))} "
        f"ms above a floor of {show_ms(_ms(layer['floor_ns']))} ms"
        for row, layer in chosen
    ]
    return f"Most time above its floor, as the runtimes profile it: {'; of all subjects: '.join(parts)}."


def scenario_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """LoadGen's verdicts."""
    pairs = [
        (row, entry)
        for row, subject in zip(rows, subjects, strict=True)
        for entry in subject.get("scenarios") or ()
    ]  # fmt: skip

    def percentile(name: str) -> tuple[Column, _Maker]:
        return Column(head=name, unit="ms"), lambda pair: show_ms(_ms(pair[1]["percentiles_ns"].get(name)))

    names = ("p50", "p90", "p95", "p97", "p99", "p99.9")
    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        (Column(head="scenario", kind="text"), lambda pair: str(pair[1]["scenario"])),
        (Column(head="verdict", kind="text"), lambda pair: _badge(pair[1]["verdict"])),
        (Column(head="metric"), _metric),
        *(percentile(name) for name in names),
        (Column(head="queries"), lambda pair: show(pair[1]["queries"], ".0f")),
        (Column(head="time", unit="s"), lambda pair: show(pair[1]["duration_ns"], ".1f", 1e-9)),
        (Column(head="bound", unit="ms"), lambda pair: show_ms(_ms(pair[1].get("latency_bound_ns")))),
        (Column(head="harness", unit="%"), lambda pair: show_ms(_times(pair[1].get("harness_share"), 100))),
        (Column(head="why invalid", kind="text"), lambda pair: ", ".join(pair[1]["reasons"])),
    ]
    measured = [row for row, subject in zip(rows, subjects, strict=True) if subject["batches"]]
    lacking = [] if pairs else [(row.label, NOT_MEASURED) for row in measured]
    versions = sorted({str(entry["loadgen_version"]) for _, entry in pairs if entry.get("loadgen_version")})
    return _table(
        "scenarios",
        "MLPerf LoadGen scenarios",
        f"LoadGen {', '.join(versions)} sends the queries and judges. Lower latency and higher throughput are better. "
        "Harness: LoadGen's own time per query, of the median.",
        columns,
        pairs,
        reasons_of("scenarios:", lacking, _measured_rows(rows)),
    )


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _metric(pair: _Entry) -> Cell:
    metric = pair[1]["metric"]
    value, unit = metric["value"], metric["unit"]
    if value is None:
        return Cell(text=NOT_AVAILABLE)
    if unit == "ns":
        return Cell(text=f"{show_ms(value / 1e6)} ms", small=metric["name"])
    return Cell(text=f"{show_ms(value)} {unit}", small=metric["name"])


def peaks_table(peaks: Sequence[Mapping[str, Any]]) -> Table:
    """What the machine can do, as measured on it."""

    def speed(name: str) -> tuple[Column, _Maker]:
        return (
            Column(head=name.upper(), unit="G multiply-adds/s"),
            lambda one: show_ms(_times(one["multiply_adds_per_s"].get(name), 1e-9)),
        )

    columns: list[tuple[Column, _Maker]] = [
        (Column(head="device", kind="name"), lambda one: str(one["device"])),
        (Column(head="threads"), lambda one: str(one["threads"] or NOT_AVAILABLE) if one["device"] == "cpu" else ""),
        (Column(head="read", unit="GB/s"), lambda one: show_ms(_times(one["read_bytes_per_s"], 1e-9))),
        (Column(head="copy", unit="GB/s"), lambda one: show_ms(_times(one["copy_bytes_per_s"], 1e-9))),
        *(speed(name) for name in dict.fromkeys(key for one in peaks for key in one["multiply_adds_per_s"])),
    ]
    how = dict.fromkeys(
        f"{name} on {one['device']}: {told['kernel']}"
        for one in peaks
        for name, told in one.get("how", {}).items()
        if isinstance(told, Mapping) and "kernel" in told
    )
    missing = dict.fromkeys(
        f"{name} on {one['device']}: unavailable: {text}"
        for one in peaks
        for name, text in one.get("unavailable", {}).items()
    )
    return _table(
        "peaks",
        "What the machine can do",
        "The best rates measured on it; higher is faster." + (f" Kernels: {'; '.join(how)}." if how else ""),
        columns,
        peaks,
        list(missing) if peaks else [f"peaks: unavailable: {NOT_MEASURED}"],
    )


def harness_table(harness: Mapping[str, Any] | None, rows: Sequence[Row]) -> Table:
    """What measuring itself costs: the same harness with a session that answers at once."""
    found = harness or {}
    fastest = min((row.p50_ms for row in rows if row.p50_ms is not None), default=None)
    parts = (
        ("timing one inference", found.get("sample_ns"), found.get("sample_loop_ns"), found.get("samples")),
        ("one LoadGen query", found.get("loadgen_query_ns"), found.get("loadgen_loop_ns"), found.get("queries")),
    )

    def percentile(name: str) -> tuple[Column, _Maker]:
        return Column(head=name, unit="µs"), lambda part: show_ms(_times(part[1].get(name), 1e-3))

    def share(part: Any) -> str:
        p50_ns = part[1].get("p50")
        return show_ms(None if fastest is None or p50_ns is None else p50_ns / fastest / 1e4)

    columns: list[tuple[Column, _Maker]] = [
        (Column(head="harness", kind="name"), lambda part: str(part[0])),
        *(percentile(name) for name in ("p50", "p90", "p99")),
        (Column(head="whole loop", unit="µs"), lambda part: show_ms(_times(part[2], 1e-3))),
        (Column(head="samples"), lambda part: NOT_AVAILABLE if part[3] is None else f"{part[3]:,}"),
        (Column(head="of the fastest p50", unit="%"), share),
    ]
    caption = "The same loop around a session that answers at once. It is part of every latency shown; lower is better."
    if plain := found.get("plain_loop"):
        caption += f" {plain_loop_sentence(plain)}"
    lacking = [name for name, percentiles, _, _ in parts if not percentiles]
    why = found.get("unavailable") or NOT_MEASURED
    return _table(
        "harness",
        "What measuring costs",
        caption,
        columns,
        [part for part in parts if part[1]],
        [f"{name}: unavailable: {why}" for name in lacking] if harness else [f"harness overhead: unavailable: {why}"],
    )


def plain_loop_sentence(plain: Mapping[str, Any]) -> str:
    """How the harness compares with a plain loop around the same session."""
    low, high = plain["interval"]
    return (
        f"Against a plain Python loop around the same session ({plain['label']}, in turn, {plain['blocks']} pairs of "
        f"blocks) its median is {plain['ratio']:.3f} times as long, {low:.3f} to {high:.3f}."
    )


_STATES = (
    ("temperature_c", "temperature", "°C"),
    ("cpu_mhz", "processor", "MHz"),
    ("gpu_mhz", "GPU", "MHz"),
    ("emc_mhz", "GPU memory", "MHz"),
    ("cpu_governor", "governor", ""),
    ("throttled", "throttled by", ""),
    ("load_average_1min", "load average", ""),
)


def thermal_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """What the machine was doing before and after each subject's rounds."""
    pairs = [(row, subject["rounds"]) for row, subject in zip(rows, subjects, strict=True) if subject["rounds"]]

    def column(key: str, head: str, unit: str) -> tuple[Column, _Maker]:
        kind: Literal["figure", "text"] = "text" if key in ("cpu_governor", "throttled") else "figure"
        return Column(head=head, unit=unit, kind=kind), lambda pair: _range_of(pair[1], key)

    seen = [state for state in _STATES if any(_states(rounds, state[0]) for _, rounds in pairs)]
    unseen = [state for state in _STATES if state not in seen]
    return _table(
        "thermals",
        "The machine meanwhile",
        "Lowest to highest, before and after the rounds. A changing temperature or clock makes results hard to compare.",
        [_SUBJECT, *(column(*state) for state in seen)],
        pairs if seen else (),
        [f"{', '.join(head for _, head, _ in unseen)}: unavailable: this machine does not tell"] if unseen else (),
    )


def _states(rounds: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    found = [taken.get(when, {}).get(key) for taken in rounds for when in ("before", "after")]
    return [value for value in found if value is not None]


def _range_of(rounds: Sequence[Mapping[str, Any]], key: str) -> str:
    known = _states(rounds, key)
    if not known:
        return NOT_AVAILABLE
    if isinstance(known[0], list):
        return ", ".join(dict.fromkeys(name for names in known for name in names)) or "nothing"
    if isinstance(known[0], str):
        return ", ".join(dict.fromkeys(known))
    return "–".join(dict.fromkeys(show_ms(value) for value in (min(known), max(known))))


# --- Markdown and CSV -----------------------------------------------------------------------------------------------------


def threads_of(bench: Mapping[str, Any]) -> str:
    """The numbers of threads in the results, as text: `4 threads`, `1, 2 and 4 threads`."""
    found = sorted({subject["threads"] for subject in bench["subjects"] if subject.get("threads")})
    counts = found or [count for count in [bench.get("threads")] if count]
    if not counts:
        return f"{NOT_AVAILABLE} threads"
    if len(counts) == 1:
        return plural(counts[0], "thread")
    return f"{', '.join(map(str, counts[:-1]))} and {counts[-1]} threads"


def markdown_of(bench: Mapping[str, Any]) -> str:
    """The results as Markdown: verdict, scorecard, every table that has data, environment."""
    settings, subjects = bench["settings"], bench["subjects"]
    rows = rows_of(subjects, settings)
    lines = [f"**{_plain(verdict(rows, settings))}.**", "", f"{_plain(headline(rows))}.", ""]
    if bench["interrupted"] or not bench.get("finished", True):
        what = "was interrupted" if bench["interrupted"] else "did not finish"
        lines += [f"The bench {what}: what was finished by then is shown.", ""]
    lines += _markdown_table(scorecard(rows, settings))
    for labels, points in open_points(rows, bench.get("peers_left_out")):
        lines += [_plain(f"- {labels}: {what}: {why}") for what, why in points]
    layer = worst_overall(rows, subjects)
    for table in every_table(bench, rows):
        lines += ["", f"{_plain(table.title)}:", ""]
        if table.name == "roofline" and layer:
            lines += [_plain(layer), ""]
        if table.rows:
            lines += _markdown_table(table)
        lines += [_plain(f"- {text}") for text in table.absent]
    power = bench.get("power") or {}
    machine = bench["environment"]
    lines += [
        "",
        f"Speed-up: against the checkpoint in PyTorch, eager, same threads. Clock: {_plain(bench['clock'])}. "
        f"Load: {_plain(bench['load'])}."
        + (f" Power meter: {_plain(power['meter'])}." if power.get("meter") else ""),
        "",
        f"{_plain(str(machine.get('cpu') or 'unknown processor'))}, {threads_of(bench)}, "
        f"{_plain(str(machine.get('os')))}; {settings['rounds']} rounds of fresh processes, interleaved; "
        f"{bench['created']}.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def every_table(bench: Mapping[str, Any], rows: Sequence[Row]) -> list[Table]:
    """The tables after the scorecard, in order; one without rows says in `absent` why."""
    subjects = bench["subjects"]
    return [
        batch_table(rows, subjects),
        roofline_table(rows, subjects),
        scenario_table(rows, subjects),
        device_table(rows, subjects),
        energy_table(rows, subjects),
        thermal_table(rows, subjects),
        harness_table(bench.get("harness"), rows),
        peaks_table(bench.get("peaks") or ()),
    ]


_MARKDOWN = re.compile(r"([\\`*<>\[\]|])")


def _plain(text: str) -> str:
    """`text` on one line, so that Markdown shows it and obeys nothing in it."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _markdown_table(table: Table) -> list[str]:
    heads = [f"{column.head} {column.unit}".strip() for column in table.columns]
    rule = ["--:" if column.kind == "figure" else "---" for column in table.columns]
    lines = [heads, rule]
    for row in table.rows:
        cells = [
            cell.text if column.kind == "name" or not cell.small else f"{cell.text} ({cell.small})"
            for column, cell in zip(table.columns, row, strict=True)
        ]
        lines.append([_plain(text) for text in cells])
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Path:
    """A figure of a batch: the CSV's column, and where it is in the JSON."""

    name: str
    keys: tuple[str, ...] = field(default_factory=tuple)

    def of(self, entry: Mapping[str, Any]) -> Any:
        value: Any = entry
        for key in self.keys or (self.name,):
            if value is None:
                return None
            value = value.get(key)
        return value


_WARM = tuple(_Path(name=name) for name in ("batch", "count", "mean_ns", "min_ns", "max_ns"))
_PERCENTILES = tuple(_Path(name=f"{name}_ns", keys=("percentiles_ns", name)) for name in ("p50", "p90", "p95", "p99"))
_FURTHER = (
    _Path(name="p99.9_ns", keys=("percentiles_ns", "p99.9")),
    *(_Path(name=name) for name in ("median_interval_ns", "cv", "images_per_s", "queries_per_s", "verdict", "reasons")),
    _Path(name="speed_up", keys=("speed_up", "ratio")),
    _Path(name="speed_up_interval", keys=("speed_up", "interval")),
    *(_Path(name=f"cold_{name}_ns", keys=("cold", "percentiles_ns", name)) for name in ("p50", "p99")),
    *(_Path(name=f"device_{name}_p50_ns", keys=("device", f"{name}_ns", "p50"))
      for name in ("h2d", "compute", "d2h", "latency", "enqueue")),
    _Path(name="graph_compute_p50_ns", keys=("device", "graph", "compute_ns", "p50")),
    _Path(name="pipelined_in_flight", keys=("pipelined", "in_flight")),
    _Path(name="pipelined_images_per_s", keys=("pipelined", "images_per_s")),
    *(_Path(name=f"energy_{name}", keys=("energy", name))
      for name in ("rail", "watts", "idle_watts", "mj_per_image", "net_mj_per_image", "images_per_s_per_watt")),
)  # fmt: skip
_UNAVAILABLE = ("cold", "device", "graph", "pipelined", "energy")
_OF_ONE_BATCH = frozenset(
    ("p50_ms", "p50_interval_ms", "tail_ms", "cold_p50_ms", "valid", "images_per_s", "images_per_s_batch",
     "mj_per_image", "net_mj_per_image", "roofline", "speed_up", "speed_up_interval")
)  # fmt: skip


def csv_of(bench: Mapping[str, Any]) -> str:
    """One line per subject and batch; an empty cell is not available, and `unavailable` says why."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rows = rows_of(bench["subjects"], bench["settings"])
    about = [entry.name for entry in fields(Row) if entry.name not in _OF_ONE_BATCH]
    paths = (*_WARM, *_PERCENTILES, *_FURTHER)
    header = [*about, "sha256", *(path.name for path in paths), "floor_ns", "roofline", "unavailable"]
    writer.writerow(header)
    for row, subject in zip(rows, bench["subjects"], strict=True):
        own = [*(_cell(getattr(row, name)) for name in about), subject["sha256"]]
        if not subject["batches"]:
            writer.writerow(own + [""] * (len(header) - len(own)))
        roofline = subject.get("roofline") or {}
        for entry in subject["batches"]:
            roof = roofline if roofline.get("batch") == entry["batch"] else {}
            reasons = entry.get("unavailable", {})
            why = "; ".join(f"{name}: {reasons[name]}" for name in _UNAVAILABLE if reasons.get(name))
            writer.writerow(
                [
                    *own,
                    *(_cell(path.of(entry)) for path in paths),
                    *(_cell(roof.get(key)) for key in ("floor_ns", "share")),
                    _cell(why),
                ]
            )
    return stream.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return _cell("; ".join(map(str, value)))
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"  # a spreadsheet would take it for a formula
    return str(value)
