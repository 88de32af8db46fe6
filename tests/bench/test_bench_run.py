"""What a whole bench does with its plan: pinning, one process for all, a recorded log, reasons, damaged results."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_artifacts import QUICK, write_artifact

from alexnet_edge import environment
from alexnet_edge.bench.loadgen.settings import ScenarioSettings
from alexnet_edge.bench.report.text import markdown_of
from alexnet_edge.bench.rounds.results import read_results
from alexnet_edge.bench.rounds.run import Plan, run_bench
from alexnet_edge.cli import _run
from alexnet_edge.errors import UserError
from alexnet_edge.images.datasets import synthetic

THROTTLED = Path(__file__).parents[1] / "data/power/agx-orin-throttled.log"
BARE = {"harness": False, "roofline": False}


def bench(folder: Path, **plan: Any) -> dict[str, Any]:
    """The results of two small networks, as read back from the file."""
    paths = [write_artifact(folder / f"network{seed}.onnx", seed=seed).path for seed in range(2)]
    run_bench(paths, QUICK, Plan(**{**BARE, **plan}), images=synthetic("val").spread(4), out=folder / "bench.json")
    return read_results(folder / "bench.json")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return bench(tmp_path_factory.mktemp("bench"), threads=(1, 2))


def test_a_sweep_measures_every_combination(results: dict[str, Any]) -> None:
    assert results["finished"]
    labels = [subject["label"] for subject in results["subjects"]]
    assert len(labels) == len(set(labels)) == 4
    for subject in results["subjects"]:
        assert f"{subject['threads']} thread" in subject["label"]
        assert subject["details"]["threads"] == subject["threads"]
        assert [entry["batch"] for entry in subject["batches"]] == list(QUICK.batches)
        for entry in subject["batches"]:
            assert entry["count"] == sum(len(samples["samples_ns"]) for samples in entry["samples"])


def test_a_reason_stands_beside_every_null(results: dict[str, Any]) -> None:
    for subject in results["subjects"]:
        assert subject["roofline"] is None
        assert subject["unavailable"]["roofline"] == "not asked for"
        for entry in subject["batches"]:
            for name in ("cold", "device", "pipelined", "energy", "speed_up"):
                assert (entry[name] is None) == bool(entry["unavailable"].get(name)), name


def test_bounds_are_measured_in_every_round(tmp_path: Path) -> None:
    results = bench(tmp_path, threads=(1,), roofline=True)
    (peaks,) = results["peaks"]
    assert len(peaks["rounds"]) == results["settings"]["rounds"] > 1
    for rates in peaks["rounds"]:
        assert all(median <= rates["best"][name] for name, median in rates["median"].items() if median is not None)
    for name, rate in {"read": peaks["read_bytes_per_s"], **peaks["multiply_adds_per_s"]}.items():
        measured = [rates["best"][name] for rates in peaks["rounds"] if rates["best"][name] is not None]
        assert rate == max(measured, default=None)
    for subject in results["subjects"]:
        roofline = subject["roofline"]
        by_round = roofline["by_round"]
        assert len(by_round["floors_ns"]) == len(peaks["rounds"])
        assert roofline["floor_ns"] <= min(by_round["floors_ns"]) * (1 + 1e-9), "the best rates give the lowest floor"
        assert by_round["interval"][0] <= by_round["share"] <= by_round["interval"][1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin")
def test_pinned_to_one_processor(tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    value = bench(tmp_path, pinned_cpus=(cpu,))
    assert value["pinned_cpus"] == [cpu]
    assert {subject["threads"] for subject in value["subjects"]} == {1}
    assert cpu in os.sched_getaffinity(0)


def test_one_process_for_all(tmp_path: Path) -> None:
    value = bench(tmp_path, isolate=False)
    assert value["isolate"] is False
    for subject in value["subjects"]:
        assert subject["error"] == ""
        assert len(subject["batches"]) == 2
        assert {round_["peak_memory_bytes"] for round_ in subject["rounds"]} == {None}
        assert subject["unavailable"]["peak_memory"]


def test_a_recorded_log_of_a_throttled_board_makes_every_figure_invalid(tmp_path: Path) -> None:
    log = shutil.copy(THROTTLED, tmp_path / "tegrastats.log")
    value = bench(tmp_path, tegrastats=Path(log))
    assert value["power"]["log"]["name"] == "tegrastats.log"
    for subject in value["subjects"]:
        for entry in subject["batches"]:
            assert entry["verdict"] == "INVALID"
            assert any("tegrastats.log: GPU clock fell from 1300 to 918 MHz" in reason for reason in entry["reasons"])


def test_a_log_that_is_none_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("hello\n")
    with pytest.raises(UserError, match="log"):
        bench(tmp_path, tegrastats=tmp_path / "log")
    assert not (tmp_path / "bench.json").exists()


def test_no_figure_of_an_emulated_machine_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "emulated").write_text("qemu-aarch64 runs the instructions\n", encoding="utf-8")
    monkeypatch.setattr(environment, "EMULATED_MARKER", tmp_path / "emulated")
    results = bench(tmp_path)
    assert results["environment"]["emulated"]
    for entry in (entry for subject in results["subjects"] for entry in subject["batches"]):
        for part in filter(None, (entry, entry["cold"])):
            assert (part["verdict"], part["valid"]) == ("INVALID", False)
            assert part["reasons"][0] == "emulated: qemu-aarch64 runs the instructions"
    page = markdown_of(results)
    assert "0 validly" in page
    assert "emulated" in page
    with pytest.raises(UserError, match=r"machine is emulated.*--scenario"):
        run_bench([tmp_path / "network0.onnx"], QUICK, Plan(scenarios=(ScenarioSettings(scenario="single-stream"),)))


def places(value: Any, path: tuple[Any, ...] = (), depth: int = 5) -> list[tuple[Any, ...]]:
    """Every key of the first of each list, as deep as `depth`."""
    if depth == 0 or not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else list(range(min(1, len(value))))
    return [spot for key in keys for spot in ((*path, key), *places(value[key], (*path, key), depth - 1))]


def test_damaged_results_are_one_line_or_a_whole_report(
    tmp_path: Path, results: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spots = places(results)
    assert len(spots) > 100
    codes = set()
    for index, path in enumerate(spots[:: max(1, len(spots) // 60)]):
        damaged = copy.deepcopy(results)
        parent: Any = damaged
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and index % 2:
            del parent[path[-1]]
        else:
            parent[path[-1]] = [None, "text", -1, [], {}][index % 5]
        Path("bench.json").write_text(json.dumps(damaged))
        code = _run(["report", "bench.json"])
        error = capsys.readouterr().err
        codes.add(code)
        assert code in (0, 2), path
        assert len(error.splitlines()) == (code == 2), (path, error)
    assert codes == {0, 2}
