"""Times of a GPU's phases: which events they are between, what is in flight meanwhile, and what is made of them.

CUDA and TensorRT are stand-ins here (see `cuda_machine` and `test_tensorrt_session`), whose clocks are counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_machine import Machine
from sleeping_session import round_of_samples
from tensorrt_library import Library, answers, engine_file, images

from alexnet_edge import records
from alexnet_edge.bench.timing import clock as clock_module
from alexnet_edge.bench.timing import device as device_timing
from alexnet_edge.bench.timing import latency as measure
from alexnet_edge.bench.timing.device import (
    DeviceSamples,
    PipelinedSamples,
    _keep_in_flight,
    device_queries,
    take_like_trtexec,
    take_samples,
)
from alexnet_edge.bench.timing.latency import BatchRound, measure_batch
from alexnet_edge.bench.timing.settings import CONVENTIONS, PHASES, MeasureSettings
from alexnet_edge.bench.timing.summary import summarise_batch
from alexnet_edge.errors import UserError
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.nvidia import cuda
from alexnet_edge.proof.stats import trtexec_percentile
from alexnet_edge.sessions import device, tensorrt
from alexnet_edge.sessions import engine_file as engine_file_module
from alexnet_edge.sessions.device import DeviceQueries, PhaseTimes
from alexnet_edge.sessions.null import NullSession
from alexnet_edge.sessions.onnxruntime import OnnxRuntimeSession
from alexnet_edge.sessions.tensorrt import TensorRTSession

H2D, KERNEL, D2H, LAUNCH, GRAPH_LAUNCH = 2_000_000, 10_000_000, 1_000_000, 700_000, 50_000
HELD = ("device", "host", "streams", "graphs", "executables", "events")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A GPU whose work takes time, by the clock that the host is given, too."""
    made = Machine()
    made.h2d_ns, made.kernel_ns, made.d2h_ns = H2D, KERNEL, D2H
    made.launch_ns, made.graph_launch_ns = LAUNCH, GRAPH_LAUNCH
    monkeypatch.setattr(cuda, "runtime_library", lambda: made)
    clock = SimpleNamespace(perf_counter_ns=lambda: made.host_ns)
    for module in (device, clock_module, device_timing, measure):
        monkeypatch.setattr(module, "time", clock)
    return made


@pytest.fixture
def trt(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library(machine)
    for module in (tensorrt, engine_file_module):
        monkeypatch.setattr(module, "load_library", lambda runtime: library)
    return library


@pytest.fixture
def session(tmp_path: Path, trt: Library, machine: Machine) -> Iterator[TensorRTSession]:
    """Open; whatever a test does with it, nothing is held after it."""
    with TensorRTSession(engine_file(tmp_path)) as opened:
        yield opened
    assert machine.held() == []


def counts(machine: Machine) -> dict[str, int]:
    return {kind: len(getattr(machine, kind)) for kind in HELD}


class Recorder:
    """Streams, events and work that write down what is asked of them."""

    def __init__(self, *, slots: int = 1, transfers: bool = True) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.events = 0
        self.passed_ms: dict[int, int] = {}
        streams = [self.stream(name) for name in ("in", "compute", "out")]
        self.queries = DeviceQueries(self, slots=slots, streams=streams, make_event=self.event, transfers=transfers)
        self.origin = self.marks()[0]
        self.at_first = self.since()

    def stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            wait=lambda event: self.did.append(("wait", name, event.id)),
            synchronize=lambda: self.did.append(("synchronize", name)),
        )

    def event(self) -> Any:
        number, self.events = self.events, self.events + 1
        return SimpleNamespace(
            id=number,
            record=lambda stream: self.did.append(("record", stream.name, number)),
            synchronize=lambda: self.did.append(("pass", number)),
            elapsed_ns=lambda start: 1000 * (self.passed_ms[number] - self.passed_ms[start.id]),
        )

    def copy_in(self, slot: int) -> None:
        self.did.append(("copy in", slot))

    def compute(self, slot: int) -> None:
        self.did.append(("compute", slot))

    def copy_out(self, slot: int) -> None:
        self.did.append(("copy out", slot))

    def answer(self, slot: int) -> FloatArray:
        return np.full((1, 1), slot, np.float32)

    def marks(self) -> list[int]:
        return [step[2] for step in self.did if step[0] == "record"]

    def since(self) -> list[tuple[Any, ...]]:
        """What was done since the last call."""
        done, self.did = self.did, []
        return done


def test_every_phase_is_between_two_marks_of_its_stream() -> None:
    recorder = Recorder()
    origin = recorder.origin
    assert recorder.at_first == [("record", "in", origin), ("wait", "compute", origin)]
    recorder.queries.submit(0)
    a, b, c, d, e, f = marks = recorder.marks()
    assert len({origin, *marks}) == 7, "a mark is used twice"
    copy_in = [("record", "in", a), ("copy in", 0), ("record", "in", b)]
    compute = [("wait", "compute", b), ("record", "compute", c), ("compute", 0), ("record", "compute", d)]
    copy_out = [("wait", "out", d), ("record", "out", e), ("copy out", 0), ("record", "out", f)]
    assert recorder.since() == [*copy_in, *compute, *copy_out]
    recorder.passed_ms = {origin: 100, a: 101, b: 103, c: 110, d: 150, e: 156, f: 163}
    times = recorder.queries.finish(0)
    assert recorder.did == [("pass", f)], "the last mark is the only one to wait for"
    assert (times.h2d_ns, times.compute_ns, times.d2h_ns) == (2000, 40000, 7000)
    assert (times.start_ns, times.compute_start_ns, times.end_ns) == (1000, 10000, 63000)
    assert times.latency_ns == 49000, "waiting between the phases is no part of trtexec's latency"


def test_without_transfers_there_is_the_inference_only() -> None:
    recorder = Recorder(transfers=False, slots=2)
    assert recorder.at_first[:3] == [("copy in", 0), ("copy in", 1), ("synchronize", "in")]
    recorder.queries.submit(1)
    c, d = recorder.marks()
    assert recorder.since() == [("record", "compute", c), ("compute", 1), ("record", "compute", d)]
    recorder.passed_ms = {recorder.origin: 0, c: 5, d: 9}
    times = recorder.queries.finish(1)
    assert recorder.since() == [("pass", d)]
    assert (times.h2d_ns, times.compute_ns, times.d2h_ns, times.latency_ns) == (None, 4000, None, 4000)
    assert (times.start_ns, times.compute_start_ns, times.end_ns) == (5000, 5000, 9000)
    assert recorder.queries.answer(1) == 1
    assert recorder.did == [("copy out", 1), ("synchronize", "out")]


def test_a_slot_holds_one_query() -> None:
    queries = Recorder(slots=2).queries
    with pytest.raises(AssertionError, match="nothing is in flight"):
        queries.finish(0)
    queries.submit(0)
    with pytest.raises(AssertionError, match="still in flight"):
        queries.submit(0)
    with pytest.raises(AssertionError, match="still in flight"):
        queries.answer(0)
    queries.submit(1)


def test_every_slot_has_its_own_marks() -> None:
    recorder = Recorder(slots=3)
    for slot in range(3):
        recorder.queries.submit(slot)
    assert len(recorder.marks()) == len(set(recorder.marks())) == 18


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
@pytest.mark.parametrize("slots", [1, 3])
def test_answers_and_times(
    session: TensorRTSession, machine: Machine, trt: Library, graph: bool, transfers: bool, slots: int
) -> None:
    session.run(images(2))
    before = counts(machine)
    inputs = [images(2) + slot for slot in range(slots)]
    with session.device_queries(inputs, graph=graph, transfers=transfers) as queries:
        assert len(machine.events) == 6 * slots + 1
        assert len(machine.executables) == (slots if graph else 0)
        for _ in range(2):
            for memory in machine.device.values():
                if transfers:  # an answer that was there before is none
                    memory[:] = bytes(len(memory))
            for slot in range(slots):
                machine.calls.clear()
                trt.did.clear()
                queries.submit(slot)
                assert machine.calls.count("cudaMemcpyAsync") == (2 if transfers else 0)
                assert machine.calls.count("cudaGraphLaunch") == graph
                assert trt.did == ([] if graph else ["execute"])
                assert not any("Synchronize" in name for name in machine.calls), "enqueueing waits for nothing"
            for slot in range(slots):
                times = queries.finish(slot)
                assert times.h2d_ns == (H2D if transfers else None)
                assert times.compute_ns == KERNEL
                assert times.d2h_ns == (D2H if transfers else None)
                assert times.latency_ns == KERNEL + transfers * (H2D + D2H)
                assert times.enqueue_ns == (GRAPH_LAUNCH if graph else LAUNCH), "the host's time, not the GPU's"
                np.testing.assert_allclose(queries.answer(slot), answers(inputs[slot]), rtol=1e-6)
    assert counts(machine) == before
    np.testing.assert_allclose(session.run(images(3)), answers(images(3)), rtol=1e-6)


def test_an_inference_is_recorded_once_for_each_slot(session: TensorRTSession, trt: Library, machine: Machine) -> None:
    trt.did.clear()
    with session.device_queries([images(1), images(1)], graph=True) as queries:
        assert trt.did.count("record") == 2
        assert trt.did.index("record") > max(at for at, call in enumerate(trt.did) if call == "execute")
        for _ in range(3):
            for slot in range(2):
                queries.submit(slot)
                queries.finish(slot)
        assert trt.did.count("record") == trt.did.count("execute") == 2


def test_tensorrt_rtx_records_by_itself(
    session: TensorRTSession, trt: Library, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "CudaGraphStrategy", SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"), raising=False)
    for graph, context in ((True, "context whole"), (False, "context")):
        trt.did.clear()
        with session.device_queries([images(1)], graph=graph):
            assert context in trt.did
            assert not machine.executables
        assert trt.did[-1] == "context", "the session's own is what it was"


@pytest.mark.parametrize("spin", [False, True])
def test_spinning_is_the_events_choice(
    session: TensorRTSession, machine: Machine, monkeypatch: pytest.MonkeyPatch, spin: bool
) -> None:
    flags: list[int] = []
    make = machine._cudaEventCreateWithFlags
    monkeypatch.setattr(machine, "_cudaEventCreateWithFlags", lambda flag: flags.append(int(flag)) or make(flag))
    with session.device_queries([images(1)], spin=spin):
        assert set(flags) == {int(machine.cudaEventDefault if spin else machine.cudaEventBlockingSync)}


def first_queries(queries: Any, count: int) -> list[PhaseTimes]:
    with closing(_keep_in_flight(queries)) as running:
        return [query for query, _ in zip(running, range(count), strict=False)]


def test_two_in_flight_overlap(session: TensorRTSession, machine: Machine) -> None:
    """The copies of one are under the kernels of the other, and no two inferences run at once."""
    with session.device_queries([images(1)] * 2) as queries:
        times = first_queries(queries, 8)
    for query, following in pairwise(times[2:]):
        assert query.compute_start_ns + KERNEL == following.compute_start_ns, "the GPU stood still"
        assert following.start_ns < query.end_ns
    with session.device_queries([images(1)]) as queries:
        times = first_queries(queries, 4)
    for query, following in pairwise(times):
        assert following.start_ns >= query.end_ns, "more than one was in flight"


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("StreamCreateWithFlags", "EventCreateWithFlags", "Malloc", "HostAlloc", "EventRecord", "MemcpyAsync"),
        *("StreamWaitEvent", "EventSynchronize", "EventElapsedTime", "StreamBeginCapture"),
        *("GraphInstantiateWithFlags", "GraphLaunch"),
    ],
)
@pytest.mark.parametrize("successes", [0, 1, 3])
def test_a_failure_holds_nothing(
    session: TensorRTSession, machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str, graph: bool, successes: int
) -> None:
    """Whatever fails, whenever it does: everything is given back, and the session answers on."""
    session.run(images(1))
    before, calls = counts(machine), 0
    works = getattr(machine, f"_cuda{name}")

    def fails_later(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > successes:
            raise UserError(f"{name} fails")
        return works(*arguments)

    monkeypatch.setattr(machine, f"_cuda{name}", fails_later)
    message = ""
    try:
        with session.device_queries([images(1)] * 2, graph=graph) as queries:
            for act in (queries.submit, queries.finish):
                for slot in range(2):
                    act(slot)
    except UserError as error:
        message = str(error)
    assert (f"{name} fails" in message) == (calls > successes), "a failure was swallowed"
    monkeypatch.setattr(machine, f"_cuda{name}", works)
    assert counts(machine) == before
    assert not machine.capturing
    np.testing.assert_allclose(session.run(images(1)), answers(images(1)), rtol=1e-6)


def test_leaving_waits_for_what_is_in_flight(session: TensorRTSession, trt: Library, machine: Machine) -> None:
    session.run(images(1))
    before, runs = counts(machine), trt.runs

    def interrupted() -> None:
        with session.device_queries([images(1)] * 2) as queries:
            queries.submit(0)
            queries.submit(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert trt.runs == runs + 2
    assert counts(machine) == before
    np.testing.assert_allclose(session.run(images(2)), answers(images(2)), rtol=1e-6)


def test_queries_left_by_the_caller_are_drained() -> None:
    recorder = Recorder(slots=3)
    recorder.passed_ms = dict.fromkeys(range(recorder.events), 0)
    assert len(first_queries(recorder.queries, 4)) == 4
    assert recorder.queries._enqueue_ns == [None] * 3
    done = [step[1] for step in recorder.did if step[0] == "compute"]
    assert done == [0, 1, 2, 0, 1, 2, 0, 1][: len(done)], "slots are used in turn"


@pytest.mark.parametrize("l2_bytes", [1 << 16, 4 << 20])
def test_a_flush_writes_twice_the_cache_and_waits(session: TensorRTSession, machine: Machine, l2_bytes: int) -> None:
    machine.l2_bytes = l2_bytes
    before = counts(machine)
    with session.cache_flush() as cache:
        assert cache.num_bytes >= 2 * l2_bytes
        for flushes in (1, 2):
            cache.flush()
            assert machine.filled_bytes == flushes * cache.num_bytes, "it returns before it is done"
    assert counts(machine) == before


class Server(NullSession):
    """On the GPU as far as anyone asks, in a runtime that says nothing of it."""

    runtime = "onnxruntime"

    def __init__(self) -> None:
        super().__init__(input_size=8, num_classes=4)
        self.device = "cuda"


PARTS = ("device", "graph", "pipelined")
WRONG_ANSWER = "the timed inference answers otherwise than run()"


QUICK = MeasureSettings(
    batches=(2,), rounds=1, percentile=50, other_percentile=50, min_seconds=0.1, max_seconds=4, min_warmup_seconds=0.05
)


def test_what_cannot_be_timed_says_why() -> None:
    x = np.zeros((1, 3, 8, 8), np.float32)
    settings = replace(QUICK, batches=(1, 2))
    with NullSession(input_size=8, num_classes=4) as session:
        taken = measure_batch(session, x, batch=1, settings=settings)
        words = "the processor computes in the calling thread: there is no device to time apart"
        assert taken.unavailable == dict.fromkeys(PARTS, words)
        assert (taken.device, taken.graph, taken.pipelined) == (None, None, None)
        assert taken.cold is not None
        assert taken.flushed_bytes
        for batch, cold, reason in ((2, True, "measured for the first batch only"), (1, False, "not asked for")):
            taken = measure_batch(session, x, batch=batch, settings=replace(settings, cold=cold))
            assert taken.unavailable["cold"] == reason
        with pytest.raises(UserError, match="trtexec-10 measures a GPU: --device cpu"):
            measure_batch(session, x, batch=1, settings=replace(settings, like="trtexec-10"))
    assert OnnxRuntimeSession._device_queries is NullSession._device_queries
    assert OnnxRuntimeSession._cache_flush is NullSession._cache_flush
    with Server() as session:
        for like in (None, "trtexec-11"):
            taken = measure_batch(session, x, batch=1, settings=replace(settings, like=like))
            words = "onnxruntime copies and computes inside one call: no event can be put between"
            cold = "onnxruntime gives no access to the GPU's memory"
            assert taken.unavailable == {"cold": cold, **dict.fromkeys(PARTS, words)}
    with pytest.raises(UserError, match="closed"):
        Server().device_queries([x])


def opened(session: TensorRTSession, *, transfers: bool = True) -> Any:
    return device_queries(session, [images(2)], in_flight=2, graph=False, transfers=transfers)


def warm_round(session: TensorRTSession, *, like: Any = None) -> BatchRound:
    settings = replace(QUICK, device="cuda", like=like, cold=False)
    return measure_batch(session, images(2), batch=2, settings=settings)


@pytest.mark.parametrize("off", [0.5, np.nan])
@pytest.mark.parametrize("transfers", [False, True])
def test_another_answer_is_not_timed(
    session: TensorRTSession, monkeypatch: pytest.MonkeyPatch, off: float, transfers: bool
) -> None:
    answer = tensorrt._Work.answer
    monkeypatch.setattr(tensorrt._Work, "answer", lambda work, slot: answer(work, slot) + off * slot * 100)
    with pytest.raises(UserError, match="answers otherwise"), opened(session, transfers=transfers):
        raise AssertionError("opened")


def test_the_last_answers_count_too(session: TensorRTSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong only with several in flight, or after a while."""
    answer = tensorrt._Work.answer
    count = 0

    def later_wrong(work: Any, slot: int) -> FloatArray:
        nonlocal count
        count += 1
        return answer(work, slot) + np.float32(100 * (count > 2))

    monkeypatch.setattr(tensorrt._Work, "answer", later_wrong)
    taken = warm_round(session, like="trtexec-10")
    assert taken.unavailable == {"cold": "not asked for", **dict.fromkeys(PARTS, WRONG_ANSWER)}
    assert (taken.device, taken.pipelined) == (None, None)
    assert count == 3


def test_other_kernels_may_round_otherwise(session: TensorRTSession, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = tensorrt._Work.answer
    monkeypatch.setattr(tensorrt._Work, "answer", lambda work, slot: answer(work, slot) * np.float32(1.01))
    with opened(session):
        pass


def phases_of(part: DeviceSamples) -> list[set[int] | None]:
    """The values of each phase."""
    values = [getattr(part, phase) for phase in PHASES]
    return [None if samples is None else set(samples) for samples in values]


def test_a_round_on_a_gpu(session: TensorRTSession, machine: Machine, trt: Library) -> None:
    taken = measure_batch(session, images(4), batch=2, settings=replace(QUICK, device="cuda"))
    assert taken.unavailable == {}
    assert taken.flushed_bytes == 2 * machine.l2_bytes
    assert taken.cold is not None
    assert taken.device is not None
    assert taken.graph is not None
    assert taken.pipelined is not None
    for part, launch in ((taken.device, LAUNCH), (taken.graph, GRAPH_LAUNCH)):
        assert phases_of(part) == [{H2D}, {KERNEL}, {D2H}, {H2D + KERNEL + D2H}, {launch}]
        assert len(part.compute_ns) >= QUICK.samples_needed(2)
        assert part.in_flight == 1
        assert part.warmup_count >= 3
    assert (taken.device.cuda_graph, taken.graph.cuda_graph) == (False, True)
    assert taken.pipelined.in_flight == 2
    one_by_one = 1e9 * len(taken.device.compute_ns) / taken.device.duration_ns
    figures = summarise_batch([taken], QUICK)
    assert one_by_one == pytest.approx(1e9 / (H2D + KERNEL + D2H), rel=0.1)
    assert figures["pipelined"]["queries_per_s"] == pytest.approx(1e9 / KERNEL, rel=0.1)
    assert figures["pipelined"]["images_per_s"] == 2 * figures["pipelined"]["queries_per_s"]
    assert records.decode(BatchRound, json.dumps(records.to_builtins(taken), allow_nan=False)) == taken


@pytest.mark.parametrize("like", ["trtexec-10", "trtexec-11"])
def test_a_round_like_trtexec(session: TensorRTSession, trt: Library, machine: Machine, like: Any) -> None:
    taken = warm_round(session, like=like)
    part = taken.device
    assert part is not None
    assert taken.pipelined is not None
    newer = like == "trtexec-11"
    assert (part.in_flight, part.cuda_graph) == (2, newer)
    older = [{H2D}, {KERNEL}, {D2H}, {H2D + KERNEL + D2H}]
    assert phases_of(part)[:-1] == ([None, {KERNEL}, None, {KERNEL}] if newer else older)
    assert len(part.compute_ns) == pytest.approx(3e9 / KERNEL, rel=0.02)
    assert part.warmup_count == pytest.approx(0.2e9 / KERNEL, rel=0.1)
    assert taken.pipelined == PipelinedSamples(in_flight=2, count=len(part.compute_ns), duration_ns=part.duration_ns)
    assert taken.graph is None
    assert taken.unavailable == {"cold": "not asked for", "graph": f"{like} measures one way only"}
    assert records.decode(BatchRound, json.dumps(records.to_builtins(taken), allow_nan=False)) == taken
    assert summarise_batch([taken], replace(QUICK, like=like))["device"]["like"] == like


def test_an_engine_that_cannot_be_recorded(session: TensorRTSession, machine: Machine) -> None:
    machine.capturable = False
    taken = warm_round(session)
    assert taken.graph is None
    assert "cannot be recorded as a CUDA graph" in taken.unavailable["graph"]
    assert taken.device is not None
    assert taken.pipelined is not None


def steadily(number: int) -> int:
    return 10_000_000


class Scripted:
    """Queries that each take what `lasts_ns(n)` says, one after the other."""

    def __init__(self, machine: Machine, lasts_ns: Callable[[int], int], *, slots: int = 1) -> None:
        self.machine, self.lasts_ns, self.slots = machine, lasts_ns, slots
        self.count = 0
        self.flying: list[int] = []
        self.most = 0

    def submit(self, slot: int) -> None:
        assert slot not in self.flying
        self.flying.append(slot)
        self.most = max(self.most, len(self.flying))

    def finish(self, slot: int) -> PhaseTimes:
        assert slot == self.flying.pop(0), "the oldest is the next to end"
        start_ns, lasts_ns = self.machine.host_ns, self.lasts_ns(self.count)
        self.machine.host_ns += lasts_ns
        self.count += 1
        return PhaseTimes(
            h2d_ns=10,
            compute_ns=self.count,
            d2h_ns=1,
            enqueue_ns=5,
            start_ns=start_ns,
            compute_start_ns=start_ns + 10,
            end_ns=start_ns + lasts_ns,
        )


def take(queries: Scripted, *, samples: int) -> tuple[DeviceSamples, PipelinedSamples]:
    settings = MeasureSettings(rounds=2, min_seconds=8, max_seconds=80, min_warmup_seconds=0.2)
    return take_samples(queries, settings, samples=samples, graph=True)  # type: ignore[arg-type]


def test_the_rule_of_time_and_count(machine: Machine) -> None:
    """A quarter of the least and of the most time is each part's, divided among two rounds: 1 s and 10 s."""
    taken, pipelined = take(Scripted(machine, steadily, slots=3), samples=20)
    assert taken.warmup_count == 20
    assert (pipelined.count, pipelined.duration_ns) == (100, 1_000_000_000), "the least time decides"
    assert taken.compute_ns == tuple(range(21, 121)), "every query after warm-up, in order"
    assert (taken.in_flight, taken.cuda_graph) == (3, True)
    assert take(Scripted(machine, steadily), samples=500)[1].count == 500, "the count decides"
    assert take(Scripted(machine, steadily), samples=5000)[1].count == 1000, "the most time decides"
    assert take(Scripted(machine, lambda n: 1_000_000_000), samples=5)[0].warmup_count == 3, "never fewer"


def test_every_slot_is_in_flight_and_none_is_left(machine: Machine) -> None:
    queries = Scripted(machine, steadily, slots=4)
    taken, _ = take(queries, samples=20)
    assert queries.most == 4
    assert queries.flying == []
    assert queries.count == taken.warmup_count + len(taken.compute_ns) + 4, "those left are finished, and not counted"


def test_a_failure_leaves_no_query_in_flight(machine: Machine) -> None:
    waited: list[int] = []

    def lasts_ns(number: int) -> int:
        waited.append(number)
        if len(waited) == 31:
            raise UserError("it fails")
        return 10_000_000

    queries = Scripted(machine, lasts_ns, slots=3)
    with pytest.raises(UserError, match="it fails"):
        take(queries, samples=20)
    assert queries.flying == []
    assert len(waited) == 33, "the two others were not waited for"


@pytest.mark.parametrize("like", list(CONVENTIONS))
def test_the_rule_of_trtexec(machine: Machine, like: Any) -> None:
    """Warm-up is what begins to compute in the first 200 ms; 3 s more, and at least ten; all by the device's clock."""
    machine.host_ns = 5_000_000_000  # whatever came before the first query does not count
    queries = Scripted(machine, steadily)
    taken, pipelined = take_like_trtexec(queries, CONVENTIONS[like])  # type: ignore[arg-type]
    # The 21st begins at 200 ms; the 321st at 3.2 s is the last.
    assert taken.compute_ns == tuple(range(21, 322))
    assert taken.warmup_count == 20
    assert taken.duration_ns == pipelined.duration_ns == 301 * 10_000_000
    assert pipelined.count == 301
    slow, _ = take_like_trtexec(Scripted(machine, lambda n: 1_000_000_000), CONVENTIONS[like])  # type: ignore[arg-type]
    assert (slow.warmup_count, len(slow.compute_ns)) == (1, 10)


@pytest.mark.parametrize(
    ("count", "percentile", "expected"),
    [
        (1, 99, 1),
        (10, 90, 9),  # 1 - 0.9f is a little more than a tenth: one is left out
        (20, 95, 19),
        (100, 90, 90),
        (100, 95, 95),
        (100, 99, 100),  # 1 - 0.99f is a little less than a hundredth: none is
        (1000, 99, 991),
        (150, 99, 149),
        (300, 99, 298),
    ],
)
def test_percentile_of_trtexec(count: int, percentile: float, expected: int) -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1, count + 1))
    assert trtexec_percentile(samples, percentile) == expected


def samples_of(compute_us: Sequence[float], **change: Any) -> DeviceSamples:
    count = len(compute_us)
    whole = DeviceSamples(
        h2d_ns=(100_000,) * count,
        compute_ns=tuple(round(1e3 * value) for value in compute_us),
        d2h_ns=(50_000,) * count,
        enqueue_ns=(200_000,) * count,
        duration_ns=round(1e3 * sum(compute_us)),
        in_flight=1,
        cuda_graph=False,
        warmup_count=3,
    )
    return replace(whole, **change)


def round_of(part: DeviceSamples | None, **more: Any) -> BatchRound:
    warm = round_of_samples([1 + index % 7 * 1e-6 for index in range(400)], batch=2)
    return BatchRound(warm=warm, device=part, **more)


def test_figures_are_over_the_samples_of_all_rounds() -> None:
    rounds = [
        round_of(
            samples_of([1000, 1001, 1002]),
            graph=samples_of([900], cuda_graph=True),
            pipelined=PipelinedSamples(in_flight=2, count=30, duration_ns=10_000_000),
        ),
        round_of(None, unavailable={"device": "no memory left"}),
        round_of(samples_of([1003] * 5), pipelined=PipelinedSamples(in_flight=2, count=10, duration_ns=30_000_000)),
    ]
    figures = summarise_batch(rounds, QUICK)
    part = figures["device"]
    assert set(part) == {*PHASES, "cuda_graph", "in_flight", "like", "graph", "warnings"}
    compute = part["compute_ns"]
    assert {name: compute[name] for name in ("count", "p50", "min", "max", "p99")} == {
        "count": 8,
        "p50": 1_003_000,
        "min": 1_000_000,
        "max": 1_003_000,
        "p99": None,  # eight samples have none
    }
    assert set(compute) == {"count", "mean", "min", "max", "p50", "p90", "p95", "p99", "cv"}
    assert part["latency_ns"]["max"] == 1_153_000
    assert (part["h2d_ns"]["p50"], part["d2h_ns"]["p50"], part["enqueue_ns"]["p50"]) == (100_000, 50_000, 200_000)
    assert part["graph"]["compute_ns"]["p50"] == 900_000
    assert (part["cuda_graph"], part["in_flight"], part["like"]) == (False, 1, None)
    assert part["warnings"] == figures["reasons"] == []
    assert figures["verdict"] == "VALID"
    rates = {"queries_per_s": 1000.0, "images_per_s": 2000.0}
    assert figures["pipelined"] == {"in_flight": 2, "count": 40, "duration_ns": 40_000_000, **rates}
    assert figures["unavailable"] == {"device": "no memory left"}
    assert [len(figures[f"{name}_samples"]) for name in ("cold", "device", "graph")] == [0, 2, 1]
    assert records.decode(DeviceSamples, json.dumps(figures["device_samples"][0])) == rounds[0].device
    json.dumps(figures, allow_nan=False)


def test_without_a_device_there_are_no_figures_of_one() -> None:
    figures = summarise_batch([round_of(None, unavailable={"device": "why"})], QUICK)
    assert (figures["device"], figures["pipelined"], figures["cold"]) == (None, None, None)
    assert figures["verdict"] == "VALID"


def device_figures(part: DeviceSamples, like: Any) -> dict[str, Any]:
    figures = summarise_batch([round_of(part)], replace(QUICK, like=like))
    json.dumps(figures, allow_nan=False)
    return figures


def test_phases_that_were_no_part_are_none() -> None:
    part = samples_of([1000] * 100, h2d_ns=None, d2h_ns=None, cuda_graph=True, in_flight=2)
    figures = device_figures(part, "trtexec-11")["device"]
    assert (figures["h2d_ns"], figures["d2h_ns"]) == (None, None)
    assert figures["latency_ns"] == figures["compute_ns"]
    assert figures["compute_ns"]["p99"] == 1_000_000, "trtexec gives it however few the samples are"


@pytest.mark.parametrize("like", [None, "trtexec-10"])
def test_a_phase_too_short_for_the_clock_has_no_spread(like: Any) -> None:
    """The GPU counts in steps of 500 ns: a short copy may take none."""
    part = samples_of([1000] * 20, d2h_ns=(0,) * 20)
    assert device_figures(part, like)["device"]["d2h_ns"]["cv"] is None


@pytest.mark.parametrize("like", [None, *CONVENTIONS])
@pytest.mark.parametrize(("enqueue_us", "bound"), [(801, True), (800, False)])
def test_enqueue_bound_is_invalid(like: Any, enqueue_us: int, bound: bool) -> None:
    part = samples_of([1000] * 100, enqueue_ns=(enqueue_us * 1000,) * 100)
    figures = device_figures(part, like)
    assert (figures["verdict"] == "INVALID") == bound
    assert [reason.split(":")[0] for reason in figures["reasons"]] == ["enqueue-bound"] * bound
    assert figures["device"]["warnings"] == figures["reasons"]


@pytest.mark.parametrize(
    ("like", "cv", "warned", "invalid"),
    [
        ("trtexec-10", 0.009, False, False),
        ("trtexec-10", 0.011, True, True),
        ("trtexec-11", 0.024, False, False),
        ("trtexec-11", 0.026, True, True),
        (None, 0.026, True, False),
        (None, 0.02, False, False),
    ],
)
def test_unstable_gpu_time(like: Any, cv: float, warned: bool, invalid: bool) -> None:
    part = samples_of([1000 * (1 - cv), 1000 * (1 + cv)] * 500)
    figures = device_figures(part, like)
    assert any("GPU compute time is unstable" in words for words in figures["device"]["warnings"]) == warned
    assert (figures["verdict"] == "INVALID") == invalid


@pytest.mark.parametrize("like", [None, "trtexec-10"])
def test_copies_as_long_as_the_kernels_are_remarked(like: Any) -> None:
    figures = device_figures(samples_of([1000] * 100, h2d_ns=(1_000_000,) * 100), like)
    assert figures["device"]["warnings"] == ["the copy to the device takes as long as the kernels"]
    assert figures["verdict"] == "VALID"
