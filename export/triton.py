"""A model repository for NVIDIA's Triton Inference Server, from an artifact that is proved.

    REPOSITORY/NAME/config.pbtxt        what the server must know: batch, dims, instances, warm-up, which versions are served
    REPOSITORY/NAME/labels.txt          the class names, so that the server answers with names where it is asked to
    REPOSITORY/NAME/1/model.onnx        the artifact's own bytes, and model.onnx.json its manifest

Nothing is exported here: the file is copied and checked again against its manifest, so what is served is what was proved.
A version folder is complete when it appears, and the configuration is replaced after it; a server that polls the
repository sees the old model or the new one.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md and
model_configuration.md; `protobuf/model_config.proto` of triton-inference-server/common.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from alexnet_edge import artifact as artifacts
from alexnet_edge import records
from alexnet_edge.artifact import Artifact, Manifest, companion_path, load_artifact
from alexnet_edge.errors import GateError, UserError
from alexnet_edge.export.fields import flag, require_choices
from alexnet_edge.files import write_text, writing

InstanceKind = Literal["cpu", "gpu"]

DEFAULT_MAX_BATCH = 16
"""Where the artifact's runtime sets no bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """What serves artifacts of one format."""

    backend: str
    """Triton's name of it."""
    platform: str
    """The name that Triton had before there were backends, which other tools still look for; empty for those without."""
    file: str
    """The file's name in a version folder."""
    kinds: tuple[InstanceKind, ...]
    """Where an instance can run; the first unless it is said otherwise."""


BACKENDS: dict[str, Backend] = {
    "onnx": Backend(backend="onnxruntime", platform="onnxruntime_onnx", file="model.onnx", kinds=("cpu", "gpu")),
    "openvino": Backend(backend="openvino", platform="", file="model.xml", kinds=("cpu",)),
    "trt": Backend(backend="tensorrt", platform="tensorrt_plan", file="model.plan", kinds=("gpu",)),
}
"""By the format of the artifact."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonOptions:
    """How a model is served."""

    artifact: Path | None = None
    """A proved artifact to serve [the ONNX file, exported]."""
    repository: Path = Path("triton")
    """Folder of the models."""
    model_name: str | None = None
    """The model's name, in the server's address [the artifact's]."""
    instances: int = 1
    """Copies that answer side by side, on each GPU or on the processor."""
    instance_kind: Literal["auto", "cpu", "gpu"] = "auto"
    """Where they run: cpu, gpu, or auto: the GPU for engines."""
    queue_delay: int = 0
    """How long a request may wait for others, microseconds."""
    keep_versions: int = 1
    """Newest versions that are served."""

    def __post_init__(self) -> None:
        require_choices(self)
        if self.model_name is not None and not _NAME.fullmatch(self.model_name):
            raise UserError(
                "a model's name has letters, digits, `_`, `.` and `-` only, and begins with a letter or digit",
                value=self.model_name,
                fix="choose another --model-name",
            )
        for name, least in (("instances", 1), ("queue_delay", 0), ("keep_versions", 1)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{flag(name)} must be {least} or more", value=value, fix="give a larger number")


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonModel:
    """A model as it stands in a repository."""

    folder: Path
    """`REPOSITORY/NAME`."""
    version: int
    """The newest, which holds the artifact."""
    added: bool
    """False when the newest version held the same file already."""
    artifact: Artifact
    """The file in the version folder."""
    backend: str
    notes: tuple[str, ...] = ()
    """What the proof does not cover on a server."""

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "version": self.version,
            "added": self.added,
            "file": str(self.artifact.path),
            "sha256": self.artifact.manifest.sha256,
            "backend": self.backend,
            "notes": list(self.notes),
        }


def write_triton_model(artifact: Artifact, options: TritonOptions, max_batch: int | None = None) -> TritonModel:
    """Put `artifact` into the model repository of `options`, as the next version of its model.

    Args:
        artifact: a proved ONNX file, OpenVINO IR or TensorRT engine.
        options: the repository, and how the model is served.
        max_batch: the largest batch; by default the engine's, or `DEFAULT_MAX_BATCH` where the runtime has no bound.

    Raises:
        UserError: when Triton has no backend for it, or the options or the versions already there do not fit it.
        GateError: when it was not proved.
        ArtifactError: when the artifact or a version that stays in service is damaged.
        OutputError: when the repository cannot be written.
    """
    _check(artifact, options, max_batch)
    backend = BACKENDS[artifact.manifest.format]
    repository = options.repository
    folder = repository / (options.model_name or artifact.path.stem)
    if not _NAME.fullmatch(folder.name):
        raise UserError("this file name is no name of a model", value=folder.name, fix="give one with --model-name")
    with writing(folder):
        repository.mkdir(parents=True, exist_ok=True)
        kept = _kept(folder, backend, options.keep_versions)
        newest = max(kept, default=0)
        added = not kept or kept[newest].manifest.sha256 != artifact.manifest.sha256
        version = newest + added
        served = [*kept.values(), *([artifact] if added else [])][-options.keep_versions :]
        for other in served:
            _need_same_network(other.manifest, artifact.manifest, folder)
        config = config_of([other.manifest for other in served], folder.name, options, max_batch)
        labels = _labels(artifact.manifest)
        if added:
            with _staged_version(artifact, repository, backend) as staged:
                folder.mkdir(exist_ok=True)
                staged.rename(folder / str(version))
        write_text(folder / "labels.txt", labels)
        write_text(folder / "config.pbtxt", config)
    return TritonModel(
        folder=folder,
        version=version,
        added=added,
        artifact=load_artifact(folder / str(version) / backend.file),
        backend=backend.backend,
        notes=_notes(artifact.manifest, _kind(options, backend)),
    )


def _check(artifact: Artifact, options: TritonOptions, max_batch: int | None) -> None:
    manifest = artifact.manifest
    for refused, problem, fix in (
        (
            manifest.format not in BACKENDS,
            f"Triton gets ONNX, OpenVINO or TensorRT from here, not {manifest.format}",
            "export it with --format onnx, openvino or trt",
        ),
        (
            manifest.runtime == "tensorrt-rtx",
            "Triton's backend is TensorRT, which does not load an engine of TensorRT-RTX",
            "build the engine with --runtime tensorrt on the server's GPU, or serve the ONNX file",
        ),
        (
            manifest.format == "onnx" and manifest.precision == "fp8",
            "ONNX Runtime answers FP8 graphs wrongly unless a pass is off that Triton gives no way to turn off",
            "build an engine from it, and serve that",
        ),
    ):
        if refused:
            raise UserError(problem, value=artifact.path, fix=fix)
    verdict = manifest.parity.get("verdict")
    if verdict != "passed":
        reasons = "; ".join(map(str, manifest.parity.get("reasons", ()))) or "no proof is recorded"
        raise GateError(
            f"{artifact.path} is not proved ({verdict or 'not run'}: {reasons}); "
            "only what was proved is served: run `alexnet-edge export` where the file can run"
        )
    backend = BACKENDS[manifest.format]
    if _kind(options, backend) not in backend.kinds:
        raise UserError(
            f"Triton's {backend.backend} backend runs on {' or '.join(backend.kinds)}",
            value=options.instance_kind,
            fix="leave --instance-kind out",
        )
    _batches(manifest, max_batch)


def _kind(options: TritonOptions, backend: Backend) -> InstanceKind:
    return backend.kinds[0] if options.instance_kind == "auto" else options.instance_kind


def _batches(manifest: Manifest, max_batch: int | None) -> tuple[int, int]:
    """The smallest and largest batch that are served."""
    least, most = manifest.input.min_batch, manifest.input.max_batch
    if most is not None and least == most:
        if max_batch not in (None, most):
            raise UserError(f"the artifact takes a batch of {most} only", value=max_batch, fix="leave --max-batch out")
        return least, most
    if least != 1:
        raise UserError(
            f"Triton forms batches from 1 up, and the artifact takes no less than {least}",
            value=least,
            fix="export it with --min-batch 1, or with one fixed batch",
        )
    largest = max_batch or (most if most is not None else DEFAULT_MAX_BATCH)
    if most is not None and largest > most:
        raise UserError(
            f"the artifact takes a batch of {most} at most", value=largest, fix="leave --max-batch out, or export again"
        )
    return 1, largest


def _kept(folder: Path, backend: Backend, count: int) -> dict[int, Artifact]:
    """The newest `count` versions, checked, by number; Triton takes every folder named by a positive number."""
    entries = folder.iterdir() if folder.is_dir() else ()
    numbers = sorted(int(entry.name) for entry in entries if re.fullmatch(r"[1-9]\d{0,8}", entry.name))
    kept = {}
    for number in numbers[-count:]:
        path = folder / str(number) / backend.file
        if not path.is_file():
            raise UserError(
                f"the model's version {number} has no {backend.file}: it is of another kind",
                value=folder,
                fix="choose another --model-name, or remove the old model",
            )
        kept[number] = load_artifact(path)
    return kept


def _need_same_network(other: Manifest, manifest: Manifest, folder: Path) -> None:
    for name in ("classes", "head", "preprocessing"):
        if getattr(other, name) != getattr(manifest, name):
            raise UserError(
                f"a version that stays in service has other {name}, and one configuration holds for them all",
                value=folder,
                fix="choose another --model-name, or --keep-versions 1",
            )


@contextmanager
def _staged_version(artifact: Artifact, repository: Path, backend: Backend) -> Iterator[Path]:
    """A finished version folder beside the repository, on the same file system: no server looks there."""
    beside = Path(tempfile.mkdtemp(prefix=f".{repository.name}-", dir=repository.resolve().parent))
    try:
        version = beside / "version"
        version.mkdir()
        copy = beside / f"copy{artifact.path.suffix}"
        shutil.copyfile(artifact.path, copy)
        companion = companion_path(copy, artifact.manifest.format)
        if artifact.companion is not None and companion is not None:
            shutil.copyfile(artifact.companion, companion)
        written = artifacts.commit(copy, version / backend.file, artifact.manifest)
        if replace(written.manifest, companion=None) != replace(artifact.manifest, companion=None):
            raise GateError(f"{artifact.path} changed while it was copied; nothing was added")
        yield version
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _labels(manifest: Manifest) -> str:
    for name in manifest.classes:
        if not name or any(ord(letter) < 32 for letter in name):
            raise UserError("a class name does not fit on a line of labels.txt", value=repr(name), fix="rename it")
    return "".join(f"{name}\n" for name in manifest.classes)


def _notes(manifest: Manifest, kind: InstanceKind) -> tuple[str, ...]:
    notes = []
    if manifest.format == "openvino":
        notes.append(
            "Triton's OpenVINO backend is not told to compute in FP32: on a processor with BF16 instructions it may "
            "compute in BF16, which the proof does not cover"
        )
    if manifest.format == "onnx" and kind == "gpu":
        notes.append("the answers were proved on a processor, not on the GPU that will serve")
    return tuple(notes)


class _Word(str):
    """A value that is written without quotes: a member of an enumeration."""


def config_of(manifests: Sequence[Manifest], name: str, options: TritonOptions, max_batch: int | None = None) -> str:
    """The text of `config.pbtxt` for a model of which these versions are served, the newest last.

    An engine has one optimisation profile, number 0, which every instance names; its largest batch is the server's. A
    batch that is fixed becomes part of the dims, as Triton wants it where it shall form none. The smallest of the
    versions' bounds holds, because one configuration serves them all.
    """
    manifest = manifests[-1]
    backend = BACKENDS[manifest.format]
    bounds = [_batches(each, max_batch) for each in manifests]
    fixed = {least for least, most in bounds if manifest.input.max_batch is not None and least == most}
    if fixed and len(set(bounds)) > 1:
        raise UserError("the versions that stay in service take other batches", value=name, fix="add --keep-versions 1")
    most = min(most for _, most in bounds)
    group: dict[str, Any] = {"count": options.instances, "kind": _Word(f"KIND_{_kind(options, backend).upper()}")}
    if backend.backend == "tensorrt":
        group["profile"] = ["0"]
    x, y = (
        {"data_type": _Word("TYPE_FP32"), "dims": [*([most] if fixed else []), *spec.shape]}
        for spec in (manifest.input, manifest.output)
    )
    config: dict[str, Any] = {
        "name": name,
        **({"platform": backend.platform} if backend.platform else {}),
        "backend": backend.backend,
        "default_model_filename": backend.file,
        "max_batch_size": 0 if fixed else most,
        "input": [{"name": manifest.input.name, **x}],
        "output": [{"name": manifest.output.name, **y, "label_filename": "labels.txt"}],
        "version_policy": {"latest": {"num_versions": options.keep_versions}},
        "instance_group": [group],
    }
    if not fixed and most > 1:
        config["dynamic_batching"] = {
            **_preferred(manifest, most),
            **({"max_queue_delay_microseconds": options.queue_delay} if options.queue_delay else {}),
        }
    config["model_warmup"] = [
        {
            "name": f"batch {batch}",
            "batch_size": 0 if fixed else batch,
            "inputs": [{"key": manifest.input.name, "value": {**x, "random_data": True}}],
        }
        for batch in ([most] if fixed else sorted({1, most}))
    ]
    config["parameters"] = [
        {"key": f"alexnet_edge.{key}", "value": {"string_value": text}} for key, text in _provenance(manifest).items()
    ]
    lines = ("# Written by alexnet-edge; the manifest beside the model says what was proved.", *_pbtxt(config))
    return "".join(f"{line}\n" for line in lines)


def _preferred(manifest: Manifest, most: int) -> dict[str, Any]:
    """The batch an engine was tuned for, where there is one: for other files the server's own choice is better."""
    options = manifest.build.get("options")
    tuned = options.get("opt_batch") if isinstance(options, Mapping) else None
    return {"preferred_batch_size": [tuned]} if isinstance(tuned, int) and 1 < tuned <= most else {}


def _provenance(manifest: Manifest) -> dict[str, str]:
    """What a client may ask the server for: how to prepare an image, and which file answers."""
    return {
        "sha256": manifest.sha256,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "head": manifest.head,
        "preprocessing": json.dumps(records.to_builtins(manifest.preprocessing)),
    }


def _pbtxt(message: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a message in protobuf's text format: a list is a repeated field, a mapping a message."""
    for name, value in message.items():
        entries = value if isinstance(value, list) else [value]
        if any(isinstance(entry, Mapping) for entry in entries):
            for entry in entries:
                yield from (f"{indent}{name} {{", *_pbtxt(entry, indent + "  "), f"{indent}}}")
        else:
            text = ", ".join(map(_scalar, entries))
            yield f"{indent}{name}: [ {text} ]" if isinstance(value, list) else f"{indent}{name}: {text}"


def _scalar(value: str | int | bool) -> str:
    if isinstance(value, _Word):
        return value
    if isinstance(value, int):
        return str(value).lower()  # a bool is one
    # The text format has C's escapes; those of other bytes are octal, of three digits.
    escaped = "".join(
        f"\\{chr(byte)}" if byte in b'"\\' else chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
        for byte in value.encode()
    )
    return f'"{escaped}"'
