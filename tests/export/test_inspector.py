"""The engine inspector's answer: recorded ones of TensorRT 8, 10 and 11, and constructed ones with AlexNet's names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from engine_information import DYNAMIC_8, engine, engine_8, engine_10, engine_11, tensor

from alexnet_edge.artifact import Precision, layer_types
from alexnet_edge.errors import ArtifactError
from alexnet_edge.export.engines.inspector import inspect_layers, inspected_precisions, placements
from alexnet_edge.network.layers import LAYER_NAMES

DATA = Path(__file__).parents[1] / "data" / "inspector"


def recorded(name: str) -> str:
    return (DATA / name).read_text(encoding="utf-8")


def built(information: str, precision: Precision) -> dict[str, str]:
    return {layer.name: layer.built for layer in inspected_precisions(information, precision)}


def test_tensorrt_8_tells_half_weights_and_a_half_format() -> None:
    layers = inspect_layers(recorded("resnet18-8-fp16.json"), ["Conv_0", "Conv_5", "Relu_7"])
    assert {layer.built for layer in layers.values()} == {"fp16"}
    assert layers["Conv_0"].kernel == "Conv_0 + Relu_1"  # not the copy that bears its name
    assert layers["Conv_5"].placement == "GPU"


def test_tensorrt_8_tells_int8_for_a_layer_that_takes_a_half_residual() -> None:
    layers = inspect_layers(recorded("resnet18-8-qat.json"), ["Conv_9", "Conv_34"])
    assert [layers[name].built for name in ("Conv_9", "Conv_34")] == ["int8", "int8"]


def test_tensorrt_10_tells_types_of_cask_and_myelin_kernels() -> None:
    layers = inspect_layers(recorded("mnist-10.16-fp32.json"), ["node_conv2d", "node_linear", "node_linear_1"])
    assert {layer.built for layer in layers.values()} == {"fp32"}
    assert layers["node_linear"].kernel == "node_linear_myl4_0"
    assert layers["node_linear_1"].kernel == "__myl_MulSum_myl4_1"  # the product, not the bias and softmax after it


def test_tensorrt_11_tells_the_type_of_the_weights_and_that_the_kernel_is_tf32() -> None:
    layers = inspect_layers(recorded("mnist-11.0-fp32.json"), ["node_conv2d", "node_linear", "node_linear_1"])
    assert layers["node_conv2d"].evidence == "engine inspector: weights Float, input Float, TF32 kernel"
    assert layers["node_linear"].evidence == "engine inspector: weights Float, input Float"
    assert layers["node_linear_1"].built == "fp32"


def test_a_layer_name_that_begins_another_is_not_taken_for_it() -> None:
    layers = inspect_layers(recorded("mnist-11.0-fp32.json"), ["node_conv", "node_conv2d_1"])
    assert {layer.built for layer in layers.values()} == {"missing"}


def test_an_engine_with_names_only_is_unknown_where_a_kernel_bears_the_name() -> None:
    layers = inspect_layers(
        recorded("names-only-8.json"), ["/backbone/conv1/Conv", "/neck/detect1/conv1/relu/LeakyRelu", "fc6"]
    )
    assert [layer.built for layer in layers.values()] == ["unknown", "unknown", "missing"]
    assert layers["/backbone/conv1/Conv"].kernel.startswith("backbone.conv1.weight + ")


PLAIN: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")


@pytest.mark.parametrize(
    ("information", "precisions"),
    [
        (engine_8, ("fp32", "fp16", "int8")),
        (partial(engine_8, dynamic=False), ("fp32", "fp16", "int8")),
        (engine_10, PLAIN),
        (engine_11, (*PLAIN, "int4-fc")),
    ],
    ids=["8, dynamic", "8", "10", "11"],
)
def test_every_layer_is_proved(
    information: Callable[[Mapping[str, str]], str], precisions: tuple[Precision, ...]
) -> None:
    for precision in precisions:
        assert built(information(layer_types(precision)), precision) == layer_types(precision)


def test_weights_unpacked_in_a_kernel_that_tells_no_type_are_not_claimed_as_int4() -> None:
    found = built(engine_10(layer_types("int4-fc")), "int4-fc")
    assert found["conv1"] == "fp16"
    assert found["fc6"] == "unknown"


def test_an_fp32_engine_is_not_taken_for_fp16() -> None:
    layers = inspected_precisions(engine_10(layer_types("fp32")), "fp16")
    assert not any(layer.holds for layer in layers)
    assert {layer.requested for layer in layers} == {"fp16"}


def test_one_layer_left_in_fp32_is_told_apart() -> None:
    types = {**layer_types("fp16"), "fc8": "fp32"}
    assert [name for name, kind in built(engine_8(types), "fp16").items() if kind != "fp16"] == ["fc8"]


def test_weights_and_input_of_different_types_are_mixed() -> None:
    layer = {
        "Name": "conv1",
        "LayerType": "CaskConvolution",
        "Inputs": [tensor("input", "Float")],
        "Weights": {"Type": "Half", "Count": 34848},
    }
    assert built(engine([layer]), "fp16")["conv1"] == "mixed"


def test_a_layer_that_no_kernel_bears_is_missing() -> None:
    assert set(built(engine([{"Name": "conv1", "LayerType": "Reformat", "Inputs": []}]), "fp16").values()) == {
        "missing"
    }


def test_a_fused_region_of_dynamic_shape_is_unknown() -> None:
    region = {"Name": "{ForeignNode[fc6...fc8]}", "LayerType": "Myelin", "Inputs": [tensor("flatten", DYNAMIC_8)]}
    layers = {layer.name: layer for layer in inspected_precisions(engine([region]), "fp16")}
    assert layers["fc7"].built == "unknown"
    assert layers["fc7"].placement == "GPU"
    assert layers["conv5"].built == "missing"


def test_a_region_ends_at_the_node_it_names() -> None:
    region = {"Name": "{ForeignNode[conv1/relu...fc6]}", "LayerType": "Myelin", "Inputs": [tensor("x", "Half")]}
    found = built(engine([region]), "fp16")
    assert [name for name, kind in found.items() if kind == "fp16"] == ["conv2", "conv3", "conv4", "conv5", "fc6"]


def test_the_kernel_name_tells_the_type_where_nothing_else_does() -> None:
    layer = {
        "Name": "fc6 + fc6/relu",
        "LayerType": "CaskGemmMatrixMultiply",
        "Inputs": [tensor("flatten", DYNAMIC_8)],
        "TacticName": "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64_stage6_warpsize2x2x1_tensor16x8x16",
    }
    found = {entry.name: entry for entry in inspected_precisions(engine([layer]), "fp16")}
    assert found["fc6"].built == "fp16"
    assert "kernel sm80_xmma_gemm_f16f16" in found["fc6"].evidence


def test_several_profiles_are_one_network() -> None:
    layer = {"LayerType": "gemm", "Inputs": [tensor("x", "Half")], "TacticName": ""}
    names = ("fc6_myl6_2", "fc6 [profile 1]_myl13_2")
    found = built(engine([{**layer, "Name": name} for name in names]), "fp16")
    assert found["fc6"] == "fp16"


DLA_LOG = (
    "[02/19/2022-05:35:26] [I] [TRT] ---------- Layers Running on DLA ----------",
    "[02/19/2022-05:35:26] [I] [TRT] [DlaLayer] {ForeignNode[conv1...conv5/pool]}",
    "[02/19/2022-05:35:26] [I] [TRT] [DlaLayer] {ForeignNode[fc7...fc8]}",
    "[02/19/2022-05:35:26] [I] [TRT] ---------- Layers Running on GPU ----------",
    "[02/19/2022-05:35:26] [I] [TRT] [GpuLayer] SHUFFLE: flatten",
    "[02/19/2022-05:35:26] [I] [TRT] [GpuLayer] CONVOLUTION: fc6",
)
"""Constructed after a recorded log of VGG-19 on a Jetson, whose fc6 fell back to the GPU too."""


def test_the_builder_log_tells_which_layers_run_on_the_dla() -> None:
    found = placements(DLA_LOG)
    assert found == {name: "GPU" if name == "fc6" else "DLA" for name in LAYER_NAMES}


def test_a_dla_loadable_is_placed_by_the_log() -> None:
    regions = [
        {"Name": f"{{ForeignNode[{nodes}]}}", "LayerType": "", "Inputs": [tensor("x", "Half")]}
        for nodes in ("conv1...conv5/pool", "fc7...fc8")
    ]
    fc6 = {"Name": "fc6", "LayerType": "CaskConvolution", "Inputs": [tensor("x", "Half")], "Weights": {"Type": "Half"}}
    layers = inspected_precisions(engine([*regions, fc6]), "fp16", log=DLA_LOG)
    assert all(layer.holds for layer in layers)
    assert [layer.name for layer in layers if layer.placement == "GPU"] == ["fc6"]
    assert "at the border of a fused region" in layers[0].evidence


def test_without_a_log_copies_to_its_memory_betray_a_dla() -> None:
    region = {"Name": "{ForeignNode[conv1...fc8]}", "LayerType": "", "Inputs": [tensor("input", "Half")]}
    copy = {"Name": "input to nvm", "LayerType": "", "Inputs": [], "Outputs": []}
    assert {layer.placement for layer in inspected_precisions(engine([copy, region]), "fp16")} == {"DLA"}
    assert {layer.placement for layer in inspected_precisions(engine([region]), "fp16")} == {""}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", json.dumps({"layers": []}), json.dumps({"Layers": None})])
def test_what_is_not_the_inspectors_json_is_one_line(text: str) -> None:
    with pytest.raises(ArtifactError, match="the engine inspector's answer cannot be read") as caught:
        inspected_precisions(text, "fp16")
    assert "\n" not in str(caught.value)
