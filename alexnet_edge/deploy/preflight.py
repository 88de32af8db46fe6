"""Can it work? Judged from what the device says of itself, before anything is copied."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
class Findings:
    """What the preflight found."""

    facts: Mapping[str, Any]
    refusals: tuple[str, ...]
    """Why it cannot work; empty when nothing speaks against it."""
    warnings: tuple[str, ...]

    def sentence(self) -> str:
        """The device in one line."""
        facts = self.facts
        jetson = f"Jetson Linux {facts['l4t']}" if facts["l4t"] else ""
        parts = [
            facts["model"],
            jetson,
            facts["os"],
            facts["machine"],
            f"Python {facts['python']}",
            f"TensorRT {facts['tensorrt']}" if facts["tensorrt"] else "",
            f"in container image {facts['container'].removeprefix('sha256:')[:12]}" if facts["container"] else "",
            f"{(facts['memory_bytes'] or 0) / 1e9:.1f} GB memory" if facts["memory_bytes"] else "",
            f"{facts['disk_free_bytes'] / 1e9:.1f} GB free",
            f"power mode {facts['power_mode']}" if facts["power_mode"] else "",
            f"governor {facts['governor']}" if facts["governor"] else "",
        ]
        return ", ".join(printable(part, 80) for part in parts if part)


_KINDS: dict[str, tuple[type, ...]] = {
    "machine": (str,),
    "python": (str,),
    "venv": (bool,),
    "writable": (bool,),
    "gpu": (bool,),
    "cpu_features": (list,),
    "disk_free_bytes": (int,),
    "memory_bytes": (int, type(None)),
    "memory_available_bytes": (int, type(None)),
    **dict.fromkeys(("model", "l4t", "os", "tensorrt", "power_mode", "governor", "cuda", "libc"), (str, type(None))),
    **dict.fromkeys(("root", "user", "home", "boot_id", "jetpack", "kernel", "container"), (str, type(None))),
}


def checked(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with nothing missing and every value of its kind; raises ValueError otherwise."""
    for name, kinds in _KINDS.items():
        if not isinstance(facts.get(name), kinds):
            raise ValueError(f"{name} is {printable(facts.get(name), 40)!r}")
    return {name: facts[name] for name in _KINDS}


def judge(facts: Mapping[str, Any], bundle: Bundle, *, missing_bytes: int) -> Findings:
    """What speaks against deploying `bundle` to a device.

    Args:
        facts: what `board.facts` found, checked.
        bundle: what is to be sent.
        missing_bytes: how much of it the device does not have yet.
    """
    about = bundle.about
    target, precision = about["format"], about["precision"]
    no: list[str] = []
    warnings: list[str] = []
    if facts["machine"] not in MACHINES:
        no.append(f"its architecture is {facts['machine']}, not {' or '.join(MACHINES)}")
    if not facts["venv"]:
        fix = "add python3-venv to the image" if facts["container"] else "run there: sudo apt-get install python3-venv"
        no.append(f"its Python cannot make environments: {fix}")
    if facts["container"] and (bundle.bench.get("power_mode") or bundle.bench.get("lock_clocks")):
        no.append(
            "a container cannot set power mode and clocks: set them there before, with nvpmodel and jetson_clocks"
        )
    if not facts["writable"]:
        no.append(f"{facts['user']} may not write in {facts['root']}")
    if (facts["libc"] or "glibc").startswith("musl"):
        no.append("its C library is musl, for which ONNX Runtime has no wheel")
    weights = 4 * count_parameters(architecture(about["architecture"], about["classes"]))
    product = weights if bundle.build["build"] else 0
    disk = missing_bytes + product + ENVIRONMENT_BYTES[target]
    if facts["disk_free_bytes"] < disk:
        no.append(f"it has {facts['disk_free_bytes'] / 1e6:.0f} MB of disk free, and {disk / 1e6:.0f} MB are needed")
    memory = LEAST_MEMORY_BYTES[target] + (BUILD_COPIES if bundle.build["build"] else 1) * weights
    if facts["memory_bytes"] is not None and facts["memory_bytes"] < memory:
        no.append(f"it has {facts['memory_bytes'] / 1e6:.0f} MB of memory, and {memory / 1e6:.0f} MB are needed")
    elif facts["memory_available_bytes"] is not None and facts["memory_available_bytes"] < memory:
        warnings.append(
            f"{facts['memory_available_bytes'] / 1e6:.0f} MB of memory are free now, {memory / 1e6:.0f} MB are "
            "advised: close what is not needed, the desktop first"
        )
    lowered = about.get("lowered_for")
    if lowered is not None and not bundle.build["build"]:
        missing = sorted(set(lowered["instructions"]) - set(map(str, facts["cpu_features"])))
        if facts["machine"] not in lowered["machines"] or missing:
            lack = f"has no {', '.join(missing)}" if missing else f"is {facts['machine']}"
            no.append(
                f"the file is lowered for {lowered['name']} and its processor {lack}: name the FP32 file and "
                f"--{precision}, so that it is built there"
            )
    if target == "trt":
        no += _without_tensorrt(facts, precision)
        if facts["l4t"] and not facts["power_mode"]:
            warnings.append("its power mode cannot be read, and figures depend on it")
    no += [
        f"the wheel {file.name} is for another machine or Python"
        for file in bundle.files
        if file.name.startswith("wheels/") and not fits(file.name, facts)
    ]
    return Findings(facts=facts, refusals=tuple(no), warnings=tuple(warnings))


def _without_tensorrt(facts: Mapping[str, Any], precision: str) -> list[str]:
    version, image = facts["tensorrt"], facts["container"]
    if version is None:
        fix = "build it by Dockerfile.jetson" if image else "run there: sudo apt-get install python3-libnvinfer"
        return [f"{'the image' if image else 'it'} has no TensorRT for Python: {fix}; or --format onnx"]
    numbers = re.match(r"(\d+)\.(\d+)", version)
    first = FIRST_TENSORRT[precision]
    if numbers and tuple(map(int, numbers.groups())) < tuple(map(int, first.split("."))):
        return [f"its TensorRT {version} does not build {precision.upper()}: {first} or newer does"]
    if facts["gpu"]:
        return []
    seen = "its container sees none: nvidia-container-toolkit must be installed and known to Docker"
    return [
        f"it has no NVIDIA GPU, so an engine could not be proved there{f' ({seen})' if image else ''}; or --format onnx"
    ]


def fits(name: str, facts: Mapping[str, Any]) -> bool:
    """Whether a wheel's tags name the device's architecture and Python, as far as a name tells."""
    words = name.removesuffix(".whl").split("-")
    if len(words) < 5:
        return False
    python, abi, platform = words[-3:]
    major, minor = facts["python"].split(".")[:2]
    right_platform = platform == "any" or any(tag.endswith(f"_{facts['machine']}") for tag in platform.split("."))
    tags = python.split(".")
    older = [int(tag[3:]) for tag in tags if re.fullmatch(r"cp3\d+", tag)]
    right_python = f"cp{major}{minor}" in tags or f"py{major}" in tags
    right_python = right_python or (abi == "abi3" and any(tag <= int(minor) for tag in older))
    return right_platform and right_python


def cuda_requirement(facts: Mapping[str, Any]) -> list[str]:
    """The cuda-python of the device's CUDA; none where CUDA's version cannot be read."""
    release = re.match(r"(\d+)\.(\d+)", facts["cuda"] or "")
    if release:
        return [f"cuda-python=={release.group(1)}.{release.group(2)}.*"]
    l4t = re.match(r"\d+", facts["l4t"] or "")
    return [{"36": "cuda-python==12.6.*"}.get(l4t.group(), "cuda-python==13.0.*")] if l4t else ["cuda-python"]
