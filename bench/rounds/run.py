"""Measure artifacts and checkpoints side by side: each in processes of its own, in interleaved rounds.

Round 1 measures A B C, round 2 again A B C, so that a machine that slows down meanwhile slows all of them. After the rounds,
also in processes of their own: what the machine can do at best, where each subject's time goes, and LoadGen's scenarios.
The results are written again, whole, after every step, so a killed bench leaves what was finished.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alexnet_edge.bench.loadgen.scenarios import run_scenario
from alexnet_edge.bench.loadgen.settings import ScenarioSettings
from alexnet_edge.bench.machine import peaks, roofline
from alexnet_edge.bench.machine.jetson import describe_power
from alexnet_edge.bench.machine.meters import find_meters
from alexnet_edge.bench.machine.power import Recorder
from alexnet_edge.bench.machine.power_mode import power_mode, restore_left_over
from alexnet_edge.bench.machine.recorded_log import tegrastats_window
from alexnet_edge.bench.machine.state import machine_state
from alexnet_edge.bench.rounds import harness
from alexnet_edge.bench.rounds.peaks import SECONDS as PEAK_SECONDS
from alexnet_edge.bench.rounds.peaks import measure_peaks
from alexnet_edge.bench.rounds.results import BenchResult, Measured, PowerFindings, Round
from alexnet_edge.bench.timing.process import Opened, Worker
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.bench.timing.subjects import (
    PEER,
    Subject,
    default_images,
    open_subject,
    swept,
    with_distinct_labels,
    write_inputs,
)
from alexnet_edge.environment import check_threads, emulation
from alexnet_edge.errors import AlexNetEdgeError, UserError
from alexnet_edge.files import write_json
from alexnet_edge.images.datasets import ImageSet
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.network.layers import architecture
from alexnet_edge.progress import QuietReporter, Reporter
from alexnet_edge.sessions.base import Device, NodeTime

PROFILE_RUNS = 20
"""Inferences that a runtime's profile of its layers is the mean of."""

IDLE_SECONDS = 3.0
"""How long the idle machine's power is read before the first round, where a meter is."""

MOST_PARTS = 3
"""Into how many rounds the time of measuring peaks is divided at most: shorter ones would not reach them."""

_Key = tuple[Device, int | None]
"""Device and number of threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is measured besides latencies, and in which processes."""

    threads: tuple[int, ...] = ()
    """Processor threads, as in 1,2: each subject is measured with each number [all]."""
    isolate: bool = True
    """A fresh process for each subject and round; in one process for all, runtimes may disturb each other."""
    pinned_cpus: tuple[int, ...] | None = None
    """Processors to run on, as in 0,1 [all]."""
    roofline: bool = True
    """Also measure the machine's bounds in every round, and each layer's time."""
    harness: bool = True
    """Measure first what the harness itself costs."""
    plain_loop: bool = False
    """Compare the harness with a plain loop around an ONNX session."""
    scenarios: tuple[ScenarioSettings, ...] = ()
    """LoadGen's scenarios, for each subject after the rounds."""
    power_mode: str | None = None
    """Mode of nvpmodel (a Jetson's) or frequency governor to set meanwhile; put back afterwards."""
    lock_clocks: bool = False
    """Run jetson_clocks meanwhile; put back afterwards."""
    tegrastats: Path | None = None
    """A log recorded beside this bench, judged with it."""
    peers_left_out: Mapping[str, str] = field(default_factory=dict)
    """Why a requested peer is not among the subjects, by its name; recorded in the results."""

    def __post_init__(self) -> None:
        for index, count in enumerate(self.threads):
            check_threads(count)
            if count in self.threads[:index]:
                raise UserError("a number of threads is named twice", value=count, fix="name each once")
        if self.pinned_cpus is not None:
            usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
            missing = sorted(set(self.pinned_cpus) - usable)
            if missing or not self.pinned_cpus:
                raise UserError(
                    "this process may not run on these processors",
                    value=", ".join(map(str, missing)) or "none",
                    fix=f"choose from {', '.join(map(str, sorted(usable))) or 'none: this system cannot pin'}",
                )


def run_bench(
    subjects: Sequence[Path],
    settings: MeasureSettings | None = None,
    plan: Plan | None = None,
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

    `subjects` are artifacts and checkpoints (`.safetensors`, `.pt`, `.pth`). They answer `images`, by default the data that the
    first checkpoint was trained on, or else the synthetic set. The results file `out` (JSON) is rewritten whole after every
    step; LoadGen's logs go into a folder beside it. `command` is recorded as the way to repeat this, by default this
    process's own. `trust` takes engines without manifest, see `load_artifact`.

    Raises:
        UserError: when there is no subject, one is named twice, none can be run here, the power mode cannot be set, or
            scenarios are requested on an emulated machine.
        ArtifactError, CheckpointError: when one is missing or damaged.
        OutputError: when `out` cannot be written.
    """
    settings, plan = settings or MeasureSettings(), plan or Plan()
    opened = _open_subjects(subjects, settings, plan, trust=trust)
    measured = [Measured(subject=subject) for subject in swept(with_distinct_labels(opened), plan.threads)]
    with tempfile.TemporaryDirectory(prefix="alexnet-edge-bench-") as folder:
        images = default_images(opened) if images is None else images
        inputs, about_inputs = write_inputs(Path(folder), opened, images, largest_batch=max(settings.batches))
        result = BenchResult(
            settings=settings,
            command=list(sys.argv if command is None else command),
            inputs=about_inputs,
            measured=measured,
            isolate=plan.isolate,
            pinned_cpus=plan.pinned_cpus,
            peers_left_out=plan.peers_left_out,
        )
        logs = Path(folder) / "loadgen" if out is None else out.with_name(f"{out.stem}-loadgen")
        reporter = reporter or QuietReporter()
        _Bench(result=result, plan=plan, inputs=inputs, trust=trust, out=out, logs=logs, reporter=reporter).run()
    return result


def _open_subjects(paths: Sequence[Path], settings: MeasureSettings, plan: Plan, *, trust: bool) -> list[Subject]:
    """The subjects of `paths`, those that cannot be run here with the reason; raises UserError as `run_bench` does."""
    emulated = emulation()
    if plan.scenarios and emulated:
        raise UserError(
            f"LoadGen gives a verdict on times, and this machine is emulated ({emulated})",
            value="--scenario",
            fix="leave it out, or run it on the machine itself",
        )
    if not paths:
        raise UserError("nothing to measure", value="no artifact", fix="write one with `alexnet-edge export`")
    opened = [open_subject(path, device=settings.device, trust=trust) for path in paths]
    if settings.like is not None:
        only_gpu = f"{settings.like} measures a GPU, and this runs on the processor"
        opened = [
            subject if subject.device == "cuda" else replace(subject, skipped=subject.skipped or only_gpu)
            for subject in opened
        ]
    seen: set[str] = set()
    for path, subject in zip(paths, opened, strict=True):
        if subject.sha256 in seen:
            raise UserError("the same file is named twice", value=path, fix="name each once")
        seen.add(subject.sha256)
    if all(subject.skipped for subject in opened):
        raise UserError(
            f"nothing can be measured here: {opened[0].skipped}",
            value=opened[0].path,
            fix="measure it on a machine that can run it",
        )
    if not plan.isolate and any(subject.format == PEER for subject in opened):
        raise UserError("peers run in processes of their own", value="--no-isolate", fix="leave it out")
    return opened


@dataclass(kw_only=True, slots=True)
class _Bench:
    """One run of `run_bench`, step by step."""

    result: BenchResult
    plan: Plan
    inputs: Mapping[Preprocessing, Path]
    trust: bool
    out: Path | None
    logs: Path
    reporter: Reporter
    _shared: Worker | None = None
    _peaks: dict[_Key, list[peaks.Peaks | AlexNetEdgeError]] = field(default_factory=dict)
    """What the machine could do in each round, or why that is not known."""

    def run(self) -> None:
        result, plan = self.result, self.plan
        for measured in result.measured:
            if measured.subject.skipped:
                self.reporter.note(f"{measured.subject.label}: not run, {measured.subject.skipped}")
        try:
            with ExitStack() as stack:
                if restored := restore_left_over():
                    self.reporter.note(restored)
                if plan.power_mode is not None or plan.lock_clocks:
                    setting = stack.enter_context(power_mode(plan.power_mode, clocks=plan.lock_clocks))
                    result.power.set = str(setting)
                recorder = self._watch_power(stack)
                self._keep()  # not before: a mistake in the request leaves the former results
                stack.callback(self._end_shared_worker)
                if plan.harness:
                    self._harness()
                if plan.plain_loop:
                    self._plain_loop()
                self._rounds(recorder)
                if plan.roofline:
                    self._rooflines()
                else:
                    for measured in result.measured:
                        measured.no_roofline = "not asked for"
                if plan.scenarios:
                    self._scenarios()
            result.finished = True
        except KeyboardInterrupt:
            result.interrupted = True
            self.reporter.note("interrupted: keeping what was measured")
        self._keep()

    def _keep(self) -> None:
        if self.out is not None:
            write_json(self.out, self.result.to_json())

    def _running(self) -> list[Measured]:
        return [measured for measured in self.result.measured if not measured.subject.skipped and not measured.error]

    def _place(self, subject: Subject) -> dict[str, Any]:
        return {"inputs": self.inputs[subject.preprocessing], "device": subject.device, "threads": subject.threads}

    @contextmanager
    def _opened(self, subject: Subject) -> Iterator[tuple[Worker, Opened]]:
        """The subject in a process of its own, or in the one for all, which ends with the first error."""
        if self.plan.isolate:
            with Worker(cpus=self.plan.pinned_cpus, python=subject.python) as worker:
                yield worker, worker.open(subject.path, trust=self.trust, **self._place(subject))
            return
        if self._shared is None:
            self._shared = Worker(cpus=self.plan.pinned_cpus)
        try:
            yield self._shared, self._shared.open(subject.path, trust=self.trust, **self._place(subject))
            self._shared.close_subject()
        except BaseException:
            self._end_shared_worker()
            raise

    def _end_shared_worker(self) -> None:
        if self._shared is not None:
            shared, self._shared = self._shared, None
            shared.__exit__(None, None, None)

    def _watch_power(self, stack: ExitStack) -> Recorder:
        devices = {measured.subject.device for measured in self._running()}
        meters = find_meters(device="cuda" if "cuda" in devices else "cpu")
        power = PowerFindings(meter=meters.name, reason=meters.reason, mode=describe_power(), set=self.result.power.set)
        if self.plan.tegrastats is not None:
            power.log, power.log_name = tegrastats_window(self.plan.tegrastats), self.plan.tegrastats.name
        recorder = stack.enter_context(Recorder(meters))
        if meters.name is not None:
            self.reporter.note(f"reading the idle machine's power for {IDLE_SECONDS:g} s ({meters.name})")
            power.idle = recorder.idle(IDLE_SECONDS)
        self.result.power = power
        return recorder

    def _harness(self) -> None:
        try:
            self.result.harness = harness.harness_overhead(inputs=next(iter(self.inputs.values())))
        except AlexNetEdgeError as error:
            self.result.harness = {"unavailable": str(error)}
            self.reporter.note(f"the harness itself could not be measured: {error}")

    def _plain_loop(self) -> None:
        subjects = (measured.subject for measured in self._running())
        subject = next((subject for subject in subjects if subject.runtime == "onnxruntime"), None)
        if subject is None:
            raise UserError("no ONNX file to loop over", value="--plain-loop", fix="name one, or leave it out")
        self.reporter.note(f"a plain loop around {subject.label}'s session and this harness, in turn")
        ratio = harness.plain_loop_ratio(subject.path, **self._place(subject))
        self.result.harness = {**(self.result.harness or {}), "plain_loop": {"label": subject.label, **ratio}}

    def _rounds(self, recorder: Recorder) -> None:
        settings, running = self.result.settings, self._running()
        batches = len(settings.batches)
        self.reporter.start("bench", settings.rounds * len(running) * batches)
        done = 0
        for number in range(settings.rounds):
            if self.plan.roofline:
                self.reporter.update(done, f"what the machine can do at best, round {number + 1} of {settings.rounds}")
                self._measure_peaks(running)
            for measured in running:
                if not measured.error:
                    self.reporter.update(done, f"{measured.subject.label}, round {number + 1} of {settings.rounds}")
                    self._one_round(measured, recorder, done)
                    if measured.error:
                        self.reporter.note(f"{measured.subject.label}: {measured.error}")
                    self._keep()
                done += batches
                self.reporter.update(done)
        self.reporter.finish(f"{len(running)} measured")

    def _one_round(self, measured: Measured, recorder: Recorder, done: int) -> None:
        subject, settings = measured.subject, self.result.settings
        round_ = Round(before=machine_state())
        measured.rounds.append(round_)
        try:
            with self._opened(subject) as (worker, round_.opened):
                for index, batch in enumerate(settings.batches):
                    if subject.takes(batch):
                        batch_round, peak = worker.measure(batch=batch, settings=settings)
                        round_.batches[batch] = batch_round
                        round_.peak_memory_bytes = peak if self.plan.isolate else None
                        start_ns = batch_round.warm.started_ns
                        round_.windows[batch] = recorder.window(start_ns, start_ns + batch_round.warm.duration_ns)
                    self.reporter.update(done + index + 1, f"{subject.label}, batch {batch}")
        except AlexNetEdgeError as error:
            measured.error = str(error)
        finally:
            round_.after = machine_state()

    def _measure_peaks(self, running: Sequence[Measured]) -> None:
        """What the machine can do in this round, for each device and number of threads that a subject is measured with."""
        seconds = PEAK_SECONDS / min(self.result.settings.rounds, MOST_PARTS)
        for device, threads in dict.fromkeys(_key(measured.subject) for measured in running if not measured.error):
            outcome: peaks.Peaks | AlexNetEdgeError
            try:
                outcome = measure_peaks(device=device, threads=threads, cpus=self.plan.pinned_cpus, seconds=seconds)
            except AlexNetEdgeError as error:
                outcome = error
            self._peaks.setdefault((device, threads), []).append(outcome)

    def _rooflines(self) -> None:
        running = self._running()
        places: dict[_Key, int] = {}
        for key, rounds in self._peaks.items():
            if known := [outcome for outcome in rounds if isinstance(outcome, peaks.Peaks)]:
                places[key] = len(self.result.peaks)
                self.result.peaks.append(peaks.best_of(known))
        self.reporter.start("layers", len(running))
        for done, measured in enumerate(running):
            subject = measured.subject
            self.reporter.update(done, f"{subject.label}: the time of each layer")
            key = _key(subject)
            last = self._peaks[key][-1]
            try:
                if key not in places and isinstance(last, AlexNetEdgeError):
                    raise last
                measured.roofline = self._roofline(measured, places[key])
            except AlexNetEdgeError as error:
                measured.no_roofline = str(error)
                self.reporter.note(f"{subject.label}: no roofline: {error}")
            self._keep()
        self.reporter.finish(f"{len(running)} compared with the machine's bounds")

    def _roofline(self, measured: Measured, index: int) -> dict[str, Any] | None:
        subject, batch = measured.subject, self.result.settings.batches[0]
        entry = self.result.entry(measured, batch)
        if entry is None or entry["percentiles_ns"]["p50"] is None:
            measured.no_roofline = "no median latency at the first batch"
            return None
        with self._opened(subject) as (worker, _):
            answer = worker.ask({"do": "nodes", "batch": batch, "runs": PROFILE_RUNS}, timeout_s=300)
        nodes = answer["nodes"]
        value = roofline.roofline(
            architecture=architecture(subject.architecture, subject.num_classes),
            layers=subject.layers,
            batch=batch,
            peaks=self.result.peaks[index],
            nodes=None if nodes is None else [NodeTime(**node) for node in nodes],
            p50_ns=entry["percentiles_ns"]["p50"],
            runtime=subject.runtime,
            rounds=[
                (peaks.typical(outcome), round_.batches[batch].warm.samples_ns)
                for outcome, round_ in zip(self._peaks[_key(subject)], measured.rounds, strict=True)
                if isinstance(outcome, peaks.Peaks) and batch in round_.batches
            ],
        )
        return {**value, "peaks": index}

    def _scenarios(self) -> None:
        steps = [(measured, settings) for measured in self._running() for settings in self.plan.scenarios]
        self.reporter.start("scenarios", len(steps))
        for done, (measured, settings) in enumerate(steps):
            subject, scenario = measured.subject, settings.scenario
            self.reporter.update(done, f"{subject.label}: {scenario}")
            logs = self.logs / "".join(letter if letter.isalnum() else "-" for letter in subject.label) / scenario
            logs.mkdir(parents=True, exist_ok=True)
            cpus, place = self.plan.pinned_cpus, self._place(subject)
            try:
                result = run_scenario(subject.path, settings, logs=logs, trust=self.trust, cpus=cpus, **place)
                measured.scenarios.append(result)
            except AlexNetEdgeError as error:
                measured.error = str(error)
                self.reporter.note(f"{subject.label}: {scenario}: {error}")
            self._keep()
            self.reporter.update(done + 1)
        self.reporter.finish(f"{len(steps)} run by LoadGen")


def _key(subject: Subject) -> _Key:
    return subject.device, subject.threads
