"""Peers: the same checkpoint in other tools, each by its own default export, prepared and measured beside ours.

A peer is prepared and run in processes of its own, of the interpreter that has it: several cannot be installed beside each
other. A peer receives the checkpoint as a `torch.nn.Module`, the images, the batch sizes and the number of threads; the rest
is the tool's own default, see `peer_tools.py`. A prepared peer is a small JSON file, `NAME.peer`, beside the files that the
tool wrote; `alexnet-edge bench` measures it as it does an artifact.

    python -m alexnet_edge.bench.peers '{"peer": NAME, "checkpoint": FILE, "folder": FOLDER, "batches": [1, 16], ...}'

Letters: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import alexnet_edge
from alexnet_edge import records
from alexnet_edge.artifact import INPUT, TensorSpec
from alexnet_edge.bench.peer_tools import NNCF, PEERS, Peer, Source
from alexnet_edge.errors import AlexNetEdgeError, ArtifactError, MissingComponentError, UserError
from alexnet_edge.files import MALFORMED, sha256_json, write_json
from alexnet_edge.images.datasets import ImageSet, reopen
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import CheckpointInfo
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.sessions.base import Session

SUFFIX = ".peer"
SCHEMA = 1
PREPARE_SECONDS = 1200
"""A tool that is still converting after this time is stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a `.peer` file says."""

    path: Path
    peer: Peer
    python: str
    """The interpreter that has the tool."""
    checkpoint: Path
    checkpoint_sha256: str
    info: CheckpointInfo
    batches: tuple[int, ...]
    bytes: int
    """Of the tool's files; of the checkpoint where it writes none."""
    parity: Mapping[str, Any]
    """Its answers against the checkpoint's: shown, not judged."""
    versions: Mapping[str, str]
    sha256: str

    @property
    def folder(self) -> Path:
        return self.path.parent


def read_peer(path: Path) -> Prepared:
    """Read a `.peer` file.

    Raises:
        ArtifactError: when it is missing or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']} is not {SCHEMA}")
        return Prepared(
            path=path,
            peer=PEERS[value["peer"]],
            python=str(value["python"]),
            checkpoint=Path(value["checkpoint"]),
            checkpoint_sha256=str(value["checkpoint_sha256"]),
            info=records.convert(CheckpointInfo, value["info"]),
            batches=tuple(int(batch) for batch in value["batches"]),
            bytes=int(value["bytes"]),
            parity=dict(value["parity"]),
            versions=dict(value["versions"]),
            sha256=sha256_json(value),
        )
    except (OSError, *MALFORMED) as error:
        raise ArtifactError(
            f"not a prepared peer ({error})", value=path, fix="prepare it with `alexnet-edge bench --peers`"
        ) from error


class PeerSession(Session):
    """A prepared peer, ready to answer."""

    def __init__(self, prepared: Prepared, *, threads: int | None = None) -> None:
        self.prepared = prepared
        self.runtime = prepared.peer.name
        info = prepared.info
        size = info.preprocessing.crop
        super().__init__(
            input=TensorSpec(name=INPUT, dtype="float32", shape=(3, size, size)),
            output=TensorSpec(name=info.arch.head, dtype="float32", shape=(info.arch.num_classes,)),
            device="cpu",
            threads=threads,
            classes=info.classes,
            head=info.arch.head,
            preprocessing=info.preprocessing,
        )

    def _load(self) -> None:
        prepared = self.prepared
        self._run = prepared.peer.open(prepared.folder, prepared.checkpoint, self.threads)

    def _prepare(self, x_NCHW: FloatArray) -> None:
        if self.prepared.peer.fixed_batch and len(x_NCHW) not in self.prepared.batches:
            known = ", ".join(map(str, self.prepared.batches))
            raise UserError(f"{self.runtime} was prepared for batches of {known}", value=len(x_NCHW), fix="choose one")
        contiguous = np.ascontiguousarray(x_NCHW)
        self._x_NCHW = contiguous if contiguous.flags.writeable else contiguous.copy()

    def _enqueue(self) -> None:
        self._y_NK = self._run(self._x_NCHW)

    def _fetch(self) -> FloatArray:
        return self._y_NK

    def _close(self) -> None:
        for name in ("_run", "_x_NCHW", "_y_NK"):
            self.__dict__.pop(name, None)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "versions": dict(self.prepared.versions), "about": self.prepared.peer.about}


def prepare_peers(
    names: Sequence[str],
    checkpoint: Path,
    *,
    batches: Sequence[int],
    folder: Path,
    images: ImageSet,
    python: Path | None = None,
    reporter: Reporter | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """Prepare each of `names` in a process of the interpreter that has it: their files, and why the others are left out.

    Args:
        names: of `PEERS`; `all` for each of them.
        checkpoint: what is given to the tools, a `.safetensors` file.
        folder: where the tools' files go, a folder each, by content; what is there already is taken.
        images: on which their answers are compared with the checkpoint's.
        python: the interpreter that has the tools; by default this one.

    Raises:
        UserError: for an unknown name, or when none can be prepared.
    """
    reporter = reporter or QuietReporter()
    chosen = _chosen(names)
    interpreter = str(python) if python is not None else sys.executable
    digest = load_checkpoint(checkpoint).sha256
    sizes = sorted({1, *batches})
    paths, left_out = list[Path](), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="alexnet-edge-peers-") as scratch:
        reference = Path(scratch) / "reference.npy"
        common: dict[str, Any] = {"checkpoint": str(checkpoint.resolve()), "batches": sizes}
        common |= {"reference": str(reference), "images": dict(images.source)}
        reporter.start("peers", len(chosen))
        for done, name in enumerate(chosen):
            reporter.update(done, name)
            takes = sizes if PEERS[name].fixed_batch else []
            key = sha256_json({"peer": name, "checkpoint": digest, "batches": takes, "python": interpreter})[:16]
            path = folder / f"{name}-{key}" / f"{name}{SUFFIX}"
            if not path.is_file():
                if not reference.is_file():
                    _write_reference(reference, checkpoint, images)
                if reason := _prepare_elsewhere(interpreter, {"peer": name, "folder": str(path.parent), **common}):
                    left_out[name] = reason
                    reporter.note(f"peer {name} is left out: {reason}")
                    continue
            paths.append(path)
        reporter.finish(f"{len(paths)} of {len(chosen)} peers prepared")
    if not paths:
        raise UserError(
            f"no peer can be prepared here ({'; '.join(f'{name}: {reason}' for name, reason in left_out.items())})",
            value=interpreter,
            fix="install them: pip install --group peers, or name an interpreter that has them with --peers-python",
        )
    return paths, left_out


def _chosen(names: Sequence[str]) -> list[str]:
    chosen = list(PEERS) if "all" in names else list(dict.fromkeys(names))
    for name in chosen:
        if name not in PEERS:
            raise UserError("no such peer", value=name, fix=f"choose from all, {', '.join(PEERS)}")
    return chosen


def _write_reference(path: Path, checkpoint: Path, images: ImageSet) -> None:
    """The checkpoint's answers on `images`, as an array `(N, K)`."""
    from alexnet_edge.proof.evaluate import outputs_NK
    from alexnet_edge.sessions import reference_session

    with reference_session(checkpoint) as session:
        np.save(path, outputs_NK(session, images)[0])


def environment_of(python: str, scratch: Path) -> dict[str, str]:
    """Environment in which another interpreter finds this package, and nothing else of this one's packages."""
    if python == sys.executable:
        return dict(os.environ)
    link = scratch / "alexnet_edge"
    if not link.exists():
        link.symlink_to(Path(alexnet_edge.__file__).resolve().parent, target_is_directory=True)
    return {**os.environ, "PYTHONPATH": str(scratch)}


def _prepare_elsewhere(python: str, options: Mapping[str, Any]) -> str:
    """Why it could not be prepared; empty when it was."""
    with tempfile.TemporaryDirectory(prefix="alexnet-edge-") as scratch:
        try:
            done = subprocess.run(
                [python, "-m", "alexnet_edge.bench.peers", json.dumps(options)],
                env=environment_of(python, Path(scratch)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=PREPARE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"still converting after {PREPARE_SECONDS} s"
        except OSError as error:
            return f"{python} cannot be run ({error.strerror})"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"it ended with code {done.returncode}")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Raises MissingComponentError for what is not installed."""
    versions: dict[str, str] = {}
    for name in packages:
        for candidate in (name, f"{name}-gpu"):
            with suppress(importlib.metadata.PackageNotFoundError):
                versions.setdefault(name, importlib.metadata.version(candidate))
        if name not in versions:
            raise MissingComponentError(f"{name} is not installed", fix=f"pip install {name}")
    return versions


def _prepare_here(options: Mapping[str, Any]) -> None:
    from alexnet_edge.proof.parity import Tolerance, check_parity
    from alexnet_edge.proof.recorded import training_images

    peer = PEERS[options["peer"]]
    versions = _versions(peer.packages)
    checkpoint = load_checkpoint(Path(options["checkpoint"]))
    images = reopen(options["images"])
    folder = Path(options["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    quantise_on = training_images(checkpoint) if isinstance(peer, NNCF) else images
    peer.prepare(Source(checkpoint=checkpoint, folder=folder, batches=tuple(options["batches"]), images=quantise_on))
    written = sum((folder / name).stat().st_size for name in peer.deployed)
    value: dict[str, Any] = {
        "schema": SCHEMA,
        "peer": peer.name,
        "python": sys.executable,
        "checkpoint": options["checkpoint"],
        "checkpoint_sha256": checkpoint.sha256,
        "info": records.to_builtins(checkpoint.info),
        "batches": options["batches"],
        "bytes": written or checkpoint.path.stat().st_size,
        "parity": {},
        "versions": versions,
    }
    path = folder / f"{peer.name}{SUFFIX}"
    staged = path.with_suffix(".json")
    write_json(staged, value)
    with PeerSession(read_peer(staged)) as session:
        report = check_parity(
            session,
            np.load(options["reference"]),
            images,
            tolerance=Tolerance(reason="a peer's answers are shown, not judged"),
            batch=1,
        )
    staged.unlink()
    write_json(path, {**value, "parity": report.to_json()})


def _main(options: str) -> int:
    try:
        _prepare_here(json.loads(options))
    except AlexNetEdgeError as error:
        print(error)
        return 2
    except Exception as error:  # noqa: BLE001  whatever a tool raises is the reason why it is left out
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
