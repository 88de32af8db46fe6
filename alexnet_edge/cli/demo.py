"""`alexnet-edge demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from alexnet_edge.cli.common import ArtifactsFolder, Quiet, Runs, Threads


def demo(
    *,
    runs: Runs = Path("runs"),
    folder: ArtifactsFolder = Path("artifacts"),
    reports: Annotated[Path, Parameter(help="Folder of the report.")] = Path("reports"),
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """The whole path on built-in images: train, export to everything, prove, measure, report. Four to nine minutes."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.bench import show_demo
    from alexnet_edge.demo import run_demo

    with console.reporter(quiet) as reporter:
        result = run_demo(runs=runs, artifacts=folder, reports=reports, threads=threads, reporter=reporter)
    show_demo(result)
