"""Every graph that would be sent to TensorRT, through its real parser and, as TensorRT-RTX, its real builder.

TensorRT-RTX needs no GPU to build, and its ONNX parser is TensorRT's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from rtx_engine import Parsed, build_rtx, library

from alexnet_edge.artifact import Precision, layer_types
from alexnet_edge.errors import AlexNetEdgeError
from alexnet_edge.export.graphs.onnx import DLA_PRECISIONS, OPSETS, onnx_from_checkpoint
from alexnet_edge.export.precision import network_precisions, require_precision, weight_bytes
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES, architecture
from alexnet_edge.network.load import load_checkpoint

trt = library()

MakeCheckpoint = Callable[..., Path]
FullGraph = Callable[[Precision], Path]

COMPUTE = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "FLOAT", "fp8": "HALF", "int4-fc": "HALF"}
"""TensorRT's name of the type that each precision computes in where nothing is quantised."""


def graph(checkpoint: Checkpoint, precision: Precision, for_dla: int | None = None) -> onnx.ModelProto:
    ranges = dict.fromkeys(LAYER_NAMES, 8.0) if precision in ("int8", "fp8") else None
    return onnx_from_checkpoint(checkpoint, precision=precision, amax=ranges, for_dla=for_dla)


def check_types(parsed: Parsed, precision: Precision) -> None:
    """Layer by layer, what the builder will have to keep."""
    network = parsed.network
    assert parsed.accepted, parsed.reasons
    assert parsed.complaints == []
    assert {layer.name: layer.built for layer in network_precisions(network, precision)} == layer_types(precision)
    assert (network.num_inputs, network.num_outputs) == (1, 1)
    assert network.get_input(0).dtype == network.get_output(0).dtype == trt.float32
    wide = COMPUTE[precision]
    for layer in parsed.layers:
        output = layer.get_output(0).dtype.name
        kind = layer.type.name
        if kind in {"LRN", "SOFTMAX"}:
            assert layer.get_input(0).dtype.name == output == "FLOAT", layer.name
        elif kind in {"CONVOLUTION", "MATRIX_MULTIPLY", "ACTIVATION", "POOLING", "DEQUANTIZE"}:
            assert output == wide, layer.name
        elif kind == "QUANTIZE":
            assert output == precision.upper(), layer.name


@pytest.mark.parametrize("precision", OPSETS)
def test_every_precision(full_graph: FullGraph, precision: Precision) -> None:
    parsed = Parsed(full_graph(precision))
    check_types(parsed, precision)
    kinds = [layer.type.name for layer in parsed.layers]
    assert kinds.count("LRN") == 2
    assert kinds.count("CONVOLUTION") == 5
    assert kinds.count("MATRIX_MULTIPLY") == 3
    quantised = sum(kind in ("int8", "fp8") for kind in layer_types(precision).values())
    weight_only = sum(kind == "int4" for kind in layer_types(precision).values())
    assert kinds.count("QUANTIZE") == quantised
    assert kinds.count("DEQUANTIZE") == 2 * quantised + weight_only
    assert parsed.network.get_input(0).shape[0] == -1


@pytest.mark.parametrize("precision", ["fp8", "int4-fc"])
@pytest.mark.parametrize("name", ["narrow", "narrow-torchvision", "narrow-notebook"])
def test_the_other_architectures(tiny_checkpoint: MakeCheckpoint, name: str, precision: Precision) -> None:
    model = graph(load_checkpoint(tiny_checkpoint(name)), precision)
    check_types(Parsed(model.SerializeToString()), precision)


@pytest.mark.parametrize(
    ("name", "precision"), [*(("narrow-two-tower", name) for name in DLA_PRECISIONS), ("narrow-torchvision", "int8")]
)
def test_the_form_for_dla(tiny_checkpoint: MakeCheckpoint, name: str, precision: Precision) -> None:
    model = graph(load_checkpoint(tiny_checkpoint(name)), precision, for_dla=4)
    parsed = Parsed(model.SerializeToString())
    check_types(parsed, precision)
    kinds = {layer.name: layer.type.name for layer in parsed.layers if layer.name in LAYER_NAMES}
    assert kinds == dict.fromkeys(LAYER_NAMES, "CONVOLUTION")
    for layer in parsed.layers:
        if layer.type.name in {"CONVOLUTION", "POOLING", "ACTIVATION", "LRN"}:
            for tensor in (layer.get_input(0), layer.get_output(0)):
                shape = tuple(tensor.shape)
                assert shape[0] == 4
                assert all(0 < extent <= 8192 for extent in shape), (layer.name, shape)
    assert tuple(parsed.network.get_output(0).shape) == (4, 4)


def test_a_graph_with_mixed_types_is_refused(full_graph: FullGraph) -> None:
    """The parser does check types: what it accepts here says something."""
    model = onnx.load(str(full_graph("fp16")))
    bias = next(entry for entry in model.graph.initializer if entry.name == "conv2.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(256, np.float32), "conv2.bias"))
    assert re.search(r"conv2.*must be of same type", " ".join(Parsed(model.SerializeToString()).reasons.split()))


@pytest.mark.parametrize("precision", OPSETS)
def test_real_engines(full_graph: FullGraph, tmp_path: Path, precision: Precision) -> None:
    engine = tmp_path / "a.engine"
    expected = weight_bytes(architecture("two-tower", 4), precision)
    built = build_rtx(full_graph(precision), engine, precision, expected, ("sm89",))
    require_precision(built.layers, "this")
    assert {layer.name: layer.built for layer in built.layers} == layer_types(precision)
    assert engine.stat().st_size == pytest.approx(expected, rel=0.02, abs=4 << 20)
    assert built.build["proof"]


@pytest.mark.parametrize(("precision", "target"), [("fp8", "sm86"), ("int4-fc", "sm75")])
def test_types_that_a_gpu_does_not_have(
    full_graph: FullGraph, tmp_path: Path, precision: Precision, target: str
) -> None:
    """FP8 came with SM 8.9, INT4 with SM 8.0; one line says so and nothing is written."""
    engine = tmp_path / "a.engine"
    with pytest.raises(AlexNetEdgeError) as error:
        build_rtx(full_graph(precision), engine, precision, gpus=(target,))
    assert "\n" not in str(error.value)
    assert target in str(error.value)
    assert not engine.exists()
