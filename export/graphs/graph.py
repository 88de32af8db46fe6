"""An ONNX graph under construction: what the portable graph of `onnx.py` and the lowered ones of `lower.py` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_edge.artifact import INPUT
from alexnet_edge.errors import needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, POOL_KERNEL, POOL_STRIDE, LayerSpec
from alexnet_edge.network.quantize import quantize_weight

with needs("export"):
    import onnx
    from onnx import TensorProto, helper, numpy_helper


@dataclass(slots=True)
class Graph:
    """Nodes and initialisers; `head` is the tensor written last."""

    head: str = INPUT
    nodes: list[Any] = field(default_factory=list)
    initialisers: dict[str, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    """Types of tensors that shape inference does not know."""
    domain: str | None = None
    """What a node of ONNX's own operators has for a domain: nothing, or an empty text."""

    def add(self, op: str, name: str, inputs: list[str], *, domain: str | None = None, **attributes: Any) -> None:
        """Append a node whose only output has the node's name, and make it the head."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain or self.domain, **attributes))
        self.head = name

    def constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        self.initialisers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)  # keeps a scalar one
        return name

    def int8_weight(self, name: str, weight: FloatArray, bits: int = 8) -> None:
        """A weight in INT8 with a scale per output channel, dequantised."""
        values, scale = quantize_weight(weight, bits=bits)
        inputs = [self.constant(name, values), self.constant(f"{name}_scale", scale)]
        inputs.append(self.constant(f"{name}_zero", np.zeros(len(scale), np.int8)))
        self.add("DequantizeLinear", f"{name}_dq", inputs, axis=0)

    def normalise(self, name: str) -> None:
        """Local response normalisation in one operator."""
        self.add("LRN", name, [self.head], size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=float(LRN_K))

    def pool(self, name: str) -> None:
        self.add("MaxPool", name, [self.head], kernel_shape=[POOL_KERNEL] * 2, strides=[POOL_STRIDE] * 2)

    def model(
        self,
        checkpoint: Checkpoint,
        name: str,
        opsets: dict[str, int],
        ir_version: int,
        *,
        batch: int | str = "N",
        strict: bool = False,
    ) -> onnx.ModelProto:
        """The graph as a model of the network: it ends under the head's name, the notebook's in a softmax."""
        arch, size = checkpoint.info.arch, checkpoint.info.preprocessing.crop
        if arch.head == "probabilities":
            self.add("Softmax", arch.head, [self.head], axis=1)
        else:
            self.values = [value for value in self.values if value.name != self.head]
            self.nodes[-1].output[0] = arch.head
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [batch, 3, size, size])],
            [helper.make_tensor_value_info(arch.head, TensorProto.FLOAT, [batch, arch.num_classes])],
            list(self.initialisers.values()),
            value_info=self.values,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
            ir_version=ir_version,
            producer_name="alexnet-edge",
        )
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=strict, data_prop=True)


def convolution(spec: LayerSpec, kernel: int | None = None) -> dict[str, Any]:
    """Attributes of a layer's Conv; `kernel` where a fully connected layer is written as one."""
    return {
        "kernel_shape": [kernel or spec.kernel] * 2,
        "strides": [spec.stride] * 2,
        "pads": [spec.padding] * 4,
        "group": spec.groups,
    }
