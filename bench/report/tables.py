"""Results as rows, tables, Markdown and CSV. Everything is read from the results' JSON, so a file from another machine will do.

A `Table` is made once and shown twice: as Markdown here, as HTML in the page. What a file does not have is left out, and
its reason is said; it is never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alexnet_edge.bench.report.numbers import (
    NOT_AVAILABLE,
    NOT_MEASURED,
    scaled,
    show,
    show_in_ms,
    show_interval,
    show_ms,
    show_percent,
)
from alexnet_edge.bench.report.rows import (
    Row,
    tail_of,
    worst_layer,
)
from alexnet_edge.bench.report.words import (
    grouped_by_reason,
    plain_loop_sentence,
)

# --- tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A figure as text, and its small print: an interval, a unit, a batch."""

    text: str
    small: str = ""
    badge: Literal["", "good", "bad", "note"] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    head: str
    unit: str = ""
    kind: Literal["figure", "text", "name"] = "figure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Columns and rows; `absent` says what is not there and why."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    absent: tuple[str, ...] = ()


_Maker = Callable[[Any], Cell | str]


def _table(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[tuple[Column, _Maker]],
    entries: Iterable[Any],
    absent: Sequence[str] = (),
) -> Table:
    """A table without the columns of which no entry has anything."""
    rows = [[cell if isinstance(cell, Cell) else Cell(text=cell) for _, make in columns for cell in [make(entry)]]
            for entry in entries]  # fmt: skip
    kept = [index for index in range(len(columns)) if any(row[index].text not in ("", NOT_AVAILABLE) for row in rows)]
    return Table(
        name=name,
        title=title,
        caption=caption,
        columns=tuple(columns[index][0] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in rows),
        absent=tuple(absent),
    )


def reasons_of(what: str, found: Iterable[tuple[str, str]], rows: Sequence[Row]) -> list[str]:
    """`(label, reason)` pairs as lines `what: unavailable: reason (labels)`; without labels where it is all of `rows`."""
    labels: dict[str, dict[str, None]] = {}
    for label, reason in found:
        labels.setdefault(reason or NOT_MEASURED, {})[label] = None
    everyone = {row.label for row in rows}
    return [
        f"{what} unavailable: {reason}"
        + ("" if set(named) == everyone else f" ({', '.join(grouped_by_reason(named, rows))})")
        for reason, named in labels.items()
    ]


_BADGES: dict[str, Literal["good", "bad"]] = {
    "passed": "good",
    "VALID": "good",
    "failed": "bad",
    "INVALID": "bad",
    "error": "bad",
}


def _badge(text: str) -> Cell:
    return Cell(text=text or NOT_AVAILABLE, badge=_BADGES.get(text, "note") if text else "")


_SUBJECT: tuple[Column, _Maker] = (Column(head="subject", kind="name"), lambda pair: str(pair[0].label))


def scorecard(rows: Sequence[Row], settings: Mapping[str, Any] | None, *, name: str = "scorecard") -> Table:
    """Every subject's proof, latency, throughput, size, energy and verdict."""
    batch = settings["batches"][0] if settings else None
    swept = len({row.group for row in rows}) < len(rows)
    columns: list[tuple[Column, _Maker]] = [
        (
            Column(head="subject", kind="name"),
            lambda row: Cell(text=row.label if swept else row.group, small=row.setup),
        ),
        (Column(head="proof", kind="text"), lambda row: _badge(row.proof)),
        (Column(head="measured", kind="text"), lambda row: _badge(row.measured)),
        (
            Column(head="top-1", unit="%"),
            lambda row: Cell(
                text=show_percent(row.accuracy),
                small=f"{100 * row.accuracy_change:+.1f}" if row.accuracy_change else "",
            ),
        ),
        (
            Column(head="agreement", unit="%"),
            lambda row: Cell(
                text=show_percent(row.agreement),
                small=show_interval(row.agreement_interval, lambda v: f"{100 * v:.1f}"),
            ),
        ),
        (Column(head="max abs error"), lambda row: "0" if row.max_abs_error == 0 else show(row.max_abs_error, ".1e")),
        (
            Column(head="p50", unit="ms"),
            lambda row: Cell(text=show_ms(row.p50_ms), small=show_interval(row.p50_interval_ms, show_ms)),
        ),
        (Column(head=tail_of(settings), unit="ms"), lambda row: show_ms(row.tail_ms)),
        (Column(head="cold p50", unit="ms"), lambda row: show_ms(row.cold_p50_ms)),
        (
            Column(head="best", unit="images/s"),
            lambda row: Cell(
                text=show_ms(row.images_per_s), small=f"batch {row.images_per_s_batch}" if row.images_per_s else ""
            ),
        ),
        (
            Column(head="speed-up", unit="×"),
            lambda row: Cell(
                text=show(row.speed_up, ".2f"), small=show_interval(row.speed_up_interval, "{:.2f}".format)
            ),
        ),
        (Column(head="roofline", unit="%"), lambda row: show_percent(row.roofline)),
        (
            Column(head="energy", unit="mJ/image"),
            lambda row: Cell(
                text=show_ms(row.mj_per_image),
                small="" if row.net_mj_per_image is None else f"net {show_ms(row.net_mj_per_image)}",
            ),
        ),
        (Column(head="file", unit="MB"), lambda row: show(row.megabytes, ".1f")),
        (Column(head="memory", unit="MB"), lambda row: show(row.memory_mb, ".0f")),
        (
            Column(head="load", unit="ms"),
            lambda row: Cell(text=show_ms(row.load_ms), small=f"first {show_ms(row.first_ms)}" if row.first_ms else ""),
        ),
    ]
    caption = ""
    if batch is not None:
        caption = f"Latencies and energy at batch {batch}. Small print: 95 % interval, change against the checkpoint, net of idling, and the first inference after loading. "
    if any(row.speed_up is not None for row in rows):
        caption += "Speed-up: against the checkpoint in PyTorch, eager, with the same threads. "
    return _table(name, "Scorecard", f"{caption}{NOT_AVAILABLE} is not available.", columns, rows)


_Entry = tuple[Row, Mapping[str, Any]]


def _entries(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> list[_Entry]:
    return [(row, entry) for row, subject in zip(rows, subjects, strict=True) for entry in subject["batches"]]


_BATCH: tuple[Column, _Maker] = (Column(head="batch"), lambda pair: str(pair[1]["batch"]))


def _measured_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.images_per_s is not None]


def batch_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """Every batch of every subject, warm and cold."""

    def percentile(name: str) -> tuple[Column, _Maker]:
        return Column(head=name, unit="ms"), lambda pair: show_ms(show_in_ms(pair[1]["percentiles_ns"][name]))

    def cold(pair: _Entry) -> Cell:
        value = pair[1].get("cold")
        if not value:
            return Cell(text=NOT_AVAILABLE)
        return Cell(
            text=show_ms(show_in_ms(value["percentiles_ns"]["p50"])),
            small="" if value.get("valid", True) else "invalid",
        )

    def against_peer(pair: _Entry) -> Cell:
        found = pair[1].get("against_fastest_peer")
        if not found:
            return Cell(text=NOT_AVAILABLE)
        interval = show_interval(found["interval"], "{:.2f}".format)
        return Cell(text=show(found["ratio"], ".2f"), small=f"{interval}, {found['against']}")

    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        _BATCH,
        (Column(head="samples"), lambda pair: str(pair[1]["count"])),
        (Column(head="mean", unit="ms"), lambda pair: show_ms(pair[1]["mean_ns"] / 1e6)),
        *(percentile(name) for name in ("p50", "p90", "p95", "p99", "p99.9")),
        (Column(head="CV", unit="%"), lambda pair: show_percent(pair[1]["cv"])),
        (Column(head="cold p50", unit="ms"), cold),
        (Column(head="images/s"), lambda pair: show_ms(pair[1]["images_per_s"])),
        (Column(head="queries/s"), lambda pair: show_ms(pair[1]["queries_per_s"])),
        (Column(head="× fastest peer"), against_peer),
        (Column(head="result", kind="text"), lambda pair: _badge(pair[1]["verdict"])),
        (Column(head="why invalid", kind="text"), lambda pair: ", ".join(pair[1]["reasons"])),
    ]
    entries = _entries(rows, subjects)
    lacking = [(row.label, _reason(entry, "cold")) for row, entry in entries if not entry.get("cold")]
    return _table(
        "batches",
        "Every batch",
        "Host end-to-end, warm. A percentile is left out where the samples are too few for it. "
        "CV: coefficient of variation; lower is steadier. × fastest peer: the median of the fastest other tool over this one.",
        columns,
        entries,
        reasons_of("cold cache:", lacking, _measured_rows(rows)),
    )


def _reason(entry: Mapping[str, Any], what: str) -> str:
    return str(entry.get("unavailable", {}).get(what) or NOT_MEASURED)


def device_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """The accelerator's own clock: copies, compute, launching, graphs, and inferences in flight."""

    def median(*keys: str) -> _Maker:
        def make(pair: _Entry) -> str:
            value: Any = pair[1]["device"]
            for key in keys:
                value = None if value is None else value.get(key)
            return show_ms(None if value is None else show_in_ms(value["p50"]))

        return make

    def pipelined(pair: _Entry) -> Cell:
        value = pair[1].get("pipelined")
        if not value:
            return Cell(text=NOT_AVAILABLE)
        return Cell(text=show_ms(value["images_per_s"]), small=f"{value['in_flight']} in flight")

    entries = _entries(rows, subjects)
    shown = [pair for pair in entries if pair[1].get("device")]
    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        _BATCH,
        (Column(head="copy in (H2D)", unit="ms"), median("h2d_ns")),
        (Column(head="compute", unit="ms"), median("compute_ns")),
        (Column(head="copy out (D2H)", unit="ms"), median("d2h_ns")),
        (Column(head="all three", unit="ms"), median("latency_ns")),
        (Column(head="enqueue", unit="ms"), median("enqueue_ns")),
        (Column(head="compute in a CUDA graph", unit="ms"), median("graph", "compute_ns")),
        (Column(head="pipelined", unit="images/s"), pipelined),
        (Column(head="warnings", kind="text"), lambda pair: ", ".join(pair[1]["device"].get("warnings", ()))),
    ]
    absent = reasons_of(
        "device clock:",
        [(row.label, _reason(entry, "device")) for row, entry in entries if not entry.get("device")],
        _measured_rows(rows),
    )
    lacking = {
        "graph": [pair for pair in shown if not pair[1]["device"].get("graph")],
        "pipelined": [pair for pair in shown if not pair[1].get("pipelined")],
    }
    for what, pairs in lacking.items():
        found = [(f"{row.label} at batch {entry['batch']}", _reason(entry, what)) for row, entry in pairs]
        absent += reasons_of(f"{what}:", found, _measured_rows(rows))
    return _table(
        "device",
        "On the device's clock",
        "Medians. Enqueue is the processor's time to launch the work: where it is above compute, the GPU waits for the "
        "processor. Lower is faster; pipelined throughput overlaps copies with compute, and higher is faster.",
        columns,
        shown,
        absent,
    )


def energy_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """Power and energy of every batch that was metered."""
    entries = _entries(rows, subjects)
    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        _BATCH,
        (Column(head="rail", kind="text"), lambda pair: str(pair[1]["energy"].get("rail") or NOT_AVAILABLE)),
        _energy("power", "W", "watts"),
        _energy("idle", "W", "idle_watts"),
        _energy("energy", "mJ/image", "mj_per_image"),
        _energy("net of idling", "mJ/image", "net_mj_per_image"),
        _energy("efficiency", "images/s/W", "images_per_s_per_watt"),
        (Column(head="start–end", unit="°C"), lambda pair: _ends(pair[1]["energy"].get("temperature_c"))),
        (Column(head="clocks", kind="text"), lambda pair: _clocks(pair[1]["energy"].get("clocks"))),
        (Column(head="why incomplete", kind="text"), lambda pair: "; ".join(pair[1]["energy"].get("reasons") or ())),
    ]
    return _table(
        "energy",
        "Power and energy",
        "Energy is mean power over the timed inferences, divided by images per second; net: less the power of the idle "
        "machine. Lower energy and higher efficiency are better.",
        columns,
        [pair for pair in entries if pair[1].get("energy")],
        reasons_of(
            "energy:",
            [(row.label, _reason(entry, "energy")) for row, entry in entries if not entry.get("energy")],
            _measured_rows(rows),
        ),
    )


def _energy(head: str, unit: str, key: str) -> tuple[Column, _Maker]:
    return Column(head=head, unit=unit), lambda pair: show_ms(pair[1]["energy"].get(key))


def _ends(values: Sequence[float | None] | None) -> str:
    known = [value for value in values or () if value is not None]
    return "–".join(f"{value:.1f}" for value in known) or NOT_AVAILABLE


def _clocks(clocks: Mapping[str, Sequence[float]] | None) -> str:
    parts = []
    for name, ends in (clocks or {}).items():
        text = "–".join(dict.fromkeys(f"{value:.0f}" for value in ends))
        parts.append(f"{name} {text} MHz")
    return ", ".join(parts) or NOT_AVAILABLE


def roofline_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """Each subject's median against the least time that the machine's own peaks allow."""
    pairs = list(zip(rows, subjects, strict=True))
    shown = [(row, subject["roofline"]) for row, subject in pairs if subject.get("roofline")]

    def worst(pair: _Entry) -> Cell:
        layer = worst_layer(pair[1])
        if layer is None:
            return Cell(text=NOT_AVAILABLE)
        return Cell(text=layer["name"], small=f"{show_ms(show_in_ms(layer['above_ns']))} ms above its floor")

    def by_round(pair: _Entry) -> Cell:
        found = pair[1].get("by_round")
        if found is None:
            return Cell(text=NOT_AVAILABLE)
        return Cell(
            text=show_percent(found["share"]), small=show_interval(found["interval"], lambda v: f"{100 * v:.1f}")
        )

    def bound(pair: _Entry) -> str:
        layers = [layer["name"] for layer in pair[1]["layers"] if layer["bound"] == "memory"]
        return ", ".join(layers) or "none"

    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        (Column(head="batch"), lambda pair: str(pair[1]["batch"])),
        (Column(head="floor", unit="ms"), lambda pair: show_ms(show_in_ms(pair[1]["floor_ns"]))),
        (Column(head="p50", unit="ms"), lambda pair: show_ms(show_in_ms(pair[1]["p50_ns"]))),
        (Column(head="of the roofline", unit="%"), lambda pair: show_percent(pair[1]["share"])),
        (Column(head="round by round", unit="%"), by_round),
        (Column(head="most above its floor", kind="text"), worst),
        (Column(head="in no layer", unit="ms"), lambda pair: show_ms(show_in_ms(pair[1]["other_ns"]))),
        (Column(head="bound by memory", kind="text"), bound),
    ]
    absent = reasons_of(
        "roofline:",
        [
            (row.label, str(subject.get("unavailable", {}).get("roofline") or NOT_MEASURED))
            for row, subject in pairs
            if subject["batches"] and not subject.get("roofline")
        ],
        _measured_rows(rows),
    )
    absent += reasons_of(
        "time by layer:",
        [(row.label, roofline["unavailable"]) for row, roofline in shown if roofline["unavailable"]],
        _measured_rows(rows),
    )
    notes: dict[str, list[str]] = {}
    for row, roofline in shown:
        if roofline.get("notes"):
            notes.setdefault("; ".join(roofline["notes"]), []).append(row.label)
    absent += [f"{', '.join(labels)}: {text}" for text, labels in notes.items()]
    return _table(
        "roofline",
        "Roofline",
        "The floor is the least time in which this machine can move the network's bytes and do its multiply-adds, "
        "layer by layer, at the best that any round reached. Nearer to 100 % leaves less to gain. Round by round: each "
        "round's median against the median rates of the same round, with its 95 % interval: for machines whose speed changes.",
        columns,
        shown,
        absent,
    )


def scenario_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """LoadGen's verdicts."""
    pairs = [
        (row, entry)
        for row, subject in zip(rows, subjects, strict=True)
        for entry in subject.get("scenarios") or ()
    ]  # fmt: skip

    def percentile(name: str) -> tuple[Column, _Maker]:
        return Column(head=name, unit="ms"), lambda pair: show_ms(show_in_ms(pair[1]["percentiles_ns"].get(name)))

    names = ("p50", "p90", "p95", "p97", "p99", "p99.9")
    columns: list[tuple[Column, _Maker]] = [
        _SUBJECT,
        (Column(head="scenario", kind="text"), lambda pair: str(pair[1]["scenario"])),
        (Column(head="verdict", kind="text"), lambda pair: _badge(pair[1]["verdict"])),
        (Column(head="metric"), _metric),
        *(percentile(name) for name in names),
        (Column(head="queries"), lambda pair: show(pair[1]["queries"], ".0f")),
        (Column(head="time", unit="s"), lambda pair: show(pair[1]["duration_ns"], ".1f", 1e-9)),
        (Column(head="bound", unit="ms"), lambda pair: show_ms(show_in_ms(pair[1].get("latency_bound_ns")))),
        (Column(head="harness", unit="%"), lambda pair: show_ms(scaled(pair[1].get("harness_share"), 100))),
        (Column(head="why invalid", kind="text"), lambda pair: ", ".join(pair[1]["reasons"])),
    ]
    measured = [row for row, subject in zip(rows, subjects, strict=True) if subject["batches"]]
    lacking = [] if pairs else [(row.label, NOT_MEASURED) for row in measured]
    versions = sorted({str(entry["loadgen_version"]) for _, entry in pairs if entry.get("loadgen_version")})
    return _table(
        "scenarios",
        "MLPerf LoadGen scenarios",
        f"LoadGen {', '.join(versions)} sends the queries and judges. Lower latency and higher throughput are better. "
        "Harness: LoadGen's own time per query, of the median.",
        columns,
        pairs,
        reasons_of("scenarios:", lacking, _measured_rows(rows)),
    )


def _metric(pair: _Entry) -> Cell:
    metric = pair[1]["metric"]
    value, unit = metric["value"], metric["unit"]
    if value is None:
        return Cell(text=NOT_AVAILABLE)
    if unit == "ns":
        return Cell(text=f"{show_ms(value / 1e6)} ms", small=metric["name"])
    return Cell(text=f"{show_ms(value)} {unit}", small=metric["name"])


def peaks_table(peaks: Sequence[Mapping[str, Any]]) -> Table:
    """What the machine can do, as measured on it."""

    def speed(name: str) -> tuple[Column, _Maker]:
        return (
            Column(head=name.upper(), unit="G multiply-adds/s"),
            lambda one: show_ms(scaled(one["multiply_adds_per_s"].get(name), 1e-9)),
        )

    columns: list[tuple[Column, _Maker]] = [
        (Column(head="device", kind="name"), lambda one: str(one["device"])),
        (Column(head="threads"), lambda one: str(one["threads"] or NOT_AVAILABLE) if one["device"] == "cpu" else ""),
        (Column(head="read", unit="GB/s"), lambda one: show_ms(scaled(one["read_bytes_per_s"], 1e-9))),
        (Column(head="copy", unit="GB/s"), lambda one: show_ms(scaled(one["copy_bytes_per_s"], 1e-9))),
        *(speed(name) for name in dict.fromkeys(key for one in peaks for key in one["multiply_adds_per_s"])),
    ]
    how = dict.fromkeys(
        f"{name} on {one['device']}: {told['kernel']}"
        for one in peaks
        for name, told in one.get("how", {}).items()
        if isinstance(told, Mapping) and "kernel" in told
    )
    missing = dict.fromkeys(
        f"{name} on {one['device']}: unavailable: {text}"
        for one in peaks
        for name, text in one.get("unavailable", {}).items()
    )
    return _table(
        "peaks",
        "What the machine can do",
        "The best rates measured on it; higher is faster." + (f" Kernels: {'; '.join(how)}." if how else ""),
        columns,
        peaks,
        list(missing) if peaks else [f"peaks: unavailable: {NOT_MEASURED}"],
    )


def harness_table(harness: Mapping[str, Any] | None, rows: Sequence[Row]) -> Table:
    """What measuring itself costs: the same harness with a session that answers at once."""
    found = harness or {}
    fastest = min((row.p50_ms for row in rows if row.p50_ms is not None), default=None)
    parts = (
        ("timing one inference", found.get("sample_ns"), found.get("sample_loop_ns"), found.get("samples")),
        ("one LoadGen query", found.get("loadgen_query_ns"), found.get("loadgen_loop_ns"), found.get("queries")),
    )

    def percentile(name: str) -> tuple[Column, _Maker]:
        return Column(head=name, unit="µs"), lambda part: show_ms(scaled(part[1].get(name), 1e-3))

    def share(part: Any) -> str:
        p50_ns = part[1].get("p50")
        return show_ms(None if fastest is None or p50_ns is None else p50_ns / fastest / 1e4)

    columns: list[tuple[Column, _Maker]] = [
        (Column(head="harness", kind="name"), lambda part: str(part[0])),
        *(percentile(name) for name in ("p50", "p90", "p99")),
        (Column(head="whole loop", unit="µs"), lambda part: show_ms(scaled(part[2], 1e-3))),
        (Column(head="samples"), lambda part: NOT_AVAILABLE if part[3] is None else f"{part[3]:,}"),
        (Column(head="of the fastest p50", unit="%"), share),
    ]
    caption = "The same loop around a session that answers at once. It is part of every latency shown; lower is better."
    if plain := found.get("plain_loop"):
        caption += f" {plain_loop_sentence(plain)}"
    lacking = [name for name, percentiles, _, _ in parts if not percentiles]
    why = found.get("unavailable") or NOT_MEASURED
    return _table(
        "harness",
        "What measuring costs",
        caption,
        columns,
        [part for part in parts if part[1]],
        [f"{name}: unavailable: {why}" for name in lacking] if harness else [f"harness overhead: unavailable: {why}"],
    )


_STATES = (
    ("temperature_c", "temperature", "°C"),
    ("cpu_mhz", "processor", "MHz"),
    ("gpu_mhz", "GPU", "MHz"),
    ("emc_mhz", "GPU memory", "MHz"),
    ("cpu_governor", "governor", ""),
    ("throttled", "throttled by", ""),
    ("load_average_1min", "load average", ""),
)


def thermal_table(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> Table:
    """What the machine was doing before and after each subject's rounds."""
    pairs = [(row, subject["rounds"]) for row, subject in zip(rows, subjects, strict=True) if subject["rounds"]]

    def column(key: str, head: str, unit: str) -> tuple[Column, _Maker]:
        kind: Literal["figure", "text"] = "text" if key in ("cpu_governor", "throttled") else "figure"
        return Column(head=head, unit=unit, kind=kind), lambda pair: _range_of(pair[1], key)

    seen = [state for state in _STATES if any(_states(rounds, state[0]) for _, rounds in pairs)]
    unseen = [state for state in _STATES if state not in seen]
    return _table(
        "thermals",
        "The machine meanwhile",
        "Lowest to highest, before and after the rounds. A changing temperature or clock makes results hard to compare.",
        [_SUBJECT, *(column(*state) for state in seen)],
        pairs if seen else (),
        [f"{', '.join(head for _, head, _ in unseen)}: unavailable: this machine does not tell"] if unseen else (),
    )


def _states(rounds: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    found = [taken.get(when, {}).get(key) for taken in rounds for when in ("before", "after")]
    return [value for value in found if value is not None]


def _range_of(rounds: Sequence[Mapping[str, Any]], key: str) -> str:
    known = _states(rounds, key)
    if not known:
        return NOT_AVAILABLE
    if isinstance(known[0], list):
        return ", ".join(dict.fromkeys(name for names in known for name in names)) or "nothing"
    if isinstance(known[0], str):
        return ", ".join(dict.fromkeys(known))
    return "–".join(dict.fromkeys(show_ms(value) for value in (min(known), max(known))))


def every_table(bench: Mapping[str, Any], rows: Sequence[Row]) -> list[Table]:
    """The tables after the scorecard, in order; one without rows says in `absent` why."""
    subjects = bench["subjects"]
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
