"""Runs that are stopped, killed or damaged go on, and end in the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import narrow_network
import psutil
import pytest
from listener import Listener
from torch import nn

from alexnet_edge.errors import CheckpointError, DataError, InterruptedRunError, OutputError, UserError
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import QuietReporter
from alexnet_edge.training import loop, snapshot
from alexnet_edge.training.distributed import World
from alexnet_edge.training.folder import locked, new_folder, run_to_go_on
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.run import resume
from alexnet_edge.training.run import train as run_training
from alexnet_edge.training.stop import Stop

MakeCheckpoint = Callable[..., Path]


def name_of(epoch: int, step: int = 0) -> str:
    return f"epoch-{epoch:04d}-step-{step:06d}.safetensors"


def names(folder: Path) -> list[str]:
    return [path.name for path in snapshot.newest_first(folder)]


def stopped(settings: TrainSettings, steps: int, number: int = signal.SIGINT) -> Path:
    """The folder of a run that a signal stopped."""
    before = {path.name for path in Path(settings.runs).glob("*")}
    with pytest.raises(InterruptedRunError, match=r"stopped in epoch \d+ of \d+; go on with: .*--resume ") as caught:
        run_training(settings, reporter=Listener(steps, number))
    assert caught.value.exit_code == 128 + number
    (folder,) = [path for path in Path(settings.runs).iterdir() if path.name not in before]
    return folder


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "paper": {"first_weights": "paper", "schedule": "plateau", "patience": 1, "lighting_sigma": 0.1},
    "modern": {
        "precision": "bf16",
        "channels_last": True,
        "ema": 0.3,
        "label_smoothing": 0.1,
        "rescale": True,
        "clip": 1,
    },
    "fp16": {"precision": "fp16", "accumulate": 2, "features_lr": 0.1},
    "frozen": {"freeze": "features", "rescale": True},
    "qat": {"freeze": "features", "qat": "int8"},
}


@pytest.mark.parametrize(
    ("steps", "number", "place"),
    [
        (1, signal.SIGINT, (0, 2)),  # within the first epoch
        (3, signal.SIGTERM, (0, 3)),  # at its end
        (4, signal.SIGINT, (1, 2)),  # within the second
    ],
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_run_is_the_undisturbed_one_bit_for_bit(
    settings: TrainSettings, steps: int, number: int, place: tuple[int, int], recipe: str
) -> None:
    settings = replace(settings, keep=1, **RECIPES[recipe])
    undisturbed = run_training(settings)
    if recipe in ("frozen", "qat"):
        steps += 2 + 1  # two views of the training images and one of the others are reported before the steps
    folder = stopped(settings, steps, number)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert names(folder) == [name_of(*place)]
    resumed = resume(folder)
    assert resumed.complete
    assert narrow_network.same_end(folder, undisturbed.run)
    assert narrow_network.same_weights(resumed.checkpoint, undisturbed.checkpoint)
    assert [row.accuracy for row in resumed.history] == [row.accuracy for row in undisturbed.history]
    assert resumed.best.epoch == undisturbed.best.epoch
    with pytest.raises(CheckpointError, match="finished, nothing is left to resume"):
        resume(folder)


def test_resumed_run_of_a_real_network_is_the_undisturbed_one(settings: TrainSettings) -> None:
    real = replace(settings, arch="two-tower", keep=1, lr=1e-4)
    undisturbed = run_training(real)
    folder = stopped(real, 2)
    assert narrow_network.same_weights(resume(folder).checkpoint, undisturbed.checkpoint)
    assert narrow_network.same_end(folder, undisturbed.run)


@pytest.mark.slow
def test_run_killed_at_twenty_random_moments_ends_as_the_undisturbed_one(image_folder: Path, tmp_path: Path) -> None:
    script = Path(narrow_network.__file__).with_name("killed_runs.py")
    command = [sys.executable, script, image_folder, tmp_path / "runs", "20"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    counts = json.loads(answer.stdout)
    assert counts["killed"] == 20
    undisturbed = tmp_path / "runs/undisturbed"
    for number in range(counts["runs"]):
        killed = tmp_path / f"runs/killed-{number}"
        assert narrow_network.same_end(killed, undisturbed)
        assert narrow_network.same_weights(killed / "model.safetensors", undisturbed / "model.safetensors")
        assert not list(killed.rglob(".*.tmp*"))


def test_ctrl_c_waits_for_the_end_of_the_step(settings: TrainSettings) -> None:
    steps = []

    def press(model: nn.Module, inputs: Any, output: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        steps.append("the step went on")

    stop = Stop()
    run = loop.TrainingRun(settings, World(), QuietReporter(), stop, 0.0)
    run.prepare(new_folder(settings), None)
    run.model.fc8.register_forward_hook(press)
    with stop.listening(), pytest.raises(InterruptedRunError, match="stopped in epoch 1"):
        run.go()
    assert steps == ["the step went on"]
    assert run.step == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_interrupts_at_once() -> None:
    stop = Stop()
    stop.preparing = False
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGTERM, InterruptedRunError), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_before_the_first_step_ends_the_run_at_once_and_leaves_nothing(
    settings: TrainSettings, number: int, kind: type[BaseException]
) -> None:
    run = replace(settings, freeze="features", pool="processes", workers=1)
    with pytest.raises(kind) as caught:
        run_training(run, reporter=Listener(1, number))  # at the first features
    if isinstance(caught.value, InterruptedRunError):
        assert caught.value.exit_code == 143
        assert str(caught.value) == "stopped before the first step; start it again with the same command"
    assert list(Path(settings.runs).iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_to_every_process_at_once_ends_the_run_with_a_snapshot(image_folder: Path, tmp_path: Path) -> None:
    """As batch systems and service managers send it: to the readers of images, too."""
    options = "--arch tiny --recipe notebook --epochs 4000 --batch 8 --threads 1 --pool processes --workers 2"
    options += " --device cpu --lr 0.001 --save-minutes 0 --name run"
    command = [sys.executable, "-m", "alexnet_edge", "train", "--data", image_folder, "--runs", tmp_path]
    with subprocess.Popen([*command, *options.split()], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        until = time.monotonic() + 300
        while not snapshot.newest_first(tmp_path / "run") and time.monotonic() < until:
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        for each in (*children, psutil.Process(process.pid)):
            each.terminate()
        error = process.stderr.read()
    assert process.returncode == 143, error
    last = error.splitlines()[-1]
    assert last.startswith("alexnet-edge: stopped in epoch "), error
    assert last.endswith(f" of 4000; go on with: alexnet-edge train --resume {tmp_path / 'run'}")
    assert snapshot.read(snapshot.newest_first(tmp_path / "run")[0]).state["step"] >= 0
    assert len(children) >= 2
    assert psutil.wait_procs(children, timeout=60)[1] == [], "no reader is left"


def test_time_limit_ends_the_run_with_a_checkpoint(settings: TrainSettings) -> None:
    undisturbed = run_training(settings)
    result = run_training(replace(settings, max_minutes=1e-6))
    assert not result.complete
    assert result.checkpoint.is_file()
    assert names(result.run) == [name_of(0, 1)]
    assert resume(result.run).complete
    assert narrow_network.same_end(result.run, undisturbed.run)


@pytest.mark.parametrize(("keep", "epochs"), [(0, []), (1, [3]), (2, [3, 2])])
def test_last_snapshots_and_the_best_weights_stay(settings: TrainSettings, keep: int, epochs: list[int]) -> None:
    result = run_training(replace(settings, keep=keep, epochs=3))
    assert names(result.run) == list(map(name_of, epochs))
    assert (result.run / "snapshots").exists() == bool(epochs)
    assert load_checkpoint(result.checkpoint).info.metrics["epoch"] == result.best.epoch


def test_snapshots_within_an_epoch_come_every_so_many_minutes(settings: TrainSettings) -> None:
    result = run_training(replace(settings, save_minutes=0.0, keep=99, epochs=1))
    assert names(result.run) == [name_of(1), *(name_of(0, step) for step in (3, 2, 1))]


def test_damaged_snapshot_is_set_aside_and_the_one_before_it_taken(settings: TrainSettings) -> None:
    settings = replace(settings, save_minutes=0.0, keep=9)
    undisturbed = run_training(settings)
    folder = stopped(settings, 2)
    newest, before = snapshot.newest_first(folder)[:2]
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    newest.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the snapshot is damaged \(ValueError: its checksum is another\)"):
        snapshot.read(newest)
    listener = Listener()
    resume(folder, reporter=listener)
    assert any("is set aside" in note and newest.name in note for note in listener.notes)
    assert f"going on from {before}" in listener.notes
    assert newest.with_suffix(".damaged").is_file()
    assert narrow_network.same_end(folder, undisturbed.run)


def test_every_damage_to_a_snapshot_is_noticed(settings: TrainSettings, tiny_checkpoint: MakeCheckpoint) -> None:
    path = snapshot.newest_first(run_training(settings).run)[0]
    content = path.read_bytes()
    places = random.Random(0)
    assert snapshot.read(path).state["epoch"] == 2
    contents = [b"", b"\x10\0\0\0\0\0\0\0{}", content[: len(content) // 2], tiny_checkpoint().read_bytes()]
    for _ in range(60):
        damaged = bytearray(content)
        damaged[places.randrange(len(content))] ^= 1 << places.randrange(8)
        contents.append(bytes(damaged))
    for text in contents:
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match="the snapshot is damaged"):
            snapshot.read(path)


def test_run_without_a_whole_snapshot_begins_anew(settings: TrainSettings) -> None:
    undisturbed = run_training(settings)
    folder = stopped(settings, 2)
    for path in snapshot.newest_first(folder):
        path.write_bytes(b"damaged")
    listener = Listener()
    resume(folder, reporter=listener)
    assert f"{folder} has no snapshot yet: the run begins anew" in listener.notes
    assert narrow_network.same_end(folder, undisturbed.run)


def test_nothing_to_resume(tmp_path: Path) -> None:
    for text in (None, '{"schema": 1}'):
        if text is not None:
            (tmp_path / "history.json").write_text(text)
        with pytest.raises(CheckpointError, match="no interrupted run here"):
            resume(tmp_path)


def test_resume_refuses_changed_images(settings: TrainSettings, image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    folder = stopped(replace(settings, data=str(copy)), 1)
    (copy / "train/red/0.jpg").unlink()
    with pytest.raises(DataError, match="not those the run began with"):
        resume(folder)
    assert snapshot.newest_first(folder), "nothing is lost"


def test_resume_auto_goes_on_with_the_run_of_these_settings(settings: TrainSettings) -> None:
    other = stopped(replace(settings, seed=5), 1)
    folder = stopped(settings, 1)
    assert run_to_go_on(settings) == folder
    assert run_to_go_on(replace(settings, seed=5, threads=2, keep=7)) == other
    assert run_to_go_on(replace(settings, seed=6)) is None
    assert run_training(settings, go_on=True).run == folder
    listener = Listener()
    again = run_training(settings, go_on=True, reporter=listener)
    assert (again.run, again.complete, len(again.history)) == (folder, True, 2)
    assert listener.notes == [f"the run is finished: {folder}"]
    assert run_training(settings).run != folder, "without it, a new one begins"


def test_resume_auto_by_name(settings: TrainSettings) -> None:
    mine = replace(settings, name="mine")
    (Path(settings.runs) / "mine").mkdir(parents=True)  # its run was killed before it wrote anything
    assert run_training(mine, go_on=True).run.name == "mine"
    with pytest.raises(UserError, match=r"started with another lr: .*mine; choose another --name, or --resume it"):
        run_training(replace(mine, lr=0.5), go_on=True)
    with pytest.raises(UserError, match=r"started with another seed: .*mine"):
        run_training(replace(mine, seed=3), go_on=True)


def test_two_processes_never_train_the_same_run(settings: TrainSettings) -> None:
    folder = stopped(settings, 1)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from alexnet_edge.training.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another process is training this run"):
            resume(folder)
        holder.kill()
    with locked(folder):
        pass
    assert resume(folder).complete


def test_stopped_command_says_how_to_go_on_and_goes_on(image_folder: Path, tmp_path: Path, run_cli: Any) -> None:
    options = (
        "--arch tiny --recipe notebook --epochs 2 --batch 8 --threads 1 --workers 0 --resume auto --max-minutes 1e-6"
    )
    command = ("train", "--data", image_folder, *options.split())
    first = run_cli(*command)
    assert first.returncode == 0, first.stderr
    assert "time limit reached; go on with: alexnet-edge train --resume runs/" in first.stderr
    folder = run_cli.folder / "runs" / f"{image_folder.name}-tiny"
    assert names(folder) == [name_of(0, 1)]
    second = run_cli("train", "--resume", folder, "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["complete"]
    third = run_cli(*command[:-2])
    assert third.returncode == 0, third.stderr
    assert f"the run is finished: runs/{folder.name}" in third.stderr
    assert "nothing is left to resume" in run_cli.refuses("train", "--resume", folder)
