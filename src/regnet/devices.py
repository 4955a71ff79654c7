"""Devices by name, and the processes of one job, as `torchrun` starts them.

A single process is a group of one.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch import distributed as dist

from regnet.errors import ConfigError

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
"""Of glibc's malloc.h."""


def find_device(name: str | torch.device) -> torch.device:
    """The device of this name, if it is there.

    Raises:
        ConfigError: there is none.
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
    """Cores that this process may use, a part of them where several processes share a machine."""
    own = getattr(os, "sched_getaffinity", None)
    cores = len(own(0)) if own else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees; for processes that only train on a CPU.

    A step allocates what the one before has freed. glibc returns large pieces to the system, and
    mapping and clearing them anew took 14 to 23 % of a step of small networks. Elsewhere than with
    glibc nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """This process among those of the job."""

    rank: int
    size: int
    device: torch.device
    """This process's own."""

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things are this process's: every `size`-th, none twice, none left."""
        return range(self.rank, count, self.size)

    def block(self, count: int) -> range:
        """As `share`, but things that lie together."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of this process inside; joined and left here, unless the caller has done so.

    Args:
        device: of the single process; of several on GPUs, each takes the one of its local rank.

    Raises:
        ConfigError: `torchrun` started more processes than there are GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        yield Group(rank=0, size=1, device=device)
        return
    own = device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} has no GPU of its own, there are {torch.cuda.device_count()}; "
                "start torchrun with --nproc-per-node as many"
            )
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    joins = not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Group(rank=dist.get_rank(), size=dist.get_world_size(), device=own)
    finally:
        if joins:
            dist.destroy_process_group()
