"""The table of builders in docs/tensorrt.md is the answer of the code; `python tests/test_docs_tensorrt.py` prints it anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alexnet_edge.export.engines.features import support_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "tensorrt.md"
BEGIN, END = "<!-- support table: begin -->\n", "<!-- support table: end -->\n"
HEADINGS = {"RTX": "TensorRT-RTX"}
"""Columns whose heading is not TensorRT's version."""


def rendered(table: Mapping[str, Mapping[str, str]]) -> str:
    """The table in Markdown: a row for each precision and option, a column for each builder."""
    columns = list(next(iter(table.values())))
    lines = [["TensorRT", *(HEADINGS.get(column, column) for column in columns)], ["---"] * (1 + len(columns))]
    lines += [[name, *(cells[column] for column in columns)] for name, cells in table.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_of_builders_is_that_of_the_code() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    between = text.partition(BEGIN)[2].partition(END)[0]
    assert between.strip("\n").splitlines() == rendered(support_table()).splitlines()


def test_every_row_answers_for_every_builder() -> None:
    """What the document promises of its cells: nothing else is in them."""
    table = support_table()
    assert len({tuple(cells) for cells in table.values()}) == 1
    assert {cell for cells in table.values() for cell in cells.values()} == {"yes", "no", "ignored", "with a GPU"}


if __name__ == "__main__":
    print(rendered(support_table()), end="")
