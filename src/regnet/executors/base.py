"""What an executor is, and the simplest one.

All executors share one protocol. They take tasks from an iterator as they find room, so that
several of them can share one list of tasks, and yield each task with its result, or with `Died`
where the process that worked on it ended without one.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

ATTEMPTS: Final = 3
"""How many processes may die while they work on one task before it is given back as `Died`."""


@dataclass(frozen=True, slots=True)
class Died:
    """A task whose process ended before it had a result, time after time."""

    reason: str


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
