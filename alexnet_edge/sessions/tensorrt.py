"""A session on an engine, run by TensorRT or TensorRT-RTX on the GPU it was built for.

The same calls serve TensorRT 8.6 to 11 and TensorRT-RTX; where they differ, what the library has decides.

Source: TensorRT Python API, `Runtime`, `ICudaEngine`, `IExecutionContext`; Developer Guide, "Version Compatibility",
"Hardware Compatibility", "CUDA Graphs", "Weight Streaming"; TensorRT-RTX documentation, "Engine Compatibility" and "Working
with RTX CUDA Graphs".

Letters: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from alexnet_edge import cuda as real_cuda
from alexnet_edge.artifact import Artifact, Manifest, TensorSpec, rebuild_command
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError
from alexnet_edge.files import sha256_file
from alexnet_edge.nvidia import Library, library_calls, load_library, make_logger, platform_name
from alexnet_edge.preprocess import PRESETS, FloatArray
from alexnet_edge.sessions.base import ArtifactSession, Device, NodeTime
from alexnet_edge.sessions.device import CacheFlush, DeviceQueries

LIBRARIES: dict[str, Library] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""The library that runs an engine, by the runtime its manifest names."""
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""How each is called in messages."""

RTX_MAGIC = b"vtrt"
"""First bytes of an engine of TensorRT-RTX 1.7; those of TensorRT are others."""

TRUSTED_SIZES = {227: "imagenet-227", 224: "imagenet-224"}
"""Preprocessing assumed of an engine without manifest, by the height and width of its input."""


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
        self,
        artifact: Artifact,
        *,
        device: Device = "cuda",
        threads: int | None = None,
        cuda_graph: bool = False,
        trt: ModuleType | None = None,
        cuda: Any = None,
    ) -> None:
        """A closed session.

        Args:
            artifact: the engine.
            device: only `cuda`.
            threads: processor threads, which an engine does not use.
            cuda_graph: launch recorded inferences.
            trt: the library; by default the one that the manifest names.
            cuda: what stands for `alexnet_edge.cuda`.

        Raises:
            ArtifactError: when the manifest names no library that runs engines.
            UserError: when another device is asked for.
        """
        if device != "cuda":
            raise UserError("an engine runs on the GPU only", value=f"--device {device}", fix="leave --device out")
        super().__init__(artifact, device=device, threads=threads)
        self.runtime = artifact.manifest.runtime
        self.cuda_graph = cuda_graph
        self._name = NAMES[_library_of(artifact)]
        self._given_trt = trt
        self._cuda: Any = cuda or real_cuda

    # --- loading ------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self._log: list[str] = []
        with library_calls(), ExitStack() as opened:
            self._trt: Any = self._given_trt or load_library(LIBRARIES[self.runtime])
            self._gpu = self._cuda.require_gpu()
            version = str(self._trt.__version__)
            reason = refusal(self.artifact, library_version=version, sm=self._gpu.sm, platform=platform_name())
            if reason:
                raise ArtifactError(reason, value=self.artifact.path, fix=_rebuild(self.artifact.manifest))
            opened.callback(self._forget, "_loaded")  # the last to go: everything below was made with it
            self._loaded = _deserialise(self._trt, self.artifact, self._log)
            _require_io(self._trt, self._loaded.engine, self.artifact)
            self._weight_budget = self._set_weight_budget()  # it cannot change once there is a context
            self._stream = opened.enter_context(self._cuda.Stream())
            self._x_device = opened.enter_context(self._cuda.DeviceBuffer())
            self._y_device = opened.enter_context(self._cuda.DeviceBuffer())
            self._x_host: Any = None
            self._y_host: Any = None
            opened.callback(self._free_host)
            opened.callback(self._forget, "_context")
            self._context = self._make_context()
            self._graph: Any = None
            opened.callback(self._drop_graph)
            opened.callback(self._stream.synchronize)  # the first to go: what still runs
            self._batch = 0
            self._opened = opened.pop_all()

    def _make_context(self, *, cuda_graph: bool | None = None) -> Any:
        engine = self._loaded.engine
        if (self.cuda_graph if cuda_graph is None else cuda_graph) and self._can_record_itself:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise UserError(
                f"{self._name} cannot make an execution context ({_reason(self._log)})",
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

    # --- one inference ------------------------------------------------------------------------------------------------

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
            self._y_host = self._cuda.PinnedBuffer(y_bytes)
            self._x_host = self._cuda.PinnedBuffer(x_bytes)  # the last: whether it is there stands for both
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
                raise self._failed(f"takes no address for {spec.name}", value=self.artifact.path)

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
            return self._cuda.Graph.capture(stream, lambda: self._launch(stream))
        except UserError as error:
            raise UserError(
                f"the inference cannot be recorded as a CUDA graph ({error.problem})",
                value=self.artifact.path,
                fix="leave CUDA graphs off",
            ) from error

    def _launch(self, stream: Any = None) -> None:
        if not self._context.execute_async_v3((stream or self._stream).handle):
            raise self._failed("cannot run the engine", value=self.artifact.path)

    def _failed(self, problem: str, *, value: object) -> UserError:
        return UserError(
            f"{self._name} {problem} ({_reason(self._log)})", value=value, fix=_rebuild(self.artifact.manifest)
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
                self._renew_context(self._loaded.engine.create_execution_context)
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
                        raise self._failed("reports no layer times", value=self.artifact.path)
            finally:
                self._stream.synchronize()
                self._renew_context(self._make_context)
        found: list[NodeTime] = profile.node_times(runs)
        return found

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
            opened.callback(self._renew_context, self._make_context)
            self._renew_context(lambda: self._make_context(cuda_graph=graph))
            streams = [opened.enter_context(self._cuda.Stream()) for _ in range(3)]
            work = _Work(self, inputs, streams, opened)
            if graph and not self._can_record_itself:
                work.record()
            for stream in streams:
                opened.callback(stream.synchronize)  # the first to go: what still runs
            yield DeviceQueries(
                work,
                slots=len(inputs),
                streams=streams,
                make_event=lambda: opened.enter_context(self._cuda.Event(blocking=not spin)),
                transfers=transfers,
            )

    @contextmanager
    def _cache_flush(self) -> Iterator[CacheFlush]:
        num_bytes = 2 * self._cuda.l2_cache_bytes()
        with self._cuda.DeviceBuffer(num_bytes) as buffer:

            def flush() -> None:
                buffer.fill(0, self._stream)
                self._stream.synchronize()

            yield CacheFlush(num_bytes=num_bytes, flush=flush)

    def _renew_context(self, make: Callable[[], Any]) -> None:
        """Another context in the place of this one, which goes first; its shape and addresses are to be set again."""
        self._drop_graph()
        self._batch = 0
        self._context = None
        self._context = make()
        if self._context is None:
            raise self._failed("cannot make an execution context", value=self.artifact.path)

    # --- release ------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        opened: ExitStack = self.__dict__.pop("_opened", None) or ExitStack()
        opened.close()

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def _free_host(self) -> None:
        buffers, self._x_host, self._y_host = (self._x_host, self._y_host), None, None
        for buffer in buffers:
            if buffer is not None:
                buffer.close()

    def _forget(self, name: str) -> None:
        self.__dict__.pop(name, None)

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
        batch, cuda = len(inputs[0]), session._cuda
        self._x_bytes, y_bytes = _num_bytes(batch, session.input), _num_bytes(batch, session.output)
        self._y_shape = (batch, *session.output.shape)
        self._x_host, self._x_device, self._y_device, self._y_host = (
            [opened.enter_context(kind(num_bytes)) for _ in inputs]
            for kind, num_bytes in (
                (cuda.PinnedBuffer, self._x_bytes),
                (cuda.DeviceBuffer, self._x_bytes),
                (cuda.DeviceBuffer, y_bytes),
                (cuda.PinnedBuffer, y_bytes),
            )
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
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


# --- before an engine is loaded -------------------------------------------------------------------------------------------


def refusal(artifact: Artifact, *, library_version: str, sm: str, platform: str) -> str | None:
    """Why this machine cannot run the engine, by its manifest alone; None where nothing speaks against it.

    Args:
        artifact: the engine; what its manifest does not say is not checked.
        library_version: of the library here, as `10.3.0`.
        sm: compute capability of the GPU here, as `sm87`.
        platform: as `linux-aarch64`.
    """
    build = artifact.manifest.build
    if build.get("stripped"):
        return "the engine was built without its weights"
    built_on = build.get("platform")
    if built_on and built_on != platform:
        return f"the engine was built on {built_on}, here is {platform}"
    return _wrong_version(artifact.manifest, library_version) or _wrong_gpu(build, sm)


def _wrong_version(manifest: Manifest, library_version: str) -> str | None:
    built_with = manifest.build.get("version")
    if not built_with:
        return None
    built, here = _numbers(str(built_with)), _numbers(library_version)
    if built == here:
        return None
    name = NAMES.get(manifest.runtime, manifest.runtime)
    told = f"the engine was built with {name} {built_with}, here is {library_version}"
    if manifest.build.get("version_compatible"):
        return f"{told}, and needs the lean runtime of its own version, which this package does not load"
    return told


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch: what an engine is tied to, and all that `trtexec` tells."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _wrong_gpu(build: Mapping[str, Any], sm: str) -> str | None:
    targets = build.get("compute_capabilities")
    if isinstance(targets, list | tuple) and targets:
        return None if sm in targets else f"the engine is for {', '.join(map(str, targets))}, the GPU here is {sm}"
    built_on = build.get("sm")
    if not built_on or built_on == sm:
        return None
    if build.get("hardware_compatibility") == "ampere-plus":
        return None if _sm_number(sm) >= 80 else f"the engine is for sm80 and newer, the GPU here is {sm}"
    return f"the engine was built for {built_on}, the GPU here is {sm}"


def _sm_number(sm: str) -> int:
    digits = sm.removeprefix("sm")
    return int(digits) if digits.isdecimal() else 0


def not_here(artifact: Artifact) -> str | None:
    """Why this machine cannot run the engine, or None where the library and the GPU it was built for are here."""
    manifest = artifact.manifest
    try:
        library = load_library(LIBRARIES[_library_of(artifact)])
        gpu = real_cuda.require_gpu()
    except UserError as error:
        return f"a {manifest.runtime} engine needs the NVIDIA GPU it was built for ({error.problem})"
    return refusal(artifact, library_version=str(library.__version__), sm=gpu.sm, platform=platform_name())


def _library_of(artifact: Artifact) -> str:
    runtime = artifact.manifest.runtime
    if runtime not in LIBRARIES:
        raise ArtifactError(
            f"no library runs engines of {runtime}",
            value=artifact.path,
            fix=f"it must be one of {', '.join(LIBRARIES)}",
        )
    return runtime


def _rebuild(manifest: Manifest) -> str:
    if manifest.build.get("trusted"):
        return "get one that was built with this library, for this GPU"
    return f"rebuild it here: {rebuild_command(manifest)}"


# --- an engine in memory --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """An engine, and what must live as long."""

    engine: Any
    runtime: Any
    logger: Any
    """The library does not own it."""


def _deserialise(trt: Any, artifact: Artifact, log: list[str]) -> _Loaded:
    """Load the engine. Code that it may carry is never allowed to run: `engine_host_code_allowed` stays off.

    Raises:
        MissingComponentError: when the library cannot use the driver.
        ArtifactError: when the library refuses the engine, with its reason.
    """
    manifest = artifact.manifest
    name = NAMES[manifest.runtime]
    logger = make_logger(trt, [], log=log)
    try:
        runtime = trt.Runtime(logger)
    except (RuntimeError, TypeError) as error:  # the bindings' answer when there is nothing to return
        raise MissingComponentError(
            f"{name} cannot use the GPU ({_reason(log, str(error))})", fix="see `alexnet-edge doctor`"
        ) from error
    core = manifest.build.get("dla_core")
    if core is not None:
        if core >= runtime.num_DLA_cores:
            raise ArtifactError(
                f"the engine is for DLA core {core}, this machine and {name} {trt.__version__} have "
                f"{runtime.num_DLA_cores}",
                value=artifact.path,
                fix="export it again without --dla-core",
            )
        runtime.DLA_core = core
    plan = artifact.path.read_bytes()
    invalid = _invalid(trt, runtime, plan)
    engine = None if invalid else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"{name} {trt.__version__} cannot load the engine ({invalid or _reason(log)})",
            value=artifact.path,
            fix=_rebuild(manifest),
        )
    return _Loaded(engine=engine, runtime=runtime, logger=logger)


def _invalid(trt: Any, runtime: Any, plan: bytes) -> str | None:
    """What TensorRT-RTX finds wrong with an engine before loading it; TensorRT itself has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    members = trt.EngineInvalidityDiagnostics.__members__.items()
    found = [name.lower().replace("_", " ") for name, bit in members if int(diagnostics) & int(bit)]
    return ", ".join(found) or None


def _reason(log: list[str], otherwise: str = "") -> str:
    """What the library said of a failure: its first error, as the others follow from it. The log is then empty."""
    errors = [line[4:] for line in log if line.startswith(("[E]", "[F]"))]
    log.clear()
    return " ".join((errors[0] if errors else otherwise or "it gives no reason").split())


def _require_io(trt: Any, engine: Any, artifact: Artifact) -> None:
    """The engine takes and gives what the manifest says.

    Raises:
        ArtifactError: when it does not.
    """
    manifest = artifact.manifest
    found, said = _told(*_io(trt, engine, artifact.path)), _told(manifest.input, manifest.output)
    if found != said:
        raise ArtifactError(
            f"the engine takes {found}, its manifest says {said}", value=artifact.path, fix=_rebuild(manifest)
        )


def _told(x_spec: TensorSpec, y_spec: TensorSpec) -> str:
    x_text, y_text = (f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in (x_spec, y_spec))
    return f"{x_spec.min_batch} to {x_spec.max_batch} of {x_text} to {y_text}"


def _io(trt: Any, engine: Any, path: Path) -> tuple[TensorSpec, TensorSpec]:
    """Input and output as the engine itself describes them.

    Raises:
        ArtifactError: when it is not one image batch in, one float32 row per image out.
    """

    def wrong(problem: str) -> ArtifactError:
        return ArtifactError(problem, value=path, fix="this package runs engines that `alexnet-edge export` wrote")

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    if len(inputs) != 1 or len(outputs) != 1:
        raise wrong(f"the engine has {len(inputs)} inputs and {len(outputs)} outputs, not one of each")
    for name in names:
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise wrong(f"the engine's tensor {name} is not float32")
    if engine.num_optimization_profiles != 1:
        raise wrong(f"the engine has {engine.num_optimization_profiles} optimisation profiles, not one")
    x_shape = tuple(int(extent) for extent in engine.get_tensor_shape(inputs[0]))
    y_shape = tuple(int(extent) for extent in engine.get_tensor_shape(outputs[0]))
    if len(x_shape) != 4 or len(y_shape) != 2 or min(*x_shape[1:], y_shape[1]) < 1:
        raise wrong(f"the engine's shapes are {x_shape} and {y_shape}, not (N, 3, S, S) and (N, K)")
    smallest = largest = x_shape[0]
    if smallest < 0:
        least, _, most = engine.get_tensor_profile_shape(inputs[0], 0)
        smallest, largest = int(least[0]), int(most[0])
    x_spec = TensorSpec(name=inputs[0], dtype="float32", shape=x_shape[1:], min_batch=smallest, max_batch=largest)
    return x_spec, replace(x_spec, name=outputs[0], shape=y_shape[1:])


def _io_of(trt: Any, artifact: Artifact) -> tuple[TensorSpec, TensorSpec]:
    loaded = _deserialise(trt, artifact, [])
    return _io(trt, loaded.engine, artifact.path)


# --- an engine without manifest -------------------------------------------------------------------------------------------


def trusted_engine(path: Path, *, trt: ModuleType | None = None, cuda: Any = None) -> Artifact:
    """An engine without manifest as an artifact: what a manifest says is taken from its own input and output.

    It is loaded to be asked, which is why the caller must trust it. Its classes are numbered; the preprocessing is the
    usual one of its input size; the precision is not known, and stands as `fp32`, whose tolerance is the strictest.

    Args:
        path: the file.
        trt: the library; by default the one that the file's first bytes name.
        cuda: what stands for `alexnet_edge.cuda`.

    Raises:
        MissingComponentError: when the library or the GPU is not here.
        ArtifactError: when the library refuses it, or it is not one image batch in, one row per image out.
    """
    try:
        with path.open("rb") as stream:
            runtime = "tensorrt-rtx" if stream.read(len(RTX_MAGIC)) == RTX_MAGIC else "tensorrt"
        digest, size = sha256_file(path), path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"cannot be read ({error.strerror})", value=path, fix="check the path") from error
    library: Any = trt or load_library(LIBRARIES[runtime])
    gpu = (cuda or real_cuda).require_gpu()
    unknown = TensorSpec(name="", dtype="float32", shape=())
    manifest = Manifest(
        format="trt",
        runtime=runtime,
        precision="fp32",
        architecture="unknown",
        classes=(),
        head="logits",
        preprocessing=PRESETS[TRUSTED_SIZES[227]],
        input=unknown,
        output=unknown,
        checkpoint="",
        checkpoint_sha256="",
        build={"trusted": True, "version": str(library.__version__), "sm": gpu.sm, "platform": platform_name()},
        sha256=digest,
        bytes=size,
    )
    with library_calls():
        x_spec, y_spec = _io_of(library, Artifact(path=path, manifest=manifest))
    channels, height, width = x_spec.shape
    if channels != 3 or height != width or height not in TRUSTED_SIZES:
        raise ArtifactError(
            f"the engine takes {channels}x{height}x{width}, and without a manifest its preprocessing is not known",
            value=path,
            fix="export the engine with `alexnet-edge export`, which writes a manifest",
        )
    manifest = replace(
        manifest,
        classes=tuple(str(index) for index in range(y_spec.shape[0])),
        head="probabilities" if y_spec.name == "probabilities" else "logits",
        preprocessing=PRESETS[TRUSTED_SIZES[height]],
        input=x_spec,
        output=y_spec,
    )
    return Artifact(path=path, manifest=manifest)
