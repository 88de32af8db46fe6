"""Compare two sets of measurements, and say of each whether it became slower: the gate of a pull request.

How a row is judged. The ratio is the new median over the base median. Its 95 % interval is the wider, at either end, of two:

- the bootstrap of both medians (rounds redrawn, then blocks of neighbouring samples in each; the two runs independently of
  each other, because rounds of different runs are not pairs). It knows what it has seen: with one round it knows nothing of
  how much a new process differs from the last, with three too little;
- Student's t for the difference of two means, on the logarithms of the rounds' medians. The spread of rounds is estimated
  from both runs together and drawn towards `ROUND_SPREAD` with the weight of `SPREAD_WEIGHT` more rounds (a moderated
  variance: G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 3 (2004)), so that rounds that happen to agree do not promise what
  they cannot keep, and one round alone still has an interval.

With `slower` for 1 + the largest slowdown allowed, the verdict is

- `regression` when the whole interval lies above `slower`;
- `improvement` when the whole interval lies below 1;
- `no change seen` when the interval holds 1 and ends at or below `slower`;
- `slower, within the limit` when it lies above 1 and ends at or below `slower`;
- `inconclusive` otherwise: the interval reaches beyond the limit and does not start there. It does not fail the gate, and is
  said: more rounds would tell.
- `no interval` where a file has figures and no raw samples: the ratio is shown and not judged;
- `invalid` where either side was INVALID when measured. Such a figure can neither fail nor pass: it is not compared, and
  fails the gate, unless `force`. (A `cold` one does not fail it: the same measurement's warm one decides.)

No interval knows what all rounds of a run have in common, such as a machine that was slower that day. Rows whose file and
libraries did not change are the control, and a regression of theirs says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np

from alexnet_edge.bench.report.foreign import COLD, DEFINITION, INPUTS, Key, Measurement, read_measurements
from alexnet_edge.errors import GateError, UserError
from alexnet_edge.proof.stats import CONFIDENCE, RESAMPLES, Array, bootstrap_medians, interval_of, percentile_of

Verdict = Literal[
    "regression",
    "invalid",
    "inconclusive",
    "slower, within the limit",
    "no change seen",
    "improvement",
    "no interval",
]
"""Worst first, as the rows are; what each means is in the module's docstring."""

SCHEMA = 1
KIND = "alexnet-edge comparison"

MAX_SLOWDOWN = 0.05
"""Default of the largest slowdown that passes."""

ROUND_SPREAD = 0.03
"""Standard deviation of the logarithm of a round's median that is expected before any round is seen.

Measured with AlexNet in ONNX Runtime on a quiet two-processor virtual machine: 0.03 over fresh processes, in FP32 and INT8.
"""

SPREAD_WEIGHT = 4
"""How many degrees of freedom that expectation has; ten rounds on either side outweigh it four and a half times."""

_LEAST_NS = 1e-3  # for a median of samples that a coarse clock called 0

_TAILS = ("p99.9", "p99", "p95", "p90")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A figure beside the latency that both sides have."""

    name: str
    unit: str
    base: float
    new: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """The highest percentile that both sides support; its ratio has no interval and is not judged."""

    name: str
    base_ns: float
    new_ns: float

    @property
    def ratio(self) -> float:
        return self.new_ns / self.base_ns


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measurement that both files have."""

    label: str
    key: Key
    """Of the new side."""
    verdict: Verdict
    base_ns: float | None
    """Median; None on an invalid row without figures, as is the next."""
    new_ns: float | None
    ratio: float | None
    """New over base; None when it was not compared."""
    interval: tuple[float, float] | None
    """95 % of the ratio."""
    superiority: float | None
    """Probability that an inference of the new run takes longer than one of the base, ties counting half
    (Vargha and Delaney's A): 0.5 is no difference."""
    tail: Tail | None
    rounds: tuple[int, int]
    """Of base and new; 0 without raw samples."""
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The label, and what of it was measured."""
        return _full_name(self.label, self.key)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tail": None if self.tail is None else {**asdict(self.tail), "ratio": self.tail.ratio}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What changed from one set of measurements to another."""

    base: str
    new: str
    max_slowdown: float
    force: bool
    rows: tuple[Row, ...]
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
    def regressions(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.verdict == "regression")

    @property
    def invalid(self) -> tuple[Row, ...]:
        """The rows that fail the gate because a side of theirs was INVALID."""
        return tuple(row for row in self.rows if row.verdict == "invalid" and row.key.what != COLD)

    @property
    def passed(self) -> bool:
        return not (self.regressions or self.invalid or self.broken)

    def headline(self) -> str:
        """The verdict in one sentence."""
        limit = f"{self.max_slowdown:.3g}".rstrip(".") if self.max_slowdown >= 10 else f"{self.max_slowdown:.1%}"
        said = []
        if self.regressions:
            worst = max(self.regressions, key=lambda row: row.ratio or 0)
            said.append(
                f"{_count(len(self.regressions), 'regression')} of more than {limit}, "
                f"worst {worst.name} at {_times(worst.ratio)}"
            )
        if self.invalid:
            said.append(f"{_count(len(self.invalid), 'measurement')} INVALID and not compared")
        if self.broken:
            said.append(f"{_count(len(self.broken), 'measurement')} failed in the new run")
        if not said:
            said.append(f"no regression of more than {limit} in {_count(len(self.rows), 'measurement')}")
        for verdict in ("improvement", "inconclusive", "no interval"):
            if count := sum(row.verdict == verdict for row in self.rows):
                said.append(f"{count} {verdict}" if verdict != "improvement" else _count(count, verdict))
        return "; ".join(said)

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
            "rows": [row.to_json() for row in self.rows],
            "only_base": list(self.only_base),
            "only_new": list(self.only_new),
            "broken": list(self.broken),
            "warnings": list(self.warnings),
            "versions": [{"name": name, "base": old, "new": now} for name, old, now in self.versions],
            "conditions": {name: {"base": old, "new": now} for name, (old, now) in self.conditions.items()},
        }

    def markdown(self) -> str:
        """For a pull request: the verdict, what to know first, the table, and the surroundings folded away."""
        lines = [f"**{'Passed' if self.passed else 'FAILED'}**: {_cell(self.headline())}", ""]
        lines += [f"- Warning: {_cell(text)}" for text in self.warnings]
        lines += [f"- Failed in the new run: {_cell(text)}" for text in self.broken]
        if self.warnings or self.broken:
            lines.append("")
        lines += [
            "| measurement | base, ms | new, ms | new / base | 95 % interval | P(slower) | tail | verdict |",
            "|---|---:|---:|---:|---:|---:|---:|---|",
            *map(_markdown_row, self.rows),
            "",
        ]
        for row in self.rows:
            lines += [f"- {_cell(row.name)}: {_cell(note)}" for note in row.notes]
        changes = [(row, change) for row in self.rows for change in row.changes if change.base != change.new]
        if changes:
            lines += ["", "| also changed | base | new | unit |", "|---|---:|---:|---|"]
            lines += [
                f"| {_cell(row.name)}: {change.name} | {change.base:.4g} | {change.new:.4g} | {change.unit} |"
                for row, change in changes
            ]
        for title, names in (("Only in the base", self.only_base), ("Only in the new", self.only_new)):
            if names:
                lines += ["", f"{title}: {_cell('; '.join(names))}"]
        lines += ["", "<details><summary>Surroundings</summary>", ""]
        lines += ["| | base | new |", "|---|---|---|", f"| file | {_cell(self.base)} | {_cell(self.new)} |"]
        for name, (old, now) in self.conditions.items():
            lines.append(f"| {_cell(name)} | {_cell(_said(old))} | {_cell(_said(now))} |")
        for name, old_version, new_version in self.versions:
            lines.append(f"| {_cell(name)} | {_cell(_said(old_version))} | {_cell(_said(new_version))} |")
        lines += ["", "</details>", ""]
        return "\n".join(lines)


# --- what is compared with what -----------------------------------------------------------------------------------------


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
    """Compare what two files have in common, see `read_measurements` for which files.

    Args:
        base: the file to compare with.
        new: the file to judge.
        max_slowdown: the largest slowdown that passes, 0.05 meaning 5 %.
        force: compare INVALID measurements, and those measured under different conditions, and warn. What an emulator took is
            not compared with what a machine took even so.
        match: pairs of labels, of the base and of the new, that are compared with each other (`onnx fp32` with `onnx fp16`);
            nothing else is compared then. Empty: the same with the same.
        base_log: what trtexec printed, when `base` has its times.
        new_log: the same for `new`.

    Raises:
        UserError: when a file cannot be read, when they have nothing in common, or when what they have in common was not
            measured under the same conditions (processor, GPU, power mode, clock, definition, inputs, threads, batch), or one
            of them under an emulator and the other on a machine.
    """
    if not 0 <= max_slowdown < math.inf:
        raise UserError("the largest slowdown must be 0 or more", value=max_slowdown, fix="try 0.05, which is 5 %")
    old, now = read_measurements(base, log=base_log), read_measurements(new, log=new_log)
    _refuse_emulated_with_measured(base, old, new, now)
    measured_old, measured_now = [one for one in old if _measured(one)], [one for one in now if _measured(one)]
    pairs = _pair_up(measured_old, measured_now, match, force=force)
    if not pairs:
        raise UserError(
            f"nothing in common: {_labels(measured_old)} there, {_labels(measured_now)} here",
            value=f"{base} and {new}",
            fix="name which labels to compare with each other" if not match else "name labels that the files have",
        )
    differences = list(dict.fromkeys(text for one, other in pairs for text in _differences(one, other)))
    if differences and not force:
        raise UserError(
            f"not measured under the same conditions: {'; '.join(differences)}",
            value=f"{base} and {new}",
            fix="measure both the same way, or compare them all the same with --force",
        )
    unknown = [text for one, other in pairs for text in _not_said(one, other)]
    notes = [f"{path}: {note}" for path, found in ((base, old), (new, now)) for one in found for note in one.notes]
    rows = [judge(one, other, max_slowdown=max_slowdown, force=force) for one, other in pairs]
    unseen_old = [one for one in old if not any(one is left for left, _ in pairs)]
    unseen_now = [one for one in now if not any(one is right for _, right in pairs)]
    broken = (
        []
        if match
        else [one for one in now if one.verdict == "ERROR" and _identity(one) in map(_identity, measured_old)]
    )
    forced = [
        f"compared although INVALID: {row.name}"
        for row, pair in zip(rows, pairs, strict=True)
        if force and _invalid(pair)
    ]
    return Comparison(
        base=str(base),
        new=str(new),
        max_slowdown=max_slowdown,
        force=force,
        rows=tuple(sorted(rows, key=_order)),
        only_base=() if match else tuple(_describe(one) for one in unseen_old),
        only_new=() if match else tuple(_describe(one) for one in unseen_now if one not in broken),
        broken=tuple(_describe(one) for one in broken),
        warnings=tuple(dict.fromkeys([*differences, *forced, *unknown, *notes])),
        versions=_versions(pairs),
        conditions={
            name: (_shown(pairs[0][0].conditions.get(name)), _shown(pairs[0][1].conditions.get(name)))
            for name in dict.fromkeys([*pairs[0][0].conditions, *pairs[0][1].conditions])
        },
    )


_Pair = tuple[Measurement, Measurement]


def _refuse_emulated_with_measured(
    base: Path, old: Sequence[Measurement], new: Path, now: Sequence[Measurement]
) -> None:
    said = (
        (path, next((one.emulated for one in found if one.emulated), "")) for path, found in ((base, old), (new, now))
    )
    emulated = [(path, what) for path, what in said if what]
    if len(emulated) == 1:
        ((path, what),) = emulated
        raise UserError(
            f"emulated ({what}), and the other was measured on a machine: an emulator's times say nothing of it",
            value=path,
            fix="measure on the machine itself; --force does not help",
        )


def _measured(one: Measurement) -> bool:
    return one.verdict not in ("ERROR", "NOT RUN")


def _invalid(pair: _Pair) -> bool:
    return any(one.verdict == "INVALID" for one in pair)


def _identity(one: Measurement) -> tuple[Any, ...]:
    """What stays the same however it is measured."""
    return one.key.format, one.key.precision, one.key.name


def _pair_up(
    old: Sequence[Measurement], now: Sequence[Measurement], match: Sequence[tuple[str, str]], *, force: bool
) -> list[_Pair]:
    if match:
        pairs = []
        for left, right in match:
            sides = [one for one in old if one.label == left], [one for one in now if one.label == right]
            for label, side, found in ((left, "base", sides[0]), (right, "new", sides[1])):
                if not found:
                    raise UserError(
                        f"no such label in the {side}",
                        value=label,
                        fix=f"choose of {_labels(old if side == 'base' else now)}",
                    )
            pairs += _same(*sides, _way)
        return pairs
    pairs = _same(old, now, lambda one: one.key)
    rest_old, rest_now = _rest(old, now, pairs)
    pairs += _compatible(rest_old, rest_now)
    # the same subject, measured in no way that is the same: say what differs instead of "nothing in common"
    known = {(_identity(one), one.key.what) for one, _ in pairs}
    rest_old, rest_now = _rest(old, now, pairs)
    lost = [one for one in rest_old if (_identity(one), one.key.what) not in known]
    for one in lost:
        others = [other for other in rest_now if _identity(other) == _identity(one) and other.key.what == one.key.what]
        if others and not force:
            raise UserError(
                f"{one.label} was measured differently: {_way_text(one)} there, "
                f"{' or '.join(dict.fromkeys(map(_way_text, others)))} here",
                value=one.key.what,
                fix="measure both the same way, or compare them all the same with --force",
            )
        if (
            len(others) == 1
            and sum(_identity(one) == _identity(left) and one.key.what == left.key.what for left in lost) == 1
        ):
            pairs.append((one, others[0]))
    return pairs


def _same(old: Sequence[Measurement], now: Sequence[Measurement], of: Any) -> list[_Pair]:
    """Pairs with the same `of`; where several have it, those of the same file name."""
    pairs = []
    for key in dict.fromkeys(map(of, old)):
        left, right = [one for one in old if of(one) == key], [one for one in now if of(one) == key]
        if len(left) == len(right) == 1:
            pairs.append((left[0], right[0]))
        else:
            for one in left:
                others = [other for other in right if other.file == one.file]
                if len(others) == 1 and sum(other.file == one.file for other in left) == 1:
                    pairs.append((one, others[0]))
    return pairs


def _way(one: Measurement) -> tuple[Any, ...]:
    return one.key.device, one.key.threads, one.key.batch, one.key.what


def _way_text(one: Measurement) -> str:
    key = one.key
    said = (("batch", key.batch), ("device", key.device), ("threads", key.threads))
    return ", ".join(f"{name} {value}" for name, value in said if value is not None) or "not said how"


def _rest(
    old: Sequence[Measurement], now: Sequence[Measurement], pairs: Sequence[_Pair]
) -> tuple[list[Measurement], list[Measurement]]:
    seen = {id(one) for pair in pairs for one in pair}
    return [one for one in old if id(one) not in seen], [one for one in now if id(one) not in seen]


def _compatible(old: Sequence[Measurement], now: Sequence[Measurement]) -> list[_Pair]:
    """Pairs that differ only in what one of the files does not say, where that leaves no choice."""

    def agree(one: Measurement, other: Measurement) -> bool:
        left, right = one.key, other.key
        if left.what != right.what or left.name != right.name:
            return False
        told = ((left.format, right.format), (left.precision, right.precision), (left.device, right.device))
        counted = ((left.threads, right.threads), (left.batch, right.batch))
        return all(a is None or b is None or a == b for a, b in (*told, *counted))

    return [
        (one, others[0])
        for one in old
        if len(others := [other for other in now if agree(one, other)]) == 1
        and sum(agree(left, others[0]) for left in old) == 1
    ]


def _differences(one: Measurement, other: Measurement) -> Iterator[str]:
    """What was not the same, as far as both files say; an unknown definition counts as another."""
    for name in dict.fromkeys([*one.conditions, *other.conditions]):
        old, now = one.conditions.get(name), other.conditions.get(name)
        if name == INPUTS:
            common = (old or {}).keys() & (now or {}).keys()
            if old and now and (not common or any(old[key] != now[key] for key in common)):
                yield f"{name} {_shown(old)} there and {_shown(now)} here"
        elif name == DEFINITION and (old is None) != (now is None):
            side, known = ("base", now) if old is None else ("new", old)
            yield f"{name} unknown in the {side} and {known!r} in the other"
        elif old is not None and now is not None and old != now:
            yield f"{name} {old!r} there and {now!r} here"
    for name in ("device", "threads", "batch"):
        old, now = getattr(one.key, name), getattr(other.key, name)
        if old is not None and now is not None and old != now:
            yield f"{name} {old} there and {now} here"


def _not_said(one: Measurement, other: Measurement) -> Iterator[str]:
    for name in dict.fromkeys([*one.conditions, *other.conditions]):
        old, now = one.conditions.get(name), other.conditions.get(name)
        if name != DEFINITION and (old is None) != (now is None):
            yield f"the {'base' if old is None else 'new'} does not say its {name}"


def _versions(pairs: Sequence[_Pair]) -> tuple[tuple[str, str | None, str | None], ...]:
    found = {}
    for one, other in pairs:
        for name in dict.fromkeys([*one.versions, *other.versions]):
            old, now = one.versions.get(name), other.versions.get(name)
            if old != now:
                found[name] = (name, old, now)
    return tuple(found.values())


# --- the judgement ------------------------------------------------------------------------------------------------------


def judge(
    base: Measurement, new: Measurement, *, max_slowdown: float, force: bool = False, resamples: int = RESAMPLES
) -> Row:
    """One row; how is in the module's docstring. Raises UserError when a median is 0, which no ratio has."""
    label = base.label if base.label == new.label else f"{base.label} → {new.label}"
    old_ns, new_ns = base.median_ns, new.median_ns
    ratio = interval = superiority = tail = None
    verdict: Verdict
    notes = [
        f"{side} INVALID: {'; '.join(one.reasons)}"
        for side, one in (("base", base), ("new", new))
        if one.verdict == "INVALID"
    ]
    if notes and not force:
        verdict = "invalid"
    elif old_ns is None or new_ns is None:
        verdict = "no interval"
        notes.append("a median is missing")
    else:
        if not old_ns or not new_ns:
            raise UserError("a median of 0 has no ratio", value=label, fix="measure with a finer clock")
        ratio = new_ns / old_ns
        tail = _tail(base, new)
        if base.rounds and new.rounds:
            interval = ratio_interval(base.rounds, new.rounds, resamples=resamples)
            superiority = probability_of_superiority(np.concatenate(base.rounds), np.concatenate(new.rounds))
            verdict = _verdict(interval, 1 + max_slowdown)
        else:
            verdict = "no interval"
        if verdict == "regression" and _unchanged(base, new):
            notes.append(
                "the file and every library are the same in both: the machine was slower, or what surrounds it"
            )
    return Row(
        label=label,
        key=new.key,
        verdict=verdict,
        base_ns=old_ns,
        new_ns=new_ns,
        ratio=ratio,
        interval=interval,
        superiority=superiority,
        tail=tail,
        rounds=(len(base.rounds), len(new.rounds)),
        changes=tuple(_changes(base, new)),
        notes=tuple(notes),
    )


def _verdict(interval: tuple[float, float], slower: float) -> Verdict:
    low, high = interval
    if low > slower:
        return "regression"
    if high < 1:
        return "improvement"
    if high <= slower:
        return "slower, within the limit" if low > 1 else "no change seen"
    return "inconclusive"


def ratio_interval(
    base: Sequence[Sequence[float]], new: Sequence[Sequence[float]], *, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of the median of `new` over the median of `base`; each is its rounds' samples."""
    old_medians, new_medians = (
        np.maximum(bootstrap_medians(rounds, resamples=resamples), _LEAST_NS) for rounds in (base, new)
    )
    # both were drawn with the same random numbers; shuffled, they are independent as the runs are
    shuffled = np.random.default_rng(1).permutation(new_medians)
    low, high = interval_of(shuffled / old_medians)
    ratio = float(np.median(np.concatenate(new)) / np.median(np.concatenate(base)))
    half = _half_width([_log_medians(base), _log_medians(new)])
    return min(low, ratio * math.exp(-half)), max(high, ratio * math.exp(half))


def _log_medians(rounds: Sequence[Sequence[float]]) -> Array:
    medians: Array = np.log([max(float(np.median(taken)), _LEAST_NS) for taken in rounds])
    return medians


def _half_width(runs: Sequence[Array]) -> float:
    """Of the interval of the difference of two means of logarithms of rounds' medians, with a moderated variance."""
    freedom = SPREAD_WEIGHT + sum(len(run) - 1 for run in runs)
    squares = sum(float(((run - run.mean()) ** 2).sum()) for run in runs)
    variance = (SPREAD_WEIGHT * ROUND_SPREAD**2 + squares) / freedom
    return t_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance * sum(1 / len(run) for run in runs))


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, from the normal's by Abramowitz and Stegun's series 26.7.5.

    Right to 0.5 % for 4 degrees of freedom and 97.5 %, and closer above.
    """
    assert freedom >= SPREAD_WEIGHT
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def probability_of_superiority(base: Array, new: Array) -> float:
    """The probability that one of `new` is larger than one of `base`, ties counting half.

    Source: A. Vargha and H. D. Delaney, "A critique and improvement of the CL common language effect size statistics",
    Journal of Educational and Behavioral Statistics 25 (2000). Cliff's delta is twice it, less 1.
    """
    ordered = np.sort(base)
    below = np.searchsorted(ordered, new, "left").sum()
    not_above = np.searchsorted(ordered, new, "right").sum()
    return float((below + not_above) / 2 / (len(base) * len(new)))


def _tail(base: Measurement, new: Measurement) -> Tail | None:
    for name in _TAILS:
        old, now = _percentile(base, name), _percentile(new, name)
        if old and now:
            return Tail(name=name, base_ns=old, new_ns=now)
    return None


def _percentile(one: Measurement, name: str) -> float | None:
    if one.rounds:
        return percentile_of(np.concatenate(one.rounds), float(name[1:]))
    return one.figures.get(name)


def _unchanged(base: Measurement, new: Measurement) -> bool:
    return base.sha256 is not None and base.sha256 == new.sha256 and base.versions == new.versions


def _changes(base: Measurement, new: Measurement) -> Iterator[Change]:
    for name, unit, old, now in (
        ("energy per image", "mJ", base.mj_per_image, new.mj_per_image),
        ("size", "bytes", base.bytes, new.bytes),
        ("top-1 accuracy", "share", base.accuracy, new.accuracy),
        ("top-1 agreement with the checkpoint", "share", base.agreement, new.agreement),
    ):
        if old is not None and now is not None:
            yield Change(name=name, unit=unit, base=float(old), new=float(now))


# --- words --------------------------------------------------------------------------------------------------------------

_WORST_FIRST = get_args(Verdict)


def _order(row: Row) -> tuple[int, float]:
    return _WORST_FIRST.index(row.verdict), -(row.ratio or 0)


def _full_name(label: str, key: Key) -> str:
    batch = "" if key.batch is None else f", batch {key.batch}"
    return f"{label}{batch}, {key.what}"


def _describe(one: Measurement) -> str:
    text = _full_name(one.label, one.key)
    return f"{text} ({'; '.join(one.reasons)})" if not _measured(one) else text


def _labels(found: Sequence[Measurement]) -> str:
    names = list(dict.fromkeys(one.label for one in found))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


def _shown(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return ", ".join(f"{checksum[:12]}" for checksum in sorted(value.values()))
    return None if value is None else str(value)


def _said(value: object) -> str:
    return "not said" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3f}×"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.4g}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_row(row: Row) -> str:
    interval = "–" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
    superiority = "–" if row.superiority is None else f"{row.superiority:.2f}"
    tail = "–" if row.tail is None else f"{row.tail.name} {_times(row.tail.ratio)}"
    verdict = f"**{row.verdict}**" if row.verdict in ("regression", "invalid") else row.verdict
    cells = (
        _cell(row.name),
        _ms(row.base_ns),
        _ms(row.new_ns),
        _times(row.ratio),
        interval,
        superiority,
        tail,
        verdict,
    )
    return f"| {' | '.join(cells)} |"
