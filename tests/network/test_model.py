"""The model: equal to the networks it stands for, and to formulas written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import notebook_alexnet
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from alexnet_edge.network.checkpoint import parameter_shapes
from alexnet_edge.network.layers import ARCHITECTURES, LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, architecture, layer_costs
from alexnet_edge.network.load import import_weights, load_checkpoint
from alexnet_edge.network.model import AlexNet, initialise


def random_images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def random_model(name: str, num_classes: int) -> AlexNet:
    model = AlexNet(architecture(name, num_classes)).eval()
    initialise(model, "kaiming", seed=5)
    return model


def test_torchvision_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = torchvision.models.alexnet(weights=None, num_classes=1000).eval()
    torch.save(published.state_dict(), tmp_path / "alexnet.pth")
    loaded = load_checkpoint(tmp_path / "alexnet.pth")
    assert loaded.info.architecture == "torchvision"
    assert loaded.info.preprocessing.crop == 224
    x_NCHW = random_images(3, 224)
    with torch.inference_mode():
        expected_NK = published(x_NCHW)
        assert torch.equal(loaded.model()(x_NCHW), expected_NK)
    assert expected_NK.std() > 1e-3, "logits that barely vary would compare equal whatever the weights"


@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax")
def test_notebook_is_the_notebooks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(2)
    published = notebook_alexnet.AlexNet(227, 3, 1000).eval()
    sizes = [int(line.rpartition("= ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert sizes == [55, 27, 27, 13, 13, 13, 13, 6]
    # Its own initialisation gives the same answer for every image: comparing on it would show nothing.
    for parameter in published.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.normal_(parameter, 0.0, 0.01)
    torch.save(published.state_dict(), tmp_path / "notebook.pth")
    loaded = load_checkpoint(tmp_path / "notebook.pth")
    assert loaded.info.architecture == "notebook"
    assert loaded.info.arch.head == "probabilities"
    x_NCHW = random_images(2, 227) * 60
    with torch.inference_mode():
        expected_NK = published(x_NCHW)
        model = loaded.model()
        assert torch.equal(model(x_NCHW), expected_NK)
        assert torch.equal(torch.softmax(model.logits(x_NCHW), 1), expected_NK)
    torch.testing.assert_close(expected_NK.sum(1), torch.ones(2))
    assert (expected_NK[0] - expected_NK[1]).abs().max() > 1e-3, "the two images must have different answers"


def test_torchvisions_training_mode_is_the_same(tmp_path: Path) -> None:
    """With the same random state the dropouts fall alike, so they stand in the same places."""
    published = torchvision.models.alexnet(weights=None, num_classes=4)
    torch.save(published.state_dict(), tmp_path / "alexnet.pth")
    model = load_checkpoint(tmp_path / "alexnet.pth").model().train()
    x_NCHW = random_images(2, 224)
    with torch.no_grad():
        torch.manual_seed(3)
        expected_NK = published.train()(x_NCHW)
        torch.manual_seed(3)
        assert torch.equal(model(x_NCHW), expected_NK)


def lrn(x_CHW: np.ndarray) -> np.ndarray:
    """Local response normalisation from its formula: b_c = a_c / (k + alpha / size * sum over size channels a^2) ** beta."""
    out = np.empty_like(x_CHW)
    for channel in range(len(x_CHW)):
        low, high = max(0, channel - LRN_SIZE // 2), min(len(x_CHW) - 1, channel + LRN_SIZE // 2)
        total = (x_CHW[low : high + 1] ** 2).sum(axis=0)
        out[channel] = x_CHW[channel] / (LRN_K + LRN_ALPHA / LRN_SIZE * total) ** LRN_BETA
    return out


def test_normalisation_is_the_formula() -> None:
    model = AlexNet(architecture("one-tower", 4))
    # Values of hundreds, as on the 0-255 scale: there alpha = 1e-4 matters.
    x_CHW = np.random.default_rng(4).normal(0, 300, (96, 5, 4))
    with torch.inference_mode():
        y_CHW = model.norm1(torch.from_numpy(x_CHW)[None])[0].numpy()
    np.testing.assert_allclose(y_CHW, lrn(x_CHW), rtol=1e-12)
    plain = x_CHW / LRN_K**LRN_BETA
    assert np.abs(y_CHW - plain).max() > 1, "the sum must have an effect here"


def convolution(x_CHW: np.ndarray, weight: np.ndarray, bias: np.ndarray, *, stride: int, padding: int) -> np.ndarray:
    x_CHW = np.pad(x_CHW, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x_CHW, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def pool(x_CHW: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x_CHW, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(3, 4))


@pytest.mark.parametrize("name", ["one-tower", "two-tower"])
def test_towers_are_the_paper(name: str) -> None:
    """The whole network against the paper's layers written out in numpy, in double precision."""
    model = random_model(name, 6).double()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("bias"):
                value.copy_(torch.linspace(-0.1, 0.1, len(value)))
    p = {key: value.detach().numpy() for key, value in model.named_parameters()}
    x_NCHW = random_images(1, 227).double() * 60
    with torch.inference_mode():
        y_K = model(x_NCHW)[0].numpy()

    def conv(x_CHW: np.ndarray, layer: str, groups: int, stride: int, padding: int) -> np.ndarray:
        weight, bias = p[f"{layer}.weight"], p[f"{layer}.bias"]
        parts = zip(np.split(x_CHW, groups), np.split(weight, groups), np.split(bias, groups), strict=True)
        return np.maximum(0, np.concatenate([convolution(*part, stride=stride, padding=padding) for part in parts]))

    groups = 2 if name == "two-tower" else 1
    x = pool(lrn(conv(x_NCHW[0].numpy(), "conv1", 1, 4, 0)))
    x = pool(lrn(conv(x, "conv2", groups, 1, 2)))
    x = conv(x, "conv3", 1, 1, 1)
    x = conv(x, "conv4", groups, 1, 1)
    x = pool(conv(x, "conv5", groups, 1, 1)).reshape(-1)
    for layer in ("fc6", "fc7"):
        x = np.maximum(0, p[f"{layer}.weight"] @ x + p[f"{layer}.bias"])
    expected_K = p["fc8.weight"] @ x + p["fc8.bias"]
    np.testing.assert_allclose(y_K, expected_K, rtol=1e-9)
    assert expected_K.std() > 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_the_tables(name: str) -> None:
    with torch.device("meta"):
        model = AlexNet(architecture(name))
        x_NCHW = torch.empty(2, 3, model.arch.input_size, model.arch.input_size)
        pool5_NF = model.features(x_NCHW)
        y_NK = model(x_NCHW)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == parameter_shapes(model.arch)
    assert tuple(pool5_NF.shape) == (2, int(np.prod(layer_costs(model.arch)[4].passed_on_shape)))
    assert tuple(y_NK.shape) == (2, 1000)


def test_batch_does_not_change_an_answer() -> None:
    model = random_model("two-tower", 4)
    x_NCHW = random_images(3, 227)
    with torch.inference_mode():
        together_NK = model(x_NCHW)
        alone_NK = torch.cat([model(x_NCHW[index : index + 1]) for index in range(3)])
    torch.testing.assert_close(together_NK, alone_NK, rtol=1e-4, atol=1e-4)


def test_paper_initialisation() -> None:
    model = AlexNet(architecture("one-tower", 1000))
    initialise(model, "paper", seed=0)
    for spec in model.arch.layers:
        layer = model.get_submodule(spec.name)
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        assert abs(weight.std().item() - 0.01) < 0.0002, spec.name
        assert abs(weight.mean().item()) < 0.0003, spec.name
        ones = spec.name in {"conv2", "conv4", "conv5", "fc6", "fc7"}
        assert bool((bias == (1.0 if ones else 0.0)).all()), spec.name


def test_kaiming_initialisation_has_the_stated_deviation() -> None:
    model = AlexNet(architecture("two-tower", 1000))
    initialise(model, "kaiming", seed=0)
    for spec in model.arch.layers:
        fan_in = spec.weights / spec.out_channels
        expected = ((2 if spec.relu else 1) / fan_in) ** 0.5
        layer = model.get_submodule(spec.name)
        assert abs(layer.get_parameter("weight").std().item() / expected - 1) < 0.02, spec.name
        assert not layer.get_parameter("bias").any(), spec.name


@pytest.mark.parametrize("scheme", ["kaiming", "paper"])
def test_initialisation_is_reproducible(scheme: str) -> None:
    models = [AlexNet(architecture("notebook", 4)) for _ in range(3)]
    for model, seed in zip(models, (11, 11, 12), strict=True):
        torch.rand(seed)  # the global random state has no part in it
        initialise(model, scheme, seed=seed)  # type: ignore[arg-type]
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_features_then_classifier_are_the_logits() -> None:
    model = random_model("notebook", 4)
    x_NCHW = random_images(2, 227)
    with torch.inference_mode():
        pool5_NF = model.features(x_NCHW)
        assert tuple(pool5_NF.shape) == (2, 9216)
        assert torch.equal(model.classifier(pool5_NF), model.logits(x_NCHW))


def test_a_checkpoints_model_does_not_share_its_arrays(tiny_checkpoint: Callable[..., Path]) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint())
    model = checkpoint.model()
    before = checkpoint.weights["conv1.weight"].copy()
    with torch.no_grad():
        model.conv1.weight.zero_()
    np.testing.assert_array_equal(checkpoint.weights["conv1.weight"], before)
    assert not model.training


def test_imported_weights_make_the_same_model_as_their_checkpoint(tiny_checkpoint: Callable[..., Path]) -> None:
    path = tiny_checkpoint()
    checkpoint = load_checkpoint(path)
    imported = replace(checkpoint, weights=import_weights(path))
    x_NCHW = random_images(1, 227)
    with torch.inference_mode():
        assert torch.equal(imported.model()(x_NCHW), checkpoint.model()(x_NCHW))
