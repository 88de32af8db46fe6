"""NVIDIA's parser is asked in a child process: what it does there is an answer, and never ends the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from alexnet_edge.export.engines import parser
from alexnet_edge.export.engines.parser import ParserAnswer, Refusal, ask_parser

LIBRARY = """
import os, signal, time

__version__ = "10.3.0.26"


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class NetworkDefinitionCreationFlag:
    EXPLICIT_BATCH = 0


class Error:
    def desc(self):
        return "Assertion failed: a == b: two\\nlines"

    def node(self):
        return 0


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        assert flags == 1
        return self


class OnnxParser:
    num_errors = 1

    def __init__(self, network, logger):
        self.logger = logger

    def get_error(self, index):
        return Error()

    def parse_from_file(self, path):
"""

Stand = Callable[[str], None]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Installs a TensorRT 10.3 whose parser does what is written."""

    def install(body: str, library: str = LIBRARY) -> None:
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / "tensorrt.py").write_text(f"{library}        {body}\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return install


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save_model(helper.make_model(graph), str(tmp_path / "model.onnx"))
    return tmp_path / "model.onnx"


def asked(path: Path) -> ParserAnswer | None:
    return ask_parser(path, ["tensorrt"], (8, 6))


@pytest.mark.parametrize(
    ("body", "refusals"),
    [
        ("return True", ()),
        ("os.write(1, b'[]\\n' * 9000); os.write(2, b'noise' * 90000); return True", ()),
        ("return False", (Refusal(reason="two lines", index=0),)),
        ("os.kill(os.getpid(), signal.SIGSEGV)", (Refusal(reason="the parser crashed (SIGSEGV)"),)),
        ("raise SystemExit(3)", (Refusal(reason="the parser failed"),)),
    ],
    ids=["accepts", "prints", "refuses", "crashes", "ends"],
)
def test_what_the_parser_does_is_its_answer(
    body: str, refusals: tuple[Refusal, ...], stand_in: Stand, path: Path
) -> None:
    stand_in(body)
    assert asked(path) == ParserAnswer(parser="TensorRT 10.3.0.26", refusals=refusals)


def test_a_parser_that_hangs_is_ended(stand_in: Stand, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("time.sleep(600)")
    monkeypatch.setattr(parser, "LIMIT_S", 8.0)
    answer = asked(path)
    assert answer is not None
    assert answer.refusals == (Refusal(reason="the parser gave no answer in 8 s"),)


@pytest.mark.parametrize(
    "library",
    ["raise ImportError('libnvinfer.so.10')\nif 1:\n", LIBRARY.replace("self.logger = logger", "raise TypeError", 1)],
    ids=["broken", "without-a-gpu"],
)
def test_a_library_that_cannot_be_used_is_not_asked(library: str, stand_in: Stand, path: Path) -> None:
    stand_in("return True", library)
    assert asked(path) is None


def test_an_older_parser_does_not_answer_for_a_newer_target(stand_in: Stand, path: Path) -> None:
    stand_in("return False")
    assert ask_parser(path, ["tensorrt"], (11, 0)) is None
