"""Tensors inside an artifact, by their names in the graphs of this package.

Asking for a tensor may keep a runtime from fusing what is around it, so what is observed is compared with the artifact's own
answers by whoever uses it.

Letters: N batch, C channels, H height, W width.

Sources: ONNX Runtime returns every tensor that is a graph output (onnx.ai/onnx/repo-docs/IR.html);
https://docs.openvino.ai (`openvino.Model.add_outputs`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet_edge.artifact import Artifact
from alexnet_edge.environment import usable_cpus
from alexnet_edge.errors import UserError, needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.sessions.onnxruntime import OnnxRuntimeSession
from alexnet_edge.sessions.openvino import INFERENCE_PRECISION, load_library, read_model, shared_core

OBSERVABLE = ("onnx", "openvino")
"""The formats whose tensors can be read; TorchScript and torch.export run the same operators as the checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One tensor on some images."""

    values: FloatArray
    """As numbers: what is stored quantised is dequantised."""
    stored: str
    """What it is stored in: `fp32`, `fp16`, `int8`."""


class Observer(ABC):
    """A graph whose inner tensors can be asked for."""

    @property
    @abstractmethod
    def names(self) -> frozenset[str]:
        """Every tensor that can be asked for."""

    @abstractmethod
    def run(self, x_NCHW: FloatArray, names: Sequence[str]) -> dict[str, Observed]:
        """These tensors for a batch of inputs, in one inference."""

    @abstractmethod
    def weight(self, layer: str) -> FloatArray | None:
        """The weight of a layer as it is stored, as numbers; None where it is in blocks or not to be found."""

    def constant(self, name: str) -> float | None:
        """The number stored under that name; None where none is."""
        return None

    def lrn(self, name: str) -> Mapping[str, float] | None:
        """Size, alpha, beta and bias of the local response normalisation of that name; None where no single node does it."""
        return None


def open_observer(artifact: Artifact, *, threads: int | None = None) -> Observer:
    """The observer of an artifact.

    Raises:
        UserError: for a format whose tensors cannot be read.
        MissingComponentError: when its runtime is not here.
    """
    if artifact.manifest.format == "onnx":
        return OnnxObserver(artifact, threads)
    if artifact.manifest.format == "openvino":
        return OpenVINOObserver(artifact, threads)
    raise UserError(
        "only the tensors of ONNX and OpenVINO files can be looked at layer by layer",
        value=artifact.path,
        fix="look at the ONNX file of the same precision: it is the graph that engines are built from",
    )


class OnnxObserver(Observer):
    """An ONNX file on ONNX Runtime's processor kernels."""

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        with needs("export"):
            import onnx
        self._artifact = artifact
        self._threads = threads
        self._model: Any = onnx.load(str(artifact.path))
        graph = self._model.graph
        self._producers = {output: node for node in graph.node for output in node.output}
        self._constants = {entry.name: entry for entry in graph.initializer}
        self._answers = {value.name for value in graph.output}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._producers)

    def run(self, x_NCHW: FloatArray, names: Sequence[str]) -> dict[str, Observed]:
        import onnx

        with needs("onnx"):
            import onnxruntime
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in self._answers)
        options = OnnxRuntimeSession(self._artifact, threads=self._threads).session_options()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs = session.run(list(names), {self._artifact.manifest.input.name: x_NCHW})
        return {name: self._as_numbers(name, value) for name, value in zip(names, outputs, strict=True)}

    def _as_numbers(self, name: str, value: np.ndarray[Any, Any]) -> Observed:
        if value.dtype.kind == "f":
            return Observed(values=value.astype(np.float32), stored="fp16" if value.dtype == np.float16 else "fp32")
        scale, zero = self._scale_of(name)
        return Observed(values=(value.astype(np.float32) - zero) * scale, stored="int8")

    def _scale_of(self, name: str) -> tuple[np.float32, np.float32]:
        """Scale and zero point of an integer tensor: those of the node that made it, or of what a pooling or a reshape took."""
        node = self._producers[name]
        places = {"QuantizeLinear": (1, 2), "QLinearConv": (6, 7), "QGemm": (7, 8)}
        if node.op_type not in places:
            return self._scale_of(node.input[0])
        scale, zero = (np.float32(self._array(node.input[place])) for place in places[node.op_type])
        return scale, zero

    def _array(self, name: str) -> Any:
        """The constant of that name as a NumPy array; None where none is."""
        from onnx import numpy_helper

        entry = self._constants.get(name)
        return None if entry is None else numpy_helper.to_array(entry)

    def weight(self, layer: str) -> FloatArray | None:
        stored, scale = (self._array(f"{layer}.weight{end}") for end in ("", "_scale"))
        if stored is None or scale is None:
            return None if stored is None else np.asarray(stored, np.float32)
        if scale.shape not in ((), (len(stored),)):
            return None
        return np.asarray(stored, np.float32) * np.asarray(scale, np.float32).reshape(-1, *[1] * (stored.ndim - 1))

    def constant(self, name: str) -> float | None:
        value = self._array(name)
        return None if value is None or value.shape else float(value)

    def lrn(self, name: str) -> Mapping[str, float] | None:
        node = self._producers.get(name)
        if node is None or node.op_type != "LRN":
            return None
        attributes = {entry.name: float(entry.i if entry.name == "size" else entry.f) for entry in node.attribute}
        # what the operator takes where its node names nothing
        return {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, **attributes}


class OpenVINOObserver(Observer):
    """An IR on OpenVINO's CPU plugin."""

    def __init__(self, artifact: Artifact, threads: int | None) -> None:
        self._artifact = artifact
        self._threads = threads
        self._openvino = load_library()
        self._core = shared_core()
        self._model = self._read()
        self._nodes = {
            name: operation
            for operation in self._model.get_ordered_ops()
            for output in operation.outputs()
            for name in output.get_names()
        }

    def _read(self) -> Any:
        assert self._artifact.companion is not None, "an artifact of this format has a second file"
        return read_model(self._openvino, self._core, self._artifact.path, self._artifact.companion)

    @property
    def names(self) -> frozenset[str]:
        """Integers are left out: the plugin keeps their scale in the nodes around them."""
        return frozenset(
            name
            for name, node in self._nodes.items()
            if any(name in output.get_names() and output.get_element_type().is_real() for output in node.outputs())
        )

    def run(self, x_NCHW: FloatArray, names: Sequence[str]) -> dict[str, Observed]:
        model = self._read()
        answers = {name for output in model.outputs for name in output.get_names()}
        added = [name for name in names if name not in answers]
        if added:
            model.add_outputs(added)
        threads = self._threads or usable_cpus()
        options = {"INFERENCE_PRECISION_HINT": INFERENCE_PRECISION, "INFERENCE_NUM_THREADS": threads}
        outputs = self._core.compile_model(model, "CPU", options)({self._artifact.manifest.input.name: x_NCHW})
        return {name: Observed(values=np.asarray(outputs[name], np.float32).copy(), stored="fp32") for name in names}

    def weight(self, layer: str) -> FloatArray | None:
        name = f"{layer}.weight_dq"
        if name not in self.names:
            return None
        zeros = np.zeros((1, *self._artifact.manifest.input.shape), np.float32)
        return self.run(zeros, [name])[name].values

    def lrn(self, name: str) -> Mapping[str, float] | None:
        node = self._nodes.get(name)
        if node is None or node.get_type_name() != "LRN":
            return None
        return {key: float(value) for key, value in node.get_attributes().items() if isinstance(value, (int, float))}
