"""`alexnet-edge predict`, `doctor` and `demo`."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alexnet_edge import records
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
from alexnet_edge.errors import ImageError, UserError

if TYPE_CHECKING:
    from alexnet_edge.images.cameras import FrameSource
    from alexnet_edge.sessions import Session


def predict_command(
    images: Annotated[
        list[Path] | None, typer.Argument(help="Image files or folders; `-` for images on standard input")
    ] = None,
    artifact: Annotated[
        Path | None, typer.Option("--artifact", help="Artifact or checkpoint [newest checkpoint in runs/]")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Classes to name per image")] = 5,
    camera: Annotated[
        str | None,
        typer.Option("--camera", help="A frame of: 0 or /dev/video0, csi (a Jetson's), or a GStreamer pipeline"),
    ] = None,
    capture: Annotated[
        str | None, typer.Option("--capture", help="A frame of: a command that writes a picture to its standard output")
    ] = None,
    every: Annotated[
        float | None, typer.Option("--every", help="Frame after frame, so many seconds apart, until stopped", min=0)
    ] = None,
    on_bad_image: BadImageOption = "fail",
    device: DeviceOption = "auto",
    trust: TrustOption = False,
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Name what is in an image, a folder, a camera's frame or a stream: the most probable classes."""
    from alexnet_edge.cli.show.proof import show_predictions
    from alexnet_edge.network.load import newest_checkpoint
    from alexnet_edge.predict import predict
    from alexnet_edge.sessions import open_session

    bad_images = choice("--on-bad-image", on_bad_image, ("skip", "fail"))
    frames = _frame_source(images, camera, capture, every)
    if frames is None and not images:
        raise UserError("no image named", fix="give image files or folders, -, --camera or --capture")
    source = artifact or newest_checkpoint(runs)
    bad: list[ImageError] = []
    with open_session(source, device=chosen_device(device), threads=threads, trust=trust) as session:
        if frames is not None:
            _predict_frames(session, frames, top=top, every=every, skip=bad_images == "skip", as_json=as_json)
            return
        predictions = predict(session, images or (), top=top, on_bad_image=bad_images, bad=bad)
    if as_json:
        print_json({"predictions": records.to_builtins(predictions), "skipped": [str(error) for error in bad]})
    else:
        show_predictions(predictions, bad)


def _frame_source(
    images: Sequence[Path] | None, camera: str | None, capture: str | None, every: float | None
) -> Callable[[], FrameSource] | None:
    """What opens the camera, the program or the stream that was asked for; None for files."""
    from alexnet_edge.images.cameras import CommandSource, StreamSource, open_camera

    stream = [Path("-")] == list(images or ())
    given = [name for name, value in (("--camera", camera), ("--capture", capture), ("images", images)) if value]
    if len(given) > 1 or (Path("-") in (images or ()) and not stream):
        raise UserError(
            "the images come from one place",
            value=" and ".join(given) if len(given) > 1 else "- and files",
            fix="name files, or -, or --camera, or --capture",
        )
    if every is not None and not (camera or capture):
        raise UserError(
            "only a camera is read again and again", value=f"--every {every:g}", fix="add --camera or --capture"
        )
    if camera is not None:
        return lambda: open_camera(camera)
    if capture is not None:
        try:
            command = shlex.split(capture)
        except ValueError as error:
            raise UserError(f"--capture cannot be read ({error})", value=capture, fix="balance its quotes") from error
        return lambda: CommandSource(command)
    return (lambda: StreamSource(sys.stdin.buffer)) if stream else None


def _predict_frames(
    session: Session,
    opens: Callable[[], FrameSource],
    *,
    top: int,
    every: float | None,
    skip: bool,
    as_json: bool,
) -> None:
    """One line per frame, written at once: of a stream every frame, else one, or one each `every` seconds.

    Of a stream whose frames come faster than they are answered every one is answered; a camera that stays open gives its
    newest.
    """
    from alexnet_edge.images.cameras import StreamSource, tell_systemd
    from alexnet_edge.predict import predict_frame

    with opens() as source:
        again = every is not None or isinstance(source, StreamSource)
        due = time.monotonic()
        ready = False
        while True:
            try:
                image = source.read()
                if image is None:
                    return
                found = predict_frame(session, image, name=source.name, top=top)
            except ImageError as error:
                if not skip:
                    raise
                print(f"alexnet-edge: {error}", file=sys.stderr, flush=True)
            else:
                taken = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                if as_json:
                    print(
                        json.dumps({"time": taken, **records.to_builtins(found)}, ensure_ascii=False, allow_nan=False),
                        flush=True,
                    )
                else:
                    words = ", ".join(f"{guess.name} {guess.probability:.1%}" for guess in found.guesses)
                    print(f"{taken} {found.image}: {words}", flush=True)
                tell_systemd("WATCHDOG=1" if ready else "READY=1")
                ready = True
            if not again:
                return
            due = max(due + (every or 0), time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


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
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.doctor import CAPABILITIES, examine, require
    from alexnet_edge.environment import describe

    if capability is not None:
        choice("--require", capability, tuple(CAPABILITIES))
    components = examine()
    if as_json:
        print_json({"environment": describe(), "components": records.to_builtins(components)})
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
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.bench import show_demo
    from alexnet_edge.demo import run_demo

    with console.reporter(quiet) as reporter:
        result = run_demo(runs=runs, artifacts=folder, reports=reports, threads=threads, reporter=reporter)
    show_demo(result)
