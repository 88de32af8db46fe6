"""A session on an ONNX file, run by ONNX Runtime.

Source: https://onnxruntime.ai/docs/api/python/api_summary.html (I/O binding, session options).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from alexnet_edge.errors import ArtifactError, MissingComponentError, needs
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions.base import ArtifactSession, Device

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
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if (
            self.artifact.manifest.precision == "fp8"
        ):  # its pass over Q/DQ pairs rounds biases through FP16: wrong answers
            options.add_session_config_entry("session.disable_quant_qdq", "1")
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
        self._version = onnxruntime.__version__
        self._binding = self._session.io_binding()

    def _prepare(self, x_NCHW: FloatArray) -> None:
        self._x_NCHW = np.ascontiguousarray(x_NCHW)  # kept: the binding reads this memory
        self._binding.bind_cpu_input(self.input.name, self._x_NCHW)
        self._binding.bind_output(self.output.name)

    def _enqueue(self) -> None:
        self._session.run_with_iobinding(self._binding)

    def _fetch(self) -> FloatArray:
        y_NK: FloatArray = self._binding.copy_outputs_to_cpu()[0]
        return y_NK

    def _close(self) -> None:
        for name in ("_binding", "_session"):
            self.__dict__.pop(name, None)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "version": self._version, "provider": self._session.get_providers()[0]}
