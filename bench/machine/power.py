"""Power, energy and throttling while something is measured.

A `Recorder` reads every source of `find_meters` in a thread of its own, with `perf_counter_ns` stamps, which on Linux is
CLOCK_MONOTONIC and so the same clock in every process. A `PowerWindow` is what it saw between two moments. Energy is the
trapezoid over samples of power, or the difference of an energy counter, interpolated at both ends.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from alexnet_edge.bench.machine import jetson
from alexnet_edge.bench.machine.meters import Meters
from alexnet_edge.bench.machine.sources import Channel, Source
from alexnet_edge.environment import cpu_governor

SUSTAINED = 5
"""Samples of which the median must have fallen: a single low reading is a reading during a change of clock."""

MIN_SAMPLES = 10
"""Power samples that a window must hold for its energy: with fewer, one sample is more than a tenth of it."""

Floats = NDArray[np.float64]
Samples = tuple[NDArray[np.int64], Floats]
"""One channel's: stamps in ns, strictly rising, and values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """One clock over a window, in MHz."""

    min: float
    max: float
    median: float
    fell_from: float
    """With `fell_to`, the largest lasting fall inside the window; both equal where it only rose."""
    fell_to: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerWindow:
    """What was seen between two moments. Absent is not available, and `reasons` says why there is no energy."""

    start_ns: int
    end_ns: int
    meter: str | None = None
    rail: str | None = None
    """What `watts` and `joules` cover, such as `VDD_IN`."""
    samples: int = 0
    """Of the power meter, inside the window."""
    watts: float | None = None
    """Mean over the window."""
    joules: float | None = None
    rail_watts: Mapping[str, float] = field(default_factory=dict)
    """Mean of every rail."""
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    """`CPU`, `GPU`, `EMC` (a Jetson's memory), `GPU memory`."""
    temperatures_c: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Of each zone: at the start, at the end, and the highest."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Counted during the window, by kind; kinds that did not happen are left out."""
    throttled: tuple[str, ...] = ()
    """What reported during the window that it reduces performance."""
    mode: str | None = None
    """Power mode when the window was taken."""
    governor: str | None = None
    reasons: tuple[str, ...] = ()
    """Why `joules` is None."""

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def hottest_c(self) -> tuple[float, float] | None:
        """The hottest zone at the start, and the hottest at the end."""
        zones = self.temperatures_c.values()
        return (max(zone[0] for zone in zones), max(zone[1] for zone in zones)) if zones else None


class Series:
    """The samples of each channel, as they come. Written by one thread, read by another."""

    def __init__(self) -> None:
        self._of: dict[Channel, tuple[array[int], array[float]]] = {}

    def add(self, at_ns: int, values: Mapping[Channel, float]) -> None:
        for channel, value in values.items():
            stamps, samples = self._of.setdefault(channel, (array("q"), array("d")))
            stamps.append(at_ns)
            samples.append(value)

    def arrays(self) -> dict[Channel, Samples]:
        return {
            channel: (np.array(stamps, dtype=np.int64), np.array(values, dtype=np.float64))
            for channel, (stamps, values) in self._of.items()
        }


class Recorder:
    """Reads all sources every `interval_s` in a thread, from entering to leaving; it also closes them then.

    A reading of the 26 quantities of an AGX Orin takes 0.2 ms of processor time on an x86 server, with its files on a disk:
    0.5 % of one core at ten a second. On a board the chips' own answers over I2C come on top, as waiting.
    """

    def __init__(self, meters: Meters, interval_s: float = 0.1) -> None:
        assert interval_s > 0
        self.meters = meters
        self._interval_s = interval_s
        self._series = Series()
        self._stamps: dict[Source, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> Recorder:
        self._sample(self.meters.sources)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.meters.close()

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(self._interval_s):
            turn += 1
            self._sample([source for source in self.meters.sources if turn % source.every == 0])

    def _sample(self, sources: Sequence[Source]) -> None:
        with self._lock:
            for source in sources:
                reading = source.read()
                if reading is not None and self._stamps.get(source) != reading[0]:  # something new
                    self._stamps[source] = reading[0]
                    self._series.add(*reading)

    def idle(self, seconds: float) -> PowerWindow:
        """What the machine draws in the next `seconds`, while this waits."""
        start_ns = time.perf_counter_ns()
        time.sleep(seconds)
        return self.window(start_ns, time.perf_counter_ns())

    def window(self, start_ns: int, end_ns: int) -> PowerWindow:
        """What was seen from `start_ns` to `end_ns`, both `perf_counter_ns` and in the past."""
        assert start_ns < end_ns
        self._sample(self.meters.sources)  # so that there is one after the end
        with self._lock:
            series = self._series.arrays()
        meters = self.meters
        window = window_of(series, start_ns, end_ns, meter=meters.name, rails=meters.rails, reason=meters.reason)
        mode = jetson.saved_mode(meters.root)
        return replace(window, mode=None if mode is None else str(mode), governor=cpu_governor(meters.root))


def window_of(
    series: Mapping[Channel, Samples],
    start_ns: int,
    end_ns: int,
    *,
    meter: str | None,
    rails: Sequence[str],
    reason: str,
) -> PowerWindow:
    """The window that these samples make, its mode and governor apart; `reason` is why they give no energy, if they don't."""
    joules: dict[str, float] = {}
    counts: dict[str, int] = {}
    clocks: dict[str, Clock] = {}
    temperatures: dict[str, tuple[float, float, float]] = {}
    events: dict[str, int] = {}
    throttled: list[str] = []
    for (kind, name), (at_ns, values) in series.items():
        inside = values[(at_ns >= start_ns) & (at_ns <= end_ns)]
        if kind in ("watts", "joules"):
            counts[name] = len(inside)
            if len(inside) >= MIN_SAMPLES:
                integrate = _trapezoid if kind == "watts" else _difference
                joules[name] = integrate(at_ns, values, start_ns, end_ns)
        elif kind == "events":
            if (count := round(_around(at_ns, values, start_ns, end_ns))) > 0:
                events[name] = count
        elif len(inside) == 0:
            continue
        elif kind == "mhz":
            clocks[name] = _clock(inside)
        elif kind == "celsius":
            few = max(1, len(inside) // 4)
            temperatures[name] = (float(inside[:few].mean()), float(inside[-few:].mean()), float(inside.max()))
        elif inside.max() > 0:
            throttled.append(name)
    seconds = (end_ns - start_ns) / 1e9
    samples = min((counts.get(name, 0) for name in rails), default=0)
    reasons = [reason] if reason else []
    if not reasons and samples < MIN_SAMPLES:
        reasons = [f"{samples} power samples in {seconds:.2f} s, {MIN_SAMPLES} are needed: measure longer"]
    total = math.fsum(joules[name] for name in rails) if not reasons else None
    return PowerWindow(
        start_ns=start_ns,
        end_ns=end_ns,
        meter=meter,
        rail=" + ".join(rails) or None,
        samples=samples,
        watts=None if total is None else total / seconds,
        joules=total,
        rail_watts={name: energy / seconds for name, energy in joules.items()},
        clocks=clocks,
        temperatures_c=temperatures,
        events=events,
        throttled=tuple(throttled),
        reasons=tuple(reasons),
    )


def _trapezoid(at_ns: NDArray[np.int64], watts: Floats, start_ns: int, end_ns: int) -> float:
    """Joules from `start_ns` to `end_ns`; before the first and after the last sample, power is as it was there."""
    inside = (at_ns > start_ns) & (at_ns < end_ns)
    moments = np.concatenate(([start_ns], at_ns[inside], [end_ns])) - start_ns  # small numbers keep their nanoseconds
    at = np.interp(moments, at_ns - start_ns, watts)
    return float(np.sum((at[1:] + at[:-1]) / 2 * np.diff(moments)) / 1e9)


def _difference(at_ns: NDArray[np.int64], joules: Floats, start_ns: int, end_ns: int) -> float:
    first, last = np.interp([0, end_ns - start_ns], at_ns - start_ns, joules)
    return float(last - first)


def _around(at_ns: NDArray[np.int64], counts: Floats, start_ns: int, end_ns: int) -> float:
    """How far a counter went, from the last sample before the window to the first after it."""
    first = max(0, int(np.searchsorted(at_ns, start_ns, side="right")) - 1)
    last = min(len(at_ns) - 1, int(np.searchsorted(at_ns, end_ns, side="left")))
    return float(counts[last] - counts[first])


def _clock(mhz: Floats) -> Clock:
    size = min(SUSTAINED, len(mhz))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(mhz, size), axis=1)
    highest = np.maximum.accumulate(medians)
    lowest = int(np.argmin(medians / np.maximum(highest, 1e-9)))
    return Clock(
        min=float(mhz.min()),
        max=float(mhz.max()),
        median=float(np.median(mhz)),
        fell_from=float(highest[lowest]),
        fell_to=float(medians[lowest]),
    )
