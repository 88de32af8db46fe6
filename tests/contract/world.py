"""What TensorRT's objects answer, as far as this package asks: a parser, a builder, a runtime that run nothing.

`Simulation` scripts the strict stand-ins of one release (`strict.Fakes`). The parser makes the layers that NVIDIA's ONNX parser
makes of this package's graphs; the builder refuses, as a fault, what the real one refuses or silently ignores: precision
flags in a strongly typed network, precision constraints that no flag enforces, a calibrator without INT8, a dynamic network
without profile, dynamic shapes on a DLA. The GPU is `cuda_machine.Machine`.

Sources: the importers of onnx-tensorrt (one layer per node with the node's name; `Gemm` is a matrix multiplication with the
node's name and an elementwise sum), compared with the network that TensorRT-RTX parses; TensorRT Python API; Developer Guide,
"Strongly Typed Networks", "Working with DLA", "INT8 Calibration with Dynamic Shapes".
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from contract.strict import Fakes
from cuda_machine import Machine

from alexnet_edge.nvidia import cuda

TYPES = {1: "FLOAT", 3: "INT8", 10: "HALF", 16: "BF16", 17: "FP8", 22: "INT4"}
"""Members of `DataType`, by ONNX's element type."""
LAYERS = {
    "Relu": "ACTIVATION",
    "LRN": "LRN",
    "MaxPool": "POOLING",
    "Flatten": "SHUFFLE",
    "Softmax": "SOFTMAX",
    "Cast": "CAST",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Conv": "CONVOLUTION",
}
"""Members of `LayerType`, by ONNX operator."""
NEWEST_OPSET = {8: 17}
"""The newest operator set that the parser reads, by major; the later ones read all that this package writes."""
ALIASES = {"WEIGHTLESS": "STRIP_PLAN"}
"""Older names of builder flags, which an enumeration's member bears as its own."""
PRECISION_FLAGS = frozenset({"FP16", "INT8", "BF16", "FP8", "INT4", "FP4"})
ON_DLA = frozenset({"CONVOLUTION", "ACTIVATION", "POOLING", "LRN"})
"""Layer types that a DLA runs, in FP16 and INT8; a fully connected layer must be written as a convolution."""
NO_GPU = "pybind11::init(): factory function returned nullptr"
"""What the constructors of `Builder` and `Runtime` raise where CUDA finds no GPU."""
DAMAGED = b"damaged"
"""An engine that begins so is refused by the runtime."""

WITH_CODE = b"with a lean runtime"
"""An engine that begins so is loaded only where code from an engine may run."""

Inspector = Callable[[Any], str]


class Simulation:
    """One machine with one release of TensorRT. Attributes are set by each case before it runs."""

    def __init__(self, fakes: Fakes) -> None:
        self.fakes = fakes
        self.trt: Any = fakes.module
        self.reset()
        fakes.scripts.update(self._scripts())
        cuda.runtime_library = lambda: self.gpu

    def reset(self, *, gpu: bool = True, sm: tuple[int, int] = (8, 7)) -> None:
        """A machine where everything works, unless it has no GPU, and a record with nothing in it."""
        self.fakes.record.clear()
        self.gpu = Machine(sm=sm, check=False)
        self.gpu.fail = {} if gpu else {"cudaGetDeviceCount": 100}
        self.plan: bytes | None = b"\0" * 4096
        """What the builder makes; None for a failure."""
        self.parse_error = ""
        """Why the parser refuses the graph."""
        self.inspect: Inspector = lambda network: '{"Layers": []}'
        """The engine inspector's answer for the network that was built last."""
        self.interrupt = False
        """Whether the user presses Ctrl-C during the build."""
        self.stopped = False
        """Whether a progress monitor ended the build."""
        self.carries_code = False
        """Whether the engine that was built last has a lean runtime in it."""
        self.dla_cores = 2
        self.calibration: dict[str, Any] = {}
        """What the builder got from a calibrator."""
        self.typed = False
        """Whether the network that was made last is strongly typed."""
        self.network: Any = None
        """The network that was built last."""
        self.io = {"input": (-1, 3, 227, 227), "logits": (-1, 4)}
        """Shapes of an engine's input and output."""
        self.batches = (1, 1, 16)
        """Smallest, best and largest batch of an engine."""

    def _scripts(self) -> dict[tuple[str, str], Any]:
        of = self.fakes.values

        def remember(*names: str) -> Callable[..., None]:
            def script(stand_in: Any, **arguments: Any) -> None:
                of(stand_in).update({name: arguments[name] for name in names})

            return script

        return {
            ("Builder", "__init__"): self._start,
            ("Builder", "create_network"): self._create_network,
            ("Builder", "create_builder_config"): self._create_config,
            ("Builder", "build_serialized_network"): self._build,
            ("Builder", "is_network_supported"): True,
            ("Builder", "num_DLA_cores"): lambda builder: self.dla_cores,
            ("Builder", "platform_has_fast_fp16"): True,
            ("Builder", "platform_has_fast_int8"): True,
            ("Builder", "platform_has_tf32"): True,
            ("INetworkDefinition", "num_layers"): lambda network: len(of(network)["layers"]),
            ("INetworkDefinition", "__len__"): lambda network: len(of(network)["layers"]),
            ("INetworkDefinition", "get_layer"): lambda network, index: of(network)["layers"][index],
            ("INetworkDefinition", "__getitem__"): lambda network, arg0: of(network)["layers"][arg0],
            ("INetworkDefinition", "num_inputs"): lambda network: len(of(network)["inputs"]),
            ("INetworkDefinition", "get_input"): lambda network, index: of(network)["inputs"][index],
            ("INetworkDefinition", "num_outputs"): lambda network: len(of(network)["outputs"]),
            ("INetworkDefinition", "get_output"): lambda network, index: of(network)["outputs"][index],
            ("INetworkDefinition", "get_flag"): lambda network, arg0: bool(of(network)["flags"] >> int(arg0) & 1),
            ("ILayer", "num_inputs"): lambda layer: len(of(layer)["inputs"]),
            ("ILayer", "num_outputs"): lambda layer: len(of(layer)["outputs"]),
            ("ILayer", "get_input"): lambda layer, index: _at(of(layer)["inputs"], index),
            ("ILayer", "get_output"): lambda layer, index: _at(of(layer)["outputs"], index),
            ("ILayer", "precision_is_set"): lambda layer: "precision" in of(layer),
            ("ILayer", "precision"): lambda layer: self.trt.DataType.FLOAT,
            ("ILayer", "set_output_type"): lambda layer, index, dtype: of(layer).update({f"output {index}": dtype}),
            ("ILayer", "output_type_is_set"): lambda layer, index: f"output {index}" in of(layer),
            ("ILayer", "get_output_type"): lambda layer, index: of(layer)["outputs"][index].dtype,
            ("OnnxParser", "__init__"): remember("network", "logger"),
            ("OnnxParser", "parse"): self._parse,
            ("OnnxParser", "parse_from_file"): lambda parser, model: self._parse(parser, Path(model).read_bytes()),
            ("OnnxParser", "num_errors"): lambda parser: 1 if self.parse_error else 0,
            ("OnnxParser", "get_error"): lambda parser, index: self.fakes.new("ParserError"),
            ("ParserError", "desc"): lambda error: self.parse_error,
            ("ParserError", "node"): 0,
            ("IBuilderConfig", "set_flag"): lambda config, flag: of(config)["set"].add(_name(flag)),
            ("IBuilderConfig", "clear_flag"): lambda config, flag: of(config)["set"].discard(_name(flag)),
            ("IBuilderConfig", "get_flag"): lambda config, flag: _name(flag) in of(config)["set"],
            ("IBuilderConfig", "flags"): self._flags,
            ("IBuilderConfig", "set_memory_pool_limit"): self._set_pool,
            ("IBuilderConfig", "get_memory_pool_limit"): lambda config, pool: of(config)["pools"].get(pool.name, 0),
            ("IBuilderConfig", "add_optimization_profile"): self._add_profile,
            ("IBuilderConfig", "num_optimization_profiles"): lambda config: len(of(config)["profiles"]),
            ("IBuilderConfig", "set_calibration_profile"): self._set_calibration_profile,
            ("IBuilderConfig", "create_timing_cache"): self._create_timing_cache,
            ("IBuilderConfig", "set_timing_cache"): self._set_timing_cache,
            ("IBuilderConfig", "get_timing_cache"): lambda config: of(config).get("timing cache"),
            ("IBuilderConfig", "can_run_on_DLA"): lambda config, layer: self._runs_on_dla(of(config), layer),
            ("ITimingCache", "serialize"): lambda cache: self.fakes.memory(of(cache)["content"] + b"+timed"),
            ("IOptimizationProfile", "__bool__"): lambda profile: "shapes" in of(profile),
            ("IOptimizationProfile", "set_shape"): self._set_shape,
            ("IOptimizationProfile", "get_shape"): lambda profile, input: list(of(profile)["shapes"][input]),
            ("Runtime", "__init__"): self._start,
            ("Runtime", "num_DLA_cores"): lambda runtime: self.dla_cores,
            ("Runtime", "deserialize_cuda_engine"): self._deserialise,
            ("ICudaEngine", "num_io_tensors"): lambda engine: len(self.io),
            ("ICudaEngine", "get_tensor_name"): lambda engine, index: list(self.io)[index],
            ("ICudaEngine", "get_tensor_mode"): lambda engine, name: (
                self.trt.TensorIOMode.INPUT if name == next(iter(self.io)) else self.trt.TensorIOMode.OUTPUT
            ),
            ("ICudaEngine", "get_tensor_dtype"): lambda engine, name: self.trt.DataType.FLOAT,
            ("ICudaEngine", "get_tensor_shape"): lambda engine, name: self.trt.Dims(self.io[name]),
            ("ICudaEngine", "get_tensor_profile_shape"): lambda engine, name, profile_index: [
                self.trt.Dims((batch, *self.io[name][1:])) for batch in self.batches
            ],
            ("ICudaEngine", "get_tensor_location"): lambda engine, name: self.trt.TensorLocation.DEVICE,
            ("ICudaEngine", "num_optimization_profiles"): 1,
            ("ICudaEngine", "num_layers"): 8,
            ("ICudaEngine", "refittable"): False,
            ("ICudaEngine", "device_memory_size"): 1 << 20,
            ("ICudaEngine", "device_memory_size_v2"): 1 << 20,
            ("ICudaEngine", "streamable_weights_size"): 1 << 22,
            ("ICudaEngine", "get_weight_streaming_automatic_budget"): 1 << 21,
            ("ICudaEngine", "weight_streaming_budget"): 0,
            ("ICudaEngine", "weight_streaming_budget_v2"): 0,
            ("EngineInspector", "get_engine_information"): self._inspect,
            ("IExecutionContext", "set_input_shape"): self._set_input_shape,
            ("IExecutionContext", "set_tensor_address"): self._set_address,
            ("IExecutionContext", "execute_async_v3"): self._execute,
            ("IExecutionContext", "infer_shapes"): [],
        }

    def _start(self, stand_in: Any, logger: Any) -> None:
        self.fakes.values(stand_in)["logger"] = logger
        if self.gpu.fail:
            self._log(stand_in, "ERROR", "CUDA initialization failure with error: 100")
            raise TypeError(NO_GPU)

    def _create_network(self, builder: Any, flags: int = 0) -> Any:
        members = self.trt.NetworkDefinitionCreationFlag.__members__
        known = sum(1 << int(flag) for flag in members.values())
        if int(flags) & ~known:
            self.fakes.record.fault(f"create_network({int(flags)}): this release knows {sorted(members)}")
        strong = members.get("STRONGLY_TYPED")
        self.typed = strong is not None and (
            bool(int(flags) >> int(strong) & 1) or self.fakes.version.startswith("11.")
        )
        return self.fakes.new("INetworkDefinition", flags=int(flags), name="", layers=[], inputs=[], outputs=[])

    def _create_config(self, builder: Any) -> Any:
        return self.fakes.new("IBuilderConfig", set={"TF32"}, pools={}, profiles=[])  # TF32 is on by default

    def _flags(self, config: Any) -> int:
        return sum(1 << int(getattr(self.trt.BuilderFlag, name)) for name in self.fakes.values(config)["set"])

    def _set_pool(self, config: Any, pool: Any, pool_size: int) -> None:
        self.fakes.values(config)["pools"][pool.name] = int(pool_size)

    def _add_profile(self, config: Any, profile: Any) -> int:
        profiles = self.fakes.values(config)["profiles"]
        profiles.append(profile)
        return len(profiles) - 1

    def _set_calibration_profile(self, config: Any, profile: Any) -> bool:
        self.fakes.values(config)["calibration profile"] = profile
        return True

    def _create_timing_cache(self, config: Any, serialized_timing_cache: Any) -> Any:
        content = bytes(memoryview(serialized_timing_cache))
        return self.fakes.new("ITimingCache", content=content)

    def _set_timing_cache(self, config: Any, cache: Any, ignore_mismatch: bool) -> bool:
        self.fakes.values(config)["timing cache"] = cache
        return True

    def _set_shape(self, profile: Any, input: str, min: Any, opt: Any, max: Any) -> None:
        shapes = [tuple(self.trt.Dims(tuple(shape))) for shape in (min, opt, max)]
        self.fakes.values(profile).setdefault("shapes", {})[input] = [self.trt.Dims(shape) for shape in shapes]

    def _log(self, builder: Any, severity: str, message: str) -> None:
        logger = self.fakes.values(builder)["logger"]
        logger.log(getattr(self.trt.ILogger.Severity, severity), message)

    def _build(self, builder: Any, network: Any, config: Any, **more: Any) -> Any:
        state, built = self.fakes.values(config), self.fakes.values(network)
        if not built["layers"]:
            self.fakes.record.fault("an empty network is built")
        problems = [*self._typing_problems(state, built), *self._shape_problems(state, built)]
        for problem in problems:
            self.fakes.record.fault(problem)
            self._log(builder, "ERROR", problem)
        refused = self._place(builder, state, built) if _on_dla(state) else []
        if _on_dla(state) and "GPU_FALLBACK" not in state["set"]:  # its formats are not those of the input and output
            names = ", ".join([*refused, "reformatting of input and output"])
            self._log(builder, "ERROR", f"{names}: DLA validation failed, and GPU fallback is not enabled")
            return None
        if problems:
            return None
        if state.get("int8_calibrator") is not None:
            self._calibrate(state, built)
        if not self._report_progress(state.get("progress_monitor")):
            return None
        if self.plan is None:
            self._log(
                builder, "ERROR", "Error Code 10: Internal Error (Could not find any implementation for node conv1.)"
            )
            return None
        self.network = network
        self.carries_code = {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"} & state["set"] == {"VERSION_COMPATIBLE"}
        return self.fakes.memory(self.plan)

    def _typing_problems(self, state: dict[str, Any], built: dict[str, Any]) -> list[str]:
        flags, problems = state["set"], []
        typed = self.typed
        precision = sorted(PRECISION_FLAGS & flags)
        kinds = {layer.type.name for layer in built["layers"]}
        constrained = [layer for layer in built["layers"] if "precision" in self.fakes.values(layer)]
        enforced = {"OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"} & flags
        if typed and (precision or enforced):
            problems.append(f"{', '.join([*precision, *sorted(enforced)])} set in a strongly typed network")
        if typed and (constrained or state.get("int8_calibrator") is not None):
            problems.append("a strongly typed network has layer precisions or a calibrator")
        if constrained and not enforced:
            problems.append("layer precisions are set, and no flag makes the builder keep them")
        allowed = {"FP16": "HALF", "BF16": "BF16", "INT8": "INT8", "FP8": "FP8", "INT4": "INT4"}
        usable = {"FLOAT", *(allowed[flag] for flag in precision if flag in allowed)}
        problems += [
            f"{layer.name} is asked to compute in {layer.precision.name}, for which no flag is set"
            for layer in constrained
            if layer.precision.name not in usable
        ]
        quantised = {"QUANTIZE", "DEQUANTIZE"} & kinds
        if not typed and quantised and not {"INT8", "FP8", "INT4"} & flags:
            problems.append("a graph with Q/DQ layers is built without INT8, FP8 or INT4")
        if state.get("int8_calibrator") is not None and "INT8" not in flags:
            problems.append("a calibrator is given, and INT8 is not set")
        if state.get("int8_calibrator") is not None and quantised:
            problems.append("a calibrator is given for a graph with Q/DQ layers: TensorRT ignores it")
        if "WEIGHT_STREAMING" in flags and not typed:
            problems.append("weight streaming is for strongly typed networks")
        if {"OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"} <= flags:
            problems.append("precision constraints are both demanded and preferred")
        if "EXCLUDE_LEAN_RUNTIME" in flags and "VERSION_COMPATIBLE" not in flags:
            problems.append("no lean runtime to exclude without VERSION_COMPATIBLE")
        return problems

    def _shape_problems(self, state: dict[str, Any], built: dict[str, Any]) -> list[str]:
        dynamic = [tensor for tensor in built["inputs"] if -1 in tuple(tensor.shape)]
        shaped = [self.fakes.values(profile).get("shapes", {}) for profile in state["profiles"]]
        problems = [
            f"Network has dynamic or shape inputs, but no optimization profile has been defined: {tensor.name}"
            for tensor in dynamic
            if not any(tensor.name in shapes for shapes in shaped)
        ]
        if _on_dla(state) and dynamic:
            problems.append("a DLA takes no dynamic shapes")
        if _on_dla(state) and state.get("DLA_core", 0) >= self.dla_cores:
            problems.append(f"there is no DLA core {state.get('DLA_core')}")
        return problems

    def _runs_on_dla(self, state: dict[str, Any], layer: Any) -> bool:
        """A DLA has no FP32: what is not allowed FP16 or INT8, or is held in FP32, goes to the GPU."""
        if layer.type.name not in ON_DLA:
            return False
        if self.typed:
            return layer.type.name != "LRN" or layer.get_output(0).dtype.name == "HALF"
        held = "precision" in self.fakes.values(layer) and layer.precision.name == "FLOAT"
        return bool({"FP16", "INT8"} & state["set"]) and not held

    def _place(self, builder: Any, state: dict[str, Any], built: dict[str, Any]) -> list[str]:
        """Log, as the builder does, which layers run where; those that do not run on the DLA."""
        refused = [layer.name for layer in built["layers"] if not self._runs_on_dla(state, layer)]
        for layer in built["layers"]:
            device = "GpuLayer" if layer.name in refused else "DlaLayer"
            self._log(builder, "INFO", f"[{device}] {layer.type.name}: {layer.name}")
        return refused

    def _calibrate(self, state: dict[str, Any], built: dict[str, Any]) -> None:
        calibrator = state["int8_calibrator"]
        shape = tuple(built["inputs"][0].shape)
        if shape[0] < 0:
            profile = state.get("calibration profile", state["profiles"][0])
            shape = tuple(self.fakes.values(profile)["shapes"]["input"][1])
        size = calibrator.get_batch_size()
        table = calibrator.read_calibration_cache()
        major, minor, patch = map(int, self.fakes.version.split(".")[:3])
        number = f"{major}{minor}{patch:02}" if major < 10 else f"{major}{minor:02}{patch:02}"
        header = f"TRT-{number}-EntropyCalibration2"
        if table is not None and not bytes(table).startswith(header.encode()):
            self.fakes.record.fault(f"the calibration table does not begin with {header}: it would not be used")
        batches = []
        while table is None and (addresses := calibrator.get_batch(["input"])) is not None:
            batches.append(addresses)
        if batches and size != shape[0]:
            self.fakes.record.fault(
                f"the calibrator gives batches of {size} images, the builder reads {shape[0]} of each"
            )
        if batches:
            calibrator.write_calibration_cache(memoryview(f"{header}\ninput: 3c010a14\n".encode()))
        self.calibration = {
            "batch_size": size,
            "batches": len(batches),
            "addresses": sorted({type(address).__name__ for addresses in batches for address in addresses}),
            "cache": None if table is None else bytes(table).decode(),
            "algorithm": calibrator.get_algorithm().name,
            "profile_set": "calibration profile" in state,
        }

    def _report_progress(self, monitor: Any) -> bool:
        """Whether the build goes on to its end; after Ctrl-C it goes on for a second, so that it can be stopped."""
        if self.interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        if monitor is None:
            return True
        phases = [("Building Engine", None, 2), ("Tactic Selection", "Building Engine", 1000 if self.interrupt else 3)]
        for name, parent, steps in phases:
            monitor.phase_start(name, parent, steps)
            for step in range(steps):
                if monitor.step_complete(name, step) is False:
                    self.stopped = True
                    monitor.phase_finish(name)
                    return False
                time.sleep(0.001 if self.interrupt else 0)
        for name, _, _ in reversed(phases):
            monitor.phase_finish(name)
        return True

    def _parse(self, parser: Any, model: Any, path: Any = None) -> bool:
        graph = onnx.ModelProto.FromString(bytes(memoryview(model)))
        newest = NEWEST_OPSET.get(int(self.fakes.version.split(".")[0]))
        opset = graph.opset_import[0].version
        if newest is not None and opset > newest:
            self.parse_error = f"operator set {opset} is not supported"
        if self.parse_error:
            return False
        state = self.fakes.values(self.fakes.values(parser)["network"])
        if hasattr(self.trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") and self.fakes.version.startswith("8."):
            explicit = 1 << int(self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
            if not state["flags"] & explicit:
                self.parse_error = (
                    "This version of the ONNX parser only supports networks with an explicit batch dimension"
                )
                return False
        _Importer(self, state).run(graph.graph)
        return True

    def _deserialise(self, runtime: Any, serialized_engine: Any, **more: Any) -> Any:
        content = bytes(memoryview(serialized_engine))
        allowed = self.fakes.values(runtime).get("engine_host_code_allowed", False)
        if (content.startswith(WITH_CODE) or self.carries_code) and not allowed:
            self._log(runtime, "ERROR", "Cannot deserialize an engine with a lean runtime: host code is not allowed")
            return None
        if content.startswith(DAMAGED):
            self._log(runtime, "ERROR", "Error Code 1: Serialization (Serialization assertion magicTagRead failed.)")
            return None
        return self.fakes.new("ICudaEngine")

    def _inspect(self, inspector: Any, format: Any) -> str:
        if format.name != "JSON":
            self.fakes.record.fault(f"the engine inspector is asked for {format.name}, and its answer is read as JSON")
        return self.inspect(self.network)

    def _set_input_shape(self, context: Any, name: str, shape: Any) -> bool:
        batch, *extents = tuple(shape)
        fits = tuple(extents) == self.io[name][1:] and self.batches[0] <= batch <= self.batches[-1]
        if fits:
            self.fakes.values(context)["batch"] = int(batch)
        return fits

    def _set_address(self, context: Any, name: str, memory: int) -> bool:
        if name not in self.io or int(memory) not in self.gpu.device:
            self.fakes.record.fault(f"set_tensor_address({name!r}, {memory}): not a tensor, or not memory of the GPU")
        self.fakes.values(context)[f"address of {name}"] = int(memory)
        return True

    def _execute(self, context: Any, stream_handle: int) -> bool:
        state = self.fakes.values(context)
        (x_name, x_shape), (y_name, y_shape) = self.io.items()
        if "batch" not in state or f"address of {y_name}" not in state or f"address of {x_name}" not in state:
            self.fakes.record.fault("execute_async_v3 before the shape and the addresses are set")
            return False
        batch = state["batch"]
        source, target = state[f"address of {x_name}"], state[f"address of {y_name}"]

        def run() -> None:
            """Each image's answer is its first pixel times 1, 2, 3, ..."""
            x_NCHW, y_NK = (
                np.frombuffer(self.gpu.device[address], np.float32, batch * int(np.prod(shape))).reshape(batch, *shape)
                for address, shape in ((source, x_shape[1:]), (target, y_shape[1:]))
            )
            y_NK[:] = x_NCHW[:, 0, 0, :1] * np.arange(1, y_shape[1] + 1)

        self.gpu.enqueue(int(stream_handle), run)
        return True


def _name(flag: Any) -> str:
    return ALIASES.get(flag.name, str(flag.name))


def _at(values: list[Any], index: int) -> Any:
    return values[index] if 0 <= index < len(values) else None


def _on_dla(state: dict[str, Any]) -> bool:
    return "default_device_type" in state and state["default_device_type"].name == "DLA"


class _Importer:
    """Makes the layers of an ONNX graph."""

    def __init__(self, simulation: Simulation, state: dict[str, Any]) -> None:
        self.fakes, self.trt, self.state = simulation.fakes, simulation.trt, state
        self.named = not simulation.fakes.version.startswith("8.")  # the parser of TensorRT 8 names fewer layers
        self.tensors: dict[str, Any] = {}

    def run(self, graph: onnx.GraphProto) -> None:
        self.shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
        self.weights = {entry.name: entry for entry in graph.initializer}
        for value in graph.input:
            tensor = self.tensor(value.name, TYPES[value.type.tensor_type.elem_type], is_network_input=True)
            self.state["inputs"].append(tensor)
        for node in graph.node:
            self.node(node)
        self.state["outputs"] += [self.tensors[value.name] for value in graph.output]

    def tensor(self, name: str, dtype: str, **more: Any) -> Any:
        shape = self.trt.Dims(self.shapes.get(name, ()))
        made = self.fakes.new("ITensor", name=name, dtype=getattr(self.trt.DataType, dtype), shape=shape, **more)
        self.tensors[name] = made
        return made

    def layer(self, name: str, kind: str, inputs: list[Any], output: str, dtype: str, **more: Any) -> Any:
        number = len(self.state["layers"])
        layer = self.fakes.new(
            "ILayer",
            name=name if name else f"(Unnamed Layer* {number}) [{kind.title()}]",
            type=getattr(self.trt.LayerType, kind),
            inputs=inputs,
            outputs=[self.tensor(output, dtype)],
            metadata=f"[ONNX Layer: {name}]" if name and kind != "CONSTANT" else "",
            **more,
        )
        self.state["layers"].append(layer)
        return layer

    def input(self, name: str) -> Any:
        """A node's input as a tensor; a weight becomes a constant layer."""
        if name not in self.tensors:
            entry = self.weights[name]
            self.layer(name if self.named else "", "CONSTANT", [], name, TYPES[entry.data_type])
        return self.tensors[name]

    def node(self, node: onnx.NodeProto) -> None:
        first = node.input[0]
        output = node.output[0]
        if node.op_type == "Gemm":
            inputs = [self.input(name) for name in node.input]
            dtype = inputs[0].dtype.name
            product = self.layer(node.name, "MATRIX_MULTIPLY", inputs[:2], f"{node.name}_output", dtype)
            number = len(self.state["layers"])
            bias = f"{node.name}_{number}" if self.named else ""
            self.layer(bias, "ELEMENTWISE", [product.get_output(0), *inputs[2:]], output, dtype)
            return
        kind = LAYERS[node.op_type]
        if node.op_type == "Conv":
            inputs = [self.input(first)]
            dtype = inputs[0].dtype.name
            more = {}
            if node.input[1] in self.weights:
                more["kernel"] = self.kernel(node.input[1])
            else:
                inputs.append(self.input(node.input[1]))
        else:
            inputs = [self.input(name) for name in node.input[: 2 if "Linear" in node.op_type else 1]]
            dtype, more = self.dtype(node, inputs), {}
        self.layer(node.name, kind, inputs, output, dtype, **more)

    def dtype(self, node: onnx.NodeProto, inputs: list[Any]) -> str:
        """Element type of a node's output."""
        attributes = {entry.name: entry.i for entry in node.attribute}
        if node.op_type == "Cast":
            return TYPES[attributes["to"]]
        if node.op_type == "QuantizeLinear":
            return TYPES[self.weights[node.input[2]].data_type]
        if node.op_type == "DequantizeLinear":
            return str(inputs[1].dtype.name)
        return str(inputs[0].dtype.name)

    def kernel(self, name: str) -> Any:
        """A convolution's own weights, as the bindings give them: an array where numpy has the type, else `Weights`."""
        entry = self.weights[name]
        dtype = {1: np.float32, 10: np.float16, 3: np.int8}.get(entry.data_type)
        if dtype is None:
            return self.trt.Weights(getattr(self.trt.DataType, TYPES[entry.data_type]))
        return np.broadcast_to(np.zeros((), dtype), tuple(entry.dims))


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(extent.dim_value or -1 for extent in value.type.tensor_type.shape.dim)
