"""TensorBoard's view of a run while it trains: curves and the first layer's filters.

Letters: O filters, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
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
"""A killed run loses at most this many seconds of its curves."""

_EPOCH_CURVES = {
    **{name: name for name in ("loss", "accuracy", "val_loss", "images_per_s", "wait_share")},
    "val_top1": "top1",
    "val_top5": "top5",
}
"""Field of `EpochRow` by name of its curve."""


def require_tensorboard() -> None:
    """Check before the work begins that it can be shown.

    Raises:
        MissingComponentError: when tensorboardX is not installed.
    """
    with needs("tensorboard"):
        import tensorboardX  # noqa: F401


class TensorBoardLog:
    """Writes event files into the folder `tensorboard` of a run; a resumed run continues its curves."""

    def __init__(self, run: Path, *, steps_done: int) -> None:
        """Open a new event file; what an earlier process wrote after `steps_done` is dropped: these steps are repeated.

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

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def step(self, number: int, figures: Mapping[str, float]) -> None:
        """Add one step, whose number over the whole run is from 1, and its figures by name; shares are 0-1."""
        for name, value in figures.items():
            self._writer.add_scalar(f"step/{name}", value, number)

    def epoch(self, row: EpochRow, step: int, filters_OCHW: FloatArray) -> None:
        """Add one epoch that ended before `step`: its line of the history, and conv1's filters as a picture."""
        for name, field in _EPOCH_CURVES.items():
            self._writer.add_scalar(f"epoch/{name}", getattr(row, field), step)
        self._writer.add_image("conv1", filter_grid(filters_OCHW), step, dataformats="HWC")
