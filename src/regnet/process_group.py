"""The processes of one job, as `torchrun` starts them."""

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
    """This process among the processes of the job; a single process is a group of one."""

    rank: int
    size: int
    device: torch.device
    """The device of this process."""

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return this process's part of the numbers below `count`: every `size`-th of them."""
        return range(self.rank, count, self.size)

    def block(self, count: int) -> range:
        """Return this process's part of the numbers below `count`: a run of neighbours."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; all must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; all must call this."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the group of the processes that `torchrun` started, and leave it at the end.

    A group that the caller has joined already is used and left alone.

    Args:
        device: where a single process computes. Of several processes on GPUs each takes the GPU of
            its local rank.

    Raises:
        ConfigError: `torchrun` started more processes than there are GPUs, or its variables are not
            all there.
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
