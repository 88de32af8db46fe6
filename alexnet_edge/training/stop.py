"""Ctrl-C and SIGTERM end a run after the present step, not within it; before the first step, at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from alexnet_edge.errors import InterruptedRunError


class Stop:
    """Whether the run was asked to end, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.preparing = True
        """Nothing is learned yet: a signal interrupts at once."""

    @property
    def asked(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGINT and SIGTERM inside the block. While preparing the first one interrupts, later the second SIGINT.

        A program that handles a signal in its own way keeps its handler. Outside the main thread no signal can be noted.

        Raises:
            InterruptedRunError: on SIGTERM while preparing.
        """

        def note(number: int, frame: FrameType | None) -> None:
            again, self.signal = self.asked, number
            if number == signal.SIGINT and (again or self.preparing):
                raise KeyboardInterrupt
            if self.preparing and not again:
                error = InterruptedRunError("stopped before the first step; start it again with the same command")
                error.exit_code = 128 + number
                raise error

        usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        if threading.current_thread() is not threading.main_thread():
            usual = {}
        before = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
