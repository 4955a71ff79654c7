"""Run tasks on a Ray cluster."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from regnet.errors import MissingExtraError, in_one_line
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


class RayExecutor:
    """Runs tasks with Ray Core, which retries a task elsewhere if its worker or node is lost.

    All nodes need this package, and must see the files of the tasks under the same paths.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        device: str = "cpu",
        threads: int = 1,
        gpus: float | None = None,
        address: str | None = None,
        time_limit: float | None = None,
    ) -> None:
        """Check that Ray is installed; `run` joins the cluster, or starts one on this machine.

        Args:
            workers: the most tasks that run at once; None: as many as fit on the cluster.
            device: `cpu` or `cuda`.
            threads: threads of PyTorch in each task, and the cores that the task reserves.
            gpus: the number of GPUs, or the fraction of one, that a task reserves; None: one with
                `cuda`, else none.
            address: address of the cluster; None: that in RAY_ADDRESS, or a cluster on this
                machine.
            time_limit: seconds after which a task is ended and returned as `Died`; None: no limit.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: the time limit is not a positive number.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError(
                "--executor ray needs ray, which is not installed; pip install 'regnet[ray]'"
            ) from error
        self._ray: Any = ray
        self.address, self.device, self.threads = address, device, threads
        self.gpus = (1.0 if device == "cuda" else 0.0) if gpus is None else gpus
        self._most = workers if workers is None else check_workers(workers)
        self.time_limit = time_limit
        Clock(time_limit)  # checks the time limit

    def _room(self) -> int:
        """Return how many tasks the cluster can run at once, in its current size."""
        there = self._ray.cluster_resources()
        room = int(there.get("CPU", 0) // self.threads)
        if self.gpus:
            room = min(room, int(there.get("GPU", 0) / self.gpus))
        return max(1, room if self._most is None else min(room, self._most))

    def run(
        self, function: Callable[[Task, str], Result], tasks: Iterator[Task]
    ) -> Results[Task, Result]:
        """See `Executor.run`."""
        ray = self._ray
        joins = not ray.is_initialized()
        if joins:
            # A cluster that is started here sends no usage reports unless the user enables them.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.WARNING)
        remote = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=ATTEMPTS - 1)(
            with_threads
        )
        running: dict[Any, Task] = {}
        left, clock = True, Clock(self.time_limit)
        try:
            while left or running:
                while left and len(running) < self._room():
                    task = next(tasks, None)
                    if task is None:
                        left = False
                        break
                    reference = remote.remote(function, task, self.device, self.threads)
                    running[reference] = task
                    clock.start(reference, task)
                # The timeout lets the loop check the size of the cluster again: nodes come and go.
                ready, _ = ray.wait(list(running), timeout=POLL_SECONDS) if running else ([], [])
                for reference in ready:
                    clock.end(reference)
                    yield running.pop(reference), self._result(reference)
                for reference in clock.late():
                    clock.forget(reference)
                    ray.cancel(reference, force=True)
                    yield running.pop(reference), Died(clock.reason)
        finally:
            for reference in running:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.cancel(reference, force=True)
            if joins:
                ray.shutdown()

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # the function raised an error; its worker lives
        except self._ray.exceptions.RayError as error:
            return Died(in_one_line(error, most=500))
