"""Two processes that `torchrun` starts train as one, and a killed one does not end the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import narrow_network
import numpy as np
import psutil
import pytest
import torch
from torch import distributed as dist

from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.training import distributed, snapshot
from alexnet_edge.training.distributed import World, joined, meet
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.run import train

EPOCHS = 12
OPTIONS = ["--arch", "tiny", "--recipe", "notebook", "--epochs", str(EPOCHS), "--lr", "0.002", "--ema", "0.2"]
OPTIONS += ["--schedule", "plateau", "--threads", "1", "--workers", "0", "--device", "cpu", "--name", "run"]
SHARES = ["--batch", "10", "--dropout", "0"]
"""24 images: the last batch has 4."""

LATE = """
import os, time
if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "1":
    time.sleep(2)
"""
"""After a restart the second process comes late, and the first one finds what the killed one left in the launcher's store."""

Torchrun = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def torchrun(image_folder: Path, tmp_path: Path) -> Iterator[Torchrun]:
    """`torchrun(options, processes=2)` starts `alexnet-edge train` in a process group of its own."""
    started: list[subprocess.Popen[str]] = []
    path = narrow_network.python_path(tmp_path / "site", first=LATE)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def start(*options: str, processes: int = 2, restarts: int = 0) -> subprocess.Popen[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        launcher += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m", "alexnet_edge", "train"]
        launcher += ["--data", str(image_folder), "--runs", str(tmp_path / "runs")]
        command, pipe = [sys.executable, *launcher, *options], subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> str:
    """Standard output of a process that must end well, and without a warning."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "Warning" not in err
    return out


def wait_for_snapshot(tmp_path: Path) -> Path:
    """The run's folder, once its first snapshot is in it."""
    folder, until = tmp_path / "runs/run", time.monotonic() + 300
    while not snapshot.newest_first(folder) and time.monotonic() < until:
        time.sleep(0.01)
    return folder


def test_two_processes_learn_as_one(torchrun: Torchrun, image_folder: Path, tmp_path: Path) -> None:
    two = json.loads(ended(torchrun(*OPTIONS, *SHARES, "--accumulate", "2", "--json")))  # one process prints, once
    same: dict[str, Any] = {"epochs": EPOCHS, "batch": 10, "lr": 0.002, "ema": 0.2, "dropout": 0.0, "arch": "tiny"}
    same |= {"recipe": "notebook", "schedule": "plateau", "threads": 1, "workers": 0, "device": "cpu"}
    single = train(TrainSettings(data=str(image_folder), runs=str(tmp_path / "one"), **same))
    assert len(two["history"]) == EPOCHS
    for row, expected in zip(two["history"], single.history, strict=True):
        for name in ("loss", "val_loss", "gradient_norm", "lr"):
            assert row[name] == pytest.approx(getattr(expected, name), rel=2e-4), (name, expected.epoch)
        assert row["accuracy"] == pytest.approx(expected.accuracy, abs=1.01 / 24)
        assert row["top1"] == pytest.approx(expected.top1, abs=1.01 / 12)
    assert single.history[-1].loss < single.history[0].loss
    shared, alone = load_checkpoint(Path(two["checkpoint"])), load_checkpoint(single.checkpoint)
    if shared.info.metrics["epoch"] == alone.info.metrics["epoch"]:
        for name, value in alone.weights.items():
            np.testing.assert_allclose(shared.weights[name], value, rtol=5e-3, atol=1e-5, err_msg=name)
    assert shared.info.recipe["processes"] == 2
    ends = [snapshot.read(snapshot.newest_first(run)[0]) for run in (Path(two["run"]), single.run)]
    for name, tensor in ends[1].tensors.items():
        torch.testing.assert_close(ends[0].tensors[name], tensor, rtol=5e-3, atol=1e-4)


@pytest.mark.slow
def test_killed_process_is_started_again_and_the_run_ends_as_if_undisturbed(torchrun: Torchrun, tmp_path: Path) -> None:
    options = [*OPTIONS, "--batch", "8", "--json"]
    ended(torchrun(*options))
    (tmp_path / "runs/run").rename(tmp_path / "undisturbed")
    process = torchrun(*options, "--save-minutes", "0", restarts=1)
    folder = wait_for_snapshot(tmp_path)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "going on from" in err
    assert json.loads(out[out.index("{") :])["complete"]
    assert narrow_network.same_end(folder, tmp_path / "undisturbed")
    assert narrow_network.same_weights(folder / "model.safetensors", tmp_path / "undisturbed/model.safetensors")


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_with_a_snapshot(torchrun: Torchrun, tmp_path: Path) -> None:
    process = torchrun(*OPTIONS, "--batch", "8", "--save-minutes", "0", "--epochs", "400")
    folder = wait_for_snapshot(tmp_path)
    psutil.Process(process.pid).children()[1].terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("alexnet-edge: stopped in epoch") == 1, err
    assert snapshot.read(snapshot.newest_first(folder)[0]).state["processes"] == 2


def test_mistakes_are_said_once(torchrun: Torchrun) -> None:
    process = torchrun(*OPTIONS, "--batch", "9")
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    lines = [line for line in err.splitlines() if line.startswith("alexnet-edge: ")]
    problem = "2 processes cannot share a batch evenly: 9; choose a --batch that is a multiple of 2"
    assert lines == [f"alexnet-edge: {problem}"]


def started(store: dist.Store, *, late: int, restarts: tuple[int, ...] = (0, 0, 0)) -> tuple[str, int]:
    """What three processes agree on; one comes late."""

    def process(rank: int) -> tuple[str, int]:
        time.sleep(0.2 * (rank == late))
        return meet(store, World(rank=rank, size=3, restarts=restarts[rank]))

    with ThreadPoolExecutor(3) as pool:
        (agreed,) = set(pool.map(process, range(3)))
    return agreed


def test_every_start_has_a_name_of_its_own_whoever_comes_last() -> None:
    store = dist.HashStore()
    starts = [started(store, late=late) for late in (0, 1, 0, 2, 1)]
    assert len({name for name, _ in starts}) == 5
    assert [restarts for _, restarts in starts] == [0, 1, 2, 3, 4], "the launcher's store outlives its processes"


def test_one_process_meets_nobody() -> None:
    store = dist.HashStore()
    assert [meet(store, World(launched=True))[1] for _ in range(2)] == [0, 1]


def test_restarts_are_the_highest_number_that_any_launcher_counts() -> None:
    assert started(dist.HashStore(), late=0, restarts=(0, 0, 2))[1] == 2
    assert started(dist.HashStore(), late=1, restarts=(3, 0, 2))[1] == 3


@pytest.mark.parametrize(("rank", "missing"), [(0, "rank 1, 2"), (1, "rank 0")])
def test_processes_that_do_not_come_are_named(rank: int, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    started(store, late=0)
    monkeypatch.setattr(distributed, "JOIN_TIMEOUT_S", 0.2)
    with pytest.raises(UserError, match=f"of 3 processes .* some did not come within 0 s: {missing}; see"):
        meet(store, World(rank=rank, size=3))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_make_up_the_whole(size: int) -> None:
    for begin, end in ((0, 21), (5, 9), (3, 3), (0, 1)):
        parts = [list(World(rank=rank, size=size).part(begin, end)) for rank in range(size)]
        assert [place for part in parts for place in part] == list(range(begin, end))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as world:
        assert (world.rank, world.size, world.first, world.launched) == (0, 1, True, False)
        assert world.sums([1.5, 2]) == [1.5, 2.0]
        assert world.from_first(lambda: "x") == "x"
        assert world.gather([1]) == [[1]]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number: two; start the run with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE are set, MASTER_ADDR is not; start the run with"),
    ],
)
def test_incomplete_environment_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), joined("cpu"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(MissingComponentError, match="torch sees no CUDA GPU here; use --device cpu"), joined("cuda"):
        pass
