"""The forms of a network's outputs: a tensor, or several in a list, a tuple or a dictionary.

Engines and exported files know only two forms, a tensor and a tuple of tensors with names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regnet.errors import ConfigError
from regnet.nn.features import FeatureNet
from regnet.nn.model import AnyNet, Head


def each(change: Callable[[Tensor], Tensor], outputs: Any) -> Any:
    """Return the output, or each of several outputs, changed by a function."""
    if isinstance(outputs, Tensor):
        return change(outputs)
    return tuple(change(output) for output in outputs)


def listed(outputs: Any) -> tuple[Tensor, ...]:
    """Return the outputs as a tuple, even if there is only one."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a network's outputs."""

    names: tuple[str, ...]
    """Names of the outputs, in their order."""
    flat: nn.Module
    """The network, changed so that it returns a tensor or a tuple of tensors."""
    restored: Callable[[Any], Any]
    """Turns the outputs of `flat` into the form that the network itself returns."""


def form_of(model: nn.Module, example: Tensor) -> Form:
    """Find the form of a network's outputs, by running it where its class does not tell.

    Args:
        model: a network in evaluation mode.
        example: images (N, C, H, W).

    Raises:
        ConfigError: the network returns anything but a tensor, or a list, a tuple or a dictionary
            of tensors.
    """
    if isinstance(model, AnyNet) and type(model.head) is Head and _is_plain(model.head.fc):
        return Form(("logits",), model, lambda outputs: outputs)
    with torch.no_grad():
        outputs = model(example)
    if isinstance(outputs, Tensor):
        name = "logits" if isinstance(model, AnyNet) and outputs.ndim == 2 else "output"
        return Form((name,), model, lambda outputs: outputs)
    if isinstance(outputs, Mapping):
        keys = [key for key, value in outputs.items() if value is not None]
        _check(model, [outputs[key] for key in keys])
        return Form(
            tuple(map(str, keys)),
            _Entries(model, keys),
            lambda outputs: dict(zip(keys, listed(outputs), strict=True)),
        )
    if not isinstance(outputs, list | tuple):
        _check(model, [outputs])
    _check(model, outputs)
    if isinstance(model, FeatureNet):
        names = tuple(name.replace(".", "_") for name in model.return_layers)
    else:
        names = tuple(f"output_{number}" for number in range(len(outputs)))
    kind: Callable[[Any], Any] = list if isinstance(outputs, list) else tuple
    return Form(names, _Items(model), lambda outputs: kind(listed(outputs)))


def _is_plain(classifier: nn.Module) -> bool:
    return isinstance(classifier, nn.Linear | nn.Identity)


def _check(model: nn.Module, outputs: Any) -> None:
    strange = [type(output).__name__ for output in outputs if not isinstance(output, Tensor)]
    if strange or not len(outputs):
        raise ConfigError(
            f"{type(model).__name__} returns {strange[0] if strange else 'nothing'}; engines and "
            "exported files need a tensor, or a list, a tuple or a dictionary of tensors"
        )


class _Items(nn.Module):
    """A network whose outputs become a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(x))


class _Entries(_Items):
    """A network whose outputs, the entries of a dictionary, become a tuple."""

    def __init__(self, model: nn.Module, keys: list[Any]) -> None:
        super().__init__(model)
        self.keys = keys

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(x)
        return tuple(outputs[key] for key in self.keys)
