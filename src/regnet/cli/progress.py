"""Show the progress of long work on stderr: a bar on a terminal, otherwise occasional lines."""

import time
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regnet.cli.output import stderr

QUIET_SECONDS: Final = 30.0
"""Least time between two progress lines if stderr is not a terminal."""


class ProgressBar:
    """Shows how far a command has come. Use it in a `with` statement."""

    def __init__(self, description: str, *, hidden: bool = False) -> None:
        """Create the bar.

        Args:
            description: what the command does until the first step is reported.
            hidden: show nothing, as in all processes of `torchrun` except the first.
        """
        self.hidden = hidden
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=stderr, transient=True,
            disable=hidden or not stderr.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(description, total=None)
        self._first: tuple[str, int, float] | None = None
        self._said = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, description: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps are done."""
        now = time.monotonic()
        # A new description or a smaller count begins a new task, which has a pace of its own.
        if self._first is None or self._first[0] != description or self._first[1] > done:
            self._first = description, done, now
        self._bar.update(self._task, description=description, completed=done, total=total)
        if not (self.hidden or stderr.is_terminal) and now - self._said >= QUIET_SECONDS:
            self.line(f"{description}: {done:,} of {total:,}{self.remaining(done, total)}")

    def remaining(self, done: int, total: int) -> str:
        """Return the estimated time left, to end a message with; "" while the pace is unknown."""
        if self._first is None or done <= self._first[1]:
            return ""
        _, first, began = self._first
        seconds = (time.monotonic() - began) / (done - first) * (total - done)
        return f", about {duration(seconds)} left"

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if not self.hidden:
            self._said = time.monotonic()
            stderr.print(text)


def duration(seconds: float) -> str:
    """Return a duration in a suitable unit: "45 s", "12 min", "3.5 h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            digits = 1 if seconds < 10 * size else 0
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
