"""Functions that the processes of executors run in tests; they import this file by its name."""

import os
import signal
import time
from pathlib import Path


def square(task: int, device: str) -> tuple[int, str]:
    return task * task, device


def fail(task: int, device: str) -> int:
    raise ValueError(f"task {task} is no good")


class TwoArguments(Exception):
    """An error that pickle writes but cannot read."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def fail_oddly(task: int, device: str) -> int:
    raise TwoArguments("this", "that")


def die_at_first(task: tuple[Path, int], device: str) -> int:
    """Return the number of a task; the first process that gets task 1 is killed."""
    mark, number = task
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_always(task: int, device: str) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def write_pid_and_sleep(task: Path, device: str) -> None:
    task.write_text(str(os.getpid()))
    time.sleep(600)


def sleep(task: float, device: str) -> float:
    time.sleep(task)
    return task
