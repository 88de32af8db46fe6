"""What precision each layer was asked to have, and what it has in the file or network that was built.

A published exporter has shipped FP32 engines under `fp16=True`; so the answer is read back from the result, never copied
from the request.

A layer's type is that of its input and its weights, which must be the same: with `int8` and `fp8` both are quantised. The
one exception is `int4`, which is weight only: the layer's type is then that of its stored weights, and its input is FP16, or
FP32 in a processor's graph.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_edge.artifact import LayerPrecision, Plan, Precision, layer_types
from alexnet_edge.errors import PrecisionError, needs
from alexnet_edge.network.layers import Architecture
from alexnet_edge.network.quantize import INT4_BLOCK

if TYPE_CHECKING:
    import onnx

CALIBRATED: tuple[Precision, ...] = ("int8", "fp8", "int8-int4-fc", "mixed")
"""The precisions whose activations need ranges from real images."""
CORRECTED: tuple[Precision, ...] = ("int8", "int8-int4-fc", "mixed")
"""The precisions that corrections are for: see `alexnet_edge.export.quantising.corrections`."""
EMULATED: tuple[Precision, ...] = ("bf16",)
"""The precisions that ONNX Runtime has no processor kernels for: proved with an emulation in FP32."""

_ONNX_TYPES = {1: "fp32", 2: "int8", 3: "int8", 10: "fp16", 16: "bf16", 17: "fp8", 22: "int4"}
_TENSORRT_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4"}
_TENSORRT_TYPES |= {"float32": "fp32", "float16": "fp16", "int8": "int8"}  # weights whose type numpy has are arrays
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int4": 4}
_SCALE_BITS = 16  # of an INT4 block


def weight_bytes(arch: Architecture, precision: Precision, plan: Plan | None = None) -> int:
    """Bytes that the weights of the eight layers take, with the scales of INT4 blocks and without biases.

    `plan` says what `mixed` is.
    """
    types = plan or layer_types(precision)
    bits = sum(spec.weights * _BITS[types[spec.name]] for spec in arch.layers)
    blocks = sum(spec.weights // INT4_BLOCK for spec in arch.layers if types[spec.name] == "int4")
    return (bits + blocks * _SCALE_BITS) // 8


def layer_rows(requested: Plan, built: Mapping[str, str], evidence: str) -> tuple[LayerPrecision, ...]:
    """One entry per layer of `requested`; a layer that is not in `built` is `missing`."""
    return tuple(
        LayerPrecision(name=name, requested=kind, built=built.get(name, "missing"), evidence=evidence)
        for name, kind in requested.items()
    )


def onnx_precisions(path: Path, precision: Precision, plan: Plan | None = None) -> tuple[LayerPrecision, ...]:
    """The precision of each layer of an ONNX file: the element type its weights and input are stored or quantised in.

    Args:
        path: the ONNX file.
        precision: the precision asked for; `layer_types` says what it asks of each layer.
        plan: the type asked of each layer, where `precision` does not say it.

    Returns:
        One entry per layer; `built` is `mixed` where weight and input differ, `missing` where the layer is not there. Of a
        layer with INT4 weights and an FP16 or FP32 input, `built` is `int4`.
    """
    with needs("export"):
        import onnx
    graph = onnx.load(str(path)).graph
    types = {entry.name: int(entry.data_type) for entry in graph.initializer}
    types |= {value.name: int(value.type.tensor_type.elem_type) for value in (*graph.value_info, *graph.input)}
    producers = {output: node for node in graph.node for output in node.output}
    lowered = plan is not None or precision in ("int8-int4-fc", "mixed")
    requested = plan or layer_types(precision)
    built = {node.name: _node_type(node, types, producers, lowered) for node in graph.node if node.name in requested}
    return layer_rows(requested, built, "element types in the ONNX graph")


_INTEGER_WEIGHTS = {"QLinearConv": 3, "QGemm": 3}
"""Which input of an integer operator the weights are; they are the second of every other one."""


def _node_type(
    node: onnx.NodeProto, types: Mapping[str, int], producers: Mapping[str, onnx.NodeProto], lowered: bool
) -> str:
    """The type of a layer; in a graph `lowered` to operators, a float one computes in FP32 whatever its input was before."""
    activation = _onnx_type(node.input[0], types, producers)
    if lowered and node.op_type not in _INTEGER_WEIGHTS and producers.get(node.input[1]) is None:
        activation = _ONNX_TYPES.get(types.get(node.input[0], 0), "unknown")
    if node.op_type == "MatMulNBits":  # packed into bytes: the bits are an attribute
        weight = f"int{next((entry.i for entry in node.attribute if entry.name == 'bits'), 0)}"
    else:
        weight = _onnx_type(node.input[_INTEGER_WEIGHTS.get(node.op_type, 1)], types, producers)
    return _layer_type(activation, weight, "fp32" if lowered else "fp16")


def _onnx_type(tensor: str, types: Mapping[str, int], producers: Mapping[str, onnx.NodeProto]) -> str:
    node = producers.get(tensor)
    if node is not None and node.op_type == "DequantizeLinear":
        tensor = node.input[0]
        if types.get(tensor, 0) == 0:  # shape inference gives no type to what FP8 and INT4 were quantised into
            tensor = node.input[2]
    return _ONNX_TYPES.get(types.get(tensor, 0), "unknown")


def network_precisions(network: Any, precision: Precision) -> tuple[LayerPrecision, ...]:
    """The precision of each layer of a parsed, strongly typed TensorRT network.

    In a strongly typed network the builder has no freedom: a layer runs in the type of its input and weights, or, behind
    quantise/dequantise pairs, in theirs. So where no GPU is there to inspect the engine, this is the evidence. With
    `int4-fc`, fc6 to fc8 are `int4` by the type of their stored weights; they compute in FP16.

    `network` is a parsed graph of this package, an `INetworkDefinition` of `tensorrt` or `tensorrt_rtx`.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    named = {layer.name: layer for layer in layers if layer.type.name in {"CONVOLUTION", "MATRIX_MULTIPLY"}}
    requested, built = layer_types(precision), {}
    for name in named.keys() & requested.keys():
        layer = named[name]
        inputs = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
        types = [_network_type(tensor, producers) for tensor in inputs if tensor is not None]
        if len(types) == 1:  # a convolution whose weights are the layer's own, not a tensor
            types.append(_kernel_type(layer))
        built[name] = _layer_type(*types)
    return layer_rows(requested, built, "types of inputs and weights in the parsed, strongly typed network")


def _network_type(tensor: Any, producers: Mapping[str, Any]) -> str:
    producer = producers.get(tensor.name)
    if producer is not None and producer.type.name == "DEQUANTIZE":
        tensor = producer.get_input(0)
    return _type_name(tensor.dtype)


def _kernel_type(layer: Any) -> str:
    """Element type of the weights that a convolution holds itself.

    `get_layer` gives every layer as an `ILayer`; its own class, set as Polygraphy does, shows the weights. They come as a
    numpy array, or, where numpy has no such type, as `Weights`.
    """
    layer.__class__ = sys.modules[type(layer).__module__].IConvolutionLayer
    return _type_name(layer.kernel.dtype)


def _type_name(dtype: Any) -> str:
    """The name of a type of TensorRT's or of numpy's."""
    name = str(dtype.name)
    return _TENSORRT_TYPES.get(name, name.lower())


def _layer_type(activation: str, weight: str, beside_int4: str = "fp16") -> str:
    if activation == weight or (weight, activation) == ("int4", beside_int4):
        return weight
    return "mixed"


def require_precision(layers: Sequence[LayerPrecision], what: str) -> None:
    """Refuse a result with a layer that is not in the precision asked for.

    Raises:
        PrecisionError: naming each such layer.
    """
    wrong = [f"{layer.name} is {layer.built}, not {layer.requested}" for layer in layers if not layer.holds]
    if wrong:
        raise PrecisionError(f"{what}: {', '.join(wrong)}")
