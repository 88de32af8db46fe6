"""Targets: where an artifact shall run, and how the network is lowered for it.

One graph is not the fastest everywhere. What differs is data here: which instructions the machine has, and per runtime how
local response normalisation is written, in which integers activations are quantised and how many bits weights may use, where
max pooling stands, and how fully connected layers are stored. `lower.py` writes a graph from it; why each choice is as it is,
with its measurement, is in `docs/performance.md`.

A plan names the type of each of the eight layers: `fp32`; `int8`, weights and input quantised; `int4`, weights stored in
INT4 in blocks with a scale each, of fully connected layers only.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from alexnet_edge.artifact import LAYER_TYPES, Plan, Precision
from alexnet_edge.environment import cpu_features
from alexnet_edge.errors import UserError
from alexnet_edge.network.layers import LAYER_NAMES

TargetName = Literal["cpu-avx2", "cpu-avx512-vnni", "cpu-arm64", "cuda", "tensorrt"]
LoweredRuntime = Literal["onnxruntime", "openvino"]
"""The runtimes that a processor's graph is written for; they read ONNX files and OpenVINO's IR."""

LOWERED_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int8-int4-fc", "mixed")
"""The precisions that are lowered for a processor; FP32 where its target is named."""

X86 = ("x86_64", "amd64")
ARM = ("aarch64", "arm64")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lowering:
    """How the network is written for one runtime on one target."""

    form: Literal["operators", "qdq"]
    """`operators`: integer operators of ONNX Runtime (QLinearConv, QGemm, MatMulNBits), so that what the file says is what
    runs. `qdq`: float operators between quantise/dequantise pairs, which OpenVINO's reader turns into integer kernels."""
    lrn: Literal["native", "sums"] = "native"
    """`native`: the LRN operator; `sums`: x / (sqrt(s) * sqrt(sqrt(s))), the window's sum in s from shifted slices."""
    signed: bool = False
    """Activations in INT8 instead of UINT8; UINT8 has one more bit for what a ReLU has made non-negative."""
    weight_bits: Literal[7, 8] = 8
    """Bits that INT8 weights use: 7 where products are added in pairs in 16 bits, which 8-bit weights overflow."""
    pool_quantised: bool = True
    """Max pooling on integers, after the quantise node: the same values as before it, for rounding keeps order."""
    int4_block: int = 128
    """INT4 weights along the input axis that share a scale."""
    input_group: int | None = None
    """OpenVINO: values at the input of an INT4 layer that share a scale when they are quantised to INT8 on the way; None for the
    plugin's choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A kind of machine that artifacts are lowered for."""

    name: TargetName
    about: str
    machines: tuple[str, ...]
    """`platform.machine()` of it, in lower case; none for any."""
    instructions: frozenset[str] = frozenset()
    """Instruction sets of which the processor must have each, by their names in /proc/cpuinfo."""
    lowerings: Mapping[LoweredRuntime, Lowering] = field(default_factory=dict)
    """None for a GPU, whose graph is the portable one: its own compiler fuses what is lowered here."""
    recommended: tuple[Literal["onnx", "openvino", "trt"], Precision]
    """The format and precision that measured best, or, where nothing was measured, is what its vendor names."""


class Ranges(Protocol):
    """What lowering needs of a calibration; `alexnet_edge.export.quantising.calibrate.Calibration` with `outputs=True` is one."""

    @property
    def amax(self) -> Mapping[str, float]:
        """Largest represented magnitude at the input of each layer."""

    @property
    def output_amax(self) -> Mapping[str, float]:
        """The same at the output of layers before a local response normalisation, behind their ReLU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenRanges:
    """Ranges that are no calibration's."""

    amax: Mapping[str, float] = field(default_factory=dict)
    output_amax: Mapping[str, float] = field(default_factory=dict)


NO_RANGES = GivenRanges()
"""For a plan that quantises nothing but weights."""

TARGETS: dict[TargetName, Target] = {
    target.name: target
    for target in (
        Target(
            name="cpu-avx512-vnni",
            about="x86-64 processors with AVX-512 VNNI (Intel since 2019, AMD since Zen 4)",
            machines=X86,
            instructions=frozenset({"avx2", "avx512f", "avx512_vnni"}),
            lowerings={
                "onnxruntime": Lowering(form="operators", lrn="sums"),
                "openvino": Lowering(form="qdq", pool_quantised=False, input_group=128),
            },
            recommended=("openvino", "int8-int4-fc"),
        ),
        Target(
            name="cpu-avx2",
            about="x86-64 processors with AVX2 and no VNNI",
            machines=X86,
            instructions=frozenset({"avx2"}),
            lowerings={
                "onnxruntime": Lowering(form="operators", lrn="sums", weight_bits=7),
                "openvino": Lowering(form="qdq", weight_bits=7),
            },
            recommended=("openvino", "int8-int4-fc"),
        ),
        Target(
            name="cpu-arm64",
            about="64-bit ARM processors with dot products (ARMv8.2 and later)",
            machines=ARM,
            instructions=frozenset({"asimddp"}),
            lowerings={
                "onnxruntime": Lowering(form="operators", lrn="sums", signed=True),
                "openvino": Lowering(form="qdq"),
            },
            recommended=("onnx", "int8-int4-fc"),
        ),
        Target(name="cuda", about="NVIDIA GPUs, by ONNX Runtime", machines=(), recommended=("onnx", "fp16")),
        Target(name="tensorrt", about="NVIDIA GPUs and Jetsons, by TensorRT", machines=(), recommended=("trt", "int8")),
    )
}


def this_machine() -> Target:
    """The processor target of this machine: the one with the most instructions that are here.

    Raises:
        UserError: when no processor target fits.
    """
    machine, features = platform.machine().lower(), set(cpu_features())
    fitting = [target for target in TARGETS.values() if machine in target.machines and target.instructions <= features]
    if not fitting:
        raise UserError(
            "no target fits this processor",
            value=f"{machine} with {', '.join(sorted(features)) or 'no known instructions'}",
            fix=f"name the one it shall run on with --target: {', '.join(TARGETS)}",
        )
    return max(fitting, key=lambda target: len(target.instructions))


def this_machine_or_none() -> Target | None:
    """The processor target of this machine, or None where none fits: then a graph is the portable one."""
    try:
        return this_machine()
    except UserError:
        return None


def target_record(target: Target, runtime: LoweredRuntime, plan: Plan) -> dict[str, Any]:
    """What a manifest says of the lowering, in `build["target"]`: loading compares its instructions with the processor's."""
    lowering = target.lowerings[runtime]
    return {
        "name": target.name,
        "machines": list(target.machines),
        "instructions": sorted(target.instructions) if "int8" in plan.values() else [],
        "weight_bits": lowering.weight_bits,
        "lowering": asdict(lowering),
        "plan": dict(plan),
    }


def check_target(target: Target, format: str, precision: Precision | None) -> None:
    """Refuse what a target that was named has no form of.

    Raises:
        UserError: for a format or a precision that the target does not take.
    """
    if target.name == "tensorrt" and format == "trt":
        return
    if format in ("torchscript", "pt2", "trt") or (format == "openvino" and not target.lowerings):
        raise UserError(
            f"--target {target.name} has no form of --format {format}",
            value=f"--target {target.name}",
            fix=f"leave --target out, or choose --format {'onnx or openvino' if target.lowerings else 'onnx'}",
        )
    if target.lowerings and precision not in (None, *LOWERED_PRECISIONS):
        raise UserError(
            f"processors compute in FP32 and INT8: nothing is lowered for {target.name} in this precision",
            value=f"--{precision}",
            fix="leave --target out, or choose --int8 or --int8-int4-fc",
        )


def check_plan(plan: Plan) -> None:
    """Refuse a plan that no graph can be written for.

    Raises:
        UserError: for a layer that is missing or unknown, a type that is unknown, or a convolution in INT4.
    """
    every = ", ".join(LAYER_NAMES)
    missing = ", ".join(name for name in LAYER_NAMES if name not in plan)
    if missing:
        raise UserError("the plan names no type", value=missing, fix=f"give each of {every} one")
    for name, kind in plan.items():
        if name not in LAYER_NAMES:
            raise UserError("the plan names an unknown layer", value=name, fix=f"choose from {every}")
        if kind not in LAYER_TYPES:
            raise UserError(f"{name} has an unknown type", value=kind, fix=f"choose from {', '.join(LAYER_TYPES)}")
        if kind == "int4" and name.startswith("conv"):
            problem = "convolutions are not stored in INT4: no processor runtime has a kernel for it"
            raise UserError(problem, value=name, fix="choose int8 or fp32 for it")
