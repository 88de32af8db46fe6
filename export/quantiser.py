"""The ranges, the corrections and the audit of one export; each pass over the images is made once and serves every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from alexnet_edge import records
from alexnet_edge.artifact import Format, Plan, Precision
from alexnet_edge.export.graphs.targets import Lowering
from alexnet_edge.export.precision import CALIBRATED, CORRECTED
from alexnet_edge.export.quantising.calibrate import Calibration, Collecting, calibrate
from alexnet_edge.export.quantising.corrections import IMAGES, MeanInputs, channel_peaks, corrected, mean_inputs
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import write_text
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.equalise import equalised, steps_for, to_text
from alexnet_edge.progress import Reporter
from alexnet_edge.proof.recorded import calibration_images


class Quantiser:
    """What INT8 and FP8 need of the calibration images."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: ExportSettings,
        reporter: Reporter,
        *,
        images: ImageSet | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """By default `images` are those of the checkpoint's training data; `calibration` has ranges that were chosen elsewhere."""
        self.checkpoint, self.settings, self.reporter = checkpoint, settings, reporter
        self._images, self._elsewhere = images, calibration
        self._calibrations: dict[tuple[str, bool, str], Calibration] = {}
        self._means: dict[tuple[str, bool], MeanInputs] = {}
        self._audits: dict[str, Any] = {}  # records, by the table's hash
        self._how = Collecting(threads=settings.threads, on_bad_image=settings.on_bad_image, reporter=reporter)

    @cached_property
    def images(self) -> ImageSet:
        """The images that ranges are taken from."""
        return self._images or calibration_images(self.checkpoint, None, None)

    @property
    def corrections(self) -> list[str]:
        """What is changed in the network before INT8, by the names of the options."""
        options = {"equalise": self.settings.equalise, "correct-bias": self.settings.correct_bias}
        return [name for name, on in options.items() if on]

    def calibration(self, precision: Precision = "int8") -> Calibration:
        """The ranges of every artifact of this precision.

        INT8 takes the method of the settings; FP8, whose steps grow with the value, represents the largest value seen.
        """
        if self._elsewhere is not None:
            return self._elsewhere
        method = "minmax" if precision == "fp8" else self.settings.method
        outputs = self.settings.ranges_of_outputs and precision != "fp8"
        network = self._equalised[0] if precision in CORRECTED else self.checkpoint
        key = (method, outputs, network.sha256)
        if key not in self._calibrations:
            self._calibrations[key] = calibrate(
                network,
                self.images,
                method=method,
                cache=self.settings.cache / "calibration",
                outputs=outputs,
                how=self._how,
            )
        return self._calibrations[key]

    def amax(self, precision: Precision) -> Mapping[str, float] | None:
        """Largest represented magnitude at each layer's input; None where the precision has no ranges."""
        return self.calibration(precision).amax if precision in CALIBRATED else None

    def source(self, precision: Precision, plan: Plan, lowering: Lowering | None) -> tuple[Checkpoint, dict[str, Any]]:
        """What is written: the checkpoint, or that with its corrections; and `build["corrections"]` of the manifest.

        `plan` is the type of each layer, `lowering` how the graph is written; None for the portable one.
        """
        if not self.corrections or precision not in CORRECTED or set(plan.values()) == {"fp32"}:
            return self.checkpoint, {}
        ranges = self.calibration("int8")
        network, record = self._equalised
        if self.settings.correct_bias:
            key = (ranges.table_sha256, lowering is None)
            if key not in self._means:
                self._means[key] = mean_inputs(network, self.images.spread(IMAGES), ranges, lowering, self._how)
            network, largest = corrected(network, plan, self._means[key], lowering)
            record = {**record, "bias": largest}
        return network, {"corrections": record}

    @cached_property
    def _equalised(self) -> tuple[Checkpoint, dict[str, Any]]:
        """What is calibrated for INT8: the network, equalised where that is on, and the steps for the manifest."""
        if not self.settings.equalise:
            return self.checkpoint, {}
        peaks = channel_peaks(self.checkpoint, self.images.spread(IMAGES), self._how)
        steps = steps_for(self.checkpoint, peaks)
        return equalised(self.checkpoint, steps), {"equalised": to_text(steps)}

    def table(self, version: str, for_dla: bool = False) -> str:
        """The INT8 ranges as a calibration table that TensorRT `version` (`10.3.0`) reads, for a DLA's graph or any other."""
        from alexnet_edge.export.engines.calibrators import calibration_table, table_header

        ranges, arch = self.calibration(), self.checkpoint.info.arch
        return calibration_table(arch, ranges.amax, ranges.output_amax, header=table_header(version), for_dla=for_dla)

    def write_table(self, path: Path, version: str) -> None:
        """Write `table`.

        Raises:
            DataError: when there is no image to calibrate on.
            OutputError: when the file cannot be written.
        """
        write_text(path, self.table(version))
        self.reporter.note(f"calibration table for TensorRT {version}: {path}")

    def record(self, format: Format, precision: Precision, evaluation: ImageSet) -> Mapping[str, Any] | None:
        """What the manifest says of the calibration, audited against the images of the evaluation."""
        if precision not in CALIBRATED:
            return None
        calibrator = self.settings.engine.calibrator
        if format == "trt" and calibrator in ("entropy2", "minmax"):
            return {
                "method": f"TensorRT {calibrator}",
                "num_images": len(self.images),
                "images_sha256": self.images.content_hash(),
                "source": self.images.source,
            }
        calibration = self.calibration(precision)
        if self._elsewhere is not None:  # whose images were audited where they are
            return calibration.to_json()
        return {**calibration.to_json(), "audit": self._audit(calibration, evaluation)}

    def _audit(self, calibration: Calibration, evaluation: ImageSet) -> Any:
        from alexnet_edge.export.quantising.audit import audit

        key = calibration.table_sha256
        if key not in self._audits:
            self.reporter.start("auditing the calibration", None)
            audited = audit(calibration, self.images, evaluation, classes=self.checkpoint.info.classes)
            self._audits[key] = records.to_builtins(audited)
            self.reporter.finish(f"{len(audited.warnings)} warnings")
        return self._audits[key]
