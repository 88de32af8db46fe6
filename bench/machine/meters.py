"""Where power, clocks, temperatures and throttling of this machine can be read: one source for each, one small interface.

Which power meter is used, in this order:

- a Jetson: the INA3221 and INA238 chips under /sys/class/hwmon; where they cannot be read, `tegrastats`;
- device `cuda` elsewhere: NVML, which counts the energy of the whole GPU board, and of it alone;
- device `cpu` elsewhere: RAPL, which counts the energy of the processor packages and their memory.

NVML on a Jetson Orin initialises and then supports nothing: such a quantity is unavailable, with the reason, never 0.

What the total of a Jetson is (Jetson Linux Developer Guide, Platform Power and Performance; the device trees
tegra234-p3701.dtsi and tegra234-p3767.dtsi of the Linux kernel):

- Orin NX and Nano: `VDD_IN`, the module's input. VDD_CPU_GPU_CV and VDD_SOC are parts of it.
- AGX Orin: no rail is the module's input. Its three inputs are added: VDD_GPU_SOC and VDD_CPU_CV, from the high-voltage
  supply, and VIN_SYS_5V0, the 5 V supply. VDDQ_VDD2_1V8AO (memory) is drawn from the 5 V, where the chip measures it, and
  is left out. The carrier board is not in the total.
- Thor: `VIN` of the INA238 on the developer kit's carrier, so carrier and module together; on a carrier without one, the
  module's three inputs VDD_GPU, VDD_CPU_SOC_MSS and VIN_SYS_5V0. The two do not compare: results name the rail.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alexnet_edge.bench.machine import jetson
from alexnet_edge.bench.machine.state import (
    COLDEST_C,
    Files,
    clock_files,
    cooling_files,
    count_files,
    read_all,
    read_number,
    zone_files,
)
from alexnet_edge.bench.machine.tegrastats import TegrastatsLine, parse_line
from alexnet_edge.environment import ROOT, l4t_release
from alexnet_edge.errors import install_command

Kind = Literal["watts", "joules", "mhz", "celsius", "events", "throttled"]
"""Power now; energy since some moment; a clock; a temperature; events since boot; above 0 while it takes performance."""

INPUTS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VIN",),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
)
"""Rails that together are all that a Jetson draws, see the head of this file; the first that are all there count."""

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

    @abstractmethod
    def read(self) -> Reading | None:
        """What it says now, or said last; None when it has said nothing yet."""

    def close(self) -> None:
        """Give back what it holds."""


class UnavailableError(Exception):
    """A source that cannot be used here; the message is the reason in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meters:
    """What can be read on this machine for one device."""

    power: Source | None
    """Measures power or energy; it may be one of `sources` that tells more than that."""
    rails: tuple[str, ...] = ()
    """Channels of `power` whose sum is the total."""
    reason: str = ""
    """Why there is no power meter; empty when there is one."""
    sources: tuple[Source, ...] = ()
    """All of them, `power` too."""
    root: Path = field(default=ROOT)
    device: str = "cpu"

    @property
    def name(self) -> str | None:
        """The power meter's."""
        return None if self.power is None else self.power.name

    @property
    def rail(self) -> str | None:
        """What the total covers, such as `VDD_IN` or `package-0 + package-1`."""
        return " + ".join(self.rails) or None

    def close(self) -> None:
        for source in self.sources:
            source.close()


def find_meters(
    *,
    root: Path = ROOT,
    device: str = "cpu",
    path: str | None = None,
    load_nvml: Callable[[], Any] | None = None,
    interval_s: float = 0.1,
) -> Meters:
    """What this machine lets us read; nothing is raised: what is missing has its reason in the result.

    Args:
        root: folder in which `/sys`, `/proc` and `/etc` are looked for. NVML is this machine's own and is asked only for
            the root of the file system, or with `load_nvml`.
        device: `cpu` or `cuda`, what is measured.
        path: where `tegrastats` is looked up; by default `PATH`.
        load_nvml: returns the module `pynvml`, or raises `UnavailableError`.
        interval_s: how often `tegrastats` is to print.
    """
    sources: list[Source] = [SysfsSensors(root), SysfsSensors(root, slow=True)]
    sources = [source for source in sources if source.channels]  # type: ignore[attr-defined]
    why: list[str] = []
    power: Source | None = None
    rails: tuple[str, ...] = ()

    def use(make: Callable[[], tuple[Source, tuple[str, ...]]]) -> None:
        nonlocal power, rails
        try:
            power, rails = make()
        except UnavailableError as error:
            why.append(str(error))
        else:
            sources.append(power)

    use(lambda: _hwmon(root))
    if power is None and l4t_release(root) is not None:
        use(lambda: _tegrastats(path, interval_s))
    elif power is None and device == "cpu":
        use(lambda: _rapl(root))
    elif power is None:
        load = load_nvml or (_load_nvml if root == ROOT else _no_nvml)
        try:
            gpu = Nvml(load())
        except UnavailableError as error:
            why.append(str(error))
        else:
            sources.append(gpu)
            power, rails = (gpu, gpu.rails) if gpu.rails else (None, ())
            why += [gpu.reason] if gpu.reason else []
    return Meters(
        power=power,
        rails=rails,
        reason="" if power is not None else "no power meter: " + "; ".join(why),
        sources=tuple(sources),
        root=root,
        device=device,
    )


def total_of(rails: Sequence[str]) -> tuple[str, ...]:
    """Which of a Jetson's rails add up to its total; none when it is not known."""
    return next((inputs for inputs in INPUTS if set(inputs) <= set(rails)), ())


# --- files of /sys ------------------------------------------------------------------------------------------------------


class SysfsSensors(Source):
    """Clocks, temperatures and throttling that the kernel tells.

    The quick part has temperatures, the GPU's and memory's clocks and the cooling devices; the slow part, read every
    `SLOW` times, the processors' clocks and counters of events.
    """

    def __init__(self, root: Path = ROOT, *, slow: bool = False) -> None:
        self.name = "sysfs, slow" if slow else "sysfs"
        clocks = clock_files(root)
        groups: tuple[tuple[Kind, Files, float], ...]
        if slow:
            groups = (
                ("mhz", {name: files for name, files in clocks.items() if name == "CPU"}, 1e6),
                ("events", count_files(root), 1),
            )
        else:
            groups = (
                ("mhz", {name: files for name, files in clocks.items() if name != "CPU"}, 1e6),
                ("celsius", zone_files(root), 1e3),
                ("throttled", cooling_files(root), 1),
            )
        self._groups = groups
        self.every = SLOW if slow else 1

    @property
    def channels(self) -> tuple[Channel, ...]:
        return tuple(Channel(kind, name) for kind, files, _ in self._groups for name in files)

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
        self._rails: dict[str, tuple[Path, ...]] = {}
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            if _text(folder / "name").lower().startswith("ina"):
                self._add(folder)

    def _add(self, folder: Path) -> None:
        labels = {path.name[2 : -len("_label")]: _text(path) for path in sorted(folder.glob("in*_label"))}
        if not labels and (name := _text(folder / "label")):
            labels = {"1": name}  # a chip of one channel
        for number, name in labels.items():
            power, volts = folder / f"power{number}_input", folder / f"in{number}_input"
            current = folder / f"curr{number}_input"
            if name and name != "NC" and (power.exists() or (volts.exists() and current.exists())):
                self._rails[name] = (power,) if power.exists() else (volts, current)

    @property
    def rails(self) -> tuple[str, ...]:
        return tuple(self._rails)

    def read(self) -> Reading:
        at_ns = time.perf_counter_ns()
        watts: dict[Channel, float] = {}
        for name, files in self._rails.items():
            product = 1e-6
            for path in files:
                number = read_number(path)
                if number is None:
                    break
                product *= number
            else:
                watts[Channel("watts", name)] = product
        return at_ns, watts


def _hwmon(root: Path) -> tuple[Source, tuple[str, ...]]:
    meter = Hwmon(root)
    if not meter.rails:
        raise UnavailableError("no INA power monitor under /sys/class/hwmon")
    rails = total_of(meter.rails)
    if not rails:
        raise UnavailableError(f"which of the rails {', '.join(meter.rails)} is the total is not known")
    if not {Channel("watts", name) for name in rails} <= meter.read()[1].keys():
        raise UnavailableError(f"the rails {', '.join(rails)} cannot be read")
    return meter, rails


class Rapl(Source):
    """Energy counters of the processor packages (Documentation/power/powercap/powercap.rst), and of their memory.

    A counter starts again from 0 after `max_energy_range_uj`, every few minutes under load; that is undone as long as
    it is read more often than that. Kernels since 5.10 let root alone read it (CVE-2020-8694).
    """

    name = "RAPL"

    def __init__(self, root: Path = ROOT) -> None:
        self._domains: dict[str, Path] = {}
        self._last: dict[str, tuple[int, int]] = {}
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            name = _text(folder / "name")
            if folder.name.count(":") == 2:  # a part of a package
                name = f"{_text((root / 'sys/class/powercap' / folder.name.rpartition(':')[0]) / 'name')} {name}"
            if name:
                self._domains[name] = folder

    @property
    def rails(self) -> tuple[str, ...]:
        """Packages and their memory; core and uncore are parts of a package, and psys holds all of them."""
        return tuple(
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


def _rapl(root: Path) -> tuple[Source, tuple[str, ...]]:
    meter = Rapl(root)
    if not meter.rails:
        raise UnavailableError("the kernel has no RAPL counter under /sys/class/powercap")
    if not {Channel("joules", name) for name in meter.rails} <= meter.read()[1].keys():
        raise UnavailableError("RAPL's energy_uj is readable for root only")
    return meter, meter.rails


# --- NVML ---------------------------------------------------------------------------------------------------------------

SLOWDOWNS = {
    0x04: "power cap (software)",
    0x08: "slowdown (hardware)",
    0x20: "too hot (software)",
    0x40: "too hot (hardware)",
    0x80: "power brake (hardware)",
    0x200: "board limit",
    0x400: "reliability",
}
"""NVML's clocks event reasons that take performance away, by bit. Idle, application clocks, sync boost and display clock
are settings and states, and are not among them."""


class Nvml(Source):
    """One GPU through NVML: energy or power, clocks, temperature and what holds its clocks down.

    Each quantity is asked for once at the start, and is a channel only where that works.
    """

    name = "NVML"

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._ended = False
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise UnavailableError(f"NVML does not start ({error})") from error
        try:
            self._gpu = _the_gpu(nvml)
            name = nvml.nvmlDeviceGetName(self._gpu)
        except (nvml.NVMLError, UnavailableError) as error:
            self.close()
            raise UnavailableError(f"NVML: {error}") from error
        name = name.decode() if isinstance(name, bytes) else name
        energy = Channel("joules", "GPU board")
        power = Channel("watts", "GPU board")
        ways: dict[Channel, Callable[[], float]] = {
            energy: lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3,
            power: lambda: nvml.nvmlDeviceGetPowerUsage(self._gpu) / 1e3,
            Channel("mhz", "GPU"): lambda: nvml.nvmlDeviceGetClockInfo(self._gpu, nvml.NVML_CLOCK_SM),
            Channel("mhz", "GPU memory"): lambda: nvml.nvmlDeviceGetClockInfo(self._gpu, nvml.NVML_CLOCK_MEM),
            Channel("celsius", "gpu"): lambda: nvml.nvmlDeviceGetTemperature(self._gpu, nvml.NVML_TEMPERATURE_GPU),
        }
        self._ways = {channel: way for channel, way in ways.items() if self._try(way) is not None}
        if energy in self._ways:
            self._ways.pop(power, None)
        self._reasons = self._find_reasons()
        self.rails: tuple[str, ...] = ("GPU board",) if {energy, power} & self._ways.keys() else ()
        self.reason = "" if self.rails else f"NVML supports neither energy nor power on {name}"

    def _find_reasons(self) -> Callable[[], int] | None:
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            ask = getattr(self._nvml, name, None)
            if ask is not None and self._try(lambda ask=ask: ask(self._gpu)) is not None:  # type: ignore[misc]
                return lambda ask=ask: int(ask(self._gpu))  # type: ignore[misc]
        return None

    def _try(self, way: Callable[[], float]) -> float | None:
        try:
            return way()
        except self._nvml.NVMLError:
            return None

    def read(self) -> Reading:
        at_ns = time.perf_counter_ns()
        values = {channel: float(value) for channel, way in self._ways.items() if (value := self._try(way)) is not None}
        bits = self._try(self._reasons) if self._reasons is not None else None
        if bits is not None:
            for bit, reason in SLOWDOWNS.items():
                values[Channel("throttled", f"GPU {reason}")] = float(bool(int(bits) & bit))
        return at_ns, values

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return


def _the_gpu(nvml: Any) -> Any:
    """The GPU that CUDA calls 0. NVML counts them in another order, and knows nothing of CUDA_VISIBLE_DEVICES."""
    count = nvml.nvmlDeviceGetCount()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if count == 0:
        raise UnavailableError("no GPU")
    if chosen.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(chosen)
    if count == 1:
        return nvml.nvmlDeviceGetHandleByIndex(0)
    if chosen.isdigit() and os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return nvml.nvmlDeviceGetHandleByIndex(int(chosen))
    raise UnavailableError(
        f"which of {count} GPUs is measured is not known: set CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES"
    )


def _load_nvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise UnavailableError(f"nvidia-ml-py is not installed ({install_command('bench')})") from error


def _no_nvml() -> Any:
    raise UnavailableError("NVML is not asked about another root")


# --- tegrastats, live ---------------------------------------------------------------------------------------------------


class Tegrastats(Source):
    """A running `tegrastats`, each line stamped when it arrives, which is up to one interval after its sensors were read."""

    name = "tegrastats"

    def __init__(self, tool: str, *, interval_s: float) -> None:
        command = [tool, "--interval", str(max(1, round(interval_s * 1e3)))]
        try:
            self._process = subprocess.Popen(
                command,
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
    return {
        **{Channel("watts", name): value for name, value in line.watts.items()},
        **{Channel("mhz", name): value for name, value in line.clocks_mhz.items()},
        **{Channel("celsius", name): value for name, value in line.temperatures_c.items()},
    }


def _tegrastats(path: str | None, interval_s: float) -> tuple[Source, tuple[str, ...]]:
    tool = jetson.find_tool("tegrastats", path)
    if tool is None:
        raise UnavailableError("tegrastats is not on PATH")
    meter = Tegrastats(tool, interval_s=interval_s)
    first = meter.read()
    named = [channel.name for channel in first[1] if channel.kind == "watts"] if first is not None else []
    rails = total_of(named)
    if not rails:
        meter.close()
        raise UnavailableError(
            "tegrastats prints no line"
            if first is None
            else f"which of the rails {', '.join(named) or '(none)'} of tegrastats is the total is not known"
        )
    return meter, rails


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
