"""The command line: parse, call, print.

Results go to standard output, progress and errors to standard error. Exit code 0: done; 1: a gate failed (parity, precision,
training); 2: a mistake in what was asked for, or something missing, said in one line; 130: interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from alexnet_edge import __version__
from alexnet_edge.errors import AlexNetEdgeError, GateError, UserError

app = typer.Typer(
    name="alexnet-edge",
    help="Train, export, prove and measure AlexNet for edge devices.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_CLICK_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""typer's own errors; older releases take the class from click, newer ones bring it."""

# --- options that several commands share ----------------------------------------------------------------------------------

CheckpointOption = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="Checkpoint, or a state dict of torchvision or the notebook [newest in runs/]"),
]
ImagesOption = Annotated[str | None, typer.Option("--images", help="Folder of images, or `synthetic`")]
ClassListOption = Annotated[
    Path | None, typer.Option("--class-list", help="CSV file with wnid,index,name [classes.csv beside the images]")
]
LimitOption = Annotated[int | None, typer.Option("--limit", help="Use so many images, evenly spread over the classes")]
BadImageOption = Annotated[str, typer.Option("--on-bad-image", help="skip or fail")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", help="Processor threads [all]")]
ENGINES = "TensorRT engines (--format trt)"
HOW = "How to measure"
SCENARIOS = "MLPerf LoadGen"
POWER = "Power and clocks"
CALIBRATORS = ("entropy2", "minmax", "table")
HARDWARE_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")

DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, or auto: the GPU for engines, the processor for the rest")
]
TrustOption = Annotated[
    bool, typer.Option("--trust", help="Load an engine that has no manifest: it may run code, know where it is from")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder of the training runs")]
ArtifactsFolder = Annotated[Path, typer.Option("--artifacts", help="Folder of the artifacts")]


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("train")
def train_command(
    data: Annotated[str, typer.Option("--data", help="Folder of class folders, or `synthetic`")] = "synthetic",
    arch: Annotated[str, typer.Option("--arch", help="one-tower, two-tower, torchvision or notebook")] = "one-tower",
    init: Annotated[
        str, typer.Option("--init", help="kaiming, paper, or a file: filters (.npz), checkpoint, state dict")
    ] = "kaiming",
    freeze: Annotated[
        str, typer.Option("--freeze", help="none, or features: keep conv1 to conv5 as they are")
    ] = "none",
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="notebook, synthetic or frozen [by --freeze and --data]")
    ] = None,
    preprocessing: Annotated[
        str | None, typer.Option("--preprocessing", help="Name of a preprocessing [the architecture's]")
    ] = None,
    class_list: ClassListOption = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="[the recipe's]")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Images per step [the recipe's]")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate [the recipe's]")] = None,
    momentum: Annotated[float | None, typer.Option("--momentum", help="[the recipe's]")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", help="[the recipe's]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, order, crops and dropout")] = 0,
    max_minutes: Annotated[float | None, typer.Option("--max-minutes", help="Stop after so long; resume later")] = None,
    runs: RunsOption = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the run's folder")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda")] = "auto",
    on_bad_image: BadImageOption = "fail",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train a network; its best weights go to runs/NAME/model.safetensors."""
    from alexnet_edge import console
    from alexnet_edge.train import TrainSettings
    from alexnet_edge.train import resume as resume_run
    from alexnet_edge.train import train as train_run

    with console.reporter(quiet) as reporter:
        if resume is not None:
            result = resume_run(resume, max_minutes=max_minutes, reporter=reporter)
        else:
            settings = TrainSettings(
                data=data,
                class_list=str(class_list) if class_list else None,
                arch=arch,
                init=init,
                freeze=_choice("--freeze", freeze, ("none", "features")),
                preprocessing=preprocessing,
                recipe=recipe,
                epochs=epochs,
                batch=batch,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                seed=seed,
                runs=str(runs),
                name=name,
                on_bad_image=_choice("--on-bad-image", on_bad_image, ("skip", "fail")),
                max_minutes=max_minutes,
                device=_choice("--device", device, ("auto", "cpu", "cuda")),
                threads=threads,
            )
            result = train_run(settings, reporter=reporter)
    if as_json:
        _print_json(result.to_json())
    else:
        console.show_training(result)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[Path | None, typer.Argument(help="Artifact or checkpoint [newest checkpoint in runs/]")] = None,
    images: ImagesOption = None,
    class_list: ClassListOption = None,
    limit: LimitOption = None,
    ten_crop: Annotated[
        bool, typer.Option("--ten-crop", help="Average the softmax over corners, centre and their mirror images")
    ] = False,
    on_bad_image: BadImageOption = "fail",
    device: DeviceOption = "auto",
    trust: TrustOption = False,
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Accuracy, confusions and calibration of a checkpoint or of any artifact that runs here, over all and per class."""
    from alexnet_edge import console
    from alexnet_edge.bench.stats import wilson_interval
    from alexnet_edge.checkpoint import newest_checkpoint
    from alexnet_edge.data import open_for_evaluation, reopen
    from alexnet_edge.evaluate import evaluate
    from alexnet_edge.sessions import open_session

    source = model or newest_checkpoint(runs)
    bad = _choice("--on-bad-image", on_bad_image, ("skip", "fail"))
    with open_session(source, device=_device(device), threads=threads, trust=trust) as session:
        if images is not None:
            found = open_for_evaluation(images, classes=session.classes, class_list=class_list)
        else:
            found = reopen(_validation_source(source))
        if limit is not None:
            found = found.spread(limit)
        result = evaluate(session, found, ten_crop=ten_crop, on_bad_image=bad)
    interval = wilson_interval(result.correct, result.count)
    if as_json:
        _print_json({"model": str(source), **result.to_json(), "top1_interval": interval})
    else:
        console.show_evaluation(source, result, interval)


@app.command("export")
def export_command(
    context: typer.Context,
    format: Annotated[str, typer.Option("--format", help="torchscript, pt2, onnx, openvino, trt or all")] = "all",
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and activations in FP16; LRN in FP32")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Weights and activations in BF16; LRN in FP32")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8 with quantise/dequantise pairs; LRN in FP32")] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="FP8 (E4M3) with quantise/dequantise pairs; the rest FP16")
    ] = False,
    int4_fc: Annotated[
        bool, typer.Option("--int4-fc", help="Weights of fc6 to fc8 in INT4, everything else in FP16")
    ] = False,
    checkpoint: CheckpointOption = None,
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", help="Export from an FP32 ONNX artifact instead: needs no torch, as on a board"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the artifacts")] = Path("artifacts"),
    images: Annotated[
        str | None, typer.Option("--images", help="Images to prove the answers on [the checkpoint's validation data]")
    ] = None,
    limit: LimitOption = None,
    calibration: Annotated[
        str | None,
        typer.Option("--calibration", help="Images to calibrate on [the training data]; `random` for random pixels"),
    ] = None,
    calibration_images: Annotated[
        int | None, typer.Option("--calibration-images", help="So many of them, evenly spread [512]")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="entropy, minmax or percentile")] = "entropy",
    calibration_table: Annotated[
        Path | None,
        typer.Option("--calibration-table", help="Also write the INT8 ranges as a TensorRT calibration table"),
    ] = None,
    table_for: Annotated[
        str | None,
        typer.Option("--table-for", help="TensorRT version that shall read that table, as 10.3.0 [the one here]"),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            help="What builds them: tensorrt, trtexec or rtx [first that is here]",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    min_batch: Annotated[
        int | None, typer.Option("--min-batch", help="Smallest batch [1]", rich_help_panel=ENGINES)
    ] = None,
    opt_batch: Annotated[
        int,
        typer.Option("--opt-batch", help="Batch to tune for; with --dla-core the only one", rich_help_panel=ENGINES),
    ] = 1,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", help="Largest batch [16]", rich_help_panel=ENGINES)
    ] = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            help="A GPU architecture, as sm89; may be repeated (rtx) [all]",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option("--workspace", help="Scratch memory the builder may give to layers, MiB", rich_help_panel=ENGINES),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            "--pool", help="Another memory pool, as dla-local-dram=512 (MiB); may be repeated", rich_help_panel=ENGINES
        ),
    ] = None,
    memory_cap: Annotated[
        int | None,
        typer.Option(
            "--memory-cap", help="Build within so much memory, MiB, as on boards of 4 to 8 GB", rich_help_panel=ENGINES
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option("--optimization-level", help="0 (quick build) to 5 (quick engine)", rich_help_panel=ENGINES),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="File with the builder's timings", rich_help_panel=ENGINES)
    ] = None,
    timing_cache_mode: Annotated[
        str,
        typer.Option(
            "--timing-cache-mode",
            help="update, load (never write), or require (a miss is an error)",
            rich_help_panel=ENGINES,
        ),
    ] = "update",
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let FP32 layers compute in TF32", rich_help_panel=ENGINES)
    ] = False,
    sparsity: Annotated[
        bool, typer.Option("--sparsity", help="Use kernels for 2:4 sparse weights", rich_help_panel=ENGINES)
    ] = False,
    dla_core: Annotated[
        int | None, typer.Option("--dla-core", help="Place the layers on this DLA core", rich_help_panel=ENGINES)
    ] = None,
    gpu_fallback: Annotated[
        bool,
        typer.Option("--gpu-fallback", help="Let layers that a DLA cannot run go to the GPU", rich_help_panel=ENGINES),
    ] = False,
    calibrator: Annotated[
        str | None,
        typer.Option(
            "--calibrator",
            help="For --int8 without Q/DQ, as a DLA needs: entropy2, minmax, or table (our ranges)",
            rich_help_panel=ENGINES,
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Let later TensorRT versions run the engine", rich_help_panel=ENGINES
        ),
    ] = False,
    hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--hardware-compatibility", help="none, ampere-plus or same-compute-capability", rich_help_panel=ENGINES
        ),
    ] = "none",
    refit: Annotated[
        bool, typer.Option("--refit", help="Let the weights be replaced later", rich_help_panel=ENGINES)
    ] = False,
    stripped: Annotated[
        bool, typer.Option("--stripped", help="Leave the weights out of the engine", rich_help_panel=ENGINES)
    ] = False,
    weight_streaming: Annotated[
        bool, typer.Option("--weight-streaming", help="Let weights stay in host memory", rich_help_panel=ENGINES)
    ] = False,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback",
            help="Accept layers in another precision than asked, and record them",
            rich_help_panel=ENGINES,
        ),
    ] = False,
    class_list: ClassListOption = None,
    on_bad_image: BadImageOption = "fail",
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint in another format, and prove it gives the same answers."""
    from alexnet_edge import console
    from alexnet_edge.checkpoint import load_checkpoint, newest_checkpoint
    from alexnet_edge.data import open_images
    from alexnet_edge.export import build
    from alexnet_edge.export.calibrate import METHODS
    from alexnet_edge.export.options import EngineOptions
    from alexnet_edge.export.precision import CALIBRATED

    asked = {"fp16": fp16, "bf16": bf16, "int8": int8, "fp8": fp8, "int4-fc": int4_fc}
    precisions = [name for name, wanted in asked.items() if wanted]
    if len(precisions) > 1:
        given = " ".join(f"--{name}" for name in precisions)
        raise UserError("an artifact has one precision", value=given, fix="give one of them per command")
    if runtime is not None:
        _choice("--runtime", runtime, ("tensorrt", "trtexec", "rtx"))
    _choice("--format", format, ("all", *build.FORMATS))
    _choice("--method", method, METHODS)
    _only_for_engines(context, format)
    wanted = build.selection(format, precisions[0] if precisions else None)  # type: ignore[arg-type]
    written_precisions = {precision for _, precision in wanted}
    if not written_precisions & set(CALIBRATED):
        _refuse_given(
            context,
            ("method", "calibration", "calibration_images", "calibration_table", "table_for"),
            "only INT8 and FP8 are calibrated",
            fix="add --int8 or --fp8, or leave it out",
        )
    table_version = ""
    if calibration_table is not None:
        if "int8" not in written_precisions:
            raise UserError(
                "a calibration table is for INT8", value=calibration_table, fix="add --int8, or leave it out"
            )
        table_version = build.table_version(table_for, runtime)  # type: ignore[arg-type]  # checked above
    engine = EngineOptions(
        min_batch=min_batch if min_batch is not None else 1 if dla_core is None else opt_batch,
        opt_batch=opt_batch,
        max_batch=max_batch if max_batch is not None else 16 if dla_core is None else opt_batch,
        compute_capabilities=tuple(compute_capability or ()),
        workspace_mib=workspace,
        pools=_pools(pool or ()),
        memory_cap_mib=memory_cap,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        timing_cache_mode=_choice("--timing-cache-mode", timing_cache_mode, ("update", "load", "require")),
        tf32=tf32,
        sparsity=sparsity,
        dla_core=dla_core,
        gpu_fallback=gpu_fallback,
        calibrator=None if calibrator is None else _choice("--calibrator", calibrator, CALIBRATORS),
        version_compatible=version_compatible,
        hardware_compatibility=_choice("--hardware-compatibility", hardware_compatibility, HARDWARE_COMPATIBILITY),
        refit=refit,
        stripped=stripped,
        weight_streaming=weight_streaming,
        allow_fallback=allow_fallback,
    )
    if onnx is not None and checkpoint is not None:
        raise UserError("an export has one source", value="--checkpoint --onnx", fix="give one of them")
    build.check_engines(wanted, runtime, engine)  # type: ignore[arg-type]  # checked above
    if onnx is not None:
        from alexnet_edge.export.source import checkpoint_from_onnx

        loaded = checkpoint_from_onnx(onnx)
    else:
        loaded = load_checkpoint(checkpoint or newest_checkpoint(runs))
    if images is None:
        proof = build.validation_images(loaded)
        proof = proof if limit is None else proof.spread(limit)
    else:
        proof = open_images(images, limit=limit, classes=loaded.info.classes, class_list=class_list)
    with console.reporter(quiet) as reporter:
        exporter = build.Exporter(
            loaded,
            out=out,
            proof_images=proof,
            calibration_images=build.calibration_images(loaded, calibration, calibration_images, class_list)
            if any(precision in CALIBRATED for _, precision in wanted)
            else None,
            method=method,
            engine=engine,
            runtime=runtime,  # type: ignore[arg-type]  # checked above
            outputs=calibration_table is not None,
            threads=threads,
            on_bad_image=_choice("--on-bad-image", on_bad_image, ("skip", "fail")),
            reporter=reporter,
        )
        outcomes: list[build.Outcome] = []
        try:
            if calibration_table is not None:
                exporter.write_calibration_table(calibration_table, table_version)
            outcomes.extend(exporter.export_all(wanted))
        finally:  # what was written before a mistake was noticed is told all the same
            if outcomes and as_json:
                _print_json([outcome.to_json() for outcome in outcomes])
            elif outcomes:
                console.show_exports(outcomes)
    build.require_outcomes(outcomes, everything=format == "all")


def _only_for_engines(context: typer.Context, format: str) -> None:
    """Refuse engine options where no engine is written, rather than drop them in silence."""
    if format in ("trt", "all"):
        return
    names = [entry.name or "" for entry in context.command.params if getattr(entry, "rich_help_panel", None) == ENGINES]
    _refuse_given(context, names, "this option is for TensorRT engines only", fix="add --format trt, or leave it out")


def _refuse_given(context: typer.Context, names: Sequence[str], problem: str, *, fix: str) -> None:
    """Refuse the first of these options that was given, rather than drop it in silence."""
    for parameter in context.command.params:
        source = getattr(context.get_parameter_source(parameter.name or ""), "name", "")
        if parameter.name in names and source == "COMMANDLINE":
            raise UserError(problem, value=parameter.opts[0], fix=fix)


def _pools(given: Sequence[str]) -> dict[str, int]:
    pools = {}
    for entry in given:
        name, equals, size = entry.partition("=")
        if not equals or not size.isdigit():
            raise UserError("a memory pool is NAME=MIB", value=entry, fix="for example --pool dla-local-dram=512")
        pools[name] = int(size)
    return pools


@app.command("check")
def check_command(
    artifacts: Annotated[list[Path] | None, typer.Argument(help="Artifacts [all in artifacts/]")] = None,
    checkpoint: CheckpointOption = None,
    images: ImagesOption = None,
    limit: LimitOption = None,
    class_list: ClassListOption = None,
    folder: ArtifactsFolder = Path("artifacts"),
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    on_bad_image: BadImageOption = "fail",
    as_json: JsonOption = False,
) -> None:
    """Prove again that artifacts give their checkpoint's answers, on any images."""
    from alexnet_edge import console
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.bench.parity import ParityReport, check_parity
    from alexnet_edge.data import open_images
    from alexnet_edge.export.build import validation_images
    from alexnet_edge.sessions import runnable

    bad = _choice("--on-bad-image", on_bad_image, ("skip", "fail"))
    reports: list[tuple[Path, ParityReport | str]] = []
    for path in artifacts or _artifacts_in(folder):
        artifact = load_artifact(path)
        reason = runnable(artifact)
        if reason is not None:
            reports.append((path, reason))
            continue
        reference = _source(checkpoint or Path(artifact.manifest.checkpoint))
        if checkpoint is None and reference.sha256 != artifact.manifest.checkpoint_sha256:
            raise UserError(
                "the checkpoint is not the one the artifact was exported from",
                value=reference.path,
                fix="name the right one with --checkpoint, or export again",
            )
        manifest = artifact.manifest
        if (reference.info.architecture, reference.info.classes) != (manifest.architecture, manifest.classes):
            raise UserError(
                f"the checkpoint is of another network than {path} "
                f"({manifest.architecture}, {len(manifest.classes)} classes)",
                value=reference.path,
                fix="name the checkpoint that the artifact was exported from",
            )
        if images is not None:
            found = open_images(images, classes=reference.info.classes, class_list=class_list)
        else:
            found = validation_images(reference)
        report = check_parity(
            artifact,
            reference,
            found if limit is None else found.spread(limit),
            device=_device(device),
            threads=threads,
            on_bad_image=bad,
        )
        reports.append((path, report))
    if as_json:
        _print_json(
            {
                str(path): {"verdict": "not run", "reasons": [entry]} if isinstance(entry, str) else entry.to_json()
                for path, entry in reports
            }
        )
    else:
        console.show_parity(reports)
    failed = [path for path, entry in reports if not isinstance(entry, str) and not entry.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(reports)} artifacts do not give the checkpoint's answers")
    if all(isinstance(entry, str) for _, entry in reports):
        raise UserError(str(reports[0][1]), value=reports[0][0], fix="check it on a machine that can run it")


@app.command("bench")
def bench_command(
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
    runs: RunsOption = Path("runs"),
    folder: ArtifactsFolder = Path("artifacts"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure latency and throughput, each subject in processes of its own, interleaved.

    Each option that takes a list takes commas or may be repeated; every combination is measured.
    """
    from alexnet_edge import console
    from alexnet_edge.bench.measure import MeasureSettings
    from alexnet_edge.bench.run import Plan, run_bench
    from alexnet_edge.checkpoint import newest_checkpoint
    from alexnet_edge.data import open_images

    if not subjects:
        subjects = [newest_checkpoint(runs), *(_artifacts_in(folder) if folder.is_dir() else [])]
    subjects = _filtered(subjects, _words(format), _words(precision))
    settings = MeasureSettings(
        batches=_numbers("--batch", batch) or (1, 8),
        min_seconds=seconds,
        max_seconds=max(60.0, 10 * seconds),
        percentile=percentile,
        rounds=rounds,
        device=_device(device) or "cpu",  # an engine runs on the GPU all the same
        cold=cold,
        in_flight=in_flight,
        like=None if like is None else _choice("--like", like, ("trtexec-10", "trtexec-11")),
    )
    plan = Plan(
        threads=_numbers("--threads", threads),
        isolate=isolate,
        pinned_cpus=_numbers("--pin", pin) or None,
        roofline=roofline,
        plain_loop=plain_loop,
        scenarios=_scenarios(scenario, scenario_seconds, latency_bound_ms, target_qps),
        power_mode=power_mode,
        lock_clocks=lock_clocks,
        tegrastats=tegrastats,
    )
    with _terminated_like_interrupted(), console.reporter(quiet) as reporter:
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
        _print_json(value)
    else:
        console.show_bench(value, written)
    if result.interrupted:
        raise KeyboardInterrupt
    if result.errors:
        raise GateError("; ".join(f"{label}: {reason}" for label, reason in result.errors.items()))


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


def _words(given: Sequence[str] | None) -> list[str]:
    return [word.strip() for text in given or () for word in text.split(",") if word.strip()]


def _numbers(option: str, given: Sequence[str] | None) -> tuple[int, ...]:
    words = _words(given)
    if given and not words:
        raise UserError(f"{option} names no number", value=" ".join(given) or "''", fix="write it as in 1,8")
    for word in words:
        if not word.isdecimal():
            raise UserError(f"{option} takes whole numbers", value=word, fix="write them as in 1,8")
    return tuple(int(word) for word in words)


def _filtered(subjects: Sequence[Path], formats: Sequence[str], precisions: Sequence[str]) -> list[Path]:
    """Those of the formats and precisions named; a checkpoint is `torch` in FP32."""
    from alexnet_edge.artifact import SUFFIXES, Precision, load_artifact

    for option, words, known in (
        ("--format", formats, ("torch", *SUFFIXES)),
        ("--precision", precisions, get_args(Precision)),
    ):
        for word in words:
            _choice(option, word, known)
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
    from alexnet_edge.bench.scenarios import Scenario, ScenarioSettings

    known = get_args(Scenario)
    words = _words(given)
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
            scenario=_choice("--scenario", word, (*known, "all")),
            **{name: value for name, value in options.items() if word == "server" or name not in server},
        )
        for word in dict.fromkeys(words)
    )


@app.command("compare")
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
    from alexnet_edge import console
    from alexnet_edge.bench.compare import compare
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
        _print_json(comparison.to_json())
    else:
        console.show_comparison(comparison)
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


@app.command("report")
def report_command(
    results: Annotated[Path, typer.Argument(help="Results file of `alexnet-edge bench`")] = Path("reports/bench.json"),
    out: Annotated[Path | None, typer.Option("--out", help="Page to write [beside the results]")] = None,
) -> None:
    """Make the Markdown, CSV and HTML again from a results file."""
    from alexnet_edge.bench.results import read_results
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


@app.command("predict")
def predict_command(
    images: Annotated[list[Path], typer.Argument(help="Image files or folders")],
    artifact: Annotated[
        Path | None, typer.Option("--artifact", help="Artifact or checkpoint [newest checkpoint in runs/]")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="Classes to name per image")] = 5,
    on_bad_image: BadImageOption = "fail",
    device: DeviceOption = "auto",
    trust: TrustOption = False,
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Name what is in an image: the most probable classes."""
    from alexnet_edge import console
    from alexnet_edge.checkpoint import newest_checkpoint
    from alexnet_edge.errors import ImageError
    from alexnet_edge.predict import predict
    from alexnet_edge.sessions import open_session

    source = artifact or newest_checkpoint(runs)
    bad: list[ImageError] = []
    with open_session(source, device=_device(device), threads=threads, trust=trust) as session:
        predictions = predict(
            session, images, top=top, on_bad_image=_choice("--on-bad-image", on_bad_image, ("skip", "fail")), bad=bad
        )
    if as_json:
        _print_json(
            {"predictions": [entry.to_json() for entry in predictions], "skipped": [str(error) for error in bad]}
        )
    else:
        console.show_predictions(predictions, bad)


@app.command("inspect")
def inspect_command(
    file: Annotated[Path | None, typer.Argument(help="Checkpoint or artifact")] = None,
    arch: Annotated[str | None, typer.Option("--arch", help="Architecture to tabulate [one-tower]")] = None,
    classes: Annotated[int | None, typer.Option("--classes", help="Number of classes [1000, or the file's]")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Images per inference")] = 1,
    target: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Lint any ONNX file for tensorrt, tensorrt-8.6, tensorrt-10, tensorrt-11, rtx or dla instead",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Shapes, parameters, multiply-adds and bytes per layer; of a file also where it comes from."""
    if target is not None:
        _lint(file, target, as_json)
        return
    from dataclasses import asdict

    from alexnet_edge import console
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.checkpoint import load_checkpoint
    from alexnet_edge.layers import DEFAULT_ARCHITECTURE, architecture, layer_costs

    facts: dict[str, Any] = {}
    name, number = arch or DEFAULT_ARCHITECTURE, classes or 1000
    if file is not None:
        if arch is not None or classes is not None:
            raise UserError(
                "the file says its own architecture and classes", value=file, fix="leave --arch and --classes out"
            )
        if file.suffix in {".safetensors", ".pt", ".pth"}:
            checkpoint = load_checkpoint(file)
            facts = {"file": str(file), "sha256": checkpoint.sha256, **checkpoint.info.to_json()}
        else:
            facts = {"file": str(file), **load_artifact(file).manifest.to_json()}
        name, number = facts["architecture"], len(facts["classes"])
    elif classes is not None and classes < 1:
        raise UserError("a network needs at least one class", value=classes, fix="give 1 or more")
    network = architecture(name, number)
    costs = layer_costs(network, batch=batch)
    if as_json:
        _print_json({**facts, "architecture": name, "batch": batch, "costs": [asdict(cost) for cost in costs]})
    else:
        console.show_network(network, costs, batch, facts)


def _lint(file: Path | None, target: str, as_json: bool) -> None:
    from dataclasses import asdict

    from alexnet_edge import console
    from alexnet_edge.export.lint import TARGETS, lint

    _choice("--for", target, tuple(TARGETS))
    if file is None:
        raise UserError("no file to lint", fix=f"alexnet-edge inspect --for {target} MODEL.onnx")
    findings = lint(file, target)
    if as_json:
        _print_json({"file": str(file), "target": target, "findings": [asdict(finding) for finding in findings]})
    else:
        console.show_findings(file, target, findings)
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise GateError(f"{file}: {errors} {'error' if errors == 1 else 'errors'} for {target}")


@app.command("doctor")
def doctor_command(
    capability: Annotated[
        str | None,
        typer.Option(
            "--require",
            help="Exit with 2 unless this machine can: train, export-onnx, build-engines or run-engines",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What this machine can train, export and run, and the command that adds what is missing."""
    from alexnet_edge import console
    from alexnet_edge.doctor import CAPABILITIES, examine, require
    from alexnet_edge.environment import describe

    if capability is not None:
        _choice("--require", capability, tuple(CAPABILITIES))
    components = examine()
    if as_json:
        _print_json({"environment": describe(), "components": [component.to_json() for component in components]})
    else:
        console.show_doctor(describe(), components)
    if capability is not None:
        require(capability, components)


@app.command("demo")
def demo_command(
    runs: RunsOption = Path("runs"),
    folder: ArtifactsFolder = Path("artifacts"),
    reports: Annotated[Path, typer.Option("--reports", help="Folder of the report")] = Path("reports"),
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """The whole path on built-in images: train, export to everything, prove, measure, report. Three to four minutes."""
    from alexnet_edge import console
    from alexnet_edge.demo import run_demo

    with console.reporter(quiet) as reporter:
        result = run_demo(runs=runs, artifacts=folder, reports=reports, threads=threads, reporter=reporter)
    console.show_demo(result)


# --- what the commands share ----------------------------------------------------------------------------------------------


def _device(value: str) -> Any:
    """None where the artifact decides."""
    chosen = _choice("--device", value, ("auto", "cpu", "cuda"))
    return None if chosen == "auto" else chosen


def _choice(option: str, value: str, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise UserError(f"{option} has no such choice", value=value, fix=f"choose one of {', '.join(allowed)}")
    return value


def _artifacts_in(folder: Path) -> list[Path]:
    """Every artifact of a folder that has a manifest; those kept aside after a failed proof are left out."""
    found = sorted(path.with_suffix("") for path in folder.glob("*.json") if ".failed." not in path.name)
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError("no artifacts in", value=f"{folder}/", fix="write them with `alexnet-edge export`")
    return found


def _source(path: Path) -> Any:
    """The `Checkpoint` in a checkpoint file, or in the FP32 ONNX artifact that a board exports from."""
    from alexnet_edge.checkpoint import load_checkpoint

    if path.suffix == ".onnx":
        from alexnet_edge.export.source import checkpoint_from_onnx

        return checkpoint_from_onnx(path)
    return load_checkpoint(path)


def _validation_source(source: Path) -> dict[str, Any]:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.checkpoint import read_info

    checkpoint = source if source.suffix == ".safetensors" else None
    if checkpoint is None and source.suffix not in {".pt", ".pth"}:
        checkpoint = Path(load_artifact(source).manifest.checkpoint)
    recorded = read_info(checkpoint).data.get("val", {}).get("source") if checkpoint is not None else None
    if not recorded:
        raise UserError("it records no validation data", value=source, fix="name a folder of images with --images")
    return dict(recorded)


def _write_reports(value: dict[str, Any], results: Path) -> list[Path]:
    """Markdown, CSV and HTML beside the results file; returns all four paths."""
    from alexnet_edge.bench.report import write_report
    from alexnet_edge.bench.tables import csv_of, markdown_of
    from alexnet_edge.checkpoint import read_history, read_info
    from alexnet_edge.files import write_text

    markdown, table, page = (results.with_suffix(suffix) for suffix in (".md", ".csv", ".html"))
    texts = {markdown: markdown_of(value), table: csv_of(value)}  # all made before any is written
    info = history = None
    checkpoint = next((entry["file"] for entry in value["subjects"] if entry["format"] == "checkpoint"), None)
    if checkpoint is not None and Path(checkpoint).is_file() and Path(checkpoint).suffix == ".safetensors":
        info, history = read_info(Path(checkpoint)), read_history(Path(checkpoint))
    write_report(page, bench=value, checkpoint_info=info, history=history)
    for path, text in texts.items():
        write_text(path, text)
    return [results, markdown, table, page]


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit the process with its code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    with ExitStack() as stack:
        stack.callback(_flush)
        try:
            code = app(args=arguments, prog_name="alexnet-edge", standalone_mode=False)
        except AlexNetEdgeError as error:
            return _fail(str(error), error.exit_code)
        except _CLICK_ERROR as error:
            message = " ".join(error.format_message().split()).rstrip(".") + _received(error, arguments)
            return _fail(f"{message}; see: alexnet-edge --help" if message else "see: alexnet-edge --help", 2)
        except (KeyboardInterrupt, typer.Abort):
            return _fail("interrupted", 130)
        except (BrokenPipeError, SystemExit) as end:  # the reader of our output has left, as `head` does
            if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
                raise  # typer and rich turn a broken pipe into an exit with code 1
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return code if isinstance(code, int) else 0


def _received(error: Any, arguments: Sequence[str]) -> str:
    """The value of the option that typer complains of: not every release says it."""
    for option in getattr(getattr(error, "param", None), "opts", ()):
        if option in arguments[:-1]:
            return f" (received {arguments[arguments.index(option) + 1]})"
    return ""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fail(message: str, code: int) -> int:
    print(f"alexnet-edge: {message}", file=sys.stderr)
    return code
