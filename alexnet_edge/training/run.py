"""A training run: from images, or from frozen features, to the best epoch's weights in a folder of its own.

A snapshot is written at the end of every epoch, every ten minutes in between, and when Ctrl-C, SIGTERM or the time limit
ends the run. `resume` continues from the furthest one. On a processor, with the same number of threads and processes, the
resumed run ends in the same weights, bit for bit, as one that was never stopped: order and views are a function of seed and
epoch, dropout of seed, step and rank.

Several processes started by `torchrun` train one network; each computes its part of every batch. With the same batch they
take the same steps as one process, up to rounding, where dropout is 0. With dropout each process draws its own.

Every network is trained on its logits, the `notebook` architecture too. The notebook itself passes its softmax output to a
loss that applies the softmax again; that fault is not copied.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet_edge.errors import DataError, needs
from alexnet_edge.images.datasets import SYNTHETIC
from alexnet_edge.network.load import TORCHVISION
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.training import snapshot as snapshots
from alexnet_edge.training.folder import (
    MODEL_FILE,
    discard_if_empty,
    locked,
    new_folder,
    read_history,
    read_settings,
    run_to_go_on,
)
from alexnet_edge.training.history import EpochRow, TrainResult
from alexnet_edge.training.log import TensorBoardLog
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.snapshot import Snapshot
from alexnet_edge.training.stop import Stop

with needs("train"):
    from alexnet_edge.training.distributed import World, joined
    from alexnet_edge.training.loop import TrainingRun


def train(settings: TrainSettings, *, go_on: bool = False, reporter: Reporter | None = None) -> TrainResult:
    """Train a network and leave its best weights in a run folder.

    With `go_on`, continue the run that these settings began, or return its result when it is finished; a new one begins only
    where there is none. Processes that `torchrun` starts again always go on.

    Raises:
        UserError: when a setting is out of range.
        DataError, ImageError: when the images cannot be used.
        CheckpointError: when the file to start from cannot be used.
        OutputError: when the run folder cannot be made or written, or another process trains this run.
        DivergedError: when the loss or the gradient is no longer finite; the message names the step and what was saved.
        InterruptedRunError: on Ctrl-C and SIGTERM, after a snapshot was written.
    """
    settings = replace(
        settings,
        data=settings.data if settings.data == SYNTHETIC else str(Path(settings.data).absolute()),
        init=settings.init if settings.init in (None, TORCHVISION) else str(Path(settings.init).absolute()),
    )
    settings.resolved()
    with joined(settings.device) as world:
        folder = None
        if go_on or world.restarts:
            folder = world.from_first(lambda: run_to_go_on(settings))
        return _train(settings, folder, world, reporter)


def resume(folder: Path, *, changes: Mapping[str, Any] | None = None, reporter: Reporter | None = None) -> TrainResult:
    """Go on with a run that was stopped or killed, from its furthest snapshot.

    `changes` are settings that may differ now: those of `recipe.CHANGEABLE`. An earlier `max_minutes` no longer holds.

    Raises:
        CheckpointError: when there is nothing to resume.
        DataError: when the images are gone or no longer those the run began with.
        Others as `train` does.
    """
    settings = replace(read_settings(folder), **{"max_minutes": None, **(changes or {})})
    settings.resolved()
    with joined(settings.device) as world:
        return _train(settings, folder, world, reporter)


def _train(settings: TrainSettings, earlier: Path | None, world: World, reporter: Reporter | None) -> TrainResult:
    """Begin a run, or continue the one in the folder `earlier`."""
    started = time.monotonic()
    if reporter is None or not world.first:
        reporter = QuietReporter()
    if earlier is not None:
        history = world.from_first(lambda: read_history(earlier))
        if history is not None and history["complete"]:
            reporter.note(f"the run is finished: {earlier}")
            return _finished(earlier, history, seconds=time.monotonic() - started, first=world.first)
    stop = Stop()
    with stop.listening():
        run = TrainingRun(settings, world, reporter, stop, started)
        folder = earlier or world.from_first(lambda: new_folder(settings))
        try:
            with ExitStack() as stack:
                world.from_first(lambda: stack.enter_context(locked(folder)))
                stack.callback(run.close)
                run.prepare(folder, _furthest(folder, run, world, reporter) if earlier else None)
                if settings.tensorboard and world.first:
                    run.log = stack.enter_context(TensorBoardLog(folder, steps_done=run.steps * run.epoch + run.step))
                return run.go()
        finally:
            if world.first:
                discard_if_empty(folder)


def _finished(folder: Path, history: Mapping[str, Any], *, seconds: float, first: bool) -> TrainResult:
    """The result of a run that is complete, as its history records it."""
    return TrainResult(
        run=folder,
        checkpoint=folder / MODEL_FILE,
        best=EpochRow(**history["best"]),
        history=tuple(EpochRow(**row) for row in history["epochs"]),
        seconds=seconds,
        complete=True,
        skipped=tuple(history["skipped"]),
        first=first,
    )


def _furthest(folder: Path, run: TrainingRun, world: World, reporter: Reporter) -> Snapshot | None:
    """The snapshot to continue from, the same in every process; None to begin anew.

    Raises:
        DataError: when the images are no longer those the run began with.
    """

    def newest_whole() -> Path | None:
        snapshots.remove_leftovers(folder)
        return snapshots.newest_whole(folder, reporter.note)

    path = world.from_first(newest_whole)
    if path is None:
        reporter.note(f"{folder} has no snapshot yet: the run begins anew")
        return None
    snapshot = snapshots.read(path)
    if snapshot.state.get("data_hash") != run.images.content_hash():
        problem = "the training images are not those the run began with"
        raise DataError(problem, value=run.settings.data, fix="put them back, or start a new run")
    reporter.note(f"going on from {path}")
    return snapshot
