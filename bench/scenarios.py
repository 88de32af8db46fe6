"""MLPerf Inference's four scenarios, driven and judged by MLCommons' own load generator (LoadGen).

- `single-stream`: one sample per query, the next when the last was answered; the figure is a percentile of the latency.
- `multi-stream`: `samples_per_query` samples per query, the next when the last was answered; a percentile of the latency.
- `server`: single samples that arrive at random (Poisson); the figure is the highest rate at which a percentile of the
  latency stays within a bound.
- `offline`: every sample in one query; the figure is samples per second.

LoadGen makes the traffic, takes the times and gives the verdict; this module is the system under test (SUT) and the query
sample library (QSL) that it talks to. A latency is from LoadGen's issue of the query to the completion of its last sample;
the samples are preprocessed and in the host's memory, as in MLPerf's rules. Runs are shorter than MLPerf's: results are no
MLPerf submission, and say so.

Sources: https://github.com/mlcommons/inference/tree/master/loadgen (API, logs, early stopping),
https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc (scenarios, percentiles, durations).

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

import gc
import json
import math
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from alexnet_edge.bench.measure import time_once
from alexnet_edge.bench.stats import percentile_of, required_samples
from alexnet_edge.bench.subjects import open_subject
from alexnet_edge.bench.worker import NULL, Opened, Worker
from alexnet_edge.errors import AlexNetEdgeError, OutputError, UserError, needs
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.sessions import Session
from alexnet_edge.sessions.base import Device

Scenario = Literal["single-stream", "multi-stream", "server", "offline"]

OFFICIAL_SECONDS = 600
"""Least duration of an MLPerf performance run."""

OFFICIAL_PERCENTILES: Mapping[str, float] = {"single-stream": 90.0, "multi-stream": 99.0, "server": 99.0}
"""Percentile of the latency that MLPerf judges image classification by; offline has none."""

BOUND_FACTOR = 5.0
"""The server's latency bound, where none is given, over the p90 of single inferences one after the other.

MLPerf's bound for image classification is 15 ms, meant for accelerators of a data centre: no fixed time fits both them and a
processor that needs 50 ms for one image.
"""

_SHORT_PERCENTILE = 90.0  # judged by where the official percentile's queries would take too long
_STRETCH = 2.0  # a run may take so many times its least duration to reach the official percentile's queries
_SEARCH_STEP = 1.1
_SEARCH_PRECISION = (
    1.05  # the search ends when the lowest rate that failed is at most so much above the best that passed
)
_SEARCH_RUNS = 14
_CONFIRMATIONS = 4
_LARGEST_BATCH = 64
_MIN_GAIN = 1.05  # a larger batch must bring so much more images per second
_BATCH_SHARE = 1 / 10  # of the least duration: one inference takes no longer, so that a run has enough of them
_WARMUP_S = 0.3
_WARMUP_COUNT = 5
_NULL_SECONDS = 0.5
_SWITCH_S = (
    1e-4  # Python's own 5 ms would be added to the latency of a query that arrives while the other thread computes
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioSettings:
    """How LoadGen runs one scenario."""

    scenario: Scenario
    seconds: float = 10.0
    """Least duration of a run; MLPerf's is 600."""
    min_queries: int | None = None
    """Least number of queries (offline: of samples); None for what the percentile needs (offline: none)."""
    percentile: float | None = None
    """Of the latency, judged with LoadGen's early stopping rule; None for MLPerf's own (single-stream 90, multi-stream and
    server 99) where its queries fit into twice `seconds`, and for 90 elsewhere. The result tells which it was."""
    samples_per_query: int = 8
    """Of multi-stream; 8 in MLPerf."""
    latency_bound_ms: float | None = None
    """Of server; None for `BOUND_FACTOR` times the p90 of single inferences."""
    target_qps: float | None = None
    """Server: the arrival rate, None to search the highest that passes. Offline: the expected rate, from which LoadGen takes
    the number of samples; None to measure it."""
    max_batch: int | None = None
    """Most images per inference in server and offline; None to find it by a quick measurement."""

    def __post_init__(self) -> None:
        if self.scenario not in get_args(Scenario):
            raise UserError("no such scenario", value=self.scenario, fix=f"one of {', '.join(get_args(Scenario))}")
        for name in ("seconds", "min_queries", "samples_per_query", "latency_bound_ms", "target_qps", "max_batch"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be positive", value=value, fix="give a positive number")
        if self.percentile is not None and not 50 <= self.percentile <= 99.9:
            raise UserError("percentile must be from 50 to 99.9", value=self.percentile, fix="try 90 or 99")
        if self.latency_bound_ms is not None and self.scenario != "server":
            raise UserError("only the server scenario has a latency bound", value=self.scenario, fix="leave it out")
        for name in ("target_qps", "max_batch"):
            if getattr(self, name) is not None and self.scenario not in ("server", "offline"):
                raise UserError(f"only server and offline have {name}", value=self.scenario, fix="leave it out")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ScenarioSettings:
        """Read what `to_json` wrote; raises KeyError or TypeError when it is something else."""
        return cls(**value)


# --- in the worker ----------------------------------------------------------------------------------------------------


def run_here(session: Session, x_NCHW: FloatArray, settings: ScenarioSettings, *, logs: Path) -> dict[str, Any]:
    """Run one scenario on an open session and return LoadGen's verdict and figures.

    LoadGen has state of its own per process: run one scenario per process.

    Args:
        session: an open session.
        x_NCHW: real preprocessed images `(N, 3, S, S)` float32, at least one.
        settings: `server` needs its bound and its rate here, see `run_scenario`.
        logs: folder for LoadGen's logs, made if need be; files of an earlier run in it are replaced.

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
    lg = _loadgen()
    low, high = session.input.min_batch, session.input.max_batch
    _check_batches(low, high, settings)
    if settings.scenario == "server" and None in (settings.target_qps, settings.latency_bound_ms):
        raise UserError("a server run needs a rate and a latency bound", value="none", fix="use run_scenario")

    def one_inference(batch: int) -> int:
        x = np.resize(x_NCHW, (batch, *x_NCHW.shape[1:]))
        return time_once(lambda: session.run(x))

    scenario = settings.scenario
    if scenario == "offline" and (settings.max_batch is None or settings.target_qps is None):
        batching = measure_batches(one_inference, low=low, high=settings.max_batch or high, seconds=settings.seconds)
    else:
        smallest = _query_batch(settings, low, high)
        batching = Batching(
            batch=settings.max_batch or smallest,
            how="as given" if settings.max_batch else "one query",
            times_ns={smallest: _settled_ns(one_inference, smallest)},
        )
    settings = _resolve(settings, batching)
    sut = _SystemUnderTest(session, x_NCHW, settings, batching, lg)
    _make_folder(logs)
    test, log = _loadgen_settings(lg, settings, batching, logs)
    with _no_collection():
        if scenario == "server":
            sut.serve(
                lambda handle, qsl: lg.StartTestWithLogSettings(handle, qsl, test, log, str(logs / "audit.config"))
            )
        else:
            sut.stream(
                lambda handle, qsl: lg.StartTestWithLogSettings(handle, qsl, test, log, str(logs / "audit.config"))
            )
    return {
        **read_logs(logs, settings),
        "started_ns": sut.started_ns,
        "duration_ns": sut.ended_ns - sut.started_ns,
        "batching": batching.to_json(),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How many images go through one inference, and the measurement that decided it."""

    batch: int
    how: str
    times_ns: Mapping[int, float]
    """Of one inference, by batch; medians of a few."""

    def to_json(self) -> dict[str, Any]:
        return {"batch": self.batch, "how": self.how, "times_ns": {str(key): ns for key, ns in self.times_ns.items()}}


def measure_batches(
    one_inference: Callable[[int], int], *, low: int, high: int | None, seconds: float, limit_ns: float = math.inf
) -> Batching:
    """Time ever larger batches, each twice the last, while each brings at least 5 % more images per second.

    Args:
        one_inference: runs a batch, returns its nanoseconds.
        low: smallest batch.
        high: largest batch; None for 64.
        seconds: least duration of the run; no inference shall take longer than a tenth of it.
        limit_ns: nor longer than this.
    """
    high = high or max(_LARGEST_BATCH, low)
    limit_ns = min(limit_ns, seconds * 1e9 * _BATCH_SHARE)
    times_ns = {low: _settled_ns(one_inference, low)}
    best = batch = low
    while (batch := batch * 2) <= high:
        if 1.2 * times_ns[batch // 2] > limit_ns:  # the larger one takes longer still
            break
        times_ns[batch] = _settled_ns(one_inference, batch, warmup_s=0, warmup_count=1)
        if times_ns[batch] > limit_ns or batch / times_ns[batch] < _MIN_GAIN * best / times_ns[best]:
            break
        best = batch
    return Batching(batch=best, how="measured: a larger batch is no faster or takes too long", times_ns=times_ns)


def _settled_ns(
    one_inference: Callable[[int], int],
    batch: int,
    *,
    warmup_s: float = _WARMUP_S,
    warmup_count: int = _WARMUP_COUNT,
) -> float:
    start = time.monotonic()
    count = 0
    while count < warmup_count or time.monotonic() - start < warmup_s:
        one_inference(batch)
        count += 1
    return float(np.median([one_inference(batch) for _ in range(3)]))


def _check_batches(low: int, high: int | None, settings: ScenarioSettings) -> None:
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
    if settings.max_batch is not None and (
        settings.max_batch < low or (high is not None and settings.max_batch > high)
    ):
        raise UserError(
            "the session does not take so large or small a batch", value=settings.max_batch, fix=f"from {low} to {high}"
        )


def _query_batch(settings: ScenarioSettings, low: int, high: int | None) -> int:
    """Images of one inference that answers one query."""
    wanted = settings.samples_per_query if settings.scenario == "multi-stream" else low
    return min(wanted, high or wanted)


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


def affordable_percentile(settings: ScenarioSettings, queries_per_s: float) -> float:
    """MLPerf's own percentile where the queries it needs take at most twice `seconds`, 90 elsewhere."""
    official = OFFICIAL_PERCENTILES[settings.scenario]
    fits = required_samples(official) <= _STRETCH * settings.seconds * queries_per_s
    return official if fits else _SHORT_PERCENTILE


def _loadgen() -> Any:
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


def _loadgen_settings(lg: Any, settings: ScenarioSettings, batching: Batching, logs: Path) -> tuple[Any, Any]:
    test = lg.TestSettings()
    test.mode = lg.TestMode.PerformanceOnly
    test.min_duration_ms = math.ceil(settings.seconds * 1e3)
    test.min_query_count = settings.min_queries
    share = (settings.percentile or 0) / 100
    # LoadGen makes its queries beforehand, from a latency that must not be too long: half leaves room
    if settings.scenario == "single-stream":
        test.scenario = lg.TestScenario.SingleStream
        test.single_stream_target_latency_percentile = share
        test.single_stream_expected_latency_ns = max(1.0, min(batching.times_ns.values()) / 2)
    elif settings.scenario == "multi-stream":
        test.scenario = lg.TestScenario.MultiStream
        test.multi_stream_target_latency_percentile = share
        test.multi_stream_samples_per_query = settings.samples_per_query
        test.multi_stream_expected_latency_ns = max(1.0, min(batching.times_ns.values()) / 2)
    elif settings.scenario == "server":
        assert settings.latency_bound_ms is not None
        test.scenario = lg.TestScenario.Server
        test.server_target_latency_percentile = share
        test.server_target_latency_ns = round(settings.latency_bound_ms * 1e6)
        test.server_target_qps = settings.target_qps
    else:
        test.scenario = lg.TestScenario.Offline
        test.offline_expected_qps = settings.target_qps
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = str(logs)
    return test, log


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collection inside a query would be the harness's time, not the runtime's."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


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

    # --- the two ways to run ---

    def stream(self, start_test: Callable[[int, int], None]) -> None:
        """LoadGen issues on this thread, and a query is answered inside its issue."""
        self._run(start_test, self._issue_one if self._one_by_one() else self._issue_many)

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
                taken, more = self._take()
                if taken:
                    self._answer_any([one[0] for one in taken], [one[1] for one in taken])
            issuer.join()
        finally:
            sys.setswitchinterval(patience_s)
        if failed:
            raise failed[0]

    def _run(self, start_test: Callable[[int, int], None], issue: Callable[[list[int], list[int]], None]) -> None:
        count = len(self._images_NCHW)
        handle = self._lg.ConstructFastSUT(issue, _nothing)
        qsl = self._lg.ConstructQSL(count, count, self._load, _nothing)
        try:
            start_test(handle, qsl)
        finally:
            self._lg.DestroyQSL(qsl)
            self._lg.DestroyFastSUT(handle)
        if self._error is not None:
            if isinstance(self._error, AlexNetEdgeError):
                raise self._error
            first = (str(self._error).splitlines() or [""])[0]
            raise AlexNetEdgeError(
                f"{self._scenario}: the session failed during a query ({type(self._error).__name__}: {first})"
            ) from self._error

    def _one_by_one(self) -> bool:
        return self._scenario == "single-stream"

    # --- QSL ---

    def _load(self, indices: Sequence[int]) -> None:
        order = list(dict.fromkeys(indices))
        wrapped = [order[at % len(order)] for at in range(len(order) + max(self._batch, self._smallest) - 1)]
        self._order = wrapped
        self._x_NCHW = np.ascontiguousarray(self._images_NCHW[wrapped])
        self._position = {index: at for at, index in enumerate(order)}
        self._single = {index: self._x_NCHW[at : at + 1] for index, at in self._position.items()}
        self._gathered = np.empty((self._batch, *self._x_NCHW.shape[1:]), np.float32)

    # --- SUT ---

    def _issue_one(self, ids: list[int], indices: list[int]) -> None:
        if not self.started_ns:
            self.started_ns = time.perf_counter_ns()
        if self._error is None:
            try:
                self._session.run(self._single[indices[0]])
            except Exception as error:  # noqa: BLE001  raised when the run has ended
                self._error = error
        self._responses[0].id = ids[0]
        self._complete(self._responses)
        self.ended_ns = time.perf_counter_ns()

    def _issue_many(self, ids: list[int], indices: list[int]) -> None:
        if not self.started_ns:
            self.started_ns = time.perf_counter_ns()
        for at in range(0, len(ids), self._batch):
            self._answer_any(ids[at : at + self._batch], indices[at : at + self._batch])

    def _issue_later(self, ids: list[int], indices: list[int]) -> None:
        if not self.started_ns:
            self.started_ns = time.perf_counter_ns()
        for one in zip(ids, indices, strict=True):
            self._waiting.put(one)

    def _take(self) -> tuple[list[tuple[int, int]], bool]:
        """What waits, at most one batch, at least one sample; and whether more may come."""
        taken: list[tuple[int, int]] = []
        one = self._waiting.get()
        while one is not None:
            taken.append(one)
            if len(taken) == self._batch:
                return taken, True
            try:
                one = self._waiting.get_nowait()
            except queue.Empty:
                return taken, True
        return taken, False

    def _answer_any(self, ids: list[int], indices: list[int]) -> None:
        """Answer at most one batch of samples."""
        if self._error is None:
            try:
                self._session.run(self._batch_of(indices))
            except Exception as error:  # noqa: BLE001  raised when the run has ended
                self._error = error
        for response, one in zip(self._responses, ids, strict=False):
            response.id = one
        self._complete(self._responses if len(ids) == self._batch else self._responses[: len(ids)])
        self.ended_ns = time.perf_counter_ns()

    def _batch_of(self, indices: list[int]) -> FloatArray:
        at, count = self._position[indices[0]], len(indices)
        if self._order[at : at + count] == indices:  # a batch below the smallest is filled up with its neighbours
            return self._x_NCHW[at : at + max(count, self._smallest)]
        rows = [self._position[index] for index in indices]
        return np.take(self._x_NCHW, rows, axis=0, out=self._gathered[:count], mode="clip")  # "raise" would copy twice


def _nothing(*_args: object) -> None:
    """LoadGen wants to be called back; there is nothing to do."""


# --- LoadGen's logs ---------------------------------------------------------------------------------------------------

_KEEP_PERCENTILES = {"50.00": "p50", "90.00": "p90", "95.00": "p95", "97.00": "p97", "99.00": "p99", "99.90": "p99.9"}


def read_logs(folder: Path, settings: ScenarioSettings) -> dict[str, Any]:
    """Verdict and figures in LoadGen's logs, see `run_here`.

    `mlperf_log_detail.txt` has one JSON object per line behind `:::MLLOG`.

    Raises:
        AlexNetEdgeError: when they hold no verdict.
    """
    events: dict[str, Any] = {}
    errors: list[str] = []
    for line in (folder / "mlperf_log_detail.txt").read_text(encoding="utf-8", errors="replace").splitlines():
        _, marker, text = line.partition(":::MLLOG ")
        if marker:
            event = json.loads(text)
            events[event["key"]] = event["value"]
            if event.get("metadata", {}).get("is_error"):
                errors.append(f"LoadGen: {event['key']}: {event['value']}")
    if events.get("result_validity") not in ("VALID", "INVALID"):
        raise AlexNetEdgeError(f"LoadGen wrote no verdict: {folder / 'mlperf_log_detail.txt'}")
    scenario, percentile = settings.scenario, settings.percentile
    queries = int(events["result_query_count"])
    samples = int(events["generated_samples_per_query"]) * queries
    per_query = "per_query_" if scenario == "multi-stream" else ""
    percentiles_ns = {
        name: int(events[f"result_{digits}_percentile_{per_query}latency_ns"])
        if queries >= required_samples(float(name[1:]))
        else None
        for digits, name in _KEEP_PERCENTILES.items()
        if scenario != "offline"  # one query: the time at which a sample was done is no latency of its own
    }
    metric: dict[str, Any]
    if scenario == "offline":
        metric = {"name": "throughput", "value": float(events["result_samples_per_second"]), "unit": "samples/s"}
    elif scenario == "server":
        value = float(events["result_completed_samples_per_sec"])
        metric = {"name": f"rate at which p{percentile:g} is within the bound", "value": value, "unit": "queries/s"}
    else:
        estimate = events["early_stopping_latency_ss" if scenario == "single-stream" else "early_stopping_latency_ms"]
        value_ns = int(estimate) if events["early_stopping_met"] else None
        metric = {"name": f"p{percentile:g} latency, early-stopping estimate", "value": value_ns, "unit": "ns"}
    valid = events["result_validity"] == "VALID"
    early_stopping = " ".join(str(events.get("early_stopping_result", "")).split())
    bound_ms = settings.latency_bound_ms
    return {
        "scenario": scenario,
        "verdict": events["result_validity"],
        "reasons": errors if valid else [*errors, *_reasons(events, early_stopping)],
        "metric": metric,
        "percentile": percentile,
        "percentiles_ns": percentiles_ns,
        "queries": queries,
        "samples": samples,
        "target_qps": settings.target_qps,
        "latency_bound_ns": None if bound_ms is None else round(bound_ms * 1e6),
        "early_stopping": early_stopping,
        "loadgen_version": events.get("loadgen_version"),
        "settings": settings.to_json(),
        "note": _note(settings),
        "logs": str(folder),
        "summary": (folder / "mlperf_log_summary.txt").read_text(encoding="utf-8", errors="replace"),
    }


def _reasons(events: Mapping[str, Any], early_stopping: str) -> list[str]:
    found = []
    if events.get("result_perf_constraints_met") is False:
        found.append("the latency is above the bound")
    if events.get("result_min_duration_met") is False:
        found.append("shorter than the least duration")
    if events.get("result_min_queries_met") is False:
        found.append("fewer queries than the least number")
    if events.get("early_stopping_met") is False:
        found.append(f"early stopping: {early_stopping}".replace(": * ", ": ").replace(" * ", " "))
    return found or [str(events.get("result_invalid_reason") or "LoadGen gives no reason")]


def _note(settings: ScenarioSettings) -> str:
    """What separates the run from MLPerf's own."""
    parts = [f"not an MLPerf submission: {settings.seconds:g} s per run instead of {OFFICIAL_SECONDS}"]
    official = OFFICIAL_PERCENTILES.get(settings.scenario)
    if official is not None and settings.percentile != official:
        parts.append(f"p{settings.percentile:g} instead of p{official:g}")
    return ", ".join(parts)


# --- in the parent ----------------------------------------------------------------------------------------------------


def run_scenario(
    subject: Path | str,
    settings: ScenarioSettings,
    *,
    inputs: Path,
    device: Device = "cpu",
    threads: int | None = None,
    logs: Path,
    trust: bool = False,
    cpus: Sequence[int] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run one scenario on `subject`, every LoadGen run in a process of its own.

    `server` without a rate searches the highest one that LoadGen calls VALID: it starts from the rate that a simulated queue
    with the measured inference times sustains, moves by 10 % until one passes and one fails, halves the interval to 5 %, and
    runs the best once more; that last run is the result. LoadGen's arrivals have a fixed seed, so that a rate always
    means the same pattern.

    Args:
        subject: an artifact or checkpoint, or `worker.NULL`.
        settings: which scenario, how long.
        inputs: preprocessed images, `.npy`, `(N, 3, S, S)` float32.
        device: where to run.
        threads: processor threads; None for every processor this process may use.
        logs: folder for LoadGen's logs; the server search makes one inside it for every run.
        trust: take an engine without manifest, see `load_artifact`.
        cpus: processors to stay on; None for all.
        reporter: told of the progress.

    Returns:
        What `run_here` returns, and `harness_share` (what the same scenario takes per query, offline per sample, on a session
        that answers at once, over what it took here; None for the null session itself), for a server search also `runs`
        (rate and verdict of each).

    Raises:
        UserError: when the inputs are missing or the artifact's batches do not allow the scenario.
        MissingComponentError: when LoadGen is not installed.
        AlexNetEdgeError: when the subject cannot be loaded or fails during a query.
    """
    _loadgen()
    if not inputs.is_file():
        raise UserError("no such inputs", value=inputs, fix="write preprocessed images with numpy.save")
    max_batch: int | None = None
    if isinstance(subject, Path):
        opened = open_subject(subject, device=device, trust=trust)
        max_batch = opened.max_batch
        _check_batches(opened.min_batch, max_batch, settings)
    place = _Place(
        subject=subject,
        inputs=inputs,
        device=device,
        threads=threads,
        trust=trust,
        cpus=None if cpus is None else tuple(cpus),
        max_batch=max_batch,
    )
    reporter = reporter or QuietReporter()
    reporter.start(settings.scenario, None)
    if settings.scenario == "server":
        result = _serve_best(place, settings, logs, reporter)
    else:
        result = place.run(settings, logs)
        if settings.target_qps is None and "shorter than the least duration" in result["reasons"]:
            rate = 1.2 * result["metric"]["value"] if settings.scenario == "offline" else None
            reporter.update(1, "too few samples for the least duration, once more")
            result = place.run(replace(settings, target_qps=rate), logs)
    result["harness_share"] = None if subject == NULL else _harness_share(place, result)
    reporter.finish(f"{result['verdict']}, {_figure(result)}")
    return result


def _figure(result: Mapping[str, Any]) -> str:
    value, unit = result["metric"]["value"], result["metric"]["unit"]
    if value is None:
        return "no figure"
    return f"{value / 1e6:.4g} ms" if unit == "ns" else f"{value:.4g} {unit}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """What runs, and where."""

    subject: Path | str
    inputs: Path
    device: Device
    threads: int | None
    trust: bool
    cpus: tuple[int, ...] | None
    max_batch: int | None

    def open(self, worker: Worker) -> Opened:
        return worker.open(self.subject, inputs=self.inputs, device=self.device, threads=self.threads, trust=self.trust)

    def run(self, settings: ScenarioSettings, logs: Path) -> dict[str, Any]:
        with Worker(cpus=self.cpus) as worker:
            opened = self.open(worker)
            # the first inference takes longer than any later one
            queries = settings.min_queries or required_samples(settings.percentile or 99)
            longest_s = settings.seconds + queries * settings.samples_per_query * opened.first_ns / 1e9
            return worker.ask(
                {"do": "scenario", "settings": settings.to_json(), "logs": str(logs)}, timeout_s=120 + 5 * longest_s
            )


def _harness_share(place: _Place, result: Mapping[str, Any]) -> float | None:
    scenario: Scenario = result["scenario"]
    null_ns = null_query_ns(
        "single-stream" if scenario == "server" else scenario,  # at an open loop's rate a query mostly waits
        inputs=place.inputs,
        samples_per_query=result["settings"]["samples_per_query"],
        max_batch=result["batching"]["batch"] if scenario == "offline" else None,
        cpus=place.cpus,
    )
    own_ns = _median_ns(result)
    return null_ns / own_ns if own_ns and null_ns else None


@cache
def null_query_ns(
    scenario: Scenario,
    *,
    inputs: Path,
    samples_per_query: int,
    max_batch: int | None,
    cpus: tuple[int, ...] | None,
) -> float | None:
    """The median nanoseconds per query (offline: the mean per sample) of `scenario` on a session that answers at once.

    It does not depend on the subject, so it is measured once per process and arguments.
    """
    settings = ScenarioSettings(
        scenario=scenario,
        seconds=_NULL_SECONDS,
        percentile=90 if scenario != "offline" else None,
        samples_per_query=samples_per_query,
        max_batch=max_batch,
    )
    place = _Place(subject=NULL, inputs=inputs, device="cpu", threads=None, trust=False, cpus=cpus, max_batch=None)
    with tempfile.TemporaryDirectory(prefix="alexnet-edge-null-") as logs:
        return _median_ns(place.run(settings, Path(logs)))


def _median_ns(result: Mapping[str, Any]) -> float | None:
    if result["scenario"] == "offline":
        return 1e9 / float(result["metric"]["value"])
    median: int | None = result["percentiles_ns"]["p50"]
    return median


def _serve_best(place: _Place, settings: ScenarioSettings, logs: Path, reporter: Reporter) -> dict[str, Any]:
    """One run at the given rate, or the search for the highest that passes."""
    p90_ns: float | None = None
    batching: Batching | None = None
    estimate: float = settings.target_qps or 0.0
    if None in (settings.latency_bound_ms, settings.target_qps, settings.max_batch, settings.percentile):
        reporter.update(0, "timing inferences")
        with Worker(cpus=place.cpus) as worker:
            place.open(worker)
            p90_ns = _p90_ns(lambda: worker.time(batch=1))
            bound_ms = settings.latency_bound_ms or BOUND_FACTOR * p90_ns / 1e6
            # a sample that just missed a batch waits for it, and then takes as long itself
            batching = measure_batches(
                lambda batch: worker.time(batch=batch),
                low=1,
                high=settings.max_batch or place.max_batch,
                seconds=settings.seconds,
                limit_ns=bound_ms * 1e6 / 2,
            )
        largest = settings.max_batch or batching.batch
        percentile = settings.percentile
        estimate = estimate or sustained_rate(
            batching.times_ns, largest=largest, bound_ns=bound_ms * 1e6, percentile=percentile or 99
        )
        percentile = percentile or affordable_percentile(settings, estimate)
        if settings.percentile is None and settings.target_qps is None:
            estimate = sustained_rate(
                batching.times_ns, largest=largest, bound_ns=bound_ms * 1e6, percentile=percentile
            )
        settings = replace(settings, latency_bound_ms=bound_ms, max_batch=largest, percentile=percentile)
    runs: list[dict[str, Any]] = []
    about: dict[str, Any] = {"single_p90_ns": p90_ns, "runs": runs}
    if batching is not None:
        about["batching"] = batching.to_json()

    def run(rate: float) -> dict[str, Any]:
        reporter.update(len(runs), f"{rate:.4g} queries/s")
        folder = logs / f"{len(runs) + 1:02d}-{rate:.4g}-queries-per-s"
        result = place.run(replace(settings, target_qps=rate), folder)
        runs.append({"target_qps": rate, "verdict": result["verdict"], "value": result["metric"]["value"]})
        return result

    result = run(settings.target_qps) if settings.target_qps else search_rate(run, estimate)
    return {**result, **about}


def _p90_ns(one_inference: Callable[[], int]) -> float:
    for _ in range(_WARMUP_COUNT):
        one_inference()
    found = percentile_of([one_inference() for _ in range(required_samples(90))], 90)
    assert found is not None
    return found


def search_rate(run: Callable[[float], dict[str, Any]], start: float) -> dict[str, Any]:
    """The run at the highest rate that passes twice, to 5 %.

    From `start` the rate moves by 10 %, then by growing steps, until one run is VALID and one is not; then the interval is
    halved (in ratio) until it is at most 5 % wide, and the best rate is run again. Should it fail then, the rate goes
    down by 5 % until a run passes.

    Args:
        run: runs a rate, in queries per second; its `verdict` decides.
        start: the first rate to try, positive.

    Returns:
        What the last run returned: VALID, or INVALID when no rate was found in a bounded number of runs.
    """
    assert start > 0
    passed: float | None = None
    failed: float | None = None
    rate, step = start, _SEARCH_STEP
    for count in range(_SEARCH_RUNS):
        result = run(rate)
        if result["verdict"] == "VALID":
            passed = rate
        else:
            failed = rate
        if passed is not None and failed is not None:
            if failed <= passed * _SEARCH_PRECISION:
                break
            rate = math.sqrt(passed * failed)
        else:
            rate = rate * step if failed is None else rate / step
            step = step if count == 0 else step * step
    if passed is None:
        return {**result, "reasons": [*result["reasons"], f"no rate passes, down to {failed:.4g} queries/s"]}
    for _ in range(_CONFIRMATIONS):
        result = run(passed)
        if result["verdict"] == "VALID":
            break
        passed /= _SEARCH_PRECISION
    else:
        return {**result, "reasons": [*result["reasons"], "no rate passed twice: the machine is not steady"]}
    return result


def sustained_rate(
    times_ns: Mapping[int, float], *, largest: int, bound_ns: float, percentile: float, arrivals: int = 2000
) -> float:
    """Queries per second at which a simulated server keeps `percentile` of its latencies within `bound_ns`.

    Arrivals are random (Poisson), one inference runs at a time and takes all that wait, `largest` at most; times between the
    measured batches are interpolated. An estimate to start a search from.

    Args:
        times_ns: of one inference, by batch.
        largest: most images per inference.
        bound_ns: latency bound.
        percentile: share of the latencies that must be within it.
        arrivals: simulated queries.
    """
    batches = sorted(times_ns)
    service_ns = np.interp(np.arange(largest + 1), batches, [times_ns[batch] for batch in batches]).tolist()
    gaps = np.random.default_rng(0).exponential(1.0, arrivals)
    highest = max(batch / service_ns[batch] for batch in range(1, largest + 1))  # queries per ns
    low, high = 0.0, highest
    for _ in range(12):
        rate = (low + high) / 2
        arrived = np.cumsum(gaps / rate).tolist()
        latencies: list[float] = []
        free = 0.0
        at = 0
        while at < arrivals:
            begin = max(free, arrived[at])
            end = at + 1
            while end < arrivals and end - at < largest and arrived[end] <= begin:
                end += 1
            free = begin + service_ns[end - at]
            latencies.extend(free - one for one in arrived[at:end])
            at = end
        if float(np.percentile(latencies, percentile)) <= bound_ns:
            low = rate
        else:
            high = rate
    return 1e9 * (low or high)
