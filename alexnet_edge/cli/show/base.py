"""Tables for people. Every function takes a finished result and prints it to standard output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alexnet_edge.bench.report.numbers import NOT_AVAILABLE
from alexnet_edge.progress import ConsoleReporter, QuietReporter, Reporter

if TYPE_CHECKING:
    from alexnet_edge.doctor import Component


LOG_WIDTH = 130
"""Columns where the output is not a terminal."""

NONE = NOT_AVAILABLE
_VERDICT_STYLE = {"passed": "green", "VALID": "green", "failed": "bold red", "INVALID": "bold red", "error": "bold red"}


def reporter(quiet: bool) -> AbstractContextManager[Reporter]:
    """A progress reporter on standard error, or one that shows nothing."""
    return nullcontext(QuietReporter()) if quiet else ConsoleReporter()


def output() -> Console:
    """The console that results go to."""
    probe = Console(highlight=False)
    return probe if probe.is_terminal else Console(highlight=False, width=LOG_WIDTH)


def figure_table(*columns: str, title: str | None = None, left: int = 1) -> Table:
    """A table whose first `left` columns are text and whose others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", header_style="dim", overflow="fold")
    return table


def table_of(columns: Mapping[str, Callable[[Any], str]], entries: Iterable[Any], *, left: int = 1) -> Table:
    """A row for each entry: `columns` make its cells, by their heads."""
    table = figure_table(*columns, left=left)
    for entry in entries:
        table.add_row(*(make(entry) for make in columns.values()))
    return table


def styled(verdict: str) -> str:
    style = _VERDICT_STYLE.get(verdict)
    return f"[{style}]{verdict}[/]" if style else verdict


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
    table = figure_table("to", "component", "", "detail", "add it with", left=5)
    for component in components:
        mark = "[green]yes[/]" if component.present else "[yellow]no[/]"
        table.add_row(component.purpose, component.name, mark, escape(component.detail), escape(component.fix))
    console.print(table)


def show_skipped(console: Console, skipped: Sequence[str]) -> None:
    if skipped:
        console.print(f"{len(skipped)} images skipped:")
        for text in skipped:
            console.print(f"  {escape(text)}", soft_wrap=True)
