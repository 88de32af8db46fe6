"""The bench from end to end on small ONNX files: processes, interleaving, failures, results, tables, the page."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from html_page import Page
from PIL import Image
from small_artifacts import QUICK, eight_layers, write_artifact

from alexnet_edge import records
from alexnet_edge.artifact import TensorSpec, commit, load_artifact
from alexnet_edge.bench.report.report import _checkpoint_facts, write_report
from alexnet_edge.bench.report.rows import rows_of
from alexnet_edge.bench.report.text import markdown_of
from alexnet_edge.bench.report.words import headline, open_points
from alexnet_edge.bench.rounds.results import BenchResult, read_results
from alexnet_edge.bench.rounds.run import Plan, run_bench
from alexnet_edge.bench.timing.process import Worker
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.bench.timing.subjects import open_subject
from alexnet_edge.cli import _run
from alexnet_edge.errors import AlexNetEdgeError, ArtifactError, UserError
from alexnet_edge.images.datasets import synthetic
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.checkpoint import CheckpointInfo, read_info, read_weight
from alexnet_edge.network.filters import filter_grid
from alexnet_edge.progress import QuietReporter

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
PLAN = Plan(threads=(1,), roofline=False, harness=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def files(folder: Path, tiny_checkpoint: Any) -> list[Path]:
    """A checkpoint, two artifacts of it, and an engine that cannot run here."""
    checkpoint = tiny_checkpoint()
    sha256 = open_subject(checkpoint).sha256
    layers = (replace(eight_layers("int8")[0], built="fp32"), *eight_layers("int8")[1:])
    calibration = {"method": "entropy", "num_images": 12, "amax": {"conv1": 2.5}, "table_sha256": "abc"}
    fp32 = write_artifact(folder / "net.onnx", seed=0, checkpoint=sha256)
    int8 = write_artifact(
        folder / "net_int8.onnx", seed=1, precision="int8", checkpoint=sha256, layers=layers, calibration=calibration
    )
    (folder / "plan").write_bytes(b"an engine")
    not_run = {"verdict": "not run", "reasons": ["no NVIDIA GPU here: built, not run"], "warnings": []}
    engine = commit(
        folder / "plan",
        folder / "net.engine",
        replace(fp32.manifest, format="trt", runtime="tensorrt-rtx", precision="fp16", parity=not_run),
    )
    return [checkpoint, fp32.path, int8.path, engine.path]


@pytest.fixture(scope="module")
def result(files: list[Path], folder: Path) -> BenchResult:
    return bench_here(files, 16, out=folder / "results.json", command=["bench", "<x>"])


@pytest.fixture(scope="module")
def bench(result: BenchResult, folder: Path) -> dict[str, Any]:
    return read_results(folder / "results.json")


def test_results_survive_the_file(result: BenchResult, bench: dict[str, Any]) -> None:
    assert bench == json.loads(json.dumps(result.to_json(), allow_nan=False))


def test_results_hold_raw_samples_and_everything_around_them(bench: dict[str, Any], files: list[Path]) -> None:
    assert bench["schema"] == 2
    assert bench["interrupted"] is False
    assert records.convert(MeasureSettings, bench["settings"]) == QUICK
    assert bench["environment"]["cpus"]
    assert bench["inputs"]["images"] == 16
    assert [subject["file"] for subject in bench["subjects"]] == list(map(str, files))
    for subject in bench["subjects"][:3]:
        assert subject["error"] == subject["skipped"] == ""
        assert (subject["device"], subject["threads"]) == ("cpu", 1)
        assert subject["roofline"] is None
        assert len(subject["rounds"]) == 2
        for taken in subject["rounds"]:
            assert taken["load_ns"] >= taken["runtime_load_ns"] > 0
            assert taken["first_ns"] > 0
            assert taken["details"]["threads"] == 1
            assert set(taken["before"]) == set(taken["after"]) >= {"temperature_c", "cpu_governor"}
        assert [entry["batch"] for entry in subject["batches"]] == [1, 4]
        for entry, needed in zip(subject["batches"], (64, 11), strict=True):
            samples = [value for taken in entry["samples"] for value in taken["samples_ns"]]
            assert entry["count"] == len(samples) >= needed
            assert len(entry["samples"]) == 2
            assert min(samples) == entry["min_ns"] > 0
            assert entry["mean_ns"] == pytest.approx(np.mean(samples))
            assert (entry["verdict"] == "VALID") is (entry["reasons"] == [])
        assert subject["batches"][0]["percentiles_ns"]["p99.9"] is None


def test_speed_up_is_against_the_measured_checkpoint(bench: dict[str, Any]) -> None:
    reference, fp32 = (subject["batches"][0] for subject in bench["subjects"][:2])
    assert reference["speed_up"] is None
    assert fp32["speed_up"]["against"] == "torch fp32"
    low, high = fp32["speed_up"]["interval"]
    assert 1 < low <= fp32["speed_up"]["ratio"] <= high


def test_an_engine_that_cannot_run_here_is_listed_with_the_reason(bench: dict[str, Any]) -> None:
    engine = bench["subjects"][3]
    assert "NVIDIA GPU" in engine["skipped"]
    assert engine["batches"] == engine["rounds"] == []
    row = rows_of(bench["subjects"], bench["settings"])[3]
    assert (row.proof, row.measured, row.p50_ms, row.load_ms) == ("not run", "not run", None, None)


class Watcher(QuietReporter):
    """Calls `act(details so far)` at every step of the bench."""

    def __init__(self, act: Any) -> None:
        self.act = act
        self.steps: list[str] = []

    def update(self, completed: int, detail: str = "") -> None:
        if detail:
            self.steps.append(detail)
            self.act(self.steps)


def bench_here(files: list[Path], images: int, **options: Any) -> BenchResult:
    return run_bench(files, QUICK, PLAN, images=synthetic("val").spread(images), **options)


def worker_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "alexnet_edge.bench.rounds.serving" in child.cmdline()]


def test_rounds_are_interleaved_in_fresh_processes_one_at_a_time(files: list[Path]) -> None:
    seen: dict[str, set[int]] = {}

    def look(steps: list[str]) -> None:
        if "batch" in steps[-1]:
            (one,) = worker_processes()
            seen.setdefault(steps[-2], set()).add(one.pid)

    watcher = Watcher(look)
    run_bench(files[1:3], replace(QUICK, batches=(1,)), PLAN, images=synthetic("val").spread(2), reporter=watcher)
    rounds = [step for step in watcher.steps if "round" in step]
    assert rounds == [f"{label}, round {number} of 2" for number in (1, 2) for label in ("onnx fp32", "onnx int8")]
    pids = [pid for pid_set in seen.values() for pid in pid_set]
    assert len(pids) == len(set(pids)) == 4
    assert worker_processes() == []


def test_a_killed_worker_is_its_subjects_error_only(files: list[Path]) -> None:
    def kill(steps: list[str]) -> None:
        if steps[-1] == "onnx fp32, batch 1" and steps[-2].endswith("round 1 of 2"):
            worker_processes()[0].kill()

    watcher = Watcher(kill)
    result = bench_here(files[1:3], 4, reporter=watcher)
    killed, other = result.to_json()["subjects"]
    assert "SIGKILL" in killed["error"]
    assert [entry["batch"] for entry in killed["batches"]] == [1]  # what was finished is kept
    assert len(killed["rounds"]) == 1
    assert other["error"] == ""
    assert [len(entry["samples"]) for entry in other["batches"]] == [2, 2]
    assert list(result.errors) == ["onnx fp32"]
    rows = rows_of(result.to_json()["subjects"], records.to_builtins(result.settings))
    assert rows[0].measured == "error"
    assert any("SIGKILL" in why for _, points in open_points(rows) for _, why in points)


def test_ctrl_c_keeps_what_was_finished(files: list[Path], tmp_path: Path) -> None:
    def interrupt(steps: list[str]) -> None:
        if steps[-1] == "onnx int8, batch 1" and steps[-2].endswith("round 2 of 2"):
            signal.raise_signal(signal.SIGINT)

    out = tmp_path / "results.json"
    result = bench_here(files[1:3], 4, out=out, reporter=Watcher(interrupt))
    assert result.interrupted
    kept = read_results(out)
    assert kept["interrupted"] is True
    assert [[len(entry["samples"]) for entry in subject["batches"]] for subject in kept["subjects"]] == [[2, 2], [2, 1]]
    assert worker_processes() == []
    assert "interrupted" in markdown_of(kept)


def test_a_bench_killed_at_any_moment_leaves_readable_results_and_no_worker(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    code = (
        "import sys; from pathlib import Path; from alexnet_edge.bench.rounds.run import Plan, run_bench; "
        "from alexnet_edge.bench.timing.latency import MeasureSettings; "
        "run_bench([Path(p) for p in sys.argv[2:]], MeasureSettings(batches=(1,), rounds=50, percentile=50), "
        "Plan(harness=False), out=Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(out), *map(str, files[1:3])]) as process:
        until = time.monotonic() + 60
        while time.monotonic() < until and not (out.exists() and read_results(out)["subjects"][0]["batches"]):
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGKILL)
    kept = read_results(out)
    assert kept["subjects"][0]["batches"][0]["count"] > 0
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_a_file_damaged_since_it_was_opened_is_that_subjects_error(folder: Path) -> None:
    path = write_artifact(folder / "damaged.onnx", seed=5).path
    other = write_artifact(folder / "whole.onnx", seed=6).path

    def damage(steps: list[str]) -> None:
        if len(steps) == 1:
            path.write_bytes(path.read_bytes()[:-20])

    result = bench_here([path, other], 2, reporter=Watcher(damage))
    assert "does not match its manifest" in result.errors["onnx fp32 (damaged.onnx)"]
    assert list(result.errors) == ["onnx fp32 (damaged.onnx)"]


def test_a_batch_the_artifact_does_not_take_is_left_out(folder: Path) -> None:
    spec = TensorSpec(name="input", dtype="float32", shape=(3, 227, 227), max_batch=2)
    path = write_artifact(folder / "bounded.onnx", seed=7, input=spec).path
    (subject,) = bench_here([path], 2).to_json()["subjects"]
    assert [entry["batch"] for entry in subject["batches"]] == [1]


def test_wrong_subjects_are_refused_before_anything_runs(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to measure"):
        run_bench([], QUICK)
    with pytest.raises(UserError, match="named twice"):
        run_bench([files[1], files[1]], QUICK)
    with pytest.raises(ArtifactError):
        run_bench([tmp_path / "absent.onnx"], QUICK)


def test_worker_answers_errors_in_one_line_and_lives_on(files: list[Path], tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.zeros((2, 3, 227, 227), np.float32))
    with Worker() as worker:
        with pytest.raises(AlexNetEdgeError, match="no such artifact"):
            worker.open(tmp_path / "absent.onnx", inputs=inputs, threads=1)
        with pytest.raises(AlexNetEdgeError, match="nothing is open"):
            worker.time(batch=1)
        opened = worker.open(files[1], inputs=inputs, threads=1)
        assert opened.details["provider"] == "CPUExecutionProvider"
        assert worker.time(batch=1) > 0
        with pytest.raises(AlexNetEdgeError, match="no answer within"):
            worker.ask(
                {"do": "measure", "batch": 1, "settings": records.to_builtins(MeasureSettings())}, timeout_s=0.05
            )


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kind": "alexnet-edge bench", "schema": 99}', "\0"])
def test_what_is_not_a_results_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError):
        read_results(path)
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "absent.json")


def test_rows_take_proof_and_accuracy_from_the_manifests(bench: dict[str, Any]) -> None:
    checkpoint, fp32, int8, engine = rows_of(bench["subjects"], bench["settings"])
    assert (checkpoint.proof, checkpoint.accuracy, checkpoint.accuracy_images) == ("reference", 0.86, 300)
    assert (fp32.proof, fp32.accuracy, fp32.accuracy_change) == ("passed", 0.85, -0.01)
    assert int8.agreement_interval == (0.97, 0.997)
    assert engine.proof_notes == ("no NVIDIA GPU here: built, not run",)
    text = headline([checkpoint, fp32, int8, engine])
    assert text.startswith("2 of 3 artifacts proved; 3 of 4 subjects measured")


def test_a_result_without_figures_shows_no_zero(bench: dict[str, Any]) -> None:
    engine_line = next(line for line in markdown_of(bench).splitlines() if line.startswith("| trt fp16"))
    cells = [cell.strip() for cell in engine_line.strip("|").split("|")]
    assert cells[1] == cells[2] == "not run"
    assert cells.count("–") == len(cells) - 4  # all but its name, verdicts and size


HISTORY = [
    {"epoch": epoch, "loss": 2 / epoch, "val_loss": 2.1 / epoch, "accuracy": 0.5, "top1": 0.4} for epoch in (1, 2, 3)
]


@pytest.fixture(scope="module")
def page_text(bench: dict[str, Any], folder: Path, files: list[Path]) -> str:
    out = write_report(
        folder / "report.html",
        bench=bench,
        checkpoint_info=read_info(files[0]),
        history=HISTORY,
        filters_OCHW=read_weight(files[0], "conv1.weight"),
        commands=["do <this>"],
    )
    return out.read_text(encoding="utf-8")


def test_page_shows_every_subject_plot_and_fact(page_text: str, bench: dict[str, Any]) -> None:
    page = Page(page_text)
    for subject in bench["subjects"]:
        assert subject["label"] in page.text
        assert subject["sha256"] in page.text
    assert "2 of 3 artifacts proved" in page.text
    assert "no NVIDIA GPU here: built, not run" in page.text
    assert "int8 asked, fp32 built" in page.text
    assert "entropy" in page.text
    assert "do <this>" in page.text
    assert {"plot-distribution", "plot-throughput", "plot-tradeoff", "plot-training"} <= set(page.ids)


def test_page_shows_the_first_filters(page_text: str, files: list[Path], bench: dict[str, Any], tmp_path: Path) -> None:
    page = Page(page_text)
    with Image.open(io.BytesIO(base64.b64decode(*page.pictures))) as image:
        assert np.array_equal(np.asarray(image), filter_grid(read_weight(files[0], "conv1.weight")))
    assert page.headings.index("Training") < page.headings.index("First-layer filters")
    assert Page(write_report(tmp_path / "report.html", bench=bench).read_text(encoding="utf-8")).pictures == []


def test_report_command_shows_the_run_that_the_checkpoint_came_from(
    files: list[Path], bench: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    checkpoint = tmp_path / "run/model.safetensors"
    checkpoint.symlink_to(files[0])
    (tmp_path / "run/history.json").write_text(json.dumps({"epochs": HISTORY}))
    subjects = [{**entry, "file": str(checkpoint) if entry["format"] == "checkpoint" else entry["file"]}
                for entry in bench["subjects"]]  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps({**bench, "subjects": subjects}))
    assert _run(["report", str(tmp_path / "bench.json")]) == 0
    page = Page((tmp_path / "bench.html").read_text(encoding="utf-8"))
    assert {"plot-training", "plot-training-accuracy"} <= set(page.ids)
    assert len(page.pictures) == 1


def test_page_of_artifacts_that_nobody_measured(files: list[Path], tmp_path: Path) -> None:
    artifacts = [load_artifact(path) for path in files[1:]]
    page = Page(write_report(tmp_path / "report.html", artifacts=artifacts).read_text(encoding="utf-8"))
    assert "2 of 3 artifacts proved" in page.text
    assert "measured" not in page.text.split("Scorecard")[0].replace("not validly measured", "").replace(
        "not measured", ""
    )
    assert not [name for name in page.ids if name.startswith("plot-")]


def test_page_does_not_repeat_artifacts_of_the_bench(bench: dict[str, Any], files: list[Path], tmp_path: Path) -> None:
    artifacts = [load_artifact(path) for path in files[1:]]
    page = Page(write_report(tmp_path / "report.html", bench=bench, artifacts=artifacts).read_text(encoding="utf-8"))
    assert page.text.count("net_int8.onnx") == 1


def test_page_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_report(tmp_path / "report.html")


def test_checkpoint_facts_are_taken_from_its_header() -> None:
    info = CheckpointInfo(
        architecture="one-tower",
        classes=tuple(f"c{index}" for index in range(1000)),
        preprocessing=preset("imagenet-227"),
        data={"source": {"kind": "folder", "path": "flowers", "split": "train"}},
        metrics={"top1": 0.86},
    )
    facts = _checkpoint_facts(info, [{"architecture": "one-tower", "checkpoint_sha256": "ff"}])
    assert facts["trained on"] == "folder, flowers, train"
    assert facts["top1"] == 0.86
    assert str(facts["classes"]).endswith("... (1000 in all)")


def test_importing_the_bench_imports_no_heavy_library() -> None:
    code = (
        "import sys, alexnet_edge.bench.rounds.run, alexnet_edge.bench.report.report, alexnet_edge.proof.parity, "
        "alexnet_edge.bench.rounds.serving; "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'plotly', 'jinja2', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
