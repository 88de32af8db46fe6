"""`alexnet-edge predict`."""

from __future__ import annotations

import json as json_text
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from alexnet_edge import records
from alexnet_edge.cli.common import BadImage, Json, Running, Runs, fields_of, print_result
from alexnet_edge.errors import ImageError, UserError

if TYPE_CHECKING:
    from alexnet_edge.images.cameras import FrameSource
    from alexnet_edge.sessions import Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """Where frames come from, instead of files."""

    camera: str | None = None
    """A frame of: 0 or /dev/video0, csi (a Jetson's), or a GStreamer pipeline."""
    capture: str | None = None
    """A frame of: a command that writes a picture to its standard output."""
    every: float | None = None
    """Frame after frame, so many seconds apart, until stopped."""


def predict(
    images: Annotated[
        list[Path] | None, Parameter(help="Image files or folders; `-` for images on standard input.")
    ] = None,
    /,
    *,
    artifact: Annotated[Path | None, Parameter(help="Artifact or checkpoint [newest checkpoint in runs/].")] = None,
    top: Annotated[int, Parameter(help="Classes to name per image.")] = 5,
    camera: Annotated[Camera, fields_of()] = Camera(),
    on_bad_image: BadImage = "fail",
    running: Annotated[Running, fields_of()] = Running(),
    runs: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """Name what is in an image, a folder, a camera's frame or a stream: the most probable classes."""
    from alexnet_edge.cli.show.proof import show_predictions
    from alexnet_edge.network.load import newest_checkpoint
    from alexnet_edge.predict import predict

    frames = _frame_source(images or [], camera)
    if frames is None and not images:
        raise UserError("no image named", fix="give image files or folders, -, --camera or --capture")
    source = artifact or newest_checkpoint(runs)
    bad: list[ImageError] = []
    with running.open(source) as session:
        if frames is not None:
            skip = on_bad_image == "skip"
            _predict_frames(session, frames, top=top, every=camera.every, skip=skip, as_json=json)
            return
        predictions = predict(session, images or (), top=top, on_bad_image=on_bad_image, bad=bad)
    print_result(
        json,
        {"predictions": records.to_builtins(predictions), "skipped": [str(error) for error in bad]},
        lambda: show_predictions(predictions, bad),
    )


def _frame_source(images: Sequence[Path], options: Camera) -> Callable[[], FrameSource] | None:
    """What opens the camera, the program or the stream; None for files."""
    from alexnet_edge.images.cameras import CommandSource, StreamSource, open_camera

    camera, capture, every = options.camera, options.capture, options.every
    stream = [Path("-")] == list(images)
    sources = [name for name, value in (("--camera", camera), ("--capture", capture), ("images", images)) if value]
    if len(sources) > 1 or (Path("-") in images and not stream):
        raise UserError(
            "the images come from one place",
            value=" and ".join(sources) if len(sources) > 1 else "- and files",
            fix="name files, or -, or --camera, or --capture",
        )
    if every is not None and every < 0:
        raise UserError("--every must be 0 or more", value=every, fix="give the seconds between two frames")
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
                prediction = predict_frame(session, image, name=source.name, top=top)
            except ImageError as error:
                if not skip:
                    raise
                print(f"alexnet-edge: {error}", file=sys.stderr, flush=True)
            else:
                moment = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
                if as_json:
                    print(
                        json_text.dumps(
                            {"time": moment, **records.to_builtins(prediction)}, ensure_ascii=False, allow_nan=False
                        ),
                        flush=True,
                    )
                else:
                    words = ", ".join(f"{guess.name} {guess.probability:.1%}" for guess in prediction.guesses)
                    print(f"{moment} {prediction.image}: {words}", flush=True)
                tell_systemd("WATCHDOG=1" if ready else "READY=1")
                ready = True
            if not again:
                return
            due = max(due + (every or 0), time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
