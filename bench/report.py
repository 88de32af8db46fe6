"""One self-contained HTML page about a network's artifacts: proved, measured, and how to repeat it.

The page loads nothing: styles and the plotting library are inside it. It reads in light and dark, on a phone and in print.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alexnet_edge import __version__
from alexnet_edge.artifact import Artifact
from alexnet_edge.bench.run import CLOCK, LOAD, subject_of
from alexnet_edge.bench.tables import (
    NOT_AVAILABLE,
    Row,
    headline,
    open_points,
    rows_of,
    show,
    show_ms,
    show_percent,
    tail_of,
)
from alexnet_edge.checkpoint import CheckpointInfo
from alexnet_edge.errors import UserError, needs
from alexnet_edge.files import write_text
from alexnet_edge.layers import LAYER_NAMES

COLOURS = ("#1F87C9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7A00", "#7F7F7F")
"""Okabe and Ito's palette, told apart with every common colour blindness; blue and yellow are shifted to read on white and on black."""

MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")

_AXIS: dict[str, Any] = {"gridcolor": "rgba(128,128,128,0.22)", "zeroline": False, "automargin": True, "ticks": ""}


def _axis(title: str = "", **options: Any) -> dict[str, Any]:
    return {**_AXIS, "title": {"text": title, "font": {"size": 13}, "standoff": 8}, **options}


_LAYOUT: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
    "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "bgcolor": "rgba(0,0,0,0)"},
    "dragmode": False,
    "hoverlabel": {"font": {"color": "#ffffff"}, "bgcolor": "#333333"},
}
_CONFIG = {"responsive": True, "displayModeBar": False, "scrollZoom": False}


def write_report(
    out: Path,
    *,
    bench: Mapping[str, Any] | None = None,
    artifacts: Sequence[Artifact] = (),
    checkpoint_info: CheckpointInfo | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    commands: Sequence[str] = (),
    title: str = "AlexNet on the edge",
) -> Path:
    """Write the page.

    Args:
        out: the HTML file.
        bench: results as `BenchResult.to_json()` or `read_results` give them.
        artifacts: further artifacts; those already among the results are not repeated.
        checkpoint_info: the checkpoint the artifacts came from.
        history: one mapping per epoch with `epoch`, `loss`, `val_loss`, `accuracy`, `top1`.
        commands: what to type to repeat everything, in order; by default the bench's own command.
        title: heading of the page.

    Raises:
        MissingComponentError: when jinja2 or plotly is not installed.
        OutputError: when `out` cannot be written.
        UserError: when there is neither a result nor an artifact.
    """
    with needs("bench"):
        import jinja2
        from plotly.offline import get_plotlyjs
    subjects = _all_subjects(bench, artifacts)
    if not subjects:
        raise UserError("nothing to report", value=out, fix="give results or artifacts")
    settings = bench["settings"] if bench else None
    rows = rows_of(subjects, settings)
    plots = _plots(subjects, rows, settings, history)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        created=bench["created"] if bench else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        interrupted=bool(bench and bench["interrupted"]),
        headline=headline(rows),
        all_proved=all(row.proof in ("passed", "reference") for row in rows),
        tiles=_tiles(rows),
        open_points=open_points(rows),
        rows=rows,
        tail=tail_of(settings),
        first_batch=settings["batches"][0] if settings else None,
        reference=next((row.label for row in rows if row.proof == "reference"), None),
        plots=plots,
        plotly_js=get_plotlyjs() if plots else "",
        batches=[(subject, entry) for subject in subjects for entry in subject["batches"]],
        layers=_layer_table(subjects),
        calibrations=_calibrations(subjects),
        checkpoint=_facts(_checkpoint_facts(checkpoint_info, subjects)),
        machine=_facts(_machine_facts(bench, artifacts)),
        method=_facts(_method_facts(bench)) if bench else [],
        commands=list(commands) or ([shlex.join(bench["command"])] if bench else []),
        hashes=[(row, subject["sha256"]) for row, subject in zip(rows, subjects, strict=True)],
        show=show,
        show_ms=show_ms,
        show_percent=show_percent,
        not_available=NOT_AVAILABLE,
    )
    write_text(out, page)
    return out


def _all_subjects(bench: Mapping[str, Any] | None, artifacts: Sequence[Artifact]) -> list[Mapping[str, Any]]:
    subjects = list(bench["subjects"]) if bench else []
    known = {subject["sha256"] for subject in subjects}
    further = [artifact for artifact in artifacts if artifact.manifest.sha256 not in known]
    return [*subjects, *(subject_of(artifact).to_json() for artifact in further)]


# --- text -----------------------------------------------------------------------------------------------------------------


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Figure, unit, caption."""
    artifacts = [row for row in rows if row.proof != "reference"]
    tiles = [
        (
            f"{sum(row.proof == 'passed' for row in artifacts)}/{len(artifacts)}",
            "proved",
            "within the stated tolerance of the checkpoint",
        )
    ]
    timed = [row for row in artifacts if row.p50_ms is not None and row.proof == "passed"]
    if timed:
        fastest = min(timed, key=lambda row: row.p50_ms or 0)
        tiles.append((show_ms(fastest.p50_ms), "ms p50", f"fastest proved: {fastest.label}"))
        busiest = max(timed, key=lambda row: row.images_per_s or 0)
        tiles.append(
            (
                show(busiest.images_per_s, ".0f"),
                "images/s",
                f"most: {busiest.label}, batch {busiest.images_per_s_batch}",
            )
        )
    proved = [row for row in artifacts if row.proof == "passed"]
    if proved:
        smallest = min(proved, key=lambda row: row.megabytes)
        tiles.append((show(smallest.megabytes, ".0f"), "MB", f"smallest proved: {smallest.label}"))
    return tiles


def _layer_table(subjects: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Per layer one cell per artifact: what was built, and whether it is what was asked for. The first row is the header."""
    shown = [subject for subject in subjects if subject["layers"]]
    if not shown:
        return []
    table: list[tuple[str, list[tuple[str, bool]]]] = [("layer", [(subject["label"], True) for subject in shown])]
    for name in LAYER_NAMES:
        cells = []
        for subject in shown:
            layer = next((entry for entry in subject["layers"] if entry["name"] == name), None)
            if layer is None:
                cells.append((NOT_AVAILABLE, True))
            elif layer["built"] == layer["requested"]:
                cells.append((layer["built"], True))
            else:
                cells.append((f"{layer['requested']} asked, {layer['built']} built", False))
        table.append((name, cells))
    evidence = [(", ".join(sorted({entry["evidence"] for entry in subject["layers"]})), True) for subject in shown]
    return [*table, ("read from", evidence)]


def _calibrations(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per calibration table; artifacts that share one are named together."""
    found: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        value = subject["calibration"]
        if value is None:
            continue
        entry = found.setdefault(
            str(value.get("table_sha256")),
            {
                "labels": [],
                "facts": _facts(
                    {
                        "method": value.get("method"),
                        "images": value.get("num_images"),
                        "source": _source(value.get("source", {})),
                        "left out": len(value.get("skipped", ())),
                        "images SHA-256": value.get("images_sha256"),
                        "table SHA-256": value.get("table_sha256"),
                    }
                ),
                "ranges": [
                    (name, amax, value.get("saturated", {}).get(name)) for name, amax in value.get("amax", {}).items()
                ],
            },
        )
        entry["labels"].append(subject["label"])
    return list(found.values())


def _source(source: Mapping[str, Any]) -> str:
    parts = [str(source[key]) for key in ("kind", "path", "split") if source.get(key)]
    return ", ".join(parts) or NOT_AVAILABLE


def _checkpoint_facts(info: CheckpointInfo | None, subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {"architecture": ", ".join(sorted({subject["architecture"] for subject in subjects}))}
    facts["SHA-256"] = ", ".join(sorted({subject["checkpoint_sha256"] for subject in subjects}))
    if info is not None:
        facts["classes"] = _shortened(info.classes)
        facts["trained on"] = _source(info.data.get("source", {}))
        facts |= {
            name.replace("_", " "): value for name, value in info.metrics.items() if isinstance(value, int | float)
        }
        facts["created"] = info.created
    return facts


def _shortened(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _machine_facts(bench: Mapping[str, Any] | None, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    machine: Mapping[str, Any] = bench["environment"] if bench else artifacts[0].manifest.environment
    facts = {name.replace("_", " "): value for name, value in machine.items() if name != "versions"}
    for name in ("memory bytes", "last level cache bytes"):
        if facts.get(name):
            facts[name.replace(" bytes", "")] = f"{facts[name] / 2**20:,.0f} MiB"
        facts.pop(name, None)
    versions = machine.get("versions", {})
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def _method_facts(bench: Mapping[str, Any]) -> dict[str, Any]:
    settings = bench["settings"]
    states = [
        taken[when] for subject in bench["subjects"] for taken in subject["rounds"] for when in ("before", "after")
    ]
    return {
        "clock": CLOCK,
        "load time": LOAD,
        "device": settings["device"],
        "threads": bench["threads"],
        "rounds": f"{settings['rounds']}, each in a fresh process, subjects interleaved",
        "stop": f"after {settings['min_seconds']:g} s and the samples p{settings['percentile']:g} needs, at most "
        f"{settings['max_seconds']:g} s per batch",
        "percentiles": "nearest rank, of all rounds' samples together; none is averaged",
        "intervals": f"{bench['confidence']:.0%}, bootstrap over rounds and blocks of neighbouring samples",
        "valid": f"enough samples, stable after warm-up, coefficient of variation at most {settings['max_cv']:.0%}, "
        f"median known to {settings['max_median_error']:.0%}, drift at most {settings['max_drift']:.0%}, one mode, "
        f"others use at most {settings['max_other_cpus']:g} processors",
        "inputs": f"{bench['inputs']['images']} real images in rotation ({_source(bench['inputs']['source'])})",
        "temperature °C": _range([state["temperature_c"] for state in states]),
        "processor MHz": _range([state["cpu_mhz"] for state in states]),
        "load average": _range([state["load_average_1min"] for state in states]),
    }


def _range(values: Sequence[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    return f"{min(known):.1f} to {max(known):.1f}" if known else None


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _fact(value)) for name, value in facts.items()]


def _fact(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "unavailable"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


# --- plots ----------------------------------------------------------------------------------------------------------------


def _plots(
    subjects: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    settings: Mapping[str, Any] | None,
    history: Sequence[Mapping[str, Any]] | None,
) -> list[dict[str, str]]:
    """Title, caption and HTML of each plot that has data."""
    plots = []
    timed = [(index, subject) for index, subject in enumerate(subjects) if subject["batches"]]
    if settings and timed:
        batch = settings["batches"][0]
        plots.append(
            _plot(
                "distribution",
                f"Latency, batch {batch}",
                "Every sample. Box: the middle half; line: the median. Logarithmic scale; further left is faster.",
                _distribution(timed, batch),
                height=90 + 44 * len(timed),
            )
        )
        plots.append(
            _plot(
                "throughput",
                "Throughput over batch",
                "Images answered per second of wall time. Higher is faster.",
                _throughput(timed, settings),
                height=400,
            )
        )
    placed = [(index, row) for index, row in enumerate(rows) if row.p50_ms is not None and row.accuracy is not None]
    if placed:
        plots.append(
            _plot(
                "tradeoff",
                "Accuracy, latency, size",
                "Area of a mark: size of the file. Further up and left is better.",
                _tradeoff(placed),
                height=400,
            )
        )
    if history:
        plots.append(_plot("training", "Training", "Loss and top-1 accuracy by epoch.", _training(history), height=380))
    return plots


def _plot(
    name: str, title: str, caption: str, figure: tuple[list[dict[str, Any]], dict[str, Any]], *, height: int
) -> dict[str, str]:
    with needs("bench"):
        from plotly import graph_objects, io
    traces, layout = figure
    drawn = graph_objects.Figure(data=traces, layout={"template": "none", **_LAYOUT, "height": height, **layout})
    html = io.to_html(
        drawn, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=f"plot-{name}", default_height=height
    )
    return {"name": name, "title": title, "caption": caption, "html": html}


def _style(index: int) -> tuple[str, str, str]:
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)]


def _distribution(
    timed: Sequence[tuple[int, Mapping[str, Any]]], batch: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    traces = []
    for index, subject in timed:
        entry = next((entry for entry in subject["batches"] if entry["batch"] == batch), None)
        if entry is None:
            continue
        colour, _, _ = _style(index)
        milliseconds = [round(value / 1e6, 4) for taken in entry["samples"] for value in taken["samples_ns"]]
        traces.append(
            {
                "type": "box",
                "orientation": "h",
                "x": milliseconds,
                "y": [subject["label"]] * len(milliseconds),
                "name": subject["label"],
                "showlegend": False,
                "line": {"color": colour, "width": 1.5},
                "marker": {"color": colour, "size": 4, "opacity": 0.6},
                "boxpoints": "outliers",
                "hoverinfo": "x",
            }
        )
    ticks = _ticks([value for trace in traces for value in trace["x"]])
    x = _axis("milliseconds", type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return traces, {"xaxis": x, "yaxis": _axis(autorange="reversed", showgrid=False)}


def _ticks(values: Sequence[float]) -> list[float]:
    """1, 2, 5, 10, ... within the range of `values`, and the next one on either side."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = [step * 10.0**power for power in range(low, high + 1) for step in (1, 2, 5)]
    return [step for step in steps if min(values) / 2.5 <= step <= max(values) * 2.5]


def _throughput(
    timed: Sequence[tuple[int, Mapping[str, Any]]], settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    traces = []
    for index, subject in timed:
        colour, marker, dash = _style(index)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [entry["batch"] for entry in subject["batches"]],
                "y": [round(entry["images_per_s"], 2) for entry in subject["batches"]],
                "name": subject["label"],
                "line": {"color": colour, "dash": dash, "width": 2},
                "marker": {"color": colour, "symbol": marker, "size": 9},
                "hovertemplate": "%{y:.1f} images/s at batch %{x}<extra>%{fullData.name}</extra>",
            }
        )
    ticks = sorted(settings["batches"])
    x = _axis("batch (images)", type="log", tickvals=ticks, ticktext=list(map(str, ticks)))
    return traces, {"xaxis": x, "yaxis": _axis("images/s", rangemode="tozero")}


def _tradeoff(placed: Sequence[tuple[int, Row]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    largest = max(row.megabytes for _, row in placed)
    traces = []
    for index, row in placed:
        colour, _, _ = _style(index)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [row.p50_ms],
                "y": [100 * (row.accuracy or 0)],
                "name": f"{row.label}, {row.megabytes:.0f} MB",
                "marker": {
                    "color": colour,
                    "size": 12 + 30 * (row.megabytes / largest) ** 0.5,
                    "opacity": 0.75,
                    "line": {"color": colour, "width": 1},
                    "symbol": MARKERS[index % len(MARKERS)],
                },
                "hovertemplate": "%{x:.2f} ms, %{y:.2f} %<extra>%{fullData.name}</extra>",
            }
        )
    accuracies = [100 * (row.accuracy or 0) for _, row in placed]
    room = max(1.0, (max(accuracies) - min(accuracies)) * 0.4)
    return traces, {
        "xaxis": _axis("median latency (ms)", rangemode="tozero"),
        "yaxis": _axis("top-1 (%)", range=[min(accuracies) - 1.03 * room, max(accuracies) + room]),
        "legend": {**_LAYOUT["legend"], "itemsizing": "constant"},
    }


def _training(history: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    epochs = [row["epoch"] for row in history]
    curves = (
        ("training loss", "loss", 1.0, "y", 1, "dash"),
        ("validation loss", "val_loss", 1.0, "y", 1, "solid"),
        ("training top-1", "accuracy", 100.0, "y2", 2, "dash"),
        ("validation top-1", "top1", 100.0, "y2", 2, "solid"),
    )
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": epochs,
            "y": [row[key] * scale for row in history],
            "name": name,
            "xaxis": "x",
            "yaxis": axis,
            "line": {"color": COLOURS[colour - 1], "dash": dash, "width": 2},
            "marker": {"color": COLOURS[colour - 1], "symbol": MARKERS[colour - 1], "size": 7},
        }
        for name, key, scale, axis, colour, dash in curves
    ]
    return traces, {
        "xaxis": _axis("epoch", tickformat="d", dtick=max(1, len(epochs) // 10)),
        "yaxis": _axis("loss (nat)", rangemode="tozero"),
        "yaxis2": _axis(
            "top-1 (%)", overlaying="y", side="right", range=[0, 102], tickmode="linear", dtick=20, showgrid=False
        ),
    }
