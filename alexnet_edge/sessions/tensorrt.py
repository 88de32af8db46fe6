"""A session on an engine, run by TensorRT or TensorRT-RTX on the GPU it was built for.

The same calls serve TensorRT 8.6 to 11 and TensorRT-RTX; where they differ, what the library has decides.

Source: TensorRT Python API, `Runtime`, `ICudaEngine`, `IExecutionContext`; Developer Guide, "Version Compatibility",
"Hardware Compatibility", "CUDA Graphs", "Weight Streaming"; TensorRT-RTX documentation, "Engine Compatibility" and "Working
with RTX CUDA Graphs".

Letters: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from alexnet_edge.artifact import Artifact, TensorSpec
from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.nvidia import cuda
from alexnet_edge.nvidia.libraries import library_calls, load_library, platform_name
from alexnet_edge.sessions.base import ArtifactSession, Device, NodeTime
from alexnet_edge.sessions.device import CacheFlush, DeviceQueries
from alexnet_edge.sessions.engine_file import (
    LIBRARIES,
    NAMES,
    deserialise,
    library_of,
    rebuild_advice,
    refusal,
    refusal_reason,
    require_io,
)


class TensorRTSession(ArtifactSession):
    """An `.engine` artifact on the GPU; it cannot run anywhere else.

    What each step does, for whoever times it: `prepare` copies the input to pinned host memory and from there to the GPU,
    and returns when it is there; `enqueue` launches the inference and nothing else; `synchronize` waits for it; `fetch`
    copies the output back through pinned memory and returns when it is here. So `enqueue` and `synchronize` together are
    the inference without its copies. Memory grows with the first batch that needs it: the first `prepare` of a batch size
    takes longer than the next.

    With `cuda_graph`, the first `enqueue` of a batch size runs plainly and is then recorded; the next ones launch the
    record, until the batch size changes. TensorRT-RTX, which compiles kernels while it runs, records by itself.
    """

    runtime = "tensorrt"

    def __init__(
        self, artifact: Artifact, *, device: Device = "cuda", threads: int | None = None, cuda_graph: bool = False
    ) -> None:
        """A closed session; raises ArtifactError when the manifest names no library that runs engines."""
        if device != "cuda":
            raise UserError("an engine runs on the GPU only", value=f"--device {device}", fix="leave --device out")
        super().__init__(artifact, device=device, threads=threads)
        self.runtime = artifact.manifest.runtime
        self.cuda_graph = cuda_graph
        self._name = NAMES[library_of(artifact)]

    def _load(self) -> None:
        self._log: list[str] = []
        with library_calls(), ExitStack() as opened:
            self._trt: Any = load_library(LIBRARIES[self.runtime])
            self._gpu = cuda.require_gpu()
            version = str(self._trt.__version__)
            reason = refusal(self.artifact, library_version=version, sm=self._gpu.sm, platform=platform_name())
            if reason:
                manifest = self.artifact.manifest
                raise ArtifactError(reason, value=self.artifact.path, fix=rebuild_advice(manifest), manifest=manifest)
            opened.callback(self.__dict__.pop, "_loaded", None)  # the last to go: everything below was made with it
            self._loaded = deserialise(self._trt, self.artifact, self._log)
            require_io(self._trt, self._loaded.engine, self.artifact)
            self._weight_budget = self._set_weight_budget()  # it cannot change once there is a context
            self._stream = opened.enter_context(cuda.Stream())
            self._x_device = opened.enter_context(cuda.DeviceBuffer())
            self._y_device = opened.enter_context(cuda.DeviceBuffer())
            self._x_host: Any = None
            self._y_host: Any = None
            opened.callback(self._free_host)
            opened.callback(self.__dict__.pop, "_context", None)
            self._context = self._make_context(self.cuda_graph)
            self._graph: Any = None
            opened.callback(self._drop_graph)
            opened.callback(self._stream.synchronize)  # the first to go: what still runs
            self._batch = 0
            self._opened = opened.pop_all()

    def _make_context(self, cuda_graph: bool) -> Any:
        engine, configs = self._loaded.engine, []
        if cuda_graph and self._can_record_itself:
            configs = [engine.create_runtime_config()]
            configs[0].cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(*configs)
        if context is None:
            raise UserError(
                f"{self._name} cannot make an execution context ({refusal_reason(self._log)})",
                value=self.artifact.path,
                fix="free some of the GPU's memory, or export with a smaller --max-batch",
            )
        return context

    @property
    def _can_record_itself(self) -> bool:
        return hasattr(self._trt, "CudaGraphStrategy")

    def _set_weight_budget(self) -> int | None:
        """Let the library choose how many bytes of the weights stay on the GPU; None without weight streaming."""
        if not self.artifact.manifest.build.get("weight_streaming"):
            return None
        engine = self._loaded.engine
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return int(engine.weight_streaming_budget_v2)

    def _prepare(self, x_NCHW: FloatArray) -> None:
        if len(x_NCHW) != self._batch:
            self._place(len(x_NCHW))
        np.copyto(self._x_host.view(x_NCHW.shape), x_NCHW)
        self._x_device.copy_from(self._x_host, x_NCHW.nbytes, self._stream)
        self._stream.synchronize()  # the copy is no part of the inference, and the next one overwrites the host's side

    def _place(self, batch: int) -> None:
        """Make room for this batch; tell the context its shape, and where its tensors are."""
        self._stream.synchronize()
        self._drop_graph()  # it holds the old shape and addresses: launching it after a change is undefined
        self._batch = 0  # until everything below has been done
        x_bytes, y_bytes = _num_bytes(batch, self.input), _num_bytes(batch, self.output)
        self._x_device.reserve(x_bytes)
        self._y_device.reserve(y_bytes)
        if self._x_host is None or self._x_host.num_bytes < x_bytes:
            self._free_host()
            self._y_host = cuda.PinnedBuffer(y_bytes)
            self._x_host = cuda.PinnedBuffer(x_bytes)  # the last: whether it is there stands for both
        self._set_shape(batch)
        self._set_addresses(self._x_device, self._y_device)
        self._batch = batch

    def _set_shape(self, batch: int) -> None:
        shape = (batch, *self.input.shape)
        if not self._context.set_input_shape(self.input.name, shape):
            raise self._failed("takes no input of this shape", value=shape)

    def _set_addresses(self, x_device: Any, y_device: Any) -> None:
        for spec, buffer in ((self.input, x_device), (self.output, y_device)):
            if not self._context.set_tensor_address(spec.name, buffer.address):
                raise self._failed(f"takes no address for {spec.name}")

    def _enqueue(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
            return
        self._launch()
        if self.cuda_graph and not self._can_record_itself:
            self._graph = self._record(self._stream)

    def _record(self, stream: Any) -> Any:
        """The inference that the context is set for, which has run once, as a graph."""
        stream.synchronize()  # that run has settled what the new shape left to do: now a record is complete
        try:
            return cuda.Graph.capture(stream, lambda: self._launch(stream))
        except UserError as error:
            raise UserError(
                f"the inference cannot be recorded as a CUDA graph ({error.problem})",
                value=self.artifact.path,
                fix="leave CUDA graphs off",
            ) from error

    def _launch(self, stream: Any = None) -> None:
        if not self._context.execute_async_v3((stream or self._stream).handle):
            raise self._failed("cannot run the engine")

    def _failed(self, problem: str, *, value: object = None) -> UserError:
        return UserError(
            f"{self._name} {problem} ({refusal_reason(self._log)})",
            value=self.artifact.path if value is None else value,
            fix=rebuild_advice(self.artifact.manifest),
            manifest=self.artifact.manifest,
        )

    def _synchronize(self) -> None:
        self._stream.synchronize()

    def _fetch(self) -> FloatArray:
        self._y_device.copy_to(self._y_host, _num_bytes(self._batch, self.output), self._stream)
        self._stream.synchronize()
        y_NK: FloatArray = self._y_host.view((self._batch, *self.output.shape)).copy()
        return y_NK

    def _node_times(self, x_NCHW: FloatArray, runs: int) -> list[NodeTime] | None:
        """From TensorRT's own profiler, in a context of its own without CUDA graphs; nothing is prepared afterwards.

        Only one context at a time may use the engine's profile, so the session's is made anew when it is done.
        """
        self._state = "open"
        with library_calls():
            profile = _profiler(self._trt)
            try:
                self._renew_context(cuda_graph=False)
                self._prepare(x_NCHW)
                for _ in range(_PROFILE_WARMUP):
                    self._launch()
                self._stream.synchronize()
                self._context.profiler = profile
                self._context.enqueue_emits_profile = False  # with it each enqueue waits for the GPU by itself
                for _ in range(runs):
                    self._launch()
                    self._stream.synchronize()
                    if not self._context.report_to_profiler():
                        raise self._failed("reports no layer times")
            finally:
                self._stream.synchronize()
                self._renew_context(self.cuda_graph)
        times: list[NodeTime] = profile.node_times(runs)
        return times

    @contextmanager
    def _device_queries(
        self, inputs: Sequence[FloatArray], *, graph: bool, transfers: bool, spin: bool
    ) -> Iterator[DeviceQueries]:
        """In a context of their own; nothing is prepared afterwards.

        One context serves all queries: they run one after the other in one stream, and each takes the addresses of its slot
        along when it is enqueued, or, with graphs, recorded.
        """
        self._state = "open"
        with library_calls(), ExitStack() as opened:
            opened.callback(self._renew_context, self.cuda_graph)
            self._renew_context(graph)
            streams = [opened.enter_context(cuda.Stream()) for _ in range(3)]
            work = _Work(self, inputs, streams, opened)
            if graph and not self._can_record_itself:
                work.record()
            for stream in streams:
                opened.callback(stream.synchronize)  # the first to go: what still runs
            yield DeviceQueries(
                work,
                slots=len(inputs),
                streams=streams,
                make_event=lambda: opened.enter_context(cuda.Event(blocking=not spin)),
                transfers=transfers,
            )

    @contextmanager
    def _cache_flush(self) -> Iterator[CacheFlush]:
        num_bytes = 2 * cuda.l2_cache_bytes()
        with cuda.DeviceBuffer(num_bytes) as buffer:

            def flush() -> None:
                buffer.fill(0, self._stream)
                self._stream.synchronize()

            yield CacheFlush(num_bytes=num_bytes, flush=flush)

    def _renew_context(self, cuda_graph: bool) -> None:
        """Another context in the place of this one, which goes first; its shape and addresses are to be set again."""
        self._drop_graph()
        self._batch = 0
        self._context = None
        self._context = self._make_context(cuda_graph)

    def _close(self) -> None:
        if "_opened" in self.__dict__:
            self.__dict__.pop("_opened").close()

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _free_host(self) -> None:
        buffers, self._x_host, self._y_host = (self._x_host, self._y_host), None, None
        for buffer in buffers:
            if buffer is not None:
                buffer.close()

    def details(self) -> dict[str, Any]:
        """What really runs, and how its data gets to the GPU."""
        facts: dict[str, Any] = {
            **super().details(),
            "version": str(self._trt.__version__),
            "gpu": self._gpu.name,
            "sm": self._gpu.sm,
            "driver": self._gpu.driver_version,
            "integrated": self._gpu.integrated,
            "cuda_graph": self.cuda_graph,
            "context_memory_bytes": _context_memory_bytes(self._loaded.engine),
            "transfers": "prepare: host to GPU, fetch: GPU to host, both through pinned memory and outside enqueue",
        }
        if (core := self.artifact.manifest.build.get("dla_core")) is not None:
            facts["dla_core"] = core
        if self._weight_budget is not None:
            facts["weight_streaming_budget_bytes"] = self._weight_budget
        return facts


class _Work:
    """What the queries of a session enqueue, with buffers for each."""

    def __init__(
        self, session: TensorRTSession, inputs: Sequence[FloatArray], streams: Sequence[Any], opened: ExitStack
    ) -> None:
        self._session = session
        self._in, self._compute, self._out = streams
        self._opened = opened
        batch = len(inputs[0])
        self._x_bytes, y_bytes = _num_bytes(batch, session.input), _num_bytes(batch, session.output)
        self._y_shape = (batch, *session.output.shape)
        self._x_host, self._y_host = (
            [opened.enter_context(cuda.PinnedBuffer(num_bytes)) for _ in inputs]
            for num_bytes in (self._x_bytes, y_bytes)
        )
        self._x_device, self._y_device = (
            [opened.enter_context(cuda.DeviceBuffer(num_bytes)) for _ in inputs]
            for num_bytes in (self._x_bytes, y_bytes)
        )
        for host, x_NCHW in zip(self._x_host, inputs, strict=True):
            np.copyto(host.view(x_NCHW.shape), x_NCHW)
        self._graphs: list[Any] = []
        session._set_shape(batch)

    def record(self) -> None:
        """Make a graph of each slot's inference."""
        for slot in range(len(self._x_host)):
            self.copy_in(slot)
            self._in.synchronize()
            self.compute(slot)
        # All are run before the first is recorded: from then on `compute` launches records.
        self._compute.synchronize()
        graphs = []
        for x_device, y_device in zip(self._x_device, self._y_device, strict=True):
            self._session._set_addresses(x_device, y_device)
            graphs.append(self._opened.enter_context(self._session._record(self._compute)))
        self._graphs = graphs

    def copy_in(self, slot: int) -> None:
        self._x_device[slot].copy_from(self._x_host[slot], self._x_bytes, self._in)

    def compute(self, slot: int) -> None:
        if self._graphs:
            self._graphs[slot].launch(self._compute)
            return
        self._session._set_addresses(self._x_device[slot], self._y_device[slot])
        self._session._launch(self._compute)

    def copy_out(self, slot: int) -> None:
        host = self._y_host[slot]
        self._y_device[slot].copy_to(host, host.num_bytes, self._out)

    def answer(self, slot: int) -> FloatArray:
        y_NK: FloatArray = self._y_host[slot].view(self._y_shape).copy()
        return y_NK


_PROFILE_WARMUP = 3


def _profiler(trt: Any) -> Any:
    """A profiler for a context: it sums what the library reports, layer by layer in the order they run."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the library is known at run time only
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self._milliseconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self._milliseconds[layer_name] = self._milliseconds.get(layer_name, 0.0) + ms

        def node_times(self, runs: int) -> list[NodeTime]:
            return [NodeTime(name=name, kind="", ns=1e6 * ms / runs) for name, ms in self._milliseconds.items()]

    return Profiler()


def _num_bytes(batch: int, spec: TensorSpec) -> int:
    return batch * int(np.prod(spec.shape)) * np.dtype(np.float32).itemsize


def _context_memory_bytes(engine: Any) -> int:
    """What a context takes beside the weights; TensorRT 10.3 renamed it, 11 dropped the old name."""
    return int(
        getattr(engine, "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size")
    )
