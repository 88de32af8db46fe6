"""Training: SGD with momentum, as in section 5 of the paper and in the seed notebook, from images or from frozen features.

A run is a folder. `model.safetensors` is the best epoch by validation top-1, `history.json` every epoch, and, while the
run is not finished, `last.safetensors` all that `resume` needs to go on as if nothing had happened: weights, momentum,
random state and place. It is written every ten minutes, on Ctrl-C and at the time limit, and removed at the end. On a
processor a resumed run ends in the same weights, bit for bit, as one that was never stopped.

Every network is trained on its logits, the `notebook` architecture too: the notebook hands its softmax output to a loss
that takes the softmax itself, which is not copied.

Letters: N batch, C channels, H height, W width, K classes, F features.
"""

from __future__ import annotations

import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import numpy as np

from alexnet_edge.augment import CENTRE, epoch_draws
from alexnet_edge.checkpoint import (
    HISTORY_FILE,
    CheckpointInfo,
    import_weights,
    parameter_shapes,
    read_caffe_filters,
    read_info,
    save_checkpoint,
)
from alexnet_edge.data import SYNTHETIC, OnBadImage, open_split
from alexnet_edge.environment import usable_cpus, versions
from alexnet_edge.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    InterruptedRunError,
    MissingComponentError,
    OutputError,
    UserError,
    needs,
)
from alexnet_edge.evaluate import Evaluation, score
from alexnet_edge.feeds import Feed, ImageFeed, compute_features
from alexnet_edge.files import staged, write_json, writing
from alexnet_edge.layers import DEFAULT_ARCHITECTURE, DROPOUT, LAYER_NAMES, Architecture, architecture
from alexnet_edge.lrn import TrainingLRN
from alexnet_edge.preprocess import FloatArray, Preprocessing, preset
from alexnet_edge.progress import QuietReporter, Reporter

with needs("train"):
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
    from torch import Tensor
    from torch.nn import functional as F

    from alexnet_edge.model import AlexNet, Init, initialise
    from alexnet_edge.rescale import rescale

SCHEMA = 1
MODEL_FILE, LAST_FILE = "model.safetensors", "last.safetensors"
SAVE_INTERVAL_S = 600.0
"""The resume file, half a gigabyte, is written once in so many seconds; the best weights, at most once in a tenth of it."""

RESCALE_SAMPLE = 64
"""Images, evenly spaced in the training set, that the first weights are fitted to."""

Freeze = Literal["none", "features"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The numbers of a training run."""

    epochs: int
    """Times that every image is seen."""
    batch: int
    """Images per step."""
    lr: float
    """Learning rate at the start, after the warm-up."""
    schedule: Literal["steps", "cosine"] = "steps"
    """`steps` divides the rate by ten at each milestone; `cosine` lets it fall to zero."""
    milestones: tuple[float, ...] = (25 / 90, 50 / 90, 75 / 90)
    """Where `steps` divides: shares of the run up to 1, or epochs above 1."""
    warmup: float = 0.0
    """Share of the run in which the rate rises from zero."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dropout: float = DROPOUT
    """Share of activations left out after fc6 and fc7."""
    rescale: bool = False
    """Fit the first weights of every layer that is not read from a file to a sample of the data: `alexnet_edge.rescale`."""
    views: int = 2
    """Fixed views of each image whose features are computed, with frozen features."""


RECIPES: dict[str, Recipe] = {
    "notebook": Recipe(epochs=90, batch=128, lr=0.01),
    "synthetic": Recipe(epochs=2, batch=16, lr=0.002, schedule="cosine", warmup=0.05, dropout=0.0, rescale=True),
    "frozen": Recipe(epochs=15, batch=128, lr=0.001, schedule="cosine", warmup=0.05, rescale=True),
}
"""`notebook` is the seed notebook's, `synthetic` learns the built-in set in about a minute on two processor cores, `frozen`
trains fc6 to fc8 on features computed once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """What to train on what, and how. Fields that are None come from the recipe."""

    data: str = SYNTHETIC
    """`synthetic`, or a folder as `alexnet_edge.data` describes."""
    class_list: str | None = None
    """CSV file with `wnid,index,name`, for folders named by WordNet id."""
    arch: str = DEFAULT_ARCHITECTURE
    """One of `alexnet_edge.layers.ARCHITECTURES`."""
    init: str = "kaiming"
    """`kaiming`, `paper`, or a file: convolution filters (`.npz`), a checkpoint or a state dict."""
    freeze: Freeze = "none"
    """`features` keeps conv1 to conv5 as they are."""
    preprocessing: str | None = None
    """A preset's name; by default that of the file to start from, or the architecture's."""
    recipe: str | None = None
    """One of `RECIPES`; by default chosen by `freeze` and `data`."""
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None
    schedule: Literal["steps", "cosine"] | None = None
    milestones: tuple[float, ...] | None = None
    warmup: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    rescale: bool | None = None
    views: int | None = None
    seed: int = 0
    """Of the first weights, the order, the views and dropout."""
    runs: str = "runs"
    """Folder of the runs."""
    name: str | None = None
    """Name of this run's folder; by default made from data and architecture, with a number when it is taken."""
    on_bad_image: OnBadImage = "fail"
    """`skip` leaves images out that cannot be used, and lists them."""
    max_minutes: float | None = None
    """Stop after so many minutes, evaluate, and write the resume file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """Processor threads; by default every processor this process may use."""
    workers: int | None = None
    """Threads that decode images; by default as many as `threads`; 0 decodes in the training thread."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainSettings:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError: when a field is missing or of the wrong kind.
        """
        entries = {entry.name: value[entry.name] for entry in fields(cls)}
        if entries["milestones"] is not None:
            entries["milestones"] = tuple(entries["milestones"])
        return cls(**entries)

    def resolved(self) -> Recipe:
        """The recipe with this run's own numbers in it.

        Raises:
            UserError: when a number is out of its range or a name is unknown.
        """
        name = self.recipe or (
            "frozen" if self.freeze == "features" else "synthetic" if self.data == SYNTHETIC else "notebook"
        )
        if name not in RECIPES:
            raise UserError("no such recipe", value=name, fix=f"choose one of {', '.join(RECIPES)}")
        own = {entry.name: getattr(self, entry.name) for entry in fields(Recipe)}
        recipe = replace(RECIPES[name], **{key: value for key, value in own.items() if value is not None})
        _check(recipe, self)
        return recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """One line of the history."""

    epoch: int
    """From 1."""
    loss: float
    """Mean training loss over the epoch, with dropout."""
    accuracy: float
    """Share of training images answered rightly as they were seen, 0-1, with dropout."""
    val_loss: float
    top1: float
    """Validation accuracy, 0-1."""
    top5: float
    lr: float
    """Learning rate of the epoch's last step."""
    images_per_s: float
    """Training only, without validation."""
    seconds: float
    """Training and validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """A run that reached its end or its time limit."""

    run: Path
    """The run's folder."""
    checkpoint: Path
    """The best epoch's weights."""
    best: EpochRow
    history: tuple[EpochRow, ...]
    seconds: float
    """Of this call, loading and saving included."""
    complete: bool
    """False when the time limit ended it; `resume` goes on."""
    skipped: tuple[str, ...]
    """What was wrong with each image left out."""

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "best": asdict(self.best),
            "history": [asdict(row) for row in self.history],
            "seconds": self.seconds,
            "complete": self.complete,
            "skipped": list(self.skipped),
        }


def train(settings: TrainSettings, *, reporter: Reporter | None = None) -> TrainResult:
    """Train a network and leave its best weights in a new run folder.

    Raises:
        UserError: when a setting is out of range.
        DataError, ImageError: when the images cannot be used.
        CheckpointError: when the file to start from cannot be used.
        OutputError: when the run folder cannot be made or written.
        DivergedError: when the loss is no longer finite; the message names the step and the best checkpoint so far.
        InterruptedRunError: on Ctrl-C, after the resume file was written.
    """
    settings = replace(
        settings,
        data=settings.data if settings.data == SYNTHETIC else str(Path(settings.data).absolute()),
        init=settings.init if settings.init in ("kaiming", "paper") else str(Path(settings.init).absolute()),
    )
    run = _Run(settings, reporter or QuietReporter())
    folder = _new_folder(settings)
    try:
        run.prepare(folder)
        return run.go()
    except BaseException:
        with suppress(OSError):  # leave no empty folder behind; one with files in it stays
            folder.rmdir()
        raise


def resume(folder: Path, *, max_minutes: float | None = None, reporter: Reporter | None = None) -> TrainResult:
    """Go on with a run that was stopped, from its `last.safetensors`.

    Args:
        folder: the run's folder.
        max_minutes: a new time limit.
        reporter: where progress goes.

    Raises:
        CheckpointError: when there is nothing to resume or the resume file is damaged.
        DataError: when the images are gone or no longer those the run began with.
        Others as `train` does.
    """
    path = folder / LAST_FILE
    if not path.is_file():
        done = (folder / MODEL_FILE).is_file()
        raise CheckpointError(
            "the run is finished, nothing is left to resume" if done else "no interrupted run here",
            value=folder,
            fix="start a new one with `alexnet-edge train`",
        )
    with _undamaged(path):
        with safe_open(path, framework="pt") as stream:
            state = json.loads(stream.metadata()["alexnet-edge"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a mapping)
        if state["schema"] != SCHEMA:
            raise ValueError(f"schema {state['schema']} is not {SCHEMA}")
        settings = TrainSettings.from_json(state["settings"])
    run = _Run(replace(settings, max_minutes=max_minutes), reporter or QuietReporter())
    if state.get("data_hash") != run.images.content_hash():
        raise DataError(
            "the training images are not those the run began with",
            value=settings.data,
            fix="put them back, or start a new run",
        )
    with _undamaged(path):
        run.restore_weights(tensors)  # first: frozen features are computed with them
    run.prepare(folder, restored=True)
    with _undamaged(path):
        run.restore(state, tensors)
    return run.go()


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the resume file is damaged ({type(error).__name__}: {error})",
            value=path,
            fix=f"use {path.parent / MODEL_FILE}, or train again",
        ) from error


class _Run:
    """The state of one run."""

    def __init__(self, settings: TrainSettings, reporter: Reporter) -> None:
        self.started = time.monotonic()
        self.settings = settings
        self.reporter = reporter
        self.recipe = settings.resolved()
        self.threads = settings.threads or usable_cpus()
        torch.set_num_threads(self.threads)
        self.device = _device(settings.device)
        class_list = Path(settings.class_list) if settings.class_list else None
        self.images = open_split(settings.data, "train", class_list=class_list)
        self.val_images = open_split(settings.data, "val", class_list=class_list)
        self.arch = architecture(settings.arch, len(self.images.classes))
        self.spec = _preprocessing(settings, self.arch)
        self.model, self.loaded = _new_model(settings, self.arch, reporter)
        self.model.to(self.device)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = self.recipe.dropout
        if self.device.type == "cpu":
            for name, layer in (("norm1", self.arch.layers[0]), ("norm2", self.arch.layers[1])):
                if layer.lrn:
                    setattr(self.model, name, TrainingLRN(layer.out_channels))
        self.epoch, self.step = 0, 0  # the next step to take: epoch from 0, step within it
        self.loss_sum, self.correct, self.seen = 0.0, 0, 0  # of the epoch so far
        self.history: list[EpochRow] = []
        self.best: EpochRow | None = None
        self.best_weights: dict[str, FloatArray] | None = None  # not yet on disk
        self.last_saved = self.model_saved = -math.inf
        self.folder = Path()

    # --- preparing --------------------------------------------------------------------------------------------------

    def restore_weights(self, tensors: Mapping[str, Tensor]) -> None:
        weights = {name: tensors[f"weights/{name}"] for name, _ in self.model.named_parameters()}
        self.model.load_state_dict(weights)

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over the rest of what `_write_last` wrote: momentum, random state and place."""
        for name, parameter in self._trainable().items():
            if f"momentum/{name}" in tensors:
                buffer = tensors[f"momentum/{name}"].to(self.device)
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        torch.set_rng_state(tensors["random/torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.loss_sum, self.correct, self.seen = float(state["loss_sum"]), int(state["correct"]), int(state["seen"])
        self.history = [EpochRow(**row) for row in state["history"]]
        self.best = EpochRow(**state["best"]) if state["best"] else None

    def prepare(self, folder: Path, *, restored: bool = False) -> None:
        """Open the feeds, fit the first weights unless others follow, and make the optimizer; `folder` is the run's."""
        self.folder = folder
        torch.manual_seed(self.settings.seed)
        workers = self.threads if self.settings.workers is None else self.settings.workers
        images = [
            ImageFeed(each, self.spec, workers=workers, on_bad_image=self.settings.on_bad_image)
            for each in (self.images, self.val_images)
        ]
        self.image_feeds = images
        self.feed: Feed
        self.val_feed: Feed
        self.feed, self.val_feed = images
        self.forward: Callable[[Tensor], Tensor] = self.model.logits
        new = [name for name in LAYER_NAMES if name not in self.loaded]
        if self.settings.freeze == "features":
            if self.recipe.rescale and not restored:
                self._rescale([name for name in new if name.startswith("conv")])
            self.model.eval()
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            for spec in self.arch.layers:
                if spec.kind == "fc":
                    self.model.get_submodule(spec.name).requires_grad_(True)
            width = next(spec.in_channels for spec in self.arch.layers if spec.kind == "fc")
            self.feed, self.val_feed = (
                compute_features(
                    each,
                    self.model.features,
                    width,
                    views=views,
                    batch=64,
                    device=self.device,
                    reporter=self.reporter,
                    description=f"Features, {split}",
                )
                for each, views, split in zip(images, (self.recipe.views, 1), ("train", "val"), strict=True)
            )
            self.forward = self.model.classifier
            new = [name for name in new if name.startswith("fc")]
        if self.recipe.rescale and not restored:
            self._rescale(new)
        self.optimizer = torch.optim.SGD(
            self._trainable().values(),
            lr=self.recipe.lr,
            momentum=self.recipe.momentum,
            weight_decay=self.recipe.weight_decay,
            fused=True,  # one pass over weights, gradient and momentum: a step's cost is memory traffic
        )

    def _rescale(self, layers: Sequence[str]) -> None:
        if not layers:
            return
        count = len(self.feed)
        sample = sorted({place * count // RESCALE_SAMPLE for place in range(RESCALE_SAMPLE)})
        x, _ = next(iter(self.feed.batches(sample, [CENTRE] * len(sample), len(sample))))
        if not len(x):
            raise DataError("no training image can be used", value=self.settings.data, fix="replace them")
        rescale(self.model, self.forward, x.to(self.device), layers)

    def _trainable(self) -> dict[str, torch.nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    # --- training ---------------------------------------------------------------------------------------------------

    def go(self) -> TrainResult:
        self.last_saved = time.monotonic()
        complete = True
        try:
            while self.epoch < self.recipe.epochs and complete:
                complete = self._epoch()
            self._write_model()
        except KeyboardInterrupt as error:
            self._write_model()
            self._write_last()
            raise InterruptedRunError(
                f"stopped in epoch {self.epoch + 1} of {self.recipe.epochs}; "
                f"go on with: alexnet-edge train --resume {self.folder}"
            ) from error
        if complete:
            with writing(self.folder), suppress(FileNotFoundError):
                (self.folder / LAST_FILE).unlink()
        else:
            self._write_last()
            self.reporter.note(f"time limit reached; go on with: alexnet-edge train --resume {self.folder}")
        assert self.best is not None, "every way here leads through a validation"
        return TrainResult(
            run=self.folder,
            checkpoint=self.folder / MODEL_FILE,
            best=self.best,
            history=tuple(self.history),
            seconds=time.monotonic() - self.started,
            complete=complete,
            skipped=self._skipped(),
        )

    def _epoch(self) -> bool:
        """Train to the end of the epoch and validate; False when the time limit came first."""
        count, batch = len(self.feed), self.recipe.batch
        steps = -(-count // batch)
        order = np.random.default_rng((self.settings.seed, self.epoch)).permutation(count).tolist()
        draws = epoch_draws(count, seed=self.settings.seed, epoch=self.epoch)
        begin, seen_before = time.monotonic(), self.seen
        self.reporter.start(f"Epoch {self.epoch + 1}/{self.recipe.epochs}", steps)
        self.model.train()
        skip, in_time = self.step * batch, True
        for x, labels_N in self.feed.batches(order[skip:], draws[skip:], batch):
            with _whole():
                if len(labels_N):
                    self._step(x.to(self.device), labels_N.to(self.device), self._rate(self.step, steps))
                self.step += 1
            elapsed = time.monotonic() - begin
            self.reporter.update(
                self.step,
                f"loss {self.loss_sum / max(1, self.seen):.3f}, accuracy {self.correct / max(1, self.seen):.1%}, "
                f"{(self.seen - seen_before) / elapsed:.0f} images/s",
            )
            if self._out_of_time() and self.step < steps:
                in_time = False
                break
            if time.monotonic() - self.last_saved >= SAVE_INTERVAL_S:
                self._write_last()
        if not self.seen:
            raise DataError("no training image can be used", value=self.settings.data, fix="replace them")
        trained = time.monotonic()
        result = self._validate()
        row = EpochRow(
            epoch=self.epoch + 1,
            loss=self.loss_sum / self.seen,
            accuracy=self.correct / self.seen,
            val_loss=result.loss,
            top1=result.top1,
            top5=result.top5,
            lr=self._rate(self.step - 1, steps),
            images_per_s=(self.seen - seen_before) / (trained - begin),
            seconds=time.monotonic() - begin,
        )
        self._keep_if_best(row)
        if not in_time:
            return False
        with _whole():
            self.epoch, self.step = self.epoch + 1, 0
            self.loss_sum, self.correct, self.seen = 0.0, 0, 0
            self.history.append(row)
        self._write_history()
        self.reporter.finish(
            f"loss {row.loss:.3f}, accuracy {row.accuracy:.1%}, val loss {row.val_loss:.3f}, top-1 {row.top1:.1%}, "
            f"{row.images_per_s:.0f} images/s"
        )
        return not (self._out_of_time() and self.epoch < self.recipe.epochs)

    def _rate(self, step: int, steps: int) -> float:
        return learning_rate(self.recipe, self.epoch + step / steps)

    def _step(self, x: Tensor, labels_N: Tensor, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        y_NK = self.forward(x)
        loss = F.cross_entropy(y_NK, labels_N)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(
                f"the loss is {value} in epoch {self.epoch + 1}, step {self.step + 1}, learning rate {rate:.2g}"
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss_sum += value * len(labels_N)
        self.correct += int((y_NK.argmax(dim=1) == labels_N).sum())
        self.seen += len(labels_N)

    def _validate(self) -> Evaluation:
        self.model.eval()
        outputs, labels = list[Tensor](), list[Tensor]()
        count = len(self.val_feed)
        with torch.inference_mode():
            for x, labels_N in self.val_feed.batches(range(count), [CENTRE] * count, 64):
                if len(labels_N):
                    outputs.append(self.forward(x.to(self.device)).cpu())
                    labels.append(labels_N)
        if not outputs:
            raise DataError("no validation image can be used", value=self.settings.data, fix="replace them")
        y_NK = torch.cat(outputs)
        if not bool(torch.isfinite(y_NK).all()):
            raise self._diverged(f"the outputs after epoch {self.epoch + 1} are not finite")
        return score(y_NK.numpy(), torch.cat(labels).numpy(), classes=self.images.classes, head="logits")

    def _diverged(self, what: str) -> DivergedError:
        self._write_model()
        saved = (
            f"the best checkpoint so far is {self.folder / MODEL_FILE}" if self.best else "no checkpoint was written"
        )
        return DivergedError(f"training diverged: {what}; {saved}; try --lr {self.recipe.lr / 3:.1g}")

    def _out_of_time(self) -> bool:
        limit = self.settings.max_minutes
        return limit is not None and time.monotonic() - self.started >= limit * 60

    def _skipped(self) -> tuple[str, ...]:
        return tuple(str(feed.bad[index]) for feed in self.image_feeds for index in sorted(feed.bad))

    # --- writing ----------------------------------------------------------------------------------------------------

    def _keep_if_best(self, row: EpochRow) -> None:
        """Hold the weights when the epoch is the best (by top-1, then by loss); write them unless that was just done."""
        if self.best is not None and (row.top1, -row.val_loss) <= (self.best.top1, -self.best.val_loss):
            return
        self.best = row
        self.best_weights = {name: value.detach().cpu().numpy().copy() for name, value in self.model.named_parameters()}
        if time.monotonic() - max(self.model_saved, self.started) >= SAVE_INTERVAL_S / 10:
            self._write_model()

    def _write_model(self) -> None:
        if self.best is None or self.best_weights is None:
            return
        info = CheckpointInfo(
            architecture=self.arch.name,
            classes=self.images.classes,
            preprocessing=self.spec,
            recipe={**self.settings.to_json(), **asdict(self.recipe)},
            data={
                "source": self.images.source,
                "hash": self.images.content_hash(),
                "images": len(self.images),
                "val": {
                    "source": self.val_images.source,
                    "hash": self.val_images.content_hash(),
                    "images": len(self.val_images),
                },
                "skipped": list(self._skipped()),
            },
            metrics=asdict(self.best),
            tools=versions(),
        )
        save_checkpoint(self.folder / MODEL_FILE, self.best_weights, info)
        self.best_weights = None
        self.model_saved = time.monotonic()

    def _write_last(self) -> None:
        tensors = {f"weights/{name}": value.detach() for name, value in self.model.named_parameters()}
        for name, parameter in self._trainable().items():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum/{name}"] = buffer
        tensors["random/torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        state = {
            "schema": SCHEMA,
            "settings": self.settings.to_json(),
            "data_hash": self.images.content_hash(),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "seen": self.seen,
            "best": asdict(self.best) if self.best else None,
            "history": [asdict(row) for row in self.history],
        }
        with staged(self.folder / LAST_FILE) as temporary:
            save_file(tensors, temporary, metadata={"alexnet-edge": json.dumps(state)})
        self.last_saved = time.monotonic()

    def _write_history(self) -> None:
        write_json(
            self.folder / HISTORY_FILE,
            {
                "schema": SCHEMA,
                "settings": self.settings.to_json(),
                "recipe": asdict(self.recipe),
                "epochs": [asdict(row) for row in self.history],
                "skipped": list(self._skipped()),
            },
        )


@contextmanager
def _whole() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, so that the state saved is that after a whole step."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The learning rate when `epoch` epochs (with their fraction) are done."""
    share = epoch / recipe.epochs
    if share < recipe.warmup:
        return recipe.lr * max(share / recipe.warmup, 0.01)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (share - recipe.warmup) / (1 - recipe.warmup)))
    passed = sum(epoch >= (mark if mark > 1 else mark * recipe.epochs) for mark in recipe.milestones)
    return recipe.lr / float(10**passed)


def _check(recipe: Recipe, settings: TrainSettings) -> None:
    limits: list[tuple[str, float, bool, str]] = [
        ("epochs", recipe.epochs, recipe.epochs >= 1, "1 or more"),
        ("batch", recipe.batch, recipe.batch >= 1, "1 or more"),
        ("lr", recipe.lr, 0 < recipe.lr < math.inf, "above 0"),
        ("momentum", recipe.momentum, 0 <= recipe.momentum < 1, "from 0 to below 1"),
        ("weight_decay", recipe.weight_decay, 0 <= recipe.weight_decay < math.inf, "0 or more"),
        ("dropout", recipe.dropout, 0 <= recipe.dropout < 1, "from 0 to below 1"),
        ("warmup", recipe.warmup, 0 <= recipe.warmup < 1, "from 0 to below 1"),
        ("views", recipe.views, 1 <= recipe.views <= 10, "from 1 to 10"),
        ("seed", settings.seed, settings.seed >= 0, "0 or more"),
    ]
    if settings.threads is not None:
        limits.append(("threads", settings.threads, settings.threads >= 1, "1 or more"))
    if settings.workers is not None:
        limits.append(("workers", settings.workers, settings.workers >= 0, "0 or more"))
    if settings.max_minutes is not None:
        limits.append(("max_minutes", settings.max_minutes, settings.max_minutes > 0, "above 0"))
    for name, value, holds, range_text in limits:
        if not holds:
            raise UserError(f"{name} must be {range_text}", value=value, fix="change it")
    choices: list[tuple[str, str, tuple[str, ...]]] = [
        ("schedule", recipe.schedule, ("steps", "cosine")),
        ("freeze", settings.freeze, ("none", "features")),
        ("on_bad_image", settings.on_bad_image, ("skip", "fail")),
        ("device", settings.device, ("auto", "cpu", "cuda")),
    ]
    for name, chosen, known in choices:
        if chosen not in known:
            raise UserError(f"no such {name}", value=chosen, fix=f"choose one of {', '.join(known)}")


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingComponentError("torch sees no CUDA GPU here", fix="use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _preprocessing(settings: TrainSettings, arch: Architecture) -> Preprocessing:
    if settings.preprocessing is not None:
        spec = preset(settings.preprocessing)
    elif settings.init.endswith(".npz"):
        spec = preset("caffe-227")
    else:
        spec = preset(arch.preprocessing)
        if settings.init.endswith(".safetensors"):
            with suppress(
                CheckpointError
            ):  # another package's file has no header; `_new_model` reports one that is missing
                spec = read_info(Path(settings.init)).preprocessing
    if spec.crop != arch.input_size:
        raise UserError(
            f"{arch.name} takes {arch.input_size}x{arch.input_size} pixels, the preprocessing gives {spec.crop}x{spec.crop}",
            value=settings.preprocessing,
            fix="choose another preprocessing",
        )
    return spec


def _new_model(settings: TrainSettings, arch: Architecture, reporter: Reporter) -> tuple[AlexNet, set[str]]:
    """The network with its first weights, and the layers whose weights come from a file."""
    model = AlexNet(arch)
    if settings.init in ("kaiming", "paper"):
        initialise(model, cast("Init", settings.init), seed=settings.seed)
        return model, set()
    path = Path(settings.init)
    initialise(model, "kaiming", seed=settings.seed)
    if path.suffix == ".npz":
        weights = read_caffe_filters(path, arch)
    else:
        weights = import_weights(path)
        outputs = len(weights["fc8.weight"])
        if outputs != arch.num_classes:
            reporter.note(f"fc8 of {path} has {outputs} outputs, not {arch.num_classes}: it is trained anew")
            weights = {name: value for name, value in weights.items() if not name.startswith("fc8.")}
        shapes = parameter_shapes(arch)
        other = [name for name, value in weights.items() if tuple(value.shape) != shapes.get(name)]
        if other:
            raise CheckpointError(
                f"not the weights of {arch.name} ({other[0]} is {list(weights[other[0]].shape)})",
                value=path,
                fix="choose the architecture it was trained with, with --arch",
            )
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    return model, {name.partition(".")[0] for name in weights}


def _new_folder(settings: TrainSettings) -> Path:
    """Make the run's folder; a run never writes into another's."""
    runs = Path(settings.runs)
    with writing(runs):
        runs.mkdir(parents=True, exist_ok=True)
    if settings.name is not None:
        names = [settings.name]
        if not re.fullmatch(r"[\w.+-]+", settings.name) or settings.name.startswith("."):
            raise UserError("the run's name must be a plain file name", value=settings.name, fix="use letters and -")
    else:
        stem = re.sub(r"[^\w.+-]+", "-", f"{Path(settings.data).name}-{settings.arch}").strip("-.")
        names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    for name in names:
        with writing(runs / name), suppress(FileExistsError):
            (runs / name).mkdir()
            return runs / name
    raise OutputError("the run folder is already there", value=runs / names[0], fix="choose another --name")
