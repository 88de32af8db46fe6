"""Peers: other tools on the same checkpoint, prepared and run in processes of another interpreter, measured beside ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_network import write_checkpoint
from small_artifacts import QUICK, write_artifact

from alexnet_edge.bench import peers
from alexnet_edge.bench.peer_tools import PEERS, Peer
from alexnet_edge.bench.peers import PeerSession, prepare_peers, read_peer
from alexnet_edge.bench.report.report import write_report
from alexnet_edge.bench.report.rows import rows_of
from alexnet_edge.bench.report.text import markdown_of
from alexnet_edge.bench.report.words import verdict
from alexnet_edge.bench.rounds.results import read_results
from alexnet_edge.bench.rounds.run import Plan, run_bench
from alexnet_edge.cli import _run
from alexnet_edge.errors import ArtifactError, UserError
from alexnet_edge.images.datasets import ImageSet, open_images

NAMES = ("torch-channels-last", "openvino-fp32")
"""Those whose tools the environment of the tests has."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("narrow") / "model.safetensors")


@pytest.fixture(scope="module")
def images(image_folder: Path) -> ImageSet:
    return open_images(image_folder / "val", limit=4)


@pytest.fixture(scope="module")
def prepared(checkpoint: Path, images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("peers")
    found, left_out = prepare_peers(NAMES, checkpoint, batches=(1, 2), folder=folder, images=images)
    assert left_out == {}
    return found


def test_answers_are_the_checkpoints(prepared: list[Path]) -> None:
    assert [path.stem for path in prepared] == list(NAMES)
    for path in prepared:
        found = read_peer(path)
        assert found.python == sys.executable
        figures = found.parity["figures"]
        assert figures["num_images"] == 4
        assert figures["max_abs_error"] < 1e-3
        assert found.bytes > 5e5
        assert set(found.versions) == set(found.peer.packages)


def test_what_is_there_is_taken(
    prepared: list[Path], checkpoint: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> str:
        raise AssertionError("it was prepared before")

    monkeypatch.setattr(peers, "_prepare_elsewhere", never)
    folder = prepared[0].parents[1]
    assert prepare_peers(NAMES, checkpoint, batches=(2,), folder=folder, images=images) == (prepared, {})


def test_one_that_is_left_out_is_in_the_results_with_the_reason(
    prepared: list[Path], checkpoint: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "_prepare_elsewhere", lambda python, options: "no such operator")
    folder = prepared[0].parents[1]
    found, left_out = prepare_peers([*NAMES, "executorch"], checkpoint, batches=(1,), folder=folder, images=images)
    assert (found, left_out) == (prepared, {"executorch": "no such operator"})
    plan = Plan(harness=False, roofline=False, peers_left_out=left_out)
    results = run_bench([checkpoint], QUICK, plan, out=tmp_path / "bench.json").to_json()
    assert read_results(tmp_path / "bench.json")["peers_left_out"] == left_out
    assert "- peer executorch: left out: no such operator" in markdown_of(results)
    page = write_report(tmp_path / "bench.html", bench=results).read_text(encoding="utf-8")
    assert "peer executorch" in page
    assert "no such operator" in page


@pytest.mark.slow
def test_measured_beside_the_checkpoint_and_an_artifact(prepared: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    run_bench([checkpoint, *prepared], QUICK, Plan(harness=False, roofline=False), out=out)
    results = read_results(out)
    assert not [subject["error"] for subject in results["subjects"] if subject["error"]]
    ours, *others = results["subjects"]
    assert [subject["label"] for subject in others] == [f"peer {name}" for name in NAMES]
    for entry, *beside in zip(*(subject["batches"] for subject in results["subjects"]), strict=True):
        against = entry["against_fastest_peer"]
        medians = {other["label"]: found["percentiles_ns"]["p50"] for other, found in zip(others, beside, strict=True)}
        assert against["against"] == min(medians, key=lambda label: medians[label])
        assert against["interval"][0] <= against["ratio"] <= against["interval"][1]
        assert all("against_fastest_peer" not in found for found in beside)
    rows = rows_of(results["subjects"], results["settings"])
    assert [row.proof for row in rows] == ["reference", *["peer"] * len(NAMES)]
    assert verdict(rows, results["settings"]) == "Only the checkpoint is here: there is no artifact to judge"
    assert "× fastest peer" in markdown_of(results)
    assert others[0]["details"]["about"] == PEERS[NAMES[0]].about
    assert ours["format"] == "checkpoint"


def test_peers_run_in_processes_of_their_own(prepared: list[Path]) -> None:
    with pytest.raises(UserError, match="peers run in processes of their own"):
        run_bench(prepared, QUICK, Plan(isolate=False))


def test_a_tool_that_is_not_here(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PEERS["litert"], "packages", ("no-such-tool",), raising=False)
    assert peers._main(json.dumps({"peer": "litert", "checkpoint": str(checkpoint), "folder": str(tmp_path)})) == 2
    assert capsys.readouterr().out == "no-such-tool is not installed; pip install no-such-tool\n"


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_an_interpreter_that_is_none(python: str, checkpoint: Path, images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no peer can be prepared here"):
        prepare_peers(["ncnn"], checkpoint, batches=(1,), folder=tmp_path, images=images, python=Path(python))


def test_a_damaged_file(tmp_path: Path, prepared: list[Path]) -> None:
    path = tmp_path / "a.peer"
    with pytest.raises(ArtifactError, match="not a prepared peer"):
        read_peer(path)
    for text in ("", "{}", json.dumps({"schema": 0})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ArtifactError, match="not a prepared peer") as error:
            read_peer(path)
        assert "\n" not in str(error.value)


def test_a_batch_it_was_not_prepared_for(prepared: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_peer(prepared[0])
    monkeypatch.setattr(found.peer, "fixed_batch", True, raising=False)
    with PeerSession(found, threads=1) as session:
        assert session.run(np.zeros((2, 3, 227, 227), np.float32)).shape == (2, 4)
        with pytest.raises(UserError, match="prepared for batches of 1, 2: 3"):
            session.run(np.zeros((3, 3, 227, 227), np.float32))


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        ("--peers-python python", "--peers-python belongs to --peers"),
        ("--peers all", "peers are made from a checkpoint"),
    ],
)
def test_options_that_do_not_fit(words: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_artifact(tmp_path / "network.onnx", seed=0).path
    assert _run(["bench", str(path), *words.split(), "-q"]) == 2
    assert refusal in capsys.readouterr().err


def test_no_such_peer(checkpoint: Path, images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such peer: tflite; choose from all, torch-compile"):
        prepare_peers(["tflite"], checkpoint, batches=(1,), folder=tmp_path, images=images)


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_every_peer_says_what_it_is(peer: Peer) -> None:
    assert peer.about
    assert peer.packages
    assert peer.precision in ("fp32", "int8", "default")
