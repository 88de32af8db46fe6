"""The best rate of several kernels: short pieces of work that are run again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
    assert kernels
    times_s: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
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
            best = max(_rate(kernel, times_s) for kernel in going)
            going = [kernel for kernel in going if _rate(kernel, times_s) >= _HOPELESS * best]
    best = max(_rate(kernel, times_s) for kernel in kernels)
    how = {
        "kernel": next(kernel.name for kernel in kernels if _rate(kernel, times_s) == best),
        "kernels": {
            kernel.name: {
                "best": _rate(kernel, times_s),
                "amount": kernel.amount,
                "samples_ns": [round(run * 1e9) for run in times_s[kernel.name]],
            }
            for kernel in kernels
        },
    }
    return best, how


def _rate(kernel: Kernel, times_s: Mapping[str, Sequence[float]]) -> float:
    return kernel.amount / min(times_s[kernel.name])


def growing(make: Callable[[int], Kernel]) -> list[Kernel]:
    """The kernels of increasing size, as long as a run is short."""
    kernels = []
    for size in SIZES:
        kernels.append(make(size))
        if 8 * min(kernels[-1].run_s() for _ in range(_MIN_RUNS)) > _LONG_S:  # the next has 8 times the multiply-adds
            break
    return kernels
