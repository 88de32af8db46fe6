"""An export from its request: the source, the images, the search of a plan, and every artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from alexnet_edge import records
from alexnet_edge.artifact import Format, Plan
from alexnet_edge.export.exporter import Exporter, Outcome
from alexnet_edge.export.precision import CALIBRATED
from alexnet_edge.export.request import ExportRequest, Job, resolve
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.images.datasets import open_images
from alexnet_edge.progress import Reporter
from alexnet_edge.proof.recorded import calibration_images, validation_images


class FoundPlan(Protocol):
    """The type of each layer, and how it was chosen: `alexnet_edge.bench.search.SearchResult` is one."""

    @property
    def plan(self) -> Plan:
        """The type of each layer."""

    @property
    def max_drop(self) -> float:
        """Accuracy that may be lost; 0.01 is one point."""


def export_all(
    request: ExportRequest,
    *,
    search: Callable[[Exporter, Format], FoundPlan] | None = None,
    reporter: Reporter | None = None,
) -> Iterator[Outcome]:
    """Build and prove every artifact of a request; one that fails does not stop the others.

    Args:
        request: what is asked for.
        search: chooses the type of each layer; with `request.auto`, and only then.
        reporter: where progress goes.

    Raises:
        UserError: when an input cannot be used, this machine lacks an option, or the output folder cannot be written.
        DataError: when images are missing or cannot be read.
        CheckpointError: when there is no checkpoint.
    """
    job = resolve(request)
    exporter = _exporter(request, job, reporter)
    if job.table_version is not None:
        assert request.calibration.calibration_table is not None
        exporter.quantiser.write_table(request.calibration.calibration_table, job.table_version)
    if request.auto:
        assert search is not None, "`auto` needs a search"
        result = search(exporter, job.artifacts[0][0])
        exporter.plan, exporter.max_drop, exporter.search = result.plan, result.max_drop, records.to_builtins(result)
    yield from exporter.export_all(job.artifacts)


def _exporter(request: ExportRequest, job: Job, reporter: Reporter | None) -> Exporter:
    """The exporter of a request's artifacts, its source and images opened."""
    from alexnet_edge.export.graphs.source import checkpoint_from_onnx
    from alexnet_edge.network.load import load_checkpoint, newest_checkpoint

    if request.onnx is not None:
        checkpoint = checkpoint_from_onnx(request.onnx)
    else:
        checkpoint = load_checkpoint(request.checkpoint or newest_checkpoint(request.runs))
    limit, class_list = request.limit, request.class_list
    if request.images is not None:
        proof = open_images(request.images, limit=limit, classes=checkpoint.info.classes, class_list=class_list)
    else:
        recorded = validation_images(checkpoint)
        proof = recorded if limit is None else recorded.spread(limit)
    ranges = request.calibration
    images = None
    if any(precision in CALIBRATED for _, precision in job.artifacts):
        images = calibration_images(checkpoint, ranges.calibration, ranges.calibration_images, class_list)
    settings = ExportSettings(
        out=request.out,
        method=ranges.method,
        outputs=ranges.calibration_table is not None,
        equalise=request.corrections.equalise,
        correct_bias=request.corrections.correct_bias,
        engine=request.engine,
        runtime=request.runtime,
        target=job.target,
        lower_fp32=job.lower_fp32,
        threads=request.threads,
        on_bad_image=request.on_bad_image,
    )
    return Exporter(checkpoint, settings, proof_images=proof, calibration_images=images, reporter=reporter)
