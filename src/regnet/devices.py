"""Devices by name, and the cores of this machine."""

import os
from dataclasses import dataclass

import torch

from regnet.errors import ConfigError


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of this name.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"there is no device {str(name)!r}; use cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda: torch sees no CUDA GPU here; use cpu, or install a CUDA build "
            "of torch where there is one"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: torch sees {torch.cuda.device_count()} CUDA GPUs here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: not available here; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {name}: use cpu, cuda or mps")
    return device


def core_count() -> int:
    """Return how many cores this process may use; processes of `torchrun` share them equally."""
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own else os.cpu_count() or 1
    return max(1, cores // launched().local_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """This process among those that `torchrun` started; one of one where it started none."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1


def launched() -> Launched:
    """Read what `torchrun` says of this process in its environment.

    Raises:
        ConfigError: it says less than all, or what cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "WORLD_SIZE" not in values and "RANK" not in values:
        return Launched()
    try:
        numbers = {name: int(text) for name, text in values.items()}
        rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
        # Other launchers name no processes of this machine: they are taken for all there are.
        local_rank, local_size = numbers.get("LOCAL_RANK", rank), numbers.get(names[3], size)
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise ValueError("they do not fit together")
    except (KeyError, ValueError) as error:
        given = ", ".join(f"{name}={os.environ.get(name)!r}" for name in names)
        raise ConfigError(
            f"the environment is not one of torchrun: {given}; unset these variables, or start "
            "with torchrun -m regnet"
        ) from error
    return Launched(rank=rank, size=size, local_rank=local_rank, local_size=local_size)
