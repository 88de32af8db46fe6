"""NVIDIA's builders and runtimes on this machine: TensorRT, TensorRT-RTX and trtexec.

Nothing here imports one of them before it is asked for.

Source: TensorRT documentation, "Installing TensorRT" and the Python API of `ILogger`; Jetson Linux packages
`python3-libnvinfer` and `libnvinfer-bin`.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import platform
import shutil
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from alexnet_edge import environment
from alexnet_edge.errors import MissingComponentError, install_command

Library = Literal["tensorrt", "rtx"]
"""What is used through a Python package: TensorRT, or TensorRT-RTX for desktop GPUs."""
Runtime = Literal["tensorrt", "rtx", "trtexec"]
"""What can build an engine: a library, or TensorRT's own program `trtexec`."""

MODULES: dict[Library, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""The Python package of each library."""
NAMES: dict[Runtime, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX", "trtexec": "trtexec"}
"""How each is called in messages."""
TRTEXEC_FOLDERS = (Path("/usr/src/tensorrt/bin"), Path("/opt/tensorrt/bin"))
"""Where JetPack, and NVIDIA's containers, put `trtexec`: neither is on PATH."""

_log = logging.getLogger(__name__)


def load_library(runtime: Library) -> ModuleType:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        MissingComponentError: when it is not installed, or is and cannot be loaded, with what adds it here.
    """
    try:
        return importlib.import_module(MODULES[runtime])
    except Exception as error:  # a broken library may raise anything
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == MODULES[runtime]:
            raise MissingComponentError(f"{NAMES[runtime]} is not installed", fix=_how_to_install(runtime)) from error
        raise _broken(runtime, error) from error


def _broken(runtime: Library, error: Exception) -> MissingComponentError:
    reason, fix = " ".join(str(error).split()) or type(error).__name__, _how_to_install(runtime)
    if "libnvdla_compiler" in reason:  # the host's, mounted by NVIDIA's container runtime; JetPack 7.2 has none
        fix = "in a container on a Jetson, start it with `docker run --runtime nvidia`, from an image for its JetPack"
    return MissingComponentError(f"{NAMES[runtime]} cannot be loaded ({reason})", fix=fix)


def _how_to_install(runtime: Library) -> str:
    if runtime == "tensorrt" and environment.l4t_release() is not None:
        return (
            "run: sudo apt-get install python3-libnvinfer, "
            "and make the virtual environment with --system-site-packages to see it"
        )
    if runtime == "rtx" and platform.machine() not in ("x86_64", "AMD64"):
        return "it is for desktop GPUs on x86-64: on a Jetson use TensorRT or trtexec"
    return f"run: {install_command('trt' if runtime == 'tensorrt' else 'rtx')}"


def find_trtexec() -> Path | None:
    """The program `trtexec`: what the variable TRTEXEC names, else the one on PATH, else JetPack's.

    Raises:
        MissingComponentError: when TRTEXEC is set and names no program.
    """
    named = os.environ.get("TRTEXEC")
    if named:
        path = shutil.which(named)
        if path is None:
            raise MissingComponentError(
                "the variable TRTEXEC names no program that can be run", value=named, fix="correct or unset it"
            )
        return Path(path)
    folders = os.pathsep.join(map(str, TRTEXEC_FOLDERS))
    program = shutil.which("trtexec") or shutil.which("trtexec", path=folders)
    return Path(program) if program else None


def default_runtime() -> Runtime | None:
    """The first of TensorRT, trtexec and TensorRT-RTX that this machine has, or None.

    Raises:
        MissingComponentError: when TRTEXEC is set and names no program: another builder was not asked for.
    """
    if _loads("tensorrt"):
        return "tensorrt"
    if find_trtexec() is not None:
        return "trtexec"
    return "rtx" if _loads("rtx") else None


def _loads(runtime: Library) -> bool:
    """Whether the library can be imported; one that is installed and broken cannot."""
    try:
        load_library(runtime)
    except MissingComponentError:
        return False
    return True


def platform_name() -> str:
    """The platform an engine is tied to: `linux-x86_64`, `linux-aarch64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


_SECOND_LOGGER = "differs from one already registered"
_LIVE: dict[str, weakref.WeakSet[Any]] = {}
"""The loggers in use, by library: a library knows one logger at a time, that of the first object still alive."""


def make_logger(trt: ModuleType, messages: list[str], *, log: list[str] | None = None) -> Any:
    """A logger for TensorRT: everything goes to this package's log, warnings and errors also to `messages`.

    Where several loggers of a library are alive, each keeps what any of them hears: the library tells only one of them.

    Args:
        trt: the imported library, `tensorrt` or `tensorrt_rtx`.
        messages: where warnings and errors are appended, one line each, in the order they come.
        log: where everything but verbose messages is appended with its severity, as `[E] why`; None to keep no log.

    Returns:
        An instance of a subclass of `trt.ILogger`. Keep a reference while anything made with it lives: the library does
        not own it.
    """
    name = str(getattr(trt, "__name__", "tensorrt"))
    base: Any = trt.ILogger
    levels = {
        base.INTERNAL_ERROR: (logging.ERROR, "[F]"),
        base.ERROR: (logging.ERROR, "[E]"),
        base.WARNING: (logging.WARNING, "[W]"),
        base.INFO: (logging.DEBUG, "[I]"),
    }
    live = _LIVE.setdefault(name, weakref.WeakSet())

    class Logger(base):  # type: ignore[misc]  # the library is known at run time only
        """Called from C++, also from its own threads: nothing may be raised here."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            with suppress(BaseException):  # it would end the process from inside C++
                if severity not in levels:  # verbose: thousands of lines that nobody reads
                    return
                level, mark = levels[severity]
                line = " ".join(str(message).split())
                if _SECOND_LOGGER in line:  # it says that this one hears nothing, and it does
                    return
                for logger in tuple(live):
                    logger.keep(mark, line)
                _log.log(level, "%s: %s", name, line)

        def keep(self, mark: str, line: str) -> None:
            if log is not None:
                log.append(f"{mark} {line}")
            if mark != "[I]":
                messages.append(line)

    logger = Logger()
    live.add(logger)
    return logger


@contextmanager
def library_calls() -> Iterator[None]:
    """Around calls to TensorRT, from which it may log.

    It logs with a lock held, and the logger is Python: a collection of garbage that starts there, and finds a dead
    runtime or builder in a reference cycle, destroys it, which takes the same lock and never returns. So no collection starts
    in this block, and the exceptions that leave it keep nothing of the library's alive in their tracebacks.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if enabled:
            gc.enable()
