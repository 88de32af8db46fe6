"""The best rate of several kernels: short pieces of work that are run again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_SHARE_OF_MEMORY = 8
"""A buffer takes at most one part in this many of the memory."""

SIZES = (512, 1024, 2048, 4096, 8192)
"""Rows and columns of the matrices that are multiplied; larger ones only while a product is short."""
_LONG_S = 0.02
_MIN_RUNS = 5
_HOPELESS = 0.6
"""A kernel is left out of further rounds when its best rate is below this part of the best of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A short piece of work that is run again and again."""

    name: str
    amount: float
    """Bytes or multiply-adds of one run."""
    run_s: Callable[[], float]
    """Runs once and returns how long it took, in seconds."""


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """`call`, timed by the processor's clock."""

    def run_s() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e9

    return run_s


def best_rate(kernels: Sequence[Kernel], *, seconds: float) -> tuple[float, dict[str, Any]]:
    """The best rate of any run of any kernel, and how it was found.

    The kernels take turns, so that a disturbance does not hit all runs of one. Every kernel has a run that does not count
    and at least `_MIN_RUNS` that do, however long that takes; then the ones that are far behind are left out.
    """
    times_s: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}

    def rate(kernel: Kernel) -> float:
        return kernel.amount / min(times_s[kernel.name])

    for kernel in kernels:
        kernel.run_s()
    going = list(kernels)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _MIN_RUNS or time.perf_counter() < end:
        for kernel in going:
            times_s[kernel.name].append(kernel.run_s())
        rounds += 1
        if rounds == _MIN_RUNS:
            best = max(map(rate, going))
            going = [kernel for kernel in going if rate(kernel) >= _HOPELESS * best]
    fastest = max(kernels, key=rate)
    how = {
        "kernel": fastest.name,
        "kernels": {
            kernel.name: {
                "best": rate(kernel),
                "amount": kernel.amount,
                "samples_ns": [round(run * 1e9) for run in times_s[kernel.name]],
            }
            for kernel in kernels
        },
    }
    return rate(fastest), how


def growing(make: Callable[[int], Kernel]) -> list[Kernel]:
    """The kernels of increasing size, as long as a run is short."""
    kernels = []
    for size in SIZES:
        kernels.append(make(size))
        if 8 * min(kernels[-1].run_s() for _ in range(_MIN_RUNS)) > _LONG_S:  # the next has 8 times the multiply-adds
            break
    return kernels
