"""A TensorRT engine file: loaded, or refused with the reason and the rebuild command."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alexnet_edge.artifact import Artifact, Manifest, TensorSpec
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError
from alexnet_edge.files import sha256_file
from alexnet_edge.images.preprocess import PRESETS
from alexnet_edge.nvidia import cuda
from alexnet_edge.nvidia.libraries import Library, library_calls, load_library, make_logger, platform_name

LIBRARIES: dict[str, Library] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
"""The library that runs an engine, by the runtime its manifest names."""
NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""How each is called in messages."""

RTX_MAGIC = b"vtrt"
"""First bytes of an engine of TensorRT-RTX 1.7; those of TensorRT are others."""

TRUSTED_SIZES = {227: "imagenet-227", 224: "imagenet-224"}
"""Preprocessing assumed of an engine without manifest, by the height and width of its input."""


def refusal(artifact: Artifact, *, library_version: str, sm: str, platform: str) -> str | None:
    """Why this machine cannot run the engine, by its manifest alone; None where nothing speaks against it.

    Args:
        artifact: the engine; what its manifest does not say is not checked.
        library_version: of the library on this machine, as `10.3.0`.
        sm: compute capability of this machine's GPU, as `sm87`.
        platform: as `linux-aarch64`.
    """
    manifest, build = artifact.manifest, artifact.manifest.build
    if build.get("stripped"):
        return "the engine was built without its weights"
    if build.get("platform") not in (None, platform):
        return f"the engine was built on {build['platform']}, this machine is {platform}"
    version = build.get("version")
    if version and _numbers(str(version)) != _numbers(library_version):
        name = NAMES.get(manifest.runtime, manifest.runtime)
        difference = f"the engine was built with {name} {version}, this machine has {library_version}"
        if build.get("version_compatible"):
            return f"{difference}, and it needs the lean runtime of its own version, which this package does not load"
        return difference
    built_for = _other_gpu(build, sm)
    return built_for and f"the engine {built_for}, the GPU of this machine is {sm}"


def _numbers(version: str) -> tuple[int, ...]:
    """Major, minor and patch: what an engine is tied to, and all that `trtexec` tells."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _other_gpu(build: Mapping[str, Any], sm: str) -> str | None:
    """The GPU that the engine needs, where `sm` is another."""
    targets = build.get("compute_capabilities")
    if isinstance(targets, list | tuple) and targets:
        return None if sm in targets else f"is for {', '.join(map(str, targets))}"
    built_on = build.get("sm")
    if not built_on or built_on == sm:
        return None
    if build.get("hardware_compatibility") == "ampere-plus":
        digits = sm.removeprefix("sm")
        return None if digits.isdecimal() and int(digits) >= 80 else "is for sm80 and newer"
    return f"was built for {built_on}"


def not_runnable(artifact: Artifact) -> str | None:
    """Why this machine cannot run the engine, or None where it has the library and the GPU the engine was built for."""
    manifest = artifact.manifest
    try:
        library = load_library(LIBRARIES[library_of(artifact)])
        gpu = cuda.require_gpu()
    except UserError as error:
        return f"a {manifest.runtime} engine needs the NVIDIA GPU it was built for ({error.problem})"
    return refusal(artifact, library_version=str(library.__version__), sm=gpu.sm, platform=platform_name())


def library_of(artifact: Artifact) -> str:
    """The runtime that the manifest names.

    Raises:
        ArtifactError: when no library runs its engines.
    """
    runtime = artifact.manifest.runtime
    if runtime not in LIBRARIES:
        fix = f"it must be one of {', '.join(LIBRARIES)}"
        raise ArtifactError(f"no library runs engines of {runtime}", value=artifact.path, fix=fix)
    return runtime


def rebuild_advice(manifest: Manifest) -> str:
    trusted = manifest.build.get("trusted")
    return "get one that was built with this library, for this GPU" if trusted else "rebuild it here"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """An engine, and what must live as long."""

    engine: Any
    runtime: Any
    logger: Any
    """The library does not own it."""


def deserialise(trt: Any, artifact: Artifact, log: list[str]) -> _Loaded:
    """Load the engine. Code that it may carry is never allowed to run: `engine_host_code_allowed` stays off.

    Raises:
        MissingComponentError: when the library cannot use the driver.
        ArtifactError: when the library refuses the engine, with its reason.
    """
    manifest = artifact.manifest
    name = NAMES[manifest.runtime]
    logger = make_logger(trt, [], log=log)
    try:
        runtime = trt.Runtime(logger)
    except (RuntimeError, TypeError) as error:  # the bindings' answer when there is nothing to return
        raise MissingComponentError(
            f"{name} cannot use the GPU ({refusal_reason(log, str(error))})", fix="see `alexnet-edge doctor`"
        ) from error
    core = manifest.build.get("dla_core")
    if core is not None:
        if core >= runtime.num_DLA_cores:
            raise ArtifactError(
                f"the engine is for DLA core {core}, this machine and {name} {trt.__version__} have "
                f"{runtime.num_DLA_cores}",
                value=artifact.path,
                fix="export it again without --dla-core",
            )
        runtime.DLA_core = core
    plan = artifact.path.read_bytes()
    invalid = _invalid(trt, runtime, plan)
    engine = None if invalid else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"{name} {trt.__version__} cannot load the engine ({invalid or refusal_reason(log)})",
            value=artifact.path,
            fix=rebuild_advice(manifest),
            manifest=manifest,
        )
    return _Loaded(engine=engine, runtime=runtime, logger=logger)


def _invalid(trt: Any, runtime: Any, plan: bytes) -> str | None:
    """What TensorRT-RTX finds wrong with an engine before loading it; TensorRT itself has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return None
    members = trt.EngineInvalidityDiagnostics.__members__.items()
    faults = [name.lower().replace("_", " ") for name, bit in members if int(diagnostics) & int(bit)]
    return ", ".join(faults) or None


def refusal_reason(log: list[str], otherwise: str = "") -> str:
    """Why the library failed: its first logged error, as the others follow from it. The log is then empty."""
    errors = [line[4:] for line in log if line.startswith(("[E]", "[F]"))]
    log.clear()
    return " ".join((errors[0] if errors else otherwise or "it gives no reason").split())


def require_io(trt: Any, engine: Any, artifact: Artifact) -> None:
    """The engine takes and gives what the manifest says.

    Raises:
        ArtifactError: when it does not.
    """
    manifest = artifact.manifest
    built, recorded = _described(*_io(trt, engine, artifact.path)), _described(manifest.input, manifest.output)
    if built != recorded:
        raise ArtifactError(
            f"the engine takes {built}, its manifest says {recorded}",
            value=artifact.path,
            fix=rebuild_advice(manifest),
            manifest=manifest,
        )


def _described(x_spec: TensorSpec, y_spec: TensorSpec) -> str:
    x_text, y_text = (f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in (x_spec, y_spec))
    return f"{x_spec.min_batch} to {x_spec.max_batch} of {x_text} to {y_text}"


def _io(trt: Any, engine: Any, path: Path) -> tuple[TensorSpec, TensorSpec]:
    """Input and output as the engine itself describes them.

    Raises:
        ArtifactError: when it is not one image batch in, one float32 row per image out.
    """

    def wrong(problem: str) -> ArtifactError:
        return ArtifactError(problem, value=path, fix="this package runs engines that `alexnet-edge export` wrote")

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    modes = (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
    inputs, outputs = ([name for name in names if engine.get_tensor_mode(name) == mode] for mode in modes)
    if len(inputs) != 1 or len(outputs) != 1:
        raise wrong(f"the engine has {len(inputs)} inputs and {len(outputs)} outputs, not one of each")
    for name in names:
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise wrong(f"the engine's tensor {name} is not float32")
    if engine.num_optimization_profiles != 1:
        raise wrong(f"the engine has {engine.num_optimization_profiles} optimisation profiles, not one")
    x_shape = tuple(int(extent) for extent in engine.get_tensor_shape(inputs[0]))
    y_shape = tuple(int(extent) for extent in engine.get_tensor_shape(outputs[0]))
    if len(x_shape) != 4 or len(y_shape) != 2 or min(*x_shape[1:], y_shape[1]) < 1:
        raise wrong(f"the engine's shapes are {x_shape} and {y_shape}, not (N, 3, S, S) and (N, K)")
    smallest = largest = x_shape[0]
    if smallest < 0:
        smallest, _, largest = (int(shape[0]) for shape in engine.get_tensor_profile_shape(inputs[0], 0))
    x_spec = TensorSpec(name=inputs[0], dtype="float32", shape=x_shape[1:], min_batch=smallest, max_batch=largest)
    return x_spec, replace(x_spec, name=outputs[0], shape=y_shape[1:])


def trusted_engine(path: Path) -> Artifact:
    """An engine without manifest as an artifact, from its own input and output.

    It is loaded to be asked, which is why the caller must trust it. Its classes are numbered; the preprocessing is the
    usual one of its input size; the precision is not known, and stands as `fp32`, whose tolerance is the strictest.

    Raises:
        MissingComponentError: when the library that the file's first bytes name, or the GPU, is missing.
        ArtifactError: when the library refuses it, or it is not one image batch in, one row per image out.
    """
    try:
        with path.open("rb") as stream:
            runtime = "tensorrt-rtx" if stream.read(len(RTX_MAGIC)) == RTX_MAGIC else "tensorrt"
        digest, size = sha256_file(path), path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"cannot be read ({error.strerror})", value=path, fix="check the path") from error
    library: Any = load_library(LIBRARIES[runtime])
    gpu = cuda.require_gpu()
    unknown = TensorSpec(name="", dtype="float32", shape=())
    manifest = Manifest(
        format="trt",
        runtime=runtime,
        precision="fp32",
        architecture="unknown",
        classes=(),
        head="logits",
        preprocessing=PRESETS[TRUSTED_SIZES[227]],
        input=unknown,
        output=unknown,
        checkpoint="",
        checkpoint_sha256="",
        build={"trusted": True, "version": str(library.__version__), "sm": gpu.sm, "platform": platform_name()},
        sha256=digest,
        bytes=size,
    )
    with library_calls():
        x_spec, y_spec = _io_of(library, Artifact(path=path, manifest=manifest))
    channels, height, width = x_spec.shape
    if channels != 3 or height != width or height not in TRUSTED_SIZES:
        raise ArtifactError(
            f"the engine takes {channels}x{height}x{width}, and without a manifest its preprocessing is not known",
            value=path,
            fix="export the engine with `alexnet-edge export`, which writes a manifest",
        )
    manifest = replace(
        manifest,
        classes=tuple(str(index) for index in range(y_spec.shape[0])),
        head="probabilities" if y_spec.name == "probabilities" else "logits",
        preprocessing=PRESETS[TRUSTED_SIZES[height]],
        input=x_spec,
        output=y_spec,
    )
    return Artifact(path=path, manifest=manifest)


def _io_of(trt: Any, artifact: Artifact) -> tuple[TensorSpec, TensorSpec]:
    """In a function of its own, so that nothing of the library's outlives it."""
    loaded = deserialise(trt, artifact, [])
    return _io(trt, loaded.engine, artifact.path)
