"""The tools that peers are, each in its own default way of export and inference.

Sources: the tools' own pages: `torch.onnx.export`; https://docs.openvino.ai (Convert a PyTorch model; Basic Quantization
Flow, NNCF); https://github.com/Tencent/ncnn (pnnx); https://ai.google.dev/edge/litert (Convert PyTorch models);
https://docs.pytorch.org/executorch (XNNPACK backend).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet_edge.artifact import INPUT
from alexnet_edge.images.datasets import ImageSet, batches
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.checkpoint import Checkpoint
from alexnet_edge.network.load import load_checkpoint

if TYPE_CHECKING:
    import torch

QUANTISATION_IMAGES = 300
"""Images for tools that quantise; NNCF's own default number."""
Run = Callable[[FloatArray], FloatArray]
"""`(N, 3, S, S)` float32 to `(N, K)` float32, by one peer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a peer is made from."""

    checkpoint: Checkpoint
    folder: Path
    """Where its files go."""
    batches: tuple[int, ...]
    """Batch sizes it must take."""
    images: ImageSet
    """To quantise on, for the tools that do."""

    def example(self, batch: int = 1) -> torch.Tensor:
        import torch

        size = self.checkpoint.info.preprocessing.crop
        return torch.zeros(batch, 3, size, size)


class Peer(ABC):
    """One tool in one way of using it."""

    name: str
    about: str
    precision = "fp32"
    packages: tuple[str, ...]
    """Distributions it needs, as the package index names them; the first is the tool."""
    fixed_batch = False
    """Whether an exported file takes one batch size only."""
    deployed: tuple[str, ...] = ()
    """The files that are needed to run it, with one batch size."""

    @abstractmethod
    def prepare(self, source: Source) -> None:
        """Write the tool's files into `source.folder`."""

    @abstractmethod
    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        """What answers a batch."""


class _Torch(Peer):
    packages = ("torch",)

    def prepare(self, source: Source) -> None:
        """Nothing is exported."""

    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        call = self._call(torch, load_checkpoint(checkpoint).model())

        def run(x_NCHW: FloatArray) -> FloatArray:
            with torch.inference_mode():
                y_NK: FloatArray = call(torch.from_numpy(x_NCHW)).numpy()
            return y_NK

        return run

    @abstractmethod
    def _call(self, torch: Any, module: Any) -> Callable[..., Any]:
        """What answers a batch, of the checkpoint's network."""


class TorchCompile(_Torch):
    name, about = "torch-compile", "torch.compile with its default backend"

    def _call(self, torch: Any, module: Any) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(module)
        return compiled


class TorchChannelsLast(_Torch):
    name, about = "torch-channels-last", "PyTorch eagerly, weights and input in channels-last order"

    def _call(self, torch: Any, module: Any) -> Callable[..., Any]:
        network = module.to(memory_format=torch.channels_last)
        return lambda x: network(x.contiguous(memory_format=torch.channels_last))


class OnnxRuntime(Peer):
    name, about = "onnxruntime", "torch.onnx.export, then ONNX Runtime with its default options"
    deployed = ("model.onnx",)
    packages = ("onnxruntime", "torch", "onnxscript")

    def prepare(self, source: Source) -> None:
        import torch

        torch.onnx.export(
            source.checkpoint.model(),
            (source.example(2),),
            str(source.folder / "model.onnx"),
            input_names=[INPUT],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            dynamo=True,
            external_data=False,
        )

    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda x_NCHW: session.run(None, {INPUT: x_NCHW})[0]


class OpenVINO(Peer):
    name, about = "openvino", "openvino.convert_model; its processor plugin chooses what it computes in"
    precision = "default"
    deployed = ("model.xml", "model.bin")
    packages: tuple[str, ...] = ("openvino", "torch")
    options: Mapping[str, Any] = {}

    def prepare(self, source: Source) -> None:
        from alexnet_edge.sessions.openvino import load_library

        openvino, example = load_library(), source.example()
        model = openvino.convert_model(
            source.checkpoint.model(), example_input=example, input=[[-1, *example.shape[1:]]]
        )
        openvino.save_model(self._quantised(model, source), str(source.folder / "model.xml"), compress_to_fp16=False)

    def _quantised(self, model: Any, source: Source) -> Any:
        """The model as it is; NNCF's is quantised."""
        return model

    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        from alexnet_edge.sessions.openvino import shared_core

        compiled = shared_core().compile_model(
            str(folder / "model.xml"), "CPU", {"INFERENCE_NUM_THREADS": threads, **self.options}
        )
        request = compiled.create_infer_request()

        def run(x_NCHW: FloatArray) -> FloatArray:
            request.infer({0: x_NCHW}, share_inputs=True)
            y_NK: FloatArray = request.get_output_tensor(0).data.copy()
            return y_NK

        return run


class OpenVINOFloat(OpenVINO):
    name, about, precision = "openvino-fp32", "the same, computing in FP32", "fp32"
    options: Mapping[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}


class NNCF(OpenVINO):
    name, about, precision = "openvino-nncf", "the same, quantised by NNCF with its defaults", "int8"
    packages = ("nncf", "openvino", "torch")

    def _quantised(self, model: Any, source: Source) -> Any:
        import nncf

        images = source.images.spread(QUANTISATION_IMAGES)
        spec = source.checkpoint.info.preprocessing
        dataset = nncf.Dataset([part.x_NCHW for part in batches(images, spec, batch=1, on_bad_image="skip")])
        return nncf.quantize(model, dataset)


class NCNN(Peer):
    name, about = "ncnn", "pnnx, then ncnn with its default options; one image at a time"
    precision = "default"
    deployed = ("model.ncnn.param", "model.ncnn.bin")
    packages = ("ncnn", "pnnx", "torch")

    def prepare(self, source: Source) -> None:
        import pnnx

        pnnx.export(source.checkpoint.model(), str(source.folder / "model.pt"), (source.example(),))

    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = threads
        net.load_param(str(folder / "model.ncnn.param"))
        net.load_model(str(folder / "model.ncnn.bin"))

        def answer(x_CHW: FloatArray) -> FloatArray:
            with net.create_extractor() as extractor:
                extractor.input("in0", ncnn.Mat(x_CHW))
                return np.array(extractor.extract("out0")[1], np.float32)

        return lambda x_NCHW: np.stack([answer(x_CHW) for x_CHW in x_NCHW])


class LiteRT(Peer):
    name, about = "litert", "litert_torch.convert, then LiteRT's interpreter (XNNPACK)"
    deployed = ("model_1.tflite",)
    packages = ("ai-edge-litert", "litert-torch", "torch")
    fixed_batch = True

    def prepare(self, source: Source) -> None:
        import litert_torch

        for batch in source.batches:
            model = litert_torch.convert(source.checkpoint.model(), (source.example(batch),))
            model.export(str(source.folder / f"model_{batch}.tflite"))

    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        from ai_edge_litert.interpreter import Interpreter

        opened: dict[int, Any] = {}

        def run(x_NCHW: FloatArray) -> FloatArray:
            batch = len(x_NCHW)
            if batch not in opened:
                opened[batch] = Interpreter(model_path=str(folder / f"model_{batch}.tflite"), num_threads=threads)
                opened[batch].allocate_tensors()
            interpreter = opened[batch]
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x_NCHW)
            interpreter.invoke()
            y_NK: FloatArray = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            return y_NK

        return run


class ExecuTorch(Peer):
    name, about = "executorch", "to_edge_transform_and_lower with XNNPACK's partitioner, then ExecuTorch's runtime"
    deployed = ("model_1.pte",)
    packages = ("executorch", "torch")
    fixed_batch = True

    def prepare(self, source: Source) -> None:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        for batch in source.batches:
            program = torch.export.export(source.checkpoint.model(), (source.example(batch),))
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
            (source.folder / f"model_{batch}.pte").write_bytes(lowered.buffer)

    def open(self, folder: Path, checkpoint: Path, threads: int) -> Run:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if hasattr(portable_lib, "_threadpool_set_num_threads"):
            portable_lib._threadpool_set_num_threads(threads)
        runtime, opened = Runtime.get(), dict[int, Any]()

        def run(x_NCHW: FloatArray) -> FloatArray:
            batch = len(x_NCHW)
            if batch not in opened:
                opened[batch] = runtime.load_program(folder / f"model_{batch}.pte").load_method("forward")
            y_NK: FloatArray = opened[batch].execute((torch.from_numpy(x_NCHW),))[0].numpy()
            return y_NK

        return run


_TOOLS: tuple[type[Peer], ...] = (
    *(TorchCompile, TorchChannelsLast, OnnxRuntime, OpenVINO, OpenVINOFloat, NNCF, NCNN, LiteRT, ExecuTorch),
)
PEERS: dict[str, Peer] = {tool.name: tool() for tool in _TOOLS}
"""PyTorch eagerly is not among them: it is the checkpoint itself, which `alexnet-edge bench` measures."""
