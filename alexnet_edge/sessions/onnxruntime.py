"""A session on an ONNX file, run by ONNX Runtime.

Source: https://onnxruntime.ai/docs/api/python/api_summary.html (I/O binding, session options);
https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html (profiling).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.errors import ArtifactError, MissingComponentError, needs
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.sessions.base import ArtifactSession, Device, FileTensor, NodeTime

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeSession(ArtifactSession):
    """An `.onnx` artifact; refuses to run on another execution provider than the device's own."""

    runtime = "onnxruntime"

    def _load(self) -> None:
        with needs("onnx"):
            import onnxruntime
        provider = PROVIDERS[self.device]
        if provider not in onnxruntime.get_available_providers():
            raise MissingComponentError(f"this ONNX Runtime has no {provider}", fix="use --device cpu")
        options = self.session_options()
        try:
            self._session = onnxruntime.InferenceSession(str(self.artifact.path), options, providers=[provider])
        except Exception as error:  # the binding raises its own unrelated exception classes
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"ONNX Runtime cannot load the file ({reason})", value=self.artifact.path, fix="export it again"
            ) from error
        in_use = self._session.get_providers()[0]
        if in_use != provider:
            raise MissingComponentError(
                f"ONNX Runtime fell back to {in_use} where {provider} was asked for", fix="use --device cpu"
            )
        self._require_io(
            *(list(map(_tensor, side)) for side in (self._session.get_inputs(), self._session.get_outputs()))
        )
        self._version = onnxruntime.__version__
        self._binding = self._session.io_binding()

    def session_options(self) -> Any:
        """ONNX Runtime's own, for this artifact and as many threads as were asked for."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self.artifact.manifest.precision == "fp8":
            # Its pass over Q/DQ pairs rounds biases through FP16: wrong answers.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        return options

    def _prepare(self, x_NCHW: FloatArray) -> None:
        self._x_NCHW = np.ascontiguousarray(x_NCHW)  # kept: the binding reads this memory
        self._binding.bind_cpu_input(self.input.name, self._x_NCHW)
        self._binding.bind_output(self.output.name)

    def _enqueue(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _fetch(self) -> FloatArray:
        y_NK: FloatArray = self._binding.copy_outputs_to_cpu()[0]
        return y_NK

    def _node_times(self, x_NCHW: FloatArray, runs: int) -> list[NodeTime] | None:
        """From ONNX Runtime's own trace, taken in a second session; None on a GPU, where it is the time of starting kernels."""
        if self.device != "cpu":
            return None
        import onnxruntime

        feed = {self.input.name: np.ascontiguousarray(x_NCHW)}
        with tempfile.TemporaryDirectory() as folder:
            options = self.session_options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "trace")
            session = onnxruntime.InferenceSession(
                str(self.artifact.path), options, providers=self._session.get_providers()
            )
            for _ in range(_PROFILE_WARMUP + runs):
                session.run([self.output.name], feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return node_times_of(events, skip=_PROFILE_WARMUP)

    def _close(self) -> None:
        for name in ("_binding", "_session"):
            self.__dict__.pop(name, None)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "version": self._version, "provider": self._session.get_providers()[0]}


def _tensor(argument: Any) -> FileTensor:
    kind = str(argument.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(extent if isinstance(extent, int) else None for extent in argument.shape)
    return FileTensor(names=frozenset({argument.name}), dtype="float32" if kind == "float" else kind, shape=shape)


_PROFILE_WARMUP = 5
_KERNEL = "_kernel_time"


def node_times_of(events: Iterable[Mapping[str, Any]], *, skip: int) -> list[NodeTime]:
    """The mean time of every node in a trace of ONNX Runtime, in the order they run.

    The kind is the operator with the element type of its first input, as `FusedConv(float)`: that is what it computes in,
    whatever type the file stores.

    Args:
        events: of the trace; only the times of kernels count.
        skip: inferences at its beginning that do not count.
    """
    kernels: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(_KERNEL):
            kernels.setdefault(str(event["args"].get("node_index", event["name"])), []).append(event)
    return [
        NodeTime(
            name=str(runs[0]["name"]).removesuffix(_KERNEL),
            kind=_kind(runs[0]["args"]),
            ns=1e3 * float(np.mean([float(event["dur"]) for event in runs[skip:]])),
        )
        for runs in kernels.values()
    ]


def _kind(arguments: Mapping[str, Any]) -> str:
    inputs = arguments.get("input_type_shape") or [{}]
    element = next(iter(inputs[0]), "")
    return f"{arguments['op_name']}({element})" if element else str(arguments["op_name"])
