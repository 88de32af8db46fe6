"""What precision each layer was asked to have, and what it has in the file or network that was built.

A published exporter has shipped FP32 engines under `fp16=True`; so the answer is read back from the result, never copied
from the request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_edge.artifact import LayerPrecision, Precision
from alexnet_edge.errors import PrecisionError, needs
from alexnet_edge.layers import LAYER_NAMES

if TYPE_CHECKING:
    import onnx

_ONNX_TYPES = {1: "fp32", 3: "int8", 10: "fp16", 16: "bf16"}
_TENSORRT_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8", "BF16": "bf16"}


def onnx_precisions(path: Path, requested: Precision) -> tuple[LayerPrecision, ...]:
    """The precision of each layer of an ONNX file: the element type its weights and input are stored or quantised in.

    Args:
        path: the ONNX file.
        requested: the precision asked for, the same for all eight layers.

    Returns:
        One entry per layer; `built` is `mixed` where weight and input differ, `missing` where the layer is not there.
    """
    with needs("export"):
        import onnx
    graph = onnx.load(str(path)).graph
    types = {entry.name: int(entry.data_type) for entry in graph.initializer}
    types |= {value.name: int(value.type.tensor_type.elem_type) for value in (*graph.value_info, *graph.input)}
    producers = {output: node for node in graph.node for output in node.output}
    nodes = {node.name: node for node in graph.node}
    return tuple(
        LayerPrecision(
            name=name,
            requested=requested,
            built=_agree(_onnx_type(nodes[name].input[index], types, producers) for index in (0, 1))
            if name in nodes
            else "missing",
            evidence="element types in the ONNX graph",
        )
        for name in LAYER_NAMES
    )


def _onnx_type(tensor: str, types: Mapping[str, int], producers: Mapping[str, onnx.NodeProto]) -> str:
    node = producers.get(tensor)
    if node is not None and node.op_type == "DequantizeLinear":
        source = producers.get(node.input[0])
        stored = source.output[0] if source is not None else node.input[0]
        zero = node.input[2]
        return _ONNX_TYPES.get(types.get(stored, types.get(zero, 0)), "unknown")
    return _ONNX_TYPES.get(types.get(tensor, 0), "unknown")


def network_precisions(network: Any, requested: Precision) -> tuple[LayerPrecision, ...]:
    """The precision of each layer of a parsed, strongly typed TensorRT network.

    In a strongly typed network the builder has no freedom: a layer runs in the type of its input, or, behind
    quantise/dequantise pairs, in theirs. So where no GPU is there to inspect the engine, this is the evidence.

    Args:
        network: a `tensorrt` or `tensorrt_rtx` `INetworkDefinition`, parsed from a graph of this package.
        requested: the precision asked for.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    producers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    named = {layer.name: layer for layer in layers if layer.type.name in {"CONVOLUTION", "MATRIX_MULTIPLY"}}
    rows = []
    for name in LAYER_NAMES:
        layer = named.get(name)
        if layer is None:
            built = "missing"
        else:
            inputs = [layer.get_input(index) for index in range(min(2, layer.num_inputs))]
            built = _agree(_network_type(tensor, producers) for tensor in inputs if tensor is not None)
        rows.append(
            LayerPrecision(
                name=name, requested=requested, built=built, evidence="types in the parsed, strongly typed network"
            )
        )
    return tuple(rows)


def _network_type(tensor: Any, producers: Mapping[str, Any]) -> str:
    producer = producers.get(tensor.name)
    if producer is not None and producer.type.name == "DEQUANTIZE":
        tensor = producer.get_input(0)
    name = str(tensor.dtype.name)
    return _TENSORRT_TYPES.get(name, name.lower())


def _agree(types: Iterable[str]) -> str:
    found = set(types)
    return found.pop() if len(found) == 1 else "mixed"


def require_precision(layers: Sequence[LayerPrecision], what: str) -> None:
    """Refuse a result with a layer that is not in the precision asked for.

    Raises:
        PrecisionError: naming each such layer.
    """
    wrong = [f"{layer.name} is {layer.built}, not {layer.requested}" for layer in layers if not layer.holds]
    if wrong:
        raise PrecisionError(f"{what}: {', '.join(wrong)}")
