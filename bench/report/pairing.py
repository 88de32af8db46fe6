"""Which measurements of two files belong together, and whether they were made under the same conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from alexnet_edge.bench.report.measurement import DEFINITION, INPUTS, Measurement
from alexnet_edge.errors import UserError

Pair = tuple[Measurement, Measurement]
"""Of the base, and of the new file."""
_RUN = ("batch", "device", "threads")
"""How a subject ran, as fields of its key."""


def was_measured(measurement: Measurement) -> bool:
    return measurement.verdict not in ("ERROR", "NOT RUN")


def labels_of(measurements: Sequence[Measurement]) -> str:
    """The different labels, at most eight of them."""
    labels = list(dict.fromkeys(measurement.label for measurement in measurements)) or ["nothing"]
    return ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")


def identity(measurement: Measurement) -> tuple[Any, ...]:
    """What stays the same however it is measured."""
    return measurement.key.format, measurement.key.precision, measurement.key.name


def pair_by_label(
    old: Sequence[Measurement], new: Sequence[Measurement], match: Sequence[tuple[str, str]]
) -> list[Pair]:
    """The pairs of the labels in `match`, of the base and of the new file, that were measured the same way.

    Raises:
        UserError: when a file has no such label.
    """
    pairs = []
    for labels in match:
        sides = []
        for label, side, measurements in zip(labels, ("base", "new"), (old, new), strict=True):
            sides.append([measurement for measurement in measurements if measurement.label == label])
            if not sides[-1]:
                raise UserError(f"no such label in the {side}", value=label, fix=f"choose of {labels_of(measurements)}")
        pairs += _pair_same(sides[0], sides[1], lambda measurement: (*_run_of(measurement), measurement.key.what))
    return pairs


def pair_up(old: Sequence[Measurement], new: Sequence[Measurement], *, force: bool) -> list[Pair]:
    """The same subject, measured the same way as far as both files record it.

    Raises:
        UserError: when a subject of both was measured in different ways only, unless `force`.
    """
    pairs = _pair_same(old, new, lambda measurement: measurement.key)
    pairs += _pair_compatible(*_unpaired(old, new, pairs))
    return pairs + _pair_measured_differently(old, new, pairs, force=force)


def _pair_measured_differently(
    old: Sequence[Measurement], new: Sequence[Measurement], pairs: Sequence[Pair], *, force: bool
) -> list[Pair]:
    """Pairs of one subject whose ways of measuring differ; refused with what differs, unless `force`."""

    def subject(measurement: Measurement) -> tuple[Any, ...]:
        return *identity(measurement), measurement.key.what

    known = {subject(first) for first, _ in pairs}
    old, new = _unpaired(old, new, pairs)
    lost = [measurement for measurement in old if subject(measurement) not in known]
    further = []
    for measurement in lost:
        others = [other for other in new if subject(other) == subject(measurement)]
        if others and not force:
            raise UserError(
                f"{measurement.label} was measured differently: {_run_text(measurement)} there, "
                f"{' or '.join(dict.fromkeys(map(_run_text, others)))} here",
                value=measurement.key.what,
                fix="measure both the same way, or compare them all the same with --force",
            )
        if len(others) == 1 and [subject(other) for other in lost].count(subject(measurement)) == 1:
            further.append((measurement, others[0]))
    return further


def _pair_same(
    old: Sequence[Measurement], new: Sequence[Measurement], key_of: Callable[[Measurement], Any]
) -> list[Pair]:
    """Pairs with the same `key_of`; where several have it, those of the same file name."""
    pairs = []
    for key in dict.fromkeys(map(key_of, old)):
        first, second = ([entry for entry in side if key_of(entry) == key] for side in (old, new))
        if len(first) == len(second) == 1:
            pairs.append((first[0], second[0]))
            continue
        files = [measurement.file for measurement in first]
        for measurement in first:
            others = [other for other in second if other.file == measurement.file]
            if len(others) == 1 and files.count(measurement.file) == 1:
                pairs.append((measurement, others[0]))
    return pairs


def _pair_compatible(old: Sequence[Measurement], new: Sequence[Measurement]) -> list[Pair]:
    """Pairs that differ only in what one of the files does not record, where that leaves no choice."""

    def agree(first: Measurement, second: Measurement) -> bool:
        a, b = first.key, second.key
        values = [(getattr(a, name), getattr(b, name)) for name in ("format", "precision", *_RUN)]
        return (a.what, a.name) == (b.what, b.name) and all(None in pair or pair[0] == pair[1] for pair in values)

    return [
        (first, others[0])
        for first in old
        if len(others := [second for second in new if agree(first, second)]) == 1
        and sum(agree(other, others[0]) for other in old) == 1
    ]


def _unpaired(
    old: Sequence[Measurement], new: Sequence[Measurement], pairs: Sequence[Pair]
) -> tuple[list[Measurement], list[Measurement]]:
    seen = {id(measurement) for pair in pairs for measurement in pair}
    first, second = ([entry for entry in side if id(entry) not in seen] for side in (old, new))
    return first, second


def _run_of(measurement: Measurement) -> tuple[Any, ...]:
    return tuple(getattr(measurement.key, name) for name in _RUN)


def _run_text(measurement: Measurement) -> str:
    parts = zip(_RUN, _run_of(measurement), strict=True)
    return ", ".join(f"{name} {value}" for name, value in parts if value is not None) or "no conditions recorded"


def sorted_out(
    before: Sequence[Measurement], after: Sequence[Measurement], pairs: Sequence[Pair]
) -> tuple[list[Measurement], list[Measurement], list[Measurement]]:
    """Of the base alone; of the new file alone; and what the base measured and the new run failed to."""
    known = set(map(identity, filter(was_measured, before)))
    only_base, only_new = _unpaired(before, after, pairs)
    broken = [entry for entry in after if entry.verdict == "ERROR" and identity(entry) in known]
    return only_base, [entry for entry in only_new if entry not in broken], broken


def _both_conditions(pair: Pair) -> Iterator[tuple[str, Any, Any]]:
    first, second = (measurement.conditions for measurement in pair)
    for name in dict.fromkeys([*first, *second]):
        yield name, first.get(name), second.get(name)


def differences(pair: Pair) -> Iterator[str]:
    """What was not the same, as far as both files record it; an unknown definition counts as another."""
    for name, old, new in _both_conditions(pair):
        if name == INPUTS:
            common = (old or {}).keys() & (new or {}).keys()
            if old and new and (not common or any(old[key] != new[key] for key in common)):
                yield f"{name} {_condition_text(old)} there and {_condition_text(new)} here"
        elif name == DEFINITION and (old is None) != (new is None):
            side, known = ("base", new) if old is None else ("new", old)
            yield f"{name} unknown in the {side} and {known!r} in the other"
        elif None not in (old, new) and old != new:
            yield f"{name} {old!r} there and {new!r} here"
    for name in ("device", "threads", "batch"):
        old, new = (getattr(measurement.key, name) for measurement in pair)
        if None not in (old, new) and old != new:
            yield f"{name} {old} there and {new} here"


def unknown_conditions(pair: Pair) -> Iterator[str]:
    """The conditions that only one of the files records."""
    for name, old, new in _both_conditions(pair):
        if name != DEFINITION and (old is None) != (new is None):
            yield f"the {'base' if old is None else 'new'} does not record its {name}"


def conditions(pair: Pair) -> dict[str, tuple[str | None, str | None]]:
    """Each condition as text, in the base and in the new file."""
    return {name: (_condition_text(old), _condition_text(new)) for name, old, new in _both_conditions(pair)}


def _condition_text(value: Any) -> str | None:
    if isinstance(value, Mapping):  # checksums of inputs
        return ", ".join(checksum[:12] for checksum in sorted(value.values()))
    return None if value is None else str(value)
