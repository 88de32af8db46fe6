"""Results as rows, Markdown and CSV. Everything is read from the results' JSON, so a file from another machine will do."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import Any

import numpy as np

NOT_AVAILABLE = "–"
"""Shown where a figure does not exist; never 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One subject in the scorecard; None is not available."""

    label: str
    file: str
    format: str
    precision: str
    runtime: str
    proof: str
    """`passed`, `failed`, `not run`, or `reference` for a checkpoint."""
    proof_notes: tuple[str, ...]
    """Why it failed or was not run, and what weakens it."""
    accuracy: float | None
    """Top-1 on the proof's labelled images, 0 to 1."""
    accuracy_images: int | None
    accuracy_change: float | None
    agreement: float | None
    """Top-1 agreement with the checkpoint, 0 to 1."""
    agreement_interval: tuple[float, float] | None
    max_abs_error: float | None
    measured: str
    """`VALID`, `INVALID`, `not run`, `error`, or empty when nobody measured it."""
    measured_notes: tuple[str, ...]
    p50_ms: float | None
    """Of the first batch, as are the next two."""
    p50_interval_ms: tuple[float, float] | None
    tail_ms: float | None
    """The percentile that `tail_of` names."""
    images_per_s: float | None
    """The highest of all batches."""
    images_per_s_batch: int | None
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


def rows_of(subjects: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None) -> list[Row]:
    """The scorecard: `subjects` as in the results' JSON, `settings` as measured, None when nothing was."""
    return [_row(subject, subjects, settings) for subject in subjects]


def tail_of(settings: Mapping[str, Any] | None) -> str:
    """The percentile shown beside the median: the highest asked for, `p99` say, and at least `p90`."""
    return f"p{max(90.0, settings['percentile']):g}" if settings else "p99"


def _row(subject: Mapping[str, Any], subjects: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None) -> Row:
    batches = subject["batches"]
    first = next((entry for entry in batches if settings and entry["batch"] == settings["batches"][0]), None)
    fastest = max(batches, key=lambda entry: float(entry["images_per_s"]), default=None)
    parity = subject["parity"]
    is_reference = subject["format"] == "checkpoint"
    figures = parity.get("figures", {})
    accuracy, images = figures.get("candidate_accuracy"), figures.get("num_labelled")
    if is_reference:
        accuracy, images = _reference_accuracy(subject, subjects)
    notes = [*parity.get("reasons", ()), *parity.get("warnings", ())]
    if proved := parity.get("stand_in"):
        notes.append(f"proved instead: {proved['what']}: {proved['verdict']}")
    measured, measured_notes = _measured(subject)
    return Row(
        label=subject["label"],
        file=subject["file"],
        format=subject["format"],
        precision=subject["precision"],
        runtime=subject["runtime"],
        proof="reference" if is_reference else parity.get("verdict", "not run"),
        proof_notes=tuple(notes) if parity or is_reference else ("its manifest has no parity verdict",),
        accuracy=accuracy,
        accuracy_images=images or None,
        accuracy_change=figures.get("accuracy_change"),
        agreement=figures.get("top1_agreement"),
        agreement_interval=_pair(figures.get("top1_agreement_interval")),
        max_abs_error=figures.get("max_abs_error"),
        measured=measured,
        measured_notes=measured_notes,
        p50_ms=None if first is None else _ms(first["percentiles_ns"]["p50"]),
        p50_interval_ms=None if first is None else _pair([value / 1e6 for value in first["median_interval_ns"]]),
        tail_ms=None if first is None else _ms(first["percentiles_ns"].get(tail_of(settings))),
        images_per_s=fastest and fastest["images_per_s"],
        images_per_s_batch=fastest and fastest["batch"],
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


# --- numbers as text ----------------------------------------------------------------------------------------------------


def show(value: float | None, form: str = ".3g", scale: float = 1.0) -> str:
    """`value * scale` in `form`, or the sign for not available."""
    return NOT_AVAILABLE if value is None else format(value * scale, form)


def show_ms(value: float | None) -> str:
    """Milliseconds with three significant digits and no exponent."""
    if value is None:
        return NOT_AVAILABLE
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show_percent(value: float | None) -> str:
    """A share, in percent without the sign."""
    return NOT_AVAILABLE if value is None else f"{100 * value:.1f}"


def headline(rows: Sequence[Row]) -> str:
    """The verdict in one sentence."""
    artifacts = [row for row in rows if row.proof != "reference"]
    proved = sum(row.proof == "passed" for row in artifacts)
    measured = [row for row in rows if row.measured in ("VALID", "INVALID")]
    valid = sum(row.measured == "VALID" for row in measured)
    text = f"{proved} of {len(artifacts)} artifacts proved"
    if measured:
        validly = "all validly" if valid == len(measured) else f"{valid} validly"
        text += f"; {len(measured)} of {len(rows)} subjects measured, {validly}"
    return text


def open_points(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is not proved or not validly measured, and why: for each subject, or subjects that share them, `(what, why)`."""
    points: dict[str, list[tuple[str, str]]] = {}
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
    return [(", ".join(labels), list(found)) for found, labels in shared.items()]


# --- Markdown and CSV -----------------------------------------------------------------------------------------------------


def markdown_of(bench: Mapping[str, Any]) -> str:
    """The results as Markdown: verdict, scorecard, every batch, environment."""
    settings = bench["settings"]
    rows = rows_of(bench["subjects"], settings)
    tail, batch = tail_of(settings), settings["batches"][0]
    lines = [f"**{headline(rows)}.**", ""]
    if bench["interrupted"]:
        lines += ["The bench was interrupted: what was finished by then is shown.", ""]
    lines += _markdown_table(
        (
            "subject",
            "proof",
            "top-1 %",
            "agreement %",
            "max abs error",
            f"p50 ms, batch {batch}",
            f"{tail} ms",
            "best images/s (batch)",
            "file MB",
            "load ms",
            "speed-up",
            "result",
        ),
        [
            (
                row.label,
                row.proof,
                show_percent(row.accuracy),
                show_percent(row.agreement),
                show(row.max_abs_error, ".1e"),
                show_ms(row.p50_ms),
                show_ms(row.tail_ms),
                NOT_AVAILABLE if row.images_per_s is None else f"{row.images_per_s:.1f} ({row.images_per_s_batch})",
                show(row.megabytes, ".1f"),
                show_ms(row.load_ms),
                NOT_AVAILABLE if row.speed_up is None else f"{row.speed_up:.2f}x",
                row.measured or NOT_AVAILABLE,
            )
            for row in rows
        ],
        numbers_from=2,
        numbers_to=11,
    )
    for labels, points in open_points(rows):
        lines += [f"- {labels}: {what}: {why}" for what, why in points]
    lines += ["", "Every batch:", ""]
    lines += _markdown_table(
        (
            "subject",
            "batch",
            "samples",
            "mean ms",
            "p50",
            "p90",
            "p95",
            "p99",
            "p99.9",
            "CV %",
            "images/s",
            "queries/s",
            "result",
        ),
        [
            (
                subject["label"],
                str(entry["batch"]),
                str(entry["count"]),
                show_ms(entry["mean_ns"] / 1e6),
                *(show_ms(_ms(entry["percentiles_ns"][key])) for key in ("p50", "p90", "p95", "p99", "p99.9")),
                show_percent(entry["cv"]),
                show(entry["images_per_s"], ".1f"),
                show(entry["queries_per_s"], ".1f"),
                ": ".join(filter(None, (entry["verdict"], ", ".join(entry["reasons"])))),
            )
            for subject in bench["subjects"]
            for entry in subject["batches"]
        ],
        numbers_from=1,
        numbers_to=12,
    )
    machine = bench["environment"]
    lines += [
        f"Speed-up: against the checkpoint in PyTorch, eager, same threads. Clock: {bench['clock']}. "
        f"Load: {bench['load']}.",
        "",
        f"{machine.get('cpu') or 'unknown processor'}, {bench['threads']} threads, {machine.get('os')}; "
        f"{settings['rounds']} rounds of fresh processes, interleaved; {bench['created']}.",
        "",
    ]
    return "\n".join(lines)


def _markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int, numbers_to: int
) -> list[str]:
    assert all(len(row) == len(header) for row in rows), "Markdown drops cells that have no header"
    rule = ["--:" if numbers_from <= index < numbers_to else "---" for index in range(len(header))]
    table = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [*("| " + " | ".join(cells) + " |" for cells in table), ""]


def csv_of(bench: Mapping[str, Any]) -> str:
    """One line per subject and batch; an empty cell is not available."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rows = rows_of(bench["subjects"], bench["settings"])
    about = [
        entry.name
        for entry in fields(Row)
        if entry.name not in {"p50_ms", "p50_interval_ms", "tail_ms", "images_per_s", "images_per_s_batch"}
    ]
    figures = ("batch", "count", "mean_ns", "min_ns", "max_ns")
    percentiles = [f"p{value:g}" for value in (50, 90, 95, 99, 99.9)]
    last = ("cv", "images_per_s", "queries_per_s", "verdict", "reasons")
    header = [*about, "sha256", *figures, *(f"{name}_ns" for name in percentiles), *last]
    writer.writerow(header)
    for row, subject in zip(rows, bench["subjects"], strict=True):
        own = [*(_cell(getattr(row, name)) for name in about), subject["sha256"]]
        if not subject["batches"]:
            writer.writerow(own + [""] * (len(header) - len(own)))
        for entry in subject["batches"]:
            times = [_cell(entry["percentiles_ns"][name]) for name in percentiles]
            writer.writerow(
                [*own, *(_cell(entry[name]) for name in figures), *times, *(_cell(entry[name]) for name in last)]
            )
    return stream.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return str(value)
