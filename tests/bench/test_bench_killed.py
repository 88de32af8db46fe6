"""A bench that is killed at any moment leaves what it had finished, readable; no process; and the power mode as it was."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from machine_tree import Tools
from small_artifacts import write_artifact

from alexnet_edge.bench.machine import power_mode
from alexnet_edge.bench.report.text import csv_of, markdown_of
from alexnet_edge.bench.rounds.results import read_results

BENCH = """
import functools, sys
from pathlib import Path
from alexnet_edge.bench.rounds import run
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.images.datasets import synthetic

folder, tools = Path(sys.argv[1]), sys.argv[2]
board = {"root": folder / "root", "state": folder / "journal"}
run.power_mode = functools.partial(run.power_mode, **board, path=tools, euid=0)
run.restore_left_over = functools.partial(run.restore_left_over, **board)
settings = MeasureSettings(
    batches=(1, 4), rounds=8, percentile=50, min_seconds=0.2, max_seconds=5, min_warmup_seconds=0.01, cold=False
)
plan = run.Plan(power_mode="15W", lock_clocks=True, harness=False, threads=(1,), roofline=False)
run.run_bench(
    sorted(folder.glob("*.onnx")), settings, plan, images=synthetic("val").spread(4), out=folder / "bench.json"
)
"""


def rounds_in(results: Path) -> int:
    return len(read_results(results)["subjects"][0]["rounds"])


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    tools = Tools(tmp_path)
    boot = tmp_path / "root/proc/sys/kernel/random/boot_id"
    boot.parent.mkdir(parents=True)
    boot.write_text("first\n")
    before = tools.now
    for seed in range(2):
        write_artifact(tmp_path / f"network{seed}.onnx", seed=seed)
    out = tmp_path / "bench.json"
    moments = random.Random(20)
    finished_rounds, inside = set(), 0
    for index in range(20):
        out.unlink(missing_ok=True)
        bench = subprocess.Popen([sys.executable, "-c", BENCH, str(tmp_path), tools.path], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while not out.exists() or rounds_in(out) < index % 4:  # written first with nothing measured
            assert bench.poll() is None, bench.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 1))
        inside += tools.now != before
        bench.send_signal(signal.SIGSTOP)  # so that it starts nothing while its children are listed
        children = psutil.Process(bench.pid).children(recursive=True)
        bench.send_signal(signal.SIGKILL)
        bench.communicate()
        value = read_results(out)
        assert value["finished"] is False
        assert not value["interrupted"]
        for subject in value["subjects"]:
            finished_rounds.add(len(subject["rounds"]))
            for entry in subject["batches"]:
                assert entry["count"] == sum(len(taken["samples_ns"]) for taken in entry["samples"]) > 0
        assert "network" in markdown_of(value)
        assert len(csv_of(value).splitlines()) >= 3
        with power_mode._locked(tmp_path / "journal"):  # the guard holds it until it has put everything back
            assert tools.now == before
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
    assert inside >= 10, "most moments must lie inside the power mode"
    assert len(finished_rounds) >= 3, finished_rounds
