"""Engine inspector answers for this package's network, constructed after the recorded files in data/inspector.

No real engine was read for them: they have the fields and the spelling of each TensorRT version, with AlexNet's layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alexnet_edge.network.layers import LAYER_NAMES

WRITTEN = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8", "fp8": "FP8", "int4": "Int4"}
"""How TensorRT 10 and 11 write an element type."""
FORMATS_8 = {
    "fp32": "Row major linear FP32",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
}
DYNAMIC_8 = "N/A due to dynamic shapes"
"""What TensorRT 8 writes for the format of a tensor of dynamic shape."""


def tensor(name: str, written: str, field: str = "Format/Datatype") -> dict[str, Any]:
    return {"Name": name, "Dimensions": [-1, 384, 13, 13], field: written}


def engine(layers: list[Any], *, io: str = "Bindings") -> str:
    return json.dumps({"Layers": layers, io: ["input", "logits"]})


def fused(name: str, separator: str) -> str:
    """The ONNX nodes that a TensorRT layer was made of, as its metadata name them."""
    return separator.join(f"[ONNX Layer: {node}]" for node in (name, f"{name}/relu"))


def engine_8(types: Mapping[str, str], *, dynamic: bool = True) -> str:
    """TensorRT 8.6: fused names, the type of the weights, and formats where the shape is fixed."""
    layers: list[dict[str, Any]] = []
    for name in LAYER_NAMES:
        node = f"{name} + {name}/relu" if name != "fc8" else name
        if types[name] == "int8":
            node = f"{name}.weight + {name}.weight_dq + {node}"
        written = DYNAMIC_8 if dynamic else FORMATS_8[types[name]]
        copy = f"Reformatting CopyNode for Input Tensor 0 to {node}"
        tensors = {"Inputs": [tensor("in", written)], "Outputs": [tensor("out", written)]}
        constants = {
            "Weights": {"Type": WRITTEN[types[name]], "Count": 884736},
            "Bias": {"Type": "Float", "Count": 384},
        }
        layers += [
            {"Name": copy, "LayerType": "Reformat", "Inputs": [tensor("input", FORMATS_8["fp32"])], "Outputs": []},
            {"Name": node, "LayerType": "CaskConvolution", **tensors, **constants, "TacticName": ""},
        ]
    return engine(layers)


def engine_10(types: Mapping[str, str]) -> str:
    """TensorRT 10: ONNX nodes in the metadata; the fully connected layers in Myelin, without their weights."""
    layers: list[dict[str, Any]] = []
    for name in LAYER_NAMES:
        written = "Half" if types[name] == "int4" else WRITTEN[types[name]]
        layer: dict[str, Any] = {"Name": f"{name}_myl4_0", "LayerType": "gemm"}
        if name.startswith("conv"):
            layer = {"Name": f"{name} + {name}/relu", "LayerType": "CaskConvolution"}
            layer["Weights"] = {"Type": WRITTEN[types[name]], "Count": 884736}
        unpacked = f"[ONNX Layer: {name}.weight_dq]\u001f" if types[name] == "int4" else ""
        nodes = fused(name, "\u001e") if name.startswith("conv") else unpacked + fused(name, "\u001f")
        tensors = {"Inputs": [tensor("in", written)], "Outputs": [tensor("out", "Float")]}
        layers.append({**layer, **tensors, "TacticName": "", "Metadata": nodes})
    return engine(layers)


def engine_11(types: Mapping[str, str]) -> str:
    """TensorRT 11: everything in Myelin, type and format apart, the constants that a kernel reads."""
    layers = []
    for name in LAYER_NAMES:
        written = "Half" if types[name] == "int4" else WRITTEN[types[name]]
        constants = (
            ("alpha", [1], "Float"),
            (f"{name}.scale", [4096], "Float"),
            (f"{name}.weight", [4096, 4096], WRITTEN[types[name]]),
        )
        layers.append(
            {
                "Name": f"{name}_myl0_2",
                "LayerType": "correlation" if name.startswith("conv") else "gemm",
                "Inputs": [{**tensor("in", written, "Datatype"), "Format": "(NHWC) Channel major format"}],
                "Constants": [dict(zip(("Name", "Dimensions", "Datatype"), entry, strict=True)) for entry in constants],
                "Outputs": [],
                "TacticName": "",
                "Metadata": fused(name, "\u001f"),
            }
        )
    return engine(layers, io="I/O Tensors")
