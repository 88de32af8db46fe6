"""Print training results, evaluations and feed speeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from alexnet_edge.bench.report.numbers import show_percent

if TYPE_CHECKING:
    from alexnet_edge.proof.evaluate import Confusion, Evaluation
    from alexnet_edge.training.history import TrainResult
from alexnet_edge.cli.show.base import figure_table, output, show_skipped, table_of

MOST_CLASSES = 20
"""Longest per-class table; the rest is in the JSON."""
MOST_CLASSES_IN_MATRIX = 10
"""Of more classes, the pairs confused most often are shown instead of the matrix."""
MOST_CONFUSIONS = 10
"""Longest list of such pairs; more are in the JSON."""


def show_training(result: TrainResult) -> None:
    """The best epoch, and where the checkpoint is."""
    console = output()
    best = result.best
    console.print(
        f"Trained {len(result.history)} epochs in {result.seconds:.0f} s. Best: epoch {best.epoch}, "
        f"top-1 {best.top1:.1%}, top-5 {best.top5:.1%}, validation loss {best.val_loss:.3f}."
    )
    show_skipped(console, result.skipped)
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
    table = figure_table("class", "images", "right", "top-1 (recall) %", "precision %", "F1 %")
    for row in seen[:MOST_CLASSES]:
        shares = map(show_percent, (row.top1, row.precision, row.f1))
        table.add_row(escape(row.name), str(row.count), str(row.correct), *shares)
    console.print(table)
    if len(seen) > MOST_CLASSES:
        console.print(f"... and {len(seen) - MOST_CLASSES} classes more: see --json")
    _show_confusion(console, result.confusion)
    show_skipped(console, result.skipped)


def _show_confusion(console: Console, confusion: Confusion) -> None:
    """The matrix of few classes, of many the pairs confused most often."""
    if not confusion.most:
        return
    console.print()
    if confusion.matrix is not None and len(confusion.classes) <= MOST_CLASSES_IN_MATRIX:
        table = figure_table("class \\ answer", *map(escape, confusion.classes))
        for index, (name, row) in enumerate(zip(confusion.classes, confusion.matrix, strict=True)):
            cells = [f"[bold]{count}[/]" if column == index else str(count or "·") for column, count in enumerate(row)]
            table.add_row(escape(name), *cells)
    else:
        table = figure_table("most confused", "answered", "images", left=2)
        for pair in confusion.most[:MOST_CONFUSIONS]:
            table.add_row(escape(pair.actual), escape(pair.predicted), str(pair.count))
    console.print(table)


def show_loader(result: Mapping[str, Any], verdict: str, out: Path) -> None:
    """The verdict, the training step alone, and one line per way to read images: medians over the rounds."""
    console, middle = output(), statistics.median
    console.print(f"[bold]{escape(verdict[:1].upper() + verdict[1:])}.[/]", soft_wrap=True)
    alone = middle(result["step_images_per_s"])
    columns: dict[str, Callable[[Any], str]] = {
        "read by": lambda row: str(row["label"]),
        "images": lambda row: "kept" if row["kept"] else "decoded",
        "feed images/s": lambda row: f"{middle(row['feed_images_per_s']):.0f}",
        "training images/s": lambda row: f"{middle(row['training_images_per_s']):.1f}",
        "of the step alone %": lambda row: f"{100 * middle(row['training_images_per_s']) / alone:.0f}",
        "waits %": lambda row: f"{100 * middle(row['wait_share']):.1f}",
    }
    console.print(table_of(columns, result["rows"], left=2))
    settings, environment = result["settings"], result["environment"]
    console.print(
        f"The training step alone: {alone:.1f} images/s ({result['architecture']}, batch {settings['batch']}, "
        f"{environment['gpu'] if settings['device'] == 'cuda' else environment['cpu']}); "
        f"{result['data']['images']} images, medians of {settings['rounds']} rounds"
    )
    console.print(f"Written: {escape(str(out))}", soft_wrap=True)
