"""What is measured, and what it is asked to answer.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, LayerPrecision
from alexnet_edge.bench import peers
from alexnet_edge.errors import AlexNetEdgeError, DataError
from alexnet_edge.files import sha256_file, sha256_json
from alexnet_edge.images.datasets import ImageSet, batches, reopen, synthetic
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.network.checkpoint import CheckpointInfo, read_info
from alexnet_edge.network.load import CHECKPOINT_SUFFIXES, load_checkpoint
from alexnet_edge.sessions import runnable
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.open import open_artifact

PEER = "peer"
"""The format of a subject that is another tool's, see `peers.py`."""

_MIN_IMAGES = 16  # different images that inferences rotate through


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured: an artifact or a checkpoint, on a device, with a number of threads."""

    path: Path
    label: str
    """For tables: `onnx fp16`, or `torch fp32` for a checkpoint; unique within a bench."""
    format: str
    """An artifact's format, `checkpoint`, or `peer`."""
    precision: str
    runtime: str
    sha256: str
    bytes: int
    checkpoint_sha256: str
    architecture: str
    num_classes: int
    preprocessing: Preprocessing
    data: Mapping[str, Any]
    """What the checkpoint was trained on, where that is known."""
    device: Device = "cpu"
    threads: int | None = None
    """Processor threads; None for every processor the worker may use."""
    min_batch: int = 1
    max_batch: int | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    """As in the manifest; empty for a checkpoint."""
    layers: tuple[LayerPrecision, ...] = ()
    calibration: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """A checkpoint's own."""
    skipped: str = ""
    """Why it cannot be run here."""
    python: str | None = None
    """The interpreter that a peer runs in; None for this one."""

    def takes(self, batch: int) -> bool:
        """Whether it can answer so many images at once."""
        return self.min_batch <= batch and (self.max_batch is None or batch <= self.max_batch)

    def to_json(self) -> dict[str, Any]:
        """What results say of a subject before it is measured."""
        value = records.to_builtins(self)
        return {
            "label": self.label,
            "file": str(self.path),
            **{name: value[name] for name in _RECORDED},
            "error": "",
            "details": {},
            "rounds": [],
            "batches": [],
            "roofline": None,
            "scenarios": [],
            "unavailable": {},
        }


_RECORDED = (
    *("format", "precision", "runtime", "architecture", "sha256", "bytes", "checkpoint_sha256", "device", "threads"),
    *("parity", "layers", "calibration", "metrics", "skipped"),
)
"""Fields of a subject that stand in results as they are."""


def open_subject(path: Path, *, device: Device = "cpu", trust: bool = False) -> Subject:
    """Read what `path` says of itself; its bytes are compared with its manifest. `trust` as in `load_artifact`.

    An engine's device is always the GPU.

    Raises:
        ArtifactError, CheckpointError: when it is missing or damaged.
    """
    if path.suffix in CHECKPOINT_SUFFIXES:
        info = read_info(path) if path.suffix == ".safetensors" else load_checkpoint(path).info
        digest = sha256_file(path)
        return Subject(
            path=path,
            label="torch fp32",
            format="checkpoint",
            precision="fp32",
            runtime="torch",
            sha256=digest,
            bytes=path.stat().st_size,
            checkpoint_sha256=digest,
            **_of_checkpoint(info),
            device=device,
            metrics=info.metrics,
        )
    if path.suffix == peers.SUFFIX:
        prepared = peers.read_peer(path)
        return Subject(
            path=prepared.path,
            label=f"{PEER} {prepared.peer.name}",
            format=PEER,
            precision=prepared.peer.precision,
            runtime=prepared.peer.name,
            sha256=prepared.sha256,
            bytes=prepared.bytes,
            checkpoint_sha256=prepared.checkpoint_sha256,
            **_of_checkpoint(prepared.info),
            parity=prepared.parity,
            python=prepared.python,
        )
    return subject_of(open_artifact(path, trust=trust), device=device)


def _of_checkpoint(info: CheckpointInfo) -> dict[str, Any]:
    return {
        "architecture": info.architecture,
        "num_classes": len(info.classes),
        "preprocessing": info.preprocessing,
        "data": info.data,
    }


def subject_of(artifact: Artifact, *, device: Device = "cpu") -> Subject:
    """What a loaded artifact's manifest says, in the form that results keep."""
    manifest = artifact.manifest
    return Subject(
        path=artifact.path,
        label=artifact.label,
        **{name: getattr(manifest, name) for name in _OF_MANIFEST},
        num_classes=manifest.output.shape[-1],
        data=_recorded_data(Path(manifest.checkpoint)),
        device="cuda" if manifest.format == "trt" else device,
        min_batch=manifest.input.min_batch,
        max_batch=manifest.input.max_batch,
        skipped=runnable(artifact) or "",
    )


_OF_MANIFEST = (
    *("format", "precision", "runtime", "sha256", "bytes", "checkpoint_sha256", "architecture", "preprocessing"),
    *("parity", "layers", "calibration"),
)
"""Fields of a subject that its manifest has by the same names."""


def swept(subjects: Iterable[Subject], threads: Sequence[int]) -> list[Subject]:
    """Each subject with each number of threads; those on a GPU once, where the processor's threads do not compute."""
    result = []
    for subject in subjects:
        if len(threads) < 2 or subject.device == "cuda":
            result.append(replace(subject, threads=threads[-1] if threads else None))
        else:
            for count in threads:
                label = f"{subject.label}, {count} thread{'s' if count > 1 else ''}"
                result.append(replace(subject, label=label, threads=count))
    return result


def with_distinct_labels(subjects: Sequence[Subject]) -> list[Subject]:
    """The same subjects, with the file added to labels that several of them share."""
    labels = distinct_labels([subject.label for subject in subjects], [str(subject.path) for subject in subjects])
    return [replace(subject, label=label) for subject, label in zip(subjects, labels, strict=True)]


def distinct_labels(labels: Sequence[str], files: Sequence[str]) -> list[str]:
    """`labels` with the file's name, or where that is shared too its whole path, behind those that several files have."""
    distinct = list(labels)
    for names in ([PurePath(file).name for file in files], files):
        distinct = [
            f"{label} ({name})" if distinct.count(shown) > 1 else shown
            for label, name, shown in zip(labels, names, distinct, strict=True)
        ]
    return distinct


def _recorded_data(checkpoint: Path) -> Mapping[str, Any]:
    """What the source checkpoint was trained on; nothing when it is not there any more, as on a device."""
    try:
        return read_info(checkpoint).data
    except AlexNetEdgeError:
        return {}


def default_images(subjects: Sequence[Subject]) -> ImageSet:
    """The data that the first checkpoint was trained on, or else the synthetic set."""
    for subject in subjects:
        source = subject.data.get("source")
        if isinstance(source, Mapping):
            try:
                return reopen(source)
            except DataError:  # the folder is on another machine
                continue
    return synthetic("val")


def write_inputs(
    folder: Path, subjects: Sequence[Subject], images: ImageSet, *, largest_batch: int
) -> tuple[dict[Preprocessing, Path], dict[str, Any]]:
    """Preprocessed images as `.npy` files in `folder`, one for each preprocessing, and what results say of them.

    As many as the largest batch takes, spread over `images`; fewer when there are fewer. Each is `(N, 3, S, S)` float32.

    Raises:
        DataError: when none of the images can be used.
    """
    count = max(_MIN_IMAGES, largest_batch)
    paths: dict[Preprocessing, Path] = {}
    about: dict[str, Any] = {}
    for subject in subjects:
        spec = subject.preprocessing
        if spec not in paths and not subject.skipped:
            parts = [part.x_NCHW for part in batches(images.spread(count), spec, batch=count, on_bad_image="skip")]
            if not parts:
                where = images.source.get("path")
                raise DataError("none of the images can be used", value=where, fix="give other images")
            x_NCHW = np.concatenate(parts)
            key = sha256_json(records.to_builtins(spec))[:12]
            paths[spec] = folder / f"{key}.npy"
            np.save(paths[spec], x_NCHW)
            about[key] = {
                "preprocessing": records.to_builtins(spec),
                "shape": list(x_NCHW.shape),
                "sha256": sha256_file(paths[spec]),
            }
    return paths, {"images": min(count, len(images)), "source": dict(images.spread(count).source), "arrays": about}
