"""Which formats, precisions and runtimes there are, and which of them can be written here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import get_args

from alexnet_edge.artifact import Format, Precision
from alexnet_edge.errors import MissingComponentError, UserError, needs
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.graphs.targets import LOWERED_PRECISIONS, LoweredRuntime, Target
from alexnet_edge.nvidia.libraries import Runtime, default_runtime, find_trtexec, load_library

FORMATS: tuple[Format, ...] = get_args(Format)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc")
"""Those of a portable graph."""

WRITABLE: dict[Format, tuple[Precision, ...]] = {
    "torchscript": ("fp32",),
    "pt2": ("fp32",),
    "onnx": PRECISIONS,
    "openvino": ("fp32", "fp16", "int8"),
    "trt": PRECISIONS,
}
"""The precisions each format is written in without a target."""
LOWERED: dict[Format, LoweredRuntime] = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The runtime that a format is lowered for, in `LOWERED_PRECISIONS`."""

EVERYDAY: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""The precisions that `--format all` writes; the others are written when asked for by name."""


def every_artifact(target: Target | None = None) -> list[tuple[Format, Precision]]:
    """Every format in every everyday precision it is written in, and what is recommended for the target."""
    everyday = [(format, precision) for format in FORMATS for precision in WRITABLE[format] if precision in EVERYDAY]
    best = [target.recommended] if target is not None and target.recommended not in everyday else []
    return [*everyday, *best]


def selection(
    format: str, precision: Precision | None, target: Target | None = None, *, lower_fp32: bool = False
) -> list[tuple[Format, Precision]]:
    """What `--format` and a precision ask for: `all` without a precision is every artifact, one format without is FP32.

    With `lower_fp32`, because the target was named, `all` is what can be lowered for it.
    """
    if format != "all":
        return [(format, precision or "fp32")]  # type: ignore[list-item]  # one of FORMATS
    if lower_fp32:
        artifacts: tuple[Precision, ...] = ("fp32", "int8", "int8-int4-fc") if precision is None else (precision,)
        return [(name, kind) for name in LOWERED for kind in artifacts]
    if precision is None:
        return every_artifact(target)
    lowered = LOWERED if target is not None and precision in LOWERED_PRECISIONS else ()
    return [(name, precision) for name in FORMATS if precision in WRITABLE[name] or name in lowered]


def unavailable(
    format: Format, runtime: Runtime | None = None, *, torch: bool = True, onnxruntime: bool = True
) -> MissingComponentError | None:
    """Why this machine cannot write `format`, or None when it can.

    Args:
        format: what to write.
        runtime: what shall build TensorRT engines; None for any.
        torch: whether the source is a checkpoint, whose own answers come from PyTorch.
        onnxruntime: whether answers or ranges have to be computed from an ONNX file.
    """
    from importlib.util import find_spec

    modules = [("train", "torch"), ("train", "safetensors")] if torch or format in ("torchscript", "pt2") else []
    if format not in ("torchscript", "pt2"):
        modules += [("export", "onnx")]
    if format == "openvino":
        modules += [("openvino", "openvino")]
    elif format in ("onnx", "trt") and onnxruntime:
        modules += [("onnx", "onnxruntime")]
    try:
        for extra, module in modules:
            with needs(extra):
                if find_spec(module) is None:
                    raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        if format == "trt":
            engine_runtime(runtime)
    except MissingComponentError as error:
        return error
    return None


def check_engines(
    artifacts: Sequence[tuple[Format, Precision]], runtime: Runtime | None, options: EngineOptions
) -> None:
    """Refuse options that the builder of the engines in `artifacts` lacks, before any work; what is missing is no matter here.

    Raises:
        UserError: for an option or a precision that it lacks.
    """
    for format, precision in artifacts:
        if format == "trt" and unavailable("trt", runtime, torch=False) is None:
            from alexnet_edge.export.engines.engine import check_engine

            with suppress(MissingComponentError):
                check_engine(engine_runtime(runtime), options, precision)


def engine_runtime(requested: Runtime | None) -> Runtime:
    """What builds TensorRT engines: the runtime asked for, or the best on this machine.

    Raises:
        MissingComponentError: when it is not installed.
    """
    runtime = requested or default_runtime()
    if runtime is None:
        raise MissingComponentError(
            "no TensorRT here: neither TensorRT, trtexec nor TensorRT-RTX is installed",
            fix="run: pip install 'alexnet-edge[rtx]' (x86-64), or build on the board with `export --onnx`",
        )
    if requested == "trtexec":
        if find_trtexec() is None:
            problem = "trtexec was not found on PATH or in /usr/src/tensorrt/bin"
            raise MissingComponentError(problem, fix="set TRTEXEC to its path")
    elif requested is not None:
        load_library(requested)  # says what is missing
    return runtime


def table_version(requested: str | None, runtime: Runtime | None) -> str:
    """The TensorRT version that a calibration table is written for: the one asked for, or that of the builder here.

    Raises:
        UserError: when none is asked for and TensorRT-RTX builds the engines.
        MissingComponentError: when `runtime` is not here.
    """
    from alexnet_edge.export.engines.engine import builder_version

    if requested is not None:
        return requested
    builder = engine_runtime(runtime)
    if builder == "rtx":
        raise UserError(
            "which TensorRT shall read the calibration table? TensorRT-RTX has none", fix="add --table-for 10.3.0"
        )
    return builder_version(builder)
