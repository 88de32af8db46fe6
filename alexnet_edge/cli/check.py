"""`alexnet-edge check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from alexnet_edge import records
from alexnet_edge.cli.common import (
    ArtifactsFolder,
    BadImage,
    CheckpointFile,
    Images,
    Json,
    Running,
    Source,
    artifacts_in,
    chosen_device,
    fields_of,
    print_result,
    source_of,
)
from alexnet_edge.errors import GateError, UserError


def check(
    artifacts: Annotated[list[Path] | None, Parameter(help="Artifacts [all in artifacts/].")] = None,
    /,
    *,
    checkpoint: CheckpointFile = None,
    images: Annotated[Images, fields_of()] = Images(),
    folder: ArtifactsFolder = Path("artifacts"),
    running: Annotated[Running, fields_of(without="trust")] = Running(),
    on_bad_image: BadImage = "fail",
    preprocessing: Annotated[
        bool, Parameter(help="Compare decoding and resizing by PIL, OpenCV and torchvision instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Prove again that artifacts give their checkpoint's answers, on any images."""
    if preprocessing:
        _compare_preprocessing(artifacts or [], checkpoint, images, running.threads, on_bad_image, json)
        return
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.proof import show_parity
    from alexnet_edge.proof.parity import ParityReport, check_parity
    from alexnet_edge.sessions import runnable

    reports: list[tuple[Path, ParityReport | str]] = []
    for path in artifacts or artifacts_in(folder):
        artifact = load_artifact(path)
        reason = runnable(artifact)
        if reason is not None:
            reports.append((path, reason))
            continue
        reference = source_of(artifact, checkpoint)
        report = check_parity(
            artifact,
            reference,
            images.open_for(reference),
            device=chosen_device(running.device),
            threads=running.threads,
            on_bad_image=on_bad_image,
        )
        reports.append((path, report))
    print_result(
        json,
        {
            str(path): {"verdict": "not run", "reasons": [report]} if isinstance(report, str) else report.to_json()
            for path, report in reports
        },
        lambda: show_parity(reports),
    )
    failed = [path for path, report in reports if not isinstance(report, str) and not report.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(reports)} artifacts do not give the checkpoint's answers")
    if all(isinstance(report, str) for _, report in reports):
        raise UserError(str(reports[0][1]), value=reports[0][0], fix="check it on a machine that can run it")


def _compare_preprocessing(
    paths: list[Path],
    checkpoint: Path | None,
    images: Images,
    threads: int | None,
    on_bad_image: BadImage,
    json: bool,
) -> None:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.proof import show_preprocessing
    from alexnet_edge.proof.decoders import IMAGES, compare_preprocessing

    if len(paths) > 1:
        raise UserError("preprocessing is compared for one artifact", value=len(paths), fix="name one, or none")
    artifact = load_artifact(paths[0]) if paths else None
    reference = Source(checkpoint=checkpoint).load() if artifact is None else source_of(artifact, checkpoint)
    report = compare_preprocessing(
        reference,
        images.open_for(reference, limited=False),
        artifact=artifact,
        threads=threads,
        on_bad_image=on_bad_image,
        limit=IMAGES if images.limit is None else images.limit,
    )
    print_result(json, records.to_builtins(report), lambda: show_preprocessing(report))
