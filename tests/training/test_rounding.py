"""Training with rounded weights: the values of an export, the straight-through gradient, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from narrow_network import NARROW, write_checkpoint
from torch import nn

from alexnet_edge.errors import UserError
from alexnet_edge.images.datasets import reopen
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.network.model import AlexNet
from alexnet_edge.network.quantize import quantize_blocks_full, quantize_weight
from alexnet_edge.proof.evaluate import evaluate
from alexnet_edge.sessions import open_session
from alexnet_edge.training.distributed import World
from alexnet_edge.training.learner import Learner, prepare_network
from alexnet_edge.training.recipe import RECIPES, Qat, TrainSettings
from alexnet_edge.training.rounding import rounded
from alexnet_edge.training.run import train as run_training

FC = ("fc6.weight", "fc7.weight", "fc8.weight")
KINDS: tuple[Qat, ...] = ("int8", "int4")


def exported(weight: FloatArray, kind: Qat) -> tuple[FloatArray, FloatArray]:
    """The integers that an export stores, and what they stand for."""
    if kind == "int8":
        values, scale = quantize_weight(weight)
        return values, values.astype(np.float32) * scale[:, None]
    values, scale = quantize_blocks_full(weight, 128)
    blocks = values.astype(np.float32).reshape(len(values), -1, 128)
    return values, (blocks * scale[:, :, None]).reshape(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_as_an_export_rounds_them(kind: Qat) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256), np.float32) ** 3
    weight[3] = 0
    weight[4, 128:] = 1e-42
    weight[5, 7] = -weight[5].max() * 2
    integers, expected = exported(weight, kind)
    result = rounded(torch.from_numpy(weight), kind).numpy()
    np.testing.assert_array_equal(result, expected)
    again, _ = exported(result, kind)
    np.testing.assert_array_equal(again, integers, "rounding once more changes nothing")


def narrow_learner(kind: Qat) -> Learner:
    model = AlexNet(NARROW)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    recipe = replace(RECIPES["qat"], qat=kind, batch=8)
    prepare_network(model, recipe, torch.device("cpu"))
    return Learner(model, recipe, World(), seed=0, steps=10)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_at_the_rounded_weights(kind: Qat) -> None:
    features, labels_N = torch.rand(8, 1152, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    through, at = narrow_learner(kind), narrow_learner("none")
    weights = {name: value.detach().clone() for name, value in through.model.named_parameters()}
    for name in FC:
        at.model.get_parameter(name).data.copy_(rounded(weights[name], kind))
    losses = [each.step(features, labels_N, count=8, rate=0.0, place=(0, 0)).loss for each in (through, at)]
    assert losses[0] == losses[1]
    for name, parameter in through.trainable().items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, at.trainable()[name].grad, rtol=0, atol=0)
        assert parameter.grad.abs().max() > 0
    assert torch.equal(through.logits(features), at.logits(features))


def test_small_steps_add_up(settings: TrainSettings, tmp_path: Path) -> None:
    """No single step reaches the next INT4 value; the weights behind them remember, and what is kept is rounded."""
    start = write_checkpoint(tmp_path / "start.safetensors")
    result = run_training(replace(settings, recipe=None, lr=None, arch="narrow", init=str(start), qat="int4", epochs=3))
    kept = load_checkpoint(result.checkpoint)
    assert kept.info.recipe["recipe"] is None
    assert kept.info.recipe["qat"] == "int4"
    before = load_checkpoint(start).weights
    for name in FC:
        _, values = exported(kept.weights[name], "int4")
        np.testing.assert_allclose(values, kept.weights[name], rtol=1e-6, atol=0)
    changed = exported(before["fc7.weight"], "int4")[0] != exported(kept.weights["fc7.weight"], "int4")[0]
    assert 0 < changed.mean() < 0.5
    np.testing.assert_array_equal(kept.weights["conv3.weight"], before["conv3.weight"])
    with open_session(result.checkpoint) as session:
        again = evaluate(session, reopen(kept.info.data["val"]["source"]))
    assert again.loss == pytest.approx(result.best.val_loss, rel=1e-4), "what was validated is what is kept"


def test_it_needs_frozen_features() -> None:
    for settings, reason in (
        (TrainSettings(data="x", freeze="none", qat="int4"), "only fc6 to fc8"),
        (TrainSettings(data="x", qat="int2"), "no such qat"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=reason):
            settings.resolved()
    assert TrainSettings(data="x", init="f.safetensors", qat="int4").resolved() == RECIPES["qat"]
