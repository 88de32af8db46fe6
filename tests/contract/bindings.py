"""The real Python bindings of TensorRT, importable on a machine without TensorRT.

NVIDIA publishes the extension module of every release as a wheel of its own, apart from the libraries it calls. Over stub
libraries with the right names it can be imported anywhere: classes, enumerations, docstrings and value types are the real
ones, only nothing can be built or run. What the wheels and a C compiler make is kept in a cache, by content.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

STUBS = Path(__file__).with_name("stubs.c")
REQUIRED = "ALEXNET_EDGE_REQUIRE_BINDINGS"
"""Environment variable: `1` makes missing bindings a failure, as in continuous integration, not a skip; but where NVIDIA
has none for this Python they are skipped all the same."""
CACHE = "ALEXNET_EDGE_CACHE"
"""Environment variable: folder of the wheels, what is in them, and the compiled stubs."""


class BindingsError(Exception):
    """The bindings cannot be had here; the message says why, in one line."""


class NoWheelError(BindingsError):
    """NVIDIA published none for this Python: 8.6.1 ends at 3.11. Nothing on this machine can change that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One release of TensorRT and the wheel with its bindings."""

    version: str
    package: str
    """Name of the wheel on the package index."""

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


RELEASES = (
    Release(version="8.6.1", package="tensorrt-bindings"),
    Release(version="10.0.1", package="tensorrt-cu12-bindings"),
    Release(version="10.3.0", package="tensorrt-cu12-bindings"),
    Release(version="10.7.0", package="tensorrt-cu12-bindings"),
    Release(version="10.13.3.9", package="tensorrt-cu12-bindings"),
    Release(version="10.16.1.11", package="tensorrt-cu12-bindings"),
    Release(version="11.0.0.114", package="tensorrt-cu13-bindings"),
    Release(version="11.4.0.106", package="tensorrt-cu13-bindings"),
)
"""8.6 is JetPack 6.0's, 10.3 JetPack 6.1's and 6.2's, 10.13 JetPack 7.0's and 7.1's, 10.16 JetPack 7.2's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """A release that can be imported here."""

    release: Release
    folder: Path
    """What is put on `sys.path`."""
    stubs: tuple[Path, ...]
    """Stub libraries, in the order they are loaded."""

    def load(self) -> ModuleType:
        """Import the bindings: once per process, because two releases do not fit into one."""
        for library in self.stubs:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        sys.modules["tensorrt_libs"] = ModuleType("tensorrt_libs")  # where the bindings look for the real libraries
        sys.path.insert(0, str(self.folder))
        return importlib.import_module("tensorrt_bindings")


def required() -> bool:
    """Whether bindings that cannot be had are a failure."""
    return os.environ.get(REQUIRED) == "1"


def prepare(releases: Iterable[Release] = RELEASES) -> dict[str, Binding | BindingsError]:
    """Download, unpack and compile what is not in the cache yet: the binding of each version, or why there is none."""
    with ThreadPoolExecutor(4) as pool:
        return dict(pool.map(_prepare, releases))


def _prepare(release: Release) -> tuple[str, Binding | BindingsError]:
    try:
        folder = unpacked(_wheel(release))
        return release.version, Binding(release=release, folder=folder, stubs=stubs(release.major))
    except BindingsError as reason:
        return release.version, reason


def _cache() -> Path:
    named = os.environ.get(CACHE)
    return Path(named) if named else Path.home() / ".cache" / "alexnet-edge" / "bindings"


def _wheel(release: Release) -> Path:
    if not sys.platform.startswith("linux"):
        raise BindingsError(f"the stub libraries are for Linux, this is {sys.platform}")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return fetch(release.package, release.version, python=python)


def fetch(package: str, version: str, *, python: str = "py3") -> Path:
    """The wheel of a package, without what it depends on, from the cache or the package index.

    `python` is the tag in the wheel's name: one for another Python may lie beside it.

    Raises:
        BindingsError: when it cannot be had, with the reason.
    """
    folder = _cache() / "wheels"
    found = _find(folder, package, version, python)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        patience = ["--retries", "1", "--timeout", "30"]
        wanted = f"{package}=={version}"
        answer = subprocess.run(
            [*command, *patience, "--dest", download, wanted],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        wheel = _find(Path(download), package, version, python)
        if wheel is None:
            raise _why_not(wanted, answer.stderr)
        return wheel.replace(folder / wheel.name)


def _find(folder: Path, package: str, version: str, python: str) -> Path | None:
    name = package.replace("-", "_")
    return next(iter(sorted(folder.glob(f"{name}-{version}-{python}-*.whl"))), None)


def _why_not(wanted: str, stderr: str) -> BindingsError:
    """Why pip brought nothing, from what it said."""
    if "No module named pip" in stderr:
        return BindingsError(f"no wheel of {wanted}: this interpreter has no pip")
    if "Retrying" in stderr:
        return BindingsError(f"no wheel of {wanted}: the package index cannot be reached")
    if "No matching distribution" in stderr or "Could not find a version" in stderr:
        python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        return NoWheelError(f"no wheel of {wanted}: the package index has none for {python} here")
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    return BindingsError(f"no wheel of {wanted}: {lines[-1] if lines else 'pip gives no reason'}")


def unpacked(wheel: Path) -> Path:
    """The folder with what is in a wheel, unpacked once."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    target = _cache() / "unpacked" / digest
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as staging:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(staging)
            _publish(Path(staging), target)
    return target


def _publish(staging: Path, target: Path) -> None:
    """Give a finished folder its name; another process may have been first with the same content."""
    finished = staging.with_name(f"{staging.name}.finished")
    shutil.copytree(staging, finished)
    try:
        finished.rename(target)
    except OSError:
        shutil.rmtree(finished)
        if not target.exists():
            raise


@cache
def stubs(major: int) -> tuple[Path, ...]:
    """The stub libraries of a major release, compiled once."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise BindingsError("there is no C compiler for the stub libraries: install gcc or set CC")
    names = ["nvinfer", "nvinfer_plugin", "nvonnxparser"] + (["nvparsers"] if major == 8 else [])
    digest = hashlib.sha256(STUBS.read_bytes()).hexdigest()[:16]
    target = _cache() / "stubs" / f"{digest}-{os.uname().machine}-{major}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as staging:
            for name in names:
                _compile(compiler, name, major, Path(staging))
            _publish(Path(staging), target)
    return tuple(target / f"lib{name}.so.{major}" for name in names)


def _compile(compiler: str, name: str, major: int, folder: Path) -> None:
    library = f"lib{name}.so.{major}"
    answer = subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-O1", "-w", f"-DLIB_{name}", f"-DVERSION={major * 10000}"),
            *(f"-Wl,-soname,{library}", "-o", str(folder / library), str(STUBS)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise BindingsError(f"the stub {library} does not compile: {answer.stderr.strip().splitlines()[-1]}")
