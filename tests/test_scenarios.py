"""LoadGen's scenarios: what the system under test answers, whose verdict is reported, and how the search ends."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alexnet_edge.artifact import TensorSpec
from alexnet_edge.bench.scenarios import (
    Batching,
    Scenario,
    ScenarioSettings,
    _SystemUnderTest,
    affordable_percentile,
    measure_batches,
    null_query_ns,
    read_logs,
    run_here,
    run_scenario,
    search_rate,
    sustained_rate,
)
from alexnet_edge.bench.stats import required_samples
from alexnet_edge.bench.worker import NULL
from alexnet_edge.errors import AlexNetEdgeError, UserError
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions.null import NullSession

pytest.importorskip("mlperf_loadgen")

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "server", "offline")
SIZE = 8


class StandIn(NullSession):
    """Sleeps per inference and per image, remembers the batches, and may fail at its n-th inference."""

    def __init__(
        self,
        *,
        ms: float = 0.0,
        image_ms: float = 0.0,
        fails_at: int | None = None,
        batches: tuple[int, int | None] = (1, None),
    ) -> None:
        super().__init__(input_size=SIZE, num_classes=4)
        self.input = TensorSpec(
            name="input", dtype="float32", shape=(3, SIZE, SIZE), min_batch=batches[0], max_batch=batches[1]
        )
        self.ms, self.image_ms, self.fails_at = ms, image_ms, fails_at
        self.seen: list[list[int]] = []

    def _prepare(self, x_NCHW: FloatArray) -> None:
        super()._prepare(x_NCHW)
        self.seen.append([int(value) for value in x_NCHW[:, 0, 0, 0]])

    def _enqueue(self) -> None:
        if len(self.seen) == self.fails_at:
            raise MemoryError("no memory left\nand a second line")
        if self.ms or self.image_ms:
            time.sleep((self.ms + self.image_ms * len(self.seen[-1])) / 1e3)


def images(count: int = 8) -> FloatArray:
    """Image n holds the number n."""
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 3, SIZE, SIZE)).copy()


def short(scenario: Scenario, **others: Any) -> ScenarioSettings:
    if scenario == "server":
        others = {"latency_bound_ms": 50.0, "target_qps": 200.0} | others
    if scenario != "offline":
        others = {"percentile": 90} | others
    return ScenarioSettings(scenario=scenario, **({"seconds": 0.3} | others))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenario": "interactive"},
        {"scenario": "offline", "seconds": 0},
        {"scenario": "offline", "seconds": -1},
        {"scenario": "offline", "seconds": float("nan")},
        {"scenario": "single-stream", "min_queries": 0},
        {"scenario": "single-stream", "percentile": 100},
        {"scenario": "multi-stream", "samples_per_query": 0},
        {"scenario": "server", "latency_bound_ms": -3},
        {"scenario": "offline", "latency_bound_ms": 3},
        {"scenario": "server", "target_qps": 0},
        {"scenario": "single-stream", "target_qps": 5},
        {"scenario": "multi-stream", "max_batch": 5},
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        ScenarioSettings(**wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_survive_json() -> None:
    settings = ScenarioSettings(scenario="server", seconds=3, latency_bound_ms=15, target_qps=100, max_batch=4)
    assert ScenarioSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_the_percentile_is_mlperfs_own_where_its_queries_fit() -> None:
    multi = ScenarioSettings(scenario="multi-stream", seconds=10)
    needed = required_samples(99)
    assert affordable_percentile(multi, needed / 19) == 99
    assert affordable_percentile(multi, needed / 21) == 90
    assert affordable_percentile(ScenarioSettings(scenario="single-stream"), 0.001) == 90


# --- what the system under test does ------------------------------------------------------------------------------------


class RecordingLoadGen:
    """Takes LoadGen's place: issues what a test says and remembers what was completed."""

    class QuerySampleResponse:
        def __init__(self, id: int, data: int, size: int) -> None:
            self.id = id

    def __init__(self, queries: Sequence[Sequence[int]], loaded: Sequence[int]) -> None:
        self.queries = queries
        self.loaded = list(loaded)
        self.completed: list[int] = []

    def ConstructFastSUT(self, issue: Callable[[list[int], list[int]], None], flush: object) -> int:
        self.issue = issue
        return 1

    def ConstructQSL(
        self, total: int, performance: int, load: Callable[[list[int]], None], unload: object
    ) -> int:
        load(self.loaded)
        return 2

    def DestroyFastSUT(self, handle: int) -> None:
        assert handle == 1

    def DestroyQSL(self, handle: int) -> None:
        assert handle == 2

    def QuerySamplesComplete(self, responses: Sequence[RecordingLoadGen.QuerySampleResponse]) -> None:
        self.completed.extend(response.id for response in responses)

    def start(self, handle: int, qsl: int) -> None:
        number = 0
        for query in self.queries:
            self.issue(list(range(number, number + len(query))), list(query))
            number += len(query)


def answered(
    scenario: Scenario,
    queries: Sequence[Sequence[int]],
    *,
    batch: int,
    batches: tuple[int, int | None] = (1, None),
    loaded: Sequence[int] = (3, 1, 0, 2),
) -> StandIn:
    fake = RecordingLoadGen(queries, loaded)
    session = StandIn(batches=batches)
    batching = Batching(batch=batch, how="", times_ns={})
    with session:
        sut = _SystemUnderTest(session, images(4), short(scenario), batching, fake)
        (sut.serve if scenario == "server" else sut.stream)(fake.start)
    assert fake.completed == list(range(sum(map(len, queries))))
    return session


def test_a_single_query_gets_its_own_image() -> None:
    assert answered("single-stream", [[2], [3], [3], [0]], batch=1).seen == [[2], [3], [3], [0]]


def test_a_query_is_one_batch_where_the_session_takes_it() -> None:
    queries = [[3, 1, 0], [0, 2, 3], [2, 3, 1], [0, 3, 0]]
    assert answered("multi-stream", queries, batch=3).seen == queries


def test_a_query_above_the_largest_batch_is_divided() -> None:
    session = answered("multi-stream", [[3, 1, 0, 2, 3], [0, 2, 3, 1, 0]], batch=2)
    assert session.seen == [[3, 1], [0, 2], [3], [0, 2], [3, 1], [0]]


def test_a_rest_below_the_smallest_batch_is_filled_up() -> None:
    (first, second) = answered("offline", [[3, 1, 0, 2, 3, 1]], batch=4, batches=(4, 4)).seen
    assert (first, second[:2], len(second)) == ([3, 1, 0, 2], [3, 1], 4)


def test_few_images_fill_a_large_batch() -> None:
    session = answered("offline", [[3, 1, 0, 2] * 4], batch=16)
    assert session.seen == [[3, 1, 0, 2] * 4]


def test_the_server_answers_everything_in_batches_of_what_waits() -> None:
    queries = [[n * 7 % 4] for n in range(50)]
    session = answered("server", queries, batch=4)
    assert [index for batch in session.seen for index in batch] == [index for (index,) in queries]
    assert max(map(len, session.seen)) <= 4


def test_contiguous_images_are_not_copied() -> None:
    fake = RecordingLoadGen([], [2, 0, 1])
    sut = _SystemUnderTest(StandIn(), images(3), short("multi-stream"), Batching(batch=2, how="", times_ns={}), fake)
    sut._load([2, 0, 1])
    assert np.shares_memory(sut._batch_of([1, 2]), sut._x_NCHW)
    gathered = sut._batch_of([1, 0])
    assert not np.shares_memory(gathered, sut._x_NCHW)
    assert gathered[:, 0, 0, 0].tolist() == [1, 0]


def timed(milliseconds: Callable[[int], float]) -> Callable[[int], int]:
    return lambda batch: round(milliseconds(batch) * 1e6)


@pytest.mark.parametrize(
    ("milliseconds", "others", "batch"),
    [
        (lambda batch: 10 + batch, {}, 64),
        (lambda batch: 10 * batch, {}, 1),
        (lambda batch: 10 + batch, {"high": 6}, 4),
        (lambda batch: 10 + batch, {"low": 8, "high": 8}, 8),
        (lambda batch: 10 + batch, {"seconds": 0.6}, 16),
        (lambda batch: 10 + batch, {"limit_ns": 15e6}, 4),
        (lambda batch: max(20, 5 * batch), {}, 4),
    ],
)
def test_the_largest_batch_that_pays(
    milliseconds: Callable[[int], float], others: Mapping[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet_edge.bench.scenarios._WARMUP_S", 0.0)
    found = measure_batches(timed(milliseconds), **({"low": 1, "high": None, "seconds": 60} | dict(others)))
    assert found.batch == batch
    assert found.times_ns[batch] == milliseconds(batch) * 1e6


# --- LoadGen's verdict and figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_loadgens_verdict_and_figures_are_reported(scenario: Scenario, tmp_path: Path) -> None:
    with StandIn(ms=1) as session:
        result = run_here(session, images(), short(scenario), logs=tmp_path / "logs")
    json.dumps(result, allow_nan=False)
    summary = (tmp_path / "logs" / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    assert result["summary"] == summary
    (verdict,) = re.findall(r"Result is : (\w+)", summary)
    assert (result["verdict"], result["reasons"]) == (verdict, []) == ("VALID", [])
    assert result["loadgen_version"][0].isdigit()
    assert result["note"].startswith("not an MLPerf submission: 0.3 s per run instead of 600")
    assert result["duration_ns"] >= 0.2e9
    assert result["scenario"] == scenario
    metric = result["metric"]
    if scenario == "offline":
        assert result["percentiles_ns"] == {}
        assert f"Samples per second: {metric['value']:g}" in summary
        assert result["samples"] == sum(map(len, session.seen[-(result["samples"] // result["batching"]["batch"]) - 1 :])) or (
            result["samples"] > 100
        )
        return
    (p50_ns,) = re.findall(r"50.00 percentile latency \(ns\) +: (\d+)", summary)
    assert result["percentiles_ns"]["p50"] == int(p50_ns) >= 1e6
    assert result["percentiles_ns"]["p99.9"] is None  # not from so few queries
    assert result["queries"] >= 60
    if scenario == "server":
        assert f"{metric['value']:.2f}" in summary
        assert metric["unit"] == "queries/s"
    else:
        assert f"90.0th percentile estimate: {metric['value']}" in summary
        assert result["percentiles_ns"]["p90"] <= metric["value"] <= 1e9
    assert result["samples"] == result["queries"] * (8 if scenario == "multi-stream" else 1)


def test_too_few_queries_are_invalid_by_early_stopping(tmp_path: Path) -> None:
    settings = short("single-stream", seconds=0.05, min_queries=20, percentile=99)
    with StandIn(ms=2) as session:
        result = run_here(session, images(), settings, logs=tmp_path)
    assert result["verdict"] == "INVALID"
    assert result["metric"]["value"] is None
    assert result["percentiles_ns"]["p99"] is None
    assert any("early stopping: Only processed" in reason for reason in result["reasons"]), result["reasons"]


def test_the_verdict_is_read_and_not_made(tmp_path: Path) -> None:
    settings = short("single-stream")
    with StandIn(ms=1) as session:
        assert run_here(session, images(), settings, logs=tmp_path)["verdict"] == "VALID"
    detail = tmp_path / "mlperf_log_detail.txt"
    text = detail.read_text(encoding="utf-8")
    detail.write_text(text.replace('"value": "VALID"', '"value": "INVALID"'), encoding="utf-8")
    assert read_logs(tmp_path, settings)["verdict"] == "INVALID"
    detail.write_text(text.split("result_validity")[0].rsplit("\n", 1)[0], encoding="utf-8")
    with pytest.raises(AlexNetEdgeError, match="no verdict"):
        read_logs(tmp_path, settings)


def test_logs_that_cannot_be_written_are_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with StandIn() as session, pytest.raises(UserError, match="cannot write LoadGen's logs"):
        run_here(session, images(), short("offline"), logs=tmp_path / "file" / "logs")


def test_offline_and_server_use_batches_where_they_pay(tmp_path: Path) -> None:
    with StandIn(ms=4) as session:
        result = run_here(session, images(), short("offline"), logs=tmp_path)
    assert result["batching"]["batch"] == 64
    assert result["metric"]["value"] > 1000  # 250 one by one
    assert result["settings"]["max_batch"] == 64
    with StandIn(ms=4) as session:
        result = run_here(session, images(), short("server", target_qps=500, max_batch=8), logs=tmp_path)
    assert result["metric"]["value"] > 250
    assert 1 < max(map(len, session.seen)) <= 8


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        (short("single-stream"), (4, 4)),
        (short("server"), (4, 4)),
        (short("multi-stream", samples_per_query=3), (4, 4)),
        (short("offline", max_batch=5), (1, 4)),
        (short("offline", max_batch=3), (4, 4)),
        (ScenarioSettings(scenario="server"), (1, None)),
    ],
)
def test_what_the_session_cannot_do_is_refused(
    settings: ScenarioSettings, batches: tuple[int, int | None], tmp_path: Path
) -> None:
    with StandIn(batches=batches) as session, pytest.raises(UserError) as caught:
        run_here(session, images(), settings, logs=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert session.seen == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_exception_during_a_query_ends_the_run_in_one_line(scenario: Scenario, tmp_path: Path) -> None:
    with StandIn(ms=0.1, fails_at=5000) as session:
        session._run_count = 0
        calibrated = short(scenario, max_batch=2) if scenario in ("offline", "server") else short(scenario)
        settings = calibrated if scenario != "offline" else short(scenario, max_batch=2, target_qps=1000)
        session.fails_at = None
        _fail_after_issue(session)
        start = time.monotonic()
        with pytest.raises(AlexNetEdgeError) as caught:
            run_here(session, images(), settings, logs=tmp_path)
    assert str(caught.value) == f"{scenario}: the session failed during a query (MemoryError: no memory left)"
    assert time.monotonic() - start < 10


def _fail_after_issue(session: StandIn) -> None:
    """Let the session fail at its 20th inference after the warm-up, which ends when LoadGen's logs are there."""
