"""A CUDA runtime without a GPU: what `alexnet_edge.nvidia.cuda` calls, over plain memory.

Work is done when it is waited for, so a missing synchronisation shows as a wrong answer. The addresses of device memory
are numbers that the processor cannot read. Where the real bindings are installed, every call is first made to them, which
refuse a wrong number or type of arguments; without a driver they answer an error code and do nothing.

Time is counted, not spent: every stream goes on by what its work takes, begins nothing before the host put it there or an
event it waits for, and who waits is as late as what was waited for. So the times of events show what overlapped.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

NO_DRIVER = 35
FIRST_DEVICE_ADDRESS = 0x7F00_0000_0000
ENUMERATIONS = {
    "cudaStreamNonBlocking": 1,
    "cudaEventDefault": 0,
    "cudaEventBlockingSync": 1,
    "cudaHostAllocDefault": 0,
    "cudaMemcpyKind": SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
    "cudaStreamCaptureMode": SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
    "cudaDeviceAttr": SimpleNamespace(cudaDevAttrL2CacheSize=38),
}
"""Where the real bindings are not there to say them."""


def real_bindings() -> Any:
    """`cuda.bindings.runtime`, or None where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return None


def has_driver() -> bool:
    """Whether the calls of the real bindings would do something here."""
    bindings = real_bindings()
    return bindings is not None and int(bindings.cudaGetDeviceCount()[0]) != NO_DRIVER


class Machine:
    """Stands for the module `cuda.bindings.runtime`."""

    def __init__(self, *, sm: tuple[int, int] = (8, 7), devices: int = 1, check: bool = True) -> None:
        bindings = real_bindings() if check and not has_driver() else None
        self._real = bindings
        self.sm = sm
        self.devices = devices
        self.driver = 12060
        self.fail: dict[str, int] = {}
        """Error code to answer, by function."""
        self.capturable = True
        self.device: dict[int, bytearray] = {}
        self.host: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executables: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, int | None] = {}
        """When the GPU last passed each."""
        self.calls: list[str] = []
        self.clock_ns = 0
        """The GPU's, at the work that is being done."""
        self.host_ns = 0
        self.h2d_ns = self.kernel_ns = self.d2h_ns = 0
        """What the GPU takes for one."""
        self.launch_ns = self.graph_launch_ns = 0
        """What the host takes to enqueue one."""
        self.l2_bytes = 4 << 20
        self.filled_bytes = 0
        self._free_ns: dict[int, int] = {}
        self._marks: dict[int, tuple[int, int]] = {}
        """The stream and the number of each event's last recording."""
        self._passed_ns: dict[int, int] = {}
        """By number: a recording outlives its event."""
        self._handles = 0
        for name, value in ENUMERATIONS.items():
            setattr(self, name, getattr(bindings, name, value))

    def held(self) -> list[str]:
        """What was not given back."""
        kinds = ("device", "host", "streams", "graphs", "executables", "events")
        return [kind for kind in kinds if getattr(self, kind)]

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put work into a stream, as a kernel launch does."""

        def kernel() -> None:
            work()
            self.clock_ns += self.kernel_ns

        self._put(stream, kernel)
        self.host_ns += self.launch_ns

    def _put(self, stream: int, work: Callable[[], None]) -> None:
        if stream in self.capturing:
            self.capturing[stream].append(work)
            return
        put_ns = self.host_ns

        def step() -> None:
            self.clock_ns = max(self._free_ns.get(stream, 0), put_ns)
            work()
            self._free_ns[stream] = self.clock_ns

        self.streams[stream].append(step)

    def _until(self, stream: int, mark: int) -> int:
        """Let the GPU pass the mark, with what must come before it: when it did."""
        while mark not in self._passed_ns:
            self.streams[stream].pop(0)()
        return self._passed_ns[mark]

    def __getattr__(self, name: str) -> Any:
        answer = object.__getattribute__(self, f"_{name}") if name.startswith("cuda") else None
        if answer is None:
            raise AttributeError(name)

        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if self._real is not None:
                code = getattr(self._real, name)(*arguments)[0]
                assert int(code) in (0, NO_DRIVER), f"{name}: {code}"
            if name in self.fail:
                return self.fail[name], None
            values = answer(*arguments)
            return 0, *(() if values is None else values if isinstance(values, tuple) else (values,))

        return function

    def _handle(self, kind: dict[int, Any], value: Any) -> int:
        self._handles += 1
        kind[self._handles] = value
        return self._handles

    def _cudaGetDeviceCount(self) -> int:
        return self.devices

    def _cudaGetDeviceProperties(self, index: int) -> Any:
        major, minor = self.sm
        return SimpleNamespace(name=b"Orin\0\0", major=major, minor=minor, totalGlobalMem=8 << 30, integrated=1)

    def _cudaDeviceGetAttribute(self, attribute: Any, index: int) -> int:
        assert int(attribute) == 38, "the L2 cache is the only one that is asked for"
        return self.l2_bytes

    def _cudaDriverGetVersion(self) -> int:
        return self.driver

    def _cudaRuntimeGetVersion(self) -> int:
        return 13050

    def _cudaGetErrorString(self, code: Any) -> bytes:
        return b"an illegal memory access was encountered"

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == 1, "the default stream waits for every other"
        return self._handle(self.streams, [])

    def _cudaStreamSynchronize(self, stream: int) -> None:
        assert stream not in self.capturing, "waiting for a stream ends its recording"
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        self.host_ns = max(self.host_ns, self._free_ns.get(stream, 0))

    def _cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        if event not in self._marks:
            return  # never recorded: there is nothing to wait for
        mark = self._marks[event]

        def wait() -> None:
            start_ns = self.clock_ns
            self.clock_ns = max(start_ns, self._until(*mark))

        self._put(stream, wait)

    def _cudaStreamDestroy(self, stream: int) -> None:
        del self.streams[stream]

    def _cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        assert not self.streams[stream], "work before the recording is still to do"
        self.capturing[stream] = []

    def _cudaStreamEndCapture(self, stream: int) -> Any:
        return self._handle(self.graphs, self.capturing.pop(stream))

    def _cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> Any:
        return self._handle(self.executables, self.graphs[graph])

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self.executables[executable]:
            self._put(stream, work)
        self.host_ns += self.graph_launch_ns

    def _cudaGraphExecDestroy(self, executable: int) -> None:
        del self.executables[executable]

    def _cudaEventCreateWithFlags(self, flags: int) -> int:
        return self._handle(self.events, None)

    def _cudaEventRecord(self, event: int, stream: int) -> None:
        self._handles += 1
        mark = self._handles
        self._marks[event] = stream, mark

        def passes() -> None:
            self._passed_ns[mark] = self.clock_ns
            if event in self.events:  # else it was given back meanwhile, which CUDA allows
                self.events[event] = self.clock_ns

        self._put(stream, passes)

    def _cudaEventSynchronize(self, event: int) -> None:
        self.host_ns = max(self.host_ns, self._until(*self._marks[event]))

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:
        for event in (start, end):
            assert self._marks[event][1] in self._passed_ns, "CUDA answers that it is not ready"
        first, last = self.events[start], self.events[end]
        assert first is not None
        assert last is not None
        return (last - first) / 1e6

    def _cudaEventDestroy(self, event: int) -> None:
        del self.events[event]

    def _cudaHostAlloc(self, size: int, flags: int) -> int:
        block = (ctypes.c_ubyte * size)()
        self.host[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def _cudaFreeHost(self, address: int) -> None:
        del self.host[address]

    def _cudaMalloc(self, size: int) -> int:
        self._handles += 1
        address = FIRST_DEVICE_ADDRESS + (self._handles << 32)
        self.device[address] = bytearray(size)
        return address

    def _cudaFree(self, address: int) -> None:
        del self.device[address]

    def _cudaMemcpyAsync(self, to: int, origin: int, size: int, kind: Any, stream: int) -> None:
        assert (to if int(kind) == 2 else origin) in self.host, "not pinned memory"

        def copy() -> None:
            self._cudaMemcpy(to, origin, size, kind)
            self.clock_ns += self.h2d_ns if int(kind) == 1 else self.d2h_ns

        self._put(stream, copy)

    def _cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> None:
        def fill() -> None:
            assert size <= len(self.device[address])
            self.device[address][:size] = bytes([value]) * size
            self.filled_bytes += size

        self._put(stream, fill)

    def _cudaMemcpy(self, to: int, origin: int, size: int, kind: Any) -> None:
        if int(kind) == 1:
            assert size <= len(self.device[to])
            self.device[to][:size] = ctypes.string_at(origin, size)
        else:
            assert size <= len(self.device[origin])
            ctypes.memmove(to, bytes(self.device[origin][:size]), size)
