"""Whether a measurement became slower: the ratio of two medians, its interval, and the verdict.

How a row is judged. The ratio is the new median over the base median. Its 95 % interval is the wider, at either end, of two:

- the bootstrap of both medians (rounds redrawn, then blocks of neighbouring samples in each; the two runs independently of
  each other, because rounds of different runs are not pairs). It rests on the rounds it has: one round shows
  nothing of how much processes differ, three show too little;
- Student's t for the difference of two means, on the logarithms of the rounds' medians. The spread of rounds is estimated
  from both runs together and drawn towards `ROUND_SPREAD` with the weight of `SPREAD_WEIGHT` more rounds (a moderated
  variance: G. K. Smyth, Stat. Appl. Genet. Mol. Biol. 3 (2004)), so that rounds that agree by chance do not give too
  narrow an interval, and one round alone still has one.

With `slower` for 1 + the largest slowdown allowed, the verdict is

- `regression` when the whole interval lies above `slower`;
- `improvement` when the whole interval lies below 1;
- `no change seen` when the interval holds 1 and ends at or below `slower`;
- `slower, within the limit` when it lies above 1 and ends at or below `slower`;
- `inconclusive` otherwise: the interval reaches beyond the limit and does not start there. It does not fail the gate, and is
  shown: more rounds would decide.
- `no interval` where a file has figures and no raw samples: the ratio is shown and not judged;
- `invalid` where either side was INVALID when measured. Such a figure can neither fail nor pass: it is not compared, and
  fails the gate, unless `force`. (A `cold` one does not fail it: the same measurement's warm one decides.)

No interval covers what all rounds of a run have in common, such as a machine that was slower that day. Rows whose file and
libraries did not change are the control; a regression of one carries a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from alexnet_edge.bench.report.measurement import Key, Measurement
from alexnet_edge.errors import UserError
from alexnet_edge.proof.stats import CONFIDENCE, RESAMPLES, Array, bootstrap_medians, interval_of, percentile_of

Verdict = Literal[
    "regression", "invalid", "inconclusive", "slower, within the limit", "no change seen", "improvement", "no interval"
]
"""Worst first, as the rows are; what each means is in the module's docstring."""

ROUND_SPREAD = 0.03
"""Standard deviation of the logarithm of a round's median that is expected before any round is seen.

Measured with AlexNet in ONNX Runtime on a quiet two-processor virtual machine: 0.03 over fresh processes, in FP32 and INT8.
"""

SPREAD_WEIGHT = 4
"""How many degrees of freedom that expectation has; ten rounds on either side outweigh it four and a half times."""

_LEAST_NS = 1e-3
"""In place of a median of 0, which a coarse clock can give."""
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
    ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
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
        return full_name(self.label, self.key)


def judge(
    base: Measurement, new: Measurement, *, max_slowdown: float, force: bool = False, resamples: int = RESAMPLES
) -> Judgement:
    """One row; how is in the module's docstring. Raises UserError when a median is 0, which no ratio has."""
    label = base.label if base.label == new.label else f"{base.label} → {new.label}"
    old_ns, new_ns = base.median_ns, new.median_ns
    ratio = interval = superiority = tail = None
    verdict: Verdict
    notes = [
        f"{side} INVALID: {'; '.join(measurement.reasons)}"
        for side, measurement in (("base", base), ("new", new))
        if measurement.verdict == "INVALID"
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
        unchanged = base.sha256 is not None and (base.sha256, base.versions) == (new.sha256, new.versions)
        if verdict == "regression" and unchanged:
            notes.append(
                "the file and every library are the same in both: the machine was slower, or what surrounds it"
            )
    return Judgement(
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
    old, later = (np.maximum(bootstrap_medians(rounds, resamples=resamples), _LEAST_NS) for rounds in (base, new))
    # both were drawn with the same random numbers; shuffled, they are independent as the runs are
    low, high = interval_of(np.random.default_rng(1).permutation(later) / old)
    ratio = float(np.median(np.concatenate(new)) / np.median(np.concatenate(base)))
    half = _half_width([np.log([max(float(np.median(samples)), _LEAST_NS) for samples in run]) for run in (base, new)])
    return min(low, ratio * math.exp(-half)), max(high, ratio * math.exp(half))


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
            return Tail(name=name, base_ns=old, new_ns=now, ratio=now / old)
    return None


def _percentile(measurement: Measurement, name: str) -> float | None:
    if measurement.rounds:
        return percentile_of(np.concatenate(measurement.rounds), float(name[1:]))
    return measurement.figures.get(name)


def _changes(base: Measurement, new: Measurement) -> Iterator[Change]:
    for name, unit, old, now in (
        ("energy per image", "mJ", base.mj_per_image, new.mj_per_image),
        ("size", "bytes", base.bytes, new.bytes),
        ("top-1 accuracy", "share", base.accuracy, new.accuracy),
        ("top-1 agreement with the checkpoint", "share", base.agreement, new.agreement),
    ):
        if old is not None and now is not None:
            yield Change(name=name, unit=unit, base=float(old), new=float(now))


def full_name(label: str, key: Key) -> str:
    batch = "" if key.batch is None else f", batch {key.batch}"
    return f"{label}{batch}, {key.what}"
