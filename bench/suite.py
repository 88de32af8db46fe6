"""What the pytest suites of this folder run: the cases, and the clock that replays measured samples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_edge.artifact import Format, Precision
from alexnet_edge.environment import gpu_node
from alexnet_edge.errors import MissingComponentError, install_command
from alexnet_edge.nvidia.libraries import default_runtime
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.openvino import int8_overflows

BATCHES = (1, 8, 32)
"""Batch 1 is the latency suite's, the others are the throughput suite's."""


@dataclass(frozen=True)
class Case:
    """One thing to run; `format` None is the checkpoint in PyTorch, eager."""

    format: Format | None
    precision: Precision
    device: Device = "cpu"

    @property
    def id(self) -> str:
        return f"{self.format or 'torch'}-{self.precision}-{self.device}"

    def why_skipped(self) -> str | None:
        """Why this machine cannot run the case; None where it can."""
        if self.device == "cuda" and not gpu_node():
            return "no NVIDIA GPU on this machine"
        if self.format == "trt":
            try:
                if default_runtime() is None:
                    return "neither TensorRT, trtexec nor TensorRT-RTX is installed"
            except MissingComponentError as error:
                return str(error)
        needed = {"torch": "train"}
        if self.format in ("onnx", "openvino"):
            needed |= {"onnx": "export", "onnxruntime": "onnx"}
        if self.format == "openvino":
            needed["openvino"] = "openvino"
        for module, extra in needed.items():
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed: {install_command(extra)}"
        if self.format == "openvino" and self.precision == "int8":
            return int8_overflows()
        return None


_EVERYDAY: tuple[Precision, ...] = ("fp32", "fp16", "int8")
ARTIFACT_CASES: tuple[Case, ...] = (
    Case("torchscript", "fp32"),
    Case("pt2", "fp32"),
    *(Case("onnx", precision) for precision in _EVERYDAY),
    *(Case("openvino", precision) for precision in _EVERYDAY),
    Case("onnx", "fp16", "cuda"),
    *(Case("trt", precision, "cuda") for precision in _EVERYDAY),
)
CASES: tuple[Case, ...] = (Case(None, "fp32"), Case(None, "fp32", "cuda"), *ARTIFACT_CASES)


class ReplayClock:
    """A clock that advances by one measured sample each time that sample is replayed, and not otherwise."""

    __name__ = "worker_perf_counter"

    def __init__(self) -> None:
        self._now_ns = 0

    def __call__(self) -> float:
        return self._now_ns / 1e9

    def replay(self, samples_ns: Sequence[int]) -> Callable[[], None]:
        """A callable that takes, on this clock, as long as the next of the samples."""
        self._now_ns = 0  # small numbers: a float holds them to a fraction of a nanosecond
        remaining = iter(samples_ns)

        def take_next() -> None:
            self._now_ns += next(remaining)

        return take_next


CLOCK = ReplayClock()

_OF_SUBJECT = (
    *("label", "file", "format", "precision", "runtime", "architecture", "sha256", "checkpoint_sha256", "bytes"),
    *("device", "threads", "details", "roofline"),
)


def replay(benchmark: Any, subject: Mapping[str, Any], batch: int) -> Mapping[str, Any]:
    """Give the samples of `batch` to pytest-benchmark, with everything that makes them a result; returns their summary.

    `subject` is an entry of the results' `subjects`, with what the results say of all of them as `bench`; the test's
    pytest-benchmark timer must be `CLOCK`.
    """
    assert not subject["error"], subject["error"]
    entry: Mapping[str, Any]
    (entry,) = (summary for summary in subject["batches"] if summary["batch"] == batch)
    samples_ns = [value for round_ in entry["samples"] for value in round_["samples_ns"]]
    first = subject["rounds"][0]
    benchmark.extra_info.update(
        {
            **{name: subject[name] for name in _OF_SUBJECT},
            **subject["bench"],
            "rounds": len(subject["rounds"]),
            "samples_per_round": [len(round_["samples_ns"]) for round_ in entry["samples"]],
            "warmup_counts": [round_["warmup_count"] for round_ in entry["samples"]],
            "load_ns": [round_["load_ns"] for round_ in subject["rounds"]],
            "first_ns": [round_["first_ns"] for round_ in subject["rounds"]],
            "peak_memory_bytes": first["peak_memory_bytes"],
            "before": first["before"],
            "after": subject["rounds"][-1]["after"],
            "proof": subject["parity"].get("verdict", "reference"),
            **{name: value for name, value in entry.items() if not name.endswith("samples")},
        }
    )
    benchmark.pedantic(CLOCK.replay(samples_ns), rounds=len(samples_ns), iterations=1, warmup_rounds=0)
    return entry
