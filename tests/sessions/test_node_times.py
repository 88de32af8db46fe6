"""The runtimes' own profiles: every node that ran, in order, with the time of one inference, and the session as it was."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from manifests import MANIFEST
from narrow_network import CLASSES, NARROW, write_checkpoint

from alexnet_edge.artifact import LAYER_NAMES, Format, Manifest, Precision, TensorSpec, commit
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.bench.machine.roofline import roofline
from alexnet_edge.errors import UserError
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
from alexnet_edge.export.graphs.torchscript import write_pt2, write_torchscript
from alexnet_edge.images.preprocess import preset
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.sessions import Session, open_session
from alexnet_edge.sessions.base import NodeTime
from alexnet_edge.sessions.null import NullSession
from alexnet_edge.sessions.onnxruntime import node_times_of
from alexnet_edge.sessions.torch import CheckpointSession, _layer_names

SIZE = NARROW.input_size
PEAKS = Peaks(
    device="cpu",
    threads=1,
    read_bytes_per_s=10e9,
    copy_bytes_per_s=None,
    multiply_adds_per_s={"fp32": 50e9},
    how={},
    unavailable={},
)


def images(count: int = 1) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, SIZE, SIZE), np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors")


def manifest(format_: Format, runtime: str, precision: Precision = "fp32") -> Manifest:
    output = TensorSpec(name="logits", dtype="float32", shape=(len(CLASSES),), max_batch=16)
    return replace(
        MANIFEST,
        format=format_,
        runtime=runtime,
        precision=precision,
        architecture=NARROW.name,
        classes=CLASSES,
        preprocessing=preset(NARROW.preprocessing),
        output=output,
    )


def narrow_session(kind: str, checkpoint: Path, folder: Path) -> Session:
    """A closed session on the narrow network in the format `kind`, or `onnx` in a precision, as `onnx int8`."""
    if kind == "torch":
        return open_session(checkpoint, threads=1)
    loaded = load_checkpoint(checkpoint)
    format_, _, precision = kind.partition(" ")
    if format_ == "onnx":
        asked: Any = precision or "fp32"
        amax = dict.fromkeys(LAYER_NAMES, 4.0) if asked in ("int8", "fp8") else None
        write_onnx(onnx_from_checkpoint(loaded, precision=asked, amax=amax), folder / "tmp")
        described = manifest("onnx", "onnxruntime", asked)
    elif format_ == "torchscript":
        write_torchscript(loaded, folder / "tmp")
        described = manifest("torchscript", "torchscript")
    else:
        write_pt2(loaded, folder / "tmp")
        described = manifest("pt2", "torch.export")
    suffix = {"onnx": ".onnx", "torchscript": ".ts", "pt2": ".pt2"}[format_]
    return open_session(commit(folder / "tmp", folder / f"narrow{suffix}", described), threads=1)


def profile(session: Session, x_NCHW: np.ndarray, *, runs: int = 2) -> list[NodeTime]:
    found = session.node_times(x_NCHW, runs=runs)
    assert found is not None
    assert all(node.ns >= 0 for node in found)
    return found


def layers_of(nodes: list[NodeTime], **options: Any) -> dict[str, Any]:
    return roofline(architecture=NARROW, layers=(), batch=1, peaks=PEAKS, nodes=nodes, p50_ns=5e6, **options)


KINDS = ("torch", "torchscript", "pt2", "onnx", "onnx fp16", "onnx int8", "onnx fp8", "onnx int4-fc")


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_found(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    with narrow_session(kind, checkpoint, tmp_path) as session:
        for batch in (1, 3):
            nodes = profile(session, images(batch))
            value = layers_of(nodes)
            untimed = [entry["name"] for entry in value["layers"] if entry["measured_ns"] is None]
            assert untimed == []
            assert {entry["computed_in"] for entry in value["layers"]} == {"fp32"}
            of = {node["name"]: node["layer"] for node in value["nodes"]}
            assert value["other_ns"] < 0.1 * value["nodes_ns"], of


@pytest.mark.parametrize("kind", ["torch", "torchscript", "pt2", "onnx"])
def test_the_session_stays_as_it_was(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    with narrow_session(kind, checkpoint, tmp_path) as session:
        expected_NK = session.run(images(2))
        session.prepare(images(2))
        profile(session, images(1))
        session.enqueue()
        session.synchronize()
        np.testing.assert_array_equal(session.fetch(), expected_NK)


def test_inputs_are_checked(checkpoint: Path) -> None:
    session = open_session(checkpoint, threads=1)
    with pytest.raises(UserError, match=r"node_times\(\) called on a session that is closed"):
        session.node_times(images(), runs=1)
    with session, pytest.raises(UserError, match="must have shape"):
        session.node_times(images()[:, :1], runs=1)


def test_without_a_profiler() -> None:
    with NullSession(input_size=SIZE) as session:
        assert session.node_times(images(), runs=1) is None


def test_trace_files_are_removed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.chdir(scratch)
    with narrow_session("onnx", checkpoint, tmp_path) as session:
        profile(session, images())
    assert list(scratch.iterdir()) == []


def event(name: str, dur: int, *, index: int = 0, **arguments: Any) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"node_index": str(index), **arguments}}


def test_means_leave_the_warm_up_out() -> None:
    conv = {"op_name": "Conv", "input_type_shape": [{"float16": [1]}, {"float16": [2]}]}
    events = [
        {"cat": "Session", "name": "model_run", "dur": 99999, "args": {}},
        event("b", 5000, index=7, **conv),
        event("a", 700, index=2, op_name="Relu"),
        {"cat": "Node", "name": "a_fence_before", "dur": 4, "args": {"op_name": "Relu"}},
        event("b", 10, index=7, **conv),
        event("a", 3, index=2, op_name="Relu"),
        event("b", 13, index=7, **conv),
        event("a", 4, index=2, op_name="Relu"),
    ]
    assert node_times_of(events, skip=1) == [
        NodeTime(name="b", kind="Conv(float16)", ns=11_500),
        NodeTime(name="a", kind="Relu", ns=3_500),
    ]


def test_nodes_of_one_name_are_two() -> None:
    events = [event("x", 1, index=1, op_name="A"), event("x", 2, index=2, op_name="A")]
    assert [node.ns for node in node_times_of(events, skip=0)] == [1000, 2000]


def test_every_run_counts_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm-up and runs are what was asked for: the trace has no more and no fewer."""
    from alexnet_edge.sessions import onnxruntime as module

    seen: list[int] = []

    def counted(events: list[dict[str, Any]], *, skip: int) -> list[NodeTime]:
        products = [entry for entry in events if entry["name"].startswith("fc8_kernel")]
        seen.append(len(products) - skip)
        return node_times_of(events, skip=skip)

    monkeypatch.setattr(module, "node_times_of", counted)
    with narrow_session("onnx", checkpoint, tmp_path) as session:
        profile(session, images(), runs=4)
    assert seen == [4]


@pytest.mark.parametrize("kind", ["torch", "torchscript", "pt2"])
def test_products_bear_their_layers_names(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    with narrow_session(kind, checkpoint, tmp_path) as session:
        nodes = profile(session, images())
    named = [node for node in nodes if node.name in LAYER_NAMES]
    assert [node.name for node in named] == list(LAYER_NAMES)
    assert {node.kind for node in named} <= {"aten::conv2d(float)", "aten::_convolution(float)", "aten::linear(float)"}
    kinds = [node.kind for node in nodes]
    assert "aten::mkldnn_convolution(float)" not in kinds, "what an operator calls is part of it"
    assert kinds.count("aten::max_pool2d(float)") == 3


def test_a_slow_operator_is_its_layers(checkpoint: Path) -> None:
    """Planted: something slow after conv3."""
    with CheckpointSession(checkpoint, threads=1) as session:
        module: Any = session._call
        slow = torch.rand(1_500_000)
        module.conv3.register_forward_hook(lambda *_: torch.sort(slow) and None)
        value = layers_of(profile(session, images()))
    assert value["worst"] == "conv3"
    assert [node["layer"] for node in value["nodes"] if node["name"] == "aten::sort"] == ["conv3"]
    assert any(note.startswith("conv3: ") and "aten::sort" in note for note in value["notes"])


def test_unnamed_where_products_are_not_eight(checkpoint: Path) -> None:
    five, three = ["aten::conv2d", "aten::relu"] * 5, ["aten::linear"] * 3
    assert _layer_names([*five, *three]) is not None
    for wrong in ([*five, *three, "aten::linear"], [*three, *five], five, []):
        assert _layer_names(wrong) is None
    with CheckpointSession(checkpoint, threads=1) as session:
        session._call = lambda x: x.flatten(1)[:, :4] * 2
        assert session.node_times(images(), runs=1) is None


def test_runs_that_differ_are_not_averaged(checkpoint: Path) -> None:
    with CheckpointSession(checkpoint, threads=1) as session:
        module: Any = session._call
        calls = iter(range(100))
        session._call = lambda x: module(x).abs() if next(calls) % 2 else module(x).neg()
        assert session.node_times(images(), runs=1) is not None
        assert session.node_times(images(), runs=2) is None
