"""What a run shows while it goes on: curves and the first layer's filters, as TensorBoard reads them.

Letters: O filters, C channels, H height, W width.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from alexnet_edge.errors import needs
from alexnet_edge.files import writing
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.network.filters import filter_grid

if TYPE_CHECKING:
    from alexnet_edge.training.history import EpochRow

FOLDER = "tensorboard"
"""Below the run's folder."""

FLUSH_S = 10
"""A run that is killed loses at most so many seconds of its curves."""

_EPOCH_CURVES = {
    "epoch/loss": "loss",
    "epoch/accuracy": "accuracy",
    "epoch/val_loss": "val_loss",
    "epoch/val_top1": "top1",
    "epoch/val_top5": "top5",
    "epoch/images_per_s": "images_per_s",
    "epoch/wait_share": "wait_share",
}


def require_tensorboard() -> None:
    """Say before the work begins that it could not be shown.

    Raises:
        MissingComponentError: when tensorboardX is not installed.
    """
    with needs("tensorboard"):
        import tensorboardX  # noqa: F401


class TensorBoardLog:
    """Writes event files into the folder `tensorboard` of a run; the curves of a resumed run go on where it does."""

    def __init__(self, run: Path, *, steps_done: int) -> None:
        """
        Args:
            run: the run's folder.
            steps_done: of the whole run; what an earlier process wrote after these is forgotten: they are done again.

        Raises:
            OutputError: when the folder cannot be written.
        """
        from tensorboardX import SummaryWriter

        suffix = f".{steps_done:09d}.{os.getpid()}"  # the library's own names are the same within a second
        with writing(run / FOLDER):
            self._writer: Any = SummaryWriter(
                str(run / FOLDER), purge_step=steps_done + 1, flush_secs=FLUSH_S, filename_suffix=suffix
            )

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    def step(
        self,
        number: int,
        *,
        loss: float,
        accuracy: float,
        lr: float,
        gradient_norm: float,
        images_per_s: float,
        wait_share: float,
    ) -> None:
        """Add one step: its number over the whole run, from 1, and its figures; shares are 0-1."""
        for name, value in (
            ("loss", loss),
            ("accuracy", accuracy),
            ("lr", lr),
            ("gradient_norm", gradient_norm),
            ("images_per_s", images_per_s),
            ("wait_share", wait_share),
        ):
            self._writer.add_scalar(f"step/{name}", value, number)

    def epoch(self, row: EpochRow, step: int, filters_OCHW: FloatArray) -> None:
        """Add one epoch that ended before `step`: its line of the history, and conv1's filters as a picture."""
        for name, key in _EPOCH_CURVES.items():
            self._writer.add_scalar(name, getattr(row, key), step)
        self._writer.add_image("conv1", filter_grid(filters_OCHW), step, dataformats="HWC")
