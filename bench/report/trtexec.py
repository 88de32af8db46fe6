"""Times that `trtexec --exportTimes` wrote, and the log that it printed.

The file has one object of times in milliseconds per inference
(https://github.com/NVIDIA/TensorRT/blob/main/samples/common/sampleReporting.cpp). It names neither the version nor the
options, and TensorRT 11 changed three defaults (data transfers off, CUDA graph and spin-wait on). The log names them, when
it lies beside the file as `times.log` or `times.json.log`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_edge.bench.report.measurement import (
    DEFINITION,
    DEVICE,
    DEVICE_COMPUTE,
    INPUTS,
    Key,
    Measurement,
    number,
    refuse_file,
    times_ns,
)
from alexnet_edge.bench.timing.settings import CONVENTIONS
from alexnet_edge.errors import UserError

_TRTEXEC_WARMUP_MS = 200.0  # trtexec's default --warmUp


def convention_definition(like: str | None) -> str | None:
    """What `--like` measures, in the words of trtexec's own options."""
    if like is None:
        return None
    convention = CONVENTIONS[like]  # type: ignore[index]
    return definition_of(transfers=convention.transfers, spin=convention.spin, graph=convention.graph, streams=1)


def definition_of(*, transfers: bool, spin: bool, graph: bool, streams: int) -> str:
    words = [("transfers", transfers), ("spin-wait", spin), ("CUDA graph", graph)]
    options = ", ".join(f"{name} {'on' if value else 'off'}" for name, value in words)
    return f"CUDA events as in trtexec: {options}, {streams} stream{'' if streams == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _TrtexecLog:
    """What trtexec's log records of a run."""

    version: str | None = None
    definition: str | None = None
    gpu: str | None = None
    batch: int | None = None
    warmups: int | None = None
    queries: int | None = None


def read_times(value: Sequence[Any], path: Path, log: Path | None) -> list[Measurement]:
    if not value:
        raise UserError("no times in this file", value=path, fix="let trtexec run inference with --exportTimes")
    if not all(isinstance(query, dict) and "computeMs" in query and "latencyMs" in query for query in value):
        refuse_file(path)
    log_found, log_note = _find_log(path, log)
    run = log_found or _TrtexecLog()
    trace, note = _without_warmup(value, run)
    notes = [text for text in (note, log_note) if text]
    h2d = "h2dMs" if "h2dMs" in trace[0] else "inMs"  # `in` and `out` until TensorRT 8.2
    transfers = any(number(query.get(h2d, 0)) > 0 for query in trace)
    fields = "fields h2d, d2h" if h2d == "h2dMs" else "fields in, out"
    if "endToEndMs" in trace[0]:
        fields += ", end to end"
    if run.definition is None:
        notes.append(
            "trtexec's version and options are not known: TensorRT 10 and 11 time different things by default; "
            "put its log beside the file"
        )
    conditions = {
        "clock": "CUDA events, per inference",
        DEFINITION: run.definition,
        "seen in the trace": f"transfers {'on' if transfers else 'off'}, {fields}",
        "GPU": run.gpu,
        INPUTS: None,
    }
    return [
        Measurement(
            key=Key(what=part, format="trt", device="cuda", batch=run.batch),
            label=path.stem,
            file="",
            rounds=(times_ns([query[name] for query in trace], 1e6),),
            conditions=conditions,
            versions={"tensorrt": run.version} if run.version else {},
            notes=tuple(notes),
        )
        for part, name in ((DEVICE, "latencyMs"), (DEVICE_COMPUTE, "computeMs"))
    ]


def _without_warmup(trace: Sequence[Mapping[str, Any]], run: _TrtexecLog) -> tuple[list[Mapping[str, Any]], str]:
    """The trace without trtexec's own warm-up, which older versions export too, and a note when it was cut.

    trtexec counts as warm-up what begins to compute before `--warmUp` milliseconds have passed.
    """
    rows = list(trace)
    if run.warmups is not None and run.queries is not None:
        cut = run.warmups if len(rows) == run.warmups + run.queries else 0
    else:
        cut = sum("startComputeMs" in query and number(query["startComputeMs"]) < _TRTEXEC_WARMUP_MS for query in rows)
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

    def count(pattern: str) -> int | None:
        match = first_match(pattern)
        return int(match) if match else None

    transfers, spin, graph = (
        first_match(rf"\] {name}: (Enabled|Disabled)") for name in ("Data transfers", "Spin-wait", "CUDA Graph")
    )
    streams = count(r"\] (?:Inference )?Streams: (\d+)")
    definition = None
    if transfers and spin and graph and streams is not None:
        definition = definition_of(
            transfers=transfers == "Enabled", spin=spin == "Enabled", graph=graph == "Enabled", streams=streams
        )
    return _TrtexecLog(
        version=first_match(r"TensorRT version: (\S+)"),
        definition=definition,
        gpu=first_match(r"Selected Device: (.+)"),
        batch=count(r"Input binding for \S+ with dimensions (\d+)x"),
        warmups=count(r"Warmup completed (\d+) queries"),
        queries=count(r"Timing trace has (\d+) queries"),
    )
