"""A worker: the process that measures one subject."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.bench import peers
from alexnet_edge.bench.timing.latency import BatchRound
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.errors import AlexNetEdgeError
from alexnet_edge.records import Record
from alexnet_edge.sessions.base import Device

NULL = "null"
"""Names the session that measures the harness itself."""


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

    It is in a process group of its own, so Ctrl-C on a terminal reaches the parent only, which then ends it. When the
    parent is killed, the kernel ends the worker. `cpus` are the processors it may run on; by default the parent's. `python`
    is the interpreter, for a peer that another one has.
    """

    def __init__(self, *, cpus: Sequence[int] | None = None, python: str | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._path = tempfile.TemporaryDirectory(prefix="alexnet-edge-")
        interpreter = python or sys.executable
        with _running_on(cpus):
            self._process = subprocess.Popen(
                [interpreter, "-m", "alexnet_edge.bench.rounds.serving", str(os.getpid())],
                env=peers.environment_of(interpreter, Path(self._path.name)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        self._pending = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
    ) -> Opened:
        """Load `subject` and run it once on the first images of `inputs` (`.npy`, `(N, 3, S, S)` float32).

        `trust` takes an engine without manifest, see `load_artifact`; `NULL` in place of a path opens the null session.
        Raises as `ask` does.
        """
        place = {"device": device, "threads": threads, "trust": trust, "inputs": str(inputs)}
        return answered(Opened, self.ask({"do": "open", "subject": str(subject), **place}, timeout_s=300))

    def close_subject(self) -> None:
        """Give back what is open, so that another subject may be opened in the same process; raises as `ask` does."""
        self.ask({"do": "close"}, timeout_s=120)

    def measure(self, *, batch: int, settings: MeasureSettings) -> tuple[BatchRound, int | None]:
        """One round of `batch`, and the worker's peak memory so far, in bytes; raises as `ask` does."""
        limit_s = settings.max_seconds / settings.rounds + settings.max_warmup_seconds
        request = {"do": "measure", "batch": batch, "settings": records.to_builtins(settings)}
        answer = self.ask(request, timeout_s=10 * limit_s + 120)
        return answered(BatchRound, answer["round"]), answer["peak_memory_bytes"]

    def time(self, *, batch: int) -> int:
        """Nanoseconds of one inference of `batch` images; raises as `ask` does."""
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
        try:
            answer: dict[str, Any] = records.parse(self._line(timeout_s))
        except records.RecordError as error:
            raise AlexNetEdgeError(f"the worker's answer is malformed ({error})") from error
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


def answered(kind: type[Record], value: Any) -> Record:
    """What a worker answered, as its dataclass.

    Raises:
        AlexNetEdgeError: when it is something else.
    """
    try:
        return records.convert(kind, value)
    except records.RecordError as error:
        raise AlexNetEdgeError(f"the worker's answer is malformed ({error})") from error


@contextmanager
def _running_on(cpus: Sequence[int] | None) -> Iterator[None]:
    """Keep this thread on `cpus`: a process that it starts inherits them, with every thread that its libraries start."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
