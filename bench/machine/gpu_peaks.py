"""What the GPU can do at most, by CUDA copies and PyTorch's products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alexnet_edge.bench.machine.kernels import MAX_SHARE_OF_MEMORY, Kernel, best_rate, growing
from alexnet_edge.bench.machine.peaks import Peaks
from alexnet_edge.nvidia import cuda

_GPU_BUFFER_BYTES = 512 << 20
"""Several times the L2 cache of any GPU."""
_GPU_COPIES = 4
_TORCH_TYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""PyTorch's element types, by this package's; `tf32` is FP32 with operands rounded to TF32."""
_NO_PUBLIC_PRODUCT = dict.fromkeys(("int8", "fp8"), "PyTorch has no public product of this type on a GPU")


def gpu_peaks(threads: int, seconds: float) -> Peaks:
    """The best rates of the GPU within about `seconds`; `threads` is recorded."""
    gpu = cuda.require_gpu()
    how: dict[str, Any] = {}
    with cuda.Stream() as stream, cuda.Event() as start, cuda.Event() as end:
        size = min(_GPU_BUFFER_BYTES, gpu.memory_bytes // MAX_SHARE_OF_MEMORY >> 20 << 20)
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
    speeds: dict[str, float | None] = dict.fromkeys((*_TORCH_TYPES, *_NO_PUBLIC_PRODUCT))
    unavailable = dict(_NO_PUBLIC_PRODUCT)
    if torch is None:
        unavailable = {**dict.fromkeys(_TORCH_TYPES, reason), **unavailable}
    else:
        data = torch.ones(size // 4, device="cuda")
        reading = Kernel(name="torch sum", amount=size, run_s=_torch_timed(torch, data.sum))
        best, details = best_rate([reading], seconds=0.1 * seconds)
        del data, reading
        if best > read:
            read, how["read"] = best, details
        for element in _TORCH_TYPES:
            speeds[element], how[element] = _torch_peak(torch, element, seconds=0.15 * seconds)
    return Peaks(
        device="cuda",
        threads=threads,
        read_bytes_per_s=read,
        copy_bytes_per_s=copied,
        multiply_adds_per_s=speeds,
        how=how,
        unavailable=unavailable,
    )


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
