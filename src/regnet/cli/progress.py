"""Show progress of long work on stderr: a bar on a terminal, otherwise an occasional line."""

import time
from typing import Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regnet.cli.output import stderr

QUIET_SECONDS: Final = 30.0
"""Without a terminal, the time from one line to the next."""


class ProgressBar:
    """Shows how far a command is. Use it in a `with` statement."""

    def __init__(self, description: str, *, hidden: bool = False) -> None:
        """Set up.

        Args:
            description: what is done before the first step is reported.
            hidden: show nothing, as in all processes of `torchrun` but one.
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
        """Report that so many steps are done."""
        now = time.monotonic()
        if self._first is None or self._first[0] != description or self._first[1] > done:
            self._first = description, done, now
        self._bar.update(self._task, description=description, completed=done, total=total)
        if not (self.hidden or stderr.is_terminal) and now - self._said >= QUIET_SECONDS:
            self.line(f"{description}: {done:,} of {total:,}{self.remaining(done, total)}")

    def remaining(self, done: int, total: int) -> str:
        """Return how long the rest will take at the pace since the first step, for a message."""
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
    """Return a time as people say it: "45 s", "12 min", "3.5 h"."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            digits = 1 if seconds < 10 * size else 0
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
