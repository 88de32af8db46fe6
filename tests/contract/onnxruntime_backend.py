"""A backend of Triton, in Python: ONNX models by the ONNX Runtime of the environment that the tests run in.

The server runs it in a process of its own. It prints every batch, so that warm-up and batching can be seen in the log.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    """One instance."""

    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / config["default_model_filename"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input, self._output = config["input"][0]["name"], config["output"][0]["name"]
        print(f"INSTANCE {args['model_instance_name']} {args['model_instance_kind']}", flush=True)

    def execute(self, requests):
        tensors = [utils.get_input_tensor_by_name(request, self._input) for request in requests]
        inputs = [np.from_dlpack(tensor) for tensor in tensors]
        x_NCHW = np.concatenate(inputs)
        print(f"BATCH {len(x_NCHW)}", flush=True)
        (y_NK,) = self._session.run([self._output], {self._input: x_NCHW})
        answers, at = [], 0
        for (
            x
        ) in inputs:  # by DLPack: the server's Python backend was compiled for numpy 1 and misreads arrays of numpy 2
            part = np.ascontiguousarray(y_NK[at : at + len(x)])
            answers.append(utils.InferenceResponse([utils.Tensor.from_dlpack(self._output, part)]))
            at += len(x)
        return answers
