"""`alexnet-edge evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from alexnet_edge import records
from alexnet_edge.cli.common import BadImage, Images, Json, Running, Runs, fields_of, print_result
from alexnet_edge.errors import UserError


def evaluate(
    model: Annotated[Path | None, Parameter(help="Artifact or checkpoint [newest checkpoint in runs/].")] = None,
    /,
    *,
    images: Annotated[Images, fields_of()] = Images(),
    ten_crop: Annotated[
        bool, Parameter(help="Average the softmax over corners, centre and their mirror images.")
    ] = False,
    on_bad_image: BadImage = "fail",
    running: Annotated[Running, fields_of()] = Running(),
    runs: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Accuracy, confusions and calibration of a checkpoint or artifact, over all and per class."""
    from alexnet_edge.cli.show.training import show_evaluation
    from alexnet_edge.images.datasets import open_for_evaluation, reopen
    from alexnet_edge.network.load import newest_checkpoint
    from alexnet_edge.proof.evaluate import evaluate
    from alexnet_edge.proof.stats import wilson_interval

    source = model or newest_checkpoint(runs)
    with running.open(source) as session:
        if images.images is not None:
            image_set = open_for_evaluation(images.images, classes=session.classes, class_list=images.class_list)
        else:
            image_set = reopen(_validation_source(source))
        if images.limit is not None:
            image_set = image_set.spread(images.limit)
        result = evaluate(session, image_set, ten_crop=ten_crop, on_bad_image=on_bad_image)
    interval = wilson_interval(result.correct, result.count)
    print_result(
        json,
        {"model": str(source), **records.to_builtins(result), "top1_interval": interval},
        lambda: show_evaluation(source, result, interval),
    )


def _validation_source(source: Path) -> dict[str, Any]:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.network.checkpoint import read_info
    from alexnet_edge.network.load import CHECKPOINT_SUFFIXES

    checkpoint = source if source.suffix == ".safetensors" else None
    if checkpoint is None and source.suffix not in CHECKPOINT_SUFFIXES:
        checkpoint = Path(load_artifact(source).manifest.checkpoint)
    recorded = read_info(checkpoint).data.get("val", {}).get("source") if checkpoint is not None else None
    if not recorded:
        raise UserError("it records no validation data", value=source, fix="name a folder of images with --images")
    return dict(recorded)
