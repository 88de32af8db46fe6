"""AlexNets of about 1 MB with the eight layers' names and kernels, so that an export takes a second and a step milliseconds.

Every process of the tests knows them by name: `known_networks.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_edge.network import layers

if TYPE_CHECKING:
    from alexnet_edge.export.exporter import Exporter
    from alexnet_edge.images.datasets import ImageSet
    from alexnet_edge.network.checkpoint import Checkpoint

CLASSES = ("blue", "green", "red", "yellow")
_OUTPUTS = (8, 8, 8, 8, 32, 128, 128, len(CLASSES))
"""Multiples of 8, as kernels in FP16 want, and of fc6 and fc7 of 128, the block of INT4 weights."""


def narrow(name: str, wide: layers.Architecture) -> layers.Architecture:
    """`wide` with few channels."""
    pixels = wide.layers[5].in_channels // wide.layers[4].out_channels
    inputs = (3, *_OUTPUTS[:4], _OUTPUTS[4] * pixels, *_OUTPUTS[5:7])
    return replace(
        wide,
        name=name,
        layers=tuple(
            replace(spec, in_channels=before, out_channels=after)
            for spec, before, after in zip(wide.layers, inputs, _OUTPUTS, strict=True)
        ),
    )


NARROW = narrow("narrow", layers.architecture("one-tower"))
TINY = replace(
    NARROW,
    name="tiny",
    input_size=67,
    preprocessing="tiny-67",
    summary="AlexNet's eight layers with few channels",
    layers=tuple(
        replace(spec, in_channels=channels, out_channels=12)
        for spec, channels in zip(NARROW.layers, (3, 12, 12, 12, 12, 12, 12, 12), strict=True)
    ),
)
"""67 pixels leave 1 x 1 after the last pooling."""
NETWORKS = {
    network.name: network
    for network in (
        NARROW,
        TINY,
        *(narrow(f"narrow-{name}", layers.architecture(name)) for name in ("two-tower", "torchvision", "notebook")),
    )
}
NARROW_NAMES = tuple(name for name in NETWORKS if name != TINY.name)
"""One of each of the package's architectures."""

QUICK: dict[str, Any] = {"recipe": "notebook", "epochs": 2, "batch": 8, "lr": 1e-3, "workers": 0, "threads": 1}
"""Settings of a run of two epochs on the `image_folder`, three steps each."""


def write_checkpoint(path: Path, arch: layers.Architecture = NARROW) -> Path:
    """A checkpoint with random weights of the variance that keeps activations in range; it records no data."""
    import numpy as np

    from alexnet_edge.images.preprocess import preset
    from alexnet_edge.network.checkpoint import CheckpointInfo, parameter_shapes, save_checkpoint

    rng = np.random.default_rng(0)
    weights = {}
    for name, shape in parameter_shapes(arch.with_classes(len(CLASSES))).items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        scale = np.float32(np.sqrt(2 / fan_in) if len(shape) > 1 else 0.01)
        weights[name] = rng.standard_normal(shape, np.float32) * scale
    info = CheckpointInfo(architecture=arch.name, classes=CLASSES, preprocessing=preset(arch.preprocessing))
    save_checkpoint(path, weights, info)
    return path


def exporter_in(folder: Path, checkpoint: Checkpoint, images: ImageSet, **options: Any) -> Exporter:
    """An exporter into `folder / "artifacts"` that is calibrated and proved on `images`."""
    from alexnet_edge.export.exporter import Exporter
    from alexnet_edge.export.settings import ExportSettings

    settings = ExportSettings(out=folder / "artifacts", method="minmax", cache=folder / "cache", **options)
    return Exporter(checkpoint, settings, proof_images=images, calibration_images=images)


def python_path(folder: Path, *, first: str = "", without: tuple[str, ...] = ()) -> str:
    """The PYTHONPATH of a process that runs the code `first` before anything else and has no modules `without`."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(f"{first}\nimport known_networks\n", encoding="utf-8")
    for name in without:
        (folder / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name={name!r})\n", encoding="utf-8"
        )
    return f"{folder}:{Path(__file__).parent}:{Path(__file__).parents[2]}"


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    import numpy as np

    from alexnet_edge.network.load import load_checkpoint

    a, b = load_checkpoint(first).weights, load_checkpoint(second).weights
    return all(np.array_equal(a[name], b[name]) for name in a)


def same_end(first: Path, second: Path) -> bool:
    """Whether two runs ended in the same weights and momentum, and learned the same in every epoch, bit for bit."""
    import numpy as np

    from alexnet_edge.training import snapshot

    ends = [snapshot.read(snapshot.newest_first(run)[0]) for run in (first, second)]
    tensors = [{name: value.numpy() for name, value in end.tensors.items()} for end in ends]
    if tensors[0].keys() != tensors[1].keys():
        return False
    rows = [
        [(row["loss"], row["val_loss"], row["top1"], row["lr"], row["gradient_norm"]) for row in end.state["history"]]
        for end in ends
    ]
    return rows[0] == rows[1] and all(np.array_equal(value, tensors[1][name]) for name, value in tensors[0].items())
