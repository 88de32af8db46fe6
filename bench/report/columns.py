"""What a table is made of: columns, cells, badges, and the reasons for what is absent.

A `Table` is made once and shown twice, as Markdown and as HTML. A column in which no row has anything is left out; what a
results file lacks is named in `absent` with its reason, and is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alexnet_edge.bench.report.numbers import NOT_AVAILABLE, NOT_MEASURED, show_ms, show_ns
from alexnet_edge.bench.report.rows import Row, dig
from alexnet_edge.bench.report.words import grouped_by_reason

Subjects = Sequence[Mapping[str, Any]]
"""The results' `subjects`."""
Pair = tuple[Row, Mapping[str, Any]]
"""A subject's row, and one of its entries: a batch, a roofline, a scenario."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as text, and its small print: an interval, a unit, a batch."""

    text: str
    small: str = ""
    badge: Literal["", "good", "bad", "note"] = ""


NO_FIGURE = Cell(NOT_AVAILABLE)
_BADGES: dict[str, Literal["", "good", "bad"]] = {
    "": "", "passed": "good", "VALID": "good", "failed": "bad", "INVALID": "bad", "error": "bad"
}  # fmt: skip


def badge(verdict: str) -> Cell:
    """A verdict, coloured in the page."""
    return Cell(verdict or NOT_AVAILABLE, badge=_BADGES.get(verdict, "note"))


@dataclass(frozen=True, slots=True)
class Column:
    """Its head, and how a cell is made of an entry."""

    head: str
    make: Callable[[Any], Cell | str]
    unit: str = ""
    kind: Literal["figure", "text", "name"] = "figure"


def time_column(head: str, key: str, *inner: str) -> Column:
    """Nanoseconds under `key` of a pair's entry, which must be there, and `inner`, in milliseconds."""
    return Column(head, lambda pair: show_ns(dig(pair[1][key], *inner)), "ms")


def figure_column(head: str, unit: str, key: str, *inner: str, scale: float = 1.0) -> Column:
    """What stands under `key` of a pair's entry, which must be there, and `inner`, times `scale`."""
    return Column(head, lambda pair: show_ms(dig(pair[1][key], *inner), scale), unit)


SUBJECT = Column("subject", lambda pair: str(pair[0].label), kind="name")
BATCH = Column("batch", lambda pair: str(pair[1]["batch"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Columns and rows; `absent` names what is missing and why."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    absent: tuple[str, ...]


def make_table(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[Column],
    entries: Iterable[Any],
    absent: Iterable[str] = (),
) -> Table:
    """A table with one row per entry, without the columns in which no entry has anything."""
    made = [[column.make(entry) for column in columns] for entry in entries]
    rows = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in made]
    kept = [index for index in range(len(columns)) if any(row[index].text not in ("", NOT_AVAILABLE) for row in rows)]
    return Table(
        name=name,
        title=title,
        caption=caption,
        columns=tuple(columns[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in rows),
        absent=tuple(absent),
    )


def unavailable(quantity: str, reasons: Iterable[tuple[str, str]], rows: Sequence[Row]) -> list[str]:
    """`(label, reason)` pairs as lines `quantity unavailable: reason (labels)`; without labels where all measured rows share it."""
    labels: dict[str, dict[str, None]] = {}
    for label, reason in reasons:
        labels.setdefault(reason or NOT_MEASURED, {})[label] = None
    measured = [row for row in rows if row.images_per_s is not None]
    everyone = {row.label for row in measured}
    return [
        f"{quantity} unavailable: {reason}"
        + ("" if set(named) == everyone else f" ({', '.join(grouped_by_reason(named, measured))})")
        for reason, named in labels.items()
    ]


def reason_for(entry: Mapping[str, Any], part: str) -> str:
    """Why an entry lacks `part`, as the results have it."""
    return str(entry.get("unavailable", {}).get(part) or NOT_MEASURED)


def lacking(pairs: Iterable[Pair], part: str) -> list[tuple[str, str]]:
    """Label and reason of each pair whose entry lacks `part`."""
    return [(row.label, reason_for(entry, part)) for row, entry in pairs if not entry.get(part)]
