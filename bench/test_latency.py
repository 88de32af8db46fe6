"""Latency at batch 1, host end-to-end; `conftest.py` says how the samples come here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from alexnet_edge import records
from alexnet_edge.bench.suite import BATCHES, CLOCK, Case
from alexnet_edge.bench.timing.settings import MeasureSettings


@pytest.mark.benchmark(group="latency, batch 1", timer=CLOCK)
def test_latency(case: Case, subject: dict[str, Any], play: Callable[[int], Mapping[str, Any]]) -> None:
    summary = play(BATCHES[0])
    settings = records.convert(MeasureSettings, subject["bench"]["settings"])
    highest = f"p{settings.percentile:g}"
    assert summary["percentiles_ns"][highest] is not None, f"too slow for the {highest} within {settings.max_seconds} s"
