"""The folder of a run: make it, find it again, and lock it against other processes.

`model.safetensors` is the best epoch by validation top-1, `history.json` the settings and every epoch; a stopped run goes on
from `snapshots/` (`alexnet_edge.training.snapshot`).
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.errors import CheckpointError, OutputError, UserError
from alexnet_edge.files import MALFORMED, writing
from alexnet_edge.network.checkpoint import HISTORY_FILE
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.snapshot import newest_first

SCHEMA = 2
MODEL_FILE = "model.safetensors"
LOCK_FILE = ".lock"


def new_folder(settings: TrainSettings) -> Path:
    """Make the run's folder; a run never writes into another's.

    Raises:
        OutputError: when the name is taken, or the folder cannot be made.
        UserError: when the name is not a plain one.
    """
    runs = Path(settings.runs)
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
    if settings.name is not None:
        names = [_plain(settings.name)]
    else:
        stem = re.sub(r"[^\w.+-]+", "-", f"{Path(settings.data).name}-{settings.arch}").strip("-.")
        names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    for name in names:
        with writing(runs / name), suppress(FileExistsError):
            (runs / name).mkdir()
            return runs / name
    raise OutputError("the run folder is already there", value=runs / names[0], fix="choose another --name")


def run_to_go_on(settings: TrainSettings) -> Path | None:
    """The run that `settings` began, or None when there is none yet.

    It is the one called `settings.name`; without a name the one that was written last of those with the same settings,
    finished ones only when none is unfinished.

    Raises:
        UserError: when the run of that name was started with other settings.
    """
    if settings.name is not None:
        folder = Path(settings.runs) / _plain(settings.name)
        history = read_history(folder)
        if history is None:
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK_FILE}:
                discard_if_empty(folder)  # its run was killed before it wrote anything
            return None
        other = _difference(history, settings)
        if other:
            problem, fix = f"this run was started with another {other}", "choose another --name, or --resume it"
            raise UserError(problem, value=folder, fix=fix)
        return folder
    same_runs = []
    for path in Path(settings.runs).glob(f"*/{HISTORY_FILE}"):
        history = read_history(path.parent)
        if history is not None and not _difference(history, settings):
            same_runs.append((not history["complete"], path.stat().st_mtime_ns, path.parent))
    return max(same_runs)[2] if same_runs else None


def read_history(folder: Path) -> dict[str, Any] | None:
    """The history that a run of this version wrote, or None when there is none to read."""
    try:
        value = records.parse((folder / HISTORY_FILE).read_bytes())
        TrainSettings.from_json(value["settings"])
        known = value["schema"] == SCHEMA and isinstance(value["complete"], bool) and isinstance(value["recipe"], dict)
    except (OSError, *MALFORMED):
        return None
    return dict(value) if known else None


def read_settings(folder: Path) -> TrainSettings:
    """The settings that the run in `folder` was started with.

    Raises:
        CheckpointError: when there is no run to go on with.
    """
    history = read_history(folder)
    if history is None or history["complete"]:
        done = history is not None or (folder / MODEL_FILE).is_file()
        problem = "the run is finished, nothing is left to resume" if done else "no interrupted run here"
        raise CheckpointError(problem, value=folder, fix="start a new one with `alexnet-edge train`")
    return TrainSettings.from_json(history["settings"])


def _difference(history: Mapping[str, Any], settings: TrainSettings) -> str | None:
    """The first setting that differs."""
    identity = settings.identity()
    recorded = {**TrainSettings.from_json(history["settings"]).identity(), "recipe": history["recipe"]}
    for key, value in identity.items():
        if key == "recipe":
            changed = [name for name, number in value.items() if recorded["recipe"].get(name) != number]
            if changed:
                return str(changed[0])
        elif recorded[key] != value:
            return key
    return None


def _plain(name: str) -> str:
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise UserError("the run's name must be a plain file name", value=name, fix="use letters and -")
    return name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the run; the lock ends with the process that holds it, however that ends.

    Raises:
        OutputError: when another process has it.
    """
    path = folder / LOCK_FILE
    with writing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by processes that decode images
        except OSError as error:
            fix = "wait for its end, or choose another --name"
            raise OutputError("another process is training this run", value=folder, fix=fix) from error
        yield
        with suppress(FileNotFoundError):
            path.unlink()
    finally:
        os.close(handle)


def discard_if_empty(folder: Path) -> None:
    """Remove the folder of a run that failed before it learned anything; one with weights in it stays."""
    if (folder / MODEL_FILE).exists() or newest_first(folder):
        return
    with suppress(OSError):
        for path in (folder / HISTORY_FILE, folder / LOCK_FILE):
            path.unlink(missing_ok=True)
        folder.rmdir()
