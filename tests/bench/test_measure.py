"""The measuring core: what it counts, what it finds out, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sleeping_session import SleepingSession, images, round_of_samples

from alexnet_edge import records
from alexnet_edge.bench.machine.state import BusyElsewhere, machine_state, peak_memory_bytes
from alexnet_edge.bench.timing.clock import batches_of
from alexnet_edge.bench.timing.latency import LatencySamples, measure_latency
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.bench.timing.summary import summarise
from alexnet_edge.errors import UserError
from alexnet_edge.sessions.null import NullSession

QUICK = MeasureSettings(rounds=1, percentile=90, min_seconds=0.05, max_seconds=5, min_warmup_seconds=0.02)


@pytest.fixture
def scripted_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sleeping moves the clock, and each reading by a microsecond: the same times on a busy machine."""
    now_ns = 0

    def pass_time(nanoseconds: float) -> int:
        nonlocal now_ns
        now_ns += round(nanoseconds)
        return now_ns

    monkeypatch.setattr(time, "sleep", lambda seconds: pass_time(seconds * 1e9) and None)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: pass_time(1000))


def steady(count: int, *, seed: int = 0, centre: float = 10.0, spread: float = 0.2) -> list[float]:
    return np.random.default_rng(seed).normal(centre, spread, count).tolist()


@pytest.mark.usefixtures("scripted_clock")
def test_every_sample_is_kept_and_is_what_the_session_took() -> None:
    with SleepingSession(lambda n: 2.0) as session:
        result = measure_latency(session, images(1), batch=1, settings=QUICK)
    assert len(result.samples_ns) >= 64
    assert session.count == result.warmup_count + len(result.samples_ns)
    assert set(result.samples_ns) == {2_001_000}
    assert sum(result.samples_ns) < result.duration_ns < 1.01 * sum(result.samples_ns)


@pytest.mark.usefixtures("scripted_clock")
def test_stops_at_both_the_time_and_the_count() -> None:
    with SleepingSession(lambda n: 1.0) as session:

        def measure(**limits: float) -> LatencySamples:
            settings = MeasureSettings(**{"rounds": 2, "min_seconds": 0.01, "min_warmup_seconds": 0.02, **limits})  # type: ignore[arg-type]
            return measure_latency(session, images(1), batch=1, settings=settings)

        assert measure(percentile=50, min_seconds=0.6).duration_ns >= 0.3e9
        assert len(measure(percentile=95).samples_ns) == 65  # half of 130
        bounded = measure(rounds=1, percentile=99.9, max_seconds=0.1)
        assert bounded.duration_ns < 0.3e9
        assert len(bounded.samples_ns) < 200


@pytest.mark.usefixtures("scripted_clock")
def test_warm_up_lasts_until_the_latency_settles() -> None:
    with SleepingSession(lambda n: max(1.0, 60 * 0.7**n)) as session:
        result = measure_latency(session, images(1), batch=1, settings=QUICK)
    assert result.warmup_stable
    assert result.warmup_count > 8
    assert np.median(result.samples_ns[:20]) / 1e6 < 3


@pytest.mark.usefixtures("scripted_clock")
def test_warm_up_is_bounded() -> None:
    settings = replace(QUICK, percentile=50, min_seconds=0.01, max_warmup_seconds=0.2)
    with SleepingSession(lambda n: 1.05**n) as session:
        result = measure_latency(session, images(1), batch=1, settings=settings)
    assert not result.warmup_stable
    assert result.warmup_ns < 1e9
    assert any("not stable" in reason for reason in summarise([result], settings)["reasons"])


@pytest.mark.usefixtures("scripted_clock")
def test_inferences_rotate_through_the_images() -> None:
    with SleepingSession(lambda n: 0.1) as session:
        measure_latency(session, images(6), batch=2, settings=QUICK)
    assert {first for first, _ in session.seen} == {0, 2, 4}


def test_batches_repeat_too_few_images() -> None:
    assert [len(part) for part in batches_of(images(7), 3)] == [3, 3]
    (one,) = batches_of(images(2), 5)
    assert one[:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0]


def test_harness_overhead_on_a_session_that_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with NullSession() as session:
        x_NCHW = np.zeros((1, 3, 227, 227), np.float32)
        result = measure_latency(session, x_NCHW, batch=1, settings=QUICK)
    query_us = np.median(result.samples_ns) / 1e3
    loop_us = (result.duration_ns - sum(result.samples_ns)) / len(result.samples_ns) / 1e3
    with capsys.disabled():
        print(f"\nharness: {query_us:.2f} us inside a sample, {loop_us:.2f} us between samples")
    assert query_us < 100
    assert loop_us < 100


def test_steady_samples_are_valid() -> None:
    settings = MeasureSettings(rounds=3)
    summary = summarise([round_of_samples(steady(221, seed=seed)) for seed in range(3)], settings)
    assert summary["valid"], summary["reasons"]
    assert summary["count"] == 663
    assert summary["percentiles_ns"]["p50"] == pytest.approx(10e6, rel=0.01)
    assert summary["percentiles_ns"]["p99"] is not None
    assert summary["percentiles_ns"]["p99.9"] is None
    low, high = summary["median_interval_ns"]
    assert low < 10e6 < high
    assert summary["images_per_s"] == pytest.approx(100, rel=0.01)
    assert summary["verdict"] == "VALID"
    json.dumps(summary, allow_nan=False)


def test_throughput_counts_images_and_queries() -> None:
    settings = MeasureSettings(batches=(1, 8))
    summary = summarise([round_of_samples([20.0] * 12, batch=8)], settings)
    assert (summary["images_per_s"], summary["queries_per_s"]) == (pytest.approx(400), pytest.approx(50))
    assert summary["valid"], summary["reasons"]


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ([round_of_samples(steady(100))], "too few samples: 100, p99 needs 662"),
        (
            [round_of_samples(steady(700)), round_of_samples(steady(700), stable=False)],
            "not stable after warm-up in 1 of 2 rounds",
        ),
        ([round_of_samples(np.random.default_rng(1).exponential(10, 900).tolist())], "coefficient of variation"),
        ([round_of_samples(steady(400)), round_of_samples(steady(400, centre=12.5))], "median known to"),
        ([round_of_samples((np.array(steady(900)) * np.linspace(1, 1.4, 900)).tolist())], "drift of +"),
        ([round_of_samples((np.array(steady(900)) * np.linspace(1.4, 1, 900)).tolist())], "drift of -"),
        ([round_of_samples(np.tile([10.0, 10.0, 13.0], 300).tolist())], "two modes, 10 and 13 ms"),
        (
            [round_of_samples(steady(700)), round_of_samples(steady(700), other_cpus=1.3)],
            "other processes kept 1.3 processors busy",
        ),
    ],
)
def test_a_planted_fault_makes_the_result_invalid(rounds: list[LatencySamples], reason: str) -> None:
    summary = summarise(rounds, MeasureSettings(rounds=len(rounds)))
    assert not summary["valid"]
    assert any(reason in found for found in summary["reasons"]), summary["reasons"]
    assert summary["verdict"] == "INVALID"


def test_percentiles_are_of_all_samples_not_averaged() -> None:
    rounds = [round_of_samples([10.0] * 90 + [100.0] * 10), round_of_samples([10.0] * 100)]
    assert summarise(rounds, MeasureSettings(percentile=90))["percentiles_ns"]["p95"] == 10e6


def test_samples_and_settings_survive_json() -> None:
    samples = round_of_samples(steady(20))
    assert records.decode(LatencySamples, json.dumps(records.to_builtins(samples))) == samples
    settings = MeasureSettings(batches=(1, 4), threads=2)
    assert records.decode(MeasureSettings, json.dumps(records.to_builtins(settings))) == settings


@pytest.mark.parametrize(
    "wrong",
    [
        *({"batches": ()}, {"batches": (0,)}, {"batches": (1, 1)}, {"device": "tpu"}, {"threads": 0}, {"rounds": 0}),
        *({"percentile": 100}, {"min_seconds": 0}, {"min_seconds": 9, "max_seconds": 3}, {"min_warmup_seconds": 9}),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        MeasureSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this kernel does not tell")
def test_work_of_other_processes_is_seen_and_own_work_is_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        others = BusyElsewhere()
        time.sleep(0.6)
        busy = others.processors()
        other.kill()
    assert busy is not None
    assert busy > 0.3
    others = BusyElsewhere()
    total, began, own = others._busy, time.monotonic(), time.process_time()
    while time.process_time() < own + 0.4:
        pass
    seen, wall = others.processors(), time.monotonic() - began
    assert total is not None
    assert seen is not None
    everything = BusyElsewhere()._busy
    assert everything is not None
    assert seen * wall < everything - total - 0.2  # own work, 0.4 s of a processor, was taken off


def test_what_the_machine_does_not_tell_is_none_not_zero() -> None:
    state = machine_state()
    assert set(state) >= {"cpu_governor", "cpu_mhz", "temperature_c", "load_average_1min"}
    for name in ("cpu_mhz", "temperature_c"):
        assert state[name] is None or state[name] != 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this kernel does not tell")
def test_peak_memory_is_this_process_only() -> None:
    held = b"x" * 300_000_000
    here = peak_memory_bytes()
    code = "from alexnet_edge.bench.machine.state import peak_memory_bytes; print(peak_memory_bytes())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert here is not None
    assert here > len(held)
    assert int(child.stdout) < here - 200_000_000
