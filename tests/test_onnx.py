"""The ONNX graphs: the checkpoint's answers, native operators, and quantise/dequantise pairs only where they belong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alexnet_edge.checkpoint import Checkpoint, load_checkpoint
from alexnet_edge.export.onnx import OPSET, layer_inputs, onnx_from_checkpoint, write_onnx
from alexnet_edge.layers import ARCHITECTURES, LAYER_NAMES, LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture

MakeCheckpoint = Callable[..., Path]

QUANTISED = {"QuantizeLinear", "DequantizeLinear"}
AMAX = {name: 1.0 + index for index, name in enumerate(LAYER_NAMES)}


@pytest.fixture(scope="module")
def two_tower(tiny_checkpoint: MakeCheckpoint) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint("two-tower"))


@pytest.fixture(scope="module")
def fp16(two_tower: Checkpoint) -> onnx.ModelProto:
    return onnx_from_checkpoint(two_tower, compute="fp16")


@pytest.fixture(scope="module")
def int8(two_tower: Checkpoint) -> onnx.ModelProto:
    return onnx_from_checkpoint(two_tower, amax=AMAX)


def nodes_of(arch: Architecture) -> list[str]:
    """The names of the FP32 graph's nodes, from the layer table."""
    names = []
    for spec in arch.layers:
        names += ["flatten"] if spec.name == "fc6" else []
        follows = (("relu", spec.relu), ("lrn", spec.lrn), ("pool", spec.pool))
        names += [spec.name, *[f"{spec.name}/{suffix}" for suffix, there in follows if there]]
    return names + (["probabilities"] if arch.head == "probabilities" else [])


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def initialisers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {entry.name: entry for entry in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, Any]:
    return {output: node for node in model.graph.node for output in node.output}


def consumers(model: onnx.ModelProto, tensor: str) -> list[str]:
    return [node.name for node in model.graph.node if tensor in node.input]


def check_form(model: onnx.ModelProto, arch: Architecture) -> None:
    """What holds in every precision."""
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    graph = model.graph
    assert [entry.version for entry in model.opset_import] == [OPSET] == [17]
    (source,), (answer,) = graph.input, graph.output
    assert source.name == "input"
    assert answer.name == arch.head
    for value, shape in ((source, (3, arch.input_size, arch.input_size)), (answer, (arch.num_classes,))):
        tensor = value.type.tensor_type
        assert tensor.elem_type == TensorProto.FLOAT
        assert tensor.shape.dim[0].dim_param == "N", "the batch must be free"
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


@pytest.mark.parametrize("name", ARCHITECTURES)
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


def test_lrn_has_the_constants_of_the_layer_table(fp16: onnx.ModelProto) -> None:
    found = [node for node in fp16.graph.node if node.op_type == "LRN"]
    assert [node.name for node in found] == ["conv1/lrn", "conv2/lrn"]
    for node in found:
        values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        assert values == {
            "size": LRN_SIZE,
            "alpha": pytest.approx(LRN_ALPHA),
            "beta": pytest.approx(LRN_BETA),
            "bias": LRN_K,
        }


def test_fp16_keeps_lrn_and_the_ends_in_fp32(fp16: onnx.ModelProto, two_tower: Checkpoint) -> None:
    check_form(fp16, two_tower.info.arch)
    assert {entry.data_type for entry in fp16.graph.initializer} == {TensorProto.FLOAT16}
    types = {value.name: value.type.tensor_type.elem_type for value in (*fp16.graph.value_info, *fp16.graph.output)}
    made_by = producers(fp16)
    for node in fp16.graph.node:
        if node.op_type == "LRN":
            assert made_by[node.input[0]].op_type == "Cast"
            (after,) = consumers(fp16, node.output[0])
            assert after == f"{node.name}/fp16"
            assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT
        elif node.op_type != "Cast":
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name
    assert [name for name in (node.name for node in fp16.graph.node) if "fp" not in name] == nodes_of(
        two_tower.info.arch
    )


def test_fp16_softmax_is_fp32(tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint("notebook"))
    model = onnx_from_checkpoint(checkpoint, compute="fp16")
    check_form(model, checkpoint.info.arch)
    last = model.graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Softmax", ["probabilities"])
    cast = producers(model)[last.input[0]]
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)


def test_lrn_of_300_does_not_overflow_in_fp16(fp16: onnx.ModelProto) -> None:
    """Squares of FP16 values above 255 are infinite in FP16; ONNX's own reference computes each node in its stated type."""
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
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        with np.errstate(over="ignore"):
            (y,) = ReferenceEvaluator(model).run(None, {nodes[0].input[0]: np.full(shape, 300, np.float16)})
        assert y.dtype == np.float16
        return np.asarray(y, np.float64)

    y = answer(chosen)
    assert y[0, 4, 0, 0] == pytest.approx(300 / (LRN_K + LRN_ALPHA * 300**2) ** LRN_BETA, rel=1e-3)
    bare = answer([helper.make_node("LRN", ["a"], ["b"], size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=LRN_K)])
    assert bare[0, 4, 0, 0] == 0.0, "without the casts it does overflow: the test can tell"


def test_fp16_of_large_activations_answers_like_fp32(two_tower: Checkpoint) -> None:
    bias = np.full_like(two_tower.weights["conv1.bias"], 300)
    loud = replace(two_tower, weights={**two_tower.weights, "conv1.bias": bias})
    x_NCHW = np.random.default_rng(0).standard_normal((2, 3, 227, 227), np.float32)
    expected = session(onnx_from_checkpoint(loud)).run(None, {"input": x_NCHW})[0]
    y = session(onnx_from_checkpoint(loud, compute="fp16")).run(None, {"input": x_NCHW})[0]
    assert np.abs(y - expected).max() < 0.02 * np.abs(expected).max()


def test_int8_quantises_the_inputs_of_the_eight_layers_and_nothing_else(
    int8: onnx.ModelProto, two_tower: Checkpoint
) -> None:
    arch = two_tower.info.arch
    check_form(int8, arch)
    made_by, constants = producers(int8), initialisers(int8)
    nodes = {node.name: node for node in int8.graph.node}
    seen = set()
    for spec in arch.layers:
        layer = nodes[spec.name]
        dq = made_by[layer.input[0]]
        q = made_by[dq.input[0]]
        assert (q.op_type, dq.op_type) == ("QuantizeLinear", "DequantizeLinear")
        assert list(q.input[1:]) == list(dq.input[1:])
        scale, zero = (numpy_helper.to_array(constants[name]) for name in q.input[1:])
        assert scale.shape == zero.shape == ()
        assert scale.dtype == np.float32
        assert scale == pytest.approx(AMAX[spec.name] / 127)
        assert zero.dtype == np.int8
        assert zero == 0
        assert consumers(int8, q.output[0]) == [dq.name]
        assert consumers(int8, dq.output[0]) == [spec.name], "LRN or pooling must not stand behind the pair"
        weight_dq = made_by[layer.input[1]]
        assert weight_dq.op_type == "DequantizeLinear"
        assert {entry.name: entry.i for entry in weight_dq.attribute} == {"axis": 0}
        values, scales, zeros = (numpy_helper.to_array(constants[name]) for name in weight_dq.input)
        assert values.dtype == zeros.dtype == np.int8
        assert values.shape == spec.weight_shape
        assert scales.shape == zeros.shape == (spec.out_channels,)
        assert not zeros.any()
        error = np.abs(values * scales.reshape(-1, *[1] * (values.ndim - 1)) - two_tower.weights[f"{spec.name}.weight"])
        assert (error.reshape(len(scales), -1).max(axis=1) <= 0.5001 * scales).all()
        bias = numpy_helper.to_array(constants[layer.input[2]])
        assert bias.dtype == np.float32
        assert np.array_equal(bias, two_tower.weights[f"{spec.name}.bias"])
        seen |= {q.name, dq.name, weight_dq.name}
    assert {node.name for node in int8.graph.node if node.op_type in QUANTISED} == seen
    assert [node.name for node in int8.graph.node if node.op_type not in QUANTISED] == nodes_of(arch)


def test_int8_runs_close_to_the_model(int8: onnx.ModelProto) -> None:
    """The operators accept the graph as written; how close the answers are is measured on trained networks."""
    x_NCHW = np.random.default_rng(0).standard_normal((2, 3, 227, 227), np.float32)
    y_NK = session(int8).run(None, {"input": x_NCHW})[0]
    assert y_NK.shape == (2, 4)
    assert np.isfinite(y_NK).all()
    assert np.ptp(y_NK) > 0


def test_int8_of_one_layer_leaves_the_others_alone(two_tower: Checkpoint) -> None:
    model = onnx_from_checkpoint(two_tower, amax={"fc6": 2.0})
    found = {node.name for node in model.graph.node if node.op_type in QUANTISED}
    assert found == {"fc6/input_q", "fc6/input_dq", "fc6.weight_dq"}


def test_a_graph_that_is_not_valid_is_not_written(fp16: onnx.ModelProto, tmp_path: Path) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(fp16)
    broken.graph.node[3].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        write_onnx(broken, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_the_same_every_time(two_tower: Checkpoint, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_onnx(onnx_from_checkpoint(two_tower, amax=AMAX), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
