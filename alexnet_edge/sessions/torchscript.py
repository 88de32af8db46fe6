"""A session on a frozen TorchScript file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from alexnet_edge.errors import ArtifactError, needs
from alexnet_edge.sessions.torch import ArtifactTorchSession

with needs("train"):
    import torch


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
        call: Callable[[torch.Tensor], torch.Tensor] = module.eval()
        return call
