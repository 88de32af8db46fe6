"""Snapshots: the whole state of a run, each in one file that is written whole or not at all.

A snapshot is a safetensors file `snapshots/epoch-0003-step-000012.safetensors` in the run's folder: weights, momentum and
averaged weights, and in its header settings, recipe, place in the run, history and the state of the loss scaler. Random
numbers need no state: they are a function of the seed and the place. The header also has a SHA-256 over everything; a file
that does not match is set aside, and the run continues from the one before it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.errors import CheckpointError, needs
from alexnet_edge.files import MALFORMED, staged, writing

with needs("train"):
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
    from torch import Tensor

SCHEMA = 2
FOLDER = "snapshots"
_NAME = re.compile(r"epoch-(\d+)-step-(\d+)\.safetensors")
_HEADER_KEY = "alexnet-edge-snapshot"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A snapshot that was read."""

    path: Path
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def write(run: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int) -> Path:
    """Write a snapshot into the folder of `run`, and remove all but the newest `keep`, 1 or more.

    The tensors may be on any device, in any memory layout. `state` is JSON, with the place as `epoch` and `step`.

    Raises:
        OutputError: when it cannot be written; earlier snapshots stay.
    """
    path = run / FOLDER / f"epoch-{state['epoch']:04d}-step-{state['step']:06d}.safetensors"
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **state}, allow_nan=False)
    header = {_HEADER_KEY: text, "sha256": _digest(plain, text)}
    with staged(path) as temporary:
        save_file(plain, temporary, metadata=header)
    for old in newest_first(run)[keep:]:
        with writing(old), suppress(FileNotFoundError):
            old.unlink()
    return path


def newest_first(run: Path) -> list[Path]:
    """The snapshots of a run, the furthest first."""
    named = [(_NAME.fullmatch(path.name), path) for path in (run / FOLDER).glob("*.safetensors")]
    places = [(int(match[1]), int(match[2]), path) for match, path in named if match]
    return [path for *_, path in sorted(places, reverse=True)]


def read(path: Path) -> Snapshot:
    """Read one snapshot and compare its checksum.

    Raises:
        CheckpointError: when it is damaged, or of another version.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        text = header[_HEADER_KEY]
        if header["sha256"] != _digest(tensors, text):
            raise ValueError("its checksum is another")
        state = records.parse(text)
        if state["schema"] != SCHEMA:
            raise ValueError(f"schema {state['schema']} is not {SCHEMA}")
    except (SafetensorError, OSError, RuntimeError, *MALFORMED) as error:
        raise CheckpointError(
            f"the snapshot is damaged ({type(error).__name__}: {error})", value=path, fix="use an earlier one"
        ) from error
    return Snapshot(path=path, tensors=tensors, state=state)


def newest_whole(run: Path, note: Callable[[str], None]) -> Path | None:
    """The furthest snapshot of a run that is whole, if there is one; damaged ones beyond it are renamed, with a note.

    Raises:
        OutputError: when one cannot be renamed.
    """
    for path in newest_first(run):
        try:
            return read(path).path
        except CheckpointError as error:
            note(f"{error.problem}: {path} is set aside")
            with writing(path):
                path.replace(path.with_suffix(".damaged"))
    return None


def remove_leftovers(run: Path) -> None:
    """Remove the half-written files of a killed process."""
    for folder in (run, run / FOLDER):
        for path in folder.glob(".*.tmp*"):
            with suppress(OSError):
                path.unlink()


def remove_all(run: Path) -> None:
    """Remove every snapshot of a run that no longer needs any."""
    for path in newest_first(run):
        with writing(path), suppress(FileNotFoundError):
            path.unlink()
    with suppress(OSError):  # something else is in it
        (run / FOLDER).rmdir()


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
