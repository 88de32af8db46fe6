"""How a number is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

NOT_AVAILABLE = "–"
"""Shown where a figure does not exist; never 0."""

NOT_MEASURED = "not measured"
"""The reason given where a results file gives none."""


def in_ms(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e6


def show(value: float | None, form: str = ".3g", scale: float = 1.0) -> str:
    """`value * scale` in `form`, or the sign for not available."""
    return NOT_AVAILABLE if value is None else format(value * scale, form)


def show_ms(value: float | None, scale: float = 1.0) -> str:
    """`value * scale`, in milliseconds or any other unit: three digits, at most four decimals, no exponent; 0 only for 0."""
    if value is None:
        return NOT_AVAILABLE
    value *= scale
    if value == 0:
        return "0"
    if abs(value) < 0.00005:
        return "<0.0001" if value > 0 else ">-0.0001"
    rounded = float(f"{value:.3g}")  # 9.996 is 10.0, not 10.00
    decimals = 2 - math.floor(math.log10(abs(rounded)))
    return f"{value:.{min(max(decimals, 0), 4)}f}"


def show_ns(nanoseconds: float | None) -> str:
    """Nanoseconds as milliseconds, see `show_ms`."""
    return show_ms(in_ms(nanoseconds))


def show_percent(value: float | None) -> str:
    """A share, in percent without the sign."""
    return show(value, ".1f", 100)


def show_ratio(value: float | None) -> str:
    return show(value, ".2f")


def show_interval(values: Sequence[float] | None, form: Callable[[float], str]) -> str:
    return "" if values is None else f"{form(values[0])}–{form(values[1])}"


def plural(count: int, noun: str) -> str:
    """`1 thread`, `4 threads`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
