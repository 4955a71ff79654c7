"""Tests of the contract that all executors fulfil, with processes that really die."""

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from regnet.errors import ConfigError, ExecutorError
from regnet.executors.base import ATTEMPTS, Clock, Died, Executor, InProcess
from regnet.executors.pool import ProcessPool
from tests.marks import long, posix
from tests.tasks import (
    die_always,
    die_at_first,
    fail,
    fail_oddly,
    sleep,
    square,
    write_pid_and_sleep,
)

ROOT = Path(__file__).parents[2]
RAY = pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])
OTHERS = [RAY, pytest.param("slurm", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def _others_import_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, of which only the second can take tasks."""
    pytest.importorskip("ray", reason="ray is not installed")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(head_node_args={"num_cpus": 0}, initialize_head=True)
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(params=["process", "pool", *OTHERS])
def executor(request: pytest.FixtureRequest, tmp_path: Path) -> Executor:
    if request.param == "process":
        return InProcess()
    if request.param == "pool":
        return ProcessPool(2, threads=1)
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
        from regnet.executors.ray import RayExecutor

        return RayExecutor(2)
    pytest.importorskip("submitit", reason="submitit is not installed")
    from submitit.core.core import Job

    from regnet.executors.slurm import SlurmExecutor

    # How long the executor waits for a result that a killed job may still have written.
    patch = request.getfixturevalue("monkeypatch")
    patch.setattr(Job, "_results_timeout_s", 5)  # the default is 15; 0 would fail on slow machines
    patch.setattr("regnet.executors.slurm.ATTEMPTS", 2)
    return SlurmExecutor(2, cluster="local", folder=tmp_path / "jobs")


def test_every_task_gives_one_result_and_starts_when_a_worker_is_free(executor: Executor) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(4):
            taken.append(number)
            yield number

    found = []
    for task, result in executor.run(square, tasks()):
        found.append((task, result))
        assert len(taken) <= len(found) + 2
    assert sorted(found) == [(n, (n * n, "cpu")) for n in range(4)]


@posix
@pytest.mark.parametrize("executor", ["pool", *OTHERS], indirect=True)
def test_a_task_whose_process_is_killed_is_repeated(executor: Executor, tmp_path: Path) -> None:
    tasks = [(tmp_path / "died", number) for number in range(3)]
    found = dict(executor.run(die_at_first, iter(tasks)))
    assert found == {task: task[1] for task in tasks}
    assert (tmp_path / "died").exists()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["pool", *long("ray", "slurm")], indirect=True)
def test_a_task_that_kills_every_process_fails_without_the_others(executor: Executor) -> None:
    found = dict(executor.run(die_always, iter(range(3))))
    assert isinstance(found[1], Died)
    assert {found[0], found[2]} == {0, 2}


def test_an_error_of_the_function_is_raised(executor: Executor) -> None:
    with pytest.raises(Exception, match="task 7 is no good"):
        list(executor.run(fail, iter([7])))


def test_a_process_that_cannot_start_is_not_blamed_on_a_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("regnet.executors.pool._work", None)  # None cannot be called
    with pytest.raises(ExecutorError, match=r"ended with code \d before it could begin"):
        list(ProcessPool(1).run(square, iter([1])))


@pytest.mark.slow
def test_the_pool_reports_how_a_process_died() -> None:
    [(_, result)] = ProcessPool(1).run(die_always, iter([1]))
    assert isinstance(result, Died)
    assert f"SIGKILL (out of memory?), {ATTEMPTS} times" in result.reason


@posix
@pytest.mark.parametrize("make", ["pool", RAY])
def test_a_task_that_takes_too_long_is_ended(make: str, request: pytest.FixtureRequest) -> None:
    """This includes a task whose process is stopped and does not react to SIGTERM."""
    executor: Executor = ProcessPool(2, threads=1, time_limit=15)
    if make == "ray":
        request.getfixturevalue("ray_cluster")
        from regnet.executors.ray import RayExecutor

        executor = RayExecutor(2, time_limit=15)
    began = time.monotonic()
    found = dict(executor.run(sleep, iter([0.1, 600.0, 0.2, 0.3])))
    assert time.monotonic() - began < 120
    late = found.pop(600.0)
    assert isinstance(late, Died)
    assert late.reason == "it took longer than the time limit of 15 s"
    assert found == {seconds: seconds for seconds in (0.1, 0.2, 0.3)}


def test_an_overdue_task_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("regnet.executors.base.time.monotonic", lambda: now)
    clock = Clock()
    for number in range(3):
        clock.start(number, f"task {number}")
        now += 4
        clock.end(number)
    clock.start(3, "task 3")
    for _ in range(13):
        now += 4
        assert clock.late() == []
    now += 1000  # the machine was suspended
    clock.late()
    assert caplog.text == ""
    for _ in range(3):
        now += 4
        clock.late()
    assert caplog.text.count("task 3 is overdue: it has taken 61 s, others took 4;") == 1


@posix
def test_closing_an_executor_ends_running_tasks(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]

    def tasks() -> Iterator[Path]:
        yield files[0]
        while not files[0].exists() or not files[0].read_text():
            time.sleep(0.05)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(ProcessPool(2).run(write_pid_and_sleep, tasks()))
    with pytest.raises(ProcessLookupError):
        os.kill(int(files[0].read_text()), 0)


def test_a_pool_needs_devices_and_workers() -> None:
    with pytest.raises(ConfigError, match="no devices"):
        ProcessPool(devices=())
    for count in (0, -1):
        with pytest.raises(ConfigError, match=f"workers must be a number, at least 1, got {count}"):
            ProcessPool(count)


@pytest.mark.parametrize("package", ["ray", "submitit"])
def test_a_cluster_needs_workers_too(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    from regnet.executors.ray import RayExecutor
    from regnet.executors.slurm import SlurmExecutor

    make = RayExecutor if package == "ray" else partial(SlurmExecutor, folder=tmp_path)
    with pytest.raises(ConfigError, match="workers must be a number, at least 1, got 0"):
        make(0)


def test_an_error_that_cannot_be_sent_keeps_its_message() -> None:
    with pytest.raises(ExecutorError, match="TwoArguments: this and that"):
        list(ProcessPool(1).run(fail_oddly, iter([1])))


def test_a_number_of_workers_is_whole() -> None:
    with pytest.raises(ConfigError, match=r"workers must be a whole number, got 2\.5"):
        ProcessPool(2.5)  # type: ignore[arg-type]
