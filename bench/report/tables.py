"""Every table of a result: the scorecard, then those of latencies, then those of the machine.

Everything is read from the results' JSON, so a file from another machine will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alexnet_edge.bench.report.columns import (
    BATCH,
    NO_FIGURE,
    SUBJECT,
    Cell,
    Column,
    Pair,
    Subjects,
    Table,
    badge,
    figure_column,
    lacking,
    make_table,
    reason_for,
    time_column,
    unavailable,
)
from alexnet_edge.bench.report.numbers import (
    NOT_AVAILABLE,
    NOT_MEASURED,
    show,
    show_interval,
    show_ms,
    show_ns,
    show_percent,
    show_ratio,
)
from alexnet_edge.bench.report.rows import Row, tail_of, worst_layer
from alexnet_edge.bench.report.words import plain_loop_sentence

_PERCENTILES = [time_column(name, "percentiles_ns", name) for name in ("p50", "p90", "p95", "p99", "p99.9")]
_WHY_INVALID = Column("why invalid", lambda pair: ", ".join(pair[1]["reasons"]), kind="text")


def every_table(bench: Mapping[str, Any], rows: Sequence[Row], subjects: Subjects) -> list[Table]:
    """The tables after the scorecard, in order; one without rows has its reason in `absent`."""
    makers = (_batch_table, _roofline_table, _scenario_table, _device_table, _energy_table, _thermal_table)
    return [
        *(make(rows, subjects) for make in makers),
        _harness_table(bench.get("harness"), rows),
        _peaks_table(bench.get("peaks") or ()),
    ]


def scorecard(rows: Sequence[Row], settings: Mapping[str, Any] | None, *, name: str = "scorecard") -> Table:
    """Every subject's proof, latency, throughput, size, energy and verdict."""
    swept = len({row.group for row in rows}) < len(rows)
    columns = [
        Column("subject", lambda row: Cell(row.label if swept else row.group, row.setup), kind="name"),
        Column("proof", lambda row: badge(row.proof), kind="text"),
        Column("measured", lambda row: badge(row.measured), kind="text"),
        Column("top-1", _accuracy, "%"),
        Column(
            "agreement",
            lambda row: Cell(show_percent(row.agreement), show_interval(row.agreement_interval, show_percent)),
            "%",
        ),
        Column("max abs error", lambda row: "0" if row.max_abs_error == 0 else show(row.max_abs_error, ".1e")),
        Column("p50", lambda row: Cell(show_ms(row.p50_ms), show_interval(row.p50_interval_ms, show_ms)), "ms"),
        Column(tail_of(settings), lambda row: show_ms(row.tail_ms), "ms"),
        Column("cold p50", lambda row: show_ms(row.cold_p50_ms), "ms"),
        Column(
            "best",
            lambda row: Cell(show_ms(row.images_per_s), f"batch {row.images_per_s_batch}" if row.images_per_s else ""),
            "images/s",
        ),
        Column(
            "speed-up",
            lambda row: Cell(show_ratio(row.speed_up), show_interval(row.speed_up_interval, show_ratio)),
            "×",
        ),
        Column("roofline", lambda row: show_percent(row.roofline), "%"),
        Column("energy", _energy, "mJ/image"),
        Column("file", lambda row: show(row.megabytes, ".1f"), "MB"),
        Column("memory", lambda row: show(row.memory_mb, ".0f"), "MB"),
        Column(
            "load",
            lambda row: Cell(show_ms(row.load_ms), f"first {show_ms(row.first_ms)}" if row.first_ms else ""),
            "ms",
        ),
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
    return Cell(show_percent(row.accuracy), f"{100 * row.accuracy_change:+.1f}" if row.accuracy_change else "")


def _energy(row: Row) -> Cell:
    small = "" if row.net_mj_per_image is None else f"net {show_ms(row.net_mj_per_image)}"
    return Cell(show_ms(row.mj_per_image), small)


def _batches_of(rows: Sequence[Row], subjects: Subjects) -> list[Pair]:
    """Every batch of every subject, with the subject's row."""
    return [(row, entry) for row, subject in zip(rows, subjects, strict=True) for entry in subject["batches"]]


def _batch_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """Every batch of every subject, warm and cold."""
    columns = [
        SUBJECT,
        BATCH,
        Column("samples", lambda pair: str(pair[1]["count"])),
        time_column("mean", "mean_ns"),
        *_PERCENTILES,
        Column("CV", lambda pair: show_percent(pair[1]["cv"]), "%"),
        Column("cold p50", _cold, "ms"),
        figure_column("images/s", "", "images_per_s"),
        figure_column("queries/s", "", "queries_per_s"),
        Column("× fastest peer", _against_peer),
        Column("result", lambda pair: badge(pair[1]["verdict"]), kind="text"),
        _WHY_INVALID,
    ]
    pairs = _batches_of(rows, subjects)
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
    return Cell(show_ns(cold["percentiles_ns"]["p50"]), "" if cold.get("valid", True) else "invalid")


def _against_peer(pair: Pair) -> Cell:
    peer = pair[1].get("against_fastest_peer")
    if not peer:
        return NO_FIGURE
    return Cell(show_ratio(peer["ratio"]), f"{show_interval(peer['interval'], show_ratio)}, {peer['against']}")


def _device_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """The accelerator's own clock: copies, compute, launching, graphs, and inferences in flight."""
    pairs = _batches_of(rows, subjects)
    shown = [pair for pair in pairs if pair[1].get("device")]
    columns = [
        SUBJECT,
        BATCH,
        time_column("copy in (H2D)", "device", "h2d_ns", "p50"),
        time_column("compute", "device", "compute_ns", "p50"),
        time_column("copy out (D2H)", "device", "d2h_ns", "p50"),
        time_column("all three", "device", "latency_ns", "p50"),
        time_column("enqueue", "device", "enqueue_ns", "p50"),
        time_column("compute in a CUDA graph", "device", "graph", "compute_ns", "p50"),
        Column("pipelined", _pipelined, "images/s"),
        Column("warnings", lambda pair: ", ".join(pair[1]["device"].get("warnings", ())), kind="text"),
    ]
    absent = unavailable("device clock:", lacking(pairs, "device"), rows)
    for part in ("graph", "pipelined"):
        reasons = [
            (f"{row.label} at batch {entry['batch']}", reason_for(entry, part))
            for row, entry in shown
            if not (entry["device"] if part == "graph" else entry).get(part)
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
    return Cell(show_ms(pipelined["images_per_s"]), f"{pipelined['in_flight']} in flight")


def _scenario_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """LoadGen's verdicts."""
    both = list(zip(rows, subjects, strict=True))
    pairs = [(row, entry) for row, subject in both for entry in subject.get("scenarios") or ()]
    columns = [
        SUBJECT,
        Column("scenario", lambda pair: str(pair[1]["scenario"]), kind="text"),
        Column("verdict", lambda pair: badge(pair[1]["verdict"]), kind="text"),
        Column("metric", _metric),
        *_PERCENTILES[:3],
        time_column("p97", "percentiles_ns", "p97"),
        *_PERCENTILES[3:],
        Column("queries", lambda pair: show(pair[1]["queries"], ".0f")),
        Column("time", lambda pair: show(pair[1]["duration_ns"], ".1f", 1e-9), "s"),
        Column("bound", lambda pair: show_ns(pair[1].get("latency_bound_ns")), "ms"),
        Column("harness", lambda pair: show_ms(pair[1].get("harness_share"), 100), "%"),
        _WHY_INVALID,
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
    return Cell(f"{show_ns(value)} ms" if unit == "ns" else f"{show_ms(value)} {unit}", metric["name"])


def _roofline_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """Each subject's median against the least time that the machine's own peaks allow."""
    pairs = list(zip(rows, subjects, strict=True))
    shown = [(row, subject["roofline"]) for row, subject in pairs if subject.get("roofline")]
    columns = [
        SUBJECT,
        BATCH,
        time_column("floor", "floor_ns"),
        time_column("p50", "p50_ns"),
        Column("of the roofline", lambda pair: show_percent(pair[1]["share"]), "%"),
        Column("round by round", _by_round, "%"),
        Column("most above its floor", _worst, kind="text"),
        time_column("in no layer", "other_ns"),
        Column("bound by memory", _bound_by_memory, kind="text"),
    ]
    measured = [(row, subject) for row, subject in pairs if subject["batches"]]
    untimed = [(row.label, roofline["unavailable"]) for row, roofline in shown if roofline["unavailable"]]
    notes: dict[str, list[str]] = {}
    for row, roofline in shown:
        if roofline.get("notes"):
            notes.setdefault("; ".join(roofline["notes"]), []).append(row.label)
    return make_table(
        "roofline",
        "Roofline",
        "The floor is the least time in which this machine can move the network's bytes and do its multiply-adds, "
        "layer by layer, at the best that any round reached. Nearer to 100 % leaves less to gain. Round by round: each "
        "round's median against the median rates of the same round, with its 95 % interval: for machines whose speed changes.",
        columns,
        shown,
        [
            *unavailable("roofline:", lacking(measured, "roofline"), rows),
            *unavailable("time by layer:", untimed, rows),
            *(f"{', '.join(labels)}: {text}" for text, labels in notes.items()),
        ],
    )


def _by_round(pair: Pair) -> Cell:
    by_round = pair[1].get("by_round")
    if by_round is None:
        return NO_FIGURE
    return Cell(show_percent(by_round["share"]), show_interval(by_round["interval"], show_percent))


def _worst(pair: Pair) -> Cell:
    layer = worst_layer(pair[1])
    return NO_FIGURE if layer is None else Cell(layer["name"], f"{show_ns(layer['above_ns'])} ms above its floor")


def _bound_by_memory(pair: Pair) -> str:
    return ", ".join(layer["name"] for layer in pair[1]["layers"] if layer["bound"] == "memory") or "none"


def _energy_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """Power and energy of every batch that was metered."""
    pairs = _batches_of(rows, subjects)
    columns = [
        SUBJECT,
        BATCH,
        Column("rail", lambda pair: str(pair[1]["energy"].get("rail") or NOT_AVAILABLE), kind="text"),
        figure_column("power", "W", "energy", "watts"),
        figure_column("idle", "W", "energy", "idle_watts"),
        figure_column("energy", "mJ/image", "energy", "mj_per_image"),
        figure_column("net of idling", "mJ/image", "energy", "net_mj_per_image"),
        figure_column("efficiency", "images/s/W", "energy", "images_per_s_per_watt"),
        Column("start–end", lambda pair: _ends(pair[1]["energy"].get("temperature_c")), "°C"),
        Column("clocks", lambda pair: _clocks(pair[1]["energy"].get("clocks")), kind="text"),
        Column("why incomplete", lambda pair: "; ".join(pair[1]["energy"].get("reasons") or ()), kind="text"),
    ]
    return make_table(
        "energy",
        "Power and energy",
        "Energy is mean power over the timed inferences, divided by images per second; net: less the power of the idle "
        "machine. Lower energy and higher efficiency are better.",
        columns,
        [pair for pair in pairs if pair[1].get("energy")],
        unavailable("energy:", lacking(pairs, "energy"), rows),
    )


def _ends(values: Sequence[float | None] | None) -> str:
    return "–".join(f"{value:.1f}" for value in values or () if value is not None) or NOT_AVAILABLE


def _clocks(clocks: Mapping[str, Sequence[float]] | None) -> str:
    parts = [
        f"{name} {'–'.join(dict.fromkeys(f'{value:.0f}' for value in ends))} MHz"
        for name, ends in (clocks or {}).items()
    ]
    return ", ".join(parts) or NOT_AVAILABLE


_STATES = {
    "temperature_c": ("temperature", "°C"),
    "cpu_mhz": ("processor", "MHz"),
    "gpu_mhz": ("GPU", "MHz"),
    "emc_mhz": ("GPU memory", "MHz"),
    "cpu_governor": ("governor", ""),
    "throttled": ("throttled by", ""),
    "load_average_1min": ("load average", ""),
}
"""By key of the machine's state: head and unit of its column."""


def _thermal_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """What the machine was doing before and after each subject's rounds."""
    pairs = [(row, subject["rounds"]) for row, subject in zip(rows, subjects, strict=True) if subject["rounds"]]

    def state(key: str) -> Column:
        head, unit = _STATES[key]
        kind: Any = "text" if key in ("cpu_governor", "throttled") else "figure"
        return Column(head, lambda pair: _range_of(_states(pair[1], key)), unit, kind)

    seen = [key for key in _STATES if any(_states(rounds, key) for _, rounds in pairs)]
    unseen = [head for key, (head, _) in _STATES.items() if key not in seen]
    return make_table(
        "thermals",
        "The machine meanwhile",
        "Lowest to highest, before and after the rounds. A changing temperature or clock makes results hard to compare.",
        [SUBJECT, *map(state, seen)],
        pairs if seen else (),
        [f"{', '.join(unseen)}: unavailable: this machine does not tell"] if unseen else (),
    )


def _states(rounds: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    values = (round_.get(when, {}).get(key) for round_ in rounds for when in ("before", "after"))
    return [value for value in values if value is not None]


def _range_of(values: Sequence[Any]) -> str:
    if not values:
        return NOT_AVAILABLE
    if isinstance(values[0], list):
        return ", ".join(dict.fromkeys(name for names in values for name in names)) or "nothing"
    if isinstance(values[0], str):
        return ", ".join(dict.fromkeys(values))
    return "–".join(dict.fromkeys(show_ms(value) for value in (min(values), max(values))))


def _harness_table(harness: Mapping[str, Any] | None, rows: Sequence[Row]) -> Table:
    """What measuring itself costs: the same harness with a session that answers at once."""
    figures = harness or {}
    fastest_ms = min((row.p50_ms for row in rows if row.p50_ms is not None), default=None)
    parts = [
        (name, {"percentiles": figures.get(f"{key}_ns"), "loop": figures.get(loop), "count": figures.get(count)})
        for name, key, loop, count in (
            ("timing one inference", "sample", "sample_loop_ns", "samples"),
            ("one LoadGen query", "loadgen_query", "loadgen_loop_ns", "queries"),
        )
    ]

    def share(part: Any) -> str:
        p50_ns = part[1]["percentiles"].get("p50")
        return show_ms(None if fastest_ms is None or p50_ns is None else p50_ns / fastest_ms / 1e4)

    columns = [
        Column("harness", lambda part: str(part[0]), kind="name"),
        *(figure_column(name, "µs", "percentiles", name, scale=1e-3) for name in ("p50", "p90", "p99")),
        figure_column("whole loop", "µs", "loop", scale=1e-3),
        Column("samples", lambda part: show(part[1]["count"], ",.0f")),
        Column("of the fastest p50", share, "%"),
    ]
    caption = "The same loop around a session that answers at once. It is part of every latency shown; lower is better."
    if plain := figures.get("plain_loop"):
        caption += f" {plain_loop_sentence(plain)}"
    missing = [name for name, part in parts if not part["percentiles"]] if harness else ["harness overhead"]
    why = figures.get("unavailable") or NOT_MEASURED
    return make_table(
        "harness",
        "What measuring costs",
        caption,
        columns,
        [part for part in parts if part[1]["percentiles"]],
        [f"{name}: unavailable: {why}" for name in missing],
    )


def _peaks_table(every_peaks: Sequence[Mapping[str, Any]]) -> Table:
    """What the machine can do, as measured on it."""
    entries = [(peaks["device"], peaks) for peaks in every_peaks]
    elements = dict.fromkeys(name for peaks in every_peaks for name in peaks["multiply_adds_per_s"])
    columns = [
        Column("device", lambda pair: str(pair[0]), kind="name"),
        Column("threads", lambda pair: str(pair[1]["threads"] or NOT_AVAILABLE) if pair[0] == "cpu" else ""),
        figure_column("read", "GB/s", "read_bytes_per_s", scale=1e-9),
        figure_column("copy", "GB/s", "copy_bytes_per_s", scale=1e-9),
        *(
            figure_column(name.upper(), "G multiply-adds/s", "multiply_adds_per_s", name, scale=1e-9)
            for name in elements
        ),
    ]
    kernels = dict.fromkeys(
        f"{name} on {device}: {details['kernel']}"
        for device, peaks in entries
        for name, details in peaks.get("how", {}).items()
        if isinstance(details, Mapping) and "kernel" in details
    )
    missing = dict.fromkeys(
        f"{name} on {device}: unavailable: {reason}"
        for device, peaks in entries
        for name, reason in peaks.get("unavailable", {}).items()
    )
    return make_table(
        "peaks",
        "What the machine can do",
        "The best rates measured on it; higher is faster." + (f" Kernels: {'; '.join(kernels)}." if kernels else ""),
        columns,
        entries,
        missing if every_peaks else [f"peaks: unavailable: {NOT_MEASURED}"],
    )
