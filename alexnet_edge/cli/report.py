"""`alexnet-edge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from alexnet_edge.errors import UserError


def report(
    results: Annotated[Path, Parameter(help="Results file of `alexnet-edge bench`.")] = Path("reports/bench.json"),
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Page to write [beside the results].")] = None,
) -> None:
    """Make the Markdown, CSV and HTML again from a results file."""
    from alexnet_edge.bench.rounds.results import read_results
    from alexnet_edge.files import MALFORMED

    value = read_results(results)
    try:
        written = write_reports(value, out.with_suffix(".json") if out else results)
    except MALFORMED as error:
        raise UserError(
            f"damaged, or not a whole results file ({type(error).__name__}: {error})",
            value=results,
            fix="measure again",
        ) from error
    for path in written:
        print(path)


def write_reports(value: dict[str, Any], results: Path) -> list[Path]:
    """Markdown, CSV and HTML beside the results file; returns all four paths."""
    from alexnet_edge.bench.report.report import write_report
    from alexnet_edge.bench.report.text import csv_of, markdown_of
    from alexnet_edge.files import write_text
    from alexnet_edge.network.checkpoint import read_history, read_info, read_weight

    markdown, table, page = (results.with_suffix(suffix) for suffix in (".md", ".csv", ".html"))
    texts = {markdown: markdown_of(value), table: csv_of(value)}  # all made before any is written
    info = history = filters_OCHW = None
    checkpoint = next((entry["file"] for entry in value["subjects"] if entry["format"] == "checkpoint"), None)
    if checkpoint is not None and Path(checkpoint).is_file() and Path(checkpoint).suffix == ".safetensors":
        info, history = read_info(Path(checkpoint)), read_history(Path(checkpoint))
        filters_OCHW = read_weight(Path(checkpoint), "conv1.weight")
    write_report(page, bench=value, checkpoint_info=info, history=history, filters_OCHW=filters_OCHW)
    for path, text in texts.items():
        write_text(path, text)
    return [results, markdown, table, page]
