"""Export a checkpoint: build each file aside, prove it on images, and only then put it in its place.

Source for the order of steps: docs/architecture.md, "Export in four steps".
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_edge import artifact as artifacts
from alexnet_edge import records
from alexnet_edge.artifact import INPUT, SUFFIXES, Artifact, Format, Manifest, Plan, Precision, TensorSpec, layer_types
from alexnet_edge.environment import describe
from alexnet_edge.errors import AlexNetEdgeError, GateError, MissingComponentError, OutputError, ParityError, UserError
from alexnet_edge.export.building import Builder, Built
from alexnet_edge.export.graphs.targets import LOWERED_PRECISIONS, LoweredRuntime, check_plan, this_machine_or_none
from alexnet_edge.export.precision import weight_bytes
from alexnet_edge.export.proving import Prover
from alexnet_edge.export.quantiser import Quantiser
from alexnet_edge.export.quantising.calibrate import Calibration
from alexnet_edge.export.selection import LOWERED, WRITABLE, engine_runtime, unavailable
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import writing
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.nvidia.libraries import default_runtime
from alexnet_edge.progress import QuietReporter, Reporter

if TYPE_CHECKING:
    from alexnet_edge.export.engines.features import EngineSpec


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
            "manifest": records.to_builtins(self.artifact.manifest) if self.artifact else None,
        }


class Exporter:
    """Exports one checkpoint. The reference answers and the calibration are computed once and shared by all formats."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: ExportSettings,
        *,
        proof_images: ImageSet,
        calibration_images: ImageSet | None = None,
        calibration: Calibration | None = None,
        reference_NK: FloatArray | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """
        Args:
            checkpoint: what to export.
            settings: how.
            proof_images: the images every artifact must answer like the checkpoint.
            calibration_images: for INT8; by default images of the checkpoint's training data.
            calibration: ranges that were chosen elsewhere, used in place of calibrating.
            reference_NK: the checkpoint's answers to `proof_images`, `(N, K)` float32, computed elsewhere.
            reporter: where progress goes.
        """
        self.checkpoint = checkpoint
        self.settings = settings
        self.reporter: Reporter = reporter or QuietReporter()
        self.quantiser = Quantiser(
            checkpoint, settings, self.reporter, images=calibration_images, calibration=calibration
        )
        self.prover = Prover(checkpoint, settings, self.reporter, proof_images, reference_NK)
        self.plan: Plan | None = None
        """The type of each layer, for `mixed`."""
        self.search: Mapping[str, Any] | None = None
        """How the plan was found, for the manifest."""
        self.max_drop: float | None = None
        """Accuracy that a `mixed` artifact may lose, where it is another than its tolerance's; 0.01 is one point."""

    def path(self, format: Format, precision: Precision) -> Path:
        """Where the artifact goes: `alexnet_int8.onnx`, `alexnet_fp16.engine`, `alexnet_fp16_rtx.engine`.

        A file lowered for another target than this machine, and FP32 lowered for any, have the target in the name.
        """
        settings, target = self.settings, self.settings.target
        end = "_rtx" if format == "trt" and (settings.runtime or default_runtime()) in ("rtx", None) else ""
        if format in LOWERED and target is not None and (settings.lower_fp32 or target != this_machine_or_none()):
            end = f"_{target.name}"
        return settings.out / f"alexnet_{precision}{end}{SUFFIXES[format]}"

    def lowered(self, format: Format, precision: Precision) -> LoweredRuntime | None:
        """The runtime that this artifact is lowered for; None where it is the portable graph."""
        target, fp32 = self.settings.target, precision == "fp32"
        if target is None or not target.lowerings or precision not in LOWERED_PRECISIONS:
            return None
        return None if fp32 and not self.settings.lower_fp32 else LOWERED.get(format)

    def export(self, format: Format, precision: Precision) -> Artifact:
        """Build, prove and keep one artifact.

        Raises:
            UserError: when the format is not written in that precision, or an input cannot be used.
            MissingComponentError: when this machine lacks what the format needs.
            ParityError: when its answers differ; the file is then kept as `<name>.failed<suffix>`.
            PrecisionError: when a layer was not built in the precision asked for.
            OutputError: when the folder cannot be written.
        """
        spec = self._check(format, precision)
        path = self.path(format, precision)
        with _staging(self.settings.out) as staging:
            plan = self._plan(precision)
            self._need_space(format, precision, plan)
            staged, built = self._build(format, precision, plan, spec, staging)
            report = self.prover.prove(staged, built.stand_in, self.max_drop if precision == "mixed" else None)
            manifest = replace(staged.manifest, parity=report)
            if report["verdict"] == "failed":
                kept = path.with_name(f"{path.stem}.failed{path.suffix}")
                artifacts.commit(staged.path, kept, manifest)
                raise ParityError(
                    f"{format} {precision} does not answer like the checkpoint: {'; '.join(report['reasons'])}; "
                    f"kept aside as {kept}"
                )
            return artifacts.commit(staged.path, path, manifest)

    def build_only(self, format: Format, precision: Precision, folder: Path, plan: Plan | None = None) -> Artifact:
        """Build an artifact into a new `folder`, its precision read back, and leave out the proof, as a search does.

        `plan` is the type of each layer, for `mixed`.

        Raises:
            UserError: when no graph can be written for the plan.
            PrecisionError: when a layer was not built in the precision asked for.
            OutputError: when the folder cannot be written.
        """
        if plan is not None:
            check_plan(plan)
        with writing(folder):
            folder.mkdir(parents=True)
        spec = self._engine_spec(precision) if format == "trt" else None
        return self._build(format, precision, plan or self._plan(precision), spec, folder)[0]

    def export_all(self, requested: Sequence[tuple[Format, Precision]]) -> Iterator[Outcome]:
        """Export each of `requested`; a failed one does not stop the others.

        Raises:
            UserError: when an input cannot be used or the output folder cannot be written: that would stop them all.
        """
        for format, precision in requested:
            try:
                yield Outcome(format=format, precision=precision, artifact=self.export(format, precision))
            except (GateError, MissingComponentError) as error:
                yield Outcome(format=format, precision=precision, error=error)

    def _check(self, format: Format, precision: Precision) -> EngineSpec | None:
        """Refuse what cannot be written, before any work; returns an engine's specification."""
        if precision not in WRITABLE[format] and self.lowered(format, precision) is None:
            raise UserError(
                f"{format} is written in {' and '.join(WRITABLE[format])} only",
                value=precision,
                fix="choose --format onnx or openvino with a processor's --target"
                if precision in LOWERED_PRECISIONS
                else "choose --format onnx or trt for other precisions",
            )
        path = self.path(format, precision)
        if path.resolve() == self.checkpoint.path.resolve():
            raise UserError("the export would replace the file it is made from", value=path, fix="choose another --out")
        missing = unavailable(
            format,
            self.settings.runtime,
            torch=self.checkpoint.path.suffix != ".onnx" and self.prover.expected_NK is None,
            onnxruntime=format == "onnx" or self.prover.expected_NK is None,
        )
        if missing is not None:
            raise missing
        return self._engine_spec(precision) if format == "trt" else None

    def _engine_spec(self, precision: Precision) -> EngineSpec:
        from alexnet_edge.export.engines.engine import check_engine

        return check_engine(engine_runtime(self.settings.runtime), self.settings.engine, precision)

    def _plan(self, precision: Precision) -> Plan:
        """The type of each layer."""
        if precision != "mixed":
            return layer_types(precision)
        if self.plan is None:
            raise UserError("mixed precision needs a plan", fix="name the type of each layer")
        return self.plan

    def _need_space(self, format: Format, precision: Precision, plan: Plan) -> None:
        """Refuse a full disk before the work; the libraries that write the files name no reason when it fills up."""
        arch = self.checkpoint.info.arch
        staged = weight_bytes(arch, precision, plan)
        if format == "trt":
            staged *= 2  # the graph that the engine is built from is staged too
        elif format == "openvino":
            staged += weight_bytes(arch, "fp32") if precision == "fp16" else staged
        needed = int(1.1 * staged)
        free = shutil.disk_usage(self.settings.out).free
        if free < needed:
            raise OutputError(
                f"cannot write, {format} {precision} takes {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free",
                value=self.settings.out,
                fix="free some space or choose another output folder",
            )

    def _build(
        self, format: Format, precision: Precision, plan: Plan, spec: EngineSpec | None, staging: Path
    ) -> tuple[Artifact, Built]:
        """Build into `staging`; the artifact there says of its proof that there was none."""
        start = time.perf_counter()
        built = Builder(
            settings=self.settings,
            quantiser=self.quantiser,
            format=format,
            precision=precision,
            plan=plan,
            runtime=self.lowered(format, precision),
            spec=spec,
            staging=staging,
        ).build()
        seconds = time.perf_counter() - start
        info = self.checkpoint.info
        arch, size = info.arch, info.preprocessing.crop
        batches: dict[str, Any] = {"dtype": "float32", "min_batch": built.min_batch, "max_batch": built.max_batch}
        manifest = Manifest(
            format=format,
            runtime=built.runtime,
            precision=precision,
            architecture=arch.name,
            classes=info.classes,
            head=arch.head,
            preprocessing=info.preprocessing,
            input=TensorSpec(name=INPUT, shape=(3, size, size), **batches),
            output=TensorSpec(name=arch.head, shape=(arch.num_classes,), **batches),
            checkpoint=str(self.checkpoint.path),
            checkpoint_sha256=self.checkpoint.sha256,
            sources=built.sources,
            layers=built.layers,
            calibration=self.quantiser.record(format, precision, self.prover.images),
            build={**built.build, **({"search": self.search} if precision == "mixed" and self.search else {})},
            build_seconds=round(seconds, 3),
            environment=describe(),
        )
        return artifacts.commit(built.path, staging / self.path(format, precision).name, manifest), built


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


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder beside the artifacts for unfinished files, so that a finished one is moved by a rename."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob(".staging-*"):
            if not Path(f"/proc/{leftover.name.split('-')[1]}").exists():  # of an export that was killed
                shutil.rmtree(leftover, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".staging-{os.getpid()}-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
