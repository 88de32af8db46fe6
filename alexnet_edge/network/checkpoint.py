"""Checkpoints: one safetensors file with the weights, and in its header what is needed to use them.

Weights are float32 arrays named `conv1.weight` ... `fc8.bias`, whatever the architecture. State dicts of
`torchvision.models.alexnet` and of the seed notebook, and Caffe-style convolution filters, are imported.

Source: the safetensors format, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from alexnet_edge import records
from alexnet_edge.errors import CheckpointError, needs
from alexnet_edge.files import MALFORMED, staged
from alexnet_edge.images.preprocess import FloatArray, Preprocessing
from alexnet_edge.network.layers import ARCHITECTURES, Architecture, architecture

if TYPE_CHECKING:
    from alexnet_edge.network.model import AlexNet


HISTORY_FILE = "history.json"
"""Every epoch of a training run, beside its checkpoint."""
_HEADER_KEY = "alexnet-edge"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit

Weights = dict[str, FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """What a checkpoint says of itself; in its file every field is there."""

    schema: Literal[1] = 1
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

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture: expected one of {', '.join(ARCHITECTURES)}, got {self.architecture}")
        if not self.classes:
            raise ValueError("classes: expected one name or more, got none")

    @property
    def arch(self) -> Architecture:
        return architecture(self.architecture, len(self.classes))


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

            from alexnet_edge.network.model import AlexNet
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
    header = {_HEADER_KEY: json.dumps(records.to_builtins(info), ensure_ascii=False, allow_nan=False)}
    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    with staged(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))  # save_file would hide the reason of a failed write


def read_info(path: Path) -> CheckpointInfo:
    """The header of a checkpoint written by this package; reads no weights and needs no library.

    Raises:
        CheckpointError: when the file is missing, damaged or was not written by this package.
    """
    header, _ = _read_header(path)
    metadata = header.get("__metadata__")
    text = metadata.get(_HEADER_KEY) if isinstance(metadata, dict) else None
    if text is None:
        raise CheckpointError(
            "this safetensors file has no alexnet-edge header",
            value=path,
            fix="give it to `alexnet-edge train --init` to start from its weights",
        )
    try:
        return records.decode(CheckpointInfo, text)
    except records.RecordError as error:
        raise CheckpointError(
            f"the checkpoint's header is damaged ({error})", value=path, fix="use another checkpoint"
        ) from error


def read_weight(path: Path, name: str) -> FloatArray:
    """One weight of a checkpoint written by this package; reads no other and needs no library.

    Raises:
        CheckpointError: when the file is missing or damaged, or has no such weight.
    """
    header, start = _read_header(path)
    try:
        entry = header[name]
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} is {entry['dtype']}")
        begin, end = entry["data_offsets"]
        with path.open("rb") as stream:
            stream.seek(start + begin)
            values = np.frombuffer(stream.read(end - begin), np.float32)
        return cast("FloatArray", values.reshape(entry["shape"]))
    except (OSError, *MALFORMED) as error:
        raise CheckpointError(
            f"{name} cannot be read ({type(error).__name__}: {error})", value=path, fix="use another checkpoint"
        ) from error


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
    check_finite(weights, path)


def check_finite(weights: Mapping[str, FloatArray], path: Path) -> None:
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


def read_safetensors(path: Path) -> Weights:
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


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where in the file the weights begin."""
    if not path.is_file():
        raise CheckpointError("no such checkpoint", value=path, fix="train one with `alexnet-edge train`")
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= _MAX_HEADER_BYTES else None
        if not isinstance(header, dict):
            raise ValueError("not a safetensors file")
    except (OSError, struct.error, *MALFORMED) as error:
        raise CheckpointError(
            "not a readable safetensors file", value=path, fix="give a checkpoint written by `alexnet-edge train`"
        ) from error
    return header, 8 + length


def read_history(checkpoint: Path) -> list[dict[str, Any]] | None:
    """The epochs that training wrote beside a checkpoint, or None when there is no readable history."""
    try:
        epochs = records.parse((checkpoint.parent / HISTORY_FILE).read_bytes())["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return list(epochs)
