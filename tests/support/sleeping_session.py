"""A session whose inference only sleeps, images that say which they are, and a round of samples nobody measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from alexnet_edge.bench.timing.latency import LatencySamples
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.sessions.null import NullSession

SIZE = 8


def images(count: int) -> FloatArray:
    """Image n holds the number n."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, SIZE, SIZE)).copy()


class SleepingSession(NullSession):
    """Sleeps for as long as `milliseconds(n)` says at its n-th inference, and remembers the images of each."""

    def __init__(
        self, milliseconds: Callable[[int], float] = lambda n: 0.0, *, batches: tuple[int, int | None] = (1, None)
    ) -> None:
        super().__init__(input_size=SIZE, num_classes=4)
        self.input = replace(self.input, min_batch=batches[0], max_batch=batches[1])
        self.milliseconds = milliseconds
        self.seen: list[list[int]] = []

    @property
    def count(self) -> int:
        return len(self.seen)

    def _prepare(self, x_NCHW: FloatArray) -> None:
        super()._prepare(x_NCHW)
        self.seen.append([int(value) for value in x_NCHW[:, 0, 0, 0]])

    def _enqueue(self) -> None:
        if seconds := self.milliseconds(self.count - 1) / 1e3:
            time.sleep(seconds)


def round_of_samples(
    samples_ms: Sequence[float], *, batch: int = 1, other_cpus: float = 0.0, stable: bool = True
) -> LatencySamples:
    samples_ns = tuple(round(value * 1e6) for value in samples_ms)
    return LatencySamples(
        batch=batch,
        started_ns=1,
        samples_ns=samples_ns,
        duration_ns=sum(samples_ns),
        warmup_count=5,
        warmup_ns=1,
        warmup_stable=stable,
        other_cpus=other_cpus,
    )
