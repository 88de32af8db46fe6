"""The whole path on the built-in images: train, export to everything this machine can write, prove, measure, report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_edge.bench.report.report import write_report
from alexnet_edge.bench.rounds.run import run_bench
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.errors import GateError
from alexnet_edge.export.exporter import Exporter, Outcome
from alexnet_edge.export.graphs.targets import this_machine_or_none
from alexnet_edge.export.selection import every_artifact
from alexnet_edge.export.settings import ExportSettings
from alexnet_edge.files import write_json
from alexnet_edge.network.checkpoint import read_history
from alexnet_edge.network.load import load_checkpoint
from alexnet_edge.progress import Reporter
from alexnet_edge.proof.recorded import validation_images
from alexnet_edge.training.recipe import TrainSettings
from alexnet_edge.training.run import train

LEAST_TOP1 = 0.9
"""Validation accuracy below which the demo says that training failed."""

MEASURE = MeasureSettings(batches=(1, 8), percentile=90.0, rounds=2, min_seconds=1.0, max_seconds=20.0)
"""Short, for a first look; `alexnet-edge bench` measures p99."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demo leaves."""

    checkpoint: Path
    top1: float
    """Validation accuracy, 0 to 1."""
    outcomes: Sequence[Outcome]
    bench: Mapping[str, Any]
    """As `BenchResult.to_json`."""
    report: Path
    seconds: float


def run_demo(*, runs: Path, artifacts: Path, reports: Path, threads: int | None, reporter: Reporter) -> DemoResult:
    """Train on the synthetic set, export, prove, measure and write the report.

    Raises:
        GateError: when the network learned too little, or an artifact failed its proof.
        MissingComponentError: when a library of the extra `all` is not installed.
    """
    start = time.monotonic()
    trained = train(TrainSettings(runs=str(runs), threads=threads, keep=0), reporter=reporter)
    if (top1 := trained.best.top1) < LEAST_TOP1:
        raise GateError(f"training reached {top1:.1%} top-1 on the synthetic set, the demo expects {LEAST_TOP1:.0%}")
    checkpoint = load_checkpoint(trained.checkpoint)
    target = this_machine_or_none()
    settings = ExportSettings(out=artifacts, target=target, threads=threads)
    exporter = Exporter(checkpoint, settings, proof_images=validation_images(checkpoint), reporter=reporter)
    outcomes = list(exporter.export_all(every_artifact(target)))
    paths = [outcome.artifact.path for outcome in outcomes if outcome.artifact is not None]
    measured = run_bench(
        [trained.checkpoint, *paths],
        MEASURE,
        images=exporter.prover.images,
        out=reports / "demo.json",
        command=["alexnet-edge", "demo"],
        reporter=reporter,
    ).to_json()
    report = write_report(
        reports / "demo.html",
        bench=measured,
        checkpoint_info=checkpoint.info,
        history=read_history(trained.checkpoint),
        filters_OCHW=checkpoint.weights["conv1.weight"],
        commands=["make demo"],
        title="AlexNet on the edge: the demo",
    )
    write_json(reports / "demo-export.json", [outcome.to_json() for outcome in outcomes])
    failed = [str(outcome.error) for outcome in outcomes if isinstance(outcome.error, GateError)]
    if failed:
        raise GateError("; ".join(failed))
    return DemoResult(
        checkpoint=trained.checkpoint,
        top1=top1,
        outcomes=outcomes,
        bench=measured,
        report=report,
        seconds=time.monotonic() - start,
    )
