"""Training: its views, its schedule, its files, and that a resumed run is the undisturbed one bit for bit."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from alexnet_edge import layers, preprocess, progress, train
from alexnet_edge.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from alexnet_edge.data import open_split, reopen, synthetic
from alexnet_edge.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    ImageError,
    InterruptedRunError,
    OutputError,
    UserError,
)
from alexnet_edge.evaluate import evaluate
from alexnet_edge.feeds import CENTRE, Draw, FeatureFeed, ImageFeed, fixed_views, view
from alexnet_edge.layers import architecture
from alexnet_edge.lrn import TrainingLRN
from alexnet_edge.model import AlexNet, initialise
from alexnet_edge.preprocess import Preprocessing, preprocess_file, preset
from alexnet_edge.progress import ConsoleReporter, QuietReporter
from alexnet_edge.rescale import LAST_DEVIATION, rescale
from alexnet_edge.sessions import open_session
from alexnet_edge.train import RECIPES, Recipe, TrainSettings, learning_rate, resume
from alexnet_edge.train import train as run_training

MakeCheckpoint = Callable[..., Path]

QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "lr": 1e-3, "workers": 0, "recipe": "notebook"}

TINY = layers.Architecture(
    name="tiny",
    input_size=67,
    preprocessing="tiny-67",
    summary="AlexNet's eight layers with few channels",
    layers=tuple(
        replace(layer, in_channels=channels, out_channels=12, groups=1)
        for layer, channels in zip(
            layers.ARCHITECTURES["two-tower"].layers, (3, 12, 12, 12, 12, 12, 12, 12), strict=True
        )
    ),
)
"""67 pixels leave 1 x 1 after the last pooling."""


class Stopper(QuietReporter):
    """Presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def update(self, completed: int, detail: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def real(image_folder: Path, tmp_path: Path) -> TrainSettings:
    """A short run of a real architecture."""
    return TrainSettings(data=str(image_folder), runs=str(tmp_path / "runs"), arch="two-tower", **QUICK)


@pytest.fixture
def settings(real: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> TrainSettings:
    """The same with a network small enough to train it many times."""
    monkeypatch.setitem(layers.ARCHITECTURES, "tiny", TINY)
    monkeypatch.setitem(preprocess.PRESETS, "tiny-67", Preprocessing(resize=80, crop=67))
    return replace(real, arch="tiny")


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_checkpoint(one).weights, load_checkpoint(other).weights
    return all(np.array_equal(a[name], b[name]) for name in a)


# --- views --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 33), (300, 256), (257, 400)])
def test_central_training_view_is_the_shared_preprocessing(tmp_path: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[0])
    for label in ("a", "b"):
        for index in range(2):
            (tmp_path / label).mkdir(exist_ok=True)
            pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / label / f"{index}.png")
    images = open_split(tmp_path, "train")
    for name in ("imagenet-227", "caffe-227"):
        feed = ImageFeed(images, preset(name), workers=0, on_bad_image="fail")
        for _ in range(2):  # from the file, then from memory
            ((x_NCHW, labels_N),) = feed.batches(range(2), [CENTRE] * 2, 2)
            for index in range(2):
                assert np.array_equal(
                    x_NCHW[index].numpy(), preprocess_file(tmp_path / images.name(index), preset(name))
                )
            assert labels_N.tolist() == [0, 1]


def test_random_views_are_crops_and_mirrors_of_the_resized_image() -> None:
    pixels = np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)
    spec = Preprocessing(resize=10, crop=4)
    assert np.array_equal(view(pixels, spec, Draw(0.0, 0.0, 0.0)), pixels[:4, :4])
    assert np.array_equal(view(pixels, spec, Draw(0.999, 0.999, 0.0)), pixels[6:, 10:])
    assert np.array_equal(view(pixels, spec, Draw(0.5, 0.0, 0.5)), pixels[:4, 5:9][:, ::-1])
    assert np.array_equal(view(pixels, spec, CENTRE), pixels[3:7, 5:9])
    random = np.random.default_rng(0)
    seen = {view(pixels, spec, Draw(*random.random(3).tolist())).tobytes() for _ in range(3000)}
    assert len(seen) == 7 * 11 * 2, "every place and its mirror image, and no other"


def test_fixed_views_are_ten_different_ones() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
    seen = [view(pixels, Preprocessing(), draw).tobytes() for draw in fixed_views(10)]
    assert len(set(seen)) == 10
    centre, mirrored = (view(pixels, Preprocessing(), draw) for draw in fixed_views(2))
    assert np.array_equal(mirrored, centre[:, ::-1])
    with pytest.raises(UserError, match="views must be from 1 to 10: 11"):
        fixed_views(11)


def test_images_beyond_the_memory_budget_are_decoded_again(image_folder: Path) -> None:
    images = open_split(image_folder, "train")
    spec = Preprocessing(resize=32, crop=24)
    answers = []
    for budget in (0, 10_000, 1 << 30):
        feed = ImageFeed(images, spec, workers=2, on_bad_image="fail", budget=budget)
        for _ in range(2):
            answers.append(torch.cat([x for x, _ in feed.batches(range(24), [CENTRE] * 24, 5)]))
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_feature_feed_picks_the_drawn_view() -> None:
    features_VNF = torch.arange(2 * 3).reshape(2, 3, 1).float()
    feed = FeatureFeed(features_VNF, torch.tensor([7, 8, 9]))
    draws = [Draw(0.9, 0, 0), Draw(0.1, 0, 0), CENTRE]
    ((x, labels),) = feed.batches([2, 0, 1], draws, 3)
    assert x[:, 0].tolist() == [5.0, 0.0, 1.0]
    assert labels.tolist() == [9, 7, 8]


# --- arithmetic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side", "scale"), [(96, 13, 1.0), (256, 5, 60.0), (3, 4, 500.0)])
def test_training_lrn_has_the_values_and_gradients_of_torchs(channels: int, side: int, scale: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, channels, side, side) * scale).requires_grad_()
    upstream = torch.randn_like(x)
    answers = []
    for module in (nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0), TrainingLRN(channels)):
        x.grad = None
        y = module(x)
        y.backward(upstream)
        assert x.grad is not None
        answers.append((y.detach(), x.grad.clone()))
    torch.testing.assert_close(answers[1][0], answers[0][0], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(answers[1][1], answers[0][1], rtol=2e-5, atol=2e-6)


def test_training_lrn_passes_gradcheck() -> None:
    module = TrainingLRN(6).double()
    x = (torch.randn(1, 6, 2, 2, dtype=torch.float64) * 100).requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))


def test_rescale_gives_every_layer_mean_0_and_variance_1() -> None:
    model = AlexNet(architecture("two-tower", 4))
    initialise(model, "kaiming", seed=0)
    x_NCHW = torch.randn(6, 3, 227, 227) + 2
    rescale(model, model.logits, x_NCHW, ["conv1", "conv2", "fc6", "fc8"])
    seen: dict[str, torch.Tensor] = {}
    for name in ("conv1", "conv2", "fc6", "fc8"):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, y, name=name: seen.__setitem__(name, y))
    with torch.inference_mode():
        model.eval().logits(x_NCHW)
    for name in ("conv1", "conv2"):
        mean_C, deviation_C = seen[name].mean((0, 2, 3)), seen[name].std((0, 2, 3))
        assert mean_C.abs().max() < 1e-3
        assert (deviation_C - 1).abs().max() < 1e-2
    assert seen["fc6"].mean(0).abs().max() < 1e-3
    assert seen["fc6"].square().mean().item() == pytest.approx(1, rel=1e-3)
    assert seen["fc8"].square().mean().sqrt().item() == pytest.approx(LAST_DEVIATION, rel=1e-3)


def test_rescale_of_the_notebook_network_without_biases() -> None:
    model = AlexNet(architecture("notebook", 4))
    initialise(model, "kaiming", seed=0)
    before = model.conv2.weight.detach().clone()
    x_NCHW = torch.randn(4, 3, 227, 227)
    rescale(model, model.logits, x_NCHW, ["conv1", "conv3"])
    assert model.conv1.bias is None
    with torch.inference_mode():
        deviation_C = model.conv1(x_NCHW).std((0, 2, 3))
    assert (deviation_C - 1).abs().max() < 1e-2
    assert torch.equal(model.conv2.weight, before), "only the layers named are touched"


def test_schedules() -> None:
    notebook = RECIPES["notebook"]
    at = {0: 0.01, 24.99: 0.01, 25.001: 1e-3, 49.99: 1e-3, 50.001: 1e-4, 75.001: 1e-5, 89.99: 1e-5}
    for epoch, rate in at.items():
        assert learning_rate(notebook, epoch) == pytest.approx(rate), epoch
    by_epochs = replace(notebook, epochs=10, milestones=(4.0, 8.0))
    assert [learning_rate(by_epochs, epoch) for epoch in (3.9, 4.0, 8.0)] == pytest.approx([0.01, 1e-3, 1e-4])
    cosine = Recipe(epochs=10, batch=1, lr=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(cosine, epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more: 0"),
        ({"batch": 0}, "batch must be 1 or more: 0"),
        ({"lr": math.nan}, "lr must be above 0: nan"),
        ({"momentum": 1.0}, "momentum must be from 0 to below 1"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1"),
        ({"views": 11}, "views must be from 1 to 10"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"threads": 0}, "threads must be 1 or more: 0"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"max_minutes": 0.0}, "max_minutes must be above 0"),
        ({"recipe": "secret"}, "no such recipe: secret; choose one of notebook"),
        ({"freeze": "all"}, "no such freeze: all; choose one of none, features"),
        ({"schedule": "linear"}, "no such schedule: linear"),
        ({"device": "tpu"}, "no such device: tpu"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TrainSettings(), **change).resolved()


def test_recipe_is_chosen_by_freeze_and_data_and_overridden() -> None:
    assert TrainSettings().resolved() == RECIPES["synthetic"]
    assert TrainSettings(data="x").resolved() == RECIPES["notebook"]
    assert TrainSettings(data="x", freeze="features").resolved() == RECIPES["frozen"]
    own = TrainSettings(data="x", lr=0.5, dropout=0.0, rescale=True).resolved()
    assert own == replace(RECIPES["notebook"], lr=0.5, dropout=0.0, rescale=True)
    for recipe in (TrainSettings(milestones=(0.5,)), TrainSettings(data="x", freeze="features")):
        assert TrainSettings.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


# --- a run --------------------------------------------------------------------------------------------------------------


def test_run_leaves_a_checkpoint_that_says_everything(real: TrainSettings, image_folder: Path) -> None:
    result = run_training(replace(real, lr=1e-4))
    assert result.complete
    assert result.run.name == f"{image_folder.name}-two-tower"
    assert sorted(path.name for path in result.run.iterdir()) == ["history.json", "model.safetensors"]
    checkpoint = load_checkpoint(result.checkpoint)
    info = checkpoint.info
    assert (info.architecture, info.classes) == ("two-tower", ("blue", "green", "red", "yellow"))
    assert info.preprocessing == preset("imagenet-227")
    assert info.recipe["lr"] == 1e-4
    assert info.recipe["milestones"] == list(RECIPES["notebook"].milestones)
    assert info.recipe["seed"] == 0
    train_images, val_images = reopen(info.data["source"]), reopen(info.data["val"]["source"])
    assert info.data["hash"] == train_images.content_hash() == open_split(image_folder, "train").content_hash()
    assert (len(train_images), len(val_images)) == (info.data["images"], info.data["val"]["images"]) == (24, 12)
    assert "torch" in info.tools

    history = json.loads((result.run / "history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [1, 2]
    assert all(row["images_per_s"] > 0 and math.isfinite(row["loss"]) for row in history["epochs"])
    with open_session(result.checkpoint) as session:
        again = evaluate(session, val_images)
    assert again.top1 == info.metrics["top1"] == result.best.top1
    assert again.loss == pytest.approx(info.metrics["val_loss"], rel=1e-4)
    assert newest_checkpoint(result.run.parent) == result.checkpoint


def test_runs_never_write_into_one_another(settings: TrainSettings) -> None:
    runs = Path(settings.runs)
    first = train._new_folder(settings)
    assert [train._new_folder(settings).name for _ in range(2)] == [f"{first.name}-2", f"{first.name}-3"]
    train._new_folder(replace(settings, name="mine"))
    with pytest.raises(OutputError, match=r"already there: .*mine; choose another --name"):
        train._new_folder(replace(settings, name="mine"))
    for name in ("../x", ".x", "a/b", ""):
        with pytest.raises(UserError, match="plain file name"):
            train._new_folder(replace(settings, name=name))
    (runs / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write, .*file"):
        train._new_folder(replace(settings, runs=str(runs / "file")))


@pytest.mark.parametrize("steps", [1, 2, 3])  # within the first epoch, and at its end
@pytest.mark.parametrize("init", ["kaiming", "paper"])
def test_resumed_run_is_the_undisturbed_one_bit_for_bit(settings: TrainSettings, steps: int, init: str) -> None:
    settings = replace(settings, init=init)
    check_resumed(settings, steps)


def test_resumed_run_of_a_real_network_is_the_undisturbed_one(real: TrainSettings) -> None:
    check_resumed(replace(real, lr=1e-4), 2)


def check_resumed(settings: TrainSettings, steps: int) -> None:
    undisturbed = run_training(settings)
    with pytest.raises(InterruptedRunError, match=r"stopped in epoch 1 of 2; go on with: .*--resume .*-2") as caught:
        run_training(settings, reporter=Stopper(steps))
    assert caught.value.exit_code == 130
    stopped = Path(settings.runs) / f"{undisturbed.run.name}-2"
    assert (stopped / "last.safetensors").is_file()
    resumed = resume(stopped)
    assert resumed.complete
    assert same_weights(resumed.checkpoint, undisturbed.checkpoint)
    assert resumed.best == replace(
        undisturbed.best, images_per_s=resumed.best.images_per_s, seconds=resumed.best.seconds
    )
    for one, other in zip(resumed.history, undisturbed.history, strict=True):
        assert (one.loss, one.accuracy, one.val_loss, one.lr) == (other.loss, other.accuracy, other.val_loss, other.lr)
    assert not (stopped / "last.safetensors").exists()
    with pytest.raises(CheckpointError, match="finished, nothing is left to resume"):
        resume(stopped)


def test_frozen_run_resumes_with_its_own_filters(settings: TrainSettings) -> None:
    frozen = replace(settings, freeze="features", rescale=True)
    undisturbed = run_training(frozen)
    with pytest.raises(InterruptedRunError):
        run_training(frozen, reporter=Stopper(3 + 2))  # two views and validation are reported before the steps
    assert (Path(settings.runs) / f"{undisturbed.run.name}-2" / "last.safetensors").is_file()
    assert same_weights(resume(Path(settings.runs) / f"{undisturbed.run.name}-2").checkpoint, undisturbed.checkpoint)


def test_seed_decides_the_weights(settings: TrainSettings) -> None:
    one_epoch = replace(settings, epochs=1)
    paths = [run_training(replace(one_epoch, seed=seed)).checkpoint for seed in (0, 0, 1)]
    assert same_weights(paths[0], paths[1])
    assert not same_weights(paths[0], paths[2])


def test_time_limit_ends_the_run_with_a_checkpoint(settings: TrainSettings) -> None:
    result = run_training(replace(settings, max_minutes=1e-6))
    assert not result.complete
    assert result.checkpoint.is_file()
    assert (result.run / "last.safetensors").is_file()
    assert resume(result.run).complete


def test_ctrl_c_waits_for_the_end_of_the_step(settings: TrainSettings) -> None:
    taken = []

    def press(model: nn.Module, inputs: Any, output: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        taken.append("the step went on")

    run = train._Run(settings, QuietReporter())
    folder = train._new_folder(settings)
    run.prepare(folder)
    run.model.fc8.register_forward_hook(press)
    with pytest.raises(InterruptedRunError):
        run.go()
    assert taken == ["the step went on"]
    assert run.step == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_killed_run_leaves_no_half_file(real: TrainSettings) -> None:
    code = (
        "import os, sys, signal, safetensors.torch as s\n"
        "from alexnet_edge import train\n"
        "real = train.save_file\n"
        "def save(tensors, path, metadata):\n"
        "    real(tensors, path, metadata=metadata)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.save_file = save\n"
        "train.SAVE_INTERVAL_S = 0\n"
        "train.train(train.TrainSettings(**eval(sys.argv[1])))\n"
    )
    answer = subprocess.run([sys.executable, "-c", code, repr(real.to_json())], capture_output=True, text=True)
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    (folder,) = Path(real.runs).iterdir()
    assert not (folder / "last.safetensors").exists()
    with pytest.raises(CheckpointError, match="no interrupted run here"):
        resume(folder)


def test_damaged_or_foreign_resume_file(
    settings: TrainSettings, tmp_path: Path, tiny_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(CheckpointError, match="no interrupted run here"):
        resume(tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="the resume file is damaged"):
        resume(tmp_path)
    shutil.copy(tiny_checkpoint(), path)
    with pytest.raises(CheckpointError, match="the resume file is damaged"):
        resume(tmp_path)


def test_resume_refuses_changed_images(settings: TrainSettings, image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    with pytest.raises(InterruptedRunError):
        run_training(replace(settings, data=str(copy)), reporter=Stopper(1))
    (copy / "train/red/0.jpg").unlink()
    with pytest.raises(DataError, match="not those the run began with"):
        resume(Path(settings.runs) / "copy-tiny")


def test_divergence_names_the_step_and_the_checkpoint(settings: TrainSettings) -> None:
    with pytest.raises(DivergedError, match=r"the loss is nan|the loss is inf|not finite") as caught:
        run_training(replace(settings, lr=1e30, schedule="steps", epochs=3))
    assert caught.value.exit_code == 1
    assert "learning rate 1e+30" in str(caught.value) or "after epoch" in str(caught.value)
    assert "no checkpoint was written" in str(caught.value)
    assert list(Path(settings.runs).iterdir()) == [], "no empty folder is left"


def test_divergence_after_a_good_epoch_keeps_its_checkpoint(settings: TrainSettings) -> None:
    class Poison(QuietReporter):
        def start(self, description: str, total: int | None) -> None:
            if description == "Epoch 2/2":
                with torch.no_grad():
                    run.model.fc7.weight.fill_(math.nan)

    run = train._Run(settings, Poison())
    run.prepare(train._new_folder(settings))
    with pytest.raises(
        DivergedError, match=r"loss is nan in epoch 2, step 1, .*checkpoint so far is .*model\.safetensors"
    ):
        run.go()
    assert load_checkpoint(run.folder / "model.safetensors").info.metrics["epoch"] == 1


def test_bad_images_in_training(settings: TrainSettings, image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    (copy / "train/red/1.jpg").write_bytes(b"broken")
    (copy / "val/blue/0.jpg").write_bytes(b"broken")
    broken = replace(settings, data=str(copy), epochs=1)
    with pytest.raises(ImageError, match=r"red/1\.jpg"):
        run_training(broken)
    assert list(Path(settings.runs).iterdir()) == []
    for freeze in ("none", "features"):
        result = run_training(replace(broken, on_bad_image="skip", freeze=freeze))  # type: ignore[arg-type]
        assert len(result.skipped) == 2
        assert "red/1.jpg" in result.skipped[0]
        assert load_checkpoint(result.checkpoint).info.data["skipped"] == list(result.skipped)


# --- first weights ------------------------------------------------------------------------------------------------------


def filters(path: Path, name: str = "two-tower") -> Path:
    random = np.random.default_rng(3)
    convolutions = [layer for layer in architecture(name).layers if layer.kind == "conv"]
    np.savez(
        path, **{layer.name: random.normal(0, 0.05, layer.weight_shape).astype(np.float32) for layer in convolutions}
    )
    return path


def test_frozen_filters_stay_and_the_whole_network_is_saved(real: TrainSettings, tmp_path: Path) -> None:
    path = filters(tmp_path / "filters.npz")
    result = run_training(replace(real, init=str(path), freeze="features", recipe=None, epochs=1))
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.info.preprocessing == preset("caffe-227")
    with np.load(path) as archive:
        assert np.array_equal(checkpoint.weights["conv1.weight"], archive["conv1"][:, ::-1])
        for name in ("conv2", "conv3", "conv4", "conv5"):
            assert np.array_equal(checkpoint.weights[f"{name}.weight"], archive[name])
    with open_session(result.checkpoint) as session:
        images = evaluate(session, reopen(checkpoint.info.data["val"]["source"]))
    assert images.top1 == result.best.top1, "features computed once and the whole network agree"
    assert images.loss == pytest.approx(result.best.val_loss, rel=1e-3)


def test_start_from_a_checkpoint_with_the_same_and_with_other_classes(
    real: TrainSettings, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    weights = load_checkpoint(tiny_checkpoint()).weights
    model, loaded = train._new_model(
        replace(real, init=str(tiny_checkpoint())), architecture("two-tower", 4), QuietReporter()
    )
    assert "fc8" in loaded
    assert all(np.array_equal(value.detach().numpy(), weights[name]) for name, value in model.named_parameters())
    notes: list[str] = []

    class Listener(QuietReporter):
        def note(self, text: str) -> None:
            notes.append(text)

    other, loaded = train._new_model(
        replace(real, init=str(tiny_checkpoint())), architecture("two-tower", 7), Listener()
    )
    assert "fc8" not in loaded
    assert other.fc8.weight.shape == (7, 4096)
    assert np.array_equal(other.fc7.weight.detach().numpy(), weights["fc7.weight"])
    assert "has 4 outputs, not 7" in notes[0]


def test_preprocessing_follows_the_checkpoint_it_starts_from(
    real: TrainSettings, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint())
    path = tmp_path / "caffe.safetensors"
    save_checkpoint(path, checkpoint.weights, replace(checkpoint.info, preprocessing=preset("caffe-227")))
    arch = architecture("two-tower", 4)
    assert train._preprocessing(replace(real, init=str(path)), arch) == preset("caffe-227")
    assert train._preprocessing(replace(real, init=str(path), preprocessing="paper-227"), arch) == preset("paper-227")
    assert train._preprocessing(real, arch) == preset("imagenet-227")
    with pytest.raises(UserError, match="two-tower takes 227x227 pixels, the preprocessing gives 224x224"):
        train._preprocessing(replace(real, preprocessing="imagenet-224"), arch)


def test_wrong_files_to_start_from(real: TrainSettings, tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    for init, arch, reason in [
        (tmp_path / "none.npz", "two-tower", "no such filters file"),
        (tmp_path / "none.pt", "two-tower", "no such weights file"),
        (tmp_path / "none.safetensors", "two-tower", "no such weights file|no such checkpoint"),
        (filters(tmp_path / "f.npz"), "one-tower", r"conv2 is \[256, 48, 5, 5\], one-tower needs"),
        (tiny_checkpoint(), "one-tower", "not the weights of one-tower .*choose the architecture"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            run_training(replace(real, init=str(init), arch=arch))
    assert not Path(real.runs).exists() or list(Path(real.runs).iterdir()) == []


def test_notebook_network_is_trained_on_its_logits(real: TrainSettings) -> None:
    run = train._Run(replace(real, arch="notebook"), QuietReporter())
    run.prepare(Path(real.runs))
    ((x_NCHW, _),) = run.val_feed.batches([0], [CENTRE], 1)
    run.model.eval()
    with torch.inference_mode():
        logits = run.forward(x_NCHW)
        assert torch.allclose(torch.softmax(logits, 1), run.model(x_NCHW))
    assert not torch.allclose(logits.sum(1), torch.ones(1))


# --- learning -----------------------------------------------------------------------------------------------------------


def test_a_step_lowers_the_loss_and_matches_plain_sgd(settings: TrainSettings) -> None:
    """One step equals theta - lr * (gradient + decay * theta), computed here without the package's loop."""
    run = train._Run(replace(settings, dropout=0.0), QuietReporter())
    run.prepare(Path(settings.runs))
    ((x_NCHW, labels_N),) = run.feed.batches(range(0, 24, 3), [CENTRE] * 8, 8)
    run.model.train()
    loss = nn.functional.cross_entropy(run.model.logits(x_NCHW), labels_N)
    (gradient,) = torch.autograd.grad(loss, run.model.fc8.weight)
    before = run.model.fc8.weight.detach().clone()
    run._step(x_NCHW, labels_N, 1e-3)
    expected = before - 1e-3 * (gradient + 5e-4 * before)
    torch.testing.assert_close(run.model.fc8.weight.detach(), expected, rtol=1e-4, atol=1e-7)
    with torch.inference_mode():
        assert nn.functional.cross_entropy(run.model.logits(x_NCHW), labels_N) < loss


@pytest.mark.slow
def test_synthetic_set_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the default run, through the same code, already knows most of the ten classes."""
    monkeypatch.setitem(train.RECIPES, "synthetic", replace(RECIPES["synthetic"], epochs=1))
    monkeypatch.setattr(
        train, "open_split", lambda data, split, class_list: synthetic(split, count=480 if split == "train" else 100)
    )
    result = run_training(TrainSettings(runs=str(tmp_path)))
    assert result.best.top1 >= 0.5
    assert result.history[-1].val_loss < math.log(10) * 0.75


# --- progress -----------------------------------------------------------------------------------------------------------


def test_progress_in_a_log_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    stream = StringIO()
    with ConsoleReporter(Console(file=stream, width=20)) as reporter:
        reporter.start("Epoch 1/2", 10)
        reporter.update(5, "loss [0.5]")
        reporter.finish("done")
        reporter.start("Images", None)
        reporter.update(3)
        reporter.note("a note")
    first, done, images, note = stream.getvalue().splitlines()
    assert first.startswith("Epoch 1/2: 5/10, loss [0.5], ")
    assert first.endswith(" s left")
    assert done.startswith("Epoch 1/2: done, ")
    assert (images, note) == ("Images: 3", "a note")


def test_progress_on_a_terminal_is_a_bar_that_goes_away() -> None:
    stream = StringIO()
    console = Console(file=stream, force_terminal=True, width=100)

    def work() -> None:
        with ConsoleReporter(console) as reporter:
            reporter.start("Epoch 1/2", 10)
            reporter.update(10, "loss 0.5")
            assert reporter._progress is not None
            reporter._progress.refresh()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    text = stream.getvalue()
    assert "10/10" in text
    assert "loss 0.5" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is shown again"
