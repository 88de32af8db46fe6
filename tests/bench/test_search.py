"""The search for each layer's precision: a planted sensitive layer, a budget, a journal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from narrow_network import CLASSES, NARROW, exporter_in, write_checkpoint

from alexnet_edge import records
from alexnet_edge.artifact import load_artifact
from alexnet_edge.bench import search as module
from alexnet_edge.bench.search import Journal, SearchSettings, search_plan
from alexnet_edge.errors import UserError
from alexnet_edge.export.graphs.targets import this_machine
from alexnet_edge.export.settings import CACHE
from alexnet_edge.images.datasets import ImageSet, batches, open_images
from alexnet_edge.network.checkpoint import Checkpoint, save_checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.proof.layerwise import tensors

SENSITIVE = "conv5"
SETTINGS = SearchSettings(max_drop=0.05, rounds=1, seconds=0.05)


@pytest.fixture(scope="module")
def images(image_folder: Path) -> ImageSet:
    return open_images(image_folder / "train", classes=CLASSES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, images: ImageSet) -> Checkpoint:
    """A network whose fc8 is fitted to the images, and whose conv5 has one input channel 3000 times as large as the others.

    conv4's channel and conv5's weights for it are scaled inversely, so that in FP32 nothing changes; in INT8 the steps of
    conv5's input are as coarse as that channel asks, and the other channels round to 0.
    """
    folder = tmp_path_factory.mktemp("planted")
    plain = load_checkpoint(write_checkpoint(folder / "plain.safetensors"))
    weights = {name: value.copy() for name, value in plain.weights.items()}
    (batch,) = batches(images, plain.info.preprocessing, batch=len(images))
    *_, (_, fc7_NF), _ = [(step.name, value) for step, value in tensors(NARROW, weights, batch.x_NCHW)]
    centred = np.hstack([fc7_NF, np.ones((len(fc7_NF), 1), np.float32)]).astype(np.float64)
    wanted = 4 * (np.eye(len(CLASSES))[batch.labels_N] - 0.25)
    ridge = centred.T @ centred + 1e-3 * np.trace(centred.T @ centred) / centred.shape[1] * np.eye(centred.shape[1])
    fitted = np.linalg.solve(ridge, centred.T @ wanted)
    weights["fc8.weight"] = np.ascontiguousarray(fitted[:-1].T.astype(np.float32))
    weights["fc8.bias"] = fitted[-1].astype(np.float32)
    conv4 = next(value for step, value in tensors(NARROW, weights, batch.x_NCHW) if step.name == "conv4/relu")
    channel = int(conv4.mean(axis=(0, 2, 3)).argmax())
    weights["conv4.weight"][channel] *= 3000
    weights["conv4.bias"][channel] *= 3000
    weights["conv5.weight"][:, channel] /= 3000
    save_checkpoint(folder / "model.safetensors", weights, plain.info)
    return load_checkpoint(folder / "model.safetensors")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Times by rule instead of by clock: every INT8 layer saves 0.1 of 2 ms, every INT4 one 0.15; grows with each comparison."""
    asked: list[tuple[str, ...]] = []

    def time_of(artifact: Any) -> int:
        plan = artifact.manifest.build["target"]["plan"]
        saved = {"fp32": 0.0, "int8": 0.1, "int4": 0.15}
        return int(1e6 * (2 - sum(saved[kind] for kind in plan.values())))

    def instead(self: Any, built: Any) -> list[list[list[int]]]:
        asked.append(tuple(artifact.path.name for artifact in built))
        rng = np.random.default_rng(len(asked))
        return [[(time_of(one) * rng.normal(1, 0.001, 20)).astype(int).tolist()] for one in built]

    monkeypatch.setattr(module._Search, "_measured", instead)
    return asked


def test_it_leaves_a_sensitive_layer_alone_where_plain_int8_fails(
    checkpoint: Checkpoint, images: ImageSet, tmp_path: Path, measured: list[tuple[str, ...]]
) -> None:
    exporter = exporter_in(tmp_path, checkpoint, images, target=this_machine())
    found = search_plan(exporter, "onnx", images, SETTINGS)
    assert found.labelled
    assert found.plain_drop > 0.2, "plain INT8 loses what the planted layer needs"
    assert found.plan[SENSITIVE] == "fp32"
    assert found.drop <= SETTINGS.max_drop
    # ONNX Runtime's integer convolution rounds its output too, so conv4, which writes the planted tensor, suffers as well
    touched = {"conv4", SENSITIVE}
    others = [kind for name, kind in found.plan.items() if name not in touched]
    assert set(others) <= {"int8", "int4"}
    assert found.plan["fc6"] == found.plan["fc7"] == "int4", "the faster of two types that keep the budget"
    alone = {(one.layer, one.type): one for one in found.changes}
    assert alone[SENSITIVE, "int8"].drop > 0.2
    assert not alone[SENSITIVE, "int8"].taken
    assert "would cost" in alone[SENSITIVE, "int8"].why
    assert max(one.drop for key, one in alone.items() if key[0] not in touched) <= SETTINGS.max_drop
    assert found.speedup_interval[0] > 1.5
    exporter.plan, exporter.max_drop, exporter.search = found.plan, SETTINGS.max_drop, records.to_builtins(found)
    artifact = exporter.export("onnx", "mixed")
    kept = load_artifact(artifact.path).manifest
    assert {layer.name: layer.built for layer in kept.layers} == found.plan
    assert kept.parity["tolerance"]["max_accuracy_drop"] == SETTINGS.max_drop
    assert kept.build["search"]["plan"] == found.plan


def test_a_search_goes_on_where_it_was_killed(
    checkpoint: Checkpoint,
    images: ImageSet,
    tmp_path: Path,
    measured: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class KilledError(Exception):
        pass

    rule = module._Search._measured

    def dies(self: Any, built: Any) -> Any:
        if len(measured) >= 5:
            raise KilledError
        return rule(self, built)

    with monkeypatch.context() as patch:
        patch.setattr(module._Search, "_measured", dies)
        with pytest.raises(KilledError):
            search_plan(exporter_in(tmp_path, checkpoint, images, target=this_machine()), "onnx", images, SETTINGS)
    (journal,) = (tmp_path / "cache/search").glob("*.jsonl")
    with journal.open("a", encoding="utf-8") as stream:
        stream.write('{"key": "cut sh')
    first = len(measured)
    found = search_plan(exporter_in(tmp_path, checkpoint, images, target=this_machine()), "onnx", images, SETTINGS)
    assert found.reused >= 5
    again = len(measured)
    assert first < again
    repeated = search_plan(exporter_in(tmp_path, checkpoint, images, target=this_machine()), "onnx", images, SETTINGS)
    assert len(measured) == again, "everything came from the journal"
    assert repeated.plan == found.plan
    assert not list((tmp_path / "artifacts").iterdir()), "no graph of the search is left"
    other = images.subset(range(len(images) - 1))
    search_plan(exporter_in(tmp_path, checkpoint, images, target=this_machine()), "onnx", other, SETTINGS)
    assert len(measured) > again, "other images: another journal"


def test_it_measures(checkpoint: Checkpoint, images: ImageSet, tmp_path: Path) -> None:
    search = module._Search(exporter_in(tmp_path, checkpoint, images, target=this_machine()), "onnx", images, SETTINGS)
    exact = dict.fromkeys(LAYER_NAMES, "fp32")
    ratio, (low, high) = search._compare(exact, {**exact, "fc6": "int8"})
    assert 0 < low <= ratio <= high
    first, second = search._samples(exact, {**exact, "fc6": "int8"})
    assert len(first) == len(second) == SETTINGS.rounds
    assert min(first[0]) > 10_000, "nanoseconds of a real inference"


def test_a_damaged_journal_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.put("a", [1])
    path.write_text(path.read_text() + "[]\nnot json\n" + json.dumps({"key": "b", "value": 2}), encoding="utf-8")
    again = Journal(path)
    assert (again.get("a"), again.get("b"), again.get("c")) == ([1], 2, None)
    again.put("c", 3)
    assert Journal(path).get("c") == 3
    assert Journal(path).get("b") == 2


def test_what_takes_no_plan_is_refused(checkpoint: Checkpoint, images: ImageSet, tmp_path: Path) -> None:
    exporter = exporter_in(tmp_path, checkpoint, images, target=this_machine())
    with pytest.raises(UserError, match="a plan per layer"):
        search_plan(exporter, "torchscript", images, SETTINGS)
    with pytest.raises(UserError, match="below 100 points"):
        SearchSettings(max_drop=-0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export --int8 fast", "one word, `auto`"),
        ("export auto", "one word, `auto`"),
        ("export --int8 auto", "writes one format"),
        ("export --format onnx --int8 --max-drop 1", "for --int8 auto"),
    ],
)
def test_mistakes(words: str, message: str, run_cli: Any) -> None:
    assert message in run_cli.refuses(*words.split())


def test_the_command_goes_on_from_the_journal(
    checkpoint: Checkpoint, images: ImageSet, image_folder: Path, run_cli: Any, measured: list[tuple[str, ...]]
) -> None:
    exporter = exporter_in(run_cli.folder, checkpoint, images, target=this_machine())
    exporter.settings = replace(exporter.settings, cache=run_cli.folder / CACHE)
    found = search_plan(exporter, "onnx", images, SearchSettings(max_drop=0.05))
    folder = image_folder / "train"
    result = run_cli(
        "export", "--format", "onnx", "--int8", "auto", "--max-drop", "5", "--checkpoint", checkpoint.path,
        "--images", folder, "--calibration", folder, "--method", "minmax", "--search-images", folder, "--quiet",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "conv5 fp32" in result.stdout
    assert "from the journal of an earlier search" in result.stdout
    manifest = load_artifact(run_cli.folder / "artifacts/alexnet_mixed.onnx").manifest
    assert manifest.precision == "mixed"
    assert {layer.name: layer.built for layer in manifest.layers} == found.plan
