"""A log of tegrastats that was recorded beside a measurement, judged as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexnet_edge.bench.machine.meters import total_of
from alexnet_edge.bench.machine.power import PowerWindow, Series, window_of
from alexnet_edge.bench.machine.sources import channels_of
from alexnet_edge.bench.machine.tegrastats import TegrastatsLine, read_log

BUSY_PERCENT = 50
"""In a recorded log: the load of the GPU, or of the busiest core, from which a line counts as being under load."""


def tegrastats_window(path: Path) -> PowerWindow:
    """A log recorded with `tegrastats --logfile` during a run, as one window, for `thermal_reasons`.

    Its lines are stamped with the board's wall clock, to the second, or not at all, so they cannot be assigned to
    measurements: the log as a whole is judged, and there is no energy per image. Clocks fall and boards cool when there is
    nothing to do, so only lines under load count (`BUSY_PERCENT`): for the clocks of the GPU and the memory, those with a
    busy GPU, or on a Thor, whose lines lack it, those in which the GPU had a clock; for the processors' clock, those
    with a busy core; for temperatures, those with either.

    Raises:
        UserError: when it cannot be read or has no line of tegrastats.
    """
    lines = read_log(path)
    spacing_ns = _spacing_ns(lines)
    series = Series()
    for index, line in enumerate(lines):
        gpu_busy = "GPU" in line.clocks_mhz if line.gpu_percent is None else line.gpu_percent >= BUSY_PERCENT
        cpu_busy = line.cpu_percent is not None and line.cpu_percent >= BUSY_PERCENT
        values = {}
        for channel, value in channels_of(line).items():
            loaded = {"mhz": cpu_busy if channel.name == "CPU" else gpu_busy, "celsius": gpu_busy or cpu_busy}
            if loaded.get(channel.kind, True):
                values[channel] = value
        series.add(index * spacing_ns, values)
    samples = series.arrays()
    means = {name: float(watts.mean()) for (kind, name), (_, watts) in samples.items() if kind == "watts"}
    rails = total_of(means)
    window = window_of(
        samples,
        0,
        max((len(lines) - 1) * spacing_ns, 1),
        meter=f"recorded tegrastats log, {len(lines)} lines",
        rails=rails,
        reason="a recorded log cannot be matched with the measurements: it is judged as a whole",
    )
    total = math.fsum(means[name] for name in rails) if rails else None
    return replace(window, samples=len(lines), rail_watts=means, watts=total)


def _spacing_ns(lines: Sequence[TegrastatsLine]) -> int:
    """Mean time between lines by their dates; a second, tegrastats' own default, where they have none."""
    dates = [line.date for line in lines if line.date is not None]
    if len(dates) == len(lines) > 1 and dates[-1] > dates[0]:
        return round((dates[-1] - dates[0]).total_seconds() * 1e9 / (len(lines) - 1))
    return 1_000_000_000
