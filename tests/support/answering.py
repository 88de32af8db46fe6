"""A session that answers by a function, for tests of what is made of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from alexnet_edge.artifact import TensorSpec
from alexnet_edge.images.preprocess import FloatArray, Preprocessing
from alexnet_edge.sessions import Session


class Answering(Session):
    """Answers a batch with `answers(x_NCHW)`, of shape `(N, K)`; remembers the sizes of its batches."""

    runtime = "answering"

    def __init__(
        self,
        answers: Callable[[FloatArray], FloatArray],
        classes: Sequence[str],
        spec: Preprocessing,
        *,
        head: Literal["logits", "probabilities"] = "logits",
        min_batch: int = 1,
        max_batch: int | None = None,
    ) -> None:
        shape = (3, spec.crop, spec.crop)
        super().__init__(
            input=TensorSpec(name="input", dtype="float32", shape=shape, min_batch=min_batch, max_batch=max_batch),
            output=TensorSpec(name=head, dtype="float32", shape=(len(classes),)),
            device="cpu",
            threads=1,
            classes=tuple(classes),
            head=head,
            preprocessing=spec,
        )
        self.answers = answers
        self.batches: list[int] = []

    def _load(self) -> None:
        """Nothing to load."""

    def _prepare(self, x_NCHW: FloatArray) -> None:
        self.batches.append(len(x_NCHW))
        self._x_NCHW = x_NCHW

    def _enqueue(self) -> None:
        self._y_NK = np.asarray(self.answers(self._x_NCHW), np.float32)

    def _fetch(self) -> FloatArray:
        return self._y_NK
