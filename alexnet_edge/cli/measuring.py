"""`alexnet-edge bench`, `compare` and `report`."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from alexnet_edge.cli.common import (
    ArtifactsFolder,
    DeviceOption,
    ImagesOption,
    JsonOption,
    QuietOption,
    RunsOption,
    TrustOption,
    artifacts_in,
    choice,
    chosen_device,
    numbers_in,
    print_json,
    refuse_given,
    words_in,
)
from alexnet_edge.errors import GateError, UserError
from alexnet_edge.images.datasets import SYNTHETIC

HOW = "How to measure"
SCENARIOS = "MLPerf LoadGen"
POWER = "Power and clocks"
LOADER = "How training gets its images"
LOADER_OPTIONS = (
    "loader",
    "batch",
    "threads",
    "workers",
    "arch",
    "seconds",
    "rounds",
    "images",
    "out",
    "device",
    "as_json",
    "quiet",
)
"""What `--loader` goes with."""
PEERS = "Peers"


def bench_command(
    context: typer.Context,
    subjects: Annotated[
        list[Path] | None,
        typer.Argument(help="Artifacts and checkpoints [newest checkpoint in runs/ and all in artifacts/]"),
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="Of those only: torch (the checkpoint), onnx, torchscript, ...")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="Of those only: fp32, fp16, int8, ...")
    ] = None,
    batch: Annotated[list[str] | None, typer.Option("--batch", help="Images per inference, as in 1,8,32 [1,8]")] = None,
    threads: Annotated[
        list[str] | None, typer.Option("--threads", help="Processor threads, as in 1,2: each is measured [all]")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Least measuring time per subject and batch")] = 3.0,
    percentile: Annotated[
        float, typer.Option("--percentile", help="Highest percentile: 50, 90, 95, 99 or 99.9")
    ] = 99.0,
    rounds: Annotated[int, typer.Option("--rounds", help="Fresh processes per subject")] = 3,
    images: ImagesOption = None,
    out: Annotated[Path, typer.Option("--out", help="Results; .md, .csv and .html go beside it")] = Path(
        "reports/bench.json"
    ),
    device: DeviceOption = "auto",
    trust: TrustOption = False,
    isolate: Annotated[
        bool,
        typer.Option("--isolate/--no-isolate", help="A fresh process for each subject and round", rich_help_panel=HOW),
    ] = True,
    pin: Annotated[
        list[str] | None, typer.Option("--pin", help="Processors to run on, as in 0,1", rich_help_panel=HOW)
    ] = None,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold/--no-cold", help="Also with the last-level cache flushed between inferences", rich_help_panel=HOW
        ),
    ] = True,
    in_flight: Annotated[
        int,
        typer.Option(
            "--in-flight", help="Inferences in flight for the pipelined throughput (GPU)", rich_help_panel=HOW
        ),
    ] = 2,
    like: Annotated[
        str | None,
        typer.Option(
            "--like", help="trtexec-10 or trtexec-11: measure by that tool's definitions (GPU)", rich_help_panel=HOW
        ),
    ] = None,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline/--no-roofline", help="The machine's bounds, and each layer's time", rich_help_panel=HOW
        ),
    ] = True,
    plain_loop: Annotated[
        bool,
        typer.Option(
            "--plain-loop", help="Hold the harness against a plain loop around an ONNX session", rich_help_panel=HOW
        ),
    ] = False,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            help="Also by MLPerf LoadGen: single-stream, multi-stream, server, offline, or all",
            rich_help_panel=SCENARIOS,
        ),
    ] = None,
    scenario_seconds: Annotated[
        float | None, typer.Option("--scenario-seconds", help="Least duration of a scenario", rich_help_panel=SCENARIOS)
    ] = None,
    latency_bound_ms: Annotated[
        float | None,
        typer.Option(
            "--latency-bound-ms", help="Server: 99 % within this [5 x the single-stream p90]", rich_help_panel=SCENARIOS
        ),
    ] = None,
    target_qps: Annotated[
        float | None,
        typer.Option("--target-qps", help="Server: this rate [the highest that passes]", rich_help_panel=SCENARIOS),
    ] = None,
    power_mode: Annotated[
        str | None,
        typer.Option("--power-mode", help="Set nvpmodel's mode meanwhile; put back afterwards", rich_help_panel=POWER),
    ] = None,
    lock_clocks: Annotated[
        bool,
        typer.Option("--lock-clocks", help="Run jetson_clocks meanwhile; put back afterwards", rich_help_panel=POWER),
    ] = False,
    tegrastats: Annotated[
        Path | None,
        typer.Option("--tegrastats", help="A log recorded beside this bench, judged with it", rich_help_panel=POWER),
    ] = None,
    loader: Annotated[
        bool,
        typer.Option(
            "--loader",
            help="Instead: images/s of training's feed, and how long steps wait; --images is a training folder [synthetic]",
            rich_help_panel=LOADER,
        ),
    ] = False,
    workers: Annotated[
        list[str] | None,
        typer.Option("--workers", help="Readers of images, as in 0,2,4 [the processors]", rich_help_panel=LOADER),
    ] = None,
    arch: Annotated[
        str, typer.Option("--arch", help="Whose training step waits for the images", rich_help_panel=LOADER)
    ] = "one-tower",
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peers",
            help="Also other tools on the same checkpoint, each by its own default export: all, or names as in "
            "openvino-nncf,onnxruntime",
            rich_help_panel=PEERS,
        ),
    ] = None,
    peers_python: Annotated[
        Path | None,
        typer.Option("--peers-python", help="The interpreter that has those tools [this one]", rich_help_panel=PEERS),
    ] = None,
    runs: RunsOption = Path("runs"),
    folder: ArtifactsFolder = Path("artifacts"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure latency and throughput, each subject in processes of its own, interleaved.

    Each option that takes a list takes commas or may be repeated; every combination is measured.
    """
    if loader:
        others = [name for name in context.params if name not in LOADER_OPTIONS]
        refuse_given(context, others, "--loader measures how training gets its images, without", fix="leave it out")
        sizes, threads_given = numbers_in("--batch", batch), numbers_in("--threads", threads)
        for option, given in (("--batch", sizes), ("--threads", threads_given)):
            if len(given) > 1:
                raise UserError(
                    f"with --loader, {option} is one number", value=",".join(map(str, given)), fix="choose one"
                )
        _bench_loader(
            images or SYNTHETIC,
            arch,
            {
                "batch": sizes[0] if sizes else None,
                "threads": threads_given[0] if threads_given else None,
                "workers": numbers_in("--workers", workers),
                "seconds": seconds,
                "rounds": rounds,
                "device": chosen_device(device),
            },
            out=Path("reports/loader.json") if out == Path("reports/bench.json") else out,
            as_json=as_json,
            quiet=quiet,
        )
        return
    refuse_given(context, ["workers", "arch"], "only --loader takes", fix="add --loader")
    from alexnet_edge.bench.rounds.run import Plan, run_bench
    from alexnet_edge.bench.timing.settings import MeasureSettings
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.bench import show_bench
    from alexnet_edge.images.datasets import open_images
    from alexnet_edge.network.load import newest_checkpoint

    if not subjects:
        subjects = [newest_checkpoint(runs), *(artifacts_in(folder) if folder.is_dir() else [])]
    subjects = _filtered(subjects, words_in(format), words_in(precision))
    settings = MeasureSettings(
        batches=numbers_in("--batch", batch) or (1, 8),
        min_seconds=seconds,
        max_seconds=max(60.0, 10 * seconds),
        percentile=percentile,
        rounds=rounds,
        device=chosen_device(device) or "cpu",  # an engine runs on the GPU all the same
        cold=cold,
        in_flight=in_flight,
        like=None if like is None else choice("--like", like, ("trtexec-10", "trtexec-11")),
    )
    plan = Plan(
        threads=numbers_in("--threads", threads),
        isolate=isolate,
        pinned_cpus=numbers_in("--pin", pin) or None,
        roofline=roofline,
        plain_loop=plain_loop,
        scenarios=_scenarios(scenario, scenario_seconds, latency_bound_ms, target_qps),
        power_mode=power_mode,
        lock_clocks=lock_clocks,
        tegrastats=tegrastats,
    )
    if peers_python is not None and not peers:
        raise UserError("--peers-python belongs to --peers", value=peers_python, fix="add --peers all")
    with _terminated_like_interrupted(), console.reporter(quiet) as reporter:
        if peers:
            prepared, left_out = _prepared(words_in(peers), subjects, settings, peers_python, reporter)
            subjects, plan = [*subjects, *prepared], replace(plan, peers_left_out=left_out)
        result = run_bench(
            subjects,
            settings,
            plan,
            images=open_images(images) if images is not None else None,
            out=out,
            command=["alexnet-edge", *sys.argv[1:]],
            trust=trust,
            reporter=reporter,
        )
    value = result.to_json()
    written = _write_reports(value, out)
    if as_json:
        print_json(value)
    else:
        show_bench(value, written)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.errors:
        raise GateError("; ".join(f"{label}: {reason}" for label, reason in result.errors.items()))


def _bench_loader(
    images: str | Path, arch: str, given: dict[str, Any], *, out: Path, as_json: bool, quiet: bool
) -> None:
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.training import show_loader
    from alexnet_edge.files import write_json
    from alexnet_edge.images.datasets import open_split
    from alexnet_edge.network.layers import architecture
    from alexnet_edge.training.feed_speed import LoaderSettings, loader_verdict, measure_loader

    settings = LoaderSettings(**{name: value for name, value in given.items() if value is not None})
    found_images = open_split(images, "train")
    with console.reporter(quiet) as reporter:
        found = measure_loader(
            found_images,
            architecture(arch, len(found_images.classes)),
            settings,
            command=["alexnet-edge", *sys.argv[1:]],
            reporter=reporter,
        )
    found["verdict"] = loader_verdict(found)
    write_json(out, found)
    if as_json:
        print_json(found)
    else:
        show_loader(found, found["verdict"], out)


def _prepared(
    names: Sequence[str], subjects: Sequence[Path], settings: Any, python: Path | None, reporter: Any
) -> tuple[list[Path], dict[str, str]]:
    """The peers of the first checkpoint among the subjects, prepared, and why others are left out."""
    from alexnet_edge.bench.peers import prepare_peers
    from alexnet_edge.export.exporter import CACHE
    from alexnet_edge.network.load import load_checkpoint
    from alexnet_edge.proof.recorded import validation_images

    checkpoint = next((path for path in subjects if path.suffix == ".safetensors"), None)
    if checkpoint is None:
        raise UserError("peers are made from a checkpoint", value="--peers", fix="name one beside the artifacts")
    return prepare_peers(
        names,
        checkpoint,
        batches=settings.batches,
        folder=CACHE / "peers",
        images=validation_images(load_checkpoint(checkpoint)),
        python=python,
        reporter=reporter,
    )


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Have SIGTERM, which a service manager or a container sends, end the work as Ctrl-C does: what was measured is kept."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _filtered(subjects: Sequence[Path], formats: Sequence[str], precisions: Sequence[str]) -> list[Path]:
    """Those of the formats and precisions named; a checkpoint is `torch` in FP32."""
    from alexnet_edge.artifact import SUFFIXES, Precision, load_artifact

    for option, words, known in (
        ("--format", formats, ("torch", *SUFFIXES)),
        ("--precision", precisions, get_args(Precision)),
    ):
        for word in words:
            choice(option, word, known)
    if not formats and not precisions:
        return list(subjects)
    kept = []
    for path in subjects:
        kind = ("torch", "fp32")
        if path.suffix not in {".safetensors", ".pt", ".pth"}:
            manifest = load_artifact(path).manifest
            kind = (manifest.format, manifest.precision)
        if kind[0] in (formats or kind) and kind[1] in (precisions or kind):
            kept.append(path)
    if not kept:
        raise UserError(
            "nothing to measure is of that format and precision",
            value=", ".join([*formats, *precisions]),
            fix="write it with `alexnet-edge export`",
        )
    return kept


def _scenarios(
    given: Sequence[str] | None, seconds: float | None, latency_bound_ms: float | None, target_qps: float | None
) -> tuple[Any, ...]:
    from alexnet_edge.bench.loadgen.settings import Scenario, ScenarioSettings

    known = get_args(Scenario)
    words = words_in(given)
    options: dict[str, Any] = {
        name: value
        for name, value in (("seconds", seconds), ("latency_bound_ms", latency_bound_ms), ("target_qps", target_qps))
        if value is not None
    }
    if options and not words:
        name = next(iter(options)).replace("_", "-")
        option = "--scenario-seconds" if name == "seconds" else f"--{name}"
        raise UserError(f"{option} belongs to a scenario", fix="add --scenario all")
    if "all" in words:
        words = list(known)
    server = {name for name in options if name != "seconds"}
    if server and "server" not in words:
        raise UserError(
            f"--{sorted(server)[0].replace('_', '-')} belongs to the server scenario", fix="add --scenario server"
        )
    return tuple(
        ScenarioSettings(
            scenario=choice("--scenario", word, (*known, "all")),
            **{name: value for name, value in options.items() if word == "server" or name not in server},
        )
        for word in dict.fromkeys(words)
    )


def compare_command(
    base: Annotated[
        Path, typer.Argument(help="Results of `alexnet-edge bench`, trtexec --exportTimes or pytest-benchmark")
    ],
    new: Annotated[Path, typer.Argument(help="The same, measured after a change")],
    max_slowdown: Annotated[
        str, typer.Option("--max-slowdown", help="Slower than this is a regression, as in 5% or 0.05")
    ] = "5%",
    match: Annotated[
        list[str] | None,
        typer.Option(
            "--match", help="Compare only these with each other, as in 'onnx fp32=onnx fp16'; may be repeated"
        ),
    ] = None,
    base_log: Annotated[
        Path | None, typer.Option("--base-log", help="What trtexec printed, when BASE has its times")
    ] = None,
    new_log: Annotated[Path | None, typer.Option("--new-log", help="The same for NEW")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare all the same where power modes, definitions or inputs differ")
    ] = False,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write it for a pull request")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became slower between two results; exit code 1 when something did."""
    from alexnet_edge.bench.report.compare import compare
    from alexnet_edge.cli.show.bench import show_comparison
    from alexnet_edge.files import write_text

    pairs = [tuple(part.strip() for part in text.split("=")) for text in match or ()]
    for text, pair in zip(match or (), pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise UserError("--match takes two labels", value=text, fix="write it as in 'onnx fp32=onnx fp16'")
    comparison = compare(
        base,
        new,
        max_slowdown=_share("--max-slowdown", max_slowdown),
        force=force,
        match=[(pair[0], pair[1]) for pair in pairs],
        base_log=base_log,
        new_log=new_log,
    )
    if markdown is not None:
        write_text(markdown, comparison.markdown())
    if as_json:
        print_json(comparison.to_json())
    else:
        show_comparison(comparison)
    comparison.check()


def _share(option: str, given: str) -> float:
    """`5%` or `0.05` as 0.05."""
    try:
        value = float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 10:
        raise UserError(f"{option} must be a share of 0 or more", value=given, fix="write it as in 5% or 0.05")
    return value


def report_command(
    results: Annotated[Path, typer.Argument(help="Results file of `alexnet-edge bench`")] = Path("reports/bench.json"),
    out: Annotated[Path | None, typer.Option("--out", help="Page to write [beside the results]")] = None,
) -> None:
    """Make the Markdown, CSV and HTML again from a results file."""
    from alexnet_edge.bench.rounds.results import read_results
    from alexnet_edge.files import MALFORMED

    value = read_results(results)
    try:
        written = _write_reports(value, out.with_suffix(".json") if out else results)
    except MALFORMED as error:
        raise UserError(
            f"damaged, or not a whole results file ({type(error).__name__}: {error})",
            value=results,
            fix="measure again",
        ) from error
    for path in written:
        print(path)


def _write_reports(value: dict[str, Any], results: Path) -> list[Path]:
    """Markdown, CSV and HTML beside the results file; returns all four paths."""
    from alexnet_edge.bench.report.report import write_report
    from alexnet_edge.bench.report.text import csv_of, markdown_of
    from alexnet_edge.files import write_text
    from alexnet_edge.network.checkpoint import read_history, read_info, read_weight

    markdown, table, page = (results.with_suffix(suffix) for suffix in (".md", ".csv", ".html"))
    texts = {markdown: markdown_of(value), table: csv_of(value)}  # all made before any is written
    info = history = filters_OCHW = None
    checkpoint = next((entry["file"] for entry in value["subjects"] if entry["format"] == "checkpoint"), None)
    if checkpoint is not None and Path(checkpoint).is_file() and Path(checkpoint).suffix == ".safetensors":
        info, history = read_info(Path(checkpoint)), read_history(Path(checkpoint))
        filters_OCHW = read_weight(Path(checkpoint), "conv1.weight")
    write_report(page, bench=value, checkpoint_info=info, history=history, filters_OCHW=filters_OCHW)
    for path, text in texts.items():
        write_text(path, text)
    return [results, markdown, table, page]
