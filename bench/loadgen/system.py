"""MLPerf Inference's four scenarios, driven and judged by MLCommons' own load generator (LoadGen).

- `single-stream`: one sample per query, the next when the last was answered; the figure is a percentile of the latency.
- `multi-stream`: `samples_per_query` samples per query, the next when the last was answered; a percentile of the latency.
- `server`: single samples that arrive at random (Poisson); the figure is the highest rate at which a percentile of the
  latency stays within a bound.
- `offline`: every sample in one query; the figure is samples per second.

LoadGen makes the traffic, takes the times and gives the verdict; this module is the system under test (SUT) and the query
sample library (QSL) that it talks to. A latency is from LoadGen's issue of the query to the completion of its last sample;
the samples are preprocessed and in the host's memory, as in MLPerf's rules. Runs are shorter than MLPerf's: results are no
MLPerf submission, and are marked so.

Sources: https://github.com/mlcommons/inference/tree/master/loadgen (API, logs, early stopping),
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc (scenarios, percentiles, durations).

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.bench.loadgen.logs import read_logs
from alexnet_edge.bench.loadgen.settings import ScenarioSettings, affordable_percentile
from alexnet_edge.bench.timing.clock import no_collection, time_once
from alexnet_edge.errors import AlexNetEdgeError, OutputError, UserError, needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.proof.stats import required_samples
from alexnet_edge.sessions import Session

_LARGEST_BATCH = 64
_MIN_GAIN = 1.05  # a larger batch must bring so much more images per second
_BATCH_SHARE = 1 / 10  # of the least duration: one inference takes no longer, so that a run has enough of them
_WARMUP_S = 0.3
WARMUP_COUNT = 5
_SWITCH_S = 1e-4
"""Python's own 5 ms would be added to the latency of a query that arrives while the other thread computes."""


def run_here(session: Session, x_NCHW: FloatArray, settings: ScenarioSettings, *, logs: Path) -> dict[str, Any]:
    """Run one scenario on an open session and return LoadGen's verdict and figures.

    LoadGen has state of its own per process: run one scenario per process.

    `x_NCHW` are real preprocessed images `(N, 3, S, S)` float32, at least one. `server` needs its bound and its rate here, see
    `run_scenario`. The folder `logs` is made if need be; files of an earlier run in it are replaced.

    Returns:
        `scenario`, `verdict`, `reasons`, `metric`, `percentiles_ns` (per query; None where the queries are too few; empty for
        offline), `percentile` judged, `queries`, `samples`, `started_ns` (`perf_counter_ns`) and `duration_ns` (first issue to
        last completion), `target_qps`, `latency_bound_ns`, `batching` (most images per inference and what it was chosen
        by), `early_stopping`, `loadgen_version`, `settings` as resolved, `note`, `logs` and `summary` (text of
        `mlperf_log_summary.txt`).

    Raises:
        MissingComponentError: when LoadGen is not installed.
        UserError: when the session's batches do not allow the scenario.
        OutputError: when the logs cannot be written.
        AlexNetEdgeError: when the session fails during a query.
    """
    lg = loadgen()
    low, high = session.input.min_batch, session.input.max_batch
    check_batches(low, high, settings)
    if settings.scenario == "server" and None in (settings.target_qps, settings.latency_bound_ms):
        raise UserError("a server run needs a rate and a latency bound", value="none", fix="use run_scenario")

    def one_inference(batch: int) -> int:
        x = np.resize(x_NCHW, (batch, *x_NCHW.shape[1:]))
        return time_once(lambda: session.run(x))

    batching = _choose_batch(one_inference, settings, low=low, high=high)
    settings = _resolve(settings, batching)
    sut = _SystemUnderTest(session, x_NCHW, settings, batching, lg)
    _make_folder(logs)
    test = _test_settings(lg, settings, batching)
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = str(logs)
    with no_collection():
        run = sut.serve if settings.scenario == "server" else sut.stream
        run(lambda handle, qsl: lg.StartTestWithLogSettings(handle, qsl, test, log, str(logs / "audit.config")))
    return {
        **read_logs(logs, settings),
        "started_ns": sut.started_ns,
        "duration_ns": sut.ended_ns - sut.started_ns,
        "batching": records.to_builtins(batching),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How many images go through one inference, and the measurement that decided it."""

    batch: int
    how: str
    times_ns: Mapping[int, float]
    """Of one inference, by batch; medians of a few."""


def _choose_batch(
    one_inference: Callable[[int], int], settings: ScenarioSettings, *, low: int, high: int | None
) -> Batching:
    """The batch that was given, that of one query, or, offline, the fastest of a quick measurement."""
    if settings.scenario == "offline" and (settings.max_batch is None or settings.target_qps is None):
        return measure_batches(one_inference, low=low, high=settings.max_batch or high, seconds=settings.seconds)
    images = settings.samples_per_query if settings.scenario == "multi-stream" else low
    smallest = min(images, high or images)  # of one inference that answers one query
    return Batching(
        batch=settings.max_batch or smallest,
        how="as given" if settings.max_batch else "one query",
        times_ns={smallest: _settled_ns(one_inference, smallest)},
    )


def measure_batches(
    one_inference: Callable[[int], int], *, low: int, high: int | None, seconds: float, limit_ns: float = math.inf
) -> Batching:
    """Time ever larger batches, each twice the last, while each brings at least 5 % more images per second.

    `one_inference` runs a batch and returns its nanoseconds. The largest batch is `high`; None for 64. No inference may take
    longer than `limit_ns`, or than a tenth of `seconds`, the least duration of the run.
    """
    high = high or max(_LARGEST_BATCH, low)
    limit_ns = min(limit_ns, seconds * 1e9 * _BATCH_SHARE)
    times_ns = {low: _settled_ns(one_inference, low)}
    best = batch = low
    while (batch := batch * 2) <= high:
        if 1.2 * times_ns[batch // 2] > limit_ns:  # the larger one takes longer still
            break
        times_ns[batch] = _settled_ns(one_inference, batch, warm=True)
        if times_ns[batch] > limit_ns or batch / times_ns[batch] < _MIN_GAIN * best / times_ns[best]:
            break
        best = batch
    return Batching(batch=best, how="measured: a larger batch is no faster or takes too long", times_ns=times_ns)


def _settled_ns(one_inference: Callable[[int], int], batch: int, *, warm: bool = False) -> float:
    """Where the session is `warm` from another batch, one inference warms this batch up."""
    seconds, least = (0.0, 1) if warm else (_WARMUP_S, WARMUP_COUNT)
    start = time.monotonic()
    count = 0
    while count < least or time.monotonic() - start < seconds:
        one_inference(batch)
        count += 1
    return float(np.median([one_inference(batch) for _ in range(3)]))


def check_batches(low: int, high: int | None, settings: ScenarioSettings) -> None:
    if settings.scenario in ("single-stream", "server") and low > 1:
        raise UserError(
            f"{settings.scenario} asks for single images", value=f"smallest batch {low}", fix="export with batch 1"
        )
    if settings.scenario == "multi-stream" and settings.samples_per_query < low:
        raise UserError(
            f"the smallest batch is {low}, a query has fewer samples",
            value=settings.samples_per_query,
            fix="give more samples per query, or export with a smaller batch",
        )
    most = settings.max_batch
    if most is not None and (most < low or (high is not None and most > high)):
        raise UserError("the session does not take so large or small a batch", value=most, fix=f"from {low} to {high}")


def _resolve(settings: ScenarioSettings, batching: Batching) -> ScenarioSettings:
    """`settings` with nothing left open."""
    if settings.scenario == "offline":
        rate = batching.batch / batching.times_ns.get(batching.batch, math.inf) * 1e9
        return replace(
            settings,
            max_batch=batching.batch,
            # LoadGen adds 10 %; a machine that is faster than it was a moment ago must not run out of samples
            target_qps=settings.target_qps or 1.2 * rate,
            min_queries=settings.min_queries or 1,
        )
    (batch,) = batching.times_ns
    query_ns = batching.times_ns[batch]
    if settings.scenario == "multi-stream":
        query_ns *= settings.samples_per_query / batch
    percentile = settings.percentile or affordable_percentile(settings, 1e9 / query_ns)
    return replace(settings, percentile=percentile, min_queries=settings.min_queries or required_samples(percentile))


def loadgen() -> Any:
    with needs("bench"):
        import mlperf_loadgen
    return mlperf_loadgen


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("summary.txt", "detail.txt"):  # so that figures of an earlier run are never read
            (folder / f"mlperf_log_{name}").write_text("", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write LoadGen's logs ({error.strerror})", value=folder, fix="name another folder"
        ) from error


def _test_settings(lg: Any, settings: ScenarioSettings, batching: Batching) -> Any:
    test = lg.TestSettings()
    test.mode = lg.TestMode.PerformanceOnly
    test.min_duration_ms = math.ceil(settings.seconds * 1e3)
    test.min_query_count = settings.min_queries
    test.scenario = getattr(lg.TestScenario, settings.scenario.title().replace("-", ""))
    share = (settings.percentile or 0) / 100
    if settings.scenario == "server":
        assert settings.latency_bound_ms is not None
        test.server_target_latency_percentile = share
        test.server_target_latency_ns = round(settings.latency_bound_ms * 1e6)
        test.server_target_qps = settings.target_qps
    elif settings.scenario == "offline":
        test.offline_expected_qps = settings.target_qps
    else:
        name = settings.scenario.replace("-", "_")
        setattr(test, f"{name}_target_latency_percentile", share)
        # LoadGen makes its queries beforehand, from a latency that must not be too long: half leaves room
        setattr(test, f"{name}_expected_latency_ns", max(1.0, min(batching.times_ns.values()) / 2))
        if settings.scenario == "multi-stream":
            test.multi_stream_samples_per_query = settings.samples_per_query
    return test


class _SystemUnderTest:
    """LoadGen's SUT and QSL over a session.

    LoadGen names samples by index and hands them over once, in the order in which multi-stream and offline ask for them. The
    images are kept in that order with their start repeated at the end, so that the images of such a query are one
    contiguous piece of memory and nothing is copied.

    An exception must not pass through LoadGen, which would leave its threads behind: the first one is kept, what LoadGen
    still asks for is completed unanswered, and the exception is raised when the run has ended.
    """

    def __init__(
        self, session: Session, x_NCHW: FloatArray, settings: ScenarioSettings, batching: Batching, lg: Any
    ) -> None:
        self.started_ns = self.ended_ns = 0
        self._session = session
        self._images_NCHW = x_NCHW
        self._scenario = settings.scenario
        self._lg = lg
        self._complete = lg.QuerySamplesComplete
        self._smallest = session.input.min_batch
        self._batch = batching.batch
        self._responses = [lg.QuerySampleResponse(0, 0, 0) for _ in range(self._batch)]  # LoadGen reads the ids only
        self._error: Exception | None = None
        self._waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()

    def stream(self, start_test: Callable[[int, int], None]) -> None:
        """LoadGen issues on this thread, and a query is answered inside its issue."""
        self._run(start_test, self._issue_one if self._scenario == "single-stream" else self._issue_many)

    def serve(self, start_test: Callable[[int, int], None]) -> None:
        """LoadGen issues on a thread of its own; this one answers what waits, in batches."""
        failed: list[BaseException] = []

        def issue_all() -> None:
            try:
                self._run(start_test, self._issue_later)
            except BaseException as error:  # noqa: BLE001  raised on the other thread
                failed.append(error)
            finally:
                self._waiting.put(None)

        issuer = threading.Thread(target=issue_all, name="loadgen", daemon=True)
        patience_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            issuer.start()
            more = True
            while more:
                samples, more = self._take()
                if samples:
                    self._answer_any([sample[0] for sample in samples], [sample[1] for sample in samples])
            issuer.join()
        finally:
            sys.setswitchinterval(patience_s)
        if failed:
            raise failed[0]

    def _run(self, start_test: Callable[[int, int], None], issue: Callable[[list[int], list[int]], None]) -> None:
        count = len(self._images_NCHW)
        handle = self._lg.ConstructFastSUT(issue, lambda: None)
        qsl = self._lg.ConstructQSL(count, count, self._load, lambda _indices: None)
        try:
            start_test(handle, qsl)
        finally:
            self._lg.DestroyQSL(qsl)
            self._lg.DestroyFastSUT(handle)
        if self._error is not None:
            if isinstance(self._error, AlexNetEdgeError):
                raise self._error
            words = f"{type(self._error).__name__}: {(str(self._error).splitlines() or [''])[0]}"
            raise AlexNetEdgeError(f"{self._scenario}: the session failed during a query ({words})") from self._error

    def _load(self, indices: Sequence[int]) -> None:
        order = list(dict.fromkeys(indices))
        self._order = [order[at % len(order)] for at in range(len(order) + max(self._batch, self._smallest) - 1)]
        self._x_NCHW = np.ascontiguousarray(self._images_NCHW[self._order])
        self._position = {index: at for at, index in enumerate(order)}
        self._single = {index: self._x_NCHW[at : at + 1] for index, at in self._position.items()}
        self._gathered = np.empty((self._batch, *self._x_NCHW.shape[1:]), np.float32)

    def _issue_one(self, ids: list[int], indices: list[int]) -> None:
        self.started_ns = self.started_ns or time.perf_counter_ns()
        if self._error is None:
            try:
                self._session.run(self._single[indices[0]])
            except Exception as error:  # noqa: BLE001  raised when the run has ended
                self._error = error
        self._responses[0].id = ids[0]
        self._complete(self._responses)
        self.ended_ns = time.perf_counter_ns()

    def _issue_many(self, ids: list[int], indices: list[int]) -> None:
        self.started_ns = self.started_ns or time.perf_counter_ns()
        for at in range(0, len(ids), self._batch):
            self._answer_any(ids[at : at + self._batch], indices[at : at + self._batch])

    def _issue_later(self, ids: list[int], indices: list[int]) -> None:
        self.started_ns = self.started_ns or time.perf_counter_ns()
        for sample in zip(ids, indices, strict=True):
            self._waiting.put(sample)

    def _take(self) -> tuple[list[tuple[int, int]], bool]:
        """What waits, at most one batch, at least one sample; and whether more may come."""
        samples: list[tuple[int, int]] = []
        sample = self._waiting.get()
        while sample is not None:
            samples.append(sample)
            if len(samples) == self._batch:
                return samples, True
            try:
                sample = self._waiting.get_nowait()
            except queue.Empty:
                return samples, True
        return samples, False

    def _answer_any(self, ids: list[int], indices: list[int]) -> None:
        """Answer at most one batch of samples."""
        if self._error is None:
            try:
                self._session.run(self._batch_of(indices))
            except Exception as error:  # noqa: BLE001  raised when the run has ended
                self._error = error
        for response, sample_id in zip(self._responses, ids, strict=False):
            response.id = sample_id
        self._complete(self._responses if len(ids) == self._batch else self._responses[: len(ids)])
        self.ended_ns = time.perf_counter_ns()

    def _batch_of(self, indices: list[int]) -> FloatArray:
        at, count = self._position[indices[0]], len(indices)
        if self._order[at : at + count] == indices:  # a batch below the smallest is filled up with its neighbours
            return self._x_NCHW[at : at + max(count, self._smallest)]
        rows = [self._position[index] for index in indices]
        return np.take(self._x_NCHW, rows, axis=0, out=self._gathered[:count], mode="clip")  # "raise" would copy twice
