"""What this machine can train, export and run, component by component, and the command that adds what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from alexnet_edge import environment
from alexnet_edge.errors import install_command


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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Component]:
    """Import each component and ask it for its version; nothing is taken from a list of installed names alone."""
    return [
        _library("train", "PyTorch", "torch", "train"),
        _library("train", "safetensors", "safetensors", "train"),
        _library("export", "ONNX", "onnx", "export"),
        _library("export", "TensorRT-RTX builder", "tensorrt_rtx", "rtx"),
        _library("run", "ONNX Runtime, CPU", "onnxruntime", "onnx", _cpu_provider),
        _library("run", "ONNX Runtime, CUDA", "onnxruntime", "onnx", _cuda_provider),
        _library("run", "PyTorch, CUDA", "torch", "train", _torch_cuda),
        _gpu(),
        _jetson(),
        _library("measure", "plotly (report)", "plotly", "bench"),
        _library("measure", "jinja2 (report)", "jinja2", "bench"),
        _library("measure", "pytest-benchmark", "pytest_benchmark", "bench"),
    ]


def _library(
    purpose: str, name: str, module: str, extra: str, check: Callable[[Any], str | None] | None = None
) -> Component:
    """`check` returns why the imported module cannot serve the purpose, or None when it can."""
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  # a broken library may raise anything, and that is the finding
        why = "not installed" if isinstance(error, ModuleNotFoundError) else " ".join(str(error).split())
        return Component(purpose=purpose, name=name, present=False, detail=why, fix=install_command(extra))
    reason = check(loaded) if check is not None else None
    if reason is not None:
        return Component(purpose=purpose, name=name, present=False, detail=reason)
    return Component(purpose=purpose, name=name, present=True, detail=_version(loaded, module))


def _version(loaded: Any, module: str) -> str:
    found = getattr(loaded, "__version__", None)
    return str(found) if found else metadata.version(module.replace("_", "-"))


def _cpu_provider(onnxruntime: Any) -> str | None:
    return None if "CPUExecutionProvider" in onnxruntime.get_available_providers() else "built without CPU support"


def _cuda_provider(onnxruntime: Any) -> str | None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return None if _gpu_node() else "no NVIDIA GPU on this machine"


def _torch_cuda(torch: Any) -> str | None:
    if torch.cuda.is_available():
        return None
    return "no NVIDIA GPU on this machine" if not _gpu_node() else "torch cannot use the NVIDIA GPU here"


def _gpu_node() -> bool:
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"))


def _gpu() -> Component:
    present = _gpu_node()
    detail = "a device node is there" if present else "no device node of an NVIDIA driver: engines are built, not run"
    return Component(purpose="run", name="NVIDIA GPU", present=present, detail=detail)


def _jetson() -> Component:
    release = environment.l4t_release()
    detail = f"Jetson Linux {release}" if release else "not a Jetson"
    return Component(purpose="run", name="Jetson", present=release is not None, detail=detail)
