"""What several commands share: their options, and what these are turned into."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from alexnet_edge.errors import UserError

if TYPE_CHECKING:
    from alexnet_edge.artifact import Artifact, Precision
    from alexnet_edge.images.datasets import ImageSet
    from alexnet_edge.network.checkpoint import Checkpoint
    from alexnet_edge.sessions import Session

DeviceChoice = Literal["auto", "cpu", "cuda"]
BadImage = Annotated[
    Literal["skip", "fail"], Parameter(help="Whether an image that cannot be used is skipped, or fails the command.")
]
Json = Annotated[bool, Parameter(name="--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, Parameter(name=("--quiet", "-q"), help="No progress.")]
Threads = Annotated[int | None, Parameter(help="Processor threads [all].")]
Runs = Annotated[Path, Parameter(help="Folder of the training runs.")]
ArtifactsFolder = Annotated[Path, Parameter(name="--artifacts", help="Folder of the artifacts.")]
CheckpointFile = Annotated[
    Path | None, Parameter(help="Checkpoint, or a state dict of torchvision or the notebook [newest in runs/].")
]
Given = Annotated[Mapping[str, str], Parameter(parse=False)]
"""The options on the command line: how each is spelled, by the name of its field."""


def fields_of(group: str = "", *, only: str = "", without: str = "", **more: Any) -> Parameter:
    """Make options of a dataclass's fields: all of them, `only` these, or all `without` those, named in one string.

    `only` must name the parameter that holds the dataclass, too.
    """
    names = "|".join((only or without).split())
    if names:
        more["parse"] = re.compile(f"^(?:{names})$" if only else f"^(?!(?:{names})$)")
    if group:
        more["group"] = _group(group)
    return Parameter(name="*", **more)


@cache
def _group(name: str) -> Group:
    """The group of this name, shown in the order of first use."""
    group: Group = Group.create_ordered(name)
    return group


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """Which images a command looks at."""

    images: str | None = None
    """Folder of images, or `synthetic` [the checkpoint's validation data]."""
    limit: int | None = None
    """Use so many images, evenly spread over the classes."""
    class_list: Path | None = None
    """CSV file with wnid,index,name [classes.csv beside the images]."""

    def open_for(self, checkpoint: Checkpoint, *, limited: bool = True) -> ImageSet:
        """The images that are named, or the checkpoint's validation images; all of them unless `limited`."""
        from alexnet_edge.images.datasets import open_images
        from alexnet_edge.proof.recorded import validation_images

        if self.images is None:
            images = validation_images(checkpoint)
        else:
            images = open_images(self.images, classes=checkpoint.info.classes, class_list=self.class_list)
        return images.spread(self.limit) if limited and self.limit is not None else images


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The network that a command starts from."""

    checkpoint: Path | None = None
    """Checkpoint, or a state dict of torchvision or the notebook [newest in runs/]."""
    runs: Path = Path("runs")
    """Folder of the training runs."""

    def load(self) -> Checkpoint:
        """The checkpoint, or the network in the FP32 ONNX artifact that a board exports from."""
        from alexnet_edge.network.load import load_checkpoint, newest_checkpoint

        path = self.checkpoint or newest_checkpoint(self.runs)
        if path.suffix == ".onnx":
            from alexnet_edge.export.graphs.source import checkpoint_from_onnx

            return checkpoint_from_onnx(path)
        return load_checkpoint(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """How an artifact or a checkpoint runs."""

    device: DeviceChoice = "auto"
    """cpu, cuda, or auto: the GPU for engines, the processor for everything else."""
    threads: int | None = None
    """Processor threads [all]."""
    trust: bool = False
    """Load an engine that has no manifest. It may run code: know where it comes from."""

    def open(self, source: Path) -> Session:
        from alexnet_edge.sessions import open_session

        return open_session(source, device=chosen_device(self.device), threads=self.threads, trust=self.trust)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionFlags:
    """The precision of an artifact, one option for each."""

    fp32: bool = False
    fp16: bool = False
    bf16: bool = False
    int8: bool = False
    """With the calibration of the INT8 file beside --artifact."""
    fp8: bool = False
    int4_fc: bool = False
    int8_int4_fc: bool = False
    """For ONNX Runtime."""

    @property
    def precision(self) -> Precision | None:
        """The one that is named; None without one."""
        names: list[Any] = [name.replace("_", "-") for name in self.__slots__ if getattr(self, name)]
        if len(names) > 1:
            flags = " ".join(f"--{name}" for name in names)
            raise UserError("an artifact has one precision", value=flags, fix="give one of them per command")
        return names[0] if names else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Printing:
    """What a command prints."""

    json: bool = False
    """Print the result as JSON."""
    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"))] = False
    """No progress."""


def chosen_device(device: DeviceChoice) -> Literal["cpu", "cuda"] | None:
    """None where the artifact decides."""
    return None if device == "auto" else device


def artifacts_in(folder: Path) -> list[Path]:
    """Every artifact of a folder that has a manifest; those kept aside after a failed proof are left out."""
    paths = sorted(path.with_suffix("") for path in folder.glob("*.json") if ".failed." not in path.name)
    artifacts = [path for path in paths if path.is_file()]
    if not artifacts:
        raise UserError("no artifacts in", value=f"{folder}/", fix="write them with `alexnet-edge export`")
    return artifacts


def source_of(artifact: Artifact, named: Path | None) -> Checkpoint:
    """The checkpoint that an artifact was exported from, or the one named instead.

    Raises:
        UserError: when it is another network, or has changed since.
    """
    manifest = artifact.manifest
    reference = Source(checkpoint=named or Path(manifest.checkpoint)).load()
    if named is None and reference.sha256 != manifest.checkpoint_sha256:
        raise UserError(
            "the checkpoint is not the one the artifact was exported from",
            value=reference.path,
            fix="name the right one with --checkpoint, or export again",
        )
    if (reference.info.architecture, reference.info.classes) != (manifest.architecture, manifest.classes):
        raise UserError(
            f"the checkpoint is of another network than {artifact.path} "
            f"({manifest.architecture}, {len(manifest.classes)} classes)",
            value=reference.path,
            fix="name the checkpoint that the artifact was exported from",
        )
    return reference


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_result(as_json: bool, value: Any, show: Callable[[], None]) -> None:
    """The value as JSON, or what `show` prints for people."""
    if as_json:
        print_json(value)
    else:
        show()
