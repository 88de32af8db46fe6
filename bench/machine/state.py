"""What the machine around a measurement is doing, and what changes latencies from minute to minute.

What cannot be read is absent or None, and is shown as "unavailable". `root` is where `/proc` and `/sys` are looked for.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_edge.environment import ROOT, cpu_governor, read_text

COLDEST_C = -50.0
"""A sensor that is switched off reads -256 °C on a Jetson Orin: anything colder than this is no temperature."""

_GPU_NAMES = re.compile(r"gpu(?!-nvd)|gp10b|gv11b|ga10b|gb10b")
"""What a Jetson's GPU is called under /sys/class/devfreq: 17000000.gpu, 17000000.ga10b, gpu-gpc-0; gpu-nvd is Thor's video part."""

_EMC_RATES = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")
"""The memory clock of a Jetson, readable for root."""

_THROTTLING = re.compile(r".*-alert|devfreq-.*|.*cpufreq-.*|.*devfreq-.*|Processor|intel_powerclamp")
"""Cooling devices that take performance away; the others are fans and lamps."""

_OVER_CURRENT = {"oc1": "under-voltage (oc1)", "oc2": "average over-current (oc2)", "oc3": "peak over-current (oc3)"}
"""Jetson Linux Developer Guide, Platform Power and Performance: OC event counters of Orin and Thor."""


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


def machine_state(root: Path = ROOT) -> dict[str, Any]:
    """What may change from minute to minute and changes latencies; None is unavailable.

    Returns:
        `cpu_governor`; `cpu_mhz`, `gpu_mhz` and `emc_mhz` (the fastest of each kind, the GPU's and the memory's on a
        Jetson only); `temperature_c` (the hottest zone) and `temperatures_c` by zone; `throttled`, what takes
        performance away at this moment; `throttle_counts` since boot; `load_average_1min`.
    """
    clocks = {**read_all(cpu_clock_files(root), 1e3), **read_all(clock_files(root), 1e6)}
    cooling = cooling_files(root)
    temperatures = {name: value for name, value in read_all(zone_files(root), 1e3).items() if value > COLDEST_C}
    return {
        "cpu_governor": cpu_governor(root),
        **{f"{name.lower()}_mhz": clocks.get(name) for name in ("CPU", "GPU", "EMC")},
        "temperature_c": max(temperatures.values(), default=None),
        "temperatures_c": temperatures,
        "throttled": sorted(name for name, state in read_all(cooling).items() if state > 0) if cooling else None,
        "throttle_counts": {name: int(count) for name, count in read_all(count_files(root), of_several=sum).items()},
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


Files = Mapping[str, Sequence[Path]]
"""By name of a quantity: the files that hold it."""


def cpu_clock_files(root: Path = ROOT) -> Files:
    """`CPU`: the processors' clocks in kHz."""
    return _without_empty({"CPU": sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq"))})


def clock_files(root: Path = ROOT) -> Files:
    """`GPU` and `EMC` (memory): a Jetson's clocks in Hz; of several files the fastest counts."""
    devices = (root / "sys/class/devfreq").glob("*")
    return _without_empty(
        {
            "GPU": sorted(folder / "cur_freq" for folder in devices if _GPU_NAMES.search(folder.name)),
            "EMC": [root / path for path in _EMC_RATES if read_number(root / path) is not None][:1],
        }
    )


def zone_files(root: Path = ROOT) -> Files:
    """Temperatures in millidegrees by thermal zone, such as `tj` and `gpu`, without the kernel's suffix `-thermal`.

    The zone of a GPU that is switched off cannot be read (EAGAIN) until it is used.
    """
    zones: dict[str, Sequence[Path]] = {}
    for number, folder in _numbered(root, "thermal_zone"):
        name = (read_text(folder / "type") or folder.name).removesuffix("-thermal").removesuffix("-therm")
        zones[name if name not in zones else f"{name} {number}"] = [folder / "temp"]
    return zones


def cooling_files(root: Path = ROOT) -> Files:
    """Cooling devices that take performance away, by name; a state above 0 means that they do so now."""
    devices: dict[str, list[Path]] = {}
    for _, folder in _numbered(root, "cooling_device"):
        name = read_text(folder / "type")
        if name and _THROTTLING.fullmatch(name):
            devices.setdefault(name, []).append(folder / "cur_state")
    return devices


def count_files(root: Path = ROOT) -> Files:
    """Counters of throttling events since boot: a Jetson's over-current events, and Intel's thermal throttling.

    The latter are added up over the processors, so a core's event is counted once for each of its threads.
    """
    counters: dict[str, Sequence[Path]] = {}
    for path in sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt")):
        name = path.name.removesuffix("_event_cnt")
        counters[_OVER_CURRENT.get(name, name)] = [path]
    cpus = root / "sys/devices/system/cpu"
    for kind in ("core", "package"):
        paths = sorted(cpus.glob(f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count"))
        counters[f"processor {kind} too hot"] = paths
    return _without_empty(counters)


def _without_empty(files: Files) -> Files:
    return {name: paths for name, paths in files.items() if paths}


def read_all(
    files: Files, divisor: float = 1, *, of_several: Callable[[Iterable[float]], float] = max
) -> dict[str, float]:
    """Each quantity over `divisor`, of several files the largest; one that cannot be read now is left out."""
    quantities = {}
    for name, paths in files.items():
        values = [number for path in paths if (number := read_number(path)) is not None]
        if values:
            quantities[name] = of_several(values) / divisor
    return quantities


def read_number(path: Path) -> int | None:
    """The integer a file of `/sys` holds; None when it cannot be read or holds something else."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a third of the time of `Path.read_text`
    except OSError:
        return None
    try:
        return int(os.read(handle, 64))
    except (OSError, ValueError):
        return None
    finally:
        os.close(handle)


def _numbered(root: Path, kind: str) -> list[tuple[int, Path]]:
    """Folders of /sys/class/thermal by number: `cooling_device10` comes after `cooling_device2`."""
    folders = ((path.name.removeprefix(kind), path) for path in (root / "sys/class/thermal").glob(f"{kind}*"))
    return sorted((int(number), path) for number, path in folders if number.isdigit())


def peak_memory_bytes() -> int | None:
    """The largest resident size this process ever had; None where the kernel does not tell.

    Not `getrusage`: its figure survives `exec` and so includes the parent's size.
    """
    match = re.search(r"^VmHWM:\s*(\d+)", read_text(Path("/proc/self/status")) or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None
