"""The settings of a training run and its recipes, as data. Needs no torch.

`TrainSettings` has every option of `alexnet-edge train`: those of the run, and the numbers that a recipe decides where they
are not set. `settings.resolved()` is the complete `Recipe`.

Sources: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012),
sections 4 and 5; the reference scripts of torchvision, https://github.com/pytorch/vision/tree/main/references.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

from alexnet_edge import records
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

BY_RECIPE: Any = None
"""Default of the numbers that the recipe decides. In a resolved recipe every number is set; only `preprocessing` may be None."""

_DATA = Parameter(group=Group.create_ordered("Data"))
_NETWORK = Parameter(group=Group.create_ordered("Network"))
_RUN = Parameter(group=Group.create_ordered("Run"))
_MACHINE = Parameter(group=Group.create_ordered("Machine"))
_RECIPE = Parameter(group=Group.create_ordered("Recipe (numbers that are not set come from --recipe)"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The numbers of a training run. Counts of images and steps are of all processes together."""

    epochs: Annotated[int, _RECIPE] = BY_RECIPE
    """Times that every image is seen."""
    batch: Annotated[int, _RECIPE] = BY_RECIPE
    """Images per step, over all processes."""
    accumulate: Annotated[int, _RECIPE] = BY_RECIPE
    """Parts in which each process computes its share of a batch, to save memory; the gradients are summed."""
    lr: Annotated[float, _RECIPE] = BY_RECIPE
    """Learning rate at the start, after the warm-up."""
    schedule: Annotated[Schedule, _RECIPE] = BY_RECIPE
    """`steps` divides the rate by 10 at each milestone, `plateau` when the validation error stops falling; `cosine` lowers it
    to 0."""
    milestones: Annotated[tuple[float, ...], _RECIPE] = BY_RECIPE
    """Where `steps` divides: shares of the run up to 1, epochs above 1."""
    patience: Annotated[int, _RECIPE] = BY_RECIPE
    """Epochs without a lower validation error after which `plateau` divides."""
    reductions: Annotated[int, _RECIPE] = BY_RECIPE
    """Times that `plateau` divides at most."""
    warmup: Annotated[float, _RECIPE] = BY_RECIPE
    """Share of the run in which the rate rises from 0."""
    momentum: Annotated[float, _RECIPE] = BY_RECIPE
    """Momentum of the gradient descent."""
    weight_decay: Annotated[float, _RECIPE] = BY_RECIPE
    """Weight decay, of biases too."""
    label_smoothing: Annotated[float, _RECIPE] = BY_RECIPE
    """Share of each label that is spread evenly over all classes, in the training loss only."""
    dropout: Annotated[float, _RECIPE] = BY_RECIPE
    """Share of activations left out before or after fc6 and fc7, as the architecture says."""
    clip: Annotated[float, _RECIPE] = BY_RECIPE
    """Largest norm of the gradient; a larger one is scaled down to it. 0: no limit."""
    ema: Annotated[float, _RECIPE] = BY_RECIPE
    """Share of the run over which the weights are averaged exponentially; the average is validated and kept. 0: no average."""
    first_weights: Annotated[FirstWeights, _RECIPE] = BY_RECIPE
    """First weights of layers that are not read from a file."""
    rescale: Annotated[bool, _RECIPE] = BY_RECIPE
    """Fit these first weights to a sample of the data."""
    preprocessing: Annotated[str | None, _RECIPE] = BY_RECIPE
    """Name of the preprocessing [that of the file to start from, or the architecture's]."""
    lighting_sigma: Annotated[float, _RECIPE] = BY_RECIPE
    """Standard deviation of the random shift along the principal components of the colours (section 4.1 of the paper). 0: none."""
    freeze: Annotated[Freeze, _RECIPE] = BY_RECIPE
    """`features` keeps conv1 to conv5 as they are and computes their output once."""
    features_lr: Annotated[float, _RECIPE] = BY_RECIPE
    """Learning rate of conv1 to conv5, as a share of `lr`."""
    views: Annotated[int, _RECIPE] = BY_RECIPE
    """Fixed views of each image, with frozen features."""
    qat: Annotated[Qat, _RECIPE] = BY_RECIPE
    """Train fc6 to fc8 with weights rounded as an export to this type rounds them; needs frozen features."""
    precision: Annotated[Precision, _RECIPE] = BY_RECIPE
    """Of the training steps; weights and validation stay FP32. `auto`: BF16 where the device computes it, else FP16 on GPUs
    and FP32 on processors."""
    channels_last: Annotated[bool, _RECIPE] = BY_RECIPE
    """Keep the channels of a pixel together in memory, which fast convolutions want."""
    compile: Annotated[bool, _RECIPE] = BY_RECIPE
    """Compile the network with `torch.compile`; needs a C++ compiler, on GPUs Triton."""


_NOTEBOOK = Recipe(
    epochs=90,
    batch=128,
    accumulate=1,
    lr=0.01,
    schedule="steps",
    milestones=(25 / 90, 50 / 90, 75 / 90),
    patience=5,
    reductions=3,
    warmup=0.0,
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.0,
    dropout=DROPOUT,
    clip=0.0,
    ema=0.0,
    first_weights="kaiming",
    rescale=False,
    lighting_sigma=0.0,
    freeze="none",
    features_lr=1.0,
    views=2,
    qat="none",
    precision="fp32",
    channels_last=False,
    compile=False,
)
_COSINE = replace(_NOTEBOOK, schedule="cosine", warmup=0.05)
_CURRENT = replace(_COSINE, label_smoothing=0.1, rescale=True, precision="auto", channels_last=True)

RECIPES: dict[str, Recipe] = {
    "paper": replace(
        _NOTEBOOK, schedule="plateau", first_weights="paper", preprocessing="paper-227", lighting_sigma=0.1
    ),
    "notebook": _NOTEBOOK,
    "modern": replace(_CURRENT, lr=0.005, clip=20.0, ema=0.02),
    "finetune": replace(_CURRENT, epochs=20, batch=64, lr=0.001, ema=0.05, features_lr=0.1),
    "frozen": replace(_COSINE, epochs=15, lr=0.001, rescale=True, freeze="features"),
    "qat": replace(_COSINE, epochs=5, lr=0.0002, dropout=0.0, freeze="features", qat="int4"),
    "synthetic": replace(_COSINE, epochs=2, batch=16, lr=0.002, dropout=0.0, rescale=True),
}
"""`paper` is section 5 of the paper, with its colour shifts. `notebook` is the seed notebook's. `modern` is current practice
for training from scratch. `finetune` starts from trained filters and trains conv1 to conv5 at a tenth of the rate. `frozen`
trains fc6 to fc8 alone, on features computed once: minutes on a processor. `qat` continues from such a checkpoint with these
weights rounded to INT4. `synthetic` learns the built-in set in about a minute on two cores."""

RECIPE_FIELDS = tuple(entry.name for entry in fields(Recipe))

_MACHINE_SETTINGS = ("device", "threads", "workers", "pool", "augment_on")
CHANGEABLE = ("max_minutes", "save_minutes", "keep", "tensorboard", *_MACHINE_SETTINGS)
"""Settings that may change when a run resumes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings(Recipe):
    """What to train, on which images, and how. Numbers of the recipe that are not set come from `RECIPES`."""

    data: Annotated[str, _DATA] = SYNTHETIC
    """Folder of class folders, or `synthetic`."""
    class_list: Annotated[str | None, _DATA] = None
    """CSV file with `wnid,index,name`, for folders named by WordNet id [classes.csv beside the images]."""
    on_bad_image: Annotated[OnBadImage, _DATA] = "fail"
    """`skip` leaves out images that cannot be used, and lists them."""
    arch: Annotated[str, _NETWORK] = DEFAULT_ARCHITECTURE
    """one-tower, two-tower, torchvision or notebook."""
    init: Annotated[str | None, _NETWORK] = None
    """Start from `torchvision`'s published weights, or from a file: convolution filters (.npz), a checkpoint or a state dict."""
    recipe: Annotated[str | None, _NETWORK] = None
    """paper, notebook, modern, finetune, frozen, qat or synthetic [modern; finetune with --init; synthetic; frozen with
    --freeze features; qat with --qat]."""
    seed: Annotated[int, _NETWORK] = 0
    """Seed of first weights, order, crops and dropout."""
    runs: Annotated[str, _RUN] = "runs"
    """Folder of the training runs."""
    name: Annotated[str | None, _RUN] = None
    """Name of this run's folder [data and architecture, numbered]."""
    max_minutes: Annotated[float | None, _RUN] = None
    """Stop after this many minutes, evaluate and write a snapshot."""
    save_minutes: Annotated[float, _RUN] = 10.0
    """Longest time between two snapshots; each epoch ends with one."""
    keep: Annotated[int, _RUN] = 2
    """Snapshots to keep. 0: one while the run goes on, none when it is complete."""
    tensorboard: Annotated[bool, _RUN] = False
    """Also write curves and first filters for TensorBoard."""
    device: Annotated[Literal["auto", "cpu", "cuda"], _MACHINE] = "auto"
    """Where to train; `auto` is the GPU where there is one."""
    threads: Annotated[int | None, _MACHINE] = None
    """Processor threads [this process's share of the processors it may use]."""
    workers: Annotated[int | None, _MACHINE] = None
    """Readers of images; 0 reads in the training thread [as many as --threads]."""
    pool: Annotated[Pool, _MACHINE] = "threads"
    """What the readers are: `threads`, which share the images kept in memory, or `processes`."""
    augment_on: Annotated[AugmentOn, _MACHINE] = "workers"
    """Where images are mirrored, lit and normalised; `device` sends a quarter of the bytes."""

    def overrides(self) -> dict[str, Any]:
        """The numbers of the recipe that are set here."""
        return {name: getattr(self, name) for name in RECIPE_FIELDS if getattr(self, name) is not None}

    def to_json(self) -> dict[str, Any]:
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in RECIPE_FIELDS}
        return {**own, "overrides": self.overrides()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainSettings:
        """Read what `to_json` wrote.

        Raises:
            KeyError, RecordError: when a setting is missing, unknown or of the wrong kind.
        """
        own = {entry.name: value[entry.name] for entry in fields(cls) if entry.name not in RECIPE_FIELDS}
        return records.convert(cls, {**own, **value["overrides"]}, partial=True)

    def resolved(self) -> Recipe:
        """The complete recipe of this run.

        Raises:
            UserError: when a number is out of its range or a name is unknown.
        """
        name = self.recipe or self._default_recipe()
        if name not in RECIPES:
            raise UserError("no such recipe", value=name, fix=f"choose one of {', '.join(RECIPES)}")
        check_numbers(self)
        recipe = replace(RECIPES[name], **self.overrides())
        if recipe.preprocessing is not None:
            preset(recipe.preprocessing)
        if recipe.qat != "none" and recipe.freeze != "features":
            raise UserError(
                "only fc6 to fc8 are trained with rounded weights", value=recipe.qat, fix="add --freeze features"
            )
        if recipe.accumulate > recipe.batch:
            problem = f"a batch of {recipe.batch} cannot be split into this many parts"
            raise UserError(problem, value=recipe.accumulate, fix="lower it")
        return recipe

    def identity(self) -> dict[str, Any]:
        """The settings that two runs must share to be the same run: all but folder, duration and those of the machine."""
        same = {key: value for key, value in self.to_json().items() if key not in (*CHANGEABLE, "runs", "name")}
        return {**same, "recipe": recipe_json(self.resolved()), "overrides": {}}

    def _default_recipe(self) -> str:
        if self.qat not in (None, "none"):
            return "qat"
        if self.freeze == "features":
            return "frozen"
        if self.init is not None:
            return "finetune"
        return "synthetic" if self.data == SYNTHETIC else "modern"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How `alexnet_edge.training.feed_speed` measures the feed of training."""

    batch: int = 64
    """Images per step."""
    workers: tuple[int, ...] = ()
    """Readers of images, as in 0,2,4; 0 reads in the training thread [the processors]."""
    seconds: float = 3.0
    """Least time of each measurement of each round."""
    rounds: int = 3
    """Times that every way to read is measured."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU where there is one."""
    threads: int | None = None
    """Processor threads of the training step [all]."""


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON has it: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}


_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("above 0", lambda value: 0 < value < math.inf, "lr milestones max_minutes"),
    (
        "0 or more",
        lambda value: 0 <= value < math.inf,
        "reductions weight_decay clip lighting_sigma features_lr seed save_minutes keep workers",
    ),
    ("1 or more", lambda value: 1 <= value < math.inf, "epochs batch accumulate patience threads"),
    ("from 0 to below 1", lambda value: 0 <= value < 1, "warmup momentum label_smoothing dropout ema"),
    ("from 1 to 10", lambda value: 1 <= value <= 10, "views"),
)
"""The ranges of the numbers of `TrainSettings`, and the names of those numbers."""


def check_numbers(settings: TrainSettings) -> None:
    """Check each setting that is a number or a word by itself.

    Raises:
        UserError: when a number is out of its range or a word is not one of its choices.
    """
    for range_text, holds, names in _RANGES:
        for name in names.split():
            value = getattr(settings, name)
            numbers = value if isinstance(value, tuple) else (value,)
            if value is not None and not all(map(holds, numbers)):
                raise UserError(f"{name} must be {range_text}", value=value, fix="change it")
    for name, hint in get_type_hints(TrainSettings).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal and value is not None and value not in get_args(hint):
            raise UserError(f"no such {name}", value=value, fix=f"choose one of {', '.join(get_args(hint))}")
