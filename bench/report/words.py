"""A result in sentences: headline, verdict, open points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alexnet_edge.bench.report.numbers import NOT_AVAILABLE, plural, show_ms, show_ns, show_percent
from alexnet_edge.bench.report.rows import Row, worst_layer
from alexnet_edge.bench.timing.subjects import PEER

_PROBLEMS = {"INVALID": "measurement invalid", "not run": "not measured", "error": "measurement failed"}


def artifacts_of(rows: Sequence[Row]) -> dict[str, Row]:
    """One row of each artifact, by its group: neither the checkpoint nor another tool."""
    return {row.group: row for row in rows if row.proof not in ("reference", PEER)}


def headline(rows: Sequence[Row]) -> str:
    """How much is proved and measured, in one sentence."""
    artifacts = artifacts_of(rows)
    proved = sum(row.proof == "passed" for row in artifacts.values())
    measured = [row for row in rows if row.measured in ("VALID", "INVALID")]
    valid = sum(row.measured == "VALID" for row in measured)
    text = f"{proved} of {len(artifacts)} artifacts proved"
    if measured:
        validly = "all validly" if valid == len(measured) else f"{valid} validly"
        text += f"; {len(measured)} of {len(rows)} subjects measured, {validly}"
    return text


def fastest_proved(rows: Sequence[Row]) -> Row | None:
    """The artifact with the lowest median among those proved and validly measured."""
    sound = [row for row in rows if row.proof == "passed" and row.valid and row.p50_ms is not None]
    return min(sound, key=lambda row: row.p50_ms or 0.0, default=None)


def verdict(rows: Sequence[Row], settings: Mapping[str, Any] | None) -> str:
    """What to deploy, in one sentence, or why nothing can be advised: only what is proved and validly measured counts."""
    artifacts = artifacts_of(rows)
    proved = [row for row in artifacts.values() if row.proof == "passed"]
    if not artifacts:
        return "Only the checkpoint is here: there is no artifact to judge"
    if not proved:
        return "No artifact is proved to answer as the checkpoint does: none can be advised"
    best = fastest_proved(rows)
    if best is None:
        state = "timed" if all(not row.measured for row in rows) else "validly timed"
        return f"{len(proved)} of {len(artifacts)} artifacts answer as the checkpoint does; none is {state} yet"
    batch = settings["batches"][0] if settings else 1
    text = f"Fastest proved: {best.label}, {show_ms(best.p50_ms)} ms "
    text += "an image" if batch == 1 else f"per batch of {batch}"
    valid_reference = any(row.proof == "reference" and row.valid for row in rows)
    if best.speed_up is not None and best.speed_up_interval is not None and valid_reference:
        low, high = best.speed_up_interval
        how = f"{best.speed_up:.1f} times as fast as" if low > 1 else "slower than" if high < 1 else "about as fast as"
        text += f", {how} the checkpoint in PyTorch"
    if best.agreement is not None:
        text += f", the same answer on {show_percent(best.agreement)} % of {best.agreement_images or 'the'} images"
    return text


def open_points(
    rows: Sequence[Row], peers_left_out: Mapping[str, str] | None = None
) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is not proved or not validly measured, and why: for each subject, or subjects that share them, `(what, why)`."""
    points = {f"peer {name}": [("left out", reason)] for name, reason in (peers_left_out or {}).items()}
    for row in rows:
        unproved = row.proof in ("failed", "not run")
        if unproved or row.proof_notes:
            state = f"proof {row.proof}" if unproved else "proof passed, but"
            points.setdefault(row.label, []).append((state, "; ".join(row.proof_notes)))
        if row.measured in _PROBLEMS:
            points.setdefault(row.label, []).append((_PROBLEMS[row.measured], "; ".join(row.measured_notes)))
    shared: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for label, reasons in points.items():
        shared.setdefault(tuple(reasons), []).append(label)
    return [(", ".join(grouped_by_reason(labels, rows)), list(reasons)) for reasons, labels in shared.items()]


def grouped_by_reason(labels: Iterable[str], rows: Sequence[Row]) -> list[str]:
    """`labels`, those of a whole group (every number of threads) as the group's name."""
    remaining = dict.fromkeys(labels)
    named: dict[str, None] = {}
    for row in rows:
        if row.label in remaining:
            whole = all(other.label in remaining for other in rows if other.group == row.group)
            named[row.group if whole else row.label] = None
    known = {row.label for row in rows}
    return [*named, *(label for label in remaining if label not in known)]


def worst_overall(rows: Sequence[Row], subjects: Sequence[Mapping[str, Any]]) -> str:
    """The sentence naming the layer with the most time above its floor: of the fastest proved artifact, and of all.

    Empty where no layer was timed. Left out is a profile whose nodes do not add up to the latency: it was taken while the
    machine was busy, or profiling itself took the time.
    """
    timed = []
    for row, subject in zip(rows, subjects, strict=True):
        roofline = subject.get("roofline")
        layer = worst_layer(roofline) if roofline and roofline.get("profile_fits") is not False else None
        if layer is not None:
            timed.append((row, layer))
    if not timed:
        return ""
    best, worst = fastest_proved(rows), max(timed, key=lambda pair: float(pair[1]["above_ns"]))
    chosen = [pair for pair in timed if pair[0] is best]
    if worst[0] is not best:
        chosen.append(worst)
    parts = [
        f"{layer['name']} of {row.label}{' (fastest proved)' if row is best else ''}, {show_ns(layer['above_ns'])} "
        f"ms above a floor of {show_ns(layer['floor_ns'])} ms"
        for row, layer in chosen
    ]
    return f"Most time above its floor, as the runtimes profile it: {'; of all subjects: '.join(parts)}."


def plain_loop_sentence(plain: Mapping[str, Any]) -> str:
    """How the harness compares with a plain loop around the same session."""
    low, high = plain["interval"]
    return (
        f"Against a plain Python loop around the same session ({plain['label']}, in turn, {plain['blocks']} pairs of "
        f"blocks) its median is {plain['ratio']:.3f} times as long, {low:.3f} to {high:.3f}."
    )


def threads_of(bench: Mapping[str, Any]) -> str:
    """The numbers of threads in the results, as text: `4 threads`, `1, 2 and 4 threads`."""
    measured = sorted({subject["threads"] for subject in bench["subjects"] if subject.get("threads")})
    numbers = measured or [count for count in [bench.get("threads")] if count]
    if not numbers:
        return f"{NOT_AVAILABLE} threads"
    if len(numbers) == 1:
        return plural(numbers[0], "thread")
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]} threads"
