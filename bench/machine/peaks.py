"""What this machine can do at most: bytes read per second, and multiply-adds per second in each element type.

Measured with short kernels run again and again: a peak is the best rate that any of them reached, because everything that
disturbs a run makes it slower. The kernels that multiply are those of the libraries that run the network, where they are
installed, so a peak is one that a runtime's own code can reach.

A copy of n bytes counts as 2 n: n read and n written, as in STREAM (McCalpin, "Memory bandwidth and machine balance in
current high performance computers", 1995).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from alexnet_edge import environment
from alexnet_edge.bench.machine.state import BusyElsewhere
from alexnet_edge.environment import check_threads
from alexnet_edge.errors import UserError, needs
from alexnet_edge.nvidia import cuda
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.onnxruntime import node_times_of

SECONDS = 3.0
"""About how long the kernels of one device run, without imports."""

_CACHES = 8
"""The buffer to read holds this many times the last-level cache, so that no run finds its data there."""
_MIN_BUFFER_BYTES, _MAX_SHARE_OF_MEMORY = 256 << 20, 8
_PIECES = 4
"""The buffer is read in pieces, in turn: a short run is less likely to be disturbed."""
_SIZES = (512, 1024, 2048, 4096, 8192)
"""Rows and columns of the matrices that are multiplied; larger ones only while a product is short."""
_LONG_S = 0.02
_MIN_RUNS = 5
_HOPELESS = 0.6
"""A kernel is left out of further rounds when its best rate is below this part of the best of all."""

_PRODUCTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "fp32": (("MatMul", "FLOAT", "FLOAT"),),
    "fp16": (("MatMul", "FLOAT16", "FLOAT16"),),
    "bf16": (("MatMul", "BFLOAT16", "BFLOAT16"),),
    "int8": (("MatMulInteger", "UINT8", "INT8"), ("MatMulInteger", "INT8", "INT8")),
}
"""ONNX operator and element types of both operands, by the type it is a product in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """The best rates that were seen on one device with one number of threads."""

    device: Device
    threads: int
    """Processor threads; without meaning on a GPU."""
    read_bytes_per_s: float
    copy_bytes_per_s: float | None
    """Bytes read plus bytes written."""
    multiply_adds_per_s: Mapping[str, float | None]
    """By element type of the operands; None where `unavailable` says why."""
    how: Mapping[str, Any]
    """By figure: every kernel's best rate and raw times; and the buffer's size."""
    unavailable: Mapping[str, str]
    other_cpus: float | None = None
    """Processors kept busy by others meanwhile, on average: with many, the rates are lower bounds of the peaks."""
    rounds: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """`best` and `median` rates of each measurement, in bytes and multiply-adds per second by the names that `how` has, where these
    are the best of several; see `best_of`."""


def measure_here(*, device: Device, threads: int | None = None, seconds: float = SECONDS) -> Peaks:
    """The peaks of this machine, measured in this process.

    Args:
        device: `cpu` or `cuda`.
        threads: processor threads; None for every processor this process may use.
        seconds: about how long to measure.

    Raises:
        MissingComponentError: when threadpoolctl, or the GPU that was asked for, is not here.
        UserError: when an argument is out of range.
    """
    if device not in get_args(Device):
        raise UserError("no such device", value=device, fix="choose cpu or cuda")
    check_threads(threads)
    if not 0 < seconds <= 600:
        raise UserError("seconds must be above 0 and at most 600", value=seconds, fix="try 3")
    count = threads or environment.usable_cpus()
    others = BusyElsewhere()
    measured = _of_gpu(count, seconds) if device == "cuda" else _of_processor(count, seconds)
    return replace(measured, other_cpus=others.processors())


def best_of(measured: Sequence[Peaks]) -> Peaks:
    """The best rate of each kind over measurements of one device, with the best and the median rates of each in `rounds`.

    `how` and `unavailable` tell of the measurement that a figure is from; others kept as few processors busy as in the
    quietest of them.
    """
    assert measured, "the best of nothing"
    rates: dict[str, float | None] = {}
    how = dict(measured[0].how)
    for peaks in measured:
        for name, rate in _rates(peaks).items():
            if rate is not None and rate > (rates.get(name) or 0.0):
                rates[name] = rate
                how[name] = peaks.how.get(name)
            rates.setdefault(name, None)
    busy = [peaks.other_cpus for peaks in measured if peaks.other_cpus is not None]
    missing = {
        name: reason for peaks in measured for name, reason in peaks.unavailable.items() if rates.get(name) is None
    }
    return replace(
        _with_rates(measured[0], rates),
        how=how,
        unavailable=missing,
        other_cpus=min(busy, default=None),
        rounds=[{"best": _rates(peaks), "median": _rates(typical(peaks))} for peaks in measured],
    )


def typical(measured: Peaks) -> Peaks:
    """The rates that a measurement reached half of the time: of each kind the best median of any kernel's runs.

    They compare with a median latency of the same moment as the best rates compare with the machine undisturbed.
    """
    medians = {}
    for name, rate in _rates(measured).items():
        kernels = (measured.how.get(name) or {}).get("kernels") or {}
        of_kernels = [kernel["amount"] / float(np.median(kernel["samples_ns"])) * 1e9 for kernel in kernels.values()]
        medians[name] = rate if rate is None else max(of_kernels, default=rate)
    return _with_rates(measured, medians)


def _rates(measured: Peaks) -> dict[str, float | None]:
    """In bytes and multiply-adds per second, by the names that `how` has."""
    return {
        "read": measured.read_bytes_per_s,
        "copy": measured.copy_bytes_per_s,
        **measured.multiply_adds_per_s,
    }


def _with_rates(measured: Peaks, rates: Mapping[str, float | None]) -> Peaks:
    read = rates["read"]
    assert read is not None, "every measurement reads"
    speeds = {name: rate for name, rate in rates.items() if name not in ("read", "copy")}
    return replace(measured, read_bytes_per_s=read, copy_bytes_per_s=rates["copy"], multiply_adds_per_s=speeds)


# --- the best of several kernels --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One way to keep the machine busy."""

    name: str
    amount: float
    """Bytes or multiply-adds of one run."""
    run_s: Callable[[], float]
    """Runs once and returns how long it took, in seconds."""


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """`call`, timed by the processor's clock."""

    def run_s() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e9

    return run_s


def best_rate(kernels: Sequence[Kernel], *, seconds: float) -> tuple[float, dict[str, Any]]:
    """The best rate of any run of any kernel, and how it was found.

    The kernels take turns, so that a disturbance does not hit all runs of one. Every kernel has a run that does not count
    and at least `_MIN_RUNS` that do, however long that takes; then the ones that are far behind are left out.
    """
    assert kernels
    times_s: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    for kernel in kernels:
        kernel.run_s()
    going = list(kernels)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < _MIN_RUNS or time.perf_counter() < end:
        for kernel in going:
            times_s[kernel.name].append(kernel.run_s())
        rounds += 1
        if rounds == _MIN_RUNS:
            best = max(_rate(kernel, times_s) for kernel in going)
            going = [kernel for kernel in going if _rate(kernel, times_s) >= _HOPELESS * best]
    best = max(_rate(kernel, times_s) for kernel in kernels)
    how = {
        "kernel": next(kernel.name for kernel in kernels if _rate(kernel, times_s) == best),
        "kernels": {
            kernel.name: {
                "best": _rate(kernel, times_s),
                "amount": kernel.amount,
                "samples_ns": [round(run * 1e9) for run in times_s[kernel.name]],
            }
            for kernel in kernels
        },
    }
    return best, how


def _rate(kernel: Kernel, times_s: Mapping[str, Sequence[float]]) -> float:
    return kernel.amount / min(times_s[kernel.name])


def growing(make: Callable[[int], Kernel]) -> list[Kernel]:
    """The kernels of increasing size, as long as a run is short."""
    kernels = []
    for size in _SIZES:
        kernels.append(make(size))
        if 8 * min(kernels[-1].run_s() for _ in range(_MIN_RUNS)) > _LONG_S:  # the next has 8 times the multiply-adds
            break
    return kernels


# --- processor --------------------------------------------------------------------------------------------------------


def _of_processor(threads: int, seconds: float) -> Peaks:
    with needs("bench"):
        import threadpoolctl
    speeds: dict[str, float | None] = {}
    how: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    with threadpoolctl.threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        buffer = np.ones(
            buffer_bytes(environment.last_level_cache_bytes(), environment.memory_bytes()) // 4, np.float32
        )
        read, how["read"] = best_rate(_read_kernels(buffer, pool, threads), seconds=0.35 * seconds)
        copied, how["copy"] = best_rate(_copy_kernels(buffer, pool, threads), seconds=0.1 * seconds)
        how["buffer_bytes"] = buffer.nbytes
        del buffer
    with threadpoolctl.threadpool_limits(threads):
        kernels = growing(_numpy_product)
        speeds["fp32"], how["fp32"] = best_rate(kernels, seconds=0.15 * seconds)
    for element in _PRODUCTS:
        kernels, reason = _onnxruntime_products(element, threads)
        if kernels:
            rate, details = best_rate(kernels, seconds=0.15 * seconds)
            how.setdefault(element, {"kernels": {}})["kernels"] |= details["kernels"]
            if rate > (speeds.get(element) or 0.0):
                speeds[element], how[element]["kernel"] = rate, details["kernel"]
        elif element not in speeds:
            speeds[element], unavailable[element] = None, reason
    return Peaks(
        device="cpu",
        threads=threads,
        read_bytes_per_s=read,
        copy_bytes_per_s=copied,
        multiply_adds_per_s=speeds,
        how=how,
        unavailable=unavailable,
    )


def buffer_bytes(cache_bytes: int | None, memory_bytes: int | None) -> int:
    """Size of a buffer that no cache holds and this memory does; a multiple of 1 MiB."""
    size = max(_MIN_BUFFER_BYTES, _CACHES * (cache_bytes or 0))
    most = size if memory_bytes is None else memory_bytes // _MAX_SHARE_OF_MEMORY
    return max(1, min(size, most) >> 20) << 20


def _read_kernels(buffer: npt.NDArray[np.float32], pool: ThreadPoolExecutor, threads: int) -> list[Kernel]:
    """Ways to read the buffer once, each thread its own part: numpy lets other threads run meanwhile."""
    reads: dict[str, Callable[[npt.NDArray[np.float32]], object]] = {
        "numpy dot": lambda part: np.dot(part, part),
        "numpy max": lambda part: part.max(),
        "numpy or": lambda part: np.bitwise_or.reduce(part.view(np.uint64)),
    }
    pieces = _pieces(buffer, threads)
    return [
        Kernel(name=name, amount=buffer.nbytes / _PIECES, run_s=_in_turn(pool, read, pieces))
        for name, read in reads.items()
    ]


def _copy_kernels(buffer: npt.NDArray[np.float32], pool: ThreadPoolExecutor, threads: int) -> list[Kernel]:
    """The first half of the buffer to the second."""
    half = len(buffer) // 2
    targets = _pieces(buffer[half : 2 * half], threads)
    pairs = [
        list(zip(piece, target, strict=True))
        for piece, target in zip(_pieces(buffer[:half], threads), targets, strict=True)
    ]
    run_s = _in_turn(pool, lambda pair: np.copyto(pair[1], pair[0]), pairs)
    return [Kernel(name="numpy copy", amount=2 * buffer[:half].nbytes / _PIECES, run_s=run_s)]


def _pieces(buffer: npt.NDArray[np.float32], threads: int) -> list[list[npt.NDArray[np.float32]]]:
    """The buffer in `_PIECES` equal pieces, each cut into a part for every thread, all parts of an even length."""
    length = len(buffer) // _PIECES
    cuts = [2 * (length * thread // threads // 2) for thread in range(threads)] + [length]
    return [
        [piece[start:end] for start, end in pairwise(cuts)]
        for piece in (buffer[length * index : length * (index + 1)] for index in range(_PIECES))
    ]


def _in_turn(
    pool: ThreadPoolExecutor, work: Callable[[Any], object], pieces: Sequence[Sequence[Any]]
) -> Callable[[], float]:
    """A run that works on the next piece, all threads at once."""
    at = 0

    def call() -> None:
        nonlocal at
        at = (at + 1) % len(pieces)
        if len(pieces[at]) == 1:
            work(pieces[at][0])
        else:
            list(pool.map(work, pieces[at]))

    return timed(call)


def _numpy_product(size: int) -> Kernel:
    a, b = _operand(size, "FLOAT"), _operand(size, "FLOAT")
    y = np.empty_like(a)
    return Kernel(name=f"numpy sgemm {size}", amount=size**3, run_s=timed(lambda: np.matmul(a, b, out=y)))


def _operand(size: int, element: str) -> npt.NDArray[Any]:
    """A random square matrix, FP32 unless it is of integers: constant data lets some processors clock higher."""
    rng = np.random.default_rng(size)
    if element == "INT8":
        return rng.integers(-127, 128, (size, size), np.int8)
    if element == "UINT8":
        return rng.integers(0, 256, (size, size), np.uint8)
    return rng.standard_normal((size, size), np.float32)


# --- ONNX Runtime -----------------------------------------------------------------------------------------------------


class _NotComputedError(Exception):
    """ONNX Runtime does not compute this product in its own type; the message says why."""


def _onnxruntime_products(element: str, threads: int) -> tuple[list[Kernel], str]:
    """Products of ONNX Runtime in this type, or why there is none."""
    try:
        import onnx
        import onnxruntime
    except ModuleNotFoundError as error:
        return [], f"{error.name} is not installed"
    del onnx, onnxruntime
    kernels: list[Kernel] = []
    reason = ""
    for product in _PRODUCTS[element]:
        try:
            _require_type(product, threads)
            kernels += growing(lambda size, product=product: _onnxruntime_product(product, size, threads))  # type: ignore[misc]
        except _NotComputedError as error:
            reason = str(error)
    return kernels, reason


def _onnxruntime_product(product: tuple[str, str, str], size: int, threads: int) -> Kernel:
    operator, input_type, weight_type = product
    session = _session(product, size, threads)
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", _value(input_type, size))
    binding.bind_output("y")
    types = input_type.lower() if input_type == weight_type else f"{input_type} x {weight_type}".lower()
    return Kernel(
        name=f"onnxruntime {operator} {types} {size}",
        amount=size**3,
        run_s=timed(lambda: session.run_with_iobinding(binding)),
    )


def _require_type(product: tuple[str, str, str], threads: int) -> None:
    """Let ONNX Runtime say by its own profile that it computes the product in the type of its operands.

    Raises:
        _NotComputedError: when it has no kernel for it, or converts the operands first.
    """
    operator, input_type, _ = product
    with TemporaryDirectory() as folder:
        session = _session(product, _SIZES[0], threads, trace=Path(folder) / "trace")
        session.run_with_ort_values(["y"], {"a": _value(input_type, _SIZES[0])})
        nodes = node_times_of(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")), skip=0)
    seen = [node.kind for node in nodes if node.kind.startswith(operator)]
    if seen != [f"{operator}({input_type.lower()})"]:
        raise _NotComputedError(f"ONNX Runtime computes {input_type} as {', '.join(seen) or 'something else'} here")


def _session(product: tuple[str, str, str], size: int, threads: int, *, trace: Path | None = None) -> Any:
    """A session on one node that multiplies its input by a constant, as a layer does.

    Raises:
        _NotComputedError: when ONNX Runtime has no kernel for it.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    operator, input_type, weight_type = product
    element = {name: getattr(TensorProto, name) for name in (input_type, weight_type)}
    out = TensorProto.INT32 if operator == "MatMulInteger" else element[input_type]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(operator, ["a", "b"], ["y"])],
            "product",
            [helper.make_tensor_value_info("a", element[input_type], [size, size])],
            [helper.make_tensor_value_info("y", out, [size, size])],
            [helper.make_tensor("b", element[weight_type], [size, size], _bytes(weight_type, size), raw=True)],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a missing kernel is told by the exception
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads shall not disturb other kernels
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises its own unrelated exception classes
        raise _NotComputedError(
            f"ONNX Runtime has no kernel for a {operator} of {input_type} on this processor"
        ) from error


def _value(element: str, size: int) -> Any:
    """A random square matrix where ONNX Runtime takes it."""
    import onnxruntime
    from onnx import TensorProto

    raw = np.frombuffer(_bytes(element, size), _DTYPES[element]).reshape(size, size)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, getattr(TensorProto, element))


def _bytes(element: str, size: int) -> bytes:
    operand = _operand(size, element)
    if element == "BFLOAT16":  # the upper half of FP32
        return (operand.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return operand.astype(_DTYPES[element]).tobytes()


_OPSET, _IR_VERSION = 17, 8
_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "FLOAT16": np.float16,
    "BFLOAT16": np.uint16,  # its bits: numpy has no such type
    "INT8": np.int8,
    "UINT8": np.uint8,
}


# --- GPU --------------------------------------------------------------------------------------------------------------


def _of_gpu(threads: int, seconds: float) -> Peaks:
    gpu = cuda.require_gpu()
    how: dict[str, Any] = {}
    with cuda.Stream() as stream, cuda.Event() as start, cuda.Event() as end:
        size = min(_GPU_BUFFER_BYTES, gpu.memory_bytes // _MAX_SHARE_OF_MEMORY >> 20 << 20)
        with cuda.DeviceBuffer(size) as origin, cuda.DeviceBuffer(size) as target:
            kind = cuda.runtime_library().cudaMemcpyKind.cudaMemcpyDeviceToDevice

            def copy_s() -> float:
                start.record(stream)
                for _ in range(_GPU_COPIES):
                    cuda.call("cudaMemcpyAsync", target.address, origin.address, size, kind, stream.handle)
                end.record(stream)
                end.synchronize()
                return end.elapsed_ns(start) / 1e9

            copy = Kernel(name="copy within the GPU's memory", amount=2 * size * _GPU_COPIES, run_s=copy_s)
            copied, how["copy"] = best_rate([copy], seconds=0.2 * seconds)
            how["buffer_bytes"] = size
    read, how["read"] = copied, how["copy"]
    torch, reason = _torch_with_gpu()
    speeds: dict[str, float | None] = {}
    unavailable: dict[str, str] = {}
    if torch is not None:
        best, details = best_rate([_torch_read(torch, size)], seconds=0.1 * seconds)
        if best > read:
            read, how["read"] = best, details
        for element in _TORCH_TYPES:
            speeds[element], how[element] = _torch_peak(torch, element, seconds=0.15 * seconds)
    for element in (*_TORCH_TYPES, *_NO_PUBLIC_PRODUCT):
        if element not in speeds:
            speeds[element] = None
            unavailable[element] = _NO_PUBLIC_PRODUCT.get(element, reason)
    return Peaks(
        device="cuda",
        threads=threads,
        read_bytes_per_s=read,
        copy_bytes_per_s=copied,
        multiply_adds_per_s=speeds,
        how=how,
        unavailable=unavailable,
    )


_GPU_BUFFER_BYTES = 512 << 20
"""Several times the L2 cache of any GPU."""
_GPU_COPIES = 4
_TORCH_TYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""PyTorch's element types, by this package's; `tf32` is FP32 with operands rounded to TF32."""
_NO_PUBLIC_PRODUCT = dict.fromkeys(("int8", "fp8"), "PyTorch has no public product of this type on a GPU")


def _torch_with_gpu() -> tuple[Any, str]:
    """PyTorch where it sees the GPU, or None and the reason."""
    try:
        import torch
    except ModuleNotFoundError:
        return None, "torch is not installed"
    return (torch, "") if torch.cuda.is_available() else (None, "torch sees no CUDA GPU here")


def _torch_timed(torch: Any, call: Callable[[], object]) -> Callable[[], float]:
    """`call`, timed by the GPU's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run_s() -> float:
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return run_s


def _torch_read(torch: Any, size: int) -> Kernel:
    data = torch.ones(size // 4, device="cuda")
    return Kernel(name="torch sum", amount=size, run_s=_torch_timed(torch, data.sum))


def _torch_peak(torch: Any, element: str, *, seconds: float) -> tuple[float, dict[str, Any]]:
    def product(size: int) -> Kernel:
        a, b = (torch.randn(size, size, device="cuda").to(getattr(torch, _TORCH_TYPES[element])) for _ in range(2))
        return Kernel(
            name=f"torch {element} product {size}",
            amount=size**3,
            run_s=_torch_timed(torch, lambda: torch.matmul(a, b)),
        )

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = element == "tf32"
    try:
        return best_rate(growing(product), seconds=seconds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
