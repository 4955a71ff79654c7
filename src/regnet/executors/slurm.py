"""Run tasks as jobs of a SLURM cluster, with submitit."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from regnet.errors import ExecutorError, MissingExtraError, in_one_line
from regnet.executors.base import (
    ATTEMPTS,
    Died,
    Result,
    Results,
    Task,
    check_workers,
    with_threads,
)

_POLL_SECONDS = 1.0
"""Seconds between two checks of the jobs; submitit queries SLURM itself less often."""


class SlurmExecutor:
    """Runs each task as a job. A job whose process dies is submitted again.

    All nodes need this package, and must see the files of the tasks and the folder of the jobs.
    Jobs continue after this process is killed. Cancel them before you start again, or they continue
    although no one collects their results.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        device: str = "cpu",
        threads: int = 1,
        folder: Path = Path("slurm-jobs"),
        cluster: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare submitit; no job is submitted before `run`.

        Args:
            workers: the most jobs submitted at once; None: 64.
            device: `cpu`, or `cuda` to request one GPU per job.
            threads: threads of PyTorch, and cores, of each job.
            folder: folder for files and logs of the jobs, which all nodes must see.
            cluster: name of the cluster type in submitit: `slurm`, or `local` for processes on this
                machine; None: submitit detects it.
            parameters: further parameters of submitit, such as `slurm_partition` or `timeout_min`,
                the minutes after which a job is ended (24 hours by default).

        Raises:
            MissingExtraError: submitit is not installed.
        """
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError(
                "--executor slurm needs submitit, which is not installed; "
                "pip install 'regnet[slurm]'"
            ) from error
        self.workers = check_workers(64 if workers is None else workers)
        self.device, self.threads = device, threads
        self._failures: Any = submitit.core.utils
        self._executor: Any = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self._executor.update_parameters(
            cpus_per_task=threads,
            gpus_per_node=int(device == "cuda"),
            **{"timeout_min": 24 * 60, **(parameters or {})},
        )

    def run(
        self, function: Callable[[Task, str], Result], tasks: Iterator[Task]
    ) -> Results[Task, Result]:
        """See `Executor.run`."""
        running: dict[Any, tuple[Task, int]] = {}
        left = True
        try:
            while left or running:
                while left and len(running) < self.workers:
                    task = next(tasks, None)
                    if task is None:
                        left = False
                        break
                    running[self._submit(function, task)] = (task, 1)
                ready = [job for job in running if job.done()]
                for job in ready:
                    task, attempt = running.pop(job)
                    result = self._result(job)
                    if isinstance(result, Died) and attempt < ATTEMPTS:
                        running[self._submit(function, task)] = (task, attempt + 1)
                    else:
                        yield task, result
                if not ready:
                    time.sleep(_POLL_SECONDS)
        finally:
            for job in running:
                with contextlib.suppress(OSError):
                    job.cancel(check=False)

    def _submit(self, function: Callable[[Task, str], Result], task: Task) -> Any:
        return self._executor.submit(with_threads, function, task, self.device, self.threads)

    def _result(self, job: Any) -> Any:
        try:
            return job.result()
        except self._failures.FailedJobError as error:  # raised by the function
            raise ExecutorError(f"job {job.job_id}: {_raised(str(error))}") from error
        except self._failures.UncompletedJobError as error:
            return Died(in_one_line(error, most=500))


def _raised(message: str) -> str:
    """Return the last line of the traceback, which submitit's message has between two rules."""
    traceback = re.split(r"^-{5,}$", message, flags=re.MULTILINE)
    lines = (traceback[1] if len(traceback) > 2 else message).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), message)
