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
from typing import TYPE_CHECKING, Any

from alexnet_edge import artifact as artifacts
from alexnet_edge import records
from alexnet_edge.artifact import (
    INPUT,
    SUFFIXES,
    Artifact,
    Format,
    LayerPrecision,
    Manifest,
    Plan,
    Precision,
    TensorSpec,
    layer_types,
)
from alexnet_edge.environment import describe
from alexnet_edge.errors import (
    AlexNetEdgeError,
    GateError,
    MissingComponentError,
    OutputError,
    ParityError,
    UserError,
)
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.graphs.targets import (
    NO_RANGES,
    LoweredRuntime,
    Lowering,
    Target,
    check_plan,
    target_record,
    this_machine_or_none,
)
from alexnet_edge.export.precision import (
    CALIBRATED,
    CORRECTED,
    onnx_precisions,
    require_precision,
    weight_bytes,
)
from alexnet_edge.export.proving import Prover
from alexnet_edge.export.quantising.corrections import Corrector
from alexnet_edge.files import sha256_file, write_text, writing
from alexnet_edge.images.datasets import ImageSet, OnBadImage
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.nvidia.libraries import Runtime, default_runtime
from alexnet_edge.progress import QuietReporter, Reporter

if TYPE_CHECKING:
    from alexnet_edge.export.engines.features import EngineSpec
    from alexnet_edge.export.quantising.audit import CalibrationAudit
    from alexnet_edge.export.quantising.calibrate import Calibration
from alexnet_edge.export.selection import LOWERED, WRITABLE, engine_runtime, unavailable
from alexnet_edge.proof.recorded import calibration_images

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
            "manifest": records.to_builtins(self.artifact.manifest) if self.artifact else None,
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
    stand_in: Callable[[], Path] | None = None
    """Writes an ONNX file of which the same answers are expected: proved where the file itself cannot run."""


class Exporter:
    """Exports one checkpoint. The reference answers and the calibration are computed once and shared by all formats."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        out: Path,
        proof_images: ImageSet,
        calibration_images: ImageSet | None = None,
        calibration: Calibration | None = None,
        reference_NK: FloatArray | None = None,
        method: str = "entropy",
        engine: EngineOptions | None = None,
        runtime: Runtime | None = None,
        outputs: bool = False,
        target: Target | None = None,
        lower_fp32: bool = False,
        plan: Plan | None = None,
        equalise: bool = False,
        correct_bias: bool = False,
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
            calibration: ranges that were chosen elsewhere, taken in place of calibrating here.
            reference_NK: the checkpoint's answers to `proof_images`, `(N, K)` float32, computed elsewhere.
            method: how calibration chooses ranges, see `alexnet_edge.export.quantising.calibrate`.
            engine: options of TensorRT engines.
            runtime: what builds them; by default the best that is here.
            outputs: calibrate what `write_calibration_table` needs too; implied by the calibrator `table` and by a target
                with a lowering.
            target: where `LOWERED` precisions shall run; without one every graph is the portable one.
            lower_fp32: lower FP32 for it, too. Else that file stays the portable graph that further exports are made from.
            plan: the type of each layer, for `mixed`.
            equalise: bring channels to like ranges before INT8: see `alexnet_edge.export.quantising.corrections`.
            correct_bias: take the mean error of INT8 and INT4 layers off their biases.
            threads: processor threads of calibration and proof.
            on_bad_image: what to do with an image that cannot be read.
            cache: folder for calibration histograms.
            reporter: where progress goes.

        Raises:
            UserError: when no graph can be written for the plan.
        """
        if plan is not None:
            check_plan(plan)
        self.checkpoint = checkpoint
        self.out = out
        self.method = method
        self.engine = engine or EngineOptions()
        self.runtime = runtime
        self.target = target
        self.lower_fp32 = lower_fp32
        self.plan = plan
        self.search: Mapping[str, Any] | None = None
        """How the plan was found, for the manifest."""
        self.max_drop: float | None = None
        """Accuracy that a `mixed` artifact may lose, where it is another than its tolerance's; 0.01 is one point."""
        self.outputs = outputs or self.engine.calibrator == "table" or bool(target is not None and target.lowerings)
        self.threads = threads
        self.on_bad_image: OnBadImage = on_bad_image
        self.cache = cache
        self.reporter: Reporter = reporter or QuietReporter()
        self._calibration_images = calibration_images
        self._calibrations: dict[tuple[str, bool, str], Calibration] = {}
        self._audits: dict[str, CalibrationAudit] = {}  # by the table's hash
        self._given_calibration = calibration
        self.corrector = Corrector(
            checkpoint,
            self._images_to_calibrate_on,
            equalise=equalise,
            correct_bias=correct_bias,
            threads=threads,
            on_bad_image=on_bad_image,
            reporter=self.reporter,
        )
        self.prover = Prover(
            checkpoint,
            proof_images,
            reference_NK=reference_NK,
            threads=threads,
            on_bad_image=on_bad_image,
            reporter=self.reporter,
        )

    def path(self, format: Format, precision: Precision) -> Path:
        """Where the artifact goes: `alexnet_int8.onnx`, `alexnet_fp16.engine`, `alexnet_fp16_rtx.engine`.

        A file lowered for another target than this machine, and FP32 lowered for any, have the target in the name.
        """
        end = "_rtx" if format == "trt" and (self.runtime or default_runtime()) in ("rtx", None) else ""
        if format in LOWERED and self.target is not None and (self.lower_fp32 or self.target != this_machine_or_none()):
            end = f"_{self.target.name}"
        return self.out / f"alexnet_{precision}{end}{SUFFIXES[format]}"

    def lowered(self, format: Format, precision: Precision) -> LoweredRuntime | None:
        """The runtime that this artifact is lowered for; None where it is the portable graph."""
        if self.target is None or not self.target.lowerings or format not in LOWERED:
            return None
        runtime, precisions = LOWERED[format]
        return runtime if precision in precisions or (precision == "fp32" and self.lower_fp32) else None

    def export(self, format: Format, precision: Precision) -> Artifact:
        """Build, prove and keep one artifact.

        Raises:
            UserError: when the format is not written in that precision, or an input cannot be used.
            MissingComponentError: when this machine lacks what the format needs.
            ParityError: when its answers differ; the file is then kept as `<name>.failed<suffix>`.
            PrecisionError: when a layer was not built in the precision asked for.
            OutputError: when the folder cannot be written.
        """
        if precision not in WRITABLE[format] and self.lowered(format, precision) is None:
            raise UserError(
                f"{format} is written in {' and '.join(WRITABLE[format])} only",
                value=precision,
                fix="choose --format onnx or openvino with a processor's --target"
                if precision in LOWERED["onnx"][1]
                else "choose --format onnx or trt for other precisions",
            )
        target = self.path(format, precision)
        if target.resolve() == self.checkpoint.path.resolve():
            raise UserError(
                "the export would replace the file it is made from", value=target, fix="choose another --out"
            )
        missing = unavailable(
            format,
            self.runtime,
            torch=self.checkpoint.path.suffix != ".onnx" and self.prover.expected_NK is None,
            onnxruntime=format == "onnx" or self.prover.expected_NK is None,
        )
        if missing is not None:
            raise missing
        spec = None
        if format == "trt":
            from alexnet_edge.export.engines.engine import check_engine

            spec = check_engine(engine_runtime(self.runtime), self.engine, precision)
        with _staging(self.out) as staging:
            self._need_space(format, precision)
            start = time.perf_counter()
            built = self._build(format, precision, staging, spec)
            seconds = time.perf_counter() - start
            manifest = self._manifest(format, precision, built, seconds)
            staged = artifacts.commit(built.path, staging / target.name, manifest)
            report = self.prover.prove(staged, built.stand_in, self.max_drop if precision == "mixed" else None)
            manifest = replace(manifest, parity=report)
            if report["verdict"] == "failed":
                kept = target.with_name(f"{target.stem}.failed{target.suffix}")
                artifacts.commit(staged.path, kept, manifest)
                raise ParityError(
                    f"{format} {precision} does not answer like the checkpoint: {'; '.join(report['reasons'])}; "
                    f"kept aside as {kept}"
                )
            return artifacts.commit(staged.path, target, manifest)

    def build_only(self, format: Format, plan: Plan, folder: Path) -> Artifact:
        """Build the artifact of a plan into `folder`, its precision read back, and leave out the proof, as a search does.

        Raises:
            UserError: when no graph can be written for the plan.
            PrecisionError: when a layer was not built in the precision asked for.
            OutputError: when the folder cannot be written.
        """
        check_plan(plan)
        with writing(folder):
            folder.mkdir(parents=True)
        kept, self.plan = self.plan, plan
        try:
            built = self._build(format, "mixed", folder)
            manifest = self._manifest(format, "mixed", built, 0.0, audited=False)
        finally:
            self.plan = kept
        return artifacts.commit(built.path, folder / f"alexnet_mixed{SUFFIXES[format]}", manifest)

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
        staged: list[Precision] = [precision]
        if format == "trt":
            staged = [precision, precision]  # the graph that the engine is built from is staged too
        elif format == "openvino":
            staged = [precision, "fp32" if precision == "fp16" else precision]
        needed = int(1.1 * sum(weight_bytes(self.checkpoint.info.arch, kind, self._plan(kind)) for kind in staged))
        free = shutil.disk_usage(self.out).free
        if free < needed:
            raise OutputError(
                f"cannot write, {format} {precision} takes {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free",
                value=self.out,
                fix="free some space or choose another output folder",
            )

    # --- building -------------------------------------------------------------------------------------------------------

    def _build(self, format: Format, precision: Precision, staging: Path, spec: EngineSpec | None = None) -> _Built:
        if precision in CALIBRATED and not (format == "trt" and self.engine.calibrator):
            self.calibration(precision)
        self.reporter.start(f"building {format} {precision}", None)
        builders: dict[Format, Callable[[Precision, Path], _Built]] = {
            "torchscript": self._build_torchscript,
            "pt2": self._build_pt2,
            "onnx": self._build_onnx,
            "openvino": self._build_openvino,
        }
        with writing(staging):
            built = builders[format](precision, staging) if spec is None else self._build_engine(spec, staging)
        parts = filter(None, (built.path, artifacts.companion_path(built.path, format)))
        self.reporter.finish(f"{sum(part.stat().st_size for part in parts) / 1e6:.1f} MB")
        return built

    def _build_torchscript(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.graphs.torchscript import torchscript_precisions, write_torchscript

        path = staging / "building.ts"
        write_torchscript(self.checkpoint, path)
        return self._torch_file(path, precision, torchscript_precisions(path, precision))

    def _build_pt2(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.graphs.torchscript import pt2_precisions, write_pt2

        path = staging / "building.pt2"
        write_pt2(self.checkpoint, path)
        return self._torch_file(path, precision, pt2_precisions(path, precision))

    @staticmethod
    def _torch_file(path: Path, precision: Precision, layers: tuple[LayerPrecision, ...]) -> _Built:
        require_precision(layers, f"{path.suffix} {precision}")
        return _Built(path=path, runtime="torch", layers=layers)

    def _plan(self, precision: Precision) -> Plan:
        """The type of each layer.

        Raises:
            UserError: for `mixed` without a plan.
        """
        if precision != "mixed":
            return layer_types(precision)
        if self.plan is None:
            raise UserError("mixed precision needs a plan", fix="name the type of each layer")
        return self.plan

    def _write_lowered(self, precision: Precision, path: Path, runtime: LoweredRuntime) -> dict[str, Any]:
        """Write the graph for the target; returns what the manifest says of it."""
        from alexnet_edge.export.graphs.lower import lowered_onnx
        from alexnet_edge.export.graphs.onnx import write_onnx

        assert self.target is not None, "asked by `lowered`"
        plan = self._plan(precision)
        ranges = self.calibration("int8") if "int8" in plan.values() else NO_RANGES
        source, build = self._source(precision, runtime)
        model = lowered_onnx(source, self.target, plan, ranges, runtime=runtime)
        write_onnx(model, path)
        return {**build, "opset": model.opset_import[0].version, "target": target_record(self.target, runtime, plan)}

    def _source(self, precision: Precision, runtime: LoweredRuntime | None = None) -> tuple[Checkpoint, dict[str, Any]]:
        """What is written, lowered for a runtime or not: the checkpoint, or that with its corrections and their record."""
        if not self.corrector.named or precision not in CORRECTED:
            return self.checkpoint, {}
        plan = self._plan(precision)
        if set(plan.values()) == {"fp32"}:
            return self.checkpoint, {}
        lowering = None if runtime is None else self._lowering(runtime)
        source, record = self.corrector.written(plan, self.calibration("int8"), lowering)
        return source, {"corrections": record}

    def _lowering(self, runtime: LoweredRuntime) -> Lowering:
        assert self.target is not None, "asked by `lowered`"
        return self.target.lowerings[runtime]

    def _elsewhere(self, precision: Precision, staging: Path) -> Path:
        """The operators of the graph lowered for a target that this machine is not, to be proved on ONNX Runtime.

        The integers are the same on any processor that adds them in 32 bits.
        """
        path = staging / f"elsewhere_{precision}.onnx"
        self._write_lowered(precision, path, "onnxruntime")
        return path

    def _build_onnx(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_emulation, write_onnx

        runtime = self.lowered("onnx", precision)
        if runtime is not None:
            path = staging / f"building_{precision}.onnx"
            build = self._write_lowered(precision, path, runtime)
            layers = onnx_precisions(path, precision, self._plan(precision))
            require_precision(layers, f"onnx {precision}")
            return _Built(
                path=path,
                runtime="onnxruntime",
                layers=layers,
                build=build,
                stand_in=lambda: self._elsewhere(precision, staging),
            )
        path = staging / f"building_{precision}.onnx"
        source, build = self._source(precision)
        model = onnx_from_checkpoint(source, precision=precision, amax=self._amax(precision))
        write_onnx(model, path)
        layers = onnx_precisions(path, precision)
        require_precision(layers, f"onnx {precision}")
        return _Built(
            path=path,
            runtime="onnxruntime",
            layers=layers,
            build={**build, "opset": model.opset_import[0].version},
            stand_in=lambda: write_emulation(self.checkpoint, precision, staging),
        )

    def _build_openvino(self, precision: Precision, staging: Path) -> _Built:
        from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
        from alexnet_edge.export.graphs.openvino import GRAPHS, write_openvino

        runtime = self.lowered("openvino", precision)
        kind = precision if runtime is not None else GRAPHS[precision]
        graph, path = staging / f"graph_{kind}.onnx", staging / "building.xml"
        if runtime is None:
            network, build = self._source(kind)
            write_onnx(onnx_from_checkpoint(network, precision=kind, amax=self._amax(kind)), graph)
        else:
            build = self._write_lowered(precision, graph, runtime)
        source = sha256_file(graph)
        written = write_openvino(
            graph,
            path,
            precision,
            source_sha256=source,
            plan=self._plan(precision),
            lowering=None if runtime is None else self._lowering(runtime),
        )
        return _Built(
            path=path,
            runtime="openvino",
            layers=written.layers,
            build={**build, **written.build},
            sources={f"alexnet_{kind}.onnx": source},
            stand_in=lambda: self._elsewhere(precision, staging),
        )

    def _build_engine(self, spec: EngineSpec, staging: Path) -> _Built:
        from alexnet_edge.export.engines.engine import EngineBuild

        source, build = self._source(spec.precision)
        files = EngineBuild(
            checkpoint=source,
            spec=spec,
            staging=staging,
            ranges=self._amax,
            table=self._table,
            images=self._images_to_calibrate_on,
            on_bad_image=self.on_bad_image,
            cache=self.cache / "calibration",
            reporter=self.reporter,
        ).run()
        return _Built(
            path=files.engine,
            runtime=files.runtime,
            layers=files.built.layers,
            build={**files.built.build, **build},
            sources={name: sha256_file(path) for name, path in files.sources.items()},
            min_batch=spec.options.batches[0],
            max_batch=spec.options.batches[2],
            stand_in=files.stand_in,
        )

    def calibration(self, precision: Precision = "int8") -> Calibration:
        """The `Calibration` shared by every artifact of this precision in this export.

        INT8 takes the method asked for; FP8, whose steps grow with the value, represents the largest value seen.
        """
        from alexnet_edge.export.quantising.calibrate import calibrate

        if self._given_calibration is not None:
            return self._given_calibration
        method = "minmax" if precision == "fp8" else self.method
        outputs = self.outputs and precision != "fp8"
        network = self.corrector.network() if precision in CORRECTED else self.checkpoint
        key = (method, outputs, network.sha256)
        if key not in self._calibrations:
            self._calibrations[key] = calibrate(
                network,
                self._images_to_calibrate_on(),
                method=method,  # type: ignore[arg-type]  # checked there, with the list of methods
                cache=self.cache / "calibration",
                threads=self.threads,
                on_bad_image=self.on_bad_image,
                outputs=outputs,
                reporter=self.reporter,
            )
        return self._calibrations[key]

    def write_calibration_table(self, path: Path, version: str) -> None:
        """Write the INT8 ranges of this export as a calibration table that TensorRT `version` (`10.3.0`) reads.

        Raises:
            DataError: when there is no image to calibrate on.
            OutputError: when the file cannot be written.
        """
        write_text(path, self._table(version, False))
        self.reporter.note(f"calibration table for TensorRT {version}: {path}")

    def _table(self, version: str, for_dla: bool) -> str:
        from alexnet_edge.export.engines.calibrators import calibration_table, table_header

        ranges = self.calibration()
        arch = self.checkpoint.info.arch
        return calibration_table(arch, ranges.amax, ranges.output_amax, header=table_header(version), for_dla=for_dla)

    def _amax(self, precision: Precision) -> Mapping[str, float] | None:
        return self.calibration(precision).amax if precision in CALIBRATED else None

    @property
    def calibration_images(self) -> ImageSet:
        """The images that ranges are taken from."""
        return self._images_to_calibrate_on()

    def _images_to_calibrate_on(self) -> ImageSet:
        return self._calibration_images or calibration_images(self.checkpoint, None, None)

    # --- the manifest ---------------------------------------------------------------------------------------------------

    def _manifest(
        self, format: Format, precision: Precision, built: _Built, seconds: float, *, audited: bool = True
    ) -> Manifest:
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
            calibration=self._calibration_record(format, precision, audited),
            build={**built.build, **({"search": self.search} if precision == "mixed" and self.search else {})},
            build_seconds=round(seconds, 3),
            environment=describe(),
        )

    def _calibration_record(self, format: Format, precision: Precision, audited: bool) -> Mapping[str, Any] | None:
        if precision not in CALIBRATED:
            return None
        if format == "trt" and self.engine.calibrator in ("entropy2", "minmax"):
            images = self._images_to_calibrate_on()
            return {
                "method": f"TensorRT {self.engine.calibrator}",
                "num_images": len(images),
                "images_sha256": images.content_hash(),
                "source": images.source,
            }
        found = self.calibration(precision)
        if not audited or self._given_calibration is not None:  # whose images were audited where they are
            return found.to_json()
        return {**found.to_json(), "audit": records.to_builtins(self._audit(found))}

    def _audit(self, found: Calibration) -> CalibrationAudit:
        """What the calibration images are, against the proof's."""
        from alexnet_edge.export.quantising.audit import audit

        key = found.table_sha256
        if key not in self._audits:
            self.reporter.start("auditing the calibration", None)
            images = self._images_to_calibrate_on()
            self._audits[key] = audit(found, images, self.prover.images, classes=self.checkpoint.info.classes)
            self.reporter.finish(f"{len(self._audits[key].warnings)} warnings")
        return self._audits[key]


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
        for left in out.glob(".staging-*"):
            if not Path(f"/proc/{left.name.split('-')[1]}").exists():  # of an export that was killed
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".staging-{os.getpid()}-", dir=out))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
