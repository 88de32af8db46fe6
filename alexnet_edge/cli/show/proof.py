"""Print parity, bisections, preprocessing comparisons and predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from alexnet_edge.bench.report.numbers import show, show_percent, show_ratio
from alexnet_edge.errors import ImageError

if TYPE_CHECKING:
    from alexnet_edge.predict import Prediction
    from alexnet_edge.proof.bisect import Bisection
    from alexnet_edge.proof.decoders import PreprocessingReport
    from alexnet_edge.proof.parity import ParityFigures, ParityReport
from alexnet_edge.cli.show.base import NONE, figure_table, output, show_skipped, styled

FIGURES: dict[str, Callable[[ParityFigures], str]] = {
    "images": lambda figures: str(figures.num_images),
    "top-1 agree %": lambda figures: show_percent(figures.top1_agreement),
    "max abs error": lambda figures: show(figures.max_abs_error, ".1e"),
    "SQNR dB": lambda figures: show(figures.sqnr_db, ".1f"),
    "top-1 %": lambda figures: show_percent(figures.candidate_accuracy),
    "change": lambda figures: show(figures.accuracy_change, "+.1f", 100),
}
"""The columns of a proof, and how their cells are made."""


def show_parity(reports: Sequence[tuple[Path, ParityReport | str]]) -> None:
    """One line per artifact; a text in place of a report is why it could not be run."""
    console = output()
    table = figure_table("artifact", "proof", *FIGURES, left=2)
    for path, report in reports:
        name = escape(str(path))
        if isinstance(report, str):
            table.add_row(name, "not run", *[NONE] * len(FIGURES))
        else:
            cells = [make(report.figures) for make in FIGURES.values()]
            table.add_row(name, styled("passed" if report.passed else "failed"), *cells)
    console.print(table)
    for path, report in reports:
        for note in (report,) if isinstance(report, str) else (*report.reasons, *report.warnings):
            console.print(f"[bold]{escape(str(path))}[/]: {escape(note)}")


def show_bisections(found: Sequence[tuple[Path, Bisection | str]]) -> None:
    """Of each artifact every step with its errors, then the first out of tolerance and what to do."""
    console = output()
    for path, entry in found:
        if isinstance(entry, str):
            console.print(f"[bold]{escape(str(path))}[/]: not looked at: {escape(entry)}", soft_wrap=True)
            continue
        table = figure_table(
            "step", "type", "", "own error", "allowed", "worst channel", "its error", "since the image",
            title=f"{escape(str(path))}, {entry.num_images} images", left=3,
        )  # fmt: skip
        for point in entry.points:
            mark = "[green]ok[/]" if point.holds else "[bold red]out[/]" if point is entry.first else "[yellow]out[/]"
            figures = (point.own_error, point.tolerance, point.worst_channel, point.worst_channel_error)
            cells = [show(value, ".1e") for value in (*figures, point.total_error)]
            cells[2] = NONE if point.worst_channel is None else str(point.worst_channel)
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
    table = figure_table(
        "decoded and resized by", "decode: mean", "max", "resize: mean", "input: mean", "max",
        "top-1 agree %", "flips", "top-1 %",
    )  # fmt: skip
    for way in report.ways:
        pixels = (way.decode_mean, way.decode_max, way.resize_mean, way.input_mean, way.input_max)
        answers = (show_percent(way.top1_agreement), str(way.flips), show_percent(way.accuracy))
        table.add_row(escape(way.name), *map(show_ratio, pixels), *answers)
    console.print(table)
    console.print(
        f"differences in steps of 8-bit pixels, on {report.num_images} images; answers by the FP32 checkpoint"
    )
    for text in (*report.findings, *report.missing):
        console.print(escape(text), soft_wrap=True)


def show_predictions(predictions: Sequence[Prediction], bad: Sequence[ImageError]) -> None:
    """The guesses of each image."""
    console = output()
    for prediction in predictions:
        console.print(f"[bold]{escape(prediction.image)}[/]", soft_wrap=True)
        table = figure_table("", "", left=1)
        table.show_header = False
        for guess in prediction.guesses:
            table.add_row(f"  {escape(guess.name)}", f"{100 * guess.probability:.2f} %")
        console.print(table)
    show_skipped(console, [str(error) for error in bad])
