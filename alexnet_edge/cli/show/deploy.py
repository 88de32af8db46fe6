"""Print deploy plans, results, releases and rollbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from alexnet_edge.deploy.link import number, printable
from alexnet_edge.environment import EMULATED_FIGURES
from alexnet_edge.errors import AlexNetEdgeError

if TYPE_CHECKING:
    from alexnet_edge.deploy.run import Deployed, Planned
from alexnet_edge.cli.show.base import NONE, figure_table, output, styled


def show_plans(plans: Mapping[str, Planned | AlexNetEdgeError]) -> None:
    """What a deploy would do to each device, step by step."""
    console = output()
    for name, plan in plans.items():
        console.print(f"[bold]{escape(name)}[/]", soft_wrap=True)
        if isinstance(plan, AlexNetEdgeError):
            console.print(f"  {escape(str(plan))}", soft_wrap=True)
            continue
        console.print(f"  {escape(plan.findings.sentence())}", soft_wrap=True)
        for refusal in plan.findings.refusals:
            console.print(f"  [bold red]cannot work[/]: {escape(refusal)}", soft_wrap=True)
        for warning in plan.findings.warnings:
            console.print(f"  [yellow]warning[/]: {escape(warning)}", soft_wrap=True)
        for step in plan.steps:
            console.print(f"  {escape(step)}", soft_wrap=True)


def show_deployed(results: Mapping[str, Deployed | AlexNetEdgeError]) -> None:
    """One line per device, then where the reports are."""
    console = output()
    rows = figure_table("device", "serves", "proof", "top-1 agree %", "bench", "p50 ms", "MB", "copied MB", "s", left=3)
    for name, result in results.items():
        if isinstance(result, AlexNetEdgeError):
            rows.add_row(escape(name), styled("failed"), *[NONE] * 7)
            continue
        build, bench = _step_of(result.state, "build"), _step_of(result.state, "bench")
        rows.add_row(
            escape(name),
            escape(result.release),
            *_figures(build, bench),
            f"{result.copied_bytes / 1e6:.1f}",
            f"{result.seconds:.0f}",
        )
    console.print(rows)
    for name, result in results.items():
        if isinstance(result, AlexNetEdgeError):
            _say(console, name, str(result))
            continue
        if result.emulated is not None:
            _say(console, name, f"{EMULATED_FIGURES} ({result.emulated})")
        _say(console, name, str(result.page or result.reports))


def show_status(devices: Mapping[str, Any]) -> None:
    """The releases of each device, the one that serves first."""
    console = output()
    rows = figure_table("device", "release", "", "made", "proof", "top-1 agree %", "bench", "p50 ms", "MB", left=5)
    notes = []
    for name, value in devices.items():
        if isinstance(value, AlexNetEdgeError):
            rows.add_row(escape(name), styled("failed"), *[NONE] * 7)
            notes.append((name, str(value)))
            continue
        if not value["releases"]:
            rows.add_row(escape(name), "nothing deployed", *[""] * 7)
        now, before = value.get("current"), value.get("before")
        releases = [entry for entry in value["releases"] if isinstance(entry, dict)]
        for entry in sorted(releases, key=lambda release: (release.get("id") != now, str(release.get("created")))):
            build, bench = _step_of(entry, "build"), _step_of(entry, "bench")
            failed = entry.get("failed")
            place = "serves" if entry.get("id") == now else "served before" if entry.get("id") == before else ""
            if not place:
                place = "failed" if failed else "" if _step_of(entry, "switch") else "unfinished"
            rows.add_row(
                escape(name),
                escape(printable(entry.get("id"), 64)),
                styled(place),
                escape(printable(entry.get("created", NONE), 24)),
                *_figures(build, bench),
            )
            if isinstance(failed, dict):
                notes.append((name, f"{printable(entry.get('id'), 64)}: {printable(failed.get('problem'))}"))
    console.print(rows)
    for name, text in notes:
        _say(console, name, text)


def show_rollbacks(devices: Mapping[str, Any]) -> None:
    """What serves now on each device, and what served until now."""
    console = output()
    for name, value in devices.items():
        if isinstance(value, AlexNetEdgeError):
            _say(console, name, str(value))
        else:
            now, before = printable(value.get("current"), 64), printable(value.get("before"), 64)
            _say(console, name, f"{now} serves now, {before} until now")


def _say(console: Console, name: str, text: str) -> None:
    console.print(f"[bold]{escape(name)}[/]: {escape(text)}", soft_wrap=True)


def _step_of(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    steps = entry.get("steps")
    step = steps.get(name) if isinstance(steps, dict) else None
    return step if isinstance(step, dict) else {}


def _figures(build: Mapping[str, Any], bench: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Proof, agreement, verdict of the bench, median and size, as cells; an emulator's bench has no verdict but that."""
    parity = build.get("parity")
    parity = parity if isinstance(parity, dict) else {}
    agreement, p50 = parity.get("top1_agreement"), bench.get("p50_ns")
    verdict = bench.get("verdict", "not asked" if "skipped" in bench else NONE)
    if build.get("emulated") and "verdict" in bench:
        verdict = "emulated"
    return (
        styled(printable(parity.get("verdict", NONE), 20)),
        NONE if agreement is None else f"{100 * number(agreement):.1f}",
        styled(printable(verdict, 20)),
        NONE if p50 is None else f"{number(p50) / 1e6:.2f}",
        f"{number(build['bytes']) / 1e6:.1f}" if "bytes" in build else NONE,
    )
