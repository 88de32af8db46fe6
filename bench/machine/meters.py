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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alexnet_edge.bench.machine import jetson
from alexnet_edge.bench.machine.nvml import Nvml
from alexnet_edge.bench.machine.sources import Channel, Hwmon, Rapl, Source, SysfsSensors, Tegrastats, UnavailableError
from alexnet_edge.environment import ROOT, l4t_release
from alexnet_edge.errors import install_command

INPUTS: tuple[tuple[str, ...], ...] = (
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VIN",),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
)
"""Rails that together are all that a Jetson draws, see the head of this file; the first that are all there count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meters:
    """What can be read on this machine for one device."""

    power: Source | None
    """Measures power or energy; it may be one of `sources` with more channels than that."""
    rails: tuple[str, ...] = ()
    """Channels of `power` whose sum is the total."""
    reason: str = ""
    """Why there is no power meter; empty when there is one."""
    sources: tuple[Source, ...] = ()
    """All of them, `power` too."""
    root: Path = ROOT

    @property
    def name(self) -> str | None:
        """The power meter's."""
        return None if self.power is None else self.power.name

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

    `/sys`, `/proc` and `/etc` are looked for in `root`. NVML is this machine's own and is asked only for the root of the file
    system, or with `load_nvml`, which returns the module `pynvml` or raises `UnavailableError`. `device` is what is measured.
    `tegrastats` is looked up in `path`, by default `PATH`, and prints every `interval_s`.
    """
    sources: list[Source] = [sensors for slow in (False, True) if (sensors := SysfsSensors(root, slow=slow)).has_files]
    other: Callable[[], _Meter]
    if l4t_release(root) is not None:
        other = partial(_tegrastats, path, interval_s)
    else:
        other = partial(_rapl, root) if device == "cpu" else partial(_nvml, root, load_nvml)
    reasons: list[str] = []
    for find in (partial(_hwmon, root), other):
        try:
            source, rails = find()
        except UnavailableError as error:
            reasons.append(str(error))
            continue
        sources.append(source)
        if rails:
            return Meters(power=source, rails=rails, sources=tuple(sources), root=root)
        reasons.append(source.reason)
    return Meters(power=None, reason="no power meter: " + "; ".join(reasons), sources=tuple(sources), root=root)


def total_of(rails: Iterable[str]) -> tuple[str, ...]:
    """Which of a Jetson's rails add up to its total; none when it is not known."""
    return next((inputs for inputs in INPUTS if set(inputs) <= set(rails)), ())


_Meter = tuple[Source, tuple[str, ...]]
"""A source, and its rails that add up to the total; none where it measures neither power nor energy."""


def _hwmon(root: Path) -> _Meter:
    meter = Hwmon(root)
    if not meter.rails:
        raise UnavailableError("no INA power monitor under /sys/class/hwmon")
    rails = total_of(meter.rails)
    if not rails:
        raise UnavailableError(f"which of the rails {', '.join(meter.rails)} is the total is not known")
    if not {Channel("watts", name) for name in rails} <= meter.read()[1].keys():
        raise UnavailableError(f"the rails {', '.join(rails)} cannot be read")
    return meter, rails


def _rapl(root: Path) -> _Meter:
    meter = Rapl(root)
    if not meter.rails:
        raise UnavailableError("the kernel has no RAPL counter under /sys/class/powercap")
    if not {Channel("joules", name) for name in meter.rails} <= meter.read()[1].keys():
        raise UnavailableError("RAPL's energy_uj is readable for root only")
    return meter, meter.rails


def _nvml(root: Path, load: Callable[[], Any] | None) -> _Meter:
    if load is None and root != ROOT:
        raise UnavailableError("NVML is not asked about another root")
    try:
        gpu = Nvml(importlib.import_module("pynvml") if load is None else load())
    except ModuleNotFoundError as error:
        raise UnavailableError(f"nvidia-ml-py is not installed ({install_command('bench')})") from error
    return gpu, gpu.rails


def _tegrastats(path: str | None, interval_s: float) -> _Meter:
    tool = jetson.find_tool("tegrastats", path)
    if tool is None:
        raise UnavailableError("tegrastats is not on PATH")
    meter = Tegrastats(tool, interval_s=interval_s)
    first = meter.read()
    named = [channel.name for channel in first[1] if channel.kind == "watts"] if first is not None else []
    rails = total_of(named)
    if rails:
        return meter, rails
    meter.close()
    if first is None:
        raise UnavailableError("tegrastats prints no line")
    raise UnavailableError(f"which of the rails {', '.join(named) or '(none)'} of tegrastats is the total is not known")
