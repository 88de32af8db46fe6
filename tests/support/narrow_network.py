"""A narrow AlexNet of 1 MB with the eight layers' names and kernels, so that a whole export takes a second.

`sitecustomize()` makes it known to a process that a test starts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_edge.images.preprocess import preset
from alexnet_edge.network import layers
from alexnet_edge.network.checkpoint import Checkpoint, CheckpointInfo, parameter_shapes, save_checkpoint

if TYPE_CHECKING:
    from alexnet_edge.export.exporter import Exporter
    from alexnet_edge.images.datasets import ImageSet

CLASSES = ("blue", "green", "red", "yellow")
_WIDE = layers.architecture("one-tower", len(CLASSES))
_OUTPUTS = (8, 8, 8, 8, 32, 128, 128, len(CLASSES))
_INPUTS = (3, *_OUTPUTS[:4], _OUTPUTS[4] * 36, *_OUTPUTS[5:7])
NARROW = replace(
    _WIDE,
    name="narrow",
    layers=tuple(
        replace(spec, in_channels=before, out_channels=after)
        for spec, before, after in zip(_WIDE.layers, _INPUTS, _OUTPUTS, strict=True)
    ),
)
"""Widths are multiples of 8, as kernels in FP16 want, and of fc6 and fc7 of 128, the block of INT4 weights."""


def write_checkpoint(path: Path) -> Path:
    """A checkpoint with random weights of the variance that keeps activations in range; it records no data."""
    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in parameter_shapes(NARROW).items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        scale = np.float32(np.sqrt(2 / fan_in) if len(shape) > 1 else 0.01)
        weights[name] = rng.standard_normal(shape, np.float32) * scale
    info = CheckpointInfo(architecture=NARROW.name, classes=CLASSES, preprocessing=preset(NARROW.preprocessing))
    save_checkpoint(path, weights, info)
    return path


def exporter_in(folder: Path, checkpoint: Checkpoint, images: ImageSet, **options: Any) -> Exporter:
    """An exporter into `folder / "artifacts"` that is calibrated and proved on `images`."""
    from alexnet_edge.export.exporter import Exporter

    return Exporter(
        checkpoint,
        out=folder / "artifacts",
        proof_images=images,
        calibration_images=images,
        method="minmax",
        cache=folder / "cache",
        **options,
    )


def sitecustomize(folder: Path, *, without: tuple[str, ...] = ()) -> str:
    """The PYTHONPATH of a process that knows the narrow network, and in which the modules `without` are not installed."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from alexnet_edge.network import layers\n"
        "from narrow_network import NARROW\n"
        "layers.ARCHITECTURES[NARROW.name] = NARROW\n",
        encoding="utf-8",
    )
    for name in without:
        (folder / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name={name!r})\n", encoding="utf-8"
        )
    return f"{folder}:{Path(__file__).parent}"
