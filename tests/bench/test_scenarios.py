"""LoadGen's scenarios: what the system under test answers, whose verdict is reported, and how the search ends."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from narrow_network import write_checkpoint
from sleeping_session import SleepingSession, images

from alexnet_edge import records
from alexnet_edge.bench.loadgen.logs import read_logs
from alexnet_edge.bench.loadgen.scenarios import null_query_ns, run_scenario, search_rate, sustained_rate
from alexnet_edge.bench.loadgen.settings import Scenario, ScenarioSettings, affordable_percentile
from alexnet_edge.bench.loadgen.system import Batching, _SystemUnderTest, measure_batches, run_here
from alexnet_edge.bench.timing.process import NULL
from alexnet_edge.errors import AlexNetEdgeError, UserError
from alexnet_edge.progress import QuietReporter
from alexnet_edge.proof.stats import required_samples

pytest.importorskip("mlperf_loadgen")

SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "server", "offline")


class StandIn(SleepingSession):
    """Sleeps `ms` per inference, and may fail at the third inference after `fails_once` was made."""

    def __init__(
        self,
        *,
        ms: float = 0.0,
        fails_once: Path | None = None,
        error: Exception | None = None,
        batches: tuple[int, int | None] = (1, None),
    ) -> None:
        super().__init__(lambda n: ms, batches=batches)
        self.fails_once = fails_once
        self.error = error or MemoryError("no memory left\nand a second line")
        self.queries = 0

    def _enqueue(self) -> None:
        if self.fails_once is not None and self.fails_once.exists():  # LoadGen's run has begun
            self.queries += 1
            if self.queries == 3:
                raise self.error
        super()._enqueue()


def short(scenario: Scenario, **others: Any) -> ScenarioSettings:
    if scenario == "server":
        others = {"latency_bound_ms": 50.0, "target_qps": 200.0} | others
    if scenario != "offline":
        others = {"percentile": 90} | others
    return ScenarioSettings(scenario=scenario, **({"seconds": 0.3} | others))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenario": "interactive"},
        *({"scenario": "offline", "seconds": seconds} for seconds in (0, -1, float("nan"))),
        *(
            {"scenario": "single-stream", **wrong}
            for wrong in ({"min_queries": 0}, {"percentile": 100}, {"target_qps": 5})
        ),
        *({"scenario": "multi-stream", **wrong} for wrong in ({"samples_per_query": 0}, {"max_batch": 5})),
        *({"scenario": "server", **wrong} for wrong in ({"latency_bound_ms": -3}, {"target_qps": 0})),
        {"scenario": "offline", "latency_bound_ms": 3},
    ],
)
def test_wrong_settings_are_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        ScenarioSettings(**wrong)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_survive_json() -> None:
    settings = ScenarioSettings(scenario="server", seconds=3, latency_bound_ms=15, target_qps=100, max_batch=4)
    assert records.decode(ScenarioSettings, json.dumps(records.to_builtins(settings))) == settings


def test_the_percentile_is_mlperfs_own_where_its_queries_fit() -> None:
    multi = ScenarioSettings(scenario="multi-stream", seconds=10)
    needed = required_samples(99)
    assert affordable_percentile(multi, needed / 19) == 99
    assert affordable_percentile(multi, needed / 21) == 90
    assert affordable_percentile(ScenarioSettings(scenario="single-stream"), 0.001) == 90


class RecordingLoadGen:
    """Takes LoadGen's place: issues what a test says and remembers what was completed."""

    QuerySampleResponse = staticmethod(lambda id, data, size: SimpleNamespace(id=id))

    def __init__(self, queries: Sequence[Sequence[int]], loaded: Sequence[int]) -> None:
        self.queries = queries
        self.loaded = list(loaded)
        self.completed: list[int] = []

    def ConstructFastSUT(self, issue: Callable[[list[int], list[int]], None], flush: object) -> int:
        self.issue = issue
        return 1

    def ConstructQSL(self, total: int, performance: int, load: Callable[[list[int]], None], unload: object) -> int:
        load(self.loaded)
        return 2

    def DestroyFastSUT(self, handle: int) -> None:
        assert handle == 1

    def DestroyQSL(self, handle: int) -> None:
        assert handle == 2

    def QuerySamplesComplete(self, responses: Sequence[Any]) -> None:
        self.completed.extend(response.id for response in responses)

    def start(self, handle: int, qsl: int) -> None:
        number = 0
        for query in self.queries:
            self.issue(list(range(number, number + len(query))), list(query))
            number += len(query)


def answered(
    scenario: Scenario, queries: Sequence[Sequence[int]], *, batch: int, batches: tuple[int, int | None] = (1, None)
) -> StandIn:
    fake = RecordingLoadGen(queries, loaded=(3, 1, 0, 2))
    with StandIn(batches=batches) as session:
        batching = Batching(batch=batch, how="", times_ns={})
        sut = _SystemUnderTest(session, images(4), short(scenario), batching, fake)
        (sut.serve if scenario == "server" else sut.stream)(fake.start)
    assert fake.completed == list(range(sum(map(len, queries))))
    return session


@pytest.mark.parametrize(
    ("scenario", "queries", "batch", "seen"),
    [
        ("single-stream", [[2], [3], [3], [0]], 1, [[2], [3], [3], [0]]),
        # a query is one batch where the session takes it, and is divided above the largest one
        ("multi-stream", [[3, 1, 0], [0, 2, 3], [2, 3, 1], [0, 3, 0]], 3, None),
        ("multi-stream", [[3, 1, 0, 2, 3], [0, 2, 3, 1, 0]], 2, [[3, 1], [0, 2], [3], [0, 2], [3, 1], [0]]),
        ("offline", [[3, 1, 0, 2] * 4], 16, [[3, 1, 0, 2] * 4]),  # few images fill a large batch
    ],
)
def test_every_query_gets_its_own_images(
    scenario: Scenario, queries: list[list[int]], batch: int, seen: list[list[int]] | None
) -> None:
    assert answered(scenario, queries, batch=batch).seen == (seen or queries)


def test_a_rest_below_the_smallest_batch_is_filled_up() -> None:
    (first, second) = answered("offline", [[3, 1, 0, 2, 3, 1]], batch=4, batches=(4, 4)).seen
    assert (first, second[:2], len(second)) == ([3, 1, 0, 2], [3, 1], 4)


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


@pytest.mark.parametrize(
    ("milliseconds", "others", "batch"),
    [
        (lambda batch: 10 + batch, {}, 64),
        (lambda batch: 10 * batch, {}, 1),
        (lambda batch: 10 + batch, {"high": 6}, 4),
        (lambda batch: 10 + batch, {"low": 8, "high": 8}, 8),
        (lambda batch: 10 + batch, {"seconds": 0.3}, 16),
        (lambda batch: 10 + batch, {"limit_ns": 15e6}, 4),
        (lambda batch: max(20, 5 * batch), {}, 4),
    ],
)
def test_the_largest_batch_that_pays(
    milliseconds: Callable[[int], float], others: Mapping[str, Any], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet_edge.bench.loadgen.system._WARMUP_S", 0.0)
    limits = {"low": 1, "high": None, "seconds": 60, **others}
    batching = measure_batches(lambda batch: round(milliseconds(batch) * 1e6), **limits)
    assert batching.batch == batch
    assert batching.times_ns[batch] == milliseconds(batch) * 1e6


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_loadgens_verdict_and_figures_are_reported(scenario: Scenario, tmp_path: Path) -> None:
    # VALID however busy the machine is
    sure = {"server": {"latency_bound_ms": 9000.0}, "offline": {"target_qps": 80000.0}}
    with StandIn(ms=1, batches=(1, 4 if scenario == "multi-stream" else 64)) as session:
        result = run_here(session, images(8), short(scenario, **sure.get(scenario, {})), logs=tmp_path / "logs")
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
        assert result["samples"] >= 0.3 * 80000
        return
    (p50_ns,) = re.findall(r"50.00 percentile latency \(ns\) +: (\d+)", summary)
    assert result["percentiles_ns"]["p50"] == int(p50_ns) >= 1e6
    assert result["percentiles_ns"]["p99.9"] is None  # not from so few queries
    assert result["queries"] >= 60
    if scenario == "server":
        (per_second,) = re.findall(r"Completed samples per second +: ([0-9.]+)", summary)
        assert metric["value"] == pytest.approx(float(per_second), abs=0.011)  # the summary rounds
        assert metric["unit"] == "queries/s"
        assert "target_latency (ns): 9000000000\n" in summary
        assert result["latency_bound_ns"] == 9e9
    else:
        assert f"90.0th percentile estimate: {metric['value']}" in summary
        assert result["percentiles_ns"]["p90"] <= metric["value"] <= 1e9
    assert result["samples"] == result["queries"] * (8 if scenario == "multi-stream" else 1)


def test_too_few_queries_are_invalid_by_early_stopping(tmp_path: Path) -> None:
    settings = short("single-stream", seconds=0.05, min_queries=20, percentile=99)
    with StandIn(ms=2) as session:
        result = run_here(session, images(8), settings, logs=tmp_path)
    assert result["verdict"] == "INVALID"
    assert result["metric"]["value"] is None
    assert result["percentiles_ns"]["p99"] is None
    assert any("early stopping: Only processed" in reason for reason in result["reasons"]), result["reasons"]


def test_the_verdict_is_read_and_not_made(tmp_path: Path) -> None:
    settings = short("single-stream")
    with StandIn(ms=1) as session:
        assert run_here(session, images(8), settings, logs=tmp_path)["verdict"] == "VALID"
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
        run_here(session, images(8), short("offline"), logs=tmp_path / "file" / "logs")


def test_offline_and_server_use_batches_where_they_pay(tmp_path: Path) -> None:
    with StandIn(ms=4) as session:
        result = run_here(session, images(8), short("offline"), logs=tmp_path)
    assert result["batching"]["batch"] == result["settings"]["max_batch"] > 8
    assert result["metric"]["value"] > 250  # the most one by one
    with StandIn(ms=4) as session:
        result = run_here(session, images(8), short("server", target_qps=500, max_batch=8), logs=tmp_path)
    assert result["metric"]["value"] > 250
    assert 1 < max(map(len, session.seen)) <= 8


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        *((settings, (4, 4)) for settings in (short("single-stream"), short("server"), short("offline", max_batch=3))),
        (short("multi-stream", samples_per_query=3), (4, 4)),
        (short("offline", max_batch=5), (1, 4)),
        (ScenarioSettings(scenario="server"), (1, None)),
    ],
)
def test_what_the_session_cannot_do_is_refused(
    settings: ScenarioSettings, batches: tuple[int, int | None], tmp_path: Path
) -> None:
    with StandIn(batches=batches) as session, pytest.raises(UserError) as caught:
        run_here(session, images(8), settings, logs=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert session.seen == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_exception_during_a_query_ends_the_run_in_one_line(scenario: Scenario, tmp_path: Path) -> None:
    settings = short(scenario, max_batch=2) if scenario in ("offline", "server") else short(scenario)
    with StandIn(ms=1, fails_once=tmp_path / "mlperf_log_detail.txt") as session:
        with pytest.raises(AlexNetEdgeError) as caught:
            run_here(session, images(8), settings, logs=tmp_path)
        session.run(images(1))
    assert str(caught.value) == f"{scenario}: the session failed during a query (MemoryError: no memory left)"
    assert session.queries == 4, "not asked again after it had failed, but by this test"


def test_an_error_of_this_package_keeps_its_words(tmp_path: Path) -> None:
    session = StandIn(ms=1, fails_once=tmp_path / "mlperf_log_detail.txt", error=UserError("no", fix="yes"))
    with session, pytest.raises(UserError, match=r"^no; yes$"):
        run_here(session, images(8), short("server"), logs=tmp_path)


class Rates:
    """Runs that pass up to the highest rate, and those tried."""

    def __init__(
        self, highest: float, *, fails: Callable[[float, list[float]], bool] = lambda rate, tried: False
    ) -> None:
        self.highest, self.fails = highest, fails
        self.tried: list[float] = []

    def __call__(self, rate: float) -> dict[str, Any]:
        passes = rate <= self.highest and not self.fails(rate, self.tried)
        self.tried.append(rate)
        return {"rate": rate, "verdict": "VALID" if passes else "INVALID", "reasons": ["above"]}


@pytest.mark.parametrize("start", [3.0, 60.0, 95.0, 97.0, 100.0, 104.0, 160.0, 3000.0])
def test_the_search_finds_the_highest_rate_that_passes(start: float) -> None:
    run = Rates(100.0)
    result = search_rate(run, start)
    assert result["verdict"] == "VALID"
    assert 100 / 1.05 <= result["rate"] <= 100
    assert run.tried[-1] == result["rate"] in run.tried[:-1], "the last run confirms an earlier one"
    assert len(run.tried) <= (4 if start == 97.0 else 15), "a good start needs few runs"


def test_no_rate_that_passes_is_said() -> None:
    run = Rates(0.0)
    result = search_rate(run, 10.0)
    assert result["verdict"] == "INVALID"
    assert result["reasons"][0] == "above"
    assert result["reasons"][1].startswith("no rate passes, down to ")
    assert len(run.tried) == 14


def test_a_rate_that_does_not_pass_again_is_not_the_result() -> None:
    def again_above_80(rate: float, tried: list[float]) -> bool:
        return rate > 80 and any(abs(rate - other) < 1e-9 for other in tried)

    result = search_rate(Rates(100.0, fails=again_above_80), 99.0)
    assert result["verdict"] == "VALID"
    assert result["rate"] < 99
    result = search_rate(Rates(100.0, fails=lambda rate, tried: len(tried) > 2), 99.0)
    assert result["verdict"] == "INVALID"
    assert "no rate passed twice" in result["reasons"][-1]


def test_the_simulated_queue_is_the_textbooks() -> None:
    one_ms = {1: 1e6}
    # M/D/1 at utilisation u waits u / (2 (1 - u)) services on average; at 0.9, 4.5, and p90 is near 10 services
    rate = sustained_rate(one_ms, largest=1, bound_ns=11e6, percentile=90, arrivals=20000)
    assert 850 < rate < 950
    assert sustained_rate(one_ms, largest=1, bound_ns=2e6, percentile=90) < rate < 1000
    batched = sustained_rate({1: 1e6, 4: 1.3e6}, largest=4, bound_ns=11e6, percentile=90)
    assert 2000 < batched <= 4 / 1.3e-3
    nothing_passes = sustained_rate(one_ms, largest=1, bound_ns=0.5e6, percentile=90)
    assert 0 < nothing_passes < 100, "a start all the same"


def test_a_slow_session_fails_above_its_capacity_and_the_search_lands_below(tmp_path: Path) -> None:
    """5 ms per inference, one at a time: no rate above 200 per second can last."""

    def run(rate: float) -> dict[str, Any]:
        settings = short("server", seconds=0.5, latency_bound_ms=40.0, target_qps=rate, max_batch=1)
        with StandIn(ms=5) as session:
            return run_here(session, images(8), settings, logs=tmp_path / f"{rate:.3f}")

    beyond = run(400.0)
    assert beyond["verdict"] == "INVALID"
    assert "the latency is above the bound" in beyond["reasons"]
    assert beyond["latency_bound_ns"] == 40e6
    found = search_rate(run, sustained_rate({1: 5e6}, largest=1, bound_ns=40e6, percentile=90))
    assert 20 < found["target_qps"] < 220  # half a second is short enough for a queue to hide some overload


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, images(8))
    return path


def patched_null(folder: Path, enqueue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that starts from now on has a null session whose inference is `enqueue`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import time\n"
        "from alexnet_edge.sessions.null import NullSession\n"
        "def enqueue(self):\n"
        "    self.count = getattr(self, 'count', 0) + 1\n"
        f"    {enqueue}\n"
        "NullSession._enqueue = enqueue\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


class Lines(QuietReporter):
    """Remembers what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, description: str, total: int | None) -> None:
        self.lines.append(description)

    def update(self, completed: int, detail: str = "") -> None:
        self.lines.append(detail)


def test_the_null_session_shows_the_harness(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alexnet_edge.bench.loadgen.scenarios._NULL_SECONDS", 0.1)
    result = run_scenario(NULL, short("single-stream"), inputs=inputs, logs=tmp_path / "logs")
    assert (result["verdict"], result["harness_share"]) == ("VALID", None)
    assert (tmp_path / "logs" / "mlperf_log_summary.txt").read_text(encoding="utf-8") == result["summary"]
    with capsys.disabled():
        print(f"\nLoadGen on the null session: {result['percentiles_ns']['p50'] / 1e3:.2f} us per query")
    options = {"inputs": inputs, "samples_per_query": 8, "max_batch": 4, "cpus": None}
    per_sample_ns = null_query_ns("offline", **options)  # type: ignore[arg-type]
    assert per_sample_ns is not None
    assert per_sample_ns > 0
    start = time.monotonic()
    assert null_query_ns("offline", **options) == per_sample_ns  # type: ignore[arg-type]
    assert time.monotonic() - start < 0.2, "measured once per process"


def test_the_server_search_in_processes(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched_null(tmp_path / "patch", "time.sleep(0.005)", monkeypatch)
    monkeypatch.setattr("alexnet_edge.bench.loadgen.scenarios._SEARCH_RUNS", 2)
    monkeypatch.setattr("alexnet_edge.bench.loadgen.scenarios._CONFIRMATIONS", 1)
    lines = Lines()
    settings = ScenarioSettings(scenario="server", seconds=0.4, percentile=90, max_batch=1)
    result = run_scenario(NULL, settings, inputs=inputs, logs=tmp_path / "logs", reporter=lines)
    assert result["latency_bound_ns"] == pytest.approx(5 * result["single_p90_ns"], rel=1e-6)
    assert result["single_p90_ns"] >= 5e6
    assert result["settings"]["max_batch"] == result["batching"]["batch"] == 1
    assert result["runs"][-1]["target_qps"] == result["target_qps"]
    assert result["runs"][-1]["verdict"] == result["verdict"]
    assert {run["verdict"] for run in result["runs"]} <= {"VALID", "INVALID"}
    assert len(list((tmp_path / "logs").iterdir())) == len(result["runs"])
    assert Path(result["logs"]).is_dir()
    assert lines.lines[0] == "server"
    assert any("queries/s" in line for line in lines.lines[1:])
    json.dumps(result, allow_nan=False)


def test_a_session_that_fails_in_its_process_is_one_line(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched_null(tmp_path / "patch", "time.sleep(0.005 if self.count < 100 else 1 / 0)", monkeypatch)
    with pytest.raises(AlexNetEdgeError) as caught:
        run_scenario(NULL, short("single-stream", seconds=2), inputs=inputs, logs=tmp_path / "logs")
    message = "single-stream: the session failed during a query (ZeroDivisionError: division by zero)"
    assert str(caught.value) == message


def test_missing_inputs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such inputs"):
        run_scenario(NULL, short("offline"), inputs=tmp_path / "none.npy", logs=tmp_path)


def test_a_real_networks_share_of_the_harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet_edge.bench.loadgen.scenarios._NULL_SECONDS", 0.1)
    x = tmp_path / "x.npy"
    np.save(x, np.random.default_rng(0).standard_normal((4, 3, 227, 227), np.float32))
    checkpoint, settings = write_checkpoint(tmp_path / "model.safetensors"), short("single-stream", seconds=0.2)
    result = run_scenario(checkpoint, settings, inputs=x, threads=1, logs=tmp_path / "logs")
    assert 0 < result["harness_share"] < 0.5
