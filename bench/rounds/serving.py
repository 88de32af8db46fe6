"""One subject in a process of its own, and the pipe to it.

Runtimes with thread pools that spin while idle disturb each other inside one process, and whatever was allocated before
changes where memory lies; so nothing is measured in the process that compares. The parent writes one JSON request per line
to the worker's standard input and reads one JSON answer per line:

    {"do": "open", "subject": PATH, "device": "cpu", "threads": 2, "trust": false, "inputs": NPY_PATH}
    {"do": "measure", "batch": 1, "settings": {...}}     one round, see `measure_batch`
    {"do": "time", "batch": 1}                           one timed inference
    {"do": "nodes", "batch": 1, "runs": 20}              the runtime's own profile, see `Session.node_times`
    {"do": "scenario", "settings": {...}, "logs": PATH}  one LoadGen scenario, see `scenarios.run_here`
    {"do": "close"}                                      another may be opened then
    {"do": "peaks", "device": "cpu", "threads": 2, ...}  what the machine can do, see `measure_here`; nothing is opened

A subject named `null` is a session that answers zeros at once, for inputs of the given array's shape.

An answer is `{"ok": true, ...}`, or `{"ok": false, "error": "one line"}` for the errors of this package. Anything else
that goes wrong ends the process with its traceback on standard error.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from alexnet_edge import records
from alexnet_edge.artifact import SUFFIXES, Artifact
from alexnet_edge.bench import peers
from alexnet_edge.bench.machine.state import peak_memory_bytes
from alexnet_edge.bench.timing.clock import batches_of, time_once
from alexnet_edge.bench.timing.latency import measure_batch
from alexnet_edge.bench.timing.process import NULL
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.errors import AlexNetEdgeError, UserError, needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.nvidia.libraries import load_library
from alexnet_edge.sessions import Session, open_session
from alexnet_edge.sessions.engine_file import LIBRARIES
from alexnet_edge.sessions.null import NullSession
from alexnet_edge.sessions.open import open_artifact


def _import_library(suffix: str) -> object:
    """The library that runs such a file, but for engines."""
    if suffix == SUFFIXES["openvino"]:
        from alexnet_edge.sessions.openvino import load_library as load_openvino

        return load_openvino()
    extra, name = ("onnx", "onnxruntime") if suffix == SUFFIXES["onnx"] else ("train", "torch")
    with needs(extra):
        return importlib.import_module(name)


class _Subject:
    """What is open in this process."""

    def __init__(self, session: Session, x_NCHW: FloatArray) -> None:
        self.session = session
        self.x_NCHW = x_NCHW
        self._turns: dict[int, Iterator[FloatArray]] = {}

    def next_input(self, batch: int) -> FloatArray:
        """The next batch of images, in rotation."""
        if batch not in self._turns:
            self._turns[batch] = itertools.cycle(batches_of(self.x_NCHW, batch))
        return next(self._turns[batch])


def _serve(requests: TextIO, answers: TextIO) -> None:
    subject: _Subject | None = None
    try:
        for line in requests:
            request = json.loads(line)
            try:
                do = request["do"]
                if do == "open" and subject is None:
                    subject, answer = _open(request)
                elif do == "close" and subject is not None:
                    subject.session.__exit__(None, None, None)
                    subject, answer = None, {}
                elif do == "peaks":
                    answer = _peaks(request)
                elif subject is None:
                    raise UserError("nothing is open yet", value=do, fix="open a subject first")
                elif do in _REQUESTS:
                    answer = _REQUESTS[do](subject, request)
                else:
                    known = ", ".join(_REQUESTS)
                    raise UserError("not a request for an open subject", value=do, fix=f"one of {known}")
            except AlexNetEdgeError as error:
                answer = {"ok": False, "error": str(error)}
            else:
                answer = {"ok": True, **answer}
            answers.write(json.dumps(answer, allow_nan=False) + "\n")
            answers.flush()
    finally:
        if subject is not None:
            subject.session.__exit__(None, None, None)


def _open(request: Mapping[str, Any]) -> tuple[_Subject, dict[str, Any]]:
    x_NCHW: FloatArray = np.load(request["inputs"], allow_pickle=False)
    if request["subject"] == NULL:
        return _opened(lambda: NullSession(input_size=x_NCHW.shape[-1]), x_NCHW, import_ns=0)
    path, threads = Path(request["subject"]), request["threads"]
    source: Path | Artifact = path
    if path.suffix == peers.SUFFIX:  # importing its libraries is part of loading
        return _opened(lambda: peers.PeerSession(peers.read_peer(path), threads=threads), x_NCHW, import_ns=0)
    if path.suffix == SUFFIXES["trt"]:
        source = artifact = open_artifact(path, trust=request["trust"])
        import_ns = time_once(lambda: load_library(LIBRARIES[artifact.manifest.runtime]))
    else:
        import_ns = time_once(lambda: _import_library(path.suffix))
    return _opened(lambda: open_session(source, device=request["device"], threads=threads), x_NCHW, import_ns=import_ns)


def _opened(
    make_session: Callable[[], Session], x_NCHW: FloatArray, *, import_ns: int
) -> tuple[_Subject, dict[str, Any]]:
    start = time.perf_counter_ns()
    session = make_session()
    session.__enter__()
    load_ns = time.perf_counter_ns() - start
    subject = _Subject(session, x_NCHW)
    first = subject.next_input(session.input.min_batch)
    answer = {
        "import_ns": import_ns,
        "load_ns": load_ns,
        "runtime_load_ns": session.load_ns,
        "first_ns": time_once(lambda: session.run(first)),
        "details": session.details(),
    }
    return subject, answer


def _measure(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    settings = records.convert(MeasureSettings, request["settings"])
    batch_round = measure_batch(subject.session, subject.x_NCHW, batch=int(request["batch"]), settings=settings)
    return {"round": records.to_builtins(batch_round), "peak_memory_bytes": peak_memory_bytes()}


def _time(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    x_NCHW = subject.next_input(int(request["batch"]))
    return {"ns": time_once(lambda: subject.session.run(x_NCHW))}


def _nodes(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    x_NCHW = subject.next_input(int(request["batch"]))
    nodes = subject.session.node_times(x_NCHW, runs=int(request["runs"]))
    return {"nodes": None if nodes is None else [asdict(node) for node in nodes]}


def _scenario(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    from alexnet_edge.bench.loadgen.settings import ScenarioSettings
    from alexnet_edge.bench.loadgen.system import run_here

    settings = records.convert(ScenarioSettings, request["settings"])
    return run_here(subject.session, subject.x_NCHW, settings, logs=Path(request["logs"]))


def _peaks(request: Mapping[str, Any]) -> dict[str, Any]:
    from alexnet_edge.bench.rounds.peaks import measure_here

    peaks = measure_here(**{name: value for name, value in request.items() if name != "do"})
    return {**records.to_builtins(peaks)}


_REQUESTS: dict[str, Callable[[_Subject, Mapping[str, Any]], dict[str, Any]]] = {
    "measure": _measure,
    "time": _time,
    "nodes": _nodes,
    "scenario": _scenario,
}


def _end_with(parent: int) -> None:
    """Have the kernel end this process when `parent` ends, however that happens (Linux, prctl(2), PR_SET_PDEATHSIG = 1)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)


def _main() -> None:
    _end_with(int(sys.argv[1]))
    # Libraries print to standard output: move the pipe to another descriptor and send their output to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    _main()
