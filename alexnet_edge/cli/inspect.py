"""`alexnet-edge inspect`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from alexnet_edge.cli.common import Json, print_result
from alexnet_edge.errors import GateError, UserError


def inspect(
    file: Annotated[Path | None, Parameter(help="Checkpoint or artifact.")] = None,
    /,
    *,
    arch: Annotated[str | None, Parameter(help="Architecture to tabulate [one-tower].")] = None,
    classes: Annotated[int | None, Parameter(help="Number of classes [1000, or the file's].")] = None,
    batch: Annotated[int, Parameter(help="Images per inference.")] = 1,
    target: Annotated[
        str | None,
        Parameter(
            name="--for",
            help="Lint any ONNX file for tensorrt, tensorrt-8.6, tensorrt-10, tensorrt-11, rtx or dla instead.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Shapes, parameters, multiply-adds and bytes per layer; of a file also where it comes from."""
    if target is not None:
        _lint(file, target, json)
        return
    from alexnet_edge.cli.show.export import show_network
    from alexnet_edge.network.layers import DEFAULT_ARCHITECTURE, architecture, layer_costs

    facts: dict[str, Any] = {}
    name, number = arch or DEFAULT_ARCHITECTURE, classes or 1000
    if file is not None:
        if arch is not None or classes is not None:
            raise UserError(
                "the file says its own architecture and classes", value=file, fix="leave --arch and --classes out"
            )
        facts = _facts_of(file)
        name, number = facts["architecture"], len(facts["classes"])
    elif classes is not None and classes < 1:
        raise UserError("a network needs at least one class", value=classes, fix="give 1 or more")
    network = architecture(name, number)
    costs = layer_costs(network, batch=batch)
    print_result(
        json,
        {**facts, "architecture": name, "batch": batch, "costs": [asdict(cost) for cost in costs]},
        lambda: show_network(network, costs, batch, facts),
    )


def _facts_of(file: Path) -> dict[str, Any]:
    from alexnet_edge import records
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.network.load import CHECKPOINT_SUFFIXES, load_checkpoint

    if file.suffix in CHECKPOINT_SUFFIXES:
        checkpoint = load_checkpoint(file)
        return {"file": str(file), "sha256": checkpoint.sha256, **records.to_builtins(checkpoint.info)}
    return {"file": str(file), **records.to_builtins(load_artifact(file).manifest)}


def _lint(file: Path | None, target: str, json: bool) -> None:
    from alexnet_edge.cli.show.export import show_lint
    from alexnet_edge.export.lint import TARGETS, lint

    if target not in TARGETS:
        raise UserError("--for has no such choice", value=target, fix=f"choose one of {', '.join(TARGETS)}")
    if file is None:
        raise UserError("no file to lint", fix=f"alexnet-edge inspect --for {target} MODEL.onnx")
    report = lint(file, target)
    print_result(json, {"file": str(file), "target": target, **asdict(report)}, lambda: show_lint(file, target, report))
    errors = sum(finding.severity == "error" for finding in report.findings)
    if errors:
        raise GateError(f"{file}: {errors} {'error' if errors == 1 else 'errors'} for {target}")
