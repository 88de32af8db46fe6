"""What this machine can train, export and run, component by component, and the command that adds what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from alexnet_edge import environment
from alexnet_edge.errors import MissingComponentError, UserError, install_command
from alexnet_edge.nvidia import cuda
from alexnet_edge.nvidia import libraries as nvidia
from alexnet_edge.sessions.openvino import import_quietly

Check = Callable[[Any], str | None]
"""Returns why an imported module cannot serve its purpose, or None when it can."""

CAPABILITIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (("PyTorch",), ("safetensors",)),
    "export-onnx": (("ONNX",), ("ONNX Runtime, CPU",)),
    "build-engines": (("ONNX",), ("ONNX Runtime, CPU",), ("TensorRT", "trtexec", "TensorRT-RTX builder")),
    "export-openvino": (("ONNX",), ("OpenVINO",)),
    "run-engines": (("NVIDIA GPU",), ("cuda-python",), ("TensorRT", "TensorRT-RTX builder")),
}
"""What can be required of a machine: of each group, by component name, one must be there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One thing a stage needs."""

    purpose: str
    """What it is good for: `train`, `export`, `run`, `measure`."""
    name: str
    present: bool
    detail: str
    """Its version, or why it cannot be used."""
    fix: str = ""
    """The command that adds it; empty when it is there or no command can."""


def examine() -> list[Component]:
    """Import each component and ask it for its version; nothing is taken from a list of installed names alone."""
    return [
        _library("train", "PyTorch", "torch", "train"),
        _library("train", "safetensors", "safetensors", "train"),
        _library("export", "ONNX", "onnx", "export"),
        _component("export", "TensorRT", _tensorrt),
        _component("export", "trtexec", _trtexec),
        _library("export", "TensorRT-RTX builder", "tensorrt_rtx", "rtx"),
        _library("run", "ONNX Runtime, CPU", "onnxruntime", "onnx", _cpu_provider),
        _library("run", "ONNX Runtime, CUDA", "onnxruntime", "onnx", _cuda_provider),
        _library("run", "OpenVINO", "openvino", "openvino"),
        _library("run", "PyTorch, CUDA", "torch", "train", _torch_cuda),
        _component("run", "cuda-python", _cuda_python),
        _gpu(),
        _jetson(),
        _library("measure", "plotly (report)", "plotly", "bench"),
        _library("measure", "jinja2 (report)", "jinja2", "bench"),
        _library("measure", "pytest-benchmark", "pytest_benchmark", "bench"),
    ]


def require(capability: str, components: Sequence[Component]) -> None:
    """Do nothing when this machine is capable of `capability`, by what `examine` found.

    Raises:
        MissingComponentError: with the first component that is missing, and what adds it; UserError for no capability.
    """
    if capability not in CAPABILITIES:
        raise UserError("no such capability", value=capability, fix=f"choose from {', '.join(CAPABILITIES)}")
    by_name = {component.name: component for component in components}
    for group in CAPABILITIES[capability]:
        if not any(by_name[name].present for name in group):
            first = by_name[group[0]]
            fix = f"run: {first.fix}" if first.fix.startswith(("pip ", "sudo ")) else first.fix
            raise MissingComponentError(f"{capability} needs {' or '.join(group)} ({first.detail})", fix=fix)


def _component(purpose: str, name: str, look: Callable[[], str]) -> Component:
    """`look` returns the version or the place of what is there, and raises MissingComponentError where it is not."""
    try:
        return Component(purpose=purpose, name=name, present=True, detail=look())
    except MissingComponentError as error:
        why = str(error.problem if error.value is None else f"{error.problem}: {error.value}")
        why = why.removeprefix(f"{name} ").removeprefix("is ")
        return Component(purpose=purpose, name=name, present=False, detail=why, fix=error.fix.removeprefix("run: "))


def _tensorrt() -> str:
    return str(getattr(nvidia.load_library("tensorrt"), "__version__", "unknown version"))


def _trtexec() -> str:
    path = nvidia.find_trtexec()
    if path is None:
        folders = " or ".join(map(str, nvidia.TRTEXEC_FOLDERS))
        # elsewhere than on a Jetson it comes with TensorRT's own archive, which no command fetches
        fix = "sudo apt-get install libnvinfer-bin" if environment.l4t_release() is not None else ""
        raise MissingComponentError(f"neither on PATH nor in {folders}", fix=fix)
    return str(path)


def _cuda_python() -> str:
    module = cuda.runtime_library()
    for name in ("cuda-bindings", "cuda-python"):
        try:
            return f"{metadata.version(name)} ({module.__name__})"
        except metadata.PackageNotFoundError:
            continue
    return str(module.__name__)


def _library(purpose: str, name: str, module: str, extra: str, check: Check = lambda _module: None) -> Component:
    try:
        loaded = import_quietly() if module == "openvino" else importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  # a broken library may raise anything, and that is the finding
        why = "not installed" if isinstance(error, ModuleNotFoundError) else " ".join(str(error).split())
        return Component(purpose=purpose, name=name, present=False, detail=why, fix=install_command(extra))
    reason = check(loaded)
    version = getattr(loaded, "__version__", None) or metadata.version(module.replace("_", "-"))
    return Component(purpose=purpose, name=name, present=reason is None, detail=reason or str(version))


def _cpu_provider(onnxruntime: Any) -> str | None:
    return None if "CPUExecutionProvider" in onnxruntime.get_available_providers() else "built without CPU support"


def _cuda_provider(onnxruntime: Any) -> str | None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return None if environment.gpu_node() else "no NVIDIA GPU on this machine"


def _torch_cuda(torch: Any) -> str | None:
    if torch.cuda.is_available():
        return None
    return "torch cannot use the NVIDIA GPU here" if environment.gpu_node() else "no NVIDIA GPU on this machine"


def _gpu() -> Component:
    present = environment.gpu_node()
    detail = "a device node is there" if present else "no device node of an NVIDIA driver: engines are built, not run"
    info = cuda.gpu_info() if present else None
    if info is not None:
        detail = f"{info.name}, {info.sm}, {info.memory_bytes / 2**30:.1f} GiB"
    return Component(purpose="run", name="NVIDIA GPU", present=present, detail=detail)


def _jetson() -> Component:
    release = environment.l4t_release()
    detail = f"Jetson Linux {release}" if release else "not a Jetson"
    return Component(purpose="run", name="Jetson", present=release is not None, detail=detail)
