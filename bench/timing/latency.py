"""Time an open session: warm up until stable, then sample long enough.

One round of one batch (`measure_batch`) has up to four parts, each with its own meaning:

warm        host end-to-end: `Session.run`, that is prepare, enqueue, synchronize and fetch, from an array in the host's
            memory to an array in the host's memory, one after the other. By `time.perf_counter_ns`.
cold        the same, with the cache that weights may stay in flushed before each inference, outside the timed part: what an
            inference takes when other work ran in between. Where the weights are larger than the cache, as AlexNet's in
            FP32 are nearly everywhere, only activations, input and code differ. The pause between inferences is longer as
            well, so a runtime may have to wake its threads.
device      the GPU's own times of the copy in, the kernels and the copy out, by CUDA events, without and with a CUDA graph.
pipelined   throughput with several inferences in flight.

With `like`, the device's part is taken and summarised by the definitions of `trtexec`. Needs numpy only.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from alexnet_edge.bench.machine.state import BusyElsewhere
from alexnet_edge.bench.timing.clock import batches_of, no_collection
from alexnet_edge.bench.timing.device import (
    DeviceSamples,
    PipelinedSamples,
    device_queries,
    take_like_trtexec,
    take_samples,
)
from alexnet_edge.bench.timing.settings import COLD_PERCENTILE, CONVENTIONS, MAX_SHARE, MIN_WARMUP, MeasureSettings
from alexnet_edge.errors import UserError
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.proof.stats import required_samples
from alexnet_edge.sessions import Session
from alexnet_edge.sessions.device import CacheFlush

_WARMUP_CHECK_S = 0.05
_COLD_WARMUP = 2


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


def measure_latency(session: Session, x_NCHW: FloatArray, *, batch: int, settings: MeasureSettings) -> LatencySamples:
    """One round: warm up, then time inferences until both the share of samples and the share of time are reached.

    `x_NCHW` are real preprocessed images `(N, 3, S, S)` float32, at least one; `settings.rounds` divides the numbers of
    samples and seconds.

    Raises:
        UserError: when the session does not take this input or batch.
    """
    inputs = batches_of(x_NCHW, batch)
    warmup = _warm_up(session, inputs, settings)
    return _sample(
        session,
        inputs,
        warmup,
        min_samples=math.ceil(settings.samples_needed(batch) / settings.rounds),
        min_s=settings.min_seconds / settings.rounds,
        max_s=settings.max_seconds / settings.rounds,
    )


def measure_cold(
    session: Session, x_NCHW: FloatArray, *, batch: int, settings: MeasureSettings, cache: CacheFlush
) -> LatencySamples:
    """One round with the cache flushed before each inference; the flush is not in the samples.

    It stops at the share of the samples that the median needs, or of the time, whichever comes first.

    Raises:
        UserError: when the session does not take this input or batch.
    """
    inputs = batches_of(x_NCHW, batch)
    warming = time.perf_counter_ns()
    for index in range(_COLD_WARMUP):
        cache.flush()
        session.run(inputs[index % len(inputs)])
    return _sample(
        session,
        inputs,
        _WarmUp(inferences=_COLD_WARMUP, ns=time.perf_counter_ns() - warming, stable=True),
        min_samples=math.ceil(required_samples(COLD_PERCENTILE) / settings.rounds),
        min_s=0,
        max_s=MAX_SHARE * settings.max_seconds / settings.rounds,
        cache=cache,
    )


class _WarmUp(NamedTuple):
    inferences: int
    ns: int
    stable: bool


def _sample(
    session: Session,
    inputs: Sequence[FloatArray],
    warmup: _WarmUp,
    *,
    min_samples: int,
    min_s: float,
    max_s: float,
    cache: CacheFlush | None = None,
) -> LatencySamples:
    """Time inferences until the most time, or both the least time and the number of samples, are reached."""
    min_ns, max_ns = int(min_s * 1e9), int(max_s * 1e9)
    clock = time.perf_counter_ns
    samples: list[int] = []
    with no_collection():
        others = BusyElsewhere()
        first = clock()
        while True:
            x = inputs[len(samples) % len(inputs)]
            if cache is not None:
                cache.flush()
            start = clock()
            session.run(x)
            now = clock()
            samples.append(now - start)
            elapsed = now - first
            if elapsed >= max_ns or (elapsed >= min_ns and len(samples) >= min_samples):
                break
        other_cpus = others.processors()
    return LatencySamples(
        batch=len(inputs[0]),
        started_ns=first,
        samples_ns=tuple(samples),
        duration_ns=elapsed,
        warmup_count=warmup.inferences,
        warmup_ns=warmup.ns,
        warmup_stable=warmup.stable,
        other_cpus=other_cpus,
    )


def _warm_up(session: Session, inputs: Sequence[FloatArray], settings: MeasureSettings) -> _WarmUp:
    times: list[int] = []
    clock = time.perf_counter_ns
    first = clock()
    check_at = settings.min_warmup_seconds * 1e9
    while True:
        start = clock()
        session.run(inputs[len(times) % len(inputs)])
        now = clock()
        times.append(now - start)
        if len(times) < MIN_WARMUP or now - first < check_at:
            continue
        third = len(times) // 3
        last, middle = np.median(times[-third:]), np.median(times[-2 * third : -third])
        stable = bool(abs(last / middle - 1) <= settings.warmup_tolerance)
        if stable or now - first >= settings.max_warmup_seconds * 1e9:
            return _WarmUp(len(times), now - first, stable)
        check_at = now - first + _WARMUP_CHECK_S * 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRound:
    """One round of one batch, in every way that the settings ask for and the session allows."""

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


def measure_batch(session: Session, x_NCHW: FloatArray, *, batch: int, settings: MeasureSettings) -> BatchRound:
    """One round of one batch; what the session does not allow is in `unavailable`, with the reason.

    `x_NCHW` are real preprocessed images `(N, 3, S, S)` float32, at least one. Only the first of the settings' batches is
    measured cold. `settings.rounds` divides the numbers of samples and seconds, but not those of `like`, whose every round is
    a whole measurement by `trtexec`'s definitions.

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
    measure_device = _device_parts if settings.like is None else _device_parts_like
    device_parts, reasons = measure_device(session, inputs, settings)
    return BatchRound(**parts, **device_parts, unavailable={**unavailable, **reasons})


_DeviceParts = tuple[dict[str, Any], dict[str, str]]
"""The parts of a `BatchRound` on the device, and why the others are not there."""


def _device_parts(session: Session, inputs: Sequence[FloatArray], settings: MeasureSettings) -> _DeviceParts:
    samples = math.ceil(settings.samples_needed(len(inputs[0])) / settings.rounds)
    parts: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    for name, in_flight, graph in (("device", 1, False), ("graph", 1, True), ("pipelined", settings.in_flight, False)):
        try:
            with device_queries(session, inputs, in_flight=in_flight, graph=graph) as queries:
                device_samples, pipelined = take_samples(queries, settings, samples=samples, graph=graph)
            parts[name] = pipelined if name == "pipelined" else device_samples
        except UserError as error:
            unavailable[name] = error.problem
    return parts, unavailable


def _device_parts_like(session: Session, inputs: Sequence[FloatArray], settings: MeasureSettings) -> _DeviceParts:
    assert settings.like is not None
    convention = CONVENTIONS[settings.like]
    way = {name: getattr(convention, name) for name in ("in_flight", "graph", "transfers", "spin")}
    try:
        with device_queries(session, inputs, **way) as queries:
            device_samples, pipelined = take_like_trtexec(queries, convention)
    except UserError as error:
        return {}, dict.fromkeys(("device", "graph", "pipelined"), error.problem)
    return {"device": device_samples, "pipelined": pipelined}, {"graph": f"{settings.like} measures one way only"}
