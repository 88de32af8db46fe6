"""What can be read again and again: the kernel's sensors, INA chips, RAPL counters, and a running tegrastats."""

from __future__ import annotations

import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from alexnet_edge.bench.machine.state import (
    COLDEST_C,
    Files,
    clock_files,
    cooling_files,
    count_files,
    cpu_clock_files,
    read_all,
    read_number,
    zone_files,
)
from alexnet_edge.bench.machine.tegrastats import TegrastatsLine, parse_line
from alexnet_edge.environment import ROOT, read_text

Kind = Literal["watts", "joules", "mhz", "celsius", "events", "throttled"]
"""Power now; energy since some moment; a clock; a temperature; events since boot; above 0 while it takes performance."""
SLOW = 5
"""Clocks of processors and counters of events, of which a server has hundreds, are read every so many times."""
_FIRST_LINE_S = 3.0
"""How long to wait for the first line of tegrastats, which prints one per interval."""


class Channel(NamedTuple):
    """One quantity of a source."""

    kind: Kind
    name: str


Reading = tuple[int, Mapping[Channel, float]]
"""When (`perf_counter_ns`) and what. A channel that could not be read this time is left out."""


class Source(ABC):
    """Something to read again and again; `close` ends it."""

    name: str
    every: int = 1
    """It is read every so many times only."""
    rails: tuple[str, ...] = ()
    """Channels of power or energy; of NVML and RAPL those whose sum is the total."""
    reason: str = ""
    """Why it measures neither."""

    @abstractmethod
    def read(self) -> Reading | None:
        """The present or the last reading; None before the first."""

    def close(self) -> None:
        """Give back what it holds."""


class UnavailableError(Exception):
    """A source that cannot be used here; the message is the reason in words."""


class SysfsSensors(Source):
    """Clocks, temperatures and throttling in the kernel's files.

    The quick part has temperatures, the GPU's and memory's clocks and the cooling devices; the slow part, read every
    `SLOW` times, the processors' clocks and counters of events.
    """

    def __init__(self, root: Path = ROOT, *, slow: bool = False) -> None:
        self.name = "sysfs, slow" if slow else "sysfs"
        self.every = SLOW if slow else 1
        self._groups: tuple[tuple[Kind, Files, float], ...]
        if slow:
            self._groups = (("mhz", cpu_clock_files(root), 1e3), ("events", count_files(root), 1))
        else:
            self._groups = (
                ("mhz", clock_files(root), 1e6),
                ("celsius", zone_files(root), 1e3),
                ("throttled", cooling_files(root), 1),
            )
        self.has_files = any(files for _, files, _ in self._groups)

    def read(self) -> Reading:
        at_ns = time.perf_counter_ns()
        readings: dict[Channel, float] = {}
        for kind, files, divisor in self._groups:
            values = read_all(files, divisor, of_several=sum if kind == "events" else max)
            readings.update((Channel(kind, name), value) for name, value in values.items())
        return at_ns, {key: value for key, value in readings.items() if key.kind != "celsius" or value > COLDEST_C}


class Hwmon(Source):
    """The rails that INA3221 and INA238 chips measure (Documentation/hwmon/ina3221.rst and ina238.rst).

    A rail is a labelled channel with a current: `in7_label`, "sum of shunt voltages", and unlabelled channels are none.
    Power is `power{n}_input` (uW) where the chip has it, and else `in{n}_input` (mV) times `curr{n}_input` (mA).
    """

    name = "INA (hwmon)"

    def __init__(self, root: Path = ROOT) -> None:
        self._factors: dict[str, tuple[Path, ...]] = {}
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            if (read_text(folder / "name") or "").lower().startswith("ina"):
                self._add(folder)
        self.rails = tuple(self._factors)

    def _add(self, folder: Path) -> None:
        labels = {path.name[2 : -len("_label")]: read_text(path) for path in sorted(folder.glob("in*_label"))}
        if not labels and (name := read_text(folder / "label")):
            labels = {"1": name}  # a chip of one channel
        for number, name in labels.items():
            power, volts, amperes = (folder / f"{kind}{number}_input" for kind in ("power", "in", "curr"))
            if name and name != "NC" and (power.exists() or (volts.exists() and amperes.exists())):
                self._factors[name] = (power,) if power.exists() else (volts, amperes)

    def read(self) -> Reading:
        at_ns = time.perf_counter_ns()
        watts: dict[Channel, float] = {}
        for name, files in self._factors.items():
            product = 1e-6
            for path in files:
                number = read_number(path)
                if number is None:
                    break
                product *= number
            else:
                watts[Channel("watts", name)] = product
        return at_ns, watts


class Rapl(Source):
    """Energy counters of the processor packages (Documentation/power/powercap/powercap.rst), and of their memory.

    A counter starts again from 0 after `max_energy_range_uj`, every few minutes under load; that is undone as long as
    it is read more often than that. Kernels since 5.10 let root alone read it (CVE-2020-8694).

    The rails are packages and their memory; core and uncore are parts of a package, and psys holds all of them.
    """

    name = "RAPL"

    def __init__(self, root: Path = ROOT) -> None:
        self._domains: dict[str, Path] = {}
        self._last: dict[str, tuple[int, int]] = {}
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            name = read_text(folder / "name")
            if folder.name.count(":") == 2:  # a part of a package
                name = f"{read_text((root / 'sys/class/powercap' / folder.name.rpartition(':')[0]) / 'name')} {name}"
            if name:
                self._domains[name] = folder
        self.rails = tuple(
            name
            for name in self._domains
            if (name.startswith("package") and " " not in name) or name.endswith(" dram") or name == "dram"
        )

    def read(self) -> Reading:
        at_ns = time.perf_counter_ns()
        joules = {}
        for name, folder in self._domains.items():
            now = read_number(folder / "energy_uj")
            if now is None:
                continue
            before, total = self._last.get(name, (now, 0))
            step = now - before
            if step < 0:
                step += read_number(folder / "max_energy_range_uj") or 0
            self._last[name] = (now, total + step)
            joules[Channel("joules", name)] = (total + step) / 1e6
        return at_ns, joules


class Tegrastats(Source):
    """A running `tegrastats`, each line stamped when it arrives, which is up to one interval after its sensors were read."""

    name = "tegrastats"

    def __init__(self, tool: str, *, interval_s: float) -> None:
        try:
            self._process = subprocess.Popen(
                [tool, "--interval", str(max(1, round(interval_s * 1e3)))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError(f"tegrastats does not start ({error.strerror})") from error
        self._last: Reading | None = None
        self._first = threading.Event()
        self._reader = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._reader.start()
        self._first.wait(_FIRST_LINE_S + interval_s)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            at_ns = time.perf_counter_ns()
            line = parse_line(text)
            if line is not None:
                self._last = (at_ns, channels_of(line))
                self._first.set()
        self._first.set()

    def read(self) -> Reading | None:
        return self._last

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=2)
        assert self._process.stdout is not None
        self._process.stdout.close()


def channels_of(line: TegrastatsLine) -> dict[Channel, float]:
    """A line of tegrastats as a reading's channels."""
    kinds: dict[Kind, Mapping[str, float]] = {
        "watts": line.watts,
        "mhz": line.clocks_mhz,
        "celsius": line.temperatures_c,
    }
    return {Channel(kind, name): value for kind, values in kinds.items() for name, value in values.items()}
