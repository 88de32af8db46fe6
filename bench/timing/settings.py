"""How a measurement is made: warm-up, samples, limits, trtexec's conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from alexnet_edge.environment import check_threads
from alexnet_edge.errors import UserError
from alexnet_edge.proof.stats import required_samples
from alexnet_edge.sessions.base import Device

Like = Literal["trtexec-10", "trtexec-11"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
"""Of every summary; each is None where the samples are too few for it."""

COLD_PERCENTILE = 90.0
"""Decides the number of cold samples: they are for the median, and each costs a flush."""
PHASES = ("h2d_ns", "compute_ns", "d2h_ns", "latency_ns", "enqueue_ns")
"""What is summarised of the device's part."""
MIN_WARMUP = 3
MAX_SHARE = 0.25
"""Of `max_seconds`, that the cold, the device's and the pipelined part may each take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Convention:
    """How a version of `trtexec` measures by default; version 11 has other defaults than 10.

    Source: `samples/common/sampleInference.cpp` (`inferenceLoop`, `Iteration`), `sampleReporting.cpp` (`printEpilog`,
    `printPerformanceReport`) of TensorRT 10 and 11.
    """

    warmup_s: float = 0.2
    seconds: float = 3.0
    iterations: int = 10
    in_flight: int = 2
    transfers: bool
    graph: bool
    spin: bool
    max_cv: float
    """Of the GPU compute time; above it, it warns that the time is unstable."""


CONVENTIONS: dict[Like, Convention] = {
    "trtexec-10": Convention(transfers=True, graph=False, spin=False, max_cv=0.01),
    "trtexec-11": Convention(transfers=False, graph=True, spin=True, max_cv=0.025),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureSettings:
    """How to measure, and what makes a measurement invalid."""

    batches: tuple[int, ...] = (1, 8)
    """Images per inference, as in 1,8,32: latency is reported of the first, the others show throughput."""
    device: Device = "cpu"
    threads: int | None = None
    """Processor threads of the runtime; None for every processor this process may use."""
    percentile: float = 99.0
    """Highest percentile that the first batch must support: 50, 90, 95, 99 or 99.9."""
    other_percentile: float = 50.0
    """The same for the other batches."""
    rounds: int = 3
    """Fresh processes per subject; the samples of a batch are divided among them."""
    min_seconds: float = 3.0
    """Least measuring time of a batch, over all rounds."""
    max_seconds: float = 0.0
    """Measuring of a batch stops after this time, over all rounds, even with too few samples; 0 for ten times `min_seconds`,
    60 at least."""
    min_warmup_seconds: float = 0.2
    """Per round and batch."""
    max_warmup_seconds: float = 3.0
    """Per round and batch; not stable by then makes the result invalid."""
    warmup_tolerance: float = 0.10
    """Warm-up ends when the medians of the middle and last third of its inferences differ by no more."""
    max_cv: float = 0.25
    """Largest coefficient of variation of a valid result."""
    max_drift: float = 0.10
    """Largest relative change of the median from the first third of a round's samples to the last, in a valid result."""
    max_median_error: float = 0.05
    """Largest half-width of the median's confidence interval, relative to the median, of a valid result."""
    max_other_cpus: float = 0.25
    """Processors kept busy by other processes (or stolen by other virtual machines) during a valid measurement."""
    cold: bool = True
    """Also measure the first batch with the last-level cache flushed between inferences."""
    in_flight: int = 2
    """Inferences in flight for the pipelined throughput of a GPU."""
    like: Like | None = None
    """Measure a GPU by the definitions of this version of `trtexec`."""

    def __post_init__(self) -> None:
        if not self.max_seconds:
            object.__setattr__(self, "max_seconds", max(60.0, 10 * self.min_seconds))
        if self.device not in get_args(Device):
            raise UserError("no such device", value=self.device, fix="choose cpu or cuda")
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise UserError("batches must be 1 or more", value=self.batches, fix="give at least one positive batch")
        if len(set(self.batches)) != len(self.batches):
            raise UserError("a batch is named twice", value=self.batches, fix="name each once")
        check_threads(self.threads)
        for name in ("in_flight", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more", value=getattr(self, name), fix="give a positive number")
        if self.like is not None and self.like not in get_args(Like):
            raise UserError("no such convention", value=self.like, fix=f"choose {' or '.join(get_args(Like))}")
        for name in ("percentile", "other_percentile"):
            if not 0 < getattr(self, name) <= 99.99:
                raise UserError(f"{name} must be above 0 and at most 99.99", value=getattr(self, name), fix="try 99")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise UserError(
                "min_seconds must be positive and not above max_seconds",
                value=f"{self.min_seconds} and {self.max_seconds}",
                fix="allow more time",
            )
        if not 0 <= self.min_warmup_seconds <= self.max_warmup_seconds:
            raise UserError(
                "min_warmup_seconds must not be above max_warmup_seconds",
                value=f"{self.min_warmup_seconds} and {self.max_warmup_seconds}",
                fix="allow more time",
            )

    def percentile_at(self, batch: int) -> float:
        """Highest percentile that `batch` must support."""
        return self.percentile if batch == self.batches[0] else self.other_percentile

    def samples_needed(self, batch: int) -> int:
        """Samples that `batch` must have over all rounds."""
        return required_samples(self.percentile_at(batch))
