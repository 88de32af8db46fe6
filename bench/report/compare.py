"""Compare two sets of measurements and name what became slower: the gate of a pull request.

How a row is judged stands at the head of `judgement.py`; which measurements belong together, in `pairing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from alexnet_edge.bench.report.foreign import read_measurements
from alexnet_edge.bench.report.judgement import Judgement, Verdict, full_name, judge
from alexnet_edge.bench.report.measurement import COLD, Measurement
from alexnet_edge.bench.report.numbers import NOT_AVAILABLE, in_ms, plural, show
from alexnet_edge.bench.report.pairing import (
    Pair,
    conditions,
    differences,
    labels_of,
    pair_by_label,
    pair_up,
    sorted_out,
    unknown_conditions,
    was_measured,
)
from alexnet_edge.errors import GateError, UserError
from alexnet_edge.proof.stats import CONFIDENCE

SCHEMA = 1
KIND = "alexnet-edge comparison"

MAX_SLOWDOWN = 0.05
"""Default of the largest slowdown that passes."""
_File = tuple[Path, Sequence[Measurement]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What changed from one set of measurements to another."""

    base: str
    new: str
    max_slowdown: float
    force: bool
    rows: tuple[Judgement, ...]
    """Worst first."""
    only_base: tuple[str, ...]
    only_new: tuple[str, ...]
    broken: tuple[str, ...]
    """What the base measured and the new run failed to."""
    warnings: tuple[str, ...]
    versions: tuple[tuple[str, str | None, str | None], ...]
    """Libraries that differ: name, in the base, in the new."""
    conditions: Mapping[str, tuple[Any, Any]]
    """Of the first row, by name: in the base, in the new."""

    @property
    def regressions(self) -> tuple[Judgement, ...]:
        return tuple(row for row in self.rows if row.verdict == "regression")

    @property
    def invalid(self) -> tuple[Judgement, ...]:
        """The rows that fail the gate because a side of theirs was INVALID."""
        return tuple(row for row in self.rows if row.verdict == "invalid" and row.key.what != COLD)

    @property
    def passed(self) -> bool:
        return not (self.regressions or self.invalid or self.broken)

    def headline(self) -> str:
        """The verdict in one sentence."""
        limit = f"{self.max_slowdown:.3g}".rstrip(".") if self.max_slowdown >= 10 else f"{self.max_slowdown:.1%}"
        parts = []
        if self.regressions:
            worst = max(self.regressions, key=lambda row: row.ratio or 0)
            count = plural(len(self.regressions), "regression")
            parts.append(f"{count} of more than {limit}, worst {worst.name} at {_times(worst.ratio)}")
        if self.invalid:
            parts.append(f"{plural(len(self.invalid), 'measurement')} INVALID and not compared")
        if self.broken:
            parts.append(f"{plural(len(self.broken), 'measurement')} failed in the new run")
        if not parts:
            parts.append(f"no regression of more than {limit} in {plural(len(self.rows), 'measurement')}")
        for verdict in ("improvement", "inconclusive", "no interval"):
            if number := sum(row.verdict == verdict for row in self.rows):
                parts.append(plural(number, verdict) if verdict == "improvement" else f"{number} {verdict}")
        return "; ".join(parts)

    def check(self) -> None:
        """Raises GateError with the headline when the gate is not passed."""
        if not self.passed:
            raise GateError(self.headline())

    def to_json(self) -> dict[str, Any]:
        """Everything, with times in ns; no NaN and no infinity."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "passed": self.passed,
            "headline": self.headline(),
            "base": self.base,
            "new": self.new,
            "max_slowdown": self.max_slowdown,
            "confidence": CONFIDENCE,
            "force": self.force,
            "rows": [asdict(row) for row in self.rows],
            "only_base": list(self.only_base),
            "only_new": list(self.only_new),
            "broken": list(self.broken),
            "warnings": list(self.warnings),
            "versions": [{"name": name, "base": old, "new": now} for name, old, now in self.versions],
            "conditions": {name: {"base": old, "new": now} for name, (old, now) in self.conditions.items()},
        }

    def markdown(self) -> str:
        """For a pull request: the verdict, what to know first, the table, and the surroundings folded away."""
        first = [f"- Warning: {_cell(text)}" for text in self.warnings]
        first += [f"- Failed in the new run: {_cell(text)}" for text in self.broken]
        changes = [
            f"| {_cell(row.name)}: {change.name} | {change.base:.4g} | {change.new:.4g} | {change.unit} |"
            for row in self.rows
            for change in row.changes
            if change.base != change.new
        ]
        if changes:
            changes = ["", "| also changed | base | new | unit |", "|---|---:|---:|---|", *changes]
        unpaired = []
        for title, names in (("Only in the base", self.only_base), ("Only in the new", self.only_new)):
            if names:
                unpaired += ["", f"{title}: {_cell('; '.join(names))}"]
        surroundings = [("file", self.base, self.new)]
        surroundings += [(name, _known(old), _known(new)) for name, (old, new) in self.conditions.items()]
        surroundings += [(name, _known(old), _known(new)) for name, old, new in self.versions]
        return "\n".join(
            [
                f"**{'Passed' if self.passed else 'FAILED'}**: {_cell(self.headline())}",
                "",
                *first,
                *([""] if first else []),
                "| measurement | base, ms | new, ms | new / base | 95 % interval | P(slower) | tail | verdict |",
                "|---|---:|---:|---:|---:|---:|---:|---|",
                *map(_markdown_row, self.rows),
                "",
                *(f"- {_cell(row.name)}: {_cell(note)}" for row in self.rows for note in row.notes),
                *changes,
                *unpaired,
                "",
                "<details><summary>Surroundings</summary>",
                "",
                "| | base | new |",
                "|---|---|---|",
                *(f"| {' | '.join(map(_cell, row))} |" for row in surroundings),
                "",
                "</details>",
                "",
            ]
        )


def compare(
    base: Path,
    new: Path,
    *,
    max_slowdown: float = MAX_SLOWDOWN,
    force: bool = False,
    match: Sequence[tuple[str, str]] = (),
    base_log: Path | None = None,
    new_log: Path | None = None,
) -> Comparison:
    """Judge what the file `new` has in common with `base`, see `read_measurements` for which files.

    Args:
        max_slowdown: the largest slowdown that passes, 0.05 meaning 5 %.
        force: compare INVALID measurements, and those made under different conditions, with a warning. Times of an
            emulator are never compared with times of a machine.
        match: pairs of labels, of the base and of the new, to compare with each other and nothing else; empty: all.
        base_log, new_log: what trtexec printed, for a file that has its times.

    Raises:
        UserError: when a file cannot be read, when they have nothing in common, or when it was not measured under the same
            conditions (processor, GPU, power mode, clock, definition, inputs, threads, batch), or one of them under an emulator.
    """
    if not 0 <= max_slowdown < math.inf:
        raise UserError("the largest slowdown must be 0 or more", value=max_slowdown, fix="try 0.05, which is 5 %")
    before, after = read_measurements(base, log=base_log), read_measurements(new, log=new_log)
    files = ((base, before), (new, after))
    _refuse_emulated_with_measured(files)
    pairs = _pairs(files, match, force=force)
    warnings = list(dict.fromkeys(text for pair in pairs for text in differences(pair)))
    if warnings and not force:
        raise UserError(
            f"not measured under the same conditions: {'; '.join(warnings)}",
            value=f"{base} and {new}",
            fix="measure both the same way, or compare them all the same with --force",
        )
    rows = [judge(*pair, max_slowdown=max_slowdown, force=force) for pair in pairs]
    if force:
        warnings += [
            f"compared although INVALID: {row.name}"
            for row, pair in zip(rows, pairs, strict=True)
            if any(measurement.verdict == "INVALID" for measurement in pair)
        ]
    warnings += [text for pair in pairs for text in unknown_conditions(pair)]
    for path, measurements in files:
        warnings += [f"{path}: {note}" for measurement in measurements for note in measurement.notes]
    only_base, only_new, broken = ([], [], []) if match else sorted_out(before, after, pairs)
    return Comparison(
        base=str(base),
        new=str(new),
        max_slowdown=max_slowdown,
        force=force,
        rows=tuple(sorted(rows, key=_order)),
        only_base=tuple(map(_describe, only_base)),
        only_new=tuple(map(_describe, only_new)),
        broken=tuple(map(_describe, broken)),
        warnings=tuple(dict.fromkeys(warnings)),
        versions=_versions(pairs),
        conditions=conditions(pairs[0]),
    )


def _refuse_emulated_with_measured(files: Sequence[_File]) -> None:
    emulators = [
        (path, emulator)
        for path, measurements in files
        if (emulator := next((entry.emulated for entry in measurements if entry.emulated), None)) is not None
    ]
    if len(emulators) == 1:
        ((path, emulator),) = emulators
        raise UserError(
            f"emulated ({emulator}), and the other was measured on a machine: an emulator's times say nothing of it",
            value=path,
            fix="measure on the machine itself; --force does not help",
        )


def _pairs(files: Sequence[_File], match: Sequence[tuple[str, str]], *, force: bool) -> list[Pair]:
    old, now = (list(filter(was_measured, measurements)) for _, measurements in files)
    pairs = pair_by_label(old, now, match) if match else pair_up(old, now, force=force)
    if not pairs:
        raise UserError(
            f"nothing in common: {labels_of(old)} there, {labels_of(now)} here",
            value=" and ".join(str(path) for path, _ in files),
            fix="name labels that the files have" if match else "name which labels to compare with each other",
        )
    return pairs


def _versions(pairs: Sequence[Pair]) -> tuple[tuple[str, str | None, str | None], ...]:
    changed = {}
    for base, new in pairs:
        for name in dict.fromkeys([*base.versions, *new.versions]):
            old, now = base.versions.get(name), new.versions.get(name)
            if old != now:
                changed[name] = (name, old, now)
    return tuple(changed.values())


def _order(row: Judgement) -> tuple[int, float]:
    """Worst first."""
    return get_args(Verdict).index(row.verdict), -(row.ratio or 0)


def _describe(measurement: Measurement) -> str:
    text = full_name(measurement.label, measurement.key)
    return text if was_measured(measurement) else f"{text} ({'; '.join(measurement.reasons)})"


def _known(value: object) -> str:
    return "not recorded" if value is None else str(value)


def _times(ratio: float | None) -> str:
    return NOT_AVAILABLE if ratio is None else f"{ratio:.3f}×"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_row(row: Judgement) -> str:
    cells = (
        _cell(row.name),
        show(in_ms(row.base_ns), ".4g"),
        show(in_ms(row.new_ns), ".4g"),
        _times(row.ratio),
        NOT_AVAILABLE if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
        show(row.superiority, ".2f"),
        NOT_AVAILABLE if row.tail is None else f"{row.tail.name} {_times(row.tail.ratio)}",
        f"**{row.verdict}**" if row.verdict in ("regression", "invalid") else row.verdict,
    )
    return f"| {' | '.join(cells)} |"
