"""Checkpoints: one safetensors file with the weights, and in its header what is needed to use them.

Weights are float32 arrays named `conv1.weight` ... `fc8.bias`, whatever the architecture. State dicts of
`torchvision.models.alexnet` and of the seed notebook, and Caffe-style convolution filters, are imported.

Source: the safetensors format, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from alexnet_edge.download import download_once
from alexnet_edge.errors import CheckpointError, needs
from alexnet_edge.files import MALFORMED, sha256_file, staged
from alexnet_edge.layers import ARCHITECTURES, LAYER_NAMES, Architecture, architecture
from alexnet_edge.preprocess import FloatArray, Preprocessing, preset

if TYPE_CHECKING:
    import torch

    from alexnet_edge.model import AlexNet
    from alexnet_edge.progress import Reporter

SCHEMA = 1
HISTORY_FILE = "history.json"
"""Every epoch of a training run, beside its checkpoint."""
_HEADER_KEY = "alexnet-edge"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit

Weights = dict[str, FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself."""

    architecture: str
    classes: tuple[str, ...]
    """Class names; position is the network's output index."""
    preprocessing: Preprocessing
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained: every setting."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on: `source`, `hash`, counts; empty for imported weights."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Loss and accuracy at the epoch it was written."""
    tools: Mapping[str, str] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def arch(self) -> Architecture:
        return architecture(self.architecture, len(self.classes))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "architecture": self.architecture,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.to_json(),
            "recipe": dict(self.recipe),
            "data": dict(self.data),
            "metrics": dict(self.metrics),
            "tools": dict(self.tools),
            "created": self.created,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CheckpointInfo:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: when a field is missing or of the wrong kind.
        """
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema {value['schema']} is not {SCHEMA}")
        classes = tuple(value["classes"])
        if not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be a list of names")
        if value["architecture"] not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {value['architecture']}")
        return cls(
            architecture=str(value["architecture"]),
            classes=classes,
            preprocessing=Preprocessing.from_json(value["preprocessing"]),
            recipe=dict(value["recipe"]),
            data=dict(value["data"]),
            metrics=dict(value["metrics"]),
            tools=dict(value["tools"]),
            created=str(value["created"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A loaded checkpoint."""

    path: Path
    sha256: str
    """Of the file it was read from."""
    info: CheckpointInfo
    weights: Weights
    """Float32 arrays in the shapes of `LayerSpec.weight_shape`."""

    def model(self) -> AlexNet:
        """The PyTorch model with these weights, in evaluation mode.

        Raises:
            MissingComponentError: when torch is not installed.
        """
        with needs("train"):
            import torch

            from alexnet_edge.model import AlexNet
        model = AlexNet(self.info.arch)
        model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.weights.items()})
        return model.eval()


def save_checkpoint(path: Path, weights: Mapping[str, FloatArray], info: CheckpointInfo) -> None:
    """Write `weights` and `info` to `path`, whole or not at all.

    Raises:
        CheckpointError: when the weights are not those of `info.architecture`.
        OutputError: when the file cannot be written.
    """
    with needs("export"):
        from safetensors.numpy import save
    check_weights(weights, info.arch, path)
    header = {_HEADER_KEY: json.dumps(info.to_json(), ensure_ascii=False, allow_nan=False)}
    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    with staged(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))  # save_file would hide the reason of a failed write


def read_info(path: Path) -> CheckpointInfo:
    """The header of a checkpoint written by this package; reads no weights and needs no library.

    Raises:
        CheckpointError: when the file is missing, damaged or was not written by this package.
    """
    header = _read_header(path)
    metadata = header.get("__metadata__")
    text = metadata.get(_HEADER_KEY) if isinstance(metadata, dict) else None
    if text is None:
        raise CheckpointError(
            "this safetensors file has no alexnet-edge header",
            value=path,
            fix="give it to `alexnet-edge train --init` to start from its weights",
        )
    try:
        return CheckpointInfo.from_json(json.loads(text))
    except MALFORMED as error:
        raise CheckpointError(
            f"the checkpoint's header is damaged ({error})", value=path, fix="use another checkpoint"
        ) from error


def read_weight(path: Path, name: str) -> FloatArray:
    """One weight of a checkpoint written by this package; reads no other and needs no library.

    Raises:
        CheckpointError: when the file is missing or damaged, or has no such weight.
    """
    header = _read_header(path)
    try:
        entry = header[name]
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} is {entry['dtype']}")
        begin, end = entry["data_offsets"]
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            stream.seek(8 + length + begin)
            values = np.frombuffer(stream.read(end - begin), np.float32)
        return cast("FloatArray", values.reshape(entry["shape"]))
    except (OSError, struct.error, *MALFORMED) as error:
        raise CheckpointError(
            f"{name} cannot be read ({type(error).__name__}: {error})", value=path, fix="use another checkpoint"
        ) from error


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
        weights = _read_safetensors(path)
    check_weights(weights, info.arch, path)
    return Checkpoint(path=path, sha256=sha256_file(path), info=info, weights=weights)


def check_weights(
    weights: Mapping[str, FloatArray], arch: Architecture, path: Path, *, without: str | None = None
) -> None:
    """Compare names and shapes with the architecture's, layer by layer; the layer `without` need not be there.

    Raises:
        CheckpointError: naming every weight that is missing, unknown or of another shape.
    """
    expected = parameter_shapes(arch)
    faults = [f"{name} is missing" for name in expected if name not in weights and name.partition(".")[0] != without]
    faults += [f"{name} is unknown" for name in weights if name not in expected]
    faults += [
        f"{name} is {list(weights[name].shape)}, not {list(shape)}"
        for name, shape in expected.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if faults:
        raise CheckpointError(
            f"not the weights of {arch.name} with {arch.num_classes} classes ({', '.join(faults)})",
            value=path,
            fix="choose the architecture it was trained with, with --arch",
        )
    _check_finite(weights, path)


def _check_finite(weights: Mapping[str, FloatArray], path: Path) -> None:
    broken = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{', '.join(broken)} holds values that are not finite", value=path, fix="use an earlier checkpoint"
        )


def parameter_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in arch.layers:
        shapes[f"{spec.name}.weight"] = spec.weight_shape
        if spec.bias:
            shapes[f"{spec.name}.bias"] = (spec.out_channels,)
    return shapes


# --- importing other people's weights -----------------------------------------------------------------------------------

_TORCHVISION = dict(
    zip(
        [f"features.{index}" for index in (0, 3, 6, 8, 10)] + [f"classifier.{index}" for index in (1, 4, 6)],
        LAYER_NAMES,
        strict=True,
    )
)
_NOTEBOOK = dict(
    zip(
        ("conv1.0", "conv2.0", "conv3.0", "conv4.0", "conv5.0", "fc1.0", "fc2.0", "fc3.0"),
        LAYER_NAMES,
        strict=True,
    )
)


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
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    state = {re.sub(r"(^|\.)((module|_orig_mod)\.)+", r"\1", name): value for name, value in state.items()}
    for dialect in (_TORCHVISION, _NOTEBOOK):
        if all(f"{prefix}.weight" in state for prefix in dialect):
            state = {
                f"{dialect.get(prefix, prefix)}.{leaf}": value
                for (prefix, _, leaf), value in ((name.rpartition("."), value) for name, value in state.items())
            }
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
    note = ""
    if outputs != arch.num_classes:
        weights = {name: value for name, value in weights.items() if not name.startswith("fc8.")}
        note = f"fc8 of {path} has {outputs} outputs, not {arch.num_classes}: it is trained anew"
    check_weights(weights, arch, path, without="fc8" if note else None)
    return dict(weights), note


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
    _check_finite(weights, path)
    return weights


def _read_torch_file(path: Path) -> Weights:
    with needs("train"):
        import torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old and odd files, which are read or refused all the same
            with torch.serialization.safe_globals(
                [argparse.Namespace]
            ):  # torchvision's reference script saves its options
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
    tensors = cast("Mapping[Any, torch.Tensor]", content)
    for name, value in tensors.items():
        if not isinstance(name, str) or not value.is_floating_point() or value.layout != torch.strided:
            raise CheckpointError(
                f"entry {name} is not a plain array of floating point numbers ({value.dtype}, {value.layout})",
                value=path,
                fix="save the state dict of a floating point model",
            )
    return {name: value.detach().to(torch.float32).numpy() for name, value in tensors.items()}


def _read_safetensors(path: Path) -> Weights:
    with needs("export"):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    with suppress(ModuleNotFoundError):
        import ml_dtypes  # noqa: F401 - teaches numpy bfloat16; onnx brings it
    try:
        tensors = load_file(path)
    except (TypeError, AttributeError) as error:
        raise CheckpointError(
            f"its numbers are of a kind that numpy has not ({error})", value=path, fix="convert them to float32"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint is truncated or damaged ({error})", value=path, fix="use another checkpoint"
        ) from error
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError("no such checkpoint", value=path, fix="train one with `alexnet-edge train`")
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("not a safetensors file")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("not a safetensors file")
    except (OSError, struct.error, *MALFORMED) as error:
        raise CheckpointError(
            "not a readable safetensors file", value=path, fix="give a checkpoint written by `alexnet-edge train`"
        ) from error
    return header


def newest_checkpoint(runs: Path) -> Path:
    """The checkpoint written last below the folder `runs`.

    Raises:
        CheckpointError: when there is none.
    """
    found: Sequence[Path] = sorted(runs.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise CheckpointError(
            "no checkpoint in", value=f"{runs}/", fix="run `alexnet-edge train` first, or name one with --checkpoint"
        )
    return found[-1]


def read_history(checkpoint: Path) -> list[dict[str, Any]] | None:
    """The epochs that training wrote beside a checkpoint, or None when there is no readable history."""
    try:
        epochs = json.loads((checkpoint.parent / HISTORY_FILE).read_text(encoding="utf-8"))["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return list(epochs)
