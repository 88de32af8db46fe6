"""What an export is asked to do, as data, and what that means on this machine.

An `ExportRequest` refuses what contradicts itself as soon as it is made, without looking at a file or at the machine.
`resolve` compares it with this machine: its processor, its builder of engines, its GPU. What builds trusts both.

Each docstring of a field is the help text of its option; brackets hold the default where the field has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alexnet_edge.artifact import Format, Precision
from alexnet_edge.environment import check_threads
from alexnet_edge.errors import UserError
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.fields import changed_fields, flag, refuse_changed, require_choices
from alexnet_edge.export.graphs.targets import (
    TARGETS,
    Target,
    TargetName,
    check_target,
    this_machine,
    this_machine_or_none,
)
from alexnet_edge.export.precision import CALIBRATED, CORRECTED
from alexnet_edge.export.quantising.calibrate import Method
from alexnet_edge.export.selection import check_engines, selection, table_version
from alexnet_edge.export.triton import TritonOptions
from alexnet_edge.images.datasets import OnBadImage
from alexnet_edge.nvidia.libraries import Runtime

RequestFormat = Literal["all", "torchscript", "pt2", "onnx", "openvino", "trt"]
"""`all` is every format in its everyday precisions."""
PRECISION_FLAGS: dict[str, Precision] = {
    "fp16": "fp16",
    "bf16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "int4_fc": "int4-fc",
    "int8_int4_fc": "int8-int4-fc",
}
"""The fields of a request that name a precision; FP32 without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationOptions:
    """Where the ranges of INT8 and FP8 come from."""

    calibration: str | None = None
    """Images to calibrate on [the training data]; `random` for random pixels."""
    calibration_images: int | None = None
    """So many of them, evenly spread [512]."""
    method: Method = "entropy"
    """How ranges are chosen from the histogram of activations."""
    calibration_table: Path | None = None
    """Also write the INT8 ranges as a TensorRT calibration table."""
    table_for: str | None = None
    """TensorRT version that reads that table, as 10.3.0 [the one on this machine]."""

    def __post_init__(self) -> None:
        require_choices(self)
        if self.table_for is not None and not re.fullmatch(r"\d+\.\d+\.\d+(\.\d+)?", self.table_for):
            raise UserError("a TensorRT version is written as 10.3.0", value=self.table_for, fix="correct --table-for")
        if self.calibration_images is not None and self.calibration_images < 1:
            problem = "the number of images must be 1 or more"
            raise UserError(problem, value=self.calibration_images, fix="give a positive number")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionOptions:
    """What is changed in the network before INT8: see docs/quantization.md."""

    equalise: bool = False
    """Before INT8, bring channels to like ranges: docs/quantization.md."""
    correct_bias: bool = False
    """Take the mean error of INT8 and INT4 layers off their biases."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """How `--int8 auto` decides."""

    max_drop: float = 0.5
    """With --int8 auto: points of top-1 accuracy that may be lost."""
    search_images: str | None = None
    """With --int8 auto: images that decide [256 of the training data]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """Which artifacts are written from which network, and how.

    Raises:
        UserError: for what contradicts itself, and for an option that would have no effect.
    """

    format: RequestFormat = "all"
    """What to write; all is everything that can be written here in FP32, FP16 and INT8."""
    fp16: bool = False
    """Weights and activations in FP16; LRN in FP32."""
    bf16: bool = False
    """Weights and activations in BF16; LRN in FP32."""
    int8: bool = False
    """INT8 with quantise/dequantise pairs; LRN in FP32."""
    auto: bool = False
    """After --int8: search the fastest type of each layer."""
    fp8: bool = False
    """FP8 (E4M3) with quantise/dequantise pairs; the rest FP16."""
    int4_fc: bool = False
    """Weights of fc6 to fc8 in INT4, everything else in FP16."""
    int8_int4_fc: bool = False
    """For processors: convolutions in INT8, weights of fc6 to fc8 in INT4."""
    search: SearchOptions = field(default_factory=SearchOptions)
    target: TargetName | None = None
    """Where ONNX and OpenVINO files will run [this processor]."""
    recommended: bool = False
    """The format and precision that measured best for the target."""
    checkpoint: Path | None = None
    """Checkpoint, or a state dict of torchvision or the notebook [newest in runs/]."""
    onnx: Path | None = None
    """Export from an FP32 ONNX artifact instead: needs no torch, as on a board."""
    out: Path = Path("artifacts")
    """Folder of the artifacts."""
    images: str | None = None
    """Images to prove the answers on [the checkpoint's validation data]."""
    limit: int | None = None
    """Use so many images, evenly spread over the classes."""
    class_list: Path | None = None
    """CSV file with wnid,index,name [classes.csv beside the images]."""
    on_bad_image: OnBadImage = "fail"
    """Whether an image that cannot be used is skipped, or fails the command."""
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    corrections: CorrectionOptions = field(default_factory=CorrectionOptions)
    runtime: Runtime | None = None
    """What builds TensorRT engines [the first on this machine]."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    triton: TritonOptions | None = None
    """Write the ONNX file that a Triton server on any machine takes, and serve it."""
    threads: int | None = None
    """Processor threads [all]."""
    runs: Path = Path("runs")
    """Folder of the training runs."""

    def __post_init__(self) -> None:
        require_choices(self)
        check_threads(self.threads)
        if self.checkpoint is not None and self.onnx is not None:
            raise UserError("an export has one source", value="--checkpoint --onnx", fix="give one of them")
        for check in (_check_precision, _check_triton, _check_engine, _check_calibration):
            check(self)

    @property
    def precision(self) -> Precision | None:
        """The precision that is named; `mixed` where a search chooses each layer's type, None without one."""
        if self.auto:
            return "mixed"
        return next((precision for name, precision in PRECISION_FLAGS.items() if getattr(self, name)), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a request means on this machine."""

    artifacts: tuple[tuple[Format, Precision], ...]
    """What is written, in order."""
    target: Target | None
    """Where it will run; None for the portable graph."""
    lower_fp32: bool
    """Whether FP32 is lowered for the target too."""
    table_version: str | None
    """The TensorRT version of the calibration table; None without one."""


def resolve(request: ExportRequest) -> Job:
    """What `request` means on this machine, checked against its builder of engines, before any work.

    Raises:
        UserError: when no target fits this processor, or for an option that the builder or this machine lacks.
        MissingComponentError: when the table is for the TensorRT on this machine, and it has none.
    """
    target = None if request.target is None else TARGETS[request.target]
    if target is None and request.triton is None:  # a server is another machine
        target = this_machine_or_none()
    lower_fp32 = request.target is not None and target is not None and bool(target.lowerings)
    format, precision = _format_and_precision(request) or this_machine().recommended
    artifacts = tuple(selection(format, precision, target, lower_fp32=lower_fp32))
    version = None
    if request.calibration.calibration_table is not None:
        version = table_version(request.calibration.table_for, request.runtime)
    check_engines(artifacts, request.runtime, request.engine)
    return Job(artifacts=artifacts, target=target, lower_fp32=lower_fp32, table_version=version)


def _format_and_precision(request: ExportRequest) -> tuple[str, Precision | None] | None:
    """Format and precision; None for what is recommended for this machine's own processor."""
    if not request.recommended:
        return request.format if request.triton is None else "onnx", request.precision
    return None if request.target is None else TARGETS[request.target].recommended


def _written(request: ExportRequest) -> set[Precision]:
    """The precisions that will be written, as far as they do not depend on this machine."""
    chosen = _format_and_precision(request)
    if chosen is None:  # every processor's recommendation is calibrated and corrected
        return {"int8-int4-fc"}
    target = None if request.target is None else TARGETS[request.target]
    lower_fp32 = target is not None and bool(target.lowerings)
    return {precision for _, precision in selection(*chosen, target, lower_fp32=lower_fp32)}


def _check_precision(request: ExportRequest) -> None:
    flags = [flag(name) for name in PRECISION_FLAGS if getattr(request, name)]
    if len(flags) > 1:
        raise UserError("an artifact has one precision", value=" ".join(flags), fix="give one of them per command")
    if request.recommended and (flags or request.format != "all"):
        raise UserError(
            "--recommended chooses format and precision itself", value=(*flags, "--format")[0], fix="leave it out"
        )
    if not request.auto:
        refuse_changed(request.search, "this option is for --int8 auto", fix="add `auto`")
    elif not request.int8:
        raise UserError("`auto` is for --int8", value="auto", fix="write --int8 auto, or leave it out")
    elif request.format not in ("onnx", "openvino"):
        raise UserError(
            "--int8 auto writes one format", value=f"--format {request.format}", fix="add --format openvino or onnx"
        )
    chosen = _format_and_precision(request)
    if request.target is not None and chosen is not None:
        check_target(TARGETS[request.target], *chosen)


def _check_triton(request: ExportRequest) -> None:
    if request.triton is not None and request.triton.artifact is not None:
        served = ("max_batch", *changed_fields(request.triton))
        refuse_changed(request, "the artifact is served as it is", fix="leave it out", allowed=served)


def _check_engine(request: ExportRequest) -> None:
    chosen = _format_and_precision(request)
    if chosen is not None and chosen[0] in ("all", "trt"):
        return
    problem, fix = "this option is for TensorRT engines only", "add --format trt, or leave it out"
    if request.runtime is not None:
        raise UserError(problem, value="--runtime", fix=fix)
    refuse_changed(request.engine, problem, fix=fix, allowed=("max_batch",) if request.triton is not None else ())


def _check_calibration(request: ExportRequest) -> None:
    written = _written(request)
    if not written & set(CALIBRATED):
        fix = "add --int8 or --fp8, or leave it out"
        refuse_changed(request.calibration, "only INT8 and FP8 are calibrated", fix=fix)
    if not written & set(CORRECTED):
        refuse_changed(request.corrections, "corrections are for INT8", fix="add --int8, or leave it out")
    elif request.engine.calibrator is not None and changed_fields(request.corrections):
        raise UserError(
            "corrections need the ranges that this export calibrates",
            value="--calibrator",
            fix="leave --equalise and --correct-bias out",
        )
    table = request.calibration.calibration_table
    if table is None and request.calibration.table_for is not None:
        raise UserError("this option is for a calibration table", value="--table-for", fix="add --calibration-table")
    if table is not None and request.corrections.equalise:
        raise UserError("TensorRT would use the table for the network as it is", value="--equalise", fix="leave it out")
    if table is not None and "int8" not in written:
        raise UserError("a calibration table is for INT8", value=table, fix="add --int8, or leave it out")
