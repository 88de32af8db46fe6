"""PyTorch on a GPU, phase by phase, on a stand-in for `torch.cuda` that keeps the order of what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from alexnet_edge import records  # noqa: E402
from alexnet_edge.artifact import TensorSpec  # noqa: E402
from alexnet_edge.bench.timing.latency import BatchRound, measure_batch  # noqa: E402
from alexnet_edge.bench.timing.settings import MeasureSettings  # noqa: E402
from alexnet_edge.bench.timing.summary import summarise_batch  # noqa: E402
from alexnet_edge.errors import UserError  # noqa: E402
from alexnet_edge.sessions import torch as module  # noqa: E402

STEP_MS = {"in": 1.0, "compute": 5.0, "out": 0.5}
"""What one piece of work takes on the stand-in's GPU, by stream."""


class Cuda:
    """Streams with a clock each: work moves its stream's on, waiting moves it to the event's."""

    def __init__(self, *, no_graphs: bool = False) -> None:
        self.made: list[Any] = []
        self.log: list[str] = []
        self.current: Any = None
        self.no_graphs = no_graphs
        self.replays = 0

    def Stream(self) -> Any:
        name = ("in", "compute", "out")[len(self.made) % 3]
        stream = SimpleNamespace(name=name, now=0.0, synchronize=lambda: None)
        stream.wait_event = lambda event: setattr(stream, "now", max(stream.now, event.at))
        self.made.append(stream)
        return stream

    def Event(self, *, enable_timing: bool, blocking: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=0.0, blocking=blocking, synchronize=lambda: None)
        event.record = lambda stream: setattr(event, "at", stream.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            stream.now += STEP_MS[stream.name]
            self.log.append(stream.name)
            self.current = before

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=self._replay)

    def _replay(self) -> None:
        assert self.current.name == "compute"
        self.replays += 1

    @contextmanager
    def graph(self, _graph: Any, *, stream: Any) -> Iterator[None]:
        assert stream.name == "compute"
        if self.no_graphs:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        yield

    def synchronize(self) -> None:
        self.log.append("synchronize")

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_device_properties() -> Any:
        return SimpleNamespace(L2_cache_size=4 << 20)


class OnGpu(module.TorchSession):
    """A torch session that believes to be on a GPU; its tensors are the host's."""

    runtime = "torch"

    def __init__(self) -> None:
        super().__init__(
            input=TensorSpec(name="x", dtype="float32", shape=(3, 4, 4)),
            output=TensorSpec(name="y", dtype="float32", shape=(3,)),
            device="cuda",
            threads=1,
        )

    def _module(self) -> Any:
        return lambda x: x.mean(dim=(2, 3)) * 2

    def _prepare(self, x_NCHW: Any) -> None:
        self._x = torch.from_numpy(x_NCHW.copy())


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    stand_in = Cuda()
    monkeypatch.setattr(torch, "cuda", stand_in)
    for name in ("_pinned", "_resident"):
        monkeypatch.setattr(module, name, lambda tensor: tensor.clone())
    return stand_in


def inputs(count: int) -> list[Any]:
    return [np.random.default_rng(seed).random((2, 3, 4, 4), np.float32) for seed in range(count)]


@pytest.mark.parametrize("graph", [False, True])
def test_phases_are_those_between_the_events(cuda: Cuda, graph: bool) -> None:
    given = inputs(2)
    with OnGpu() as session, session.device_queries(given, graph=graph, transfers=True, spin=True) as queries:
        for slot in (0, 1):
            cuda.log.clear()
            queries.submit(slot)
            assert cuda.log == ["in", "compute", "out"]
            times = queries.finish(slot)
            assert (times.h2d_ns, times.compute_ns, times.d2h_ns) == (1_000_000, 5_000_000, 500_000)
            assert times.latency_ns == 6_500_000
            assert times.end_ns - times.start_ns >= times.latency_ns
            np.testing.assert_allclose(queries.answer(slot), session.run(given[slot]), rtol=1e-6)
    assert (cuda.replays == 2) is graph
    assert cuda.log[-1] == "synchronize"


def test_without_transfers_only_the_kernels_are_timed(cuda: Cuda) -> None:
    given = inputs(1)
    with OnGpu() as session, session.device_queries(given, graph=False, transfers=False, spin=False) as queries:
        cuda.log.clear()
        queries.submit(0)
        assert cuda.log == ["compute"]
        times = queries.finish(0)
        assert (times.h2d_ns, times.compute_ns, times.d2h_ns) == (None, 5_000_000, None)
        np.testing.assert_allclose(queries.answer(0), session.run(given[0]), rtol=1e-6)


def test_a_network_that_cannot_be_recorded_says_so(cuda: Cuda) -> None:
    cuda.no_graphs = True
    with (
        OnGpu() as session,
        pytest.raises(UserError, match=r"cannot record the network as a CUDA graph \(operation not permitted"),
        session.device_queries(inputs(1), graph=True, transfers=True, spin=True),
    ):
        raise AssertionError


def test_the_flush_writes_twice_the_cache(cuda: Cuda) -> None:
    with OnGpu() as session, session.cache_flush() as cache:
        assert cache.num_bytes == 8 << 20
        cuda.log.clear()
        cache.flush()
        assert cuda.log == ["synchronize"]


def test_a_whole_round(cuda: Cuda) -> None:
    settings = MeasureSettings(
        batches=(2,), device="cuda", rounds=1, percentile=50, min_seconds=0.02, max_seconds=2, min_warmup_seconds=0.01
    )
    with OnGpu() as session:
        measured = measure_batch(session, np.concatenate(inputs(2)), batch=2, settings=settings)
    assert measured.unavailable == {}
    entry = summarise_batch([records.convert(BatchRound, records.to_builtins(measured))], settings)
    assert entry["device"]["compute_ns"]["p50"] == 5_000_000
    assert entry["device"]["latency_ns"]["p50"] == 6_500_000
    assert entry["device"]["graph"]["compute_ns"]["p50"] == 5_000_000
    assert entry["pipelined"]["in_flight"] == 2
    assert entry["cold"]["count"] >= 7
