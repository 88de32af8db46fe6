"""What a run shows: the curves and pictures that TensorBoard reads, also of a run that was stopped."""

from __future__ import annotations

import io
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from listener import Listener
from PIL import Image

from alexnet_edge.errors import InterruptedRunError, MissingComponentError
from alexnet_edge.network.filters import filter_grid
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.run import resume, train


def events(run: Path) -> Iterator[Any]:
    """Every event of every file, in the order in which TensorBoard reads them."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((run / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event()
            event.ParseFromString(data[12 : 12 + length])
            yield event
            data = data[16 + length :]


def curves(run: Path) -> dict[str, dict[int, float]]:
    """Value by step by name; what a resumed run does again replaces what was there from that step on."""
    values: dict[str, dict[int, float]] = {}
    for event in events(run):
        if event.HasField("session_log"):
            for curve in values.values():
                for step in [step for step in curve if step >= event.step]:
                    del curve[step]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                values.setdefault(value.tag, {})[event.step] = value.simple_value
    return values


def test_a_run_writes_its_curves_and_the_first_filters(settings: TrainSettings) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    result = train(replace(settings, tensorboard=True))
    recorded = curves(result.run)
    for name in ("loss", "accuracy", "lr", "gradient_norm", "images_per_s", "wait_share"):
        assert list(recorded[f"step/{name}"]) == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) and value > 0 for value in recorded["step/gradient_norm"].values())
    assert all(0 <= value < 1 for value in recorded["step/wait_share"].values())
    for epoch, row in enumerate(result.history):
        steps = range(3 * epoch + 1, 3 * epoch + 4)
        assert np.mean([recorded["step/loss"][step] for step in steps]) == pytest.approx(row.loss, rel=1e-4)
        assert np.mean([recorded["step/accuracy"][step] for step in steps]) == pytest.approx(row.accuracy, abs=1e-6)
        assert np.mean([recorded["step/gradient_norm"][step] for step in steps]) == pytest.approx(row.gradient_norm)
        assert recorded["step/lr"][steps[-1]] == pytest.approx(row.lr)
        for tag, value in (("epoch/val_top1", row.top1), ("epoch/val_loss", row.val_loss), ("epoch/loss", row.loss)):
            assert recorded[tag][steps[-1]] == pytest.approx(value)

    pictures = [value.image for event in events(result.run) for value in event.summary.value if value.tag == "conv1"]
    assert len(pictures) == 2
    if result.best.epoch == 2:
        weights = load_checkpoint(result.checkpoint).weights["conv1.weight"]
        with Image.open(io.BytesIO(pictures[1].encoded_image_string)) as image:
            assert np.array_equal(np.asarray(image), filter_grid(weights))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_curves_of_a_resumed_run_are_those_of_an_undisturbed_one(settings: TrainSettings, steps: int) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    settings = replace(settings, tensorboard=True)
    undisturbed = curves(train(settings).run)
    with pytest.raises(InterruptedRunError):
        train(replace(settings, name="stopped"), reporter=Listener(steps))
    result = resume(Path(settings.runs) / "stopped")
    resumed = curves(result.run)
    assert len(list((result.run / "tensorboard").iterdir())) == 2
    timed = {"step/images_per_s", "step/wait_share", "epoch/images_per_s", "epoch/wait_share"}
    assert set(resumed) == set(undisturbed)
    for name in set(resumed) - timed:
        assert resumed[name] == undisturbed[name], name


def test_without_tensorboard_nothing_is_written_and_its_want_is_said_at_once(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingComponentError, match=r"tensorboardX is not installed; run: pip install .*tensorboard"):
        train(replace(settings, tensorboard=True))
    assert not Path(settings.runs).exists(), "no run was begun"
    assert not (train(settings).run / "tensorboard").exists()


def test_filter_grid_shows_each_filter_from_black_to_white() -> None:
    filters = np.random.default_rng(0).normal(size=(7, 3, 4, 4)).astype(np.float32)
    filters[3] = 0.25
    grid = filter_grid(filters, zoom=2)
    assert grid.shape == (2 * (3 * 5 - 1), 2 * (3 * 5 - 1), 3)
    first = grid[:8:2, :8:2]
    scaled = (filters[0] - filters[0].min()) / np.ptp(filters[0]) * 255
    assert np.abs(first.transpose(2, 0, 1) - scaled).max() <= 0.5 + 1e-4
    assert (grid[10:18, :8] == 0).all(), "a filter without structure"
    assert (grid[-8:, -8:] == 128).all(), "no filter is there"
