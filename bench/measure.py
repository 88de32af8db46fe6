"""Time an open session honestly: warm up until stable, sample long enough, and say when the result means nothing.

The clock is `time.perf_counter_ns` (monotonic). A latency is host end-to-end: `Session.run`, that is prepare, enqueue,
synchronize and fetch, from an array in the host's memory to an array in the host's memory. Needs numpy only.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from alexnet_edge.bench.machine import BusyElsewhere
from alexnet_edge.bench.stats import (
    bootstrap_medians,
    coefficient_of_variation,
    drift,
    interval_of,
    percentile_of,
    required_samples,
    two_modes,
)
from alexnet_edge.errors import UserError
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions import Session
from alexnet_edge.sessions.base import Device

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""Of every summary; each is None where the samples are too few for it."""

_WARMUP_CHECK_S = 0.05
_MIN_WARMUP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSettings:
    """How to measure, and what makes a measurement invalid."""

    batches: tuple[int, ...] = (1, 8)
    """Images per inference; the first is the one whose latency is reported, the others show throughput."""
    device: Device = "cpu"
    threads: int | None = None
    """Processor threads of the runtime; None for every processor this process may use."""
    percentile: float = 99.0
    """The highest percentile that the first batch must support; decides the number of samples."""
    other_percentile: float = 50.0
    """The same for the other batches."""
    rounds: int = 3
    """Fresh processes per subject; the samples of a batch are divided among them."""
    min_seconds: float = 3.0
    """Least measuring time of a batch, over all rounds."""
    max_seconds: float = 60.0
    """Measuring of a batch stops after this time, over all rounds, even with too few samples."""
    min_warmup_seconds: float = 0.2
    """Per round and batch."""
    max_warmup_seconds: float = 3.0
    """Per round and batch; not stable by then makes the result invalid."""
    warmup_tolerance: float = 0.10
    """Warm-up ends when the medians of the middle and last third of its inferences differ by no more."""
    max_cv: float = 0.25
    """Largest coefficient of variation of a valid result."""
    max_drift: float = 0.10
    """Largest relative change of the median from the first third of a round's samples to the last, in a valid result."""
    max_median_error: float = 0.05
    """Largest half-width of the median's confidence interval, relative to the median, of a valid result."""
    max_other_cpus: float = 0.25
    """Processors kept busy by other processes (or stolen by other virtual machines) during a valid measurement."""

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise UserError("no such device", value=self.device, fix="choose cpu or cuda")
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise UserError("batches must be 1 or more", value=self.batches, fix="give at least one positive batch")
        if len(set(self.batches)) != len(self.batches):
            raise UserError("a batch is named twice", value=self.batches, fix="name each once")
        if self.threads is not None and self.threads < 1:
            raise UserError("threads must be 1 or more", value=self.threads, fix="leave it out to use every processor")
        if self.rounds < 1:
            raise UserError("rounds must be 1 or more", value=self.rounds, fix="give a positive number")
        for name in ("percentile", "other_percentile"):
            if not 0 < getattr(self, name) <= 99.99:
                raise UserError(f"{name} must be above 0 and at most 99.99", value=getattr(self, name), fix="try 99")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise UserError(
                "min_seconds must be positive and not above max_seconds",
                value=f"{self.min_seconds} and {self.max_seconds}",
                fix="allow more time",
            )
        if not 0 <= self.min_warmup_seconds <= self.max_warmup_seconds:
            raise UserError(
                "min_warmup_seconds must not be above max_warmup_seconds",
                value=f"{self.min_warmup_seconds} and {self.max_warmup_seconds}",
                fix="allow more time",
            )

    def samples_needed(self, batch: int) -> int:
        """Samples that `batch` must have over all rounds."""
        return required_samples(self.percentile if batch == self.batches[0] else self.other_percentile)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "batches": list(self.batches)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MeasureSettings:
        """Read what `to_json` wrote; raises KeyError or TypeError when it is something else."""
        return cls(**{**value, "batches": tuple(value["batches"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencySamples:
    """One round of one batch: raw samples and how they were taken."""

    batch: int
    samples_ns: tuple[int, ...]
    """Every inference after warm-up, in order; nothing is dropped."""
    duration_ns: int
    """From the start of the first timed inference to the end of the last."""
    warmup_count: int
    warmup_ns: int
    warmup_stable: bool
    other_cpus: float | None
    """Processors kept busy by others meanwhile, on average; None where the kernel does not tell."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "samples_ns": list(self.samples_ns)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LatencySamples:
        """Read what `to_json` wrote; raises KeyError or TypeError when it is something else."""
        return cls(**{**value, "samples_ns": tuple(value["samples_ns"])})


def batches_of(x_NCHW: FloatArray, batch: int) -> list[FloatArray]:
    """`x_NCHW` in consecutive batches, repeated from its start when it holds fewer images than one batch.

    Inferences rotate through them, so that no runtime sees the same image again and again.
    """
    if len(x_NCHW) < batch:
        x_NCHW = np.resize(x_NCHW, (batch, *x_NCHW.shape[1:]))
    return [np.ascontiguousarray(x_NCHW[at : at + batch]) for at in range(0, len(x_NCHW) - batch + 1, batch)]


def measure_latency(session: Session, x_NCHW: FloatArray, *, batch: int, settings: MeasureSettings) -> LatencySamples:
    """One round: warm up, then time inferences until both the share of samples and the share of time are reached.

    Args:
        session: an open session.
        x_NCHW: real preprocessed images `(N, 3, S, S)` float32, at least one.
        batch: images per inference.
        settings: `rounds` divides the numbers of samples and seconds.

    Raises:
        UserError: when the session does not take this input or batch.
    """
    inputs = batches_of(x_NCHW, batch)
    min_samples = math.ceil(settings.samples_needed(batch) / settings.rounds)
    min_ns = int(settings.min_seconds / settings.rounds * 1e9)
    max_ns = int(settings.max_seconds / settings.rounds * 1e9)
    clock = time.perf_counter_ns
    warmup = _warm_up(session, inputs, settings)
    samples: list[int] = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection inside a sample would be the harness's time, not the runtime's
    try:
        others = BusyElsewhere()
        first = now = clock()
        while True:
            x = inputs[len(samples) % len(inputs)]
            start = clock()
            session.run(x)
            now = clock()
            samples.append(now - start)
            elapsed = now - first
            if elapsed >= max_ns or (elapsed >= min_ns and len(samples) >= min_samples):
                break
        other_cpus = others.processors()
    finally:
        if collecting:
            gc.enable()
    return LatencySamples(
        batch=batch,
        samples_ns=tuple(samples),
        duration_ns=now - first,
        other_cpus=other_cpus,
        **warmup,
    )


def _warm_up(session: Session, inputs: Sequence[FloatArray], settings: MeasureSettings) -> dict[str, Any]:
    times: list[int] = []
    clock = time.perf_counter_ns
    first = clock()
    check_at = settings.min_warmup_seconds * 1e9
    stable = False
    while True:
        start = clock()
        session.run(inputs[len(times) % len(inputs)])
        now = clock()
        times.append(now - start)
        if len(times) < _MIN_WARMUP or now - first < check_at:
            continue
        stable = _settled(times, settings.warmup_tolerance)
        if stable or now - first >= settings.max_warmup_seconds * 1e9:
            break
        check_at = now - first + _WARMUP_CHECK_S * 1e9
    return {"warmup_count": len(times), "warmup_ns": now - first, "warmup_stable": stable}


def _settled(times: Sequence[int], tolerance: float) -> bool:
    third = len(times) // 3
    last, middle = np.median(times[-third:]), np.median(times[-2 * third : -third])
    return bool(abs(last / middle - 1) <= tolerance)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencySummary:
    """All rounds of one batch in a few figures; times in nanoseconds, None where the samples are too few."""

    batch: int
    count: int
    mean_ns: float
    min_ns: int
    max_ns: int
    percentiles_ns: Mapping[str, float | None]
    """`p50` ... `p99.9`, nearest rank, of the samples of all rounds together."""
    median_interval_ns: tuple[float, float]
    """95 % bootstrap interval of the median, over rounds and blocks of neighbouring samples."""
    round_medians_ns: tuple[float, ...]
    cv: float | None
    drift: float | None
    """Of the round that drifts most."""
    modes_ns: tuple[float, float] | None
    """Two separate modes, if there are."""
    other_cpus: float | None
    """Of the round with most."""
    images_per_s: float
    """Images over wall time of the timed loop."""
    queries_per_s: float
    valid: bool
    reasons: tuple[str, ...]
    """Why it is not valid; the bounds are in the settings."""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": "VALID" if self.valid else "INVALID"}


def summarise(rounds: Sequence[LatencySamples], settings: MeasureSettings) -> LatencySummary:
    """The figures of one batch's rounds, and the verdict on them."""
    assert rounds
    batch = rounds[0].batch
    assert all(taken.batch == batch for taken in rounds)
    arrays = [np.asarray(taken.samples_ns, np.float64) for taken in rounds]
    pooled = np.concatenate(arrays)
    duration_s = sum(taken.duration_ns for taken in rounds) / 1e9
    drifts = [value for value in map(drift, arrays) if value is not None]
    busy = [taken.other_cpus for taken in rounds if taken.other_cpus is not None]
    low, high = interval_of(bootstrap_medians(arrays))
    median = float(np.median(pooled))
    cv = coefficient_of_variation(pooled)
    worst_drift = max(drifts, key=abs, default=None)
    modes = two_modes(pooled)
    other_cpus = max(busy, default=None)
    needed = settings.samples_needed(batch)
    wanted = settings.percentile if batch == settings.batches[0] else settings.other_percentile
    reasons = []
    if other_cpus is not None and other_cpus > settings.max_other_cpus:
        reasons.append(f"other processes kept {other_cpus:.1f} processors busy")
    if len(pooled) < needed:
        reasons.append(f"too few samples: {len(pooled)}, p{wanted:g} needs {needed}")
    unsettled = sum(not taken.warmup_stable for taken in rounds)
    if unsettled:
        reasons.append(f"not stable after warm-up in {unsettled} of {len(rounds)} rounds")
    if cv is not None and cv > settings.max_cv:
        reasons.append(f"coefficient of variation {cv:.0%}")
    if (half := (high - low) / 2 / median) > settings.max_median_error:
        reasons.append(f"median known to ±{half:.0%} only")
    if worst_drift is not None and abs(worst_drift) > settings.max_drift:
        reasons.append(f"drift of {worst_drift:+.0%} within a round")
    if modes is not None:
        reasons.append(f"two modes, {modes[0] / 1e6:.3g} and {modes[1] / 1e6:.3g} ms")
    return LatencySummary(
        batch=batch,
        count=len(pooled),
        mean_ns=float(pooled.mean()),
        min_ns=int(pooled.min()),
        max_ns=int(pooled.max()),
        percentiles_ns={f"p{value:g}": percentile_of(pooled, value) for value in PERCENTILES},
        median_interval_ns=(low, high),
        round_medians_ns=tuple(float(np.median(samples)) for samples in arrays),
        cv=cv,
        drift=worst_drift,
        modes_ns=modes,
        other_cpus=other_cpus,
        images_per_s=batch * len(pooled) / duration_s,
        queries_per_s=len(pooled) / duration_s,
        valid=not reasons,
        reasons=tuple(reasons),
    )


def time_once(call: Callable[[], object]) -> int:
    """Nanoseconds that one call takes."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start
