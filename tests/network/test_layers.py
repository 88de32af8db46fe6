"""The layer table: the published counts and sizes, worked out from nothing but the table."""

from __future__ import annotations

import numpy as np
import pytest

from alexnet_edge.errors import UserError
from alexnet_edge.network.layers import ARCHITECTURES, LAYER_NAMES, architecture, count_parameters, layer_costs


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("one-tower", 62_378_344),
        ("two-tower", 60_965_224),
        ("torchvision", 61_100_840),
        # one-tower's 62,378,344 without the biases of conv1 (96) and conv3 (384)
        ("notebook", 62_377_864),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    assert count_parameters(architecture(name)) == parameters
    assert sum(cost.parameters for cost in layer_costs(architecture(name))) == parameters


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activation_sizes(name: str) -> None:
    sizes = []
    for cost in layer_costs(architecture(name))[:5]:
        sizes.append(cost.output_shape[1:])
        if cost.passed_on_shape != cost.output_shape:
            sizes.append(cost.passed_on_shape[1:])
    assert sizes == [(side, side) for side in (55, 27, 27, 13, 13, 13, 13, 6)]


def test_channels_of_torchvision() -> None:
    costs = layer_costs(architecture("torchvision"))
    assert [cost.output_shape[0] for cost in costs[:5]] == [64, 192, 384, 256, 256]


def test_multiply_adds() -> None:
    costs = {cost.name: cost.multiply_adds for cost in layer_costs(architecture("one-tower"))}
    assert costs == {
        "conv1": 105_415_200, "conv2": 447_897_600, "conv3": 149_520_384, "conv4": 224_280_576, "conv5": 149_520_384,
        "fc6": 37_748_736, "fc7": 16_777_216, "fc8": 4_096_000,
    }  # fmt: skip
    assert sum(costs.values()) == 1_135_256_096


def test_groups_halve_the_multiply_adds() -> None:
    ungrouped = {cost.name: cost for cost in layer_costs(architecture("one-tower"))}
    two = {cost.name: cost for cost in layer_costs(architecture("two-tower"))}
    halved = {name for name in LAYER_NAMES if two[name].multiply_adds * 2 == ungrouped[name].multiply_adds}
    assert halved == {"conv2", "conv4", "conv5"}
    assert all(two[name] == ungrouped[name] for name in LAYER_NAMES if name not in halved)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_class_count_changes_the_last_layer_only(name: str) -> None:
    thousand, five = architecture(name), architecture(name, 5)
    assert five.num_classes == 5
    assert five.layers[:-1] == thousand.layers[:-1]
    assert count_parameters(thousand) - count_parameters(five) == 995 * 4097
    assert layer_costs(five)[-1].output_shape == (5,)


def test_batch_scales_work_and_activations_but_not_weights() -> None:
    arch = architecture("two-tower")
    for single, eight in zip(layer_costs(arch), layer_costs(arch, batch=8), strict=True):
        assert eight.multiply_adds == 8 * single.multiply_adds
        assert eight.activation_bytes == 8 * single.activation_bytes
        assert eight.weight_bytes == single.weight_bytes
        assert eight.total_bytes == single.weight_bytes + 8 * single.activation_bytes


def test_bytes_follow_the_element_size() -> None:
    arch = architecture("one-tower")
    for full, half in zip(layer_costs(arch), layer_costs(arch, weight_bytes=2, activation_bytes=2), strict=True):
        assert half.weight_bytes * 2 == full.weight_bytes == 4 * full.parameters
        assert half.activation_bytes * 2 == full.activation_bytes
    conv1 = layer_costs(arch)[0]
    assert conv1.activation_bytes == 4 * (3 * 227 * 227 + 96 * 27 * 27)
    assert layer_costs(arch, weight_bytes=0.5)[6].weight_bytes == (4096 * 4096 + 4096) // 2


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_fit_together(name: str) -> None:
    arch = architecture(name)
    assert tuple(layer.name for layer in arch.layers) == LAYER_NAMES
    costs = layer_costs(arch)
    for before, spec in zip(costs, arch.layers[1:], strict=False):
        shape = before.passed_on_shape
        assert spec.in_channels == (shape[0] if spec.kind == "conv" else int(np.prod(shape)))
    for spec in arch.layers:
        assert spec.weights == int(np.prod(spec.weight_shape))


@pytest.mark.parametrize(
    ("name", "classes", "batch", "message"),
    [
        ("one-tower", 0, 1, "at least one class: 0; give 1 or more"),
        ("one-tower", -1, 1, "at least one class: -1; give 1 or more"),
        ("vgg", 4, 1, "no such architecture: vgg; choose one of one-tower, two-tower"),
        ("one-tower", 4, 0, "batch must be 1 or more: 0"),
        ("one-tower", 4, -4, "batch must be 1 or more: -4"),
    ],
)
def test_what_is_no_network_is_refused(name: str, classes: int, batch: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer_costs(architecture(name, classes), batch=batch)
