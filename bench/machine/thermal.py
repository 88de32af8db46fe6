"""What power windows mean: energy per image, and why a measurement is invalid.

`thermal_reasons` has these limits:

- anything that counts or reports throttling during the measurement (over-current events, throttle alerts, NVML's reasons);
- a clock that fell by more than `MAX_CLOCK_FALL` and stayed there for most of `SUSTAINED` samples;
- the hottest zone rose by more than `MAX_RISE_C`: the board was still warming up, so later rounds are slower;
- the power mode is another one at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from alexnet_edge.bench.machine.power import Clock, PowerWindow

MAX_CLOCK_FALL = 0.05
"""A GPU's or memory's clock steps by 4 to 8 % (76.8 and 102 MHz of 1300 on an AGX Orin), and is read with an error of
0.3 %: more than half a step is a step."""
MAX_RISE_C = 10.0
"""Leakage power, and with it the clock that a power limit allows, changes by several percent over ten degrees."""
_BLIND: dict[tuple[str | None, str | None], str] = {
    ("cpu", "NVML"): "NVML counts the energy of the GPU board, and this ran on the processor",
    ("cuda", "RAPL"): "RAPL counts the energy of the processor packages, and this ran on the GPU",
}
"""Devices that a meter does not see, in a benchmark of both."""


def energy_of(
    windows: Sequence[PowerWindow], idle: PowerWindow | None, *, images: int, device: str | None = None
) -> tuple[dict[str, Any] | None, str]:
    """Energy per image over the timed parts of all rounds, one window each, or None and the reason why there is none.

    `idle` is read with nothing running, `images` were answered in all windows together, on `device`.

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
    net = None if idle_watts is None else joules - idle_watts * seconds
    if net is not None and net <= 0:
        reasons = [f"{joules / seconds:.2f} W is not above idle, {idle_watts:.2f} W"]
        net = None
    first, last = windows[0].hottest_c, windows[-1].hottest_c
    return {
        "rail": windows[0].rail,
        "watts": joules / seconds,
        "idle_watts": idle_watts,
        "mj_per_image": joules * 1e3 / images,
        "net_mj_per_image": None if net is None else net * 1e3 / images,
        "images_per_s_per_watt": images / joules,
        "temperature_c": None if first is None or last is None else [first[0], last[1]],
        "clocks": {
            name: [min(clock.min for clock in clocks), max(clock.max for clock in clocks)]
            for name, clocks in sorted(_by_name(windows).items())
        },
        "reasons": reasons,
    }, ""


def thermal_reasons(windows: Sequence[PowerWindow], *, device: str) -> list[str]:
    """Why a measurement is INVALID: it was throttled, its clocks fell, it drifted thermally, its power mode changed.

    `windows` are the timed parts of all its rounds, in order of time. The clock of `device` `cpu` is the processors'; the
    clocks of `cuda` are the GPU's and the memory's, while those of the processors may follow the load.
    """
    events: Counter[str] = Counter()
    for window in windows:
        events.update(window.events)
    reasons = [f"throttled: {name}, {count} event{'s' if count > 1 else ''}" for name, count in events.items()]
    reasons += [f"throttled: {name}" for name in dict.fromkeys(name for window in windows for name in window.throttled)]
    for name, clocks in _by_name(windows).items():
        fall = _largest_fall(clocks) if (name == "CPU") == (device == "cpu") else None
        if fall is not None:
            reasons.append(f"{name} clock fell from {fall[0]:.0f} to {fall[1]:.0f} MHz")
    hottest = [window.hottest_c for window in windows if window.hottest_c is not None]
    if hottest and (rise := hottest[-1][1] - hottest[0][0]) > MAX_RISE_C:
        reasons.append(f"temperature rose by {rise:.0f} °C (drifting thermally)")
    for quantity, field in (("power mode", "mode"), ("CPU governor", "governor")):
        values = list(dict.fromkeys(value for window in windows if (value := getattr(window, field)) is not None))
        if len(values) > 1:
            reasons.append(f"{quantity} changed from {values[0]} to {values[1]}")
    return reasons


def _by_name(windows: Sequence[PowerWindow]) -> dict[str, list[Clock]]:
    clocks: dict[str, list[Clock]] = {}
    for window in windows:
        for name, clock in window.clocks.items():
            clocks.setdefault(name, []).append(clock)
    return clocks


def _largest_fall(clocks: Sequence[Clock]) -> tuple[float, float] | None:
    """The largest lasting fall of a clock inside a window or from one to a later one, if it is above the limit."""
    falls = [(clock.fell_from, clock.fell_to) for clock in clocks]
    for index, clock in enumerate(clocks):
        falls += [(earlier.median, clock.median) for earlier in clocks[:index]]
    falls = [fall for fall in falls if fall[1] < fall[0] * (1 - MAX_CLOCK_FALL)]
    return min(falls, key=lambda fall: fall[1] / fall[0], default=None)
