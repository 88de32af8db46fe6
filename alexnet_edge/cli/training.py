"""`alexnet-edge train` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet_edge.cli.common import (
    BadImageOption,
    ClassListOption,
    DeviceOption,
    ImagesOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RunsOption,
    ThreadsOption,
    TrustOption,
    choice,
    chosen_device,
    print_json,
)
from alexnet_edge.errors import UserError


def train_command(
    data: Annotated[str, typer.Option("--data", help="Folder of class folders, or `synthetic`")] = "synthetic",
    arch: Annotated[str, typer.Option("--arch", help="one-tower, two-tower, torchvision or notebook")] = "one-tower",
    init: Annotated[
        str, typer.Option("--init", help="kaiming, paper, or a file: filters (.npz), checkpoint, state dict")
    ] = "kaiming",
    freeze: Annotated[
        str, typer.Option("--freeze", help="none, or features: keep conv1 to conv5 as they are")
    ] = "none",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="notebook, synthetic or frozen [by --freeze and --data]")
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option("--preprocessing", help="Name of a preprocessing [the architecture's]")
    ] = None,
    class_list: ClassListOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="[the recipe's]")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Images per step [the recipe's]")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate [the recipe's]")] = None,
    momentum: Annotated[float | None, typer.Option("--momentum", help="[the recipe's]")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="[the recipe's]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, order, crops and dropout")] = 0,
    max_minutes: Annotated[float | None, typer.Option("--max-minutes", help="Stop after so long; resume later")] = None,
    runs: RunsOption = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    on_bad_image: BadImageOption = "fail",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network; its best weights go to runs/NAME/model.safetensors."""
    from alexnet_edge import console
    from alexnet_edge.train import TrainSettings
    from alexnet_edge.train import resume as resume_run
    from alexnet_edge.train import train as train_run

    with console.reporter(quiet) as reporter:
        if resume is not None:
            result = resume_run(resume, max_minutes=max_minutes, reporter=reporter)
        else:
            settings = TrainSettings(
                data=data,
                class_list=str(class_list) if class_list else None,
                arch=arch,
                init=init,
                freeze=choice("--freeze", freeze, ("none", "features")),
                preprocessing=preprocessing,
                recipe=recipe,
                epochs=epochs,
                batch=batch,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                seed=seed,
                runs=str(runs),
                name=name,
                on_bad_image=choice("--on-bad-image", on_bad_image, ("skip", "fail")),
                max_minutes=max_minutes,
                device=choice("--device", device, ("auto", "cpu", "cuda")),
                threads=threads,
            )
            result = train_run(settings, reporter=reporter)
    if as_json:
        print_json(result.to_json())
    else:
        console.show_training(result)


def evaluate_command(
    model: Annotated[Path | None, typer.Argument(help="Artifact or checkpoint [newest checkpoint in runs/]")] = None,
    images: ImagesOption = None,
    class_list: ClassListOption = None,
    limit: LimitOption = None,
    ten_crop: Annotated[
        bool, typer.Option("--ten-crop", help="Average the softmax over corners, centre and their mirror images")
    ] = False,
    on_bad_image: BadImageOption = "fail",
    device: DeviceOption = "auto",
    trust: TrustOption = False,
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Accuracy, confusions and calibration of a checkpoint or of any artifact that runs here, over all and per class."""
    from alexnet_edge import console
    from alexnet_edge.bench.stats import wilson_interval
    from alexnet_edge.checkpoint import newest_checkpoint
    from alexnet_edge.data import open_for_evaluation, reopen
    from alexnet_edge.evaluate import evaluate
    from alexnet_edge.sessions import open_session

    source = model or newest_checkpoint(runs)
    bad = choice("--on-bad-image", on_bad_image, ("skip", "fail"))
    with open_session(source, device=chosen_device(device), threads=threads, trust=trust) as session:
        if images is not None:
            found = open_for_evaluation(images, classes=session.classes, class_list=class_list)
        else:
            found = reopen(_validation_source(source))
        if limit is not None:
            found = found.spread(limit)
        result = evaluate(session, found, ten_crop=ten_crop, on_bad_image=bad)
    interval = wilson_interval(result.correct, result.count)
    if as_json:
        print_json({"model": str(source), **result.to_json(), "top1_interval": interval})
    else:
        console.show_evaluation(source, result, interval)


def _validation_source(source: Path) -> dict[str, Any]:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.checkpoint import read_info

    checkpoint = source if source.suffix == ".safetensors" else None
    if checkpoint is None and source.suffix not in {".pt", ".pth"}:
        checkpoint = Path(load_artifact(source).manifest.checkpoint)
    recorded = read_info(checkpoint).data.get("val", {}).get("source") if checkpoint is not None else None
    if not recorded:
        raise UserError("it records no validation data", value=source, fix="name a folder of images with --images")
    return dict(recorded)
