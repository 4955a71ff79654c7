"""Networks that a user's functions build, counted and trained; and a user's own objective."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

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
"""Seconds of counting from which on processes are started for it."""

_LOOK: Final = 8
"""Networks that are counted before that is decided."""

_WITH_OUTPUTS: Final = frozenset({"convolution", "addmm", "mm", "bmm", "baddbmm"})
"""Operators whose outputs are activations, as the paper counts those of convolutions."""


def sample_networks(
    space: Space,
    count: int,
    seed: int = 0,
    *,
    folder: str | None = None,
    on_network: Callable[[int, int], None] | None = None,
) -> CustomSample:
    """Draw networks from a custom space, none twice; runs the functions that it names.

    Args:
        space: the space.
        count: how many.
        seed: the first n of a seed are the same for any count.
        folder: where modules are looked for as well.
        on_network: called with how many there are, and how many there shall be.

    Raises:
        ConfigError: the space has too few networks.
        FunctionError: a function cannot be imported.
    """
    counter = counter_of(space.count, folder) if space.count else partial(counted, folder=folder)
    return sample_custom(space, count, np.random.default_rng(seed), counter, on_network)


def counted(networks: Sequence[CustomConfig], folder: str | None = None) -> list[Cost]:
    """Count networks on `meta`, in several processes where that takes long.

    Multiply-adds are those of `torch.utils.flop_counter`, activations the outputs of convolutions
    and of products of matrices, of one image.
    """
    for build in {network.build for network in networks}:
        find_function(build, folder)  # that it is not there is no network's fault
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
    """What a network costs, or why it cannot be built or run."""
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
    except Exception as error:  # noqa: BLE001 - a network may fail in any way
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
        raise ConfigError(f"{network.build} gave {type(found).__name__}, and not a torch.nn.Module")
    return found


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _check_logits(logits: Any, network: CustomConfig) -> None:
    if not isinstance(logits, Tensor) or logits.shape != (1, network.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"the network gives {shape} for one image, and not (1, {network.num_classes}) logits"
        )


class CustomNetwork(Described):
    """A user's network with what training asks of one beside its answers."""

    def __init__(self, network: CustomConfig, folder: str | None, params: float | None) -> None:
        """Build it.

        Args:
            network: which one.
            folder: where modules are looked for as well.
            params: how many parameters it was counted to have; None: it could not be counted.

        Raises:
            ConfigError: it has another number, or was not counted.
            FunctionError: its function cannot be imported.
        """
        super().__init__()
        if params is None:
            cost = count_network(network, "meta", folder)
            raise ConfigError(
                cost
                if isinstance(cost, str)
                else "it can be built now, and could not when the study began: begin another study"
            )
        self.module = _module(network, folder)
        if (there := _params(self.module)) != params:
            raise ConfigError(
                f"the network has {there:,} parameters, and was counted to have {params:,.0f}"
            )
        self.num_classes = network.num_classes
        self._shared = ArchitectureConfig(num_classes=network.num_classes)

    @property
    def config(self) -> Any:
        """What is known of every network: classes, and three channels."""
        return self._shared

    def _classifier(self) -> None:
        """Not known."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        logits: Tensor = self.module(x)
        return logits


def objective_of(
    text: str, parameters: Any, seed: int, device: str, folder: str | None
) -> dict[str, Any]:
    """What a user's objective gives for a network: its record, with an error that is a number.

    Args:
        text: `package.module:function`; the function takes parameters, seed and device, and gives
            the error, or a mapping with `error` and whatever else shall be kept.
        parameters: of a custom network those that were drawn; else the config.
        seed: of this training.
        device: where.
        folder: where modules are looked for as well.

    Raises:
        ConfigError: it gave no finite number.
        FunctionError: it cannot be imported.
    """
    found = find_function(text, folder)(parameters, seed, device)
    record = dict(found) if isinstance(found, Mapping) else {"error": found}
    try:
        record["error"] = float(record["error"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{text} gave {found!r:.100}, which has no error") from None
    if not math.isfinite(record["error"]):
        raise ConfigError(f"{text} gave an error of {record['error']}")
    return record
