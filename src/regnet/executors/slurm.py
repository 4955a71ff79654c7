"""Tasks as jobs of a SLURM cluster, through submitit."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from regnet.errors import ExecutorError, MissingExtraError, in_one_line
from regnet.executors.base import ATTEMPTS, Died, Result, Results, Task, with_threads

_POLL_SECONDS = 1.0
"""Between looks at the jobs; SLURM itself is asked less often, by submitit."""


class SlurmExecutor:
    """A job per task. A job whose process dies is submitted again.

    All nodes need this package, and must see the files of the tasks and the folder of the jobs.
    Jobs outlive a driver that is killed: cancel them before you start again, or they run for
    nobody.
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
        """Set up; nothing is submitted yet.

        Args:
            workers: jobs submitted at once; None: 64.
            device: `cpu` or `cuda`, which asks for a GPU per job.
            threads: and cores of each job.
            folder: of the jobs' files and logs, which all nodes see.
            cluster: what submitit calls it: `slurm`, or `local` for processes of this machine;
                None: as submitit finds.
            parameters: further ones of submitit, such as `slurm_partition` or `timeout_min`, after
                which a job is ended.

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
        self.workers, self.device, self.threads = workers or 64, device, threads
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
        except self._failures.FailedJobError as error:  # what the function raised: nobody's death
            raise ExecutorError(f"job {job.job_id}: {_raised(str(error))}") from error
        except self._failures.UncompletedJobError as error:
            return Died(in_one_line(error, most=500))


def _raised(message: str) -> str:
    """The last line of the traceback, which submitit's message has between two rules."""
    traceback = re.split(r"^-{5,}$", message, flags=re.MULTILINE)
    lines = (traceback[1] if len(traceback) > 2 else message).split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), message)
