"""Frames, one after the other: from a camera, from a program that takes a picture, from standard input.

A frame is decoded to the same upright RGB image that a file gives, and goes through the same preprocessing. Needs numpy and
pillow only; OpenCV is used for a camera where it is installed, as on a Jetson, else the program that is: `ffmpeg` or
`v4l2-ctl` for a V4L2 device, `gst-launch-1.0` for a GStreamer pipeline. Nothing goes through a shell.

Source: Jetson Linux Developer Guide, "Accelerated GStreamer" (nvarguscamerasrc, nvvidconv); OpenCV, `VideoCapture`;
v4l2-ctl(1); ITU-T T.81, annex B (JPEG markers).
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from PIL import Image

from alexnet_edge.errors import DataError, MissingComponentError, UserError
from alexnet_edge.images.preprocess import load_rgb

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_FRAME_BYTES = 64 << 20
"""Larger pictures are refused: a program that never stops writing must not fill the board's memory."""
CAPTURE_TIMEOUT_S = 20.0
"""How long a program may take for one picture."""
SETTLING_FRAMES = 5
"""Dropped when OpenCV opens a camera: exposure and white balance are still being found."""

CSI_PIPELINE = (
    "nvarguscamerasrc sensor-id={number} ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 "
    "! nvvidconv ! video/x-raw,format=BGRx"
)
"""A Jetson's CSI camera: the sensor's image through NVIDIA's own converter into ordinary memory."""
_FOR_OPENCV = " ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"
_FOR_A_PIPE = " ! videoconvert ! pngenc snapshot=true ! fdsink fd=1"


class FrameSource(ABC):
    """Where frames come from; use it as a context manager."""

    name: str
    """The name of the image in the answers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def read(self) -> Image.Image | None:
        """The next frame, RGB; None when there are no more.

        Raises:
            ImageError: when this frame is no image; the next may be one.
            UserError: when the source gives none.
        """

    def close(self) -> None:
        """Release the device or process that the source holds."""


class CommandSource(FrameSource):
    """A program that writes one picture to its standard output, started anew for each frame."""

    def __init__(
        self, command: Sequence[str], *, name: str | None = None, timeout_s: float = CAPTURE_TIMEOUT_S
    ) -> None:
        """Raises UserError when the command is empty or its program is not installed."""
        if not command or shutil.which(command[0]) is None:
            program = command[0] if command else "nothing"
            fix = "install it, or give its whole path"
            raise UserError("the program that takes the picture was not found", value=program, fix=fix)
        self.name = name or Path(command[0]).name
        self._command = list(command)
        self._timeout_s = timeout_s

    def read(self) -> Image.Image:
        return load_rgb(Path(self.name), content=self._picture())

    def _picture(self) -> bytes:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        ) as process:
            try:
                picture, errors = self._written(process)
            finally:  # the processes that it started end with it
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0 or not picture:
            lines = errors.decode(errors="replace").strip().splitlines()
            reason = f" ({lines[-1].strip()[:200]})" if lines else " and wrote nothing"
            raise self._refusal(f"no picture: the program ended with {process.returncode}{reason}")
        return picture

    def _written(self, process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
        """The bytes of the program's two outputs, within the limits of time and size."""
        assert process.stdout is not None
        assert process.stderr is not None
        parts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
        deadline = time.monotonic() + self._timeout_s
        with selectors.DefaultSelector() as selector:
            for descriptor in parts:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready and time.monotonic() >= deadline:
                    raise self._refusal(f"no picture within {self._timeout_s:g} s")
                for key, _ in ready:
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fd)
                    parts[key.fd] += chunk
                    if len(parts[key.fd]) > MAX_FRAME_BYTES:
                        raise self._refusal(f"a picture of more than {MAX_FRAME_BYTES >> 20} MiB")
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise self._refusal(f"the program did not end within {self._timeout_s:g} s") from None
        picture, errors = parts.values()
        return bytes(picture), bytes(errors)

    def _refusal(self, problem: str) -> UserError:
        fix = "run it by hand: it must write one image and end"
        return UserError(problem, value=shlex.join(self._command), fix=fix)


def open_camera(camera: str) -> FrameSource:
    """A camera: a number or `/dev/videoN` (V4L2), `csi` or `csi:N` (a Jetson's), or a GStreamer pipeline.

    A pipeline has a `!` in it and no sink of its own: a converter and a sink are added.

    Raises:
        UserError: when it is none of these, or the device does not exist or cannot be opened.
        MissingComponentError: when neither OpenCV nor a program that reads it is installed.
    """
    text = camera.strip()
    if match := re.fullmatch(r"csi(?::(\d{1,2}))?", text):
        return _open_pipeline(CSI_PIPELINE.format(number=match.group(1) or "0"), name=text)
    if "!" in text:
        return _open_pipeline(re.sub(r"\s*!\s*appsink\b[^!]*$", "", text), name="camera")
    if re.fullmatch(r"\d{1,3}", text):
        text = f"/dev/video{text}"
    if not re.fullmatch(r"/dev/[\w./-]+", text):
        fix = "give 0, /dev/video0, csi, or a GStreamer pipeline such as 'v4l2src ! ...'"
        raise UserError("no such camera", value=camera, fix=fix)
    if not Path(text).exists():
        raise UserError("this device is not here", value=text, fix="see which are: ls /dev/video*")
    return _open_v4l2(text)


def _open_v4l2(device: str) -> FrameSource:
    cv2 = _opencv()
    if cv2 is not None:
        return OpenCVSource(cv2, device, cv2.CAP_V4L2, name=device)
    size = "width=1280,height=720,pixelformat=MJPG"
    commands = (
        f"ffmpeg -loglevel error -nostdin -f v4l2 -i {device} -frames:v 1 -f image2pipe -c:v png -",
        f"v4l2-ctl --device {device} --set-fmt-video={size} --stream-mmap --stream-skip={SETTLING_FRAMES} "
        "--stream-count=1 --stream-to=-",
    )
    for command in map(str.split, commands):
        if shutil.which(command[0]):
            return CommandSource(command, name=device)
    raise MissingComponentError(
        "a camera is read with OpenCV, ffmpeg or v4l2-ctl, and none is here",
        fix="run: sudo apt-get install ffmpeg, or name a program that takes a picture with --capture",
    )


def _open_pipeline(pipeline: str, *, name: str) -> FrameSource:
    cv2 = _opencv()
    if cv2 is not None and re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
        return OpenCVSource(cv2, pipeline + _FOR_OPENCV, cv2.CAP_GSTREAMER, name=name)
    if shutil.which("gst-launch-1.0"):
        return CommandSource(["gst-launch-1.0", "-q", *(pipeline + _FOR_A_PIPE).split()], name=name)
    raise MissingComponentError(
        "a pipeline is run with an OpenCV that has GStreamer, or with gst-launch-1.0, and neither is here",
        fix="run: sudo apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good",
    )


def _opencv() -> Any:
    """OpenCV's module; None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


class OpenCVSource(FrameSource):
    """A camera or pipeline that stays open, so that each frame is the newest and not one of the start."""

    def __init__(self, cv2: Any, source: str, api: int, *, name: str) -> None:
        self.name = name
        self._capture = cv2.VideoCapture(source, api)
        if not self._capture.isOpened():
            self._capture.release()
            raise UserError("the camera cannot be opened", value=source, fix="is another program using it?")
        for _ in range(SETTLING_FRAMES):
            self._capture.grab()

    def read(self) -> Image.Image:
        good, frame_HWC = self._capture.read()
        if not good:
            raise UserError("the camera gives no frame", value=self.name, fix="check its cable, or open it again")
        return Image.fromarray(frame_HWC[:, :, ::-1].copy())  # OpenCV's order is blue, green, red

    def close(self) -> None:
        self._capture.release()


class StreamSource(FrameSource):
    """One image of any kind, or JPEG images one after the other, as a capture program pipes them; closes the stream."""

    def __init__(self, stream: BinaryIO, *, name: str = "stdin") -> None:
        self.name = name
        self._stream = stream
        self._contents = _contents(stream)
        self._count = 0

    def read(self) -> Image.Image | None:
        content = next(self._contents, None)
        if content is None and self._count == 0:
            raise DataError("standard input is empty", fix="pipe an image into it")
        self._count += 1
        return None if content is None else load_rgb(Path(self.name), content=content)

    def close(self) -> None:
        self._stream.close()


def _contents(stream: BinaryIO) -> Iterator[bytes]:
    reader = _Reader(stream)
    start = reader.peek(2)
    if not start:
        return
    if start != b"\xff\xd8":
        yield reader.rest()
        return
    while reader.skip_to_jpeg():
        yield reader.jpeg()


class _Reader:
    """Reads a pipe as it fills, and cuts JPEG images out of it by their markers."""

    def __init__(self, stream: BinaryIO) -> None:
        self._descriptor = stream.fileno()
        self._buffer = bytearray()

    def peek(self, count: int) -> bytes:
        self._have(count)
        return bytes(self._buffer[:count])

    def rest(self) -> bytes:
        while self._fill():
            pass
        return bytes(self._buffer)

    def skip_to_jpeg(self) -> bool:
        """Drop what lies between two images, such as padding; False at the end."""
        while (at := self._buffer.find(b"\xff\xd8")) < 0:
            del self._buffer[: max(0, len(self._buffer) - 1)]
            if not self._fill():
                return False
        del self._buffer[:at]
        return True

    def jpeg(self) -> bytes:
        """The image at the start of the buffer; cut short where the stream ends early."""
        at, in_scan = 2, False
        while self._have(at + 2):
            if in_scan:
                marker = self._buffer.find(b"\xff", at)
                if marker < 0 or marker + 1 >= len(self._buffer):
                    at = len(self._buffer) if marker < 0 else marker
                    if not self._fill():
                        break
                    continue
                at = marker
                code = self._buffer[marker + 1]
                if code in (0x00, 0xFF) or 0xD0 <= code <= 0xD7:  # an escaped byte, padding, a restart
                    at += 1 if code == 0xFF else 2
                    continue
            code = self._buffer[at + 1]
            if self._buffer[at] != 0xFF or code == 0xD9:
                at += 2
                break
            if code == 0xD8 or not self._have(at + 4):  # the next image, or the stream's end: this one is cut short
                break
            in_scan = code == 0xDA
            at += 2 + int.from_bytes(self._buffer[at + 2 : at + 4], "big")
        content = bytes(self._buffer[:at])
        del self._buffer[:at]
        return content

    def _have(self, count: int) -> bool:
        while len(self._buffer) < count and self._fill():
            pass
        return len(self._buffer) >= count

    def _fill(self) -> bool:
        chunk = os.read(self._descriptor, 1 << 16)
        self._buffer += chunk
        if len(self._buffer) > MAX_FRAME_BYTES:
            problem = f"an image of more than {MAX_FRAME_BYTES >> 20} MiB"
            raise UserError(problem, value="standard input", fix="pipe JPEG images")
        return bool(chunk)


def tell_systemd(state: Literal["READY=1", "WATCHDOG=1", "STOPPING=1"]) -> None:
    """Report the state of this service where systemd started it with `Type=notify`; elsewhere do nothing.

    Source: sd_notify(3).
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(state.encode(), name)
