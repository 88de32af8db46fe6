"""`alexnet-edge train` and `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
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
    refuse_given,
    words_in,
)
from alexnet_edge.errors import AlexNetEdgeError, UserError

RECIPE: dict[str, Any] = {"rich_help_panel": "Recipe: what is not given is the recipe's"}


def train_command(
    context: typer.Context,
    data: Annotated[str, typer.Option("--data", help="Folder of class folders, or `synthetic`")] = "synthetic",
    arch: Annotated[str, typer.Option("--arch", help="one-tower, two-tower, torchvision or notebook")] = "one-tower",
    init: Annotated[
        str | None,
        typer.Option(
            "--init", help="Start from torchvision's weights, or a file: filters (.npz), checkpoint, state dict"
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="paper, notebook, modern, finetune, frozen, qat or synthetic [modern; finetune with --init; synthetic; "
            "frozen with --freeze features; qat with --qat]",
        ),
    ] = None,
    class_list: ClassListOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Times every image is seen", **RECIPE)] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Images per step, of all processes", **RECIPE)] = None,
    accumulate: Annotated[int | None, typer.Option("--accumulate", help="Parts a batch is taken in", **RECIPE)] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate", **RECIPE)] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="steps, cosine or plateau", **RECIPE)] = None,
    milestones: Annotated[
        str | None, typer.Option("--milestones", help="Where `steps` divides by 10: shares, or epochs", **RECIPE)
    ] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", help="Epochs at a stand after which `plateau` divides", **RECIPE)
    ] = None,
    reductions: Annotated[
        int | None, typer.Option("--reductions", help="Times `plateau` divides at most", **RECIPE)
    ] = None,
    warmup: Annotated[float | None, typer.Option("--warmup", help="Share of the run", **RECIPE)] = None,
    momentum: Annotated[float | None, typer.Option("--momentum", **RECIPE)] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", **RECIPE)] = None,
    label_smoothing: Annotated[
        float | None, typer.Option("--label-smoothing", help="Share of a label spread over all classes", **RECIPE)
    ] = None,
    dropout: Annotated[float | None, typer.Option("--dropout", help="Share left out", **RECIPE)] = None,
    clip: Annotated[float | None, typer.Option("--clip", help="Largest gradient norm; 0 for none", **RECIPE)] = None,
    ema: Annotated[
        float | None, typer.Option("--ema", help="Average the weights over this share of the run; 0: no", **RECIPE)
    ] = None,
    first_weights: Annotated[str | None, typer.Option("--first-weights", help="kaiming or paper", **RECIPE)] = None,
    rescale: Annotated[
        bool | None, typer.Option("--rescale/--no-rescale", help="Fit new layers to the data first", **RECIPE)
    ] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option("--preprocessing", help="Name [the recipe's, the file's or the architecture's]", **RECIPE),
    ] = None,
    lighting_sigma: Annotated[
        float | None, typer.Option("--lighting-sigma", help="Of the random colour shift; 0: none", **RECIPE)
    ] = None,
    freeze: Annotated[
        str | None, typer.Option("--freeze", help="none, or features: conv1 to conv5 stay", **RECIPE)
    ] = None,
    features_lr: Annotated[
        float | None, typer.Option("--features-lr", help="Rate of conv1 to conv5, as a share of --lr", **RECIPE)
    ] = None,
    views: Annotated[int | None, typer.Option("--views", help="Of each image, with frozen features", **RECIPE)] = None,
    qat: Annotated[
        str | None,
        typer.Option(
            "--qat", help="fc6 to fc8 with weights rounded to int4 or int8, none; with frozen features", **RECIPE
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Of the steps: auto, fp32, bf16 or fp16", **RECIPE)
    ] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--no-channels-last", help="Layout in memory", **RECIPE)
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the network", **RECIPE)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, order, crops and dropout")] = 0,
    resume: Annotated[
        str | None, typer.Option("--resume", help="A run's folder; auto: the run of these options, or a new one")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option("--max-minutes", help="Stop after so long; resume later")] = None,
    save_minutes: Annotated[
        float, typer.Option("--save-minutes", help="Between snapshots within an epoch; each epoch ends with one")
    ] = 10.0,
    keep: Annotated[int, typer.Option("--keep", help="Snapshots kept; 0: none once the run is complete")] = 2,
    runs: RunsOption = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    on_bad_image: BadImageOption = "fail",
    threads: ThreadsOption = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Readers of images [as many as --threads]")] = None,
    pool: Annotated[
        str, typer.Option("--pool", help="The readers: threads or processes; `bench --loader` measures both")
    ] = "threads",
    augment_on: Annotated[
        str, typer.Option("--augment-on", help="Mirror, light and normalise in the workers, or on the device")
    ] = "workers",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write curves and filters for TensorBoard")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network; its best weights go to runs/NAME/model.safetensors. Start it with torchrun for several processes."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.training import show_training
    from alexnet_edge.training.recipe import RECIPE_FIELDS, TrainSettings

    given = context.params
    overrides = {key: given[key] for key in RECIPE_FIELDS if given[key] is not None}
    if milestones is not None:
        overrides["milestones"] = _milestones(milestones)
    machine = {
        "device": choice("--device", device, ("auto", "cpu", "cuda")),
        "threads": threads,
        "workers": workers,
        "pool": choice("--pool", pool, ("threads", "processes")),
        "augment_on": choice("--augment-on", augment_on, ("workers", "device")),
        "tensorboard": tensorboard,
        "keep": keep,
        "save_minutes": save_minutes,
        "max_minutes": max_minutes,
    }
    go_on = resume == "auto"
    if resume is not None and not go_on:
        fixed = [name for name in given if name not in {*machine, "resume", "as_json", "quiet"}]
        refuse_given(
            context,
            fixed,
            "--resume FOLDER goes on with the run as it was started, without",
            fix="leave it out, or use --resume auto",
        )
    settings = TrainSettings(
        data=data,
        class_list=str(class_list) if class_list else None,
        arch=arch,
        init=init,
        recipe=recipe,
        **overrides,
        seed=seed,
        runs=str(runs),
        name=name,
        on_bad_image=choice("--on-bad-image", on_bad_image, ("skip", "fail")),
        **machine,
    )
    from alexnet_edge.training.distributed import rank_from_environment
    from alexnet_edge.training.run import resume as resume_run
    from alexnet_edge.training.run import train as train_run

    try:
        with console.reporter(quiet) as reporter:
            if resume is not None and not go_on:
                result = resume_run(Path(resume), changes=_given(context, machine), reporter=reporter)
            else:
                result = train_run(settings, go_on=go_on, reporter=reporter)
    except AlexNetEdgeError as error:
        if rank_from_environment() > 0:  # the first process says it
            raise typer.Exit(error.exit_code) from error
        raise
    if not result.first:
        return
    if as_json:
        print_json(result.to_json())
    else:
        show_training(result)


def _milestones(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words_in([text]))
    except ValueError as error:
        raise UserError("--milestones takes numbers", value=text, fix="write them as in 30,60,80") from error


def _given(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that are on the command line."""
    return {
        name: value
        for name, value in values.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


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
    from alexnet_edge.cli.show.training import show_evaluation
    from alexnet_edge.images.datasets import open_for_evaluation, reopen
    from alexnet_edge.network.load import newest_checkpoint
    from alexnet_edge.proof.evaluate import evaluate
    from alexnet_edge.proof.stats import wilson_interval
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
        show_evaluation(source, result, interval)


def _validation_source(source: Path) -> dict[str, Any]:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.network.checkpoint import read_info

    checkpoint = source if source.suffix == ".safetensors" else None
    if checkpoint is None and source.suffix not in {".pt", ".pth"}:
        checkpoint = Path(load_artifact(source).manifest.checkpoint)
    recorded = read_info(checkpoint).data.get("val", {}).get("source") if checkpoint is not None else None
    if not recorded:
        raise UserError("it records no validation data", value=source, fix="name a folder of images with --images")
    return dict(recorded)
