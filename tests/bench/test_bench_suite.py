"""`pytest bench --benchmark-only` in a folder of its own: it builds, proves, measures, and fails on a wrong answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alexnet_edge.artifact import commit, load_artifact
from alexnet_edge.bench.suite import ReplayClock

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any) -> Path:
    """A working folder with one checkpoint in `runs/`."""
    path = tmp_path_factory.mktemp("suite")
    (path / "runs" / "first").mkdir(parents=True)
    (path / "runs" / "first" / "model.safetensors").hardlink_to(tiny_checkpoint())
    return path


def run_suite(folder: Path, *tests: str, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # this run's own
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *(f"{REPOSITORY}/bench/{test}" for test in tests)),
            *("--benchmark-only", "--benchmark-json=out.json", "-p", "no:cacheprovider"),
            *("-c", f"{REPOSITORY}/pyproject.toml", f"--rootdir={REPOSITORY}"),
        ],
        cwd=folder,
        env={**outside, "ALEXNET_EDGE_BENCH_SECONDS": "0.05", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_suite_builds_proves_and_measures(folder: Path) -> None:
    done = run_suite(
        folder,
        "test_parity.py::test_parity[onnx-fp32-cpu]",
        "test_latency.py::test_latency[onnx-fp32-cpu]",
        "test_throughput.py::test_throughput[onnx-fp32-cpu-8]",
        "test_latency.py::test_latency[trt-fp16-cuda]",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 1 skipped" in done.stdout
    assert "NVIDIA GPU" in done.stdout
    proof, latency, throughput = sorted(
        json.loads((folder / "out.json").read_text())["benchmarks"], key=lambda entry: entry["group"] != "proof"
    )
    assert proof["extra_info"]["verdict"] == "passed"
    for entry, batch in ((latency, 1), (throughput, 8)):
        info = entry["extra_info"]
        assert info["batch"] == batch
        assert info["verdict"] in ("VALID", "INVALID")
        assert info["proof"] == "passed"
        assert "perf_counter" in info["clock"]
        assert entry["stats"]["rounds"] == info["count"]
        assert entry["stats"]["min"] == pytest.approx(info["min_ns"] / 1e9, abs=1e-9)
        assert entry["stats"]["mean"] == pytest.approx(info["mean_ns"] / 1e9, rel=1e-6)
    assert latency["extra_info"]["percentiles_ns"]["p90"] is not None
    assert throughput["extra_info"]["images_per_s"] > 0


@pytest.mark.slow
def test_suite_fails_on_an_artifact_with_wrong_answers(folder: Path) -> None:
    """It was exported from this checkpoint, says its manifest, and passed; but one bias is not the checkpoint's."""
    built = sorted((folder / ".alexnet-edge" / "bench").glob("artifacts-*/alexnet_fp32.onnx"))
    assert built, "the test before this one builds it"
    manifest = load_artifact(built[0]).manifest
    model = onnx.load(built[0])
    (bias,) = (entry for entry in model.graph.initializer if entry.name == "fc8.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    onnx.save(model, folder / "changed.onnx")
    (folder / "artifacts").mkdir()
    commit(folder / "changed.onnx", folder / "artifacts" / "alexnet_fp32.onnx", replace(manifest))
    done = run_suite(folder, "test_parity.py::test_parity[onnx-fp32-cpu]")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "artifacts/alexnet_fp32.onnx does not give the checkpoint's answers: max abs error" in done.stdout


def test_replay_clock_takes_exactly_as_long_as_the_samples() -> None:
    clock = ReplayClock()
    for samples_ns in ([12_345_678, 1, 98_765_432_101], [5, 7]):
        take_next = clock.replay(samples_ns)
        seen = []
        for _ in samples_ns:
            start = clock()
            take_next()
            seen.append(clock() - start)
        assert seen == pytest.approx([value / 1e9 for value in samples_ns], abs=1e-12, rel=0)
