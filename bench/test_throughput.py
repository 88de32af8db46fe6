"""Throughput over batches: time per batch in the table, images/s in `extra_info`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from alexnet_edge.bench.suite import BATCHES, CLOCK, Case


@pytest.mark.parametrize("batch", BATCHES[1:])
@pytest.mark.benchmark(timer=CLOCK)
def test_throughput(benchmark: Any, case: Case, play: Callable[[int], Mapping[str, Any]], batch: int) -> None:
    benchmark.group = f"throughput, batch {batch}"
    assert play(batch)["images_per_s"] > 0
