"""`alexnet-edge calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_edge import records
from alexnet_edge.cli.common import (
    CheckpointOption,
    ClassListOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RunsOption,
    ThreadsOption,
    checkpoint_or_onnx,
    choice,
    print_json,
    words_in,
)
from alexnet_edge.errors import UserError


def calibrate_command(
    checkpoint: CheckpointOption = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option("--calibration", help="Folder of images to calibrate on; may be repeated [the training data]"),
    ] = None,
    counts: Annotated[
        list[str] | None, typer.Option("--calibration-images", help="Numbers of them to try [16,64,256,512]")
    ] = None,
    methods: Annotated[list[str] | None, typer.Option("--methods", help="Methods to try, as entropy,mse [all]")] = None,
    images: Annotated[
        str | None, typer.Option("--images", help="Images to judge the answers on [the checkpoint's validation data]")
    ] = None,
    limit: LimitOption = None,
    class_list: ClassListOption = None,
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare INT8 calibrations: methods, numbers of images and sets, by what the network then answers."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.export import show_sweep
    from alexnet_edge.export.exporter import CACHE
    from alexnet_edge.export.quantising.calibrate import METHODS
    from alexnet_edge.export.quantising.sweep import COUNTS, sweep
    from alexnet_edge.images.datasets import open_images
    from alexnet_edge.network.load import newest_checkpoint
    from alexnet_edge.proof.recorded import training_images, validation_images

    numbers = [_number(word) for word in words_in(counts)] or list(COUNTS)
    chosen = [choice("--methods", word, METHODS) for word in words_in(methods)] or list(METHODS)
    loaded = checkpoint_or_onnx(checkpoint or newest_checkpoint(runs))
    if images is None:
        proof = validation_images(loaded)
    else:
        proof = open_images(images, classes=loaded.info.classes, class_list=class_list)
    if calibration:
        sets = {name: open_images(name, class_list=class_list) for name in calibration}
    else:
        sets = {"training data": training_images(loaded)}
    with console.reporter(quiet) as reporter:
        found = sweep(
            loaded,
            sets,
            proof if limit is None else proof.spread(limit),
            methods=chosen,
            counts=numbers,
            cache=CACHE / "calibration",
            threads=threads,
            reporter=reporter,
        )
    if as_json:
        print_json(records.to_builtins(found))
    else:
        show_sweep(found)


def _number(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise UserError("--calibration-images takes numbers of 1 or more", value=word, fix="for example 64,256")
    return int(word)
