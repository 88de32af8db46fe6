"""The fastest precision of each layer within an accuracy budget: `export --int8 auto --max-drop 0.5`.

Greedy, with measured figures. From the network in FP32 each layer alone is put into each lower type the target has a kernel
for; the graph is built, answers the search images, and is measured against the FP32 one, in processes of their own, in
interleaved rounds. That is the table of what each layer costs and gains. Then the changes are taken one after the other, those
first that gain most for the error they add, each only when the answers of the whole plan so far stay within the budget. A
change whose time is the same within the noise is taken when it saves bytes. At last the plan is measured against plain INT8,
and where that keeps the budget too and is faster, it is the answer.

Every answer and every measurement goes into a journal, keyed by what it depends on, so a search that was killed goes on.

Letters: N images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.artifact import Artifact, Format, Plan
from alexnet_edge.bench.rounds.run import Plan as BenchPlan
from alexnet_edge.bench.rounds.run import run_bench
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.environment import describe
from alexnet_edge.errors import DataError, GateError, UserError
from alexnet_edge.export.exporter import Exporter
from alexnet_edge.files import sha256_json, writing
from alexnet_edge.images.datasets import ImageSet, IntArray, batches, open_images
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.proof.evaluate import labels_for
from alexnet_edge.proof.parity import ParityFigures, compare_outputs
from alexnet_edge.proof.recorded import training_images
from alexnet_edge.proof.stats import bootstrap_ratios
from alexnet_edge.sessions import open_session, reference_session

SEARCH_IMAGES = 256
"""Images that decide, by default from the training data that calibration leaves over."""
BATCH = 32
_LOWER_TYPES = {"co": ("int8",), "fc": ("int8", "int4")}
"""What is tried of a convolution and of a fully connected layer, by how its name begins."""
_VERSION = 1  # raise when a journal's entries would differ for the same key


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """The budget, and how long to measure."""

    max_drop: float = 0.005
    """Top-1 accuracy on the search images that may be lost, 0.005 meaning half a point; without labels, the share of images
    that may change class."""
    rounds: int = 3
    """Fresh processes per graph and comparison."""
    seconds: float = 1.0
    """Measuring time of a graph, over all rounds of a comparison."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop < 1:
            problem = "the accuracy drop must be from 0 to below 100 points"
            raise UserError(problem, value=100 * self.max_drop, fix="try 0.5")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One layer alone in a lower type, against the network in FP32."""

    layer: str
    type: str
    speedup: float
    """Median time of FP32 over its own."""
    speedup_interval: tuple[float, float]
    """95 % interval of that."""
    gain_ms: float
    """Difference of the medians."""
    bytes_saved: int
    drop: float
    """What it alone costs on the search images, see `SearchSettings.max_drop`; negative where it wins."""
    agreement: float
    sqnr_db: float | None
    taken: bool = False
    why: str = ""
    """Why it was taken or not."""

    @property
    def faster(self) -> bool:
        """By more than the noise."""
        return self.speedup_interval[0] > 1

    @property
    def slower(self) -> bool:
        return self.speedup_interval[1] < 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The plan found, and everything it rests on."""

    plan: Plan
    changes: tuple[Change, ...]
    drop: float
    """Of the plan, on the search images."""
    plain_drop: float
    """Of plain INT8 on the same."""
    max_drop: float
    speedup: float
    """Over FP32, median ratio."""
    speedup_interval: tuple[float, float]
    over_plain: float | None
    """Over plain INT8; None where the plan is plain INT8."""
    over_plain_interval: tuple[float, float] | None
    num_images: int
    labelled: bool
    reused: int
    """Entries that came from the journal."""


class Journal:
    """Results by key, one JSON line each, appended whole and flushed; a line cut short by a kill is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reused = 0
        self._entries: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    self._entries[entry["key"]] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    continue

    def get(self, key: str) -> Any:
        """The value, None when there is none."""
        value = self._entries.get(key)
        self.reused += value is not None
        return value

    def put(self, key: str, value: Any) -> None:
        """Keep a value. Raises OutputError when it cannot be written."""
        self._entries[key] = value
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(("\n" if torn else "") + json.dumps({"key": key, "value": value}) + "\n")
                stream.flush()
                os.fsync(stream.fileno())


def search_plan(
    exporter: Exporter, format: Format, images: ImageSet, settings: SearchSettings | None = None
) -> SearchResult:
    """Find the plan for `exporter` to write in `format`.

    The exporter has the target; its calibration gives the ranges, its cache keeps the journal. Calibration and proof do not use
    `images`.

    Raises:
        UserError: when the target or the format takes no plan.
        DataError: when there is no image.
        GateError: when a graph cannot be measured.
    """
    if exporter.settings.target is None or exporter.lowered(format, "mixed") is None:
        raise UserError(
            "a plan per layer needs a processor's target and --format onnx or openvino",
            value=f"--format {format}",
            fix="add --target, for example cpu-avx2",
        )
    if len(images) == 0:
        raise DataError("a search needs images", value=0, fix="give a folder with --search-images")
    return _Search(exporter, format, images, settings or SearchSettings()).run()


def search_images(exporter: Exporter, named: str | None = None, class_list: Path | None = None) -> ImageSet:
    """The images that decide: those named, or training images that the calibration does not use.

    Raises:
        UserError: when the checkpoint records no training data and none is named.
        DataError: when there are no such images.
    """
    if named is not None:
        return open_images(named, limit=SEARCH_IMAGES, classes=exporter.checkpoint.info.classes, class_list=class_list)
    every = training_images(exporter.checkpoint)
    used = {item.name for item in exporter.quantiser.images.items}
    unused = [index for index in range(len(every)) if every.name(index) not in used]
    return (every.subset(unused) if unused else every).spread(SEARCH_IMAGES)


@dataclass(slots=True)
class _Search:
    exporter: Exporter
    format: Format
    images: ImageSet
    settings: SearchSettings
    journal: Journal = field(init=False)
    _x_NCHW: list[FloatArray] = field(default_factory=list)
    _reference_NK: FloatArray | None = None
    _labels_N: IntArray | None = None

    def __post_init__(self) -> None:
        exporter = self.exporter
        environment = describe()
        context = {
            "version": _VERSION,
            "checkpoint": exporter.checkpoint.sha256,
            "preprocessing": records.to_builtins(exporter.checkpoint.info.preprocessing),
            "format": self.format,
            "target": exporter.settings.target.name if exporter.settings.target is not None else None,
            "calibration": exporter.quantiser.calibration("int8").table_sha256,
            "images": self.images.content_hash(),
            "threads": exporter.settings.threads,
            "machine": [environment.get("cpu"), environment.get("cpus")],
            "versions": environment.get("versions"),
            **({"corrections": exporter.quantiser.corrections} if exporter.quantiser.corrections else {}),
        }
        self.journal = Journal(exporter.settings.cache / "search" / f"{sha256_json(context)}.jsonl")

    def run(self) -> SearchResult:
        exact = dict.fromkeys(LAYER_NAMES, "fp32")
        plain = dict.fromkeys(LAYER_NAMES, "int8")
        self._need_labels()
        changes = []
        moves = [(name, kind) for name in LAYER_NAMES for kind in _LOWER_TYPES[name[:2]]]
        for index, (name, kind) in enumerate(moves):
            self.exporter.reporter.start(f"layer by layer: {name} in {kind} ({index + 1} of {len(moves)})", None)
            changes.append(self._change(exact, name, kind))
            self.exporter.reporter.finish(f"x {changes[-1].speedup:.2f}, drop {100 * changes[-1].drop:.2f} points")
        plan, changes = self._greedy(exact, changes)
        plain_drop = self._drop(self._figures(plain))
        drop = self._drop(self._figures(plan))
        over_plain = None if plan == plain else self._compare(plain, plan)
        if over_plain is not None and over_plain[1][1] < 1 and plain_drop <= self.settings.max_drop:
            plan, drop, over_plain = plain, plain_drop, None
            why = "plain INT8 is faster"
            changes = [replace(change, taken=change.type == "int8", why=why) for change in changes]
        speedup = self._compare(exact, plan) if plan != exact else (1.0, (1.0, 1.0))
        return SearchResult(
            plan=plan,
            changes=tuple(changes),
            drop=drop,
            plain_drop=plain_drop,
            max_drop=self.settings.max_drop,
            speedup=speedup[0],
            speedup_interval=speedup[1],
            over_plain=over_plain and over_plain[0],
            over_plain_interval=over_plain and over_plain[1],
            num_images=len(self.images),
            labelled=self._labels_N is not None,
            reused=self.journal.reused,
        )

    def _change(self, exact: Plan, layer: str, kind: str) -> Change:
        plan = {**exact, layer: kind}
        before, after = self._answers(exact), self._answers(plan)
        figures = records.convert(ParityFigures, after["figures"])
        speedup, interval = self._compare(exact, plan)
        samples = self._samples(exact, plan)
        medians = [float(np.median(np.concatenate(rounds))) for rounds in samples]
        return Change(
            layer=layer,
            type=kind,
            speedup=speedup,
            speedup_interval=interval,
            gain_ms=(medians[0] - medians[1]) / 1e6,
            bytes_saved=before["bytes"] - after["bytes"],
            drop=self._drop(figures),
            agreement=figures.top1_agreement or 0.0,
            sqnr_db=figures.sqnr_db,
        )

    def _greedy(self, exact: Plan, changes: Sequence[Change]) -> tuple[dict[str, str], list[Change]]:
        """Take the changes in the order of what they gain for the error they add, while the budget holds."""
        plan = dict(exact)
        total = sum(max(change.bytes_saved, 0) for change in changes) or 1

        def worth(change: Change) -> float:
            error = 10 ** (-(change.sqnr_db if change.sqnr_db is not None else 200.0) / 10)
            return (max(change.gain_ms, 0.0) + 1e-3 * max(change.bytes_saved, 0) / total) / (error + 1e-12)

        by_type = {(change.layer, change.type): change for change in changes}
        verdicts: dict[tuple[str, str], tuple[bool, str]] = {}
        for change in sorted(changes, key=worth, reverse=True):
            key = (change.layer, change.type)
            now = by_type.get((change.layer, plan[change.layer]))
            if change.slower or not (change.faster or change.bytes_saved > 0):
                verdicts[key] = (False, "not faster")
                continue
            if now is not None and not self._better(exact, now, change):
                verdicts[key] = (False, f"{now.type} is as fast or faster")
                continue
            trial = {**plan, change.layer: change.type}
            drop = self._drop(self._figures(trial))
            if drop > self.settings.max_drop + 1e-12:
                verdicts[key] = (False, f"with the others it would cost {100 * drop:.2f} points")
                continue
            if now is not None:
                verdicts[(now.layer, now.type)] = (False, f"{change.type} took its place")
            verdicts[key] = (True, "faster" if change.faster else "as fast, and smaller")
            plan = trial
        decided = [(change, *verdicts[(change.layer, change.type)]) for change in changes]
        return plan, [replace(change, taken=accepted, why=why) for change, accepted, why in decided]

    def _better(self, exact: Plan, now: Change, candidate: Change) -> bool:
        """Whether `one` is faster than `now` of the same layer, or as fast and smaller."""
        _, (low, high) = self._compare({**exact, now.layer: now.type}, {**exact, candidate.layer: candidate.type})
        return low > 1 or (high >= 1 and candidate.bytes_saved > now.bytes_saved)

    def _figures(self, plan: Plan) -> ParityFigures:
        return records.convert(ParityFigures, self._answers(plan)["figures"])

    def _drop(self, figures: ParityFigures) -> float:
        if figures.num_not_finite:
            return 1.0
        if self._labels_N is not None and figures.accuracy_change is not None:
            return 0.0 - figures.accuracy_change  # never -0.0
        return figures.flip_rate or 0.0

    def _answers(self, plan: Plan) -> dict[str, Any]:
        """How the plan's graph answers the search images, and its size."""
        key = sha256_json({"answers": dict(plan)})
        answers: dict[str, Any] | None = self.journal.get(key)
        if answers is None:
            with self._built([plan]) as (artifact,):
                reference_NK = self._reference()
                with open_session(artifact, threads=self.exporter.settings.threads) as session:
                    y_NK = np.concatenate([session.run(x_NCHW) for x_NCHW in self._x_NCHW])
                head = artifact.manifest.head
                figures = compare_outputs(reference_NK, y_NK, labels_N=self._labels_N, head=head)
                answers = {"figures": records.to_builtins(figures), "bytes": artifact.manifest.bytes}
            self.journal.put(key, answers)
        return answers

    def _compare(self, first: Plan, second: Plan) -> tuple[float, tuple[float, float]]:
        """How many times longer the first takes than the second, and the 95 % interval of that."""
        a, b = self._samples(first, second)
        return bootstrap_ratios([(x, y) for x, y in zip(a, b, strict=True)])

    def _samples(self, first: Plan, second: Plan) -> tuple[list[list[int]], list[list[int]]]:
        """Latencies of one image in nanoseconds, of both graphs, by round."""
        key = sha256_json(
            {"pair": [dict(first), dict(second)], "rounds": self.settings.rounds, "seconds": self.settings.seconds}
        )
        samples: list[list[list[int]]] | None = self.journal.get(key)
        if samples is None:
            with self._built([first, second]) as built:
                samples = self._measured(built)
            self.journal.put(key, samples)
        return samples[0], samples[1]

    def _measured(self, built: Sequence[Artifact]) -> list[list[list[int]]]:
        result = run_bench(
            [artifact.path for artifact in built],
            MeasureSettings(
                batches=(1,),
                rounds=self.settings.rounds,
                min_seconds=self.settings.seconds,
                max_seconds=10 * self.settings.seconds,
                percentile=50,
                cold=False,
                threads=self.exporter.settings.threads,
            ),
            BenchPlan(roofline=False, harness=False),
            images=self.images.subset(range(min(len(self.images), 8))),
        )
        if result.errors:
            raise GateError(f"a graph of the search could not be measured: {'; '.join(result.errors.values())}")
        samples = []
        for measured in result.measured:
            if not measured.rounds:
                raise GateError(f"a graph of the search could not be measured: {measured.subject.label}")
            samples.append([[int(ns) for ns in entry.batches[1].warm.samples_ns] for entry in measured.rounds])
        return samples

    @contextmanager
    def _built(self, plans: Sequence[Plan]) -> Iterator[list[Artifact]]:
        """The graphs of these plans, in a folder of their own that goes afterwards."""
        self.exporter.settings.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".staging-{os.getpid()}-", dir=self.exporter.settings.out) as folder:
            yield [
                self.exporter.build_only(self.format, "mixed", Path(folder) / str(index), plan)
                for index, plan in enumerate(plans)
            ]

    def _reference(self) -> FloatArray:
        if self._reference_NK is None:
            spec = self.exporter.checkpoint.info.preprocessing
            self._x_NCHW = [batch.x_NCHW for batch in batches(self.images, spec, batch=BATCH)]
            with reference_session(self.exporter.checkpoint, threads=self.exporter.settings.threads) as session:
                self._reference_NK = np.concatenate([session.run(x_NCHW) for x_NCHW in self._x_NCHW])
        return self._reference_NK

    def _need_labels(self) -> None:
        try:
            labels_N = labels_for(self.exporter.checkpoint.info.classes, self.images)
        except DataError:
            return
        self._labels_N = labels_N if (labels_N >= 0).all() else None
