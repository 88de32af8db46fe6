"""One TensorRT engine: which graph it is built from, how it is calibrated, and what is proved where it cannot run.

The builders themselves are in `tensorrt.py` (Python bindings of TensorRT and TensorRT-RTX) and `trtexec.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from alexnet_edge.images.preprocess import FloatArray
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


def build_engine_files(
    checkpoint: Checkpoint,
    spec: EngineSpec,
    staging: Path,
    *,
    ranges: Callable[[Precision], Mapping[str, float] | None],
    table: Callable[[str, bool], str],
    images: Callable[[], ImageSet],
    on_bad_image: OnBadImage,
    cache: Path,
    reporter: Reporter,
) -> EngineFiles:
    """Build one engine from a checkpoint.

    Args:
        checkpoint: the network.
        spec: the engine asked for, from `check_engine`.
        staging: folder for the files.
        ranges: the largest magnitudes at the layers' inputs in a precision, None where it needs none.
        table: the INT8 ranges as a calibration table for a TensorRT version, for the plain graph or that for a DLA.
        images: what TensorRT's own calibrator is fed with.
        on_bad_image: what it does with an image that cannot be read.
        cache: folder for the tables of TensorRT's own calibrators.
        reporter: where progress goes.

    Raises:
        UserError: for an option that the builder refuses; nothing was built then.
        ArtifactError: when the builder refuses the graph.
        PrecisionError: when a layer was not built as asked.
    """
    for warning in spec.warnings:
        reporter.note(warning)
    options, precision, features, fed = spec.options, spec.precision, spec.features, spec.graph
    for_dla = None if options.dla_core is None else options.batches[2]
    graph = staging / f"building_{fed}.onnx"
    write_onnx(onnx_from_checkpoint(checkpoint, precision=fed, amax=ranges(fed), for_dla=for_dla), graph)
    engine = staging / "building.engine"
    table_path = None
    if options.calibrator == "table":
        table_path = staging / "calibration.table"
        write_text(table_path, table(features.version, for_dla is not None))
    size = checkpoint.info.preprocessing.crop
    expected = weight_bytes(checkpoint.info.arch, precision)
    if spec.runtime == "trtexec":
        from alexnet_edge.export.engines.trtexec import build_with_trtexec

        built = build_with_trtexec(
            graph,
            engine,
            spec,
            weight_bytes=expected,
            calibration_table=table_path,
            reporter=reporter,
        )
    else:
        from alexnet_edge.export.engines.tensorrt import build_engine

        with ExitStack() as stack:
            calibrator = None
            if options.calibrator is not None:
                calibrator = _calibrator(checkpoint, features, options, table_path, images, on_bad_image, cache, stack)
            built = build_engine(
                graph,
                engine,
                spec,
                weight_bytes=expected,
                size=size,
                calibrator=calibrator,
                reporter=reporter,
            )
    sources = {f"alexnet_{fed}{'_dla' if for_dla else ''}.onnx": graph}
    if table_path is not None:
        sources["calibration.table"] = table_path
    return EngineFiles(
        engine=engine,
        stand_in=lambda: _stand_in(checkpoint, precision, staging, fed, graph, ranges),
        runtime=MANIFEST_RUNTIME[spec.runtime],
        sources=sources,
        built=built,
    )


def check_engine(runtime: Runtime, options: EngineOptions, precision: Precision) -> EngineSpec:
    """Refuse what this builder or machine cannot do, before any work; returns what the builders take.

    Raises:
        UserError: for an option or a precision that it lacks.
        MissingComponentError: when the builder, or a GPU that an option needs, is not here.
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


def _stand_in(
    checkpoint: Checkpoint,
    precision: Precision,
    staging: Path,
    fed: Precision,
    graph: Path,
    ranges: Callable[[Precision], Mapping[str, float] | None],
) -> Path:
    if precision in EMULATED:
        return write_emulation(checkpoint, precision, staging)
    if fed == precision:
        return graph
    path = staging / f"typed_{precision}.onnx"
    write_onnx(onnx_from_checkpoint(checkpoint, precision=precision, amax=ranges(precision)), path)
    return path


def _calibrator(
    checkpoint: Checkpoint,
    features: Features,
    options: EngineOptions,
    table: Path | None,
    images: Callable[[], ImageSet],
    on_bad_image: OnBadImage,
    cache: Path,
    stack: ExitStack,
) -> Any:
    """TensorRT's calibrator: fed with images, or, with a table of ours in its cache's place, with nothing."""
    from alexnet_edge.export.engines.calibrators import calibration_key, make_calibrator
    from alexnet_edge.nvidia import cuda

    trt = load_library("tensorrt")
    batch = options.batches[2] if options.dla_core is not None else CALIBRATION_BATCH  # that of the graph, or any
    memory = stack.enter_context(cuda.DeviceBuffer())
    if table is not None:
        return make_calibrator(trt, "entropy2", [], batch=batch, cache=table, memory=memory)
    assert options.calibrator in ("entropy2", "minmax")
    found = images()
    preprocessing = checkpoint.info.preprocessing
    key = calibration_key(checkpoint.sha256, preprocessing, found.content_hash(), options.calibrator, features.version)

    def inputs() -> Iterator[FloatArray]:
        for part in batches(found, preprocessing, batch=batch, on_bad_image=on_bad_image):
            yield part.x_NCHW

    return make_calibrator(
        trt,
        options.calibrator,
        inputs(),
        batch=batch,
        cache=cache / f"{key}.table",
        memory=memory,
    )
