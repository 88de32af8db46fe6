"""What the harness itself costs: the time that measuring adds to an inference.

Two figures come from the null session, which answers at once: what `measure_latency` adds to a sample, and what LoadGen and
the system under test add to a query. A third is from a real artifact: the median of this package's measurement over the
median of a loop in plain Python around the same ONNX Runtime session.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.bench.loadgen.scenarios import run_scenario
from alexnet_edge.bench.loadgen.settings import ScenarioSettings
from alexnet_edge.bench.timing.clock import batches_of
from alexnet_edge.bench.timing.latency import measure_latency
from alexnet_edge.bench.timing.process import NULL
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.errors import UserError, install_command
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.proof.stats import bootstrap_medians, interval_of, percentile_of
from alexnet_edge.sessions import open_session
from alexnet_edge.sessions.base import Device
from alexnet_edge.sessions.null import NullSession
from alexnet_edge.sessions.onnxruntime import OnnxRuntimeSession

_IMAGES = 16
_INPUT_SIZE = 227
_WARMUP = 5
_OF_LOADGEN = ("loadgen_query_ns", "loadgen_loop_ns", "queries")


def harness_overhead(*, inputs: Path | None = None, seconds: float = 1.0, logs: Path | None = None) -> dict[str, Any]:
    """What the harness costs on this machine, in nanoseconds.

    `inputs` has preprocessed images, `.npy`, `(N, 3, S, S)` float32; None for noise of AlexNet's size. Each of the two is
    measured for at least `seconds`. `logs` is the folder for LoadGen's logs; None to drop them.

    Returns:
        `sample_ns` (`p50`, `p99` of the samples that `measure_latency` takes of a session that answers at once) and
        `samples`; `sample_loop_ns`, its wall time per sample, the loop around them included; `loadgen_query_ns` (`p50`, `p90`
        of LoadGen's SingleStream latencies on that session), `queries` and `loadgen_loop_ns`, LoadGen's wall time per
        query. The latter three are None where LoadGen is not installed; `unavailable` says so.

    Raises:
        UserError: when the inputs cannot be read.
        OutputError: when the logs cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="alexnet-edge-harness-") as folder:
        if inputs is None:
            inputs = Path(folder) / "inputs.npy"
            shape = (_IMAGES, 3, _INPUT_SIZE, _INPUT_SIZE)
            np.save(inputs, np.random.default_rng(0).standard_normal(shape, np.float32))
        x_NCHW = _read(inputs)
        settings = MeasureSettings(batches=(1,), rounds=1, percentile=99, min_seconds=seconds)
        with NullSession(input_size=x_NCHW.shape[-1]) as session:
            measured = measure_latency(session, x_NCHW, batch=1, settings=settings)
        figures: dict[str, Any] = {
            "sample_ns": {f"p{value}": percentile_of(measured.samples_ns, value) for value in (50, 99)},
            "sample_loop_ns": measured.duration_ns / len(measured.samples_ns),
            "samples": len(measured.samples_ns),
        }
        if importlib.util.find_spec("mlperf_loadgen") is None:
            reason = f"mlperf_loadgen is not installed; run: {install_command('bench')}"
            return {**figures, **dict.fromkeys(_OF_LOADGEN), "unavailable": reason}
        result = run_scenario(
            NULL,
            ScenarioSettings(scenario="single-stream", seconds=seconds, percentile=90),
            inputs=inputs,
            logs=logs or Path(folder) / "logs",
        )
    return {
        **figures,
        "loadgen_query_ns": {name: result["percentiles_ns"][name] for name in ("p50", "p90")},
        "loadgen_loop_ns": result["duration_ns"] / result["queries"],
        "queries": result["queries"],
        "unavailable": "",
    }


def plain_loop_ratio(
    artifact: Path,
    *,
    inputs: Path,
    device: Device = "cpu",
    threads: int | None = None,
    blocks: int = 30,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """This package's median latency over that of a plain Python loop around the same ONNX Runtime session, batch 1.

    Both take turns in blocks within this process, each first in every other pair of blocks, so that a machine that slows
    down slows both; the ratio is the median of the pairs' ratios, which a few disturbed pairs do not move.

    `artifact` is an ONNX artifact, `inputs` has preprocessed images, `.npy`, `(N, 3, S, S)` float32. `threads` of None is
    every processor this process may use. `seconds` is the measuring time of both together, in `blocks` pairs of blocks.

    Returns:
        `ratio`, its 95 % bootstrap `interval`, `ours_p50_ns`, `plain_p50_ns` (medians of all samples), `blocks`, and `samples`
        of ours and of the plain loop.

    Raises:
        UserError: when the artifact is not one that ONNX Runtime runs, or the inputs cannot be read.
        ArtifactError: when it is missing or damaged.
    """
    for name, value in (("blocks", blocks), ("seconds", seconds)):
        if value <= 0 or not math.isfinite(value):
            raise UserError(f"{name} must be positive", value=value, fix="give a positive number")
    x_NCHW = _read(inputs)
    session = open_session(artifact, device=device, threads=threads)
    if not isinstance(session, OnnxRuntimeSession):
        raise UserError("the plain loop is one around ONNX Runtime", value=artifact, fix="give an ONNX artifact")
    settings = MeasureSettings(
        batches=(1,), device=device, rounds=1, percentile=50, min_seconds=seconds / blocks / 2, min_warmup_seconds=0
    )
    harness_samples, plain_samples = _in_turn(session, x_NCHW, settings, blocks=blocks)
    pairs = zip(harness_samples, plain_samples, strict=True)
    ratios = [float(np.median(own) / np.median(plain)) for own, plain in pairs]
    return {
        "ratio": float(np.median(ratios)),
        "interval": list(interval_of(bootstrap_medians([ratios]))),
        "ours_p50_ns": float(np.median(np.concatenate(harness_samples))),
        "plain_p50_ns": float(np.median(np.concatenate(plain_samples))),
        "blocks": blocks,
        "samples": [sum(map(len, harness_samples)), sum(map(len, plain_samples))],
    }


def _in_turn(
    session: OnnxRuntimeSession, x_NCHW: FloatArray, settings: MeasureSettings, *, blocks: int
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Samples of each block of the harness and of the plain loop, each first in every other pair of blocks."""
    inputs, least = batches_of(x_NCHW, 1), settings.samples_needed(1)
    harness_samples: list[tuple[int, ...]] = []
    plain_samples: list[list[int]] = []
    with session:
        runtime = session._session
        for number in range(2 * blocks):
            if number % 4 in (0, 3):
                plain_samples.append(_plain_loop(runtime, session.input.name, inputs, settings.min_seconds, least))
            else:
                harness_samples.append(measure_latency(session, x_NCHW, batch=1, settings=settings).samples_ns)
    return harness_samples, plain_samples


def _plain_loop(runtime: Any, name: str, inputs_NCHW: list[FloatArray], seconds: float, least: int) -> list[int]:
    """What anyone would write: `run`, timed from outside."""
    for x in inputs_NCHW[:_WARMUP]:
        runtime.run(None, {name: x})
    times: list[int] = []
    until = time.perf_counter_ns() + seconds * 1e9
    while time.perf_counter_ns() < until or len(times) < least:
        x = inputs_NCHW[len(times) % len(inputs_NCHW)]
        start = time.perf_counter_ns()
        runtime.run(None, {name: x})
        times.append(time.perf_counter_ns() - start)
    return times


def _read(inputs: Path) -> FloatArray:
    try:
        x_NCHW: FloatArray = np.load(inputs, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError("cannot read the inputs", value=inputs, fix="write them with numpy.save") from error
    return x_NCHW
