"""How an export writes and proves: the same for each of its artifacts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.export.graphs.targets import Target
from alexnet_edge.export.quantising.calibrate import Method
from alexnet_edge.images.datasets import OnBadImage
from alexnet_edge.nvidia.libraries import Runtime

CACHE = Path(".alexnet-edge")
"""Where calibration histograms and generated checkpoints are kept, by content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSettings:
    """What a request comes to on this machine, but for the artifacts and the images."""

    out: Path
    """Folder of the artifacts."""
    method: Method = "entropy"
    """How calibration chooses ranges."""
    outputs: bool = False
    """Calibrate what a calibration table for TensorRT needs, although no engine is built from one."""
    equalise: bool = False
    """Bring channels to like ranges before INT8: see `alexnet_edge.export.quantising.corrections`."""
    correct_bias: bool = False
    """Take the mean error of INT8 and INT4 layers off their biases."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    runtime: Runtime | None = None
    """What builds TensorRT engines; by default the best on this machine."""
    target: Target | None = None
    """Where what is lowered for a processor will run; without one every graph is the portable one."""
    lower_fp32: bool = False
    """Lower FP32 for it, too. Else that file stays the portable graph that further exports are made from."""
    threads: int | None = None
    """Processor threads of calibration and proof [all]."""
    on_bad_image: OnBadImage = "fail"
    cache: Path = CACHE
    """Folder for calibration histograms."""

    @property
    def ranges_of_outputs(self) -> bool:
        """Whether the ranges of outputs are needed: for a calibration table, or by a processor's integer operators."""
        lowered = self.target is not None and bool(self.target.lowerings)
        return self.outputs or self.engine.calibrator == "table" or lowered
