"""Sessions on PyTorch: a checkpoint run eagerly (the reference of every parity check) and a `torch.export` program."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alexnet_edge.artifact import INPUT, TensorSpec
from alexnet_edge.checkpoint import Checkpoint, load_checkpoint
from alexnet_edge.errors import ArtifactError, MissingComponentError, needs
from alexnet_edge.preprocess import FloatArray
from alexnet_edge.sessions.base import ArtifactSession, Device, Session

with needs("train"):
    import torch


def specs_of(checkpoint: Checkpoint) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a checkpoint's network: any batch."""
    arch = checkpoint.info.arch
    size = checkpoint.info.preprocessing.crop
    return (
        TensorSpec(name=INPUT, dtype="float32", shape=(3, size, size)),
        TensorSpec(name=arch.head, dtype="float32", shape=(arch.num_classes,)),
    )


class TorchSession(Session):
    """What the PyTorch runtimes share; a subclass gives the callable to run."""

    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]:
        raise AssertionError("a subclass loads the module")

    def _load(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise MissingComponentError("torch sees no CUDA GPU here", fix="use --device cpu")
        torch.set_num_threads(self.threads)
        self._call = self._module()
        self._x = torch.empty(0)
        self._y = torch.empty(0)

    def _prepare(self, x_NCHW: FloatArray) -> None:
        contiguous = np.ascontiguousarray(x_NCHW)
        self._x = torch.from_numpy(contiguous if contiguous.flags.writeable else contiguous.copy()).to(self.device)

    def _enqueue(self) -> None:
        with torch.inference_mode():
            self._y = self._call(self._x)

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def _fetch(self) -> FloatArray:
        y_NK: FloatArray = self._y.cpu().numpy()
        return y_NK

    def _close(self) -> None:
        self.__dict__.pop("_call", None)

    def details(self) -> dict[str, Any]:
        return {**super().details(), "version": str(torch.__version__)}


class CheckpointSession(TorchSession):
    """A checkpoint run by PyTorch eagerly."""

    runtime = "torch"

    def __init__(self, source: Path | Checkpoint, *, device: Device = "cpu", threads: int | None = None) -> None:
        self.checkpoint = source if isinstance(source, Checkpoint) else load_checkpoint(source)
        input_spec, output_spec = specs_of(self.checkpoint)
        info = self.checkpoint.info
        super().__init__(
            input=input_spec,
            output=output_spec,
            device=device,
            threads=threads,
            classes=info.classes,
            head=info.arch.head,
            preprocessing=info.preprocessing,
        )

    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.checkpoint.model().to(self.device)


class ArtifactTorchSession(ArtifactSession, TorchSession):
    """What the PyTorch artifact formats share."""


class ExportedProgramSession(ArtifactTorchSession):
    """A `.pt2` file written by `torch.export.save`."""

    runtime = "torch.export"

    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]:
        try:
            program = torch.export.load(self.artifact.path)
        except (RuntimeError, ValueError, OSError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"torch.export cannot load the file ({reason})", value=self.artifact.path, fix="export it again"
            ) from error
        return program.module().to(self.device)
