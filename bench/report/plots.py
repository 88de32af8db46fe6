"""The plots of the page: each answers one question, in the same colour and mark for the same artifact.

Colour stands for what runs it (format, runtime, device), mark and dash for its precision. Plots are drawn by plotly in the
browser; labels beside points are placed there too, when the width is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from alexnet_edge.bench.report.rows import Row, fastest_of_each, first_entry
from alexnet_edge.bench.timing.subjects import PEER
from alexnet_edge.errors import needs
from alexnet_edge.proof.stats import wilson_interval

COLOURS = ("#1F87C9", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#8C7A00", "#7F7F7F")
"""Okabe and Ito's palette for colour-blind readers; blue and yellow are shifted to read on white and on black."""

MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "dash", "dot")
_PRECISIONS = ("fp32", "fp16", "int8", "bf16", "fp8", "int4-fc", "tf32")

_PROVED = ("passed", "reference", PEER)
_MOST_EXTREMES = 40
"""Slowest samples drawn one by one, per subject."""
_MOST_LINES = 14
"""Subjects in the distribution; of more, each artifact at its fastest number of threads only."""
_MOST_TICKS = 7
_LONGEST_LABEL = 26
_AT_FASTEST = " Each artifact at its fastest number of threads."

_AXIS: dict[str, Any] = {"gridcolor": "rgba(128,128,128,0.22)", "zeroline": False, "automargin": True, "ticks": ""}
_LAYOUT: dict[str, Any] = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 8, "r": 16, "t": 8, "b": 8},
    "showlegend": False,
    "dragmode": False,
    "hoverlabel": {"font": {"color": "#ffffff"}, "bgcolor": "#333333"},
}
_CONFIG = {"responsive": True, "displayModeBar": False, "scrollZoom": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How one artifact is drawn everywhere."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One drawn plot, and what is seen in it."""

    name: str
    title: str
    caption: str
    html: str
    key: tuple[tuple[str, Style], ...] = ()
    """Label and style of each line or mark, where they are not labelled in the plot."""
    wide: bool = False

    @property
    def training(self) -> bool:
        """Whether it is about the training, which has a section of its own."""
        return self.name.startswith("training")


def styles_of(rows: Sequence[Row]) -> dict[str, Style]:
    """A style for each group of `rows`; no two are alike while colours and marks last."""
    families = list(dict.fromkeys((row.format, row.runtime, row.device) for row in rows))
    used: set[tuple[int, int]] = set()
    styles: dict[str, Style] = {}
    for row in rows:
        if row.group in styles:
            continue
        colour = families.index((row.format, row.runtime, row.device)) % len(COLOURS)
        preferred = _PRECISIONS.index(row.precision) if row.precision in _PRECISIONS else len(_PRECISIONS)
        order = [preferred, *range(len(MARKERS))]
        mark = next((candidate for candidate in order if (colour, candidate) not in used), preferred)
        used.add((colour, mark))
        styles[row.group] = Style(colour=COLOURS[colour], marker=MARKERS[mark], dash=DASHES[mark])
    return styles


def short(label: str) -> str:
    """`label` for an axis: its middle is left out where it is long."""
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 10]}…{label[-9:]}"


_Timed = Sequence[tuple[Row, Mapping[str, Any]]]


def tradeoff(rows: Sequence[Row], styles: Mapping[str, Style]) -> Plot | None:
    """Accuracy over latency, the area of a mark being the file's size; each artifact at its fastest number of threads."""
    chosen = [row for row in fastest_of_each(rows) if row.p50_ms is not None]
    of_accuracy = any(row.accuracy is not None for row in chosen)
    placed = [(row, value) for row in chosen if (value := row.accuracy if of_accuracy else row.agreement) is not None]
    if not placed:
        return None
    largest = max(row.megabytes for row, _ in placed)
    traces, ends = [], []
    for row, value in placed:
        interval = _interval(row, value) if of_accuracy else row.agreement_interval
        ends += [value, *(interval or ())]
        traces.append(_mark(row, value, interval, styles[row.group], largest))
    front = _front([(row, value) for row, value in placed if row.valid and row.proof in _PROVED])
    if len(front) > 1:
        line = {"color": "rgba(128,128,128,0.8)", "width": 1.5, "dash": "dot", "shape": "hv"}
        x, y = [row.p50_ms for row, _ in front], [100 * value for _, value in front]
        traces.insert(0, {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip"})
    quality = "top-1 accuracy" if of_accuracy else "top-1 agreement with the checkpoint"
    low, high = 100 * min(ends), 100 * max(ends)
    room = max(0.5, (high - low) * 0.18)
    return _plot(
        "tradeoff",
        "Which one to choose: accuracy, latency, size",
        f"Further up answers better, further left is faster, smaller marks are smaller files; hollow is not proved or invalid. Bars: 95 % interval of the "
        f"{quality}; the dotted line joins what nothing proved and valid beats in both. {_differing(placed) if of_accuracy else ''}",
        traces,
        {
            "xaxis": _number_axis("median latency (ms)", [row.p50_ms or 0.0 for row, _ in placed], pad=0.16),
            "yaxis": _axis(f"{quality} (%)", range=[low - room, high + room]),
            "meta": {"labelled": True},
        },
        height=460,
        wide=True,
    )


def _mark(
    row: Row, value: float, interval: tuple[float, float] | None, style: Style, largest_mb: float
) -> dict[str, Any]:
    """One artifact in the trade-off."""
    faults = ["not proved"] * (row.proof not in _PROVED) + ["invalid"] * (not row.valid)
    name = short(row.group) + (f" ({', '.join(faults)})" if faults else "")
    bars: dict[str, Any] = {"type": "data", "symmetric": False, "color": style.colour, "thickness": 1, "width": 4}
    if interval is not None:
        bars |= {"array": [100 * (interval[1] - value)], "arrayminus": [100 * (value - interval[0])]}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [row.p50_ms],
        "y": [100 * value],
        "name": escape(row.label),
        "meta": {"label": escape(name), "short": escape(short(row.group))},
        "error_y": bars,
        "marker": {
            "color": "rgba(0,0,0,0)" if faults else style.colour,
            "size": 10 + 22 * (row.megabytes / largest_mb) ** 0.5,
            "opacity": 0.85,
            "line": {"color": style.colour, "width": 2},
            "symbol": style.marker,
        },
        "hovertemplate": f"%{{x:.3g}} ms, %{{y:.1f}} %, {row.megabytes:.0f} MB<extra>%{{fullData.name}}</extra>",
    }


def _interval(row: Row, accuracy: float) -> tuple[float, float] | None:
    images = row.accuracy_images
    return wilson_interval(round(accuracy * images), images) if images else None


def _differing(placed: Sequence[tuple[Row, float]]) -> str:
    """Whose accuracy differs from the checkpoint's beyond chance."""
    tested = [row for row, _ in placed if row.accuracy_p is not None]
    differ = [row.group for row in tested if (row.accuracy_p or 0.0) < 0.05]
    if not tested:
        return ""
    if not differ:
        return "No artifact's accuracy differs from the checkpoint's beyond chance (McNemar's test, 5 %)."
    return f"Beyond chance (McNemar's test, 5 %) only {', '.join(differ)} differs from the checkpoint in accuracy."


def _front(placed: Sequence[tuple[Row, float]]) -> list[tuple[Row, float]]:
    """What no other is faster than without being less accurate, fastest first."""
    front: list[tuple[Row, float]] = []
    for row, value in sorted(placed, key=lambda pair: (pair[0].p50_ms or 0.0, -pair[1])):
        if not front or value > front[-1][1]:
            front.append((row, value))
    return front


def distribution(timed: _Timed, settings: Mapping[str, Any], styles: Mapping[str, Style]) -> Plot | None:
    """Where the samples of the first batch lie, one line per subject."""
    fastest = _fastest(timed)
    few = len(timed) > _MOST_LINES and len(fastest) < len(timed)
    traces: list[dict[str, Any]] = []
    values: list[float] = []
    labels = []
    cold = False
    for row, subject in fastest if few else timed:
        entry = first_entry(subject, settings)
        if entry is None:
            continue
        colour, label = styles[row.group].colour, escape(short(row.group if few else row.label))
        labels.append(label)
        samples = sorted(value / 1e6 for round_ in entry["samples"] for value in round_["samples_ns"])
        p1, p25, p50, p75, p99 = (_rank(samples, share) for share in (1, 25, 50, 75, 99))
        traces.append(
            {
                "type": "box",
                "orientation": "h",
                "y": [label],
                "lowerfence": [p1],
                "q1": [p25],
                "median": [p50],
                "q3": [p75],
                "upperfence": [p99],
                "name": label,
                "width": 0.5,
                "line": {"color": colour, "width": 1.5},
                "hoverinfo": "x+name",
            }
        )
        if slow := [value for value in samples if value > p99][-_MOST_EXTREMES:]:
            traces.append(_dots(label, slow, colour, "line-ns-open", "slow sample"))
        if entry.get("cold") and entry["cold"]["percentiles_ns"]["p50"] is not None:
            cold = True
            median = entry["cold"]["percentiles_ns"]["p50"] / 1e6
            traces.append(_dots(label, [median], colour, "diamond-open", "cold p50"))
            values.append(median)
        values += [samples[0], samples[-1]]
    if not traces:
        return None
    return _plot(
        "distribution",
        f"How steady: every latency at batch {settings['batches'][0]}",
        "Box: the middle half; line in it: the median; whiskers: p1 to p99; strokes: slower samples"
        + ("; diamond: median with a cold cache" if cold else "")
        + ". Further left is faster, narrower is steadier."
        + (_AT_FASTEST if few else ""),
        traces,
        {
            "xaxis": _number_axis("milliseconds", values),
            "yaxis": _axis(autorange="reversed", showgrid=False, categoryorder="array", categoryarray=labels),
        },
        height=70 + 34 * len(labels),
        wide=True,
    )


def _fastest(timed: _Timed) -> _Timed:
    """Each artifact at its fastest number of threads."""
    labels = {row.label for row in fastest_of_each([row for row, _ in timed])}
    return [(row, subject) for row, subject in timed if row.label in labels]


def _rank(samples: Sequence[float], share: float) -> float:
    """Nearest rank, of however few samples."""
    return round(samples[min(len(samples) - 1, max(0, math.ceil(share / 100 * len(samples)) - 1))], 5)


def _dots(label: str, values: Sequence[float], colour: str, symbol: str, meaning: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [round(value, 5) for value in values],
        "y": [label] * len(values),
        "name": f"{label}, {meaning}",
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}},
        "hovertemplate": "%{x:.4g} ms<extra>%{fullData.name}</extra>",
    }


def over_batch(timed: _Timed, styles: Mapping[str, Style]) -> list[Plot]:
    """Throughput and latency over batch, each artifact at its fastest number of threads."""
    lines = [(row, subject["batches"]) for row, subject in _fastest(timed)]
    if not any(len(entries) > 1 for _, entries in lines):
        return []
    note = _AT_FASTEST if len(timed) > len(lines) else ""
    throughput, latency = [], []
    for row, every_entry in lines:
        if entries := [entry for entry in every_entry if entry["percentiles_ns"]["p50"] is not None]:
            sizes = [entry["batch"] for entry in entries]
            throughput.append((row, sizes, [entry["images_per_s"] for entry in entries]))
            latency.append((row, sizes, [entry["percentiles_ns"]["p50"] / 1e6 for entry in entries]))
    return [
        _lines(
            "throughput",
            "Throughput over batch",
            f"Images answered per second of wall time. Higher is faster.{note}",
            ("batch (images)", "images/s"),
            throughput,
            styles,
        ),
        _lines(
            "batch-latency",
            "Latency over batch",
            f"Median time of a whole batch. Lower is faster.{note}",
            ("batch (images)", "median latency (ms)"),
            latency,
            styles,
        ),
    ]


def over_threads(timed: _Timed, settings: Mapping[str, Any], styles: Mapping[str, Style]) -> Plot | None:
    """Throughput over the number of threads, of artifacts that were measured with several."""
    groups: dict[str, list[tuple[Row, float]]] = {}
    for row, subject in timed:
        entry = first_entry(subject, settings)
        if entry is not None and row.threads is not None and row.device == "cpu":
            groups.setdefault(row.group, []).append((row, entry["images_per_s"]))
    series = []
    for points in groups.values():
        points.sort(key=lambda point: point[0].threads or 0)
        if len({row.threads for row, _ in points}) > 1:
            series.append((points[0][0], [row.threads or 0 for row, _ in points], [value for _, value in points]))
    if not series:
        return None
    return _lines(
        "threads",
        f"Throughput over threads, batch {settings['batches'][0]}",
        "Images answered per second of wall time. Higher is faster; a line that goes flat gains nothing from more threads.",
        ("threads", "images/s"),
        series,
        styles,
        wide=True,
    )


def _line(style: Style, x: Sequence[int], y: Sequence[float], name: str, size: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": list(y),
        "name": name,
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "marker": {"color": style.colour, "symbol": style.marker, "size": size},
    }


def _lines(
    name: str,
    title: str,
    caption: str,
    axes: tuple[str, str],
    series: Sequence[tuple[Row, Sequence[int], Sequence[float]]],
    styles: Mapping[str, Style],
    *,
    wide: bool = False,
) -> Plot:
    x_title, y_title = axes
    hover = f"%{{y:.4g}} {y_title.split(' (')[0]} at {x_title.split(' (')[0]} %{{x}}<extra>%{{fullData.name}}</extra>"
    traces = []
    for row, x, y in series:
        line = _line(styles[row.group], x, [float(f"{value:.5g}") for value in y], escape(row.group), 9)
        traces.append({**line, "hovertemplate": hover})
    ticks = sorted({value for _, x, _ in series for value in x})
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])
    room = 0.05 * (high - low) or 0.1
    x_axis = _axis(x_title, type="log", tickvals=ticks, ticktext=list(map(str, ticks)), range=[low - room, high + room])
    values = [value for _, _, y in series for value in y]
    return _plot(
        name,
        title,
        caption,
        traces,
        {"xaxis": x_axis, "yaxis": _number_axis(y_title, values, zero=True)},
        height=360,
        key=tuple((row.group, styles[row.group]) for row, _, _ in series),
        wide=wide,
    )


_TRAINING: tuple[tuple[str, str, str, str, float, tuple[str, ...]], ...] = (
    ("training", "Training: loss", "Lower is better; a widening gap is overfitting.", "loss (nat)", 1.0,
     ("loss", "val_loss")),
    ("training-accuracy", "Training: top-1 accuracy", "Higher is better.", "top-1 (%)", 100.0, ("accuracy", "top1")),
    ("training-rate", "Training: learning rate", "Of each epoch's last step.", "learning rate", 1.0, ("lr",)),
    ("training-gradient", "Training: gradient norm",
     "Mean over the epoch's steps, before clipping; a steep rise comes before divergence.", "gradient norm", 1.0,
     ("gradient_norm",)),
    ("training-speed", "Training: speed", "Images learned from per second, without validation.", "images/s", 1.0,
     ("images_per_s",)),
)  # fmt: skip
"""Name, title, caption, unit, scale, and the history's columns: one of training, or with it one of validation."""


def training(history: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Loss, accuracy, learning rate, gradient norm and speed by epoch, as far as the history has them.

    `history` has one mapping per epoch with `epoch`, `loss`, `val_loss`, `accuracy`, `top1`, and what else there is of `lr`,
    `gradient_norm`, `images_per_s`, `wait_share`.
    """
    epochs = [row["epoch"] for row in history]
    plots = []
    for name, title, caption, unit, scale, keys in _TRAINING:
        if any(row.get(key) is None for row in history for key in keys):
            continue  # of a run by an earlier version
        if name == "training-speed" and all(row.get("wait_share") is not None for row in history):
            waits = [row["wait_share"] for row in history]
            caption += f" Steps waited for images {100 * sum(waits) / len(waits):.1f} % of their time."
        styles = (
            Style(colour=COLOURS[1], marker=MARKERS[1], dash="dash"),
            Style(colour=COLOURS[0], marker=MARKERS[0], dash="solid"),
        )[-len(keys) :]
        series = [[row[key] * scale for row in history] for key in keys]
        labelled = list(zip(("training", "validation"), styles, strict=False))
        traces = [_line(style, epochs, y, label, 7) for (label, style), y in zip(labelled, series, strict=True)]
        y_axis = _number_axis(unit, series[0]) if name == "training-rate" else _axis(unit, rangemode="tozero")
        layout = {"xaxis": _axis("epoch", tickformat="d", dtick=max(1, len(epochs) // 8)), "yaxis": y_axis}
        key = tuple(labelled) if len(keys) > 1 else ()
        plots.append(_plot(name, title, caption, traces, layout, height=300, key=key))
    return plots


def _axis(title: str = "", **options: Any) -> dict[str, Any]:
    return {**_AXIS, "title": {"text": title, "font": {"size": 13}, "standoff": 8}, **options}


def _number_axis(title: str, values: Sequence[float], *, zero: bool = False, pad: float = 0.06) -> dict[str, Any]:
    """Linear where the largest is less than five times the smallest (or, with `zero`, ten times), else logarithmic."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < (10 if zero else 5):
        if zero:
            return _axis(title, range=[0, 1.08 * high])
        room = pad * ((high - low) or high or 1.0)
        return _axis(title, range=[max(0.0, low - room), high + room])
    ends = math.log10(low), math.log10(high)
    room = pad * (ends[1] - ends[0])
    ticks = _ticks(low, high)
    return _axis(
        title,
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks],
        range=[ends[0] - room, ends[1] + room],
    )


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... around the range, or fewer where a phone has no room for them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low / 1.5 <= tick <= high * 1.5]
        if len(ticks) <= _MOST_TICKS:
            break
    return ticks


def _plot(
    name: str,
    title: str,
    caption: str,
    traces: Sequence[dict[str, Any]],
    layout: Mapping[str, Any],
    *,
    height: int,
    key: tuple[tuple[str, Style], ...] = (),
    wide: bool = False,
) -> Plot:
    with needs("bench"):
        from plotly import graph_objects, io
    drawn = graph_objects.Figure(data=traces, layout={"template": "none", **_LAYOUT, "height": height, **layout})
    html = io.to_html(
        drawn, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=f"plot-{name}", default_height=height
    )
    return Plot(name=name, title=title, caption=caption.strip(), html=html, key=key, wide=wide)
