"""`alexnet-edge predict`, `doctor` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alexnet_edge.cli.common import (
    ArtifactsFolder,
    BadImageOption,
    DeviceOption,
    JsonOption,
    QuietOption,
    RunsOption,
    ThreadsOption,
    TrustOption,
    choice,
    chosen_device,
    print_json,
)


def predict_command(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders")],
    artifact: Annotated[
        Path | None, typer.Option("--artifact", help="Artifact or checkpoint [newest checkpoint in runs/]")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Classes to name per image")] = 5,
    on_bad_image: BadImageOption = "fail",
    device: DeviceOption = "auto",
    trust: TrustOption = False,
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Name what is in an image: the most probable classes."""
    from alexnet_edge import console
    from alexnet_edge.checkpoint import newest_checkpoint
    from alexnet_edge.errors import ImageError
    from alexnet_edge.predict import predict
    from alexnet_edge.sessions import open_session

    source = artifact or newest_checkpoint(runs)
    bad: list[ImageError] = []
    with open_session(source, device=chosen_device(device), threads=threads, trust=trust) as session:
        predictions = predict(
            session, images, top=top, on_bad_image=choice("--on-bad-image", on_bad_image, ("skip", "fail")), bad=bad
        )
    if as_json:
        print_json(
            {"predictions": [entry.to_json() for entry in predictions], "skipped": [str(error) for error in bad]}
        )
    else:
        console.show_predictions(predictions, bad)


def doctor_command(
    capability: Annotated[
        str | None,
        typer.Option(
            "--require",
            help="Exit with 2 unless this machine can: train, export-onnx, build-engines or run-engines",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What this machine can train, export and run, and the command that adds what is missing."""
    from alexnet_edge import console
    from alexnet_edge.doctor import CAPABILITIES, examine, require
    from alexnet_edge.environment import describe

    if capability is not None:
        choice("--require", capability, tuple(CAPABILITIES))
    components = examine()
    if as_json:
        print_json({"environment": describe(), "components": [component.to_json() for component in components]})
    else:
        console.show_doctor(describe(), components)
    if capability is not None:
        require(capability, components)


def demo_command(
    runs: RunsOption = Path("runs"),
    folder: ArtifactsFolder = Path("artifacts"),
    reports: Annotated[Path, typer.Option("--reports", help="Folder of the report")] = Path("reports"),
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """The whole path on built-in images: train, export to everything, prove, measure, report. Three to four minutes."""
    from alexnet_edge import console
    from alexnet_edge.demo import run_demo

    with console.reporter(quiet) as reporter:
        result = run_demo(runs=runs, artifacts=folder, reports=reports, threads=threads, reporter=reporter)
    console.show_demo(result)
