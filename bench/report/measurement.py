"""One thing measured one way, and the checked numbers that it is read from.

What a file does not record is None, never a guess.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from alexnet_edge.errors import UserError

Verdict = Literal["VALID", "INVALID", "ERROR", "NOT RUN", ""]
"""As the file gives it; empty in files of trtexec and pytest-benchmark, which give none."""
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
_MAX_NS = 1e15
"""Eleven days: no inference takes longer, so the file is something else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What a measurement is of; None is what the file does not record."""

    format: str | None = None
    precision: str | None = None
    device: str | None = None
    threads: int | None = None
    batch: int | None = None
    what: str
    """`host end-to-end`, `cold`, `device` (H2D + compute + D2H), `device compute`, `pipelined`."""
    name: str = ""
    """Of a test from elsewhere, which has no format; else empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One thing measured one way; times in nanoseconds."""

    key: Key
    label: str
    file: str
    """Of what was measured, without its folder; empty when not recorded."""
    rounds: tuple[tuple[float, ...], ...] = ()
    """Raw samples of each round, in order; empty when the file has only figures."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """`p50`, `p90`, `p95`, `p99`, `p99.9`: where there are no raw samples, or as their file summed them up."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What must be the same on both sides of a comparison, by name; None is not recorded."""
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
            return statistics.median(value for samples in self.rounds for value in samples)
        return self.figures.get("p50")


def refuse_file(path: Path) -> NoReturn:
    raise UserError(
        "neither results of `alexnet-edge bench`, nor times exported by trtexec, nor pytest-benchmark's JSON",
        value=path,
        fix="name one of these",
    )


def number(value: Any) -> float:
    """A finite number that is not negative; raises ValueError for anything else, true and false included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"not a time or a count: {str(value)[:40]}")
    return float(value)


def times_ns(values: Sequence[Any], scale: float = 1.0) -> tuple[float, ...]:
    times = tuple(number(value) * scale for value in values)
    if any(value > _MAX_NS for value in times):
        raise ValueError("an inference of more than eleven days")
    return times


def optional_text(value: Any) -> str | None:
    return None if value is None else str(value)


def optional_number(value: Any) -> float | None:
    return None if value is None else number(value)


def positive_count(value: Any) -> int | None:
    """A whole number above 0, or None; raises ValueError for anything else."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"not a count: {str(value)[:40]}")
    return value


def known_verdict(value: Any) -> Verdict:
    if value not in ("VALID", "INVALID", ""):
        raise ValueError(f"no verdict: {str(value)[:40]}")
    return cast("Verdict", value)


def percentiles_ns(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that the samples were enough for."""
    return {
        name: number(values[name]) for name in ("p50", "p90", "p95", "p99", "p99.9") if values.get(name) is not None
    }
