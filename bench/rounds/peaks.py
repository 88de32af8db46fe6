"""Measure what this machine can do, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from alexnet_edge import environment
from alexnet_edge.bench.machine.gpu_peaks import gpu_peaks
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.bench.machine.processor_peaks import processor_peaks
from alexnet_edge.bench.machine.state import BusyElsewhere
from alexnet_edge.environment import check_threads
from alexnet_edge.errors import UserError
from alexnet_edge.sessions.base import Device

SECONDS = 3.0
"""About how long the kernels of one device run, without imports."""


def measure_here(*, device: Device, threads: int | None = None, seconds: float = SECONDS) -> Peaks:
    """The peaks of this machine, measured in this process.

    `threads` of None is every processor this process may use; it takes about `seconds`.

    Raises:
        MissingComponentError: when threadpoolctl, or the requested GPU, is missing.
        UserError: when an argument is out of range.
    """
    if device not in get_args(Device):
        raise UserError("no such device", value=device, fix="choose cpu or cuda")
    check_threads(threads)
    if not 0 < seconds <= 600:
        raise UserError("seconds must be above 0 and at most 600", value=seconds, fix="try 3")
    count = threads or environment.usable_cpus()
    others = BusyElsewhere()
    measured = gpu_peaks(count, seconds) if device == "cuda" else processor_peaks(count, seconds)
    return replace(measured, other_cpus=others.processors())


def measure_peaks(
    *, device: Device, threads: int | None = None, cpus: Sequence[int] | None = None, seconds: float = SECONDS
) -> Peaks:
    """`measure_here` in a process of its own, on the processors `cpus`, where no other library's threads are waiting.

    Raises:
        AlexNetEdgeError: when it cannot be measured, or the process dies or takes too long.
    """
    from alexnet_edge.bench.timing.process import Worker, answered

    with Worker(cpus=cpus) as worker:
        request = {"do": "peaks", "device": device, "threads": threads, "seconds": seconds}
        return answered(Peaks, worker.ask(request, timeout_s=10 * seconds + 120))
