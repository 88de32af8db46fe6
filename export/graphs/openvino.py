"""The network as an OpenVINO IR: an `.xml` with the graph and a `.bin` with the weights.

It is made from this package's own ONNX graphs by OpenVINO's reader. What each precision is on a processor:

* `fp32`: computed in FP32. The session pins that; by itself the plugin takes BF16 where the processor has it.
* `fp16`: the FP32 graph with its constants stored in FP16, so half the file. It is computed in FP32: a file of half the size
  with the answers of rounded weights, and no faster for it.
* `int8`: the graph with quantise/dequantise pairs at the inputs and weights of the eight layers. The plugin's low precision
  passes turn every layer into an INT8 kernel (and, with symmetric ranges, inputs that are both negative and positive into
  unsigned ones with a zero point); local response normalisation and pooling before the next quantise node stay FP32.
* `int8-int4-fc` and `mixed`: the graph that `lower.py` writes. Weights in INT4 stay so in memory; the plugin's kernel reads
  them so, and with VNNI quantises its input to INT8 in groups as it goes.

Source: https://docs.openvino.ai (Model Preparation; Low Precision Transformations), `openvino.save_model`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_edge.artifact import COMPANIONS, LayerPrecision, Plan, Precision, layer_types
from alexnet_edge.errors import MissingComponentError, PrecisionError
from alexnet_edge.export.graphs.targets import Lowering
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.sessions.openvino import (
    COMPILE_OPTIONS,
    INFERENCE_PRECISION,
    ExecutedNode,
    executed_nodes,
    fix_batch,
    int8_overflows,
    kernel_type,
    load_library,
    read_model,
    shared_core,
)

INPUT_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
"""The plugin's option for it, which it also takes from a file's `runtime_options`."""

GRAPHS: dict[Precision, Precision] = {"fp32": "fp32", "fp16": "fp32", "int8": "int8"}
"""The ONNX graph that each precision is made from."""

_LAYER_KINDS = ("Convolution", "FullyConnected", "MatMul")
_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8", "i4": "int4"}


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenIR:
    """What was written, and what the plugin makes of it here."""

    layers: tuple[LayerPrecision, ...]
    build: dict[str, Any]


def write_openvino(
    onnx_file: Path,
    path: Path,
    precision: Precision,
    *,
    source_sha256: str,
    plan: Plan | None = None,
    lowering: Lowering | None = None,
) -> WrittenIR:
    """Convert an ONNX graph of this package, write it to `path` (`.xml`) with its weights beside it, and read it back.

    Args:
        onnx_file: the graph that `GRAPHS` names for the precision, or one that `lower.py` wrote.
        path: where the `.xml` goes; the `.bin` goes beside it.
        precision: `fp32`, `fp16` or `int8`; of a lowered graph also `int8-int4-fc` or `mixed`.
        source_sha256: of the ONNX graph; kept in the file, whose text would else be the same for any weights.
        plan: the type of each layer, where the precision does not say it.
        lowering: how the graph was lowered, if it was. With weights of 7 bits no processor's sums overflow; the group of
            values at an INT4 layer's input that share a scale is written into the file, for whoever loads it.

    Raises:
        MissingComponentError: when OpenVINO is not installed or has no CPU plugin, or this processor computes INT8 wrongly,
            so that nothing could be proved.
        PrecisionError: when the weights were not stored in the precision asked for, or a layer of another precision than
            `fp16`, which says how weights are stored, is not computed in it.
    """
    types = plan or layer_types(precision)
    weight_bits = 8 if lowering is None else lowering.weight_bits
    overflow = int8_overflows() if "int8" in types.values() and weight_bits == 8 else None
    if overflow is not None:
        raise MissingComponentError(overflow, fix="export it on a processor that has them, or in FP32")
    openvino = load_library()
    core = shared_core()
    model = core.read_model(str(onnx_file))
    _restore_names(model)
    model.set_rt_info(source_sha256, ["alexnet_edge", "onnx_sha256"])
    if lowering is not None and lowering.input_group is not None and "int4" in types.values():
        model.set_rt_info(str(lowering.input_group), ["runtime_options", INPUT_GROUP])
    openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")
    del model
    written = read_model(openvino, core, path, path.with_suffix(COMPANIONS["openvino"]))
    stored = stored_precisions(written)
    fix_batch(written, 1)
    compiled = core.compile_model(written, "CPU", COMPILE_OPTIONS)
    layers = layer_precisions(executed_nodes(compiled), stored, types)
    _require(layers, stored, precision)
    build: dict[str, Any] = {
        "inference_precision": INFERENCE_PRECISION,
        "ir_version": _ir_version(path),
        "stored_weights": dict(stored),
        "warnings": [],
    }
    computed = sorted({layer.built for layer in layers})
    if "int4" in types.values():
        build["input_group"] = int(compiled.get_property(INPUT_GROUP))
    if precision == "fp16":
        build["warnings"] = [f"weights are stored in FP16 and computed in {' and '.join(computed).upper()}"]
    return WrittenIR(layers=layers, build=build)


def _restore_names(model: Any) -> None:
    """Give the last node its ONNX name again, where the reader took that of the graph's output for it."""
    last = model.get_results()[0].input_value(0).get_node()
    if last.get_friendly_name() == "logits":
        last.set_friendly_name(LAYER_NAMES[-1])


def stored_precisions(model: Any) -> dict[str, str]:
    """The element type in which the weights of each of the eight layers are stored in a model; `missing` where they are not."""
    types = {}
    for node in model.get_ops():
        if node.get_type_name() == "Constant":
            name = node.get_friendly_name().split(".weight")[0]
            if name in LAYER_NAMES and re.fullmatch(r"\w+\.weight(_compressed)?", node.get_friendly_name()):
                types[name] = node.get_element_type().to_string()
    return {name: _TYPES.get(types.get(name, ""), types.get(name, "missing")) for name in LAYER_NAMES}


def layer_precisions(nodes: Sequence[ExecutedNode], stored: dict[str, str], types: Plan) -> tuple[LayerPrecision, ...]:
    """What each layer computes in, read from the model that the plugin executes.

    A layer is `int8` when its kernel and the element types of its input and its weights say so; `int4` when its kernel reads
    the weights in INT4; `missing` when no node does its work.

    `stored` are the types that the layers' weights are stored in, `types` what was asked of each layer.
    """
    rows = []
    for name, requested in types.items():
        node = next((node for node in nodes if name in node.fused and node.kind in _LAYER_KINDS), None)
        built, evidence, kernel = "missing", "no node of the runtime model does its work", ""
        if node is not None:
            built = _computed_in(node)
            evidence = f"kernel {node.primitive} in the runtime model; weights stored in {stored[name].upper()}"
            kernel = node.name
        rows.append(LayerPrecision(name=name, requested=requested, built=built, evidence=evidence, kernel=kernel))
    return tuple(rows)


def _computed_in(node: ExecutedNode) -> str:
    """The type in the name of a node's kernel; `mixed` where it is INT8 and the input or the weights are not.

    A kernel that reads INT4 weights has the type of its input in its name.
    """
    kind = _TYPES.get(kernel_type(node.primitive), "unknown")
    if [_TYPES.get(source) for source in node.inputs[:2]] == ["fp32", "int4"]:
        return "int4"
    if kind == "int8" and {_TYPES.get(source) for source in node.inputs[:2]} != {"int8"}:
        return "mixed"
    return kind


def _require(layers: Sequence[LayerPrecision], stored: dict[str, str], precision: Precision) -> None:
    requested = {layer.name: layer.requested for layer in layers}
    wrong = [f"the weights of {name} are stored in {kind}" for name, kind in stored.items() if kind != requested[name]]
    if precision != "fp16":
        wrong += [f"{layer.name} is {layer.built}, not {layer.requested}" for layer in layers if not layer.holds]
    if wrong:
        raise PrecisionError(f"openvino {precision}: {', '.join(wrong)}")


def _ir_version(path: Path) -> int | None:
    with path.open(encoding="utf-8") as stream:
        match = re.search(r'<net\b[^>]*\bversion="(\d+)"', stream.read(4096))
    return int(match.group(1)) if match else None
