"""The roofline against figures worked out by hand, on recorded traces of ONNX Runtime, and on names as TensorRT has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_information
import pytest

from alexnet_edge.artifact import LayerPrecision, Precision, layer_types
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.bench.machine.roofline import roofline
from alexnet_edge.errors import UserError
from alexnet_edge.export.precision import weight_bytes
from alexnet_edge.network.layers import LAYER_NAMES, architecture, layer_costs
from alexnet_edge.sessions.base import NodeTime
from alexnet_edge.sessions.onnxruntime import node_times_of

TRACES = Path(__file__).parents[1] / "data" / "onnxruntime"
ONE_TOWER = architecture("one-tower")
PEAKS = Peaks(
    device="cpu",
    threads=1,
    read_bytes_per_s=10e9,
    copy_bytes_per_s=None,
    multiply_adds_per_s={"fp32": 50e9, "fp16": None, "int8": 200e9},
    how={},
    unavailable={"fp16": "computed in FP32"},
)
MS = 1e6


def precisions(precision: Precision, *, evidence: str = "", **built: str) -> list[LayerPrecision]:
    return [
        LayerPrecision(name=name, requested=asked, built=built.get(name, asked), evidence=evidence)
        for name, asked in layer_types(precision).items()
    ]


def products(kind: str = "Gemm(float)", ns: float = MS) -> list[NodeTime]:
    """One node per layer."""
    return [NodeTime(name=name, kind=kind, ns=ns) for name in LAYER_NAMES]


def of(nodes: Sequence[NodeTime] | None, precision: Precision = "fp32", **options: Any) -> dict[str, Any]:
    usual = {"architecture": ONE_TOWER, "layers": precisions(precision), "batch": 1, "peaks": PEAKS, "p50_ns": 50 * MS}
    value: dict[str, Any] = roofline(nodes=nodes, **(usual | options))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    return value


def layer(value: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in value["layers"] if entry["name"] == name)


def times(value: dict[str, Any]) -> dict[str, float | None]:
    return {entry["name"]: entry["measured_ns"] for entry in value["layers"]}


def test_floors_by_hand() -> None:
    value = of(products())
    fc6 = layer(value, "fc6")
    assert fc6["bytes"] == 4 * (9216 * 4096 + 4096 + 9216 + 4096)
    assert fc6["memory_floor_ns"] == pytest.approx(15.1064576 * MS)
    assert fc6["compute_floor_ns"] == pytest.approx(9216 * 4096 / 50)
    assert (fc6["bound"], fc6["floor_ns"]) == ("memory", fc6["memory_floor_ns"])
    conv2 = layer(value, "conv2")
    assert conv2["bytes"] == 4 * (256 * 96 * 25 + 256 + 96 * 27 * 27 + 256 * 13 * 13)
    assert conv2["compute_floor_ns"] == pytest.approx(447_897_600 / 50)
    assert (conv2["bound"], conv2["floor_ns"]) == ("compute", conv2["compute_floor_ns"])
    assert value["floor_ns"] == pytest.approx(sum(entry["floor_ns"] for entry in value["layers"]))
    assert value["share"] == pytest.approx(value["floor_ns"] / (50 * MS))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["one-tower", "two-tower", "torchvision", "notebook"])
def test_fp32_bytes_are_the_cost_table(name: str, batch: int) -> None:
    """A checkpoint is FP32: the table's own figures."""
    network = architecture(name, 5)
    value = of(None, architecture=network, batch=batch, layers=())
    costs = layer_costs(network, batch=batch)
    assert [entry["bytes"] for entry in value["layers"]] == [cost.total_bytes for cost in costs]
    assert [entry["multiply_adds"] for entry in value["layers"]] == [cost.multiply_adds for cost in costs]
    assert {entry["precision"] for entry in value["layers"]} == {"fp32"}


def test_bytes_of_each_precision_by_hand() -> None:
    def fc6(precision: Precision) -> Any:
        return layer(of(None, precision), "fc6")["bytes"]

    weights, inputs, outputs = 9216 * 4096, 9216, 4096
    assert fc6("fp16") == fc6("bf16") == 2 * (weights + 4096 + inputs + outputs)
    assert fc6("int8") == weights + 4 * 4096 + 4 * 4096 + inputs + outputs, "one byte each, FP32 scales and biases"
    assert fc6("fp8") == weights + 2 + 2 * 4096 + inputs + outputs
    assert fc6("int4-fc") == weights // 2 + weights // 128 * 2 + 2 * 4096 + 2 * (inputs + outputs)


def test_the_networks_ends_are_float32() -> None:
    value = of(None, "int8")
    conv1, fc8 = layer(value, "conv1"), layer(value, "fc8")
    assert conv1["bytes"] == 96 * 363 + 4 * 96 + 4 * 96 + 4 * 3 * 227 * 227 + 96 * 27 * 27
    assert fc8["bytes"] == 4096 * 1000 + 4 * 1000 + 4 * 1000 + 4096 + 4 * 1000
    assert layer(of(None, "fp8"), "conv1")["bytes"] == 2 * (96 * 363 + 96) + 4 * 3 * 227 * 227 + 96 * 27 * 27


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8", "int4-fc"])
def test_weights_are_those_of_the_export(precision: Precision) -> None:
    """Without activations, biases and per-channel scales, what `export.precision` counts is left."""
    one, two = (of(None, precision, batch=batch)["layers"] for batch in (1, 2))
    fixed = sum(2 * first["bytes"] - second["bytes"] for first, second in zip(one, two, strict=True))
    outputs = sum(spec.out_channels for spec in ONE_TOWER.layers)
    least = weight_bytes(ONE_TOWER, precision)
    assert least <= fixed <= least + 8 * outputs + 16


def test_batch_must_be_positive() -> None:
    with pytest.raises(UserError, match="batch must be 1 or more"):
        of(None, batch=0)


def test_the_profile_says_what_is_computed() -> None:
    value = of(products("FusedGemm(float)"), "fp16")
    assert {entry["computed_in"] for entry in value["layers"]} == {"fp32"}
    assert {entry["precision"] for entry in value["layers"]} == {"fp16"}
    assert f"{', '.join(LAYER_NAMES)}: stored in fp16, computed in fp32" in value["notes"]
    conv2 = layer(of(products("QLinearConv(uint8)"), "int8"), "conv2")
    assert conv2["computed_in"] == "int8"
    assert conv2["compute_floor_ns"] == pytest.approx(447_897_600 / 200)


@pytest.mark.parametrize(
    ("nodes", "computed_in", "floor_ns", "bound"),
    [
        (None, "unknown", 447_897_600 / 200, "compute"),  # the highest peak, INT8's, still bounds from below
        (products("MatMul(float16)"), "fp16", None, "memory"),
    ],
)
def test_types_without_a_peak(
    nodes: list[NodeTime] | None, computed_in: str, floor_ns: float | None, bound: str
) -> None:
    value = of(nodes, "fp16")
    conv2 = layer(value, "conv2")
    assert (conv2["computed_in"], conv2["bound"]) == (computed_in, bound)
    assert conv2["compute_floor_ns"] == (floor_ns if floor_ns is None else pytest.approx(floor_ns))
    assert any("no peak of fp16 was measured" in note for note in value["notes"]) == (floor_ns is None)


def test_an_engine_computes_in_what_was_built() -> None:
    nodes = [NodeTime(name=name, kind="", ns=MS) for name in LAYER_NAMES]
    mixed = precisions("fp16", fc6="fp32", fc7="unknown")
    value = of(nodes, layers=mixed, runtime="tensorrt")
    assert [entry["computed_in"] for entry in value["layers"]] == [*["fp16"] * 5, "fp32", "unknown", "fp16"]
    assert [entry["precision"] for entry in value["layers"]] == [*["fp16"] * 5, "fp32", "fp16", "fp16"]
    assert "fc7: built precision is unknown: counted as fp16, as asked for" in value["notes"]
    assert {entry["computed_in"] for entry in of(nodes, layers=mixed)["layers"]} == {"unknown"}
    weight_only = of(nodes, "int4-fc", runtime="tensorrt-rtx")
    assert {entry["computed_in"] for entry in weight_only["layers"]} == {"fp16"}
    tf32 = of(nodes, layers=precisions("fp32", evidence="engine inspector: TF32 kernel"), runtime="tensorrt")
    assert {entry["computed_in"] for entry in tf32["layers"]} == {"tf32"}


def test_openvino_stores_what_was_asked_and_builds_what_it_computes() -> None:
    layers = [replace(entry, built="fp32") for entry in precisions("fp16")]
    fc6 = layer(of(None, layers=layers, runtime="openvino"), "fc6")
    assert (fc6["precision"], fc6["computed_in"]) == ("fp16", "fp32")
    assert fc6["bytes"] == 2 * (9216 * 4096 + 4096 + 9216 + 4096)


def test_shares_and_the_worst() -> None:
    nodes = [replace(node, ns=30 * MS if node.name in ("fc6", "conv2") else 20 * MS) for node in products()]
    value = of(nodes, p50_ns=185 * MS)
    fc6 = layer(value, "fc6")
    assert fc6["share"] == pytest.approx(15.1064576 / 30)
    assert fc6["above_ns"] == pytest.approx(30 * MS - 15.1064576 * MS)
    assert value["worst"] == "conv2", "21 ms above its floor, fc6 15 ms"
    assert (value["nodes_ns"], value["other_ns"], value["unavailable"], value["notes"]) == (180 * MS, 0, "", [])
    assert value["nodes"][0] == {"name": "conv1", "kind": "Gemm(float)", "ns": 20 * MS, "layer": "conv1"}


def test_round_by_round_each_median_meets_its_own_bounds() -> None:
    slow = replace(PEAKS, read_bytes_per_s=5e9, multiply_adds_per_s={"fp32": 25e9, "int8": 100e9})
    value = of(None, p50_ns=60 * MS)
    floor_ns = value["floor_ns"]
    assert value["by_round"] is None
    half_speed = [(PEAKS, [round(1.25 * floor_ns)] * 20), (slow, [round(2.5 * floor_ns)] * 20)]
    by_round = of(None, p50_ns=60 * MS, rounds=half_speed)["by_round"]
    assert by_round["floors_ns"] == [pytest.approx(floor_ns), pytest.approx(2 * floor_ns)]
    assert by_round["share"] == pytest.approx(0.8), "a machine of half the speed halves both"
    assert by_round["interval"] == pytest.approx([0.8, 0.8])
    uneven = [(PEAKS, [round(floor_ns / 0.5)] * 20), (PEAKS, [round(floor_ns / 0.9)] * 20)]
    by_round = of(None, p50_ns=60 * MS, rounds=uneven)["by_round"]
    assert by_round["share"] == pytest.approx((0.5 * 0.9) ** 0.5)
    assert by_round["interval"] == pytest.approx([0.5, 0.9])


def test_faster_than_its_floor_is_said() -> None:
    value = of([replace(node, ns=5 * MS if node.name == "fc6" else 50 * MS) for node in products()])
    assert layer(value, "fc6")["share"] == pytest.approx(3.02129152)
    assert layer(value, "fc6")["above_ns"] < 0
    (note,) = (note for note in value["notes"] if note.startswith("fc6"))
    assert "302 %" in note
    assert "underestimated, or data came from a cache" in note


def test_nodes_that_do_not_add_up_are_said() -> None:
    words = "the profiled nodes add up to 8.0 ms, the median latency is 9.0 ms"
    assert words not in of(products(), p50_ns=9 * MS)["notes"]
    assert "the profiled nodes add up to 8.0 ms, the median latency is 16 ms" in of(products(), p50_ns=16 * MS)["notes"]


def test_nothing_profiled() -> None:
    value = of(None)
    assert (value["other_ns"], value["worst"], value["nodes"], value["nodes_ns"]) == (None, None, [], None)
    assert value["unavailable"] == "the runtime has no profile that tells layers apart"
    assert set(times(value).values()) == {None}


@pytest.mark.parametrize(
    ("nodes", "owners"),
    [
        pytest.param(
            [
                *[("input/fp16", "Cast(float)"), ("conv1/relu_nchwc", "Conv(float)")],
                *[("ReorderOutput_token_3", "ReorderOutput(float)"), ("conv1/lrn", "LRN(float)")],
                *[("ReorderInput", "ReorderInput(float)"), ("conv2/input_q", "QuantizeLinear(float)")],
                *[("aten::avg_pool3d", "aten::avg_pool3d(float)"), ("something", "")],
                *[("unnamed product", "MatMul(float)"), ("fused fc6", "FusedGemm(float)")],
            ],
            [None, *["conv1"] * 4, "conv2", "conv2", None, None, "fc6"],
            id="what follows belongs to the layer",
        ),
        pytest.param(
            [
                *[("conv1/input_q", "QuantizeLinear(float)"), ("fc8.weight_dq", "DequantizeLinear(int8)")],
                *[("fc7_bias_dq", "DequantizeLinear(int32)"), ("ReorderInput", "ReorderInput(float)")],
            ],
            ["conv1", "fc8", "fc7", "conv1"],
            id="ONNX Runtime dequantises weights in any order before the first layer",
        ),
        pytest.param(
            [("conv10", "Conv"), ("myconv1", "Conv"), ("fc67", "Gemm"), ("xfc6", "Gemm")],
            [None] * 4,
            id="names that only look alike",
        ),
        pytest.param(
            [
                ("conv1/pool + conv2/input_q", ""),  # what prepares conv2 is in what follows conv1
                ("PWN(conv2/relu) + conv2/lrn", ""),
                ("conv2.weight + conv2.weight_dq + conv2 + conv2/relu + conv3/input_q", ""),
                ("conv4, conv4/relu, conv5/input_q", "Convolution"),
                ("Reformatting CopyNode for Input Tensor 0 to conv5 + conv5/relu", ""),
            ],
            ["conv1", "conv2", "conv2", "conv4", "conv5"],
            id="fused across layers",
        ),
    ],
)
def test_whose_a_node_is(nodes: list[tuple[str, str]], owners: list[str | None]) -> None:
    value = of([NodeTime(name=name, kind=kind, ns=MS) for name, kind in nodes])
    assert [node["layer"] for node in value["nodes"]] == owners


def test_a_layer_without_its_product_is_not_timed() -> None:
    """Planted: fc6's product bears no name, so what bears fc6's name must not pass for all of it."""
    nodes = [
        NodeTime(name="fc6/input_q", kind="QuantizeLinear(float)", ns=0.01 * MS),
        NodeTime(name="gemm_17", kind="QGemm(int8)", ns=5 * MS),
        *(node for node in products() if node.name != "fc6"),
    ]
    value = of(nodes)
    assert times(value)["fc6"] is None
    assert value["other_ns"] == pytest.approx(5.01 * MS)
    assert any(note.startswith("fc6: no node multiplies") for note in value["notes"])


@pytest.mark.parametrize(
    "kind", ["DequantizeLinear(int8)", "QuantizeLinear(float)", "Convert", "ConvertLike", "Reorder"]
)
def test_what_only_sounds_like_a_product(kind: str) -> None:
    assert times(of([NodeTime(name="fc6", kind=kind, ns=MS)]))["fc6"] is None


def test_time_beside_the_product_is_said() -> None:
    """Planted: a pooling that sleeps."""
    value = of([*products(), NodeTime(name="conv5/pool", kind="MaxPool(float)", ns=40 * MS)])
    assert value["worst"] == "conv5"
    assert times(value)["conv5"] == 41 * MS
    assert "conv5: 98 % of the time is beside the product, most of it in conv5/pool (40 ms)" in value["notes"]


def engine_nodes(information: str) -> list[NodeTime]:
    return [NodeTime(name=entry["Name"], kind="", ns=MS) for entry in json.loads(information)["Layers"]]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("version", [8, 10, 11])
def test_names_of_engines(version: int, precision: Precision) -> None:
    make = getattr(engine_information, f"engine_{version}")
    value = of(engine_nodes(make(layer_types(precision))), precision, runtime="tensorrt")
    assert set(times(value).values()) == {2 * MS if version == 8 else MS}
    assert value["other_ns"] == 0
    assert {entry["computed_in"] for entry in value["layers"]} == {precision}


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("fc6 + fc6/relu + fc7", ("fc6", "fc7")),
        ("fc6_fc7_myl0_3", ("fc6", "fc7")),
        ("{ForeignNode[conv5/pool...fc8]}", ("conv5", "fc6", "fc7", "fc8")),
    ],
)
def test_several_layers_in_one_node_are_not_told_apart(name: str, inside: tuple[str, ...]) -> None:
    nodes = [NodeTime(name=other, kind="", ns=MS) for other in LAYER_NAMES if other not in inside[1:]]
    value = of([*nodes, NodeTime(name=name, kind="", ns=7 * MS)], runtime="tensorrt")
    assert {entry for entry, ns in times(value).items() if ns is None} == set(inside)
    assert value["other_ns"] == pytest.approx(8 * MS)
    assert value["worst"] not in inside
    assert any(note.startswith(f"{', '.join(inside)}: in one node") for note in value["notes"])


def test_a_copy_is_not_the_product() -> None:
    """TensorRT names a copy after the layer it is for; the layer's own kernel may bear no name."""
    nodes = [node for node in products("") if node.name != "conv5"]
    copy = NodeTime(name="Reformatting CopyNode for Input Tensor 0 to conv5 + conv5/relu", kind="", ns=MS)
    assert times(of([*nodes, copy], runtime="tensorrt"))["conv5"] is None


def test_names_that_tell_nothing() -> None:
    """An engine built without names: decimal indices."""
    value = of([NodeTime(name=str(index), kind="", ns=MS) for index in range(20)], runtime="tensorrt")
    assert value["unavailable"] == "no node of the runtime's profile belongs to one layer alone"
    assert (value["other_ns"], value["worst"]) == (20 * MS, None)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_recorded_traces(precision: Precision) -> None:
    events = json.loads((TRACES / f"trace-{precision}.json").read_text(encoding="utf-8"))
    nodes = node_times_of(events, skip=1)
    last = [event["dur"] for event in events if event["name"] == "model_run"][-2:]
    executed_ns = 1e3 * sum(last) / 2
    total = sum(node.ns for node in nodes)
    assert 0.95 < total / executed_ns < 1, "the nodes are the inference"
    value = of(nodes, precision, architecture=architecture("two-tower", 5), runtime="onnxruntime", p50_ns=executed_ns)
    assert None not in times(value).values()
    named = sum(ns for ns in times(value).values() if ns is not None)
    assert named == pytest.approx(total - value["other_ns"])
    assert value["other_ns"] < 0.01 * total
    assert {entry["computed_in"] for entry in value["layers"]} == {"fp32"}, "ONNX Runtime converts the others on x86"


def test_recorded_lrn_is_conv1s() -> None:
    nodes = node_times_of(json.loads((TRACES / "trace-fp32.json").read_text(encoding="utf-8")), skip=1)
    by_name = {node.name: node for node in nodes}
    assert by_name["fused fc6"].kind == "FusedGemm(float)"
    parts = ("conv1/relu_nchwc", "ReorderOutput_token_16", "conv1/lrn", "ReorderInput", "conv1/pool_nchwc")
    assert times(of(nodes))["conv1"] == pytest.approx(sum(by_name[name].ns for name in parts))
