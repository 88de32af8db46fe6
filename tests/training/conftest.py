"""What every test of training uses: a short run, and as many threads afterwards as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import narrow_network
import pytest
import torch

from alexnet_edge.training.recipe import TrainSettings


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """One thread, which is fastest for small networks on a busy machine; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def settings(image_folder: Path, tmp_path: Path) -> TrainSettings:
    """A run of two epochs of three steps, of a network small enough to train it many times."""
    return TrainSettings(data=str(image_folder), runs=str(tmp_path / "runs"), arch="tiny", **narrow_network.QUICK)
