"""Measure the machine's peaks in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence

from alexnet_edge.bench.machine.peaks import (
    SECONDS,
    Peaks,
)
from alexnet_edge.sessions.base import Device


def measure_peaks(
    *,
    device: Device,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    seconds: float = SECONDS,
) -> Peaks:
    """`measure_here` in a process of its own, on the processors `cpus`, where no other library's threads are waiting.

    Raises:
        AlexNetEdgeError: when it cannot be measured, or the process dies or takes too long.
    """
    from alexnet_edge.bench.timing.process import Worker, answered

    with Worker(cpus=cpus) as worker:
        request = {"do": "peaks", "device": device, "threads": threads, "seconds": seconds}
        return answered(Peaks, worker.ask(request, timeout_s=10 * seconds + 120))
