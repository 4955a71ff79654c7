"""What networks give: a tensor, or several of them in a list, a tuple or a dictionary.

Engines and files know two forms, a tensor and a tuple of tensors, which have names.
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
    """The outputs, each of them changed."""
    if isinstance(outputs, Tensor):
        return change(outputs)
    return tuple(change(output) for output in outputs)


def listed(outputs: Any) -> tuple[Tensor, ...]:
    """The outputs as a tuple, also where there is one."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a network's outputs."""

    names: tuple[str, ...]
    """Of the outputs, in their order."""
    flat: nn.Module
    """The network, giving a tensor or a tuple of tensors."""
    restored: Callable[[Any], Any]
    """From those to what the network itself gives."""


def form_of(model: nn.Module, example: Tensor) -> Form:
    """Find the form of a network's outputs, by running it.

    Args:
        model: in evaluation mode.
        example: images (N, C, H, W).

    Raises:
        ConfigError: it gives something else than tensors in a list, a tuple or a dictionary.
    """
    if isinstance(model, AnyNet) and type(model.head) is Head and _is_plain(model.head.fc):
        return Form(("logits",), model, lambda outputs: outputs)
    with torch.no_grad():
        outputs = model(example)
    if isinstance(outputs, Tensor):
        return Form(("output",), model, lambda outputs: outputs)
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
            f"{type(model).__name__} gives {strange[0] if strange else 'nothing'}; what can be run "
            "elsewhere gives a tensor, or a list, a tuple or a dictionary of tensors"
        )


class _Items(nn.Module):
    """A network that gives a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(x))


class _Entries(_Items):
    """A network that gives entries of a dictionary as a tuple."""

    def __init__(self, model: nn.Module, keys: list[Any]) -> None:
        super().__init__(model)
        self.keys = keys

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(x)
        return tuple(outputs[key] for key in self.keys)
