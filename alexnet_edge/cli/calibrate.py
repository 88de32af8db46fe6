"""`alexnet-edge calibrate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from alexnet_edge import records
from alexnet_edge.cli.common import Images, Json, Quiet, Source, Threads, fields_of, print_result
from alexnet_edge.errors import UserError
from alexnet_edge.export.quantising.calibrate import METHODS, Method

COUNTS = (16, 64, 256, 512)


def calibrate(
    *,
    source: Annotated[Source, fields_of()] = Source(),
    calibration: Annotated[
        list[str] | None, Parameter(help="Folder of images to calibrate on; may be repeated [the training data].")
    ] = None,
    calibration_images: Annotated[tuple[int, ...], Parameter(help="Numbers of them to try.")] = COUNTS,
    methods: Annotated[tuple[Method, ...], Parameter(help="Methods to try.")] = METHODS,
    images: Annotated[Images, fields_of()] = Images(),
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare INT8 calibrations by the answers of the network: methods, numbers of images and sets."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.export import show_sweep
    from alexnet_edge.export.quantising.sweep import sweep
    from alexnet_edge.export.settings import CACHE
    from alexnet_edge.images.datasets import open_images
    from alexnet_edge.proof.recorded import training_images

    if min(calibration_images) < 1:
        raise UserError(
            "--calibration-images takes numbers of 1 or more", value=min(calibration_images), fix="for example 64,256"
        )
    checkpoint = source.load()
    proof_images = images.open_for(checkpoint)
    if calibration:
        sets = {name: open_images(name, class_list=images.class_list) for name in calibration}
    else:
        sets = {"training data": training_images(checkpoint)}
    with console.reporter(quiet) as reporter:
        result = sweep(
            checkpoint,
            sets,
            proof_images,
            methods=methods,
            counts=calibration_images,
            cache=CACHE / "calibration",
            threads=threads,
            reporter=reporter,
        )
    print_result(json, records.to_builtins(result), lambda: show_sweep(result))
