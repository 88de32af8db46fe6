"""Recipes: what the paper says, what may be overridden, and the schedules against definitions that are not ours."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from alexnet_edge import records
from alexnet_edge.cli import _run
from alexnet_edge.errors import UserError
from alexnet_edge.network.layers import architecture
from alexnet_edge.progress import QuietReporter
from alexnet_edge.training.recipe import RECIPES, TrainSettings, recipe_json
from alexnet_edge.training.schedule import learning_rate, plateaus
from alexnet_edge.training.start import first_model, first_preprocessing


def test_paper_recipe_is_the_papers() -> None:
    paper = RECIPES["paper"]
    assert (paper.lr, paper.momentum, paper.weight_decay) == (0.01, 0.9, 5e-4)
    assert (paper.batch, paper.epochs, paper.dropout) == (128, 90, 0.5)
    assert (paper.schedule, paper.reductions) == ("plateau", 3)
    assert (paper.first_weights, paper.preprocessing, paper.rescale) == ("paper", "paper-227", False)
    assert paper.lighting_sigma == 0.1
    assert (paper.label_smoothing, paper.ema, paper.clip, paper.precision) == (0, 0, 0, "fp32")


def test_notebook_recipe_is_the_notebooks() -> None:
    notebook = RECIPES["notebook"]
    marks = {0: 0.01, 24.99: 0.01, 25.001: 1e-3, 49.99: 1e-3, 50.001: 1e-4, 75.001: 1e-5, 89.99: 1e-5}
    for epoch, rate in marks.items():
        assert learning_rate(notebook, epoch) == pytest.approx(rate), epoch


def test_every_recipe_is_valid() -> None:
    for name in RECIPES:
        assert TrainSettings(recipe=name).resolved() == RECIPES[name]


def test_steps_and_cosine() -> None:
    by_epochs = replace(RECIPES["notebook"], epochs=10, milestones=(4.0, 8.0))
    assert [learning_rate(by_epochs, epoch) for epoch in (3.9, 4.0, 8.0)] == pytest.approx([0.01, 1e-3, 1e-4])
    cosine = replace(RECIPES["notebook"], epochs=10, lr=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(cosine, epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])


def test_plateau_divides_on_a_scripted_curve() -> None:
    recipe = replace(RECIPES["paper"], patience=3, epochs=40)
    falling = [0.9, 0.8, 0.7, 0.65, 0.62]
    still = [0.62, 0.63, 0.64]  # no lower error for three epochs
    rates = [learning_rate(recipe, epoch, (falling + still + [0.5])[:epoch]) for epoch in range(10)]
    assert rates == pytest.approx([0.01] * 8 + [0.001] * 2)
    for_ever = [0.5] * 40
    rates = [learning_rate(recipe, epoch, for_ever[:epoch]) for epoch in range(40)]
    assert rates == pytest.approx([0.01] * 4 + [1e-3] * 3 + [1e-4] * 3 + [1e-5] * 30), "three times, and no fourth"


def test_plateau_is_reached_again_only_below_the_lowest_error() -> None:
    assert plateaus([0.5, 0.6, 0.7, 0.55, 0.54], patience=2, most=9) == 2
    assert plateaus([0.5, 0.6, 0.4, 0.6, 0.3], patience=2, most=9) == 0
    assert plateaus([], patience=1, most=9) == 0
    assert plateaus([0.1, math.inf, math.inf], patience=2, most=0) == 0


@hypothesis_settings(deadline=None, max_examples=50)
@given(errors=st.lists(st.integers(0, 12), max_size=40), patience=st.integers(1, 6))
def test_plateau_equals_torchs(errors: list[int], patience: int) -> None:
    """`ReduceLROnPlateau` counts the epochs *beyond* its patience."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=patience - 1, threshold=0, threshold_mode="abs", min_lr=0.9e-3, eps=0
    )
    recipe = replace(RECIPES["paper"], lr=1.0, patience=patience, reductions=3, epochs=100)
    for done, error in enumerate(errors, 1):
        reference.step(error / 12)
        expected = round(-math.log10(optimizer.param_groups[0]["lr"]))
        assert plateaus([value / 12 for value in errors[:done]], patience=patience, most=3) == expected
        assert learning_rate(recipe, done, [value / 12 for value in errors[:done]]) == pytest.approx(10.0**-expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more: 0"),
        ({"batch": 0}, "batch must be 1 or more: 0"),
        ({"accumulate": 0}, "accumulate must be 1 or more: 0"),
        ({"accumulate": 17}, "a batch of 16 cannot be split into this many parts: 17"),
        ({"lr": math.nan}, "lr must be above 0: nan"),
        ({"milestones": (0.5, -1.0)}, r"milestones must be above 0: \(0\.5, -1\.0\)"),
        ({"patience": 0}, "patience must be 1 or more: 0"),
        ({"reductions": -1}, "reductions must be 0 or more"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
        ({"clip": math.nan}, "clip must be 0 or more: nan"),
        ({"ema": 1.0}, "ema must be from 0 to below 1"),
        ({"warmup": 1.0}, "warmup must be from 0 to below 1"),
        ({"lighting_sigma": -0.1}, "lighting_sigma must be 0 or more"),
        ({"features_lr": math.inf}, "features_lr must be 0 or more: inf"),
        ({"views": 11}, "views must be from 1 to 10"),
        ({"freeze": "all"}, "no such freeze: all; choose one of none, features"),
        ({"schedule": "linear"}, "no such schedule: linear; choose one of steps, cosine, plateau"),
        ({"precision": "int8"}, "no such precision: int8; choose one of auto, fp32, bf16, fp16"),
        ({"first_weights": "zero"}, "no such first_weights: zero; choose one of kaiming, paper"),
        ({"preprocessing": "none"}, "no such preprocessing: none"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"threads": 0}, "threads must be 1 or more: 0"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"max_minutes": 0.0}, "max_minutes must be above 0"),
        ({"save_minutes": -1.0}, "save_minutes must be 0 or more"),
        ({"keep": -1}, "keep must be 0 or more"),
        ({"recipe": "secret"}, "no such recipe: secret; choose one of paper, notebook, modern, finetune, frozen"),
        ({"device": "tpu"}, "no such device: tpu"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainSettings(**change).resolved()


def test_recipe_is_chosen_by_the_data_and_the_start_and_overridden() -> None:
    assert TrainSettings().resolved() == RECIPES["synthetic"]
    assert TrainSettings(data="x").resolved() == RECIPES["modern"]
    assert TrainSettings(data="x", init="weights.pt").resolved() == RECIPES["finetune"]
    assert TrainSettings(data="x", init="f.npz", freeze="features").resolved() == RECIPES["frozen"]
    own: dict[str, Any] = {"lr": 0.5, "dropout": 0.0, "rescale": True}
    assert TrainSettings(recipe="notebook", **own).resolved() == replace(RECIPES["notebook"], **own)
    for settings in (TrainSettings(milestones=(0.5,)), TrainSettings(data="x", recipe="frozen")):
        assert TrainSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_runs_are_the_same_wherever_and_however_long_they_run() -> None:
    settings = TrainSettings(data="x")
    identity = settings.identity()
    assert identity == replace(settings, name="a", threads=3, max_minutes=5.0, recipe="modern").identity()
    assert identity != replace(settings, seed=1).identity()
    assert identity != replace(settings, lr=0.5).identity()
    assert json.loads(json.dumps(identity)) == identity


OTHER: dict[str, Any] = {
    **{"epochs": 3, "batch": 24, "accumulate": 2, "lr": 0.25, "schedule": "plateau", "milestones": (2.0, 3.0)},
    **{"patience": 7, "reductions": 1, "warmup": 0.125, "momentum": 0.5, "weight_decay": 0.0625},
    **{"label_smoothing": 0.25, "dropout": 0.125, "clip": 3.0, "ema": 0.5, "first_weights": "paper", "rescale": False},
    **{"preprocessing": "caffe-227", "lighting_sigma": 0.5, "freeze": "features", "features_lr": 0.5, "views": 3},
    **{"qat": "int8", "precision": "bf16", "channels_last": False, "compile": True},
}
"""A value for every field that `modern` does not have."""


def test_every_option_reaches_the_recipe_and_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[TrainSettings] = []

    def train(settings: TrainSettings, **options: Any) -> SimpleNamespace:
        calls.append(settings)
        return SimpleNamespace(first=False)

    monkeypatch.setattr("alexnet_edge.training.run.train", train)
    arguments = ["train", "--recipe", "modern"]
    for name, value in OTHER.items():
        assert getattr(RECIPES["modern"], name) != value, name
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            arguments += [f"--{option}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    assert _run(arguments) == 0
    (settings,) = calls
    assert asdict(settings.resolved()) == OTHER
    assert json.loads(json.dumps(recipe_json(settings.resolved()))) == {**OTHER, "milestones": [2.0, 3.0]}


def test_options_that_do_not_fit_are_refused(run_cli: Any, image_folder: Any) -> None:
    options = "--batch 7 --accumulate 9 --schedule plateau --milestones 3,5 --compile --no-channels-last --ema 0.5"
    problem = run_cli.refuses("train", "--data", image_folder, "--recipe", "modern", *options.split())
    assert "a batch of 7 cannot be split into this many parts: 9" in problem
    assert "--milestones takes numbers: a;" in run_cli.refuses("train", "--milestones", "a,b")
    problem = run_cli.refuses("train", "--resume", image_folder, "--lr", "0.1")
    assert "--resume FOLDER goes on with the run as it was started, without: --lr" in problem


def test_first_weights_and_biases_are_the_papers() -> None:
    settings = TrainSettings(data="x", arch="two-tower", recipe="paper")
    arch = architecture("two-tower", 10)
    model, loaded = first_model(settings, settings.resolved(), arch, QuietReporter())
    assert loaded == set()
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}  # section 5: "the second, fourth, and fifth convolutional layers,
    for spec in arch.layers:  # as well as the fully-connected hidden layers"
        layer = model.get_submodule(spec.name)
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        assert torch.equal(bias, torch.full_like(bias, 1.0 if spec.name in ones else 0.0)), spec.name
        error = 4 / np.sqrt(spec.weights)
        assert weight.std().item() == pytest.approx(0.01, rel=error)
        assert abs(weight.mean().item()) < 0.01 * error
    spec = first_preprocessing(settings, settings.resolved(), arch)
    assert spec.std == pytest.approx((1 / 255,) * 3), "inputs on the 0-255 scale, less the mean"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": "0"}, "seed: expected int, got str"),
        ({"pool": "fibres"}, "pool: invalid enum value 'fibres'"),
        ({"overrides": {"epochs": 1.5}}, "epochs: expected int, got float"),
        ({"overrides": {"epoch": 1}}, "epoch: unknown, expected one of epochs"),
    ],
)
def test_recorded_settings_are_read_strictly(change: dict[str, Any], line: str) -> None:
    with pytest.raises(records.RecordError) as error:
        TrainSettings.from_json({**TrainSettings().to_json(), **change})
    assert str(error.value).startswith(line)
