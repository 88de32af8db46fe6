"""`alexnet-edge bisect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from alexnet_edge import records
from alexnet_edge.cli.common import (
    ArtifactsFolder,
    BadImage,
    CheckpointFile,
    Images,
    Json,
    Threads,
    artifacts_in,
    fields_of,
    print_result,
    source_of,
)
from alexnet_edge.errors import GateError, UserError

if TYPE_CHECKING:
    from alexnet_edge.proof.bisect import Bisection


def bisect(
    artifacts: Annotated[list[Path] | None, Parameter(help="ONNX and OpenVINO artifacts [all in artifacts/].")] = None,
    /,
    *,
    checkpoint: CheckpointFile = None,
    images: Annotated[Images, fields_of()] = Images(),
    folder: ArtifactsFolder = Path("artifacts"),
    threads: Threads = None,
    on_bad_image: BadImage = "fail",
    json: Json = False,
) -> None:
    """Name the first layer of an artifact that is out of tolerance, and what to do about it."""
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.proof import show_bisections
    from alexnet_edge.proof.bisect import IMAGES, bisect
    from alexnet_edge.proof.observe import OBSERVABLE
    from alexnet_edge.sessions import runnable

    paths = artifacts or artifacts_in(folder)
    results: list[tuple[Path, Bisection | str]] = []
    for path in paths:
        artifact = load_artifact(path)
        reason = runnable(artifact)
        if reason is None and artifact.manifest.format not in OBSERVABLE and len(paths) > 1:
            reason = f"{artifact.manifest.format} files have no tensors to look at by name"
        if reason is not None:
            results.append((path, reason))
            continue
        reference = source_of(artifact, checkpoint)
        bisection = bisect(
            artifact,
            reference,
            images.open_for(reference, limited=False),
            limit=IMAGES if images.limit is None else images.limit,
            threads=threads,
            on_bad_image=on_bad_image,
        )
        results.append((path, bisection))
    print_result(
        json,
        {
            str(path): {"passed": None, "reason": result} if isinstance(result, str) else records.to_builtins(result)
            for path, result in results
        },
        lambda: show_bisections(results),
    )
    _require_passed(results)


def _require_passed(results: list[tuple[Path, Bisection | str]]) -> None:
    for path, result in results:
        if not isinstance(result, str) and not result.passed:
            assert result.first is not None, "it has not passed"
            raise GateError(f"{path}: {result.first.layer} is the first layer out of tolerance ({result.first.name})")
    if all(isinstance(result, str) for _, result in results):
        raise UserError(str(results[0][1]), value=results[0][0], fix="look at the ONNX or OpenVINO file instead")
