"""Print measurements, comparisons and the demo's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from alexnet_edge.bench.report.numbers import show, show_ms, show_percent
from alexnet_edge.bench.report.rows import Row, rows_of, tail_of
from alexnet_edge.bench.report.words import (
    headline,
    open_points,
    plain_loop_sentence,
    threads_of,
    verdict,
    worst_overall,
)

if TYPE_CHECKING:
    from alexnet_edge.bench.report.compare import Comparison
    from alexnet_edge.demo import DemoResult
from alexnet_edge.cli.show.base import NONE, figure_table, output, styled


def show_bench(bench: Mapping[str, Any], written: Sequence[Path]) -> None:
    """The scorecard, what is not valid and why, and where everything was written."""
    console = output()
    rows = rows_of(bench["subjects"], bench["settings"])
    _show_rows(console, rows, bench)
    console.print("Written: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """The verdict first, then what it rests on."""
    console = output()
    passed = "[green]passed[/]" if comparison.passed else "[bold red]FAILED[/]"
    console.print(f"{passed}: {escape(comparison.headline())}", soft_wrap=True)
    table = figure_table(
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
            NONE if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
            show(row.superiority, ".2f"),
            NONE if row.tail is None else f"{row.tail.name} x {row.tail.ratio:.2f}",
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
    table = figure_table(
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
            styled(row.proof),
            styled(row.measured) or NONE,
            show_ms(row.p50_ms),
            show_ms(row.tail_ms),
            show_ms(row.cold_p50_ms),
            show(row.roofline, ".0f", 100),
            NONE if row.images_per_s is None else f"{row.images_per_s:.1f} ({row.images_per_s_batch})",
            f"{row.megabytes:.1f}",
            show_ms(row.load_ms),
            NONE if row.speed_up is None else f"{row.speed_up:.2f}",
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
    table = figure_table("subject", "scenario", "LoadGen", "metric", "", "queries", "harness %", left=4)
    for subject, found in ran:
        metric = found["metric"]
        scale = 1e6 if metric["unit"] == "ns" else 1.0
        table.add_row(
            escape(subject["label"]),
            found["scenario"],
            styled(found["verdict"]),
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
