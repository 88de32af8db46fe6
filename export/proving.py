"""The proof of an export: every artifact must answer the proof images like the checkpoint.

A file that cannot run on this machine is proved by an ONNX file of which the same answers are expected, on ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alexnet_edge.artifact import Artifact, Precision, commit
from alexnet_edge.export.precision import EMULATED
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import sha256_file
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.progress import Reporter
from alexnet_edge.proof.evaluate import outputs_NK
from alexnet_edge.proof.parity import ParityReport, Tolerance, check_parity, parity_not_run, tolerance_of
from alexnet_edge.sessions import reference_session, runnable


@dataclass(slots=True)
class Prover:
    """Proves artifacts of one checkpoint; its answers, and the proof of a shared ONNX file, are computed once."""

    checkpoint: Checkpoint
    settings: ExportSettings
    reporter: Reporter
    images: ImageSet
    """The proof images; those that cannot be read leave the set when the answers are computed."""
    expected_NK: FloatArray | None = None
    """The checkpoint's answers to the images, `(N, K)` float32, once they are known."""
    _skipped: int = 0  # images that could not be used
    _reports: dict[str, ParityReport] = field(default_factory=dict)  # of ONNX files, by their hash

    def reference_NK(self) -> FloatArray:
        """The checkpoint's own answers on the proof images, `(N, K)` float32."""
        if self.expected_NK is None:
            self.reporter.start("reference answers", len(self.images))
            bad: list[Any] = []
            with reference_session(self.checkpoint, threads=self.settings.threads) as session:
                answers, used = outputs_NK(session, self.images, on_bad_image=self.settings.on_bad_image, bad=bad)
            self.images = self.images.subset(list(used)) if bad else self.images
            self._skipped = len(bad)
            self.expected_NK = answers
            self.reporter.finish(f"{len(answers)} images")
        return self.expected_NK

    def prove(
        self, candidate: Artifact, stand_in: Callable[[], Path] | None, max_drop: float | None = None
    ) -> dict[str, Any]:
        """The parity record of the manifest.

        Args:
            candidate: the artifact in its staging folder.
            stand_in: writes an ONNX file of which the same answers are expected: proved where `candidate` cannot run.
            max_drop: accuracy that it may lose, where it is another than its tolerance's; 0.01 is one point.
        """
        cannot_run = runnable(candidate)
        if cannot_run is not None:
            assert stand_in is not None, "what cannot run has an ONNX file to be proved instead"
            return self._prove_stand_in(candidate, stand_in(), cannot_run)
        tolerance = tolerance_of(candidate)
        if max_drop is not None:
            tolerance = replace(tolerance, max_accuracy_drop=max_drop)
        report = self._report(candidate, tolerance)
        if candidate.manifest.format == "onnx":
            self._reports[candidate.manifest.sha256] = report
        return report.to_json()

    def _prove_stand_in(self, candidate: Artifact, written: Path, cannot_run: str) -> dict[str, Any]:
        precision = candidate.manifest.precision
        emulated = precision in EMULATED
        key = sha256_file(written)
        if key not in self._reports:
            manifest = replace(
                candidate.manifest,
                format="onnx",
                runtime="onnxruntime",
                precision="fp32" if emulated else precision,
                build={},  # it runs on this machine, whatever it was built for
            )
            stand_in = commit(written, written.with_name("stand_in.onnx"), manifest)
            self._reports[key] = self._report(stand_in, tolerance_of(candidate), precision)
        report = self._reports[key]
        if not report.passed:
            return report.to_json()
        graph = f"an FP32 graph that rounds to {precision.upper()}" if emulated else "the graph in its precision"
        return {
            **parity_not_run(f"built, not run: {cannot_run}"),
            "stand_in": {"what": f"{graph}, on ONNX Runtime", **report.to_json()},
        }

    def _report(self, candidate: Artifact, tolerance: Tolerance, precision: Precision | None = None) -> ParityReport:
        reference_NK = self.reference_NK()
        manifest = candidate.manifest
        self.reporter.start(f"proving {manifest.format} {precision or manifest.precision}", None)
        report = check_parity(candidate, reference_NK, self.images, tolerance=tolerance, threads=self.settings.threads)
        self.reporter.finish("passed" if report.passed else "; ".join(report.reasons))
        return replace(report, images_skipped=self._skipped)
