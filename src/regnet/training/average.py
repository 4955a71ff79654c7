"""The moving average of a network's weights, including the statistics of batch norm."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Tensors of the model's state, moved towards it from time to time."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in _state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, weight: float) -> None:
        """Average += weight * (model - average); counters are copied."""
        for name, tensor in _state(model).items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, weight)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model has the average's tensors inside, and its own again afterwards.

        What changes inside, such as batch norm's statistics, stays with the average.
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
