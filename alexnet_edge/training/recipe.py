"""Recipes: the numbers of a training run, as data. Needs no torch.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012),
sections 4 and 5; the reference scripts of torchvision, https://github.com/pytorch/vision/tree/main/references.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from alexnet_edge.errors import UserError
from alexnet_edge.images.datasets import SYNTHETIC, OnBadImage
from alexnet_edge.images.preprocess import preset
from alexnet_edge.images.reader import AugmentOn, Pool
from alexnet_edge.network.layers import DEFAULT_ARCHITECTURE, DROPOUT

Schedule = Literal["steps", "cosine", "plateau"]
Freeze = Literal["none", "features"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Qat = Literal["none", "int8", "int4"]
FirstWeights = Literal["kaiming", "paper"]

FIRST_WEIGHTS: tuple[FirstWeights, ...] = ("kaiming", "paper")
CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": ("steps", "cosine", "plateau"),
    "freeze": ("none", "features"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "first_weights": FIRST_WEIGHTS,
    "qat": ("none", "int8", "int4"),
}
"""What the fields of a recipe that are words may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The numbers of a training run. Counts of images and steps are of all processes together."""

    epochs: int
    """Times that every image is seen."""
    batch: int
    """Images per step, over all processes."""
    accumulate: int = 1
    """Parts in which each process takes its share of a batch, to save memory; the gradients are summed."""
    lr: float
    """Learning rate at the start, after the warm-up."""
    schedule: Schedule = "steps"
    """`steps` divides the rate by ten at each milestone, `plateau` when the validation error stands still; `cosine` lets it
    fall to zero."""
    milestones: tuple[float, ...] = (25 / 90, 50 / 90, 75 / 90)
    """Where `steps` divides: shares of the run up to 1, or epochs above 1."""
    patience: int = 5
    """Epochs without a lower validation error after which `plateau` divides."""
    reductions: int = 3
    """Times that `plateau` divides at most."""
    warmup: float = 0.0
    """Share of the run in which the rate rises from zero."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, in the training loss only."""
    dropout: float = DROPOUT
    """Share of activations left out before or after fc6 and fc7, as the architecture says."""
    clip: float = 0.0
    """Largest norm of the gradient, which is scaled down to it; 0 for none."""
    ema: float = 0.0
    """Share of the run over which the weights are averaged, exponentially: the average is validated and kept; 0 for none."""
    first_weights: FirstWeights = "kaiming"
    """First weights of layers that are not read from a file: `alexnet_edge.network.model.initialise`."""
    rescale: bool = False
    """Fit these first weights to a sample of the data: `alexnet_edge.training.rescale`."""
    preprocessing: str | None = None
    """Name of the preprocessing; None for that of the file to start from, or the architecture's."""
    lighting_sigma: float = 0.0
    """Standard deviation of the random shift along the principal components of the colours (section 4.1 of the paper)."""
    freeze: Freeze = "none"
    """`features` keeps conv1 to conv5 as they are, and computes what they answer once."""
    features_lr: float = 1.0
    """Learning rate of conv1 to conv5, as a share of `lr`."""
    views: int = 2
    """Fixed views of each image whose features are computed, with frozen features."""
    qat: Qat = "none"
    """Train fc6 to fc8 with their weights rounded as an export to this type rounds them; frozen features are needed. The
    checkpoint holds the rounded ones: `alexnet_edge.training.rounding`."""
    precision: Precision = "fp32"
    """Of the training steps; weights stay FP32, and validation is FP32. `auto` is BF16 where the device computes it, FP16
    on other GPUs, FP32 on other processors."""
    channels_last: bool = False
    """Keep images and filters in memory channel by channel of each pixel, as fast convolutions want them."""
    compile: bool = False
    """Compile the network with `torch.compile`; it needs a C++ compiler, on GPUs Triton."""


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        epochs=90,
        batch=128,
        lr=0.01,
        schedule="plateau",
        first_weights="paper",
        preprocessing="paper-227",
        lighting_sigma=0.1,
    ),
    "notebook": Recipe(epochs=90, batch=128, lr=0.01),
    "modern": Recipe(
        epochs=90,
        batch=128,
        lr=0.005,
        schedule="cosine",
        warmup=0.05,
        label_smoothing=0.1,
        clip=20.0,
        ema=0.02,
        rescale=True,
        precision="auto",
        channels_last=True,
    ),
    "finetune": Recipe(
        epochs=20,
        batch=64,
        lr=0.001,
        schedule="cosine",
        warmup=0.05,
        label_smoothing=0.1,
        ema=0.05,
        rescale=True,
        features_lr=0.1,
        precision="auto",
        channels_last=True,
    ),
    "frozen": Recipe(epochs=15, batch=128, lr=0.001, schedule="cosine", warmup=0.05, rescale=True, freeze="features"),
    "qat": Recipe(
        epochs=5, batch=128, lr=0.0002, schedule="cosine", warmup=0.05, dropout=0.0, freeze="features", qat="int4"
    ),
    "synthetic": Recipe(epochs=2, batch=16, lr=0.002, schedule="cosine", warmup=0.05, dropout=0.0, rescale=True),
}
"""`paper` is section 5 of the paper, with its colour shifts; `notebook` the seed notebook's; `modern` what is done today
from scratch; `finetune` goes on from trained filters, at a tenth of the rate in conv1 to conv5; `frozen` trains fc6 to fc8
alone, on features computed once: minutes on a processor; `qat` goes on from such a checkpoint with their weights rounded to INT4;
`synthetic` learns the built-in set in about a minute on two cores."""

_BY_MACHINE = (
    "runs",
    "name",
    "max_minutes",
    "save_minutes",
    "keep",
    "device",
    "threads",
    "workers",
    "pool",
    "augment_on",
    "tensorboard",
)
"""Settings that may change when a run goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """What to train on what, and how."""

    data: str = SYNTHETIC
    """`synthetic`, or a folder as `alexnet_edge.images.datasets` describes."""
    class_list: str | None = None
    """CSV file with `wnid,index,name`, for folders named by WordNet id."""
    arch: str = DEFAULT_ARCHITECTURE
    """One of `alexnet_edge.network.layers.ARCHITECTURES`."""
    init: str | None = None
    """What to start from: `torchvision` for the weights it publishes, or a file: convolution filters (`.npz`), a checkpoint or
    a state dict; None for new weights."""
    recipe: str | None = None
    """One of `RECIPES`; by default chosen by the data and by `init`."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe that this run has otherwise."""
    seed: int = 0
    """Of the first weights, the order, the views and dropout."""
    runs: str = "runs"
    """Folder of the runs."""
    name: str | None = None
    """Name of this run's folder; by default made from data and architecture, with a number when it is taken."""
    on_bad_image: OnBadImage = "fail"
    """`skip` leaves images out that cannot be used, and lists them."""
    max_minutes: float | None = None
    """Stop after so many minutes, evaluate, and write a snapshot."""
    save_minutes: float = 10.0
    """Longest time between two snapshots; each epoch ends with one, too."""
    keep: int = 2
    """Snapshots kept; 0 keeps one while the run goes on, and none when it is complete."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    """Processor threads; by default this process's share of the processors it may use."""
    workers: int | None = None
    """Readers of images; by default as many as `threads`; 0 reads in the training thread."""
    pool: Pool = "threads"
    """What the readers are: `threads`, which share the images kept in memory, or `processes`."""
    augment_on: AugmentOn = "workers"
    """`device` mirrors, lights and normalises images on the device, which takes a quarter of the bytes."""
    tensorboard: bool = False
    """Write curves and first filters for TensorBoard into the run's folder."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainSettings:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError: when a field is missing or of the wrong kind.
        """
        entries = {entry.name: value[entry.name] for entry in fields(cls)}
        entries["overrides"] = {
            name: tuple(given) if isinstance(given, list) else given for name, given in dict(value["overrides"]).items()
        }
        return cls(**entries)

    def resolved(self) -> Recipe:
        """The recipe with this run's own numbers in it.

        Raises:
            UserError: when a number is out of its range or a name is unknown.
        """
        name = self.recipe or self._default_recipe()
        if name not in RECIPES:
            raise UserError("no such recipe", value=name, fix=f"choose one of {', '.join(RECIPES)}")
        known = [entry.name for entry in fields(Recipe)]
        unknown = [key for key in self.overrides if key not in known]
        if unknown:
            raise UserError("a recipe has no such field", value=unknown[0], fix=f"choose one of {', '.join(known)}")
        recipe = replace(RECIPES[name], **self.overrides)
        _check(recipe, self)
        return recipe

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same one: everything but where, how long and on which machine it runs."""
        same = {key: value for key, value in self.to_json().items() if key not in _BY_MACHINE}
        return {**same, "recipe": recipe_json(self.resolved()), "overrides": {}}

    def _default_recipe(self) -> str:
        if self.overrides.get("qat", "none") != "none":
            return "qat"
        if self.overrides.get("freeze") == "features":
            return "frozen"
        if self.init is not None:
            return "finetune"
        return "synthetic" if self.data == SYNTHETIC else "modern"


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}


def _check(recipe: Recipe, settings: TrainSettings) -> None:
    limits: list[tuple[str, float | None, bool, str]] = [
        ("epochs", recipe.epochs, recipe.epochs >= 1, "1 or more"),
        ("batch", recipe.batch, recipe.batch >= 1, "1 or more"),
        ("accumulate", recipe.accumulate, recipe.accumulate >= 1, "1 or more"),
        ("lr", recipe.lr, 0 < recipe.lr < math.inf, "above 0"),
        ("milestones", min(recipe.milestones, default=1), min(recipe.milestones, default=1) > 0, "above 0"),
        ("patience", recipe.patience, recipe.patience >= 1, "1 or more"),
        ("reductions", recipe.reductions, recipe.reductions >= 0, "0 or more"),
        ("momentum", recipe.momentum, 0 <= recipe.momentum < 1, "from 0 to below 1"),
        ("weight_decay", recipe.weight_decay, 0 <= recipe.weight_decay < math.inf, "0 or more"),
        ("label_smoothing", recipe.label_smoothing, 0 <= recipe.label_smoothing < 1, "from 0 to below 1"),
        ("dropout", recipe.dropout, 0 <= recipe.dropout < 1, "from 0 to below 1"),
        ("clip", recipe.clip, 0 <= recipe.clip < math.inf, "0 or more"),
        ("ema", recipe.ema, 0 <= recipe.ema < 1, "from 0 to below 1"),
        ("warmup", recipe.warmup, 0 <= recipe.warmup < 1, "from 0 to below 1"),
        ("lighting_sigma", recipe.lighting_sigma, 0 <= recipe.lighting_sigma < math.inf, "0 or more"),
        ("features_lr", recipe.features_lr, 0 <= recipe.features_lr < math.inf, "0 or more"),
        ("views", recipe.views, 1 <= recipe.views <= 10, "from 1 to 10"),
        ("seed", settings.seed, settings.seed >= 0, "0 or more"),
        ("save_minutes", settings.save_minutes, settings.save_minutes >= 0, "0 or more"),
        ("keep", settings.keep, settings.keep >= 0, "0 or more"),
        ("threads", settings.threads, settings.threads is None or settings.threads >= 1, "1 or more"),
        ("workers", settings.workers, settings.workers is None or settings.workers >= 0, "0 or more"),
        ("max_minutes", settings.max_minutes, settings.max_minutes is None or settings.max_minutes > 0, "above 0"),
    ]
    for name, value, holds, range_text in limits:
        if not holds:
            raise UserError(f"{name} must be {range_text}", value=value, fix="change it")
    choices = [(name, getattr(recipe, name), known) for name, known in CHOICES.items()]
    choices += [
        ("on_bad_image", settings.on_bad_image, ("skip", "fail")),
        ("device", settings.device, ("auto", "cpu", "cuda")),
        ("pool", settings.pool, ("threads", "processes")),
        ("augment_on", settings.augment_on, ("workers", "device")),
    ]
    for name, chosen, known in choices:
        if chosen not in known:
            raise UserError(f"no such {name}", value=chosen, fix=f"choose one of {', '.join(known)}")
    if recipe.preprocessing is not None:
        preset(recipe.preprocessing)
    if recipe.qat != "none" and recipe.freeze != "features":
        raise UserError(
            "only fc6 to fc8 are trained with rounded weights", value=recipe.qat, fix="add --freeze features"
        )
    if recipe.accumulate > recipe.batch:
        raise UserError(
            f"a batch of {recipe.batch} cannot be taken in so many parts", value=recipe.accumulate, fix="lower it"
        )
