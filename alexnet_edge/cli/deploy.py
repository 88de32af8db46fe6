"""`alexnet-edge deploy`, `deploy status` and `deploy rollback`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from alexnet_edge.cli.common import Given, Json, PrecisionFlags, Printing, fields_of, print_result
from alexnet_edge.cli.parsing import make_app, spelled
from alexnet_edge.deploy.link import LinkOptions, LinkSettings
from alexnet_edge.deploy.plan import BenchOptions, Manner, Order
from alexnet_edge.errors import UserError
from alexnet_edge.export.engines.options import EngineOptions

if TYPE_CHECKING:
    from alexnet_edge.deploy.fleet import Member

Device = Annotated[str | None, Parameter(help="user@host, or a name from ~/.ssh/config.")]
ENGINES = "TensorRT engines (--format trt)"
ENGINE_FIELDS = ("memory_cap", "workspace", "max_batch", "optimization_level")

app = make_app("deploy")


def _bench_option(name: str) -> str:
    return "bench-seconds" if name == "seconds" else spelled(name)


fields_of("The bench there", parse=True, name_transform=_bench_option, negative_bool="no-")(BenchOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """Which devices, and how they are reached."""

    to: Path | None = None
    """TOML file with several devices, worked on side by side."""
    dry_run: bool = False
    """Look at the device, print the plan, change nothing."""
    link: Annotated[LinkOptions, fields_of("The device")] = field(default_factory=LinkOptions)

    def members(self, device: str | None) -> Sequence[Member]:
        """The device that is named, or those of the file."""
        from alexnet_edge.deploy import fleet

        if (device is None) == (self.to is None):
            raise UserError(
                "a deploy goes to one device",
                value=device or "none",
                fix="name one device, or several with --to fleet.toml",
            )

        def settings(destination: str, **own: Any) -> LinkSettings:
            return LinkSettings(destination=destination, **{**asdict(self.link), **own})

        if device is not None:
            return [fleet.Member(name=device, link=settings(device))]
        assert self.to is not None
        return fleet.read_fleet(self.to, settings)


@app.default
def deploy(
    device: Device = None,
    /,
    *,
    devices: Annotated[Devices, fields_of()] = Devices(),
    order: Annotated[Order, fields_of(without="precision engine")],
    flags: Annotated[
        PrecisionFlags, fields_of("Precision of what is built; without one the artifact's own")
    ] = PrecisionFlags(),
    engine: Annotated[EngineOptions, fields_of(ENGINES, only=" ".join(("engine", *ENGINE_FIELDS)))] = EngineOptions(),
    manner: Annotated[Manner, fields_of()] = Manner(),
    printing: Annotated[Printing, fields_of()] = Printing(),
    given: Given,
) -> None:
    """Build, prove and measure an artifact on a device over SSH, and let it serve there; what fails changes nothing."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.deploy import show_deployed, show_plans
    from alexnet_edge.deploy import fleet, run
    from alexnet_edge.deploy.bundle import make_bundle

    members = devices.members(device)
    chosen = {name: getattr(engine, name) for name in ENGINE_FIELDS if name in given}
    if chosen and order.format != "trt":
        raise UserError(
            "this option is for TensorRT engines only",
            value=given[next(iter(chosen))],
            fix="add --format trt, or leave it out",
        )
    order = replace(order, precision=flags.precision, engine=chosen)
    with console.reporter(printing.quiet) as reporter:
        bundle = make_bundle(order, reporter=reporter)
        if devices.dry_run:
            outcomes: dict[str, Any] = fleet.side_by_side(members, lambda member: run.plan_deploy(bundle, member.link))
        elif device is not None:
            outcomes = {device: run.deploy(bundle, members[0].link, manner, reporter=reporter)}
        else:
            outcomes = fleet.side_by_side(
                members,
                lambda member: run.deploy(
                    bundle, member.link, manner, reporter=fleet.NamedReporter(reporter, member.name)
                ),
            )
    show = show_plans if devices.dry_run else show_deployed
    print_result(printing.json, fleet.as_json(outcomes), lambda: show(outcomes))
    fleet.require(outcomes)


@app.command
def status(
    device: Device = None,
    /,
    *,
    devices: Annotated[Devices, fields_of(without="dry_run")] = Devices(),
    json: Json = False,
) -> None:
    """Show the releases on the device."""
    from alexnet_edge.cli.show.deploy import show_status
    from alexnet_edge.deploy import fleet, run

    results = fleet.side_by_side(devices.members(device), lambda member: run.status(member.link))
    print_result(json, fleet.as_json(results), lambda: show_status(results))
    fleet.require(results)


@app.command
def rollback(
    device: Device = None,
    /,
    *,
    to_release: Annotated[str | None, Parameter(help="This release [the one that served before].")] = None,
    devices: Annotated[Devices, fields_of(without="dry_run")] = Devices(),
    json: Json = False,
) -> None:
    """Let the release serve that served before, or another one."""
    from alexnet_edge.cli.show.deploy import show_rollbacks
    from alexnet_edge.deploy import fleet, run

    results = fleet.side_by_side(devices.members(device), lambda member: run.rollback(member.link, to_release))
    print_result(json, fleet.as_json(results), lambda: show_rollbacks(results))
    fleet.require(results)
