"""Time an open session honestly: warm up until stable, sample long enough, and say when the result means nothing.

One round of one batch (`measure_batch`) has up to four parts, each with its own meaning:

warm        host end-to-end: `Session.run`, that is prepare, enqueue, synchronize and fetch, from an array in the host's
            memory to an array in the host's memory, one after the other. By `time.perf_counter_ns`.
cold        the same, with the cache that weights may stay in flushed before each inference, outside the timed part: what an
            inference takes when other work ran in between. Where the weights are larger than the cache, as AlexNet's in
            FP32 are nearly everywhere, warm is as cold but for activations, input and code. The time since the last
            inference is longer, too, so that a runtime's sleeping threads must be woken.
device      the GPU's own times of the copy in, the kernels and the copy out, by CUDA events, without and with a CUDA graph.
pipelined   throughput with several inferences in flight.

With `like`, the device's part is taken and summarised by the definitions of `trtexec`. Needs numpy only.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from alexnet_edge.bench.machine import BusyElsewhere
from alexnet_edge.bench.stats import (
    Array,
    bootstrap_medians,
    coefficient_of_variation,
    drift,
    interval_of,
    percentile_of,
    required_samples,
    trend,
    trtexec_percentile,
    two_modes,
)
from alexnet_edge.errors import UserError
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions import Session
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.device import CacheFlush, DeviceQueries, PhaseTimes

Like = Literal["trtexec-10", "trtexec-11"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""Of every summary; each is None where the samples are too few for it."""

COLD_PERCENTILE = 90.0
"""Decides the number of cold samples: they are for the median, and each costs a flush."""
PHASES = ("h2d_ns", "compute_ns", "d2h_ns", "latency_ns", "enqueue_ns")
"""What is summarised of the device's part."""

_WARMUP_CHECK_S = 0.05
_MIN_WARMUP = 3
_COLD_WARMUP = 2
_MAX_SHARE = 0.25
"""Of `max_seconds`, that the cold, the device's and the pipelined part may each take."""
_MIN_SHARE = 0.25
"""Of `min_seconds`, that the device's and the pipelined part each take at least."""
_MAX_ANSWER_ERROR = 0.02
"""Of a timed query's output, relative to the largest of `run`'s: other kernels may be chosen, other work may not be done."""
_ENQUEUE_BOUND = 0.8
"""Largest ratio of enqueue time to GPU time, of the medians, at which the GPU and not the host decides; `trtexec`'s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Convention:
    """How a version of `trtexec` measures unless told otherwise; its defaults of 11 are other than those of 10.

    Source: `samples/common/sampleInference.cpp` (`inferenceLoop`, `Iteration`), `sampleReporting.cpp` (`printEpilog`,
    `printPerformanceReport`) of TensorRT 10 and 11.
    """

    warmup_s: float = 0.2
    seconds: float = 3.0
    iterations: int = 10
    in_flight: int = 2
    transfers: bool
    graph: bool
    spin: bool
    max_cv: float
    """Of the GPU compute time; above it, it warns that the time is unstable."""


CONVENTIONS: dict[Like, Convention] = {
    "trtexec-10": Convention(transfers=True, graph=False, spin=False, max_cv=0.01),
    "trtexec-11": Convention(transfers=False, graph=True, spin=True, max_cv=0.025),
}


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
    cold: bool = True
    """Whether the first batch is measured with a flushed cache as well."""
    in_flight: int = 2
    """Inferences in flight where throughput is measured on a device."""
    like: Like | None = None
    """Take the device's part as this version of `trtexec` does."""

    def __post_init__(self) -> None:
        if self.device not in get_args(Device):
            raise UserError("no such device", value=self.device, fix="choose cpu or cuda")
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise UserError("batches must be 1 or more", value=self.batches, fix="give at least one positive batch")
        if len(set(self.batches)) != len(self.batches):
            raise UserError("a batch is named twice", value=self.batches, fix="name each once")
        if self.threads is not None and self.threads < 1:
            raise UserError("threads must be 1 or more", value=self.threads, fix="leave it out to use every processor")
        if self.in_flight < 1:
            raise UserError("in_flight must be 1 or more", value=self.in_flight, fix="give a positive number")
        if self.like is not None and self.like not in get_args(Like):
            raise UserError("no such convention", value=self.like, fix=f"choose {' or '.join(get_args(Like))}")
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
    started_ns: int
    """`time.perf_counter_ns` when the first timed inference began: on Linux CLOCK_MONOTONIC, the same in every process."""
    samples_ns: tuple[int, ...]
    """Every inference after warm-up, in order; nothing is dropped."""
    duration_ns: int
    """From the start of the first timed inference to the end of the last, flushes included."""
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
    with _no_collection():
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
    return LatencySamples(
        batch=batch,
        started_ns=first,
        samples_ns=tuple(samples),
        duration_ns=now - first,
        other_cpus=other_cpus,
        **warmup,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """A collection inside a sample would be the harness's time, not the runtime's."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def measure_cold(
    session: Session, x_NCHW: FloatArray, *, batch: int, settings: MeasureSettings, cache: CacheFlush
) -> LatencySamples:
    """One round with the cache flushed before each inference; the flush is not in the samples.

    It stops at the share of the samples that the median needs, or of the time, whichever comes first.

    Raises:
        UserError: when the session does not take this input or batch.
    """
    inputs = batches_of(x_NCHW, batch)
    min_samples = math.ceil(required_samples(COLD_PERCENTILE) / settings.rounds)
    max_ns = int(_MAX_SHARE * settings.max_seconds / settings.rounds * 1e9)
    clock = time.perf_counter_ns
    samples: list[int] = []
    with _no_collection():
        warming = clock()
        for index in range(_COLD_WARMUP):
            cache.flush()
            session.run(inputs[index % len(inputs)])
        others = BusyElsewhere()
        first = now = clock()
        while len(samples) < min_samples and now - first < max_ns:
            x = inputs[len(samples) % len(inputs)]
            cache.flush()
            start = clock()
            session.run(x)
            now = clock()
            samples.append(now - start)
        other_cpus = others.processors()
    return LatencySamples(
        batch=batch,
        started_ns=first,
        samples_ns=tuple(samples),
        duration_ns=now - first,
        warmup_count=_COLD_WARMUP,
        warmup_ns=first - warming,
        warmup_stable=True,
        other_cpus=other_cpus,
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


# --- the device -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceSamples:
    """One round of one batch by the device's clock: every query after warm-up, in order; see `PhaseTimes`."""

    h2d_ns: tuple[int, ...] | None
    compute_ns: tuple[int, ...]
    d2h_ns: tuple[int, ...] | None
    enqueue_ns: tuple[int, ...]
    duration_ns: int
    """From the start of the first query to the end of the last, by the device's clock."""
    in_flight: int
    cuda_graph: bool
    warmup_count: int

    @property
    def latency_ns(self) -> tuple[int, ...]:
        """The phases' sums; without transfers the compute times."""
        phases = [phase for phase in (self.h2d_ns, self.compute_ns, self.d2h_ns) if phase is not None]
        return tuple(sum(parts) for parts in zip(*phases, strict=True))

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DeviceSamples:
        """Read what `to_json` wrote; raises KeyError or TypeError when it is something else."""
        parts: dict[str, Any] = {name: tuple(part) if isinstance(part, list) else part for name, part in value.items()}
        return cls(**parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelinedSamples:
    """One round of one batch with several inferences in flight."""

    in_flight: int
    count: int
    """Inferences after warm-up."""
    duration_ns: int
    """In which they finished: by the host's clock, or the device's where `like` asks for it."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PipelinedSamples:
        """Read what `to_json` wrote; raises KeyError or TypeError when it is something else."""
        return cls(**value)


def _device_samples(times: Sequence[PhaseTimes], *, in_flight: int, cuda_graph: bool, warmup: int) -> DeviceSamples:
    transfers = times[0].h2d_ns is not None
    return DeviceSamples(
        h2d_ns=tuple(query.h2d_ns or 0 for query in times) if transfers else None,
        compute_ns=tuple(query.compute_ns for query in times),
        d2h_ns=tuple(query.d2h_ns or 0 for query in times) if transfers else None,
        enqueue_ns=tuple(query.enqueue_ns for query in times),
        duration_ns=times[-1].end_ns - times[0].start_ns,
        in_flight=in_flight,
        cuda_graph=cuda_graph,
        warmup_count=warmup,
    )


def _keep_in_flight(queries: DeviceQueries) -> Generator[PhaseTimes, None, None]:
    """Finished queries, in order, with every slot in flight while the caller asks for more; then those left are drained."""
    waiting: deque[int] = deque()
    try:
        for slot in range(queries.slots):
            queries.submit(slot)
            waiting.append(slot)
        while True:
            slot = waiting.popleft()
            done = queries.finish(slot)
            queries.submit(slot)
            waiting.append(slot)
            yield done
    finally:
        for slot in waiting:
            queries.finish(slot)


@contextmanager
def _queries(
    session: Session, inputs: Sequence[FloatArray], *, in_flight: int, graph: bool, transfers: bool, spin: bool
) -> Iterator[DeviceQueries]:
    """Open device queries, proved to answer as `run` does: what answers otherwise does other work, and is not timed.

    They are asked before, one by one, and for the last answers after: several in flight may be in each other's way.
    """
    placed = [inputs[slot % len(inputs)] for slot in range(in_flight)]
    expected = [session.run(x) for x in placed]
    with session.device_queries(placed, graph=graph, transfers=transfers, spin=spin) as queries:
        for slot, y_NK in enumerate(expected):
            queries.submit(slot)
            queries.finish(slot)
            _require_answer(queries.answer(slot), y_NK)
        yield queries
        for slot, y_NK in enumerate(expected):
            _require_answer(queries.answer(slot), y_NK)


def _require_answer(answer_NK: FloatArray, y_NK: FloatArray) -> None:
    error = float(np.abs(answer_NK - y_NK).max())
    if not error <= _MAX_ANSWER_ERROR * max(float(np.abs(y_NK).max()), 1e-6):
        raise UserError("the timed inference answers otherwise than run()", value=f"off by {error:.3g}")


def _take(
    queries: DeviceQueries, settings: MeasureSettings, *, samples: int, graph: bool
) -> tuple[DeviceSamples, PipelinedSamples]:
    """Warm up for the least warm-up time, then until both the count and the least time are reached, or the most time."""
    warmup_ns = settings.min_warmup_seconds * 1e9
    min_ns = _MIN_SHARE * settings.min_seconds / settings.rounds * 1e9
    max_ns = _MAX_SHARE * settings.max_seconds / settings.rounds * 1e9
    clock = time.perf_counter_ns
    times: list[PhaseTimes] = []
    warmup = 0
    with _no_collection(), closing(_keep_in_flight(queries)) as running:
        begun = clock()
        for _ in running:
            warmup += 1
            if clock() - begun >= warmup_ns and warmup >= _MIN_WARMUP:
                break
        first = clock()
        for query in running:
            times.append(query)
            elapsed = (now := clock()) - first
            if elapsed >= max_ns or (elapsed >= min_ns and len(times) >= samples):
                break
    taken = _device_samples(times, in_flight=queries.slots, cuda_graph=graph, warmup=warmup)
    return taken, PipelinedSamples(in_flight=queries.slots, count=len(times), duration_ns=now - first)


def _take_like(queries: DeviceQueries, convention: Convention) -> tuple[DeviceSamples, PipelinedSamples]:
    """One whole measurement as `trtexec` makes it: what begins to compute in the first 200 ms is warm-up, then 3 s."""
    warmup_ns = convention.warmup_s * 1e9
    end_ns = warmup_ns + convention.seconds * 1e9
    everything: list[PhaseTimes] = []
    steady = 0
    with _no_collection(), closing(_keep_in_flight(queries)) as running:
        begun_ns: int | None = None
        for query in running:
            begun_ns = query.start_ns if begun_ns is None else begun_ns
            everything.append(query)
            steady += query.compute_start_ns - begun_ns >= warmup_ns
            if query.compute_start_ns - begun_ns >= end_ns and steady >= convention.iterations:
                break
    times = everything[len(everything) - steady :]
    taken = _device_samples(
        times, in_flight=queries.slots, cuda_graph=convention.graph, warmup=len(everything) - steady
    )
    return taken, PipelinedSamples(in_flight=queries.slots, count=len(times), duration_ns=taken.duration_ns)


# --- one round --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRound:
    """One round of one batch, in every way that was asked for and that the session allows."""

    warm: LatencySamples
    cold: LatencySamples | None = None
    flushed_bytes: int | None = None
    """By each flush before a cold inference: of a buffer streamed through, or of the device's memory written."""
    device: DeviceSamples | None = None
    graph: DeviceSamples | None = None
    """The same with CUDA graphs; None also where `device` already has them, as `like` may ask."""
    pipelined: PipelinedSamples | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """`cold`, `device`, `graph`, `pipelined`: why it is not there, in words."""

    def to_json(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in _PARTS}
        return {
            **{name: None if part is None else part.to_json() for name, part in parts.items()},
            "flushed_bytes": self.flushed_bytes,
            "unavailable": dict(self.unavailable),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BatchRound:
        """Read what `to_json` wrote; raises KeyError or TypeError when it is something else."""
        parts: dict[str, Any] = {
            name: None if value[name] is None else kind.from_json(value[name]) for name, kind in _PARTS.items()
        }
        return cls(**parts, flushed_bytes=value["flushed_bytes"], unavailable=dict(value["unavailable"]))


_PARTS: dict[str, Any] = {
    "warm": LatencySamples,
    "cold": LatencySamples,
    "device": DeviceSamples,
    "graph": DeviceSamples,
    "pipelined": PipelinedSamples,
}


def measure_batch(session: Session, x_NCHW: FloatArray, *, batch: int, settings: MeasureSettings) -> BatchRound:
    """One round of one batch; what the session does not allow is said in `unavailable`.

    Args:
        session: an open session.
        x_NCHW: real preprocessed images `(N, 3, S, S)` float32, at least one.
        batch: images per inference; only the first of the settings' is measured cold.
        settings: `rounds` divides the numbers of samples and seconds; not those of `like`, whose every round is a whole
            measurement by `trtexec`'s definitions.

    Raises:
        UserError: when the session does not take this input or batch; when `like` is asked of one that is on no device.
    """
    if settings.like is not None and session.device != "cuda":
        raise UserError(
            f"{settings.like} measures a GPU", value=f"--device {session.device}", fix="leave the convention out"
        )
    parts: dict[str, Any] = {"warm": measure_latency(session, x_NCHW, batch=batch, settings=settings)}
    unavailable: dict[str, str] = {}
    if not settings.cold:
        unavailable["cold"] = "not asked for"
    elif batch != settings.batches[0]:
        unavailable["cold"] = "measured for the first batch only"
    else:
        try:
            with session.cache_flush() as cache:
                parts["cold"] = measure_cold(session, x_NCHW, batch=batch, settings=settings, cache=cache)
                parts["flushed_bytes"] = cache.num_bytes
        except UserError as error:
            unavailable["cold"] = error.problem
    inputs = batches_of(x_NCHW, batch)
    if settings.like is not None:
        convention = CONVENTIONS[settings.like]
        try:
            with _queries(
                session,
                inputs,
                in_flight=convention.in_flight,
                graph=convention.graph,
                transfers=convention.transfers,
                spin=convention.spin,
            ) as queries:
                taken, pipelined = _take_like(queries, convention)
            parts["device"], parts["pipelined"] = taken, pipelined  # now that the last answers were right, too
            unavailable["graph"] = f"{settings.like} measures one way only"
        except UserError as error:
            unavailable.update(dict.fromkeys(("device", "graph", "pipelined"), error.problem))
        return BatchRound(**parts, unavailable=unavailable)
    samples = math.ceil(settings.samples_needed(batch) / settings.rounds)
    for name, in_flight, graph in (("device", 1, False), ("graph", 1, True), ("pipelined", settings.in_flight, False)):
        try:
            with _queries(session, inputs, in_flight=in_flight, graph=graph, transfers=True, spin=True) as queries:
                taken, pipelined = _take(queries, settings, samples=samples, graph=graph)
            parts[name] = pipelined if name == "pipelined" else taken
        except UserError as error:
            unavailable[name] = error.problem
    return BatchRound(**parts, unavailable=unavailable)


# --- the figures ------------------------------------------------------------------------------------------------------


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
    round_drift: float | None
    """From the first round's median to the last's, where every round goes the same way; see `trend`."""
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
    """The figures of one batch's warm rounds, and the verdict on them."""
    first = rounds[0].batch == settings.batches[0]
    return _summarise(rounds, settings, settings.percentile if first else settings.other_percentile)


def _summarise(rounds: Sequence[LatencySamples], settings: MeasureSettings, percentile: float) -> LatencySummary:
    assert rounds
    batch = rounds[0].batch
    assert all(taken.batch == batch for taken in rounds)
    arrays = [np.asarray(taken.samples_ns, np.float64) for taken in rounds]
    pooled = np.concatenate(arrays)
    in_order = np.sort(pooled)
    duration_s = sum(taken.duration_ns for taken in rounds) / 1e9
    drifts = [value for value in map(drift, arrays) if value is not None]
    busy = [taken.other_cpus for taken in rounds if taken.other_cpus is not None]
    low, high = interval_of(bootstrap_medians(arrays))
    median = float(np.median(in_order))
    medians = [float(np.median(samples)) for samples in arrays]
    cv = coefficient_of_variation(pooled)
    worst_drift = max(drifts, key=abs, default=None)
    across = trend(medians)
    modes = two_modes(in_order)
    other_cpus = max(busy, default=None)
    needed = required_samples(percentile)
    reasons = []
    if other_cpus is not None and other_cpus > settings.max_other_cpus:
        reasons.append(f"other processes kept {other_cpus:.1f} processors busy")
    if len(pooled) < needed:
        reasons.append(f"too few samples: {len(pooled)}, p{percentile:g} needs {needed}")
    unsettled = sum(not taken.warmup_stable for taken in rounds)
    if unsettled:
        reasons.append(f"not stable after warm-up in {unsettled} of {len(rounds)} rounds")
    if cv is not None and cv > settings.max_cv:
        reasons.append(f"coefficient of variation {cv:.0%}")
    if (half := (high - low) / 2 / median) > settings.max_median_error:
        reasons.append(f"median known to ±{half:.0%} only")
    if worst_drift is not None and abs(worst_drift) > settings.max_drift:
        reasons.append(f"drift of {worst_drift:+.1%} within a round")
    if across is not None and abs(across) > settings.max_drift:
        reasons.append(f"drift of {across:+.1%} from the first round to the last")
    if modes is not None:
        reasons.append(f"two modes, {modes[0] / 1e6:.3g} and {modes[1] / 1e6:.3g} ms")
    return LatencySummary(
        batch=batch,
        count=len(pooled),
        mean_ns=float(pooled.mean()),
        min_ns=int(in_order[0]),
        max_ns=int(in_order[-1]),
        percentiles_ns={f"p{value:g}": percentile_of(in_order, value) for value in PERCENTILES},
        median_interval_ns=(low, high),
        round_medians_ns=tuple(medians),
        cv=cv,
        drift=worst_drift,
        round_drift=across,
        modes_ns=modes,
        other_cpus=other_cpus,
        images_per_s=batch * len(pooled) / duration_s,
        queries_per_s=len(pooled) / duration_s,
        valid=not reasons,
        reasons=tuple(reasons),
    )


def summarise_batch(
    rounds: Sequence[BatchRound],
    settings: MeasureSettings,
    *,
    more_reasons: Sequence[str] = (),
    machine_reasons: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of one batch's rounds as they stand in the results: the warm summary, and the other parts beside it.

    What any part finds wrong with the device itself counts against the whole; `cold` has its own verdict.

    Args:
        rounds: at least one; a part that is missing from one is summarised over the others.
        settings: with which they were taken.
        more_reasons: why it is not valid, found by others: power, temperature, clocks.
        machine_reasons: why no time measured on this machine is valid, those of `cold` included.
    """
    warm = summarise([taken.warm for taken in rounds], settings).to_json()
    device, device_reasons = _summarise_device(rounds, settings)
    reasons = [*machine_reasons, *warm["reasons"], *device_reasons, *more_reasons]
    cold = _summarise_cold(rounds, settings)
    if cold is not None and machine_reasons:
        cold |= {"reasons": [*machine_reasons, *cold["reasons"]], "valid": False, "verdict": "INVALID"}
    unavailable: dict[str, str] = {}
    for taken in rounds:
        unavailable.update(taken.unavailable)
    return {
        **warm,
        "reasons": reasons,
        "valid": not reasons,
        "verdict": "INVALID" if reasons else "VALID",
        "cold": cold,
        "device": device,
        "pipelined": _summarise_pipelined([taken.pipelined for taken in rounds if taken.pipelined], warm["batch"]),
        "unavailable": unavailable,
        "samples": [taken.warm.to_json() for taken in rounds],
        **{
            f"{name}_samples": [part.to_json() for taken in rounds if (part := getattr(taken, name)) is not None]
            for name in ("cold", "device", "graph")
        },
    }


def _summarise_cold(rounds: Sequence[BatchRound], settings: MeasureSettings) -> dict[str, Any] | None:
    cold = [taken.cold for taken in rounds if taken.cold is not None]
    if not cold:
        return None
    # Throughput over the inferences alone: the flushes between them are the harness's.
    alone = [replace(taken, duration_ns=sum(taken.samples_ns)) for taken in cold]
    flushed = {taken.flushed_bytes for taken in rounds if taken.cold is not None}
    assert len(flushed) == 1
    return {**_summarise(alone, settings, COLD_PERCENTILE).to_json(), "flushed_bytes": flushed.pop()}


def _summarise_device(
    rounds: Sequence[BatchRound], settings: MeasureSettings
) -> tuple[dict[str, Any] | None, list[str]]:
    plain = [taken.device for taken in rounds if taken.device is not None]
    if not plain:
        return None, []
    graphs = [taken.graph for taken in rounds if taken.graph is not None]
    figures = _phase_figures(plain, settings.like)
    graph = _phase_figures(graphs, settings.like) if graphs else None
    convention = CONVENTIONS[settings.like or "trtexec-11"]
    warnings = []
    compute, enqueue = figures["compute_ns"], figures["enqueue_ns"]
    bound = enqueue["p50"] / compute["p50"] > _ENQUEUE_BOUND if compute["p50"] else True
    enqueue_reason = f"enqueue-bound: starting the kernels takes {enqueue['p50'] / 1e6:.3g} ms, the GPU {compute['p50'] / 1e6:.3g} ms"
    unstable = compute["cv"] is not None and compute["cv"] > convention.max_cv
    if bound:
        warnings.append(enqueue_reason)
    if unstable:
        warnings.append(f"GPU compute time is unstable: coefficient of variation {compute['cv']:.1%}")
    for phase, words in (("h2d_ns", "the copy to the device"), ("d2h_ns", "the copy back")):
        if figures[phase] is not None and figures[phase]["p50"] >= compute["p50"]:
            warnings.append(f"{words} takes as long as the kernels")
    told = {**figures, "cuda_graph": plain[0].cuda_graph, "in_flight": plain[0].in_flight, "like": settings.like}
    # Without a convention, the spread of the GPU's time is a remark: what is judged is the latency that was asked for.
    reasons = warnings[: bound + unstable] if settings.like else warnings[:bound]
    return {**told, "graph": graph, "warnings": warnings}, reasons


def _phase_figures(rounds: Sequence[DeviceSamples], like: Like | None) -> dict[str, Any]:
    """Of each phase, over the samples of all rounds together; None of a phase that was not part of the queries."""
    figures: dict[str, Any] = {}
    for phase in PHASES:
        parts = [getattr(taken, phase) for taken in rounds]
        figures[phase] = None if None in parts else _figures(np.concatenate(parts).astype(np.float64), like)
    return figures


def _figures(samples: Array, like: Like | None) -> dict[str, Any]:
    in_order = np.sort(samples)
    cv: float | None = None  # of a phase too short for the clock
    if mean := float(in_order.mean()):
        cv = float(in_order.std() / mean) if like else coefficient_of_variation(in_order)
    at = trtexec_percentile if like else percentile_of
    return {
        "count": len(in_order),
        "mean": mean,
        "min": float(in_order[0]),
        "max": float(in_order[-1]),
        "p50": float(np.median(in_order)),
        **{f"p{value:g}": at(in_order, value) for value in (90.0, 95.0, 99.0)},
        "cv": cv,
    }


def _summarise_pipelined(rounds: Sequence[PipelinedSamples], batch: int) -> dict[str, Any] | None:
    if not rounds:
        return None
    count, duration_ns = (sum(getattr(taken, name) for taken in rounds) for name in ("count", "duration_ns"))
    queries_per_s = count / (duration_ns / 1e9)
    return {
        "in_flight": rounds[0].in_flight,
        "images_per_s": batch * queries_per_s,
        "queries_per_s": queries_per_s,
        "count": count,
        "duration_ns": duration_ns,
    }


def time_once(call: Callable[[], object]) -> int:
    """Nanoseconds that one call takes."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start
