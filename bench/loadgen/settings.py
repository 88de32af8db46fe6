"""LoadGen's scenarios and their settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from alexnet_edge.errors import UserError
from alexnet_edge.proof.stats import required_samples

Scenario = Literal["single-stream", "multi-stream", "server", "offline"]

OFFICIAL_SECONDS = 600
"""Least duration of an MLPerf performance run."""

OFFICIAL_PERCENTILES: Mapping[str, float] = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}
"""Percentile of the latency that MLPerf judges image classification by; offline has none."""

BOUND_FACTOR = 5.0
"""The server's latency bound, where none is given, over the p90 of single inferences one after the other.

MLPerf's bound for image classification is 15 ms, meant for accelerators of a data centre: no fixed time fits both them and a
processor that needs 50 ms for one image.
"""

_SHORT_PERCENTILE = 90.0  # judged by where the official percentile's queries would take too long
_STRETCH = 2.0  # a run may take so many times its least duration to reach the official percentile's queries


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioSettings:
    """How LoadGen runs one scenario."""

    scenario: Scenario
    seconds: float = 10.0
    """Least duration of a run; MLPerf's is 600."""
    min_queries: int | None = None
    """Least number of queries (offline: of samples); None for what the percentile needs (offline: none)."""
    percentile: float | None = None
    """Of the latency, judged with LoadGen's early stopping rule; None for MLPerf's own (single-stream 90, multi-stream and
    server 99) where its queries fit into twice `seconds`, and for 90 elsewhere. The result names it."""
    samples_per_query: int = 8
    """Of multi-stream; 8 in MLPerf."""
    latency_bound_ms: float | None = None
    """Of server; None for `BOUND_FACTOR` times the p90 of single inferences."""
    target_qps: float | None = None
    """Server: the arrival rate, None to search the highest that passes. Offline: the expected rate, from which LoadGen takes
    the number of samples; None to measure it."""
    max_batch: int | None = None
    """Most images per inference in server and offline; None to find it by a quick measurement."""

    def __post_init__(self) -> None:
        if self.scenario not in get_args(Scenario):
            raise UserError("no such scenario", value=self.scenario, fix=f"one of {', '.join(get_args(Scenario))}")
        for name in ("seconds", "min_queries", "samples_per_query", "latency_bound_ms", "target_qps", "max_batch"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be positive", value=value, fix="give a positive number")
        if self.percentile is not None and not 50 <= self.percentile <= 99.9:
            raise UserError("percentile must be from 50 to 99.9", value=self.percentile, fix="try 90 or 99")
        if self.latency_bound_ms is not None and self.scenario != "server":
            raise UserError("only the server scenario has a latency bound", value=self.scenario, fix="leave it out")
        for name in ("target_qps", "max_batch"):
            if getattr(self, name) is not None and self.scenario not in ("server", "offline"):
                raise UserError(f"only server and offline have {name}", value=self.scenario, fix="leave it out")


def affordable_percentile(settings: ScenarioSettings, queries_per_s: float) -> float:
    """MLPerf's own percentile where the queries it needs take at most twice `seconds`, 90 elsewhere."""
    official = OFFICIAL_PERCENTILES[settings.scenario]
    fits = required_samples(official) <= _STRETCH * settings.seconds * queries_per_s
    return official if fits else _SHORT_PERCENTILE
