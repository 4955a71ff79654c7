"""Run tasks in processes on this machine, one process per core or GPU."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Final, Generic

from regnet.devices import core_count
from regnet.errors import ConfigError, ExecutorError, in_one_line
from regnet.executors.base import (
    ATTEMPTS,
    POLL_SECONDS,
    Clock,
    Died,
    Result,
    Results,
    Task,
    check_workers,
    with_threads,
)

PATIENCE: Final = 5.0
"""Seconds in which an idle process may end by itself before it is killed."""


@dataclass(frozen=True, slots=True)
class _Raised:
    """An error that the function raised."""

    error: Exception


class ProcessPool:
    """Processes on this machine. Each works on many tasks, and ends when its parent ends."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        devices: Sequence[str] = ("cpu",),
        threads: int | None = None,
        time_limit: float | None = None,
    ) -> None:
        """Create a pool; no process is started before `run`.

        Args:
            workers: number of processes; None: one per core that this process may use, or one per
                GPU. If there are more processes than GPUs, they share the GPUs.
            devices: devices of the processes; process n uses device n modulo the number of devices.
            threads: threads of PyTorch in each process; None: the cores divided by the processes.
            time_limit: seconds after which a task is ended and returned as `Died`; None: no limit.

        Raises:
            ConfigError: there are no devices, no workers, or the time limit is not a positive
                number.
        """
        if not devices:
            raise ConfigError("there are no devices to work on")
        cores = core_count()
        on_cpu = all(device == "cpu" for device in devices)
        usual = cores if on_cpu else len(devices)
        self.workers = check_workers(usual if workers is None else workers)
        self.devices = [devices[number % len(devices)] for number in range(self.workers)]
        self.threads = threads or max(1, cores // self.workers)
        self.time_limit = time_limit
        Clock(time_limit)  # checks the time limit

    def run(
        self, function: Callable[[Task, str], Result], tasks: Iterator[Task]
    ) -> Results[Task, Result]:
        """See `Executor.run`."""
        pool = _Pool(function, self.devices, self.threads, Clock(self.time_limit))
        try:
            yield from pool.run(tasks)
        finally:
            pool.end()


@dataclass(slots=True)
class _Worker(Generic[Task]):
    device: str
    process: SpawnProcess
    pipe: "Connection[Any, Any]"
    task: Task | None = None
    attempt: int = 0
    ready: bool = False
    """Whether the process has started."""


class _Pool(Generic[Task, Result]):
    def __init__(
        self,
        function: Callable[[Task, str], Result],
        devices: Sequence[str],
        threads: int,
        clock: Clock,
    ) -> None:
        self.function, self.threads, self.clock = function, threads, clock
        self.context = multiprocessing.get_context("spawn")
        self.devices = list(devices)
        self.workers: list[_Worker[Task]] = []

    def run(self, tasks: Iterator[Task]) -> Results[Task, Result]:
        free, left = list(self.devices), True
        while True:
            idle = [worker for worker in self.workers if worker.task is None]
            while left and (idle or free):
                task = next(tasks, None)
                if task is None:
                    left = False
                    break
                self._give(idle.pop() if idle else self._start(free.pop(0)), task)
            busy = {worker.pipe: worker for worker in self.workers if worker.task is not None}
            if not busy:
                return
            for pipe in self.clock.late():
                worker = busy.pop(pipe)
                assert worker.task is not None
                worker.process.kill()
                self._buried(worker)
                free.append(worker.device)
                yield worker.task, Died(self.clock.reason)
            for pipe in wait(list(busy), timeout=POLL_SECONDS):
                worker = busy[pipe]  # type: ignore[index]  # only pipes were asked about
                assert worker.task is not None
                task = worker.task
                try:
                    result = worker.pipe.recv()
                except (EOFError, OSError):
                    attempt, reason = worker.attempt, self._buried(worker)
                    if not worker.ready:  # the process failed at its start, not in the task
                        raise ExecutorError(
                            f"a worker process {reason} before it could begin; a script that "
                            "starts workers needs `if __name__ == '__main__':`"
                        ) from None
                    if attempt < ATTEMPTS:
                        self._give(self._start(worker.device), task, attempt + 1)
                        continue
                    free.append(worker.device)
                    yield task, Died(f"its process {reason}, {ATTEMPTS} times")
                else:
                    if not worker.ready:
                        worker.ready = True
                        continue
                    self.clock.end(pipe)
                    worker.task = None
                    if isinstance(result, _Raised):
                        raise result.error
                    yield task, result

    def _start(self, device: str) -> _Worker[Task]:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(
            target=_work, args=(self.function, theirs, device, self.threads, os.getpid())
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        worker: _Worker[Task] = _Worker(device=device, process=process, pipe=ours)
        self.workers.append(worker)
        return worker

    def _give(self, worker: _Worker[Task], task: Task, attempt: int = 1) -> None:
        worker.task, worker.attempt = task, attempt
        self.clock.start(worker.pipe, task)
        with contextlib.suppress(OSError):  # the worker died, which `run` notices by its pipe
            worker.pipe.send(task)

    def _buried(self, worker: _Worker[Task]) -> str:
        """Remove a process that ended, and return how it ended."""
        self.clock.forget(worker.pipe)
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        code = worker.process.exitcode or 0
        if code >= 0:
            return f"ended with code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def end(self) -> None:
        """End all processes; their unfinished tasks are lost."""
        for worker in self.workers:
            if worker.task is None:
                worker.pipe.close()  # an idle worker then ends by itself, and cleans up
            else:
                worker.process.kill()
        for worker in self.workers:
            worker.process.join(timeout=PATIENCE)
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()


def _work(
    function: Callable[[Any, str], Any],
    pipe: "Connection[Any, Any]",
    device: str,
    threads: int,
    parent: int,
) -> None:
    """Work on tasks in a process of the pool until the pipe is closed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent process handles signals
    _end_with(parent)
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            result = with_threads(function, task, device, threads)
        except Exception as error:  # noqa: BLE001 - the parent process raises it
            result = _Raised(_sendable(error))
        try:
            pipe.send(result)
        except OSError:
            return
        except Exception as error:  # noqa: BLE001 - pickle raises errors of any type
            pipe.send(_Raised(ExecutorError(f"a result cannot be sent: {error}")))


def _sendable(error: Exception) -> Exception:
    """Return an error, or its message if pickle cannot send the error itself."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - pickle raises errors of any type
        return ExecutorError(in_one_line(error))
    return error


def _end_with(parent: int) -> None:
    """End this process as soon as its parent has ended, so that it does not run for no one."""
    if sys.platform == "linux":
        import ctypes

        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
