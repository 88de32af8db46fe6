"""AlexNet's eight layers with few channels, on images of 67 pixels: a training step takes milliseconds, a snapshot 100 KB.

`known_to_processes(folder)` makes it known to processes that a test starts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.images import preprocess
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.network import layers
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.training import snapshot

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

TINY_PREPROCESSING = Preprocessing(resize=80, crop=67)

QUICK: dict[str, Any] = {"recipe": "notebook", "epochs": 2, "batch": 8, "lr": 1e-3, "workers": 0, "threads": 1}
"""Settings of a run of two epochs on the `image_folder`, three steps each."""


def register() -> None:
    layers.ARCHITECTURES[TINY.name] = TINY
    preprocess.PRESETS[TINY.preprocessing] = TINY_PREPROCESSING


def known_to_processes(folder: Path, first: str = "") -> str:
    """The PYTHONPATH of a process that knows the tiny network; the code `first` runs before anything else."""
    folder.mkdir(exist_ok=True)
    code = f"{first}\nimport tiny_network\ntiny_network.register()\n"
    (folder / "sitecustomize.py").write_text(code, encoding="utf-8")
    return f"{folder}:{Path(__file__).parent}:{Path(__file__).parents[2]}"


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    a, b = load_checkpoint(one).weights, load_checkpoint(other).weights
    return all(np.array_equal(a[name], b[name]) for name in a)


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs ended in the same weights and momentum, and learned the same in every epoch, bit for bit."""
    ends = [snapshot.read(snapshot.newest_first(run)[0]) for run in (one, other)]
    tensors = [{name: value.numpy() for name, value in end.tensors.items()} for end in ends]
    if tensors[0].keys() != tensors[1].keys():
        return False
    rows = [
        [(row["loss"], row["val_loss"], row["top1"], row["lr"], row["gradient_norm"]) for row in end.state["history"]]
        for end in ends
    ]
    return rows[0] == rows[1] and all(np.array_equal(value, tensors[1][name]) for name, value in tensors[0].items())
