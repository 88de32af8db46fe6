"""One self-contained HTML page about a network's artifacts: proved, measured, and how to repeat it.

The page loads nothing: styles and the plotting library are inside it. It reads in light and dark, on a phone and in print.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alexnet_edge import __version__
from alexnet_edge.artifact import Artifact
from alexnet_edge.bench.report import plots
from alexnet_edge.bench.report.columns import Pair
from alexnet_edge.bench.report.numbers import NOT_AVAILABLE, NOT_MEASURED, show, show_ms, show_ns
from alexnet_edge.bench.report.rows import Row, dig, fastest_of_each, rows_of, worst_layer
from alexnet_edge.bench.report.tables import every_table, scorecard
from alexnet_edge.bench.report.words import (
    artifacts_of,
    fastest_proved,
    headline,
    open_points,
    threads_of,
    verdict,
    worst_overall,
)
from alexnet_edge.bench.timing.subjects import subject_of
from alexnet_edge.errors import UserError, needs
from alexnet_edge.files import write_text
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import CheckpointInfo
from alexnet_edge.network.filters import filter_png
from alexnet_edge.network.layers import LAYER_NAMES

_POWER = ("energy", "thermals")
"""Tables of the section on power, which says itself why they are not there."""


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
    """Write the page to `out`.

    Args:
        bench: results as `BenchResult.to_json()` or `read_results` give them.
        artifacts: further artifacts; those already among the results are not repeated.
        checkpoint_info: the checkpoint the artifacts came from.
        history: one mapping per epoch, as `plots.training` reads it.
        filters_OCHW: the checkpoint's weights of conv1, shown as a picture.
        commands: what to type to repeat everything, in order; by default the bench's own command.

    Raises:
        MissingComponentError: when jinja2 or plotly is not installed.
        OutputError: when `out` cannot be written.
        UserError: when there is neither a result nor an artifact.
    """
    with needs("bench"):
        import jinja2
    subjects = _all_subjects(bench, artifacts)
    if not subjects:
        raise UserError("nothing to report", value=out, fix="give results or artifacts")
    settings = bench["settings"] if bench else None
    pairs = list(zip(rows_of(subjects, settings), subjects, strict=True))
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
        **_findings(bench, pairs, settings),
        **_drawings(pairs, settings, history),
        filters="" if filters_OCHW is None else base64.b64encode(filter_png(filters_OCHW)).decode(),
        filter_count=0 if filters_OCHW is None else len(filters_OCHW),
        layers=_layer_table(pairs),
        calibrations=_calibrations(subjects),
        checkpoint=_facts(_checkpoint_facts(checkpoint_info, subjects)),
        machine=_facts(_machine_facts(bench["environment"] if bench else artifacts[0].manifest.environment)),
        commands=list(commands) or ([shlex.join(bench["command"])] if bench else []),
        hashes=list(dict.fromkeys((row.name, subject["sha256"]) for row, subject in pairs)),
        show=show,
        show_ns=show_ns,
        not_available=NOT_AVAILABLE,
    )
    write_text(out, page)
    return out


def _all_subjects(bench: Mapping[str, Any] | None, artifacts: Sequence[Artifact]) -> list[Mapping[str, Any]]:
    subjects = list(bench["subjects"]) if bench else []
    known = {subject["sha256"] for subject in subjects}
    further = [artifact for artifact in artifacts if artifact.manifest.sha256 not in known]
    return [*subjects, *(subject_of(artifact).to_json() for artifact in further)]


def _findings(
    bench: Mapping[str, Any] | None, pairs: Sequence[Pair], settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The page's verdict, tables and facts about the measurement."""
    rows, subjects = [row for row, _ in pairs], [subject for _, subject in pairs]
    chosen = fastest_of_each(rows)
    tables = every_table(bench, rows, subjects) if bench else []
    unfinished = ""
    if bench and (bench["interrupted"] or not bench.get("finished", True)):
        state = "was interrupted" if bench["interrupted"] else "did not finish"
        unfinished = f"the bench {state}: what was finished is shown"
    return {
        "unfinished": unfinished,
        "verdict": verdict(rows, settings),
        "headline": headline(rows),
        "tiles": _tiles(rows, settings),
        "open_points": open_points(rows, (bench or {}).get("peers_left_out")),
        "scorecard": scorecard(chosen, settings),
        "all_rows": scorecard(rows, settings, name="scorecard-all") if len(chosen) < len(rows) else None,
        "tables": {table.name: table for table in tables},
        "missing": [text for table in tables if not table.rows and table.name not in _POWER for text in table.absent],
        "metered": bool(dig(bench, "power", "meter")),
        "power": _facts(_power_facts(bench.get("power") or {})) if bench else [],
        "method": _facts(_method_facts(bench)) if bench else [],
        "worst_layer": worst_overall(rows, subjects),
        "summaries": [  # LoadGen's own words, by subject and scenario
            (f"{row.label}, {entry['scenario']}", entry["summary"])
            for row, subject in pairs
            for entry in subject.get("scenarios") or ()
            if entry.get("summary")
        ],
    }


def _drawings(
    pairs: Sequence[Pair], settings: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """The plots that have data, in order, the library that draws them, and the bars of each layer."""
    with needs("bench"):
        from plotly.offline import get_plotlyjs
    rows = [row for row, _ in pairs]
    styles = plots.styles_of(rows)
    timed = [(row, subject) for row, subject in pairs if subject["batches"]]
    drawn = [plots.tradeoff(rows, styles)]
    if settings and timed:
        drawn.append(plots.distribution(timed, settings, styles))
        drawn += plots.over_batch(timed, styles)
        drawn.append(plots.over_threads(timed, settings, styles))
    if history:
        drawn += plots.training(history)
    shown = [plot for plot in drawn if plot is not None]
    return {
        "plots": shown,
        "plotly_js": get_plotlyjs() if shown else "",
        "panels": [panel for panel in (_panel(*pair, styles) for pair in _fastest_pairs(pairs)) if panel],
    }


def _fastest_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    fastest = fastest_of_each([row for row, _ in pairs])
    return [next(pair for pair in pairs if pair[0] is row) for row in fastest]


def _panel(row: Row, subject: Mapping[str, Any], styles: Mapping[str, plots.Style]) -> dict[str, Any] | None:
    """Each layer's time over its floor, of an artifact whose layers were timed; bars are shares of the longest."""
    roofline = subject.get("roofline")
    if not roofline or roofline["unavailable"]:
        return None
    worst = worst_layer(roofline)
    return {
        "label": row.label,
        "style": styles[row.group],
        "note": "" if worst is None else f"{worst['name']}: {show_ns(worst['above_ns'])} ms above its floor",
        "layers": roofline["layers"],
        "longest_ns": max(max(layer["measured_ns"] or 0, layer["floor_ns"]) for layer in roofline["layers"]),
        "worst": roofline["worst"],
    }


def _tiles(rows: Sequence[Row], settings: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Figure, unit, caption; of proved and validly measured artifacts only."""
    proved = [row for row in rows if row.proof == "passed"]
    share = f"{len({row.group for row in proved})}/{len(artifacts_of(rows))}"
    tiles = [(share, "proved", "within the stated tolerance of the checkpoint")]
    fastest = fastest_proved(rows)
    if fastest is not None and settings is not None:
        caption = f"median at batch {settings['batches'][0]}: {fastest.label} is the fastest"
        tiles.append((show_ms(fastest.p50_ms), "ms", caption))
    valid = [row for row in proved if row.measured == "VALID"]
    if busiest := max(valid, key=lambda row: row.images_per_s or 0, default=None):
        caption = f"most: {busiest.label}, batch {busiest.images_per_s_batch}"
        tiles.append((show_ms(busiest.images_per_s), "images/s", caption))
    if smallest := min(proved, key=lambda row: row.megabytes, default=None):
        tiles.append((show_ms(smallest.megabytes), "MB", f"smallest: {smallest.group}"))
    metered = [row for row in valid if row.mj_per_image is not None]
    if frugal := min(metered, key=lambda row: row.mj_per_image or 0, default=None):
        tiles.append((show_ms(frugal.mj_per_image), "mJ an image", f"least energy: {frugal.label}"))
    return tiles


def _layer_table(pairs: Sequence[Pair]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Per artifact one cell per layer: what was built, and whether it is what was asked for. The first row is the header."""
    shown = {row.group: subject["layers"] for row, subject in pairs if subject["layers"]}
    if not shown:
        return []
    table = [("artifact", [(name, True) for name in (*LAYER_NAMES, "read from")])]
    for group, layers in shown.items():
        by_name = {layer["name"]: layer for layer in reversed(layers)}
        cells = [_built(by_name.get(name)) for name in LAYER_NAMES]
        evidence = ", ".join(sorted({layer["evidence"] for layer in layers}))
        table.append((group, [*cells, (evidence, True)]))
    return table


def _built(layer: Mapping[str, Any] | None) -> tuple[str, bool]:
    if layer is None:
        return NOT_AVAILABLE, True
    if layer["built"] == layer["requested"]:
        return layer["built"], True
    return f"{layer['requested']} asked, {layer['built']} built", False


def _calibrations(subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per calibration table; artifacts that share one are named together."""
    tables: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        value = subject["calibration"]
        if value is None:
            continue
        facts = {
            "method": value.get("method"),
            "images": value.get("num_images"),
            "source": _source(value.get("source", {})),
            "left out": len(value.get("skipped", ())),
            "images SHA-256": value.get("images_sha256"),
            "table SHA-256": value.get("table_sha256"),
        }
        saturated = value.get("saturated", {})
        ranges = [(name, amax, saturated.get(name)) for name, amax in value.get("amax", {}).items()]
        new = {"labels": [], "facts": _facts(facts), "ranges": ranges}
        tables.setdefault(str(value.get("table_sha256")), new)["labels"].append(subject["label"])
    return list(tables.values())


def _source(source: Mapping[str, Any]) -> str:
    parts = [str(source[key]) for key in ("kind", "path", "split") if source.get(key)]
    return ", ".join(parts) or NOT_AVAILABLE


def _power_facts(power: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"meter": power.get("meter") or f"unavailable: {power.get('reason') or NOT_MEASURED}"}
    if power.get("meter"):
        facts |= _idle_facts(power.get("idle") or {})
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


def _idle_facts(idle: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine drew with nothing running."""
    if idle.get("watts") is None:
        return {"idle": f"unavailable: {'; '.join(idle.get('reasons') or ()) or NOT_MEASURED}"}
    rails, zones, clocks = (idle.get(name) or {} for name in ("rail_watts", "temperatures_c", "clocks"))
    facts = {
        "idle": f"{show_ms(idle['watts'])} W on {idle.get('rail')}, {idle.get('samples')} samples",
        "idle rails": ", ".join(f"{name} {show_ms(watts)} W" for name, watts in rails.items()),
        "idle temperatures": ", ".join(f"{name} {zone[1]:.1f} °C" for name, zone in zones.items()),
        "idle clocks": ", ".join(f"{name} {clock['median']:.0f} MHz" for name, clock in clocks.items()),
        "throttled while idle": ", ".join(idle.get("throttled") or ()),
    }
    return {name: text for name, text in facts.items() if text}


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested mappings, each with its path in words as its name; what is None is left out."""
    if isinstance(value, Mapping):
        named = [(f"{name} {str(key).replace('_', ' ')}".strip(), inner) for key, inner in value.items()]
        return [leaf for path, inner in named for leaf in _flat(inner, path)]
    return [] if value is None else [(name, value)]


def _checkpoint_facts(info: CheckpointInfo | None, subjects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "architecture": ", ".join(sorted({subject["architecture"] for subject in subjects})),
        "SHA-256": ", ".join(sorted({subject["checkpoint_sha256"] for subject in subjects})),
    }
    if info is None:
        return facts
    classes = ", ".join(info.classes[:12])
    return {
        **facts,
        "classes": classes if len(info.classes) <= 12 else f"{classes}, ... ({len(info.classes)} in all)",
        "trained on": _source(info.data.get("source", {})),
        **{name.replace("_", " "): value for name, value in info.metrics.items() if isinstance(value, int | float)},
        "created": info.created,
    }


def _machine_facts(machine: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name.replace("_", " "): value for name, value in machine.items() if name != "versions"}
    for name in ("memory", "last level cache"):
        if size := facts.pop(f"{name} bytes", None):
            facts[name] = f"{size / 2**20:,.0f} MiB"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    return facts


def _method_facts(bench: Mapping[str, Any]) -> dict[str, Any]:
    settings = bench["settings"]
    processes = "fresh for every subject and round" if bench.get("isolate", True) else "not isolated"
    if pinned := bench.get("pinned_cpus"):
        processes += f", pinned to processors {', '.join(map(str, pinned))}"
    return {
        "clock": bench["clock"],
        "load time": bench["load"],
        "device": settings["device"],
        "threads": threads_of(bench),
        "processes": processes,
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
