"""Sessions on PyTorch: a checkpoint run eagerly (the reference of every parity check) and a `torch.export` program.

Source of the profile: `torch.profiler`, https://docs.pytorch.org/docs/stable/profiler.html.
"""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.artifact import INPUT, TensorSpec
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError, needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.sessions.base import ArtifactSession, Device, FileTensor, NodeTime, Session, shareable
from alexnet_edge.sessions.device import CacheFlush, DeviceQueries

with needs("train"):
    import torch


def specs_of(checkpoint: Checkpoint) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a checkpoint's network: any batch."""
    arch, size = checkpoint.info.arch, checkpoint.info.preprocessing.crop
    return (
        TensorSpec(name=INPUT, dtype="float32", shape=(3, size, size)),
        TensorSpec(name=arch.head, dtype="float32", shape=(arch.num_classes,)),
    )


class TorchSession(Session):
    """What the PyTorch runtimes share; a subclass gives the callable to run."""

    @abstractmethod
    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]: ...

    def _load(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MissingComponentError("torch sees no CUDA GPU here", fix="use --device cpu")
        torch.set_num_threads(self.threads)
        self._call = self._module()
        self._x = torch.empty(0)
        self._y = torch.empty(0)

    def _prepare(self, x_NCHW: FloatArray) -> None:
        self._x = torch.from_numpy(shareable(x_NCHW)).to(self.device)

    def _enqueue(self) -> None:
        with torch.inference_mode():
            self._y = self._call(self._x)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _fetch(self) -> FloatArray:
        y_NK: FloatArray = self._y.cpu().numpy()
        return y_NK

    def _node_times(self, x_NCHW: FloatArray, runs: int) -> list[NodeTime] | None:
        """The operators that PyTorch was asked for, without those they call themselves.

        The eight that multiply weights bear their layer's name: they run in the order of the layers, also in a frozen
        graph, which keeps no other names. On a GPU it is the time of the kernels that an operator started. None where
        an inference differs from the next, or does not multiply eight weights: then no operator is surely a layer's.
        """
        x = torch.from_numpy(x_NCHW.copy()).to(self.device)
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.inference_mode():
            for _ in range(_PROFILE_WARMUP):
                self._call(x)
            self._synchronize()
            with torch.profiler.profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
                for _ in range(runs):
                    with torch.profiler.record_function(_PROFILED):
                        self._call(x)
                    self._synchronize()
        traces = [
            [operator for child in event.cpu_children for operator in _operators(child)]
            for event in profiler.events() or ()
            if event.name == _PROFILED and event.device_type.name == "CPU"
        ]
        names = _layer_names([operator.name for operator in traces[0]]) if traces else None
        if names is None or any([o.name for o in each] != [o.name for o in traces[0]] for each in traces):
            return None
        clock = "device_time_total" if self.device == "cuda" else "cpu_time_total"  # in microseconds
        return [
            NodeTime(
                name=name,
                kind=f"{same[0].name}({self._computed_in(same[0])})",
                ns=1e3 * float(np.mean([getattr(operator, clock) for operator in same])),
            )
            for name, same in zip(names, zip(*traces, strict=True), strict=True)
        ]

    def _computed_in(self, operator: Any) -> str:
        """Element type of an operator's first tensor; `tf32` where PyTorch may round FP32 operands to it."""
        dtype = next((name for name in operator.input_dtypes or () if name and not name.startswith("Scalar")), "")
        if self.device == "cpu" or dtype != "float" or torch.cuda.get_device_capability() < (8, 0):
            return dtype
        rounds = {"conv": torch.backends.cudnn.allow_tf32, "linear": torch.backends.cuda.matmul.allow_tf32}
        return "tf32" if any(word in operator.name and allowed for word, allowed in rounds.items()) else dtype

    @contextmanager
    def _device_queries(
        self, inputs: Sequence[FloatArray], *, graph: bool, transfers: bool, spin: bool
    ) -> Iterator[DeviceQueries]:
        cuda: Any = torch.cuda  # its Stream and Event have no types
        streams = [_Stream(cuda.Stream()) for _ in range(3)]
        work = _Work(self._call, inputs, streams=streams)
        if graph:
            work.record()
        try:
            yield DeviceQueries(
                work,
                slots=len(inputs),
                streams=streams,
                make_event=lambda: _Event(cuda.Event(enable_timing=True, blocking=not spin)),
                transfers=transfers,
            )
        finally:
            torch.cuda.synchronize()

    @contextmanager
    def _cache_flush(self) -> Iterator[CacheFlush]:
        cache_bytes = int(torch.cuda.get_device_properties().L2_cache_size)
        if not cache_bytes:
            raise UserError("the driver does not tell the size of the GPU's cache")
        buffer = _resident(torch.zeros(2 * cache_bytes, dtype=torch.uint8))

        def flush() -> None:
            buffer.add_(1)
            torch.cuda.synchronize()

        yield CacheFlush(num_bytes=2 * cache_bytes, flush=flush)

    def _close(self) -> None:
        self.__dict__.pop("_call", None)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "version": str(torch.__version__)}


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory()


def _resident(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cuda")


class _Stream:
    """`torch.cuda.Stream` as `DeviceQueries` speaks to one."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def wait(self, event: _Event) -> None:
        self.stream.wait_event(event.event)

    def synchronize(self) -> None:
        self.stream.synchronize()


class _Event:
    """`torch.cuda.Event` as `DeviceQueries` speaks to one."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def record(self, stream: _Stream) -> None:
        self.event.record(stream.stream)

    def synchronize(self) -> None:
        self.event.synchronize()

    def elapsed_ns(self, start: _Event) -> int:
        milliseconds: float = start.event.elapsed_time(self.event)
        return round(milliseconds * 1e6)


class _Work:
    """Slots with pinned and resident memory of their own, and, once recorded, a CUDA graph each.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html (streams, pinned memory, CUDA graphs).
    """

    def __init__(
        self, call: Callable[[torch.Tensor], torch.Tensor], inputs: Sequence[FloatArray], *, streams: Sequence[_Stream]
    ) -> None:
        self._call = call
        self._in, self._compute, self._out = (stream.stream for stream in streams)
        self._host_x = [_pinned(torch.from_numpy(x_NCHW.copy())) for x_NCHW in inputs]
        self._x = [_resident(x) for x in self._host_x]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        torch.cuda.synchronize()  # the copies were made in another stream
        self._y = [self._answer_of(x) for x in self._x]
        torch.cuda.synchronize()
        self._host_y = [_pinned(torch.empty(y.shape, dtype=y.dtype)) for y in self._y]

    def _answer_of(self, x: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._compute), torch.inference_mode():
            for _ in range(_GRAPH_WARMUP - 1):
                self._call(x)
            return self._call(x)

    def record(self) -> None:
        """Record one graph for each slot.

        Raises:
            UserError: when the network cannot be recorded.
        """
        try:
            for slot, x in enumerate(self._x):
                recorded = torch.cuda.CUDAGraph()
                with torch.inference_mode(), torch.cuda.graph(recorded, stream=self._compute):
                    self._y[slot] = self._call(x)
                self._graphs.append(recorded)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"torch cannot record the network as a CUDA graph ({reason})") from error

    def copy_in(self, slot: int) -> None:
        with torch.cuda.stream(self._in):
            self._x[slot].copy_(self._host_x[slot], non_blocking=True)

    def compute(self, slot: int) -> None:
        with torch.cuda.stream(self._compute), torch.inference_mode():
            if self._graphs:
                self._graphs[slot].replay()
            else:
                self._y[slot] = self._call(self._x[slot])

    def copy_out(self, slot: int) -> None:
        with torch.cuda.stream(self._out):
            self._host_y[slot].copy_(self._y[slot], non_blocking=True)

    def answer(self, slot: int) -> FloatArray:
        y_NK: FloatArray = self._host_y[slot].numpy().copy()
        return y_NK


_GRAPH_WARMUP = 3
"""Inferences before a graph is recorded, so that libraries have chosen their kernels and taken their memory."""
_PROFILED = "inference"
_PROFILE_WARMUP = 3
"""A TorchScript graph is rewritten in its first two runs."""
_MULTIPLIES = {"aten::conv2d": "conv", "aten::_convolution": "conv", "aten::convolution": "conv", "aten::linear": "fc"}
"""Operators that multiply a layer's weights, and the kind of layer they are."""


def _operators(event: Any) -> Iterator[Any]:
    """The outermost operators of a profiled event: itself, or, of a frame such as TorchScript's `forward`, those in it."""
    if event.name.startswith("aten::") or not event.cpu_children:
        yield event
        return
    for child in event.cpu_children:
        yield from _operators(child)


def _layer_names(operators: list[str]) -> list[str] | None:
    """The operators' names, with the layer's name in the place of each that multiplies its weights."""
    kinds = [_MULTIPLIES[name] for name in operators if name in _MULTIPLIES]
    if kinds != [name.rstrip("0123456789") for name in LAYER_NAMES]:
        return None
    layers = iter(LAYER_NAMES)
    return [next(layers) if name in _MULTIPLIES else name for name in operators]


class CheckpointSession(TorchSession):
    """A checkpoint run by PyTorch eagerly."""

    runtime = "torch"

    def __init__(self, source: Path | Checkpoint, *, device: Device = "cpu", threads: int | None = None) -> None:
        self.checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(source)
        input_spec, output_spec = specs_of(self.checkpoint)
        info = self.checkpoint.info
        super().__init__(
            input=input_spec,
            output=output_spec,
            device=device,
            threads=threads,
            classes=info.classes,
            head=info.arch.head,
            preprocessing=info.preprocessing,
        )

    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.checkpoint.model().to(self.device)


class ArtifactTorchSession(ArtifactSession, TorchSession):
    """What the PyTorch artifact formats share."""


class ExportedProgramSession(ArtifactTorchSession):
    """A `.pt2` file written by `torch.export.save`."""

    runtime = "torch.export"

    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]:
        try:
            program = torch.export.load(self.artifact.path)
        except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"torch.export cannot load the file ({reason})", value=self.artifact.path, fix="export it again"
            ) from error
        self._require_io(*_user_tensors(program))
        return program.module().to(self.device)


def _user_tensors(program: torch.export.ExportedProgram) -> tuple[list[FileTensor], list[FileTensor]]:
    """Inputs and outputs of a program; their names are the program's own, which no manifest holds."""
    tensors = {node.name: node.meta.get("val") for node in program.graph.nodes}
    sides = (program.graph_signature.user_inputs, program.graph_signature.user_outputs)
    inputs, outputs = ([_tensor(tensors.get(str(name))) for name in side] for side in sides)
    return inputs, outputs


def _tensor(value: Any) -> FileTensor:
    if not isinstance(value, torch.Tensor):
        return FileTensor(dtype=type(value).__name__)
    shape = tuple(extent if isinstance(extent, int) else None for extent in value.shape)
    return FileTensor(dtype=str(value.dtype).removeprefix("torch."), shape=shape)
