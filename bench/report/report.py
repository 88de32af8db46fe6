"""One self-contained HTML page about a network's artifacts: proved, measured, and how to repeat it.

The page loads nothing: styles and the plotting library are inside it. It reads in light and dark, on a phone and in print.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alexnet_edge import __version__
from alexnet_edge.artifact import Artifact
from alexnet_edge.bench.report import plots
from alexnet_edge.bench.report.numbers import NOT_AVAILABLE, NOT_MEASURED, show, show_ms
from alexnet_edge.bench.report.rows import Row, dig, fastest_of_each, rows_of, worst_layer
from alexnet_edge.bench.report.tables import every_table, scorecard
from alexnet_edge.bench.report.words import fastest_proved, headline, open_points, threads_of, verdict, worst_overall
from alexnet_edge.bench.timing.subjects import PEER, subject_of
from alexnet_edge.errors import UserError, needs
from alexnet_edge.files import write_text
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import CheckpointInfo
from alexnet_edge.network.filters import filter_png
from alexnet_edge.network.layers import LAYER_NAMES

_POWER = ("energy", "thermals")
"""Tables of the section on power, which says itself why they are not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A layer's time and its floor, as shares of the longest bar of its panel."""

    name: str
    measured: str
    floor: str
    bound: str
    width: float
    """Percent of the longest."""
    floor_width: float
    worst: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """The layers of one subject."""

    label: str
    style: plots.Style
    note: str
    bars: tuple[Bar, ...]


def write_report(
    out: Path,
    *,
    bench: Mapping[str, Any] | None = None,
    artifacts: Sequence[Artifact] = (),
    checkpoint_info: CheckpointInfo | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    filters_OCHW: FloatArray | None = None,
    commands: Sequence[str] = (),
    title: str = "AlexNet on the edge",
) -> Path:
    """Write the page.

    Args:
        out: the HTML file.
        bench: results as `BenchResult.to_json()` or `read_results` give them.
        artifacts: further artifacts; those already among the results are not repeated.
        checkpoint_info: the checkpoint the artifacts came from.
        history: one mapping per epoch with `epoch`, `loss`, `val_loss`, `accuracy`, `top1`, and what else there is of
            `lr`, `gradient_norm`, `images_per_s`, `wait_share`.
        filters_OCHW: the checkpoint's weights of conv1, shown as a picture.
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
    styles = plots.styles_of(rows)
    drawn = _plots(subjects, rows, settings, history, styles)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        created=bench["created"] if bench else datetime.now(timezone.utc).isoformat(timespec="seconds"),
        unfinished=_unfinished(bench),
        **_findings(bench, subjects, rows, settings),
        plots=drawn,
        filters="" if filters_OCHW is None else base64.b64encode(filter_png(filters_OCHW)).decode(),
        filter_count=0 if filters_OCHW is None else len(filters_OCHW),
        plotly_js=get_plotlyjs() if drawn else "",
        worst_layer=worst_overall(rows, subjects),
        panels=_layer_panels(rows, subjects, styles),
        summaries=_scenario_summaries(rows, subjects),
        layers=_layer_table(subjects, rows),
        calibrations=_calibrations(subjects),
        checkpoint=_facts(_checkpoint_facts(checkpoint_info, subjects)),
        machine=_facts(_machine_facts(bench, artifacts)),
        commands=list(commands) or ([shlex.join(bench["command"])] if bench else []),
        hashes=list(dict.fromkeys((row.name, subject["sha256"]) for row, subject in zip(rows, subjects, strict=True))),
        show=show,
        not_available=NOT_AVAILABLE,
    )
    write_text(out, page)
    return out


def _findings(
    bench: Mapping[str, Any] | None,
    subjects: Sequence[Mapping[str, Any]],
    rows: Sequence[Row],
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The page's verdict, tables and facts about the measurement."""
    chosen = fastest_of_each(rows)
    tables = every_table(bench, rows, subjects) if bench else []
    return {
        "verdict": verdict(rows, settings),
        "headline": headline(rows),
        "tiles": _tiles(rows, settings),
        "open_points": open_points(rows, (bench or {}).get("peers_left_out")),
        "scorecard": scorecard(chosen, settings),
        "all_rows": scorecard(rows, settings, name="scorecard-all") if len(chosen) < len(rows) else None,
        "tables": {table.name: table for table in tables},
        "missing": [text for table in tables if not table.rows and table.name not in _POWER for text in table.absent],
        "metered": bool(dig(bench, "power", "meter")),
        "power": _facts(_power_facts(bench)) if bench else [],
        "method": _facts(_method_facts(bench)) if bench else [],
    }


def _unfinished(bench: Mapping[str, Any] | None) -> str:
    if bench and bench["interrupted"]:
        return "the bench was interrupted: what was finished is shown"
    if bench and not bench.get("finished", True):
        return "the bench did not finish: what was finished is shown"
    return ""


def _all_subjects(bench: Mapping[str, Any] | None, artifacts: Sequence[Artifact]) -> list[Mapping[str, Any]]:
    subjects = list(bench["subjects"]) if bench else []
    known = {subject["sha256"] for subject in subjects}
    further = [artifact for artifact in artifacts if artifact.manifest.sha256 not in known]
    return [*subjects, *(subject_of(artifact).to_json() for artifact in further)]


def _tiles(rows: Sequence[Row], settings: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Figure, unit, caption; of proved and validly measured artifacts only."""
    artifacts = {row.group: row for row in rows if row.proof not in ("reference", PEER)}
    proved = [row for row in rows if row.proof == "passed"]
    tiles = [
        (
            f"{len({row.group for row in proved})}/{len(artifacts)}",
            "proved",
            "within the stated tolerance of the checkpoint",
        )
    ]
    fastest = fastest_proved(rows)
    if fastest is not None and settings is not None:
        batch = settings["batches"][0]
        tiles.append((show_ms(fastest.p50_ms), "ms", f"median at batch {batch}: {fastest.label} is the fastest"))
    valid = [row for row in proved if row.measured == "VALID"]
    if busiest := max(valid, key=lambda row: row.images_per_s or 0, default=None):
        caption = f"most: {busiest.label}, batch {busiest.images_per_s_batch}"
        tiles.append((show_ms(busiest.images_per_s), "images/s", caption))
    if proved:
        smallest = min(proved, key=lambda row: row.megabytes)
        tiles.append((show_ms(smallest.megabytes), "MB", f"smallest: {smallest.group}"))
    metered = [row for row in valid if row.mj_per_image is not None]
    if metered:
        frugal = min(metered, key=lambda row: row.mj_per_image or 0)
        tiles.append((show_ms(frugal.mj_per_image), "mJ an image", f"least energy: {frugal.label}"))
    return tiles


def _layer_panels(
    rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]], styles: Mapping[str, plots.Style]
) -> list[Panel]:
    """Per artifact whose layers were timed, at its fastest: each layer's time over its floor."""
    subject_of_row = {row.label: subject for row, subject in zip(rows, subjects, strict=True)}
    panels = []
    for row in fastest_of_each(rows):
        roofline = subject_of_row[row.label].get("roofline")
        if not roofline or roofline["unavailable"]:
            continue
        layers = roofline["layers"]
        longest = max(max(layer["measured_ns"] or 0, layer["floor_ns"]) for layer in layers)
        bars = tuple(
            Bar(
                name=layer["name"],
                measured=show_ms(None if layer["measured_ns"] is None else layer["measured_ns"] / 1e6),
                floor=show_ms(layer["floor_ns"] / 1e6),
                bound=layer["bound"],
                width=100 * (layer["measured_ns"] or 0) / longest,
                floor_width=100 * layer["floor_ns"] / longest,
                worst=layer["name"] == roofline["worst"],
            )
            for layer in layers
        )
        worst = worst_layer(roofline)
        note = "" if worst is None else f"{worst['name']}: {show_ms(worst['above_ns'] / 1e6)} ms above its floor"
        panels.append(Panel(label=row.label, style=styles[row.group], note=note, bars=bars))
    return panels


def _scenario_summaries(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """LoadGen's own words, by subject and scenario."""
    return [
        (f"{row.label}, {entry['scenario']}", entry["summary"])
        for row, subject in zip(rows, subjects, strict=True)
        for entry in subject.get("scenarios") or ()
        if entry.get("summary")
    ]


def _power_facts(bench: Mapping[str, Any]) -> dict[str, Any]:
    power = bench.get("power") or {}
    facts: dict[str, Any] = {"meter": power.get("meter") or f"unavailable: {power.get('reason') or NOT_MEASURED}"}
    if power.get("meter"):
        facts |= _idle_facts(power.get("idle"))
    mode = power.get("mode") or {}
    why = mode.get("reasons") or {}
    for name in dict.fromkeys((*mode, *why)):
        if name != "reasons":
            known = ", ".join(f"{inner} {_fact(value)}".strip() for inner, value in _flat(mode.get(name)))
            facts[name.replace("_", " ")] = known or f"unavailable: {why.get(name) or NOT_MEASURED}"
    if power.get("set"):
        facts["set for this bench"] = power["set"]
    if power.get("reasons"):
        facts["against every figure"] = "; ".join(power["reasons"])
    return facts


def _idle_facts(idle: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the machine drew with nothing running."""
    if idle is None:
        return {"idle": f"unavailable: {NOT_MEASURED}"}
    if idle.get("watts") is None:
        return {"idle": f"unavailable: {'; '.join(idle.get('reasons') or ()) or NOT_MEASURED}"}
    facts = {"idle": f"{show_ms(idle['watts'])} W on {idle.get('rail')}, {idle.get('samples')} samples"}
    if idle.get("rail_watts"):
        facts["idle rails"] = ", ".join(f"{name} {show_ms(watts)} W" for name, watts in idle["rail_watts"].items())
    if idle.get("temperatures_c"):
        facts["idle temperatures"] = ", ".join(
            f"{name} {zone[1]:.1f} °C" for name, zone in idle["temperatures_c"].items()
        )
    if idle.get("clocks"):
        facts["idle clocks"] = ", ".join(f"{name} {clock['median']:.0f} MHz" for name, clock in idle["clocks"].items())
    if idle.get("throttled"):
        facts["throttled while idle"] = ", ".join(idle["throttled"])
    return facts


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested mappings, each with its path in words as its name; what is None is left out."""
    if isinstance(value, Mapping):
        return [
            leaf
            for key, inner in value.items()
            for leaf in _flat(inner, f"{name} {str(key).replace('_', ' ')}".strip())
        ]
    return [] if value is None else [(name, value)]


def _layer_table(
    subjects: Sequence[Mapping[str, Any]], rows: Sequence[Row]
) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Per artifact one cell per layer: what was built, and whether it is what was asked for. The first row is the header."""
    shown = {row.group: subject for row, subject in zip(rows, subjects, strict=True) if subject["layers"]}
    if not shown:
        return []
    header = [(name, True) for name in (*LAYER_NAMES, "read from")]
    table: list[tuple[str, list[tuple[str, bool]]]] = [("artifact", header)]
    for group, subject in shown.items():
        cells = []
        for name in LAYER_NAMES:
            layer = next((entry for entry in subject["layers"] if entry["name"] == name), None)
            if layer is None:
                cells.append((NOT_AVAILABLE, True))
            elif layer["built"] == layer["requested"]:
                cells.append((layer["built"], True))
            else:
                cells.append((f"{layer['requested']} asked, {layer['built']} built", False))
        evidence = ", ".join(sorted({entry["evidence"] for entry in subject["layers"]}))
        table.append((group, [*cells, (evidence, True)]))
    return table


def _calibrations(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per calibration table; artifacts that share one are named together."""
    tables: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        value = subject["calibration"]
        if value is None:
            continue
        entry = tables.setdefault(
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
    return list(tables.values())


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
    return {
        "clock": bench["clock"],
        "load time": bench["load"],
        "device": settings["device"],
        "threads": threads_of(bench),
        "processes": _isolation(bench),
        "rounds": f"{settings['rounds']}, each in a fresh process, subjects interleaved",
        "stop": f"after {settings['min_seconds']:g} s and the samples p{settings['percentile']:g} needs, at most "
        f"{settings['max_seconds']:g} s per batch",
        "percentiles": "nearest rank, of all rounds' samples together; none is averaged",
        "intervals": f"{bench['confidence']:.0%}, bootstrap over rounds and blocks of neighbouring samples",
        "valid": f"enough samples, stable after warm-up, coefficient of variation at most {settings['max_cv']:.0%}, "
        f"median known to {settings['max_median_error']:.0%}, drift at most {settings['max_drift']:.0%}, one mode, "
        f"others use at most {settings['max_other_cpus']:g} processors",
        "cold cache": "the processor's caches are flushed before every inference"
        if settings.get("cold")
        else "not measured",
        "inputs": f"{bench['inputs']['images']} real images in rotation ({_source(bench['inputs']['source'])})",
    }


def _isolation(bench: Mapping[str, Any]) -> str:
    text = "fresh for every subject and round" if bench.get("isolate", True) else "not isolated"
    pinned = bench.get("pinned_cpus")
    return f"{text}, pinned to processors {', '.join(map(str, pinned))}" if pinned else text


def _facts(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _fact(value)) for name, value in facts.items()]


def _fact(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "unavailable"
    if isinstance(value, bool):
        return "yes" if value else "no"
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
    styles: Mapping[str, plots.Style],
) -> list[plots.Plot]:
    """The plots that have data, in order."""
    timed = [(row, subject) for row, subject in zip(rows, subjects, strict=True) if subject["batches"]]
    drawn: list[plots.Plot | None] = [plots.tradeoff(rows, styles)]
    if settings and timed:
        drawn.append(plots.distribution(timed, settings, styles))
        drawn += plots.over_batch(timed, styles)
        drawn.append(plots.over_threads(timed, settings, styles))
    if history:
        drawn += plots.training(history)
    return [plot for plot in drawn if plot is not None]
