"""The results of a bench as one JSON object: schema, summary and reading.

Keys end in their unit; null is "not available", with the reason beside it. docs/bench.md explains the main ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alexnet_edge import environment, records
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.bench.machine.power import PowerWindow
from alexnet_edge.bench.machine.thermal import energy_of, thermal_reasons
from alexnet_edge.bench.timing.latency import BatchRound
from alexnet_edge.bench.timing.process import Opened
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.bench.timing.subjects import PEER, Subject
from alexnet_edge.bench.timing.summary import summarise_batch
from alexnet_edge.errors import UserError
from alexnet_edge.proof.stats import CONFIDENCE, bootstrap_ratios
from alexnet_edge.sessions.base import Device

SCHEMA = 2
KIND = "alexnet-edge bench"

CLOCK = "host end-to-end: prepare, enqueue, synchronize and fetch, from host memory to host memory, perf_counter_ns"

LOAD = "from the path to a session that can answer, checksum included, importing the library not included"


@dataclass(kw_only=True, slots=True)
class Round:
    """One fresh process of one subject."""

    opened: Opened | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    """None too where several subjects shared the process."""
    batches: dict[int, BatchRound] = field(default_factory=dict)
    windows: dict[int, PowerWindow] = field(default_factory=dict)
    """What power, clocks and temperatures did while a batch was measured warm."""

    def to_json(self) -> dict[str, Any]:
        return {
            **({} if self.opened is None else asdict(self.opened)),
            "peak_memory_bytes": self.peak_memory_bytes,
            "before": dict(self.before),
            "after": dict(self.after),
        }


@dataclass(kw_only=True, slots=True)
class Measured:
    """A subject and what was found of it so far."""

    subject: Subject
    rounds: list[Round] = field(default_factory=list)
    roofline: Mapping[str, Any] | None = None
    no_roofline: str = "not measured"
    """Why `roofline` is None."""
    scenarios: list[Mapping[str, Any]] = field(default_factory=list)
    error: str = ""
    entries: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """The last summary of each batch, and of how many rounds it is; see `BenchResult.entry`."""


@dataclass(kw_only=True, slots=True)
class PowerFindings:
    """What is known of the machine's power, clocks and temperatures."""

    meter: str | None = None
    """Where watts are read; None where no meter can be read."""
    reason: str = ""
    """Why there is no meter."""
    mode: Mapping[str, Any] = field(default_factory=dict)
    """nvpmodel, jetson_clocks, governor."""
    idle: PowerWindow | None = None
    set: str | None = None
    """The power mode this bench set, and put back."""
    log: PowerWindow | None = None
    """A tegrastats log that was recorded beside the bench, as a whole."""
    log_name: str = ""

    def log_reasons(self, device: Device) -> list[str]:
        """Why the recorded log makes every figure invalid: it was taken while the GPU was throttled.

        The processors' clocks, which may follow the load of the GPU, count for figures on `cpu` only.
        """
        if self.log is None:
            return []
        reasons = thermal_reasons([self.log], device="cuda")
        if device == "cpu":
            reasons += thermal_reasons([self.log], device="cpu")
        return [f"{self.log_name}: {reason}" for reason in dict.fromkeys(reasons)]

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = records.to_builtins(self)
        name, log = value.pop("log_name"), value.pop("log")
        return {**value, "log": None if log is None else {"name": name, **log}}


@dataclass(kw_only=True, slots=True)
class BenchResult:
    """Everything a bench measured."""

    settings: MeasureSettings
    command: Sequence[str]
    inputs: Mapping[str, Any]
    measured: list[Measured]
    isolate: bool = True
    pinned_cpus: tuple[int, ...] | None = None
    power: PowerFindings = field(default_factory=PowerFindings)
    peaks: list[Peaks] = field(default_factory=list)
    harness: Mapping[str, Any] | None = None
    peers_left_out: Mapping[str, str] = field(default_factory=dict)
    """Why a requested peer is not among those measured, by its name."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    environment: Mapping[str, Any] = field(default_factory=environment.describe)
    interrupted: bool = False
    """Whether Ctrl-C ended it early; what was finished by then is kept."""
    finished: bool = False
    """False in what a killed bench leaves."""

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by subject."""
        return {measured.subject.label: measured.error for measured in self.measured if measured.error}

    def to_json(self) -> dict[str, Any]:
        """The results file: raw samples and their summary."""
        return {
            "schema": SCHEMA,
            "kind": KIND,
            "created": self.created,
            "command": list(self.command),
            "clock": CLOCK,
            "load": LOAD,
            "confidence": CONFIDENCE,
            "environment": dict(self.environment),
            "settings": records.to_builtins(self.settings),
            "inputs": dict(self.inputs),
            "interrupted": self.interrupted,
            "finished": self.finished,
            "isolate": self.isolate,
            "pinned_cpus": None if self.pinned_cpus is None else list(self.pinned_cpus),
            "power": self.power.to_json(),
            "peaks": records.to_builtins(self.peaks),
            "harness": self.harness,
            "peers_left_out": dict(self.peers_left_out),
            "subjects": [self._subject_json(measured) for measured in self.measured],
        }

    def _subject_json(self, measured: Measured) -> dict[str, Any]:
        details = next((dict(round_.opened.details) for round_ in measured.rounds if round_.opened is not None), {})
        batches = []
        unavailable = {} if measured.roofline is not None else {"roofline": measured.no_roofline}
        if not self.isolate:
            unavailable["peak_memory"] = "several subjects shared the process"
        for batch in self.settings.batches:
            entry = self.entry(measured, batch)
            if entry is not None:
                speed_up, why = self._speed_up(measured, batch)
                unavailable_here = {**entry["unavailable"], **({"speed_up": why} if why else {})}
                peers = self._against_peers(measured, batch)
                batches.append({**entry, "unavailable": unavailable_here, "speed_up": speed_up, **peers})
        return {
            **measured.subject.to_json(),
            "threads": details.get("threads") or measured.subject.threads or environment.usable_cpus(),
            "error": measured.error,
            "details": details,
            "rounds": [round_.to_json() for round_ in measured.rounds],
            "batches": batches,
            "roofline": measured.roofline,
            "scenarios": measured.scenarios,
            "unavailable": unavailable,
        }

    def entry(self, measured: Measured, batch: int) -> dict[str, Any] | None:
        """The summary of one batch over the rounds so far, without the speed-up; None before the first."""
        rounds = [round_ for round_ in measured.rounds if batch in round_.batches]
        if not rounds:
            return None
        if measured.entries.get(batch, (0, {}))[0] != len(rounds):
            measured.entries[batch] = (len(rounds), self._summary(measured.subject.device, batch, rounds))
        return measured.entries[batch][1]

    def _summary(self, device: Device, batch: int, rounds: Sequence[Round]) -> dict[str, Any]:
        """Where something emulates the machine, no time is valid."""
        windows = [round_.windows[batch] for round_ in rounds if batch in round_.windows]
        planned = self.settings.rounds
        missing = [f"{len(rounds)} of {planned} rounds"] if len(rounds) < planned else []
        emulated = self.environment.get("emulated")
        entry = summarise_batch(
            [round_.batches[batch] for round_ in rounds],
            self.settings,
            more_reasons=[*missing, *self.power.log_reasons(device), *thermal_reasons(windows, device=device)],
            machine_reasons=[f"emulated: {emulated}"] if emulated else [],
        )
        images = batch * sum(len(round_.batches[batch].warm.samples_ns) for round_ in rounds if batch in round_.windows)
        entry["energy"], why = energy_of(windows, self.power.idle, images=images, device=device)
        if entry["energy"] is None:
            entry["unavailable"]["energy"] = why
        return entry

    def _speed_up(self, measured: Measured, batch: int) -> tuple[dict[str, Any] | None, str]:
        """The checkpoint's median latency over this one's, where its checkpoint was measured too, as many threads."""

        def key(subject: Subject) -> tuple[str, Device, int | None]:
            return subject.checkpoint_sha256, subject.device, subject.threads

        checkpoints = [other for other in self.measured if other.subject.format == "checkpoint"]
        reference = next((other for other in checkpoints if key(other.subject) == key(measured.subject)), None)
        if reference is measured:
            return None, "it is what the others are compared with"
        if reference is None:
            return None, "its checkpoint was not measured beside it on this device with as many threads"
        ratio = _ratio(reference, measured, batch)
        return ratio, "" if ratio else "its checkpoint was not measured at this batch"

    def _against_peers(self, measured: Measured, batch: int) -> dict[str, Any]:
        """The fastest peer's median latency over this one's; nothing where no peer was measured, or this is one."""
        subject = measured.subject
        if subject.format == PEER:
            return {}
        medians = []
        for other in self.measured:
            same = (other.subject.checkpoint_sha256, other.subject.threads) == (
                subject.checkpoint_sha256,
                subject.threads,
            )
            entry = self.entry(other, batch) if other.subject.format == PEER and same else None
            if entry is not None and entry["percentiles_ns"]["p50"] is not None:
                medians.append((entry["percentiles_ns"]["p50"], other))
        if not medians:
            return {}
        fastest = min(medians, key=lambda pair: pair[0])[1]
        return {"against_fastest_peer": _ratio(fastest, measured, batch)}


def _ratio(reference: Measured, measured: Measured, batch: int) -> dict[str, Any] | None:
    """The reference's median latency over that of the other, round by round, with its interval; None without a common round."""
    pairs = [
        (against.batches[batch].warm.samples_ns, own.batches[batch].warm.samples_ns)
        for against, own in zip(
            reference.rounds, measured.rounds, strict=False
        )  # an error ends a subject's rounds early
        if batch in against.batches and batch in own.batches
    ]
    if not pairs:
        return None
    ratio, (low, high) = bootstrap_ratios(pairs)
    return {"against": reference.subject.label, "ratio": ratio, "interval": [low, high]}


def read_results(path: Path) -> dict[str, Any]:
    """The results file that `run_bench` wrote.

    Raises:
        UserError: when it is missing or is something else.
    """
    try:
        value: dict[str, Any] = records.parse(path.read_bytes())
        kind, schema = value["kind"], value["schema"]
    except OSError as error:
        raise UserError(
            f"cannot read the results ({error.strerror})", value=path, fix="run `alexnet-edge bench`"
        ) from error
    except (records.RecordError, KeyError, TypeError) as error:
        raise UserError("not a results file of `alexnet-edge bench`", value=path, fix="name another") from error
    if (kind, schema) != (KIND, SCHEMA):
        raise UserError(f"results of another kind or schema ({kind} {schema})", value=path, fix="measure again")
    return value
