"""The tables of latencies: scorecard, every batch, the device's clock, LoadGen's scenarios; and all tables in order.

Everything is read from the results' JSON, so a file from another machine will do. The machine's own tables are in
`machine_tables.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_edge.bench.report.columns import (
    BATCH,
    NO_FIGURE,
    SUBJECT,
    Cell,
    ColumnMaker,
    Pair,
    Subjects,
    Table,
    badge,
    batches_of,
    column,
    lacking,
    make_table,
    reason_for,
    unavailable,
)
from alexnet_edge.bench.report.machine_tables import (
    energy_table,
    harness_table,
    peaks_table,
    roofline_table,
    thermal_table,
)
from alexnet_edge.bench.report.numbers import (
    NOT_AVAILABLE,
    NOT_MEASURED,
    scaled,
    show,
    show_interval,
    show_ms,
    show_ns,
    show_percent,
    show_percent_interval,
    show_ratio_interval,
)
from alexnet_edge.bench.report.rows import Row, dig, tail_of


def every_table(bench: Mapping[str, Any], rows: Sequence[Row], subjects: Subjects) -> list[Table]:
    """The tables after the scorecard, in order; one without rows has its reason in `absent`."""
    return [
        batch_table(rows, subjects),
        roofline_table(rows, subjects),
        scenario_table(rows, subjects),
        device_table(rows, subjects),
        energy_table(rows, subjects),
        thermal_table(rows, subjects),
        harness_table(bench.get("harness"), rows),
        peaks_table(bench.get("peaks") or ()),
    ]


def scorecard(rows: Sequence[Row], settings: Mapping[str, Any] | None, *, name: str = "scorecard") -> Table:
    """Every subject's proof, latency, throughput, size, energy and verdict."""
    swept = len({row.group for row in rows}) < len(rows)
    columns = [
        column("subject", lambda row: Cell(text=row.label if swept else row.group, small=row.setup), kind="name"),
        column("proof", lambda row: badge(row.proof), kind="text"),
        column("measured", lambda row: badge(row.measured), kind="text"),
        column("top-1", _accuracy, "%"),
        column("agreement", _agreement, "%"),
        column("max abs error", lambda row: "0" if row.max_abs_error == 0 else show(row.max_abs_error, ".1e")),
        column("p50", _median, "ms"),
        column(tail_of(settings), lambda row: show_ms(row.tail_ms), "ms"),
        column("cold p50", lambda row: show_ms(row.cold_p50_ms), "ms"),
        column("best", _throughput, "images/s"),
        column("speed-up", _speed_up, "×"),
        column("roofline", lambda row: show_percent(row.roofline), "%"),
        column("energy", _energy, "mJ/image"),
        column("file", lambda row: show(row.megabytes, ".1f"), "MB"),
        column("memory", lambda row: show(row.memory_mb, ".0f"), "MB"),
        column("load", _load, "ms"),
    ]
    caption = ""
    if settings:
        caption = (
            f"Latencies and energy at batch {settings['batches'][0]}. Small print: 95 % interval, change against the "
            "checkpoint, net of idling, and the first inference after loading. "
        )
    if any(row.speed_up is not None for row in rows):
        caption += "Speed-up: against the checkpoint in PyTorch, eager, with the same threads. "
    return make_table(name, "Scorecard", f"{caption}{NOT_AVAILABLE} is not available.", columns, rows)


def _accuracy(row: Row) -> Cell:
    small = f"{100 * row.accuracy_change:+.1f}" if row.accuracy_change else ""
    return Cell(text=show_percent(row.accuracy), small=small)


def _agreement(row: Row) -> Cell:
    return Cell(text=show_percent(row.agreement), small=show_percent_interval(row.agreement_interval))


def _median(row: Row) -> Cell:
    return Cell(text=show_ms(row.p50_ms), small=show_interval(row.p50_interval_ms, show_ms))


def _throughput(row: Row) -> Cell:
    return Cell(text=show_ms(row.images_per_s), small=f"batch {row.images_per_s_batch}" if row.images_per_s else "")


def _speed_up(row: Row) -> Cell:
    return Cell(text=show(row.speed_up, ".2f"), small=show_ratio_interval(row.speed_up_interval))


def _energy(row: Row) -> Cell:
    small = "" if row.net_mj_per_image is None else f"net {show_ms(row.net_mj_per_image)}"
    return Cell(text=show_ms(row.mj_per_image), small=small)


def _load(row: Row) -> Cell:
    return Cell(text=show_ms(row.load_ms), small=f"first {show_ms(row.first_ms)}" if row.first_ms else "")


# --- every batch ----------------------------------------------------------------------------------------------------------


def _percentile(name: str) -> ColumnMaker:
    return column(name, lambda pair: show_ns(pair[1]["percentiles_ns"].get(name)), "ms")


def batch_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """Every batch of every subject, warm and cold."""
    columns = [
        SUBJECT,
        BATCH,
        column("samples", lambda pair: str(pair[1]["count"])),
        column("mean", lambda pair: show_ns(pair[1]["mean_ns"]), "ms"),
        *(_percentile(name) for name in ("p50", "p90", "p95", "p99", "p99.9")),
        column("CV", lambda pair: show_percent(pair[1]["cv"]), "%"),
        column("cold p50", _cold, "ms"),
        column("images/s", lambda pair: show_ms(pair[1]["images_per_s"])),
        column("queries/s", lambda pair: show_ms(pair[1]["queries_per_s"])),
        column("× fastest peer", _against_peer),
        column("result", lambda pair: badge(pair[1]["verdict"]), kind="text"),
        column("why invalid", lambda pair: ", ".join(pair[1]["reasons"]), kind="text"),
    ]
    pairs = batches_of(rows, subjects)
    return make_table(
        "batches",
        "Every batch",
        "Host end-to-end, warm. A percentile is left out where the samples are too few for it. "
        "CV: coefficient of variation; lower is steadier. × fastest peer: the median of the fastest other tool over this one.",
        columns,
        pairs,
        unavailable("cold cache:", lacking(pairs, "cold"), rows),
    )


def _cold(pair: Pair) -> Cell:
    cold = pair[1].get("cold")
    if not cold:
        return NO_FIGURE
    return Cell(text=show_ns(cold["percentiles_ns"]["p50"]), small="" if cold.get("valid", True) else "invalid")


def _against_peer(pair: Pair) -> Cell:
    peer = pair[1].get("against_fastest_peer")
    if not peer:
        return NO_FIGURE
    return Cell(text=show(peer["ratio"], ".2f"), small=f"{show_ratio_interval(peer['interval'])}, {peer['against']}")


# --- the device's clock ---------------------------------------------------------------------------------------------------


def device_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """The accelerator's own clock: copies, compute, launching, graphs, and inferences in flight."""

    def median(head: str, *keys: str) -> ColumnMaker:
        return column(head, lambda pair: show_ns(dig(pair[1], "device", *keys, "p50")), "ms")

    pairs = batches_of(rows, subjects)
    shown = [pair for pair in pairs if pair[1].get("device")]
    columns = [
        SUBJECT,
        BATCH,
        median("copy in (H2D)", "h2d_ns"),
        median("compute", "compute_ns"),
        median("copy out (D2H)", "d2h_ns"),
        median("all three", "latency_ns"),
        median("enqueue", "enqueue_ns"),
        median("compute in a CUDA graph", "graph", "compute_ns"),
        column("pipelined", _pipelined, "images/s"),
        column("warnings", lambda pair: ", ".join(pair[1]["device"].get("warnings", ())), kind="text"),
    ]
    absent = unavailable("device clock:", lacking(pairs, "device"), rows)
    for part, parent in (("graph", "device"), ("pipelined", "")):
        reasons = [
            (f"{row.label} at batch {entry['batch']}", reason_for(entry, part))
            for row, entry in shown
            if not (entry[parent] if parent else entry).get(part)
        ]
        absent += unavailable(f"{part}:", reasons, rows)
    return make_table(
        "device",
        "On the device's clock",
        "Medians. Enqueue is the processor's time to launch the work: where it is above compute, the GPU waits for the "
        "processor. Lower is faster; pipelined throughput overlaps copies with compute, and higher is faster.",
        columns,
        shown,
        absent,
    )


def _pipelined(pair: Pair) -> Cell:
    pipelined = pair[1].get("pipelined")
    if not pipelined:
        return NO_FIGURE
    return Cell(text=show_ms(pipelined["images_per_s"]), small=f"{pipelined['in_flight']} in flight")


# --- scenarios ------------------------------------------------------------------------------------------------------------


def scenario_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """LoadGen's verdicts."""
    both = list(zip(rows, subjects, strict=True))
    pairs = [(row, entry) for row, subject in both for entry in subject.get("scenarios") or ()]
    columns = [
        SUBJECT,
        column("scenario", lambda pair: str(pair[1]["scenario"]), kind="text"),
        column("verdict", lambda pair: badge(pair[1]["verdict"]), kind="text"),
        column("metric", _metric),
        *(_percentile(name) for name in ("p50", "p90", "p95", "p97", "p99", "p99.9")),
        column("queries", lambda pair: show(pair[1]["queries"], ".0f")),
        column("time", lambda pair: show(pair[1]["duration_ns"], ".1f", 1e-9), "s"),
        column("bound", lambda pair: show_ns(pair[1].get("latency_bound_ns")), "ms"),
        column("harness", lambda pair: show_ms(scaled(pair[1].get("harness_share"), 100)), "%"),
        column("why invalid", lambda pair: ", ".join(pair[1]["reasons"]), kind="text"),
    ]
    reasons = [] if pairs else [(row.label, NOT_MEASURED) for row, subject in both if subject["batches"]]
    versions = sorted({str(entry["loadgen_version"]) for _, entry in pairs if entry.get("loadgen_version")})
    return make_table(
        "scenarios",
        "MLPerf LoadGen scenarios",
        f"LoadGen {', '.join(versions)} sends the queries and judges. Lower latency and higher throughput are better. "
        "Harness: LoadGen's own time per query, of the median.",
        columns,
        pairs,
        unavailable("scenarios:", reasons, rows),
    )


def _metric(pair: Pair) -> Cell:
    metric = pair[1]["metric"]
    value, unit = metric["value"], metric["unit"]
    if value is None:
        return NO_FIGURE
    return Cell(text=f"{show_ns(value)} ms" if unit == "ns" else f"{show_ms(value)} {unit}", small=metric["name"])
