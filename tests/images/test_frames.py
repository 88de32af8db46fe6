"""Frames from a camera, a program and a pipe; and the command that answers them."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_artifacts import write_artifact

from alexnet_edge import records
from alexnet_edge.errors import DataError, ImageError, MissingComponentError, UserError
from alexnet_edge.images import cameras as frames
from alexnet_edge.images.cameras import CommandSource, OpenCVSource, StreamSource, open_camera, tell_systemd
from alexnet_edge.predict import predict
from alexnet_edge.sessions import open_session

Programs = Callable[[str, str], Path]


def picture(shade: int, format: str = "JPEG", **options: Any) -> bytes:
    pixels = np.random.default_rng(shade).normal(shade, 20, (60, 80, 3)).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def shades(source: frames.FrameSource) -> list[int]:
    """The mean of every frame."""
    with source:
        return [round(float(np.asarray(image).mean())) for image in iter(source.read, None)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """`programs("ffmpeg", SCRIPT)` puts a program first on PATH; it may write down how it was called in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def add(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f'#!/bin/sh\necho "$0 $*" >> "$CALLS"\n{script}\n', encoding="utf-8")
        path.chmod(0o755)
        return path

    return add


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    path = tmp_path / "shot.jpg"
    path.write_bytes(picture(90))
    return path


@pytest.fixture
def no_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)


def piped(content: bytes, *, piece: int = 1 << 20) -> StreamSource:
    """A source that reads `content` from a pipe, which is filled in pieces."""
    reading, writing = os.pipe()

    def fill() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as stream:
            for start in range(0, len(content), piece):
                stream.write(content[start : start + piece])

    threading.Thread(target=fill, daemon=True).start()
    return StreamSource(os.fdopen(reading, "rb"))


@pytest.mark.parametrize("piece", [7, 1 << 20])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 100, "exif": b"Exif\0\0\xff\xd8\xff\xd9"}])
def test_jpegs_in_a_row_are_told_apart(piece: int, options: dict[str, Any]) -> None:
    content = b"".join(
        picture(shade, **options) + padding for shade, padding in ((40, b""), (120, b"\0\r\n--x"), (200, b""))
    )
    assert shades(piped(content, piece=piece)) == pytest.approx([40, 120, 200], abs=2)


def test_restart_markers_do_not_end_an_image() -> None:
    image = picture(77, restart_marker_blocks=1)
    assert any(bytes([0xFF, 0xD0 + number]) in image for number in range(8)), "the picture has what is tested"
    assert shades(piped(image + image)) == pytest.approx([77, 77], abs=2)


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_another_kind_of_image_is_read_to_the_end(format: str) -> None:
    assert shades(piped(picture(150, format), piece=99)) == pytest.approx([150], abs=2)


def test_a_damaged_frame_does_not_stop_the_stream() -> None:
    whole = picture(60)
    with piped(whole[:-400] + picture(130) + picture(180)[:-300]) as source:
        with pytest.raises(ImageError, match="cannot be decoded"):
            source.read()
        image = source.read()
        assert image is not None
        assert np.asarray(image).mean() == pytest.approx(130, abs=2)
        with pytest.raises(ImageError, match="cannot be decoded"):
            source.read()
        assert source.read() is None


def test_nothing_and_noise() -> None:
    with piped(b"") as source, pytest.raises(DataError, match="standard input is empty"):
        source.read()
    with piped(b"hello, world") as source, pytest.raises(ImageError, match="not an image"):
        source.read()


@pytest.mark.parametrize("start", [b"\xff\xd8\xff\xda\x00\x02", b"BM"])
def test_an_endless_image_is_refused(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1 << 20)
    with piped(start + bytes(3 << 20)) as source, pytest.raises(UserError, match="more than 1 MiB: standard input"):
        source.read()


def test_a_program_takes_the_picture(programs: Programs, shot: Path) -> None:
    programs("take", f"cat '{shot}'")
    with CommandSource(["take", "-o", "-"]) as source:
        first, second = source.read(), source.read()
    assert source.name == "take"
    assert np.asarray(first).mean() == pytest.approx(90, abs=2)
    assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no cameras available' >&2; exit 3", r"ended with 3 \(no cameras available\)"),
        ("exit 0", "ended with 0 and wrote nothing"),
        ("head -c 3000000 /dev/zero", "more than 1 MiB"),
        ("sleep 60", "no picture within 0.5 s"),
        ("exec 1>&- 2>&-; sleep 60", "did not end within 0.5 s"),
    ],
)
def test_a_program_that_fails_is_one_line(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 1 << 20)
    programs("take", script)
    start = time.monotonic()
    with pytest.raises(UserError, match=message):
        CommandSource(["take", "one"], timeout_s=0.5).read()
    assert time.monotonic() - start < 30


def test_a_program_that_writes_no_image_or_is_missing(programs: Programs) -> None:
    programs("take", "echo hello")
    with pytest.raises(ImageError, match="not an image that PIL can read: take"):
        CommandSource(["take"]).read()
    for command in (["no-such-program"], []):
        with pytest.raises(UserError, match="was not found"):
            CommandSource(command)


@pytest.mark.usefixtures("no_opencv")
@pytest.mark.parametrize("program", ["ffmpeg", "v4l2-ctl"])
def test_a_v4l2_device_is_read_by_the_program_that_is_here(
    programs: Programs, shot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    path = programs(program, f"cat '{shot}'")
    monkeypatch.setattr(frames.shutil, "which", lambda name: str(path) if name == program else None)
    with open_camera("/dev/null") as source:
        assert source.name == "/dev/null"
        assert source.read() is not None
    called = (tmp_path / "calls").read_text(encoding="utf-8")
    assert "/dev/null" in called
    assert called.rstrip().endswith("-")


@pytest.mark.usefixtures("no_opencv")
@pytest.mark.parametrize(
    ("camera", "pipeline"),
    [
        ("csi:1", frames.CSI_PIPELINE.format(number=1)),
        (
            "v4l2src device=/dev/video2 ! video/x-raw,width=640 ! appsink drop=1",  # its own sink is dropped
            "v4l2src device=/dev/video2 ! video/x-raw,width=640",
        ),
    ],
)
def test_a_pipeline_is_run_by_gstreamers_own_program(
    programs: Programs, shot: Path, tmp_path: Path, camera: str, pipeline: str
) -> None:
    path = programs("gst-launch-1.0", f"cat '{shot}'")
    with open_camera(camera) as source:
        assert source.read() is not None
    called = (tmp_path / "calls").read_text(encoding="utf-8").strip()
    assert called == f"{path} -q {pipeline} ! videoconvert ! pngenc snapshot=true ! fdsink fd=1"


class FakeOpenCV:
    """What is used of OpenCV's module."""

    CAP_V4L2, CAP_GSTREAMER = 200, 1800

    def __init__(self, *, opens: bool = True, gives: bool = True, gstreamer: bool = True) -> None:
        self.opened: list[tuple[str, int]] = []
        self.calls: list[str] = []
        self._opens, self._gives, self._gstreamer = opens, gives, gstreamer

    def getBuildInformation(self) -> str:
        return f"  Video I/O:\n    GStreamer:                   {'YES (1.20.3)' if self._gstreamer else 'NO'}\n"

    def VideoCapture(self, source: str, api: int) -> Any:
        self.opened.append((source, api))
        frame = np.full((4, 6, 3), (10, 20, 200), np.uint8)  # blue, green, red
        return SimpleNamespace(
            isOpened=lambda: self._opens,
            grab=lambda: self.calls.append("grab"),
            read=lambda: (self._gives, frame),
            release=lambda: self.calls.append("release"),
        )


def test_opencv_gives_frames_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOpenCV()
    monkeypatch.setitem(sys.modules, "cv2", fake)
    with open_camera("/dev/null") as source:
        image = source.read()
    assert isinstance(source, OpenCVSource)
    assert image is not None
    assert image.getpixel((0, 0)) == (200, 20, 10)
    assert fake.opened == [("/dev/null", fake.CAP_V4L2)]
    assert fake.calls == [*["grab"] * frames.SETTLING_FRAMES, "release"]


def test_opencv_runs_a_pipeline_where_it_has_gstreamer(
    programs: Programs, shot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeOpenCV()
    monkeypatch.setitem(sys.modules, "cv2", fake)
    open_camera("csi").read()
    ((pipeline, api),) = fake.opened
    assert api == fake.CAP_GSTREAMER
    assert pipeline.startswith("nvarguscamerasrc sensor-id=0 !")
    assert "format=BGR ! appsink" in pipeline
    programs("gst-launch-1.0", f"cat '{shot}'")
    monkeypatch.setitem(sys.modules, "cv2", FakeOpenCV(gstreamer=False))
    assert isinstance(open_camera("csi"), CommandSource), "an OpenCV from the package index has no GStreamer"


def test_a_camera_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOpenCV(opens=False)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    with pytest.raises(UserError, match=r"cannot be opened: /dev/null"):
        open_camera("/dev/null")
    assert fake.calls == ["release"]
    monkeypatch.setitem(sys.modules, "cv2", FakeOpenCV(gives=False))
    with open_camera("/dev/null") as source, pytest.raises(UserError, match="gives no frame"):
        source.read()


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("webcam", "no such camera: webcam"),
        ("/dev/video0; rm -rf /", "no such camera"),
        ("/dev/no-such-video", "not here: /dev/no-such-video"),
        ("", "no such camera"),
    ],
)
def test_cameras_that_are_none(camera: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_camera(camera)


@pytest.mark.usefixtures("no_opencv")
def test_nothing_to_read_a_camera_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames.shutil, "which", lambda name: None)
    for camera, package in (("/dev/null", "apt-get install ffmpeg"), ("csi", "gstreamer1.0-tools")):
        with pytest.raises(MissingComponentError, match=package):
            open_camera(camera)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("artifact") / "means.onnx", seed=0).path


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "alexnet_edge", "predict", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def answers(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_stream_is_answered_frame_by_frame(artifact: Path, tmp_path: Path) -> None:
    shots = [picture(shade) for shade in (30, 220)]
    paths = [tmp_path / f"{index}.jpg" for index in range(2)]
    for path, content in zip(paths, shots, strict=True):
        path.write_bytes(content)
    with start("-", "--artifact", artifact, "--json", "--top", "4", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(shots[0])
        process.stdin.flush()
        first = process.stdout.readline()  # answered while the pipe is open: nothing waits for its end
        process.stdin.write(shots[1])
        process.stdin.close()
        results = answers(first + process.stdout.read())
    assert process.returncode == 0
    with open_session(artifact) as session:
        expected = [records.to_builtins(entry)["guesses"] for entry in predict(session, paths, top=4)]
    for answer, guesses in zip(results, expected, strict=True):
        assert answer["image"] == "stdin"
        assert [guess["name"] for guess in answer["guesses"]] == [guess["name"] for guess in guesses]
        assert [guess["probability"] for guess in answer["guesses"]] == pytest.approx(
            [guess["probability"] for guess in guesses], rel=1e-5
        )


def test_a_bad_frame_fails_or_is_skipped(artifact: Path) -> None:
    content = picture(60)[:-400] + picture(130)
    with start("-", "--artifact", artifact, stdin=subprocess.PIPE) as process:
        out, err = process.communicate(content)
    assert process.returncode == 2
    assert out == b""
    assert len(err.splitlines()) == 1
    with start("-", "--artifact", artifact, "--on-bad-image", "skip", "--json", stdin=subprocess.PIPE) as process:
        out, err = process.communicate(content)
    assert process.returncode == 0
    assert len(answers(out)) == 1
    assert b"cannot be decoded" in err


def test_one_frame_or_one_every_so_often(artifact: Path, shot: Path) -> None:
    command = f"cat '{shot}'"
    with start("--capture", command, "--artifact", artifact, stdin=subprocess.DEVNULL) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(out.splitlines()) == 1
    every = ("--every", "0.01", "--json")
    with start("--capture", command, "--artifact", artifact, *every, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    times = [answer["time"] for answer in answers(b"".join(lines))]
    assert times == sorted(times)
    assert process.returncode == 130


def test_a_service_is_ready_after_its_first_answer(artifact: Path, shot: Path, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(address))
        channel.settimeout(120)
        command = ("--capture", f"cat '{shot}'", "--artifact", artifact, "--every", "0")
        environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
        with start(*command, stdin=subprocess.DEVNULL, env=environment) as process:
            assert [channel.recv(64) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            process.terminate()
            process.communicate()


def test_no_service_manager_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    tell_systemd("READY=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "a.jpg"], "the images come from one place"),
        (["a.jpg", "--camera", "csi"], "the images come from one place: --camera and images"),
        (["a.jpg", "--every", "1"], "only a camera is read again and again: --every 1"),
        (["-", "--every", "1"], "only a camera is read again and again"),
        (["--capture", "no-such-program"], "the program that takes the picture was not found: no-such-program"),
        (["--capture", "'"], "quotation"),
        (["--camera", "webcam"], "no such camera: webcam"),
        ([], "no image named"),
    ],
)
def test_mistakes_are_one_line(run_cli: Any, artifact: Path, arguments: list[str], message: str) -> None:
    assert message in run_cli.refuses("predict", *arguments, "--artifact", artifact)
