"""Summarise samples: percentiles, intervals, validity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.bench.timing.device import DeviceSamples, PipelinedSamples
from alexnet_edge.bench.timing.latency import BatchRound, LatencySamples
from alexnet_edge.bench.timing.settings import COLD_PERCENTILE, CONVENTIONS, PERCENTILES, PHASES, Like, MeasureSettings
from alexnet_edge.proof.stats import (
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

_ENQUEUE_BOUND = 0.8
"""Largest ratio of enqueue time to GPU time, of the medians, at which the GPU and not the host decides; `trtexec`'s."""


def summarise(
    rounds: Sequence[LatencySamples],
    settings: MeasureSettings,
    *,
    percentile: float | None = None,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
) -> dict[str, Any]:
    """All rounds of one batch in a few figures, and the verdict on them; None where the samples are too few.

    `percentile` is what the samples must be enough for, by default as the settings have it for this batch. Reasons that
    others found why it is not valid come `before` and `after` its own.
    """
    (batch,) = {round_.batch for round_ in rounds}
    percentile = settings.percentile_at(batch) if percentile is None else percentile
    arrays = [np.asarray(round_.samples_ns, np.float64) for round_ in rounds]
    pooled = np.concatenate(arrays)
    in_order, count = np.sort(pooled), len(pooled)
    duration_s = sum(round_.duration_ns for round_ in rounds) / 1e9
    medians = [float(np.median(samples)) for samples in arrays]
    drifts = [value for value in map(drift, arrays) if value is not None]
    busy = [round_.other_cpus for round_ in rounds if round_.other_cpus is not None]
    figures = {
        "batch": batch,
        "count": count,
        "mean_ns": float(pooled.mean()),
        "min_ns": int(in_order[0]),
        "max_ns": int(in_order[-1]),
        # nearest rank, of the samples of all rounds together
        "percentiles_ns": {f"p{value:g}": percentile_of(in_order, value) for value in PERCENTILES},
        # 95 % bootstrap interval, over rounds and blocks of neighbouring samples
        "median_interval_ns": interval_of(bootstrap_medians(arrays)),
        "round_medians_ns": tuple(medians),
        "cv": coefficient_of_variation(pooled),
        "drift": max(drifts, key=abs, default=None),  # of the round that drifts most
        "round_drift": trend(
            medians
        ),  # from the first round's median to the last's, where every round goes the same way
        "modes_ns": two_modes(in_order),  # two separate modes, if there are
        "other_cpus": max(busy, default=None),  # of the round with most
        "images_per_s": batch * count / duration_s,  # wall time of the timed loop
        "queries_per_s": count / duration_s,
    }
    reasons = [*before, *_faults(figures, rounds, settings, percentile), *after]
    return {**figures, "valid": not reasons, "reasons": reasons, "verdict": "INVALID" if reasons else "VALID"}


def _faults(
    figures: Mapping[str, Any], rounds: Sequence[LatencySamples], settings: MeasureSettings, percentile: float
) -> list[str]:
    """Why these figures are not valid; the bounds are in the settings."""
    count, needed = figures["count"], required_samples(percentile)
    cv, other_cpus, modes = figures["cv"], figures["other_cpus"], figures["modes_ns"]
    low, high = figures["median_interval_ns"]
    median_ns = float(np.median(np.concatenate([round_.samples_ns for round_ in rounds])))
    reasons = []
    if other_cpus is not None and other_cpus > settings.max_other_cpus:
        reasons.append(f"other processes kept {other_cpus:.1f} processors busy")
    if count < needed:
        reasons.append(f"too few samples: {count}, p{percentile:g} needs {needed}")
    if unsettled := sum(not round_.warmup_stable for round_ in rounds):
        reasons.append(f"not stable after warm-up in {unsettled} of {len(rounds)} rounds")
    if cv is not None and cv > settings.max_cv:
        reasons.append(f"coefficient of variation {cv:.0%}")
    if (half := (high - low) / 2 / median_ns) > settings.max_median_error:
        reasons.append(f"median known to ±{half:.0%} only")
    for name, words in (("drift", "within a round"), ("round_drift", "from the first round to the last")):
        if figures[name] is not None and abs(figures[name]) > settings.max_drift:
            reasons.append(f"drift of {figures[name]:+.1%} {words}")
    if modes is not None:
        reasons.append(f"two modes, {modes[0] / 1e6:.3g} and {modes[1] / 1e6:.3g} ms")
    return reasons


def summarise_batch(
    rounds: Sequence[BatchRound],
    settings: MeasureSettings,
    *,
    more_reasons: Sequence[str] = (),
    machine_reasons: Sequence[str] = (),
) -> dict[str, Any]:
    """The figures of one batch's rounds as they stand in the results: the warm summary, and the other parts beside it.

    What any part finds wrong with the device itself counts against the whole; `cold` has its own verdict.

    A part that is missing from a round is summarised over the others. `more_reasons` are why it is not valid, found by others:
    power, temperature, clocks. `machine_reasons` are why no time measured on this machine is valid, those of `cold` included.
    """
    device, device_reasons = _summarise_device(rounds, settings)
    unavailable: dict[str, str] = {}
    for round_ in rounds:
        unavailable.update(round_.unavailable)
    warm, after = _parts(rounds, "warm"), [*device_reasons, *more_reasons]
    return {
        **summarise(warm, settings, before=machine_reasons, after=after),
        "cold": _summarise_cold(rounds, settings, machine_reasons),
        "device": device,
        "pipelined": _summarise_pipelined(_parts(rounds, "pipelined"), warm[0].batch),
        "unavailable": unavailable,
        "samples": records.to_builtins(warm),
        **{f"{name}_samples": records.to_builtins(_parts(rounds, name)) for name in ("cold", "device", "graph")},
    }


def _parts(rounds: Sequence[BatchRound], name: str) -> list[Any]:
    """One part of every round that has it."""
    return [part for round_ in rounds if (part := getattr(round_, name)) is not None]


def _summarise_cold(
    rounds: Sequence[BatchRound], settings: MeasureSettings, machine_reasons: Sequence[str]
) -> dict[str, Any] | None:
    cold = _parts(rounds, "cold")
    if not cold:
        return None
    # Throughput over the inferences alone: the flushes between them are the harness's.
    alone = [replace(round_, duration_ns=sum(round_.samples_ns)) for round_ in cold]
    (flushed_bytes,) = set(_parts(rounds, "flushed_bytes"))
    summary = summarise(alone, settings, percentile=COLD_PERCENTILE, before=machine_reasons)
    return {**summary, "flushed_bytes": flushed_bytes}


def _summarise_device(
    rounds: Sequence[BatchRound], settings: MeasureSettings
) -> tuple[dict[str, Any] | None, list[str]]:
    plain, graphs = _parts(rounds, "device"), _parts(rounds, "graph")
    if not plain:
        return None, []
    figures = _phase_figures(plain, settings.like)
    compute, enqueue = figures["compute_ns"], figures["enqueue_ns"]
    bound = enqueue["p50"] / compute["p50"] > _ENQUEUE_BOUND if compute["p50"] else True
    unstable = compute["cv"] is not None and compute["cv"] > CONVENTIONS[settings.like or "trtexec-11"].max_cv
    warnings = []
    if bound:
        times = f"starting the kernels takes {enqueue['p50'] / 1e6:.3g} ms, the GPU {compute['p50'] / 1e6:.3g} ms"
        warnings.append(f"enqueue-bound: {times}")
    if unstable:
        warnings.append(f"GPU compute time is unstable: coefficient of variation {compute['cv']:.1%}")
    for phase, words in (("h2d_ns", "the copy to the device"), ("d2h_ns", "the copy back")):
        if figures[phase] is not None and figures[phase]["p50"] >= compute["p50"]:
            warnings.append(f"{words} takes as long as the kernels")
    # Without a convention the spread of the GPU's time is a warning only: the verdict is on the host's latency.
    reasons = warnings[: bound + unstable] if settings.like else warnings[:bound]
    return {
        **figures,
        "cuda_graph": plain[0].cuda_graph,
        "in_flight": plain[0].in_flight,
        "like": settings.like,
        "graph": _phase_figures(graphs, settings.like) if graphs else None,
        "warnings": warnings,
    }, reasons


def _phase_figures(rounds: Sequence[DeviceSamples], like: Like | None) -> dict[str, Any]:
    """Of each phase, over the samples of all rounds together; None of a phase that was not part of the queries."""
    figures: dict[str, Any] = {}
    for phase in PHASES:
        parts = [getattr(round_, phase) for round_ in rounds]
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
    count, duration_ns = (sum(getattr(round_, name) for round_ in rounds) for name in ("count", "duration_ns"))
    queries_per_s = count / (duration_ns / 1e9)
    return {
        "in_flight": rounds[0].in_flight,
        "images_per_s": batch * queries_per_s,
        "queries_per_s": queries_per_s,
        "count": count,
        "duration_ns": duration_ns,
    }
