"""What a version of TensorRT can do, what it is refused for, and which graph it is fed.

A feature is looked for in the library itself. `PRESENT` says in which releases it is expected, for builders that cannot be
asked (`trtexec`) and for the table in the documentation.

Source: the Python API of TensorRT 8.6.1 to 11.4.0 and of TensorRT-RTX 1.7.1, read from their bindings; TensorRT
documentation, "Strongly typed networks", "Working with DLA", "Hardware compatibility"; TensorRT-RTX documentation, "Porting
guide".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal

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
        return sum(1 << int(getattr(kinds, name)) for name in names if hasattr(kinds, name))


def _has(trt: ModuleType, name: str) -> bool:
    owner, _, member = name.partition(".")
    return hasattr(trt, owner) and (not member or hasattr(getattr(trt, owner), member))


def _typing(version: str, members: frozenset[str]) -> Typing:
    if "BuilderFlag.FP16" not in members:  # TensorRT 11 and TensorRT-RTX know nothing else
        return "strong"
    return "strong" if at_least(version, FIRST_STRONG) else "weak"


def at_least(version: str, first: str) -> bool:
    """Whether `version` (`10.13.3.9`, `11.1.0.post1`) is `first` (`10.12`) or later."""
    return _numbers(version) >= _numbers(first)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition(".post")[0]))


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
    def builder_name(self) -> str:
        """The builder and its version, for messages."""
        return f"{NAMES[self.runtime]} {self.features.version}"

    @property
    def strong(self) -> bool:
        return self.features.typing == "strong"

    @property
    def graph(self) -> Precision:
        """The precision of the ONNX graph to build it from.

        Strong typing takes its types from the graph. A weakly typed builder lowers an FP32 graph itself to FP16 or BF16,
        and to INT8 with a calibrator; quantised graphs carry their scales with them.
        """
        lowers = self.options.calibrator is not None or self.precision in ("fp16", "bf16")
        return "fp32" if lowers and not self.strong else self.precision

    @property
    def lowered(self) -> bool:
        """Whether the builder itself lowers the graph to the precision."""
        return self.graph != self.precision

    @property
    def weak_flags(self) -> tuple[str, ...]:
        """The types that a weakly typed builder is allowed besides FP32, as members of `BuilderFlag`."""
        flags = WEAK_FLAGS[self.precision]
        on_dla = self.precision == "int8" and self.options.dla_core is not None
        return (*flags, "FP16") if on_dla else flags  # what the DLA has no INT8 for

    @property
    def constrained(self) -> bool:
        """Whether a weakly typed builder must be told the type of single layers."""
        return self.lowered or "FP16" in self.weak_flags

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The GPU architectures to build for, as `sm89`: those asked for, or those that have the precision's type.

        Empty for the builder's own choice: the GPU it runs on, or, with TensorRT-RTX, a portable engine for sm80 and later.
        """
        first = FIRST_SM.get(self.precision, 0)
        if self.options.compute_capability or first <= FIRST_PORTABLE_SM:
            return self.options.compute_capability
        return tuple(name for name in self.features.compute_capabilities if int(name[2:]) >= first)


def check(options: EngineOptions, precision: Precision, features: Features, runtime: Runtime) -> EngineSpec:
    """Refuse what this builder, or this machine, cannot do; called before any graph is built.

    Raises:
        UserError: for an option or a precision that it lacks, and for more memory than there is.
        MissingComponentError: for what needs a GPU where there is none.
    """
    spec = EngineSpec(runtime=runtime, features=features, precision=precision, options=options)
    _check_precision(spec)
    _check_capabilities(spec)
    _check_dla(spec)
    _check_members(spec)
    warnings = _warnings(spec)
    _check_machine(spec)
    return replace(spec, warnings=warnings)


def _check_precision(spec: EngineSpec) -> None:
    calibrator, precision, name = spec.options.calibrator, spec.precision, spec.builder_name
    if calibrator is not None:
        if spec.runtime == "trtexec" and calibrator != "table":
            raise UserError(
                "trtexec calibrates on random data",
                value=f"--calibrator {calibrator}",
                fix="choose --calibrator table",
            )
        if precision != "int8":
            raise UserError("a calibrator is for INT8", value=precision, fix="leave it out, or choose --int8")
        method = "IInt8MinMaxCalibrator" if calibrator == "minmax" else "IInt8EntropyCalibrator2"
        if spec.strong or not spec.features.has(method):
            raise UserError(
                f"a calibrator needs weak typing, and {name} is built strongly typed",
                fix="leave it out: INT8 ranges are then in the graph, as Q/DQ pairs",
            )
    if spec.strong:
        return
    has_flags = spec.features.has(*(f"BuilderFlag.{flag}" for flag in WEAK_FLAGS[precision]))
    if not has_flags or (precision == "fp8" and not at_least(spec.features.version, FIRST_FP8)):
        raise UserError(f"{name} does not build this precision", value=precision, fix="choose fp32, fp16 or int8")


def _check_capabilities(spec: EngineSpec) -> None:
    asked, built_for = spec.options.compute_capability, spec.features.compute_capabilities
    if asked and not built_for:
        raise UserError(
            f"{spec.builder_name} builds for the GPU it runs on",
            value=", ".join(asked),
            fix="leave --compute-capability out",
        )
    first = FIRST_SM_RTX.get(spec.precision, 0)
    for capability in asked:
        if capability not in built_for:
            raise UserError(
                f"{spec.builder_name} does not build for this GPU architecture",
                value=capability,
                fix=f"choose from {', '.join(built_for)}",
            )
        if int(capability[2:]) < first:
            raise UserError(
                f"{spec.precision} needs a GPU architecture from sm{first} on",
                value=capability,
                fix="leave that one out",
            )


def _check_dla(spec: EngineSpec) -> None:
    core, precision, name = spec.options.dla_core, spec.precision, spec.builder_name
    if core is None:
        return
    if spec.runtime == "rtx":
        raise UserError(
            f"{name} is for desktop GPUs and would ignore a DLA", value=core, fix="use TensorRT on a Jetson"
        )
    version = spec.features.version
    if at_least(version, DLA_ENDED) and not at_least(version, DLA_AGAIN):
        raise UserError(f"{name} has no DLA", value=core, fix=f"use TensorRT up to 10.7, or {DLA_AGAIN} on AGX Orin")
    if precision not in ("fp16", "int8"):
        raise UserError("a DLA computes in FP16 and INT8 only", value=precision, fix="choose --fp16 or --int8")
    if precision == "int8" and not spec.strong and spec.options.calibrator is None:
        raise UserError(
            f"with {name} a DLA takes its INT8 ranges from a calibrator, not from Q/DQ pairs",
            fix="add --calibrator entropy2, or --calibrator table for the ranges of this package",
        )


def _check_members(spec: EngineSpec) -> None:
    options = spec.options
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
        if not spec.features.has(member):
            raise UserError(
                f"{spec.builder_name} lacks {about}", fix=f"leave it out, or use TensorRT {PRESENT[member][0]} or later"
            )
    if options.weight_streaming and not spec.strong:
        raise UserError(
            f"weight streaming needs a strongly typed network, and {spec.builder_name} is built weakly typed",
            fix=f"leave it out, or use TensorRT {FIRST_STRONG} or later",
        )


def pool_member(pool: str) -> str:
    """The member of `MemoryPoolType` behind a name of `options.POOLS`: `DLA_LOCAL_DRAM` for `dla-local-dram`."""
    return pool.upper().replace("-", "_")


def _warnings(spec: EngineSpec) -> tuple[str, ...]:
    """What the builder ignores, or was chosen for the caller; refuses a timing cache that TensorRT-RTX cannot require."""
    options, precision, name = spec.options, spec.precision, spec.builder_name
    warnings = []
    if options.tf32 and precision != "fp32":
        warnings.append(f"TF32 is for layers in FP32: with {precision} there is none to use it")
    if spec.runtime != "rtx":
        return tuple(warnings)
    if options.timing_cache is not None:
        if options.timing_cache_mode == "require":
            raise UserError(f"{name} has no timing cache, so it cannot require one", fix="leave --timing-cache out")
        warnings.append(f"{name} has no timing cache: {options.timing_cache} is neither read nor written")
    if options.hardware_compatibility != "none":
        warnings.append(
            f"{name} ignores hardware compatibility: its engines are made for each GPU when they are loaded"
        )
    if spec.capabilities and not options.compute_capability:
        warnings.append(f"{precision} runs on no older GPU: built for {', '.join(spec.capabilities)} only")
    return tuple(warnings)


def _check_machine(spec: EngineSpec) -> None:
    """The part of `check` that depends on this machine."""
    gpu, options, precision = gpu_info(), spec.options, spec.precision
    require_memory(options, gpu.memory_bytes if gpu is not None else None)
    if options.hardware_compatibility != "none" and spec.runtime != "rtx" and l4t_release() is not None:
        raise UserError(
            "hardware compatibility does not apply to a Jetson", fix="build the engine on the board it is for"
        )
    if spec.runtime == "rtx":
        if gpu is None and (options.refit or options.stripped):
            raise MissingComponentError(
                "TensorRT-RTX builds refittable and stripped engines only with a GPU", fix="leave the option out here"
            )
    elif gpu is not None and int(gpu.sm[2:]) < FIRST_SM.get(precision, 0):
        raise UserError(
            f"{precision} needs a GPU architecture from sm{FIRST_SM[precision]} on",
            value=f"{gpu.name} is {gpu.sm}",
            fix="choose --fp16 or --int8",
        )
