"""What several commands share: options, and what they are turned into."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet_edge.errors import UserError

CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Checkpoint, or a state dict of torchvision or the notebook [newest in runs/]"),
]
ImagesOption = Annotated[str | None, typer.Option("--images", help="Folder of images, or `synthetic`")]
ClassListOption = Annotated[
    Path | None, typer.Option("--class-list", help="CSV file with wnid,index,name [classes.csv beside the images]")
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Use so many images, evenly spread over the classes")]
BadImageOption = Annotated[str, typer.Option("--on-bad-image", help="skip or fail")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Processor threads [all]")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, or auto: the GPU for engines, the processor for the rest")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load an engine that has no manifest: it may run code, know where it is from")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of the training runs")]
ArtifactsFolder = Annotated[Path, typer.Option("--artifacts", help="Folder of the artifacts")]


def chosen_device(value: str) -> Any:
    """None where the artifact decides."""
    chosen = choice("--device", value, ("auto", "cpu", "cuda"))
    return None if chosen == "auto" else chosen


def choice(option: str, value: str, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise UserError(f"{option} has no such choice", value=value, fix=f"choose one of {', '.join(allowed)}")
    return value


def artifacts_in(folder: Path) -> list[Path]:
    """Every artifact of a folder that has a manifest; those kept aside after a failed proof are left out."""
    found = sorted(path.with_suffix("") for path in folder.glob("*.json") if ".failed." not in path.name)
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError("no artifacts in", value=f"{folder}/", fix="write them with `alexnet-edge export`")
    return found


def checkpoint_or_onnx(path: Path) -> Any:
    """The `Checkpoint` in a checkpoint file, or in the FP32 ONNX artifact that a board exports from."""
    from alexnet_edge.network.load import load_checkpoint

    if path.suffix == ".onnx":
        from alexnet_edge.export.graphs.source import checkpoint_from_onnx

        return checkpoint_from_onnx(path)
    return load_checkpoint(path)


def refuse_given(context: typer.Context, names: Sequence[str], problem: str, *, fix: str) -> None:
    """Refuse the first of these options that was given, rather than drop it in silence."""
    for parameter in context.command.params:
        source = getattr(context.get_parameter_source(parameter.name or ""), "name", "")
        if parameter.name in names and source == "COMMANDLINE":
            raise UserError(problem, value=parameter.opts[0], fix=fix)


def words_in(given: Sequence[str] | None) -> list[str]:
    return [word.strip() for text in given or () for word in text.split(",") if word.strip()]


def numbers_in(option: str, given: Sequence[str] | None) -> tuple[int, ...]:
    words = words_in(given)
    if given and not words:
        raise UserError(f"{option} names no number", value=" ".join(given) or "''", fix="write it as in 1,8")
    for word in words:
        if not word.isdecimal():
            raise UserError(f"{option} takes whole numbers", value=word, fix="write them as in 1,8")
    return tuple(int(word) for word in words)


def one_precision(asked: Mapping[str, bool]) -> Any:
    """The one precision whose option was given; None without one."""
    precisions = [name for name, wanted in asked.items() if wanted]
    if len(precisions) > 1:
        given = " ".join(f"--{name}" for name in precisions)
        raise UserError("an artifact has one precision", value=given, fix="give one of them per command")
    return precisions[0] if precisions else None


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
