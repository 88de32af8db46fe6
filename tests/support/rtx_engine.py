"""TensorRT-RTX, which needs no GPU to parse a graph and to build an engine; a test that uses it is skipped without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def library() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: its parser cannot be asked")


def _listener() -> Any:
    trt = library()

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what the parser complains about."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.complaints: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                self.complaints.append(message)

    return Listener()


class Parsed:
    """What the parser makes of a file: a strongly typed network. Keep it as long as the network."""

    def __init__(self, model: Path | bytes) -> None:
        trt = library()
        self._listener = _listener()
        self._of_builder = _listener()  # another: the library tells a builder's logger that it keeps an earlier one
        self._builder = trt.Builder(self._of_builder)
        self.network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, self._listener)
        self.accepted = (
            self.parser.parse(model) if isinstance(model, bytes) else self.parser.parse_from_file(str(model))
        )
        self.complaints: list[str] = self._listener.complaints
        self.reasons = "; ".join(self.parser.get_error(index).desc() for index in range(self.parser.num_errors))

    @property
    def layers(self) -> list[Any]:
        return [self.network.get_layer(index) for index in range(self.network.num_layers)]

    def types(self, kind: str) -> list[str]:
        """Types of what the layers of a kind put out."""
        return [layer.get_output(0).dtype.name for layer in self.layers if layer.type.name == kind]
