"""The steps of a deploy that need this package, on the device: `python -m alexnet_edge.deploy.agent STEP RELEASE SETTINGS`.

`board.py` starts it in the release's environment. Events go to standard output, one JSON object per line: progress, then
`result` or `problem`. Everything else that is printed goes to standard error, which is the release's log.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from alexnet_edge.artifact import Artifact, commit, load_artifact, manifest_path
from alexnet_edge.deploy.board import ARTIFACT, MANIFEST, memory_bytes
from alexnet_edge.deploy.golden import Golden, read_golden
from alexnet_edge.environment import emulation
from alexnet_edge.errors import AlexNetEdgeError, ArtifactError, GateError, ParityError, PrecisionError
from alexnet_edge.proof.parity import check_parity

PROGRESS_S = 1.0
"""Progress within one piece of work is passed on so often at most."""


class EventReporter:
    """Progress as events."""

    def __init__(self, events: TextIO) -> None:
        self._events = events
        self._description = ""
        self._total: int | None = None
        self._reported = 0.0

    def write(self, **event: Any) -> None:
        print(json.dumps(event), file=self._events, flush=True)

    def start(self, description: str, total: int | None) -> None:
        self._description, self._total = description, total
        self.write(doing=description, total=total)

    def update(self, completed: int, detail: str = "") -> None:
        if time.monotonic() - self._reported >= PROGRESS_S:
            self._reported = time.monotonic()
            self.write(doing=self._description, completed=completed, total=self._total, detail=detail)

    def finish(self, detail: str = "") -> None:
        self.write(did=self._description, detail=detail)

    def note(self, text: str) -> None:
        self.write(note=text)


def build(release: Path, settings: Mapping[str, Any], reporter: EventReporter) -> dict[str, Any]:
    """Build the artifact here, or take the one that was sent, and prove it on the golden set; GateError when a layer is not
    in the precision asked for, or the answers are not the checkpoint's."""
    golden = read_golden(release / "files" / "golden.tar", release / "golden")
    out = release / "artifacts"
    shutil.rmtree(out, ignore_errors=True)  # of a try that was cut short
    out.mkdir()
    reporter.note(f"golden set: {len(golden.images)} images")
    make = _built if settings["build"] else _copied
    artifact = make(release, out, golden, settings, reporter)
    manifest = artifact.manifest
    parity = manifest.parity
    if parity.get("verdict") != "passed":
        raise GateError(f"not proved on the device: {'; '.join(parity.get('reasons', ()))}")
    for name, target in ((ARTIFACT, artifact.path), (MANIFEST, manifest_path(artifact.path))):
        (release / name).unlink(missing_ok=True)
        (release / name).symlink_to(target.relative_to(release))
    held = sum(layer.holds for layer in manifest.layers)
    proof = {"verdict": "passed", "images": len(golden.images), "warnings": parity["warnings"]}
    figures = {name: parity["figures"][name] for name in ("top1_agreement", "max_abs_error", "candidate_accuracy")}
    return {
        "file": artifact.path.name,
        "sha256": manifest.sha256,
        "bytes": manifest.bytes,
        "built_here": bool(settings["build"]),
        "seconds": manifest.build_seconds,
        "layers": f"{held} of {len(manifest.layers)} {manifest.precision}",
        "emulated": emulation(),
        "parity": {**proof, **figures},
    }


def _copied(release: Path, out: Path, golden: Golden, settings: Mapping[str, Any], reporter: EventReporter) -> Artifact:
    """The artifact as it was sent: its bytes are those whose precision was read back where it was exported."""
    name = settings["source"]
    for each in (name, f"{name}.json"):  # copies: what serves shares no byte of the disk with another release
        shutil.copyfile(release / "files" / each, out / each)
    artifact = load_artifact(out / name)
    manifest = artifact.manifest
    if manifest.precision != settings["precision"] or manifest.format != settings["format"]:
        raise ArtifactError("not the artifact that was asked for", value=artifact.label, fix="deploy again")
    wrong = [layer.name for layer in manifest.layers if not layer.holds]
    if wrong or not manifest.layers:
        raise PrecisionError(f"layers not in the precision asked for: {', '.join(wrong) or 'none is known'}")
    reporter.start(f"proving {artifact.label}", None)
    report = check_parity(artifact, golden.reference_NK, golden.images, threads=settings["threads"], batch=8)
    reporter.finish("passed" if report.passed else "; ".join(report.reasons))
    if not report.passed:
        raise ParityError(f"{artifact.label} does not answer like the checkpoint: {'; '.join(report.reasons)}")
    return commit(artifact.path, artifact.path, replace(manifest, parity=report.to_json()))


def _built(release: Path, out: Path, golden: Golden, settings: Mapping[str, Any], reporter: EventReporter) -> Artifact:
    """Build from the FP32 ONNX file with the ranges that came with it; the exporter reads back and proves."""
    from alexnet_edge.export.engines.options import EngineOptions
    from alexnet_edge.export.exporter import Exporter
    from alexnet_edge.export.graphs.source import checkpoint_from_onnx
    from alexnet_edge.export.graphs.targets import this_machine_or_none
    from alexnet_edge.export.quantising.calibrate import decode_calibration
    from alexnet_edge.export.settings import ExportSettings

    ranges = release / "files" / "calibration.json"
    calibration = decode_calibration(ranges.read_bytes()) if settings["calibration"] else None
    engine = EngineOptions()
    if settings["format"] == "trt":
        cache = release.parents[1] / "cache" / "timing.cache"
        options = {name: value for name, value in settings["engine"].items() if value is not None}
        engine = EngineOptions(**{"memory_cap": memory_cap_mib(), "timing_cache": cache, **options})
        reporter.note(f"memory for the builder: {engine.memory_cap} MiB")
    lowered = settings["format"] == "onnx" and (calibration is None or bool(calibration.output_amax))
    exporter = Exporter(
        checkpoint_from_onnx(release / "files" / settings["source"]),
        ExportSettings(
            out=out,
            engine=engine,
            target=this_machine_or_none() if lowered else None,
            runtime=settings["runtime"],
            threads=settings["threads"],
            cache=release / "cache",
        ),
        proof_images=golden.images,
        calibration=calibration,
        reference_NK=golden.reference_NK,
        reporter=reporter,
    )
    return exporter.export(settings["format"], settings["precision"])


def memory_cap_mib() -> int | None:
    """Half of the memory that is available now; None where it cannot be read."""
    available = memory_bytes("MemAvailable")
    return None if available is None else max(256, available >> 21)


def bench(release: Path, settings: Mapping[str, Any], reporter: EventReporter) -> dict[str, Any]:
    """Measure the artifact, with power and temperatures where they can be read, and keep the results as JSON."""
    from alexnet_edge.bench.rounds.run import Plan, run_bench
    from alexnet_edge.bench.timing.settings import MeasureSettings

    if settings["seconds"] == 0:
        return {"skipped": "not asked for"}
    golden = read_golden(release / "files" / "golden.tar", release / "golden")
    result = run_bench(
        [(release / ARTIFACT).resolve()],
        MeasureSettings(
            batches=tuple(settings["batches"]),
            min_seconds=settings["seconds"],
            max_seconds=max(60.0, 10 * settings["seconds"]),
            **{name: settings[name] for name in ("percentile", "rounds", "cold")},
        ),
        Plan(
            threads=() if settings["threads"] is None else (settings["threads"],),
            harness=settings["roofline"],
            **{name: settings[name] for name in ("roofline", "power_mode", "lock_clocks")},
        ),
        images=golden.images,
        out=release / "report" / "bench.json",
        command=["alexnet-edge", "deploy"],
        reporter=reporter,
    )
    if result.errors:
        raise GateError("; ".join(f"{label}: {reason}" for label, reason in result.errors.items()))
    first = next(iter(result.to_json()["subjects"][0]["batches"]), None)
    if first is None:
        return {"verdict": None, "reasons": [], "batch": None, "p50_ns": None}
    return {name: first[name] for name in ("verdict", "reasons", "batch")} | {"p50_ns": first["percentiles_ns"]["p50"]}


def main(step: str, release: str, settings: str) -> int:
    """Do one step; the exit code is 0 when the last event is a result."""
    do = {"build": build, "bench": bench}[step]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)  # what a library prints is no event
        events = EventReporter(stream)
        try:
            events.write(result=do(Path(release), json.loads(settings), events))
        except AlexNetEdgeError as error:
            traceback.print_exc()
            events.write(problem=str(error), gate=isinstance(error, GateError))
            return 1
        except BrokenPipeError:  # nobody waits for the answer any more
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
