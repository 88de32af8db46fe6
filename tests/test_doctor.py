"""What the doctor says is what importing says."""

from __future__ import annotations

import importlib
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from alexnet_edge import records
from alexnet_edge.doctor import CAPABILITIES, Component, examine, require
from alexnet_edge.errors import MissingComponentError, UserError, install_command
from alexnet_edge.nvidia.cuda import GpuInfo


def found() -> dict[str, Component]:
    return {component.name: component for component in examine()}


def finding(name: str) -> tuple[bool, str, str]:
    component = found()[name]
    return component.present, component.detail, component.fix


def test_versions_are_the_imported_ones() -> None:
    import onnx
    import torch

    components = found()
    assert finding("PyTorch") == (True, torch.__version__, "")
    assert finding("ONNX") == (True, onnx.__version__, "")
    assert components["ONNX Runtime, CPU"].present
    for component in components.values():
        assert component.purpose in {"train", "export", "run", "measure"}
        assert component.detail
        assert not (component.present and component.fix)
        assert records.to_builtins(component)["name"] == component.name


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("PyTorch", "torch", "train"),
        ("ONNX", "onnx", "export"),
        ("TensorRT", "tensorrt", "trt"),
        ("TensorRT-RTX builder", "tensorrt_rtx", "rtx"),
        ("ONNX Runtime, CPU", "onnxruntime", "onnx"),
        ("OpenVINO", "openvino", "openvino"),
        ("plotly (report)", "plotly", "bench"),
    ],
)
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert install_command(extra) == f"pip install 'alexnet-edge[{extra}]'"
    assert finding(name) == (False, "not installed", install_command(extra))


def break_import(monkeypatch: pytest.MonkeyPatch, module: str, error: Exception) -> None:
    original = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == module:
            raise error
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)


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
    break_import(monkeypatch, "onnx", error)
    assert finding("ONNX") == (False, " ".join(str(error).split()), install_command("export"))


def test_a_gpu_counts_only_with_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = types.SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"], __version__="9.9")
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    for node, detail in ((False, "no NVIDIA GPU on this machine"), (True, "9.9")):
        monkeypatch.setattr("alexnet_edge.environment.gpu_node", lambda node=node: node)
        components = found()
        assert not components["ONNX Runtime, CPU"].present
        assert (components["ONNX Runtime, CUDA"].present, components["ONNX Runtime, CUDA"].detail) == (node, detail)
        assert components["NVIDIA GPU"].present == node


def test_a_jetson_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet_edge.environment.l4t_release", lambda: "36.4.3")
    assert found()["Jetson"].detail == "Jetson Linux 36.4.3"
    monkeypatch.setattr("alexnet_edge.environment.l4t_release", lambda: None)
    assert not found()["Jetson"].present


def test_tensorrt_is_found_by_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.3.0"))
    assert finding("TensorRT") == (True, "10.3.0", "")


def test_on_a_jetson_a_missing_tensorrt_comes_from_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("alexnet_edge.environment.l4t_release", lambda: "36.4.3")
    monkeypatch.delenv("TRTEXEC", raising=False)
    monkeypatch.setattr("alexnet_edge.nvidia.libraries.find_trtexec", lambda: None)
    components = found()
    assert components["TensorRT"].fix.startswith("sudo apt-get install python3-libnvinfer")
    assert components["trtexec"].fix == "sudo apt-get install libnvinfer-bin"


def test_a_tensorrt_whose_libraries_are_missing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "tensorrt", ImportError("libnvdla_compiler.so: cannot open shared object file"))
    present, detail, fix = finding("TensorRT")
    assert not present
    assert detail.startswith("cannot be loaded (libnvdla_compiler.so")
    assert "--runtime nvidia" in fix


def test_trtexec_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\n")
    monkeypatch.setenv("TRTEXEC", str(program))
    assert finding("trtexec")[:2] == (False, f"the variable TRTEXEC names no program that can be run: {program}")
    program.chmod(0o755)
    assert finding("trtexec") == (True, str(program), "")


def test_cuda_python_says_which_module_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding("cuda-python") == (True, f"{metadata.version('cuda-bindings')} (cuda.bindings.runtime)", "")

    def missing() -> Any:
        raise MissingComponentError("cuda-python is not installed", fix=f"run: {install_command('cuda')}")

    monkeypatch.setattr("alexnet_edge.nvidia.cuda.runtime_library", missing)
    assert finding("cuda-python") == (False, "not installed", install_command("cuda"))


def test_a_gpu_that_cuda_reaches_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = GpuInfo(name="Orin", sm="sm87", memory_bytes=8 << 30, driver_version="12.6", integrated=True)
    monkeypatch.setattr("alexnet_edge.environment.gpu_node", lambda: True)
    monkeypatch.setattr("alexnet_edge.nvidia.cuda.gpu_info", lambda: orin)
    assert found()["NVIDIA GPU"].detail == "Orin, sm87, 8.0 GiB"


NEEDED = {name for groups in CAPABILITIES.values() for group in groups for name in group}


def machine(*missing: str) -> list[Component]:
    """Every component that a capability needs, present unless it is named here."""

    def component(name: str, present: bool) -> Component:
        fix = "" if present else "pip install it"
        return Component(purpose="run", name=name, present=present, detail="not installed", fix=fix)

    return [component(name, name not in missing) for name in sorted(NEEDED)]


def test_every_name_that_a_capability_needs_is_examined() -> None:
    assert set(found()) >= NEEDED


def test_what_is_missing_is_one_line_with_its_fix() -> None:
    for capability in CAPABILITIES:
        require(capability, machine())
    with pytest.raises(MissingComponentError) as caught:
        require("run-engines", machine("NVIDIA GPU"))
    assert str(caught.value) == "run-engines needs NVIDIA GPU (not installed); run: pip install it"


def test_one_builder_is_enough() -> None:
    require("build-engines", machine("TensorRT", "trtexec"))
    with pytest.raises(MissingComponentError, match="TensorRT or trtexec or TensorRT-RTX builder"):
        require("build-engines", machine("TensorRT", "trtexec", "TensorRT-RTX builder"))


def test_an_unknown_capability_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no such capability: fly; choose from train, .*run-engines"):
        require("fly", machine())
