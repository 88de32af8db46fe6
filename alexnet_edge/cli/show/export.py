"""Print exports, layer tables, findings of the lint, searches and calibration sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from alexnet_edge.bench.report.numbers import show_percent
from alexnet_edge.errors import MissingComponentError
from alexnet_edge.network.layers import LAYER_NAMES, Architecture, LayerCost

if TYPE_CHECKING:
    from alexnet_edge.bench.search import SearchResult
    from alexnet_edge.export.exporter import Outcome
    from alexnet_edge.export.lint import LintReport
    from alexnet_edge.export.quantising.sweep import Sweep
    from alexnet_edge.export.triton import TritonModel
from alexnet_edge.cli.show.base import NONE, figure_table, output, styled


def show_exports(outcomes: Sequence[Outcome]) -> None:
    """One line per artifact: its proof and its figures; then what was not written, and why."""
    console = output()
    table = figure_table(
        "artifact", "file", "built as", "proof", "MB", "top-1 agree %", "max abs error", "top-1 %", left=4
    )
    for outcome in outcomes:
        if outcome.artifact is None:
            continue
        manifest = outcome.artifact.manifest
        figures = manifest.parity.get("figures", {})
        built = sorted({layer.built for layer in manifest.layers})
        error = figures.get("max_abs_error")
        table.add_row(
            outcome.label,
            escape(str(outcome.artifact.path)),
            f"{', '.join(built)} ({len(manifest.layers)} of 8 layers)",
            styled(str(manifest.parity["verdict"])),
            f"{manifest.bytes / 1e6:.1f}",
            show_percent(figures.get("top1_agreement")),
            NONE if error is None else f"{error:.1e}",
            show_percent(figures.get("candidate_accuracy")),
        )
    if table.row_count:
        console.print(table)
    engines = [outcome for outcome in outcomes if outcome.artifact is not None and outcome.format == "trt"]
    if engines:
        console.print()
        console.print(_layer_table(engines))
    notes: dict[str, list[str]] = {}
    for outcome in engines:
        assert outcome.artifact is not None
        build = outcome.artifact.manifest.build
        notes.setdefault(f"layers read from {build['proof']}", []).append(outcome.label)
        for text in (*build["fallback"], *build["warnings"]):
            notes.setdefault(str(text), []).append(outcome.label)
    for outcome in outcomes:
        if outcome.artifact is not None:
            parity = outcome.artifact.manifest.parity
            for warning in ((outcome.artifact.manifest.calibration or {}).get("audit") or {}).get("warnings", ()):
                notes.setdefault(warning, []).append(outcome.label)
            if outcome.format == "openvino":
                for text in outcome.artifact.manifest.build.get("warnings", ()):
                    notes.setdefault(str(text), []).append(outcome.label)
            for note in (*parity["reasons"], *parity["warnings"]):
                notes.setdefault(note, []).append(outcome.label)
            proved = parity.get("stand_in")
            if proved:
                agreement = show_percent(proved["figures"]["top1_agreement"])
                notes.setdefault(
                    f"proved instead: {proved['what']} "
                    f"(top-1 agreement {agreement} %, images: {proved['images']['count']})",
                    [],
                ).append(outcome.label)
                for warning in proved["warnings"]:
                    notes.setdefault(warning, []).append(outcome.label)
        else:
            kind = "not written" if isinstance(outcome.error, MissingComponentError) else "failed"
            notes.setdefault(f"{kind}: {outcome.error}", []).append(outcome.label)
    for note, labels in notes.items():
        console.print(f"[bold]{', '.join(labels)}[/]: {escape(note)}")


def show_triton_model(model: TritonModel) -> None:
    """Where the model is, which version holds the artifact, and how to start a server on it."""
    console = output()
    what = f"version {model.version}" if model.added else f"version {model.version}, which was there already"
    console.print(f"{escape(str(model.folder))}: {what}, for Triton's {model.backend} backend")
    for note in model.notes:
        console.print(f"not proved: {note}")
    console.print(f"Next: tritonserver --model-repository {escape(str(model.folder.parent))}", highlight=False)


def _layer_table(engines: Sequence[Outcome]) -> Table:
    """What each layer was built as: one row per layer, one column per engine."""
    table = figure_table("layer", *(engine.label for engine in engines), left=1 + len(engines))
    for name in LAYER_NAMES:
        cells = []
        for engine in engines:
            assert engine.artifact is not None
            layer = next(entry for entry in engine.artifact.manifest.layers if entry.name == name)
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
    what = "accuracy" if result.labelled else "agreement"
    table = figure_table(
        "layer", "type", "", "x FP32", "95 %", "gain ms", "MB saved", f"{what} drop", "SQNR dB", "why", left=3
    )
    for one in result.changes:
        table.add_row(
            one.layer,
            one.type,
            "[green]taken[/]" if one.taken else "",
            f"{one.speedup:.3f}",
            "{:.3f}-{:.3f}".format(*one.speedup_interval),
            f"{one.gain_ms:+.2f}",
            f"{one.bytes_saved / 1e6:.1f}",
            f"{100 * one.drop:.2f}",
            NONE if one.sqnr_db is None else f"{one.sqnr_db:.1f}",
            one.why,
        )
    console.print(table)
    low, high = result.speedup_interval
    console.print(
        f"plan: {', '.join(f'{name} {kind}' for name, kind in result.plan.items())}\n"
        f"{what} drop {100 * result.drop:.2f} of {100 * result.max_drop:g} points allowed, on {result.num_images} images "
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
    table = figure_table(
        "calibrated on", "images", "method", "top-1 agree %", "flips", "top-1 %", "change", "SQNR dB", "saturated %",
        "in", left=1,
    )  # fmt: skip
    for row in sweep.rows:
        figures = row.figures
        table.add_row(
            escape(row.images),
            str(row.num_images),
            row.method,
            show_percent(figures.top1_agreement),
            NONE if figures.flips is None else str(figures.flips),
            show_percent(figures.candidate_accuracy),
            NONE if figures.accuracy_change is None else f"{100 * figures.accuracy_change:+.1f}",
            NONE if figures.sqnr_db is None else f"{figures.sqnr_db:.1f}",
            f"{100 * row.worst_saturation:.3f}",
            row.worst_layer,
        )
    console.print(table)
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
        "layer",
        "output",
        "passed on",
        "parameters",
        "multiply-adds",
        "weight bytes",
        "activation bytes",
        "multiply-adds / byte",
        title=f"{arch.name}: {arch.summary}; input 3x{arch.input_size}x{arch.input_size}, batch {batch}; costs in FP32",
        left=3,
    )
    for cost in costs:
        table.add_row(
            cost.name,
            "x".join(map(str, cost.output_shape)),
            "x".join(map(str, cost.passed_on_shape)),
            f"{cost.parameters:,}",
            f"{cost.multiply_adds:,}",
            f"{cost.weight_bytes:,}",
            f"{cost.activation_bytes:,}",
            f"{cost.multiply_adds / cost.total_bytes:.2f}",
        )
    totals = [
        sum(getattr(cost, name) for cost in costs)
        for name in ("parameters", "multiply_adds", "weight_bytes", "activation_bytes", "total_bytes")
    ]
    table.add_row(
        "total", "", "", *[f"{total:,}" for total in totals[:4]], f"{totals[1] / totals[4]:.2f}", style="bold"
    )
    console.print(table)
