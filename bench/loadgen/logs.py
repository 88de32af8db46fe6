"""Read what LoadGen logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.bench.loadgen.settings import OFFICIAL_PERCENTILES, OFFICIAL_SECONDS, Scenario, ScenarioSettings
from alexnet_edge.errors import AlexNetEdgeError
from alexnet_edge.proof.stats import required_samples

_KEEP_PERCENTILES = {"50.00": "p50", "90.00": "p90", "95.00": "p95", "97.00": "p97", "99.00": "p99", "99.90": "p99.9"}


def read_logs(folder: Path, settings: ScenarioSettings) -> dict[str, Any]:
    """Verdict and figures in LoadGen's logs, see `run_here`.

    `mlperf_log_detail.txt` has one JSON object per line behind `:::MLLOG`.

    Raises:
        AlexNetEdgeError: when they hold no verdict.
    """
    events, errors = _events(folder / "mlperf_log_detail.txt")
    scenario, percentile = settings.scenario, settings.percentile
    queries = int(events["result_query_count"])
    samples = int(events["generated_samples_per_query"]) * queries
    per_query = "per_query_" if scenario == "multi-stream" else ""
    percentiles_ns = {
        name: int(events[f"result_{digits}_percentile_{per_query}latency_ns"])
        if queries >= required_samples(float(name[1:]))
        else None
        for digits, name in _KEEP_PERCENTILES.items()
        if scenario != "offline"  # one query: the time at which a sample was done is no latency of its own
    }
    valid = events["result_validity"] == "VALID"
    early_stopping = " ".join(str(events.get("early_stopping_result", "")).split())
    bound_ms = settings.latency_bound_ms
    return {
        "scenario": scenario,
        "verdict": events["result_validity"],
        "reasons": errors if valid else [*errors, *_reasons(events, early_stopping)],
        "metric": _metric(events, scenario, percentile),
        "percentile": percentile,
        "percentiles_ns": percentiles_ns,
        "queries": queries,
        "samples": samples,
        "target_qps": settings.target_qps,
        "latency_bound_ns": None if bound_ms is None else round(bound_ms * 1e6),
        "early_stopping": early_stopping,
        "loadgen_version": events.get("loadgen_version"),
        "settings": records.to_builtins(settings),
        "note": _note(settings),
        "logs": str(folder),
        "summary": (folder / "mlperf_log_summary.txt").read_text(encoding="utf-8", errors="replace"),
    }


def _events(path: Path) -> tuple[dict[str, Any], list[str]]:
    """LoadGen's events by key, the last of each, and what it reports as errors."""
    events: dict[str, Any] = {}
    errors: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        _, marker, text = line.partition(":::MLLOG ")
        if marker:
            event = json.loads(text)
            events[event["key"]] = event["value"]
            if event.get("metadata", {}).get("is_error"):
                errors.append(f"LoadGen: {event['key']}: {event['value']}")
    if events.get("result_validity") not in ("VALID", "INVALID"):
        raise AlexNetEdgeError(f"LoadGen wrote no verdict: {path}")
    return events, errors


def _metric(events: Mapping[str, Any], scenario: Scenario, percentile: float | None) -> dict[str, Any]:
    if scenario == "offline":
        return {"name": "throughput", "value": float(events["result_samples_per_second"]), "unit": "samples/s"}
    if scenario == "server":
        value = float(events["result_completed_samples_per_sec"])
        return {"name": f"rate at which p{percentile:g} is within the bound", "value": value, "unit": "queries/s"}
    estimate = events["early_stopping_latency_ss" if scenario == "single-stream" else "early_stopping_latency_ms"]
    value_ns = int(estimate) if events["early_stopping_met"] else None
    return {"name": f"p{percentile:g} latency, early-stopping estimate", "value": value_ns, "unit": "ns"}


def _reasons(events: Mapping[str, Any], early_stopping: str) -> list[str]:
    early = f"early stopping: {early_stopping}".replace(": * ", ": ").replace(" * ", " ")
    words = {
        "result_perf_constraints_met": "the latency is above the bound",
        "result_min_duration_met": "shorter than the least duration",
        "result_min_queries_met": "fewer queries than the least number",
        "early_stopping_met": early,
    }
    reasons = [reason for key, reason in words.items() if events.get(key) is False]
    return reasons or [str(events.get("result_invalid_reason") or "LoadGen gives no reason")]


def _note(settings: ScenarioSettings) -> str:
    """What separates the run from MLPerf's own."""
    parts = [f"not an MLPerf submission: {settings.seconds:g} s per run instead of {OFFICIAL_SECONDS}"]
    official = OFFICIAL_PERCENTILES.get(settings.scenario)
    if official is not None and settings.percentile != official:
        parts.append(f"p{settings.percentile:g} instead of p{official:g}")
    return ", ".join(parts)
