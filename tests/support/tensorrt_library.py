"""A stand-in for the TensorRT library: engines that are a matrix product."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from cuda_machine import Machine

from alexnet_edge.artifact import Artifact, Manifest, TensorSpec, commit
from alexnet_edge.images.preprocess import Preprocessing
from alexnet_edge.nvidia import libraries as nvidia

SIZE, CLASSES = 4, 5
VERSION, SM, PLATFORM = "10.3.0", "sm87", nvidia.platform_name()
WEIGHT = np.random.default_rng(0).standard_normal((3 * SIZE * SIZE, CLASSES), np.float32)

BUILD: dict[str, Any] = {"builder": "tensorrt", "version": VERSION, "platform": PLATFORM, "sm": SM}

MANIFEST = Manifest(
    format="trt",
    runtime="tensorrt",
    precision="int8",
    architecture="one-product",
    classes=tuple("abcde"),
    head="logits",
    preprocessing=Preprocessing(resize=SIZE, crop=SIZE),
    input=TensorSpec(name="input", dtype="float32", shape=(3, SIZE, SIZE), max_batch=4),
    output=TensorSpec(name="logits", dtype="float32", shape=(CLASSES,), max_batch=4),
    checkpoint="model.safetensors",
    checkpoint_sha256="00" * 32,
    build=BUILD,
)

PLAN: dict[str, Any] = {
    "inputs": {"input": [-1, 3, SIZE, SIZE]},
    "outputs": {"logits": [-1, CLASSES]},
    "batches": [1, 2, 4],
    "profiles": 1,
    "dtypes": {},
    "host_code": False,
}
"""What the stand-in for an engine file says."""


def images(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, size, size), np.float32)


def answers(x_NCHW: np.ndarray) -> np.ndarray:
    return x_NCHW.reshape(len(x_NCHW), -1) @ WEIGHT


def engine_file(folder: Path, name: str = "a.engine", *, plan: dict[str, Any] | None = None, **change: Any) -> Artifact:
    temporary = folder / "finished.tmp"
    temporary.write_bytes(json.dumps(PLAN if plan is None else plan).encode())
    return commit(temporary, folder / name, replace(MANIFEST, **change))


class ILogger:
    """As TensorRT's; a subclass overrides `log`."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise AssertionError("a subclass overrides it")


class Library(ModuleType):
    """Stands for the module `tensorrt`: its engines multiply the input with `WEIGHT`."""

    ILogger = ILogger
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    DataType = SimpleNamespace(FLOAT="float", HALF="half")

    def __init__(self, machine: Machine, version: str = VERSION) -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.machine = machine
        self.did: list[str] = []
        """What was asked of it, in order."""
        self.runs = 0
        self.dla_cores = 0
        self.fail: set[str] = set()
        """Calls that answer None or False, as the library does."""
        self.engine_attributes: dict[str, Any] = {"device_memory_size_v2": 1 << 20}

    def Runtime(self, logger: ILogger) -> Any:
        if "Runtime" in self.fail:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Runtime(self, logger)


class Runtime:
    def __init__(self, library: Library, logger: ILogger) -> None:
        self.library, self.logger = library, logger
        self.num_DLA_cores = library.dla_cores
        self.DLA_core = -1
        self.engine_host_code_allowed = False

    def __del__(self) -> None:
        self.library.did.append("runtime gone")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        self.library.did.append(f"deserialise on DLA core {self.DLA_core}")
        self.logger.log(ILogger.WARNING, "Using an engine plan file across different models of devices")
        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            self.logger.log(ILogger.ERROR, "Error Code 1: Serialization (magicTagRead failed.\nTrying to load)")
            self.logger.log(ILogger.ERROR, "Error Code 4: Internal Error (Engine deserialization failed.)")
            return None
        if plan["host_code"] and not self.engine_host_code_allowed:
            self.logger.log(ILogger.ERROR, "Error Code 3: the plan has host code and that is not allowed")
            return None
        return Engine(self.library, plan, self.logger)


class Engine:
    def __init__(self, library: Library, plan: dict[str, Any], logger: ILogger) -> None:
        self._library, self._plan, self._logger = library, plan, logger
        self._tensors = {**plan["inputs"], **plan["outputs"]}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = plan["profiles"]
        self.__dict__.update(library.engine_attributes)

    def __del__(self) -> None:
        self._library.did.append("engine gone")

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self._plan["inputs"] else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return self._plan["dtypes"].get(name, "float")

    def get_tensor_shape(self, name: str) -> list[int]:
        return self._tensors[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        return [[batch, *self._tensors[name][1:]] for batch in self._plan["batches"]]

    def get_weight_streaming_automatic_budget(self) -> int:
        return 1000

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(cuda_graph_strategy="disabled")

    def create_execution_context(self, config: Any = None) -> Any:
        self._library.did.append("context" if config is None else f"context {config.cuda_graph_strategy}")
        return None if "create_execution_context" in self._library.fail else Context(self._library, self._logger)


class Context:
    def __init__(self, library: Library, logger: ILogger) -> None:
        self._library, self._logger = library, logger
        self._refused = 0
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def __del__(self) -> None:
        self._library.did.append("context gone")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._library.did.append(f"shape {shape[0]}")
        self._shape = shape
        return "set_input_shape" not in self._library.fail

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory in self._library.machine.device, "not an address of the GPU"
        self._addresses[name] = memory
        return "set_tensor_address" not in self._library.fail

    def execute_async_v3(self, stream_handle: int) -> bool:
        machine, shape, addresses = self._library.machine, self._shape, dict(self._addresses)
        capturing = stream_handle in machine.capturing
        self._library.did.append("record" if capturing else "execute")
        if "execute_async_v3" in self._library.fail or (capturing and not machine.capturable):
            self._refused += 1
            self._logger.log(ILogger.WARNING, "a warning before the error")
            self._logger.log(ILogger.ERROR, f"refused {self._refused}")
            return False

        def run() -> None:
            self._library.runs += 1
            count = int(np.prod(shape))
            x_NCHW = np.frombuffer(machine.device[addresses["input"]], np.float32, count).reshape(shape)
            y_bytes = answers(x_NCHW).tobytes()
            machine.device[addresses["logits"]][: len(y_bytes)] = y_bytes

        machine.enqueue(stream_handle, run)
        return True
