"""The ONNX graphs: the checkpoint's answers, native operators, and quantise/dequantise pairs only where they belong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from narrow_network import NARROW_NAMES
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alexnet_edge.artifact import Precision, layer_types
from alexnet_edge.errors import UserError
from alexnet_edge.export.graphs.onnx import (
    DLA_PRECISIONS,
    IR_VERSIONS,
    OPSETS,
    emulation_from_checkpoint,
    layer_inputs,
    onnx_from_checkpoint,
    write_onnx,
)
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES, LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.network.quantize import INT4_BLOCK

MakeCheckpoint = Callable[..., Path]
MakeGraph = Callable[[Precision], onnx.ModelProto]
Exact = tuple[np.ndarray, dict[str, float]]

QUANTISED = {"QuantizeLinear", "DequantizeLinear"}
CALIBRATED = ("int8", "fp8")
AMAX = {name: 1.0 + index for index, name in enumerate(LAYER_NAMES)}


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint) -> MakeGraph:
    """The graph of a precision; do not change it."""

    @functools.cache
    def write(precision: Precision) -> onnx.ModelProto:
        return onnx_from_checkpoint(checkpoint, precision=precision, amax=AMAX if precision in CALIBRATED else None)

    return write


def nodes_of(arch: Architecture) -> list[str]:
    """The names of the FP32 graph's nodes, from the layer table."""
    names = []
    for spec in arch.layers:
        names += ["flatten"] if spec.name == "fc6" else []
        follows = (("relu", spec.relu), ("lrn", spec.lrn), ("pool", spec.pool))
        names += [spec.name, *[f"{spec.name}/{suffix}" for suffix, has in follows if has]]
    return names + (["probabilities"] if arch.head == "probabilities" else [])


def session(model: onnx.ModelProto, **config: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in config.items():
        options.add_session_config_entry(f"session.{key}", value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def initialisers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {entry.name: entry for entry in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, Any]:
    return {output: node for node in model.graph.node for output in node.output}


def consumers(model: onnx.ModelProto, tensor: str) -> list[str]:
    return [node.name for node in model.graph.node if tensor in node.input]


def check_form(model: onnx.ModelProto, arch: Architecture, precision: Precision = "fp32", batch: int = 0) -> None:
    """What holds in every precision; with a `batch`, in the form for DLA."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph = model.graph
    assert [entry.version for entry in model.opset_import] == [OPSETS[precision]]
    assert model.ir_version == IR_VERSIONS[OPSETS[precision]]
    (source,), (answer,) = graph.input, graph.output
    assert source.name == "input"
    assert answer.name == arch.head
    for value, shape in ((source, (3, arch.input_size, arch.input_size)), (answer, (arch.num_classes,))):
        tensor = value.type.tensor_type
        assert tensor.elem_type == TensorProto.FLOAT
        assert tensor.shape.dim[0].dim_param == ("" if batch else "N"), "the batch must be free"
        assert tensor.shape.dim[0].dim_value == batch
        assert tuple(extent.dim_value for extent in tensor.shape.dim[1:]) == shape
    used = [name for node in graph.node for name in node.input]
    names = [entry.name for entry in graph.initializer]
    assert len(set(names)) == len(names)
    assert set(names) <= set(used), "unused initialisers"
    shaped = {value.name for value in (*graph.value_info, *graph.output)}
    assert {output for node in graph.node for output in node.output} <= shaped, "shapes that could not be inferred"
    operators = [node.op_type for node in graph.node]
    assert operators.count("LRN") == sum(spec.lrn for spec in arch.layers)
    assert not {"AveragePool", "Pow", "Pad", "Reshape", "Div"} & set(operators)


@pytest.mark.parametrize("name", NARROW_NAMES)
def test_fp32_gives_the_model_s_answers(tiny_checkpoint: MakeCheckpoint, name: str) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint(name))
    model = onnx_from_checkpoint(checkpoint)
    arch = checkpoint.info.arch
    check_form(model, arch)
    assert [node.name for node in model.graph.node] == nodes_of(arch)
    assert {entry.data_type for entry in model.graph.initializer} == {TensorProto.FLOAT}
    weights = {name: numpy_helper.to_array(entry) for name, entry in initialisers(model).items()}
    assert weights.keys() == checkpoint.weights.keys()
    assert all(np.array_equal(weights[key], value) for key, value in checkpoint.weights.items())
    read = {node.name: node.input[0] for node in model.graph.node if node.name in LAYER_NAMES}
    assert read == layer_inputs(arch)
    runs, network = session(model), checkpoint.model()
    for batch in (1, 3):
        x_NCHW = np.random.default_rng(batch).standard_normal((batch, 3, arch.input_size, arch.input_size), np.float32)
        with torch.inference_mode():
            expected_NK = network(torch.from_numpy(x_NCHW)).numpy()
        y_NK = runs.run(None, {"input": x_NCHW})[0]
        assert y_NK.shape == (batch, arch.num_classes)
        assert y_NK.dtype == np.float32
        assert np.abs(expected_NK).max() > 0
        assert np.abs(y_NK - expected_NK).max() <= 1e-4 * np.abs(expected_NK).max()


def test_lrn_has_the_constants_of_the_layer_table(graph: MakeGraph) -> None:
    fp16 = graph("fp16")
    lrn_nodes = [node for node in fp16.graph.node if node.op_type == "LRN"]
    assert [node.name for node in lrn_nodes] == ["conv1/lrn", "conv2/lrn"]
    for node in lrn_nodes:
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        assert values == {
            "size": LRN_SIZE,
            "alpha": pytest.approx(LRN_ALPHA),
            "beta": pytest.approx(LRN_BETA),
            "bias": LRN_K,
        }


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_lrn_and_the_ends_stay_in_fp32(
    precision: Precision, kind: int, graph: MakeGraph, checkpoint: Checkpoint
) -> None:
    model = graph(precision)
    check_form(model, checkpoint.info.arch, precision)
    assert {entry.data_type for entry in model.graph.initializer} == {kind}
    types, made_by = types_of(model), producers(model)
    for node in model.graph.node:
        if node.op_type == "LRN":
            assert made_by[node.input[0]].op_type == "Cast"
            assert consumers(model, node.output[0]) == [f"{node.name}/{precision}"]
            assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT
        elif node.op_type != "Cast":
            assert types[node.output[0]] == kind, node.name
    assert [node.name for node in model.graph.node if node.op_type != "Cast"] == nodes_of(checkpoint.info.arch)


def test_fp16_softmax_is_fp32(tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint("narrow-notebook"))
    model = onnx_from_checkpoint(checkpoint, precision="fp16")
    check_form(model, checkpoint.info.arch, "fp16")
    last = model.graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Softmax", ["probabilities"])
    cast = producers(model)[last.input[0]]
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)


def test_lrn_of_300_does_not_overflow_in_fp16(graph: MakeGraph) -> None:
    """Squares of FP16 values above 255 are infinite in FP16; ONNX's own reference computes each node in its stated type."""
    fp16 = graph("fp16")
    chosen = [node for node in fp16.graph.node if node.name.startswith("conv1/lrn")]
    assert [node.op_type for node in chosen] == ["Cast", "LRN", "Cast"]
    shape = [8, 8, 1, 1]  # the reference's loop over channels runs as often as there are images

    def answer(nodes: list[Any]) -> np.ndarray[Any, Any]:
        graph = helper.make_graph(
            nodes,
            "lrn",
            [helper.make_tensor_value_info(nodes[0].input[0], TensorProto.FLOAT16, shape)],
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT16, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        with np.errstate(over="ignore"):
            (y,) = ReferenceEvaluator(model).run(None, {nodes[0].input[0]: np.full(shape, 300, np.float16)})
        assert y.dtype == np.float16
        return np.asarray(y, np.float64)

    y = answer(chosen)
    assert y[0, 4, 0, 0] == pytest.approx(300 / (LRN_K + LRN_ALPHA * 300**2) ** LRN_BETA, rel=1e-3)
    bare = answer([helper.make_node("LRN", ["a"], ["b"], size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=LRN_K)])
    assert bare[0, 4, 0, 0] == 0.0, "without the casts it does overflow: the test can tell"


def test_fp16_of_large_activations_answers_like_fp32(checkpoint: Checkpoint) -> None:
    bias = np.full_like(checkpoint.weights["conv1.bias"], 300)
    loud = replace(checkpoint, weights={**checkpoint.weights, "conv1.bias": bias})
    x_NCHW = np.random.default_rng(0).standard_normal((2, 3, 227, 227), np.float32)
    expected = session(onnx_from_checkpoint(loud)).run(None, {"input": x_NCHW})[0]
    y = session(onnx_from_checkpoint(loud, precision="fp16")).run(None, {"input": x_NCHW})[0]
    assert np.abs(y - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("precision", CALIBRATED)
def test_the_inputs_of_the_layers_are_quantised_and_nothing_else(
    precision: Precision, graph: MakeGraph, checkpoint: Checkpoint
) -> None:
    arch, model = checkpoint.info.arch, graph(precision)
    check_form(model, arch, precision)
    made_by, constants = producers(model), initialisers(model)
    nodes = {node.name: node for node in model.graph.node}
    seen = set()
    for spec in (spec for spec in arch.layers if layer_types(precision)[spec.name] == precision):
        dq, weight_dq = (made_by[tensor] for tensor in nodes[spec.name].input[:2])
        q = made_by[dq.input[0]]
        assert [node.op_type for node in (q, dq, weight_dq)] == ["QuantizeLinear", *["DequantizeLinear"] * 2]
        assert list(q.input[1:]) == list(dq.input[1:])
        assert constants[q.input[1]].dims == constants[q.input[2]].dims == []
        assert numpy_helper.to_array(constants[q.input[2]]) == 0
        assert consumers(model, q.output[0]) == [dq.name]
        assert consumers(model, dq.output[0]) == [spec.name], "LRN or pooling must not stand behind the pair"
        seen |= {q.name, dq.name, weight_dq.name}
    assert {node.name for node in model.graph.node if node.op_type in QUANTISED} == seen
    assert [node.name for node in model.graph.node if node.op_type not in {*QUANTISED, "Cast"}] == nodes_of(arch)


def test_int8_scales(graph: MakeGraph, checkpoint: Checkpoint) -> None:
    """One per tensor of activations and per output channel of a weight, nearest; biases stay as they are."""
    int8 = graph("int8")
    assert not any(node.op_type == "Cast" for node in int8.graph.node)
    constants = {name: numpy_helper.to_array(entry) for name, entry in initialisers(int8).items()}
    nodes = {node.name: node for node in int8.graph.node}
    for spec in checkpoint.info.arch.layers:
        scale, zero = (constants[name] for name in nodes[f"{spec.name}/input_q"].input[1:])
        assert (scale.dtype, zero.dtype) == (np.float32, np.int8)
        assert scale == pytest.approx(AMAX[spec.name] / 127)
        weight_dq = nodes[f"{spec.name}.weight_dq"]
        assert {entry.name: entry.i for entry in weight_dq.attribute} == {"axis": 0}
        values, scales, zeros = (constants[name] for name in weight_dq.input)
        assert values.dtype == zeros.dtype == np.int8
        assert values.shape == spec.weight_shape
        assert scales.shape == zeros.shape == (spec.out_channels,)
        assert not zeros.any()
        error = np.abs(
            values * scales.reshape(-1, *[1] * (values.ndim - 1)) - checkpoint.weights[f"{spec.name}.weight"]
        )
        assert (error.reshape(len(scales), -1).max(axis=1) <= 0.5001 * scales).all()
        bias = constants[nodes[spec.name].input[2]]
        assert bias.dtype == np.float32
        assert np.array_equal(bias, checkpoint.weights[f"{spec.name}.bias"])


def test_fp8_scales(graph: MakeGraph) -> None:
    """One per tensor; what is not quantised is FP16, LRN FP32."""
    fp8 = graph("fp8")
    constants, types = initialisers(fp8), types_of(fp8)
    nodes = {node.name: node for node in fp8.graph.node}
    for name in (name for name, kind in layer_types("fp8").items() if kind == "fp8"):
        scale = numpy_helper.to_array(constants[nodes[f"{name}/input_q"].input[1]])
        assert scale.dtype == np.float16
        assert float(scale) * 448 >= AMAX[name], "the largest value must not be clipped"
        assert scale == pytest.approx(AMAX[name] / 448, rel=1e-3)
        values, weight_scale = (constants[entry] for entry in nodes[f"{name}.weight_dq"].input[:2])
        assert constants[nodes[f"{name}/input_q"].input[2]].data_type == values.data_type == TensorProto.FLOAT8E4M3FN
        assert weight_scale.dims == [], "one scale per tensor"
        largest = float(np.abs(numpy_helper.to_array(values).astype(np.float32)).max())
        assert largest >= 416, "the largest weight must use the range"
        assert types[nodes[name].output[0]] == TensorProto.FLOAT16
    assert {types[node.output[0]] for node in fp8.graph.node if node.op_type == "LRN"} == {TensorProto.FLOAT}


def test_int8_runs_close_to_the_model(graph: MakeGraph) -> None:
    """The operators accept the graph as written; how close the answers are is measured on trained networks."""
    int8 = graph("int8")
    x_NCHW = np.random.default_rng(0).standard_normal((2, 3, 227, 227), np.float32)
    y_NK = session(int8).run(None, {"input": x_NCHW})[0]
    assert y_NK.shape == (2, 4)
    assert np.isfinite(y_NK).all()
    assert np.ptp(y_NK) > 0


def test_int8_of_one_layer_leaves_the_others_alone(checkpoint: Checkpoint) -> None:
    model = onnx_from_checkpoint(checkpoint, precision="int8", amax={"fc6": 2.0})
    quantised = {node.name for node in model.graph.node if node.op_type in QUANTISED}
    assert quantised == {"fc6/input_q", "fc6/input_dq", "fc6.weight_dq"}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.value_info, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def emulated(
    checkpoint: Checkpoint,
    x_NCHW: np.ndarray,
    rounded: Callable[[torch.Tensor], torch.Tensor],
    weight: Callable[[str, np.ndarray], np.ndarray],
    activation: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, x: x,
    last: str = "fc8",
) -> np.ndarray:
    """What layer `last` gives, in PyTorch's FP32 with the roundings that a graph states: of weights, inputs and results."""
    x = rounded(torch.from_numpy(x_NCHW))
    for spec in checkpoint.info.arch.layers:
        x = activation(spec.name, x.flatten(1) if spec.name == "fc6" else x)
        kernel = rounded(torch.from_numpy(np.array(weight(spec.name, checkpoint.weights[f"{spec.name}.weight"]))))
        bias = rounded(torch.from_numpy(np.array(checkpoint.weights[f"{spec.name}.bias"])))
        if spec.kind == "conv":
            y = torch.nn.functional.conv2d(x, kernel, bias, spec.stride, spec.padding, 1, spec.groups)
        else:
            y = torch.nn.functional.linear(x, kernel, bias)
        if spec.name == last:
            break
        x = rounded(torch.relu(y) if spec.relu else y)
        if spec.lrn:
            x = rounded(torch.nn.functional.local_response_norm(x, LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K))
        if spec.pool:
            x = torch.nn.functional.max_pool2d(x, 3, 2)
    return np.asarray(rounded(y).numpy())


def to_type(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype).float()


def unchanged(name: str, weight: np.ndarray) -> np.ndarray:
    return weight


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square of the difference over that of the second."""
    return float(np.sqrt(((first - second) ** 2).mean() / (second**2).mean()))


INPUT_NCHW = np.random.default_rng(0).standard_normal((8, 3, 227, 227), np.float32)


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint) -> Exact:
    """The FP32 answers to `INPUT_NCHW`, and the largest magnitude at each layer's input."""
    largest = {}

    def watch(name: str, x: torch.Tensor) -> torch.Tensor:
        largest[name] = float(x.abs().max())
        return x

    return emulated(checkpoint, INPUT_NCHW, lambda x: x, unchanged, watch), largest


def test_bf16_weights_are_the_nearest(graph: MakeGraph, checkpoint: Checkpoint) -> None:
    bf16 = graph("bf16")
    stored = numpy_helper.to_array(initialisers(bf16)["conv3.weight"]).astype(np.float32)
    weight = torch.from_numpy(checkpoint.weights["conv3.weight"])
    assert np.array_equal(stored, weight.bfloat16().float().numpy())


def test_the_emulation_of_bf16_rounds_where_the_graph_does(checkpoint: Checkpoint, exact: Exact) -> None:
    """Within the noise of sums in another order, and far from both FP32 and a network with BF16 weights only."""
    model = emulation_from_checkpoint(checkpoint, "bf16")
    check_form(model, checkpoint.info.arch)
    assert {entry.data_type for entry in model.graph.initializer} == {TensorProto.FLOAT}
    y = session(model).run(None, {"input": INPUT_NCHW})[0]
    expected = emulated(checkpoint, INPUT_NCHW, to_type(torch.bfloat16), unchanged)
    assert distance(expected, exact[0]) > 1e-3, "the rounding does show: the test can tell"
    assert distance(y, expected) < 0.5 * distance(expected, exact[0])
    bfloat16 = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == 16}
    assert bfloat16 == {"input/bf16", "conv1/lrn/bf16", "conv2/lrn/bf16", *(f"{name}/bf16" for name in LAYER_NAMES)}


def test_only_bf16_is_emulated(checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="only bf16 needs an emulation: fp8"):
        emulation_from_checkpoint(checkpoint, "fp8")


def test_fp8_runs_with_its_roundings(checkpoint: Checkpoint, exact: Exact) -> None:
    """ONNX Runtime's optimiser for Q/DQ is off: it makes the bias INT32 by way of FP16, which overflows."""
    answers, largest = exact
    model = onnx_from_checkpoint(checkpoint, precision="fp8", amax=largest)
    constants = {name: numpy_helper.to_array(entry) for name, entry in initialisers(model).items()}

    def fp8_weight(name: str, weight: np.ndarray) -> np.ndarray:
        if layer_types("fp8")[name] != "fp8":
            return weight
        product = constants[f"{name}.weight"].astype(np.float32) * np.float32(constants[f"{name}.weight_scale"])
        return np.asarray(product)

    def fp8_input(name: str, x: torch.Tensor) -> torch.Tensor:
        if layer_types("fp8")[name] != "fp8":
            return x
        scale = float(constants[f"{name}/input_scale"])
        return ((x / scale).to(torch.float8_e4m3fn).float() * scale).half().float()

    model.graph.output.append(next(value for value in model.graph.value_info if value.name == "conv2"))
    y, conv2 = session(model, disable_quant_qdq="1").run(None, {"input": INPUT_NCHW})
    half = to_type(torch.float16)
    expected = emulated(checkpoint, INPUT_NCHW, half, fp8_weight, fp8_input, last="conv2")
    plain = emulated(checkpoint, INPUT_NCHW, half, unchanged, last="conv2")
    assert distance(expected, plain) > 1e-2, "the rounding does show: the test can tell"
    assert distance(conv2.astype(np.float32), expected) < 0.2 * distance(expected, plain)
    assert distance(y, answers) < 0.2, "further on, values on the edge round otherwise in either"


def test_int4_stores_the_fully_connected_weights_in_blocks(graph: MakeGraph, checkpoint: Checkpoint) -> None:
    int4 = graph("int4-fc")
    arch = checkpoint.info.arch
    check_form(int4, arch, "int4-fc")
    made_by, constants, types = producers(int4), initialisers(int4), types_of(int4)
    for spec in arch.layers:
        layer = next(node for node in int4.graph.node if node.name == spec.name)
        if spec.kind == "conv":
            assert constants[layer.input[1]].data_type == TensorProto.FLOAT16
            continue
        assert layer.op_type == "Gemm"
        dq = made_by[layer.input[1]]
        assert {entry.name: entry.i for entry in dq.attribute} == {"axis": 1, "block_size": INT4_BLOCK}
        values, scales = (constants[name] for name in dq.input)
        assert values.data_type == TensorProto.INT4
        assert tuple(values.dims) == spec.weight_shape
        assert tuple(scales.dims) == (spec.out_channels, spec.in_channels // INT4_BLOCK)
        assert scales.data_type == types[dq.output[0]] == types[spec.name] == TensorProto.FLOAT16
    quantised = [node.name for node in int4.graph.node if node.op_type in QUANTISED]
    assert quantised == ["fc6.weight_dq", "fc7.weight_dq", "fc8.weight_dq"], "inputs are not quantised"


def test_int4_runs_with_the_weights_it_stores(graph: MakeGraph, checkpoint: Checkpoint, exact: Exact) -> None:
    int4 = graph("int4-fc")
    constants = {name: numpy_helper.to_array(entry) for name, entry in initialisers(int4).items()}

    def stored(name: str, weight: np.ndarray) -> np.ndarray:
        if not name.startswith("fc"):
            return weight
        scale = np.repeat(constants[f"{name}.weight_scale"].astype(np.float32), INT4_BLOCK, axis=1)
        return np.asarray(constants[f"{name}.weight"].astype(np.float32) * scale)

    expected = emulated(checkpoint, INPUT_NCHW, to_type(torch.float16), stored)
    y = session(int4).run(None, {"input": INPUT_NCHW})[0]
    assert distance(expected, exact[0]) > 5e-2, "the rounding does show: the test can tell"
    assert distance(y, expected) < 0.1 * distance(expected, exact[0])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_form_for_dla_gives_the_same_answers(checkpoint: Checkpoint, exact: Exact, precision: Precision) -> None:
    ranges = exact[1] if precision == "int8" else None
    model = onnx_from_checkpoint(checkpoint, precision=precision, amax=ranges, for_dla=3)
    check_form(model, checkpoint.info.arch, precision, batch=3)
    nodes = {node.name: node for node in model.graph.node}
    assert {nodes[name].op_type for name in LAYER_NAMES} == {"Conv"}
    kernels = {name: helper.get_node_attr_value(nodes[name], "kernel_shape") for name in ("fc6", "fc7", "fc8")}
    assert kernels == {"fc6": [6, 6], "fc7": [1, 1], "fc8": [1, 1]}
    for value in (*model.graph.value_info, *model.graph.output):
        assert all(0 < entry.dim_value <= 8192 for entry in value.type.tensor_type.shape.dim), value.name
    assert [node.op_type for node in model.graph.node].index("Flatten") > list(nodes).index("fc8")
    plain = onnx_from_checkpoint(checkpoint, precision=precision, amax=ranges)
    x_NCHW = INPUT_NCHW[:3]
    y, expected = (session(each).run(None, {"input": x_NCHW})[0] for each in (model, plain))
    assert y.shape == (3, 4)
    assert distance(y, expected) < (0.05 if precision == "int8" else 2e-3)


def test_the_notebook_s_softmax_in_the_form_for_dla(tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint("narrow-notebook"))
    model = onnx_from_checkpoint(checkpoint, precision="fp16", for_dla=2)
    check_form(model, checkpoint.info.arch, "fp16", batch=2)
    plain = onnx_from_checkpoint(checkpoint, precision="fp16")
    y, expected = (session(each).run(None, {"input": INPUT_NCHW[:2]})[0] for each in (model, plain))
    assert np.abs(y - expected).max() < 1e-3
    assert y.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        *((name, {"for_dla": 1}, f"no form for DLA: {name}; choose fp32, fp16, int8") for name in ("bf16", "int4-fc")),
        ("fp8", {"for_dla": 1, "amax": AMAX}, "no form for DLA: fp8; choose fp32, fp16, int8"),
        *((name, {}, f"needs the range of each layer's input: {name}; calibrate first") for name in CALIBRATED),
        *((name, {"amax": AMAX}, f"no calibration ranges: {name}") for name in ("fp32", "fp16", "bf16", "int4-fc")),
    ],
)
def test_what_is_refused(checkpoint: Checkpoint, precision: Precision, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        onnx_from_checkpoint(checkpoint, precision=precision, **options)


def test_every_precision_without_a_form_for_dla_is_refused() -> None:
    assert {*OPSETS} - {*DLA_PRECISIONS} == {"bf16", "int4-fc", "fp8"}


def test_a_graph_that_is_not_valid_is_not_written(graph: MakeGraph, tmp_path: Path) -> None:
    fp16 = graph("fp16")
    broken = onnx.ModelProto()
    broken.CopyFrom(fp16)
    broken.graph.node[3].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        write_onnx(broken, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_the_same_every_time(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_onnx(onnx_from_checkpoint(checkpoint, precision="int8", amax=AMAX), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
