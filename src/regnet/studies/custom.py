"""Count and train networks that a user's functions build, and call a user's objective."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regnet.design.complexity import Complexity
from regnet.design.config import ArchitectureConfig
from regnet.errors import ConfigError, FunctionError, in_one_line
from regnet.executors import Died, ProcessPool
from regnet.nn.features import Described
from regnet.spaces.custom import (
    Cost,
    CustomConfig,
    CustomSample,
    counter_of,
    find_function,
    sample_custom,
)
from regnet.spaces.space import Space

_WORTH_A_POOL: Final = 15.0
"""If counting the rest would take at least this many seconds, processes are started for it."""

_LOOK: Final = 8
"""Number of networks that are counted to estimate that time."""

_WITH_OUTPUTS: Final = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm"})
"""Operators whose outputs count as activations; the paper counts those of convolutions."""


def sample_networks(
    space: Space,
    count: int,
    seed: int = 0,
    *,
    folder: str | None = None,
    on_network: Callable[[int, int], None] | None = None,
) -> CustomSample:
    """Draw different networks from a custom space. This runs the functions that the space names.

    Args:
        space: a custom space.
        count: number of networks.
        seed: seed of the draws. The first n networks of a seed are the same for any count.
        folder: a folder to import modules from, in addition to the installed ones.
        on_network: called with the number of networks drawn so far, and `count`.

    Raises:
        ConfigError: the space has too few networks.
        FunctionError: a function cannot be imported.
    """
    counter = counter_of(space.count, folder) if space.count else partial(counted, folder=folder)
    return sample_custom(space, count, np.random.default_rng(seed), counter, on_network)


def counted(networks: Sequence[CustomConfig], folder: str | None = None) -> list[Cost]:
    """Count the complexity of networks on `meta`, in several processes if that takes long.

    Multiply-adds are those of `torch.utils.flop_counter`. Activations are the elements of the
    outputs of convolutions and matrix products. Both are counted for one image.
    """
    for build in {network.build for network in networks}:
        # A missing function is an error of the whole space, not of a single network.
        find_function(build, folder)
    began = time.monotonic()
    first = [count_network(network, "meta", folder) for network in networks[:_LOOK]]
    pace, rest = (time.monotonic() - began) / len(first), networks[_LOOK:]
    if pace * len(rest) < _WORTH_A_POOL:
        return first + [count_network(network, "meta", folder) for network in rest]
    tasks = iter([(number, network, folder) for number, network in enumerate(rest)])
    found: dict[int, Cost] = {}
    for (number, _, _), cost in ProcessPool().run(_count_task, tasks):
        found[number] = cost.reason if isinstance(cost, Died) else cost
    return first + [found[number] for number in range(len(rest))]


def _count_task(task: tuple[int, CustomConfig, str | None], device: str) -> Cost:
    _, network, folder = task
    return count_network(network, "meta", folder)


def count_network(network: CustomConfig, device: str, folder: str | None = None) -> Cost:
    """Return the complexity of a network, or the reason why it cannot be built or run."""
    # It imports Triton, which every process of every study would wait for.
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.device(device):
            module = _module(network, folder)
        images = torch.zeros(1, 3, network.image_size, network.image_size, device=device)
        outputs = _Outputs()
        with FlopCounterMode(display=False) as flops, outputs, torch.no_grad():
            logits = module.eval()(images)
        _check_logits(logits, network)
        return Complexity(
            flops=int(flops.get_total_flops()) // 2,
            params=_params(module),
            activations=outputs.count,
        )
    except FunctionError:
        raise
    except Exception as error:  # noqa: BLE001 - the user's code may fail in any way
        return in_one_line(error, most=200)


class _Outputs(TorchDispatchMode):
    """Counts the elements of the outputs of `_WITH_OUTPUTS`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _WITH_OUTPUTS:
            self.count += found.numel()
        return found


def _module(network: CustomConfig, folder: str | None) -> nn.Module:
    found = network.called(network.build, folder)
    if not isinstance(found, nn.Module):
        raise ConfigError(
            f"{network.build} must return a torch.nn.Module, got {type(found).__name__}"
        )
    return found


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _check_logits(logits: Any, network: CustomConfig) -> None:
    if not isinstance(logits, Tensor) or logits.shape != (1, network.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the network must return logits (1, {network.num_classes}) for one image, got {shape}"
        )


class CustomNetwork(Described):
    """A user's network with the attributes that training needs."""

    def __init__(self, network: CustomConfig, folder: str | None, params: float | None) -> None:
        """Build the network.

        Args:
            network: the config of the network.
            folder: a folder to import modules from, in addition to the installed ones.
            params: number of parameters that was counted when the study began; None: the network
                could not be counted.

        Raises:
            ConfigError: the network has another number of parameters, or was not counted.
            FunctionError: its function cannot be imported.
        """
        super().__init__()
        if params is None:
            cost = count_network(network, "meta", folder)
            raise ConfigError(
                cost
                if isinstance(cost, str)
                else "it can be built now, but could not when the study began; begin a new study"
            )
        self.module = _module(network, folder)
        if (there := _params(self.module)) != params:
            raise ConfigError(
                f"the network has {there:,} parameters, but had {params:,.0f} when the study "
                "began; begin a new study"
            )
        self.num_classes = network.num_classes
        self._shared = ArchitectureConfig(num_classes=network.num_classes)

    @property
    def config(self) -> Any:
        """What is known about every custom network: its classes, and three input channels."""
        return self._shared

    def _classifier(self) -> None:
        """The classifier of a custom network is not known."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, 3, H, W)."""
        logits: Tensor = self.module(x)
        return logits


def objective_of(
    text: str, parameters: Any, seed: int, device: str, folder: str | None
) -> dict[str, Any]:
    """Call a user's objective for a network, and return a finite `error` and what is to be saved.

    Args:
        text: `package.module:function`. The function takes parameters, seed and device. It returns
            the error, or a mapping with `error` and anything else that is to be saved, which is
            returned under `also`. It must have a JSON form; numbers of NumPy and torch have one.
        parameters: the drawn parameters of a custom network; for other networks, the config.
        seed: seed of this training.
        device: name of the device to train on.
        folder: a folder to import modules from, in addition to the installed ones.

    Raises:
        ConfigError: the objective did not return a finite error, or something has no JSON form.
        FunctionError: the objective cannot be imported.
    """
    found = find_function(text, folder)(parameters, seed, device)
    record = dict(found) if isinstance(found, Mapping) else {"error": found}
    try:
        record["error"] = float(record["error"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{text} must return a number or a mapping with 'error', got {found!r:.100}"
        ) from None
    error = record.pop("error")
    if not math.isfinite(error):
        raise ConfigError(f"{text} must return a finite error, got {error}")
    try:
        also = json.loads(json.dumps(record, default=_number))
    except (TypeError, ValueError) as reason:
        raise ConfigError(f"{text} must return what has a JSON form: {reason}") from None
    return {"error": error, **({"also": also} if also else {})}


def _number(given: Any) -> Any:
    """Return a number or an array of NumPy or torch as Python's."""
    if not callable(to_list := getattr(given, "tolist", None)):
        raise TypeError(f"{type(given).__name__} has none")
    return to_list()
