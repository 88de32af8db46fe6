"""One GPU through NVML: energy or power, clocks, temperature, and what slows its clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from alexnet_edge.bench.machine.sources import Channel, Reading, Source, UnavailableError

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

    Each quantity is read once at the start, and is a channel only where that works.
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
        energy, power = Channel("joules", "GPU board"), Channel("watts", "GPU board")
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
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        asks = [partial(ask, self._gpu) for name in names if (ask := getattr(nvml, name, None)) is not None]
        self._slowdown_bits = next((ask for ask in asks if self._try(ask) is not None), None)
        self.rails = ("GPU board",) if {energy, power} & self._ways.keys() else ()
        self.reason = "" if self.rails else f"NVML supports neither energy nor power on {name}"

    def _try(self, way: Callable[[], float]) -> float | None:
        try:
            return way()
        except self._nvml.NVMLError:
            return None

    def read(self) -> Reading:
        at_ns = time.perf_counter_ns()
        values = {channel: float(value) for channel, way in self._ways.items() if (value := self._try(way)) is not None}
        bits = None if self._slowdown_bits is None else self._try(self._slowdown_bits)
        if bits is not None:
            for bit, reason in SLOWDOWNS.items():
                values[Channel("throttled", f"GPU {reason}")] = float(bool(int(bits) & bit))
        return at_ns, values

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()


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
