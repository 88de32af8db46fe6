"""Time one call with the host's clock, without garbage collection."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from alexnet_edge.images.preprocess import FloatArray


def batches_of(x_NCHW: FloatArray, batch: int) -> list[FloatArray]:
    """`x_NCHW` in consecutive batches, repeated from its start when it holds fewer images than one batch.

    Inferences rotate through them, so that no runtime sees the same image again and again.
    """
    if len(x_NCHW) < batch:
        x_NCHW = np.resize(x_NCHW, (batch, *x_NCHW.shape[1:]))
    return [np.ascontiguousarray(x_NCHW[at : at + batch]) for at in range(0, len(x_NCHW) - batch + 1, batch)]


@contextmanager
def no_collection() -> Iterator[None]:
    """Inside the block Python collects no garbage: a collection would add the harness's time to a sample."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def time_once(call: Callable[[], object]) -> int:
    """Nanoseconds that one call takes."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start
