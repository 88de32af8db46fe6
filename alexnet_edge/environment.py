"""What this machine is: processor, memory, GPU, operating system, library versions.

Nothing here is guessed: what cannot be read is `None`, and is shown as "unavailable". `root` is the folder in which
`/proc`, `/sys` and `/etc` are looked for.
"""

from __future__ import annotations

import os
import platform
import re
import struct
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet_edge.errors import UserError

ROOT = Path("/")

EMULATED_MARKER = Path("etc/alexnet-edge/emulated")
"""A file that says, in its first line, what emulates this machine: for those that imitate one too well to be noticed."""
_EMULATORS = re.compile(r"qemu-|rosetta|fex|box64|box86", re.IGNORECASE)
"""Programs that run another processor's instructions: QEMU's user mode, Apple's Rosetta, FEX, Box64."""
EMULATED_FIGURES = "emulated: its figures say nothing about a device"
"""Stands wherever a figure of an emulated machine is shown."""
_ARM_HWCAPS = {"asimddp": (16, 20), "i8mm": (26, 13), "bf16": (26, 14), "sve": (16, 22)}
"""Of each instruction set: the entry of the auxiliary vector (AT_HWCAP, AT_HWCAP2), and the bit.

Source: arch/arm64/include/uapi/asm/hwcap.h of Linux.
"""

LIBRARIES = (
    "alexnet-edge", "numpy", "pillow", "torch", "torchvision", "safetensors", "onnx", "onnxruntime", "onnxruntime-gpu",
    "openvino", "cuda-bindings", "tensorrt", "tensorrt-rtx",
)  # fmt: skip
"""Distributions whose version is recorded in checkpoints, manifests and results."""


def versions() -> dict[str, str]:
    """Version of Python and of each installed library of `LIBRARIES`."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def usable_cpus() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(root: Path = ROOT) -> str | None:
    """The processor's name, as the kernel gives it."""
    text = read_text(root / "proc/cpuinfo") or ""
    for key in ("model name", "Model", "Hardware"):
        if match := re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE):
            return match.group(1).strip()
    return read_text(root / "proc/device-tree/model") or platform.processor() or None


def cpu_features(root: Path = ROOT, machine: str | None = None) -> list[str]:
    """The vector instruction sets that decide which kernels run, of those the processor has.

    On 64-bit ARM they are read where an emulator tells its own too, which leaves the host's `/proc/cpuinfo` as it is.
    """
    if (machine or platform.machine()) == "aarch64":
        with suppress(OSError, struct.error):
            entries = dict(struct.iter_unpack("@LL", (root / "proc/self/auxv").read_bytes()))
            return [name for name, (entry, bit) in _ARM_HWCAPS.items() if entries.get(entry, 0) >> bit & 1]
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", read_text(root / "proc/cpuinfo") or "", re.MULTILINE)
    flags = match.group(1).split() if match else []
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve")
    return [name for name in known if name in flags]


def emulation(root: Path = ROOT, machine: str | None = None) -> str | None:
    """What runs this process's instructions in place of a processor of its kind; None when nothing says so.

    Times measured under an emulator say nothing of the machine it imitates. It is known by a marker file; by the program
    that the kernel really runs, which QEMU's user mode hides in `/proc/self/exe` and not in the same link of the task; and
    by a `/proc/cpuinfo` of another architecture than `machine`, by default this process's. A virtual machine on a processor
    of its own kind is not emulated.
    """
    machine = machine or platform.machine()
    marker = read_text(root / EMULATED_MARKER)
    if marker is not None:
        return marker.splitlines()[0]
    with suppress(OSError):
        program = (root / f"proc/self/task/{os.getpid()}/exe").readlink().name
        if _EMULATORS.match(program):
            return f"{program} runs the instructions"
    text = read_text(root / "proc/cpuinfo") or ""
    of_x86 = re.search(r"^vendor_id\s*:", text, re.MULTILINE) is not None
    of_arm = re.search(r"^CPU implementer\s*:", text, re.MULTILINE) is not None
    if (of_x86 and machine in ("aarch64", "arm64", "armv7l")) or (of_arm and machine in ("x86_64", "i686")):
        return f"the processor is no {machine}"
    return None


def memory_bytes() -> int | None:
    """Physical memory, in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def last_level_cache_bytes(root: Path = ROOT) -> int | None:
    """Size of the largest cache of processor 0, in bytes."""
    files = (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    matches = [re.fullmatch(r"(\d+)([KMG]?)", read_text(file) or "") for file in files]
    shift = {"": 0, "K": 10, "M": 20, "G": 30}
    return max((int(match.group(1)) << shift[match.group(2)] for match in matches if match), default=None)


def cpu_governor(root: Path = ROOT) -> str | None:
    """The frequency governor of processor 0; None in most virtual machines."""
    return read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def gpu_node(root: Path = ROOT) -> bool:
    """Whether an NVIDIA driver has made a device node: of a desktop or server GPU, or of a Jetson's."""
    return any((root / path).exists() for path in ("dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu"))


def gpu_models(root: Path = ROOT) -> list[str] | None:
    """Names of the NVIDIA GPUs, as their driver gives them; None where it gives none, as on a Jetson."""
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    matches = [re.search(r"^Model:\s*(.+)$", read_text(path) or "", re.MULTILINE) for path in files]
    return [match.group(1).strip() for match in matches if match] or None


def l4t_release(root: Path = ROOT) -> str | None:
    """The Jetson Linux release, such as `36.4.3`; None on other machines."""
    match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    return ".".join(match.groups()) if match else None


def describe() -> dict[str, Any]:
    """The machine as recorded in manifests and results; values that cannot be read are None.

    `emulated` says what emulates the processor, None on a real one; its host's name is not its own, nor, where the
    emulator does not tell them, are its instructions.
    """
    emulated, cpu = emulation(), cpu_model()
    return {
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "emulated": emulated,
        "cpu": cpu if emulated is None else f"emulated {platform.machine()}, on {cpu or 'an unknown processor'}",
        "cpus": usable_cpus(),
        "cpu_features": cpu_features() if emulated is None or platform.machine() == "aarch64" else [],
        "cpu_governor": cpu_governor(),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "gpu": ", ".join(gpu_models() or ()) or None,
        "l4t": l4t_release(),
        "implementation": sys.implementation.name,
        "versions": versions(),
    }


def check_threads(threads: int | None) -> None:
    """Raise UserError for a number of processor threads below 1; None stands for every usable processor."""
    if threads is not None and threads < 1:
        raise UserError("threads must be 1 or more", value=threads, fix="leave it out to use every processor")


def read_text(path: Path) -> str | None:
    """A short text file without surrounding white space; None when it is empty or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ") or None
    except OSError:
        return None
