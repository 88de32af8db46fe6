"""Results files of few figures, for tests of what reads and compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alexnet_edge.bench.rounds import results as own


def an_entry(rounds: Sequence[Sequence[int]], p50: float, **changes: Any) -> dict[str, Any]:
    """A batch of one image, by the samples of each round."""
    return {
        "batch": 1,
        "percentiles_ns": {"p50": p50},
        "verdict": "VALID",
        "reasons": [],
        "samples": [{"samples_ns": list(samples_ns)} for samples_ns in rounds],
        **changes,
    }


def a_subject(*entries: dict[str, Any], precision: str = "fp32", **changes: Any) -> dict[str, Any]:
    """An ONNX file, measured with two threads."""
    return {
        "label": f"onnx {precision}",
        "file": f"artifacts/alexnet_{precision}.onnx",
        "format": "onnx",
        "precision": precision,
        "sha256": precision * 16,
        "bytes": 1000,
        "device": "cpu",
        "threads": 2,
        "parity": {},
        "skipped": "",
        "error": "",
        "details": {},
        "batches": list(entries),
        **changes,
    }


def results_of(*subjects: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A file of the present schema."""
    return {
        "schema": own.SCHEMA,
        "kind": own.KIND,
        "clock": "host end-to-end",
        "environment": {"cpu": "Some CPU", "cpus": 2, "cpu_governor": None, "versions": {"onnxruntime": "1.20"}},
        "settings": {"like": None},
        "inputs": {"arrays": {"key": {"sha256": "b" * 64}}},
        "interrupted": False,
        "power": {"mode": {"nvpmodel": {"id": 0, "name": "MAXN"}, "jetson_clocks": None}},
        "subjects": list(subjects),
        **changes,
    }


def times_of_trtexec(count: int = 100, factor: float = 1.0, **changes: float) -> list[dict[str, float]]:
    """What `trtexec --exportTimes` writes, of inferences after its warm-up."""
    compute_ms = factor * 0.1
    fields = {"h2dMs": 0.0, "computeMs": compute_ms, "d2hMs": 0.0, "latencyMs": compute_ms, **changes}
    return [{"startComputeMs": 300.0 + index, **fields} for index in range(count)]
