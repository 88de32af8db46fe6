"""Can it work? Judged from what the device says of itself, before anything is copied."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alexnet_edge.deploy.bundle import Bundle
from alexnet_edge.deploy.link import printable
from alexnet_edge.network.layers import architecture, count_parameters

MACHINES = ("x86_64", "aarch64")
"""Architectures for which ONNX Runtime and NVIDIA publish Python packages."""
ENVIRONMENT_BYTES = {"onnx": 350_000_000, "trt": 300_000_000}
"""Disk space of a Python environment with what each target needs."""
LEAST_MEMORY_BYTES = {"onnx": 512 << 20, "trt": 2 << 30}
"""Besides the weights, of which a build holds several copies."""
BUILD_COPIES = 4
"""The FP32 weights, the graph written from them, that graph parsed, and what is made of it."""
FIRST_TENSORRT = {"fp32": "8.6", "fp16": "8.6", "int8": "8.6", "bf16": "10.0", "fp8": "10.0", "int4-fc": "10.3"}
"""The first TensorRT that builds each precision, as in docs/tensorrt.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a device says of itself (`board.facts`); None where it cannot tell."""

    machine: str
    python: str
    venv: bool
    writable: bool
    gpu: bool
    cpu_features: tuple[str, ...]
    disk_free_bytes: int
    memory_bytes: int | None
    memory_available_bytes: int | None
    model: str | None
    l4t: str | None
    os: str | None
    tensorrt: str | None
    power_mode: str | None
    governor: str | None
    cuda: str | None
    libc: str | None
    root: str | None
    user: str | None
    home: str | None
    boot_id: str | None
    jetpack: str | None
    kernel: str | None
    container: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What the preflight found."""

    facts: Facts
    refusals: tuple[str, ...]
    """Why it cannot work; empty when nothing speaks against it."""
    warnings: tuple[str, ...]

    def sentence(self) -> str:
        """The device in one line."""
        facts = self.facts
        parts = [
            facts.model,
            f"Jetson Linux {facts.l4t}" if facts.l4t else "",
            facts.os,
            facts.machine,
            f"Python {facts.python}",
            f"TensorRT {facts.tensorrt}" if facts.tensorrt else "",
            f"in container image {facts.container.removeprefix('sha256:')[:12]}" if facts.container else "",
            f"{facts.memory_bytes / 1e9:.1f} GB memory" if facts.memory_bytes else "",
            f"{facts.disk_free_bytes / 1e9:.1f} GB free",
            f"power mode {facts.power_mode}" if facts.power_mode else "",
            f"governor {facts.governor}" if facts.governor else "",
        ]
        return ", ".join(printable(part, 80) for part in parts if part)


def judge(facts: Facts, bundle: Bundle, *, missing_bytes: int) -> Findings:
    """What speaks against deploying `bundle` to a device that lacks `missing_bytes` of it."""
    target = bundle.about["format"]
    weights = 4 * count_parameters(architecture(bundle.about["architecture"], bundle.about["classes"]))
    built = bool(bundle.build["build"])
    disk = missing_bytes + (weights if built else 0) + ENVIRONMENT_BYTES[target]
    memory = LEAST_MEMORY_BYTES[target] + (BUILD_COPIES if built else 1) * weights
    little_disk = facts.disk_free_bytes < disk
    little_memory = facts.memory_bytes is not None and facts.memory_bytes < memory
    modes_inside = bool(facts.container and (bundle.bench.get("power_mode") or bundle.bench.get("lock_clocks")))
    venv = "add python3-venv to the image" if facts.container else "run there: sudo apt-get install python3-venv"
    checks = {
        f"its architecture is {facts.machine}, not {' or '.join(MACHINES)}": facts.machine not in MACHINES,
        f"its Python cannot make environments: {venv}": not facts.venv,
        "a container cannot set power mode and clocks: set them there before, with nvpmodel and jetson_clocks": modes_inside,
        f"{facts.user} may not write in {facts.root}": not facts.writable,
        "its C library is musl, for which ONNX Runtime has no wheel": (facts.libc or "").startswith("musl"),
        f"it has {facts.disk_free_bytes / 1e6:.0f} MB of disk free, and {disk / 1e6:.0f} MB are needed": little_disk,
        f"it has {(facts.memory_bytes or 0) / 1e6:.0f} MB of memory, and {memory / 1e6:.0f} MB are needed": little_memory,
    }
    refusals = [problem for problem, holds in checks.items() if holds]
    warnings = []
    if not little_memory and facts.memory_available_bytes is not None and facts.memory_available_bytes < memory:
        warnings.append(
            f"{facts.memory_available_bytes / 1e6:.0f} MB of memory are free now, {memory / 1e6:.0f} MB are "
            "advised: close what is not needed, the desktop first"
        )
    if not built:
        refusals += _of_another_processor(facts, bundle)
    if target == "trt":
        refusals += _without_tensorrt(facts, bundle.about["precision"])
        if facts.l4t and not facts.power_mode:
            warnings.append("its power mode cannot be read, and figures depend on it")
    refusals += [
        f"the wheel {file.name} is for another machine or Python"
        for file in bundle.files
        if file.name.startswith("wheels/") and not fits(file.name, facts)
    ]
    return Findings(facts=facts, refusals=tuple(refusals), warnings=tuple(warnings))


def _of_another_processor(facts: Facts, bundle: Bundle) -> list[str]:
    lowered = bundle.about.get("lowered_for")
    missing = [] if lowered is None else sorted(set(lowered["instructions"]) - set(facts.cpu_features))
    if lowered is None or (facts.machine in lowered["machines"] and not missing):
        return []
    lack = f"has no {', '.join(missing)}" if missing else f"is {facts.machine}"
    return [
        f"the file is lowered for {lowered['name']} and its processor {lack}: name the FP32 file and "
        f"--{bundle.about['precision']}, so that it is built there"
    ]


def _without_tensorrt(facts: Facts, precision: str) -> list[str]:
    if facts.tensorrt is None:
        fix = (
            "build it by Dockerfile.jetson" if facts.container else "run there: sudo apt-get install python3-libnvinfer"
        )
        return [f"{'the image' if facts.container else 'it'} has no TensorRT for Python: {fix}; or --format onnx"]
    numbers = re.match(r"(\d+)\.(\d+)", facts.tensorrt)
    first = FIRST_TENSORRT[precision]
    if numbers and tuple(map(int, numbers.groups())) < tuple(map(int, first.split("."))):
        return [f"its TensorRT {facts.tensorrt} does not build {precision.upper()}: {first} or newer does"]
    if facts.gpu:
        return []
    why = " (its container sees none: nvidia-container-toolkit must be installed and known to Docker)"
    why = why if facts.container else ""
    return [f"it has no NVIDIA GPU, so an engine could not be proved there{why}; or --format onnx"]


def fits(name: str, facts: Facts) -> bool:
    """Whether a wheel's tags name the device's architecture and Python, as far as a name tells."""
    words = name.removesuffix(".whl").split("-")
    if len(words) < 5:
        return False
    python, abi, platform = words[-3:]
    major, minor = facts.python.split(".")[:2]
    tags = python.split(".")
    older = [int(tag[3:]) for tag in tags if re.fullmatch(r"cp3\d+", tag)]
    right_python = f"cp{major}{minor}" in tags or f"py{major}" in tags
    right_python = right_python or (abi == "abi3" and any(tag <= int(minor) for tag in older))
    right_platform = platform == "any" or any(tag.endswith(f"_{facts.machine}") for tag in platform.split("."))
    return right_platform and right_python


def cuda_requirement(facts: Facts) -> list[str]:
    """The cuda-python of the device's CUDA; none where CUDA's version cannot be read."""
    release = re.match(r"(\d+)\.(\d+)", facts.cuda or "")
    if release:
        return [f"cuda-python=={release.group(1)}.{release.group(2)}.*"]
    l4t = re.match(r"\d+", facts.l4t or "")
    return [{"36": "cuda-python==12.6.*"}.get(l4t.group(), "cuda-python==13.0.*")] if l4t else ["cuda-python"]
