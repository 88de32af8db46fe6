"""Measure artifacts and checkpoints side by side: each in processes of its own, in interleaved rounds.

Round 1 measures A B C, round 2 again A B C, so that a machine that slows down meanwhile slows all of them.
Results are one JSON object, see `BenchResult.to_json`; Markdown, CSV and HTML are made from it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge import environment
from alexnet_edge.artifact import Artifact, LayerPrecision, load_artifact
from alexnet_edge.bench.machine import machine_state
from alexnet_edge.bench.measure import LatencySamples, MeasureSettings, summarise
from alexnet_edge.bench.stats import CONFIDENCE, bootstrap_ratios
from alexnet_edge.bench.worker import Opened, Worker
from alexnet_edge.checkpoint import CheckpointInfo, load_checkpoint, read_info
from alexnet_edge.data import ImageSet, batches, reopen, synthetic
from alexnet_edge.errors import AlexNetEdgeError, DataError, UserError
from alexnet_edge.files import sha256_file, sha256_json, write_json
from alexnet_edge.preprocess import FloatArray, Preprocessing
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.sessions import runnable

SCHEMA = 1
KIND = "alexnet-edge bench"

CLOCK = "host end-to-end: prepare, enqueue, synchronize and fetch, from host memory to host memory, perf_counter_ns"

LOAD = "from the path to a session that can answer, checksum included, importing the library not included"

_MIN_IMAGES = 16  # different images that inferences rotate through


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is measured: an artifact or a checkpoint."""

    path: Path
    label: str
    """For tables: `onnx fp16`, or `torch fp32` for a checkpoint."""
    format: str
    """An artifact's format, or `checkpoint`."""
    precision: str
    runtime: str
    sha256: str
    bytes: int
    checkpoint_sha256: str
    architecture: str
    preprocessing: Preprocessing
    data: Mapping[str, Any]
    """What the checkpoint was trained on, where that is known."""
    min_batch: int = 1
    max_batch: int | None = None
    parity: Mapping[str, Any] = field(default_factory=dict)
    """As in the manifest; empty for a checkpoint."""
    layers: tuple[LayerPrecision, ...] = ()
    calibration: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """A checkpoint's own."""
    skipped: str = ""
    """Why it cannot be run here."""

    def to_json(self) -> dict[str, Any]:
        """What results say of a subject before it is measured."""
        return {
            "label": self.label,
            "file": str(self.path),
            "format": self.format,
            "precision": self.precision,
            "runtime": self.runtime,
            "architecture": self.architecture,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "checkpoint_sha256": self.checkpoint_sha256,
            "parity": dict(self.parity),
            "layers": [asdict(layer) for layer in self.layers],
            "calibration": None if self.calibration is None else dict(self.calibration),
            "metrics": dict(self.metrics),
            "skipped": self.skipped,
            "error": "",
            "details": {},
            "rounds": [],
            "batches": [],
        }


def open_subject(path: Path, *, trust: bool = False) -> Subject:
    """Read what `path` says of itself; its bytes are compared with its manifest. `trust` as in `load_artifact`.

    Raises:
        ArtifactError, CheckpointError: when it is missing or damaged.
    """
    if path.suffix in {".safetensors", ".pt", ".pth"}:
        info = read_info(path) if path.suffix == ".safetensors" else load_checkpoint(path).info
        digest = sha256_file(path)
        return Subject(
            path=path,
            label="torch fp32",
            format="checkpoint",
            precision="fp32",
            runtime="torch",
            sha256=digest,
            bytes=path.stat().st_size,
            checkpoint_sha256=digest,
            architecture=info.architecture,
            preprocessing=info.preprocessing,
            data=info.data,
            metrics=info.metrics,
        )
    return subject_of(load_artifact(path, trust=trust))


def subject_of(artifact: Artifact) -> Subject:
    """What a loaded artifact's manifest says, in the form that results keep."""
    manifest = artifact.manifest
    return Subject(
        path=artifact.path,
        label=artifact.label,
        format=manifest.format,
        precision=manifest.precision,
        runtime=manifest.runtime,
        sha256=manifest.sha256,
        bytes=manifest.bytes,
        checkpoint_sha256=manifest.checkpoint_sha256,
        architecture=manifest.architecture,
        preprocessing=manifest.preprocessing,
        data=_recorded_data(Path(manifest.checkpoint)),
        min_batch=manifest.input.min_batch,
        max_batch=manifest.input.max_batch,
        parity=manifest.parity,
        layers=manifest.layers,
        calibration=manifest.calibration,
        skipped=runnable(artifact) or "",
    )


def _recorded_data(checkpoint: Path) -> Mapping[str, Any]:
    """What the source checkpoint was trained on; nothing when it is not there any more, as on a device."""
    try:
        info: CheckpointInfo = read_info(checkpoint)
    except AlexNetEdgeError:
        return {}
    return info.data


@dataclass(kw_only=True, slots=True)
class _Round:
    opened: Opened | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    batches: dict[int, LatencySamples] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            **({} if self.opened is None else asdict(self.opened)),
            "peak_memory_bytes": self.peak_memory_bytes,
            "before": dict(self.before),
            "after": dict(self.after),
        }


@dataclass(kw_only=True, slots=True)
class _Measured:
    subject: Subject
    rounds: list[_Round] = field(default_factory=list)
    error: str = ""

    def samples(self, batch: int) -> list[LatencySamples]:
        return [one.batches[batch] for one in self.rounds if batch in one.batches]


@dataclass(kw_only=True, slots=True)
class BenchResult:
    """Everything a bench measured."""

    settings: MeasureSettings
    command: Sequence[str]
    inputs: Mapping[str, Any]
    measured: list[_Measured]
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    environment: Mapping[str, Any] = field(default_factory=environment.describe)
    interrupted: bool = False
    """Whether Ctrl-C ended it early; what was finished by then is kept."""

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by subject."""
        return {str(one.subject.path): one.error for one in self.measured if one.error}

    def to_json(self) -> dict[str, Any]:
        """The results file: raw samples and their summary. Keys end in their unit; null is "not available"."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "created": self.created,
            "command": list(self.command),
            "clock": CLOCK,
            "load": LOAD,
            "confidence": CONFIDENCE,
            "environment": dict(self.environment),
            "settings": self.settings.to_json(),
            "threads": self.settings.threads or environment.usable_cpus(),
            "inputs": dict(self.inputs),
            "interrupted": self.interrupted,
            "subjects": [self._subject_json(one) for one in self.measured],
        }

    def _subject_json(self, one: _Measured) -> dict[str, Any]:
        opened = [taken.opened for taken in one.rounds if taken.opened is not None]
        return {
            **one.subject.to_json(),
            "error": one.error,
            "details": dict(opened[0].details) if opened else {},
            "rounds": [taken.to_json() for taken in one.rounds],
            "batches": [
                {
                    **summarise(samples, self.settings).to_json(),
                    "speed_up": self._speed_up(one, batch),
                    "samples": [taken.to_json() for taken in samples],
                }
                for batch in self.settings.batches
                if (samples := one.samples(batch))
            ],
        }

    def _speed_up(self, one: _Measured, batch: int) -> dict[str, Any] | None:
        """The checkpoint's median latency over this one's, where its checkpoint was measured too."""
        reference = next(
            (
                other
                for other in self.measured
                if other.subject.format == "checkpoint"
                and other.subject.sha256 == one.subject.checkpoint_sha256
                and other.samples(batch)
            ),
            None,
        )
        if reference is None or reference is one:
            return None
        pairs = [
            (against.batches[batch].samples_ns, own.batches[batch].samples_ns)
            for against, own in zip(
                reference.rounds, one.rounds, strict=False
            )  # an error ends a subject's rounds early
            if batch in against.batches and batch in own.batches
        ]
        if not pairs:
            return None
        ratio, (low, high) = bootstrap_ratios(pairs)
        return {"against": reference.subject.label, "ratio": ratio, "interval": [low, high]}


def run_bench(
    subjects: Sequence[Path],
    settings: MeasureSettings | None = None,
    *,
    images: ImageSet | None = None,
    out: Path | None = None,
    command: Sequence[str] | None = None,
    trust: bool = False,
    reporter: Reporter | None = None,
) -> BenchResult:
    """Measure every subject at every batch, in interleaved rounds of fresh processes.

    A subject that cannot be run on this machine is listed with the reason. One whose process fails is listed with its
    error and left out of later rounds. Ctrl-C ends the bench and keeps what was finished.

    Args:
        subjects: artifacts and checkpoints (`.safetensors`, `.pt`, `.pth`).
        settings: how to measure; the defaults of `MeasureSettings`.
        images: what to answer; by default the data that the first checkpoint was trained on, or else the synthetic set.
        out: results file (JSON), rewritten whole after every subject and round, so that a killed bench leaves it.
        command: recorded as the way to repeat this; by default this process's own.
        trust: take engines without manifest, see `load_artifact`.
        reporter: told of the progress.

    Raises:
        UserError: when there is no subject, one is named twice, or none can be run here.
        ArtifactError, CheckpointError: when one is missing or damaged.
        OutputError: when `out` cannot be written.
    """
    settings = settings or MeasureSettings()
    reporter = reporter or QuietReporter()
    if not subjects:
        raise UserError("nothing to measure", value="no artifact", fix="write one with `alexnet-edge export`")
    measured = [_Measured(subject=open_subject(path, trust=trust)) for path in subjects]
    hashes = [one.subject.sha256 for one in measured]
    for index, digest in enumerate(hashes):
        if digest in hashes[:index]:
            raise UserError("the same file is named twice", value=subjects[index], fix="name each once")
    if all(one.subject.skipped for one in measured):
        first = measured[0].subject
        raise UserError(
            f"nothing can be measured here: {first.skipped}",
            value=first.path,
            fix="measure it on a machine that can run it",
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alexnet-edge-bench-")))
        images = images if images is not None else _default_images([one.subject for one in measured])
        inputs, about_inputs = _write_inputs(folder, measured, settings, images)
        result = BenchResult(
            settings=settings,
            command=list(sys.argv if command is None else command),
            inputs=about_inputs,
            measured=measured,
        )
        running = [one for one in measured if not one.subject.skipped]
        for one in measured:
            if one.subject.skipped:
                reporter.note(f"{one.subject.label}: not run here, {one.subject.skipped}")
        reporter.start("bench", settings.rounds * len(running) * len(settings.batches))
        done = 0
        try:
            for number in range(settings.rounds):
                for one in running:
                    if not one.error:
                        where = f"{one.subject.label}, round {number + 1} of {settings.rounds}"
                        reporter.update(done, where)
                        _one_round(one, settings, inputs[one.subject.preprocessing], trust, reporter, done)
                        if one.error:
                            reporter.note(f"{one.subject.label}: {one.error}")
                        if out is not None:
                            write_json(out, result.to_json())
                    done += len(settings.batches)
                    reporter.update(done)
        except KeyboardInterrupt:
            result.interrupted = True
            reporter.note("interrupted: keeping what was measured")
        reporter.finish(f"{len(running)} measured")
    if out is not None:
        write_json(out, result.to_json())
    return result


def _one_round(
    one: _Measured, settings: MeasureSettings, inputs: Path, trust: bool, reporter: Reporter, done: int
) -> None:
    subject = one.subject
    taken = _Round(before=machine_state())
    one.rounds.append(taken)
    try:
        with Worker() as worker:
            device = "cuda" if subject.format == "trt" else settings.device
            taken.opened = worker.open(
                subject.path, inputs=inputs, device=device, threads=settings.threads, trust=trust
            )
            for index, batch in enumerate(settings.batches):
                if _takes(subject, batch):
                    taken.batches[batch], taken.peak_memory_bytes = worker.measure(batch=batch, settings=settings)
                reporter.update(done + index + 1, f"{subject.label}, batch {batch}")
    except AlexNetEdgeError as error:
        one.error = str(error)
    finally:
        taken.after = machine_state()


def _takes(subject: Subject, batch: int) -> bool:
    return subject.min_batch <= batch and (subject.max_batch is None or batch <= subject.max_batch)


def _default_images(subjects: Sequence[Subject]) -> ImageSet:
    for subject in subjects:
        source = subject.data.get("source")
        if isinstance(source, Mapping):
            try:
                return reopen(source)
            except DataError:  # the folder is on another machine
                continue
    return synthetic("val")


def input_images(images: ImageSet, spec: Preprocessing, count: int) -> FloatArray:
    """`count` images spread over `images`, preprocessed: `(count, 3, S, S)` float32; fewer when there are fewer.

    Raises:
        DataError: when none can be used.
    """
    parts = [part.x_NCHW for part in batches(images.spread(count), spec, batch=count, on_bad_image="skip")]
    if not parts:
        raise DataError("none of the images can be used", value=images.source.get("path"), fix="give other images")
    return np.concatenate(parts)


def _write_inputs(
    folder: Path, measured: Sequence[_Measured], settings: MeasureSettings, images: ImageSet
) -> tuple[dict[Preprocessing, Path], dict[str, Any]]:
    count = max(_MIN_IMAGES, *settings.batches)
    paths: dict[Preprocessing, Path] = {}
    about: dict[str, Any] = {}
    for one in measured:
        spec = one.subject.preprocessing
        if spec not in paths and not one.subject.skipped:
            x_NCHW = input_images(images, spec, count)
            key = sha256_json(spec.to_json())[:12]
            paths[spec] = folder / f"{key}.npy"
            np.save(paths[spec], x_NCHW)
            about[key] = {
                "preprocessing": spec.to_json(),
                "shape": list(x_NCHW.shape),
                "sha256": sha256_file(paths[spec]),
            }
    return paths, {"images": min(count, len(images)), "source": dict(images.spread(count).source), "arrays": about}


# --- reading results ----------------------------------------------------------------------------------------------------


def read_results(path: Path) -> dict[str, Any]:
    """The results file that `run_bench` wrote.

    Raises:
        UserError: when it is missing or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        known = value["kind"] == KIND and value["schema"] == SCHEMA
    except OSError as error:
        raise UserError(
            f"cannot read the results ({error.strerror})", value=path, fix="run `alexnet-edge bench`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("not a results file of `alexnet-edge bench`", value=path, fix="name another") from error
    if not known:
        raise UserError(
            f"results of another kind or schema ({value['kind']} {value['schema']})", value=path, fix="measure again"
        )
    result: dict[str, Any] = value
    return result
