"""What an executor is, and the simplest one.

All executors share one protocol. They take tasks from an iterator as they find room, so that
several of them can share one list of tasks, and yield each task with its result, or with `Died`
where the process that worked on it ended without one.
"""

import logging
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from regnet.errors import check_number

_log = logging.getLogger(__name__)

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS: Final = 3
"""How many processes may die while they work on one task before it is given back as `Died`."""

OVERDUE: Final = 4
"""A task is overdue when it has taken so many times as long as others did, in the median."""

OVERDUE_SECONDS: Final = 60.0
"""No task is overdue before."""

TYPICAL: Final = 3
"""Tasks that must have ended before any is overdue."""

POLL_SECONDS: Final = 1.0
"""Time between two looks at tasks that run."""


@dataclass(frozen=True, slots=True)
class Died:
    """A task whose process ended before it had a result, time after time."""

    reason: str


class Clock:
    """Measures how long running tasks take, so that one that hangs is noticed.

    Time in which this process did not run either, as on a suspended machine, does not count.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        """Set up.

        Args:
            time_limit: seconds that a task may take; None: any time.

        Raises:
            ConfigError: it is no positive number.
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
        """Why a task was ended."""
        return f"it took longer than the time limit of {self.time_limit:g} s"

    def start(self, key: Hashable, task: Any) -> None:
        """Note that a task begins; the key is any name for it."""
        self.late()
        self._tasks[key], self._spent[key] = task, 0.0

    def end(self, key: Hashable) -> None:
        """Note that a task has a result."""
        self.late()
        self._usual.append(self._spent[key])
        self.forget(key)

    def forget(self, key: Hashable) -> None:
        """Note that a task ended without a result."""
        self._tasks.pop(key, None)
        self._spent.pop(key, None)
        self._told.discard(key)

    def late(self) -> list[Any]:
        """Name the tasks that are overdue, once, and return the keys of those over the limit."""
        now = time.monotonic()
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
                        "with --time-limit such a one is ended",
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
        """The results of `function(task, device)`, as they come.

        The function, its tasks and its results must be picklable. Tasks are taken from the iterator
        only when there is room. What the function raises is raised; whatever still runs then, or
        when the generator is closed, is ended.
        """
        ...


def with_threads(
    function: Callable[[Task, str], Result], task: Task, device: str, threads: int
) -> Result:
    """Call a function in a process whose PyTorch takes so many threads."""
    import torch

    from regnet.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()
    return function(task, device)


class InProcess:
    """One task after the other, in this process: the reference."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def run(
        self, function: Callable[[Task, str], Result], tasks: Iterator[Task]
    ) -> Results[Task, Result]:
        """See `Executor.run`."""
        for task in tasks:
            yield task, function(task, self.device)
