"""Communication between the processes of one job that `torchrun` started."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from regnet.devices import launched
from regnet.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The processes of a job, as seen by one of them; a single process is a group of one."""

    rank: int
    size: int
    device: torch.device
    """The device of this process."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes files for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's share of the numbers below `count`: every `size`-th number."""
        return range(self.rank, count, self.size)

    def block(self, count: int) -> range:
        """Return this process's share of the numbers below `count`: consecutive numbers."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, ordered by rank; every process must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; every process must call this."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the group of processes that `torchrun` started, and leave it at the end of the block.

    If the caller has joined a group already, that group is used, and is not left at the end.

    Args:
        device: the device of a single process. If several processes use GPUs, each uses the GPU of
            its local rank instead.

    Raises:
        ConfigError: `torchrun` started more processes than there are GPUs, or some of its
            environment variables are missing.
    """
    place = launched()
    if place.size == 1 and not dist.is_initialized():
        yield Group(rank=0, size=1, device=device)
        return
    own = device
    if device.type == "cuda":
        local = place.local_rank
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} has no GPU of its own, because this machine has "
                f"{torch.cuda.device_count()}; start torchrun with --nproc-per-node of at most "
                "that number"
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
