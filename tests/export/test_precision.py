"""The proof of precision reads the result: a layer built otherwise than asked for is found, whatever the request said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rtx_engine import Parsed, build_rtx

from alexnet_edge.artifact import LayerPrecision, Precision, layer_types
from alexnet_edge.errors import PrecisionError
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import prove_size
from alexnet_edge.export.graphs.onnx import OPSETS
from alexnet_edge.export.precision import (
    _kernel_type,
    network_precisions,
    onnx_precisions,
    require_precision,
    weight_bytes,
)
from alexnet_edge.network.layers import ARCHITECTURES, LAYER_NAMES, architecture

FullGraph = Callable[[Precision], Path]

PRECISIONS: tuple[Precision, ...] = tuple(OPSETS)


def built(layers: tuple[LayerPrecision, ...]) -> dict[str, str]:
    return {layer.name: layer.built for layer in layers}


def all_but(name: str, precision: Precision, other: str) -> dict[str, str]:
    return {**layer_types(precision), name: other}


def edited(source: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The graph with a fault planted in it; still a valid one that states its types."""
    model = onnx.load(str(source))
    change(model)
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.checker.check_model(model)
    onnx.save_model(model, str(target))
    return target


def node_of(model: onnx.ModelProto, name: str) -> Any:
    return next(node for node in model.graph.node if node.name == name)


def in_fp32(model: onnx.ModelProto, name: str) -> None:
    """One layer of an FP16 graph, or one with INT4 weights, computed in FP32."""
    layer = node_of(model, name)
    for entry in model.graph.initializer:
        if entry.name in (*layer.input, f"{name}.weight_scale"):
            entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry).astype(np.float32), entry.name))
    before = helper.make_node("Cast", [layer.input[0]], [f"{name}/up"], to=TensorProto.FLOAT)
    after = helper.make_node("Cast", [f"{name}/in32"], [layer.output[0]], to=TensorProto.FLOAT16)
    layer.input[0], layer.output[0] = f"{name}/up", f"{name}/in32"
    place = [node.name for node in model.graph.node].index(name)
    model.graph.node.insert(place + 1, after)
    model.graph.node.insert(place, before)


def without_pair(model: onnx.ModelProto, name: str) -> None:
    """The quantise/dequantise pair at the input of one layer taken out."""
    pair = [node_of(model, f"{name}/input_q"), node_of(model, f"{name}/input_dq")]
    node_of(model, name).input[0] = pair[0].input[0]
    for node in pair:
        model.graph.node.remove(node)


def with_float_weights(model: onnx.ModelProto, name: str) -> None:
    """One layer's weights left in the type of their scales."""
    constants = {entry.name: entry for entry in model.graph.initializer}
    weight, scale = (numpy_helper.to_array(constants[f"{name}.{part}"]) for part in ("weight", "weight_scale"))
    node_of(model, name).input[1] = f"{name}.float"
    model.graph.node.remove(node_of(model, f"{name}.weight_dq"))
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(scale.dtype), f"{name}.float"))


def not_quantised(model: onnx.ModelProto, name: str) -> None:
    without_pair(model, name)
    with_float_weights(model, name)


def renamed(model: onnx.ModelProto, name: str) -> None:
    node_of(model, name).name = "something"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_right_graphs_hold(full_graph: FullGraph, precision: Precision) -> None:
    layers = onnx_precisions(full_graph(precision), precision)
    assert built(layers) == layer_types(precision)
    assert {layer.name: layer.requested for layer in layers} == layer_types(precision)
    assert all(layer.holds for layer in layers)
    require_precision(layers, "this")


@pytest.mark.parametrize("requested", PRECISIONS)
@pytest.mark.parametrize("written", PRECISIONS)
def test_the_answer_is_not_the_request(full_graph: FullGraph, requested: Precision, written: Precision) -> None:
    layers = onnx_precisions(full_graph(written), requested)
    assert built(layers) == layer_types(written)
    if requested != written:
        words = f"fc8 is {layer_types(written)['fc8']}, not {layer_types(requested)['fc8']}"
        with pytest.raises(PrecisionError, match=words):
            require_precision(layers, "this")


Plant = Callable[[onnx.ModelProto, str], None]


@pytest.mark.parametrize(
    ("precision", "name", "plant", "kind"),
    [
        ("fp16", "conv4", in_fp32, "fp32"),
        ("fp16", "fc7", in_fp32, "fp32"),
        ("int8", "fc6", without_pair, "mixed"),
        ("int8", "conv2", not_quantised, "fp32"),
        ("int8", "fc8", with_float_weights, "mixed"),
        ("fp8", "fc7", without_pair, "mixed"),
        ("int4-fc", "fc8", with_float_weights, "fp16"),
        ("int4-fc", "fc7", in_fp32, "mixed"),
        ("fp32", "conv3", renamed, "missing"),
    ],
)
def test_a_planted_layer_is_found(
    full_graph: FullGraph, tmp_path: Path, precision: Precision, name: str, plant: Plant, kind: str
) -> None:
    path = edited(full_graph(precision), tmp_path / "a.onnx", lambda model: plant(model, name))
    layers = onnx_precisions(path, precision)
    assert built(layers) == all_but(name, precision, kind)
    with pytest.raises(PrecisionError, match=f"^this: {name} is {kind}, not {layer_types(precision)[name]}$"):
        require_precision(layers, "this")


@pytest.mark.parametrize(
    ("precision", "name", "plant", "kind"),
    [
        ("fp16", "conv4", in_fp32, "fp32"),
        ("fp16", "fc7", in_fp32, "fp32"),
        ("fp16", "fc7", renamed, "missing"),
        ("int8", "fc6", without_pair, "mixed"),
        ("fp8", "conv4", without_pair, "mixed"),
        ("int4-fc", "fc7", in_fp32, "mixed"),
    ],
)
def test_a_planted_layer_is_found_in_the_parsed_network(
    full_graph: FullGraph, tmp_path: Path, precision: Precision, name: str, plant: Plant, kind: str
) -> None:
    path = edited(full_graph(precision), tmp_path / "a.onnx", lambda model: plant(model, name))
    parsed = Parsed(path)
    assert built(network_precisions(parsed.network, precision)) == all_but(name, precision, kind)
    engine = tmp_path / "a.engine"
    with pytest.raises(PrecisionError, match=f"{name} is {kind}, not {layer_types(precision)[name]}"):
        build_rtx(path, engine, precision)
    assert not engine.exists()


def test_the_convolution_s_own_weights_count(full_graph: FullGraph) -> None:
    """The parser keeps a convolution's weights in the layer; `network_precisions` must read them there, too."""
    parsed = Parsed(full_graph("bf16"))
    conv = next(layer for layer in parsed.layers if layer.name == "conv3")
    assert conv.num_inputs == 1
    assert _kernel_type(conv) == "bf16"
    assert conv.kernel.size == 384 * 256 * 9


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_bytes_of_the_weights(arch: str) -> None:
    network = architecture(arch, 4)
    conv = sum(spec.weights for spec in network.layers if spec.kind == "conv")
    fc = sum(spec.weights for spec in network.layers if spec.kind == "fc")
    assert weight_bytes(network, "fp32") == 4 * (conv + fc)
    assert weight_bytes(network, "fp16") == weight_bytes(network, "bf16") == 2 * (conv + fc)
    assert weight_bytes(network, "int8") == conv + fc
    assert weight_bytes(network, "int4-fc") == 2 * conv + fc // 2 + fc // 128 * 2
    first = network.layers[0].weights
    assert weight_bytes(network, "fp8") == conv + fc + (first if layer_types("fp8")["conv1"] == "fp16" else 0)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_size_tells_the_precisions_apart(arch: str) -> None:
    """FP16 from BF16 and INT8 from FP8 it cannot tell; their types do."""
    network = architecture(arch, 4)
    for size in (weight_bytes(network, written) for written in PRECISIONS):
        for requested in PRECISIONS:
            expected = weight_bytes(network, requested)
            if abs(expected - size) < 0.01 * size:
                prove_size(int(size * 1.02), requested, expected, EngineOptions())
            else:
                with pytest.raises(PrecisionError, match="not built in the precision asked for"):
                    prove_size(size, requested, expected, EngineOptions())


def test_an_engine_with_fp32_weights_is_no_fp16_engine(
    full_graph: FullGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the layers' types read wrongly, the size of a real FP32 engine would still give it away."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: no engine can be built here")
    blind = tuple(
        LayerPrecision(name=name, requested="fp16", built="fp16", evidence="the parsed, strongly typed network")
        for name in LAYER_NAMES
    )
    monkeypatch.setattr("alexnet_edge.export.engines.tensorrt.network_precisions", lambda network, precision: blind)
    with pytest.raises(PrecisionError, match=r"the engine has 2\d\d,\d+,\d+ bytes where .* in fp16 take"):
        build_rtx(full_graph("fp32"), tmp_path / "a.engine", "fp16", weight_bytes(architecture("two-tower", 4), "fp16"))
