"""Samples by the GPU's own clock, and with several inferences in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from alexnet_edge.bench.timing.clock import no_collection
from alexnet_edge.bench.timing.settings import MAX_SHARE, MIN_WARMUP, Convention, MeasureSettings
from alexnet_edge.errors import UserError
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.sessions import Session
from alexnet_edge.sessions.device import DeviceQueries, PhaseTimes

_MIN_SHARE = 0.25
"""Of `min_seconds`, that the device's and the pipelined part each take at least."""
_MAX_ANSWER_ERROR = 0.02
"""Of a timed query's output, relative to the largest of `run`'s: other kernels may be chosen, other work may not be done."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelinedSamples:
    """One round of one batch with several inferences in flight."""

    in_flight: int
    count: int
    """Inferences after warm-up."""
    duration_ns: int
    """In which they finished: by the host's clock, or the device's where `like` asks for it."""


def _samples_of(
    times: Sequence[PhaseTimes], queries: DeviceQueries, *, graph: bool, warmup: int, duration_ns: int | None = None
) -> tuple[DeviceSamples, PipelinedSamples]:
    """The finished queries of one round, which took `duration_ns` by the host's clock; None for the device's."""
    transfers = times[0].h2d_ns is not None
    measured = DeviceSamples(
        h2d_ns=tuple(query.h2d_ns or 0 for query in times) if transfers else None,
        compute_ns=tuple(query.compute_ns for query in times),
        d2h_ns=tuple(query.d2h_ns or 0 for query in times) if transfers else None,
        enqueue_ns=tuple(query.enqueue_ns for query in times),
        duration_ns=times[-1].end_ns - times[0].start_ns,
        in_flight=queries.slots,
        cuda_graph=graph,
        warmup_count=warmup,
    )
    duration_ns = measured.duration_ns if duration_ns is None else duration_ns
    return measured, PipelinedSamples(in_flight=queries.slots, count=len(times), duration_ns=duration_ns)


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
def device_queries(
    session: Session,
    inputs: Sequence[FloatArray],
    *,
    in_flight: int,
    graph: bool,
    transfers: bool = True,
    spin: bool = True,
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


def take_samples(
    queries: DeviceQueries, settings: MeasureSettings, *, samples: int, graph: bool
) -> tuple[DeviceSamples, PipelinedSamples]:
    """Warm up for the least warm-up time, then until both the count and the least time are reached, or the most time."""
    warmup_ns = settings.min_warmup_seconds * 1e9
    min_ns = _MIN_SHARE * settings.min_seconds / settings.rounds * 1e9
    max_ns = MAX_SHARE * settings.max_seconds / settings.rounds * 1e9
    clock = time.perf_counter_ns
    times: list[PhaseTimes] = []
    warmup = 0
    with no_collection(), closing(_keep_in_flight(queries)) as running:
        begun = clock()
        for _ in running:
            warmup += 1
            if clock() - begun >= warmup_ns and warmup >= MIN_WARMUP:
                break
        first = clock()
        for query in running:
            times.append(query)
            elapsed = (now := clock()) - first
            if elapsed >= max_ns or (elapsed >= min_ns and len(times) >= samples):
                break
    return _samples_of(times, queries, graph=graph, warmup=warmup, duration_ns=now - first)


def take_like_trtexec(queries: DeviceQueries, convention: Convention) -> tuple[DeviceSamples, PipelinedSamples]:
    """One whole measurement as `trtexec` makes it: what begins to compute in the first 200 ms is warm-up, then 3 s."""
    warmup_ns = convention.warmup_s * 1e9
    end_ns = warmup_ns + convention.seconds * 1e9
    everything: list[PhaseTimes] = []
    warmup = 0
    with no_collection(), closing(_keep_in_flight(queries)) as running:
        for query in running:
            everything.append(query)
            begun_ns = query.compute_start_ns - everything[0].start_ns
            warmup += begun_ns < warmup_ns
            if begun_ns >= end_ns and len(everything) - warmup >= convention.iterations:
                break
    return _samples_of(everything[warmup:], queries, graph=convention.graph, warmup=warmup)
