"""What the tests of exports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet_edge.artifact import Precision
from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.network.load import load_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Checkpoint:
    """The narrow two-tower network with random weights; do not change them."""
    return load_checkpoint(tiny_checkpoint())


@pytest.fixture(scope="module")
def full_graph(
    tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Path]:
    """`full_graph("fp8")` is the file of the full-size network, whose engines have its size; do not change it."""
    folder = tmp_path_factory.mktemp("graphs")

    def write(precision: Precision) -> Path:
        path = folder / f"{precision}.onnx"
        if not path.exists():
            amax = dict.fromkeys(LAYER_NAMES, 4.0) if precision in ("int8", "fp8") else None
            full = load_checkpoint(tiny_checkpoint("two-tower"))
            write_onnx(onnx_from_checkpoint(full, precision=precision, amax=amax), path)
        return path

    return write
