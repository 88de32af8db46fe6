"""Measurements from three kinds of file, in one form that can be compared.

- results of `alexnet-edge bench` (schema 2);
- `trtexec --exportTimes`: one object of times in milliseconds per inference
  (https://github.com/NVIDIA/TensorRT/blob/main/samples/common/sampleReporting.cpp). The file says neither the version nor
  the options, and TensorRT 11 turned three of them round (data transfers off, CUDA graph and spin-wait on); the log that
  trtexec printed says them, when it lies beside the file as `times.log` or `times.json.log`;
- pytest-benchmark's JSON, of `pytest bench` or of somebody else's tests.

What a file does not say is None here, never a guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from alexnet_edge.bench.rounds.results import KIND, read_results
from alexnet_edge.bench.timing.settings import CONVENTIONS
from alexnet_edge.errors import UserError
from alexnet_edge.files import MALFORMED

Verdict = Literal["VALID", "INVALID", "ERROR", "NOT RUN", ""]
"""Of whoever measured; empty when they gave none, as trtexec and pytest-benchmark do."""

HOST = "host end-to-end"
COLD = "cold"
DEVICE = "device"
DEVICE_COMPUTE = "device compute"
DEVICE_GRAPH = "device compute, CUDA graph"
PIPELINED = "pipelined"

DEFINITION = "definition"
"""The condition without which two figures cannot be compared at all: what exactly was timed, and how."""

INPUTS = "inputs"
"""The condition that holds checksums by preprocessing; the others are text."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused, not read: a results file of an hour is some tens of MB."""

_MAX_NS = 1e15  # eleven days: no inference takes longer, so the file is something else
_TRTEXEC_WARMUP_MS = 200.0  # trtexec's default --warmUp


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What a measurement is of; None is what the file does not say."""

    format: str | None
    precision: str | None
    device: str | None
    threads: int | None
    batch: int | None
    what: str
    """`host end-to-end`, `cold`, `device` (H2D + compute + D2H), `device compute`, `pipelined`."""
    name: str = ""
    """Of a test that is not ours, which has no format; else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One thing measured one way; times in nanoseconds."""

    key: Key
    label: str
    file: str
    """Of what was measured, without its folder; empty when not said."""
    rounds: tuple[tuple[float, ...], ...] = ()
    """Raw samples of each round, in order; empty when the file has only figures."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """`p50`, `p90`, `p95`, `p99`, `p99.9`: where there are no raw samples, or as their file summed them up."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What must be the same on both sides of a comparison, by name; None is not said."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of libraries: what one compares, so they may differ."""
    verdict: Verdict = ""
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader of the figure should know about how it was read."""
    mj_per_image: float | None = None
    bytes: int | None = None
    accuracy: float | None = None
    agreement: float | None = None
    sha256: str | None = None
    emulated: str | None = None
    """What emulated the machine; None on a real one."""

    @property
    def median_ns(self) -> float | None:
        """Of all samples, or as the file gives it."""
        if self.rounds:
            values = sorted(value for samples in self.rounds for value in samples)
            middle = len(values) // 2
            return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
        return self.figures.get("p50")


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
            measurements = _of_trtexec(value, path, log)
        elif isinstance(value, dict) and value.get("kind") == KIND:
            measurements = _of_results(read_results(path))
        elif isinstance(value, dict) and "benchmarks" in value:
            measurements = _of_pytest_benchmark(value, path)
        else:
            _not_ours(path)
    except MALFORMED as error:
        raise UserError(
            f"damaged, or not what it seems to be ({type(error).__name__}: {error})", value=path, fix="measure again"
        ) from error
    if not measurements:
        raise UserError("no measurement in this file", value=path, fix="name another, or measure again")
    return measurements


def _not_ours(path: Path) -> NoReturn:
    raise UserError(
        "neither results of `alexnet-edge bench`, nor times exported by trtexec, nor pytest-benchmark's JSON",
        value=path,
        fix="name one of these",
    )


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


def _number(value: Any) -> float:
    """A finite number that is not negative; raises ValueError for anything else, true and false included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"not a time or a count: {str(value)[:40]}")
    return float(value)


def _times_ns(values: Sequence[Any], scale: float = 1.0) -> tuple[float, ...]:
    times = tuple(_number(value) * scale for value in values)
    if any(value > _MAX_NS for value in times):
        raise ValueError("an inference of more than eleven days")
    return times


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)


def _count(value: Any) -> int | None:
    """A whole number above 0, or None; raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"not a count: {str(value)[:40]}")
    return value


def _verdict(value: Any) -> Verdict:
    if value not in ("VALID", "INVALID", ""):
        raise ValueError(f"no verdict: {str(value)[:40]}")
    known: Verdict = value
    return known


# --- results of alexnet-edge bench --------------------------------------------------------------------------------------


def _of_results(results: Mapping[str, Any]) -> list[Measurement]:
    cut = results.get("interrupted") or results.get("finished") is False
    notes = ("it did not finish: only what was measured by then",) if cut else ()
    measurements = []
    for subject in results["subjects"]:
        common = _subject_common(subject, results)
        key = Key(
            format=_text(subject["format"]),
            precision=_text(subject["precision"]),
            device=_text(subject.get("device")),
            threads=_count(subject.get("threads")),
            batch=None,
            what=HOST,
        )
        reason = subject["error"] or subject["skipped"]
        if reason:
            verdict: Verdict = "ERROR" if subject["error"] else "NOT RUN"
            measurements.append(Measurement(key=key, **common, verdict=verdict, reasons=(str(reason),), notes=notes))
        for entry in subject["batches"]:
            measurements += _of_entry(entry, key, common, results, notes)
    return measurements


def _subject_common(subject: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    environment = results["environment"]
    details = subject.get("details") or {}
    figures = (subject.get("parity") or {}).get("figures") or {}
    on_gpu = subject.get("device") == "cuda"
    mode = (results.get("power") or {}).get("mode")
    arrays = (results.get("inputs") or {}).get("arrays") or {}
    return {
        "label": str(subject["label"]),
        "file": Path(subject["file"]).name,
        "bytes": _count(subject.get("bytes")),
        "sha256": _text(subject.get("sha256")),
        "accuracy": _optional(figures.get("candidate_accuracy")),
        "agreement": _optional(figures.get("top1_agreement")),
        "emulated": _text(environment.get("emulated")),
        "versions": {name: str(version) for name, version in (environment.get("versions") or {}).items()},
        "conditions": {
            "processor": _text(environment.get("cpu")),
            "processors": _text(environment.get("cpus")),
            "GPU": _gpu_name(environment, details) if on_gpu else None,
            "power mode": _power_mode(mode),
            "frequency governor": _text(environment.get("cpu_governor")),
            "pinned processors": _text(results.get("pinned_cpus")),
            INPUTS: {name: str(array["sha256"]) for name, array in arrays.items()} or None,
        },
    }


def _gpu_name(environment: Mapping[str, Any], details: Mapping[str, Any]) -> str | None:
    gpu = environment.get("gpu") or details.get("gpu")
    return _text(gpu.get("name") if isinstance(gpu, Mapping) else gpu)


def _power_mode(mode: Mapping[str, Any] | None) -> str | None:
    """The settings in what describes it, without the clocks that were read."""
    if mode is None:
        return None
    nvpmodel, clocks = mode.get("nvpmodel"), mode.get("jetson_clocks")
    parts = [str(nvpmodel["name"])] if nvpmodel else []
    if clocks:
        parts.append("clocks locked" if clocks["locked"] else "clocks not locked")
    return ", ".join(parts) or None


def _of_entry(
    entry: Mapping[str, Any],
    subject: Key,
    common: Mapping[str, Any],
    results: Mapping[str, Any],
    notes: tuple[str, ...],
) -> list[Measurement]:
    settings = results["settings"]
    like = _text(settings.get("like"))
    own = "as alexnet-edge measures" + (f" like {like}" if like else "")
    clock = _text(results.get("clock"))
    energy = _optional((entry.get("energy") or {}).get("mj_per_image"))
    batch = _count(entry["batch"])

    def measured(part: str, definition: str, summary: Mapping[str, Any] = entry, **more: Any) -> Measurement:
        verdict = _verdict(summary.get("verdict") or entry["verdict"])
        return Measurement(
            key=replace(subject, batch=batch, what=part),
            **{**common, "conditions": {"clock": clock, DEFINITION: definition, **common["conditions"]}},
            verdict=verdict,
            reasons=tuple(map(str, summary.get("reasons", entry["reasons"]))),
            notes=notes,
            **more,
        )

    measurements = [
        measured(
            HOST,
            own,
            rounds=_rounds_of(entry.get("samples")),
            figures=_percentiles(entry["percentiles_ns"]),
            mj_per_image=energy,
        )
    ]
    if cold := entry.get("cold"):
        measurements.append(
            measured(
                COLD,
                own,
                cold,
                rounds=_rounds_of(entry.get("cold_samples")),
                figures=_percentiles(cold["percentiles_ns"]),
            )
        )
    if device := entry.get("device"):
        definition = _like_definition(like) or own
        device_rounds, graph_rounds = entry.get("device_samples") or (), entry.get("graph_samples") or ()
        for part, summary, rounds in (
            (
                DEVICE,
                device.get("latency_ns"),
                [_phases(samples, ("h2d_ns", "compute_ns", "d2h_ns")) for samples in device_rounds],
            ),
            (
                DEVICE_COMPUTE,
                device.get("compute_ns"),
                [_phases(samples, ("compute_ns",)) for samples in device_rounds],
            ),
            (
                DEVICE_GRAPH,
                (device.get("graph") or {}).get("compute_ns"),
                [_phases(samples, ("compute_ns",)) for samples in graph_rounds],
            ),
        ):
            if summary:
                measurements.append(measured(part, definition, rounds=tuple(rounds), figures=_percentiles(summary)))
    if pipelined := entry.get("pipelined"):
        per_query_ns = 1e9 / _number(pipelined["queries_per_s"])
        definition = f"{own}, {pipelined['in_flight']} in flight"
        measurements.append(measured(PIPELINED, definition, figures={"p50": per_query_ns}))
    return measurements


def _rounds_of(samples: Sequence[Mapping[str, Any]] | None) -> tuple[tuple[float, ...], ...]:
    return tuple(_times_ns(entry["samples_ns"]) for entry in samples or () if entry["samples_ns"])


def _phases(samples: Mapping[str, Any], names: Sequence[str]) -> tuple[float, ...]:
    """The sum of the phases that were measured, per inference; without transfers there are none to add."""
    phases = [_times_ns(samples[name]) for name in names if samples[name] is not None]
    return tuple(sum(parts) for parts in zip(*phases, strict=True))


def _percentiles(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: _number(values[name])
        for name in ("p50", "p90", "p95", "p99", "p99.9")
        if values.get(name) is not None  # the samples were too few for it
    }


def _like_definition(like: str | None) -> str | None:
    """What `--like` measures, in the words of trtexec's own options."""
    if like is None:
        return None
    (convention,) = (known for name, known in CONVENTIONS.items() if name == like)
    return _trtexec_definition(transfers=convention.transfers, spin=convention.spin, graph=convention.graph, streams=1)


# --- trtexec ------------------------------------------------------------------------------------------------------------


def _trtexec_definition(*, transfers: bool, spin: bool, graph: bool, streams: int) -> str:
    words = [("transfers", transfers), ("spin-wait", spin), ("CUDA graph", graph)]
    options = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in words)
    return f"CUDA events as in trtexec: {options}, {streams} stream{'' if streams == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _TrtexecLog:
    """What trtexec said of a run while it printed."""

    version: str | None
    definition: str | None
    gpu: str | None
    batch: int | None
    warmups: int | None
    queries: int | None


def _of_trtexec(value: Sequence[Any], path: Path, log: Path | None) -> list[Measurement]:
    if not value:
        raise UserError("no times in this file", value=path, fix="let trtexec run inference with --exportTimes")
    if not all(isinstance(query, dict) and "computeMs" in query and "latencyMs" in query for query in value):
        _not_ours(path)
    run, log_note = _find_log(path, log)
    trace, note = _without_warmup(value, run)
    notes = [note] if note else []
    if log_note:
        notes.append(log_note)
    h2d = "h2dMs" if "h2dMs" in trace[0] else "inMs"  # `in` and `out` until TensorRT 8.2
    transfers = any(_number(query.get(h2d, 0)) > 0 for query in trace)
    fields = "fields h2d, d2h" if h2d == "h2dMs" else "fields in, out"
    if "endToEndMs" in trace[0]:
        fields += ", end to end"
    definition = run.definition if run else None
    if definition is None:
        notes.append(
            "trtexec's version and options are not known: TensorRT 10 and 11 time different things by default; "
            "put its log beside the file"
        )
    conditions = {
        "clock": "CUDA events, per inference",
        DEFINITION: definition,
        "seen in the trace": f"transfers {'on' if transfers else 'off'}, {fields}",
        "GPU": run.gpu if run else None,
        INPUTS: None,
    }
    measurements = []
    for part, name in ((DEVICE, "latencyMs"), (DEVICE_COMPUTE, "computeMs")):
        key = Key(
            format="trt", precision=None, device="cuda", threads=None, batch=run.batch if run else None, what=part
        )
        measurements.append(
            Measurement(
                key=key,
                label=path.stem,
                file="",
                rounds=(_times_ns([query[name] for query in trace], 1e6),),
                conditions=conditions,
                versions={"tensorrt": run.version} if run and run.version else {},
                notes=tuple(notes),
            )
        )
    return measurements


def _without_warmup(trace: Sequence[Mapping[str, Any]], run: _TrtexecLog | None) -> tuple[list[Mapping[str, Any]], str]:
    """The trace without trtexec's own warm-up, which older versions export too, and a note when it was cut.

    trtexec counts as warm-up what begins to compute before `--warmUp` milliseconds have passed.
    """
    rows = list(trace)
    if run and run.warmups is not None and run.queries is not None:
        cut = run.warmups if len(rows) == run.warmups + run.queries else 0
    else:
        cut = sum("startComputeMs" in query and _number(query["startComputeMs"]) < _TRTEXEC_WARMUP_MS for query in rows)
    if not cut or cut >= len(rows):
        return rows, ""
    return rows[cut:], f"the first {cut} of {len(rows)} inferences are trtexec's warm-up and left out"


def _find_log(path: Path, log: Path | None) -> tuple[_TrtexecLog | None, str]:
    if log is not None:
        try:
            return _read_log(log.read_text(encoding="utf-8", errors="replace"), log), ""
        except OSError as error:
            raise UserError(f"cannot read trtexec's log ({error.strerror})", value=log, fix="name another") from error
    for beside in (path.with_suffix(".log"), path.with_name(f"{path.name}.log")):
        try:
            text = beside.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        named = re.search(r"Export timing to JSON file:[ \t]*(\S+)", text)
        if named is None or Path(named.group(1)).name != path.name:
            return None, f"{beside.name} lies beside it and is of another run"
        return _read_log(text, beside), f"version and options from {beside.name}"
    return None, ""


def _read_log(text: str, path: Path) -> _TrtexecLog:
    def first_match(pattern: str) -> str | None:
        match = re.search(pattern, text)
        return match.group(1).strip() if match else None

    if first_match(r"&&&& RUNNING (TensorRT\.trtexec|TensorRT_RTX|tensorrt_rtx)") is None:
        raise UserError("not a log of trtexec", value=path, fix="name what trtexec printed, from its first line on")
    options = {
        name: first_match(rf"\] {name}: (Enabled|Disabled)") for name in ("Data transfers", "Spin-wait", "CUDA Graph")
    }
    streams = first_match(r"\] (?:Inference )?Streams: (\d+)")
    definition = None
    if all(options.values()) and streams:
        definition = _trtexec_definition(
            transfers=options["Data transfers"] == "Enabled",
            spin=options["Spin-wait"] == "Enabled",
            graph=options["CUDA Graph"] == "Enabled",
            streams=int(streams),
        )
    batch = first_match(r"Input binding for \S+ with dimensions (\d+)x")
    warmups, queries = first_match(r"Warmup completed (\d+) queries"), first_match(r"Timing trace has (\d+) queries")
    return _TrtexecLog(
        version=first_match(r"TensorRT version: (\S+)"),
        definition=definition,
        gpu=first_match(r"Selected Device: (.+)"),
        batch=int(batch) if batch else None,
        warmups=int(warmups) if warmups else None,
        queries=int(queries) if queries else None,
    )


# --- pytest-benchmark ---------------------------------------------------------------------------------------------------


def _of_pytest_benchmark(value: Mapping[str, Any], path: Path) -> list[Measurement]:
    machine = value.get("machine_info") or {}
    cpu = machine.get("cpu") or {}
    versions = {"pytest-benchmark": str(value["version"])} if "version" in value else {}
    if "python_version" in machine:
        versions["python"] = str(machine["python_version"])
    processor = _text(cpu.get("brand_raw") or cpu.get("brand") or machine.get("processor") or None)
    return [_of_benchmark(entry, processor, _text(cpu.get("count")), versions) for entry in value["benchmarks"]]


def _of_benchmark(
    entry: Mapping[str, Any], processor: str | None, count: str | None, versions: Mapping[str, str]
) -> Measurement:
    info = entry.get("extra_info") or {}
    stats = entry["stats"]
    data = _times_ns(stats.get("data") or (), 1e9)
    conditions: dict[str, Any] = {"processor": processor, "processors": count, INPUTS: None}
    timer = (entry.get("options") or {}).get("timer")
    if {"format", "precision", "batch", "clock"} <= info.keys():  # written by `pytest bench`
        device = info.get("device") or (info.get("details") or {}).get("device")
        key = Key(
            format=_text(info["format"]),
            precision=_text(info["precision"]),
            device=_text(device),
            threads=_count(info.get("threads")),
            batch=_count(info["batch"]),
            what=HOST,
        )
        return Measurement(
            key=key,
            label=str(info["label"]),
            file=Path(info["file"]).name,
            rounds=_split(data, info.get("samples_per_round")),
            figures=_percentiles(info.get("percentiles_ns") or {"p50": _number(stats["median"]) * 1e9}),
            conditions={"clock": _text(info["clock"]), DEFINITION: "as alexnet-edge measures", **conditions},
            versions=versions,
            verdict=_verdict(info.get("verdict", "")),
            reasons=tuple(map(str, info.get("reasons", ()))),
            bytes=_count(info.get("bytes")),
            sha256=_text(info.get("sha256")),
            emulated=_text((info.get("environment") or {}).get("emulated")),
        )
    name = str(entry.get("fullname") or entry["name"])
    notes = () if data else ("without raw samples: saved without --benchmark-save-data",)
    return Measurement(
        key=Key(format=None, precision=None, device=None, threads=None, batch=None, what=HOST, name=name),
        label=name,
        file="",
        rounds=(data,) if data else (),
        figures={"p50": _number(stats["median"]) * 1e9},
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
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    return tuple(data[end - count : end] for end, count in zip(ends, counts, strict=True))
