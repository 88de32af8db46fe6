"""An engine built with TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

from pathlib import Path

from alexnet_edge.artifact import Precision
from alexnet_edge.export.engines.engine import check_engine
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.engines.tensorrt import BuiltEngine, build_engine
from alexnet_edge.progress import QuietReporter


def build_rtx(
    graph: Path, engine: Path, precision: Precision, weight_bytes: int = 1, gpus: tuple[str, ...] = ()
) -> BuiltEngine:
    """Build from a graph with the input size of AlexNet, for these compute capabilities."""
    spec = check_engine("rtx", EngineOptions(compute_capability=gpus), precision)
    return build_engine(
        graph, engine, spec, weight_bytes=weight_bytes, size=227, calibrator=None, reporter=QuietReporter()
    )
