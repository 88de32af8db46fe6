"""How far long work has come: a bar on a terminal, a plain line now and then in a log, nothing when asked to be quiet.

Everything goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from typing_extensions import Self

PLAIN_INTERVAL_S = 5.0
"""A log gets one line in so many seconds, and one at the end."""


class Reporter(Protocol):
    """What long work tells of itself, one piece of work at a time."""

    def start(self, description: str, total: int | None) -> None:
        """A piece of work begins; `total` is its number of steps, None where it is not known."""

    def update(self, completed: int, detail: str = "") -> None:
        """`completed` steps are done; `detail` is shown behind them (`loss 0.42`)."""

    def finish(self, detail: str = "") -> None:
        """The piece of work is done; `detail` is its result."""

    def note(self, text: str) -> None:
        """A line worth keeping: a warning, a file written."""


class QuietReporter:
    """Shows nothing."""

    def start(self, description: str, total: int | None) -> None: ...
    def update(self, completed: int, detail: str = "") -> None: ...
    def finish(self, detail: str = "") -> None: ...
    def note(self, text: str) -> None: ...


class ConsoleReporter:
    """A bar on a terminal, plain lines elsewhere. Use it as a context manager, so that the bar goes when the work ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console if console is not None else Console(file=sys.stderr, highlight=False)
        self._progress: Progress | None = None
        self._description = ""
        self._total: int | None = None
        self._completed = 0
        self._started = 0.0
        self._shown = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop()

    def start(self, description: str, total: int | None) -> None:
        self._stop()
        self._description, self._total, self._completed = description, total, 0
        self._started = self._shown = time.monotonic()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.add_task(description, total=total, detail="")
            self._progress.start()

    def update(self, completed: int, detail: str = "") -> None:
        self._completed = completed
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=completed, detail=detail)
        elif time.monotonic() - self._shown >= PLAIN_INTERVAL_S:
            self._shown = time.monotonic()
            self.note(f"{self._description}: {self._count()}{f', {detail}' if detail else ''}{self._left()}")

    def finish(self, detail: str = "") -> None:
        seconds = time.monotonic() - self._started
        self._stop()
        self.note(f"{self._description}: {detail or self._count()}, {seconds:.1f} s")

    def note(self, text: str) -> None:
        # soft_wrap: a log line is one line, however narrow; markup off: a path may hold brackets
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def _count(self) -> str:
        return f"{self._completed}/{self._total}" if self._total is not None else str(self._completed)

    def _left(self) -> str:
        if not self._total or not self._completed:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - self._completed) / self._completed
        return f", {seconds:.0f} s left"

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
