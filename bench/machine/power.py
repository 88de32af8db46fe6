"""Power, energy and throttling while something is measured.

A `Recorder` reads every source of `find_meters` in a thread of its own, with `perf_counter_ns` stamps, which on Linux is
CLOCK_MONOTONIC and so the same clock in every process. A `PowerWindow` is what it saw between two moments. Energy is the
trapezoid over samples of power, or the difference of an energy counter, interpolated at both ends.

Whether a measurement is to be believed, `thermal_reasons` says. Its limits:

- anything that counts or says "throttled" during the measurement (over-current events, throttle alerts, NVML's reasons);
- a clock that fell by more than `MAX_CLOCK_FALL`, and stayed there for most of `SUSTAINED` samples;
- the hottest zone rose by more than `MAX_RISE_C`: the board was still warming up, so that later rounds are slower;
- the power mode is another one at the end.
"""

from __future__ import annotations

import math
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alexnet_edge.bench.machine import jetson
from alexnet_edge.bench.machine.meters import Channel, Meters, Source, channels_of, find_meters, total_of
from alexnet_edge.bench.machine.tegrastats import TegrastatsLine, read_log
from alexnet_edge.environment import ROOT, cpu_governor

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Clock",
    "Meters",
    "PowerWindow",
    "Recorder",
    "describe_power",
    "energy_of",
    "find_meters",
    "tegrastats_window",
    "thermal_reasons",
]

MAX_CLOCK_FALL = 0.05
"""A GPU's or memory's clock steps by 4 to 8 % (76.8 and 102 MHz of 1300 on an AGX Orin), and is read with an error of
0.3 %: more than half a step is a step."""

MAX_RISE_C = 10.0
"""Leakage power, and with it the clock that a power limit allows, changes by several percent over ten degrees."""

SUSTAINED = 5
"""Samples of which the median must have fallen: a single low reading is a reading during a change of clock."""

MIN_SAMPLES = 10
"""Power samples that a window must hold for its energy: with fewer, one sample is more than a tenth of it."""

BUSY_PERCENT = 50
"""In a recorded log: the load of the GPU, or of the busiest core, from which a line counts as being under load."""

_BLIND: dict[tuple[str | None, str | None], str] = {
    ("cpu", "NVML"): "NVML counts the energy of the GPU board, and this ran on the processor",
    ("cuda", "RAPL"): "RAPL counts the energy of the processor packages, and this ran on the GPU",
}
"""Devices that a meter does not see, in a benchmark of both."""

Floats = NDArray[np.float64]


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
    """What said during the window that it takes performance away."""
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

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "temperatures_c": {name: list(zone) for name, zone in self.temperatures_c.items()},
            "throttled": list(self.throttled),
            "reasons": list(self.reasons),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> PowerWindow:
        return PowerWindow(
            **{
                **value,
                "clocks": {name: Clock(**clock) for name, clock in value["clocks"].items()},
                "temperatures_c": {name: tuple(zone) for name, zone in value["temperatures_c"].items()},
                "throttled": tuple(value["throttled"]),
                "reasons": tuple(value["reasons"]),
            }
        )


class _Series:
    """One channel's samples: stamps in ns, strictly rising, and values. Written by one thread, read by another."""

    def __init__(self) -> None:
        self._at_ns = array("q")
        self._values = array("d")

    def add(self, at_ns: int, value: float) -> None:
        self._at_ns.append(at_ns)
        self._values.append(value)

    def arrays(self) -> tuple[NDArray[np.int64], Floats]:
        return np.array(self._at_ns, dtype=np.int64), np.array(self._values, dtype=np.float64)


class Recorder:
    """Reads all sources every `interval_s` in a thread, from entering to leaving; it also closes them then.

    A reading of the 26 quantities of an AGX Orin takes 0.2 ms of processor time on an x86 server, with its files on a disk:
    0.5 % of one core at ten a second. On a board the chips' own answers over I2C come on top, as waiting.
    """

    def __init__(self, meters: Meters, interval_s: float = 0.1) -> None:
        assert interval_s > 0
        self.meters = meters
        self._interval_s = interval_s
        self._series: dict[Channel, _Series] = {}
        self._stamps: dict[Source, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> Self:
        self._sample(self.meters.sources)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                if reading is None or self._stamps.get(source) == reading[0]:
                    continue  # nothing new
                self._stamps[source] = reading[0]
                for channel, value in reading[1].items():
                    self._series.setdefault(channel, _Series()).add(reading[0], value)

    def idle(self, seconds: float) -> PowerWindow:
        """Wait, and tell what the machine draws meanwhile."""
        start_ns = time.perf_counter_ns()
        time.sleep(seconds)
        return self.window(start_ns, time.perf_counter_ns())

    def window(self, start_ns: int, end_ns: int) -> PowerWindow:
        """What was seen from `start_ns` to `end_ns`, both `perf_counter_ns` and in the past."""
        assert start_ns < end_ns
        self._sample(self.meters.sources)  # so that there is one after the end
        with self._lock:
            series = {channel: samples.arrays() for channel, samples in self._series.items()}
        meters = self.meters
        mode = jetson.saved_mode(meters.root)
        return _window(
            series,
            start_ns,
            end_ns,
            meter=meters.name,
            rails=meters.rails,
            reason=meters.reason,
            mode=None if mode is None else str(mode),
            governor=cpu_governor(meters.root),
        )


def _window(
    series: Mapping[Channel, tuple[NDArray[np.int64], Floats]],
    start_ns: int,
    end_ns: int,
    *,
    meter: str | None,
    rails: Sequence[str],
    reason: str,
    mode: str | None = None,
    governor: str | None = None,
) -> PowerWindow:
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
            count = round(_around(at_ns, values, start_ns, end_ns))
            if count > 0:
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
        mode=mode,
        governor=governor,
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


# --- what the windows mean ----------------------------------------------------------------------------------------------


def energy_of(
    windows: Sequence[PowerWindow], idle: PowerWindow | None, *, images: int, device: str | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Energy per image over the timed parts of all rounds, or None and the reason why there is none.

    Args:
        windows: the timed parts, one per round.
        idle: the same meters with nothing running, for the net figure.
        images: answered in all windows together.
        device: `cpu` or `cuda`, where they were answered: NVML does not see the processor, nor RAPL the GPU.

    Returns:
        `rail`; `watts`, the mean; `idle_watts`; `mj_per_image`, all that was drawn; `net_mj_per_image`, what was drawn
        above idle, None where idle is not known or not below; `images_per_s_per_watt`; `temperature_c`, the hottest zone
        at the first start and the last end; `clocks`, for each the lowest and highest in MHz; `reasons`, why a figure
        is None.
    """
    assert images > 0
    if not windows:
        return None, "nothing was measured"
    if (device, windows[0].meter) in _BLIND:
        return None, _BLIND[device, windows[0].meter]
    missing = next((window.reasons for window in windows if window.joules is None), None)
    if missing is not None:
        return None, "; ".join(missing)
    joules = math.fsum(window.joules or 0.0 for window in windows)
    seconds = math.fsum(window.seconds for window in windows)
    if joules <= 0:
        return None, f"{windows[0].rail} reads {joules / seconds:.3f} W, which is less than its sensor can tell"
    idle_watts, reasons = (None, ["idle power was not measured"]) if idle is None else (idle.watts, list(idle.reasons))
    net = None
    if idle_watts is not None:
        net = joules - idle_watts * seconds
        if net <= 0:
            reasons = [f"{joules / seconds:.2f} W is not above idle, {idle_watts:.2f} W"]
            net = None
    first, last = windows[0].hottest_c, windows[-1].hottest_c
    names = sorted({name for window in windows for name in window.clocks})
    return {
        "rail": windows[0].rail,
        "watts": joules / seconds,
        "idle_watts": idle_watts,
        "mj_per_image": joules * 1e3 / images,
        "net_mj_per_image": None if net is None else net * 1e3 / images,
        "images_per_s_per_watt": images / joules,
        "temperature_c": None if first is None or last is None else [first[0], last[1]],
        "clocks": {
            name: [
                min(window.clocks[name].min for window in windows if name in window.clocks),
                max(window.clocks[name].max for window in windows if name in window.clocks),
            ]
            for name in names
        },
        "reasons": reasons,
    }, ""


def thermal_reasons(windows: Sequence[PowerWindow], *, device: str) -> list[str]:
    """Why a measurement is INVALID: it was throttled, its clocks fell, it drifted thermally, its power mode changed.

    Args:
        windows: the timed parts of all rounds of one measurement, in order of time.
        device: `cpu`, whose clock is the processors'; or `cuda`, whose clocks are the GPU's and the memory's, while those
            of the processors may follow the load.
    """
    reasons = []
    events: dict[str, int] = {}
    for window in windows:
        for name, count in window.events.items():
            events[name] = events.get(name, 0) + count
    reasons += [f"throttled: {name}, {count} event{'s' if count > 1 else ''}" for name, count in events.items()]
    reasons += [f"throttled: {name}" for name in dict.fromkeys(name for window in windows for name in window.throttled)]
    for name in dict.fromkeys(name for window in windows for name in window.clocks):
        if (name == "CPU") == (device == "cpu"):
            fall = _largest_fall([window.clocks[name] for window in windows if name in window.clocks])
            if fall is not None:
                reasons.append(f"{name} clock fell from {fall[0]:.0f} to {fall[1]:.0f} MHz")
    hottest = [window.hottest_c for window in windows if window.hottest_c is not None]
    if hottest and (rise := hottest[-1][1] - hottest[0][0]) > MAX_RISE_C:
        reasons.append(f"temperature rose by {rise:.0f} °C (drifting thermally)")
    for quantity, values in (
        ("power mode", [window.mode for window in windows if window.mode is not None]),
        ("CPU governor", [window.governor for window in windows if window.governor is not None]),
    ):
        changed = next((value for value in values if value != values[0]), None)
        if changed is not None:
            reasons.append(f"{quantity} changed from {values[0]} to {changed}")
    return reasons


def _largest_fall(clocks: Sequence[Clock]) -> tuple[float, float] | None:
    """The largest lasting fall of a clock inside a window or from one to a later one, if it is above the limit."""
    falls = [(clock.fell_from, clock.fell_to) for clock in clocks]
    for index, clock in enumerate(clocks):
        falls += [(earlier.median, clock.median) for earlier in clocks[:index]]
    falls = [fall for fall in falls if fall[1] < fall[0] * (1 - MAX_CLOCK_FALL)]
    return min(falls, key=lambda fall: fall[1] / fall[0], default=None)


# --- a recorded log -----------------------------------------------------------------------------------------------------


def tegrastats_window(path: Path) -> PowerWindow:
    """A log recorded with `tegrastats --logfile` during a run, as one window, for `thermal_reasons`.

    Its lines are stamped with the board's wall clock, to the second, or not at all, so they cannot be told apart by
    measurement: the log as a whole is judged, and there is no energy per image. Clocks fall and boards cool when there is
    nothing to do, so only lines under load count (`BUSY_PERCENT`): for the clocks of the GPU and the memory, those with a
    busy GPU, or on a Thor, whose lines do not tell, those in which the GPU had a clock; for the processors' clock, those
    with a busy core; for temperatures, those with either.

    Raises:
        UserError: when it cannot be read or has no line of tegrastats.
    """
    lines = read_log(path)
    spacing_ns = _spacing_ns(lines)
    at_ns = np.arange(len(lines), dtype=np.int64) * spacing_ns
    series: dict[Channel, _Series] = {}
    for stamp, line in zip(at_ns, lines, strict=True):
        gpu_busy = "GPU" in line.clocks_mhz if line.gpu_percent is None else line.gpu_percent >= BUSY_PERCENT
        cpu_busy = line.cpu_percent is not None and line.cpu_percent >= BUSY_PERCENT
        for channel, value in channels_of(line).items():
            loaded = {"mhz": cpu_busy if channel.name == "CPU" else gpu_busy, "celsius": gpu_busy or cpu_busy}
            if loaded.get(channel.kind, True):
                series.setdefault(channel, _Series()).add(int(stamp), value)
    rails = total_of([channel.name for channel in series if channel.kind == "watts"])
    window = _window(
        {channel: samples.arrays() for channel, samples in series.items()},
        0,
        max(int(at_ns[-1]), 1),
        meter=f"recorded tegrastats log, {len(lines)} lines",
        rails=rails,
        reason="a recorded log cannot be matched with the measurements: it is judged as a whole",
    )
    means = {name: float(values.arrays()[1].mean()) for (kind, name), values in series.items() if kind == "watts"}
    return PowerWindow(
        **{
            **{name: getattr(window, name) for name in PowerWindow.__dataclass_fields__},
            "samples": len(lines),
            "rail_watts": means,
            "watts": math.fsum(means[name] for name in rails) if rails else None,
        }
    )


def _spacing_ns(lines: Sequence[TegrastatsLine]) -> int:
    """Mean time between lines by their dates; a second, tegrastats' own default, where they have none."""
    dates = [line.date for line in lines if line.date is not None]
    if len(dates) == len(lines) > 1 and dates[-1] > dates[0]:
        return round((dates[-1] - dates[0]).total_seconds() * 1e9 / (len(lines) - 1))
    return 1_000_000_000


# --- the power mode -----------------------------------------------------------------------------------------------------


def describe_power(root: Path = ROOT, *, path: str | None = None) -> dict[str, Any]:
    """The power mode, as recorded in results; what cannot be read is None, with its reason.

    Args:
        root: folder in which `/sys`, `/etc` and `/var` are looked for. For the file system's own root, or with `path`,
            `nvpmodel -q` and `jetson_clocks --show` are asked too.
        path: where these commands are looked up; by default `PATH`.

    Returns:
        `nvpmodel`: `{"id", "name"}`; `jetson_clocks`: `{"locked", "governor", "gpu_mhz", "emc_mhz"}`, the clocks as
        least, largest and present; `cpu_governor`; `reasons` by name of what is None.
    """
    reasons: dict[str, str] = {}
    ask = root == ROOT or path is not None
    nvpmodel = jetson.find_tool("nvpmodel", path) if ask else None
    mode = jetson.parse_mode(jetson.run_tool(nvpmodel, "-q").text) if nvpmodel else None
    mode = mode or jetson.saved_mode(root)
    if mode is None:
        reasons["nvpmodel"] = "nvpmodel does not tell" if nvpmodel else "no nvpmodel here, which only a Jetson has"
    clocks = None
    tool = jetson.find_tool("jetson_clocks", path) if ask else None
    if tool is None:
        reasons["jetson_clocks"] = "no jetson_clocks here, which only a Jetson has"
    else:
        answer = jetson.run_tool(tool, "--show")
        clocks = jetson.parse_clocks(answer.text)
        if clocks is None:
            line = next((line.strip() for line in answer.text.splitlines() if line.strip()), "no answer")
            reasons["jetson_clocks"] = f"jetson_clocks --show: {line}"
    governor = cpu_governor(root)
    if governor is None:
        reasons["cpu_governor"] = "this kernel has no frequency governor, as in most virtual machines"
    return {
        "nvpmodel": None if mode is None else asdict(mode),
        "jetson_clocks": None if clocks is None else clocks.to_json(),
        "cpu_governor": governor,
        "reasons": reasons,
    }
