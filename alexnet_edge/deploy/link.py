"""One SSH connection to a device: the system's own client, its configuration, known hosts and agent.

The client is told never to ask (`BatchMode`), and nothing that would weaken its checks. What comes back is data: lines of
bounded length and number, control characters taken out before anything is shown.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

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
OLDEST_PYTHON = (3, 10)

_DESTINATION = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}@)?[A-Za-z0-9_](?:[A-Za-z0-9_.:%-]{0,252}[A-Za-z0-9_])?")
_PYTHON = re.compile(r"[A-Za-z0-9_/~][A-Za-z0-9_./+-]{0,200}")
_ROOT = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]{0,200}")

_BOOT = (
    "import os,sys\n"
    'if sys.version_info<({major},{minor}):print({mark!r}+\'{{"old":"%d.%d"}}\'%sys.version_info[:2]);sys.exit(3)\n'
    "b=b''\n"
    "while len(b)<{length}:\n"
    " c=os.read(0,{length}-len(b))\n"
    " if not c:sys.exit(4)\n"
    " b+=c\n"
    "exec(compile(b,'board.py','exec'))\n"
)
"""Reads the program from standard input, byte for byte, and leaves the rest to it; it runs on any Python 3."""

_CLIENT_SAYS: tuple[tuple[str, str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the device's host key has changed",
        "if it was installed anew: ssh-keygen -R HOST, then connect once with ssh and compare the key",
    ),
    (
        "Host key verification failed",
        "the device's host key is not known",
        "connect once with ssh and compare the key with the device's",
    ),
    ("Permission denied", "the device accepts none of your keys", "run ssh-copy-id, or load the key with ssh-add"),
    ("Could not resolve hostname", "no such host name", "check it, or add it to ~/.ssh/config"),
    ("Connection refused", "nothing answers on the device's SSH port", "start its SSH server, or check the port"),
    ("timed out", "the device does not answer", "check that it is on and reachable, or give more --connect-seconds"),
    ("No route to host", "the device cannot be reached", "check the network"),
    ("Bad owner or permissions", "the SSH client refuses its own configuration", "correct the file's permissions"),
)


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
        if not _PYTHON.fullmatch(self.python):
            raise UserError("not a Python on the device", value=repr(self.python), fix="write it as python3.12")
        if not _ROOT.fullmatch(self.root) or ".." in self.root.split("/"):
            raise UserError("not a folder on the device", value=repr(self.root), fix="write it as alexnet-edge")
        if self.container is not None and not container.is_image(self.container):
            raise UserError(
                "not a container image", value=repr(self.container), fix="write it as alexnet-edge:jetpack6"
            )
        for name, seconds in (("--connect-seconds", self.connect_s), ("--silence-seconds", self.silence_s)):
            if not 1 <= seconds <= 86400:
                raise UserError(f"{name} must be 1 to 86400", value=seconds, fix="leave it out for the default")


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkSettings(LinkOptions):
    """How one device is reached."""

    destination: str
    """`user@host`, `host`, or a name from the SSH configuration."""

    def __post_init__(self) -> None:
        if not _DESTINATION.fullmatch(self.destination):
            raise UserError(
                "not a host to deploy to",
                value=repr(self.destination),
                fix="write it as user@host; set port and key in ~/.ssh/config",
            )
        LinkOptions.__post_init__(self)


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
        self._process: subprocess.Popen[bytes] | None = None
        self._client_lines: deque[str] = deque(maxlen=40)
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def command(self) -> list[str]:
        """The client's command line; the destination stands behind `--`, so that it can never be an option."""
        settings = self.settings
        source = self._source()
        boot = _BOOT.format(major=OLDEST_PYTHON[0], minor=OLDEST_PYTHON[1], mark=MARK, length=len(source))
        if settings.container is not None:
            remote = container.start_command(
                settings.container, settings.python, settings.root, settings.silence_s, boot
            )
        else:
            remote = shlex.join([settings.python, "-c", boot, settings.root, f"{settings.silence_s:g}"])
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(max(1, round(settings.connect_s))),
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": str(max(1, round(settings.silence_s / 10))),
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "ControlMaster": "no",
        }
        return [
            find_ssh(),
            "-T",
            *(["-F", str(settings.ssh_config)] if settings.ssh_config is not None else []),
            *[word for name, value in options.items() for word in ("-o", f"{name}={value}")],
            "--",
            settings.destination,
            f"exec {remote}",  # the shell makes way, so that the client's exit code is that of what runs
        ]

    @staticmethod
    def _source() -> bytes:
        return Path(board.__file__).read_bytes()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours to handle: the client goes when its input ends
        )
        for target in (self._listen, self._beat):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
        try:
            self._write(self._source())
            hello = self._next(self._noise())
        except BaseException:
            self.close(at_once=True)
            raise
        if "old" in hello:
            self.close()
            raise DeviceError(
                "the device's Python is too old",
                value=f"{printable(hello['old'], 20)}, and 3.10 is needed",
                fix="install one, and name it with --python",
            )
        if hello.get("hello") != 1:
            self.close()
            raise DeviceError("the device speaks another language", value=printable(hello, 80))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=error is not None)

    def close(self, *, at_once: bool = False) -> None:
        """End the connection; what runs on the device ends with it."""
        process, self._process = self._process, None
        if process is None:
            return
        self._over.set()
        streams = [stream for stream in (process.stdin, process.stdout) if stream is not None]
        try:
            streams[0].close()
            process.wait(timeout=0 if at_once else 10)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        for thread in self._threads:
            thread.join(timeout=10)
        for stream in (*streams, process.stderr):
            if stream is not None:
                stream.close()

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask(
        self, do: str, *, on_progress: Callable[[Mapping[str, Any]], None] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """One request, and its answer.

        Raises:
            DeviceError: when the device refuses; GateError when what it made is not good enough.
            DisconnectedError: when the connection breaks.
        """
        try:
            self._write(json.dumps({"do": do, **fields}).encode() + b"\n")
        except DisconnectedError as gone:
            return self._last_word(gone, on_progress)
        return self._answer(on_progress)

    def send(self, path: Path, *, sha256: str, offset: int, on_bytes: Callable[[int], None]) -> None:
        """The bytes of `path` from `offset` on; `on_bytes` is told how many bytes of it the client took so far.

        Raises:
            DeviceError: when the device refuses it: full disk, oversized, or damaged on the way (`kind` is `corrupt`).
            DisconnectedError: when the connection breaks.
        """
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
            self._last_word(gone, None)  # a full disk, an oversized file
            raise
        self._answer(None)

    def fetch(self, release: str, name: str, *, most: int) -> bytes | None:
        """A report of a release; None when the release has none of that name."""
        pieces: list[bytes] = []

        def take(event: Mapping[str, Any]) -> None:
            try:
                pieces.append(base64.b64decode(str(event["piece"]), validate=True))
            except ValueError as error:
                raise DeviceError("the device sent a damaged report", value=name) from error
            if sum(map(len, pieces)) > most:
                raise DeviceError("the device sent an oversized report", value=f"{name}, more than {most} bytes")

        self._write(json.dumps({"do": "fetch", "id": release, "name": name, "most": most}).encode() + b"\n")
        try:
            self._answer(None, take)
        except DeviceError as error:
            if error.kind == "missing":
                return None
            raise
        return b"".join(pieces)

    # --- the line -----------------------------------------------------------------------------------------------------

    def _last_word(
        self, gone: DisconnectedError, on_progress: Callable[[Mapping[str, Any]], None] | None
    ) -> dict[str, Any]:
        """What the device said before it hung up and took nothing more, which tells why; raises `gone` when it said nothing."""
        try:
            return self._answer(on_progress)
        except DisconnectedError:
            raise gone from None

    def _answer(
        self,
        on_progress: Callable[[Mapping[str, Any]], None] | None,
        on_piece: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        noise = self._noise()
        while True:
            event = self._next(noise)
            if isinstance(event.get("done"), dict):
                done: dict[str, Any] = event["done"]
                return done
            if "refused" in event:
                raise self._refusal(event)
            if isinstance(event.get("progress"), dict):
                if on_progress is not None:
                    on_progress(event["progress"])
            elif "piece" in event and on_piece is not None:
                on_piece(event)
            else:
                raise DeviceError("the device's answer is not understood", value=printable(event, 80))

    @staticmethod
    def _refusal(event: Mapping[str, Any]) -> Exception:
        problem, fix, kind = printable(event["refused"]), printable(event.get("fix", "")), event.get("kind")
        if kind == "gate":
            return GateError(problem)
        error = DeviceError(problem, fix=fix)
        error.kind = str(kind)
        return error

    @staticmethod
    def _noise() -> list[int]:
        return [MOST_NOISE]

    def _next(self, noise: list[int]) -> dict[str, Any]:
        """The next line of the device's program; lines of others are passed over."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            line = _bounded_line(self._process.stdout)
            if line is None:
                raise self._gone()
            if not line.startswith(MARK.encode()):
                noise[0] -= 1
                if noise[0] < 0:
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
        assert self._process is not None
        assert self._process.stdin is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._process.stdin.fileno(), view) :]
        except OSError as error:
            raise self._gone() from error

    def _beat(self) -> None:
        """A sign of life now and then."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        while not self._over.wait(HEARTBEAT_S):
            if self._writing.acquire(blocking=False):
                try:
                    os.write(process.stdin.fileno(), b"\n")
                except (OSError, ValueError):
                    return
                finally:
                    self._writing.release()

    def _listen(self) -> None:
        """Keep the last lines that the client says of itself."""
        process = self._process
        assert process is not None
        assert process.stderr is not None
        try:
            while (line := _bounded_line(process.stderr, whole=False)) is not None:
                self._client_lines.append(line.decode("utf-8", "replace"))
        except (OSError, ValueError):  # closed
            return

    def _gone(self) -> Exception:
        """Why there is no connection, from the client's output and its exit code."""
        process = self._process
        assert process is not None
        try:
            code: int | None = process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        self._threads[0].join(timeout=5)
        output = "\n".join(self._client_lines)
        host = self.settings.destination
        if self.settings.container is not None and code in container.FAILED:
            lines = [line for line in self._client_lines if line.strip()]
            hint = printable(next((line for line in lines if "rror" in line), lines[-1] if lines else ""), 200)
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
            for words, problem, fix in _CLIENT_SAYS:
                if words in output:
                    return DisconnectedError(problem, value=host, fix=fix.replace("HOST", host.rpartition("@")[2]))
        hint = printable(next((line for line in reversed(self._client_lines) if line.strip()), ""), 200)
        return DisconnectedError(
            "the connection to the device was lost",
            value=f"{host}{f' ({hint})' if hint else ''}",
            fix="deploy again: what is done is not done twice",
        )


def find_ssh() -> str:
    """The system's OpenSSH client.

    Raises:
        MissingComponentError: when there is none.
    """
    client = shutil.which("ssh", path=os.environ.get("PATH"))
    if client is None:
        raise MissingComponentError("no OpenSSH client here", fix="run: sudo apt-get install openssh-client")
    return client


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
