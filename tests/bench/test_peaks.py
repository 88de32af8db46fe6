"""Peaks: the best of what was run, on a scripted clock; real kernels are only shown to do what they say."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from cuda_machine import Machine

from alexnet_edge import environment, records
from alexnet_edge.bench.machine import gpu_peaks, kernels, processor_peaks
from alexnet_edge.bench.machine.kernels import Kernel, best_rate, growing
from alexnet_edge.bench.machine.peaks import Peaks, best_of, typical
from alexnet_edge.bench.machine.processor_peaks import buffer_bytes
from alexnet_edge.bench.rounds.peaks import measure_here, measure_peaks
from alexnet_edge.errors import MissingComponentError, UserError
from alexnet_edge.nvidia import cuda
from alexnet_edge.sessions.base import NodeTime
from alexnet_edge.sessions.openvino import int8_overflows

MIB = 1 << 20


def scripted(name: str, *seconds: float, amount: float = 1e9) -> Kernel:
    """A kernel that takes the given times, the last of them again and again, and no time of this machine."""
    left = list(seconds)
    return Kernel(name=name, amount=amount, run_s=lambda: left.pop(0) if len(left) > 1 else left[0])


def measurement(
    read: float, *, copy: float | None = 1.0, busy: float | None = 0.0, unavailable: str = "", **speeds: float | None
) -> Peaks:
    return Peaks(
        device="cpu",
        threads=2,
        read_bytes_per_s=read,
        copy_bytes_per_s=copy,
        multiply_adds_per_s=speeds,
        how={name: {"kernel": f"at {rate}"} for name, rate in {"read": read, **speeds}.items()},
        unavailable={"int8": unavailable} if unavailable else {},
        other_cpus=busy,
    )


def test_the_best_of_several_measurements_is_taken_rate_by_rate() -> None:
    measured = [
        measurement(10.0, copy=None, busy=0.9, fp32=5.0, int8=None, unavailable="no operator"),
        measurement(30.0, copy=4.0, busy=0.1, fp32=4.0, int8=7.0),
        measurement(20.0, copy=9.0, busy=None, fp32=6.0, int8=None, unavailable="no operator"),
    ]
    best = best_of(measured)
    assert (best.read_bytes_per_s, best.copy_bytes_per_s) == (30.0, 9.0)
    assert best.multiply_adds_per_s == {"fp32": 6.0, "int8": 7.0}
    assert [best.how[name]["kernel"] for name in ("read", "fp32", "int8")] == ["at 30.0", "at 6.0", "at 7.0"]
    assert best.unavailable == {}, "one of them measured it"
    assert best.other_cpus == 0.1
    assert [peaks["best"]["read"] for peaks in best.rounds] == [10.0, 30.0, 20.0]
    assert [peaks["best"]["int8"] for peaks in best.rounds] == [None, 7.0, None]
    assert records.decode(Peaks, json.dumps(records.to_builtins(best))) == best


def test_typical_rates_are_the_best_median_of_any_kernel() -> None:
    """A kernel that was fast once is not what the machine did half of the time."""
    kernels = {
        "lucky": {"best": 100.0, "amount": 1.0, "samples_ns": [10**7, 10**9, 10**9]},
        "steady": {"best": 4.0, "amount": 2.0, "samples_ns": [5 * 10**8, 5 * 10**8, 10**9]},
    }
    measured = replace(
        measurement(100.0, fp32=7.0, int8=None), how={"read": {"kernel": "lucky", "kernels": kernels}, "fp32": {}}
    )
    peaks = typical(measured)
    assert peaks.read_bytes_per_s == pytest.approx(4.0)
    assert peaks.multiply_adds_per_s == {"fp32": 7.0, "int8": None}, "as it is, where no runs are told"
    rates = {"read": 100.0, "copy": 1.0, "fp32": 7.0, "int8": None}
    assert best_of([measured]).rounds == [{"best": rates, "median": {**rates, "read": pytest.approx(4.0)}}]


def test_what_no_measurement_has_stays_unavailable() -> None:
    best = best_of([measurement(1.0, fp32=1.0, int8=None, unavailable="no operator")] * 2)
    assert best.multiply_adds_per_s == {"fp32": 1.0, "int8": None}
    assert best.unavailable == {"int8": "no operator"}
    assert best.other_cpus == 0.0


def test_best_run_of_the_best_kernel() -> None:
    rate, how = best_rate([scripted("a", 1, 1.0, 0.5, 1.0), scripted("b", 1, 0.8, 0.4, 0.8)], seconds=0.0)
    assert rate == pytest.approx(1e9 / 0.4)
    assert how["kernel"] == "b"
    assert how["kernels"]["a"]["best"] == pytest.approx(1e9 / 0.5)
    assert how["kernels"]["a"]["samples_ns"][:3] == [10**9, 5 * 10**8, 10**9]
    assert how["kernels"]["b"]["amount"] == 1e9
    rate, how = best_rate([scripted("a", 0.001, 1.0)], seconds=0.0)
    assert rate == pytest.approx(1e9), "the first run may find the clock high, and does not count"
    assert set(how["kernels"]["a"]["samples_ns"]) == {10**9}
    _, how = best_rate([scripted("small", 1.0, amount=1), scripted("large", 10.0, amount=20)], seconds=0.0)
    assert how["kernel"] == "large", "larger amounts are compared by rate"


def test_kernels_that_are_far_behind_are_left_out() -> None:
    made = [
        Kernel(name=name, amount=1, run_s=lambda took=took: time.sleep(0.001) or took)  # type: ignore[misc,func-returns-value]
        for name, took in (("fast", 1.0), ("close", 1.2), ("slow", 9.0))
    ]
    _, how = best_rate(made, seconds=0.2)
    runs = {name: len(kernel["samples_ns"]) for name, kernel in how["kernels"].items()}
    assert runs["slow"] == kernels._MIN_RUNS < runs["close"] == runs["fast"]


def test_sizes_grow_while_runs_are_short() -> None:
    def at(seconds_of_first: float) -> list[str]:
        def make(size: int) -> Kernel:
            took = seconds_of_first * (size / kernels.SIZES[0]) ** 3
            return Kernel(name=str(size), amount=size**3, run_s=lambda: took)

        return [kernel.name for kernel in growing(make)]

    assert at(1.0) == ["512"], "a slow machine multiplies the smallest only"
    assert at(kernels._LONG_S / 20) == ["512", "1024"]
    assert at(1e-9) == [str(size) for size in kernels.SIZES]


def test_buffer_is_larger_than_caches_and_fits() -> None:
    assert buffer_bytes(None, None) == 256 * MIB
    assert buffer_bytes(32 * MIB, None) == 256 * MIB
    assert buffer_bytes(256 * MIB, 64 << 30) == 2048 * MIB
    assert buffer_bytes(4 * MIB, 1 << 30) == 128 * MIB, "an eighth of the memory of a small board"
    assert buffer_bytes(None, 1000) == MIB


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_reads_touch_every_element_once(threads: int) -> None:
    buffer = np.arange(4 * 1024 * 3, dtype=np.float32)
    pieces = processor_peaks._pieces(buffer, threads)
    assert [len(piece) for piece in pieces] == [threads] * processor_peaks._PIECES
    np.testing.assert_array_equal(np.concatenate([part for piece in pieces for part in piece]), buffer)
    assert all(len(part) % 2 == 0 for piece in pieces for part in piece), "they are also read eight bytes at a time"


@pytest.mark.parametrize("threads", [1, 2])
def test_reads_and_copies(threads: int) -> None:
    buffer = np.arange(1 << 16, dtype=np.float32)
    pieces = processor_peaks._PIECES
    with ThreadPoolExecutor(threads) as pool:
        for kernel in processor_peaks._read_kernels(buffer, pool, threads):
            assert kernel.amount == buffer.nbytes / pieces, "one run reads one piece"
            assert kernel.run_s() > 0
        (kernel,) = processor_peaks._copy_kernels(buffer, pool, threads)
        assert all(kernel.run_s() > 0 for _ in range(pieces))
    np.testing.assert_array_equal(buffer[1 << 15 :], np.arange(1 << 15, dtype=np.float32))
    assert kernel.amount * pieces == 2 * buffer.nbytes / 2, "half read and half written"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in miniature."""
    monkeypatch.setattr(kernels, "SIZES", (16, 32))
    monkeypatch.setattr(processor_peaks, "SIZES", (16, 32))
    monkeypatch.setattr(processor_peaks, "buffer_bytes", lambda *_: MIB)


@pytest.mark.usefixtures("small")
def test_processor() -> None:
    peaks = measure_here(device="cpu", threads=1, seconds=0.05)
    assert (peaks.device, peaks.threads) == ("cpu", 1)
    assert peaks.read_bytes_per_s > 0
    assert peaks.copy_bytes_per_s is not None
    assert set(peaks.multiply_adds_per_s) == {"fp32", "fp16", "bf16", "int8"}
    for element, peak in peaks.multiply_adds_per_s.items():
        assert (peak is None) == (element in peaks.unavailable), "a peak or the reason why not"
        if peak is not None:
            best = {name: kernel["best"] for name, kernel in peaks.how[element]["kernels"].items()}
            assert peak == max(best.values()) == best[peaks.how[element]["kernel"]]
    libraries = {name.split()[0] for name in peaks.how["fp32"]["kernels"]}
    assert libraries == {"numpy", "onnxruntime"}
    products = {name.rsplit(" ", 1)[0] for name in peaks.how["int8"]["kernels"]}
    assert products == {f"onnxruntime MatMulInteger {types}" for types in ("uint8 x int8", "int8")}
    assert records.decode(Peaks, json.dumps(records.to_builtins(peaks), allow_nan=False)) == peaks


@pytest.mark.usefixtures("small")
def test_a_board_with_numpy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    peaks = measure_here(device="cpu", threads=1, seconds=0.02)
    assert peaks.multiply_adds_per_s["fp32"] is not None
    assert {name for name, peak in peaks.multiply_adds_per_s.items() if peak is None} == {"fp16", "bf16", "int8"}
    assert set(peaks.unavailable.values()) == {"onnx is not installed"}


@pytest.mark.usefixtures("small")
def test_a_product_in_another_type_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a library that casts to FP32 first."""
    node = NodeTime(name="y", kind="MatMul(float)", ns=1)
    monkeypatch.setattr(processor_peaks, "node_times_of", lambda *_, **__: [node])
    assert processor_peaks._onnxruntime_products("fp32", 1)[0] != []
    reason = "ONNX Runtime computes FLOAT16 as MatMul(float) here"
    assert processor_peaks._onnxruntime_products("fp16", 1) == ([], reason)
    assert processor_peaks._onnxruntime_products("int8", 1)[0] == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("left", "right"), [("FLOAT", "FLOAT"), ("UINT8", "INT8"), ("INT8", "INT8")])
def test_products_are_products(left: str, right: str) -> None:
    operator = "MatMul" if left == "FLOAT" else "MatMulInteger"
    session = processor_peaks._session((operator, left, right), 16, 1)
    (y,) = session.run_with_ort_values(["y"], {"a": processor_peaks._value(left, 16)})
    wide = np.float64 if left == "FLOAT" else np.int64
    a_MK, b_KN = (processor_peaks._operand(16, element).astype(wide) for element in (left, right))
    expected = a_MK @ b_KN
    if left == "UINT8" and int8_overflows():  # x86 without VNNI adds pairs of these products in 16 bits, which saturate
        products_MKN = a_MK[:, :, None] * b_KN
        expected = np.clip(products_MKN[:, 0::2] + products_MKN[:, 1::2], -(2**15), 2**15 - 1).sum(axis=1)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_threads_are_those_asked_for(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import threadpoolctl

    limits: list[int] = []
    real = threadpoolctl.threadpool_limits
    monkeypatch.setattr(threadpoolctl, "threadpool_limits", lambda count: limits.append(count) or real(count))  # type: ignore[func-returns-value]
    asked: set[int] = set()
    session = processor_peaks._session

    def spied(*arguments: Any, **more: Any) -> Any:
        made = session(*arguments, **more)
        asked.add(made.get_session_options().intra_op_num_threads)
        return made

    monkeypatch.setattr(processor_peaks, "_session", spied)
    assert measure_here(device="cpu", threads=2, seconds=0.02).threads == 2
    assert limits == [1, 2], "BLAS reads in one thread per part, and multiplies in all"
    assert asked == {2}
    monkeypatch.setattr(environment, "usable_cpus", lambda: 1)
    assert measure_here(device="cpu", threads=None, seconds=0.02).threads == 1


def test_in_a_process_of_its_own() -> None:
    peaks = measure_peaks(device="cpu", threads=1, seconds=0.1)
    assert peaks.read_bytes_per_s > 0
    assert "numpy dot" in peaks.how["read"]["kernels"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "tpu"}, "no such device: tpu"),
        ({"threads": 0}, "threads must be 1 or more: 0"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"seconds": float("nan")}, "seconds must be above 0"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        measure_here(**({"device": "cpu", "threads": 1} | options))


class CopyingMachine(Machine):
    """Copies within the GPU's memory at 64 GB/s of traffic."""

    def __init__(self) -> None:
        super().__init__(check=False)
        self.cudaMemcpyKind = SimpleNamespace(
            cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
        )
        self.copied = 0

    def _cudaMemcpyAsync(self, to: int, origin: int, size: int, kind: Any, stream: int) -> None:
        assert int(kind) == 3
        assert to in self.device
        assert origin in self.device
        assert to != origin

        def copy() -> None:
            self.clock_ns += 2 * size / 64
            self.copied += 1

        self.enqueue(stream, copy)

    def _cudaMalloc(self, size: int) -> int:
        self._handles += 1
        self.device[self._handles << 32] = bytearray(1)
        self.size = size
        return self._handles << 32


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CopyingMachine:
    machine = CopyingMachine()
    monkeypatch.setattr(cuda, "runtime_library", lambda: machine)
    return machine


def test_gpu_copies(gpu: CopyingMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    peaks = measure_here(device="cuda", threads=1, seconds=0.01)
    assert peaks.copy_bytes_per_s == pytest.approx(64e9)
    assert peaks.read_bytes_per_s == pytest.approx(64e9), "what a copy moves, where nothing reads faster"
    assert gpu.size == 512 * MIB == peaks.how["buffer_bytes"]
    assert gpu.copied >= gpu_peaks._GPU_COPIES * (kernels._MIN_RUNS + 1)
    assert gpu.held() == []
    assert set(peaks.multiply_adds_per_s.values()) == {None}
    assert peaks.unavailable == {
        **dict.fromkeys(("fp32", "tf32", "fp16", "bf16"), "torch is not installed"),
        **dict.fromkeys(("int8", "fp8"), "PyTorch has no public product of this type on a GPU"),
    }
    json.dumps(records.to_builtins(peaks), allow_nan=False)


class Torch:
    """Stands for PyTorch on a GPU: products run at a rate by type, reads at 100 GB/s."""

    float32, float16, bfloat16 = "float32", "float16", "bfloat16"
    rates: ClassVar = {"float32": 1e12, "float16": 8e12, "bfloat16": 7e12}

    def __init__(self) -> None:
        self.now_s = 0.0
        self.allowed: list[bool] = []
        self.backends = SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False)))
        self.cuda = SimpleNamespace(is_available=lambda: True, Event=self.event)

    def event(self, *, enable_timing: bool) -> Any:
        made = SimpleNamespace(at=0.0, synchronize=lambda: None)
        made.record = lambda: setattr(made, "at", self.now_s)
        made.elapsed_time = lambda end: (end.at - made.at) * 1e3
        return made

    def ones(self, count: int, *, device: str) -> Any:
        return SimpleNamespace(sum=lambda: self.take(4 * count / 100e9))

    def randn(self, rows: int, columns: int, *, device: str) -> Any:
        return SimpleNamespace(to=lambda dtype: SimpleNamespace(size=rows, dtype=dtype))

    def matmul(self, a: Any, b: Any) -> None:
        rounds = a.dtype == "float32" and self.backends.cuda.matmul.allow_tf32
        self.take(a.size**3 / (4e12 if rounds else self.rates[a.dtype]))

    def take(self, seconds: float) -> None:
        self.now_s += seconds


def test_gpu_products(gpu: CopyingMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = Torch()
    monkeypatch.setattr(gpu_peaks, "_torch_with_gpu", lambda: (torch, ""))
    peaks = measure_here(device="cuda", threads=1, seconds=0.01)
    assert peaks.read_bytes_per_s == pytest.approx(100e9)
    assert peaks.how["read"]["kernel"] == "torch sum"
    assert peaks.copy_bytes_per_s == pytest.approx(64e9)
    rates = {"fp32": 1e12, "tf32": 4e12, "fp16": 8e12, "bf16": 7e12}
    assert {name: peak for name, peak in peaks.multiply_adds_per_s.items() if peak} == pytest.approx(rates)
    assert set(peaks.unavailable) == {"int8", "fp8"}
    assert torch.backends.cuda.matmul.allow_tf32 is False, "as it was"


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "runtime_library", lambda: Machine(devices=0, check=False))
    with pytest.raises(MissingComponentError, match="no NVIDIA GPU"):
        measure_here(device="cuda", threads=1)
