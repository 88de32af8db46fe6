"""What is sent to a device: the ONNX file and its manifest, the calibration, the golden set and this package's wheel.

A bundle is a list of files, each with its checksum. The same order gives the same bundle, so that a deploy that was cut
short is taken up where it ended; the release on the device is named by the bundle's checksum.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, Precision, load_artifact, manifest_path
from alexnet_edge.deploy.board import MOST_BYTES
from alexnet_edge.deploy.golden import write_golden
from alexnet_edge.deploy.plan import Order, Target
from alexnet_edge.deploy.wheel import write_wheel
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError
from alexnet_edge.export.precision import CALIBRATED
from alexnet_edge.files import sha256_file, sha256_json, write_json, writing
from alexnet_edge.images.datasets import ImageSet, open_images
from alexnet_edge.progress import Reporter
from alexnet_edge.proof.evaluate import outputs_NK
from alexnet_edge.sessions import open_session, reference_session

SCHEMA = 1
BUILT: dict[str, tuple[Precision, ...]] = {
    "onnx": ("fp16", "int8", "fp8", "int4-fc", "int8-int4-fc"),
    "trt": ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc"),
}
"""The precisions that a device builds from the FP32 ONNX file, by format; an ONNX file runs as it is in any."""
NEEDED = {"onnx": "onnxruntime>=1.20", "build": "onnx>=1.17", "roofline": "threadpoolctl>=3.1"}
"""What a device's environment needs besides the wheel: to run ONNX files, to build, to find the machine's bounds."""
CACHE = Path(".alexnet-edge/deploy")
"""Where golden sets and wheels are kept, by content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleFile:
    """One file of a bundle."""

    name: str
    """Below the release's `files/`."""
    path: Path
    sha256: str
    bytes: int

    @classmethod
    def of(cls, name: str, path: Path) -> BundleFile:
        """Measure a file; UserError when it is not a regular one, or oversized."""
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror})", value=path, fix="check the path") from error
        if not stat.S_ISREG(status.st_mode):
            raise UserError("not a regular file, so it is not sent", value=path, fix="name the file itself")
        if status.st_size > MOST_BYTES:
            problem = f"oversized file: {status.st_size} bytes, at most {MOST_BYTES}"
            raise UserError(problem, value=path, fix="leave it out")
        return cls(name=name, path=path, sha256=sha256_file(path), bytes=status.st_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Everything a device is sent, and told."""

    files: tuple[BundleFile, ...]
    about: Mapping[str, Any]
    """What the release says of itself: format, precision, architecture, checkpoint, images."""
    build: Mapping[str, Any]
    """Settings of the agent's `build`."""
    bench: Mapping[str, Any]
    """Settings of the agent's `bench`."""
    requirements: tuple[str, ...]
    """What the device's environment needs besides the wheel; what depends on the device is added there."""
    offline: bool = False

    @property
    def wheel(self) -> str:
        return next(file.name for file in self.files if file.name.startswith("alexnet_edge-"))

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """What the device keeps as `bundle.json`."""
        files = [{"name": file.name, "sha256": file.sha256, "bytes": file.bytes} for file in self.files]
        settings = {"about": dict(self.about), "build": dict(self.build), "bench": dict(self.bench)}
        return {"schema": SCHEMA, "files": files, **settings}

    def release(self, again: str = "") -> str:
        """The release's name: format, precision and the beginning of the bundle's checksum, with `again` another one."""
        digest = sha256_json({"bundle": self.to_json(), "again": again})
        return f"{self.about['format']}-{self.about['precision']}-{digest[:12]}"


def make_bundle(order: Order, *, cache: Path = CACHE, reporter: Reporter) -> Bundle:
    """Collect the files of `order`, and compute the reference's answers to the golden images once.

    Raises:
        ArtifactError: when the artifact is no ONNX file of this package, or its source is not at hand.
        UserError: when there are no images, or no calibration for the precision.
        MissingComponentError: when the reference cannot be run here.
    """
    artifact = load_artifact(order.artifact)
    manifest = artifact.manifest
    precision = order.precision or manifest.precision
    as_it_is = order.format == "onnx" and manifest.precision == precision
    _check(artifact, order.format, precision, as_it_is)
    source = artifact if as_it_is else _source(order, artifact)
    name = _plain_name(source.path)
    paths = {name: source.path, f"{name}.json": manifest_path(source.path)}
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    calibrated = not as_it_is and precision in CALIBRATED
    if calibrated:
        calibration = _ranges(order, artifact, precision)
        paths["calibration.json"] = cache / f"calibration-{sha256_json(calibration)[:16]}.json"
        write_json(paths["calibration.json"], calibration)
    paths["golden.tar"], count = _golden(order, artifact, source, cache, reporter)
    wheel = write_wheel(cache)
    paths[wheel.name] = wheel
    paths |= {f"wheels/{path.name}": path for path in _wheelhouse(order.wheelhouse)}
    target = manifest.lowered_for if as_it_is else None  # None for the portable graph
    needed = {
        "onnx": order.format == "onnx",
        "build": not as_it_is,
        "roofline": order.bench.seconds > 0 and order.bench.roofline,
    }
    return Bundle(
        files=tuple(BundleFile.of(name, path) for name, path in paths.items()),
        about={
            "format": order.format,
            "precision": precision,
            "architecture": manifest.architecture,
            "classes": len(manifest.classes),
            "checkpoint_sha256": manifest.checkpoint_sha256,
            "golden_images": count,
            "lowered_for": target and {name: getattr(target, name) for name in ("name", "machines", "instructions")},
        },
        build={
            "build": not as_it_is,
            "source": name,
            "format": order.format,
            "precision": precision,
            "calibration": calibrated,
            "engine": dict(order.engine),
            "runtime": "tensorrt",
            "threads": order.threads,
        },
        bench={**asdict(order.bench), "threads": order.threads},
        requirements=tuple(NEEDED[name] for name, holds in needed.items() if holds),
        offline=order.wheelhouse is not None,
    )


def _check(artifact: Artifact, format: Target, precision: Precision, as_it_is: bool) -> None:
    """Whether a device can build this, or run it as it is."""
    if artifact.manifest.format != "onnx":
        raise ArtifactError(
            f"a device is sent an ONNX file and builds from it, this is {artifact.label}",
            value=artifact.path,
            fix="name the .onnx file that `alexnet-edge export --format onnx` wrote",
        )
    if not as_it_is and precision not in BUILT[format]:
        fix = f"choose one of {', '.join(BUILT[format])}"
        raise UserError(f"a device does not build {precision} for {format}", value=artifact.path, fix=fix)
    if as_it_is and precision == "bf16":
        raise UserError("ONNX Runtime has no BF16 convolution for processors", value=artifact.path, fix="use another")


def _plain_name(path: Path) -> str:
    """The name that an ONNX file has on the device: its own where that is plain, whatever else it is called here."""
    return path.name if re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,98}", path.name) else "model.onnx"


def _source(order: Order, artifact: Artifact) -> Artifact:
    """The FP32 ONNX artifact of the same checkpoint: what a device builds from."""
    if order.source is not None:
        source = load_artifact(order.source)
    elif artifact.manifest.precision == "fp32":
        return artifact
    else:
        beside = artifact.path.with_name("alexnet_fp32.onnx")
        if not beside.is_file():
            raise ArtifactError(
                f"the device builds from the FP32 ONNX file, and there is none beside this one ({beside.name})",
                value=artifact.path,
                fix="write it with `alexnet-edge export --format onnx`, or name it with --source",
            )
        source = load_artifact(beside)
    if (source.manifest.format, source.manifest.precision) != ("onnx", "fp32"):
        raise ArtifactError(f"not an FP32 ONNX file but {source.label}", value=source.path, fix="name another --source")
    if source.manifest.checkpoint_sha256 != artifact.manifest.checkpoint_sha256:
        raise ArtifactError(
            f"of another checkpoint than {artifact.path}", value=source.path, fix="export both from the same checkpoint"
        )
    return source


def _ranges(order: Order, artifact: Artifact, precision: Precision) -> dict[str, Any]:
    """The calibration of the precision: that of the artifact, or of the one beside it of the same checkpoint."""
    kind = "int8" if precision.startswith("int8") else precision  # INT4 weights need no ranges of their own
    beside = artifact.path.with_name(f"alexnet_{kind}.onnx")
    for candidate in (artifact, load_artifact(beside) if beside.is_file() else None):
        if candidate is None or candidate.manifest.calibration is None:
            continue
        same = candidate.manifest.checkpoint_sha256 == artifact.manifest.checkpoint_sha256
        if same and candidate.manifest.precision in (precision, kind):
            return dict(candidate.manifest.calibration)
    raise ArtifactError(
        f"no {kind.upper()} calibration of this checkpoint is at hand ({beside.name})",
        value=order.artifact,
        fix=f"calibrate here: alexnet-edge export --format onnx --{kind}",
    )


def _golden(order: Order, artifact: Artifact, source: Artifact, cache: Path, reporter: Reporter) -> tuple[Path, int]:
    """The golden set of the order, kept by content: the same images and reference are answered once."""
    checkpoint = Path(artifact.manifest.checkpoint)
    with_torch = checkpoint.suffix == ".safetensors" and checkpoint.is_file() and find_spec("torch") is not None
    with_torch = with_torch and sha256_file(checkpoint) == artifact.manifest.checkpoint_sha256
    images = _images(order, artifact, checkpoint).spread(order.limit)
    if not with_torch and (source.manifest.format, source.manifest.precision) != ("onnx", "fp32"):
        try:
            source = _source(order, artifact)
        except ArtifactError as error:
            raise ArtifactError(
                "nothing here can say what the right answers are: neither the checkpoint nor its FP32 ONNX file",
                value=artifact.manifest.checkpoint,
                fix="bring one of them back, or name the ONNX file with --source",
            ) from error
    runtime = "torch" if with_torch else "onnxruntime"
    reference = {"runtime": runtime, "checkpoint_sha256": artifact.manifest.checkpoint_sha256}
    content = {"images": images.content_hash(), "classes": list(images.classes)}
    preprocessing = records.to_builtins(artifact.manifest.preprocessing)
    key = sha256_json({**reference, **content, "preprocessing": preprocessing})
    path = cache / f"golden-{key[:16]}.tar"
    if not path.is_file():
        reporter.start("golden set: the reference's answers", None)
        with reference_session(checkpoint) if with_torch else open_session(source) as session:
            answers_NK, _ = outputs_NK(session, images)
        write_golden(path, images, answers_NK, reference)
        reporter.finish(f"{len(images)} images, answered by {runtime}")
    return path, len(images)


def _images(order: Order, artifact: Artifact, checkpoint: Path) -> ImageSet:
    if order.images is not None:
        return open_images(order.images, classes=artifact.manifest.classes, class_list=order.class_list)
    if not checkpoint.is_file():
        raise UserError(
            "the checkpoint, which records the validation images, is not here",
            value=checkpoint,
            fix="name a folder of real images with --images",
        )
    from alexnet_edge.network.load import load_checkpoint
    from alexnet_edge.proof.recorded import validation_images

    return validation_images(load_checkpoint(checkpoint))


def _wheelhouse(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError("no such folder of wheels", value=folder, fix="fill one with `pip download --dest FOLDER`")
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise MissingComponentError("the folder has no wheels", value=folder, fix="fill it with `pip download`")
    return wheels
