"""The network as an ONNX graph, written from the layer table and the weights.

No tracer stands in between: every node carries its layer's name (`conv1`, `conv1/relu`, `conv1/lrn`, ...), local response
normalisation is the native `LRN` operator (a traced one becomes a 5-D AveragePool that several TensorRT versions refuse),
and quantise/dequantise pairs stand only at the inputs of the eight layers, where TensorRT fuses them. `layer_types` says which
type each layer gets. That the graph is the checkpoint's network is shown by parity on images, not by construction.

Letters: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet_edge.artifact import INPUT, Precision, layer_types
from alexnet_edge.errors import UserError, needs
from alexnet_edge.export.graphs.graph import Graph, convolution
from alexnet_edge.network.checkpoint import Checkpoint, Weights
from alexnet_edge.network.layers import Architecture, LayerSpec
from alexnet_edge.network.quantize import FP8_MAX, INT4_BLOCK, half_scale, quantize_blocks, quantize_tensor

with needs("export"):
    import ml_dtypes
    import onnx
    from onnx import TensorProto

OPSETS: dict[Precision, int] = {"fp32": 17, "fp16": 17, "int8": 17, "fp8": 19, "int4-fc": 21, "bf16": 22}
"""The operator set of each precision's graph, as low as its types allow.

17 is the newest that TensorRT 8.6 (JetPack 6.0) and every later one reads. FP8 with FP16 scales comes with 19, INT4 and
blocks of scales with 21, a BF16 convolution with 22. Those types need TensorRT 10 anyway; BF16 graphs, which only a strongly
typed build reads, 10.12.
"""
IR_VERSIONS = {17: 8, 19: 9, 21: 10, 22: 10}
"""The file format that goes with each operator set."""

CALIBRATED_TYPES = frozenset({"int8", "fp8"})
"""The types in which a layer's input is quantised too, so that it needs a range."""
DLA_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""The precisions whose graph has a form for DLA; DLA itself has no FP32, its builder lowers that one."""

Compute = Literal["fp32", "fp16", "bf16"]

_COMPUTE: dict[Precision, Compute] = {"fp16": "fp16", "bf16": "bf16", "fp8": "fp16", "int4-fc": "fp16"}  # the rest FP32
_ELEMENTS: dict[Compute, int] = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_DTYPES: dict[Compute, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass(slots=True, kw_only=True)
class _Graph(Graph):
    """With the types of a precision."""

    compute: Compute
    """Element type of everything that is not quantised, but for LRN and softmax, which are FP32."""
    emulated: bool = False
    """Whether values are kept in FP32 and only rounded to `compute`."""
    dla: bool = False
    """Whether fully connected layers are written as convolutions."""

    def parameter(self, name: str, value: np.ndarray[Any, Any]) -> str:
        """A constant in the element type of the graph's computation."""
        rounded = value.astype(_DTYPES[self.compute])
        return self.constant(name, rounded.astype(np.float32) if self.emulated else rounded)

    def cast(self, name: str, to: Compute) -> None:
        if not self.emulated:
            self.add("Cast", name, [self.head], to=_ELEMENTS[to])
        elif to != "fp32":
            self.round(name)

    def round(self, name: str) -> None:
        """Round an FP32 tensor to the values that `compute` has."""
        self.add("Cast", name, [self.head], to=_ELEMENTS[self.compute])
        self.add("Cast", f"{name}/fp32", [self.head], to=TensorProto.FLOAT)


def onnx_from_checkpoint(
    checkpoint: Checkpoint,
    *,
    precision: Precision = "fp32",
    amax: Mapping[str, float] | None = None,
    for_dla: int | None = None,
) -> onnx.ModelProto:
    """The checkpoint's network as an ONNX model with a free batch; input and output are float32 in every precision.

    Args:
        checkpoint: weights and description.
        precision: `fp16` and `bf16` are the element type of weights and activations. `int8` and `fp8` quantise the inputs
            and weights of the eight layers with quantise/dequantise pairs: activations symmetric per tensor; weights
            symmetric, INT8 per output channel, FP8 per tensor; what is not quantised stays FP32 with `int8` and FP16 with
            `fp8`. `int4-fc` stores the weights of fc6 to fc8 in INT4, with an FP16 scale for every `INT4_BLOCK` weights along
            the input axis, and computes in FP16. In every precision local response normalisation and the softmax head stay
            in FP32: squared activations overflow FP16 above 255. ONNX Runtime runs `fp8` rightly only with its optimiser for
            quantised graphs off (`session.disable_quant_qdq`): it turns biases into INT32 by way of FP16, which overflows.
        amax: for `int8` and `fp8`, the largest magnitude to represent at the input of each of the eight layers, by layer
            name, from calibration. A layer that is not named is not quantised.
        for_dla: with a number, the form that DLA takes: that fixed batch, fc6 as a 6x6 and fc7 and fc8 as 1x1 convolutions, so
            that no dimension exceeds 8192, and the flatten at the end. Local response normalisation, which is FP32, is left
            to the GPU.

    Raises:
        UserError: when `amax` is missing or not wanted, or the precision has no form for DLA.
        MissingComponentError: when the onnx package is not installed.
    """
    calibrated = bool(CALIBRATED_TYPES & set(layer_types(precision).values()))
    if calibrated and amax is None:
        raise UserError("this precision needs the range of each layer's input", value=precision, fix="calibrate first")
    if amax is not None and not calibrated:
        raise UserError("this precision takes no calibration ranges", value=precision, fix="leave `amax` out")
    if for_dla is not None and precision not in DLA_PRECISIONS:
        raise UserError(
            "this precision has no form for DLA", value=precision, fix=f"choose {', '.join(DLA_PRECISIONS)}"
        )
    graph = _Graph(compute=_COMPUTE.get(precision, "fp32"), dla=for_dla is not None)
    return _model(graph, checkpoint, precision, amax or {}, batch="N" if for_dla is None else for_dla)


def emulation_from_checkpoint(checkpoint: Checkpoint, precision: Precision) -> onnx.ModelProto:
    """The graph of `precision` computed in FP32, for a runtime without kernels for its types.

    Weights are rounded to the type, and so is every tensor that has this type in the graph itself; sums are FP32, as tensor
    cores keep them. So it shows what the rounding does to the answers, on ONNX Runtime's processor kernels.

    Args:
        checkpoint: weights and description.
        precision: `bf16`; the graphs of the others run as they are.

    Raises:
        UserError: for another precision.
    """
    if precision != "bf16":
        raise UserError("only bf16 needs an emulation", value=precision, fix="run the graph itself")
    return _model(_Graph(compute="bf16", emulated=True), checkpoint, "fp32", {}, batch="N")


def _model(
    graph: _Graph, checkpoint: Checkpoint, precision: Precision, amax: Mapping[str, float], batch: int | str
) -> onnx.ModelProto:
    arch = checkpoint.info.arch
    types = layer_types(precision)
    if graph.compute != "fp32":
        graph.cast(f"input/{graph.compute}", graph.compute)
    channels = 3
    for spec in arch.layers:
        if spec.name == "fc6" and not graph.dla:
            graph.add("Flatten", "flatten", [graph.head], axis=1)
        _layer(graph, spec, checkpoint.weights, types[spec.name], amax.get(spec.name), channels)
        channels = spec.out_channels
    if graph.dla:
        graph.add("Flatten", "flatten", [graph.head], axis=1)
    if graph.compute != "fp32":
        graph.cast("output/fp32", "fp32")
    opset = OPSETS[precision]
    return graph.model(checkpoint, f"alexnet-{arch.name}", {"": opset}, IR_VERSIONS[opset], batch=batch, strict=True)


def write_emulation(checkpoint: Checkpoint, precision: Precision, folder: Path) -> Path:
    """Write `emulation_from_checkpoint` into `folder` and return the file."""
    path = folder / f"emulated_{precision}.onnx"
    write_onnx(emulation_from_checkpoint(checkpoint, precision), path)
    return path


def layer_inputs(arch: Architecture) -> dict[str, str]:
    """Name of the tensor at the input of each of the eight layers, in the FP32 model."""
    names: dict[str, str] = {}
    head = INPUT
    for spec in arch.layers:
        names[spec.name] = "flatten" if spec.name == "fc6" else head
        head = spec.name
        for follows, suffix in ((spec.relu, "relu"), (spec.lrn, "lrn"), (spec.pool, "pool")):
            head = f"{spec.name}/{suffix}" if follows else head
    return names


def layer_outputs(arch: Architecture) -> dict[str, str]:
    """Name of the tensor that leaves each layer whose output no layer takes as it is, in the FP32 model.

    Those are the layers before a local response normalisation, and the last one.
    """
    names = {spec.name: f"{spec.name}/relu" if spec.relu else spec.name for spec in arch.layers if spec.lrn}
    last = arch.layers[-1].name
    return {**names, last: arch.head if arch.head == "logits" else last}


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Check the model and write it to `path`.

    Raises:
        onnx.checker.ValidationError: when the graph is not valid; that is a fault of this package.
    """
    onnx.checker.check_model(model)  # with the strict shape inference above, this is the full check
    onnx.save_model(model, str(path))


def _layer(graph: _Graph, spec: LayerSpec, weights: Weights, kind: str, amax: float | None, channels: int) -> None:
    """Append a layer and what follows it; `channels` is the number of channels at its input."""
    weight, bias = weights[f"{spec.name}.weight"], weights.get(f"{spec.name}.bias")
    kernel = spec.kernel
    if spec.kind == "fc" and graph.dla:  # its input is (N, channels, kernel, kernel)
        kernel = math.isqrt(spec.in_channels // channels)
        weight = weight.reshape(spec.out_channels, channels, kernel, kernel)
    if kind in CALIBRATED_TYPES and amax is None:
        kind = graph.compute
    if amax is not None and kind in CALIBRATED_TYPES:
        _quantise_input(graph, spec.name, kind, amax)
    activation = graph.head
    inputs = [activation, _weight(graph, spec.name, kind, weight)]
    if bias is not None:
        inputs.append(graph.parameter(f"{spec.name}.bias", bias))
    if weight.ndim == 4:
        graph.add("Conv", spec.name, inputs, **convolution(spec, kernel))
    else:
        graph.add("Gemm", spec.name, inputs, transB=1)
    if graph.emulated:
        graph.round(f"{spec.name}/{graph.compute}")
    if spec.relu:
        graph.add("Relu", f"{spec.name}/relu", [graph.head])
    if spec.lrn:
        if graph.compute != "fp32":
            graph.cast(f"{spec.name}/lrn/fp32", "fp32")
        graph.normalise(f"{spec.name}/lrn")
        if graph.compute != "fp32":
            graph.cast(f"{spec.name}/lrn/{graph.compute}", graph.compute)
    if spec.pool:
        graph.pool(f"{spec.name}/pool")


def _quantise_input(graph: _Graph, layer: str, kind: str, amax: float) -> None:
    """Quantise and dequantise the head; the zero point gives the type."""
    if kind == "int8":
        scale = graph.constant(f"{layer}/input_scale", np.float32(amax / 127))
        zero = graph.constant(f"{layer}/input_zero", np.int8(0))
    else:
        scale = graph.constant(f"{layer}/input_scale", half_scale(np.float32(amax), FP8_MAX))
        zero = graph.constant(f"{layer}/input_zero", np.zeros((), ml_dtypes.float8_e4m3fn))
    graph.add("QuantizeLinear", f"{layer}/input_q", [graph.head, scale, zero])
    graph.add("DequantizeLinear", f"{layer}/input_dq", [graph.head, scale, zero])


def _weight(graph: _Graph, layer: str, kind: str, weight: np.ndarray[Any, Any]) -> str:
    """Append a weight, with the node that dequantises it where it is quantised; returns the tensor's name."""
    name = f"{layer}.weight"
    if kind == "int8":
        graph.int8_weight(name, weight)
    elif kind == "fp8":
        values_fp8, scale_fp16 = quantize_tensor(weight)
        inputs = [graph.constant(name, values_fp8), graph.constant(f"{name}_scale", scale_fp16)]
        graph.add("DequantizeLinear", f"{name}_dq", inputs)
    elif kind == "int4":
        values, scale_fp16 = quantize_blocks(weight)
        inputs = [graph.constant(name, values.astype(ml_dtypes.int4)), graph.constant(f"{name}_scale", scale_fp16)]
        graph.add("DequantizeLinear", f"{name}_dq", inputs, axis=1, block_size=INT4_BLOCK)
    else:
        return graph.parameter(name, weight)
    return graph.head
