"""Find devices by name, and the share of the machine's cores that this process has."""

import os
from dataclasses import dataclass

import torch

from regnet.errors import ConfigError


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name, such as "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ConfigError: there is no such device on this machine.
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
            "of torch on a machine that has a GPU"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name}: torch sees {torch.cuda.device_count()} CUDA GPUs here; "
            "their numbers begin at 0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps: not available here; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {name}: not supported; use cpu, cuda or mps")
    return device


def core_count() -> int:
    """Return how many CPU cores this process may use; `torchrun` processes share them equally."""
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own else os.cpu_count() or 1
    return max(1, cores // launched().local_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """The place of this process among those of `torchrun`; by default it is the only one."""

    rank: int = 0
    size: int = 1
    """Number of processes on all machines."""
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_size: int = 1
    """Number of processes on this machine."""


def launched() -> Launched:
    """Read the place of this process from the environment variables that `torchrun` sets.

    Raises:
        ConfigError: some of the variables are missing, or their values contradict each other.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "WORLD_SIZE" not in values and "RANK" not in values:
        return Launched()
    try:
        numbers = {name: int(text) for name, text in values.items()}
        rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
        # Other launchers do not set the local variables. All processes then count as being on this
        # machine.
        local_rank, local_size = numbers.get("LOCAL_RANK", rank), numbers.get(names[3], size)
        if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
            raise ValueError("the values contradict each other")
    except (KeyError, ValueError) as error:
        given = ", ".join(f"{name}={os.environ.get(name)!r}" for name in names)
        raise ConfigError(
            f"the environment is not as torchrun sets it: {given}; unset these variables, or start "
            "with torchrun -m regnet"
        ) from error
    return Launched(rank=rank, size=size, local_rank=local_rank, local_size=local_size)
