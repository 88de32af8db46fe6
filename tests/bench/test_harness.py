"""What the harness costs, and that its latency is that of a plain loop."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_network import write_checkpoint

from alexnet_edge.bench.rounds import harness
from alexnet_edge.bench.rounds.harness import harness_overhead, plain_loop_ratio
from alexnet_edge.errors import UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import synthetic
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.sessions.onnxruntime import OnnxRuntimeSession


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).standard_normal((3, 3, 227, 227), np.float32))
    return path


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="LoadGen is not installed")
def test_overhead_of_both_ways_to_measure(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = harness_overhead(inputs=inputs, seconds=0.2, logs=tmp_path / "logs")
    json.dumps(costs, allow_nan=False)
    assert 0 < costs["sample_ns"]["p50"] <= costs["sample_ns"]["p99"]
    assert 0 < costs["loadgen_query_ns"]["p50"] <= costs["loadgen_query_ns"]["p90"]
    assert costs["sample_loop_ns"] > costs["sample_ns"]["p50"] / 2
    assert costs["loadgen_loop_ns"] > costs["loadgen_query_ns"]["p50"] / 2
    assert min(costs["samples"], costs["queries"]) >= 662
    assert costs["unavailable"] == ""
    assert (tmp_path / "logs" / "mlperf_log_summary.txt").is_file()
    sample_us, query_us = costs["sample_loop_ns"] / 1e3, costs["loadgen_loop_ns"] / 1e3
    with capsys.disabled():
        print(f"\nharness: {sample_us:.2f} us a sample, {query_us:.2f} us a query")


def test_without_loadgen_its_part_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    costs = harness_overhead(seconds=0.05)
    assert costs["sample_ns"]["p99"] > 0
    assert costs["loadgen_query_ns"] is costs["loadgen_loop_ns"] is costs["queries"] is None
    assert "alexnet-edge[bench]" in costs["unavailable"]


class _Plain:
    """An ONNX Runtime session that counts how often it is run plainly."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.count = 0

    def run(self, outputs: None, feeds: dict[str, np.ndarray]) -> Any:
        self.count += 1
        return self.session.run(outputs, feeds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def test_the_median_is_a_plain_loops(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "model.safetensors"))
    artifact = Exporter(
        checkpoint,
        ExportSettings(out=tmp_path / "artifacts", cache=tmp_path / "cache"),
        proof_images=synthetic("val").spread(8),
    ).export("onnx", "fp32")
    wrapped: list[_Plain] = []
    load = OnnxRuntimeSession._load

    def load_wrapped(session: OnnxRuntimeSession) -> None:
        load(session)
        wrapped.append(_Plain(session._session))
        session._session = wrapped[0]

    monkeypatch.setattr(OnnxRuntimeSession, "_load", load_wrapped)
    costs = plain_loop_ratio(artifact.path, inputs=inputs, threads=1, blocks=4, seconds=0.4)
    json.dumps(costs, allow_nan=False)
    assert len(wrapped) == 1, "both run the same session"
    assert costs["blocks"] == 4
    assert min(costs["samples"]) >= 44
    assert wrapped[0].count == costs["samples"][1] + 4 * 3, "three images of warm-up per block, nothing else"
    low, high = costs["interval"]
    assert low <= costs["ratio"] <= high
    assert 0.2 < costs["ours_p50_ns"] / costs["plain_p50_ns"] < 5
    with capsys.disabled():
        print(f"\nours over a plain loop: {costs['ratio']:.3f}, {low:.3f} to {high:.3f}")
    with pytest.raises(UserError, match="blocks must be positive"):
        plain_loop_ratio(artifact.path, inputs=inputs, blocks=0)
    with pytest.raises(UserError, match="give an ONNX artifact"):
        plain_loop_ratio(checkpoint.path, inputs=inputs)


def test_inputs_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("no array")
    for name in ("missing.npy", "text.npy"):
        with pytest.raises(UserError, match="cannot read the inputs"):
            harness_overhead(inputs=tmp_path / name)
