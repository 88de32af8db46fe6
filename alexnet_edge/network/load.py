"""Load a checkpoint, or import the weights of torchvision, the seed notebook or Caffe."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_edge.errors import CheckpointError, needs
from alexnet_edge.files import sha256_file
from alexnet_edge.images.preprocess import FloatArray, preset
from alexnet_edge.network.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    Weights,
    check_finite,
    check_weights,
    parameter_shapes,
    read_info,
    read_safetensors,
)
from alexnet_edge.network.download import download_once
from alexnet_edge.network.layers import ARCHITECTURES, LAYER_NAMES, Architecture, architecture

if TYPE_CHECKING:
    from alexnet_edge.progress import Reporter

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")
"""Of the files that `load_checkpoint` reads: this package's, and state dicts saved by PyTorch."""


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or import the state dict of torchvision's AlexNet or of the seed notebook.

    An imported file names neither classes nor data: classes are numbered, the preprocessing is its architecture's.

    Raises:
        CheckpointError: when the file is missing, truncated, damaged or of another network.
    """
    if not path.is_file():
        raise CheckpointError(
            "no such checkpoint", value=path, fix="train one with `alexnet-edge train`, or check the path"
        )
    if path.suffix != ".safetensors":
        weights = import_weights(path)
        arch = recognise(weights, path)
        info = CheckpointInfo(
            architecture=arch.name,
            classes=tuple(f"class {index}" for index in range(arch.num_classes)),
            preprocessing=preset(arch.preprocessing),
        )
    else:
        info = read_info(path)
        weights = read_safetensors(path)
    check_weights(weights, info.arch, path)
    return Checkpoint(path=path, sha256=sha256_file(path), info=info, weights=weights)


_DIALECTS = (
    "features.0 features.3 features.6 features.8 features.10 classifier.1 classifier.4 classifier.6",  # torchvision
    "conv1.0 conv2.0 conv3.0 conv4.0 conv5.0 fc1.0 fc2.0 fc3.0",  # the notebook
)
"""What others call the eight layers, in their order."""


def import_weights(path: Path) -> Weights:
    """Read a state dict (`.pt`, `.pth`, `.safetensors`) and give its entries this package's names.

    Recognised: this package's names, `torchvision.models.alexnet`, the seed notebook, each also inside `state_dict`,
    `model_state_dict` or `model`, with the `module.` of data-parallel training or of an average of weights, and with the
    `_orig_mod.` of `torch.compile`, wherever they stand in a name. Pickles are read with `weights_only=True`.

    Raises:
        CheckpointError: when the file is missing, damaged, or none of these.
    """
    if not path.is_file():
        raise CheckpointError("no such weights file", value=path, fix="check the path")
    state = read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    state = {re.sub(r"(^|\.)((module|_orig_mod)\.)+", r"\1", name): value for name, value in state.items()}
    for dialect in _DIALECTS:
        layer_of = dict(zip(dialect.split(), LAYER_NAMES, strict=True))
        if all(f"{prefix}.weight" in state for prefix in layer_of):
            parts = [(*name.rpartition(".")[::2], value) for name, value in state.items()]
            state = {f"{layer_of.get(prefix, prefix)}.{leaf}": value for prefix, leaf, value in parts}
            break
    if not all(f"{name}.weight" in state for name in LAYER_NAMES):
        raise CheckpointError(
            f"not an AlexNet state dict (its first entries: {', '.join(list(state)[:4]) or 'none'})",
            value=path,
            fix="give one of this package, of torchvision.models.alexnet or of the notebook",
        )
    return state


def fit_weights(weights: Mapping[str, FloatArray], arch: Architecture, path: Path) -> tuple[Weights, str]:
    """The weights that training of `arch` starts from, and a note about what is left out, or "".

    fc8 of another number of classes is left out: it is trained anew.

    Raises:
        CheckpointError: naming every other weight that is missing, unknown or of another shape.
    """
    outputs = len(weights["fc8.weight"])
    if outputs == arch.num_classes:
        check_weights(weights, arch, path)
        return dict(weights), ""
    kept = {name: value for name, value in weights.items() if not name.startswith("fc8.")}
    check_weights(kept, arch, path, without="fc8")
    return kept, f"fc8 of {path} has {outputs} outputs, not {arch.num_classes}: it is trained anew"


def recognise(weights: Mapping[str, FloatArray], path: Path) -> Architecture:
    """The architecture that has weights of these names and shapes.

    Raises:
        CheckpointError: when none has.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    num_classes = next(iter(shapes["fc8.weight"]), 0)
    for name in ARCHITECTURES if num_classes > 0 else ():
        arch = architecture(name, num_classes)
        if parameter_shapes(arch) == shapes:
            return arch
    raise CheckpointError(
        f"AlexNet layers of unknown sizes (conv1 {list(shapes['conv1.weight'])}, conv2 {list(shapes['conv2.weight'])}, "
        f"fc6 {list(shapes['fc6.weight'])}, fc8 {list(shapes['fc8.weight'])})",
        value=path,
        fix="see `alexnet-edge inspect --arch one-tower` for the sizes of each architecture",
    )


TORCHVISION = "torchvision"
"""`--init torchvision` starts from the weights that torchvision publishes for its AlexNet, trained on ImageNet."""

TORCHVISION_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
_TORCHVISION_SHA256 = "7be5be79"  # its first digits: what PyTorch publishes, as part of the name


def torchvision_weights(reporter: Reporter) -> Path:
    """The file of torchvision's published weights: from PyTorch's cache of models, or downloaded into it.

    Raises:
        CheckpointError: when it cannot be downloaded, or is not the file that PyTorch published.
        OutputError: when the cache cannot be written.
    """
    with needs("train"):
        import torch
    path = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_URL.rpartition("/")[2]
    download_once(
        TORCHVISION_URL,
        path,
        sha256=_TORCHVISION_SHA256,
        fix="fetch the file on another machine and give it with --init FILE",
        reporter=reporter,
    )
    if not sha256_file(path).startswith(_TORCHVISION_SHA256):
        raise CheckpointError(
            f"damaged: its SHA-256 does not begin with {_TORCHVISION_SHA256}", value=path, fix="remove it"
        )
    return path


def read_caffe_filters(path: Path, arch: Architecture) -> Weights:
    """Convolution filters of a Caffe network (`.npz` with `conv1` ... `conv5`), as weights with biases of 0.

    Caffe's first layer sees B, G, R: its input channels are reversed here, so that it sees R, G, B. Use them with the
    `caffe-227` preprocessing, which subtracts Caffe's mean on the 0-255 scale.

    Raises:
        CheckpointError: when the file is missing, damaged, or its filters have other shapes than `arch` or are not finite.
    """
    if not path.is_file():
        raise CheckpointError("no such filters file", value=path, fix="check the path")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            filters = {name: np.asarray(archive[name], np.float32) for name in archive.files}
    except Exception as error:  # zip, zlib, tokenizer, ...: numpy raises anything on a damaged archive
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"not a readable .npz file ({reason})", value=path, fix="replace the file") from error
    weights: Weights = {}
    for spec in arch.layers:
        if spec.kind != "conv":
            continue
        if spec.name not in filters or filters[spec.name].shape != spec.weight_shape:
            got = list(filters[spec.name].shape) if spec.name in filters else "missing"
            raise CheckpointError(
                f"{spec.name} is {got}, {arch.name} needs {list(spec.weight_shape)}",
                value=path,
                fix="choose the architecture with --arch (grouped filters are `two-tower`)",
            )
        weight = filters[spec.name]
        weights[f"{spec.name}.weight"] = np.ascontiguousarray(weight[:, ::-1] if spec.name == "conv1" else weight)
        if spec.bias:
            weights[f"{spec.name}.bias"] = np.zeros(spec.out_channels, np.float32)
    check_finite(weights, path)
    return weights


def _read_torch_file(path: Path) -> Weights:
    with needs("train"):
        import torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old and odd files, which are read or refused all the same
            # torchvision's reference script saves its options
            with torch.serialization.safe_globals([argparse.Namespace]):
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "the PyTorch file is damaged, or holds Python objects, which could run code when they are loaded",
            value=path,
            fix="save `model.state_dict()`, not the model",
        ) from error
    except Exception as error:  # torch.load raises anything on a damaged pickle
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"not a readable PyTorch file ({reason})", value=path, fix="replace the file") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping):
        content = {name: value for name, value in content.items() if name != "n_averaged"}  # of torch's AveragedModel
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(
            "the PyTorch file holds no state dict", value=path, fix="save `model.state_dict()`, not the model"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not value.is_floating_point() or value.layout != torch.strided:
            raise CheckpointError(
                f"entry {name} is not a plain array of floating point numbers ({value.dtype}, {value.layout})",
                value=path,
                fix="save the state dict of a floating point model",
            )
    return {name: value.detach().to(torch.float32).numpy() for name, value in content.items()}


def newest_checkpoint(runs: Path) -> Path:
    """The checkpoint written last below the folder `runs`.

    Raises:
        CheckpointError: when there is none.
    """
    checkpoints = list(runs.glob("*/model.safetensors"))
    if not checkpoints:
        raise CheckpointError(
            "no checkpoint in", value=f"{runs}/", fix="run `alexnet-edge train` first, or name one with --checkpoint"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime_ns)
