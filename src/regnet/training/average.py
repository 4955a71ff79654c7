"""Moving average of a network's weights, including the statistics of batch norm."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Copies of a model's tensors, which `update` moves towards the current ones."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in _state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, weight: float) -> None:
        """Compute average += weight * (model - average); integer counters are copied."""
        for name, tensor in _state(model).items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, weight)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Put the average into the model inside the `with` statement, and restore the model after.

        Changes made inside, such as those of batch norm's statistics, become part of the average.
        """
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        for name, tensor in _state(model).items():
            kept = tensor.detach().clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(kept)


def _state(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = model.state_dict()
    return state
