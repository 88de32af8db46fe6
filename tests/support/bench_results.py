"""Results of a bench nobody ran: plausible figures of AlexNet in the shape of a results file, the same for the same seed.

For tests of what reads results. Times come from a small model of a machine (bytes over bandwidth, multiply-adds over
speed, an overhead per inference), so that batches, threads, precisions, layers and energy fit together.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from alexnet_edge import records
from alexnet_edge.bench.timing.settings import MeasureSettings
from alexnet_edge.network.layers import architecture, layer_costs
from alexnet_edge.proof.stats import percentile_of

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
SPEED = {"cpu": {"fp32": 45e9, "fp16": 45e9, "int8": 120e9}, "cuda": {"fp32": 9e11, "fp16": 3.5e12, "int8": 7e12}}
"""Multiply-adds per second, of one thread or of the whole GPU."""
READ = {"cpu": 19e9, "cuda": 55e9}
IMAGES = 325


SUFFIXES = {"checkpoint": "safetensors", "openvino": "xml", "trt": "engine"}
RUNTIMES = {"checkpoint": "torch", "pt2": "torch", "ts": "torchscript", "onnx": "onnxruntime", "trt": "tensorrt"}


@dataclass(frozen=True)
class Kind:
    """One artifact of the made-up bench."""

    format: str
    precision: str
    slower: float
    """Times over the floor of the machine."""
    overhead_us: float = 60
    layers_timed: bool = True
    skipped: str = ""
    error: str = ""
    accuracy_change: int = 0
    """Images more or fewer right."""
    flips: int = 0
    verdict: str = "passed"
    reasons: tuple[str, ...] = ()
    """Why batch 1 is invalid."""

    @property
    def label(self) -> str:
        return f"{'torch' if self.format == 'checkpoint' else self.format} {self.precision}"

    @property
    def file(self) -> str:
        suffix = SUFFIXES.get(self.format, self.format)
        return (
            "runs/flowers/model.safetensors"
            if suffix == "safetensors"
            else f"artifacts/alexnet_{self.precision}.{suffix}"
        )

    @property
    def runtime(self) -> str:
        return RUNTIMES.get(self.format, self.format)

    @property
    def device(self) -> str:
        return "cuda" if self.format == "trt" else "cpu"


KINDS = (
    Kind("checkpoint", "fp32", 1.9, 900),
    Kind("ts", "fp32", 1.75, 500, reasons=("drift of +14% within a round", "two modes, 9.8 and 12.1 ms")),
    Kind("pt2", "fp32", 1.9, 1300, layers_timed=False),
    Kind("onnx", "fp32", 1.35),
    Kind("onnx", "fp16", 2.6, 300, flips=1),
    Kind("onnx", "int8", 2.2, flips=3, accuracy_change=-1),
    Kind("openvino", "fp16", 1.25, flips=1),
    Kind("openvino", "int8", 1.5, flips=4, accuracy_change=1),
    Kind("trt", "fp16", 1.4, 90, flips=1),
    Kind("trt", "int8", 1.6, 85, flips=12, accuracy_change=-7, verdict="failed"),
)
PARTS = ("gpu", "power", "cold", "scenarios", "roofline", "harness")
NO_GPU = "no NVIDIA GPU here: built, not run"


def make_results(
    *,
    seed: int = 0,
    kinds: tuple[Kind, ...] = KINDS,
    threads: tuple[int, ...] = (4,),
    batches: tuple[int, ...] = (1, 4, 16),
    samples: int = 700,
    without: frozenset[str] = frozenset(),
    interrupted: bool = False,
) -> dict[str, Any]:
    """A results file of schema 2; what it is `without` (of `PARTS`) is null or absent, with its reason."""
    gpu, power, cold, scenarios, roofline, harness = (part not in without for part in PARTS)
    rng = np.random.default_rng(seed)
    own = records.to_builtins(MeasureSettings(batches=batches, threads=None, percentile=99))
    settings = {**own, "cold": cold, "in_flight": 2, "like": None}
    peaks = [_peaks("cpu", count) for count in threads] + ([_peaks("cuda", threads[-1])] if gpu else [])
    subjects = []
    for kind in kinds:
        if kind.device == "cuda" and not gpu:
            kind = replace(kind, skipped=NO_GPU, verdict="not run")
        for count in threads if kind.device == "cpu" else threads[-1:]:
            subjects.append(_subject(rng, kind, count, len(threads) > 1, batches, samples, peaks, without))
    references = {entry["threads"]: entry for entry in subjects if entry["format"] == "checkpoint"}
    for subject in subjects:
        reference = references.get(subject["threads"], subject)
        for slow, entry in zip(reference["batches"], subject["batches"], strict=False):
            if reference is not subject:
                ratio = slow["percentiles_ns"]["p50"] / entry["percentiles_ns"]["p50"]
                interval = [ratio * 0.985, ratio * 1.016]
                entry["speed_up"] = {"against": reference["label"], "ratio": ratio, "interval": interval}
    clock = {"min": 729.6, "max": 1510.4, "median": 729.6, "fell_from": 729.6, "fell_to": 729.6}
    idle = {
        "start_ns": 6_000_000_000, "end_ns": 9_000_000_000, "meter": "INA3221", "rail": "VDD_IN", "samples": 30,
        "watts": 4.613, "joules": 13.839, "rail_watts": {"VDD_IN": 4.613, "VDD_CPU_GPU_CV": 0.792, "VDD_SOC": 1.391},
        "clocks": {"CPU": clock}, "temperatures_c": {"cpu": [44.5, 44.0, 44.5], "gpu": [43.0, 43.5, 43.5]},
        "events": {}, "throttled": [], "mode": "15W (0)", "governor": "schedutil", "reasons": [],
    }  # fmt: skip
    no_meter = "this machine has no power meter that can be read: no INA3221, RAPL is for root only"
    return {
        "schema": 2,
        "kind": "alexnet-edge bench",
        "created": "2026-03-04T09:15:00+00:00",
        "command": ["alexnet-edge", "bench", "--batch", "1", "artifacts/alexnet_int8.onnx"],
        "clock": "host end-to-end: prepare, enqueue, synchronize and fetch, from host memory to host memory",
        "load": "from the path to a session that can answer, checksum included, importing the library not included",
        "confidence": 0.95,
        "environment": {
            "os": "Linux 5.15.148-tegra", "machine": "aarch64", "cpu": "NVIDIA Jetson Orin Nano Developer Kit",
            "cpus": 6, "cpu_features": ["asimddp", "i8mm"], "cpu_governor": "schedutil",
            "last_level_cache_bytes": 4 << 20, "memory_bytes": 7990 << 20, "l4t": "36.4.3",
            "gpu": "Orin" if gpu else None,
            "versions": {"python": "3.10.12", "alexnet-edge": "0.1.0", "onnxruntime": "1.23.0", "tensorrt": "10.3.0"},
        },
        "settings": settings,
        "threads": threads[-1],
        "inputs": {
            "images": 16,
            "source": {"kind": "folder", "path": "data/flowers", "split": "val"},
            "arrays": {"90d7cf197346": {"preprocessing": {"resize": 256, "crop": 227}, "shape": [16, 3, 227, 227],
                                        "sha256": _sha("inputs")}},
        },
        "interrupted": interrupted,
        "finished": not interrupted,
        "isolate": True,
        "pinned_cpus": [0, 1, 2, 3],
        "power": {
            "meter": "INA3221" if power else None, "reason": "" if power else no_meter,
            "mode": {"nvpmodel": {"id": 0, "name": "15W"}, "jetson_clocks": None, "cpu_governor": "schedutil",
                     "reasons": {"jetson_clocks": "jetson_clocks --show: run me as root"}},
            "idle": idle if power else None, "set": None, "reasons": [],
        },
        "peaks": peaks if roofline else [],
        "harness": {
            "sample_ns": {"p50": 641.0, "p99": 1153.0},
            "sample_loop_ns": 922.4,
            "samples": 1_084_000,
            "loadgen_query_ns": {"p50": 3127.0, "p90": 9871.0} if scenarios else None,
            "loadgen_loop_ns": 7340.0 if scenarios else None,
            "queries": 136_000 if scenarios else None,
            "unavailable": "" if scenarios else "mlperf_loadgen is not installed",
        } if harness else None,
        "subjects": subjects,
    }  # fmt: skip


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _peaks(device: str, threads: int) -> dict[str, Any]:
    many = threads**0.9 if device == "cpu" else 1
    return {
        **{"device": device, "threads": threads},
        "read_bytes_per_s": READ[device] * (threads**0.35 if device == "cpu" else 1),
        "copy_bytes_per_s": 0.8 * READ[device] if device == "cpu" else None,
        "multiply_adds_per_s": {
            "fp32": SPEED[device]["fp32"] * many,
            "fp16": None if device == "cpu" else SPEED[device]["fp16"],
            "int8": SPEED[device]["int8"] * many,
        },
        "how": {
            "read": {"kernel": "8 sums of a float32 array", "kernels": {}},
            "fp32": {"kernel": "float32 product 1024", "kernels": {}},
            "buffer_bytes": 256 << 20,
        },
        "unavailable": {"fp16": "this processor has no half-precision arithmetic"} if device == "cpu" else {},
    }


def _parity(kind: Kind) -> dict[str, Any]:
    if kind.format == "checkpoint":
        return {}
    if kind.verdict == "not run":
        return {"verdict": "not run", "reasons": [NO_GPU], "warnings": []}
    right = 280
    agree = 1 - kind.flips / IMAGES
    reasons = [] if kind.verdict == "passed" else [f"top-1 agreement {agree:.1%} is below 98.0%"]
    return {
        "verdict": kind.verdict,
        "reasons": reasons,
        "warnings": [],
        "figures": {
            **dict.fromkeys(("num_images", "num_labelled"), IMAGES),
            "max_abs_error": {"fp32": 9.5e-6, "fp16": 0.0059, "int8": 1.1129}[kind.precision],
            "top1_agreement": agree,
            "top1_agreement_interval": [max(0.0, agree - 0.0117), min(1.0, agree + 0.0024)],
            "reference_accuracy": right / IMAGES,
            "candidate_accuracy": (right + kind.accuracy_change) / IMAGES,
            "accuracy_change": kind.accuracy_change / IMAGES,
            "mcnemar_p": 0.0156 if abs(kind.accuracy_change) > 5 else 1.0,
        },
    }


def _floors(kind: Kind, batch: int, peaks: dict[str, Any]) -> list[dict[str, Any]]:
    size = BYTES[kind.precision]
    speed = peaks["multiply_adds_per_s"][kind.precision]
    computed_in = kind.precision
    if speed is None:
        speed, computed_in = peaks["multiply_adds_per_s"]["fp32"], "fp32"
    layers = []
    for cost in layer_costs(architecture("two-tower", 5), batch=batch, weight_bytes=size, activation_bytes=size):
        moved = int(cost.weight_bytes + cost.activation_bytes)
        memory, compute = moved / peaks["read_bytes_per_s"] * 1e9, cost.multiply_adds / speed * 1e9
        layers.append(
            {
                "name": cost.name, "bytes": moved, "multiply_adds": cost.multiply_adds, "precision": kind.precision,
                "computed_in": computed_in, "memory_floor_ns": memory, "compute_floor_ns": compute,
                "floor_ns": max(memory, compute), "bound": "memory" if memory > compute else "compute",
                "measured_ns": None, "share": None, "above_ns": None,
            }
        )  # fmt: skip
    return layers


def _spread(rng: np.random.Generator, centre_ns: float, count: int, noise: float = 0.02) -> list[int]:
    values = centre_ns * (1 + np.abs(rng.normal(0, noise, count)) + (rng.random(count) < 0.02) * rng.random(count))
    return [int(value) for value in values]


def _stats(samples: list[int]) -> dict[str, float | int | None]:
    values = np.asarray(samples, np.float64)
    return {
        "count": len(samples), "mean": float(values.mean()), "min": int(values.min()), "max": int(values.max()),
        **{f"p{p:g}": percentile_of(values, p) for p in (50, 90, 95, 99)},
        "cv": float(values.std(ddof=1) / values.mean()),
    }  # fmt: skip


def _summary(batch: int, rounds: list[list[int]], reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    pooled = np.asarray([value for samples in rounds for value in samples], np.float64)
    median = float(np.median(pooled))
    per_s = len(pooled) / (pooled.sum() / 1e9)
    return {
        "batch": batch, "count": len(pooled),
        "mean_ns": float(pooled.mean()), "min_ns": int(pooled.min()), "max_ns": int(pooled.max()),
        "percentiles_ns": {f"p{p:g}": percentile_of(pooled, p) for p in (50, 90, 95, 99, 99.9)},
        "median_interval_ns": [median * 0.993, median * 1.008],
        "round_medians_ns": [float(np.median(samples)) for samples in rounds],
        "cv": float(pooled.std(ddof=1) / pooled.mean()), "drift": 0.013, "modes_ns": None, "other_cpus": 0.04,
        "images_per_s": batch * per_s, "queries_per_s": per_s,
        "valid": not reasons, "reasons": list(reasons), "verdict": "INVALID" if reasons else "VALID",
    }  # fmt: skip


def _entry(
    rng: np.random.Generator, kind: Kind, batch: int, median_ns: float, samples: int, without: frozenset[str]
) -> dict[str, Any]:
    cold = "cold" not in without
    count = samples if batch == 1 else 80
    rounds = [_spread(rng, median_ns, -(-count // 3)) for _ in range(3)]
    entry: dict[str, Any] = _summary(batch, rounds, kind.reasons if batch == 1 else ())
    unavailable: dict[str, str] = {}
    cold_ns = median_ns * 1.35 + 180e3
    cold_rounds = [_spread(rng, cold_ns, 40, 0.05) for _ in range(3)] if cold else []
    if not cold:
        unavailable["cold"] = "switched off"
    device = pipelined = energy = None
    if kind.device == "cuda":
        h2d, d2h = 24e3 + 31e3 * batch, 6.2e3
        device = {
            "h2d_ns": _stats(_spread(rng, h2d, 200)),
            "compute_ns": _stats(_spread(rng, median_ns - h2d - d2h, 200)),
            "d2h_ns": _stats(_spread(rng, d2h, 200)),
            "latency_ns": _stats(_spread(rng, median_ns, 200)),
            "enqueue_ns": _stats(_spread(rng, 41e3, 200)),
            **{"cuda_graph": False, "in_flight": 1, "like": None},
            "graph": {"compute_ns": _stats(_spread(rng, median_ns - h2d - d2h - 17e3, 200))} if batch == 1 else None,
            "warnings": [],
        }
        if batch != 1:
            unavailable["graph"] = "captured for the first batch only"
        per_s = 1.18e9 / median_ns
        pipelined = {"in_flight": 2, "images_per_s": per_s * batch, "queries_per_s": per_s, "count": 400,
                     "duration_ns": int(400e9 / per_s)}  # fmt: skip
    else:
        unavailable |= dict.fromkeys(("device", "graph", "pipelined"), "the processor answers at once: no device clock")
    if "power" not in without:
        watts = 11.9 if kind.device == "cuda" else 8.7 + 0.4 * (kind.precision == "int8")
        joules = watts / entry["images_per_s"]
        energy = {
            "rail": "VDD_IN", "watts": watts, "idle_watts": 4.613, "mj_per_image": joules * 1e3,
            "net_mj_per_image": (watts - 4.613) / entry["images_per_s"] * 1e3,
            "images_per_s_per_watt": entry["images_per_s"] / watts, "temperature_c": [47.5, 51.0],
            "clocks": {"CPU": [1510.4, 1510.4], "GPU": [624.75, 624.75]},
            "reasons": [],
        }  # fmt: skip
    else:
        unavailable["energy"] = "this machine has no power meter that can be read"
    return {
        **entry,
        "cold": {**_summary(batch, cold_rounds), "flushed_bytes": 64 << 20} if cold else None,
        **{"device": device, "pipelined": pipelined, "unavailable": unavailable, "energy": energy, "speed_up": None},
        "samples": [_raw(batch, values) for values in rounds],
        "cold_samples": [_raw(batch, values) for values in cold_rounds],
    }


def _raw(batch: int, samples: list[int]) -> dict[str, Any]:
    return {
        "batch": batch, "samples_ns": samples, "duration_ns": sum(samples), "warmup_count": 20, "warmup_ns": 210_000_000,
        "warmup_stable": True, "other_cpus": 0.04, "started_ns": 7_000_000_000,
    }  # fmt: skip


def _subject(
    rng: np.random.Generator,
    kind: Kind,
    threads: int,
    swept: bool,
    batches: tuple[int, ...],
    samples: int,
    peaks: list[dict[str, Any]],
    without: frozenset[str],
) -> dict[str, Any]:
    suffix = f", {threads} thread{'' if threads == 1 else 's'}" if swept and kind.device == "cpu" else ""
    places = {(entry["device"], entry["threads"]): index for index, entry in enumerate(peaks)}
    at = places.get((kind.device, threads))  # a subject that needs an absent GPU has none
    entries, roof = [], None
    if not kind.skipped and not kind.error and at is not None:
        for batch in batches:
            floor = sum(layer["floor_ns"] for layer in _floors(kind, batch, peaks[at]))
            median = floor * kind.slower + kind.overhead_us * 1e3
            entries.append(_entry(rng, kind, batch, median, samples, without))
        if "roofline" not in without:
            roof = _roofline(rng, kind, entries[0], at, peaks[at])
    state = {
        "cpu_governor": "schedutil", "cpu_mhz": 1510.4, "temperature_c": 47.5, "load_average_1min": 0.31,
        "gpu_mhz": 624.75, "emc_mhz": 2133.0, "temperatures_c": {"cpu": 47.5, "gpu": 46.0},
        "throttled": [], "throttle_counts": {},
    }  # fmt: skip
    round_ = {
        "import_ns": 812_000_000, "load_ns": int(4.1e8 * BYTES[kind.precision] / 4), "runtime_load_ns": 190_000_000,
        "first_ns": 31_000_000, "details": {"runtime": kind.runtime, "device": kind.device, "threads": threads},
        "peak_memory_bytes": int(2.4e8 * BYTES[kind.precision] / 4 + 1.3e8),
        "before": state, "after": {**state, "temperature_c": 51.0},
    }  # fmt: skip
    requested = [
        {"name": name, "requested": kind.precision, "built": kind.precision, "evidence": "element types in the graph",
         "placement": "", "kernel": ""}
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    ]  # fmt: skip
    calibration = {
        "method": "entropy", "num_images": 512, "images_sha256": _sha("images"),
        "source": {"kind": "folder", "path": "data/flowers", "split": "train"}, "skipped": [],
        "amax": {"conv1": 151.0, "conv2": 116.65}, "saturated": {"conv1": 4.1e-7, "conv2": 1.23e-6},
        "table_sha256": _sha("table"),
    }  # fmt: skip
    return {
        "label": kind.label + suffix,
        **{name: getattr(kind, name) for name in ("file", "format", "precision", "runtime")},
        "architecture": "two-tower",
        "sha256": _sha("checkpoint" if kind.format == "checkpoint" else kind.file),
        "bytes": 57_000_000 * BYTES[kind.precision] + 1234,
        "checkpoint_sha256": _sha("checkpoint"),
        **{"device": kind.device, "threads": threads},
        "parity": _parity(kind),
        "layers": [] if kind.format == "checkpoint" else requested,
        "calibration": calibration if kind.precision == "int8" else None,
        "metrics": {"top1": 280 / IMAGES} if kind.format == "checkpoint" else {},
        **{"skipped": kind.skipped, "error": kind.error},
        "details": round_["details"] if entries else {},
        "rounds": [round_] * 3 if entries else [],
        "batches": entries,
        "roofline": roof,
        "scenarios": [_scenario(rng, name, entries) for name in ("single-stream", "server", "offline")]
        if entries and "scenarios" not in without and kind.precision == "int8"
        else [],
    }


def _roofline(
    rng: np.random.Generator, kind: Kind, entry: dict[str, Any], at: int, peaks: dict[str, Any]
) -> dict[str, Any]:
    layers = _floors(kind, entry["batch"], peaks)
    floor, p50 = sum(layer["floor_ns"] for layer in layers), entry["percentiles_ns"]["p50"]
    if kind.layers_timed:
        weights = rng.dirichlet(np.full(8, 3.0))
        spare = 0.9 * (p50 - floor)
        for layer, weight in zip(layers, weights, strict=True):
            above = float(spare * weight)
            layer |= {"measured_ns": layer["floor_ns"] + above, "above_ns": above,
                      "share": layer["floor_ns"] / (layer["floor_ns"] + above)}  # fmt: skip
    worst = max(layers, key=lambda layer: layer["above_ns"] or 0)["name"] if kind.layers_timed else None
    notes = ["stored in fp16, computed in fp32: conv1, conv2, conv3, conv4, conv5, fc6, fc7, fc8"]
    nodes = [
        {"name": f"/{layer['name']}/Conv", "kind": "Conv", "ns": layer["measured_ns"], "layer": layer["name"]}
        for layer in layers
    ]
    return {
        "batch": entry["batch"], "peaks": at, "floor_ns": floor, "p50_ns": p50, "share": floor / p50, "layers": layers,
        "other_ns": 0.1 * (p50 - floor) if kind.layers_timed else None, "worst": worst,
        "unavailable": "" if kind.layers_timed else "the runtime has no profile that tells layers apart",
        "notes": notes if layers[0]["computed_in"] != kind.precision else [],
        "nodes": nodes if kind.layers_timed else [],
    }  # fmt: skip


def _scenario(rng: np.random.Generator, name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    p50 = entries[0]["percentiles_ns"]["p50"]
    samples = _spread(rng, p50 * 1.02, 900)
    values = np.asarray(samples, np.float64)
    per_s = 1e9 / p50
    metric = {
        "single-stream": {"name": "90th percentile latency", "value": percentile_of(values, 90), "unit": "ns"},
        "server": {"name": "scheduled samples per second", "value": 0.78 * per_s, "unit": "samples/s"},
        "offline": {"name": "samples per second", "value": 1.09 * per_s, "unit": "samples/s"},
    }[name]
    reasons = ["latency bound of 15 ms exceeded at p99"] if name == "server" else []
    return {
        "scenario": name, "verdict": "INVALID" if reasons else "VALID", "reasons": reasons, "metric": metric,
        "percentiles_ns": {f"p{p:g}": percentile_of(values, p) for p in (50, 90, 95, 99)},
        "queries": len(samples), "samples": len(samples), "duration_ns": 60_000_000_000,
        "target_qps": 0.8 * per_s if name == "server" else None,
        "latency_bound_ns": 15_000_000 if name == "server" else None,
        "loadgen_version": "5.1.2", "settings": {"scenario": name, "seconds": 60.0},
        "summary": f"=====\nMLPerf Results Summary\n=====\nScenario : {name}\nResult is : "
        f"{'INVALID' if reasons else 'VALID'}\n",
        "harness_share": 3127.0 / p50, "percentile": 90.0, "early_stopping": "",
        "note": "60 s, not the 600 s of a submission", "logs": "reports/bench-logs",
    }  # fmt: skip


def kinds_with_error() -> tuple[Kind, ...]:
    """Few subjects, each of which has something wrong."""
    first, second, third = KINDS[0], KINDS[3], KINDS[5]
    return (
        first,
        replace(second, error="the worker was ended by SIGKILL"),
        replace(third, reasons=("coefficient of variation 31%",)),
    )
