"""The CUDA runtime's calls: refused in one line where something is missing, checked everywhere else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import one_line
from cuda_machine import Machine, has_driver, real_bindings

from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.nvidia import cuda

needs_bindings = pytest.mark.skipif(real_bindings() is None, reason="cuda-python is not installed")
without_driver = pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver here")


def missing(call: Callable[[], Any]) -> str:
    return one_line(call, MissingComponentError)


@needs_bindings
@without_driver
@pytest.mark.parametrize(
    "call",
    [
        cuda.require_gpu,
        cuda.Stream,
        cuda.Event,
        lambda: cuda.DeviceBuffer(4),
        lambda: cuda.PinnedBuffer(4),
        lambda: cuda.DeviceBuffer().upload(np.zeros(3, np.float32)),
    ],
)
def test_without_a_driver(call: Callable[[], Any]) -> None:
    assert missing(call) == "there is no NVIDIA driver here; use --device cpu with a checkpoint or an ONNX file"


@needs_bindings
@without_driver
def test_no_gpu_is_no_information() -> None:
    assert cuda.gpu_info() is None


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'cuda':
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from alexnet_edge.nvidia import cuda
from alexnet_edge.errors import MissingComponentError
print(cuda.gpu_info())
try:
    cuda.require_gpu()
except MissingComponentError as error:
    print(error, error.exit_code)
"""


def test_without_cuda_python() -> None:
    run = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    expected = "None\ncuda-python is not installed; run: pip install 'alexnet-edge[cuda]' 2\n"
    assert run.stdout == expected, run.stderr


def test_cuda_python_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libcudart.so.13: cannot open shared object file:\nNo such file or directory")

    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    assert missing(cuda.runtime_library.__wrapped__).startswith(
        "cuda-python cannot be loaded (libcudart.so.13: cannot open shared object file: No such file or directory); run:"
    )


def test_the_module_of_older_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda-python 11.8 to 12.5 have `cuda.cudart`, which raises where there is no driver."""
    older = ModuleType("cuda.cudart")

    def import_module(name: str) -> ModuleType:
        if name == "cuda.cudart":
            return older
        raise ModuleNotFoundError(f"No module named {name!r}", name="cuda.bindings")

    def count() -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    older.cudaGetDeviceCount = count  # type: ignore[attr-defined]
    monkeypatch.setattr(cuda.importlib, "import_module", import_module)
    assert cuda.runtime_library.__wrapped__() is older
    monkeypatch.setattr(cuda, "runtime_library", lambda: older)
    assert "there is no NVIDIA driver here (Failed to dlopen libcuda.so.1)" in missing(cuda.require_gpu)
    assert cuda.gpu_info() is None


def test_another_missing_module_is_not_taken_for_an_older_release(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'cuda.pathfinder'", name="cuda.pathfinder")

    monkeypatch.setattr(cuda.importlib, "import_module", import_module)
    assert "cannot be loaded (No module named 'cuda.pathfinder')" in missing(cuda.runtime_library.__wrapped__)


def test_a_driver_that_is_too_old(machine: Machine) -> None:
    machine.fail["cudaGetDeviceCount"] = 35
    assert missing(cuda.require_gpu) == (
        "the NVIDIA driver is too old: it is for CUDA 12.6, cuda-python for 13.5; run: pip install 'cuda-python<13'"
    )
    machine.driver = 0
    assert missing(cuda.require_gpu).startswith("there is no NVIDIA driver here; ")


@pytest.mark.parametrize(
    ("function", "code", "call", "kind", "message"),
    [
        ("cudaGetDeviceCount", 100, cuda.require_gpu, MissingComponentError,
         "there is no NVIDIA GPU here; use --device cpu with a checkpoint or an ONNX file"),
        ("", 0, lambda: cuda.require_gpu(1), MissingComponentError,
         "there is no NVIDIA GPU number 1 here, of 1; use --device cpu with a checkpoint or an ONNX file"),
        ("cudaGetDeviceProperties", 999, cuda.require_gpu, UserError,
         "cudaGetDeviceProperties failed (an illegal memory access was encountered, CUDA error 999); see `alexnet-edge doctor`"),
        ("cudaMalloc", 2, lambda: cuda.DeviceBuffer(8), UserError,
         "cudaMalloc: the GPU has too little free memory; close what else uses it, or lower the batch"),
        ("cudaStreamSynchronize", 700, lambda: cuda.Stream().synchronize(), UserError,
         "cudaStreamSynchronize failed (an illegal memory access was encountered, CUDA error 700); see `alexnet-edge doctor`"),
    ],
)  # fmt: skip
def test_errors_of_cuda(
    machine: Machine, function: str, code: int, call: Callable[[], Any], kind: type[UserError], message: str
) -> None:
    machine.fail = {function: code}
    assert one_line(call, kind) == message
    assert (cuda.gpu_info() is None) == function.startswith("cudaGetDevice")


@needs_bindings
@without_driver
def test_the_real_bindings_are_asked_first() -> None:
    """The stand-in would otherwise accept calls that the real functions refuse."""
    machine = Machine()
    with pytest.raises(TypeError):
        machine.cudaMalloc()
    with pytest.raises(TypeError):
        machine.cudaMemcpyAsync(1, 2, 3, machine.cudaMemcpyKind.cudaMemcpyHostToDevice)  # no stream
    with pytest.raises(AttributeError):
        machine.cudaMallocEverything(1)


@needs_bindings
def test_a_stream_of_the_real_bindings_is_a_number(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = real_bindings()
    monkeypatch.setattr(machine, "_cudaStreamCreateWithFlags", lambda flags: bindings.cudaStream_t(5))
    assert cuda.Stream().handle == 5


def test_gpu(machine: Machine) -> None:
    assert cuda.require_gpu() == cuda.GpuInfo(
        name="Orin", sm="sm87", memory_bytes=8 << 30, driver_version="12.6", integrated=True
    )
    assert cuda.gpu_info() == cuda.require_gpu()
    machine.sm = (12, 1)
    assert cuda.require_gpu().sm == "sm121"


def test_copies(machine: Machine) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    with cuda.Stream() as stream, cuda.DeviceBuffer(24) as device, cuda.PinnedBuffer(24) as host:
        host.view((2, 3))[:] = values
        device.copy_from(host, 24, stream)
        stream.synchronize()
        host.view((6,))[:] = 0
        device.copy_to(host, 24, stream)
        assert not host.view((6,)).any(), "the stand-in did the work before it was waited for: it shows nothing"
        stream.synchronize()
        np.testing.assert_array_equal(host.view((2, 3)), values)
    assert machine.held() == []


def test_a_view_is_not_larger_than_its_memory(machine: Machine) -> None:
    with cuda.PinnedBuffer(8) as host, pytest.raises((TypeError, ValueError)):
        host.view((3,))


def test_device_memory_grows_only(machine: Machine) -> None:
    with cuda.DeviceBuffer() as buffer:
        assert (buffer.address, buffer.num_bytes, machine.device) == (0, 0, {})
        buffer.reserve(8)
        first = buffer.address
        buffer.reserve(4)
        assert (buffer.address, buffer.num_bytes) == (first, 8)
        buffer.reserve(16)
        assert buffer.address != first
        assert list(machine.device) == [buffer.address], "the smaller piece was not given back"
    assert machine.held() == []


def test_growing_that_fails_holds_nothing(machine: Machine) -> None:
    buffer = cuda.DeviceBuffer(8)
    machine.fail["cudaMalloc"] = 2
    with pytest.raises(UserError, match="too little free memory"):
        buffer.reserve(16)
    assert (buffer.address, buffer.num_bytes) == (0, 0)
    buffer.close()
    assert machine.held() == []


def test_upload(machine: Machine) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with cuda.DeviceBuffer() as buffer:
        address = buffer.upload(values[:, ::2])
        assert address == buffer.address
        assert bytes(machine.device[address]) == values[:, ::2].tobytes()
        assert buffer.upload(values[:1]) == address


def test_everything_is_given_back_once(machine: Machine) -> None:
    with cuda.Stream() as stream:
        things = [cuda.Event(), cuda.DeviceBuffer(4), cuda.PinnedBuffer(4), cuda.Graph.capture(stream, lambda: None)]
        for thing in things:
            thing.close()
            thing.close()
    stream.close()
    assert machine.held() == []


def test_a_graph_repeats_the_work(machine: Machine) -> None:
    done: list[str] = []
    with (
        cuda.Stream() as stream,
        cuda.Graph.capture(stream, lambda: machine.enqueue(stream.handle, lambda: done.append("work"))) as graph,
    ):
        stream.synchronize()
        assert done == [], "recording ran the work"
        graph.launch(stream)
        graph.launch(stream)
        assert done == []
        stream.synchronize()
        assert done == ["work", "work"]
    assert machine.held() == []


def test_a_failed_recording_ends(machine: Machine) -> None:
    def fails() -> None:
        raise UserError("it cannot be recorded")

    with cuda.Stream() as stream:
        with pytest.raises(UserError, match="it cannot be recorded"):
            cuda.Graph.capture(stream, fails)
        assert not machine.capturing
        machine.fail["cudaStreamEndCapture"] = 901
        with pytest.raises(UserError, match="it cannot be recorded"):
            cuda.Graph.capture(stream, fails)
    assert machine.held() == []


def test_a_recording_that_cuda_refuses(machine: Machine) -> None:
    machine.fail["cudaGraphInstantiateWithFlags"] = 1
    with cuda.Stream() as stream, pytest.raises(UserError, match="cudaGraphInstantiateWithFlags failed"):
        cuda.Graph.capture(stream, lambda: None)
    assert machine.held() == []


def test_event_times(machine: Machine) -> None:
    def works() -> None:
        machine.clock_ns += 1_500_000

    with cuda.Stream() as stream, cuda.Event() as start, cuda.Event() as end:
        start.record(stream)
        machine.enqueue(stream.handle, works)
        end.record(stream)
        end.synchronize()
        assert end.elapsed_ns(start) == 1_500_000


@pytest.mark.gpu
@pytest.mark.skipif(not has_driver() or cuda.gpu_info() is None, reason="needs an NVIDIA GPU and cuda-python")
def test_a_real_gpu() -> None:
    values = np.arange(1 << 16, dtype=np.float32)
    with (
        cuda.Stream() as stream,
        cuda.DeviceBuffer(values.nbytes) as device,
        cuda.PinnedBuffer(values.nbytes) as host,
        cuda.Event() as start,
        cuda.Event() as end,
    ):
        host.view(values.shape)[:] = values
        start.record(stream)
        device.copy_from(host, values.nbytes, stream)
        stream.synchronize()
        host.view(values.shape)[:] = 0
        device.copy_to(host, values.nbytes, stream)
        end.record(stream)
        end.synchronize()
        np.testing.assert_array_equal(host.view(values.shape), values)
        assert end.elapsed_ns(start) > 0
        with cuda.Graph.capture(stream, lambda: device.copy_to(host, values.nbytes, stream)) as graph:
            host.view(values.shape)[:] = 0
            graph.launch(stream)
            stream.synchronize()
        np.testing.assert_array_equal(host.view(values.shape), values)
