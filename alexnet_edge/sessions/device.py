"""Inferences on a GPU apart from the host: when each one's copies and kernels began and ended, by CUDA events.

The order of a query is `trtexec`'s: the copy to the device, the inference and the copy back are enqueued in three streams,
each waiting for the one before, so that with several queries in flight the copies of one overlap the kernels of another.
An inference is never split among streams, and no two run at once.

Source: CUDA Runtime API, "Event Management" and "Stream Management"; `samples/common/sampleInference.cpp` of TensorRT.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alexnet_edge.images.preprocess import FloatArray

_MARKS = ("h2d_start", "h2d_end", "compute_start", "compute_end", "d2h_start", "d2h_end")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhaseTimes:
    """One inference in its parts, in nanoseconds by the GPU's clock; the GPU counts in steps of about 500."""

    h2d_ns: int | None
    """The copy of the input to the device; None where the input stayed there."""
    compute_ns: int
    """The kernels, from the first to the last."""
    d2h_ns: int | None
    """The copy of the output to the host; None where it stayed on the device."""
    enqueue_ns: int
    """Host time (`time.perf_counter_ns`) to start the kernels: as long as the call, or the graph's launch, took."""
    start_ns: int
    """When the first phase began, since the queries were opened."""
    compute_start_ns: int
    """When the kernels began, since the queries were opened."""
    end_ns: int
    """When the last phase ended, since the queries were opened."""

    @property
    def latency_ns(self) -> int:
        """The phases' sum, `trtexec`'s "Latency": no waiting for other queries is in it."""
        return (self.h2d_ns or 0) + self.compute_ns + (self.d2h_ns or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheFlush:
    """What empties the cache that weights may stay in."""

    num_bytes: int
    """Streamed through or written by one flush."""
    flush: Callable[[], None]
    """Returns when it is done."""


class StreamLike(Protocol):
    """A queue of work: `alexnet_edge.nvidia.cuda.Stream`, or one with its methods."""

    def wait(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...


class EventLike(Protocol):
    """A mark in a stream: `alexnet_edge.nvidia.cuda.Event`, or one with its methods."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_ns(self, start: Any) -> int: ...


class DeviceWork(Protocol):
    """What a runtime enqueues for the query in a slot; every slot has an input and an output of its own."""

    def copy_in(self, slot: int) -> None:
        """The input from pinned memory to the device, in the first stream."""

    def compute(self, slot: int) -> None:
        """The inference, in the second stream."""

    def copy_out(self, slot: int) -> None:
        """The output to pinned memory, in the third stream."""

    def answer(self, slot: int) -> FloatArray:
        """What the last `copy_out` brought."""


class DeviceQueries:
    """Inferences of one batch size, up to `slots` of them in flight; made by `Session.device_queries`."""

    def __init__(
        self,
        work: DeviceWork,
        *,
        slots: int,
        streams: Sequence[StreamLike],
        make_event: Callable[[], EventLike],
        transfers: bool,
    ) -> None:
        """Open queries: up to `slots` of them, in a stream each for the copies to the device, the inferences, and the copies
        back. Whoever makes the events gives them back. Without `transfers` the inputs are copied once, now.
        """
        self.slots = slots
        self.transfers = transfers
        self._work = work
        self._in, self._compute, self._out = streams
        self._events = [{name: make_event() for name in _MARKS} for _ in range(slots)]
        self._enqueue_ns: list[int | None] = [None] * slots
        if not transfers:
            for slot in range(slots):
                work.copy_in(slot)
            self._in.synchronize()
        self._origin = make_event()
        self._origin.record(self._in)
        self._compute.wait(self._origin)

    def submit(self, slot: int) -> None:
        """Enqueue one query; the slot's last one must have been finished."""
        assert self._enqueue_ns[slot] is None, "still in flight"
        marks = self._events[slot]
        if self.transfers:
            marks["h2d_start"].record(self._in)
            self._work.copy_in(slot)
            marks["h2d_end"].record(self._in)
            self._compute.wait(marks["h2d_end"])
        marks["compute_start"].record(self._compute)
        start = time.perf_counter_ns()
        self._work.compute(slot)
        self._enqueue_ns[slot] = time.perf_counter_ns() - start
        marks["compute_end"].record(self._compute)
        if self.transfers:
            self._out.wait(marks["compute_end"])
            marks["d2h_start"].record(self._out)
            self._work.copy_out(slot)
            marks["d2h_end"].record(self._out)

    def finish(self, slot: int) -> PhaseTimes:
        """Wait for the slot's query: when it passed its marks."""
        enqueue_ns, self._enqueue_ns[slot] = self._enqueue_ns[slot], None
        assert enqueue_ns is not None, "nothing is in flight"
        marks = self._events[slot]
        first, last = ("h2d_start", "d2h_end") if self.transfers else ("compute_start", "compute_end")
        marks[last].synchronize()

        def phase(name: str) -> int:
            return marks[f"{name}_end"].elapsed_ns(marks[f"{name}_start"])

        def since_opened(mark: str) -> int:
            return marks[mark].elapsed_ns(self._origin)

        return PhaseTimes(
            h2d_ns=phase("h2d") if self.transfers else None,
            compute_ns=phase("compute"),
            d2h_ns=phase("d2h") if self.transfers else None,
            enqueue_ns=enqueue_ns,
            start_ns=since_opened(first),
            compute_start_ns=since_opened("compute_start"),
            end_ns=since_opened(last),
        )

    def answer(self, slot: int) -> FloatArray:
        """The output `(N, K)` of the slot's last finished query, a copy."""
        assert self._enqueue_ns[slot] is None, "still in flight"
        if not self.transfers:
            self._work.copy_out(slot)
            self._out.synchronize()
        return self._work.answer(slot)
