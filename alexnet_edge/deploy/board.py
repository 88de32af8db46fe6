"""What runs on the device for one deploy. It is sent over SSH, so it needs nothing but Python's standard library.

One process per connection reads requests from standard input and answers on standard output, one JSON object per line. A
request may be followed by bytes: `bytes` says how many. An answer begins with `MARK`, so that what a login script prints
is told from it. Empty lines are signs of life. When standard input ends, or is silent for too long, the process ends its
children and itself, and the kernel frees the lock: a cut connection leaves nobody behind.

Below the root folder (`~/alexnet-edge`):

- `lock`: held by the process that changes something;
- `current`: link to the release that serves, replaced by a rename;
- `history.jsonl`: every switch;
- `releases/ID/`: `release.json` (the journal of its steps), `bundle.json`, `files/`, `artifacts/`, `report/`, `log.txt`,
  and for whoever runs it the fixed names `artifact`, `artifact.json` and `alexnet-edge`;
- `store/SHA256`: files that arrived whole; `incoming/SHA256`: those that are on their way;
- `environments/KEY/`: Python environments; `cache/`: TensorRT's timings.

Nothing that a request names is a path: files go by checksum, releases by an identifier, reports by one of a few names.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import platform
import pwd
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

MARK = "alexnet-edge> "
"""Begins every line that is meant for the other side."""
MOST_BYTES = 4 << 30
"""Largest single file that is taken."""
MOST_FILES = 512
"""Most files in a bundle."""
SPARE_BYTES = 64 << 20
"""Disk space that is left free."""
BLOCK = 1 << 18
STEPS = ("stage", "environment", "build", "bench", "switch")
"""The steps of a release, in their order; each is done once."""
ARTIFACT, MANIFEST, COMMAND = "artifact", "artifact.json", "alexnet-edge"
"""The fixed names in a release: what serves, its manifest, and the program in the release's environment."""
REPORTS = {"bench.json": "report/bench.json", "manifest.json": MANIFEST}
REPORTS |= {name: name for name in ("release.json", "log.txt")}
"""What can be fetched of a release, by name."""

RELEASE = re.compile(r"[a-z0-9][a-z0-9-]{1,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"(wheels/)?[A-Za-z0-9][A-Za-z0-9._+-]{0,150}")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,<>=!*\[\]-]{0,150}")


class Refused(Exception):  # noqa: N818  # an answer, not a fault of this program
    """The request cannot be done; `kind` tells the other side which exception it is."""

    def __init__(self, problem: str, *, kind: str = "user", fix: str = "") -> None:
        super().__init__(problem)
        self.kind = kind
        self.fix = fix


class GoneError(Exception):
    """The other side is gone."""


class Line:
    """Standard input and output, without Python's buffers."""

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        """The other side is taken for gone when nothing came for so long."""
        self._kept = b""
        self._heard = time.monotonic()

    def say(self, **value: Any) -> None:
        data = (MARK + json.dumps(value) + "\n").encode()
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError as error:
            raise GoneError from error

    def request(self) -> dict[str, Any]:
        head = b""
        while not head.strip():
            while b"\n" not in self._kept:
                if len(self._kept) > 1 << 22:
                    raise GoneError
                self._kept += self._read()
            head, _, self._kept = self._kept.partition(b"\n")
        value = json.loads(head)
        if not isinstance(value, dict):
            raise GoneError
        return value

    def take(self, count: int) -> bytes:
        """The next bytes, at least one and at most `count`."""
        if not self._kept:
            self._kept = self._read()
        data, self._kept = self._kept[:count], self._kept[count:]
        return data

    def alive(self) -> None:
        """Read the signs of life that came while a child works."""
        while select.select([0], [], [], 0)[0]:
            self._kept += self._read()
            if self._kept.strip(b"\n"):
                raise GoneError  # nothing may be asked meanwhile
            self._kept = b""
            self._heard = time.monotonic()
        if time.monotonic() - self._heard > self.silence_s:
            raise GoneError

    def _read(self) -> bytes:
        if not select.select([0], [], [], self.silence_s)[0]:
            raise GoneError
        data = os.read(0, BLOCK)
        if not data:
            raise GoneError
        self._heard = time.monotonic()
        return data


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, and on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """None when there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def sha256_of(path: Path, most: int = sys.maxsize) -> str:
    """Of a regular file, or of its first `most` bytes; links are not followed."""
    digest, remaining = hashlib.sha256(), most
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
        while block := stream.read(min(1 << 20, remaining)):
            digest.update(block)
            remaining -= len(block)
    return digest.hexdigest()


def size_of(path: Path) -> int | None:
    """None when it is not there; refuses what is not a regular file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} on the device is not a regular file", fix="remove it")
    return status.st_size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _text(path: str) -> str | None:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")[: 1 << 16] or None
    return None


def _answer(*command: str, timeout_s: float = 10) -> str | None:
    """What a command prints; None when it is not there, fails, prints nothing or takes too long."""
    try:
        output = subprocess.check_output(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=timeout_s
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return output.decode("utf-8", "replace").strip()[:4096] or None


def _read_out(pattern: str, path: str) -> str | None:
    """The groups of a pattern in a text file, joined by points."""
    match = re.search(pattern, _text(path) or "", re.MULTILINE)
    return ".".join(match.groups()) if match else None


def matched(pattern: re.Pattern[str], value: Any, noun: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value) or ".." in value:
        raise Refused(f"not {noun}: {str(value)[:80]!r}")
    return value


def facts(root: Path) -> dict[str, Any]:
    """Everything that the preflight looks at; None where it cannot be read."""
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return {
        "user": _user(),
        "home": str(Path.home()),
        "root": str(root),
        "machine": platform.machine(),
        "model": os.environ.get("ALEXNET_EDGE_MODEL") or _text("/proc/device-tree/model"),
        "container": os.environ.get("ALEXNET_EDGE_IMAGE"),
        "os": _read_out(r'^PRETTY_NAME="?([^"\n]+)', "/etc/os-release"),
        "kernel": platform.release(),
        "libc": "-".join(platform.libc_ver()).strip("-") or None,
        "python": platform.python_version(),
        "venv": find_spec("venv") is not None and find_spec("ensurepip") is not None,
        "cpu_features": (_read_out(r"^(?:flags|Features)\s*:\s*(.+)$", "/proc/cpuinfo") or "").split(),
        "memory_bytes": memory_bytes("MemTotal"),
        "memory_available_bytes": memory_bytes("MemAvailable"),
        "disk_free_bytes": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK | os.X_OK),
        "l4t": _read_out(r"R(\d+).*?REVISION:\s*([\d.]+)", "/etc/nv_tegra_release"),
        "jetpack": _answer("dpkg-query", "--show", "--showformat", "${Version}", "nvidia-jetpack"),
        "cuda": _read_out(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', "/usr/local/cuda/version.json"),
        "tensorrt": _tensorrt(),
        "gpu": any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu")),
        "power_mode": power_mode(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "boot_id": _text("/proc/sys/kernel/random/boot_id"),
    }


def memory_bytes(name: str) -> int | None:
    """A line of `/proc/meminfo`."""
    number = _read_out(rf"^{name}:\s+(\d+) kB", "/proc/meminfo")
    return int(number) * 1024 if number else None


def power_mode() -> str | None:
    """What `nvpmodel` says; in a container, which has none, what its files say."""
    if answer := re.search(r"NV Power Mode:\s*(\S+)", _answer("nvpmodel", "-q") or ""):
        return answer.group(1)
    number = _read_out(r"pmode:(\d+)", "/var/lib/nvpmodel/status")
    if number is None:
        return None
    return _read_out(rf"POWER_MODEL ID=0*{int(number)} NAME=([^\s>]+)", "/etc/nvpmodel.conf") or number


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _tensorrt() -> str | None:
    """Version of the system's TensorRT bindings, read from their files: importing them takes seconds."""
    if find_spec("tensorrt") is None:
        return None
    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        package = _answer("dpkg-query", "--show", "--showformat", "${Version}", "python3-libnvinfer")
        return (package or "").split("-")[0] or "unknown"


class Board:
    """The requests, one method each."""

    FREE = ("facts", "lock", "have", "status", "fetch")
    LOCKED = ("receive", "stage", "environment", "run", "switch", "rollback", "prune")
    """Those that need the lock."""

    def __init__(self, root: Path, line: Line) -> None:
        self.root = root
        self.line = line
        self.descriptor: int | None = None
        """Of the lock, while it is held."""

    def _release(self, name: Any) -> Path:
        return self.root / "releases" / matched(RELEASE, name, "a release")

    def _known(self, name: Any) -> Path:
        folder = self._release(name)
        if folder.is_symlink() or not folder.is_dir():
            raise Refused(f"the device has no release {name}", fix="see `alexnet-edge deploy status`")
        return folder

    def _state(self, folder: Path) -> dict[str, Any]:
        value = read_json(folder / "release.json")
        return value if isinstance(value, dict) and isinstance(value.get("steps"), dict) else {"steps": {}}

    def current(self) -> str | None:
        """The release that serves."""
        try:
            target = os.readlink(self.root / "current")  # noqa: PTH115  # the text of the link, not what it leads to
        except OSError:
            return None
        head, _, name = target.partition("/")
        return name if head == "releases" and RELEASE.fullmatch(name) and (self.root / target).is_dir() else None

    def facts(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        return facts(self.root)

    def lock(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Take the lock; whoever has it is named."""
        by = matched(re.compile(r"[\w.@-]{0,80}"), str(request.get("who", "")), "a name")
        for name in ("", "releases", "store", "incoming", "environments", "cache"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.root / "lock", flags, 0o600)
        deadline = time.monotonic() + float(request.get("wait_s", 0))
        while not _locked(descriptor):
            if time.monotonic() >= deadline:
                who = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
                os.close(descriptor)
                raise Refused(f"another deploy is at work on the device ({who})", kind="busy", fix="wait for it")
            time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"from {by}, process {os.getpid()}, since {_now()}".encode(), 0)
        self.descriptor = descriptor
        return {"current": self.current()}

    def have(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """How much of each file is here already, and the checksum of that part."""
        digests = request.get("files")
        if not isinstance(digests, list) or len(digests) > MOST_FILES:
            raise Refused(f"a bundle has at most {MOST_FILES} files")
        parts: dict[str, Any] = {}
        for digest in digests:
            part = self.root / "incoming" / matched(_SHA256, digest, "a checksum")
            if size_of(self.root / "store" / digest) is not None:
                parts[digest] = {"whole": True}
            else:
                size = size_of(part)
                parts[digest] = {"whole": False, "bytes": size or 0, "sha256": sha256_of(part) if size else None}
        return parts

    def receive(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The rest of a file, from `offset` on; kept when its checksum is the one it is named by."""
        digest = matched(_SHA256, request.get("sha256"), "a checksum")
        offset, count = request.get("offset"), request.get("bytes")
        if type(offset) is not int or type(count) is not int or offset < 0 or count < 0 or offset + count > MOST_BYTES:
            raise Refused(f"oversized file: at most {MOST_BYTES} bytes are taken", kind="fatal")
        part = self.root / "incoming" / digest
        size = size_of(part)
        if size is not None and offset == 0:
            part.unlink()
        elif (size or 0) != offset:
            raise Refused(f"the device has {size or 0} bytes of the file, not {offset}", kind="fatal")
        free = shutil.disk_usage(self.root).free
        if free < count + SPARE_BYTES:
            problem = f"disk full on the device: {count / 1e6:.0f} MB to copy, {free / 1e6:.0f} MB free"
            raise Refused(problem, kind="fatal", fix=f"free some space in {self.root}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(part, flags, 0o600), "ab", buffering=0) as stream:
            remaining = count
            while remaining:
                block = self.line.take(min(remaining, BLOCK))
                remaining -= len(block)
                while block:
                    block = block[stream.write(block) :]
            os.fsync(stream.fileno())
        if sha256_of(part) != digest:
            part.unlink()
            raise Refused("a file arrived damaged: its checksum is not the one announced", kind="corrupt")
        part.replace(self.root / "store" / digest)
        _sync_folder(self.root / "store")
        return {"bytes": offset + count}

    def stage(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Lay the files of a bundle out as a release; what an earlier try finished is kept."""
        folder = self._release(request.get("id"))
        bundle = request.get("bundle")
        files = _checked_files(bundle)
        state = self._state(folder)
        if "stage" in state["steps"] and read_json(folder / "bundle.json") == bundle:
            places = ((folder / "files" / name, digest, size) for name, (digest, size) in files.items())
            if all(size_of(path) == size and sha256_of(path) == digest for path, digest, size in places):
                return state
        if folder.is_symlink() or (folder.exists() and folder.name == self.current()):
            problem = f"release {folder.name} serves and its files are damaged"
            raise Refused(problem, fix="add --force for a new release")
        if folder.exists():
            shutil.rmtree(folder)
        for name in ("files/wheels", "artifacts", "report"):
            (folder / name).mkdir(mode=0o700, parents=True)
        for name, (digest, size) in files.items():
            source = self.root / "store" / digest
            if size_of(source) != size or sha256_of(source) != digest:
                source.unlink(missing_ok=True)
                raise Refused(f"corrupt bundle: {name} on the device is not what was sent", kind="corrupt")
            os.link(source, folder / "files" / name, follow_symlinks=False)
        write_json(folder / "bundle.json", bundle)
        state = {"id": folder.name, "created": _now(), "about": request["bundle"].get("about", {}), "steps": {}}
        write_json(folder / "release.json", state)
        return self._done(folder, "stage", {"files": len(files)})

    def _done(self, folder: Path, step: str, result: Mapping[str, Any]) -> dict[str, Any]:
        state = self._state(folder)
        state["steps"][step] = {"at": _now(), **result}
        state.pop("failed", None)
        write_json(folder / "release.json", state)
        return state

    def environment(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A Python environment with the bundle's wheel and what it needs; one that is there already is used again."""
        folder = self._known(request.get("id"))
        key = matched(_KEY, request.get("key"), "an environment")
        requirements = [matched(_REQUIREMENT, word, "a requirement") for word in request.get("requirements", [])]
        wheel = folder / "files" / matched(_NAME, request.get("wheel"), "a name of a file in a bundle")
        place = self.root / "environments" / key
        python = place / "bin" / "python"
        launch = os.environ.get("ALEXNET_EDGE_LAUNCH")  # in a container: how the device's shell starts one
        probe = (str(python), "-I", "-c", "import alexnet_edge; print('imported')")
        used_again = (place / "complete").is_file() and _answer(*probe, timeout_s=300) is not None
        if not used_again:
            if place.exists():
                shutil.rmtree(place)
            system = ["--system-site-packages"] if request.get("system_packages") else []
            self._child(folder, "environment", [sys.executable, "-I", "-m", "venv", *system, str(place)])
            offline = ["--no-index"] if request.get("offline") else []
            command = [str(python), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
            if launch:  # the image's own packages are seen too; this wheel comes before the one that the image may have
                self._child(folder, "environment", [*command, "--no-deps", str(wheel)])
                (packages,) = place.glob("lib/python3*/site-packages")
                (packages / "image.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
            command += [*offline, "--find-links", str(folder / "files" / "wheels"), str(wheel), *requirements]
            self._child(folder, "environment", command)
            write_json(place / "complete", {"at": _now(), "requirements": requirements})
        inside = f'python={python}\nset -- -I -m alexnet_edge "$@"\n{launch}'
        start = inside if launch else f'exec "{python}" -I -m alexnet_edge "$@"\n'
        command_file = folder / COMMAND
        command_file.write_text(f"#!/bin/sh\n{start}", encoding="utf-8")
        command_file.chmod(0o755)
        return self._done(folder, "environment", {"key": key, "used_again": used_again})

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A step of the package itself, in the release's environment; its progress is passed on."""
        folder = self._known(request.get("id"))
        step = request.get("step")
        if step not in ("build", "bench"):
            raise Refused(f"no such step: {str(step)[:40]!r}")
        environment = matched(_KEY, self._state(folder)["steps"].get("environment", {}).get("key"), "an environment")
        python = self.root / "environments" / environment / "bin" / "python"
        settings = json.dumps(request.get("settings", {}))
        command = [str(python), "-I", "-m", "alexnet_edge.deploy.agent", step, str(folder), settings]
        result = self._child(folder, step, command)
        if result is None:
            raise Refused(f"{step} ended without a result")
        return self._done(folder, step, result)

    def _child(self, folder: Path, step: str, command: list[str]) -> dict[str, Any] | None:
        """Run a command whose lines of JSON on standard output are events, and return its `result`; the rest is logged."""
        with (folder / "log.txt").open("ab") as log:
            log.write(f"--- {_now()} {step}: {' '.join(command)[:2000]}\n".encode())
            log.flush()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "PIP_NO_INPUT": "1"},
                start_new_session=True,
                pass_fds=() if self.descriptor is None else (self.descriptor,),  # held as long as anybody works
            )
            assert child.stdout is not None
            try:
                events, last = self._follow(child.stdout.fileno(), log)
                code = child.wait()
            except BaseException:
                end_group(child)
                raise
        problem = events.get("problem")
        if code == 0 and problem is None:
            return events.get("result")
        reason = _last_error(folder / "log.txt") if problem is None else str(problem)
        if code < 0:
            killed = signal.Signals(-code).name
            reason = f"killed by {killed}{', as the kernel does when memory runs out' if code == -9 else ''}"
        if shutil.disk_usage(self.root).free < SPARE_BYTES // 4 and "disk" not in reason:
            reason = f"disk full on the device: {reason}"
        reason = f"{step} failed on the device: {reason or last or f'exit code {code}'}"
        failed = {"step": step, "at": _now(), "problem": reason}
        write_json(folder / "release.json", {**self._state(folder), "failed": failed})
        raise Refused(reason, kind="gate" if events.get("gate") else "user")

    def _follow(self, descriptor: int, log: BinaryIO) -> tuple[dict[str, Any], str]:
        """Pass the progress of a child on; returns its last events, merged, and the last line that was none."""
        events, last, kept = dict[str, Any](), "", b""
        while True:
            ready = select.select([descriptor], [], [], 0.5)[0]
            self.line.alive()
            if not ready:
                continue
            block = os.read(descriptor, BLOCK)
            *lines, kept = (kept + block).split(b"\n")
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if not isinstance(event, dict):
                    log.write(line + b"\n")
                    last = line.decode("utf-8", "replace").strip() or last
                elif "result" in event or "problem" in event:
                    events.update(event)
                else:
                    self.line.say(progress=event)
            if not block:
                return events, last

    def switch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let a release serve, when every step before is done and its artifact is whole."""
        folder = self._known(request.get("id"))
        state = self._state(folder)
        missing = [step for step in STEPS[:-1] if step not in state["steps"]]
        if missing:
            raise Refused(f"release {folder.name} is not finished: no {', '.join(missing)}")
        self.require_whole(folder)
        before = self.current()
        if before == folder.name:
            return {"before": before, "current": before, "state": state}
        state = self._done(folder, "switch", {})
        self._point(folder.name, before, "deploy")
        return {"before": before, "current": folder.name, "state": state}

    def require_whole(self, folder: Path) -> None:
        """Refuse a release whose artifact is not the one of its manifest."""
        manifest = read_json(folder / MANIFEST)
        try:
            digest = sha256_of((folder / ARTIFACT).resolve(strict=True))
        except OSError as error:
            raise Refused(f"the artifact of release {folder.name} cannot be read ({error.strerror})") from error
        if not isinstance(manifest, dict) or manifest.get("sha256") != digest:
            raise Refused(f"the artifact of release {folder.name} is not what was proved: its checksum differs")

    def _point(self, name: str, before: str | None, why: str) -> None:
        """Let `current` lead to a release, and note it in the history."""
        temporary = self.root / ".current.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(f"releases/{name}")
        temporary.replace(self.root / "current")
        _sync_folder(self.root)
        with (self.root / "history.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"at": _now(), "current": name, "before": before, "why": why}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _history(self) -> list[dict[str, Any]]:
        entries = []
        with suppress(OSError):
            for line in (self.root / "history.jsonl").read_bytes().splitlines()[-1000:]:
                with suppress(ValueError):  # cut short by a power failure
                    entries.append(json.loads(line))
        return [entry for entry in entries if isinstance(entry, dict)]

    def rollback(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let the release serve that served before the present one, or the one named."""
        now = self.current()
        if now is None:
            raise Refused("nothing serves on the device, so there is nothing to go back from")
        target = self._before(now) if request.get("to") is None else request["to"]
        if target is None:
            fix = "name one with --to-release; `deploy status` lists them"
            raise Refused(f"no release served before {now}", fix=fix)
        folder = self._known(target)
        if "switch" not in self._state(folder)["steps"]:
            raise Refused(f"release {target} never served: it is not finished", fix="deploy it again")
        self.require_whole(folder)
        if target != now:
            self._point(target, now, "rollback")
        return {"before": now, "current": target, "state": self._state(folder)}

    def _before(self, now: str) -> str | None:
        """What served before the present release, as a deploy left it; going back twice goes two releases back."""
        served: list[str] = []
        for entry in self._history():
            name = entry.get("current")
            if entry.get("why") == "rollback" and name in served:
                while served[-1] != name:
                    served.pop()
            if isinstance(name, str) and RELEASE.fullmatch(name) and (not served or served[-1] != name):
                served.append(name)
        others = (name for name in reversed(served) if name != now)
        return next((name for name in others if (self.root / "releases" / name).is_dir()), None)

    def status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        """Every release with its journal, what serves, and the switches."""
        folders = [folder for folder in sorted(self.root.glob("releases/*")) if RELEASE.fullmatch(folder.name)]
        known = [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]
        releases = [{**self._state(folder), "id": folder.name} for folder in known]
        now = self.current()
        return {
            "current": now,
            "before": None if now is None else self._before(now),
            "releases": releases[-100:],
            "history": self._history()[-20:],
        }

    def fetch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The bytes of a report, in pieces; at most `most` of them, of a log the last."""
        folder = self._known(request.get("id"))
        if request.get("name") not in REPORTS:
            raise Refused(f"no such report: {str(request.get('name'))[:40]!r}")
        path = folder / REPORTS[request["name"]]
        if not path.is_file():
            raise Refused(f"the release has no {request['name']}", kind="missing")
        size, most = path.stat().st_size, int(request.get("most", 1 << 20))
        if size > most and path.suffix != ".txt":
            raise Refused(f"{request['name']} is oversized: {size} bytes, at most {most}")
        with path.open("rb") as stream:
            stream.seek(max(0, size - most))
            remaining = min(size, most)
            while remaining and (block := stream.read(min(remaining, 48 << 10))):
                remaining -= len(block)
                self.line.say(piece=base64.b64encode(block).decode())
        return {"bytes": min(size, most)}

    def prune(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Remove what no kept release needs: the newest `keep`, what serves and what served before it are kept."""
        keep = max(1, int(request.get("keep", 3)))
        folders = [folder for folder in (self.root / "releases").iterdir() if folder.is_dir()]
        folders.sort(key=lambda folder: str(self._state(folder).get("created", "")), reverse=True)
        now = self.current()
        kept = {folder.name for folder in folders[:keep]} | {now, None if now is None else self._before(now)}
        removed = [folder for folder in folders if folder.name not in kept]
        states = [self._state(folder) for folder in folders if folder.name in kept]
        used = {state["steps"].get("environment", {}).get("key") for state in states}
        unused = [place for place in (self.root / "environments").iterdir() if place.name not in used]
        for folder in removed + unused:
            shutil.rmtree(folder)
        for name in ("store", "incoming"):
            for path in (self.root / name).iterdir():
                if path.is_symlink() or path.lstat().st_nlink < 2:  # no release has it as one of its files
                    path.unlink()
        return {"removed": [folder.name for folder in removed]}


def _checked_files(bundle: Any) -> dict[str, tuple[str, int]]:
    """Checksum and size of each file of a bundle, by its name."""
    entries = bundle.get("files") if isinstance(bundle, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_FILES:
        raise Refused(f"a bundle has 1 to {MOST_FILES} files")
    files: dict[str, tuple[str, int]] = {}
    for entry in entries:
        name = matched(_NAME, entry.get("name"), "a name of a file in a bundle")
        size = entry.get("bytes")
        if type(size) is not int or not 0 <= size <= MOST_BYTES:
            raise Refused(f"oversized file in the bundle: {name}")
        if name in files:
            raise Refused(f"the bundle names a file twice: {name}")
        files[name] = (matched(_SHA256, entry.get("sha256"), "a checksum"), size)
    return files


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End a child and everything it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            os.killpg(child.pid, number)
            child.wait(timeout=10)


def _last_error(log: Path) -> str:
    """The line of a log that says most: pip's and Python's errors come last."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 65536))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|error|OSError|\w*Error)\b", line)]
    return (errors or lines or [""])[-1][:500]


def main(root: str, silence_s: str) -> int:
    """Serve one connection; `root` is below the home folder unless it begins with a slash."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of standard input tells
    line = Line(float(silence_s))
    try:
        board = Board(Path.home() / root, line)
        line.say(hello=1, python=platform.python_version())
        while True:
            request = line.request()
            do = str(request.get("do"))
            try:
                if do not in board.FREE + board.LOCKED:
                    raise Refused(f"no such request: {do[:40]!r}")
                if do in board.LOCKED and board.descriptor is None:
                    raise Refused("the lock is not held")
                line.say(done=getattr(board, do)(request))
            except Refused as error:
                line.say(refused=str(error), kind=error.kind, fix=error.fix)
                if error.kind == "fatal":
                    return 1
            except OSError as error:
                why = error.strerror or str(error)
                problem, fix = f"{why}: {error.filename or root}", "check the folder's permissions on the device"
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    problem, fix = f"disk full on the device ({why})", f"free some space in {board.root}"
                line.say(refused=problem, kind="fatal", fix=fix)
                return 1
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                line.say(refused=f"malformed request ({type(error).__name__}: {error})", kind="user", fix="")
    except GoneError:
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
