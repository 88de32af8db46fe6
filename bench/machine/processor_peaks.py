"""What the processor can do at most, by NumPy's reads and copies and the products of NumPy and ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_edge import environment
from alexnet_edge.bench.machine.kernels import MAX_SHARE_OF_MEMORY, SIZES, Kernel, best_rate, growing, timed
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.errors import needs
from alexnet_edge.sessions.onnxruntime import node_times_of

_CACHES = 8
"""The buffer to read holds this many times the last-level cache, so that no run finds its data there."""
_MIN_BUFFER_BYTES = 256 << 20
_PIECES = 4
"""The buffer is read in pieces, in turn: a short run is less likely to be disturbed."""
_PRODUCTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "fp32": (("MatMul", "FLOAT", "FLOAT"),),
    "fp16": (("MatMul", "FLOAT16", "FLOAT16"),),
    "bf16": (("MatMul", "BFLOAT16", "BFLOAT16"),),
    "int8": (("MatMulInteger", "UINT8", "INT8"), ("MatMulInteger", "INT8", "INT8")),
}
"""ONNX operator and element types of both operands, by the type it is a product in."""
_OPSET, _IR_VERSION = 17, 8


def processor_peaks(threads: int, seconds: float) -> Peaks:
    """The best rates of `threads` processor threads within about `seconds`."""
    with needs("bench"):
        import threadpoolctl
    speeds: dict[str, float | None] = {}
    how: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    with threadpoolctl.threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        size = buffer_bytes(environment.last_level_cache_bytes(), environment.memory_bytes())
        buffer = np.ones(size // 4, np.float32)
        read, how["read"] = best_rate(_read_kernels(buffer, pool, threads), seconds=0.35 * seconds)
        copied, how["copy"] = best_rate(_copy_kernels(buffer, pool, threads), seconds=0.1 * seconds)
        how["buffer_bytes"] = buffer.nbytes
        del buffer
    with threadpoolctl.threadpool_limits(threads):
        speeds["fp32"], how["fp32"] = best_rate(growing(_numpy_product), seconds=0.15 * seconds)
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
    most = size if memory_bytes is None else memory_bytes // MAX_SHARE_OF_MEMORY
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
    halves = _pieces(buffer[:half], threads), _pieces(buffer[half : 2 * half], threads)
    pairs = [list(zip(origins, targets, strict=True)) for origins, targets in zip(*halves, strict=True)]
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
    turns = cycle(pieces)

    def call() -> None:
        piece = next(turns)
        if len(piece) == 1:
            work(piece[0])
        else:
            list(pool.map(work, piece))

    return timed(call)


def _numpy_product(size: int) -> Kernel:
    a, b = _operand(size, "FLOAT"), _operand(size, "FLOAT")
    y = np.empty_like(a)
    return Kernel(name=f"numpy sgemm {size}", amount=size**3, run_s=timed(lambda: np.matmul(a, b, out=y)))


def _operand(size: int, element: str) -> npt.NDArray[Any]:
    """A random square matrix, of BFLOAT16 its bits: constant data lets some processors clock higher."""
    rng = np.random.default_rng(size)
    if element == "INT8":
        return rng.integers(-127, 128, (size, size), np.int8)
    if element == "UINT8":
        return rng.integers(0, 256, (size, size), np.uint8)
    fp32 = rng.standard_normal((size, size), np.float32)
    if element == "BFLOAT16":  # the upper half of FP32
        return (fp32.view(np.uint32) >> 16).astype(np.uint16)
    return fp32.astype(np.float16) if element == "FLOAT16" else fp32


class _NotComputedError(Exception):
    """ONNX Runtime does not compute this product in its own type; the message says why."""


def _onnxruntime_products(element: str, threads: int) -> tuple[list[Kernel], str]:
    """Products of ONNX Runtime in this type, or why there is none."""
    missing = next((name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        return [], f"{missing} is not installed"
    kernels: list[Kernel] = []
    reason = ""
    for product in _PRODUCTS[element]:
        try:
            _require_type(product, threads)
            kernels += growing(partial(_onnxruntime_product, product, threads))
        except _NotComputedError as error:
            reason = str(error)
    return kernels, reason


def _onnxruntime_product(product: tuple[str, str, str], threads: int, size: int) -> Kernel:
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
    """Check in ONNX Runtime's own profile that it computes the product in the type of its operands.

    Raises:
        _NotComputedError: when it has no kernel for it, or converts the operands first.
    """
    operator, input_type, _ = product
    with TemporaryDirectory() as folder:
        session = _session(product, SIZES[0], threads, trace=Path(folder) / "trace")
        session.run_with_ort_values(["y"], {"a": _value(input_type, SIZES[0])})
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
            [
                helper.make_tensor(
                    "b", element[weight_type], [size, size], _operand(size, weight_type).tobytes(), raw=True
                )
            ],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # the exception names a missing kernel
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads must not disturb other kernels
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

    onnx_type = getattr(TensorProto, element)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(_operand(size, element), onnx_type)
