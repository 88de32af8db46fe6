"""What is read from recorded and constructed machines, and what is concluded from it; no hardware is needed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from machine_tree import DATA, Tools, grow

from alexnet_edge import records
from alexnet_edge.bench.machine import sources
from alexnet_edge.bench.machine.jetson import PowerMode, describe_power, parse_mode, parse_modes
from alexnet_edge.bench.machine.meters import Meters, find_meters, total_of
from alexnet_edge.bench.machine.power import Clock, PowerWindow, Recorder, window_of
from alexnet_edge.bench.machine.recorded_log import tegrastats_window
from alexnet_edge.bench.machine.sources import Channel, Source
from alexnet_edge.bench.machine.state import machine_state
from alexnet_edge.bench.machine.tegrastats import parse_line, read_log
from alexnet_edge.bench.machine.thermal import energy_of, thermal_reasons
from alexnet_edge.errors import UserError

SECOND = 1_000_000_000


def reading_of(meters: Meters) -> Mapping[Channel, float]:
    assert meters.power is not None
    reading = meters.power.read()
    assert reading is not None
    return reading[1]


def watts_now(meters: Meters) -> dict[str, float]:
    return {name: value for (kind, name), value in reading_of(meters).items() if kind == "watts"}


def unreadable(file: Path) -> None:
    """It is there, and cannot be read."""
    file.unlink()
    file.mkdir()


def test_agx_orin_adds_its_three_inputs_and_not_the_memory_behind_one_of_them(tmp_path: Path) -> None:
    meters = find_meters(root=grow("agx-orin", tmp_path), device="cuda")
    assert meters.name == "INA (hwmon)"
    assert meters.rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    volts = {"VDD_GPU_SOC": 19.760, "VDD_CPU_CV": 19.760, "VIN_SYS_5V0": 4.968, "VDDQ_VDD2_1V8AO": 4.968}
    amperes = {"VDD_GPU_SOC": 0.280, "VDD_CPU_CV": 0.120, "VIN_SYS_5V0": 0.953, "VDDQ_VDD2_1V8AO": 0.080}
    assert watts_now(meters) == pytest.approx({name: volts[name] * amperes[name] for name in volts})


def test_orin_nano_has_its_total_on_one_rail(tmp_path: Path) -> None:
    meters = find_meters(root=grow("orin-nano", tmp_path), device="cpu")
    assert meters.rails == ("VDD_IN",)
    assert watts_now(meters)["VDD_IN"] == pytest.approx(4.984 * 1.856)


def test_thor_takes_the_carriers_input_and_else_the_modules_three(tmp_path: Path) -> None:
    root = grow("thor", tmp_path)
    meters = find_meters(root=root, device="cuda")
    assert meters.rails == ("VIN",)
    assert watts_now(meters)["VIN"] == pytest.approx(29.8)  # power1_input, although voltage and current are there too
    assert set(watts_now(meters)) == {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"}
    (root / "sys/class/hwmon/hwmon6/name").write_text("nvme\n")
    assert find_meters(root=root, device="cuda").rails == ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")


def test_rails_of_an_unknown_board_are_not_added_up(tmp_path: Path) -> None:
    root = grow("orin-nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/in1_label").write_text("VDD_NEW\n")
    meters = find_meters(root=root, device="cuda", path=str(tmp_path))
    assert (meters.power, meters.rails) == (None, ())
    assert "which of the rails VDD_NEW, VDD_CPU_GPU_CV, VDD_SOC is the total is not known" in meters.reason
    assert "tegrastats is not on PATH" in meters.reason
    assert total_of(["VDD_GPU_SOC", "VDD_CPU_CV"]) == ()


@pytest.mark.parametrize(
    ("machine", "device", "file", "reason"),
    [
        ("orin-nano", "cuda", "hwmon/hwmon1/curr1_input", "the rails VDD_IN cannot be read"),
        ("x86", "cpu", "powercap/intel-rapl:1/energy_uj", "RAPL's energy_uj is readable for root only"),
    ],
)
def test_a_rail_that_cannot_be_read_is_unavailable_and_not_zero(
    tmp_path: Path, machine: str, device: str, file: str, reason: str
) -> None:
    root = grow(machine, tmp_path)
    unreadable(root / "sys/class" / file)
    meters = find_meters(root=root, device=device, path=str(tmp_path))
    assert meters.power is None
    assert reason in meters.reason
    assert meters.sources  # clocks and temperatures are read all the same


def test_rapl_adds_packages_and_memory_and_undoes_the_counters_restart(tmp_path: Path) -> None:
    root = grow("x86", tmp_path)
    meters = find_meters(root=root, device="cpu")
    assert meters.name == "RAPL"
    assert meters.rails == ("package-0", "package-0 dram", "package-1", "package-1 dram")
    joules = [reading_of(meters)[Channel("joules", "package-0")]]
    for counter in (671150, 1671150):  # after 262143328850 comes 0
        (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text(f"{counter}\n")
        joules.append(reading_of(meters)[Channel("joules", "package-0")])
    assert np.diff(joules) == pytest.approx([1.0, 1.0])


def test_a_machine_that_tells_nothing_has_reasons_and_no_sources(tmp_path: Path) -> None:
    meters = find_meters(root=tmp_path, device="cpu")
    assert meters.sources == ()
    assert meters.reason.startswith(
        "no power meter: no INA power monitor under /sys/class/hwmon; the kernel has no RAPL"
    )
    with Recorder(meters, interval_s=0.01) as recorder:
        idle = recorder.idle(0.05)
    assert idle.watts is None
    assert idle.reasons == (meters.reason,)
    assert (idle.clocks, idle.temperatures_c, idle.throttled) == ({}, {}, ())


class NVMLError(Exception):
    pass


def fake_nvml(**supported: Any) -> Any:
    """The module `pynvml` with one or more GPUs; a function that is not given raises "Not Supported"."""

    def ask(name: str) -> Any:
        def function(*_: Any) -> Any:
            if name not in supported:
                raise NVMLError("Not Supported")
            return supported[name]

        return function

    calls = {"init": 0, "shutdown": 0}
    functions = (
        *("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetClockInfo"),
        *("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksEventReasons"),
    )
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        calls=calls,
        nvmlInit=lambda: calls.update(init=calls["init"] + 1),
        nvmlShutdown=lambda: calls.update(shutdown=calls["shutdown"] + 1),
        nvmlDeviceGetCount=lambda: supported.get("count", 1),
        nvmlDeviceGetHandleByIndex=lambda index: ("GPU", index),
        nvmlDeviceGetHandleByUUID=lambda uuid: ("GPU", uuid),
        nvmlDeviceGetName=lambda _: "Orin (nvgpu)",
        **{name: ask(name) for name in functions},
    )


def nvml_meters(root: Path, module: Any) -> Meters:
    return find_meters(root=root, device="cuda", load_nvml=lambda: module)


def test_nvml_counts_energy_where_it_can(tmp_path: Path) -> None:
    module = fake_nvml(
        nvmlDeviceGetTotalEnergyConsumption=123_456,
        nvmlDeviceGetPowerUsage=70_000,
        nvmlDeviceGetClockInfo=1980,
        nvmlDeviceGetTemperature=41,
        nvmlDeviceGetCurrentClocksEventReasons=0x1 | 0x40,
    )
    meters = nvml_meters(tmp_path, module)
    assert (meters.name, meters.rails) == ("NVML", ("GPU board",))
    reading = reading_of(meters)
    assert reading[Channel("joules", "GPU board")] == 123.456
    assert Channel("watts", "GPU board") not in reading
    assert reading[Channel("mhz", "GPU")] == 1980
    assert reading[Channel("celsius", "gpu")] == 41
    throttled = {name for (kind, name), value in reading.items() if kind == "throttled" and value}
    assert throttled == {"GPU too hot (hardware)"}  # that it was idle is no throttling
    meters.close()
    meters.close()
    assert module.calls == {"init": 1, "shutdown": 1}


def test_nvml_without_a_counter_gives_power(tmp_path: Path) -> None:
    meters = nvml_meters(tmp_path, fake_nvml(nvmlDeviceGetPowerUsage=70_250))
    assert watts_now(meters) == {"GPU board": 70.25}


def test_nvml_of_an_orin_starts_and_supports_nothing(tmp_path: Path) -> None:
    meters = nvml_meters(tmp_path, fake_nvml())
    assert meters.power is None
    assert meters.rails == ()
    assert "NVML supports neither energy nor power on Orin (nvgpu)" in meters.reason
    assert [source.read()[1] for source in meters.sources if source.name == "NVML"] == [{}]  # type: ignore[index]


def test_which_of_several_gpus_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml(count=2, nvmlDeviceGetPowerUsage=1000)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "which of 2 GPUs is measured is not known" in nvml_meters(tmp_path, module).reason
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert nvml_meters(tmp_path, module).power is None  # CUDA counts the fastest first
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert nvml_meters(tmp_path, module).power is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert nvml_meters(tmp_path, module).power is not None


def test_nvml_that_is_not_there(tmp_path: Path) -> None:
    module = fake_nvml()

    def fail() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    module.nvmlInit = fail
    assert "NVML does not start (NVML Shared Library Not Found)" in nvml_meters(tmp_path, module).reason

    def missing() -> None:
        raise ModuleNotFoundError("pynvml")

    meters = find_meters(root=tmp_path, device="cuda", load_nvml=missing)
    assert "nvidia-ml-py is not installed" in meters.reason
    assert "alexnet-edge[bench]" in meters.reason


@pytest.mark.parametrize(("log", "expected"), json.loads((DATA / "first-lines.json").read_text()).items())
def test_recorded_lines(log: str, expected: dict[str, Any]) -> None:
    """A GPU that is switched off has no clock and no temperature; some boards do not tell its load."""
    line = read_log(DATA / f"{log}.log")[0]
    assert line.watts == pytest.approx(expected["watts"])
    assert line.clocks_mhz == expected["clocks_mhz"]
    assert line.gpu_percent == expected["gpu_percent"]
    assert max(line.temperatures_c.items(), key=lambda item: item[1]) == tuple(expected["hottest"])
    assert line.date is not None
    assert total_of(line.watts)


def test_dates_and_number_of_lines() -> None:
    lines = read_log(DATA / "agx-orin-36.4.log")
    assert [line.date for line in lines] == [datetime(2026, 5, 9, 18, 42, second) for second in (6, 7, 8)]


def test_lines_of_other_boards_and_other_lines() -> None:
    xavier = parse_line(
        "RAM 2673/7765MB (lfb 118x4MB) CPU [12%@1190,off] EMC_FREQ 7% GR3D_FREQ 33%@918 VDD_IN 3902/3611"
    )
    assert xavier is not None
    assert xavier.watts == {"VDD_IN": 3.902}
    assert xavier.clocks_mhz == {"CPU": 1190, "GPU": 918}
    off = parse_line("RAM 1/2MB (lfb 1x4MB) CPU [off,off] GR3D_FREQ 0%@[0] GPU@-256C VDD_GPU -392mW/-392mW")
    assert off is not None
    assert off.temperatures_c == {}
    assert off.clocks_mhz == {}
    assert off.watts == {"VDD_GPU": -0.392}  # an offset of the sensor, as printed
    for other in ("", "tegrastats: command not meters", "RAM 1/2MB"):
        assert parse_line(other) is None


def test_a_log_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the tegrastats log"):
        read_log(tmp_path / "none.log")
    (tmp_path / "other.log").write_text("hello\n")
    with pytest.raises(UserError, match="no line of tegrastats in it"):
        read_log(tmp_path / "other.log")


@pytest.fixture
def tegrastats(tmp_path: Path) -> Callable[[str], Meters]:
    """What is read of an Orin Nano whose rails are not readable, where tegrastats prints this text again and again."""
    root = grow("orin-nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/name").unlink()
    tools = Tools(tmp_path / "tools", only=("tegrastats",))

    def find(text: str) -> Meters:
        tools.set("tegrastats.log", text)
        return find_meters(root=root, device="cuda", path=tools.path, interval_s=0.01)

    return find


def test_live_tegrastats_where_the_rails_are_not_readable(tegrastats: Callable[[str], Meters]) -> None:
    meters = tegrastats((DATA / "orin-nano-39.2.log").read_text().strip())
    assert (meters.name, meters.rails) == ("tegrastats", ("VDD_IN",))
    with Recorder(meters, interval_s=0.005) as recorder:
        window = recorder.idle(0.4)
        process = meters.power._process  # type: ignore[union-attr]
    assert process.poll() is not None  # ended with the recorder
    assert window.watts == pytest.approx((3.582 + 3 * 3.462) / 4, rel=0.02)
    assert 10 <= window.samples <= 45  # a line is one sample, however often it is looked at
    assert window.clocks["GPU"].max in (305, 306, 918)


def test_tegrastats_that_prints_nothing(tegrastats: Callable[[str], Meters], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_FIRST_LINE_S", 0.1)
    meters = tegrastats("")
    assert meters.power is None
    assert "tegrastats prints no line" in meters.reason


class Scripted(Source):
    """Says what a function of the time in seconds says."""

    name = "scripted"

    def __init__(self, says: Callable[[float], dict[Channel, float]]) -> None:
        self._says = says
        self.start_ns = time.perf_counter_ns()

    def read(self) -> tuple[int, Mapping[Channel, float]]:
        now = time.perf_counter_ns()
        return now, self._says((now - self.start_ns) / 1e9)

    def recorded(self, folder: Path, *rails: str, interval_s: float) -> Recorder:
        return Recorder(Meters(power=self, rails=rails, sources=(self,), root=folder), interval_s=interval_s)


def test_energy_of_a_power_that_rises_and_of_a_counter(tmp_path: Path) -> None:
    def says(seconds: float) -> dict[Channel, float]:
        return {Channel("watts", "A"): 2.0 + 10 * seconds, Channel("joules", "B"): 100.0 + 3 * seconds}

    source = Scripted(says)
    with source.recorded(tmp_path, "A", "B", interval_s=0.01) as recorder:
        time.sleep(0.3)
        start_ns = source.start_ns + SECOND // 20
        window = recorder.window(start_ns, start_ns + SECOND // 5)
    assert window.joules == pytest.approx(2 * 0.2 + 5 * (0.25**2 - 0.05**2) + 3 * 0.2, rel=1e-3)
    assert window.watts == pytest.approx(window.joules / 0.2)
    assert window.rail == "A + B"
    assert window.rail_watts["B"] == pytest.approx(3.0, rel=1e-3)


def test_too_few_samples_give_no_energy_but_a_reason(tmp_path: Path) -> None:
    source = Scripted(lambda _: {Channel("watts", "A"): 5.0, Channel("celsius", "tj"): 50.0})
    with source.recorded(tmp_path, "A", interval_s=0.05) as recorder:
        window = recorder.idle(0.12)
    assert (window.joules, window.watts) == (None, None)
    (reason,) = window.reasons
    assert "10 are needed: measure longer" in reason
    assert window.temperatures_c["tj"] == (50.0, 50.0, 50.0)
    assert energy_of([window], None, images=1) == (None, reason)


def test_one_rail_of_the_total_without_samples_gives_no_energy(tmp_path: Path) -> None:
    source = Scripted(lambda _: {Channel("watts", "A"): 5.0})
    with source.recorded(tmp_path, "A", "B", interval_s=0.005) as recorder:
        window = recorder.idle(0.15)
    assert window.joules is None
    assert window.rail_watts["A"] == pytest.approx(5.0)


def test_events_and_states_during_a_window_on_a_board(tmp_path: Path) -> None:
    root = grow("orin-nano", tmp_path)
    counter = root / "sys/class/hwmon/hwmon3/oc3_event_cnt"
    alert = root / "sys/class/thermal/cooling_device2/cur_state"  # the GPU's
    with Recorder(find_meters(root=root, device="cuda"), interval_s=0.01) as recorder:
        quiet = recorder.idle(0.2)
        start_ns = time.perf_counter_ns()
        counter.write_text("9\n")
        alert.write_text("1\n")
        (root / "sys/class/devfreq/17000000.gpu/cur_freq").write_text("306000000\n")
        (root / "var/lib/nvpmodel/status").write_text("pmode:0000\n")
        time.sleep(0.2)
        loud = recorder.window(start_ns, time.perf_counter_ns())
        later = recorder.idle(0.15)
    assert (quiet.events, quiet.throttled, quiet.mode) == ({}, (), "25W (1)")
    assert quiet.watts == pytest.approx(4.984 * 1.856)
    assert quiet.hottest_c == (47.0, 47.0)
    assert "cv0" not in quiet.temperatures_c  # switched off
    assert thermal_reasons([quiet, quiet], device="cuda") == []
    assert loud.events == {"peak over-current (oc3)": 7}
    assert later.events == {}  # they were counted before it began
    assert loud.throttled == ("gpu-throttle-alert",)
    assert thermal_reasons([quiet, loud], device="cuda") == [
        "throttled: peak over-current (oc3), 7 events",
        "throttled: gpu-throttle-alert",
        "GPU clock fell from 918 to 306 MHz",
        "power mode changed from 25W (1) to 15W (0)",
    ]


def test_counters_of_before_do_not_count(tmp_path: Path) -> None:
    """The Nano's recorded counters are not 0 when the run starts, nor are Thor's 813 events since boot."""
    with Recorder(find_meters(root=grow("thor", tmp_path), device="cuda"), interval_s=0.01) as recorder:
        window = recorder.idle(0.15)
    assert window.events == {}
    assert window.throttled == ("gpu-throttle-alert", "devfreq-gpu-gpc-0")
    assert window.clocks["GPU"].max == 1575  # gpu-nvd-0 is the video part


def test_events_of_any_processor_up_to_the_very_end(tmp_path: Path) -> None:
    root = grow("x86", tmp_path)
    (root / "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count").write_text("100\n")
    with Recorder(find_meters(root=root, device="cpu"), interval_s=60) as recorder:
        start_ns = time.perf_counter_ns()
        (root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").write_text("4\n")
        window = recorder.window(start_ns, time.perf_counter_ns())
    assert window.events == {"processor core too hot": 1}


def test_an_exception_ends_the_thread_and_gives_the_sources_back(tmp_path: Path) -> None:
    module = fake_nvml(nvmlDeviceGetPowerUsage=1000)
    recorder = Recorder(nvml_meters(tmp_path, module), interval_s=0.01)
    with pytest.raises(KeyboardInterrupt), recorder:
        raise KeyboardInterrupt
    assert not recorder._thread.is_alive()
    assert module.calls["shutdown"] == 1


def test_windows_survive_json(tmp_path: Path) -> None:
    with Recorder(find_meters(root=grow("thor", tmp_path), device="cuda"), interval_s=0.01) as recorder:
        window = recorder.idle(0.15)
    text = json.dumps(records.to_builtins(window), allow_nan=False)
    assert records.decode(PowerWindow, text) == window


def a_window(**changes: Any) -> PowerWindow:
    start = PowerWindow(
        start_ns=0, end_ns=2 * SECOND, meter="INA (hwmon)", rail="VDD_IN", samples=20, watts=10.0, joules=20.0
    )
    return dataclasses.replace(start, **changes)


def clock(low: float, high: float | None = None, *, fell: tuple[float, float] | None = None) -> Clock:
    high = low if high is None else high
    first, last = fell or (high, high)
    return Clock(min=low, max=high, median=high, fell_from=first, fell_to=last)


def test_energy_per_image_gross_and_net() -> None:
    windows = [
        a_window(clocks={"GPU": clock(900, 918)}, temperatures_c={"tj": (50.0, 52.0, 53.0), "cpu": (49.0, 49.0, 49.0)}),
        a_window(joules=24.0, watts=12.0, clocks={"GPU": clock(306, 918)}, temperatures_c={"tj": (52.0, 55.0, 55.0)}),
    ]
    entry, reason = energy_of(windows, a_window(watts=6.0, joules=12.0), images=1000)
    assert reason == ""
    assert entry == {
        "rail": "VDD_IN",
        "watts": pytest.approx(11.0),
        "idle_watts": 6.0,
        "mj_per_image": pytest.approx(44.0),
        "net_mj_per_image": pytest.approx(20.0),  # (44 J - 6 W * 4 s) / 1000
        "images_per_s_per_watt": pytest.approx(1000 / 44),
        "temperature_c": [50.0, 55.0],
        "clocks": {"GPU": [306, 918]},
        "reasons": [],
    }
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize(
    ("idle", "watts", "reason"),
    [
        (None, None, "idle power was not measured"),
        (a_window(watts=None, joules=None, reasons=("too few",)), None, "too few"),
        (a_window(watts=10.5), 10.5, "10.00 W is not above idle, 10.50 W"),
    ],
)
def test_net_energy_needs_an_idle_below_the_load(idle: PowerWindow | None, watts: float | None, reason: str) -> None:
    entry, _ = energy_of([a_window()], idle, images=10)
    assert entry is not None
    assert (entry["idle_watts"], entry["net_mj_per_image"], entry["reasons"]) == (watts, None, [reason])
    assert entry["mj_per_image"] == pytest.approx(2000)


def test_no_energy_where_a_round_has_none_or_the_sensor_reads_nothing() -> None:
    missing = a_window(joules=None, watts=None, reasons=("no power meter: none",))
    assert energy_of([a_window(), missing], None, images=1) == (None, "no power meter: none")
    entry, reason = energy_of([a_window(joules=0.0, watts=0.0)], None, images=1)
    assert entry is None
    assert "less than its sensor can tell" in reason
    assert energy_of([], None, images=1)[0] is None


@pytest.mark.parametrize(("device", "blind", "other"), [("cpu", "NVML", "RAPL"), ("cuda", "RAPL", "NVML")])
def test_a_meter_is_not_asked_about_what_it_does_not_see(device: str, blind: str, other: str) -> None:
    entry, reason = energy_of([a_window(meter=blind)], None, images=1, device=device)
    assert entry is None
    assert f"{blind} counts the energy of" in reason
    entry, reason = energy_of([a_window(meter=other)], None, images=1, device=device)
    assert entry is not None
    assert reason == ""


@pytest.mark.parametrize(
    ("name", "device", "first", "second", "fall"),
    [
        ("GPU", "cuda", clock(1300), clock(1300), None),
        ("GPU", "cuda", clock(1300), clock(1250), None),  # within the limit
        ("GPU", "cuda", clock(1300), clock(918), "from 1300 to 918"),
        ("GPU", "cuda", clock(918), clock(1300), None),  # it rose: slower rounds are the first ones
        ("GPU", "cuda", clock(918, 1300, fell=(1300, 918)), clock(1300), "from 1300 to 918"),
        ("EMC", "cuda", clock(3199), clock(2133), "from 3199 to 2133"),
        ("CPU", "cuda", clock(2200), clock(1100), None),  # the processors' may follow the load
        ("CPU", "cpu", clock(2200), clock(1100), "from 2200 to 1100"),
        ("GPU", "cpu", clock(1300), clock(306), None),
        ("GPU", "cuda", clock(1300), None, None),
    ],
)
def test_clocks_that_fell(name: str, device: str, first: Clock, second: Clock | None, fall: str | None) -> None:
    windows = [a_window(clocks={} if seen is None else {name: seen}) for seen in (first, second)]
    assert thermal_reasons(windows, device=device) == ([] if fall is None else [f"{name} clock fell {fall} MHz"])


@pytest.mark.parametrize(
    ("mhz", "fell_from", "fell_to"),
    [
        ([1300.0] * 20 + [918.0] + [1300.0] * 20, 1300, 1300),  # a single low reading
        ([1300.0] * 20 + [918.0] * 6 + [1300.0] * 20, 1300, 918),
        ([306.0] * 10 + [1300.0] * 10, 306, 306),
    ],
)
def test_a_lasting_fall_inside_a_window(mhz: list[float], fell_from: float, fell_to: float) -> None:
    at_ns = np.arange(len(mhz), dtype=np.int64)
    window = window_of(
        {Channel("mhz", "GPU"): (at_ns, np.array(mhz))}, 0, len(mhz), meter=None, rails=(), reason="none"
    )
    clock = window.clocks["GPU"]
    assert (clock.fell_from, clock.fell_to, clock.min) == (fell_from, fell_to, min(mhz))


def at(first: float, last: float) -> PowerWindow:
    return a_window(temperatures_c={"tj": (first, last, last)}, mode="MAXN (0)", governor="schedutil")


@pytest.mark.parametrize(
    ("windows", "reasons"),
    [
        ([at(45, 50), at(50, 54)], []),
        ([at(45, 55), at(55, 59)], ["temperature rose by 14 °C (drifting thermally)"]),
        ([at(60, 50)], []),  # cooling down is not drifting into throttling
        ([a_window(events={"oc1": 1}), a_window(events={"oc1": 2})], ["throttled: oc1, 3 events"]),
        ([a_window(throttled=("a",)), a_window(throttled=("b", "a"))], ["throttled: a", "throttled: b"]),
        (
            [at(45, 50), dataclasses.replace(at(45, 50), governor="performance")],
            ["CPU governor changed from schedutil to performance"],
        ),
    ],
)
def test_drift_throttling_and_settings(windows: list[PowerWindow], reasons: list[str]) -> None:
    assert thermal_reasons(windows, device="cuda") == thermal_reasons(windows, device="cpu") == reasons


def test_a_throttled_log_is_a_reason() -> None:
    window = tegrastats_window(DATA / "agx-orin-throttled.log")
    assert window.clocks["GPU"] == Clock(min=918, max=1300, median=1211, fell_from=1300, fell_to=918)
    assert thermal_reasons([window], device="cuda") == ["GPU clock fell from 1300 to 918 MHz"]
    assert window.temperatures_c["tj"][2] == 99.0
    assert window.rail == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert window.watts is not None
    entry, reason = energy_of([window], None, images=1)
    assert entry is None
    assert "it is judged as a whole" in reason


def test_a_log_of_a_steady_run_is_none_although_it_starts_and_ends_idle(tmp_path: Path) -> None:
    text = (DATA / "agx-orin-throttled.log").read_text()
    (tmp_path / "steady.log").write_text(text.replace("[1122,1122]", "[1300,1300]").replace("[918,918]", "[1300,1300]"))
    assert thermal_reasons([tegrastats_window(tmp_path / "steady.log")], device="cuda") == []
    assert thermal_reasons([tegrastats_window(tmp_path / "steady.log")], device="cpu") == []
    (tmp_path / "cold.log").write_text(re.sub(r"@9[0-3]\.", "@70.", text))
    reasons = thermal_reasons([tegrastats_window(tmp_path / "cold.log")], device="cuda")
    assert any("drifting thermally" in reason for reason in reasons)


@pytest.mark.parametrize("log", sorted(path.name for path in DATA.glob("*.log")))
def test_every_log_can_be_judged(log: str) -> None:
    window = tegrastats_window(DATA / log)
    json.dumps(records.to_builtins(window), allow_nan=False)
    reasons = thermal_reasons([window], device="cuda")
    assert bool(reasons) == ("throttled" in log)


def test_state_of_a_board(tmp_path: Path) -> None:
    state = machine_state(grow("agx-orin", tmp_path))
    assert state["cpu_governor"] == "schedutil"
    assert (state["cpu_mhz"], state["gpu_mhz"], state["emc_mhz"]) == (2188.8, 1300.5, None)
    assert state["temperature_c"] == 52.562
    assert "cv0" not in state["temperatures_c"]  # -256: switched off
    assert state["throttled"] == []
    assert state["throttle_counts"]["average over-current (oc2)"] == 0
    thor = machine_state(grow("thor", tmp_path))
    assert thor["throttled"] == ["devfreq-gpu-gpc-0", "gpu-throttle-alert"]
    assert thor["throttle_counts"]["peak over-current (oc3)"] == 813
    x86 = machine_state(grow("x86", tmp_path))
    assert x86["throttled"] == []  # the fan is none, and powerclamp is off at -1
    assert x86["throttle_counts"] == {"processor core too hot": 6, "processor package too hot": 24}
    nothing = machine_state(tmp_path / "nothing")
    assert (nothing["cpu_mhz"], nothing["temperature_c"], nothing["throttled"]) == (None, None, None)


def test_emc_clock_where_debugfs_can_be_read(tmp_path: Path) -> None:
    root = grow("agx-orin", tmp_path)
    rate = root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"
    rate.parent.mkdir(parents=True)
    rate.write_text("3199000000\n")
    assert machine_state(root)["emc_mhz"] == 3199


def test_power_mode_from_the_files_alone(tmp_path: Path) -> None:
    mode = describe_power(grow("orin-nano", tmp_path))
    assert mode["nvpmodel"] == {"id": 1, "name": "25W"}
    assert mode["jetson_clocks"] is None
    assert mode["cpu_governor"] == "schedutil"
    assert set(mode["reasons"]) == {"jetson_clocks"}


def test_power_mode_and_clocks_from_the_commands(tmp_path: Path) -> None:
    tools = Tools(tmp_path / "tools")
    tools.set("show", str(DATA / "jetson_clocks-agx-orin-39.2.txt"))
    mode = describe_power(tmp_path, path=tools.path)
    assert mode["nvpmodel"] == {"id": 2, "name": "30W"}
    held = {"locked": True, "governor": "schedutil", "gpu_mhz": [1300.5] * 3, "emc_mhz": [3199.0] * 3}
    assert mode["jetson_clocks"] == held
    tools.set("show", str(DATA / "jetson_clocks-orin-nano-39.2.txt"))
    clocks = describe_power(tmp_path, path=tools.path)["jetson_clocks"]
    assert clocks["locked"] is False
    assert clocks["gpu_mhz"] == [306, 918, 306]
    (tmp_path / "refusal").write_text("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n")
    tools.set("show", str(tmp_path / "refusal"))
    mode = describe_power(tmp_path, path=tools.path)
    assert mode["jetson_clocks"] is None
    assert "as a root user" in mode["reasons"]["jetson_clocks"]


def test_power_mode_of_a_machine_that_has_none(tmp_path: Path) -> None:
    mode = describe_power(tmp_path, path=str(tmp_path))
    assert mode["nvpmodel"] is None
    assert set(mode["reasons"]) == {"nvpmodel", "jetson_clocks", "cpu_governor"}


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NVPM WARN: fan mode is not set to cool\nNV Power Mode: MAXN\n0\n", PowerMode(id=0, name="MAXN")),
        ("NV Power Mode: 15W\n0", PowerMode(id=0, name="15W")),
        ("NVPM ERROR: no such file", None),
    ],
)
def test_answers_of_nvpmodel(text: str, mode: PowerMode | None) -> None:
    assert parse_mode(text) == mode


def test_the_boards_own_list_of_modes() -> None:
    conf = "< POWER_MODEL ID=3 NAME=MODE_50W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=0 NAME=MAXN >\n"
    assert [str(mode) for mode in parse_modes(conf)] == ["MAXN (0)", "MODE_50W (3)"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_this_machine_can_be_asked() -> None:
    for device in ("cpu", "cuda"):
        meters = find_meters(device=device)
        assert (meters.power is None) == bool(meters.reason)
        meters.close()
    json.dumps(describe_power(), allow_nan=False)
