"""`alexnet-edge export`, `check` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alexnet_edge import records
from alexnet_edge.cli.common import (
    ArtifactsFolder,
    BadImageOption,
    CheckpointOption,
    ClassListOption,
    DeviceOption,
    ImagesOption,
    JsonOption,
    LimitOption,
    QuietOption,
    RunsOption,
    ThreadsOption,
    artifacts_in,
    checkpoint_or_onnx,
    choice,
    chosen_device,
    print_json,
)
from alexnet_edge.errors import GateError, UserError

if TYPE_CHECKING:
    from alexnet_edge.artifact import Artifact, Format
    from alexnet_edge.bench.search import SearchResult
    from alexnet_edge.export.exporter import Exporter
    from alexnet_edge.export.request import ExportRequest
    from alexnet_edge.images.datasets import ImageSet, OnBadImage
    from alexnet_edge.network.checkpoint import Checkpoint

ENGINES = "TensorRT engines (--format trt)"
TRITON = "Triton model repository (--format triton)"


def export_command(
    how: Annotated[
        str | None, typer.Argument(metavar="[auto]", help="After --int8: search the fastest type of each layer")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="torchscript, pt2, onnx, openvino, trt, all, or triton")
    ] = "all",
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights and activations in FP16; LRN in FP32")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Weights and activations in BF16; LRN in FP32")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="INT8 with quantise/dequantise pairs; LRN in FP32")] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="FP8 (E4M3) with quantise/dequantise pairs; the rest FP16")
    ] = False,
    int4_fc: Annotated[
        bool, typer.Option("--int4-fc", help="Weights of fc6 to fc8 in INT4, everything else in FP16")
    ] = False,
    int8_int4_fc: Annotated[
        bool,
        typer.Option("--int8-int4-fc", help="For processors: convolutions in INT8, weights of fc6 to fc8 in INT4"),
    ] = False,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="With --int8 auto: points of top-1 accuracy that may be lost")
    ] = 0.5,
    search_images: Annotated[
        str | None,
        typer.Option("--search-images", help="With --int8 auto: images that decide [256 of the training data]"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Where ONNX and OpenVINO files shall run: cpu-avx512-vnni, cpu-avx2, cpu-arm64, cuda or tensorrt "
            "[this machine's processor]",
        ),
    ] = None,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="The format and precision that measured best for the target")
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
    method: Annotated[str, typer.Option("--method", help="entropy, minmax, percentile or mse")] = "entropy",
    equalise: Annotated[
        bool, typer.Option("--equalise", help="Before INT8, bring channels to like ranges: docs/quantization.md")
    ] = False,
    correct_bias: Annotated[
        bool, typer.Option("--correct-bias", help="Take the mean error of INT8 and INT4 layers off their biases")
    ] = False,
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
    artifact: Annotated[
        Path | None,
        typer.Option("--artifact", help="A proved artifact to serve [the ONNX file, exported]", rich_help_panel=TRITON),
    ] = None,
    repository: Annotated[
        Path, typer.Option("--repository", help="Folder of the models", rich_help_panel=TRITON)
    ] = Path("triton"),
    model_name: Annotated[
        str | None, typer.Option("--model-name", help="The model's name [the artifact's]", rich_help_panel=TRITON)
    ] = None,
    instances: Annotated[
        int, typer.Option("--instances", help="Copies that answer side by side", rich_help_panel=TRITON)
    ] = 1,
    instance_kind: Annotated[
        str, typer.Option("--instance-kind", help="cpu, gpu, or auto: the GPU for engines", rich_help_panel=TRITON)
    ] = "auto",
    queue_delay: Annotated[
        int,
        typer.Option(
            "--queue-delay", help="How long a request may wait for others, microseconds", rich_help_panel=TRITON
        ),
    ] = 0,
    keep_versions: Annotated[
        int, typer.Option("--keep-versions", help="Newest versions that are served", rich_help_panel=TRITON)
    ] = 1,
    class_list: ClassListOption = None,
    on_bad_image: BadImageOption = "fail",
    threads: ThreadsOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint in another format, and prove it gives the same answers."""
    from alexnet_edge.cli.show import base as console
    from alexnet_edge.cli.show.export import show_exports
    from alexnet_edge.export.engines.options import EngineOptions
    from alexnet_edge.export.exporter import Outcome, require_outcomes
    from alexnet_edge.export.request import CalibrationOptions, CorrectionOptions, ExportRequest, SearchOptions
    from alexnet_edge.export.run import export_all
    from alexnet_edge.export.triton import TritonOptions

    if how not in (None, "auto"):
        raise UserError(
            "export takes one word, `auto`, with --int8", value=how, fix="write --int8 auto, or leave it out"
        )
    request = ExportRequest(
        format=format,  # type: ignore[arg-type]  # the request checks every choice
        fp16=fp16,
        bf16=bf16,
        int8=int8,
        auto=how == "auto",
        fp8=fp8,
        int4_fc=int4_fc,
        int8_int4_fc=int8_int4_fc,
        search=SearchOptions(max_drop=max_drop, search_images=search_images),
        target=target,  # type: ignore[arg-type]
        recommended=recommended,
        checkpoint=checkpoint,
        onnx=onnx,
        out=out,
        images=images,
        limit=limit,
        class_list=class_list,
        on_bad_image=on_bad_image,  # type: ignore[arg-type]
        calibration=CalibrationOptions(
            calibration=calibration,
            calibration_images=calibration_images,
            method=method,  # type: ignore[arg-type]
            calibration_table=calibration_table,
            table_for=table_for,
        ),
        corrections=CorrectionOptions(equalise=equalise, correct_bias=correct_bias),
        runtime=runtime,  # type: ignore[arg-type]
        engine=EngineOptions(
            min_batch=min_batch,
            opt_batch=opt_batch,
            max_batch=max_batch,
            compute_capability=tuple(compute_capability or ()),
            workspace=workspace,
            pool=tuple(pool or ()),
            memory_cap=memory_cap,
            optimization_level=optimization_level,
            timing_cache=timing_cache,
            timing_cache_mode=timing_cache_mode,  # type: ignore[arg-type]
            tf32=tf32,
            sparsity=sparsity,
            dla_core=dla_core,
            gpu_fallback=gpu_fallback,
            calibrator=calibrator,  # type: ignore[arg-type]
            version_compatible=version_compatible,
            hardware_compatibility=hardware_compatibility,  # type: ignore[arg-type]
            refit=refit,
            stripped=stripped,
            weight_streaming=weight_streaming,
            allow_fallback=allow_fallback,
        ),
        triton=TritonOptions(
            artifact=artifact,
            repository=repository,
            model_name=model_name,
            instances=instances,
            instance_kind=instance_kind,  # type: ignore[arg-type]
            queue_delay=queue_delay,
            keep_versions=keep_versions,
        ),
        threads=threads,
        runs=runs,
    )
    if request.triton.artifact is not None:
        _serve(request.triton.artifact, request, as_json)
        return
    outcomes: list[Outcome] = []
    with console.reporter(quiet) as reporter:
        try:
            for outcome in export_all(
                request, search=_search(request, as_json) if request.auto else None, reporter=reporter
            ):
                outcomes.append(outcome)
        finally:  # what was written before a mistake was noticed is shown all the same
            if outcomes and as_json and format != "triton":
                print_json([outcome.to_json() for outcome in outcomes])
            elif outcomes and not as_json:
                show_exports(outcomes)
    require_outcomes(outcomes, everything=format == "all" and not recommended)
    if format == "triton":
        assert outcomes[0].artifact is not None, "require_outcomes raises what kept it from being written"
        _serve(outcomes[0].artifact.path, request, as_json)


def _search(request: ExportRequest, as_json: bool) -> Callable[[Exporter, Format], SearchResult]:
    """What finds the plan of `--int8 auto`, and shows it."""
    from alexnet_edge.bench.search import SearchSettings, search_images, search_plan
    from alexnet_edge.cli.show.export import show_search

    settings = SearchSettings(max_drop=request.search.max_drop / 100)

    def search(exporter: Exporter, format: Format) -> SearchResult:
        images = search_images(exporter, request.search.search_images, request.class_list)
        result = search_plan(exporter, format, images, settings)
        show_search(result, as_json)
        return result

    return search


def _serve(path: Path, request: ExportRequest, as_json: bool) -> None:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.export import show_triton_model
    from alexnet_edge.export.triton import write_triton_model

    model = write_triton_model(load_artifact(path), request.triton, request.engine.max_batch)
    if as_json:
        print_json(model.to_json())
    else:
        show_triton_model(model)


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
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect", help="Name the first layer out of tolerance, and what to do about it (ONNX, OpenVINO)"
        ),
    ] = False,
    preprocessing: Annotated[
        bool,
        typer.Option("--preprocessing", help="Compare decoding and resizing by PIL, OpenCV and torchvision instead"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove again that artifacts give their checkpoint's answers, on any images."""
    bad = choice("--on-bad-image", on_bad_image, ("skip", "fail"))
    if bisect and preprocessing:
        raise UserError("a check answers one question", value="--bisect --preprocessing", fix="give one of them")
    if bisect:
        if chosen_device(device) == "cuda":
            raise UserError("a bisect looks at ONNX and OpenVINO files on the processor", fix="leave --device out")
        _bisect(artifacts or artifacts_in(folder), checkpoint, images, limit, class_list, threads, bad, as_json)
        return
    if preprocessing:
        _compare_preprocessing(artifacts or (), checkpoint, images, limit, class_list, threads, bad, as_json)
        return
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.proof import show_parity
    from alexnet_edge.proof.parity import ParityReport, check_parity
    from alexnet_edge.sessions import runnable

    reports: list[tuple[Path, ParityReport | str]] = []
    for path in artifacts or artifacts_in(folder):
        artifact = load_artifact(path)
        reason = runnable(artifact)
        if reason is not None:
            reports.append((path, reason))
            continue
        reference = _source_of(artifact, checkpoint)
        report = check_parity(
            artifact,
            reference,
            _images_for(reference, images, limit, class_list),
            device=chosen_device(device),
            threads=threads,
            on_bad_image=bad,
        )
        reports.append((path, report))
    if as_json:
        print_json(
            {
                str(path): {"verdict": "not run", "reasons": [entry]} if isinstance(entry, str) else entry.to_json()
                for path, entry in reports
            }
        )
    else:
        show_parity(reports)
    failed = [path for path, entry in reports if not isinstance(entry, str) and not entry.passed]
    if failed:
        raise GateError(f"{len(failed)} of {len(reports)} artifacts do not give the checkpoint's answers")
    if all(isinstance(entry, str) for _, entry in reports):
        raise UserError(str(reports[0][1]), value=reports[0][0], fix="check it on a machine that can run it")


def _source_of(artifact: Artifact, checkpoint: Path | None) -> Checkpoint:
    """The checkpoint that an artifact was exported from, or the one named instead."""
    reference: Checkpoint = checkpoint_or_onnx(checkpoint or Path(artifact.manifest.checkpoint))
    if checkpoint is None and reference.sha256 != artifact.manifest.checkpoint_sha256:
        raise UserError(
            "the checkpoint is not the one the artifact was exported from",
            value=reference.path,
            fix="name the right one with --checkpoint, or export again",
        )
    manifest = artifact.manifest
    if (reference.info.architecture, reference.info.classes) != (manifest.architecture, manifest.classes):
        raise UserError(
            f"the checkpoint is of another network than {artifact.path} "
            f"({manifest.architecture}, {len(manifest.classes)} classes)",
            value=reference.path,
            fix="name the checkpoint that the artifact was exported from",
        )
    return reference


def _images_for(reference: Checkpoint, images: str | None, limit: int | None, class_list: Path | None) -> ImageSet:
    """The images named, or the checkpoint's validation images."""
    from alexnet_edge.images.datasets import open_images
    from alexnet_edge.proof.recorded import validation_images

    if images is not None:
        found = open_images(images, classes=reference.info.classes, class_list=class_list)
    else:
        found = validation_images(reference)
    return found if limit is None else found.spread(limit)


def _bisect(
    paths: Sequence[Path],
    checkpoint: Path | None,
    images: str | None,
    limit: int | None,
    class_list: Path | None,
    threads: int | None,
    on_bad_image: OnBadImage,
    as_json: bool,
) -> None:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.proof import show_bisections
    from alexnet_edge.proof.bisect import IMAGES, Bisection, bisect
    from alexnet_edge.proof.observe import OBSERVABLE
    from alexnet_edge.sessions import runnable

    found: list[tuple[Path, Bisection | str]] = []
    for path in paths:
        artifact = load_artifact(path)
        reason = runnable(artifact)
        if reason is None and artifact.manifest.format not in OBSERVABLE and len(paths) > 1:
            reason = f"{artifact.manifest.format} files have no tensors to look at by name"
        if reason is not None:
            found.append((path, reason))
            continue
        reference = _source_of(artifact, checkpoint)
        chosen = _images_for(reference, images, None, class_list)
        limit_here = IMAGES if limit is None else limit
        bisection = bisect(artifact, reference, chosen, limit=limit_here, threads=threads, on_bad_image=on_bad_image)
        found.append((path, bisection))
    if as_json:
        print_json(
            {
                str(path): {"passed": None, "reason": entry} if isinstance(entry, str) else entry.to_json()
                for path, entry in found
            }
        )
    else:
        show_bisections(found)
    failed = [(path, entry) for path, entry in found if not isinstance(entry, str) and not entry.passed]
    if failed:
        path, entry = failed[0]
        assert entry.first is not None, "it has not passed"
        raise GateError(f"{path}: {entry.first.layer} is the first layer out of tolerance ({entry.first.name})")
    if all(isinstance(entry, str) for _, entry in found):
        raise UserError(str(found[0][1]), value=found[0][0], fix="look at the ONNX or OpenVINO file instead")


def _compare_preprocessing(
    paths: Sequence[Path],
    checkpoint: Path | None,
    images: str | None,
    limit: int | None,
    class_list: Path | None,
    threads: int | None,
    on_bad_image: OnBadImage,
    as_json: bool,
) -> None:
    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.proof import show_preprocessing
    from alexnet_edge.network.load import newest_checkpoint
    from alexnet_edge.proof.decoders import IMAGES, compare_preprocessing

    if len(paths) > 1:
        raise UserError("preprocessing is compared for one artifact", value=len(paths), fix="name one, or none")
    artifact = load_artifact(paths[0]) if paths else None
    if artifact is not None:
        reference = _source_of(artifact, checkpoint)
    else:
        reference = checkpoint_or_onnx(checkpoint or newest_checkpoint(Path("runs")))
    report = compare_preprocessing(
        reference,
        _images_for(reference, images, None, class_list),
        artifact=artifact,
        threads=threads,
        on_bad_image=on_bad_image,
        limit=IMAGES if limit is None else limit,
    )
    if as_json:
        print_json(records.to_builtins(report))
    else:
        show_preprocessing(report)


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

    from alexnet_edge.artifact import load_artifact
    from alexnet_edge.cli.show.export import show_network
    from alexnet_edge.network.layers import DEFAULT_ARCHITECTURE, architecture, layer_costs
    from alexnet_edge.network.load import load_checkpoint

    facts: dict[str, Any] = {}
    name, number = arch or DEFAULT_ARCHITECTURE, classes or 1000
    if file is not None:
        if arch is not None or classes is not None:
            raise UserError(
                "the file says its own architecture and classes", value=file, fix="leave --arch and --classes out"
            )
        if file.suffix in {".safetensors", ".pt", ".pth"}:
            checkpoint = load_checkpoint(file)
            facts = {"file": str(file), "sha256": checkpoint.sha256, **records.to_builtins(checkpoint.info)}
        else:
            facts = {"file": str(file), **records.to_builtins(load_artifact(file).manifest)}
        name, number = facts["architecture"], len(facts["classes"])
    elif classes is not None and classes < 1:
        raise UserError("a network needs at least one class", value=classes, fix="give 1 or more")
    network = architecture(name, number)
    costs = layer_costs(network, batch=batch)
    if as_json:
        print_json({**facts, "architecture": name, "batch": batch, "costs": [asdict(cost) for cost in costs]})
    else:
        show_network(network, costs, batch, facts)


def _lint(file: Path | None, target: str, as_json: bool) -> None:
    from dataclasses import asdict

    from alexnet_edge.cli.show.export import show_lint
    from alexnet_edge.export.lint import TARGETS, lint

    choice("--for", target, tuple(TARGETS))
    if file is None:
        raise UserError("no file to lint", fix=f"alexnet-edge inspect --for {target} MODEL.onnx")
    report = lint(file, target)
    if as_json:
        print_json({"file": str(file), "target": target, **asdict(report)})
    else:
        show_lint(file, target, report)
    errors = sum(finding.severity == "error" for finding in report.findings)
    if errors:
        raise GateError(f"{file}: {errors} {'error' if errors == 1 else 'errors'} for {target}")
