"""Tables for people. Every function takes a finished result and prints it to standard output."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alexnet_edge.bench.tables import (
    Row,
    headline,
    open_points,
    plain_loop_sentence,
    rows_of,
    show,
    show_ms,
    show_percent,
    tail_of,
    threads_of,
    verdict,
    worst_overall,
)
from alexnet_edge.deploy.link import number, printable
from alexnet_edge.environment import EMULATED_FIGURES
from alexnet_edge.errors import AlexNetEdgeError, ImageError, MissingComponentError
from alexnet_edge.layers import LAYER_NAMES, Architecture, LayerCost
from alexnet_edge.progress import ConsoleReporter, QuietReporter, Reporter

if TYPE_CHECKING:
    from alexnet_edge.bench.bisect import Bisection
    from alexnet_edge.bench.compare import Comparison
    from alexnet_edge.bench.parity import ParityReport
    from alexnet_edge.bench.preprocessing import PreprocessingReport
    from alexnet_edge.bench.search import SearchResult
    from alexnet_edge.demo import DemoResult
    from alexnet_edge.deploy.run import Deployed, Planned
    from alexnet_edge.doctor import Component
    from alexnet_edge.evaluate import Confusion, Evaluation
    from alexnet_edge.export.build import Outcome
    from alexnet_edge.export.lint import Finding
    from alexnet_edge.export.sweep import Sweep
    from alexnet_edge.export.triton import TritonModel
    from alexnet_edge.predict import Prediction
    from alexnet_edge.training.run import TrainResult

LOG_WIDTH = 130
"""Columns where the output is not a terminal."""
MOST_CLASSES = 20
"""Longest per-class table; the rest is in the JSON."""
MOST_CLASSES_IN_MATRIX = 10
"""Of more classes, the pairs confused most often are shown instead of the matrix."""
MOST_CONFUSIONS = 10
"""Longest list of such pairs; more are in the JSON."""

_NONE = "–"
_VERDICT_STYLE = {"passed": "green", "VALID": "green", "failed": "bold red", "INVALID": "bold red", "error": "bold red"}


def reporter(quiet: bool) -> AbstractContextManager[Reporter]:
    """A progress reporter on standard error, or one that shows nothing."""
    return nullcontext(QuietReporter()) if quiet else ConsoleReporter()


def output() -> Console:
    """The console that results go to."""
    probe = Console(highlight=False)
    return probe if probe.is_terminal else Console(highlight=False, width=LOG_WIDTH)


def _table(*columns: str, title: str | None = None, left: int = 1) -> Table:
    """A table whose first `left` columns are text and whose others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", header_style="dim", overflow="fold")
    return table


def _styled(verdict: str) -> str:
    style = _VERDICT_STYLE.get(verdict)
    return f"[{style}]{verdict}[/]" if style else verdict


def show_training(result: TrainResult) -> None:
    """The best epoch, and where the checkpoint is."""
    console = output()
    best = result.best
    console.print(
        f"Trained {len(result.history)} epochs in {result.seconds:.0f} s. Best: epoch {best.epoch}, "
        f"top-1 {best.top1:.1%}, top-5 {best.top5:.1%}, validation loss {best.val_loss:.3f}."
    )
    _show_skipped(console, result.skipped)
    console.print(f"Checkpoint: {escape(str(result.checkpoint))}", soft_wrap=True)


def show_evaluation(source: Path, result: Evaluation, interval: tuple[float, float]) -> None:
    """Accuracy over all with the interval of top-1, calibration, the classes with the lowest accuracy first, confusions."""
    console = output()
    crops = f", each the mean of {result.crops} crops" if result.crops > 1 else ""
    console.print(f"{escape(str(source))}: {result.count} images{crops}", soft_wrap=True)
    console.print(
        f"top-1 {result.top1:.2%} (95 % interval {interval[0]:.2%} to {interval[1]:.2%})   top-5 {result.top5:.2%}   "
        f"loss {result.loss:.4f}"
    )
    calibration = result.calibration
    console.print(
        f"balanced accuracy {result.balanced_accuracy:.2%}   macro F1 {result.macro_f1:.2%}   "
        f"ECE {calibration.expected_error:.2%}   MCE {calibration.maximum_error:.2%}   Brier {calibration.brier:.4f}"
    )
    if result.coinciding:
        console.print("Images are resized to just the crop: corner crops coincide, ten crops add little")
    if result.ties:
        console.print(f"{result.ties} images have more than one highest output: the first of them is the answer")
    seen = sorted(result.classes, key=lambda row: (row.top1, row.name))
    table = _table("class", "images", "right", "top-1 (recall) %", "precision %", "F1 %")
    for row in seen[:MOST_CLASSES]:
        cells = (show_percent(row.top1), show_percent(row.precision), show_percent(row.f1))
        table.add_row(escape(row.name), str(row.count), str(row.correct), *cells)
    console.print(table)
    if len(seen) > MOST_CLASSES:
        console.print(f"... and {len(seen) - MOST_CLASSES} classes more: see --json")
    _show_confusion(console, result.confusion)
    _show_skipped(console, result.skipped)


def _show_confusion(console: Console, confusion: Confusion) -> None:
    """The matrix of few classes, of many the pairs confused most often."""
    if not confusion.most:
        return
    console.print()
    if confusion.matrix_KK is not None and len(confusion.classes) <= MOST_CLASSES_IN_MATRIX:
        table = _table("class \\ answer", *map(escape, confusion.classes))
        for index, (name, row) in enumerate(zip(confusion.classes, confusion.matrix_KK, strict=True)):
            cells = [f"[bold]{count}[/]" if column == index else str(count or "·") for column, count in enumerate(row)]
            table.add_row(escape(name), *cells)
    else:
        table = _table("most confused", "answered", "images", left=2)
        for pair in confusion.most[:MOST_CONFUSIONS]:
            table.add_row(escape(pair.actual), escape(pair.predicted), str(pair.count))
    console.print(table)


def show_exports(outcomes: Sequence[Outcome]) -> None:
    """One line per artifact: its proof and its figures; then what was not written, and why."""
    console = output()
    table = _table("artifact", "file", "built as", "proof", "MB", "top-1 agree %", "max abs error", "top-1 %", left=4)
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
            _styled(str(manifest.parity["verdict"])),
            f"{manifest.bytes / 1e6:.1f}",
            show_percent(figures.get("top1_agreement")),
            _NONE if error is None else f"{error:.1e}",
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
    table = _table("layer", *(engine.label for engine in engines), left=1 + len(engines))
    for name in LAYER_NAMES:
        cells = []
        for engine in engines:
            assert engine.artifact is not None
            layer = next(entry for entry in engine.artifact.manifest.layers if entry.name == name)
            cell = layer.built if layer.holds else f"[bold red]{layer.built}[/] (asked {layer.requested})"
            cells.append(" ".join(filter(None, (cell, layer.placement, escape(layer.kernel)))))
        table.add_row(name, *cells)
    return table


def show_findings(file: Path, target: str, findings: Sequence[Finding]) -> None:
    """What a linted ONNX file has against a target, errors first."""
    console = output()
    if not findings:
        console.print(f"{escape(str(file))}: nothing found that {target} would refuse or build badly", soft_wrap=True)
        return
    table = _table("", "node", "problem", "fix", left=4)
    for finding in sorted(findings, key=lambda finding: finding.severity != "error"):
        style = "bold red" if finding.severity == "error" else "yellow"
        cells = (escape(text) for text in (finding.node, finding.problem, finding.fix))
        table.add_row(f"[{style}]{finding.severity}[/]", *cells)
    console.print(table)


def show_parity(reports: Sequence[tuple[Path, ParityReport | str]]) -> None:
    """One line per artifact; a text in place of a report is why it could not be run."""
    console = output()
    table = _table(
        "artifact", "proof", "images", "top-1 agree %", "max abs error", "SQNR dB", "top-1 %", "change", left=2
    )
    notes = []
    for path, report in reports:
        if isinstance(report, str):
            table.add_row(escape(str(path)), "not run", *[_NONE] * 6)
            notes.append((path, report))
            continue
        figures = report.figures
        table.add_row(
            escape(str(path)),
            _styled("passed" if report.passed else "failed"),
            str(figures.num_images),
            show_percent(figures.top1_agreement),
            _NONE if figures.max_abs_error is None else f"{figures.max_abs_error:.1e}",
            _NONE if figures.sqnr_db is None else f"{figures.sqnr_db:.1f}",
            show_percent(figures.candidate_accuracy),
            _NONE if figures.accuracy_change is None else f"{100 * figures.accuracy_change:+.1f}",
        )
        notes += [(path, note) for note in (*report.reasons, *report.warnings)]
    console.print(table)
    for path, note in notes:
        console.print(f"[bold]{escape(str(path))}[/]: {escape(note)}")


def show_search(result: SearchResult, as_json: bool = False) -> None:
    """What each layer costs and gains in each type, and the plan; nothing where the manifest is printed as JSON."""
    if as_json:
        return
    console = output()
    what = "accuracy" if result.labelled else "agreement"
    table = _table(
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
            _NONE if one.sqnr_db is None else f"{one.sqnr_db:.1f}",
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
    table = _table(
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
            _NONE if figures.flips is None else str(figures.flips),
            show_percent(figures.candidate_accuracy),
            _NONE if figures.accuracy_change is None else f"{100 * figures.accuracy_change:+.1f}",
            _NONE if figures.sqnr_db is None else f"{figures.sqnr_db:.1f}",
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


def show_bisections(found: Sequence[tuple[Path, Bisection | str]]) -> None:
    """Of each artifact every step with its errors, then the first out of tolerance and what to do."""
    console = output()
    for path, entry in found:
        if isinstance(entry, str):
            console.print(f"[bold]{escape(str(path))}[/]: not looked at: {escape(entry)}", soft_wrap=True)
            continue
        table = _table(
            "step", "type", "", "own error", "allowed", "worst channel", "its error", "since the image",
            title=f"{escape(str(path))}, {entry.num_images} images", left=3,
        )  # fmt: skip
        for point in entry.points:
            mark = "[green]ok[/]" if point.holds else "[bold red]out[/]" if point is entry.first else "[yellow]out[/]"
            figures = (point.own_error, point.tolerance, point.worst_channel, point.worst_channel_error)
            cells = [_NONE if value is None else f"{value:.1e}" for value in (*figures, point.total_error)]
            cells[2] = _NONE if point.worst_channel is None else str(point.worst_channel)
            table.add_row(point.name, point.type, mark, *cells)
        console.print(table)
        if entry.first is not None:
            console.print(
                f"[bold red]first out of tolerance: {entry.first.layer}[/] ({entry.first.name}: "
                f"{escape('; '.join(entry.first.reasons))})",
                soft_wrap=True,
            )
        console.print(f"cause: {escape(entry.cause)}", soft_wrap=True)
        console.print(f"fix: {escape(entry.fix)}", soft_wrap=True)
        for warning in entry.warnings:
            console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)


def show_preprocessing(report: PreprocessingReport) -> None:
    """Each way from a file to the input: how far its pixels and the answers on them are from ours."""
    console = output()
    table = _table(
        "decoded and resized by", "decode: mean", "max", "resize: mean", "input: mean", "max",
        "top-1 agree %", "flips", "top-1 %",
    )  # fmt: skip
    for way in report.ways:
        table.add_row(
            escape(way.name),
            *[
                _NONE if value is None else f"{value:.2f}"
                for value in (way.decode_mean, way.decode_max, way.resize_mean, way.input_mean, way.input_max)
            ],
            show_percent(way.top1_agreement),
            str(way.flips),
            show_percent(way.accuracy),
        )
    console.print(table)
    console.print(
        f"differences in steps of 8-bit pixels, on {report.num_images} images; answers by the FP32 checkpoint"
    )
    for text in (*report.findings, *report.missing):
        console.print(escape(text), soft_wrap=True)


def show_bench(bench: Mapping[str, Any], written: Sequence[Path]) -> None:
    """The scorecard, what is not valid and why, and where everything was written."""
    console = output()
    rows = rows_of(bench["subjects"], bench["settings"])
    _show_rows(console, rows, bench)
    console.print("Written: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def show_loader(found: Mapping[str, Any], verdict: str, out: Path) -> None:
    """The verdict, the training step alone, and one line per way to read images: medians over the rounds."""
    console = output()

    middle = statistics.median
    console.print(f"[bold]{escape(verdict[:1].upper() + verdict[1:])}.[/]", soft_wrap=True)
    table = _table("read by", "images", "feed images/s", "training images/s", "of the step alone %", "waits %", left=2)
    alone = middle(found["step_images_per_s"])
    for row in found["rows"]:
        training = middle(row["training_images_per_s"])
        table.add_row(
            row["label"],
            "kept" if row["kept"] else "decoded",
            f"{middle(row['feed_images_per_s']):.0f}",
            f"{training:.1f}",
            f"{100 * training / alone:.0f}",
            f"{100 * middle(row['wait_share']):.1f}",
        )
    console.print(table)
    settings, environment = found["settings"], found["environment"]
    console.print(
        f"The training step alone: {alone:.1f} images/s ({found['architecture']}, batch {settings['batch']}, "
        f"{environment['gpu'] if settings['device'] == 'cuda' else environment['cpu']}); "
        f"{found['data']['images']} images, medians of {settings['rounds']} rounds"
    )
    console.print(f"Written: {escape(str(out))}", soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """The verdict first, then what it rests on."""
    console = output()
    passed = "[green]passed[/]" if comparison.passed else "[bold red]FAILED[/]"
    console.print(f"{passed}: {escape(comparison.headline())}", soft_wrap=True)
    table = _table(
        "measurement", "verdict", "base ms", "new ms", "new / base", "95 % interval", "P(slower)", "tail", left=2
    )
    for row in comparison.rows:
        style = {"regression": "bold red", "invalid": "bold red", "improvement": "green"}.get(row.verdict)
        table.add_row(
            escape(row.name),
            f"[{style}]{row.verdict}[/]" if style else row.verdict,
            show_ms(None if row.base_ns is None else row.base_ns / 1e6),
            show_ms(None if row.new_ns is None else row.new_ns / 1e6),
            show(row.ratio, ".3f"),
            _NONE if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
            show(row.superiority, ".2f"),
            _NONE if row.tail is None else f"{row.tail.name} x {row.tail.ratio:.2f}",
        )
    console.print(table)
    for row in comparison.rows:
        for note in row.notes:
            console.print(f"[bold]{escape(row.name)}[/]: {escape(note)}", soft_wrap=True)
    for title, lines in (
        ("warning", comparison.warnings),
        ("failed in the new run", comparison.broken),
        ("only in the base", comparison.only_base),
        ("only in the new", comparison.only_new),
    ):
        for line in lines:
            console.print(f"[bold]{title}[/]: {escape(line)}", soft_wrap=True)


def _show_rows(console: Console, rows: Sequence[Row], bench: Mapping[str, Any]) -> None:
    batch = bench["settings"]["batches"][0]
    table = _table(
        "subject",
        "proof",
        "measured",
        f"p50 ms, batch {batch}",
        f"{tail_of(bench['settings'])} ms",
        "cold ms",
        "roofline %",
        "images/s (batch)",
        "MB",
        "load ms",
        "x torch",
        "agree %",
        left=3,
    )
    for row in rows:
        table.add_row(
            row.label,
            _styled(row.proof),
            _styled(row.measured) or _NONE,
            show_ms(row.p50_ms),
            show_ms(row.tail_ms),
            show_ms(row.cold_p50_ms),
            show(row.roofline, ".0f", 100),
            _NONE if row.images_per_s is None else f"{row.images_per_s:.1f} ({row.images_per_s_batch})",
            f"{row.megabytes:.1f}",
            show_ms(row.load_ms),
            _NONE if row.speed_up is None else f"{row.speed_up:.2f}",
            show_percent(row.agreement),
        )
    console.print(f"[bold]{escape(verdict(rows, bench['settings']))}.[/]", soft_wrap=True)
    console.print(table)
    console.print(
        f"{headline(rows)}; {threads_of(bench)} on {escape(str(bench['environment']['cpu'] or 'this processor'))}; "
        "host end-to-end"
    )
    if worst := worst_overall(rows, bench["subjects"]):
        console.print(escape(worst), soft_wrap=True)
    _show_scenarios(console, bench["subjects"])
    if plain := (bench["harness"] or {}).get("plain_loop"):
        console.print(escape(plain_loop_sentence(plain)), soft_wrap=True)
    for labels, points in open_points(rows, bench.get("peers_left_out")):
        for what, why in points:
            console.print(f"[bold]{escape(labels)}[/]: {what}: {escape(why)}", soft_wrap=True)


def _show_scenarios(console: Console, subjects: Sequence[Mapping[str, Any]]) -> None:
    ran = [(subject, found) for subject in subjects for found in subject["scenarios"]]
    if not ran:
        return
    table = _table("subject", "scenario", "LoadGen", "metric", "", "queries", "harness %", left=4)
    for subject, found in ran:
        metric = found["metric"]
        scale = 1e6 if metric["unit"] == "ns" else 1.0
        table.add_row(
            escape(subject["label"]),
            found["scenario"],
            _styled(found["verdict"]),
            escape(metric["name"]),
            show(metric["value"], ".4g", 1 / scale) + (" ms" if scale > 1 else f" {metric['unit']}"),
            str(found["queries"]),
            show(found["harness_share"], ".3f", 100),
        )
    console.print(table)
    for subject, found in ran:
        for reason in found["reasons"]:
            console.print(f"[bold]{escape(subject['label'])}[/], {found['scenario']}: {escape(reason)}", soft_wrap=True)
    console.print(escape("; ".join(dict.fromkeys(found["note"] for _, found in ran))), soft_wrap=True)


def show_predictions(predictions: Sequence[Prediction], bad: Sequence[ImageError]) -> None:
    """The guesses of each image."""
    console = output()
    for prediction in predictions:
        console.print(f"[bold]{escape(prediction.image)}[/]", soft_wrap=True)
        table = _table("", "", left=1)
        table.show_header = False
        for guess in prediction.guesses:
            table.add_row(f"  {escape(guess.name)}", f"{100 * guess.probability:.2f} %")
        console.print(table)
    _show_skipped(console, [str(error) for error in bad])


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
    table = _table(
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


def show_doctor(environment: Mapping[str, Any], components: Sequence[Component]) -> None:
    """The machine, then each component with the command that adds it."""
    console = output()
    memory = environment["memory_bytes"]
    console.print(
        f"{environment['os']} {environment['machine']}, {environment['cpu'] or 'processor unavailable'}, "
        f"{environment['cpus']} processors, {'memory unavailable' if memory is None else f'{memory / 1e9:.0f} GB'}, "
        f"Python {environment['versions']['python']}"
    )
    console.print(f"vector instructions: {', '.join(environment['cpu_features']) or 'none of those that matter'}")
    table = _table("to", "component", "", "detail", "add it with", left=5)
    for component in components:
        mark = "[green]yes[/]" if component.present else "[yellow]no[/]"
        table.add_row(component.purpose, component.name, mark, escape(component.detail), escape(component.fix))
    console.print(table)


def show_demo(result: DemoResult) -> None:
    """The scorecard, the page, and what to try next."""
    console = output()
    console.print()
    rows = rows_of(result.bench["subjects"], result.bench["settings"])
    _show_rows(console, rows, result.bench)
    for outcome in result.outcomes:
        if outcome.error is not None:
            console.print(f"[bold]{outcome.label}[/]: {escape(str(outcome.error))}")
    console.print()
    console.print(f"Trained to {result.top1:.1%} top-1 on the synthetic set; all done in {result.seconds:.0f} s.")
    console.print(f"Report: {escape(str(result.report))}", soft_wrap=True)
    console.print("Next, with your own images in one folder per class (activate first: . .venv/bin/activate):")
    for command in (
        "alexnet-edge train --data FOLDER",
        "alexnet-edge export --format trt --fp16",
        "alexnet-edge predict IMAGE.jpg --artifact artifacts/alexnet_int8.onnx",
    ):
        console.print(f"  {command}")


def show_plans(plans: Mapping[str, Planned | AlexNetEdgeError]) -> None:
    """What a deploy would do to each device, step by step."""
    console = output()
    for name, plan in plans.items():
        console.print(f"[bold]{escape(name)}[/]", soft_wrap=True)
        if isinstance(plan, AlexNetEdgeError):
            console.print(f"  {escape(str(plan))}", soft_wrap=True)
            continue
        console.print(f"  {escape(plan.findings.sentence())}", soft_wrap=True)
        for refusal in plan.findings.refusals:
            console.print(f"  [bold red]cannot work[/]: {escape(refusal)}", soft_wrap=True)
        for warning in plan.findings.warnings:
            console.print(f"  [yellow]warning[/]: {escape(warning)}", soft_wrap=True)
        for step in plan.steps:
            console.print(f"  {escape(step)}", soft_wrap=True)


def show_deployed(results: Mapping[str, Deployed | AlexNetEdgeError]) -> None:
    """One line per device, then where the reports are."""
    console = output()
    rows = _table("device", "serves", "proof", "top-1 agree %", "bench", "p50 ms", "MB", "copied MB", "s", left=3)
    for name, result in results.items():
        if isinstance(result, AlexNetEdgeError):
            rows.add_row(escape(name), _styled("failed"), *[_NONE] * 7)
            continue
        build, bench = _step_of(result.state, "build"), _step_of(result.state, "bench")
        rows.add_row(
            escape(name),
            escape(result.release),
            *_figures(build, bench),
            f"{result.copied_bytes / 1e6:.1f}",
            f"{result.seconds:.0f}",
        )
    console.print(rows)
    for name, result in results.items():
        if isinstance(result, AlexNetEdgeError):
            console.print(f"[bold]{escape(name)}[/]: {escape(str(result))}", soft_wrap=True)
            continue
        if result.emulated is not None:
            console.print(f"[bold]{escape(name)}[/]: {EMULATED_FIGURES} ({escape(result.emulated)})", soft_wrap=True)
        console.print(f"[bold]{escape(name)}[/]: {escape(str(result.page or result.reports))}", soft_wrap=True)


def show_status(found: Mapping[str, Any]) -> None:
    """The releases of each device, the one that serves first."""
    console = output()
    rows = _table("device", "release", "", "made", "proof", "top-1 agree %", "bench", "p50 ms", "MB", left=5)
    notes = []
    for name, value in found.items():
        if isinstance(value, AlexNetEdgeError):
            rows.add_row(escape(name), _styled("failed"), *[_NONE] * 7)
            notes.append((name, str(value)))
            continue
        if not value["releases"]:
            rows.add_row(escape(name), "nothing deployed", *[""] * 7)
        now, before = value.get("current"), value.get("before")
        releases = [entry for entry in value["releases"] if isinstance(entry, dict)]
        for entry in sorted(releases, key=lambda one: (one.get("id") != now, str(one.get("created"))[::1])):
            build, bench = _step_of(entry, "build"), _step_of(entry, "bench")
            failed = entry.get("failed")
            place = "serves" if entry.get("id") == now else "served before" if entry.get("id") == before else ""
            if not place:
                place = "failed" if failed else "" if _step_of(entry, "switch") else "unfinished"
            rows.add_row(
                escape(name),
                escape(printable(entry.get("id"), 64)),
                _styled(place),
                escape(printable(entry.get("created", _NONE), 24)),
                *_figures(build, bench),
            )
            if isinstance(failed, dict):
                notes.append((name, f"{printable(entry.get('id'), 64)}: {printable(failed.get('problem'))}"))
    console.print(rows)
    for name, text in notes:
        console.print(f"[bold]{escape(name)}[/]: {escape(text)}", soft_wrap=True)


def show_rollbacks(found: Mapping[str, Any]) -> None:
    """What serves now on each device, and what served until now."""
    console = output()
    for name, value in found.items():
        if isinstance(value, AlexNetEdgeError):
            console.print(f"[bold]{escape(name)}[/]: {escape(str(value))}", soft_wrap=True)
        else:
            now, before = printable(value.get("current"), 64), printable(value.get("before"), 64)
            console.print(
                f"[bold]{escape(name)}[/]: {escape(now)} serves now, {escape(before)} until now", soft_wrap=True
            )


def _step_of(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    steps = entry.get("steps")
    found = steps.get(name) if isinstance(steps, dict) else None
    return found if isinstance(found, dict) else {}


def _figures(build: Mapping[str, Any], bench: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Proof, agreement, verdict of the bench, median and size, as cells; an emulator's bench has no verdict but that."""
    parity = build.get("parity")
    parity = parity if isinstance(parity, dict) else {}
    agreement, p50 = parity.get("top1_agreement"), bench.get("p50_ns")
    verdict = bench.get("verdict", "not asked" if "skipped" in bench else _NONE)
    if build.get("emulated") and "verdict" in bench:
        verdict = "emulated"
    return (
        _styled(printable(parity.get("verdict", _NONE), 20)),
        _NONE if agreement is None else f"{100 * number(agreement):.1f}",
        _styled(printable(verdict, 20)),
        _NONE if p50 is None else f"{number(p50) / 1e6:.2f}",
        f"{number(build['bytes']) / 1e6:.1f}" if "bytes" in build else _NONE,
    )


def _show_skipped(console: Console, skipped: Sequence[str]) -> None:
    if skipped:
        console.print(f"{len(skipped)} images skipped:")
        for text in skipped:
            console.print(f"  {escape(text)}", soft_wrap=True)
