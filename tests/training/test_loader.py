"""`bench --loader`: what it compares, that it tells a slow feed from a slow step, and what it refuses."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli

from alexnet_edge.environment import usable_cpus
from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.images.datasets import open_split
from alexnet_edge.network.layers import architecture
from alexnet_edge.progress import QuietReporter
from alexnet_edge.training.feed_speed import Way, _timed, loader_verdict, measure_loader, ways
from alexnet_edge.training.recipe import LoaderSettings

Batch = tuple[torch.Tensor, torch.Tensor]


def measure(folder: Path, **settings: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"batch": 8, "seconds": 0.05, "rounds": 2, "device": "cpu", "threads": 1, **settings}
    images, arch = open_split(folder, "train"), architecture("tiny", 4)
    return measure_loader(images, arch, LoaderSettings(**options), command=["x"], reporter=QuietReporter())


def test_every_way_is_measured_in_every_round(image_folder: Path) -> None:
    result = measure(image_folder, workers=(0, 1))
    settings = {**result["settings"], "workers": [0, 1]}
    assert json.loads(json.dumps(result, allow_nan=False)) == {**result, "settings": settings}
    labels = ["training thread", "training thread", "1 thread", "1 thread", "1 process"]
    kept = [False, True, False, True, False]
    assert [(row["label"], row["kept"]) for row in result["rows"]] == list(zip(labels, kept, strict=True))
    assert len(result["step_images_per_s"]) == 2
    for row in result["rows"]:
        assert len(row["feed_images_per_s"]) == len(row["training_images_per_s"]) == len(row["wait_share"]) == 2
        assert all(value > 0 for value in row["feed_images_per_s"] + row["training_images_per_s"])
        assert all(0 <= value < 1 for value in row["wait_share"])
    assert result["data"] == {"source": str(image_folder), "images": 24}
    assert result["environment"]["cpus"] == usable_cpus()


def test_ways_on_a_gpu_are_tried_with_light_on_both_sides() -> None:
    compared = ways(LoaderSettings(workers=(4,), device="cuda"))
    assert Way(pool="processes", workers=4, augment_on="device", kept=False) in compared
    assert len(compared) == len(set(compared)) == 6
    assert compared[2].label == "4 threads, light on the device"
    assert {way.workers for way in ways(LoaderSettings())} == {usable_cpus()}


@pytest.mark.parametrize(("feed_s", "step_s"), [(0.03, 0.0), (0.0, 0.03)])
def test_waiting_is_told_from_working(feed_s: float, step_s: float) -> None:
    closed = []

    def batches() -> Generator[Batch, None, None]:
        try:
            for _ in itertools.count():
                time.sleep(feed_s)
                yield torch.zeros(2), torch.zeros(2)
        finally:
            closed.append(1)

    images_per_s, wait_share = _timed(batches(), lambda x, labels_N: time.sleep(step_s), seconds=0.2)
    assert (wait_share > 0.5) == (feed_s > 0)
    assert 0 < images_per_s < 2 / 0.03
    assert closed == [1], "no worker goes on into the next measurement"


def test_verdict_is_of_the_way_that_trains_fastest() -> None:
    rows = [
        {"label": "1 thread", "kept": False, "training_images_per_s": [5.0, 6.0, 7.0], "wait_share": [0.0, 0.0, 0.0]},
        {"label": "2 threads", "kept": True, "training_images_per_s": [8.0, 9.0, 1.0], "wait_share": [0.2, 0.3, 0.1]},
    ]
    assert loader_verdict({"rows": rows}) == (
        "the feed holds training up: with 2 threads, images kept, steps wait 20.0% of their time"
    )
    rows[1]["wait_share"] = [0.02, 0.01, 0.9]
    assert "is not the bottleneck" in loader_verdict({"rows": rows})


def test_settings_out_of_range_are_refused(image_folder: Path) -> None:
    for change, text in (
        ({"batch": 0}, "batch must be 1 or more: 0"),
        ({"rounds": 0}, "rounds must be 1 or more: 0"),
        ({"workers": (2, -1)}, "workers must be 0 or more: -1"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
    ):
        with pytest.raises(UserError, match=text):
            measure(image_folder, **change)
    if not torch.cuda.is_available():
        with pytest.raises(MissingComponentError, match="no CUDA GPU here; use --device cpu"):
            measure(image_folder, device="cuda")


def test_command_line(image_folder: Path, run_cli: Cli) -> None:
    options = "--arch torchvision --batch 2 --workers 0 --seconds 0.01 --rounds 1 --device cpu --images"
    result = run_cli("bench", "loader", *options.split(), image_folder)
    assert result.returncode == 0, result.stderr
    first, *_ = result.stdout.splitlines()
    assert first.startswith("The feed ")
    assert "training thread  decoded" in result.stdout
    record = json.loads((run_cli.folder / "reports/loader.json").read_text())
    assert record["architecture"] == "torchvision"
    assert record["verdict"] in first[:1].lower() + first[1:]


def test_command_line_refuses_what_does_not_belong_together(run_cli: Cli) -> None:
    assert "no such option: --scenario" in run_cli.refuses("bench", "loader", "--scenario", "all")
    assert "--batch takes a whole number: 1,8" in run_cli.refuses("bench", "loader", "--batch", "1,8")
    assert "write: alexnet-edge bench loader --workers" in run_cli.refuses("bench", "--workers", "2")
