"""Measurements from three kinds of file, in one form that can be compared.

- results of `alexnet-edge bench` (schema 2);
- `trtexec --exportTimes`, see `trtexec.py`;
- pytest-benchmark's JSON, of `pytest bench` or of other tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from alexnet_edge.bench.report.measurement import (
    COLD,
    DEFINITION,
    DEVICE,
    DEVICE_COMPUTE,
    DEVICE_GRAPH,
    HOST,
    INPUTS,
    PIPELINED,
    Key,
    Measurement,
    Verdict,
    known_verdict,
    number,
    optional_number,
    optional_text,
    percentiles_ns,
    positive_count,
    refuse_file,
    times_ns,
)
from alexnet_edge.bench.report.trtexec import convention_definition, read_times
from alexnet_edge.bench.rounds.results import KIND, read_results
from alexnet_edge.errors import UserError
from alexnet_edge.files import MALFORMED

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused, not read: a results file of an hour is some tens of MB."""


def read_measurements(path: Path, *, log: Path | None = None) -> list[Measurement]:
    """Everything that was measured according to `path`, whichever of the three kinds of file it is.

    Args:
        path: results of `alexnet-edge bench`, `trtexec --exportTimes`, or pytest-benchmark's JSON.
        log: what trtexec printed, for its times; looked for beside them when None.

    Raises:
        UserError: when it cannot be read, is none of these, or holds no measurement.
    """
    value = _read_json(path)
    if log is not None and not isinstance(value, list):
        raise UserError("a log of trtexec belongs to its exported times", value=path, fix="leave the log out")
    try:
        if isinstance(value, list):
            measurements = read_times(value, path, log)
        elif isinstance(value, dict) and value.get("kind") == KIND:
            measurements = _of_results(read_results(path))
        elif isinstance(value, dict) and "benchmarks" in value:
            measurements = _of_pytest_benchmark(value, path)
        else:
            refuse_file(path)
    except MALFORMED as error:
        raise UserError(
            f"damaged, or not what it seems to be ({type(error).__name__}: {error})", value=path, fix="measure again"
        ) from error
    if not measurements:
        raise UserError("no measurement in this file", value=path, fix="name another, or measure again")
    return measurements


def _read_json(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(f"too large to be a results file ({size / 1e9:.1f} GB)", value=path, fix="name another")
        return json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"cannot read it ({error.strerror})", value=path, fix="name a results file") from error
    except (ValueError, RecursionError) as error:
        why = "empty" if path.is_file() and not size else "not JSON, cut short, or with numbers that are none"
        raise UserError(f"not a results file ({why})", value=path, fix="name another, or measure again") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} in JSON")


def _key_of(about: Mapping[str, Any], device: Any, batch: Any = None) -> Key:
    return Key(
        what=HOST,
        format=optional_text(about["format"]),
        precision=optional_text(about["precision"]),
        device=optional_text(device),
        threads=positive_count(about.get("threads")),
        batch=positive_count(batch),
    )


def _of_results(results: Mapping[str, Any]) -> list[Measurement]:
    cut = results.get("interrupted") or results.get("finished") is False
    notes = ("it did not finish: only what was measured by then",) if cut else ()
    measurements = []
    for subject in results["subjects"]:
        common = {**_subject_common(subject, results), "notes": notes}
        key = _key_of(subject, subject.get("device"))
        reason = subject["error"] or subject["skipped"]
        if reason:
            verdict: Verdict = "ERROR" if subject["error"] else "NOT RUN"
            measurements.append(Measurement(key=key, **common, verdict=verdict, reasons=(str(reason),)))
        for entry in subject["batches"]:
            measurements += _of_entry(entry, key, common, results)
    return measurements


def _subject_common(subject: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    environment = results["environment"]
    figures = (subject.get("parity") or {}).get("figures") or {}
    gpu = environment.get("gpu") or (subject.get("details") or {}).get("gpu")
    arrays = (results.get("inputs") or {}).get("arrays") or {}
    conditions = {
        "processor": environment.get("cpu"),
        "processors": environment.get("cpus"),
        "GPU": (gpu.get("name") if isinstance(gpu, Mapping) else gpu) if subject.get("device") == "cuda" else None,
        "power mode": _power_mode((results.get("power") or {}).get("mode") or {}),
        "frequency governor": environment.get("cpu_governor"),
        "pinned processors": results.get("pinned_cpus"),
    }
    return {
        "label": str(subject["label"]),
        "file": Path(subject["file"]).name,
        "bytes": positive_count(subject.get("bytes")),
        "sha256": optional_text(subject.get("sha256")),
        "accuracy": optional_number(figures.get("candidate_accuracy")),
        "agreement": optional_number(figures.get("top1_agreement")),
        "emulated": optional_text(environment.get("emulated")),
        "versions": {name: str(version) for name, version in (environment.get("versions") or {}).items()},
        "conditions": {
            **{name: optional_text(value) for name, value in conditions.items()},
            INPUTS: {name: str(array["sha256"]) for name, array in arrays.items()} or None,
        },
    }


def _power_mode(mode: Mapping[str, Any]) -> str | None:
    """The settings in what describes it, without the clocks that were read."""
    nvpmodel, clocks = mode.get("nvpmodel"), mode.get("jetson_clocks")
    parts = [str(nvpmodel["name"])] if nvpmodel else []
    if clocks:
        parts.append("clocks locked" if clocks["locked"] else "clocks not locked")
    return ", ".join(parts) or None


def _of_entry(
    entry: Mapping[str, Any], subject: Key, common: Mapping[str, Any], results: Mapping[str, Any]
) -> list[Measurement]:
    """Everything that was timed of a batch: end to end, warm and cold; by the device's clock; with several in flight."""
    like = optional_text(results["settings"].get("like"))
    own = "as alexnet-edge measures" + (f" like {like}" if like else "")
    clock = optional_text(results.get("clock"))
    batch = positive_count(entry["batch"])

    def measured(part: str, definition: str, summary: Mapping[str, Any] = entry, **more: Any) -> Measurement:
        return Measurement(
            key=replace(subject, batch=batch, what=part),
            **{**common, "conditions": {"clock": clock, DEFINITION: definition, **common["conditions"]}},
            verdict=known_verdict(summary.get("verdict") or entry["verdict"]),
            reasons=tuple(map(str, summary.get("reasons", entry["reasons"]))),
            **more,
        )

    rounds, figures = _rounds_of(entry.get("samples")), percentiles_ns(entry["percentiles_ns"])
    energy = optional_number((entry.get("energy") or {}).get("mj_per_image"))
    measurements = [measured(HOST, own, rounds=rounds, figures=figures, mj_per_image=energy)]
    if cold := entry.get("cold"):
        rounds, figures = _rounds_of(entry.get("cold_samples")), percentiles_ns(cold["percentiles_ns"])
        measurements.append(measured(COLD, own, cold, rounds=rounds, figures=figures))
    if device := entry.get("device"):
        definition = convention_definition(like) or own
        graph = device.get("graph") or {}
        for part, figures_ns, key, phases in (
            (DEVICE, device.get("latency_ns"), "device_samples", ("h2d_ns", "compute_ns", "d2h_ns")),
            (DEVICE_COMPUTE, device.get("compute_ns"), "device_samples", ("compute_ns",)),
            (DEVICE_GRAPH, graph.get("compute_ns"), "graph_samples", ("compute_ns",)),
        ):
            if figures_ns:
                rounds = tuple(_phases(samples, phases) for samples in entry.get(key) or ())
                measurements.append(measured(part, definition, rounds=rounds, figures=percentiles_ns(figures_ns)))
    if pipelined := entry.get("pipelined"):
        per_query_ns = 1e9 / number(pipelined["queries_per_s"])
        definition = f"{own}, {pipelined['in_flight']} in flight"
        measurements.append(measured(PIPELINED, definition, figures={"p50": per_query_ns}))
    return measurements


def _rounds_of(samples: Sequence[Mapping[str, Any]] | None) -> tuple[tuple[float, ...], ...]:
    return tuple(times_ns(entry["samples_ns"]) for entry in samples or () if entry["samples_ns"])


def _phases(samples: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...]:
    """The sum of the phases that were measured, per inference; without transfers there are none to add."""
    phases = [times_ns(samples[name]) for name in names if samples[name] is not None]
    return tuple(sum(parts) for parts in zip(*phases, strict=True))


def _of_pytest_benchmark(value: Mapping[str, Any], path: Path) -> list[Measurement]:
    machine = value.get("machine_info") or {}
    cpu = machine.get("cpu") or {}
    versions = {"pytest-benchmark": str(value["version"])} if "version" in value else {}
    if "python_version" in machine:
        versions["python"] = str(machine["python_version"])
    processor = optional_text(cpu.get("brand_raw") or cpu.get("brand") or machine.get("processor") or None)
    return [_of_benchmark(entry, processor, optional_text(cpu.get("count")), versions) for entry in value["benchmarks"]]


def _of_benchmark(
    entry: Mapping[str, Any], processor: str | None, count: str | None, versions: Mapping[str, str]
) -> Measurement:
    info = entry.get("extra_info") or {}
    stats = entry["stats"]
    data = times_ns(stats.get("data") or (), 1e9)
    conditions: dict[str, Any] = {"processor": processor, "processors": count, INPUTS: None}
    timer = (entry.get("options") or {}).get("timer")
    if {"format", "precision", "batch", "clock"} <= info.keys():  # written by `pytest bench`
        device = info.get("device") or (info.get("details") or {}).get("device")
        return Measurement(
            key=_key_of(info, device, info["batch"]),
            label=str(info["label"]),
            file=Path(info["file"]).name,
            rounds=_split(data, info.get("samples_per_round")),
            figures=percentiles_ns(info.get("percentiles_ns") or {"p50": number(stats["median"]) * 1e9}),
            conditions={"clock": optional_text(info["clock"]), DEFINITION: "as alexnet-edge measures", **conditions},
            versions=versions,
            verdict=known_verdict(info.get("verdict", "")),
            reasons=tuple(map(str, info.get("reasons", ()))),
            bytes=positive_count(info.get("bytes")),
            sha256=optional_text(info.get("sha256")),
            emulated=optional_text((info.get("environment") or {}).get("emulated")),
        )
    name = str(entry.get("fullname") or entry["name"])
    notes = () if data else ("without raw samples: saved without --benchmark-save-data",)
    return Measurement(
        key=Key(what=HOST, name=name),
        label=name,
        file="",
        rounds=(data,) if data else (),
        figures={"p50": number(stats["median"]) * 1e9},
        conditions={
            "clock": f"pytest-benchmark, {timer}" if timer else None,
            DEFINITION: "the function that the test gave to pytest-benchmark",
            **conditions,
        },
        versions=versions,
        notes=notes,
    )


def _split(data: tuple[float, ...], counts: Sequence[int] | None) -> tuple[tuple[float, ...], ...]:
    """The samples of each round; all of them as one round when the file does not say where a round ends."""
    if not data:
        return ()
    if not counts or sum(counts) != len(data) or min(counts) < 1:
        return (data,)
    samples = iter(data)
    return tuple(tuple(islice(samples, count)) for count in counts)
