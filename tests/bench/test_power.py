"""What is read from recorded and constructed machines, and what is concluded from it; no hardware is needed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from machine_tree import DATA, Tools, grow

from alexnet_edge import records
from alexnet_edge.bench.machine import jetson, meters, power, sources
from alexnet_edge.bench.machine.jetson import describe_power
from alexnet_edge.bench.machine.meters import Meters, find_meters, total_of
from alexnet_edge.bench.machine.power import Clock, PowerWindow, Recorder
from alexnet_edge.bench.machine.recorded_log import tegrastats_window
from alexnet_edge.bench.machine.sources import Channel, Source
from alexnet_edge.bench.machine.state import machine_state
from alexnet_edge.bench.machine.tegrastats import parse_line, read_log
from alexnet_edge.bench.machine.thermal import energy_of, thermal_reasons
from alexnet_edge.errors import UserError

SECOND = 1_000_000_000


def watts_now(found: Meters) -> dict[str, float]:
    assert found.power is not None
    reading = found.power.read()
    assert reading is not None
    return {name: value for (kind, name), value in reading[1].items() if kind == "watts"}


# --- rails of a Jetson --------------------------------------------------------------------------------------------------


def test_agx_orin_adds_its_three_inputs_and_not_the_memory_behind_one_of_them(tmp_path: Path) -> None:
    found = find_meters(root=grow("agx-orin", tmp_path), device="cuda")
    assert found.name == "INA (hwmon)"
    assert found.rail == "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert watts_now(found) == pytest.approx(
        {
            "VDD_GPU_SOC": 19.760 * 0.280,
            "VDD_CPU_CV": 19.760 * 0.120,
            "VIN_SYS_5V0": 4.968 * 0.953,
            "VDDQ_VDD2_1V8AO": 4.968 * 0.080,
        }
    )


def test_orin_nano_has_its_total_on_one_rail(tmp_path: Path) -> None:
    found = find_meters(root=grow("orin-nano", tmp_path), device="cpu")
    assert found.rail == "VDD_IN"
    assert watts_now(found)["VDD_IN"] == pytest.approx(4.984 * 1.856)


def test_thor_takes_the_carriers_input_and_else_the_modules_three(tmp_path: Path) -> None:
    root = grow("thor", tmp_path)
    found = find_meters(root=root, device="cuda")
    assert found.rail == "VIN"
    assert watts_now(found)["VIN"] == pytest.approx(29.8)  # power1_input, although voltage and current are there too
    assert set(watts_now(found)) == {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"}
    (root / "sys/class/hwmon/hwmon6/name").write_text("nvme\n")
    assert find_meters(root=root, device="cuda").rail == "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"


def test_rails_of_an_unknown_board_are_not_added_up(tmp_path: Path) -> None:
    root = grow("orin-nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/in1_label").write_text("VDD_NEW\n")
    found = find_meters(root=root, device="cuda", path=str(tmp_path))
    assert found.power is None
    assert found.rail is None
    assert "which of the rails VDD_NEW, VDD_CPU_GPU_CV, VDD_SOC is the total is not known" in found.reason
    assert "tegrastats is not on PATH" in found.reason
    assert total_of(["VDD_GPU_SOC", "VDD_CPU_CV"]) == ()


def test_a_rail_that_cannot_be_read_is_unavailable_and_not_zero(tmp_path: Path) -> None:
    root = grow("orin-nano", tmp_path)
    current = root / "sys/class/hwmon/hwmon1/curr1_input"
    current.unlink()
    current.mkdir()  # there, and cannot be read
    found = find_meters(root=root, device="cuda", path=str(tmp_path))
    assert found.power is None
    assert "the rails VDD_IN cannot be read" in found.reason


# --- RAPL ---------------------------------------------------------------------------------------------------------------


def test_rapl_adds_packages_and_memory_and_undoes_the_counters_restart(tmp_path: Path) -> None:
    root = grow("x86", tmp_path)
    found = find_meters(root=root, device="cpu")
    assert found.name == "RAPL"
    assert found.rails == ("package-0", "package-0 dram", "package-1", "package-1 dram")
    assert found.power is not None
    channel = Channel("joules", "package-0")
    first = found.power.read()
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("671150\n")  # after 262143328850 comes 0
    second = found.power.read()
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("1671150\n")
    third = found.power.read()
    assert first is not None
    assert second is not None
    assert third is not None
    assert second[1][channel] - first[1][channel] == pytest.approx(1.0)
    assert third[1][channel] - second[1][channel] == pytest.approx(1.0)


def test_rapl_of_a_kernel_that_lets_only_root_read(tmp_path: Path) -> None:
    root = grow("x86", tmp_path)
    (root / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    (root / "sys/class/powercap/intel-rapl:1/energy_uj").mkdir()
    found = find_meters(root=root, device="cpu")
    assert found.power is None
    assert "RAPL's energy_uj is readable for root only" in found.reason
    assert found.sources  # clocks and temperatures are read all the same


def test_a_machine_that_tells_nothing_has_reasons_and_no_sources(tmp_path: Path) -> None:
    found = find_meters(root=tmp_path, device="cpu")
    assert found.sources == ()
    assert found.reason.startswith(
        "no power meter: no INA power monitor under /sys/class/hwmon; the kernel has no RAPL"
    )
    with Recorder(found, interval_s=0.01) as recorder:
        idle = recorder.idle(0.05)
    assert idle.watts is None
    assert idle.reasons == (found.reason,)
    assert (idle.clocks, idle.temperatures_c, idle.throttled) == ({}, {}, ())


# --- NVML ---------------------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    pass


def fake_nvml(**supported: Any) -> Any:
    """The module `pynvml` with one or more GPUs; a function that is not given raises "Not Supported"."""

    def ask(name: str) -> Any:
        def function(*_: Any) -> Any:
            if name not in supported:
                raise NVMLError("Not Supported")
            value = supported[name]
            return value() if callable(value) else value

        return function

    calls = {"init": 0, "shutdown": 0}
    module = SimpleNamespace(
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
    )
    for name in (
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
    ):
        setattr(module, name, ask(name))
    return module


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
    found = nvml_meters(tmp_path, module)
    assert (found.name, found.rails) == ("NVML", ("GPU board",))
    assert found.power is not None
    reading = found.power.read()
    assert reading is not None
    assert reading[1][Channel("joules", "GPU board")] == 123.456
    assert Channel("watts", "GPU board") not in reading[1]
    assert reading[1][Channel("mhz", "GPU")] == 1980
    assert reading[1][Channel("celsius", "gpu")] == 41
    assert {name for (kind, name), value in reading[1].items() if kind == "throttled" and value} == {
        "GPU too hot (hardware)"  # that it was idle is no throttling
    }
    found.close()
    found.close()
    assert module.calls == {"init": 1, "shutdown": 1}


def test_nvml_without_a_counter_gives_power(tmp_path: Path) -> None:
    found = nvml_meters(tmp_path, fake_nvml(nvmlDeviceGetPowerUsage=70_250))
    assert watts_now(found) == {"GPU board": 70.25}


def test_nvml_of_an_orin_starts_and_supports_nothing(tmp_path: Path) -> None:
    found = nvml_meters(tmp_path, fake_nvml())
    assert found.power is None
    assert found.rails == ()
    assert "NVML supports neither energy nor power on Orin (nvgpu)" in found.reason
    assert [source.read()[1] for source in found.sources if source.name == "NVML"] == [{}]  # type: ignore[index]


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


def test_nvml_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml()

    def fail() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    module.nvmlInit = fail
    assert "NVML does not start (NVML Shared Library Not Found)" in nvml_meters(tmp_path, module).reason

    def missing(_: str) -> None:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(meters.importlib, "import_module", missing)
    found = find_meters(root=tmp_path, device="cuda", load_nvml=meters._load_nvml)
    assert "nvidia-ml-py is not installed" in found.reason
    assert "alexnet-edge[bench]" in found.reason


# --- tegrastats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "watts", "clocks", "gpu_percent", "hottest"),
    [
        (
            "agx-orin-36.4",
            {"VDD_GPU_SOC": 2.412, "VDD_CPU_CV": 1.607, "VIN_SYS_5V0": 4.707},
            {"CPU": 2201, "EMC": 2133},  # the GPU is switched off: it has no clock, and no temperature
            0,
            ("cpu", 52.562),
        ),
        (
            "agx-orin-upper-case",
            {"VDD_GPU_SOC": 3.15, "VDD_CPU_CV": 14.312, "VIN_SYS_5V0": 4.968, "VDDQ_VDD2_1V8AO": 1.091},
            {"CPU": 2201, "GPU": 407, "EMC": 2133},
            14,
            ("cpu", 77.281),
        ),
        (
            "orin-nano-39.2",
            {"VDD_IN": 3.582, "VDD_CPU_GPU_CV": 0.523, "VDD_SOC": 1.127},
            {"CPU": 729, "GPU": 305, "EMC": 665},
            0,
            ("gpu", 46.843),
        ),
        (
            "orin-nano-no-clock",
            {"VDD_IN": 6.626, "VDD_CPU_GPU_CV": 1.228, "VDD_SOC": 2.38},
            {"CPU": 1344},
            0,
            ("gpu", 50.562),
        ),
        (
            "thor-38.4",
            {"VDD_GPU": 1.962, "VDD_CPU_SOC_MSS": 5.887, "VIN_SYS_5V0": 5.635, "VIN": 19.78},
            {"CPU": 972, "GPU": 314, "EMC": 2750},
            None,
            ("tj", 38.875),
        ),
        (
            "thor-39.2",
            {"VDD_GPU": 4.925, "VDD_CPU_SOC_MSS": 8.71, "VIN_SYS_5V0": 6.767},
            {"CPU": 2430, "GPU": 314, "EMC": 3200},
            None,
            ("tj", 35.906),
        ),
        (
            "thor-no-gr3d",
            {"VDD_GPU": 37.528, "VDD_CPU_SOC_MSS": 18.961, "VIN_SYS_5V0": 18.331, "VIN": 87.426},
            {"CPU": 972},
            None,
            ("tj", 63.281),
        ),
    ],
)
def test_recorded_lines(
    log: str,
    watts: Mapping[str, float],
    clocks: Mapping[str, float],
    gpu_percent: int | None,
    hottest: tuple[str, float],
) -> None:
    line = read_log(DATA / f"{log}.log")[0]
    assert line.watts == pytest.approx(watts)
    assert line.clocks_mhz == clocks
    assert line.gpu_percent == gpu_percent
    assert max(line.temperatures_c.items(), key=lambda item: item[1]) == hottest
    assert line.date is not None
    assert total_of(list(line.watts))


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
    for other in ("", "tegrastats: command not found", "RAM 1/2MB"):
        assert parse_line(other) is None


def test_a_log_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the tegrastats log"):
        read_log(tmp_path / "none.log")
    (tmp_path / "other.log").write_text("hello\n")
    with pytest.raises(UserError, match="no line of tegrastats in it"):
        read_log(tmp_path / "other.log")


def test_live_tegrastats_where_the_rails_are_not_readable(tmp_path: Path) -> None:
    root = grow("orin-nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/name").unlink()
    tools = Tools(tmp_path / "tools", only=("tegrastats",))
    tools.set("tegrastats.log", (DATA / "orin-nano-39.2.log").read_text().strip())
    found = find_meters(root=root, device="cuda", path=tools.path, interval_s=0.01)
    assert (found.name, found.rail) == ("tegrastats", "VDD_IN")
    with Recorder(found, interval_s=0.005) as recorder:
        window = recorder.idle(0.4)
        process = found.power._process  # type: ignore[union-attr]
    assert process.poll() is not None  # ended with the recorder
    assert window.watts == pytest.approx((3.582 + 3 * 3.462) / 4, rel=0.02)
    assert 10 <= window.samples <= 45  # a line is one sample, however often it is looked at
    assert window.clocks["GPU"].max in (305, 306, 918)


def test_tegrastats_that_prints_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = grow("orin-nano", tmp_path)
    (root / "sys/class/hwmon/hwmon1/name").unlink()
    tools = Tools(tmp_path / "tools", only=("tegrastats",))
    tools.set("tegrastats.log", "")
    monkeypatch.setattr(sources, "_FIRST_LINE_S", 0.1)
    found = find_meters(root=root, device="cuda", path=tools.path, interval_s=0.01)
    assert found.power is None
    assert "tegrastats prints no line" in found.reason


# --- recording ----------------------------------------------------------------------------------------------------------


class Scripted(Source):
    """Says what a function of the time in seconds says."""

    name = "scripted"

    def __init__(self, says: Any) -> None:
        self._says = says
        self._start_ns = time.perf_counter_ns()

    def read(self) -> tuple[int, Mapping[Channel, float]]:
        now = time.perf_counter_ns()
        return now, self._says((now - self._start_ns) / 1e9)


def test_energy_of_a_power_that_rises_and_of_a_counter(tmp_path: Path) -> None:
    def says(seconds: float) -> dict[Channel, float]:
        return {Channel("watts", "A"): 2.0 + 10 * seconds, Channel("joules", "B"): 100.0 + 3 * seconds}

    source = Scripted(says)
    found = Meters(power=source, rails=("A", "B"), sources=(source,), root=tmp_path)
    with Recorder(found, interval_s=0.01) as recorder:
        time.sleep(0.3)
        start_ns = source._start_ns + SECOND // 20
        end_ns = start_ns + SECOND // 5
        window = recorder.window(start_ns, end_ns)
    assert window.joules == pytest.approx(2 * 0.2 + 5 * (0.25**2 - 0.05**2) + 3 * 0.2, rel=1e-3)
    assert window.watts == pytest.approx(window.joules / 0.2)
    assert window.rail == "A + B"
    assert window.rail_watts["B"] == pytest.approx(3.0, rel=1e-3)


def test_too_few_samples_give_no_energy_but_a_reason(tmp_path: Path) -> None:
    source = Scripted(lambda _: {Channel("watts", "A"): 5.0, Channel("celsius", "tj"): 50.0})
    found = Meters(power=source, rails=("A",), sources=(source,), root=tmp_path)
    with Recorder(found, interval_s=0.05) as recorder:
        window = recorder.idle(0.12)
    assert window.joules is None
    assert window.watts is None
    assert len(window.reasons) == 1
    assert "10 are needed: measure longer" in window.reasons[0]
    assert window.temperatures_c["tj"] == (50.0, 50.0, 50.0)
    assert energy_of([window], None, images=1) == (None, window.reasons[0])


def test_one_rail_of_the_total_without_samples_gives_no_energy(tmp_path: Path) -> None:
    source = Scripted(lambda _: {Channel("watts", "A"): 5.0})
    found = Meters(power=source, rails=("A", "B"), sources=(source,), root=tmp_path)
    with Recorder(found, interval_s=0.005) as recorder:
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


# --- conclusions --------------------------------------------------------------------------------------------------------


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


def test_net_energy_needs_an_idle_below_the_load() -> None:
    entry, _ = energy_of([a_window()], None, images=10)
    assert entry is not None
    assert entry["net_mj_per_image"] is None
    assert entry["mj_per_image"] == pytest.approx(2000)
    assert entry["reasons"] == ["idle power was not measured"]
    entry, _ = energy_of([a_window()], a_window(watts=None, joules=None, reasons=("too few",)), images=10)
    assert entry is not None
    assert (entry["idle_watts"], entry["net_mj_per_image"], entry["reasons"]) == (None, None, ["too few"])
    entry, _ = energy_of([a_window()], a_window(watts=10.5), images=10)
    assert entry is not None
    assert entry["net_mj_per_image"] is None
    assert entry["reasons"] == ["10.00 W is not above idle, 10.50 W"]


def test_no_energy_where_a_round_has_none_or_the_sensor_reads_nothing() -> None:
    missing = a_window(joules=None, watts=None, reasons=("no power meter: none",))
    assert energy_of([a_window(), missing], None, images=1) == (None, "no power meter: none")
    entry, reason = energy_of([a_window(joules=0.0, watts=0.0)], None, images=1)
    assert entry is None
    assert "less than its sensor can tell" in reason
    assert energy_of([], None, images=1)[0] is None


def test_a_meter_is_not_asked_about_what_it_does_not_see() -> None:
    for device, meter, seen in (
        ("cpu", "NVML", False),
        ("cuda", "RAPL", False),
        ("cpu", "RAPL", True),
        ("cuda", "NVML", True),
    ):
        entry, reason = energy_of([a_window(meter=meter)], None, images=1, device=device)
        assert (entry is not None) == seen
        assert (f"{meter} counts the energy of" in reason) != seen


@pytest.mark.parametrize(
    ("first", "second", "device", "reasons"),
    [
        ({"GPU": clock(1300)}, {"GPU": clock(1300)}, "cuda", []),
        ({"GPU": clock(1300)}, {"GPU": clock(1250)}, "cuda", []),  # within the limit
        ({"GPU": clock(1300)}, {"GPU": clock(918)}, "cuda", ["GPU clock fell from 1300 to 918 MHz"]),
        ({"GPU": clock(918)}, {"GPU": clock(1300)}, "cuda", []),  # it rose: slower rounds are the first ones
        (
            {"GPU": clock(918, 1300, fell=(1300, 918))},
            {"GPU": clock(1300)},
            "cuda",
            ["GPU clock fell from 1300 to 918 MHz"],
        ),
        ({"EMC": clock(3199)}, {"EMC": clock(2133)}, "cuda", ["EMC clock fell from 3199 to 2133 MHz"]),
        ({"CPU": clock(2200)}, {"CPU": clock(1100)}, "cuda", []),  # the processors' may follow the load
        ({"CPU": clock(2200)}, {"CPU": clock(1100)}, "cpu", ["CPU clock fell from 2200 to 1100 MHz"]),
        ({"GPU": clock(1300)}, {"GPU": clock(306)}, "cpu", []),
        ({"GPU": clock(1300)}, {}, "cuda", []),
    ],
)
def test_clocks_that_fell(first: Any, second: Any, device: str, reasons: list[str]) -> None:
    assert thermal_reasons([a_window(clocks=first), a_window(clocks=second)], device=device) == reasons


def test_a_lasting_fall_inside_a_window_and_a_single_low_reading() -> None:
    steady = power._clock(np.array([1300.0] * 20 + [918.0] + [1300.0] * 20))
    assert (steady.fell_from, steady.fell_to, steady.min) == (1300, 1300, 918)
    fell = power._clock(np.array([1300.0] * 20 + [918.0] * 6 + [1300.0] * 20))
    assert (fell.fell_from, fell.fell_to) == (1300, 918)
    rose = power._clock(np.array([306.0] * 10 + [1300.0] * 10))
    assert rose.fell_from == rose.fell_to


def test_drift_throttling_and_settings() -> None:
    def at(first: float, last: float) -> PowerWindow:
        return a_window(temperatures_c={"tj": (first, last, last)}, mode="MAXN (0)", governor="schedutil")

    assert thermal_reasons([at(45, 50), at(50, 54)], device="cuda") == []
    assert thermal_reasons([at(45, 55), at(55, 59)], device="cuda") == [
        "temperature rose by 14 °C (drifting thermally)"
    ]
    assert thermal_reasons([at(60, 50)], device="cuda") == []  # cooling down is not drifting into throttling
    assert thermal_reasons([a_window(events={"oc1": 1}), a_window(events={"oc1": 2})], device="cpu") == [
        "throttled: oc1, 3 events"
    ]
    assert thermal_reasons([a_window(throttled=("a",)), a_window(throttled=("b", "a"))], device="cpu") == [
        "throttled: a",
        "throttled: b",
    ]
    changed = dataclasses.replace(at(45, 50), governor="performance")
    assert thermal_reasons([at(45, 50), changed], device="cpu") == [
        "CPU governor changed from schedutil to performance"
    ]


# --- a recorded log -----------------------------------------------------------------------------------------------------


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


# --- the machine's state and power mode ---------------------------------------------------------------------------------


def test_state_of_a_board(tmp_path: Path) -> None:
    state = machine_state(grow("agx-orin", tmp_path))
    assert state["cpu_governor"] == "schedutil"
    assert state["cpu_mhz"] == 2188.8
    assert state["gpu_mhz"] == 1300.5
    assert state["emc_mhz"] is None
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
    said = describe_power(grow("orin-nano", tmp_path))
    assert said["nvpmodel"] == {"id": 1, "name": "25W"}
    assert said["jetson_clocks"] is None
    assert said["cpu_governor"] == "schedutil"
    assert set(said["reasons"]) == {"jetson_clocks"}


def test_power_mode_and_clocks_from_the_commands(tmp_path: Path) -> None:
    tools = Tools(tmp_path / "tools")
    tools.set("show", str(DATA / "jetson_clocks-agx-orin-39.2.txt"))
    said = describe_power(tmp_path, path=tools.path)
    assert said["nvpmodel"] == {"id": 2, "name": "30W"}
    assert said["jetson_clocks"] == {
        "locked": True,
        "governor": "schedutil",
        "gpu_mhz": [1300.5, 1300.5, 1300.5],
        "emc_mhz": [3199.0, 3199.0, 3199.0],
    }
    tools.set("show", str(DATA / "jetson_clocks-orin-nano-39.2.txt"))
    clocks = describe_power(tmp_path, path=tools.path)["jetson_clocks"]
    assert clocks["locked"] is False
    assert clocks["gpu_mhz"] == [306, 918, 306]


def test_clocks_that_only_root_may_see(tmp_path: Path) -> None:
    tools = Tools(tmp_path / "tools")
    (tmp_path / "refusal").write_text("Error: Run this script(/usr/bin/jetson_clocks) as a root user\n")
    tools.set("show", str(tmp_path / "refusal"))
    said = describe_power(tmp_path, path=tools.path)
    assert said["jetson_clocks"] is None
    assert "as a root user" in said["reasons"]["jetson_clocks"]


def test_power_mode_of_a_machine_that_has_none(tmp_path: Path) -> None:
    said = describe_power(tmp_path, path=str(tmp_path))
    assert said["nvpmodel"] is None
    assert set(said["reasons"]) == {"nvpmodel", "jetson_clocks", "cpu_governor"}


def test_answers_of_nvpmodel() -> None:
    assert jetson.parse_mode("NVPM WARN: fan mode is not set to cool\nNV Power Mode: MAXN\n0\n") == jetson.PowerMode(
        id=0, name="MAXN"
    )
    assert jetson.parse_mode("NV Power Mode: 15W\n0") == jetson.PowerMode(id=0, name="15W")
    assert jetson.parse_mode("NVPM ERROR: no such file") is None
    conf = "< POWER_MODEL ID=3 NAME=MODE_50W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=0 NAME=MAXN >\n"
    assert [str(mode) for mode in jetson.parse_modes(conf)] == ["MAXN (0)", "MODE_50W (3)"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_this_machine_can_be_asked() -> None:
    for device in ("cpu", "cuda"):
        found = find_meters(device=device)
        assert (found.power is None) == bool(found.reason)
        found.close()
    json.dumps(describe_power(), allow_nan=False)
