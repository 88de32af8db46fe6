"""Finding TensorRT, TensorRT-RTX and trtexec, and the logger they are given."""

from __future__ import annotations

import gc
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alexnet_edge.errors import MissingComponentError
from alexnet_edge.nvidia import libraries as nvidia
from alexnet_edge.nvidia.libraries import default_runtime, find_trtexec, load_library, make_logger, platform_name


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any of the three; the answer is the only folder on PATH."""
    for module in nvidia.MODULES.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delenv("TRTEXEC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nvidia, "TRTEXEC_FOLDERS", ())
    return tmp_path


def library(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    module = ModuleType(name)
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, name, module)


def program(folder: Path, name: str = "trtexec") -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_nothing_is_here(bare: Path) -> None:
    assert default_runtime() is None
    assert find_trtexec() is None


def test_the_best_runtime_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch, "tensorrt_rtx", "1.7.1.116")
    assert default_runtime() == "rtx"
    program(bare)
    assert default_runtime() == "trtexec"
    library(monkeypatch, "tensorrt", "10.3.0")
    assert default_runtime() == "tensorrt"


@pytest.mark.parametrize(
    ("runtime", "processor", "l4t", "message"),
    [
        ("tensorrt", "x86_64", None, r"is not installed; run: pip install 'alexnet-edge\[trt\]'"),
        ("rtx", "x86_64", None, r"is not installed; run: pip install 'alexnet-edge\[rtx\]'"),
        ("tensorrt", "aarch64", "36.4.3", r"apt-get install python3-libnvinfer.*--system-site-packages"),
        ("rtx", "aarch64", None, "for desktop GPUs on x86-64"),
    ],
)
def test_a_missing_library_says_what_adds_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch, runtime: Any, processor: str, l4t: str | None, message: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("alexnet_edge.environment.l4t_release", lambda: l4t)
    with pytest.raises(MissingComponentError, match=message):
        load_library(runtime)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ImportError('libnvdla_compiler.so: cannot open shared object file')", "--runtime nvidia"),
        ("raise OSError('libnvinfer.so.10:\\ncannot open')", r"cannot be loaded \(libnvinfer.so.10: cannot open\)"),
        ("import no_such_module_of_tensorrt", "no_such_module_of_tensorrt"),
    ],
)
def test_a_broken_library_says_why(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(text + "\n", encoding="utf-8")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingComponentError, match=message):
        load_library("tensorrt")
    assert default_runtime() is None


def test_trtexec_is_looked_for_where_jetpack_puts_it(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bare / "usr" / "src"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nvidia, "TRTEXEC_FOLDERS", (bare / "none", folder))
    path = program(folder)
    assert find_trtexec() == path


def test_the_variable_goes_before_path(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare)
    named = program(bare, "trtexec-11")
    monkeypatch.setenv("TRTEXEC", str(named))
    assert find_trtexec() == named


def test_a_variable_that_names_nothing_is_an_error_not_another_program(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare)
    monkeypatch.setenv("TRTEXEC", str(bare / "none"))
    with pytest.raises(MissingComponentError, match=r"TRTEXEC names no program.*/none; correct or unset it"):
        find_trtexec()


def test_platform_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert platform_name() == "linux-aarch64"


@pytest.fixture
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


def test_the_logger_keeps_warnings_and_errors(trt: Any) -> None:
    messages: list[str] = []
    log: list[str] = []
    logger = make_logger(trt, messages, log=log)
    for severity in ("VERBOSE", "INFO", "WARNING", "ERROR", "INTERNAL_ERROR"):
        logger.log(getattr(trt.ILogger, severity), f"{severity}\nof two lines")
    assert messages == ["WARNING of two lines", "ERROR of two lines", "INTERNAL_ERROR of two lines"]
    assert log == ["[I] INFO of two lines", *(f"[{mark}] {line}" for mark, line in zip("WEF", messages, strict=True))]


def test_the_logger_writes_to_the_package_log(trt: Any, caplog: pytest.LogCaptureFixture) -> None:
    logger = make_logger(trt, [])
    with caplog.at_level(logging.DEBUG, "alexnet_edge"):
        logger.log(trt.ILogger.WARNING, "slow")
        logger.log(trt.ILogger.INFO, "loaded")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "tensorrt_rtx: slow"),
        ("DEBUG", "tensorrt_rtx: loaded"),
    ]


def test_the_logger_hears_the_library(trt: Any) -> None:
    messages: list[str] = []
    logger = make_logger(trt, messages)
    config = trt.Builder(logger).create_builder_config()
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert messages == ["setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX."]


def test_every_live_logger_hears_what_the_library_tells_one(trt: Any) -> None:
    kept: list[str] = []
    deleted: list[str] = []
    logger, other = make_logger(trt, kept), make_logger(trt, deleted)
    logger.log(trt.ILogger.ERROR, "to both")
    del other
    gc.collect()
    logger.log(trt.ILogger.ERROR, "to the first")
    assert (kept, deleted) == (["to both", "to the first"], ["to both"])


def test_nothing_is_raised_into_the_library(trt: Any) -> None:
    class Full(list[str]):
        def append(self, line: str) -> None:
            raise KeyboardInterrupt

    logger = make_logger(trt, Full())
    assert logger.log(trt.ILogger.ERROR, "no room") is None
