"""The network lowered for a processor: an ONNX graph as its runtime computes it fastest.

`targets.py` has the choices as data, `docs/performance.md` the measurements behind them. Node names are layer names, as in
the portable graph of `onnx.py`, so that profiles, precision proofs and comparisons of tensors read both.

What is exact: the quantise node before a max pooling instead of behind it (rounding keeps order, so the largest value stays
the largest); a ReLU that the lower end of an unsigned range replaces; and the lowered local response normalisation but for
the rounding of FP32. What rounds: the integer types of the plan, and in ONNX Runtime's operators, whose convolutions have
integer outputs only, the input of a local response normalisation.

Letters: N batch, C channels, H height, W width, K classes.

Sources: ONNX operators QLinearConv, QuantizeLinear, DequantizeLinear; ONNX Runtime contrib operators QGemm and MatMulNBits
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alexnet_edge.artifact import Plan
from alexnet_edge.errors import UserError, needs
from alexnet_edge.export.graphs.graph import Graph, convolution
from alexnet_edge.export.graphs.targets import LoweredRuntime, Lowering, Ranges, Target, check_plan
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, LayerSpec
from alexnet_edge.network.quantize import quantize_blocks_full, quantize_weight

with needs("export"):
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper

OPSET = 21
"""The first with INT4 and blocks of scales."""
IR_VERSION = 10
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
ACCURACY_LEVEL = 4
"""MatMulNBits: quantise its input to INT8 per block and add in INT32."""

assert LRN_BETA == 0.75, "the square roots below compute s ** -0.75"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """How a tensor is quantised: names of the scale and the zero point, and the scale's value."""

    scale: str
    zero: str
    value: np.float32


@dataclass(slots=True, kw_only=True)
class _Graph(Graph):
    """With the lowering, and how the head is quantised."""

    lowering: Lowering
    quantised: _Scale | None = None
    """How the head is quantised; None where it is FP32."""

    def declare(self, width: int) -> None:
        """Say the type of the head, `(N, width)`."""
        kind = TensorProto.FLOAT
        if self.quantised is not None:
            kind = TensorProto.INT8 if self.lowering.signed else TensorProto.UINT8
        self.values.append(helper.make_tensor_value_info(self.head, kind, ["N", width]))

    def scale(self, name: str, amax: float, *, negative: bool) -> _Scale:
        """Constants for a tensor whose largest magnitude is `amax`; `negative` where it may be below 0.

        Signed or not, the steps are the same: a tensor that is never below 0 takes all 256 of them.
        """
        lowest, dtype = (-128, np.int8) if self.lowering.signed else (0, np.uint8)
        zero = np.asarray(lowest + 128 if negative else lowest, dtype)
        value = np.float32(amax / (127 if negative else 255))
        return _Scale(
            scale=self.constant(f"{name}_scale", value), zero=self.constant(f"{name}_zero", zero), value=value
        )

    def quantise(self, name: str, scale: _Scale) -> None:
        self.add("QuantizeLinear", name, [self.head, scale.scale, scale.zero])
        self.quantised = scale

    def dequantise(self, name: str) -> None:
        """Make the head FP32, where it is not."""
        if self.quantised is not None:
            self.add("DequantizeLinear", name, [self.head, self.quantised.scale, self.quantised.zero])
            self.quantised = None


def lowered_onnx(
    checkpoint: Checkpoint, target: Target, plan: Plan, ranges: Ranges, *, runtime: LoweredRuntime = "onnxruntime"
) -> onnx.ModelProto:
    """The checkpoint's network as an ONNX model written for `runtime` on `target`; input and output are float32.

    Args:
        checkpoint: weights and description.
        target: where it shall run; one with a lowering for the runtime.
        plan: the type of each layer, see `alexnet_edge.export.graphs.targets`.
        ranges: of activations; a layer in FP32 needs none.
        runtime: `onnxruntime`, or `openvino`, whose reader takes the result.

    Raises:
        UserError: when the plan cannot be written, a range is missing, or the target takes the portable graph.
        MissingComponentError: when the onnx package is not installed.
    """
    check_plan(plan)
    if runtime not in target.lowerings:
        raise UserError(
            f"{target.name} takes the portable graph, nothing is lowered for it",
            value=runtime,
            fix="choose a processor target, or leave the plan out",
        )
    lowering = target.lowerings[runtime]
    arch = checkpoint.info.arch
    graph = _Graph(lowering=lowering, domain="")
    for index, spec in enumerate(arch.layers):
        if spec.name == "fc6":
            graph.add("Flatten", "flatten", [graph.head], axis=1)
        following = arch.layers[index + 1] if index + 1 < len(arch.layers) else None
        _layer(graph, spec, following, checkpoint, plan, ranges)
    name, opsets = f"alexnet-{arch.name}-{target.name}", {"": OPSET, CONTRIB: 1}
    return graph.model(checkpoint, name, opsets, IR_VERSION)


def _amax(ranges: Mapping[str, float], layer: str, end: str) -> float:
    if layer not in ranges:
        raise UserError(f"no range for the {end} of {layer}", value=", ".join(ranges), fix="calibrate with outputs")
    return ranges[layer]


def _layer(
    graph: _Graph, spec: LayerSpec, following: LayerSpec | None, checkpoint: Checkpoint, plan: Plan, ranges: Ranges
) -> None:
    """Append a layer and what follows it, quantised as the next layer wants its input."""
    kind = plan[spec.name]
    next_kind = None if following is None else plan[following.name]
    operators = kind == "int8" and graph.lowering.form == "operators"
    behind: _Scale | None = None
    if following is not None and (next_kind == "int8" or (operators and spec.kind == "conv")):
        amax = _amax(ranges.amax, following.name, "input")
        behind = graph.scale(f"{following.name}/input", amax, negative=not spec.relu)
    if kind == "int8" and graph.quantised is None:  # the image; every other input is quantised where it is made
        amax = _amax(ranges.amax, spec.name, "input")
        graph.quantise(f"{spec.name}/input_q", graph.scale(f"{spec.name}/input", amax, negative=True))
    if operators:
        _integer_layer(graph, spec, checkpoint, behind, ranges)
    else:
        graph.dequantise(f"{spec.name}/input_dq")
        _float_layer(graph, spec, kind, checkpoint)
    if spec.lrn:
        graph.dequantise(f"{spec.name}/output_dq")
        _normalise(graph, f"{spec.name}/lrn", spec.out_channels)
    if behind is not None and graph.quantised is None and next_kind == "int8" and graph.lowering.pool_quantised:
        graph.quantise(f"{spec.name}/q", behind)
    if spec.pool:
        graph.pool(f"{spec.name}/pool")
    if behind is not None and graph.quantised is None and next_kind == "int8":
        graph.quantise(f"{spec.name}/q", behind)
    if next_kind != "int8":
        graph.dequantise(f"{spec.name}/dq")


def _float_layer(graph: _Graph, spec: LayerSpec, kind: str, checkpoint: Checkpoint) -> None:
    """A layer of float operators: in FP32, behind dequantise nodes that a reader fuses, or over INT4 weights."""
    weight, bias = checkpoint.weights[f"{spec.name}.weight"], checkpoint.weights.get(f"{spec.name}.bias")
    if kind == "int4":
        _int4_layer(graph, spec, weight, bias)
    else:
        activation = graph.head
        inputs = [activation, _weight(graph, spec.name, kind, weight)]
        inputs += [graph.constant(f"{spec.name}.bias", bias)] if bias is not None else []
        if spec.kind == "conv":
            graph.add("Conv", spec.name, inputs, **convolution(spec))
        else:
            graph.add("Gemm", spec.name, inputs, transB=1)
    if spec.relu:
        graph.add("Relu", f"{spec.name}/relu", [graph.head])


def _weight(graph: _Graph, layer: str, kind: str, weight: FloatArray) -> str:
    """Append a weight, dequantised per output channel where it is INT8; returns the tensor's name."""
    name = f"{layer}.weight"
    if kind != "int8":
        return graph.constant(name, weight)
    graph.int8_weight(name, weight, graph.lowering.weight_bits)
    return graph.head


def _int4_layer(graph: _Graph, spec: LayerSpec, weight: FloatArray, bias: FloatArray | None) -> None:
    """A fully connected layer over INT4 weights in blocks."""
    activation, name, block = graph.head, f"{spec.name}.weight", graph.lowering.int4_block
    values, scale = quantize_blocks_full(weight, block)  # (C_out, C_in), (C_out, C_in / block)
    if graph.lowering.form == "operators":
        unsigned = (values + 8).astype(np.uint8).reshape(len(values), -1, block)
        packed = unsigned[:, :, 0::2] | unsigned[:, :, 1::2] << 4  # the lower half of a byte comes first
        inputs = [activation, graph.constant(name, packed), graph.constant(f"{name}_scale", scale.reshape(-1)), "", ""]
        inputs += [graph.constant(f"{spec.name}.bias", bias)] if bias is not None else []
        graph.add(
            "MatMulNBits",
            spec.name,
            inputs,
            domain=CONTRIB,
            K=spec.in_channels,
            N=spec.out_channels,
            bits=4,
            block_size=block,
            accuracy_level=ACCURACY_LEVEL,
        )
        graph.declare(spec.out_channels)
        return
    inputs = [
        graph.constant(name, np.ascontiguousarray(values.T).astype(ml_dtypes.int4)),
        graph.constant(f"{name}_scale", np.ascontiguousarray(scale.T)),
    ]
    graph.add("DequantizeLinear", f"{name}_dq", inputs, axis=0, block_size=block)
    graph.add("MatMul", f"{spec.name}/product" if bias is not None else spec.name, [activation, graph.head])
    if bias is not None:  # the plugin computes both in one kernel, which has the sum's name
        graph.add("Add", spec.name, [graph.head, graph.constant(f"{spec.name}.bias", bias)])


def _integer_layer(
    graph: _Graph, spec: LayerSpec, checkpoint: Checkpoint, behind: _Scale | None, ranges: Ranges
) -> None:
    """A layer of ONNX Runtime's integer operators; `behind` is how what comes out is quantised.

    A convolution's output is an integer whatever follows. Its ReLU is the lower end of the output's range, which is 0.
    """
    source = graph.quantised
    assert source is not None, "the input of an integer layer is quantised"
    weight, bias = checkpoint.weights[f"{spec.name}.weight"], checkpoint.weights.get(f"{spec.name}.bias")
    values, scale = quantize_weight(weight, bits=graph.lowering.weight_bits)
    name = f"{spec.name}.weight"
    inputs = [graph.head, source.scale, source.zero, graph.constant(name, values)]
    inputs += [graph.constant(f"{name}_scale", scale), graph.constant(f"{name}_zero", np.zeros(len(scale), np.int8))]
    steps = np.zeros(len(scale)) if bias is None else np.rint(bias.astype(np.float64) / (source.value * scale))
    limits = np.iinfo(np.int32)
    inputs.append(graph.constant(f"{spec.name}.bias", np.clip(steps, limits.min, limits.max).astype(np.int32)))
    out = behind
    if spec.lrn:
        out = graph.scale(f"{spec.name}/output", _amax(ranges.output_amax, spec.name, "output"), negative=not spec.relu)
    if spec.kind == "conv":
        assert out is not None, "every convolution is followed by a layer"
        graph.add("QLinearConv", spec.name, [*inputs[:6], out.scale, out.zero, inputs[6]], **convolution(spec))
    else:
        results = [] if out is None else [out.scale, out.zero]
        graph.add("QGemm", spec.name, [*inputs, *results], domain=CONTRIB, transB=1)
    graph.quantised = out
    if spec.kind == "fc":
        graph.declare(spec.out_channels)
    if spec.relu and out is None:
        graph.add("Relu", f"{spec.name}/relu", [graph.head])


def _normalise(graph: _Graph, name: str, channels: int) -> None:
    """Local response normalisation of the FP32 head `(N, channels, H, W)`."""
    if graph.lowering.lrn == "native":
        graph.normalise(name)
        return
    x = graph.head
    graph.add("Mul", f"{name}/square", [x, x])
    _window_sum(graph, name, channels)
    graph.add("Sqrt", f"{name}/root", [graph.head])
    root = graph.head
    graph.add("Sqrt", f"{name}/fourth_root", [root])
    graph.add("Mul", f"{name}/power", [root, graph.head])
    graph.add("Div", name, [x, graph.head])


def _window_sum(graph: _Graph, name: str, channels: int) -> None:
    """k + alpha / size times the sum over the window of channels around each, of the head."""
    reach = LRN_SIZE // 2
    axis = graph.constant("lrn/axis", np.array([1], np.int64))
    pads = graph.constant("lrn/pads", np.array([0, reach, 0, 0, 0, reach, 0, 0], np.int64))
    graph.add("Pad", f"{name}/padded", [graph.head, pads])
    padded = graph.head

    def shifted(source: str, first: int, length: int) -> str:
        start = graph.constant(f"lrn/{first}", np.array([first], np.int64))
        end = graph.constant(f"lrn/{first + length}", np.array([first + length], np.int64))
        graph.add("Slice", f"{source}/{first}to{first + length}", [source, start, end, axis])
        return graph.head

    length = channels + 2 * reach
    graph.add("Add", f"{name}/pairs", [shifted(padded, 0, length - 1), shifted(padded, 1, length - 1)])
    pairs = graph.head
    graph.add("Add", f"{name}/fours", [shifted(pairs, 0, channels), shifted(pairs, 2, channels)])
    graph.add("Add", f"{name}/sum", [graph.head, shifted(padded, 4, channels)])
    graph.add("Mul", f"{name}/mean", [graph.head, graph.constant("lrn/alpha", np.float32(LRN_ALPHA / LRN_SIZE))])
    graph.add("Add", f"{name}/s", [graph.head, graph.constant("lrn/k", np.float32(LRN_K))])
