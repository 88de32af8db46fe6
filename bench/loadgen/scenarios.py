"""Run one LoadGen scenario, and search for the highest rate that it sustains."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.bench.loadgen.settings import BOUND_FACTOR, Scenario, ScenarioSettings, affordable_percentile
from alexnet_edge.bench.loadgen.system import WARMUP_COUNT, Batching, check_batches, loadgen, measure_batches
from alexnet_edge.bench.timing.process import NULL, Opened, Worker
from alexnet_edge.bench.timing.subjects import open_subject
from alexnet_edge.errors import UserError
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.proof.stats import percentile_of, required_samples
from alexnet_edge.sessions.base import Device

_SEARCH_STEP = 1.1
_SEARCH_PRECISION = 1.05
"""The search ends when the lowest rate that failed is at most this much above the best that passed."""
_SEARCH_RUNS = 14
_CONFIRMATIONS = 4
_NULL_SECONDS = 0.5


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

    `subject` is an artifact or checkpoint, or `NULL`. `inputs` has preprocessed images, `.npy`, `(N, 3, S, S)` float32.
    `threads` of None is every processor this process may use. The server search makes a folder inside `logs` for every run.
    `trust` takes an engine without manifest, see `load_artifact`. `cpus` are the processors to stay on; None for all.

    Returns:
        What `run_here` returns, and `harness_share` (what the same scenario takes per query, offline per sample, on a session
        that answers at once, over what it took here; None for the null session itself), for a server search also `runs`
        (rate and verdict of each).

    Raises:
        UserError: when the inputs are missing or the artifact's batches do not allow the scenario.
        MissingComponentError: when LoadGen is not installed.
        AlexNetEdgeError: when the subject cannot be loaded or fails during a query.
    """
    loadgen()
    if not inputs.is_file():
        raise UserError("no such inputs", value=inputs, fix="write preprocessed images with numpy.save")
    place = _Place(
        subject=subject,
        inputs=inputs,
        device=device,
        threads=threads,
        trust=trust,
        cpus=None if cpus is None else tuple(cpus),
    ).checked(settings)
    reporter = reporter or QuietReporter()
    reporter.start(settings.scenario, None)
    run = _serve_best if settings.scenario == "server" else _run_long_enough
    result = run(place, settings, logs, reporter)
    result["harness_share"] = None if subject == NULL else _harness_share(place, result)
    reporter.finish(f"{result['verdict']}, {_figure(result)}")
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """What runs, and where."""

    subject: Path | str
    inputs: Path
    device: Device = "cpu"
    threads: int | None = None
    trust: bool = False
    cpus: tuple[int, ...] | None = None
    max_batch: int | None = None
    """The largest batch that the subject takes."""

    def checked(self, settings: ScenarioSettings) -> _Place:
        """With the subject's largest batch; raises UserError where its batches do not allow the scenario."""
        if not isinstance(self.subject, Path):
            return self
        subject = open_subject(self.subject, device=self.device, trust=self.trust)
        check_batches(subject.min_batch, subject.max_batch, settings)
        return replace(self, max_batch=subject.max_batch)

    def open(self, worker: Worker) -> Opened:
        return worker.open(self.subject, inputs=self.inputs, device=self.device, threads=self.threads, trust=self.trust)

    def run(self, settings: ScenarioSettings, logs: Path) -> dict[str, Any]:
        with Worker(cpus=self.cpus) as worker:
            opened = self.open(worker)
            # the first inference takes longer than any later one
            queries = settings.min_queries or required_samples(settings.percentile or 99)
            longest_s = settings.seconds + queries * settings.samples_per_query * opened.first_ns / 1e9
            request = {"do": "scenario", "settings": records.to_builtins(settings), "logs": str(logs)}
            return worker.ask(request, timeout_s=120 + 5 * longest_s)


def _run_long_enough(place: _Place, settings: ScenarioSettings, logs: Path, reporter: Reporter) -> dict[str, Any]:
    """One run, and a second one with more samples where the first was shorter than the least duration."""
    result = place.run(settings, logs)
    if settings.target_qps is None and "shorter than the least duration" in result["reasons"]:
        rate = 1.2 * result["metric"]["value"] if settings.scenario == "offline" else None
        reporter.update(1, "too few samples for the least duration, once more")
        result = place.run(replace(settings, target_qps=rate), logs)
    return result


def _figure(result: Mapping[str, Any]) -> str:
    value, unit = result["metric"]["value"], result["metric"]["unit"]
    if value is None:
        return "no figure"
    return f"{value / 1e6:.4g} ms" if unit == "ns" else f"{value:.4g} {unit}"


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
    scenario: Scenario, *, inputs: Path, samples_per_query: int, max_batch: int | None, cpus: tuple[int, ...] | None
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
    with tempfile.TemporaryDirectory(prefix="alexnet-edge-null-") as logs:
        return _median_ns(_Place(subject=NULL, inputs=inputs, cpus=cpus).run(settings, Path(logs)))


def _median_ns(result: Mapping[str, Any]) -> float | None:
    if result["scenario"] == "offline":
        return 1e9 / float(result["metric"]["value"])
    median: int | None = result["percentiles_ns"]["p50"]
    return median


def _serve_best(place: _Place, settings: ScenarioSettings, logs: Path, reporter: Reporter) -> dict[str, Any]:
    """One run at the given rate, or the search for the highest that passes."""
    p90_ns: float | None = None
    batching: Batching | None = None
    estimate = settings.target_qps or 0.0
    if None in (settings.latency_bound_ms, settings.target_qps, settings.max_batch, settings.percentile):
        reporter.update(0, "timing inferences")
        with Worker(cpus=place.cpus) as worker:
            place.open(worker)
            for _ in range(WARMUP_COUNT):
                worker.time(batch=1)
            p90_ns = percentile_of([worker.time(batch=1) for _ in range(required_samples(90))], 90)
            assert p90_ns is not None
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
        rate_at = partial(sustained_rate, batching.times_ns, largest=largest, bound_ns=bound_ms * 1e6)
        estimate = settings.target_qps or rate_at(percentile=settings.percentile or 99)
        percentile = settings.percentile or affordable_percentile(settings, estimate)
        if settings.percentile is None and settings.target_qps is None:
            estimate = rate_at(percentile=percentile)
        settings = replace(settings, latency_bound_ms=bound_ms, max_batch=largest, percentile=percentile)
    runs: list[dict[str, Any]] = []

    def run(rate: float) -> dict[str, Any]:
        reporter.update(len(runs), f"{rate:.4g} queries/s")
        folder = logs / f"{len(runs) + 1:02d}-{rate:.4g}-queries-per-s"
        result = place.run(replace(settings, target_qps=rate), folder)
        runs.append({"target_qps": rate, "verdict": result["verdict"], "value": result["metric"]["value"]})
        return result

    result = run(settings.target_qps) if settings.target_qps else search_rate(run, estimate)
    measured = {} if batching is None else {"batching": records.to_builtins(batching)}
    return {**result, "single_p90_ns": p90_ns, "runs": runs, **measured}


def search_rate(run: Callable[[float], dict[str, Any]], start: float) -> dict[str, Any]:
    """The run at the highest rate that passes twice, to 5 %; `run` runs a rate in queries per second, its `verdict` decides.

    From the positive `start` the rate moves by 10 %, then by growing steps, until one run is VALID and one is not; then the
    interval is halved (in ratio) until it is at most 5 % wide, and the best rate is run again. Should it fail then, the rate
    goes down by 5 % until a run passes. The last run is returned: VALID, or INVALID when no rate was found in a bounded
    number of runs.
    """
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
    measured batches (`times_ns`) are interpolated. An estimate to start a search from.
    """
    batches = sorted(times_ns)
    service_ns = np.interp(np.arange(largest + 1), batches, [times_ns[batch] for batch in batches]).tolist()
    gaps = np.random.default_rng(0).exponential(1.0, arrivals)
    low, high = 0.0, max(batch / service_ns[batch] for batch in range(1, largest + 1))  # queries per ns
    for _ in range(12):
        rate = (low + high) / 2
        latencies = _simulated_latencies(np.cumsum(gaps / rate).tolist(), service_ns)
        if float(np.percentile(latencies, percentile)) <= bound_ns:
            low = rate
        else:
            high = rate
    return 1e9 * (low or high)


def _simulated_latencies(arrivals_ns: Sequence[float], service_ns: Sequence[float]) -> list[float]:
    """Latencies of queries that arrive at these times, where an inference takes `service_ns[batch]` and one runs at a time."""
    latencies: list[float] = []
    free_ns = 0.0
    first = 0
    while first < len(arrivals_ns):
        begin_ns = max(free_ns, arrivals_ns[first])
        end = first + 1
        while end < len(arrivals_ns) and end - first < len(service_ns) - 1 and arrivals_ns[end] <= begin_ns:
            end += 1
        free_ns = begin_ns + service_ns[end - first]
        latencies.extend(free_ns - arrival_ns for arrival_ns in arrivals_ns[first:end])
        first = end
    return latencies
