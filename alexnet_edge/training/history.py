"""What a training run records: one row per epoch, and the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_edge import records


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRow:
    """One line of the history."""

    epoch: int
    """From 1."""
    loss: float
    """Mean training loss over the epoch, with dropout and label smoothing."""
    accuracy: float
    """Share of training images answered rightly as they were seen, 0-1, with dropout."""
    val_loss: float
    top1: float
    """Validation accuracy, 0-1."""
    top5: float
    lr: float
    """Learning rate of the epoch's last step."""
    gradient_norm: float
    """Mean over the epoch's steps, before clipping."""
    images_per_s: float
    """Training only, without validation, over all processes."""
    wait_share: float
    """Share of the training time in which the first process waited for images, 0-1."""
    seconds: float
    """Training and validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """A run that reached its end or its time limit."""

    run: Path
    """The run's folder."""
    checkpoint: Path
    """The best epoch's weights."""
    best: EpochRow
    history: tuple[EpochRow, ...]
    seconds: float
    """Of this call, loading and saving included."""
    complete: bool
    """False when the time limit ended it; `resume` goes on."""
    skipped: tuple[str, ...]
    """What was wrong with each image left out."""
    first: bool = True
    """Whether this is the process that reports; with `torchrun` one of them does."""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in records.to_builtins(self).items() if name != "first"}


@dataclass(kw_only=True, slots=True)
class Sums:
    """What the steps of the epoch so far add up to."""

    loss: float = 0.0
    """Times images."""
    correct: int = 0
    seen: int = 0
    gradient_norm: float = 0.0
    steps: int = 0
    """Whose gradient norm was finite."""

    def add(self, loss: float, correct: int, count: int, gradient_norm: float) -> None:
        self.loss += loss * count
        self.correct += correct
        self.seen += count
        if math.isfinite(gradient_norm):
            self.gradient_norm += gradient_norm
            self.steps += 1
