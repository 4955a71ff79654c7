"""Tasks on a Ray cluster, wherever it has room."""

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
    with_threads,
)


class RayExecutor:
    """Tasks of Ray Core. Ray gives a task whose worker or node is lost to another worker.

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
        """Set up; the cluster is joined, or one of this machine alone started, by `run`.

        Args:
            workers: most tasks at once; None: as many as the cluster has room for.
            device: `cpu` or `cuda`.
            threads: PyTorch's threads for each task, and the cores that it reserves.
            gpus: the part of a GPU that a task reserves; None: a whole one with `cuda`.
            address: of the cluster; None: that of RAY_ADDRESS, or of this machine.
            time_limit: seconds after which a task is ended and given back as `Died`.

        Raises:
            MissingExtraError: Ray is not installed.
            ConfigError: there is no time.
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
        self._most, self.time_limit = workers, time_limit
        Clock(time_limit)  # refuses what is no time

    def _room(self) -> int:
        """How many tasks the cluster takes at once, as it is now."""
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
            # A cluster that is started here sends no usage reports, unless the user asked for them.
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
                # Now and then the room is looked at again: nodes come and go.
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
            raise error.cause from None  # what the function raised: nobody's death
        except self._ray.exceptions.RayError as error:
            return Died(in_one_line(error, most=500))
