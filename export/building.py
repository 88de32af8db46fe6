"""One artifact under construction: its file is written into a staging folder, and the precision of each layer read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_edge.artifact import SUFFIXES, Format, LayerPrecision, Plan, Precision, companion_path
from alexnet_edge.export.graphs.targets import NO_RANGES, LoweredRuntime, Target, target_record
from alexnet_edge.export.precision import CALIBRATED, onnx_precisions, require_precision
from alexnet_edge.export.quantiser import Quantiser
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import sha256_file, writing

if TYPE_CHECKING:
    from alexnet_edge.export.engines.features import EngineSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A finished file in the staging folder, before its proof."""

    path: Path
    runtime: str
    layers: tuple[LayerPrecision, ...]
    build: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    max_batch: int | None = None
    min_batch: int = 1
    stand_in: Callable[[], Path] | None = None
    """Writes an ONNX file of which the same answers are expected: proved where the file itself cannot run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """Builds one artifact."""

    settings: ExportSettings
    quantiser: Quantiser
    format: Format
    precision: Precision
    plan: Plan
    """The type of each layer."""
    runtime: LoweredRuntime | None
    """What the graph is lowered for; None for the portable graph."""
    spec: EngineSpec | None
    """Of an engine."""
    staging: Path

    def build(self) -> Built:
        """Write the file, after the calibration it needs.

        Raises:
            UserError: when no graph can be written for the plan.
            PrecisionError: when a layer was not built in the precision asked for.
            OutputError: when the folder cannot be written.
        """
        if self.precision in CALIBRATED and not (self.format == "trt" and self.settings.engine.calibrator):
            self.quantiser.calibration(self.precision)
        reporter = self.quantiser.reporter
        reporter.start(f"building {self.format} {self.precision}", None)
        builders: dict[Format, Callable[[], Built]] = {
            "torchscript": self._torch,
            "pt2": self._torch,
            "onnx": self._onnx,
            "openvino": self._openvino,
            "trt": self._engine,
        }
        with writing(self.staging):
            built = builders[self.format]()
        parts = filter(None, (built.path, companion_path(built.path, self.format)))
        reporter.finish(f"{sum(part.stat().st_size for part in parts) / 1e6:.1f} MB")
        return built

    @property
    def _target(self) -> Target:
        assert self.settings.target is not None, "what is lowered has a target"
        return self.settings.target

    def _torch(self) -> Built:
        from alexnet_edge.export.graphs import torchscript

        path = self.staging / f"building{SUFFIXES[self.format]}"
        write, read_back = torchscript.FORMATS[self.format]
        write(self.quantiser.checkpoint, path)
        layers = read_back(path, self.precision)
        require_precision(layers, f"{path.suffix} {self.precision}")
        return Built(path=path, runtime="torch", layers=layers)

    def _write_graph(self, path: Path, precision: Precision, runtime: LoweredRuntime | None) -> dict[str, Any]:
        """Write the ONNX graph, lowered for a runtime or portable; returns what the manifest says of it."""
        from alexnet_edge.export.graphs.lower import lowered_onnx
        from alexnet_edge.export.graphs.onnx import onnx_from_checkpoint, write_onnx

        source, build = self.quantiser.source(precision, self.plan, runtime and self._target.lowerings[runtime])
        lowered = {}
        if runtime is None:
            model = onnx_from_checkpoint(source, precision=precision, amax=self.quantiser.amax(precision))
        else:
            ranges = self.quantiser.calibration("int8") if "int8" in self.plan.values() else NO_RANGES
            model = lowered_onnx(source, self._target, self.plan, ranges, runtime=runtime)
            lowered = {"target": target_record(self._target, runtime, self.plan)}
        write_onnx(model, path)
        return {**build, "opset": model.opset_import[0].version, **lowered}

    def _elsewhere(self) -> Path:
        """The operators of the graph lowered for a target that this machine is not, to be proved on ONNX Runtime.

        The integers are the same on any processor that adds them in 32 bits.
        """
        path = self.staging / f"elsewhere_{self.precision}.onnx"
        self._write_graph(path, self.precision, "onnxruntime")
        return path

    def _emulation(self) -> Path:
        from alexnet_edge.export.graphs.onnx import write_emulation

        return write_emulation(self.quantiser.checkpoint, self.precision, self.staging)

    def _onnx(self) -> Built:
        path = self.staging / f"building_{self.precision}.onnx"
        build = self._write_graph(path, self.precision, self.runtime)
        layers = onnx_precisions(path, self.precision, None if self.runtime is None else self.plan)
        require_precision(layers, f"onnx {self.precision}")
        stand_in = self._emulation if self.runtime is None else self._elsewhere
        return Built(path=path, runtime="onnxruntime", layers=layers, build=build, stand_in=stand_in)

    def _openvino(self) -> Built:
        from alexnet_edge.export.graphs.openvino import GRAPHS, write_openvino

        kind = GRAPHS.get(self.precision, self.precision)
        graph = self.staging / f"graph_{kind}.onnx"
        build = self._write_graph(graph, kind, self.runtime)
        if self.runtime is None:
            del build["opset"]  # the manifest of a portable graph's file has none
        source = sha256_file(graph)
        written = write_openvino(
            graph,
            self.staging / "building.xml",
            self.precision,
            source_sha256=source,
            plan=self.plan,
            lowering=self.runtime and self._target.lowerings[self.runtime],
        )
        return Built(
            path=self.staging / "building.xml",
            runtime="openvino",
            layers=written.layers,
            build={**build, **written.build},
            sources={f"alexnet_{kind}.onnx": source},
            stand_in=self._elsewhere,
        )

    def _engine(self) -> Built:
        from alexnet_edge.export.engines.engine import EngineBuild

        assert self.spec is not None, "an engine has one"
        source, build = self.quantiser.source(self.precision, self.plan, None)
        files = EngineBuild(
            checkpoint=source,
            spec=self.spec,
            staging=self.staging,
            ranges=self.quantiser.amax,
            table=self.quantiser.table,
            images=lambda: self.quantiser.images,
            on_bad_image=self.settings.on_bad_image,
            cache=self.settings.cache / "calibration",
            reporter=self.quantiser.reporter,
        ).run()
        return Built(
            path=files.engine,
            runtime=files.runtime,
            layers=files.built.layers,
            build={**files.built.build, **build},
            sources={name: sha256_file(path) for name, path in files.sources.items()},
            min_batch=self.spec.options.batches[0],
            max_batch=self.spec.options.batches[2],
            stand_in=files.stand_in,
        )
