"""Any ONNX graph, indexed: who writes and who reads each tensor, constants, element types and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.errors import UserError, needs

with needs("export"):
    import onnx
    from onnx import TensorProto, numpy_helper

QDQ = ("QuantizeLinear", "DequantizeLinear")
_TRANSPARENT = (*QDQ, "Reshape", "Flatten", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Cast")
_GRAPH_ATTRIBUTES = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedGraph:
    """The model, indexed: who writes and who reads each tensor, its element type and shape."""

    model: Any
    path: Path
    nodes: list[Any]
    """Of the main graph, and of the branches and bodies inside it."""
    constants: dict[str, Any]
    """Initialisers and the values of `Constant` nodes, by tensor name."""
    writers: dict[str, Any] = field(default_factory=dict)
    readers: dict[str, list[Any]] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """None for a size that is free or not known."""

    @classmethod
    def read(cls, path: Path) -> IndexedGraph:
        """Index an ONNX file; its external data stays where it is.

        Raises:
            UserError: when it is no ONNX file, or cannot be read.
        """
        model = _load(path)
        graphs = list(all_graphs(model.graph))
        graph = cls(
            model=model,
            path=path,
            nodes=[node for part in graphs for node in part.node],
            constants={tensor.name: tensor for part in graphs for tensor in part.initializer},
        )
        for node in graph.nodes:
            graph.writers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                graph.readers.setdefault(name, []).append(node)
            value = attribute(node, "value")
            if node.op_type == "Constant" and value is not None and node.output:
                graph.constants[node.output[0]] = value
        for info in _with_shapes(model):
            tensor = info.type.tensor_type
            graph.types[info.name] = type_name(tensor.elem_type)
            if tensor.HasField("shape"):
                sizes = [size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim]
                graph.shapes[info.name] = tuple(sizes)
        for name, value in graph.constants.items():
            graph.types[name] = type_name(value.data_type)
            graph.shapes[name] = tuple(value.dims)
        return graph

    @property
    def every_node(self) -> list[Any]:
        """`nodes`, and those of the model's own functions."""
        return [*self.nodes, *(node for function in self.model.functions for node in function.node)]

    @property
    def inputs(self) -> list[str]:
        return [entry.name for entry in self.model.graph.input if entry.name not in self.constants]

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant's value; None where it is none, or its data is not at hand."""
        if name not in self.constants:
            return None
        with suppress(
            OSError, ValueError, TypeError, KeyError, onnx.checker.ValidationError
        ):  # cut short, no such type
            return np.asarray(numpy_helper.to_array(self.constants[name], str(self.path.parent)))
        return None

    def size(self, name: str) -> int:
        """How many elements a tensor has; 0 where that is not known."""
        return math.prod(size or 0 for size in self.shapes.get(name, (0,)))

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is a constant, also after quantise, dequantise and reshaping nodes."""
        for _ in range(len(self.nodes) + 1):  # a damaged graph may go in circles
            writer = self.writers.get(name)
            if name in self.constants or writer is None or writer.op_type not in _TRANSPARENT:
                break
            name = input_name(writer, 0)
        return name in self.constants

    def readers_of(self, node: Any) -> list[Any]:
        """The nodes that read what a node writes."""
        return [reader for name in node.output for reader in self.readers.get(name, ())]

    def dequantised(self, node: Any, index: int) -> Any:
        """The DequantizeLinear node that writes an input; None where another node does."""
        writer = self.writers.get(input_name(node, index))
        return writer if writer is not None and writer.op_type == "DequantizeLinear" else None


def _load(path: Path) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    damaged = UserError("not an ONNX file, or a damaged one", value=path, fix="export it again")
    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise damaged from error
    except OSError as error:
        problem = f"cannot read the file, {error.strerror or error}"
        raise UserError(problem, value=path, fix="check its rights") from error
    if not model.opset_import or not model.graph.output:  # an empty or foreign file may decode to nothing
        raise damaged
    if any(isinstance(text, bytes) for graph in all_graphs(model.graph) for text in _texts(graph)):  # not UTF-8
        raise damaged
    return model


def _texts(graph: Any) -> Iterator[Any]:
    """Every name in a graph, but for those in its branches."""
    yield graph.name
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (entry.name for entry in node.attribute)
    yield from (entry.name for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))


def all_graphs(graph: Any) -> Iterator[Any]:
    """The graph and every branch and body inside it."""
    yield graph
    for node in graph.node:
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs) if entry.type in _GRAPH_ATTRIBUTES else ():
                yield from all_graphs(inner)


def _with_shapes(model: onnx.ModelProto) -> list[Any]:
    """Inputs, outputs and inner tensors with the types and shapes that follow from the inputs'.

    Large weights are left out of the copy that is inferred on: only their sizes count.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info"):
        getattr(light.graph, name).extend(getattr(model.graph, name))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= 1024:
            light.graph.initializer.append(tensor)
        else:
            light.graph.initializer.add(
                name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL
            )
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):  # a newer operator set, a broken graph
        inferred = model.graph
    return [*inferred.value_info, *inferred.input, *inferred.output]


def input_name(node: Any, index: int) -> str:
    """Name of an input; empty where it is left out."""
    return str(node.input[index]) if len(node.input) > index else ""


def attribute(node: Any, name: str, default: Any = None) -> Any:
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def type_name(element: int) -> str:
    names = TensorProto.DataType
    return str(names.Name(element)) if element in names.values() else f"type {element}"
