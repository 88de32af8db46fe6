"""What a version of TensorRT can do, what it is refused for, and which graph it is fed.

A feature is looked for in the library itself. `PRESENT` says in which releases it is expected, for builders that cannot be
asked (`trtexec`) and for the table in the documentation.

Source: the Python API of TensorRT 8.6.1 to 11.4.0 and of TensorRT-RTX 1.7.1, read from their bindings; TensorRT
documentation, "Strongly typed networks", "Working with DLA", "Hardware compatibility"; TensorRT-RTX documentation, "Porting
guide".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from alexnet_edge.artifact import Precision
from alexnet_edge.environment import l4t_release
from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.export.engines.options import EngineOptions, require_memory
from alexnet_edge.nvidia.cuda import gpu_info
from alexnet_edge.nvidia.libraries import NAMES, Runtime

Typing = Literal["strong", "weak"]
"""`strong`: every tensor has the type the graph gives it. `weak`: the builder chooses among the types it is allowed."""

FIRST_STRONG = "10.12"
"""From here on weak typing, with all its flags, is deprecated. The bindings do not tell: only the version does."""

PRESENT: dict[str, tuple[str, str | None]] = {
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ("8.6", "11.0"),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": ("10.0", None),
    "BuilderFlag.FP16": ("8.6", "11.0"),
    "BuilderFlag.INT8": ("8.6", "11.0"),
    "BuilderFlag.FP8": ("8.6", "11.0"),
    "BuilderFlag.BF16": ("10.0", "11.0"),
    "BuilderFlag.INT4": ("10.3", "11.0"),
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": ("8.6", "11.0"),
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": ("8.6", "11.0"),
    "BuilderFlag.TF32": ("8.6", None),
    "BuilderFlag.SPARSE_WEIGHTS": ("8.6", None),
    "BuilderFlag.GPU_FALLBACK": ("8.6", None),
    "BuilderFlag.REFIT": ("8.6", None),
    "BuilderFlag.VERSION_COMPATIBLE": ("8.6", None),
    "BuilderFlag.EXCLUDE_LEAN_RUNTIME": ("8.6", None),
    "BuilderFlag.STRIP_PLAN": ("10.0", None),
    "BuilderFlag.WEIGHT_STREAMING": ("10.0", None),
    "BuilderFlag.ERROR_ON_TIMING_CACHE_MISS": ("10.0", None),
    "MemoryPoolType.WORKSPACE": ("8.6", None),
    "MemoryPoolType.DLA_MANAGED_SRAM": ("8.6", None),
    "MemoryPoolType.DLA_LOCAL_DRAM": ("8.6", None),
    "MemoryPoolType.DLA_GLOBAL_DRAM": ("8.6", None),
    "MemoryPoolType.TACTIC_DRAM": ("8.6", None),
    "MemoryPoolType.TACTIC_SHARED_MEMORY": ("10.0", None),
    "HardwareCompatibilityLevel.AMPERE_PLUS": ("8.6", None),
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": ("10.9", None),
    "IInt8EntropyCalibrator2": ("8.6", "11.0"),
    "IInt8MinMaxCalibrator": ("8.6", "11.0"),
    "ILayer.precision": ("8.6", "11.0"),
    "IBuilderConfig.set_calibration_profile": ("8.6", "11.0"),
    "IProgressMonitor": ("10.0", None),
    "IBuilderConfig.set_compute_capability": ("RTX", None),
}
"""Names in the Python API that the builder's options need: the first TensorRT release with each, and the first without."""

WEAK_FLAGS: dict[Precision, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("FP16",),
    "bf16": ("BF16",),
    "int8": ("INT8",),
    "fp8": ("FP8", "FP16"),
    "int4-fc": ("INT4", "FP16"),
}
"""What a weakly typed builder is allowed besides FP32; FP8 and INT4 graphs compute the rest in FP16."""
FIRST_SM: dict[Precision, int] = {"bf16": 80, "fp8": 89}
"""The oldest GPU architecture with the type; the other precisions run on all that TensorRT supports."""
FIRST_SM_RTX: dict[Precision, int] = {**FIRST_SM, "fp32": 80, "int8": 80, "int4-fc": 80}
"""The same for TensorRT-RTX, which multiplies matrices on Turing (sm75) in FP16 only."""
FIRST_PORTABLE_SM = 80
"""TensorRT-RTX's engines run on this architecture and later ones unless others are asked for."""
DLA_ENDED, DLA_AGAIN = "10.8", "11.4.1"
"""Releases without DLA: from the first of these to before the second, whose only DLA is Jetson AGX Orin's."""
FIRST_FP8 = "10.0"
"""8.6 has the flag, but its ONNX parser ends at operator set 17, and FP8 begins with 19."""
LEVELS = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
"""Members of `HardwareCompatibilityLevel`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Switch:
    """An option of the builder that is a flag of the library."""

    option: str
    """The field of `EngineOptions`."""
    about: str
    """What it gives, for messages."""
    flags: tuple[str, ...]
    """Members of `BuilderFlag`."""
    trtexec: tuple[str, ...]
    """Arguments of `trtexec`."""


SWITCHES = (
    Switch(option="sparsity", about="sparse kernels", flags=("SPARSE_WEIGHTS",), trtexec=("--sparsity=enable",)),
    Switch(option="gpu_fallback", about="GPU fallback", flags=("GPU_FALLBACK",), trtexec=("--allowGPUFallback",)),
    Switch(
        option="version_compatible",
        about="version-compatible engines",
        flags=("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"),
        trtexec=("--versionCompatible", "--excludeLeanRuntime"),
    ),
    Switch(option="refit", about="refitting", flags=("REFIT",), trtexec=("--refit",)),
    Switch(option="stripped", about="stripped plans", flags=("STRIP_PLAN",), trtexec=("--stripWeights",)),
    Switch(
        option="weight_streaming",
        about="weight streaming",
        flags=("WEIGHT_STREAMING",),
        trtexec=("--allowWeightStreaming",),
    ),
)
"""The options that only set a flag; their presence in TensorRT's versions is in `PRESENT`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What one installed builder has."""

    version: str
    typing: Typing
    members: frozenset[str]
    """Those of `PRESENT` that it has."""
    compute_capabilities: tuple[str, ...] = ()
    """GPU architectures that it builds for wherever it runs, as `sm89`; empty where it builds for its own GPU."""

    @classmethod
    def detect(cls, trt: ModuleType) -> Features:
        """Look into an imported library, `tensorrt` or `tensorrt_rtx`."""
        version = str(trt.__version__)
        members = frozenset(name for name in PRESENT if _has(trt, name))
        listed = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
        return cls(
            version=version,
            typing=_typing(version, members),
            members=members,
            compute_capabilities=tuple(name.lower() for name in listed if name.startswith("SM")),
        )

    @classmethod
    def of_version(cls, version: str) -> Features:
        """What TensorRT `version` (`10.3.0`) is expected to have: for a builder that cannot be asked."""
        members = frozenset(
            name
            for name, (first, gone) in PRESENT.items()
            if first != "RTX" and at_least(version, first) and not (gone and at_least(version, gone))
        )
        return cls(version=version, typing=_typing(version, members), members=members)

    def has(self, *names: str) -> bool:
        """Whether all of `names` of `PRESENT` are there."""
        return all(name in self.members for name in names)

    def network_flags(self, trt: ModuleType) -> int:
        """What `create_network` is called with: explicit batches, and strong typing where that is the way to build."""
        names = ("EXPLICIT_BATCH", "STRONGLY_TYPED") if self.typing == "strong" else ("EXPLICIT_BATCH",)
        kinds = trt.NetworkDefinitionCreationFlag
        return sum(
            1 << int(getattr(kinds, name)) for name in names if self.has(f"NetworkDefinitionCreationFlag.{name}")
        )


def _has(trt: ModuleType, name: str) -> bool:
    found: Any = trt
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            return False
    return True


def _typing(version: str, members: frozenset[str]) -> Typing:
    if "BuilderFlag.FP16" not in members:  # TensorRT 11 and TensorRT-RTX know nothing else
        return "strong"
    return "strong" if at_least(version, FIRST_STRONG) else "weak"


def at_least(version: str, first: str) -> bool:
    """Whether `version` (`10.13.3.9`, `11.1.0.post1`) is `first` (`10.12`) or later."""
    return _numbers(version) >= _numbers(first)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def graph_precision(precision: Precision, features: Features, options: EngineOptions) -> Precision:
    """The precision of the ONNX graph to feed the builder for an engine in `precision`.

    Strong typing takes its types from the graph. A weakly typed builder lowers an FP32 graph itself to FP16 or BF16, and
    to INT8 with a calibrator; quantised graphs carry their scales with them.
    """
    if features.typing == "strong":
        return precision
    if options.calibrator is not None or precision in ("fp16", "bf16"):
        return "fp32"
    return precision


def capabilities(options: EngineOptions, precision: Precision, features: Features) -> tuple[str, ...]:
    """The GPU architectures to build for: those asked for, or those that have the precision's type.

    Returns:
        Names as `sm89`; empty for the builder's own choice: the GPU it runs on, or, with TensorRT-RTX, a portable engine
        for sm80 and later.
    """
    first = FIRST_SM.get(precision, 0)
    if options.compute_capability or first <= FIRST_PORTABLE_SM:
        return options.compute_capability
    return tuple(name for name in features.compute_capabilities if int(name[2:]) >= first)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """An engine that this builder and this machine can make: what `check` has let through, and the builders trust."""

    runtime: Runtime
    features: Features
    precision: Precision
    options: EngineOptions
    warnings: tuple[str, ...] = ()
    """What the builder will ignore, or was chosen for the caller: one sentence each."""

    @property
    def strong(self) -> bool:
        return self.features.typing == "strong"

    @property
    def graph(self) -> Precision:
        """The precision of the ONNX graph to build it from."""
        return graph_precision(self.precision, self.features, self.options)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The GPU architectures to build for; empty for the builder's own choice."""
        return capabilities(self.options, self.precision, self.features)


def check(options: EngineOptions, precision: Precision, features: Features, runtime: Runtime) -> EngineSpec:
    """Refuse what this builder, or this machine, cannot do; called before any graph is built.

    Raises:
        UserError: for an option or a precision that it lacks, and for memory that is not there.
        MissingComponentError: for what needs a GPU where there is none.
    """
    warnings = _check_version(options, precision, features, runtime)
    _check_machine(options, precision, runtime)
    return EngineSpec(runtime=runtime, features=features, precision=precision, options=options, warnings=warnings)


def _check_version(
    options: EngineOptions, precision: Precision, features: Features, runtime: Runtime
) -> tuple[str, ...]:
    """The part of `check` that depends on the builder only."""
    name = f"{NAMES[runtime]} {features.version}"
    if runtime == "trtexec" and options.calibrator in ("entropy2", "minmax"):
        raise UserError(
            "trtexec calibrates on random data",
            value=f"--calibrator {options.calibrator}",
            fix="choose --calibrator table",
        )
    _check_precision(options, precision, features, name)
    _check_capabilities(options, precision, features, name)
    _check_dla(options, precision, features, runtime, name)
    _check_members(options, features, name)
    if options.weight_streaming and features.typing == "weak":
        raise UserError(
            f"weight streaming needs a strongly typed network, and {name} is built weakly typed",
            fix=f"leave it out, or use TensorRT {FIRST_STRONG} or later",
        )
    warnings = []
    if options.tf32 and precision != "fp32":
        warnings.append(f"TF32 is for layers in FP32: with {precision} there is none to use it")
    if runtime != "rtx":
        return tuple(warnings)
    if options.timing_cache is not None:
        if options.timing_cache_mode == "require":
            raise UserError(f"{name} has no timing cache, so it cannot require one", fix="leave --timing-cache out")
        warnings.append(f"{name} has no timing cache: {options.timing_cache} is neither read nor written")
    if options.hardware_compatibility != "none":
        warnings.append(
            f"{name} ignores hardware compatibility: its engines are made for each GPU when they are loaded"
        )
    chosen = capabilities(options, precision, features)
    if chosen and not options.compute_capability:
        warnings.append(f"{precision} runs on no older GPU: built for {', '.join(chosen)} only")
    return tuple(warnings)


def _check_precision(options: EngineOptions, precision: Precision, features: Features, name: str) -> None:
    if options.calibrator is not None:
        if precision != "int8":
            raise UserError("a calibrator is for INT8", value=precision, fix="leave it out, or choose --int8")
        method = "IInt8MinMaxCalibrator" if options.calibrator == "minmax" else "IInt8EntropyCalibrator2"
        if features.typing == "strong" or not features.has(method):
            raise UserError(
                f"a calibrator needs weak typing, and {name} is built strongly typed",
                fix="leave it out: INT8 ranges are then in the graph, as Q/DQ pairs",
            )
    if features.typing == "strong":
        return
    missing = [flag for flag in WEAK_FLAGS[precision] if not features.has(f"BuilderFlag.{flag}")]
    if missing or (precision == "fp8" and not at_least(features.version, FIRST_FP8)):
        raise UserError(f"{name} does not build this precision", value=precision, fix="choose fp32, fp16 or int8")


def _check_capabilities(options: EngineOptions, precision: Precision, features: Features, name: str) -> None:
    asked = options.compute_capability
    if asked and not features.compute_capabilities:
        raise UserError(
            f"{name} builds for the GPU it runs on", value=", ".join(asked), fix="leave --compute-capability out"
        )
    for capability in asked:
        if capability not in features.compute_capabilities:
            raise UserError(
                f"{name} does not build for this GPU architecture",
                value=capability,
                fix=f"choose from {', '.join(features.compute_capabilities)}",
            )
        first = FIRST_SM_RTX.get(precision, 0)
        if int(capability[2:]) < first:
            raise UserError(
                f"{precision} needs a GPU architecture from sm{first} on", value=capability, fix="leave that one out"
            )


def _check_dla(options: EngineOptions, precision: Precision, features: Features, runtime: Runtime, name: str) -> None:
    if options.dla_core is None:
        return
    if runtime == "rtx":
        raise UserError(
            f"{name} is for desktop GPUs and would ignore a DLA", value=options.dla_core, fix="use TensorRT on a Jetson"
        )
    if at_least(features.version, DLA_ENDED) and not at_least(features.version, DLA_AGAIN):
        raise UserError(
            f"{name} has no DLA", value=options.dla_core, fix=f"use TensorRT up to 10.7, or {DLA_AGAIN} on AGX Orin"
        )
    if precision not in ("fp16", "int8"):
        raise UserError("a DLA computes in FP16 and INT8 only", value=precision, fix="choose --fp16 or --int8")
    if precision == "int8" and features.typing == "weak" and options.calibrator is None:
        raise UserError(
            f"with {name} a DLA takes its INT8 ranges from a calibrator, not from Q/DQ pairs",
            fix="add --calibrator entropy2, or --calibrator table for the ranges of this package",
        )


def _check_members(options: EngineOptions, features: Features, name: str) -> None:
    needed = {f"MemoryPoolType.{pool_member(pool)}": f"memory pool {pool}" for pool in options.pool_limits()}
    for switch in SWITCHES:
        if getattr(options, switch.option):
            needed |= {f"BuilderFlag.{name}": switch.about for name in switch.flags}
    if options.timing_cache_mode == "require":
        needed["BuilderFlag.ERROR_ON_TIMING_CACHE_MISS"] = "a required timing cache"
    if options.hardware_compatibility != "none":
        level = LEVELS[options.hardware_compatibility]
        needed[f"HardwareCompatibilityLevel.{level}"] = f"hardware compatibility {options.hardware_compatibility}"
    for member, about in needed.items():
        if not features.has(member):
            first = PRESENT[member][0]
            raise UserError(f"{name} lacks {about}", fix=f"leave it out, or use TensorRT {first} or later")


def pool_member(pool: str) -> str:
    """The member of `MemoryPoolType` behind a name of `options.POOLS`: `DLA_LOCAL_DRAM` for `dla-local-dram`."""
    return pool.upper().replace("-", "_")


def _check_machine(options: EngineOptions, precision: Precision, runtime: Runtime) -> None:
    """The part of `check` that depends on this machine."""
    gpu = gpu_info()
    require_memory(options, gpu.memory_bytes if gpu is not None else None)
    if options.hardware_compatibility != "none" and runtime != "rtx" and l4t_release() is not None:
        raise UserError(
            "hardware compatibility does not apply to a Jetson", fix="build the engine on the board it is for"
        )
    if runtime == "rtx":
        if gpu is None and (options.refit or options.stripped):
            raise MissingComponentError(
                "TensorRT-RTX builds refittable and stripped engines only with a GPU", fix="leave the option out here"
            )
    elif gpu is not None and precision in FIRST_SM and int(gpu.sm[2:]) < FIRST_SM[precision]:
        raise UserError(
            f"{precision} needs a GPU architecture from sm{FIRST_SM[precision]} on",
            value=f"{gpu.name} is {gpu.sm}",
            fix="choose --fp16 or --int8",
        )


TABLE_VERSIONS = ("8.6", "10.0", "10.3", "10.8", "10.9", "10.12", "11.0", "11.4.1")
"""TensorRT releases in which something changes, the columns of `support_table`; TensorRT-RTX is the last."""


def support_table() -> Mapping[str, Mapping[str, str]]:
    """Which builder takes which precision and option: `{"--refit": {"8.6": "yes", ..., "RTX": "with a GPU"}}`.

    Not written by hand: each cell is the answer of `check`. A `yes` says that the builder takes the option, not that every
    GPU or board does: a DLA is only on Jetson Xavier and Orin.
    """
    cache = Path("timing.cache")
    rows: dict[str, tuple[Precision, EngineOptions]] = {
        "fp32": ("fp32", EngineOptions()),
        "fp16": ("fp16", EngineOptions()),
        "bf16": ("bf16", EngineOptions()),
        "int8 (Q/DQ)": ("int8", EngineOptions()),
        "int8 (calibrator)": ("int8", EngineOptions(calibrator="entropy2")),
        "fp8": ("fp8", EngineOptions()),
        "int4-fc": ("int4-fc", EngineOptions()),
        "DLA, fp16": ("fp16", EngineOptions(dla_core=0, max_batch=1)),
        "DLA, int8 (Q/DQ)": ("int8", EngineOptions(dla_core=0, max_batch=1)),
        "DLA, int8 (calibrator)": ("int8", EngineOptions(dla_core=0, max_batch=1, calibrator="entropy2")),
        "workspace": ("fp16", EngineOptions(workspace=1)),
        "pool tactic-shared-memory": ("fp16", EngineOptions(pool=("tactic-shared-memory=1",))),
        "optimization level": ("fp16", EngineOptions(optimization_level=3)),
        "timing cache": ("fp16", EngineOptions(timing_cache=cache)),
        "timing cache, require": ("fp16", EngineOptions(timing_cache=cache, timing_cache_mode="require")),
        "sparsity": ("fp16", EngineOptions(sparsity=True)),
        "version compatible": ("fp16", EngineOptions(version_compatible=True)),
        "hardware compatibility ampere-plus": ("fp16", EngineOptions(hardware_compatibility="ampere-plus")),
        "hardware compatibility same-compute-capability": (
            "fp16",
            EngineOptions(hardware_compatibility="same-compute-capability"),
        ),
        "refit": ("fp16", EngineOptions(refit=True)),
        "stripped": ("fp16", EngineOptions(stripped=True)),
        "weight streaming": ("fp16", EngineOptions(weight_streaming=True)),
        "memory cap": ("fp16", EngineOptions(memory_cap=1024)),
        "compute capability": ("fp16", EngineOptions(compute_capability=("sm89",))),
    }
    builders: dict[str, tuple[Features, Runtime]] = {
        version: (Features.of_version(version), "tensorrt") for version in TABLE_VERSIONS
    }
    builders["RTX"] = (_rtx(), "rtx")
    return {
        row: {column: _cell(options, precision, features, runtime) for column, (features, runtime) in builders.items()}
        for row, (precision, options) in rows.items()
    }


def _cell(options: EngineOptions, precision: Precision, features: Features, runtime: Runtime) -> str:
    try:
        warnings = _check_version(options, precision, features, runtime)
    except UserError:
        return "no"
    if runtime == "rtx" and (options.refit or options.stripped):
        return "with a GPU"
    return "ignored" if any(word in " ".join(warnings) for word in ("ignores", "neither read")) else "yes"


def _rtx() -> Features:
    """TensorRT-RTX 1.7: TensorRT 11's API, and GPU architectures to build for."""
    later = Features.of_version("11.0")
    return Features(
        version="1.7",
        typing="strong",
        members=later.members | {"IBuilderConfig.set_compute_capability"},
        compute_capabilities=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
    )
