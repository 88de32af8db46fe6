"""What every runtime's session does, and the choice of one.

Letters: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from alexnet_edge.artifact import Artifact, TensorSpec
from alexnet_edge.environment import check_threads, last_level_cache_bytes, usable_cpus
from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.images.preprocess import FloatArray, Preprocessing
from alexnet_edge.sessions.device import CacheFlush, DeviceQueries

if TYPE_CHECKING:
    from typing_extensions import Self


Device = Literal["cpu", "cuda"]

_UNKNOWN_CACHE_FLUSH_BYTES = 64 << 20
"""Streamed through where the system does not tell the size of its last-level cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeTime:
    """What one node of a runtime's own graph took in one inference, on average."""

    name: str
    """As the runtime names it; after its fusions several of the file's nodes are one."""
    kind: str
    """The runtime's name for what it computes (`Conv`, `Gemm`, `LRN`, ...)."""
    ns: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor:
    """An input or output as a file itself describes it."""

    names: frozenset[str] = frozenset()
    """Empty where the format keeps none."""
    dtype: str = "float32"
    shape: tuple[int | None, ...] | None = None
    """With the batch; an extent is None where it is free, the whole where the file does not tell."""

    def holds(self, spec: TensorSpec) -> bool:
        """Whether a manifest that says `spec` describes it."""
        if (self.names and spec.name not in self.names) or self.dtype != spec.dtype:
            return False
        if self.shape is None:
            return True
        extents = (None if spec.min_batch != spec.max_batch else spec.min_batch, *spec.shape)
        return len(self.shape) == len(extents) and all(
            mine is None or mine == other for mine, other in zip(self.shape, extents, strict=True)
        )

    def __str__(self) -> str:
        shape = () if self.shape is None else tuple("N" if extent is None else str(extent) for extent in self.shape)
        return " ".join(filter(None, (" or ".join(sorted(self.names)), self.dtype, "x".join(shape))))


class Session(ABC):
    """A network loaded in a runtime, ready to answer.

    Use it as a context manager: nothing is loaded before `__enter__`, everything is released by `__exit__`.
    `run(x_NCHW) -> y_NK` answers one batch. For timing, the same work in steps: `prepare(x)` places the input,
    `enqueue()` starts the inference, `synchronize()` waits for it, `fetch()` returns the output. Each raises UserError when
    the session is closed, the step before is missing, or an input has another type, shape or batch than it takes.

    A runtime implements `_load`, `_prepare`, `_enqueue`, `_fetch` and, where they differ from doing nothing,
    `_synchronize`, `_close` and `details`.
    """

    runtime: str
    """Name of the runtime, as in the tables."""

    def __init__(
        self,
        *,
        input: TensorSpec,
        output: TensorSpec,
        device: Device,
        threads: int | None,
        classes: tuple[str, ...] = (),
        head: Literal["logits", "probabilities"] = "logits",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        check_threads(threads)
        self.input = input
        self.output = output
        self.device = device
        self.threads = threads or usable_cpus()
        self.classes = classes
        self.head = head
        self.preprocessing = preprocessing
        self.load_ns = 0
        """Time that loading took, in nanoseconds; set by `__enter__`."""
        self._state: Literal["closed", "open", "prepared", "enqueued"] = "closed"

    def __enter__(self) -> Self:
        if self._state != "closed":
            raise UserError("the session is already open", fix="open a second one")
        start = time.perf_counter_ns()
        self._load()
        self.load_ns = time.perf_counter_ns() - start
        self._state = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "closed"
        self._close()

    def run(self, x_NCHW: FloatArray) -> FloatArray:
        """Answer one batch: `(N, 3, S, S)` float32 to `(N, K)` float32."""
        self.prepare(x_NCHW)
        self.enqueue()
        self.synchronize()
        return self.fetch()

    def prepare(self, x_NCHW: FloatArray) -> None:
        """Check the input and place it where the runtime reads it."""
        self._check("prepare", x_NCHW)
        self._state = "open"  # should placing it fail, nothing is prepared
        self._prepare(x_NCHW)
        self._state = "prepared"

    def enqueue(self) -> None:
        """Start the inference on the prepared input; may be called again without preparing again."""
        self._need("enqueue", "prepared", "enqueued")
        self._enqueue()
        self._state = "enqueued"

    def synchronize(self) -> None:
        """Wait until every enqueued inference has finished."""
        self._need("synchronize", "enqueued")
        self._synchronize()

    def fetch(self) -> FloatArray:
        """The output `(N, K)`, float32, of the last inference."""
        self._need("fetch", "enqueued")
        return self._fetch()

    def node_times(self, x_NCHW: FloatArray, *, runs: int) -> list[NodeTime] | None:
        """The runtime's own profile of one inference of this batch, the mean of `runs`; None where it has no profiler.

        Profiling slows a runtime down, so nothing else is measured meanwhile.
        """
        self._check("node_times", x_NCHW)
        return self._node_times(x_NCHW, runs)

    def device_queries(
        self,
        inputs: Sequence[FloatArray],
        *,
        graph: bool = False,
        transfers: bool = True,
        spin: bool = True,
    ) -> AbstractContextManager[DeviceQueries]:
        """Inferences timed phase by phase with CUDA events, one in flight for each of `inputs`, beside what `run` uses.

        Args:
            inputs: batches of one size; each is placed in pinned memory once, and its copy from there is what is timed.
            graph: launch the inference as a recorded CUDA graph.
            transfers: copy input and output with every query; else the input is copied once.
            spin: wait for the GPU without giving up the processor, which costs power and saves the wake-up.

        Raises:
            UserError: with the reason also when this session cannot be timed so.
        """
        self._check("device_queries", *inputs)
        assert len({len(x_NCHW) for x_NCHW in inputs}) == 1
        if self.device == "cpu":
            raise UserError("the processor computes in the calling thread: there is no device to time apart")
        return self._device_queries(inputs, graph=graph, transfers=transfers, spin=spin)

    def cache_flush(self) -> AbstractContextManager[CacheFlush]:
        """What empties the cache that weights may stay in from one inference to the next: the device's.

        For the processor it streams through a buffer of twice the last-level cache, once on each processor this process
        may use, as each has caches of its own. That evicts everything: weights, activations, the input, the runtime's code.

        Raises:
            UserError: with the reason when this session cannot.
        """
        self._check("cache_flush")
        return _host_cache_flush() if self.device == "cpu" else self._cache_flush()

    def details(self) -> dict[str, Any]:
        """What really runs: provider, library version, threads."""
        return {"runtime": self.runtime, "device": self.device, "threads": self.threads}

    @abstractmethod
    def _load(self) -> None: ...

    @abstractmethod
    def _prepare(self, x_NCHW: FloatArray) -> None: ...

    @abstractmethod
    def _enqueue(self) -> None: ...

    @abstractmethod
    def _fetch(self) -> FloatArray: ...

    def _synchronize(self) -> None:
        """Runtimes whose `_enqueue` returns only when the work is done have nothing to wait for."""

    def _node_times(self, x_NCHW: FloatArray, runs: int) -> list[NodeTime] | None:
        """Runtimes with a profiler say what it found."""
        return None

    def _device_queries(
        self, inputs: Sequence[FloatArray], *, graph: bool, transfers: bool, spin: bool
    ) -> AbstractContextManager[DeviceQueries]:
        """Runtimes on a GPU that let events be put between the phases open them."""
        raise UserError(f"{self.runtime} copies and computes inside one call: no event can be put between")

    def _cache_flush(self) -> AbstractContextManager[CacheFlush]:
        """Runtimes on a GPU flush its cache."""
        raise UserError(f"{self.runtime} gives no access to the GPU's memory")

    def _close(self) -> None:
        """Runtimes that hold nothing outside Python's memory have nothing to release."""

    def _need(self, call: str, *states: str) -> None:
        if self._state not in states:
            raise UserError(
                f"{call}() called on a session that is {self._state}",
                fix="use `with open_session(...)`, then prepare()",
            )

    def _check(self, call: str, *inputs: FloatArray) -> None:
        self._need(call, "open", "prepared", "enqueued")
        for x_NCHW in inputs:
            self._check_input(x_NCHW)

    def _check_input(self, x_NCHW: FloatArray) -> None:
        spec = self.input
        if not isinstance(x_NCHW, np.ndarray) or x_NCHW.dtype != np.dtype(spec.dtype):
            kind = getattr(x_NCHW, "dtype", type(x_NCHW).__name__)
            raise UserError(f"input {spec.name} must be a {spec.dtype} array", value=kind, fix="convert it")
        if x_NCHW.ndim != len(spec.shape) + 1 or x_NCHW.shape[1:] != spec.shape:
            shape = ", ".join(["N", *map(str, spec.shape)])
            raise UserError(f"input {spec.name} must have shape ({shape})", value=x_NCHW.shape, fix="preprocess it")
        batch = x_NCHW.shape[0]
        if batch < spec.min_batch or (spec.max_batch is not None and batch > spec.max_batch):
            bound = "any" if spec.max_batch is None else str(spec.max_batch)
            raise UserError(
                f"batch must be from {spec.min_batch} to {bound}", value=batch, fix="split the batch or export again"
            )


def shareable(x_NCHW: FloatArray) -> FloatArray:
    """The array itself, or a copy where its memory has another order or may not be written, which runtimes do not share."""
    contiguous = np.ascontiguousarray(x_NCHW)
    return contiguous if contiguous.flags.writeable else contiguous.copy()


@contextmanager
def _host_cache_flush() -> Iterator[CacheFlush]:
    cache = last_level_cache_bytes()
    num_bytes = 2 * cache if cache else _UNKNOWN_CACHE_FLUSH_BYTES
    buffer = np.ones(num_bytes // 8, np.int64)  # written: untouched pages would all be the same page of zeros

    def flush() -> None:
        if not hasattr(os, "sched_setaffinity"):  # elsewhere than on Linux a thread cannot be moved
            buffer.sum()
            return
        allowed = os.sched_getaffinity(0)
        try:
            for cpu in allowed:
                os.sched_setaffinity(0, {cpu})  # of the calling thread only
                buffer.sum()
        finally:
            os.sched_setaffinity(0, allowed)

    yield CacheFlush(num_bytes=num_bytes, flush=flush)


class ArtifactSession(Session):
    """A session on an artifact: its manifest says what goes in and comes out."""

    def __init__(self, artifact: Artifact, *, device: Device = "cpu", threads: int | None = None) -> None:
        self.artifact = artifact
        manifest = artifact.manifest
        super().__init__(
            input=manifest.input,
            output=manifest.output,
            device=device,
            threads=threads,
            classes=manifest.classes,
            head=manifest.head,
            preprocessing=manifest.preprocessing,
        )

    def _require_io(self, inputs: Sequence[FileTensor], outputs: Sequence[FileTensor]) -> None:
        """Compare the file's own inputs and outputs with the manifest's.

        Raises:
            ArtifactError: when the manifest says something else.
        """
        for word, spec, tensors in (("input", self.input, inputs), ("output", self.output, outputs)):
            if len(tensors) != 1 or not tensors[0].holds(spec):
                batch = spec.min_batch if spec.min_batch == spec.max_batch else None
                claimed = FileTensor(names=frozenset({spec.name}), dtype=spec.dtype, shape=(batch, *spec.shape))
                raise ArtifactError(
                    f"the file's {word} is {', '.join(map(str, tensors)) or 'missing'}, its manifest says {claimed}",
                    value=self.artifact.path,
                    fix="copy the manifest that was written with the file, or export again",
                )
