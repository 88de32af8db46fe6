"""Results as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from alexnet_edge.bench.report.columns import Table
from alexnet_edge.bench.report.rows import Row, dig, rows_of
from alexnet_edge.bench.report.tables import every_table, scorecard
from alexnet_edge.bench.report.words import headline, open_points, threads_of, verdict, worst_overall


def markdown_of(bench: Mapping[str, Any]) -> str:
    """The results as Markdown: verdict, scorecard, every table that has data, environment."""
    settings, subjects = bench["settings"], bench["subjects"]
    rows = rows_of(subjects, settings)
    lines = [f"**{_plain(verdict(rows, settings))}.**", "", f"{_plain(headline(rows))}.", ""]
    if bench["interrupted"] or not bench.get("finished", True):
        state = "was interrupted" if bench["interrupted"] else "did not finish"
        lines += [f"The bench {state}: what was finished by then is shown.", ""]
    lines += _markdown_table(scorecard(rows, settings))
    for labels, points in open_points(rows, bench.get("peers_left_out")):
        lines += [_plain(f"- {labels}: {state}: {why}") for state, why in points]
    layer = worst_overall(rows, subjects)
    for table in every_table(bench, rows, subjects):
        lines += ["", f"{_plain(table.title)}:", ""]
        if table.name == "roofline" and layer:
            lines += [_plain(layer), ""]
        if table.rows:
            lines += _markdown_table(table)
        lines += [_plain(f"- {text}") for text in table.absent]
    meter = dig(bench, "power", "meter")
    machine = bench["environment"]
    return "\n".join(
        [
            *lines,
            "",
            f"Speed-up: against the checkpoint in PyTorch, eager, same threads. Clock: {_plain(bench['clock'])}. "
            f"Load: {_plain(bench['load'])}." + (f" Power meter: {_plain(meter)}." if meter else ""),
            "",
            f"{_plain(str(machine.get('cpu') or 'unknown processor'))}, {threads_of(bench)}, "
            f"{_plain(str(machine.get('os')))}; {settings['rounds']} rounds of fresh processes, interleaved; "
            f"{bench['created']}.",
            "",
        ]
    )


def _plain(text: str) -> str:
    """`text` on one line, so that Markdown shows it and obeys nothing in it."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", " ".join(text.split()))


def _markdown_table(table: Table) -> list[str]:
    heads = [f"{column.head} {column.unit}".strip() for column in table.columns]
    rule = ["--:" if column.kind == "figure" else "---" for column in table.columns]
    lines = [heads, rule]
    for row in table.rows:
        cells = [
            cell.text if column.kind == "name" or not cell.small else f"{cell.text} ({cell.small})"
            for column, cell in zip(table.columns, row, strict=True)
        ]
        lines.append([_plain(text) for text in cells])
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]


_FIGURES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("batch", "count", "mean_ns", "min_ns", "max_ns")},
    **{f"{name}_ns": ("percentiles_ns", name) for name in ("p50", "p90", "p95", "p99", "p99.9")},
    **{name: (name,)
       for name in ("median_interval_ns", "cv", "images_per_s", "queries_per_s", "verdict", "reasons")},
    "speed_up": ("speed_up", "ratio"),
    "speed_up_interval": ("speed_up", "interval"),
    **{f"cold_{name}_ns": ("cold", "percentiles_ns", name) for name in ("p50", "p99")},
    **{f"device_{name}_p50_ns": ("device", f"{name}_ns", "p50")
       for name in ("h2d", "compute", "d2h", "latency", "enqueue")},
    "graph_compute_p50_ns": ("device", "graph", "compute_ns", "p50"),
    "pipelined_in_flight": ("pipelined", "in_flight"),
    "pipelined_images_per_s": ("pipelined", "images_per_s"),
    **{f"energy_{name}": ("energy", name)
       for name in ("rail", "watts", "idle_watts", "mj_per_image", "net_mj_per_image", "images_per_s_per_watt")},
}  # fmt: skip
"""Of a batch: the CSV's column, and where its figure is in the JSON."""
_UNAVAILABLE = ("cold", "device", "graph", "pipelined", "energy")
_OF_ONE_BATCH = frozenset(
    ("p50_ms", "p50_interval_ms", "tail_ms", "cold_p50_ms", "valid", "images_per_s", "images_per_s_batch",
     "mj_per_image", "net_mj_per_image", "roofline", "speed_up", "speed_up_interval")
)  # fmt: skip


def csv_of(bench: Mapping[str, Any]) -> str:
    """One line per subject and batch; an empty cell is not available, and `unavailable` says why."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    rows = rows_of(bench["subjects"], bench["settings"])
    about = [entry.name for entry in fields(Row) if entry.name not in _OF_ONE_BATCH]
    header = [*about, "sha256", *_FIGURES, "floor_ns", "roofline", "unavailable"]
    writer.writerow(header)
    for row, subject in zip(rows, bench["subjects"], strict=True):
        own = [*(_cell(getattr(row, name)) for name in about), subject["sha256"]]
        if not subject["batches"]:
            writer.writerow(own + [""] * (len(header) - len(own)))
        roofline = subject.get("roofline") or {}
        for entry in subject["batches"]:
            roof = roofline if roofline.get("batch") == entry["batch"] else {}
            reasons = entry.get("unavailable", {})
            why = "; ".join(f"{name}: {reasons[name]}" for name in _UNAVAILABLE if reasons.get(name))
            figures = [*(dig(entry, *keys) for keys in _FIGURES.values()), roof.get("floor_ns"), roof.get("share"), why]
            writer.writerow([*own, *map(_cell, figures)])
    return stream.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return _cell("; ".join(map(str, value)))
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"  # a spreadsheet would take it for a formula
    return str(value)
