"""The machine around a measurement: what it is doing meanwhile, and what changes latencies from minute to minute.

Nothing here is guessed: what cannot be read is None, and is shown as "unavailable".
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from alexnet_edge.environment import cpu_governor


class BusyElsewhere:
    """Processor time that others used since this object was made: the kernel's total less this process's own."""

    def __init__(self) -> None:
        self._busy = _busy_seconds()
        self._own = time.process_time()
        self._start = time.monotonic()

    def processors(self) -> float | None:
        """Processors kept busy by other processes, or stolen from this virtual machine, on average since then."""
        busy, own, wall = _busy_seconds(), time.process_time(), time.monotonic() - self._start
        if busy is None or self._busy is None or wall <= 0:
            return None
        return max(0.0, (busy - self._busy - (own - self._own)) / wall)


def _busy_seconds() -> float | None:
    """Seconds that all processors were not idle, stolen time included, since boot (proc_stat(5))."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def machine_state() -> dict[str, float | str | None]:
    """What may change from minute to minute and changes latencies; None is unavailable."""
    return {
        "cpu_governor": cpu_governor(),
        "cpu_mhz": _scaled("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e3),
        "temperature_c": max(
            (
                value
                for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))
                if (value := _scaled(str(zone), 1e3)) is not None
            ),
            default=None,
        ),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _scaled(path: str, divisor: float) -> float | None:
    try:
        return int(Path(path).read_text(encoding="ascii")) / divisor
    except (OSError, ValueError):
        return None


def peak_memory_bytes() -> int | None:
    """The largest resident size this process ever had; None where the kernel does not tell.

    Not `getrusage`: its figure survives `exec` and so includes the parent's size.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
