"""`alexnet-edge train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from alexnet_edge.cli.common import Given, Json, Quiet, fields_of, print_result
from alexnet_edge.errors import AlexNetEdgeError, UserError
from alexnet_edge.training.recipe import CHANGEABLE, TrainSettings


def train(
    *,
    settings: Annotated[TrainSettings, fields_of(negative_bool="no-")] = TrainSettings(),
    resume: Annotated[
        str | None, Parameter(help="A run's folder; auto: the run of these options, or a new one.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    given: Given,
) -> None:
    """Train a network; its best weights go to runs/NAME/model.safetensors. Several processes: start it with torchrun."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.training import show_training

    folder = None if resume in (None, "auto") else resume
    if folder is not None:
        _refuse_with_folder(given)
    from alexnet_edge.training import run
    from alexnet_edge.training.distributed import rank_from_environment

    try:
        with console.reporter(quiet) as reporter:
            if folder is not None:
                changes = {name: getattr(settings, name) for name in CHANGEABLE if name in given}
                result = run.resume(Path(folder), changes=changes, reporter=reporter)
            else:
                result = run.train(settings, go_on=resume == "auto", reporter=reporter)
    except AlexNetEdgeError as error:
        if rank_from_environment() > 0:  # the first process says it
            raise SystemExit(error.exit_code) from error
        raise
    if not result.first:
        return
    print_result(json, result.to_json(), lambda: show_training(result))


def _refuse_with_folder(given: Given) -> None:
    for name, option in given.items():
        if name not in (*CHANGEABLE, "resume", "json", "quiet"):
            raise UserError(
                "--resume FOLDER goes on with the run as it was started, without",
                value=option,
                fix="leave it out, or use --resume auto",
            )
