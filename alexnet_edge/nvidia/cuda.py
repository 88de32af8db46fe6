"""The few calls of the CUDA runtime that an engine needs, each checked: GPU, stream, event, buffers, graph.

They go through NVIDIA's cuda-python: `cuda.bindings.runtime`, or `cuda.cudart` as releases before 12.8 have it.
Nothing is imported and no GPU is touched before the first call.

Source: CUDA Runtime API, "Stream Management", "Event Management", "Memory Management", "Graph Management".
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexnet_edge.errors import MissingComponentError, UserError, install_command

if TYPE_CHECKING:
    from typing_extensions import Self

FloatArray = npt.NDArray[np.float32]

_NO_GPU = "use --device cpu with a checkpoint or an ONNX file"
_DRIVER_TOO_OLD = 35
"""`cudaErrorInsufficientDriver`: also what a machine without any driver answers."""
_NO_DEVICE = 100
"""`cudaErrorNoDevice`."""
_OUT_OF_MEMORY = 2
"""`cudaErrorMemoryAllocation`."""


@cache  # what fails is asked again
def runtime_library() -> Any:
    """The module with the CUDA runtime's functions.

    Raises:
        MissingComponentError: when cuda-python is not installed, or is and cannot be loaded.
    """
    try:
        try:
            return importlib.import_module("cuda.bindings.runtime")
        except ModuleNotFoundError as error:
            if error.name not in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
                raise
            return importlib.import_module("cuda.cudart")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in ("cuda", "cuda.cudart")
        state = "is not installed" if missing else f"cannot be loaded ({_one_line(error)})"
        raise MissingComponentError(f"cuda-python {state}", fix=f"run: {install_command('cuda')}") from error


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime: its value, a tuple of several, or None where it has none.

    Raises:
        MissingComponentError: when cuda-python, the driver or the GPU is missing.
        UserError: when the call fails, with CUDA's name and text of the error.
    """
    library = runtime_library()
    try:
        code, *values = getattr(library, name)(*arguments)
    except RuntimeError as error:  # older releases look for the driver's functions themselves
        raise MissingComponentError(f"there is no NVIDIA driver here ({_one_line(error)})", fix=_NO_GPU) from error
    if int(code) != 0:
        raise _failure(library, name, code)
    return values[0] if len(values) == 1 else tuple(values) or None


def _failure(library: Any, name: str, code: Any) -> UserError:
    number = int(code)
    if number == _DRIVER_TOO_OLD:
        driver = int(library.cudaDriverGetVersion()[1])
        if driver == 0:
            return MissingComponentError("there is no NVIDIA driver here", fix=_NO_GPU)
        runtime = int(library.cudaRuntimeGetVersion()[1])
        return MissingComponentError(
            f"the NVIDIA driver is too old: it is for CUDA {_version(driver)}, cuda-python for {_version(runtime)}",
            fix=f"run: pip install 'cuda-python<{driver // 1000 + 1}'",
        )
    if number == _NO_DEVICE:
        return MissingComponentError("there is no NVIDIA GPU here", fix=_NO_GPU)
    text = bytes(library.cudaGetErrorString(code)[1]).decode(errors="replace")
    if number == _OUT_OF_MEMORY:
        return UserError(
            f"{name}: the GPU has too little free memory", fix="close what else uses it, or lower the batch"
        )
    return UserError(f"{name} failed ({text}, CUDA error {number})", fix="see `alexnet-edge doctor`")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuInfo:
    """One GPU, as the CUDA runtime describes it."""

    name: str
    """As `Orin` or `NVIDIA GeForce RTX 4090`."""
    sm: str
    """Compute capability, as `sm87`."""
    memory_bytes: int
    """All of its memory; where it is integrated, that of the machine as far as the GPU may use it."""
    driver_version: str
    """The newest CUDA that the driver supports, as `12.6`."""
    integrated: bool
    """Whether it shares the processor's memory, as on every Jetson."""


def require_gpu(index: int = 0) -> GpuInfo:
    """The GPU with this number.

    Raises:
        MissingComponentError: when cuda-python, the driver or the GPU is missing.
    """
    count = int(call("cudaGetDeviceCount"))
    if index >= count:
        raise MissingComponentError(f"there is no NVIDIA GPU number {index} here, of {count}", fix=_NO_GPU)
    properties = call("cudaGetDeviceProperties", index)
    return GpuInfo(
        name=bytes(properties.name).decode(errors="replace").strip("\0 "),
        sm=f"sm{properties.major}{properties.minor}",
        memory_bytes=int(properties.totalGlobalMem),
        driver_version=_version(int(call("cudaDriverGetVersion"))),
        integrated=bool(properties.integrated),
    )


def gpu_info(index: int = 0) -> GpuInfo | None:
    """The GPU with this number, or None where it, its driver or cuda-python is missing or does not work."""
    try:
        return require_gpu(index)
    except UserError:
        return None


def l2_cache_bytes(index: int = 0) -> int:
    """Size of the L2 cache of the GPU with this number.

    Raises:
        MissingComponentError: when cuda-python, the driver or the GPU is missing.
    """
    return int(call("cudaDeviceGetAttribute", runtime_library().cudaDeviceAttr.cudaDevAttrL2CacheSize, index))


class _Resource:
    """Something of the GPU's that is given back once: by `close`, or at the end of its `with` block."""

    free: str
    """The CUDA function that gives it back."""
    _handle: Any = None

    def close(self) -> None:
        """Give it back; again does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            call(self.free, handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream(_Resource):
    """A queue of work on the GPU, which does not wait for the default stream's."""

    free = "cudaStreamDestroy"

    def __init__(self) -> None:
        self._handle = call("cudaStreamCreateWithFlags", runtime_library().cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """The `cudaStream_t`, as other libraries take it."""
        return int(self._handle)

    def synchronize(self) -> None:
        """Wait until everything enqueued has finished.

        Raises:
            UserError: also for what failed on the GPU since it was enqueued.
        """
        call("cudaStreamSynchronize", self._handle)

    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on begin only when the GPU has passed the mark; the caller does not wait."""
        call("cudaStreamWaitEvent", self._handle, event.handle, 0)


class Event(_Resource):
    """A mark in a stream, with the GPU's own time of passing it."""

    free = "cudaEventDestroy"

    def __init__(self, *, blocking: bool = False) -> None:
        """A mark that no stream has yet; `blocking` gives up the processor while it is waited for."""
        library = runtime_library()
        flags = library.cudaEventBlockingSync if blocking else library.cudaEventDefault
        self._handle = call("cudaEventCreateWithFlags", flags)

    @property
    def handle(self) -> Any:
        """The `cudaEvent_t`."""
        return self._handle

    def record(self, stream: Stream) -> None:
        """Put the mark at the end of what is enqueued in `stream`."""
        call("cudaEventRecord", self._handle, stream.handle)

    def synchronize(self) -> None:
        """Wait until the GPU has passed the mark."""
        call("cudaEventSynchronize", self._handle)

    def elapsed_ns(self, start: Event) -> int:
        """Time between the passing of `start` and of this mark, in nanoseconds; the GPU counts in steps of about 500."""
        return round(float(call("cudaEventElapsedTime", start.handle, self._handle)) * 1e6)


class PinnedBuffer(_Resource):
    """Host memory that the GPU copies from and to without the driver's own staging copy."""

    free = "cudaFreeHost"

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._handle = int(call("cudaHostAlloc", num_bytes, runtime_library().cudaHostAllocDefault))
        self._memory = memoryview((ctypes.c_ubyte * num_bytes).from_address(self._handle))

    @property
    def address(self) -> int:
        """Where it starts in host memory."""
        return int(self._handle)

    def view(self, shape: tuple[int, ...]) -> FloatArray:
        """The first bytes as a float32 array of this shape; not to be used after `close`."""
        array: FloatArray = np.ndarray(shape, np.float32, buffer=self._memory)
        return array


class DeviceBuffer(_Resource):
    """Memory of the GPU."""

    free = "cudaFree"

    def __init__(self, num_bytes: int = 0) -> None:
        self.num_bytes = 0
        self.reserve(num_bytes)

    @property
    def address(self) -> int:
        """Where it starts in the GPU's memory, 0 while it holds none; stays until more is reserved."""
        return self._handle or 0

    def reserve(self, num_bytes: int) -> None:
        """Make it at least this large; growing loses the content and changes the address."""
        if num_bytes > self.num_bytes:
            self.close()
            self._handle = int(call("cudaMalloc", num_bytes))
            self.num_bytes = num_bytes

    def copy_from(self, host: PinnedBuffer, num_bytes: int, stream: Stream) -> None:
        """Enqueue the copy of the first bytes of `host` to this buffer."""
        kind = runtime_library().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", self.address, host.address, num_bytes, kind, stream.handle)

    def copy_to(self, host: PinnedBuffer, num_bytes: int, stream: Stream) -> None:
        """Enqueue the copy of the first bytes of this buffer to `host`."""
        kind = runtime_library().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", host.address, self.address, num_bytes, kind, stream.handle)

    def fill(self, value: int, stream: Stream) -> None:
        """Enqueue the writing of this value to every byte."""
        call("cudaMemsetAsync", self.address, value, self.num_bytes, stream.handle)

    def upload(self, array: npt.NDArray[Any]) -> int:
        """Copy an array to this buffer, growing as needed, and wait for it: its address.

        For the few copies that are not timed, such as calibration batches.
        """
        source = np.ascontiguousarray(array)
        self.reserve(source.nbytes)
        kind = runtime_library().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpy", self.address, source.ctypes.data, source.nbytes, kind)
        return self.address

    def close(self) -> None:
        self.num_bytes = 0
        super().close()


class Graph(_Resource):
    """Work recorded from a stream once, then launched as a whole."""

    free = "cudaGraphExecDestroy"

    def __init__(self, executable: Any) -> None:
        self._handle = executable

    @classmethod
    def capture(cls, stream: Stream, enqueue: Callable[[], None]) -> Graph:
        """Record what `enqueue` puts into `stream`; nothing of it runs.

        Raises:
            UserError: when something in it cannot be recorded, or `enqueue` raises it.
        """
        mode = runtime_library().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(UserError):  # a broken recording fails to end as well: why it broke is what counts
                call("cudaGraphDestroy", call("cudaStreamEndCapture", stream.handle))
            raise
        graph = call("cudaStreamEndCapture", stream.handle)
        try:
            return cls(call("cudaGraphInstantiateWithFlags", graph, 0))
        finally:
            call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Enqueue the recorded work."""
        call("cudaGraphLaunch", self._handle, stream.handle)
