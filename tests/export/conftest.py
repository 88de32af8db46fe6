"""What the tests of exports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.load import load_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    """The narrow two-tower network with random weights; do not change them."""
    return load_checkpoint(tiny_checkpoint())
