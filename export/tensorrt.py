"""A TensorRT-RTX engine, built from the typed ONNX graph. The build needs no GPU; running the engine does.

Source: TensorRT-RTX documentation, "Ahead-of-time compilation" and the Python API of `tensorrt_rtx`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alexnet_edge.artifact import INPUT, LayerPrecision, Precision
from alexnet_edge.errors import ArtifactError, MissingComponentError, PrecisionError, UserError, install_command
from alexnet_edge.export.precision import network_precisions, require_precision

_log = logging.getLogger(__name__)

WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
SIZE_SLACK = 0.15
"""How far an engine's size may be from that of its weights, as a share: biases, scales, kernels' code and padding."""
FIXED_SLACK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """What the builder is told."""

    min_batch: int = 1
    opt_batch: int = 1
    """The batch the engine is tuned for."""
    max_batch: int = 16
    compute_capabilities: tuple[str, ...] = ()
    """GPU architectures to build for, as `sm89`; empty for all that the runtime supports."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise UserError(
                "batches must satisfy 1 <= min <= opt <= max",
                value=f"{self.min_batch}, {self.opt_batch}, {self.max_batch}",
                fix="change --min-batch, --opt-batch or --max-batch",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltEngine:
    """What the builder answered."""

    layers: tuple[LayerPrecision, ...]
    version: str
    options: dict[str, Any] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    """Warnings of the builder and the parser."""


def rtx_version() -> str | None:
    """Version of the installed TensorRT-RTX, or None."""
    from importlib import metadata

    try:
        return metadata.version("tensorrt-rtx")
    except metadata.PackageNotFoundError:
        return None


def build_rtx_engine(
    onnx_path: Path, engine_path: Path, *, precision: Precision, weights: int, size: int, options: EngineOptions
) -> BuiltEngine:
    """Build `engine_path` from a typed ONNX file of this package.

    Args:
        onnx_path: the graph; its element types are the engine's precisions.
        engine_path: where the engine goes, exactly the bytes that the builder returns.
        precision: the precision asked for, proved layer by layer and by the engine's size.
        weights: number of weights in the network, for the proof by size.
        size: height and width of the input, in pixels.
        options: batches and GPU architectures.

    Raises:
        MissingComponentError: when TensorRT-RTX is not installed.
        ArtifactError: when its parser or builder refuses the graph, with its reason.
        UserError: when a GPU architecture is not one it builds for.
        PrecisionError: when a layer is not in the precision asked for.
    """
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise MissingComponentError("TensorRT-RTX is not installed", fix=f"run: {install_command('rtx')}") from error

    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Routes the builder's messages to this package's log, and keeps warnings and errors for the manifest."""

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)
            _log.log(logging.WARNING if serious else logging.DEBUG, "TensorRT-RTX: %s", message)
            if serious:
                messages.append(message)

    builder = trt.Builder(Logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(onnx_path.read_bytes()):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ArtifactError(f"TensorRT-RTX cannot read the graph ({reasons})", value=onnx_path, fix="export it again")
    layers = network_precisions(network, precision)
    require_precision(layers, f"TensorRT-RTX {precision} engine")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(
        INPUT, *[(batch, 3, size, size) for batch in (options.min_batch, options.opt_batch, options.max_batch)]
    )
    config.add_optimization_profile(profile)
    _set_capabilities(trt, config, options.compute_capabilities)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(
            f"TensorRT-RTX could not build the engine ({'; '.join(messages) or 'it gives no reason'})",
            value=onnx_path,
            fix="try another precision",
        )
    engine_path.write_bytes(plan)
    _prove_size(engine_path.stat().st_size, precision, weights, max(1, len(options.compute_capabilities)))
    return BuiltEngine(
        layers=layers,
        version=str(trt.__version__),
        options={
            "min_batch": options.min_batch,
            "opt_batch": options.opt_batch,
            "max_batch": options.max_batch,
            "compute_capabilities": list(options.compute_capabilities) or "all supported",
            "typing": "strongly typed",
        },
        messages=tuple(messages),
    )


def _set_capabilities(trt: Any, config: Any, names: Sequence[str]) -> None:
    if not names:
        return
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    for name in names:
        if name.lower() not in known:
            raise UserError(
                "TensorRT-RTX does not build for this GPU architecture",
                value=name,
                fix=f"choose from {', '.join(known)}",
            )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(known[name.lower()], index)


def _prove_size(size: int, precision: Precision, weights: int, copies: int) -> None:
    expected = weights * WEIGHT_BYTES[precision]
    if abs(size - expected) > expected * SIZE_SLACK + FIXED_SLACK_BYTES * copies:
        raise PrecisionError(
            f"the engine has {size:,} bytes where {weights:,} weights in {precision} take {expected:,}: "
            "it was not built in the precision asked for"
        )
