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
    {"do": "peaks", "device": "cpu", "threads": 2, ...}  what the machine can do, see `peaks.measure_here`; nothing is opened

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
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from alexnet_edge.artifact import SUFFIXES, Artifact, load_artifact
from alexnet_edge.bench import peers
from alexnet_edge.bench.machine import peak_memory_bytes
from alexnet_edge.bench.measure import BatchRound, MeasureSettings, batches_of, measure_batch, time_once
from alexnet_edge.errors import AlexNetEdgeError, UserError, needs
from alexnet_edge.nvidia import load_library
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions import Session, open_session
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.null import NullSession
from alexnet_edge.sessions.tensorrt import LIBRARIES

if TYPE_CHECKING:
    from typing_extensions import Self


NULL = "null"
"""Names the session that measures the harness itself."""

# --- the parent's end -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What a worker answered to `open`."""

    import_ns: int
    """Importing the runtime's library; the same for every file it runs."""
    load_ns: int
    """From the path to a session that can answer: reading, checksum, the runtime's own loading."""
    runtime_load_ns: int
    """The runtime's part of `load_ns`."""
    first_ns: int
    """The first inference, batch 1 or the smallest the artifact takes."""
    details: Mapping[str, Any]
    """What really runs: runtime, version, threads."""


class Worker:
    """A worker process; use it as a context manager, which ends it.

    It is in a process group of its own, so that Ctrl-C on a terminal reaches the parent only, which then ends it. Should the
    parent be killed, the kernel ends the worker. `cpus` are the processors it may run on; by default the parent's. `python`
    is the interpreter, for a peer that another one has.
    """

    def __init__(self, *, cpus: Sequence[int] | None = None, python: str | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._path = tempfile.TemporaryDirectory(prefix="alexnet-edge-")
        interpreter = python or sys.executable
        with _running_on(cpus):
            self._process = subprocess.Popen(
                [interpreter, "-m", "alexnet_edge.bench.worker", str(os.getpid())],
                env=peers.environment_of(interpreter, Path(self._path.name)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        self._pending = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()  # the end of its input ends an idle worker
        try:
            self._process.wait(timeout=5 if kind is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._path.cleanup()

    def open(
        self,
        subject: Path | str,
        *,
        inputs: Path,
        device: Device = "cpu",
        threads: int | None = None,
        trust: bool = False,
        timeout_s: float = 300,
    ) -> Opened:
        """Load `subject` and run it once on the first images of `inputs` (`.npy`, `(N, 3, S, S)` float32).

        `trust` takes an engine without manifest, see `load_artifact`; `NULL` in place of a path opens the null session.

        Raises:
            AlexNetEdgeError: when it cannot be loaded, or the worker dies or takes too long.
        """
        answer = self.ask(
            {
                "do": "open",
                "subject": str(subject),
                "device": device,
                "threads": threads,
                "trust": trust,
                "inputs": str(inputs),
            },
            timeout_s=timeout_s,
        )
        return Opened(**answer)

    def close_subject(self) -> None:
        """Give back what is open, so that another subject may be opened in the same process.

        Raises:
            AlexNetEdgeError: when nothing is open, or the worker dies or takes too long.
        """
        self.ask({"do": "close"}, timeout_s=120)

    def measure(self, *, batch: int, settings: MeasureSettings) -> tuple[BatchRound, int | None]:
        """One round of `batch`, and the worker's peak memory so far, in bytes.

        Raises:
            AlexNetEdgeError: when it cannot be measured, or the worker dies or takes too long.
        """
        limit_s = settings.max_seconds / settings.rounds + settings.max_warmup_seconds
        answer = self.ask(
            {"do": "measure", "batch": batch, "settings": settings.to_json()}, timeout_s=10 * limit_s + 120
        )
        return BatchRound.from_json(answer["round"]), answer["peak_memory_bytes"]

    def time(self, *, batch: int) -> int:
        """Nanoseconds of one inference of `batch` images.

        Raises:
            AlexNetEdgeError: when it cannot be run, or the worker dies or takes too long.
        """
        return int(self.ask({"do": "time", "batch": batch}, timeout_s=120)["ns"])

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            AlexNetEdgeError: when the worker reports an error, dies or takes too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise AlexNetEdgeError(self._why_it_died()) from error
        answer: dict[str, Any] = json.loads(self._line(timeout_s))
        if not answer.pop("ok"):
            raise AlexNetEdgeError(answer["error"])
        return answer

    def _line(self, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AlexNetEdgeError(f"no answer within {timeout_s:.0f} s")
            block = os.read(descriptor, 1 << 20)
            if not block:
                raise AlexNetEdgeError(self._why_it_died())
            self._pending += block
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _why_it_died(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"the worker process was ended by {name}{hint}"
        return f"the worker process ended with code {code}: {lines[-1] if lines else 'nothing on standard error'}"


@contextmanager
def _running_on(cpus: Sequence[int] | None) -> Iterator[None]:
    """Have this thread on `cpus`, for a process it starts inherits that, with every thread its libraries make while loading."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# --- the worker's end -------------------------------------------------------------------------------------------------


def _import_torch() -> object:
    with needs("train"):
        return importlib.import_module("torch")


def _import_onnxruntime() -> object:
    with needs("onnx"):
        return importlib.import_module("onnxruntime")


def _import_openvino() -> object:
    from alexnet_edge.sessions.openvino import load_library as load_openvino

    return load_openvino()


_IMPORTS: dict[str, Callable[[], object]] = {
    SUFFIXES["onnx"]: _import_onnxruntime,
    SUFFIXES["openvino"]: _import_openvino,
}
"""Loads the library that runs a file; everything else is PyTorch's, but for engines."""


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
                if request["do"] == "open" and subject is None:
                    subject, answer = _open(request)
                elif request["do"] == "close" and subject is not None:
                    subject.session.__exit__(None, None, None)
                    subject, answer = None, {}
                elif request["do"] == "peaks":
                    answer = _peaks(request)
                elif subject is None:
                    raise UserError("nothing is open yet", value=request["do"], fix="open a subject first")
                elif request["do"] in _REQUESTS:
                    answer = _REQUESTS[request["do"]](subject, request)
                else:
                    raise UserError(
                        "not a request for an open subject", value=request["do"], fix=f"one of {', '.join(_REQUESTS)}"
                    )
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
        return _opened(NullSession(input_size=x_NCHW.shape[-1]), x_NCHW, import_ns=0)
    path = Path(request["subject"])
    source: Path | Artifact = path
    if path.suffix == peers.SUFFIX:  # which libraries it has is its own affair: importing them is part of loading
        start = time.perf_counter_ns()
        session = peers.PeerSession(peers.read_peer(path), threads=request["threads"])
        return _opened(session, x_NCHW, import_ns=0, start_ns=start)
    if path.suffix == SUFFIXES["trt"]:
        source = artifact = load_artifact(path, trust=request["trust"])
        import_ns = time_once(lambda: load_library(LIBRARIES[artifact.manifest.runtime]))
    else:
        import_ns = time_once(_IMPORTS.get(path.suffix, _import_torch))
    start = time.perf_counter_ns()
    opened = open_session(source, device=request["device"], threads=request["threads"])
    return _opened(opened, x_NCHW, import_ns=import_ns, start_ns=start)


def _opened(
    session: Session, x_NCHW: FloatArray, *, import_ns: int, start_ns: int | None = None
) -> tuple[_Subject, dict[str, Any]]:
    start_ns = time.perf_counter_ns() if start_ns is None else start_ns
    session.__enter__()
    load_ns = time.perf_counter_ns() - start_ns
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
    settings = MeasureSettings.from_json(request["settings"])
    taken = measure_batch(subject.session, subject.x_NCHW, batch=int(request["batch"]), settings=settings)
    return {"round": taken.to_json(), "peak_memory_bytes": peak_memory_bytes()}


def _time(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    x_NCHW = subject.next_input(int(request["batch"]))
    return {"ns": time_once(lambda: subject.session.run(x_NCHW))}


def _nodes(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    x_NCHW = subject.next_input(int(request["batch"]))
    found = subject.session.node_times(x_NCHW, runs=int(request["runs"]))
    return {"nodes": None if found is None else [asdict(node) for node in found]}


def _scenario(subject: _Subject, request: Mapping[str, Any]) -> dict[str, Any]:
    from alexnet_edge.bench.scenarios import ScenarioSettings, run_here

    settings = ScenarioSettings.from_json(request["settings"])
    return run_here(subject.session, subject.x_NCHW, settings, logs=Path(request["logs"]))


def _peaks(request: Mapping[str, Any]) -> dict[str, Any]:
    from alexnet_edge.bench.peaks import measure_here

    options = {name: value for name, value in request.items() if name != "do"}
    return measure_here(**options).to_json()


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
        if os.getppid() != parent:  # it ended before this was said
            os.kill(os.getpid(), signal.SIGKILL)


def _main() -> None:
    _end_with(int(sys.argv[1]))
    # Libraries print to standard output: give the pipe another number and send their words to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    _main()
