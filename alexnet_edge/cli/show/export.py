"""Print exports, layer tables, findings of the lint, searches and calibration sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from alexnet_edge.bench.report.numbers import show, show_percent
from alexnet_edge.errors import MissingComponentError
from alexnet_edge.network.layers import LAYER_NAMES, Architecture, LayerCost

if TYPE_CHECKING:
    from alexnet_edge.artifact import Artifact, Manifest
    from alexnet_edge.bench.search import Change, SearchResult
    from alexnet_edge.export.exporter import Outcome
    from alexnet_edge.export.lint import LintReport
    from alexnet_edge.export.quantising.sweep import Sweep, SweepRow
    from alexnet_edge.export.triton import TritonModel
from alexnet_edge.cli.show.base import figure_table, output, styled, table_of


def show_exports(outcomes: Sequence[Outcome]) -> None:
    """One line per artifact: its proof and its figures; then what was not written, and why."""
    console = output()
    written = [(outcome, outcome.artifact) for outcome in outcomes if outcome.artifact is not None]
    columns: dict[str, Callable[[tuple[Outcome, Artifact]], str]] = {
        "artifact": lambda pair: pair[0].label,
        "file": lambda pair: escape(str(pair[1].path)),
        "built as": lambda pair: _built_as(pair[1].manifest),
        "proof": lambda pair: styled(str(pair[1].manifest.parity["verdict"])),
        "MB": lambda pair: f"{pair[1].manifest.bytes / 1e6:.1f}",
        "top-1 agree %": lambda pair: show_percent(_figure(pair[1], "top1_agreement")),
        "max abs error": lambda pair: show(_figure(pair[1], "max_abs_error"), ".1e"),
        "top-1 %": lambda pair: show_percent(_figure(pair[1], "candidate_accuracy")),
    }
    if written:
        console.print(table_of(columns, written, left=4))
    engines = [(outcome.label, artifact.manifest) for outcome, artifact in written if outcome.format == "trt"]
    if engines:
        console.print()
        console.print(_layer_table(engines))
    notes: dict[str, list[str]] = {}
    for label, manifest in engines:
        build = manifest.build
        for text in (f"layers read from {build['proof']}", *build["fallback"], *build["warnings"]):
            notes.setdefault(str(text), []).append(label)
    for outcome in outcomes:
        for text in _notes_of(outcome):
            notes.setdefault(text, []).append(outcome.label)
    for note, labels in notes.items():
        console.print(f"[bold]{', '.join(labels)}[/]: {escape(note)}")


def _figure(artifact: Artifact, name: str) -> float | None:
    value: float | None = artifact.manifest.parity.get("figures", {}).get(name)
    return value


def _built_as(manifest: Manifest) -> str:
    return f"{', '.join(sorted({layer.built for layer in manifest.layers}))} ({len(manifest.layers)} of 8 layers)"


def _notes_of(outcome: Outcome) -> Iterator[str]:
    """What weakens the proof of an artifact, or why there is none."""
    if outcome.artifact is None:
        yield f"{'not written' if isinstance(outcome.error, MissingComponentError) else 'failed'}: {outcome.error}"
        return
    manifest = outcome.artifact.manifest
    yield from ((manifest.calibration or {}).get("audit") or {}).get("warnings", ())
    if outcome.format == "openvino":
        yield from map(str, manifest.build.get("warnings", ()))
    yield from (*manifest.parity["reasons"], *manifest.parity["warnings"])
    if proved := manifest.parity.get("stand_in"):
        agreement, count = show_percent(proved["figures"]["top1_agreement"]), proved["images"]["count"]
        yield f"proved instead: {proved['what']} (top-1 agreement {agreement} %, images: {count})"
        yield from proved["warnings"]


def show_triton_model(model: TritonModel) -> None:
    """Where the model is, which version holds the artifact, and how to start a server on it."""
    console = output()
    what = f"version {model.version}" if model.added else f"version {model.version}, which was there already"
    console.print(f"{escape(str(model.folder))}: {what}, for Triton's {model.backend} backend")
    for note in model.notes:
        console.print(f"not proved: {note}")
    console.print(f"Next: tritonserver --model-repository {escape(str(model.folder.parent))}", highlight=False)


def _layer_table(engines: Sequence[tuple[str, Manifest]]) -> Table:
    """What each layer was built as: one row per layer, one column per engine."""
    table = figure_table("layer", *(label for label, _ in engines), left=1 + len(engines))
    for name in LAYER_NAMES:
        cells = []
        for _, manifest in engines:
            layer = next(entry for entry in manifest.layers if entry.name == name)
            cell = layer.built if layer.holds else f"[bold red]{layer.built}[/] (asked {layer.requested})"
            cells.append(" ".join(filter(None, (cell, layer.placement, escape(layer.kernel)))))
        table.add_row(name, *cells)
    return table


def show_lint(file: Path, target: str, report: LintReport) -> None:
    """What a target has against an ONNX file, errors first, and who says so."""
    console = output()
    table = figure_table("", "node", "operator", "problem", "fix", left=5)
    for finding in report.findings:
        style = "bold red" if finding.severity == "error" else "yellow"
        cells = (escape(text) for text in (finding.node, finding.operator, finding.problem, finding.fix))
        table.add_row(f"[{style}]{finding.severity}[/]", *cells)
    if report.findings:
        console.print(table)
    refused = any(finding.severity == "error" for finding in report.findings)
    source = "a guess, no parser of NVIDIA's can be asked here" if report.parser is None else f"asked: {report.parser}"
    verdict = f"errors for {target}" if refused else f"nothing found that {target} refuses"
    console.print(f"{escape(str(file))}: {verdict} ({source})", soft_wrap=True, highlight=False)


def show_search(result: SearchResult, as_json: bool = False) -> None:
    """What each layer costs and gains in each type, and the plan; nothing where the manifest is printed as JSON."""
    if as_json:
        return
    console = output()
    quality = "accuracy" if result.labelled else "agreement"
    columns: dict[str, Callable[[Change], str]] = {
        "layer": lambda change: change.layer,
        "type": lambda change: change.type,
        "": lambda change: "[green]taken[/]" if change.taken else "",
        "x FP32": lambda change: f"{change.speedup:.3f}",
        "95 %": lambda change: "{:.3f}-{:.3f}".format(*change.speedup_interval),
        "gain ms": lambda change: f"{change.gain_ms:+.2f}",
        "MB saved": lambda change: f"{change.bytes_saved / 1e6:.1f}",
        f"{quality} drop": lambda change: f"{100 * change.drop:.2f}",
        "SQNR dB": lambda change: show(change.sqnr_db, ".1f"),
        "why": lambda change: change.why,
    }
    console.print(table_of(columns, result.changes, left=3))
    low, high = result.speedup_interval
    console.print(
        f"plan: {', '.join(f'{name} {kind}' for name, kind in result.plan.items())}\n"
        f"{quality} drop {100 * result.drop:.2f} of {100 * result.max_drop:g} points allowed, on {result.num_images} images "
        f"(plain INT8 {100 * result.plain_drop:.2f}); {result.speedup:.2f} ({low:.2f} to {high:.2f}) times as fast as FP32",
        soft_wrap=True,
    )
    if result.over_plain is not None and result.over_plain_interval is not None:
        low, high = result.over_plain_interval
        console.print(f"{result.over_plain:.2f} ({low:.2f} to {high:.2f}) times as fast as plain INT8")
    if result.reused:
        console.print(f"{result.reused} results from the journal of an earlier search")


def show_sweep(sweep: Sweep) -> None:
    """One line per calibration, and the best of them."""
    console = output()
    columns: dict[str, Callable[[SweepRow], str]] = {
        "calibrated on": lambda row: escape(row.images),
        "images": lambda row: str(row.num_images),
        "method": lambda row: row.method,
        "top-1 agree %": lambda row: show_percent(row.figures.top1_agreement),
        "flips": lambda row: show(row.figures.flips, ".0f"),
        "top-1 %": lambda row: show_percent(row.figures.candidate_accuracy),
        "change": lambda row: show(row.figures.accuracy_change, "+.1f", 100),
        "SQNR dB": lambda row: show(row.figures.sqnr_db, ".1f"),
        "saturated %": lambda row: f"{100 * row.worst_saturation:.3f}",
        "in": lambda row: row.worst_layer,
    }
    console.print(table_of(columns, sweep.rows))
    best = sweep.best
    console.print(
        f"best of {len(sweep.rows)} on {sweep.num_proof_images} images: {best.method} on {best.num_images} images of "
        f"{escape(best.images)}; rows within a few flips of it are no worse than chance would have them",
        soft_wrap=True,
    )


def show_network(arch: Architecture, costs: Sequence[LayerCost], batch: int, facts: Mapping[str, Any]) -> None:
    """The layer table, after what a file says of itself."""
    console = output()
    for name in ("file", "format", "runtime", "precision", "created", "checkpoint", "sha256"):
        if facts.get(name):
            console.print(f"{name}: {escape(str(facts[name]))}", soft_wrap=True)
    if facts:
        classes = ", ".join(facts["classes"][:8]) + (", ..." if len(facts["classes"]) > 8 else "")
        console.print(f"classes: {len(facts['classes'])} ({escape(classes)})", soft_wrap=True)
    if facts.get("bytes"):
        console.print(f"size: {facts['bytes']:,} bytes")
    parity = facts.get("parity", {})
    if parity:
        proved = parity.get("stand_in")
        console.print(
            f"proof: {parity['verdict']}"
            + (f"; proved instead: {proved['what']}, {proved['verdict']}" if proved else "")
        )
    for layer in facts.get("layers", ()):
        where = " ".join(filter(None, (layer["placement"], layer["kernel"])))
        console.print(
            f"{layer['name']}: asked {layer['requested']}, built {layer['built']}"
            f"{f', {where}' if where else ''} ({layer['evidence']})",
            markup=False,
        )
    table = figure_table(
        *("layer", "output", "passed on", "parameters", "multiply-adds", "weight bytes", "activation bytes"),
        "multiply-adds / byte",
        title=f"{arch.name}: {arch.summary}; input 3x{arch.input_size}x{arch.input_size}, batch {batch}; costs in FP32",
        left=3,
    )
    for cost in costs:
        shapes = ("x".join(map(str, shape)) for shape in (cost.output_shape, cost.passed_on_shape))
        table.add_row(cost.name, *shapes, *_cost_cells([cost]))
    table.add_row("total", "", "", *_cost_cells(costs), style="bold")
    console.print(table)


def _cost_cells(costs: Sequence[LayerCost]) -> list[str]:
    parameters, multiply_adds, weights, activations, moved = (
        sum(getattr(cost, name) for cost in costs)
        for name in ("parameters", "multiply_adds", "weight_bytes", "activation_bytes", "total_bytes")
    )
    counts = (parameters, multiply_adds, weights, activations)
    return [*(f"{count:,}" for count in counts), f"{multiply_adds / moved:.2f}"]
