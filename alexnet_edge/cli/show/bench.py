"""Print measurements, comparisons and the demo's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from alexnet_edge.bench.report.numbers import show, show_ms, show_ns, show_percent, show_ratio
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
    from alexnet_edge.bench.report.judgement import Judgement
    from alexnet_edge.demo import DemoResult
from alexnet_edge.cli.show.base import NONE, output, styled, table_of

_STYLES = {"regression": "bold red", "invalid": "bold red", "improvement": "green"}


def show_bench(bench: Mapping[str, Any], written: Sequence[Path]) -> None:
    """The scorecard, what is not valid and why, and where everything was written."""
    console = output()
    _show_rows(console, rows_of(bench["subjects"], bench["settings"]), bench)
    console.print("Written: " + ", ".join(escape(str(path)) for path in written), soft_wrap=True)


def show_comparison(comparison: Comparison) -> None:
    """The verdict first, then what it rests on."""
    console = output()
    passed = "[green]passed[/]" if comparison.passed else "[bold red]FAILED[/]"
    console.print(f"{passed}: {escape(comparison.headline())}", soft_wrap=True)
    columns: dict[str, Callable[[Judgement], str]] = {
        "measurement": lambda row: escape(row.name),
        "verdict": lambda row: f"[{_STYLES[row.verdict]}]{row.verdict}[/]" if row.verdict in _STYLES else row.verdict,
        "base ms": lambda row: show_ns(row.base_ns),
        "new ms": lambda row: show_ns(row.new_ns),
        "new / base": lambda row: show(row.ratio, ".3f"),
        "95 % interval": lambda row: NONE if row.interval is None else "{:.3f} to {:.3f}".format(*row.interval),
        "P(slower)": lambda row: show_ratio(row.superiority),
        "tail": lambda row: NONE if row.tail is None else f"{row.tail.name} x {row.tail.ratio:.2f}",
    }
    console.print(table_of(columns, comparison.rows, left=2))
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
    settings = bench["settings"]
    columns: dict[str, Callable[[Row], str]] = {
        "subject": lambda row: row.label,
        "proof": lambda row: styled(row.proof),
        "measured": lambda row: styled(row.measured) or NONE,
        f"p50 ms, batch {settings['batches'][0]}": lambda row: show_ms(row.p50_ms),
        f"{tail_of(settings)} ms": lambda row: show_ms(row.tail_ms),
        "cold ms": lambda row: show_ms(row.cold_p50_ms),
        "roofline %": lambda row: show(row.roofline, ".0f", 100),
        "images/s (batch)": lambda row: (
            show(row.images_per_s, ".1f") + ("" if row.images_per_s is None else f" ({row.images_per_s_batch})")
        ),
        "MB": lambda row: f"{row.megabytes:.1f}",
        "load ms": lambda row: show_ms(row.load_ms),
        "x torch": lambda row: show_ratio(row.speed_up),
        "agree %": lambda row: show_percent(row.agreement),
    }
    console.print(f"[bold]{escape(verdict(rows, settings))}.[/]", soft_wrap=True)
    console.print(table_of(columns, rows, left=3))
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
    ran = [(escape(subject["label"]), scenario) for subject in subjects for scenario in subject["scenarios"]]
    if not ran:
        return
    columns: dict[str, Callable[[tuple[str, Any]], str]] = {
        "subject": lambda pair: pair[0],
        "scenario": lambda pair: str(pair[1]["scenario"]),
        "LoadGen": lambda pair: styled(pair[1]["verdict"]),
        "metric": lambda pair: escape(pair[1]["metric"]["name"]),
        "": lambda pair: _metric(**pair[1]["metric"]),
        "queries": lambda pair: str(pair[1]["queries"]),
        "harness %": lambda pair: show(pair[1]["harness_share"], ".3f", 100),
    }
    console.print(table_of(columns, ran, left=4))
    for label, scenario in ran:
        for reason in scenario["reasons"]:
            console.print(f"[bold]{label}[/], {scenario['scenario']}: {escape(reason)}", soft_wrap=True)
    console.print(escape("; ".join(dict.fromkeys(scenario["note"] for _, scenario in ran))), soft_wrap=True)


def _metric(value: float | None, unit: str, **_: Any) -> str:
    return f"{show(value, '.4g', 1 / 1e6)} ms" if unit == "ns" else f"{show(value, '.4g')} {unit}"


def show_demo(result: DemoResult) -> None:
    """The scorecard, the page, and what to try next."""
    console = output()
    console.print()
    _show_rows(console, rows_of(result.bench["subjects"], result.bench["settings"]), result.bench)
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
