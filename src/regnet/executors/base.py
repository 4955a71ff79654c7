"""The protocol of executors, and the simplest executor.

Every executor takes tasks from an iterator as soon as it can start them, so several executors can
share one list of tasks. It yields each task with its result, or with `Died` if the process that
worked on the task ended without a result.
"""

import logging
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from regnet.errors import ConfigError, check_number

_log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS: Final = 3
"""Processes that may die while they work on one task before the task is returned as `Died`."""

OVERDUE: Final = 4
"""A task is overdue when it has taken this many times the median duration of finished tasks."""

OVERDUE_SECONDS: Final = 60.0
"""No task is overdue before this time."""

TYPICAL: Final = 3
"""Number of tasks that must have finished before any task can be overdue."""

POLL_SECONDS: Final = 1.0
"""Seconds between two checks of the running tasks."""


@dataclass(frozen=True, slots=True)
class Died:
    """A task whose process ended without a result, in every attempt or at the time limit."""

    reason: str


class Clock:
    """Measures how long running tasks take, so that a task that hangs is noticed.

    Time during which this process did not run either, as on a suspended machine, is not counted.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        """Create a clock without tasks.

        Args:
            time_limit: seconds that a task may take; None: no limit.

        Raises:
            ConfigError: the time limit is not a positive number.
        """
        if time_limit is not None:
            check_number("time_limit", time_limit, least=1e-3)
        self.time_limit = time_limit
        self._tasks: dict[Hashable, Any] = {}
        self._spent: dict[Hashable, float] = {}
        self._told: set[Hashable] = set()
        self._usual: list[float] = []
        self._looked = time.monotonic()

    @property
    def reason(self) -> str:
        """Why a task over the time limit was ended."""
        return f"it took longer than the time limit of {self.time_limit:g} s"

    def start(self, key: Hashable, task: Any) -> None:
        """Record that a task starts.

        Args:
            key: a name for the task, unique among the running tasks.
            task: the task.
        """
        self.late()
        self._tasks[key], self._spent[key] = task, 0.0

    def end(self, key: Hashable) -> None:
        """Record that a task has a result."""
        self.late()
        self._usual.append(self._spent[key])
        self.forget(key)

    def forget(self, key: Hashable) -> None:
        """Record that a task ended without a result."""
        self._tasks.pop(key, None)
        self._spent.pop(key, None)
        self._told.discard(key)

    def late(self) -> list[Any]:
        """Warn once about each overdue task; return the keys of tasks over the time limit."""
        now = time.monotonic()
        # Checks are about POLL_SECONDS apart. After a longer gap, this process did not run either.
        passed, self._looked = min(now - self._looked, 5 * POLL_SECONDS), now
        for key in self._spent:
            self._spent[key] += passed
        if len(self._usual) >= TYPICAL:
            usual = median(self._usual)
            for key, spent in self._spent.items():
                if spent > max(OVERDUE * usual, OVERDUE_SECONDS) and key not in self._told:
                    self._told.add(key)
                    _log.warning(
                        "%s is overdue: it has taken %.0f s, others took %.0f; "
                        "--time-limit ends such tasks",
                        self._tasks[key], spent, usual,
                    )  # fmt: skip
        limit = self.time_limit
        return [] if limit is None else [k for k, spent in self._spent.items() if spent > limit]


Results: TypeAlias = Generator[tuple[Task, Result | Died], None, None]


class Executor(Protocol):
    """Runs a function on tasks."""

    def run(
        self, function: Callable[[Task, str], Result], tasks: Iterator[Task]
    ) -> Results[Task, Result]:
        """Yield each task with the result of `function(task, device)`, in the order of completion.

        The function, its tasks and its results must be picklable. A task is taken from the iterator
        only when it can start. If the function raises an error, `run` raises it. When that happens,
        or when the generator is closed, tasks that still run are ended.
        """
        ...


def check_workers(count: int) -> int:
    """Return a number of workers that is at least 1.

    Raises:
        ConfigError: it is less, or not a whole number.
    """
    check_number("workers", count, least=1)
    if type(count) is not int:
        raise ConfigError(f"workers must be a whole number, got {count!r}")
    return count


def with_threads(
    function: Callable[[Task, str], Result], task: Task, device: str, threads: int
) -> Result:
    """Call a function in a process whose PyTorch uses this many threads."""
    import torch

    from regnet.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    return function(task, device)


class InProcess:
    """Runs one task after another in this process; the reference for other executors."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def run(
        self, function: Callable[[Task, str], Result], tasks: Iterator[Task]
    ) -> Results[Task, Result]:
        """See `Executor.run`."""
        for task in tasks:
            yield task, function(task, self.device)
