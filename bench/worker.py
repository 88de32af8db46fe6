"""One subject in a process of its own, and the pipe to it.

Runtimes with thread pools that spin while idle disturb each other inside one process, and whatever was allocated before
changes where memory lies; so nothing is measured in the process that compares. The parent writes one JSON request per line
to the worker's standard input and reads one JSON answer per line:

    {"do": "open", "subject": PATH, "device": "cpu", "threads": 2, "trust": false, "inputs": NPY_PATH}
    {"do": "measure", "batch": 1, "settings": {...}}     one round, see `measure_latency`
    {"do": "time", "batch": 1}                           one timed inference

An answer is `{"ok": true, ...}`, or `{"ok": false, "error": "one line"}` for the errors of this package. Anything else
that goes wrong ends the process with its traceback on standard error.
"""

from __future__ import annotations

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
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from alexnet_edge.artifact import SUFFIXES, Artifact, load_artifact
from alexnet_edge.bench.measure import (
    LatencySamples,
    MeasureSettings,
    batches_of,
    measure_latency,
    peak_memory_bytes,
    time_once,
)
from alexnet_edge.errors import AlexNetEdgeError, UserError, needs
from alexnet_edge.nvidia import load_library
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions import Session, open_session
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.tensorrt import LIBRARIES

if TYPE_CHECKING:
    from typing_extensions import Self


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

    It is in a process group of its own, so that Ctrl-C on a terminal reaches the parent only, which then ends it.
    """

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "alexnet_edge.bench.worker"],
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

    def open(
        self,
        subject: Path,
        *,
        inputs: Path,
        device: Device = "cpu",
        threads: int | None = None,
        trust: bool = False,
        timeout_s: float = 300,
    ) -> Opened:
        """Load `subject` and run it once on the first images of `inputs` (`.npy`, `(N, 3, S, S)` float32).

        `trust` takes an engine without manifest, see `load_artifact`.

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

    def measure(self, *, batch: int, settings: MeasureSettings) -> tuple[LatencySamples, int | None]:
        """One round of `batch`, and the worker's peak memory so far, in bytes.

        Raises:
            AlexNetEdgeError: when it cannot be measured, or the worker dies or takes too long.
        """
        limit_s = settings.max_seconds / settings.rounds + settings.max_warmup_seconds
        answer = self.ask(
            {"do": "measure", "batch": batch, "settings": settings.to_json()}, timeout_s=10 * limit_s + 120
        )
        return LatencySamples.from_json(answer["samples"]), answer["peak_memory_bytes"]

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


# --- the worker's end -------------------------------------------------------------------------------------------------


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
                elif subject is None:
                    raise UserError("nothing is open yet", value=request["do"], fix="open a subject first")
                elif request["do"] == "measure":
                    answer = _measure(subject, request)
                elif request["do"] == "time":
                    answer = _time(subject, int(request["batch"]))
                else:
                    raise UserError("not a request for an open subject", value=request["do"], fix="measure or time")
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
    path = Path(request["subject"])
    source: Path | Artifact = path
    if path.suffix == SUFFIXES["trt"]:
        source = artifact = load_artifact(path, trust=request["trust"])
        import_ns = time_once(lambda: load_library(LIBRARIES[artifact.manifest.runtime]))
    else:
        library, extra = ("onnxruntime", "onnx") if path.suffix == ".onnx" else ("torch", "train")
        with needs(extra):
            import_ns = time_once(lambda: importlib.import_module(library))
    x_NCHW: FloatArray = np.load(request["inputs"], allow_pickle=False)
    start = time.perf_counter_ns()
    session = open_session(source, device=request["device"], threads=request["threads"])
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
    settings = MeasureSettings.from_json(request["settings"])
    samples = measure_latency(subject.session, subject.x_NCHW, batch=int(request["batch"]), settings=settings)
    return {"samples": samples.to_json(), "peak_memory_bytes": peak_memory_bytes()}


def _time(subject: _Subject, batch: int) -> dict[str, Any]:
    x_NCHW = subject.next_input(batch)
    return {"ns": time_once(lambda: subject.session.run(x_NCHW))}


def _main() -> None:
    # Libraries print to standard output: give the pipe another number and send their words to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    _main()
