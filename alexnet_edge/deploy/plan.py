"""What a deploy is asked to do, as data: the network, how it is built and measured, and which devices get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alexnet_edge.artifact import Precision
from alexnet_edge.environment import check_threads
from alexnet_edge.errors import UserError
from alexnet_edge.export.fields import require_choices

Target = Literal["onnx", "trt"]
"""`onnx`: ONNX Runtime on the device's processor. `trt`: a TensorRT engine, built there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """How the artifact is measured on the device."""

    seconds: float = 3.0
    """Least measuring time per batch; 0: no bench."""
    rounds: int = 3
    """Fresh processes."""
    batches: tuple[int, ...] = (1,)
    """Images per inference, as in 1,8."""
    percentile: float = 99.0
    """Highest percentile."""
    cold: bool = True
    """Also with the cache flushed."""
    roofline: bool = True
    """The device's bounds, and each layer's time."""
    power_mode: str | None = None
    """Set meanwhile; takes root on the device."""
    lock_clocks: bool = False
    """Lock clocks meanwhile; takes root on the device."""

    def __post_init__(self) -> None:
        if not 0 <= self.seconds <= 3600:
            raise UserError("--bench-seconds must be 0 to 3600", value=self.seconds, fix="leave it out for 3")
        if self.rounds < 1:
            raise UserError("--rounds must be 1 or more", value=self.rounds, fix="leave it out for 3")
        if not self.batches or min(self.batches) < 1:
            raise UserError("--batch must be 1 or more", value=self.batches, fix="write it as in 1,8")


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What shall serve: one artifact, in a format and a precision, proved on these images."""

    artifact: Path
    """ONNX file that `export --format onnx` wrote."""
    format: Target = "onnx"
    """onnx (ONNX Runtime) or trt (a TensorRT engine, built there)."""
    precision: Precision | None = None
    """None for the artifact's own."""
    source: Path | None = None
    """FP32 ONNX file to build from [the artifact itself, or alexnet_fp32.onnx beside it]."""
    images: str | None = None
    """Folder of the golden images [the checkpoint's validation data]."""
    limit: int = 200
    """So many of them, evenly spread over the classes."""
    class_list: Path | None = None
    """CSV file with wnid,index,name [classes.csv beside the images]."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `EngineOptions` that differ from their defaults."""
    threads: int | None = None
    """Processor threads on the device [all]."""
    bench: BenchOptions = field(default_factory=BenchOptions)
    wheelhouse: Path | None = None
    """Folder of wheels to send, for a device that reaches no package index."""

    def __post_init__(self) -> None:
        require_choices(self)
        if self.limit < 1:
            raise UserError("the golden set needs images", value=self.limit, fix="give --limit 1 or more")
        check_threads(self.threads)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a deploy behaves towards the device; nothing of it changes what is built."""

    keep: int = 3
    """Releases that stay there, besides the one that serves and the one before."""
    reconnect_s: float = 120.0
    """How long a broken connection is tried again; 0 gives up at once."""
    force: bool = False
    """Do everything again, as a new release."""
    reports: Path = Path("reports/deploy")
    """Folder of what is fetched."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise UserError("--keep must be 1 or more", value=self.keep, fix="leave it out for 3")
        if not 0 <= self.reconnect_s <= 86400:
            raise UserError("--reconnect-seconds must be 0 to 86400", value=self.reconnect_s, fix="leave it out")
