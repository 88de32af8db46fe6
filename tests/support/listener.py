"""A reporter that keeps the notes of a run, and can stop it with a signal."""

from __future__ import annotations

import signal

from alexnet_edge.progress import QuietReporter


class Listener(QuietReporter):
    """Keeps the notes; after `steps` updates, if there are so many, it sends this process a signal."""

    def __init__(self, steps: int = 0, number: int = signal.SIGINT) -> None:
        self.steps_to_signal = steps
        self.number = number
        self.notes: list[str] = []

    def update(self, completed: int, detail: str = "") -> None:
        self.steps_to_signal -= 1
        if self.steps_to_signal == 0:
            signal.raise_signal(self.number)

    def note(self, text: str) -> None:
        self.notes.append(text)
