"""What NVIDIA's own ONNX parser answers about a file.

It is asked in a child process with a time limit, so that a crash or a deadlock of the library ends there. TensorRT-RTX's
parser runs without a GPU; TensorRT's needs one.

Source: TensorRT's Python API, `OnnxParser` and `ParserError`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from alexnet_edge.export.engines.features import Features
from alexnet_edge.nvidia.libraries import MODULES, NAMES, Library, library_calls, load_library, make_logger

Version = tuple[int, int]

RTX_VERSION: Version = (11, 0)
"""TensorRT-RTX 1.7 has the parser of TensorRT 11."""
LIMIT_S = 120.0
"""How long the parser may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One reason why the parser refuses a file."""

    reason: str
    """One line, without the source positions around it."""
    node: str = ""
    """Name of the node; empty where it has none, or the reason is about the file."""
    operator: str = ""
    index: int = -1
    """Of the node in its graph; -1 where the reason is about the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParserAnswer:
    """What a parser says of a file: it refuses what has refusals."""

    parser: str
    """The library and its version, as `TensorRT-RTX 1.7.1`."""
    refusals: tuple[Refusal, ...]


def ask_parser(path: Path, libraries: Sequence[Library], oldest: Version) -> ParserAnswer | None:
    """The answer of the first usable library that has the parser of TensorRT `oldest` or newer; else None."""
    for library in libraries:
        if find_spec(MODULES[library]) is not None:
            version, answer = _ask(library, path)
            if version and (RTX_VERSION if library == "rtx" else _numbers(version)) >= oldest:
                return ParserAnswer(parser=f"{NAMES[library]} {version}", refusals=answer)
    return None


def _numbers(version: str) -> Version:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def _ask(library: Library, path: Path) -> tuple[str, tuple[Refusal, ...]]:
    """The library's version, and why it refuses the file; no version where it cannot be used."""
    command = [sys.executable, "-m", "alexnet_edge.export.engines.parser", library, str(path)]
    try:
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False)
        output = child.stdout
        end = f"crashed ({signal.Signals(-child.returncode).name})" if child.returncode < 0 else "failed"
    except subprocess.TimeoutExpired as expired:
        output, end = expired.stdout or b"", f"gave no answer in {LIMIT_S:g} s"
    version, _, refusals = output.decode().partition("\n")
    if refusals.endswith("\n"):
        return version, tuple(Refusal(**refusal) for refusal in json.loads(refusals))
    return version, (Refusal(reason=f"the parser {end}"),)


def parse(trt: ModuleType, path: Path) -> tuple[Refusal, ...]:
    """Parse a file in this process, with the imported library: why it is refused, each reason once."""
    messages: list[str] = []
    logger = make_logger(trt, messages)
    with library_calls():
        network = trt.Builder(logger).create_network(Features.detect(trt).network_flags(trt))
        parser = trt.OnnxParser(network, logger)
        if parser.parse_from_file(str(path)):
            return ()
        refusals = [_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    return tuple(dict.fromkeys(refusals)) or (Refusal(reason="; ".join(messages) or "no reason given"),)


def _refusal(error: Any) -> Refusal:
    return Refusal(
        reason=_reason(error.desc()),
        node=getattr(error, "node_name", str)(),  # from TensorRT 10 on
        operator=getattr(error, "node_operator", str)(),
        index=error.node(),
    )


def _reason(description: str) -> str:
    """`Assertion failed: a == b: Text` and `(a == b) && "Text"` as `Text`, without positions in NVIDIA's sources."""
    text = " ".join(description.partition("[checkMacros.cpp")[0].split())  # the missing GPU is not the reason
    text = re.sub(r"^.*In node -1 with name: +and operator: +\(\w+\): \w+: ", "", text)
    text = re.sub(r" In \S+ at /\S+?(?=\)?(?: |$))", "", text)
    text = re.sub(r"^Invalid Node - .*?Error Code \d+: [^(]*\((.+)\)$", r"\1", text)
    text = re.sub(r'^.* && "(.+)"$', r"\1", text)
    return re.sub(r"^Assertion failed: .*?: (?=.)", "", text)


def main(library: Library, file: str) -> None:
    """The child: its answers are the version, once the builder is there, and the refusals as JSON, a line each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the library prints too
    trt = load_library(library)
    logger = make_logger(trt, [])
    trt.Builder(logger)
    print(trt.__version__, file=answers, flush=True)
    print(json.dumps([asdict(refusal) for refusal in parse(trt, Path(file))]), file=answers, flush=True)
    os._exit(0)  # without the library's own clearing up


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
