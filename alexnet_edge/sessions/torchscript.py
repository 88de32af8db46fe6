"""A session on a frozen TorchScript file."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from alexnet_edge.errors import ArtifactError, needs
from alexnet_edge.sessions.base import FileTensor
from alexnet_edge.sessions.torch import ArtifactTorchSession

with needs("train"):
    import torch


def _output_of(module: torch.jit.ScriptModule) -> FileTensor:
    """The output as the weights of the last product tell it: the graph itself keeps no shapes."""
    products = module.graph.findAllNodes("aten::linear")  # type: ignore[attr-defined]
    weight = next(itertools.islice(products[-1].inputs(), 1, None)).node() if products else None
    if weight is None or weight.kind() != "prim::Constant":
        return FileTensor()
    return FileTensor(shape=(None, int(weight.t("value").shape[0])))


@contextmanager
def quiet_jit() -> Iterator[None]:
    """Without the notices that `torch.jit` is deprecated: this package writes `torch.export` programs beside TorchScript."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=category)
        # `local_response_norm` asks whether its input is empty; the batch is free all the same, as parity shows.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


class TorchScriptSession(ArtifactTorchSession):
    """A `.ts` file written by `torch.jit.save`."""

    runtime = "torchscript"

    def _module(self) -> Callable[[torch.Tensor], torch.Tensor]:
        try:
            with quiet_jit():
                module: torch.jit.ScriptModule = torch.jit.load(str(self.artifact.path), map_location=self.device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(
                f"TorchScript cannot load the file ({reason})", value=self.artifact.path, fix="export it again"
            ) from error
        self._require_io([FileTensor()], [_output_of(module)])
        call: Callable[[torch.Tensor], torch.Tensor] = module.eval()
        return call
