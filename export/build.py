"""Export a checkpoint: build each file aside, prove it on images, and only then put it in its place.

Source for the order of steps: docs/architecture.md, "An export".
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from alexnet_edge import artifact as artifacts
from alexnet_edge.artifact import INPUT, SUFFIXES, Artifact, Format, LayerPrecision, Manifest, Precision, TensorSpec
from alexnet_edge.bench.parity import ParityReport, check_parity, parity_not_run
from alexnet_edge.checkpoint import Checkpoint
from alexnet_edge.data import ImageSet, OnBadImage, open_images, reopen
from alexnet_edge.environment import describe
from alexnet_edge.errors import (
    AlexNetEdgeError,
    GateError,
    MissingComponentError,
    OutputError,
    ParityError,
    UserError,
    needs,
)
from alexnet_edge.evaluate import outputs_NK
from alexnet_edge.export.precision import onnx_precisions, require_precision
from alexnet_edge.export.tensorrt import WEIGHT_BYTES, EngineOptions, rtx_version
from alexnet_edge.files import sha256_file, writing
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.progress import QuietReporter, Reporter

FORMATS: tuple[Format, ...] = get_args(Format)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

WRITABLE: dict[Format, tuple[Precision, ...]] = {
    "torchscript": ("fp32",),
    "pt2": ("fp32",),
    "onnx": PRECISIONS,
    "trt": PRECISIONS,
}
"""The precisions each format is written in."""

RTX_RUNTIME = "tensorrt-rtx"
CALIBRATION_IMAGES = 512
"""Images taken by default from the checkpoint's training data, evenly spread over the classes."""
CACHE = Path(".alexnet-edge")
"""Where calibration histograms and generated checkpoints are kept, by content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one format and precision."""

    format: Format
    precision: Precision
    artifact: Artifact | None = None
    error: AlexNetEdgeError | None = None
    """Why there is no artifact: a `MissingComponentError` for what this machine cannot do, a `GateError` for a failed
    proof."""

    @property
    def label(self) -> str:
        return f"{self.format} {self.precision}"

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "precision": self.precision,
            "file": str(self.artifact.path) if self.artifact else None,
            "error": str(self.error) if self.error else None,
            "manifest": self.artifact.manifest.to_json() if self.artifact else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Built:
    """A finished file in the staging folder, before its proof."""

    path: Path
    runtime: str
    layers: tuple[LayerPrecision, ...]
    build: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    max_batch: int | None = None
    min_batch: int = 1
    graph: Path | None = None
    """The ONNX file an engine was built from: proved in its stead where the engine cannot run."""


class Exporter:
    """Exports one checkpoint. The reference answers and the calibration are computed once and shared by all formats."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        out: Path,
        proof_images: ImageSet,
        calibration_images: ImageSet | None = None,
        method: str = "entropy",
        engine: EngineOptions | None = None,
        threads: int | None = None,
        on_bad_image: OnBadImage = "fail",
        cache: Path = CACHE,
        reporter: Reporter | None = None,
    ) -> None:
        """
        Args:
            checkpoint: what to export.
            out: folder of the artifacts.
            proof_images: the images every artifact must answer like the checkpoint.
            calibration_images: for INT8; by default images of the checkpoint's training data.
            method: how calibration chooses ranges, see `alexnet_edge.export.calibrate`.
            engine: batches and GPU architectures of TensorRT engines.
            threads: processor threads of calibration and proof.
            on_bad_image: what to do with an image that cannot be read.
            cache: folder for calibration histograms.
            reporter: where progress goes.

        Raises:
            UserError: when `threads` is not positive.
        """
        if threads is not None and threads < 1:
            raise UserError("threads must be 1 or more", value=threads, fix="leave it out to use every processor")
        self.checkpoint = checkpoint
        self.out = out
        self.proof_images = proof_images
        self.method = method
        self.engine = engine or EngineOptions()
        self.threads = threads
        self.on_bad_image: OnBadImage = on_bad_image
        self.cache = cache
        self.reporter: Reporter = reporter or QuietReporter()
        self._calibration_images = calibration_images
        self._calibration: Any = None
        self._reference_NK: FloatArray | None = None
        self._skipped = 0  # proof images that could not be used
        self._graph_reports: dict[Precision, ParityReport] = {}

    def path(self, format: Format, precision: Precision) -> Path:
        """Where the artifact goes: `alexnet_int8.onnx`, `alexnet_fp32.ts`, `alexnet_fp16_rtx.engine`."""
        suffix = f"_rtx{SUFFIXES[format]}" if format == "trt" else SUFFIXES[format]
        return self.out / f"alexnet_{precision}{suffix}"

    def export(self, format: Format, precision: Precision) -> Artifact:
        """Build, prove and keep one artifact.

        Raises:
            UserError: when the format is not written in that precision, or an input cannot be used.
            MissingComponentError: when this machine lacks what the format needs.
            ParityError: when its answers differ; the file is then kept as `<name>.failed<suffix>`.
            PrecisionError: when a layer was not built in the precision asked for.
            OutputError: when the folder cannot be written.
        """
        if precision not in WRITABLE[format]:
            raise UserError(
                f"{format} is written in {' and '.join(WRITABLE[format])} only",
                value=precision,
                fix="choose --format onnx or trt for other precisions",
            )
        target = self.path(format, precision)
        missing = unavailable(format)
        if missing is not None:
            raise missing
        with _staging(self.out) as staging:
            self._need_space(format, precision)
            start = time.perf_counter()
            built = self._build(format, precision, staging)
            seconds = time.perf_counter() - start
            manifest = self._manifest(format, precision, built, seconds)
            staged = artifacts.commit(built.path, staging / target.name, manifest)
            report = self._prove(staged, built)
            manifest = replace(manifest, parity=report)
            if report["verdict"] == "failed":
                kept = target.with_name(f"{target.stem}.failed{target.suffix}")
                artifacts.commit(staged.path, kept, manifest)
                raise ParityError(
                    f"{format} {precision} does not answer like the checkpoint: {'; '.join(report['reasons'])}; "
                    f"kept aside as {kept}"
                )
            return artifacts.commit(staged.path, target, manifest)

    def export_all(self, wanted: Sequence[tuple[Format, Precision]]) -> Iterator[Outcome]:
        """Export each of `wanted`; a failed one does not stop the others.

        Raises:
            UserError: when an input cannot be used or the output folder cannot be written: that would stop them all.
        """
        for format, precision in wanted:
            try:
                yield Outcome(format=format, precision=precision, artifact=self.export(format, precision))
            except (GateError, MissingComponentError) as error:
                yield Outcome(format=format, precision=precision, error=error)

    def _need_space(self, format: Format, precision: Precision) -> None:
        """Refuse a full disk before the work; the libraries that write the files name no reason when it fills up."""
        weights = sum(spec.weights for spec in self.checkpoint.info.arch.layers)
        files = 2 if format == "trt" else 1  # an engine's graph is staged too
        needed = int(1.1 * files * weights * WEIGHT_BYTES[precision])
        free = shutil.disk_usage(self.out).free
        if free < needed:
            raise OutputError(
                f"cannot write, {format} {precision} takes {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free",
                value=self.out,
                fix="free some space or choose another output folder",
            )

    # --- building -------------------------------------------------------------------------------------------------------

    def _build(self, format: Format, precision: Precision, staging: Path) -> _Built:
        if precision == "int8":
            self.calibration()
        self.reporter.start(f"building {format} {precision}", None)
        builders: dict[Format, Callable[[Precision, Path], _Built]] = {
            "torchscript": self._build_torchscript,
            "pt2": self._build_pt2,
            "onnx": self._build_onnx,
            "trt": self._build_engine,
        }
        with writing(staging):
            built = builders[format](precision, staging)
        self.reporter.finish(f"{built.path.stat().st_size / 1e6:.1f} MB")
        return built

    def _build_torchscript(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.torchscript import torchscript_precisions, write_torchscript

        path = staging / "building.ts"
        write_torchscript(self.checkpoint, path)
        return self._torch_file(path, precision, torchscript_precisions(path, precision))

    def _build_pt2(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.torchscript import pt2_precisions, write_pt2

        path = staging / "building.pt2"
        write_pt2(self.checkpoint, path)
        return self._torch_file(path, precision, pt2_precisions(path, precision))

    @staticmethod
    def _torch_file(path: Path, precision: Precision, layers: tuple[LayerPrecision, ...]) -> _Built:
        require_precision(layers, f"{path.suffix} {precision}")
        return _Built(path=path, runtime="torch", layers=layers)

    def _build_onnx(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.onnx import onnx_from_checkpoint, write_onnx

        path = staging / f"building_{precision}.onnx"
        model = onnx_from_checkpoint(
            self.checkpoint,
            compute="fp16" if precision == "fp16" else "fp32",
            amax=self.calibration().amax if precision == "int8" else None,
        )
        write_onnx(model, path)
        layers = onnx_precisions(path, precision)
        require_precision(layers, f"onnx {precision}")
        return _Built(path=path, runtime="onnxruntime", layers=layers, build={"opset": model.opset_import[0].version})

    def _build_engine(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.tensorrt import build_rtx_engine

        graph = self._build_onnx(precision, staging).path
        path = staging / "building.engine"
        weights = sum(spec.weights for spec in self.checkpoint.info.arch.layers)
        size = self.checkpoint.info.preprocessing.crop
        engine = build_rtx_engine(graph, path, precision=precision, weights=weights, size=size, options=self.engine)
        return _Built(
            path=path,
            runtime=RTX_RUNTIME,
            layers=engine.layers,
            build={**engine.options, "version": engine.version, "messages": list(engine.messages)},
            sources={self.path("onnx", precision).name: sha256_file(graph)},
            min_batch=self.engine.min_batch,
            max_batch=self.engine.max_batch,
            graph=graph,
        )

    def calibration(self) -> Any:
        """The `Calibration` shared by every INT8 artifact of this export."""
        if self._calibration is None:
            from alexnet_edge.export.calibrate import calibrate

            images = self._calibration_images or calibration_images(self.checkpoint, None, None)
            self._calibration = calibrate(
                self.checkpoint,
                images,
                method=self.method,  # type: ignore[arg-type]  # checked there, with the list of methods
                cache=self.cache / "calibration",
                threads=self.threads,
                on_bad_image=self.on_bad_image,
                reporter=self.reporter,
            )
        return self._calibration

    # --- proving --------------------------------------------------------------------------------------------------------

    def reference_NK(self) -> FloatArray:
        """The checkpoint's own answers on the proof images, `(N, K)` float32."""
        if self._reference_NK is None:
            from alexnet_edge.sessions.torch import CheckpointSession

            self.reporter.start("reference answers", len(self.proof_images))
            bad: list[Any] = []
            with CheckpointSession(self.checkpoint, threads=self.threads) as session:
                answers, used = outputs_NK(session, self.proof_images, on_bad_image=self.on_bad_image, bad=bad)
            self.proof_images = self.proof_images.subset(list(used)) if bad else self.proof_images
            self._skipped = len(bad)
            self._reference_NK = answers
            self.reporter.finish(f"{len(answers)} images")
        return self._reference_NK

    def _prove(self, candidate: Artifact, built: _Built) -> dict[str, Any]:
        """The parity record of the manifest."""
        precision = candidate.manifest.precision
        reference_NK = self.reference_NK()
        if built.graph is None:
            self.reporter.start(f"proving {candidate.label}", None)
            report = check_parity(candidate, reference_NK, self.proof_images, threads=self.threads)
            report = replace(report, images_skipped=self._skipped)
            self.reporter.finish("passed" if report.passed else "; ".join(report.reasons))
            if candidate.manifest.format == "onnx":
                self._graph_reports[precision] = report
            return report.to_json()
        if precision not in self._graph_reports:
            graph = artifacts.commit(
                built.graph,
                built.graph.with_name("graph.onnx"),
                replace(candidate.manifest, format="onnx", runtime="onnxruntime"),
            )
            self._prove(graph, replace(built, graph=None))
        report = self._graph_reports[precision]
        if not report.passed:
            return report.to_json()
        record = parity_not_run(
            "built, not run: an engine needs its NVIDIA GPU, and this version has no TensorRT-RTX session"
        )
        return {**record, "graph": report.to_json()}

    def _manifest(self, format: Format, precision: Precision, built: _Built, seconds: float) -> Manifest:
        info = self.checkpoint.info
        arch = info.arch
        size = info.preprocessing.crop
        return Manifest(
            format=format,
            runtime=built.runtime,
            precision=precision,
            architecture=arch.name,
            classes=info.classes,
            head=arch.head,
            preprocessing=info.preprocessing,
            input=TensorSpec(
                name=INPUT,
                dtype="float32",
                shape=(3, size, size),
                min_batch=built.min_batch,
                max_batch=built.max_batch,
            ),
            output=TensorSpec(
                name=arch.head,
                dtype="float32",
                shape=(arch.num_classes,),
                min_batch=built.min_batch,
                max_batch=built.max_batch,
            ),
            checkpoint=str(self.checkpoint.path),
            checkpoint_sha256=self.checkpoint.sha256,
            sources=built.sources,
            layers=built.layers,
            calibration=self.calibration().to_json() if precision == "int8" else None,
            build=built.build,
            build_seconds=round(seconds, 3),
            environment=describe(),
        )


def every_artifact() -> list[tuple[Format, Precision]]:
    """Every format in every precision it is written in."""
    return [(format, precision) for format in FORMATS for precision in WRITABLE[format]]


def selection(format: str, precision: Precision | None) -> list[tuple[Format, Precision]]:
    """What `--format` and a precision ask for: `all` without a precision is every artifact, one format without is FP32."""
    if format != "all":
        return [(format, precision or "fp32")]  # type: ignore[list-item]  # one of FORMATS
    return [entry for entry in every_artifact() if precision is None or entry[1] == precision]


def require_outcomes(outcomes: Sequence[Outcome], *, everything: bool) -> None:
    """Raise what kept an artifact from being written.

    What this machine lacks is no error where `everything` it can write was asked for, unless nothing was written.

    Raises:
        GateError: when an artifact failed its proof.
        MissingComponentError: when this machine lacks what was asked for.
    """
    for outcome in outcomes:
        if isinstance(outcome.error, GateError):
            raise outcome.error
    for outcome in outcomes:
        if outcome.error is not None and not (everything and any(other.artifact for other in outcomes)):
            raise outcome.error


def unavailable(format: Format) -> MissingComponentError | None:
    """Why this machine cannot write `format`, or None when it can."""
    from importlib.util import find_spec

    modules = [("train", "torch"), ("train", "safetensors")]
    if format in ("onnx", "trt"):
        modules = [("export", "torch"), ("export", "safetensors"), ("export", "onnx"), ("onnx", "onnxruntime")]
    try:
        for extra, module in modules:
            with needs(extra):
                if find_spec(module) is None:
                    raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    except MissingComponentError as error:
        return error
    if format == "trt" and rtx_version() is None:
        return MissingComponentError(
            "no TensorRT here: TensorRT-RTX is not installed",
            fix="run: pip install 'alexnet-edge[rtx]' (x86-64)",
        )
    return None


def calibration_images(
    checkpoint: Checkpoint, named: str | None, count: int | None, class_list: Path | None = None
) -> ImageSet:
    """The images to calibrate on.

    Args:
        checkpoint: by default its training data is taken.
        named: a folder of images, `synthetic`, or `random` for random pixels: real activations look different, so
            these are only used when asked for by name.
        count: how many, evenly spread; by default `CALIBRATION_IMAGES`.
        class_list: CSV file that gives the folders' classes.

    Raises:
        UserError: when the checkpoint records no data and none is named, or `count` is not positive.
        DataError: when there are no such images.
    """
    count = CALIBRATION_IMAGES if count is None else count
    if named == "random":
        if count < 1:
            raise UserError("the number of images must be 1 or more", value=count, fix="give a positive number")
        return random_images(count)
    if named is not None:
        return open_images(named, limit=count, class_list=class_list)
    return training_images(checkpoint).spread(count)


def training_images(checkpoint: Checkpoint) -> ImageSet:
    """The training images that the checkpoint records.

    Raises:
        UserError: when it records none.
        DataError: when they are gone.
    """
    return _recorded(checkpoint, "train", "calibration images", "--calibration")


def validation_images(checkpoint: Checkpoint) -> ImageSet:
    """The validation images that the checkpoint records.

    Raises:
        UserError: when it records none.
        DataError: when they are gone.
    """
    return _recorded(checkpoint, "val", "images to prove the answers on", "--images")


def _recorded(checkpoint: Checkpoint, split: str, purpose: str, option: str) -> ImageSet:
    data = checkpoint.info.data
    source = (data if split == "train" else data.get(split, {})).get("source")
    if not source:
        raise UserError(
            f"the checkpoint records no {split} data to take {purpose} from",
            value=checkpoint.path,
            fix=f"name a folder of real images with {option}",
        )
    return reopen(source)


class _RandomItem:
    """An image of random pixels."""

    def __init__(self, index: int) -> None:
        self.name = f"random/{index:06d}"
        self._index = index

    def _pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.random.default_rng(self._index).integers(0, 256, (256, 256, 3), dtype=np.uint8)

    def image(self) -> Any:
        from PIL import Image

        return Image.fromarray(self._pixels())

    def content(self) -> bytes:
        return self._pixels().tobytes()


def random_images(count: int) -> ImageSet:
    """Images of random pixels, for those who ask for them by name; the manifest records that calibration used them."""
    return ImageSet(
        [_RandomItem(index) for index in range(count)], [-1] * count, (), {"kind": "random", "count": count}
    )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside the artifacts for unfinished files, so that a finished one is moved by a rename."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(".staging-*"):
            if not Path(f"/proc/{left.name.split('-')[1]}").exists():  # of an export that was killed
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".staging-{os.getpid()}-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
