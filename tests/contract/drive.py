"""Drives this package's TensorRT code over the strict stand-ins of one release: `python drive.py JOB.json`.

One process per release, because two bindings do not fit into one. The job names the release, what to load, and the graphs
that the tests wrote; the answer, one JSON object on standard output, has an entry per case: what was set, what came out,
and every fault.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import engine_information
import numpy as np
from contract import strict, world
from contract.bindings import RELEASES, Binding

from alexnet_edge import records
from alexnet_edge.artifact import LayerPrecision, Precision, commit, layer_types, load_artifact
from alexnet_edge.errors import AlexNetEdgeError
from alexnet_edge.export.engines.features import Features, check
from alexnet_edge.export.engines.options import EngineOptions
from alexnet_edge.network.layers import LAYER_NAMES
from alexnet_edge.progress import QuietReporter

ONE_TYPE = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4"}
SIZE = 227


class Job:
    """The release under test and the cases that are run on it."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        release = next(entry for entry in RELEASES if entry.version == described["version"])
        stubs = tuple(map(Path, described["stubs"]))
        self.real = Binding(release=release, folder=Path(described["folder"]), stubs=stubs).load()
        self.fakes = strict.Fakes(self.real)
        self.trt: Any = self.fakes.install()
        self.simulation = world.Simulation(self.fakes)
        self.graphs = {name: Path(path) for name, path in described["graphs"].items()}
        self.weight_bytes: dict[str, int] = described["weight_bytes"]
        self.artifact: dict[str, Any] = described["artifact"]
        self.features = Features.detect(self.trt)

    def build(
        self,
        precision: Precision,
        folder: Path,
        *,
        gpu: bool = True,
        built: Mapping[str, str] | None = None,
        make_calibrator: Callable[[], Any] | None = None,
        state: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """One engine, through the same steps as an export.

        Args:
            precision: what to ask for.
            folder: where the engine goes.
            gpu: whether the machine has one.
            built: what the engine inspector is to find instead of what was asked for.
            make_calibrator: makes TensorRT's own calibrator.
            state: attributes of the simulation.
            options: those of `EngineOptions`.
        """
        from alexnet_edge.export.engines.tensorrt import build_engine

        self.simulation.reset(gpu=gpu, sm=(8, 9) if precision == "fp8" else (8, 7))
        self.simulation.plan = b"\0" * self.weight_bytes[precision]
        self.simulation.inspect = lambda network: self._information(network, built or {})
        engine = folder / "alexnet.engine"
        engine.write_bytes(b"the previous engine")
        reporter = _Reporter()
        answer: dict[str, Any] = {}
        try:
            asked = EngineOptions(**options)
            spec = check(asked, precision, self.features, "tensorrt")
            answer["graph"] = fed = spec.graph
            for name, value in (state or {}).items():
                setattr(self.simulation, name, value)
            result = build_engine(
                self.graphs[fed if asked.dla_core is None else f"{fed} dla {asked.max_batch}"],
                engine,
                spec,
                weight_bytes=self.weight_bytes[precision],
                size=SIZE,
                calibrator=make_calibrator() if make_calibrator is not None else None,
                reporter=reporter,
            )
            answer["build"] = dict(result.build)
            answer["layers"] = {layer.name: asdict(layer) for layer in result.layers}
        except AlexNetEdgeError as error:
            answer["error"] = [type(error).__name__, str(error)]
        except KeyboardInterrupt:
            answer["error"] = ["KeyboardInterrupt", ""]
        answer["engine"] = "kept" if engine.read_bytes() == b"the previous engine" else "written"
        answer["files"] = sorted(path.name for path in folder.iterdir())
        answer["progress"] = reporter.updates
        answer["stopped"] = self.simulation.stopped
        answer["calibration"] = self.simulation.calibration
        return answer | self._settings()

    def _information(self, network: Any, instead: Mapping[str, str]) -> str:
        """The engine inspector's JSON for the network that was built."""
        types = {name: self._computes(network, name) for name in LAYER_NAMES} | dict(instead)
        major = int(self.fakes.version.split(".")[0])
        if major == 8:
            return engine_information.engine_8(types)
        return engine_information.engine_10(types) if major == 10 else engine_information.engine_11(types)

    def _computes(self, network: Any, name: str) -> str:
        """What a builder that does as it is told makes of a layer."""
        of = self.fakes.values
        layers = of(network)["layers"]
        made = {tensor.name: layer for layer in layers for tensor in of(layer)["outputs"]}
        layer = next(entry for entry in layers if entry.name == name)
        if "precision" in of(layer):
            return ONE_TYPE[layer.precision.name]
        found = []
        for tensor in of(layer)["inputs"]:
            producer = made.get(tensor.name)
            quantised = producer is not None and producer.type.name == "DEQUANTIZE"
            found.append(ONE_TYPE[(of(producer)["inputs"][0] if quantised else tensor).dtype.name])
        if self.simulation.calibration:
            return "int8"
        return "int4" if "int4" in found else found[0]

    def _settings(self) -> dict[str, Any]:
        """What the builder was told."""
        record, of = self.fakes.record, self.fakes.values
        configs = [event.target for event in record.events if event.name == "build_serialized_network"]
        answer: dict[str, Any] = {"faults": list(record.faults), "builds": len(configs)}
        answer["host_code"] = record.values("Runtime", "engine_host_code_allowed")
        builds = record.calls("Builder", "build_serialized_network")
        if not builds:
            return answer
        state, network = of(builds[-1]["config"]), of(builds[-1]["network"])
        plain = ("builder_optimization_level", "DLA_core", "max_aux_streams", "progress_monitor")
        members = ("default_device_type", "hardware_compatibility_level", "profiling_verbosity")
        answer |= {
            "flags": sorted(state["set"]),
            "pools": state["pools"],
            "profiles": [
                {name: [list(shape) for shape in shapes] for name, shapes in of(profile)["shapes"].items()}
                for profile in state["profiles"]
            ],
            "network": sorted(
                name
                for name, flag in self.trt.NetworkDefinitionCreationFlag.__members__.items()
                if network["flags"] >> int(flag) & 1
            ),
            "precisions": {layer.name: layer.precision.name for layer in network["layers"] if "precision" in of(layer)},
            "timing_caches": [
                bytes(memoryview(call["serialized_timing_cache"])).decode()
                for call in record.calls("IBuilderConfig", "create_timing_cache")
            ],
            "timing_cache_set": "timing cache" in state,
        }
        answer |= {name: state[name].name for name in members if name in state}
        answer |= {
            name: state[name] if isinstance(state[name], int) else type(state[name]).__mro__[1].__name__
            for name in plain
            if name in state
        }
        return answer

    def calibrator(self, method: str, cache: Path | None, *, images: int = 10, batch: int = 2) -> Any:
        """This package's calibrator on zeros, its batches in the memory of the stand-in of a GPU."""
        from alexnet_edge.export.engines.calibrators import make_calibrator
        from alexnet_edge.nvidia import cuda

        x_NCHW = np.zeros((images, 3, 8, 8), np.float32)
        memory = cuda.DeviceBuffer()
        return make_calibrator(self.trt, method, [x_NCHW[:6], x_NCHW[6:]], batch=batch, cache=cache, memory=memory)

    def session(
        self, folder: Path, *, content: bytes = b"an engine", cuda_graph: bool = False, **build: Any
    ) -> dict[str, Any]:
        """An engine loaded and run: two batches of one size, one of another."""
        from alexnet_edge.sessions.tensorrt import TensorRTSession

        self.simulation.reset()
        artifact = self._engine(folder, content, build)
        answer: dict[str, Any] = {"outputs": []}
        try:
            with TensorRTSession(artifact, cuda_graph=cuda_graph) as session:
                for batch in (2, 2, 3):
                    x_NCHW = np.full((batch, 3, SIZE, SIZE), len(answer["outputs"]) + 1, np.float32)
                    session.prepare(x_NCHW)
                    for _ in range(3):
                        session.enqueue()
                    session.synchronize()
                    answer["outputs"].append(session.fetch().tolist())
                session.details()
        except AlexNetEdgeError as error:
            answer["error"] = [type(error).__name__, str(error)]
        record = self.fakes.record
        answer["held"] = self.simulation.gpu.held()
        answer["faults"] = list(record.faults)
        answer["executions"] = len(record.calls("IExecutionContext", "execute_async_v3"))
        answer["graph_launches"] = self.simulation.gpu.calls.count("cudaGraphLaunch")
        answer["shapes"] = [list(call["shape"]) for call in record.calls("IExecutionContext", "set_input_shape")]
        answer["contexts"] = len(record.calls("ICudaEngine", "create_execution_context"))
        answer["host_code"] = record.values("Runtime", "engine_host_code_allowed")
        answer["dla_core"] = record.values("Runtime", "DLA_core")
        answer["budgets"] = {
            name: record.values("ICudaEngine", name)
            for name in ("weight_streaming_budget", "weight_streaming_budget_v2")
            if record.values("ICudaEngine", name)
        }
        return answer

    def _engine(self, folder: Path, content: bytes, build: Mapping[str, Any]) -> Any:
        """An engine file with the manifest that an export would have written for it."""
        from alexnet_edge.artifact import Manifest
        from alexnet_edge.nvidia.libraries import platform_name

        layers = tuple(
            LayerPrecision(name=name, requested=kind, built=kind, evidence="none")
            for name, kind in layer_types("fp16").items()
        )
        told = {"builder": "tensorrt", "version": self.fakes.version, "platform": platform_name(), "sm": "sm87"}
        manifest = replace(records.convert(Manifest, self.artifact), layers=layers, build=told | dict(build))
        staged = folder / "staged.engine"
        staged.write_bytes(content)
        commit(staged, folder / "alexnet_fp16.engine", manifest)
        return load_artifact(folder / "alexnet_fp16.engine")


class _Reporter(QuietReporter):
    """Counts what it hears of progress."""

    updates = 0

    def update(self, completed: int, detail: str = "") -> None:
        self.updates += 1


Case = Callable[[Job, Path], dict[str, Any]]

DLA = {"dla_core": 1, "min_batch": 2, "opt_batch": 2, "max_batch": 2}


def _built(precision: Precision, **options: Any) -> Case:
    return lambda job, folder: job.build(precision, folder, **options)


def _run(**options: Any) -> Case:
    return lambda job, folder: job.session(folder, **options)


def _timing_cache(mode: str, *, there: bool) -> Case:
    def case(job: Job, folder: Path) -> dict[str, Any]:
        cache = folder / "timing.cache"
        if there:
            cache.write_bytes(b"times")
        answer = job.build("fp16", folder, timing_cache=cache, timing_cache_mode=mode)
        answer["cache"] = cache.read_bytes().decode() if cache.exists() else None
        return answer

    return case


def _calibrated(method: str, **options: Any) -> Case:
    """Two builds with one calibration cache: the first calibrates, the second finds the table."""

    def case(job: Job, folder: Path) -> dict[str, Any]:
        cache = folder / "calibration.table"

        def make() -> Any:
            return job.calibrator(method, cache)

        first = job.build("int8", folder, make_calibrator=make, calibrator=method, **options)
        second = job.build("int8", folder, make_calibrator=make, calibrator=method, **options)
        return first | {"again": second["calibration"], "faults": first["faults"] + second["faults"]}

    return case


def _tabled(**options: Any) -> Case:
    """INT8 with this package's own ranges, as a table in the place of a calibrator's cache."""

    def case(job: Job, folder: Path) -> dict[str, Any]:
        from alexnet_edge.export.engines.calibrators import calibration_table, make_calibrator, table_header
        from alexnet_edge.network.layers import architecture

        table = folder / "ranges.table"
        ranges = dict.fromkeys(LAYER_NAMES, 4.0)
        own = dict.fromkeys(("conv1", "conv2", "fc8"), 8.0)
        text = calibration_table(architecture("one-tower", 4), ranges, own, header=table_header(job.fakes.version))
        table.write_text(text, encoding="utf-8")

        def make() -> Any:
            return make_calibrator(job.trt, "entropy2", [], batch=1, cache=table, memory=None)

        return job.build("int8", folder, make_calibrator=make, calibrator="table", **options)

    return case


def _streamed(job: Job, folder: Path) -> dict[str, Any]:
    if job.features.typing == "weak":  # such engines are strongly typed
        return {"lacking": "weight streaming", "faults": []}
    return job.session(folder, weight_streaming=True)


LAYER_MS = {"Reformatting CopyNode for Input Tensor 0 to conv1": 0.25, "conv1 + conv1/relu": 1.5, "fc8": 0.5}
"""Milliseconds of each layer in the first profiled inference; every further one takes a millisecond longer."""


def _profiled(*, cuda_graph: bool) -> Case:
    """The session's own profile. The context calls the profiler as TensorRT does: while `enqueue` runs where
    `enqueue_emits_profile` is set, otherwise when it is asked to report, and then only for what has run since."""

    def case(job: Job, folder: Path) -> dict[str, Any]:
        from alexnet_edge.sessions.tensorrt import TensorRTSession

        fakes, scripts = job.fakes, job.fakes.scripts
        execute = scripts["IExecutionContext", "execute_async_v3"]
        answer: dict[str, Any] = {"reported": 0, "emitted": 0}
        pending, refuses = 0, False

        def enqueue(context: Any, stream_handle: int) -> bool:
            nonlocal pending
            if fakes.values(context).get("profiler") is not None:
                pending += 1
                answer["emitted"] += fakes.values(context).get("enqueue_emits_profile", True)
            return bool(execute(context, stream_handle))

        def report(context: Any) -> bool:
            nonlocal pending
            if refuses:
                return False
            assert pending == 1, "one report per inference"
            pending = 0
            for name, ms in LAYER_MS.items():
                fakes.values(context)["profiler"].report_layer_time(name, ms + answer["reported"])
            answer["reported"] += 1
            return True

        job.simulation.reset()
        x_NCHW = np.ones((2, 3, SIZE, SIZE), np.float32)
        changed = {
            ("IExecutionContext", "execute_async_v3"): enqueue,
            ("IExecutionContext", "report_to_profiler"): report,
        }
        artifact = job._engine(folder, b"an engine", {})
        calls = job.simulation.gpu.calls
        with mock.patch.dict(scripts, changed), TensorRTSession(artifact, cuda_graph=cuda_graph) as session:
            before_NK = session.run(x_NCHW)
            session.run(x_NCHW)
            launches = calls.count("cudaGraphLaunch")
            nodes = session.node_times(x_NCHW, runs=3) or []
            answer["graph_launches"] = calls.count("cudaGraphLaunch") - launches
            answer["nodes"] = [[node.name, node.kind, node.ns] for node in nodes]
            answer["not_prepared"] = _refusal(session.enqueue)
            answer["same_answers"] = bool((session.run(x_NCHW) == before_NK).all())
            answer["profiled_after"] = pending
            refuses = True
            answer["refused"] = _refusal(lambda: session.node_times(x_NCHW, runs=1))
            answer["answers_after_refusal"] = bool((session.run(x_NCHW) == before_NK).all())
        return answer | {"held": job.simulation.gpu.held(), "faults": list(fakes.record.faults)}

    return case


def _refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except AlexNetEdgeError as error:
        return str(error)
    return ""


def _misuse(job: Job, folder: Path) -> dict[str, Any]:
    """What the stand-ins make of calls that the real bindings refuse: the error of each, and whether it was noted."""
    trt, fakes = job.trt, job.fakes
    job.simulation.reset()
    from alexnet_edge.nvidia.libraries import make_logger

    builder = trt.Builder(make_logger(trt, []))
    config, network = builder.create_builder_config(), builder.create_network()
    profile = builder.create_optimization_profile()
    memory = fakes.memory(b"plan")
    flag, pool, shape = trt.BuilderFlag.TF32, trt.MemoryPoolType.WORKSPACE, (1, 3, 2, 2)
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", 1.5)
    attempts: dict[str, Callable[[], Any]] = {
        "too few arguments": lambda: profile.set_shape("input", shape, shape),
        "too many arguments": lambda: config.set_flag(flag, True),
        "argument of another name": lambda: config.set_flag(the_flag=flag),
        "number for an enumeration": lambda: config.set_flag(int(flag)),
        "member of another enumeration": lambda: config.set_flag(pool),
        "member for a number": lambda: builder.create_network(strong),
        "float for a number": lambda: config.set_memory_pool_limit(pool, 1.5),
        "path for bytes": lambda: trt.Runtime(builder.logger).deserialize_cuda_engine(folder),
        "text for a shape": lambda: profile.set_shape("input", "1x3", shape, shape),
        "network for a config": lambda: builder.build_serialized_network(network, network),
        "missing attribute": lambda: config.no_such_option,
        "missing attribute set": lambda: setattr(config, "no_such_option", 1),
        "read-only property set": lambda: setattr(builder, "logger", builder.logger),
        "number for a property's enumeration": lambda: setattr(config, "profiling_verbosity", 2),
        "text for a property's number": lambda: setattr(config, "builder_optimization_level", "5"),
        "None for a number": lambda: setattr(config, "builder_optimization_level", None),
        "class without constructor": lambda: trt.ICudaEngine(),
        "constructor without logger": lambda: trt.Builder(),
        "member that this release lacks": lambda: trt.BuilderFlag.NO_SUCH_FLAG,
        "length of host memory": lambda: len(memory),
        "text of host memory": lambda: memory.value,
        "answer that nobody scripted": lambda: config.get_tactic_sources(),
    }
    answer: dict[str, Any] = {"attempts": {}}
    for name, attempt in attempts.items():
        before = len(fakes.record.faults)
        try:
            attempt()
            outcome = "accepted"
        except (AttributeError, TypeError, AssertionError) as error:
            outcome = type(error).__name__
        answer["attempts"][name] = [outcome, len(fakes.record.faults) > before]
    fakes.record.clear()
    config.set_flag(flag=flag)
    profile.set_shape("input", min=shape, opt=list(shape), max=np.array(shape))
    config.set_memory_pool_limit(pool, np.int64(1 << 20))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    answer["accepted"] = [event.name for event in fakes.record.events]
    answer["faults"] = list(fakes.record.faults)
    answer["read_back"] = config.profiling_verbosity.name
    answer["bytes"] = bytes(memory).decode()
    answer["unknown"] = sorted(job.fakes.unknown)
    return answer


def _scripts(job: Job, folder: Path) -> dict[str, Any]:
    """Whether the simulation only answers what the real classes have been asked in some release."""
    known = {f"{owner}.{name}" for owner, name in job.fakes.scripts}
    absent = {
        f"{owner}.{name}" for owner, name in job.fakes.scripts if not hasattr(getattr(job.real, owner, None), name)
    }
    return {"scripts": len(known), "absent": sorted(absent)}


def _features(job: Job, folder: Path) -> dict[str, Any]:
    """What is detected, and what the real bindings have."""
    from alexnet_edge.export.engines.features import PRESENT

    found = {}
    for name in PRESENT:
        owner, _, member = name.partition(".")
        holder = getattr(job.real, owner, None)
        members = getattr(holder, "__members__", None)
        if not member:
            found[name] = holder is not None
        else:
            found[name] = member in (members if members is not None else dir(holder))
    version = job.fakes.version
    return {
        "typing": job.features.typing,
        "real": sorted(name for name, there in found.items() if there),
        "detected": sorted(job.features.members),
        "expected": sorted(Features.of_version(version).members),
        "of_version_typing": Features.of_version(version).typing,
    }


ON_DLA_OR_GPU = {**DLA, "gpu_fallback": True}
NAMES_ONLY = json.dumps({"Layers": [f"{name} + {name}/relu" for name in LAYER_NAMES], "Bindings": []})

CASES: dict[str, Case] = {
    **{precision: _built(precision) for precision in ("fp32", "fp16", "bf16", "int8", "fp8", "int4-fc")},
    "batches": _built("fp16", min_batch=2, opt_batch=4, max_batch=8),
    "workspace": _built("fp16", workspace=64),
    "pool tactic-shared-memory": _built("fp16", pool=("tactic-shared-memory=1",)),
    "pools": _built("fp16", pool=("workspace=64", "tactic-dram=512")),
    "pools of a dla": _built("fp16", **ON_DLA_OR_GPU, pool=("dla-local-dram=256",)),
    "optimization level": _built("fp16", optimization_level=5),
    "tf32": _built("fp32", tf32=True),
    "sparsity": _built("fp16", sparsity=True),
    "version compatible": _built("fp16", version_compatible=True),
    "ampere plus": _built("fp16", hardware_compatibility="ampere-plus"),
    "same compute capability": _built("fp16", hardware_compatibility="same-compute-capability"),
    "refit": _built("fp16", refit=True),
    "stripped": _built("fp16", stripped=True),
    "weight streaming": _built("fp16", weight_streaming=True),
    "memory cap": _built("fp16", memory_cap=1024),
    "dla fp16": _built("fp16", **ON_DLA_OR_GPU),
    "dla int8": _built("int8", **ON_DLA_OR_GPU),
    "dla without fallback": _built("fp16", **DLA),
    "compute capability": _built("fp16", compute_capability=("sm89",)),
    "calibrator on fp16": _built("fp16", calibrator="entropy2"),
    "builder fails": _built("fp16", state={"plan": None}),
    "parser fails": _built("fp16", state={"parse_error": "unsupported operator"}),
    "interrupted": _built("fp16", state={"interrupt": True}),
    "no DLA here": _built("fp16", **DLA, state={"dla_cores": 0}),
    "inspector tells names only": _built("fp16", state={"inspect": lambda network: NAMES_ONLY}),
    "names only, too small": _built("fp16", state={"inspect": lambda network: NAMES_ONLY, "plan": bytes(64 << 20)}),
    "no GPU": _built("fp16", gpu=False),
    "built in FP32": _built("fp16", built={"fc6": "fp32"}),
    "fallback allowed": _built("fp16", built={"fc6": "fp32"}, allow_fallback=True),
    "session": _run(),
    "session with CUDA graph": _run(cuda_graph=True),
    "session on a DLA": _run(dla_core=1),
    "session on a missing DLA": _run(dla_core=2),
    "session with weight streaming": _streamed,
    "session on a damaged engine": _run(content=world.DAMAGED),
    "session on an engine with code": _run(content=world.WITH_CODE, version_compatible=True),
    "session of another version": _run(version="9.9.9"),
    "timing cache, new": _timing_cache("update", there=False),
    "timing cache, update": _timing_cache("update", there=True),
    "timing cache, load": _timing_cache("load", there=True),
    "timing cache, require": _timing_cache("require", there=True),
    "calibrator entropy2": _calibrated("entropy2"),
    "calibrator minmax": _calibrated("minmax"),
    "calibrator on a DLA": _calibrated("entropy2", **ON_DLA_OR_GPU),
    "calibration table": _tabled(),
    "calibration table on a DLA": _tabled(**ON_DLA_OR_GPU),
    "profile": _profiled(cuda_graph=False),
    "profile with CUDA graph": _profiled(cuda_graph=True),
    "misuse": _misuse,
    "scripts": _scripts,
    "features": _features,
    "imports": lambda job, folder: {"imported": sorted({"torch", "onnxruntime", "tensorrt_rtx"} & sys.modules.keys())},
}


def main() -> None:
    """Run every case; one that breaks is an answer too, so that the others are still told apart."""
    logging.getLogger("alexnet_edge").setLevel(logging.CRITICAL)
    warnings.simplefilter("error")
    job = Job(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    answers: dict[str, Any] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                answers[name] = case(job, Path(folder))
            except Exception:  # noqa: BLE001  # told to the tests, which fail
                answers[name] = {"broken": traceback.format_exc(), "faults": list(job.fakes.record.faults)}
    json.dump(answers, sys.stdout, default=str)


if __name__ == "__main__":
    main()
