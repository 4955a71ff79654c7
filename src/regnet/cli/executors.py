"""Options of the commands that run tasks on executors: study, search --data, predict --out."""

from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regnet.errors import ConfigError, check_number, unknown

if TYPE_CHECKING:
    from regnet.executors import Executor

Devices = Annotated[
    list[str] | None, typer.Option("--device", help="cpu, cuda:0, cuda:1, ... Repeatable.")
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="local, ray (a Ray cluster), or slurm.")
]
Gpus = Annotated[
    float | None, typer.Option(help="Share of a GPU for each task on a Ray cluster, such as 0.25.")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(help="Parameter of submitit, such as slurm_partition=gpu. Repeatable."),
]


def executor_of(
    name: str,
    workers: int | None,
    devices: list[str] | None,
    threads: int | None,
    gpus: float | None,
    slurm: list[str] | None,
    time_limit: float | None,
) -> "Executor":
    """Return the executor that the options of a command describe; `time_limit` is in minutes.

    Raises:
        ConfigError: an option cannot be used.
        MissingExtraError: the package that the executor needs is not installed.
    """
    from regnet.devices import find_device
    from regnet.executors import ProcessPool

    if time_limit is not None:
        check_number("--time-limit", time_limit, least=1e-3)
    seconds = None if time_limit is None else 60 * time_limit
    for option, value, needs in (("--gpus", gpus, "ray"), ("--slurm", slurm, "slurm")):
        if value and name != needs:
            raise ConfigError(f"{option} needs --executor {needs}; add it, or leave {option} out")
    if name == "local":
        for device in devices or []:
            find_device(device)
        return ProcessPool(workers, devices=devices or ["cpu"], threads=threads, time_limit=seconds)
    if name == "ray":
        from regnet.executors.ray import RayExecutor

        return RayExecutor(
            workers, device=_one(devices), threads=threads or 1, gpus=gpus, time_limit=seconds
        )
    if name == "slurm":
        from regnet.executors.slurm import SlurmExecutor

        parameters = dict(_parameter(text) for text in slurm or [])
        if time_limit is not None:
            parameters.setdefault("timeout_min", ceil(time_limit))
        return SlurmExecutor(
            workers, device=_one(devices), threads=threads or 1, parameters=parameters
        )
    raise ConfigError(unknown("executor", name, ("local", "ray", "slurm")))


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--slurm needs name=value, such as slurm_partition=gpu; got {text!r}")
    whole = value.isdigit() and str(int(value)) == value  # an account may be called 00123
    return name, int(value) if whole else value


def _one(devices: list[str] | None) -> str:
    """Return the kind of device: on a cluster, a process sees its own GPU as the first one."""
    kinds = {device.partition(":")[0] for device in devices or ["cpu"]}
    if len(kinds) > 1:
        raise ConfigError(
            "on a cluster, all tasks run on one kind of device; use --device cpu or cuda"
        )
    return kinds.pop()
