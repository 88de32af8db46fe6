"""One TensorRT engine: which graph it is built from, how it is calibrated, and what is proved where it cannot run.

The builders themselves are in `tensorrt.py` (Python bindings of TensorRT and TensorRT-RTX) and `trtexec.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_edge.artifact import Precision
from alexnet_edge.export.engines.features import EngineSpec, Features, check
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_emulation, write_onnx
from alexnet_edge.export.precision import EMULATED, weight_bytes
from alexnet_edge.files import write_text
from alexnet_edge.images.datasets import ImageSet, OnBadImage, batches
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.nvidia.libraries import Runtime, load_library
from alexnet_edge.progress import Reporter

if TYPE_CHECKING:
    from alexnet_edge.export.engines.tensorrt import BuiltEngine

MANIFEST_RUNTIME: dict[Runtime, str] = {"tensorrt": "tensorrt", "trtexec": "tensorrt", "rtx": "tensorrt-rtx"}
"""What runs the engines that each builder makes, as the manifest names it."""
CALIBRATION_BATCH = 8
"""Images that TensorRT's own calibrator is given at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFiles:
    """What one engine build left in the staging folder."""

    engine: Path
    stand_in: Callable[[], Path]
    """Writes an ONNX file in the precision asked for that ONNX Runtime can run: proved where the engine cannot run."""
    runtime: str
    sources: Mapping[str, Path]
    """What the engine was built from, by the name the manifest gives it."""
    built: BuiltEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineBuild:
    """One engine to be built from a checkpoint."""

    checkpoint: Checkpoint
    spec: EngineSpec
    """The engine asked for, from `check_engine`."""
    staging: Path
    """Folder for the files."""
    ranges: Callable[[Precision], Mapping[str, float] | None]
    """The largest magnitudes at the layers' inputs in a precision, None where it needs none."""
    table: Callable[[str, bool], str]
    """The INT8 ranges as a calibration table for a TensorRT version, for the plain graph or that for a DLA."""
    images: Callable[[], ImageSet]
    """What TensorRT's own calibrator is fed with."""
    on_bad_image: OnBadImage
    """What it does with an image that cannot be read."""
    cache: Path
    """Folder for the tables of TensorRT's own calibrators."""
    reporter: Reporter

    def run(self) -> EngineFiles:
        """Build it.

        Raises:
            UserError: for an option that the builder refuses; nothing was built then.
            ArtifactError: when the builder refuses the graph.
            PrecisionError: when a layer was not built as asked.
        """
        spec, options = self.spec, self.spec.options
        for warning in spec.warnings:
            self.reporter.note(warning)
        for_dla = None if options.dla_core is None else options.batches[2]
        graph = self._write_graph(f"building_{spec.graph}.onnx", spec.graph, for_dla)
        sources = {f"alexnet_{spec.graph}{'_dla' if for_dla else ''}.onnx": graph}
        table = None
        if options.calibrator == "table":
            table = sources["calibration.table"] = self.staging / "calibration.table"
            write_text(table, self.table(spec.features.version, for_dla is not None))
        engine = self.staging / "building.engine"
        return EngineFiles(
            engine=engine,
            stand_in=lambda: self._stand_in(graph),
            runtime=MANIFEST_RUNTIME[spec.runtime],
            sources=sources,
            built=self._built(graph, engine, table),
        )

    def _write_graph(self, name: str, precision: Precision, for_dla: int | None = None) -> Path:
        path = self.staging / name
        model = onnx_from_checkpoint(self.checkpoint, precision=precision, amax=self.ranges(precision), for_dla=for_dla)
        write_onnx(model, path)
        return path

    def _stand_in(self, graph: Path) -> Path:
        precision = self.spec.precision
        if precision in EMULATED:
            return write_emulation(self.checkpoint, precision, self.staging)
        return self._write_graph(f"typed_{precision}.onnx", precision) if self.spec.lowered else graph

    def _built(self, graph: Path, engine: Path, table: Path | None) -> BuiltEngine:
        info, reporter = self.checkpoint.info, self.reporter
        expected = weight_bytes(info.arch, self.spec.precision)
        if self.spec.runtime == "trtexec":
            from alexnet_edge.export.engines.trtexec import build_with_trtexec

            return build_with_trtexec(
                graph, engine, self.spec, weight_bytes=expected, calibration_table=table, reporter=reporter
            )
        from alexnet_edge.export.engines.tensorrt import build_engine

        with ExitStack() as stack:
            return build_engine(
                graph,
                engine,
                self.spec,
                weight_bytes=expected,
                size=info.preprocessing.crop,
                calibrator=self._calibrator(table, stack),
                reporter=reporter,
            )

    def _calibrator(self, table: Path | None, stack: ExitStack) -> Any:
        """TensorRT's calibrator: fed with images, or, with our own table in its cache's place, with nothing; None for none."""
        from alexnet_edge.export.engines.calibrators import calibration_key, make_calibrator
        from alexnet_edge.nvidia import cuda

        options, method = self.spec.options, self.spec.options.calibrator
        if method is None:
            return None
        trt = load_library("tensorrt")
        batch = options.batches[2] if options.dla_core is not None else CALIBRATION_BATCH  # that of the graph, or any
        memory = stack.enter_context(cuda.DeviceBuffer())
        if method == "table":
            return make_calibrator(trt, "entropy2", [], batch=batch, cache=table, memory=memory)
        images, preprocessing = self.images(), self.checkpoint.info.preprocessing
        version = self.spec.features.version
        key = calibration_key(self.checkpoint.sha256, preprocessing, images.content_hash(), method, version)
        parts = batches(images, preprocessing, batch=batch, on_bad_image=self.on_bad_image)
        inputs = (part.x_NCHW for part in parts)
        return make_calibrator(trt, method, inputs, batch=batch, cache=self.cache / f"{key}.table", memory=memory)


def check_engine(runtime: Runtime, options: EngineOptions, precision: Precision) -> EngineSpec:
    """Refuse what this builder or machine cannot do, before any work; returns what the builders take.

    Raises:
        UserError: for an option or a precision that it lacks.
        MissingComponentError: when the builder, or a GPU that an option needs, is missing.
    """
    return check(options, precision, _features(runtime), runtime)


def builder_version(runtime: Runtime) -> str:
    """Version of the builder, `10.3.0`."""
    return _features(runtime).version


def _features(runtime: Runtime) -> Features:
    if runtime == "trtexec":
        from alexnet_edge.export.engines.trtexec import probe

        return probe().features
    return Features.detect(load_library(runtime))
