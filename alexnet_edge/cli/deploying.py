"""`alexnet-edge deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alexnet_edge.cli.common import (
    ClassListOption,
    JsonOption,
    QuietOption,
    ThreadsOption,
    choice,
    numbers_in,
    one_precision,
    print_json,
    refuse_given,
)
from alexnet_edge.errors import UserError

DEVICE = "The device"
BENCH = "The bench there"
ENGINES = "TensorRT engines (--format trt)"


def deploy_command(
    context: typer.Context,
    device: Annotated[str | None, typer.Argument(help="user@host, or a name from ~/.ssh/config")] = None,
    artifact: Annotated[
        Path | None, typer.Option("--artifact", help="ONNX file that `export --format onnx` wrote")
    ] = None,
    format: Annotated[str, typer.Option("--format", help="onnx (ONNX Runtime) or trt (a TensorRT engine)")] = "onnx",
    fp32: Annotated[bool, typer.Option("--fp32", help="Precision of what is built [the artifact's own]")] = False,
    fp16: Annotated[bool, typer.Option("--fp16")] = False,
    bf16: Annotated[bool, typer.Option("--bf16")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="With the calibration of the INT8 file beside --artifact")
    ] = False,
    fp8: Annotated[bool, typer.Option("--fp8")] = False,
    int4_fc: Annotated[bool, typer.Option("--int4-fc")] = False,
    int8_int4_fc: Annotated[bool, typer.Option("--int8-int4-fc", help="For ONNX Runtime")] = False,
    images: Annotated[
        str | None, typer.Option("--images", help="Golden images [the checkpoint's validation data]")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="So many of them, evenly spread over the classes")] = 200,
    class_list: ClassListOption = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="FP32 ONNX file to build from [alexnet_fp32.onnx beside the artifact]"),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="TOML file with several devices, worked on side by side")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at the device, print the plan, change nothing")
    ] = False,
    show_status: Annotated[bool, typer.Option("--status", help="Show the releases on the device")] = False,
    roll_back: Annotated[bool, typer.Option("--rollback", help="Let the release serve that served before")] = False,
    to_release: Annotated[
        str | None, typer.Option("--to-release", help="With --rollback: this release instead")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do everything again, as a new release")] = False,
    ssh_config: Annotated[
        Path | None,
        typer.Option("--ssh-config", help="Configuration of the SSH client [the user's own]", rich_help_panel=DEVICE),
    ] = None,
    python: Annotated[
        str, typer.Option("--python", help="Python 3.10 or newer there", rich_help_panel=DEVICE)
    ] = "python3",
    root: Annotated[
        str, typer.Option("--root", help="Folder there, below the home folder", rich_help_panel=DEVICE)
    ] = "alexnet-edge",
    container: Annotated[
        str | None,
        typer.Option(
            "--container",
            help="Docker image there to work and serve in, as alexnet-edge:jetpack6",
            rich_help_panel=DEVICE,
        ),
    ] = None,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(
            "--wheelhouse", help="Folder of wheels to send, for a device without package index", rich_help_panel=DEVICE
        ),
    ] = None,
    keep: Annotated[int, typer.Option("--keep", help="Releases that stay there", rich_help_panel=DEVICE)] = 3,
    connect_seconds: Annotated[
        float, typer.Option("--connect-seconds", help="How long connecting may take", rich_help_panel=DEVICE)
    ] = 20.0,
    silence_seconds: Annotated[
        float,
        typer.Option("--silence-seconds", help="The other side is taken for gone after", rich_help_panel=DEVICE),
    ] = 120.0,
    reconnect_seconds: Annotated[
        float,
        typer.Option("--reconnect-seconds", help="How long a broken connection is tried again", rich_help_panel=DEVICE),
    ] = 120.0,
    bench_seconds: Annotated[
        float,
        typer.Option("--bench-seconds", help="Least measuring time per batch; 0: no bench", rich_help_panel=BENCH),
    ] = 3.0,
    rounds: Annotated[int, typer.Option("--rounds", help="Fresh processes", rich_help_panel=BENCH)] = 3,
    batch: Annotated[
        list[str] | None, typer.Option("--batch", help="Images per inference, as in 1,8 [1]", rich_help_panel=BENCH)
    ] = None,
    percentile: Annotated[float, typer.Option("--percentile", help="Highest percentile", rich_help_panel=BENCH)] = 99.0,
    cold: Annotated[
        bool, typer.Option("--cold/--no-cold", help="Also with the cache flushed", rich_help_panel=BENCH)
    ] = True,
    roofline: Annotated[
        bool,
        typer.Option("--roofline/--no-roofline", help="The device's bounds, each layer's time", rich_help_panel=BENCH),
    ] = True,
    power_mode: Annotated[
        str | None, typer.Option("--power-mode", help="Set meanwhile (root there)", rich_help_panel=BENCH)
    ] = None,
    lock_clocks: Annotated[
        bool, typer.Option("--lock-clocks", help="Lock clocks meanwhile (root there)", rich_help_panel=BENCH)
    ] = False,
    threads: ThreadsOption = None,
    memory_cap: Annotated[
        int | None,
        typer.Option(
            "--memory-cap", help="Memory of the builder, MiB [half of what is free there]", rich_help_panel=ENGINES
        ),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option("--workspace", help="Scratch memory of a layer, MiB", rich_help_panel=ENGINES)
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="Largest batch [16]", rich_help_panel=ENGINES)
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option("--optimization-level", help="0 to 5", rich_help_panel=ENGINES)
    ] = None,
    reports: Annotated[Path, typer.Option("--reports", help="Folder of what is fetched")] = Path("reports/deploy"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build, prove and measure an artifact on a device over SSH, and let it serve there; what fails changes nothing."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.deploy import show_deployed, show_plans, show_rollbacks
    from alexnet_edge.cli.show.deploy import show_status as show_status_
    from alexnet_edge.deploy import fleet, run
    from alexnet_edge.deploy.bundle import make_bundle
    from alexnet_edge.deploy.link import LinkSettings
    from alexnet_edge.deploy.plan import BenchOptions, Manner, Order

    if sum((dry_run, show_status, roll_back)) > 1:
        raise UserError("one thing at a time", value="--dry-run --status --rollback", fix="give one of them")
    if to_release is not None and not roll_back:
        raise UserError("--to-release belongs to --rollback", value=to_release, fix="add --rollback")
    if (device is None) == (to is None):
        raise UserError(
            "a deploy goes to one device",
            value=device or "none",
            fix="name one device, or several with --to fleet.toml",
        )
    precision = one_precision(
        {
            "fp32": fp32,
            "fp16": fp16,
            "bf16": bf16,
            "int8": int8,
            "fp8": fp8,
            "int4-fc": int4_fc,
            "int8-int4-fc": int8_int4_fc,
        }
    )
    choice("--format", format, ("onnx", "trt"))
    if format != "trt":
        names = [
            entry.name or "" for entry in context.command.params if getattr(entry, "rich_help_panel", "") == ENGINES
        ]
        refuse_given(
            context, names, "this option is for TensorRT engines only", fix="add --format trt, or leave it out"
        )

    def settings(destination: str, **own: Any) -> LinkSettings:
        common = {"ssh_config": ssh_config, "python": python, "root": root, "container": container}
        waits = {"connect_s": connect_seconds, "silence_s": silence_seconds}
        return LinkSettings(destination=destination, **{**common, **waits, **own})

    members = [fleet.Member(name=device, link=settings(device))] if device is not None else []
    if to is not None:
        members = fleet.read_fleet(to, settings)
    if show_status or roll_back:
        found = fleet.side_by_side(
            members, lambda member: run.rollback(member.link, to_release) if roll_back else run.status(member.link)
        )
        if as_json:
            print_json(fleet.as_json(found))
        elif roll_back:
            show_rollbacks(found)
        else:
            show_status_(found)
        fleet.require(found)
        return
    if artifact is None:
        raise UserError("nothing to deploy", fix="name an ONNX file with --artifact")
    order = Order(
        artifact=artifact,
        format=format,  # type: ignore[arg-type]  # checked above
        precision=precision,
        source=source,
        images=images,
        limit=limit,
        class_list=class_list,
        engine={
            name: value
            for name, value in {
                "memory_cap": memory_cap,
                "workspace": workspace,
                "max_batch": max_batch,
                "optimization_level": optimization_level,
            }.items()
            if value is not None
        },
        threads=threads,
        bench=BenchOptions(
            seconds=bench_seconds,
            rounds=rounds,
            batches=numbers_in("--batch", batch) or (1,),
            percentile=percentile,
            cold=cold,
            roofline=roofline,
            power_mode=power_mode,
            lock_clocks=lock_clocks,
        ),
        wheelhouse=wheelhouse,
    )
    manner = Manner(keep=keep, reconnect_s=reconnect_seconds, force=force, reports=reports)
    with console.reporter(quiet) as reporter:
        bundle = make_bundle(order, reporter=reporter)
        if dry_run:
            outcomes: dict[str, Any] = fleet.side_by_side(members, lambda member: run.plan_deploy(bundle, member.link))
        elif len(members) == 1 and to is None:
            outcomes = {members[0].name: run.deploy(bundle, members[0].link, manner, reporter=reporter)}
        else:
            outcomes = fleet.side_by_side(
                members,
                lambda member: run.deploy(
                    bundle, member.link, manner, reporter=fleet.NamedReporter(reporter, member.name)
                ),
            )
    if as_json:
        print_json(fleet.as_json(outcomes))
    elif dry_run:
        show_plans(outcomes)
    else:
        show_deployed(outcomes)
    fleet.require(outcomes)
