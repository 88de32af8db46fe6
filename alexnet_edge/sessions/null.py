"""A session that answers zeros at once: what it takes is the harness's own overhead."""

from __future__ import annotations

import numpy as np

from alexnet_edge.artifact import INPUT, TensorSpec
from alexnet_edge.images.preprocess import FloatArray
from alexnet_edge.sessions.base import Session


class NullSession(Session):
    """Takes float32 `(N, 3, S, S)`, returns zeros `(N, K)`."""

    runtime = "null"

    def __init__(self, *, input_size: int = 227, num_classes: int = 1000) -> None:
        super().__init__(
            input=TensorSpec(name=INPUT, dtype="float32", shape=(3, input_size, input_size)),
            output=TensorSpec(name="logits", dtype="float32", shape=(num_classes,)),
            device="cpu",
            threads=1,
        )
        self._y_NK = np.zeros((1, num_classes), np.float32)

    def _load(self) -> None:
        """Nothing to load."""

    def _prepare(self, x_NCHW: FloatArray) -> None:
        if len(self._y_NK) != len(x_NCHW):
            self._y_NK = np.zeros((len(x_NCHW), *self.output.shape), np.float32)

    def _enqueue(self) -> None:
        """Nothing to compute."""

    def _fetch(self) -> FloatArray:
        return self._y_NK
