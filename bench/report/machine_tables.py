"""The tables of the machine: roofline, power and energy, temperatures and clocks, the harness's cost, the peaks."""

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
    batches_of,
    column,
    lacking,
    make_table,
    unavailable,
)
from alexnet_edge.bench.report.numbers import (
    NOT_AVAILABLE,
    NOT_MEASURED,
    scaled,
    show_ms,
    show_ns,
    show_percent,
    show_percent_interval,
)
from alexnet_edge.bench.report.rows import Row, worst_layer
from alexnet_edge.bench.report.words import plain_loop_sentence

# --- the roofline ---------------------------------------------------------------------------------------------------------


def roofline_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """Each subject's median against the least time that the machine's own peaks allow."""
    pairs = list(zip(rows, subjects, strict=True))
    shown = [(row, subject["roofline"]) for row, subject in pairs if subject.get("roofline")]
    columns = [
        SUBJECT,
        BATCH,
        column("floor", lambda pair: show_ns(pair[1]["floor_ns"]), "ms"),
        column("p50", lambda pair: show_ns(pair[1]["p50_ns"]), "ms"),
        column("of the roofline", lambda pair: show_percent(pair[1]["share"]), "%"),
        column("round by round", _by_round, "%"),
        column("most above its floor", _worst, kind="text"),
        column("in no layer", lambda pair: show_ns(pair[1]["other_ns"]), "ms"),
        column("bound by memory", _bound_by_memory, kind="text"),
    ]
    measured = [(row, subject) for row, subject in pairs if subject["batches"]]
    untimed = [(row.label, roofline["unavailable"]) for row, roofline in shown if roofline["unavailable"]]
    absent = unavailable("roofline:", lacking(measured, "roofline"), rows)
    absent += unavailable("time by layer:", untimed, rows)
    notes: dict[str, list[str]] = {}
    for row, roofline in shown:
        if roofline.get("notes"):
            notes.setdefault("; ".join(roofline["notes"]), []).append(row.label)
    absent += [f"{', '.join(labels)}: {text}" for text, labels in notes.items()]
    return make_table(
        "roofline",
        "Roofline",
        "The floor is the least time in which this machine can move the network's bytes and do its multiply-adds, "
        "layer by layer, at the best that any round reached. Nearer to 100 % leaves less to gain. Round by round: each "
        "round's median against the median rates of the same round, with its 95 % interval: for machines whose speed changes.",
        columns,
        shown,
        absent,
    )


def _by_round(pair: Pair) -> Cell:
    by_round = pair[1].get("by_round")
    if by_round is None:
        return NO_FIGURE
    return Cell(text=show_percent(by_round["share"]), small=show_percent_interval(by_round["interval"]))


def _worst(pair: Pair) -> Cell:
    layer = worst_layer(pair[1])
    if layer is None:
        return NO_FIGURE
    return Cell(text=layer["name"], small=f"{show_ns(layer['above_ns'])} ms above its floor")


def _bound_by_memory(pair: Pair) -> str:
    return ", ".join(layer["name"] for layer in pair[1]["layers"] if layer["bound"] == "memory") or "none"


# --- power, temperatures, clocks ------------------------------------------------------------------------------------------


def energy_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """Power and energy of every batch that was metered."""

    def figure(head: str, unit: str, key: str) -> ColumnMaker:
        return column(head, lambda pair: show_ms(pair[1]["energy"].get(key)), unit)

    pairs = batches_of(rows, subjects)
    columns = [
        SUBJECT,
        BATCH,
        column("rail", lambda pair: str(pair[1]["energy"].get("rail") or NOT_AVAILABLE), kind="text"),
        figure("power", "W", "watts"),
        figure("idle", "W", "idle_watts"),
        figure("energy", "mJ/image", "mj_per_image"),
        figure("net of idling", "mJ/image", "net_mj_per_image"),
        figure("efficiency", "images/s/W", "images_per_s_per_watt"),
        column("start–end", lambda pair: _ends(pair[1]["energy"].get("temperature_c")), "°C"),
        column("clocks", lambda pair: _clocks(pair[1]["energy"].get("clocks")), kind="text"),
        column("why incomplete", lambda pair: "; ".join(pair[1]["energy"].get("reasons") or ()), kind="text"),
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


_STATES = (
    ("temperature_c", "temperature", "°C"),
    ("cpu_mhz", "processor", "MHz"),
    ("gpu_mhz", "GPU", "MHz"),
    ("emc_mhz", "GPU memory", "MHz"),
    ("cpu_governor", "governor", ""),
    ("throttled", "throttled by", ""),
    ("load_average_1min", "load average", ""),
)
"""Key of the machine's state, head and unit of its column."""


def thermal_table(rows: Sequence[Row], subjects: Subjects) -> Table:
    """What the machine was doing before and after each subject's rounds."""
    pairs = [(row, subject["rounds"]) for row, subject in zip(rows, subjects, strict=True) if subject["rounds"]]

    def state(key: str, head: str, unit: str) -> ColumnMaker:
        kind = "text" if key in ("cpu_governor", "throttled") else "figure"
        return column(head, lambda pair: _range_of(pair[1], key), unit, kind)  # type: ignore[arg-type]

    seen = [entry for entry in _STATES if any(_states(rounds, entry[0]) for _, rounds in pairs)]
    unseen = [head for key, head, unit in _STATES if (key, head, unit) not in seen]
    return make_table(
        "thermals",
        "The machine meanwhile",
        "Lowest to highest, before and after the rounds. A changing temperature or clock makes results hard to compare.",
        [SUBJECT, *(state(*entry) for entry in seen)],
        pairs if seen else (),
        [f"{', '.join(unseen)}: unavailable: this machine does not tell"] if unseen else (),
    )


def _states(rounds: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    values = (round_.get(when, {}).get(key) for round_ in rounds for when in ("before", "after"))
    return [value for value in values if value is not None]


def _range_of(rounds: Sequence[Mapping[str, Any]], key: str) -> str:
    values = _states(rounds, key)
    if not values:
        return NOT_AVAILABLE
    if isinstance(values[0], list):
        return ", ".join(dict.fromkeys(name for names in values for name in names)) or "nothing"
    if isinstance(values[0], str):
        return ", ".join(dict.fromkeys(values))
    return "–".join(dict.fromkeys(show_ms(value) for value in (min(values), max(values))))


# --- the harness and the peaks --------------------------------------------------------------------------------------------


def harness_table(harness: Mapping[str, Any] | None, rows: Sequence[Row]) -> Table:
    """What measuring itself costs: the same harness with a session that answers at once."""
    figures = harness or {}
    fastest_ms = min((row.p50_ms for row in rows if row.p50_ms is not None), default=None)
    parts = [
        ("timing one inference", figures.get("sample_ns"), figures.get("sample_loop_ns"), figures.get("samples")),
        ("one LoadGen query", figures.get("loadgen_query_ns"), figures.get("loadgen_loop_ns"), figures.get("queries")),
    ]

    def percentile(name: str) -> ColumnMaker:
        return column(name, lambda part: show_ms(scaled(part[1].get(name), 1e-3)), "µs")

    def share(part: Any) -> str:
        p50_ns = part[1].get("p50")
        return show_ms(None if fastest_ms is None or p50_ns is None else p50_ns / fastest_ms / 1e4)

    columns = [
        column("harness", lambda part: str(part[0]), kind="name"),
        *(percentile(name) for name in ("p50", "p90", "p99")),
        column("whole loop", lambda part: show_ms(scaled(part[2], 1e-3)), "µs"),
        column("samples", lambda part: NOT_AVAILABLE if part[3] is None else f"{part[3]:,}"),
        column("of the fastest p50", share, "%"),
    ]
    caption = "The same loop around a session that answers at once. It is part of every latency shown; lower is better."
    if plain := figures.get("plain_loop"):
        caption += f" {plain_loop_sentence(plain)}"
    missing = [name for name, percentiles, _, _ in parts if not percentiles] if harness else ["harness overhead"]
    why = figures.get("unavailable") or NOT_MEASURED
    return make_table(
        "harness",
        "What measuring costs",
        caption,
        columns,
        [part for part in parts if part[1]],
        [f"{name}: unavailable: {why}" for name in missing],
    )


def peaks_table(every_peaks: Sequence[Mapping[str, Any]]) -> Table:
    """What the machine can do, as measured on it."""

    def speed(name: str) -> ColumnMaker:
        return column(
            name.upper(),
            lambda peaks: show_ms(scaled(peaks["multiply_adds_per_s"].get(name), 1e-9)),
            "G multiply-adds/s",
        )

    elements = dict.fromkeys(name for peaks in every_peaks for name in peaks["multiply_adds_per_s"])
    columns = [
        column("device", lambda peaks: str(peaks["device"]), kind="name"),
        column("threads", lambda peaks: str(peaks["threads"] or NOT_AVAILABLE) if peaks["device"] == "cpu" else ""),
        column("read", lambda peaks: show_ms(scaled(peaks["read_bytes_per_s"], 1e-9)), "GB/s"),
        column("copy", lambda peaks: show_ms(scaled(peaks["copy_bytes_per_s"], 1e-9)), "GB/s"),
        *map(speed, elements),
    ]
    kernels = dict.fromkeys(
        f"{name} on {peaks['device']}: {details['kernel']}"
        for peaks in every_peaks
        for name, details in peaks.get("how", {}).items()
        if isinstance(details, Mapping) and "kernel" in details
    )
    missing = dict.fromkeys(
        f"{name} on {peaks['device']}: unavailable: {reason}"
        for peaks in every_peaks
        for name, reason in peaks.get("unavailable", {}).items()
    )
    return make_table(
        "peaks",
        "What the machine can do",
        "The best rates measured on it; higher is faster." + (f" Kernels: {'; '.join(kernels)}." if kernels else ""),
        columns,
        every_peaks,
        list(missing) if every_peaks else [f"peaks: unavailable: {NOT_MEASURED}"],
    )
