"""An exported file and the manifest beside it.

An artifact is the raw file exactly as its runtime wants it, so every other tool opens it too; `<file>.json` beside it is the
manifest. Loading compares the file with the manifest's checksum before anything else reads it.

A format may keep its weights in a second file, the companion (OpenVINO's `.bin` beside the `.xml`). Where it is follows from
the artifact's own name, never from what the manifest says; the manifest holds its checksum.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from alexnet_edge import records
from alexnet_edge.errors import ArtifactError
from alexnet_edge.files import sha256_file, sync_and_replace, write_json, writing
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.network.layers import ARCHITECTURES, LAYER_NAMES, fc6_inputs
from alexnet_edge.records import NEWER, Count, Positive, Seconds

Format = Literal["torchscript", "pt2", "onnx", "openvino", "trt"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4-fc", "int8-int4-fc", "mixed"]
"""What the eight layers compute in. `fp8` leaves conv1 in FP16: TensorRT has no FP8 convolution of more than 32 weights per
channel, and conv1 has 121. `int4-fc` stores the weights of fc6 to fc8 in INT4 and computes in FP16. `int8-int4-fc`, for
processors, has convolutions in INT8 and the weights of fc6 to fc8 in INT4. `mixed` is any other plan."""

ELEMENT_TYPES = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")
"""What one layer may be asked to compute in."""

Plan = Mapping[str, str]
"""The type of each of the eight layers, by name: one of `LAYER_TYPES`."""
LAYER_TYPES = ("fp32", "int8", "int4")
"""What a layer of a processor's graph may be: see `alexnet_edge.export.graphs.targets`."""

INPUT = "input"
"""Name of the input tensor in every format that has names."""

SUFFIXES = {"torchscript": ".ts", "pt2": ".pt2", "onnx": ".onnx", "openvino": ".xml", "trt": ".engine"}
"""File name ending of each format."""
COMPANIONS: dict[str, str] = {"openvino": ".bin"}
"""Name ending of the second file, of the formats that have one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Name, element type and shape of an input or output; the first extent is the batch."""

    name: str
    dtype: Literal["float32"]
    shape: tuple[Positive, ...]
    """Without the batch: `(3, 227, 227)` or `(1000,)`."""
    min_batch: Positive = 1
    max_batch: Positive | None = None
    """None where the runtime sets no bound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPrecision:
    """Requested against built precision of one layer."""

    name: str
    requested: str
    """One of `ELEMENT_TYPES`."""
    built: str
    """`unknown` where the runtime gives no way to see it."""
    evidence: str
    """Where `built` was read from."""
    placement: str = field(default="", metadata=NEWER)
    """`GPU` or `DLA` in an engine that was inspected; empty where that is not known."""
    kernel: str = field(default="", metadata=NEWER)
    """Name of the engine's layer that this one was fused into; empty where that is not known."""

    @property
    def holds(self) -> bool:
        return self.requested == self.built


def layer_types(precision: Precision) -> dict[str, str]:
    """Element type that `precision` asks of each of the eight layers, by name; `mixed` asks for what its plan says."""
    assert precision != "mixed", "its plan says it"
    if precision in ("int4-fc", "int8-int4-fc"):
        convolution = "fp16" if precision == "int4-fc" else "int8"
        return {name: "int4" if name.startswith("fc") else convolution for name in LAYER_NAMES}
    if precision == "fp8":
        return {name: "fp16" if name == "conv1" else "fp8" for name in LAYER_NAMES}
    return dict.fromkeys(LAYER_NAMES, precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class Companion:
    """What the manifest says of the second file of an artifact."""

    sha256: str
    bytes: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class LoweredFor:
    """The processors that a graph is written for: `build["target"]` of a manifest."""

    name: str
    machines: tuple[str, ...]
    """Architectures, as `platform.machine()` names them."""
    instructions: tuple[str, ...]
    """What a processor must have; empty where any of the machines will do."""
    weight_bits: Positive = field(default=8, metadata=NEWER)
    lowering: Mapping[str, Any] = field(default_factory=dict, metadata=NEWER)
    plan: Mapping[str, str] = field(default_factory=dict, metadata=NEWER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an artifact says of itself; the file `<artifact>.json`, in which every field is there."""

    schema: Literal[1] = 1
    format: Format
    runtime: str
    """The runtime it is meant for: `torch`, `onnxruntime`, `tensorrt-rtx`, ..."""
    precision: Precision
    """The precision asked for."""
    architecture: str
    classes: tuple[str, ...]
    head: Literal["logits", "probabilities"]
    preprocessing: Preprocessing
    input: TensorSpec
    output: TensorSpec
    checkpoint: str
    """Path of the source checkpoint when it was exported."""
    checkpoint_sha256: str
    sources: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every intermediate file the artifact was built from, by name."""
    layers: tuple[LayerPrecision, ...] = ()
    calibration: Mapping[str, Any] | None = None
    """Method, number of images, hash of the ordered list, hash of the table; None without INT8."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Options the runtime was given, and what it answered."""
    build_seconds: Seconds = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    """The parity verdict and its figures, or the reason why it could not be run here."""
    sha256: str = ""
    """Of the artifact's bytes; filled in by `commit`."""
    bytes: Count = 0
    """Size of the artifact, its companion included."""
    companion: Companion | None = field(default=None, metadata=NEWER)
    """The second file, of the formats in `COMPANIONS`; filled in by `commit`."""

    @property
    def lowered_for(self) -> LoweredFor | None:
        """The processors that the graph is written for; None for a portable one."""
        target = self.build.get("target")
        return None if target is None else records.convert(LoweredFor, target, at="build.target")


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """An exported file whose bytes match its manifest."""

    path: Path
    manifest: Manifest
    companion: Path | None = None
    """The second file, of the formats in `COMPANIONS`."""

    @property
    def label(self) -> str:
        """A short name for tables: `onnx fp16`; of an engine that came without manifest the precision is not known."""
        trusted = self.manifest.build.get("trusted")
        return f"{self.manifest.format} {'of unknown precision' if trusted else self.manifest.precision}"


def manifest_path(path: Path) -> Path:
    """Where the manifest of the artifact `path` is."""
    return path.with_name(path.name + ".json")


def companion_path(path: Path, format: Format) -> Path | None:
    """Where the second file of the artifact `path` is; None for a format that has none."""
    return path.with_suffix(COMPANIONS[format]) if format in COMPANIONS else None


def commit(temporary: Path, path: Path, manifest: Manifest) -> Artifact:
    """Move a finished file to `path` with its manifest, and with its companion, which is expected beside it.

    The new manifest and companion first get waiting names, `<path>.json.next` and `<companion>.next`; the rename of the file
    itself decides. Whoever is killed before or after it leaves files that `load_artifact` recognises by their checksums, so
    a reader finds either the whole old set or the whole new one. OutputError when the files cannot be written.
    """
    with writing(path):
        manifest = replace(manifest, sha256=sha256_file(temporary), bytes=temporary.stat().st_size, companion=None)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged, companion = companion_path(temporary, manifest.format), companion_path(path, manifest.format)
        if staged is not None:
            second = Companion(sha256=sha256_file(staged), bytes=staged.stat().st_size)
            manifest = replace(manifest, bytes=manifest.bytes + second.bytes, companion=second)
        with _locked(path.parent):
            write_json(waiting_name(manifest_path(path)), records.to_builtins(manifest))
            if staged is not None and companion is not None:
                sync_and_replace(staged, waiting_name(companion))
            sync_and_replace(temporary, path)
            for follows in filter(None, (companion, manifest_path(path))):
                waiting_name(follows).replace(follows)
    return Artifact(path=path, manifest=manifest, companion=companion)


def load_artifact(path: Path) -> Artifact:
    """Read the manifest beside `path` and check the file, and its companion, against it.

    Raises:
        ArtifactError: when the file, its companion or its manifest is missing or damaged, or they do not belong together.
    """
    if not path.is_file():
        fix = "write it with `alexnet-edge export`, or check the path"
        raise ArtifactError("no such artifact", value=path, fix=fix)
    try:
        return _load(path)
    except ArtifactError:
        with _locked(path.parent):  # it may have been replaced while it was read; now nobody does
            return _load(path)


def _load(path: Path) -> Artifact:
    sidecar, waiting = manifest_path(path), waiting_name(manifest_path(path))
    digest = _digest(path)
    manifest = _read_manifest(waiting)
    if manifest is not None and manifest.sha256 == digest:
        companion = companion_path(path, manifest.format)
        present = None if companion is None else _matching(path, manifest, waiting_name(companion), companion)
        if companion is None or present is not None:
            return Artifact(path=path, manifest=manifest, companion=_finish(path, manifest, present))
    manifest = _read_manifest(sidecar)
    if manifest is None:
        problem = f"the artifact has no manifest ({sidecar.name})"
        fix = "copy the manifest along with the file, or export again"
        if path.suffix == SUFFIXES["trt"]:
            problem = f"the engine has no manifest ({sidecar.name}), and loading one may run code that it carries"
            fix = "copy the manifest along with it, or add --trust if you know where it is from"
        raise ArtifactError(problem, value=path, fix=fix)
    if manifest.sha256 != digest:
        raise _mismatch(path, digest, manifest.sha256, manifest)
    companion = companion_path(path, manifest.format)
    if companion is not None and _matching(path, manifest, companion) is None:
        assert manifest.companion is not None, "`decode_manifest` asks for one where the format has one"
        raise _mismatch(companion, _digest(companion), manifest.companion.sha256, manifest)
    return Artifact(path=path, manifest=manifest, companion=companion)


def _matching(path: Path, manifest: Manifest, *places: Path) -> Path | None:
    """The first of `places`, all in the artifact's folder, with the bytes that the manifest gives the companion of `path`."""
    assert manifest.companion is not None, "`decode_manifest` asks for one where the format has one"
    for place in places:
        with suppress(FileNotFoundError):
            if place.resolve(strict=True).parent not in {path.parent.resolve(), path.resolve().parent}:
                problem = "the second file of the artifact leads out of its folder"
                raise ArtifactError(problem, value=place, fix="copy the file itself there")
            if place.stat().st_size == manifest.companion.bytes and _digest(place) == manifest.companion.sha256:
                return place
    return None


def _finish(path: Path, manifest: Manifest, present: Path | None) -> Path | None:
    """Give what a killed writer left its final names; returns where the companion, which is at `present`, is then.

    Whoever writes now does so himself, and in a read-only folder the next writer does.
    """
    with _locked(path.parent, wait=False) as locked, suppress(OSError):
        if locked and _read_manifest(waiting_name(manifest_path(path))) == manifest:
            companion = companion_path(path, manifest.format)
            if companion is not None and present != companion:
                waiting_name(companion).replace(companion)
                present = companion
            waiting_name(manifest_path(path)).replace(manifest_path(path))
    return present


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Inside, no other process replaces an artifact in `folder`; yields whether that is so.

    The system releases the lock of a process that is killed. Where a folder cannot be locked, nobody waits for it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        locked = False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        yield locked
    finally:
        os.close(descriptor)


def _mismatch(path: Path, digest: str, expected: str, manifest: Manifest) -> ArtifactError:
    return ArtifactError(
        f"the file does not match its manifest (sha256 {digest[:12]}, not {expected[:12]})",
        value=path,
        fix="it was changed or cut short: copy it again, or export it again",
        manifest=manifest,
    )


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError as error:
        fix = "copy it along with the others, or export again"
        raise ArtifactError("a file of the artifact is missing", value=path, fix=fix) from error
    except OSError as error:
        raise ArtifactError(f"cannot be read ({error.strerror})", value=path, fix="check its permissions") from error


def _read_manifest(sidecar: Path) -> Manifest | None:
    """The manifest in a file, None when there is no such file."""
    try:
        return decode_manifest(sidecar.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, records.RecordError) as error:
        fix = "export the artifact again"
        raise ArtifactError(f"the manifest is damaged ({error})", value=sidecar, fix=fix) from error


def decode_manifest(text: str | bytes) -> Manifest:
    """The manifest in a JSON text, with nothing in it that contradicts the rest.

    Raises:
        RecordError: when it is damaged, or contradicts itself; the message begins with the path of what is wrong.
    """
    manifest = records.decode(Manifest, text)
    _ = manifest.lowered_for  # RecordError when it is damaged
    for contradiction in _contradictions(manifest):
        raise records.RecordError(contradiction)
    return manifest


def _contradictions(manifest: Manifest) -> Iterator[str]:
    num_classes, crop = len(manifest.classes), manifest.preprocessing.crop
    if len(manifest.output.shape) != 1:
        yield f"output.shape: expected the number of classes, got {list(manifest.output.shape)}"
    elif manifest.output.shape != (num_classes,):
        yield f"classes: expected {manifest.output.shape[0]} names, got {num_classes}"
    if manifest.input.shape != (3, crop, crop):
        yield f"input.shape: expected [3, {crop}, {crop}], got {list(manifest.input.shape)}"
    for name, spec in (("input", manifest.input), ("output", manifest.output)):
        if spec.max_batch is not None and spec.max_batch < spec.min_batch:
            yield f"{name}.max_batch: expected {spec.min_batch} or more, got {spec.max_batch}"
    for index, layer in enumerate(manifest.layers):
        if layer.name not in LAYER_NAMES or layer.name in [other.name for other in manifest.layers[:index]]:
            yield f"layers[{index}].name: expected each of {', '.join(LAYER_NAMES)} once, got {layer.name}"
        if layer.requested not in ELEMENT_TYPES:
            yield f"layers[{index}].requested: expected one of {', '.join(ELEMENT_TYPES)}, got {layer.requested}"
    if (manifest.companion is not None) != (manifest.format in COMPANIONS):
        yield f"companion: {'missing' if manifest.companion is None else f'{manifest.format} has no second file'}"
    arch = ARCHITECTURES.get(manifest.architecture)
    if arch is not None and manifest.head != arch.head:
        yield f"head: expected {arch.head} of {arch.name}, got {manifest.head}"
    if arch is not None and (values := fc6_inputs(arch, crop)) != (expected := arch.layers[5].in_channels):
        yield f"preprocessing.crop: {crop} pixels leave {values} values before fc6 of {arch.name}, which takes {expected}"


def waiting_name(path: Path) -> Path:
    """The waiting name of a file that belongs to an artifact."""
    return path.with_name(path.name + ".next")
