"""What this machine can do at most: bytes read per second, and multiply-adds per second in each element type.

Measured with short kernels run again and again: a peak is the best rate that any of them reached, because everything that
disturbs a run makes it slower. The kernels that multiply are those of the libraries that run the network, where they are
installed, so a peak is one that a runtime's own code can reach.

A copy of n bytes counts as 2 n: n read and n written, as in STREAM (McCalpin, "Memory bandwidth and machine balance in
current high performance computers", 1995).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from alexnet_edge.sessions.base import Device


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """The best rates that were seen on one device with one number of threads."""

    device: Device
    threads: int
    """Processor threads; without meaning on a GPU."""
    read_bytes_per_s: float
    copy_bytes_per_s: float | None
    """Bytes read plus bytes written."""
    multiply_adds_per_s: Mapping[str, float | None]
    """By element type of the operands; None where `unavailable` says why."""
    how: Mapping[str, Any]
    """By figure: every kernel's best rate and raw times; and the buffer's size."""
    unavailable: Mapping[str, str]
    other_cpus: float | None = None
    """Processors kept busy by others meanwhile, on average: with many, the rates are lower bounds of the peaks."""
    rounds: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """`best` and `median` rates of each measurement, in bytes and multiply-adds per second by the names that `how` has, where these
    are the best of several; see `best_of`."""


def best_of(measured: Sequence[Peaks]) -> Peaks:
    """The best rate of each kind over measurements of one device, with the best and the median rates of each in `rounds`.

    `how` and `unavailable` tell of the measurement that a figure is from; others kept as few processors busy as in the
    quietest of them.
    """
    rates: dict[str, float | None] = {}
    how = dict(measured[0].how)
    unavailable: dict[str, str] = {}
    for peaks in measured:
        unavailable |= peaks.unavailable
        for name, rate in _rates(peaks).items():
            if rate is not None and rate > (rates.get(name) or 0.0):
                rates[name], how[name] = rate, peaks.how.get(name)
            rates.setdefault(name, None)
    busy = [peaks.other_cpus for peaks in measured if peaks.other_cpus is not None]
    return replace(
        _with_rates(measured[0], rates),
        how=how,
        unavailable={name: reason for name, reason in unavailable.items() if rates.get(name) is None},
        other_cpus=min(busy, default=None),
        rounds=[{"best": _rates(peaks), "median": _rates(typical(peaks))} for peaks in measured],
    )


def typical(measured: Peaks) -> Peaks:
    """The rates that a measurement reached half of the time: of each kind the best median of any kernel's runs.

    They compare with a median latency of the same moment as the best rates compare with the machine undisturbed.
    """
    medians = {}
    for name, rate in _rates(measured).items():
        kernels = (measured.how.get(name) or {}).get("kernels") or {}
        of_kernels = [kernel["amount"] / float(np.median(kernel["samples_ns"])) * 1e9 for kernel in kernels.values()]
        medians[name] = rate if rate is None else max(of_kernels, default=rate)
    return _with_rates(measured, medians)


def _rates(measured: Peaks) -> dict[str, float | None]:
    """In bytes and multiply-adds per second, by the names that `how` has."""
    return {"read": measured.read_bytes_per_s, "copy": measured.copy_bytes_per_s, **measured.multiply_adds_per_s}


def _with_rates(measured: Peaks, rates: Mapping[str, float | None]) -> Peaks:
    speeds = dict(rates)
    read, copied = speeds.pop("read"), speeds.pop("copy")
    assert read is not None, "every measurement reads"
    return replace(measured, read_bytes_per_s=read, copy_bytes_per_s=copied, multiply_adds_per_s=speeds)
