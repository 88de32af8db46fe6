"""Training: its arithmetic, its files, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import narrow_network
import numpy as np
import pytest
import torch
from listener import Listener
from rich.console import Console
from torch import nn

from alexnet_edge import progress
from alexnet_edge.cli.show.training import show_training
from alexnet_edge.errors import CheckpointError, DataError, DivergedError, ImageError, OutputError, UserError
from alexnet_edge.images.augment import CENTRE
from alexnet_edge.images.datasets import open_split, reopen, synthetic
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.checkpoint import save_checkpoint
from alexnet_edge.network.layers import architecture
from alexnet_edge.network.load import load_checkpoint, newest_checkpoint
from alexnet_edge.network.model import AlexNet, initialise
from alexnet_edge.progress import ConsoleReporter, QuietReporter
from alexnet_edge.proof.evaluate import evaluate
from alexnet_edge.sessions import open_session
from alexnet_edge.training import loop
from alexnet_edge.training.distributed import World
from alexnet_edge.training.folder import new_folder
from alexnet_edge.training.history import EpochRow, TrainResult
from alexnet_edge.training.learner import Learner, prepare_network, resolved_precision
from alexnet_edge.training.lrn import TrainingLRN
from alexnet_edge.training.recipe import RECIPES, Recipe, TrainSettings
from alexnet_edge.training.rescale import LAST_DEVIATION, rescale
from alexnet_edge.training.run import train as run_training
from alexnet_edge.training.start import first_model, first_preprocessing
from alexnet_edge.training.stop import Stop

MakeCheckpoint = Callable[..., Path]
Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def real(settings: TrainSettings) -> TrainSettings:
    """The short run, of a network with inputs of the real size."""
    return replace(settings, arch="narrow-two-tower", keep=0)


def prepared(settings: TrainSettings, reporter: Any = None) -> Any:
    """A run before its first step."""
    run = loop.TrainingRun(settings, World(), reporter or QuietReporter(), Stop(), 0.0)
    run.prepare(new_folder(settings), None)
    return run


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
    model = AlexNet(architecture("narrow-two-tower", 4))
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
    model = AlexNet(architecture("narrow-notebook", 4))
    initialise(model, "kaiming", seed=0)
    before = model.conv2.weight.detach().clone()
    x_NCHW = torch.randn(4, 3, 227, 227)
    rescale(model, model.logits, x_NCHW, ["conv1", "conv3"])
    assert model.conv1.bias is None
    with torch.inference_mode():
        deviation_C = model.conv1(x_NCHW).std((0, 2, 3))
    assert (deviation_C - 1).abs().max() < 1e-2
    assert torch.equal(model.conv2.weight, before), "only the layers named are touched"


STEP = replace(RECIPES["notebook"], epochs=2, batch=8, lr=1e-3, dropout=0.0)


def tiny_learner(recipe: Recipe, *, steps: int = 10) -> Learner:
    model = AlexNet(narrow_network.TINY.with_classes(4))
    initialise(model, "kaiming", seed=0)
    prepare_network(model, recipe, torch.device("cpu"))
    return Learner(model, recipe, World(), seed=0, steps=steps)


@pytest.fixture(scope="module")
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 67, 67, generator=generator), torch.arange(8) % 4


def take(learner: Learner, batch: Batch, *, rate: float = 1e-3, step: int = 0) -> Any:
    return learner.step(*batch, count=len(batch[1]), rate=rate, place=(0, step))


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in learner.model.named_parameters()}


def test_a_step_is_plain_sgd_with_momentum(batch: Batch) -> None:
    """v = 0.9 v + gradient + decay * theta; theta -= rate * v: computed here without the package's step."""
    learner = tiny_learner(STEP)
    theta = learner.model.fc8.weight
    expected, velocity = theta.detach().clone(), torch.zeros_like(theta)
    for step in range(3):
        learner.model.train()
        loss = nn.functional.cross_entropy(learner.model.logits(batch[0]), batch[1])
        gradients = torch.autograd.grad(loss, list(learner.model.parameters()))
        gradient = gradients[[name for name, _ in learner.model.named_parameters()].index("fc8.weight")]
        velocity = 0.9 * velocity + gradient + 5e-4 * expected
        expected = expected - 1e-3 * velocity
        norm = math.sqrt(sum(float(value.square().sum()) for value in gradients))
        result = take(learner, batch, step=step)
        assert result.loss == pytest.approx(loss.item(), rel=1e-5)
        assert result.gradient_norm == pytest.approx(norm, rel=1e-4)
        torch.testing.assert_close(theta.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("change", [{"accumulate": 3}, {"channels_last": True}])
def test_parts_of_a_batch_and_the_memory_layout_change_no_value(batch: Batch, change: dict[str, Any]) -> None:
    plain, other = tiny_learner(STEP), tiny_learner(replace(STEP, **change))
    last = other.model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == ("channels_last" in change)
    for step in range(3):
        expected, result = take(plain, batch, step=step), take(other, batch, step=step)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert (result.correct, result.count) == (expected.correct, expected.count)
    for name, value in weights_of(plain).items():
        torch.testing.assert_close(weights_of(other)[name], value, rtol=1e-4, atol=1e-6)


def test_label_smoothing_spreads_the_label(batch: Batch) -> None:
    learner = tiny_learner(replace(STEP, label_smoothing=0.2))
    log_NK = torch.log_softmax(learner.model.logits(batch[0]), dim=1).detach()
    right = nn.functional.one_hot(batch[1], 4) * 0.8 + 0.2 / 4
    assert take(learner, batch).loss == pytest.approx(-(right * log_NK).sum(1).mean().item(), rel=1e-5)


def test_clipped_gradient_keeps_its_direction(batch: Batch) -> None:
    plain, clipped = (tiny_learner(replace(STEP, weight_decay=0.0, clip=clip)) for clip in (0.0, 0.01))
    before = weights_of(plain)
    norm = take(plain, batch).gradient_norm
    assert take(clipped, batch).gradient_norm == pytest.approx(norm)
    assert norm > 0.1
    for name, value in before.items():
        step, small = weights_of(plain)[name] - value, weights_of(clipped)[name] - value
        torch.testing.assert_close(small, step * (0.01 / norm), rtol=1e-2, atol=1e-7)


def test_features_learn_at_their_own_rate(batch: Batch) -> None:
    even, low, still = (tiny_learner(replace(STEP, features_lr=share)) for share in (1.0, 0.1, 0.0))
    before = weights_of(even)
    for learner in (even, low, still):
        take(learner, batch)
    for name, value in before.items():
        steps = [weights_of(learner)[name] - value for learner in (even, low, still)]
        share = 0.1 if name.startswith("conv") else 1.0
        torch.testing.assert_close(steps[1], steps[0] * share, rtol=1e-2, atol=1e-7)
        assert bool(steps[2].any()) != name.startswith("conv")


def test_average_of_the_weights_is_the_recurrence(batch: Batch) -> None:
    learner = tiny_learner(replace(STEP, ema=0.5), steps=10)
    expected: torch.Tensor | None = None
    for step in range(4):
        take(learner, batch, rate=0.01, step=step)
        weight = learner.model.fc6.weight.detach().clone()
        decay = 1 - 1 / (0.5 * 10)
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert expected is not None
    torch.testing.assert_close(learner.kept.fc6.weight.detach(), expected)
    assert not torch.equal(learner.kept.fc6.weight, learner.model.fc6.weight)
    learner.kept.eval()
    assert torch.equal(learner.logits(batch[0]), learner.kept.logits(batch[0])), "the average is what is validated"


@pytest.mark.parametrize(("precision", "within"), [("bf16", 0.02), ("fp16", 0.005)])
def test_mixed_precision_is_near_fp32(batch: Batch, precision: Any, within: float) -> None:
    plain, mixed = tiny_learner(STEP), tiny_learner(replace(STEP, precision=precision, channels_last=True))
    types = set()
    mixed.model.conv3.register_forward_hook(lambda _m, _i, y: types.add(y.dtype))
    for step in range(3):
        expected, result = take(plain, batch, step=step), take(mixed, batch, step=step)
        assert result.loss == pytest.approx(expected.loss, rel=within)
        assert result.loss != expected.loss
    assert types == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert all(value.dtype == torch.float32 for value in mixed.model.parameters())
    assert mixed.scaler.is_enabled() == (precision == "fp16")
    mixed.logits(batch[0])
    assert torch.float32 in types, "validation is FP32"


def test_fp16_leaves_out_a_step_that_overflows(batch: Batch) -> None:
    learner = tiny_learner(replace(STEP, precision="fp16"))
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 2.0**60})
    before = weights_of(learner)
    result = take(learner, batch)
    assert math.isfinite(result.loss)
    assert not math.isfinite(result.gradient_norm)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(learner).items())
    assert learner.scaler.get_scale() == 2.0**59


def test_automatic_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, expected in ((["avx2"], "fp32"), (["avx512_bf16"], "bf16"), (["asimddp", "bf16"], "bf16")):
        monkeypatch.setattr("alexnet_edge.training.learner.cpu_features", lambda flags=features: flags)
        assert resolved_precision("auto", torch.device("cpu")) == expected
    assert resolved_precision("fp16", torch.device("cpu")) == "fp16"


def test_dropout_depends_on_the_place_alone(batch: Batch) -> None:
    losses = []
    for step in (0, 0, 1):
        torch.manual_seed(len(losses))
        losses.append(take(tiny_learner(replace(STEP, dropout=0.5)), batch, step=step).loss)
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="no C++ compiler here")
def test_compiled_network_learns_the_same(batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain, compiled = tiny_learner(STEP), tiny_learner(replace(STEP, compile=True))
    for step, count in enumerate((8, 8, 5)):
        part = batch[0][:count], batch[1][:count]
        assert take(compiled, part, step=step).loss == pytest.approx(take(plain, part, step=step).loss, rel=1e-4)
    for name, value in weights_of(plain).items():
        torch.testing.assert_close(weights_of(compiled)[name], value, rtol=1e-3, atol=1e-5)


def test_run_leaves_a_checkpoint_that_says_everything(real: TrainSettings, image_folder: Path) -> None:
    result = run_training(replace(real, lr=1e-4, weight_decay=1e-3))
    assert result.complete
    assert result.run.name == f"{image_folder.name}-narrow-two-tower"
    assert sorted(path.name for path in result.run.iterdir()) == ["history.json", "model.safetensors"]
    info = load_checkpoint(result.checkpoint).info
    assert (info.architecture, info.classes) == ("narrow-two-tower", ("blue", "green", "red", "yellow"))
    assert info.preprocessing == preset("imagenet-227")
    assert (info.recipe["lr"], info.recipe["weight_decay"]) == (1e-4, 1e-3)
    assert info.recipe["milestones"] == list(RECIPES["notebook"].milestones)
    assert (info.recipe["seed"], info.recipe["computed_in"], info.recipe["processes"]) == (0, "fp32", 1)
    train_images, val_images = reopen(info.data["source"]), reopen(info.data["val"]["source"])
    assert info.data["hash"] == train_images.content_hash() == open_split(image_folder, "train").content_hash()
    assert (len(train_images), len(val_images)) == (info.data["images"], info.data["val"]["images"]) == (24, 12)
    assert "torch" in info.tools

    history = json.loads((result.run / "history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [1, 2]
    assert all(row["images_per_s"] > 0 and math.isfinite(row["loss"]) for row in history["epochs"])
    assert all(row["gradient_norm"] > 0 and 0 < row["wait_share"] < 1 for row in history["epochs"])
    assert history["complete"]
    with open_session(result.checkpoint) as session:
        again = evaluate(session, val_images)
    assert again.top1 == info.metrics["top1"] == result.best.top1
    assert again.loss == pytest.approx(info.metrics["val_loss"], rel=1e-4)
    assert newest_checkpoint(result.run.parent) == result.checkpoint


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "synthetic"])
def test_every_recipe_runs(settings: TrainSettings, recipe: str) -> None:
    own: dict[str, Any] = {"epochs": 1, "batch": 8}
    own |= {"paper": {"preprocessing": "tiny-67"}, "qat": {"qat": "int8"}}.get(recipe, {})  # no blocks fit its layers
    result = run_training(replace(settings, recipe=recipe, lr=None, **own))
    checkpoint = load_checkpoint(result.checkpoint)
    assert checkpoint.info.recipe["recipe"] == recipe
    for name, value in asdict(replace(RECIPES[recipe], **own)).items():
        assert checkpoint.info.recipe[name] == (list(value) if isinstance(value, tuple) else value)
    with open_session(result.checkpoint) as session:
        again = evaluate(session, reopen(checkpoint.info.data["val"]["source"]))
    assert again.loss == pytest.approx(result.best.val_loss, rel=1e-3)


def test_runs_never_write_into_one_another(settings: TrainSettings) -> None:
    runs = Path(settings.runs)
    first = new_folder(settings)
    assert [new_folder(settings).name for _ in range(2)] == [f"{first.name}-2", f"{first.name}-3"]
    new_folder(replace(settings, name="mine"))
    with pytest.raises(OutputError, match=r"already there: .*mine; choose another --name"):
        new_folder(replace(settings, name="mine"))
    for name in ("../x", ".x", "a/b", ""):
        with pytest.raises(UserError, match="plain file name"):
            new_folder(replace(settings, name=name))
    (runs / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write, .*file"):
        new_folder(replace(settings, runs=str(runs / "file")))


def test_seed_decides_the_weights(settings: TrainSettings) -> None:
    one_epoch = replace(settings, epochs=1)
    paths = [run_training(replace(one_epoch, seed=seed)).checkpoint for seed in (0, 0, 1)]
    assert narrow_network.same_weights(paths[0], paths[1])
    assert not narrow_network.same_weights(paths[0], paths[2])


def test_plateau_schedule_follows_the_validation(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5, 0.25, 0.25, 0.5, 0.5, 0.0])

    def script(*_args: Any, **_kwargs: Any) -> Any:
        return SimpleNamespace(loss=1.0, top1=1 - next(errors), top5=1.0)

    monkeypatch.setattr(loop, "score", script)
    result = run_training(replace(settings, epochs=6, schedule="plateau", patience=2))
    assert [row.lr for row in result.history] == pytest.approx([1e-3] * 4 + [1e-4] * 2)


def test_divergence_names_step_rate_norm_and_what_was_saved(settings: TrainSettings) -> None:
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf)|not finite") as caught:
        run_training(replace(settings, lr=1e30, epochs=3))
    assert caught.value.exit_code == 1
    for part in ("in epoch 1, step 2, learning rate 1e+30, gradient norm ", "no checkpoint was written"):
        assert part in str(caught.value)
    assert list(Path(settings.runs).iterdir()) == [], "no empty folder is left"


def test_divergence_after_a_good_epoch_names_its_snapshot(settings: TrainSettings) -> None:
    class Poison(QuietReporter):
        def start(self, description: str, total: int | None) -> None:
            if description == "Epoch 2/2":
                with torch.no_grad():
                    run.model.fc7.weight.fill_(math.nan)

    run = prepared(settings, Poison())
    reason = r"loss is nan in epoch 2, step 1, learning rate 0\.0+1, gradient norm nan"
    with pytest.raises(DivergedError, match=reason) as caught:
        run.go()
    snapshot, model = run.folder / "snapshots/epoch-0001-step-000000.safetensors", run.folder / "model.safetensors"
    assert f"the last good snapshot is {snapshot}; the best checkpoint so far is {model}" in str(caught.value)
    assert snapshot.is_file()
    assert load_checkpoint(model).info.metrics["epoch"] == 1


def test_weights_that_are_not_finite_are_never_saved(settings: TrainSettings) -> None:
    run = prepared(replace(settings, save_minutes=0.0))
    with torch.no_grad():
        run.model.fc6.bias[0] = math.inf
    run._write_snapshot()
    assert not (run.folder / "snapshots").exists()


def test_a_loss_that_stays_absurd_or_fp16_that_always_overflows_has_diverged(settings: TrainSettings) -> None:
    run = prepared(settings)
    for _ in range(loop.HOPELESS_STEPS - 1):
        run._check_step(20.0, 1.0, 0.1)
    with pytest.raises(DivergedError, match="the loss stayed above 14 for 50 steps"):
        run._check_step(20.0, 1.0, 0.1)
    run._check_step(1.0, 1.0, 0.1)
    run._check_step(20.0, 1.0, 0.1)
    run = prepared(replace(settings, precision="fp16"))
    run._check_step(1.0, math.inf, 0.1)
    run.learner.scaler.load_state_dict({**run.learner.scaler.state_dict(), "scale": 1e-4})
    with pytest.raises(DivergedError, match=r"FP16 overflows at every scale down to 0\.0001"):
        run._check_step(1.0, math.inf, 0.1)


@pytest.fixture
def broken(settings: TrainSettings, image_folder: Path, tmp_path: Path) -> TrainSettings:
    """The short run on a copy of its images, which may be damaged."""
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    return replace(settings, data=str(copy), on_bad_image="skip")


def test_bad_images_in_training(broken: TrainSettings) -> None:
    for path in ("train/red/1.jpg", "val/blue/0.jpg"):
        (Path(broken.data) / path).write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"red/1\.jpg"):
        run_training(replace(broken, on_bad_image="fail"))
    assert list(Path(broken.runs).iterdir()) == []
    for freeze in ("none", "features"):
        result = run_training(replace(broken, epochs=1, freeze=freeze))
        assert len(result.skipped) == 2
        assert "red/1.jpg" in result.skipped[0]
        assert load_checkpoint(result.checkpoint).info.data["skipped"] == list(result.skipped)


def test_a_batch_whose_images_are_all_skipped_teaches_nothing(broken: TrainSettings, image_folder: Path) -> None:
    for path in (Path(broken.data) / "train").rglob("*.jpg"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="no training image can be used"):
        run_training(broken)
    assert list(Path(broken.runs).iterdir()) == []
    shutil.copy(image_folder / "train/red/0.jpg", Path(broken.data) / "train/red/0.jpg")
    result = run_training(replace(broken, batch=2))
    assert len(result.skipped) == 23
    assert all(row.loss > 0 for row in result.history)


def filters(path: Path, name: str = "narrow-two-tower") -> Path:
    random = np.random.default_rng(3)
    convolutions = [layer for layer in architecture(name).layers if layer.kind == "conv"]
    weights = {layer.name: random.normal(0, 0.05, layer.weight_shape).astype(np.float32) for layer in convolutions}
    np.savez(path, **weights)
    return path


def test_frozen_filters_stay_and_the_whole_network_is_saved(real: TrainSettings, tmp_path: Path) -> None:
    path = filters(tmp_path / "filters.npz")
    result = run_training(replace(real, init=str(path), recipe="frozen", epochs=1))
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
    real: TrainSettings, tiny_checkpoint: MakeCheckpoint
) -> None:
    weights = load_checkpoint(tiny_checkpoint()).weights
    start, recipe = replace(real, init=str(tiny_checkpoint())), real.resolved()
    model, loaded = first_model(start, recipe, architecture("narrow-two-tower", 4), QuietReporter())
    assert "fc8" in loaded
    assert all(np.array_equal(value.detach().numpy(), weights[name]) for name, value in model.named_parameters())
    listener = Listener()
    other, loaded = first_model(start, recipe, architecture("narrow-two-tower", 7), listener)
    assert "fc8" not in loaded
    assert other.fc8.weight.shape == (7, 128)
    assert np.array_equal(other.fc7.weight.detach().numpy(), weights["fc7.weight"])
    assert "has 4 outputs, not 7" in listener.notes[0]


def test_preprocessing_follows_the_checkpoint_it_starts_from(
    real: TrainSettings, tiny_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint())
    path = tmp_path / "caffe.safetensors"
    save_checkpoint(path, checkpoint.weights, replace(checkpoint.info, preprocessing=preset("caffe-227")))
    arch = architecture("narrow-two-tower", 4)
    named = replace(RECIPES["notebook"], preprocessing="paper-227")
    start = replace(real, init=str(path))
    assert first_preprocessing(start, real.resolved(), arch) == preset("caffe-227")
    assert first_preprocessing(start, named, arch) == preset("paper-227")
    assert first_preprocessing(real, real.resolved(), arch) == preset("imagenet-227")
    with pytest.raises(UserError, match="takes 227x227 pixels, the preprocessing gives 224x224: imagenet-224"):
        first_preprocessing(real, replace(named, preprocessing="imagenet-224"), arch)


def test_wrong_files_to_start_from(real: TrainSettings, tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    for init, arch, reason in [
        (tmp_path / "none.npz", "narrow-two-tower", "no such filters file"),
        (tmp_path / "none.pt", "narrow-two-tower", "no such weights file"),
        (tmp_path / "none.safetensors", "narrow-two-tower", "no such weights file|no such checkpoint"),
        (filters(tmp_path / "f.npz", "two-tower"), "one-tower", r"conv2 is \[256, 48, 5, 5\], one-tower needs"),
        (tiny_checkpoint(), "one-tower", "not the weights of one-tower .*choose the architecture"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            run_training(replace(real, init=str(init), arch=arch))
    assert not Path(real.runs).exists() or list(Path(real.runs).iterdir()) == []


def test_notebook_network_is_trained_on_its_logits(real: TrainSettings) -> None:
    run = prepared(replace(real, arch="narrow-notebook", dropout=0.0))
    ((x_NCHW, labels_N),) = run.val_feed.batches([0], [CENTRE], 1)
    logits = run.learner.logits(x_NCHW)
    with torch.inference_mode():
        assert torch.allclose(torch.softmax(logits, 1), run.model.eval()(x_NCHW))
    assert not torch.allclose(logits.sum(1), torch.ones(1))
    loss = nn.functional.cross_entropy(logits, labels_N).item()
    assert run.learner.step(x_NCHW, labels_N, count=1, rate=0.0, place=(0, 0)).loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_synthetic_set_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the default run, through the same code, already knows most of the ten classes."""
    counts = {"train": 480, "val": 100}
    monkeypatch.setattr(loop, "open_split", lambda data, split, class_list: synthetic(split, count=counts[split]))
    result = run_training(TrainSettings(runs=str(tmp_path), epochs=1, keep=0))
    assert result.best.top1 >= 0.5
    assert result.history[-1].val_loss < math.log(10) * 0.75


def test_the_last_line_names_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    row = EpochRow(
        epoch=2, loss=0.5, accuracy=0.75, val_loss=0.25, top1=0.875, top5=1.0, lr=0.01, gradient_norm=1.0,
        images_per_s=9.0, wait_share=0.0, seconds=3.0,
    )  # fmt: skip
    run = Path("runs/[flowers]-two-tower")
    show_training(
        TrainResult(run=run, checkpoint=run / "model.safetensors", best=row, history=(row, row), seconds=7.0,
                    complete=True, skipped=())
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Trained 2 epochs in 7 s. Best: epoch 2, top-1 87.5%, top-5 100.0%, validation loss 0.250.",
        f"Checkpoint: {run}/model.safetensors",
    ]


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

    def work() -> None:
        with ConsoleReporter(Console(file=stream, force_terminal=True, width=100)) as reporter:
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
