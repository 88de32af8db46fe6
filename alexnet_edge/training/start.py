"""The start of a run: first weights, new or from a file, and the preprocessing that belongs to them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from alexnet_edge.errors import CheckpointError, UserError, needs
from alexnet_edge.images.preprocess import Preprocessing, preset
from alexnet_edge.network.checkpoint import read_info
from alexnet_edge.network.layers import Architecture
from alexnet_edge.network.load import TORCHVISION, fit_weights, import_weights, read_caffe_filters, torchvision_weights
from alexnet_edge.progress import Reporter
from alexnet_edge.training.recipe import Recipe, TrainSettings

with needs("train"):
    import torch

    from alexnet_edge.network.model import AlexNet, initialise


def first_preprocessing(settings: TrainSettings, recipe: Recipe, arch: Architecture) -> Preprocessing:
    """The recipe's preprocessing, that of the file to start from, or the architecture's, in this order.

    Raises:
        UserError: when it gives images of another size than the architecture takes.
    """
    init = settings.init or ""
    if recipe.preprocessing is not None:
        spec = preset(recipe.preprocessing)
    elif init.endswith(".npz"):
        spec = preset("caffe-227")
    else:
        spec = preset(arch.preprocessing)
        if init.endswith(".safetensors"):
            with suppress(CheckpointError):  # another package's file has no header; `first_model` reports one missing
                spec = read_info(Path(init)).preprocessing
    if spec.crop != arch.input_size:
        sizes = f"takes {arch.input_size}x{arch.input_size} pixels, the preprocessing gives {spec.crop}x{spec.crop}"
        fix = "choose another --preprocessing or --arch"
        raise UserError(f"{arch.name} {sizes}", value=recipe.preprocessing, fix=fix)
    return spec


def first_model(
    settings: TrainSettings, recipe: Recipe, arch: Architecture, reporter: Reporter
) -> tuple[AlexNet, set[str]]:
    """The network with its first weights, and the layers whose weights come from a file.

    Raises:
        UserError: when torchvision's weights are asked for in another architecture.
        CheckpointError: when the file to start from cannot be used.
    """
    model = AlexNet(arch)
    initialise(model, recipe.first_weights, seed=settings.seed)
    if settings.init is None:
        return model, set()
    if settings.init == TORCHVISION and arch.name != TORCHVISION:
        problem = "torchvision's weights are of its own architecture"
        raise UserError(problem, value=arch.name, fix="add --arch torchvision")
    path = torchvision_weights(reporter) if settings.init == TORCHVISION else Path(settings.init)
    if path.suffix == ".npz":
        weights = read_caffe_filters(path, arch)
    else:
        weights, note = fit_weights(import_weights(path), arch, path)
        if note:
            reporter.note(note)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    return model, {name.partition(".")[0] for name in weights}
