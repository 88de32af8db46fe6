"""One SSH connection to a device: the system's own client, its configuration, known hosts and agent.

The client is told never to ask (`BatchMode`), and nothing that would weaken its checks. What comes back is data: lines of
bounded length and number, control characters taken out before anything is shown.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from alexnet_edge import records
from alexnet_edge.deploy import board, container
from alexnet_edge.deploy.board import MARK
from alexnet_edge.errors import DeviceError, DisconnectedError, GateError, MissingComponentError, UserError

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_LINE = 1 << 20
"""Longest line that is read from a device, in bytes."""
MOST_NOISE = 2000
"""Most lines of a login script that are passed over."""
HEARTBEAT_S = 5.0

OnEvent = Callable[[Mapping[str, Any]], None]

_SHAPES = {
    "python": (r"[A-Za-z0-9_/~][A-Za-z0-9_./+-]{0,200}", "a Python on the device", "python3.12"),
    "root": (r"(?!(.*/)?\.\.(/|$))[A-Za-z0-9_/][A-Za-z0-9_./-]{0,200}", "a folder on the device", "alexnet-edge"),
    "container": (r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,250}", "a container image", "alexnet-edge:jetpack6"),
    "destination": (
        r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}@)?[A-Za-z0-9_](?:[A-Za-z0-9_.:%-]{0,252}[A-Za-z0-9_])?",
        "a host to deploy to",
        "user@host; set port and key in ~/.ssh/config",
    ),
}
"""Of each argument of a command: how it is written, what it is, an example."""

_BOOT = """\
import os,sys
if sys.version_info<(3,10):print({mark!r}+'{{"old":"%d.%d"}}'%sys.version_info[:2]);sys.exit(3)
b=b''
while len(b)<{length}:
 c=os.read(0,{length}-len(b))
 if not c:sys.exit(4)
 b+=c
exec(compile(b,'board.py','exec'))
"""
"""Reads the program from standard input, byte for byte, and leaves the rest to it; it runs on any Python 3."""

_SSH_OPTIONS = (
    "BatchMode=yes", "ServerAliveInterval=10", "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no",
    "PermitLocalCommand=no", "ControlMaster=no",
)  # fmt: skip
_COMPARE = "connect once with ssh and compare the key"
_CLIENT_SAYS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "the device's host key has changed",
        f"if it was installed anew: ssh-keygen -R HOST, then {_COMPARE}",
    ),
    "Host key verification failed": ("the device's host key is not known", f"{_COMPARE} with the device's"),
    "Permission denied": ("the device accepts none of your keys", "run ssh-copy-id, or load the key with ssh-add"),
    "Could not resolve hostname": ("no such host name", "check it, or add it to ~/.ssh/config"),
    "Connection refused": ("nothing answers on the device's SSH port", "start its SSH server, or check the port"),
    "timed out": ("the device does not answer", "check that it is on and reachable, or give more --connect-seconds"),
    "No route to host": ("the device cannot be reached", "check the network"),
    "Bad owner or permissions": ("the SSH client refuses its own configuration", "correct the file's permissions"),
}
"""Problem and fix, by words of the client."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkOptions:
    """How devices are reached and worked on."""

    ssh_config: Path | None = None
    """Configuration of the SSH client (`ssh -F`) [the user's own]."""
    python: str = "python3"
    """Python 3.10 or newer there; with --container the image's."""
    root: str = "alexnet-edge"
    """Folder there, below the home folder unless it begins with a slash."""
    container: str | None = None
    """Docker image there to work and serve in, as alexnet-edge:jetpack6 [the device's own Python]."""
    connect_s: float = 20.0
    """How long connecting may take."""
    silence_s: float = 120.0
    """Either side takes the other for gone when nothing came for so long."""

    def __post_init__(self) -> None:
        for name, (pattern, noun, example) in _SHAPES.items():
            value = getattr(self, name, None)
            if value is not None and not re.fullmatch(pattern, value):
                raise UserError(f"not {noun}", value=repr(value), fix=f"write it as {example}")
        for name, seconds in (("--connect-seconds", self.connect_s), ("--silence-seconds", self.silence_s)):
            if not 1 <= seconds <= 86400:
                raise UserError(f"{name} must be 1 to 86400", value=seconds, fix="leave it out for the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkSettings(LinkOptions):
    """How one device is reached."""

    destination: str
    """`user@host`, `host`, or a name from the SSH configuration."""


def printable(text: object, most: int = 600) -> str:
    """Text of the device as one line without control characters, cut to `most` characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def number(value: object) -> float:
    """A figure of the device; 0 where it is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


class Link:
    """One process of `board.py` on the device. Use it as a context manager; a request at a time."""

    def __init__(self, settings: LinkSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes]
        self._streams: tuple[IO[bytes], ...]
        """Input, output and error output of the client."""
        self._client_lines: deque[str] = deque(maxlen=40)
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._beat)]

    def command(self) -> list[str]:
        """The client's command line; the destination stands behind `--`, so that it can never be an option."""
        settings, client = self.settings, shutil.which("ssh")
        if client is None:
            raise MissingComponentError("no OpenSSH client here", fix="run: sudo apt-get install openssh-client")
        boot = _BOOT.format(mark=MARK, length=len(_program()))
        silence_s = f"{settings.silence_s:g}"
        if settings.container is not None:
            remote = container.start_command(settings.container, settings.python, settings.root, silence_s, boot)
        else:
            remote = shlex.join([settings.python, "-c", boot, settings.root, silence_s])
        connect_s, count = max(1, round(settings.connect_s)), max(1, round(settings.silence_s / 10))
        options = (*_SSH_OPTIONS, f"ConnectTimeout={connect_s}", f"ServerAliveCountMax={count}")
        return [
            client,
            "-T",
            *(["-F", str(settings.ssh_config)] if settings.ssh_config is not None else []),
            *[word for option in options for word in ("-o", option)],
            "--",
            settings.destination,
            f"exec {remote}",  # the shell makes way, so that the client's exit code is that of what runs
        ]

    def __enter__(self) -> Self:
        self._process = process = subprocess.Popen(
            self.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to handle: the client goes when its input ends
        )
        self._streams = cast("tuple[IO[bytes], ...]", (process.stdin, process.stdout, process.stderr))
        for thread in self._threads:
            thread.start()
        try:
            self._write(_program())
            hello = self._next(itertools.count())
            if "old" in hello:
                raise DeviceError(
                    "the device's Python is too old",
                    value=f"{printable(hello['old'], 20)}, and 3.10 is needed",
                    fix="install one, and name it with --python",
                )
            if hello.get("hello") != 1:
                raise DeviceError("the device speaks another language", value=printable(hello, 80))
        except BaseException:
            self.close(at_once=True)
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(at_once=error is not None)

    def close(self, *, at_once: bool = False) -> None:
        """End the connection; what runs on the device ends with it."""
        if self._over.is_set():
            return
        self._over.set()
        try:
            self._streams[0].close()
            self._process.wait(timeout=0 if at_once else 10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=10)
        for stream in self._streams:
            stream.close()

    def ask(self, do: str, *, on_progress: OnEvent | None = None, **fields: Any) -> dict[str, Any]:
        """One request, and its answer; raises DeviceError when the device refuses, GateError when what it made is not
        good enough, DisconnectedError when the connection breaks."""
        try:
            self._write(json.dumps({"do": do, **fields}).encode() + b"\n")
        except DisconnectedError as gone:
            return self._last_word(gone, on_progress)
        return self._answer(on_progress)

    def send(self, path: Path, *, sha256: str, offset: int, on_bytes: Callable[[int], None]) -> None:
        """The bytes of `path` from `offset` on; `on_bytes` is told how many bytes of it the client took so far. DeviceError
        when the device refuses it: full disk, oversized, or damaged on the way (`kind` is `corrupt`)."""
        request = {"do": "receive", "sha256": sha256, "offset": offset, "bytes": path.stat().st_size - offset}
        try:
            with self._writing, path.open("rb") as stream:  # no sign of life in between: it would be taken for content
                self._put(json.dumps(request).encode() + b"\n")
                stream.seek(offset)
                while block := stream.read(1 << 18):
                    self._put(block)
                    offset += len(block)
                    on_bytes(offset)
        except DisconnectedError as gone:
            self._last_word(gone)  # a full disk, an oversized file
            raise
        self._answer()

    def fetch(self, release: str, name: str, *, most: int) -> bytes | None:
        """A report of a release; None when the release has none of that name."""
        pieces: list[bytes] = []

        def keep(event: Mapping[str, Any]) -> None:
            try:
                pieces.append(base64.b64decode(str(event["piece"]), validate=True))
            except ValueError as error:
                raise DeviceError("the device sent a damaged report", value=name) from error
            if sum(map(len, pieces)) > most:
                raise DeviceError("the device sent an oversized report", value=f"{name}, more than {most} bytes")

        self._write(json.dumps({"do": "fetch", "id": release, "name": name, "most": most}).encode() + b"\n")
        try:
            self._answer(on_piece=keep)
        except DeviceError as error:
            if error.kind == "missing":
                return None
            raise
        return b"".join(pieces)

    def _last_word(self, gone: DisconnectedError, on_progress: OnEvent | None = None) -> dict[str, Any]:
        """What the device said before it hung up and took nothing more, which tells why; raises `gone` when it said nothing."""
        try:
            return self._answer(on_progress)
        except DisconnectedError:
            raise gone from None

    def _answer(self, on_progress: OnEvent | None = None, on_piece: OnEvent | None = None) -> dict[str, Any]:
        noise = itertools.count()
        while True:
            event = self._next(noise)
            if isinstance(event.get("done"), dict):
                done: dict[str, Any] = event["done"]
                return done
            if "refused" in event:
                if event.get("kind") == "gate":
                    raise GateError(printable(event["refused"]))
                error = DeviceError(printable(event["refused"]), fix=printable(event.get("fix", "")))
                error.kind = str(event.get("kind"))
                raise error
            if isinstance(event.get("progress"), dict):
                if on_progress is not None:
                    on_progress(event["progress"])
            elif "piece" in event and on_piece is not None:
                on_piece(event)
            else:
                raise DeviceError("the device's answer is not understood", value=printable(event, 80))

    def _next(self, noise: Iterator[int]) -> dict[str, Any]:
        """The next line of the device's program; those of others are passed over and counted by `noise`."""
        while True:
            line = _bounded_line(self._streams[1])
            if line is None:
                raise self._gone()
            if not line.startswith(MARK.encode()):
                if next(noise) >= MOST_NOISE:
                    raise DeviceError("the device prints without end", value=printable(line, 80))
                continue
            try:
                event = records.parse(line[len(MARK) :])
            except records.RecordError as error:
                raise DeviceError("the device's answer is damaged", value=printable(line, 80)) from error
            if isinstance(event, dict):
                return event

    def _write(self, data: bytes) -> None:
        with self._writing:
            self._put(data)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._streams[0].fileno(), view) :]
        except OSError as error:
            raise self._gone() from error

    def _beat(self) -> None:
        """A sign of life now and then."""
        while not self._over.wait(HEARTBEAT_S):
            if self._writing.acquire(blocking=False):
                try:
                    os.write(self._streams[0].fileno(), b"\n")
                except (OSError, ValueError):
                    return
                finally:
                    self._writing.release()

    def _listen(self) -> None:
        """Keep the last lines that the client says of itself."""
        with suppress(OSError, ValueError):  # closed
            while (line := _bounded_line(self._streams[2], whole=False)) is not None:
                self._client_lines.append(line.decode("utf-8", "replace"))

    def _gone(self) -> Exception:
        """Why there is no connection, from the client's output and its exit code."""
        try:
            code: int | None = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = None
        self._threads[0].join(timeout=5)
        host, lines = self.settings.destination, [line for line in self._client_lines if line.strip()]
        hint = lines[-1] if lines else ""
        if self.settings.container is not None and code in container.FAILED:
            hint = printable(next((line for line in lines if "rror" in line), hint), 200)
            return DeviceError(
                "the container does not start on the device",
                value=f"{self.settings.container} on {host}{f' ({hint})' if hint else ''}",
                fix="build or pull the image there, and try: docker run --rm --entrypoint python3 IMAGE --version",
            )
        if code == 127:
            return DeviceError(
                "the device has no Python",
                value=f"{self.settings.python} was not found on {host}",
                fix="install python3 and python3-venv there, or name it with --python",
            )
        if code == 255:
            for words, (problem, fix) in _CLIENT_SAYS.items():
                if any(words in line for line in lines):
                    return DisconnectedError(problem, value=host, fix=fix.replace("HOST", host.rpartition("@")[2]))
        return DisconnectedError(
            "the connection to the device was lost",
            value=f"{host} ({printable(hint, 200)})" if hint else host,
            fix="deploy again: what is done is not done twice",
        )


def _program() -> bytes:
    return Path(board.__file__).read_bytes()


def _bounded_line(stream: IO[bytes], *, whole: bool = True) -> bytes | None:
    """The next line without its end, None at the end of the stream; `whole` refuses one that is too long."""
    line = stream.readline(MOST_LINE)
    if not line:
        return None
    if whole and not line.endswith(b"\n"):
        if len(line) >= MOST_LINE:
            raise DeviceError("the device sent an oversized line", value=f"more than {MOST_LINE} bytes")
        return None  # cut short: the connection ended in it
    return line.rstrip(b"\r\n")
