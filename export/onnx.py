"""The network as an ONNX graph, written from the layer table and the weights.

No tracer stands in between: every node carries its layer's name (`conv1`, `conv1/relu`, `conv1/lrn`, ...), local response
normalisation is the native `LRN` operator (a traced one becomes a 5-D AveragePool that several TensorRT versions refuse),
and quantise/dequantise pairs stand only at the inputs of the eight layers, where TensorRT fuses them. That the graph is the
checkpoint's network is shown by parity on images, not by construction.

Letters: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alexnet_edge.artifact import INPUT
from alexnet_edge.checkpoint import Checkpoint, Weights
from alexnet_edge.errors import needs
from alexnet_edge.export.quantize import quantize_weight
from alexnet_edge.layers import (
    LRN_ALPHA,
    LRN_BETA,
    LRN_K,
    LRN_SIZE,
    POOL_KERNEL,
    POOL_STRIDE,
    Architecture,
    LayerSpec,
)

with needs("export"):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""The newest operator set that TensorRT 8.6 (JetPack 6.0) and every later one reads."""
IR_VERSION = 8
"""The file format that goes with it."""

Compute = Literal["fp32", "fp16"]


@dataclass(slots=True)
class _Graph:
    """Nodes and initialisers under construction; `head` is the tensor written last."""

    compute: Compute
    head: str = INPUT
    nodes: list[Any] = field(default_factory=list)
    initialisers: list[Any] = field(default_factory=list)

    def add(self, op: str, name: str, inputs: list[str], **attributes: Any) -> None:
        """Append a node whose only output has the node's name, and make it the head."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.head = name

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.initialisers.append(numpy_helper.from_array(np.asarray(value, order="C"), name))  # keeps a scalar one
        return name

    def cast(self, name: str, to: Compute) -> None:
        element = TensorProto.FLOAT if to == "fp32" else TensorProto.FLOAT16
        self.add("Cast", name, [self.head], to=element)


def onnx_from_checkpoint(
    checkpoint: Checkpoint, *, compute: Compute = "fp32", amax: Mapping[str, float] | None = None
) -> onnx.ModelProto:
    """The checkpoint's network as an ONNX model with a free batch; input and output are float32 in every precision.

    Args:
        checkpoint: weights and description.
        compute: element type of weights and activations. With `fp16`, local response normalisation and the softmax head
            stay in FP32: squared activations overflow FP16 above 255.
        amax: largest magnitude to represent at the input of each of the eight layers, by layer name, from calibration.
            When given, inputs and weights of those layers are INT8 with quantise/dequantise pairs: activations symmetric
            per tensor, weights symmetric per output channel, biases in `compute`.

    Raises:
        MissingComponentError: when the onnx package is not installed.
    """
    arch = checkpoint.info.arch
    graph = _Graph(compute=compute)
    if compute == "fp16":
        graph.cast("input/fp16", "fp16")
    for spec in arch.layers:
        if spec.name == "fc6":
            graph.add("Flatten", "flatten", [graph.head], axis=1)
        _layer(graph, spec, checkpoint.weights, None if amax is None else amax.get(spec.name))
    _head(graph, arch.head)
    size = checkpoint.info.preprocessing.crop
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"alexnet-{arch.name}",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, size, size])],
            [helper.make_tensor_value_info(arch.head, TensorProto.FLOAT, ["N", arch.num_classes])],
            graph.initialisers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet-edge",
    )
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


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


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Check the model and write it to `path`.

    Raises:
        onnx.checker.ValidationError: when the graph is not valid; that is a fault of this package.
    """
    onnx.checker.check_model(model)  # with the strict shape inference above, this is the full check
    onnx.save_model(model, str(path))


def _layer(graph: _Graph, spec: LayerSpec, weights: Weights, amax: float | None) -> None:
    element = np.float16 if graph.compute == "fp16" else np.float32
    weight, bias = weights[f"{spec.name}.weight"], weights.get(f"{spec.name}.bias")
    if amax is None:
        weight_name = graph.constant(f"{spec.name}.weight", weight.astype(element))
    else:
        _quantise_input(graph, spec.name, amax)
        activation = graph.head
        weight_name = _quantised_weight(graph, spec.name, weight)
        graph.head = activation
    inputs = [graph.head, weight_name]
    if bias is not None:
        inputs.append(graph.constant(f"{spec.name}.bias", bias.astype(element)))
    if spec.kind == "conv":
        graph.add(
            "Conv",
            spec.name,
            inputs,
            kernel_shape=[spec.kernel] * 2,
            strides=[spec.stride] * 2,
            pads=[spec.padding] * 4,
            group=spec.groups,
        )
    else:
        graph.add("Gemm", spec.name, inputs, transB=1)
    if spec.relu:
        graph.add("Relu", f"{spec.name}/relu", [graph.head])
    if spec.lrn:
        if graph.compute == "fp16":
            graph.cast(f"{spec.name}/lrn/fp32", "fp32")
        graph.add(
            "LRN", f"{spec.name}/lrn", [graph.head], size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=float(LRN_K)
        )
        if graph.compute == "fp16":
            graph.cast(f"{spec.name}/lrn/fp16", "fp16")
    if spec.pool:
        graph.add(
            "MaxPool",
            f"{spec.name}/pool",
            [graph.head],
            kernel_shape=[POOL_KERNEL] * 2,
            strides=[POOL_STRIDE] * 2,
        )


def _quantise_input(graph: _Graph, layer: str, amax: float) -> None:
    scale = graph.constant(f"{layer}/input_scale", np.float32(amax / 127))
    zero = graph.constant(f"{layer}/input_zero", np.int8(0))
    graph.add("QuantizeLinear", f"{layer}/input_q", [graph.head, scale, zero])
    graph.add("DequantizeLinear", f"{layer}/input_dq", [graph.head, scale, zero])


def _quantised_weight(graph: _Graph, layer: str, weight: np.ndarray[Any, Any]) -> str:
    quantised, scale = quantize_weight(weight)
    values = graph.constant(f"{layer}.weight", quantised)
    scales = graph.constant(f"{layer}.weight_scale", scale)
    zeros = graph.constant(f"{layer}.weight_zero", np.zeros(len(scale), np.int8))
    graph.add("DequantizeLinear", f"{layer}.weight_dq", [values, scales, zeros], axis=0)
    return graph.head


def _head(graph: _Graph, head: str) -> None:
    """End in float32 under the head's name; the notebook's softmax is computed in FP32."""
    if graph.compute == "fp16":
        graph.cast("output/fp32", "fp32")
    if head == "probabilities":
        graph.add("Softmax", head, [graph.head], axis=1)
    else:
        last = graph.nodes[-1]
        last.output[0] = head
        graph.head = head
