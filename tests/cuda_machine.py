"""A CUDA runtime without a GPU: what `alexnet_edge.cuda` calls, over plain memory.

Work is done when it is waited for, so a missing synchronisation shows as a wrong answer. The addresses of device memory
are numbers that the processor cannot read. Where the real bindings are installed, every call is first made to them, which
refuse a wrong number or type of arguments; without a driver they answer an error code and do nothing.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

NO_DRIVER = 35
FIRST_DEVICE_ADDRESS = 0x7F00_0000_0000


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
        self.calls: list[str] = []
        self.clock_ns = 0
        self._handles = 0
        enumerations = bindings or SimpleNamespace(
            cudaStreamNonBlocking=1,
            cudaEventDefault=0,
            cudaHostAllocDefault=0,
            cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2),
            cudaStreamCaptureMode=SimpleNamespace(cudaStreamCaptureModeThreadLocal=1),
        )
        for name in (
            "cudaStreamNonBlocking",
            "cudaEventDefault",
            "cudaHostAllocDefault",
            "cudaMemcpyKind",
            "cudaStreamCaptureMode",
        ):
            setattr(self, name, getattr(enumerations, name))

    def held(self) -> list[str]:
        """What was not given back."""
        kinds = ("device", "host", "streams", "graphs", "executables", "events")
        return [kind for kind in kinds if getattr(self, kind)]

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put work into a stream, as a kernel launch does."""
        self.capturing.get(stream, self.streams[stream]).append(work)

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

    # --- what the functions do ------------------------------------------------------------------------------------------

    def _cudaGetDeviceCount(self) -> int:
        return self.devices

    def _cudaGetDeviceProperties(self, index: int) -> Any:
        major, minor = self.sm
        return SimpleNamespace(name=b"Orin\0\0", major=major, minor=minor, totalGlobalMem=8 << 30, integrated=1)

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
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()

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
        self.streams[stream] += self.executables[executable]

    def _cudaGraphExecDestroy(self, executable: int) -> None:
        del self.executables[executable]

    def _cudaEventCreateWithFlags(self, flags: int) -> int:
        return self._handle(self.events, None)

    def _cudaEventRecord(self, event: int, stream: int) -> None:
        self.enqueue(stream, lambda: self.events.update({event: self.clock_ns}))

    def _cudaEventSynchronize(self, event: int) -> None:
        for stream in self.streams:
            self._cudaStreamSynchronize(stream)

    def _cudaEventElapsedTime(self, start: int, end: int) -> float:
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
        self.enqueue(stream, lambda: self._cudaMemcpy(to, origin, size, kind))

    def _cudaMemcpy(self, to: int, origin: int, size: int, kind: Any) -> None:
        if int(kind) == 1:
            assert size <= len(self.device[to])
            self.device[to][:size] = ctypes.string_at(origin, size)
        else:
            assert size <= len(self.device[origin])
            ctypes.memmove(to, bytes(self.device[origin][:size]), size)
