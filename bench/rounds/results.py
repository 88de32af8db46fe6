"""Everything a bench found, as one JSON object: schema, summary and reading.

Keys end in their unit; null is "not available", and beside it stands why. docs/bench.md lists every key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from alexnet_edge import environment
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.bench.machine.power import PowerWindow, energy_of, thermal_reasons
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
    _entries: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)

    def entry(
        self, batch: int, settings: MeasureSettings, power: PowerFindings, emulated: str | None = None
    ) -> dict[str, Any] | None:
        """The summary of one batch over the rounds so far, without the speed-up; None before the first.

        `emulated` is what emulates the machine, if anything does: then no time is valid.
        """
        taken = [one for one in self.rounds if batch in one.batches]
        if not taken:
            return None
        if batch not in self._entries or self._entries[batch][0] != len(taken):
            self._entries[batch] = (len(taken), self._summary(batch, taken, settings, power, emulated))
        return self._entries[batch][1]

    def _summary(
        self,
        batch: int,
        taken: Sequence[Round],
        settings: MeasureSettings,
        power: PowerFindings,
        emulated: str | None,
    ) -> dict[str, Any]:
        windows = [one.windows[batch] for one in taken if batch in one.windows]
        missing = [f"{len(taken)} of {settings.rounds} rounds"] if len(taken) < settings.rounds else []
        entry = summarise_batch(
            [one.batches[batch] for one in taken],
            settings,
            more_reasons=[
                *missing,
                *power.log_reasons(self.subject.device),
                *thermal_reasons(windows, device=self.subject.device),
            ],
            machine_reasons=[f"emulated: {emulated}"] if emulated else [],
        )
        images = batch * sum(len(one.batches[batch].warm.samples_ns) for one in taken if batch in one.windows)
        entry["energy"], why = energy_of(windows, power.idle, images=images, device=self.subject.device)
        if entry["energy"] is None:
            entry["unavailable"]["energy"] = why
        return entry


@dataclass(kw_only=True, slots=True)
class PowerFindings:
    """What is known of the machine's power, clocks and temperatures."""

    meter: str | None = None
    """Where watts are read; None where nothing tells them."""
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
        """What the recorded log says against every figure: a board that throttled its GPU vouches for no figure of its own.

        The processors' clocks, which may follow the load of the GPU, count for figures on `cpu` only.
        """
        if self.log is None:
            return []
        found = thermal_reasons([self.log], device="cuda")
        if device == "cpu":
            found += thermal_reasons([self.log], device="cpu")
        return [f"{self.log_name}: {reason}" for reason in dict.fromkeys(found)]

    def to_json(self) -> dict[str, Any]:
        return {
            "meter": self.meter,
            "reason": self.reason,
            "mode": dict(self.mode),
            "idle": None if self.idle is None else self.idle.to_json(),
            "set": self.set,
            "log": None if self.log is None else {"name": self.log_name, **self.log.to_json()},
        }


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
    """Why a peer that was asked for is not among those measured, by its name."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    environment: Mapping[str, Any] = field(default_factory=environment.describe)
    interrupted: bool = False
    """Whether Ctrl-C ended it early; what was finished by then is kept."""
    finished: bool = False
    """False in what a killed bench leaves."""

    @property
    def errors(self) -> dict[str, str]:
        """What went wrong, by subject."""
        return {one.subject.label: one.error for one in self.measured if one.error}

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
            "settings": self.settings.to_json(),
            "inputs": dict(self.inputs),
            "interrupted": self.interrupted,
            "finished": self.finished,
            "isolate": self.isolate,
            "pinned_cpus": None if self.pinned_cpus is None else list(self.pinned_cpus),
            "power": self.power.to_json(),
            "peaks": [peaks.to_json() for peaks in self.peaks],
            "harness": None if self.harness is None else dict(self.harness),
            "peers_left_out": dict(self.peers_left_out),
            "subjects": [self._subject_json(one) for one in self.measured],
        }

    def _subject_json(self, one: Measured) -> dict[str, Any]:
        opened = [taken.opened for taken in one.rounds if taken.opened is not None]
        batches = []
        unavailable = {} if one.roofline is not None else {"roofline": one.no_roofline}
        if not self.isolate:
            unavailable["peak_memory"] = "several subjects shared the process"
        for batch in self.settings.batches:
            entry = one.entry(batch, self.settings, self.power, self.environment.get("emulated"))
            if entry is not None:
                speed_up, why = self._speed_up(one, batch)
                unavailable_here = {**entry["unavailable"], **({"speed_up": why} if why else {})}
                peers = self._against_peers(one, batch)
                batches.append({**entry, "unavailable": unavailable_here, "speed_up": speed_up, **peers})
        threads = opened[0].details.get("threads") if opened else None
        return {
            **one.subject.to_json(),
            "threads": threads or one.subject.threads or environment.usable_cpus(),
            "error": one.error,
            "details": dict(opened[0].details) if opened else {},
            "rounds": [taken.to_json() for taken in one.rounds],
            "batches": batches,
            "roofline": one.roofline,
            "scenarios": one.scenarios,
            "unavailable": unavailable,
        }

    def _speed_up(self, one: Measured, batch: int) -> tuple[dict[str, Any] | None, str]:
        """The checkpoint's median latency over this one's, where its checkpoint was measured too, as many threads."""
        subject = one.subject
        reference = next(
            (
                other
                for other in self.measured
                if other.subject.format == "checkpoint"
                and other.subject.sha256 == subject.checkpoint_sha256
                and other.subject.device == subject.device
                and other.subject.threads == subject.threads
            ),
            None,
        )
        if reference is one:
            return None, "it is what the others are compared with"
        if reference is None:
            return None, "its checkpoint was not measured beside it on this device with as many threads"
        found = _ratio(reference, one, batch)
        return found, "" if found else "its checkpoint was not measured at this batch"

    def _against_peers(self, one: Measured, batch: int) -> dict[str, Any]:
        """The fastest peer's median latency over this one's; nothing where no peer was measured, or this is one."""
        if one.subject.format == PEER:
            return {}
        medians = {}
        for other in self.measured:
            same = (other.subject.checkpoint_sha256, other.subject.threads) == (
                one.subject.checkpoint_sha256,
                one.subject.threads,
            )
            entry = other.entry(batch, self.settings, self.power) if other.subject.format == PEER and same else None
            if entry is not None and entry["percentiles_ns"]["p50"] is not None:
                medians[other.subject.label] = (entry["percentiles_ns"]["p50"], other)
        if not medians:
            return {}
        fastest = min(medians.values(), key=lambda pair: pair[0])[1]
        return {"against_fastest_peer": _ratio(fastest, one, batch)}


def _ratio(reference: Measured, one: Measured, batch: int) -> dict[str, Any] | None:
    """The reference's median latency over that of `one`, round by round, with its interval; None without a common round."""
    pairs = [
        (against.batches[batch].warm.samples_ns, own.batches[batch].warm.samples_ns)
        for against, own in zip(reference.rounds, one.rounds, strict=False)  # an error ends a subject's rounds early
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
