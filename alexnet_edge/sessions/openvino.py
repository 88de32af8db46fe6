"""A session on an OpenVINO IR (`.xml` and `.bin`), run by OpenVINO's CPU plugin.

Source: https://docs.openvino.ai (CPU Device; Precision Control; High-level Performance Hints), and what the compiled model
answers to `get_property` and `get_runtime_model`.
"""

from __future__ import annotations

import functools
import importlib
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from alexnet_edge.artifact import Artifact
from alexnet_edge.environment import cpu_features
from alexnet_edge.errors import ArtifactError, MissingComponentError, UserError, install_command, needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.sessions.base import ArtifactSession, Device, FileTensor, NodeTime, shareable

INFERENCE_PRECISION = "f32"
"""What everything that is not INT8 is computed in. Left to itself the plugin computes an FP32 model in BF16 where the processor
has instructions for that, and so it does when it is asked for `f16` and has none for FP16."""

COMPILE_OPTIONS = {
    "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION,
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "SNIPPETS_MODE": "DISABLE",
}
"""How a model is compiled wherever it is, to be proved and to answer. Snippets, which the plugin makes of small layers when the
batch is known, compute in FP32 what an INT8 kernel does in their absence."""

_TELEMETRY = "openvino_telemetry"

VNNI = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
"""Instructions, of which an x86 processor needs one, that add INT8 products in 32 bits."""


def int8_overflows() -> str | None:
    """Why this processor gives wrong answers in INT8, or None.

    Without VNNI the plugin's kernels add pairs of products of unsigned inputs and signed weights in 16 bits, which saturate
    with 8-bit weights. With VNNI switched off, a network whose INT8 logits were off by 0.06 on average was off by 1.6.
    Source: OpenVINO documentation, "Saturation (overflow) Issue Workaround".
    """
    if platform.machine().lower() in ("x86_64", "amd64") and not VNNI & set(cpu_features()):
        return "this processor has no VNNI instructions, without which OpenVINO's INT8 sums overflow"
    return None


def load_library() -> ModuleType:
    """Import `openvino` by `import_quietly`.

    Raises:
        MissingComponentError: when it is not installed, or is too damaged to be imported.
    """
    try:
        with needs("openvino"):
            return import_quietly()
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        raise MissingComponentError(
            f"openvino cannot be imported ({reason})", fix=f"run: {install_command('openvino')} --force-reinstall"
        ) from error


def import_quietly() -> ModuleType:
    """Import `openvino` and keep it from sending usage statistics.

    With its dependency `openvino_telemetry` there, the import itself reports to a web service, from a process that it
    starts, and leaves files in the home folder, unless a file there refuses. Without it `openvino` does all of its work and
    sends nothing; so while it is imported here it does not see that package, unless that has been imported before.
    """
    hide = _TELEMETRY not in sys.modules
    if hide:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what the import system documents for this
    try:
        return importlib.import_module("openvino")
    finally:
        if hide:
            del sys.modules[_TELEMETRY]


@functools.cache
def shared_core() -> Any:
    """The `openvino.Core` of this process, which is never destroyed.

    The CPU plugin of each `Core` gives the thread that loads it an alternate stack for signals and frees that stack when it
    is destroyed itself. When two of them end in the order in which they began, the thread keeps the address of a freed stack,
    and the next signal, such as Ctrl-C, kills the process. With one for all there is nothing to free.

    Raises:
        MissingComponentError: when OpenVINO is not installed, or has no CPU plugin.
    """
    core = load_library().Core()
    if "CPU" not in core.available_devices:
        raise MissingComponentError("this OpenVINO has no CPU plugin", fix="install OpenVINO from the package index")
    return core


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutedNode:
    """One node of a compiled model, as the plugin executes it."""

    name: str
    """As the plugin names it."""
    kind: str
    """The plugin's name for what it computes (`Convolution`, `FullyConnected`, `LRN`, `Reorder`, ...)."""
    primitive: str
    """The kernel: its name ends in what it computes in."""
    inputs: tuple[str, ...]
    """Element type of each input."""
    fused: tuple[str, ...]
    """The nodes of the ONNX graph that it does the work of; none for a change of layout that the plugin adds."""


def executed_nodes(compiled: Any) -> list[ExecutedNode]:
    """The nodes of a compiled model in the order in which they are executed, constants left out."""
    return [
        ExecutedNode(
            name=str(node.get_friendly_name()),
            kind=node.rt_info["layerType"].astype(str),
            primitive=node.rt_info["primitiveType"].astype(str),
            inputs=tuple(source.get_element_type().to_string() for source in node.inputs()),
            fused=_graph_names(node.rt_info["originalLayersNames"].astype(str)),
        )
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.rt_info["layerType"].astype(str) != "Const"
    ]


def kernel_type(primitive: str) -> str:
    """What a kernel computes in, by the end of its name: `f32`, `bf16`, `f16`, `i8`, `u8`, ..."""
    return primitive.rpartition("_")[2].lower()


def _graph_names(originals: str) -> tuple[str, ...]:
    """The ONNX graph's own names in what the plugin lists: its reader and its INT8 passes append to them and add others."""
    names = (name.split("/WithoutBiases")[0].removesuffix("/DequantizationMultiply") for name in originals.split(","))
    return tuple(dict.fromkeys(name for name in names if name and not re.fullmatch(r"[A-Za-z]+_\d+", name)))


def read_model(openvino: ModuleType, core: Any, path: Path, weights: Path) -> Any:
    """Read an IR.

    Raises:
        RuntimeError: OpenVINO's own, with the reason in its last line.
    """
    if not openvino.frontend.FrontEndManager().load_by_framework("ir").supported(str(path)):
        # `Core` itself would try other formats, noisily
        raise RuntimeError("not an IR of a version that it reads")
    return core.read_model(str(path), str(weights))


def fix_batch(model: Any, batch: int) -> None:
    """Give a model that was read, whose batch is free, this one.

    Raises:
        RuntimeError: OpenVINO's own, when the model does not take it.
    """
    shape = model.inputs[0].get_partial_shape()
    shape[0] = batch
    model.reshape(shape)


def reason_of(error: RuntimeError) -> str:
    """The reason in an error of OpenVINO, which begins with the places in its source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip("!.") if lines else type(error).__name__


class OpenVINOSession(ArtifactSession):
    """An OpenVINO IR on the processor: one stream, as many threads as were asked for, answers computed as they were proved.

    Input and output are the caller's memory and an array of this session: nothing is copied on the way in, and the logits
    on the way out. The file's batch is free; it is compiled for the one in hand, first for a single image, because what the
    plugin compiles for any batch is slower. So a batch of another size than the one before takes as long as loading does, and
    raises ArtifactError where OpenVINO cannot compile the file for it.
    """

    runtime = "openvino"
    _request: Any
    _compiled: Any

    def __init__(self, artifact: Artifact, *, device: Device = "cpu", threads: int | None = None) -> None:
        if device != "cpu":
            problem = "an OpenVINO file runs on the processor only"
            raise UserError(problem, value=f"--device {device}", fix="leave --device out")
        super().__init__(artifact, device=device, threads=threads)

    def _load(self) -> None:
        self._openvino = load_library()
        self._version = str(self._openvino.get_version()).split("-")[0]
        self._core = shared_core()
        with self._reasons():
            path, weights = self.artifact.path, self.artifact.companion
            assert weights is not None, "an artifact of this format has a second file"
            self._model = read_model(self._openvino, self._core, path, weights)
        self._require_io(*(list(map(_tensor, side)) for side in (self._model.inputs, self._model.outputs)))
        self._compile_for(1)
        precision = str(self._property("INFERENCE_PRECISION_HINT"))
        if precision != INFERENCE_PRECISION:
            raise MissingComponentError(
                f"OpenVINO computes in {precision} here, where {INFERENCE_PRECISION} was asked for",
                fix="use the ONNX file with ONNX Runtime",
            )

    def _compile_for(self, batch: int) -> None:
        """Make the request one of this batch; the former's memory is given back first."""
        self._request = self._compiled = None
        self._batch = 0
        self._compiled = self._compile(batch)
        self._request, self._batch = self._compiled.create_infer_request(), batch

    def _compile(self, batch: int, **further: Any) -> Any:
        """The model in the plugin's form, with these options besides this session's own."""
        options = {
            **COMPILE_OPTIONS,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # where the process may run is for whoever started it to say
            **further,
        }
        with self._reasons():
            fix_batch(self._model, batch)
            return self._core.compile_model(self._model, "CPU", options)

    @contextmanager
    def _reasons(self) -> Iterator[None]:
        """Inside, an error of OpenVINO says what is wrong with the file."""
        try:
            yield
        except RuntimeError as error:
            raise ArtifactError(
                f"OpenVINO {self._version} cannot load the file ({reason_of(error)})",
                value=self.artifact.path,
                fix=self._fix(),
            ) from error

    def _fix(self) -> str:
        """What to do about a file that its checksum holds for whole."""
        versions = self.artifact.manifest.environment.get("versions")
        written = versions.get("openvino") if isinstance(versions, Mapping) else None
        if written is None or written == self._version:
            return "export it again"
        return f"export it again, or install the OpenVINO that wrote it: pip install openvino=={written}"

    def _prepare(self, x_NCHW: FloatArray) -> None:
        if len(x_NCHW) != self._batch:
            self._compile_for(len(x_NCHW))
        self._x_NCHW = shareable(x_NCHW)  # kept: the request reads this memory
        self._y_NK = np.empty((len(x_NCHW), *self.output.shape), np.float32)
        self._bind(self._request, self._x_NCHW, self._y_NK)

    def _bind(self, request: Any, x_NCHW: FloatArray, y_NK: FloatArray) -> None:
        tensor = self._openvino.Tensor
        request.set_tensor(self.input.name, tensor(x_NCHW, shared_memory=True))
        request.set_tensor(self.output.name, tensor(y_NK, shared_memory=True))

    def _enqueue(self) -> None:
        self._request.infer()

    def _fetch(self) -> FloatArray:
        y_NK: FloatArray = self._y_NK.copy()
        return y_NK

    def _node_times(self, x_NCHW: FloatArray, runs: int) -> list[NodeTime] | None:
        """From a second compiled model, with the plugin's counters on: this session's own stays as it is.

        A node is named as `conv1 + conv1/relu`, by the nodes of the ONNX graph that it does the work of, and its kind is the
        plugin's with what its kernel computes in, as `Convolution(f32)`.
        """
        compiled = self._compile(len(x_NCHW), PERF_COUNT=True)
        x_NCHW, y_NK = shareable(x_NCHW), np.empty((len(x_NCHW), *self.output.shape), np.float32)
        request = compiled.create_infer_request()
        self._bind(request, x_NCHW, y_NK)
        request.infer()  # touches the memory
        total_us: dict[tuple[str, str], float] = {}
        for _ in range(runs):
            request.infer()
            for entry in request.profiling_info:
                if entry.status != entry.Status.EXECUTED:  # fused into another
                    continue
                key = (entry.node_name, f"{entry.node_type}({kernel_type(entry.exec_type)})")
                total_us[key] = total_us.get(key, 0.0) + entry.real_time.total_seconds() * 1e6
        fused = {node.name: node.fused for node in executed_nodes(compiled)}
        return [
            NodeTime(name=" + ".join(fused.get(name) or (name,)), kind=kind, ns=1000 * total / runs)
            for (name, kind), total in total_us.items()
        ]

    def _close(self) -> None:
        for name in ("_request", "_compiled", "_model", "_x_NCHW", "_y_NK"):
            self.__dict__.pop(name, None)

    def _property(self, name: str) -> Any:
        value = self._compiled.get_property(name)
        return value.to_string() if isinstance(value, self._openvino.Type) else value

    def details(self) -> dict[str, Any]:
        return {
            **super().details(),
            "version": self._version,
            "device_name": str(self._core.get_property("CPU", "FULL_DEVICE_NAME")),
            "inference_precision": str(self._property("INFERENCE_PRECISION_HINT")),
            "threads": int(self._property("INFERENCE_NUM_THREADS")),
            "streams": int(self._property("NUM_STREAMS")),
            "pinned": bool(self._property("ENABLE_CPU_PINNING")),
        }


def _tensor(port: Any) -> FileTensor:
    kind = str(port.get_element_type().to_string())
    shape = tuple(None if extent.is_dynamic else int(extent.get_length()) for extent in port.get_partial_shape())
    return FileTensor(names=frozenset(port.get_names()), dtype="float32" if kind == "f32" else kind, shape=shape)
