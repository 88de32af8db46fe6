"""What the doctor says is what importing says."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest

from alexnet_edge import doctor
from alexnet_edge.doctor import Component, examine
from alexnet_edge.errors import install_command


def found() -> dict[str, Component]:
    return {component.name: component for component in examine()}


def test_versions_are_the_imported_ones() -> None:
    import onnx
    import torch

    components = found()
    assert components["PyTorch"].detail == torch.__version__
    assert components["ONNX"].detail == onnx.__version__
    assert components["PyTorch"].present
    assert components["PyTorch"].fix == ""
    assert components["ONNX Runtime, CPU"].present


def test_every_component_is_a_purpose_and_says_something() -> None:
    for component in found().values():
        assert component.purpose in {"train", "export", "run", "measure"}
        assert component.detail
        assert not (component.present and component.fix)
        assert component.to_json()["name"] == component.name


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("PyTorch", "torch", "train"),
        ("ONNX", "onnx", "export"),
        ("TensorRT-RTX builder", "tensorrt_rtx", "rtx"),
        ("ONNX Runtime, CPU", "onnxruntime", "onnx"),
        ("plotly (report)", "plotly", "bench"),
    ],
)
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    component = found()[name]
    assert not component.present
    assert component.detail == "not installed"
    assert component.fix == install_command(extra) == f"pip install 'alexnet-edge[{extra}]'"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcublas.so.12: cannot open shared object file"),
        OSError("libcudart.so.12:\ncannot open shared object file"),
        AttributeError("module 'numpy' has no attribute 'bool'"),
        RuntimeError("compiled against another version"),
    ],
)
def test_a_broken_library_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    original = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "onnx":
            raise error
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    component = found()["ONNX"]
    assert not component.present
    assert component.detail == " ".join(str(error).split())
    assert component.fix == install_command("export")


def test_a_gpu_counts_only_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = types.SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"], __version__="9.9")
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(doctor, "_gpu_node", lambda: False)
    components = found()
    assert not components["ONNX Runtime, CPU"].present
    assert components["ONNX Runtime, CUDA"].detail == "no NVIDIA GPU on this machine"
    assert not components["NVIDIA GPU"].present
    monkeypatch.setattr(doctor, "_gpu_node", lambda: True)
    components = found()
    assert components["ONNX Runtime, CUDA"].present
    assert components["ONNX Runtime, CUDA"].detail == "9.9"
    assert components["NVIDIA GPU"].present


def test_a_jetson_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet_edge.environment.l4t_release", lambda: "36.4.3")
    assert found()["Jetson"].detail == "Jetson Linux 36.4.3"
    monkeypatch.setattr("alexnet_edge.environment.l4t_release", lambda: None)
    assert not found()["Jetson"].present
