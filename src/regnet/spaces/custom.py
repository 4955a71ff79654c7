"""Spaces whose networks are built by functions of their users.

What is drawn are numbers; a function that the space names makes a network of them. A function is
named as `package.module:function`, so that spaces can be saved and workers can import it.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from regnet.design.complexity import Complexity
from regnet.design.widths import FloatArray, IntArray
from regnet.errors import ConfigError, FunctionError, in_one_line
from regnet.spaces.space import COMPLEXITY, Space

KIND: Final = "custom"


def find_function(text: str, folder: str | Path | None = None) -> Callable[..., Any]:
    """Import a function by its name. Importing a module runs it.

    Args:
        text: `package.module:function`.
        folder: where modules are looked for as well, after those that are installed.

    Raises:
        FunctionError: it is not there.
    """
    if folder is not None and (place := str(Path(folder).resolve())) not in sys.path:
        sys.path.append(place)
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = in_one_line(error, most=200)
        raise FunctionError(
            f"{text} cannot be imported: {reason}; install its package, or begin the study in the "
            "folder that holds it"
        ) from error
    if not callable(found):
        raise FunctionError(f"{text} is no function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomConfig:
    """A network that a user's function builds: which function, and with what."""

    build: str
    parameters: Mapping[str, float]
    num_classes: int
    image_size: int
    """Side of the images in pixels."""

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """What the function is called with.

        Whole numbers are `int`. `num_classes` and `image_size` are given where it takes them.
        """
        takes = inspect.signature(function).parameters
        more = {"num_classes": self.num_classes, "image_size": self.image_size}
        named = {name: value for name, value in more.items() if name in takes}
        drawn = {
            name: int(value) if float(value).is_integer() else value
            for name, value in self.parameters.items()
        }
        return named | drawn

    def called(self, text: str, folder: str | Path | None = None) -> Any:
        """What a function gives for it; see `find_function`."""
        function = find_function(text, folder)
        return function(**self.arguments(function))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": KIND,
            "build": self.build,
            "parameters": dict(self.parameters),
            "num_classes": self.num_classes,
            "image_size": self.image_size,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CustomConfig":
        """The network of `to_dict`."""
        return cls(**{name: value for name, value in values.items() if name != "kind"})


Cost: TypeAlias = Complexity[int] | str
"""What a network costs; or why that is not known."""

Counter: TypeAlias = Callable[[Sequence[CustomConfig]], Sequence[Cost]]
"""Counts networks, in their order."""


def counter_of(function: str, folder: str | Path | None = None) -> Counter:
    """A counter that asks a function which a space names.

    It gets the parameters of a network, and gives a mapping with flops (multiply-adds), params and
    activations.
    """

    def count(networks: Sequence[CustomConfig]) -> list[Cost]:
        find_function(function, folder)  # that it is not there is no network's fault
        return [_cost(network.called, function, folder) for network in networks]

    return count


def _cost(called: Callable[..., Any], function: str, folder: str | Path | None) -> Cost:
    try:
        found = called(function, folder)
        cost = {name: found[name] for name in COMPLEXITY}
        if not all(math.isfinite(value) and value >= 0 for value in cost.values()):
            return f"{function} gave {cost}"
        return Complexity(**{name: round(value) for name, value in cost.items()})
    except Exception as error:  # noqa: BLE001 - a function of a user may fail in any way
        return in_one_line(error, most=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomSample:
    """n networks of a custom space, as arrays; what `Sample` is for the families of the paper."""

    space: Space
    parameters: Mapping[str, FloatArray]
    """What was drawn, each (n,)."""
    complexity: Complexity[IntArray]
    failed: tuple[tuple[CustomConfig, str], ...] = ()
    """Networks that were drawn meanwhile and could not be built or counted, and why."""

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.complexity.flops)

    def take(self, which: Any) -> "CustomSample":
        """Some of the networks."""
        return CustomSample(
            space=self.space,
            parameters={name: found[which] for name, found in self.parameters.items()},
            complexity=Complexity(
                **{name: getattr(self.complexity, name)[which] for name in COMPLEXITY}
            ),
            failed=self.failed,
        )

    def metric(self, name: str) -> FloatArray:
        """One of the space's `metric_names`, of every network (n,)."""
        if name in COMPLEXITY:
            return np.asarray(getattr(self.complexity, name), dtype=np.float64)
        return self.parameters[name]

    @property
    def metrics(self) -> dict[str, FloatArray]:
        """All of them."""
        return {name: self.metric(name) for name in self.space.metric_names}

    def config(self, index: int) -> CustomConfig:
        """One network."""
        return config_of(
            self.space, {name: found[index].item() for name, found in self.parameters.items()}
        )


def config_of(space: Space, parameters: Mapping[str, float]) -> CustomConfig:
    """A network of a custom space."""
    return CustomConfig(
        build=space.build,
        parameters=parameters,
        num_classes=space.architecture.num_classes,
        image_size=space.image_size,
    )


_CHUNK: Final = 256
"""Networks drawn at once; of a seed the first n are the same for every n."""

PATIENCE: Final = 50_000
"""Draws without another network, after which a space counts as empty."""

MOST_FAILURES: Final = 100
"""Networks that may fail before the first one is counted."""


def sample_custom(
    space: Space,
    count: int,
    rng: np.random.Generator,
    counter: Counter,
    on_network: Callable[[int, int], None] | None = None,
) -> CustomSample:
    """Draw networks of a custom space, none twice, until there are enough.

    Args:
        space: with its limits and predicates.
        count: how many.
        rng: where randomness comes from.
        counter: counts those that lie within the ranges of their parameters.
        on_network: called with how many there are, and how many there shall be.

    Raises:
        ConfigError: there are too few; or the first `MOST_FAILURES` cannot be counted.
    """
    draws = _Draws(space, rng, counter)
    last = 0
    while len(draws.kept) < count:
        before = len(draws.kept)
        draws.next(count - before)
        if on_network:
            on_network(min(len(draws.kept), count), count)
        last = draws.drawn if len(draws.kept) > before else last
        if draws.failed and not draws.counted and len(draws.failed) >= MOST_FAILURES:
            config, reason = draws.failed[0]
            raise ConfigError(
                f"{space.name}: {len(draws.failed)} networks were drawn, and none could be built "
                f"and counted; the first, {dict(config.parameters)}: {reason}"
            )
        if draws.drawn - last >= PATIENCE:
            raise ConfigError(
                f"{space.name}: only {len(draws.kept)} of {count} networks in {draws.drawn:,} "
                f"draws; {draws.outside:,} are outside its limits, {len(draws.failed)} could not "
                "be built; the others were drawn before"
            )
    return draws.sample(count)


class _Draws:
    """Networks that are drawn and counted, and what became of the others."""

    def __init__(self, space: Space, rng: np.random.Generator, counter: Counter) -> None:
        self.space, self.rng, self.counter = space, rng, counter
        self.kept: list[tuple[dict[str, float], Complexity[int]]] = []
        self.failed: list[tuple[CustomConfig, str]] = []
        self.seen: set[tuple[float, ...]] = set()
        self.drawn = self.outside = self.counted = 0

    def next(self, wanted: int) -> None:
        """Those of the next chunk; no more of them are counted than are needed."""
        names = tuple(self.space.parameters)
        drawn = [self.space.parameters[name].draw(self.rng, _CHUNK) for name in names]
        self.drawn += _CHUNK
        new = []
        for values in map(tuple, np.column_stack(drawn).tolist()):
            if values not in self.seen:
                self.seen.add(values)
                new.append(dict(zip(names, values, strict=True)))
        within = [each for each in new if self._within(each, names)]
        self.outside += len(new) - len(within)
        while within and wanted > 0:
            some, within = within[:wanted], within[wanted:]
            wanted -= self._count(some)

    def _within(self, values: Mapping[str, float], names: Sequence[str]) -> bool:
        """Whether it lies within the limits that need no counting."""
        return all(_inside(values[n], self.space.limits.get(n, (None, None))) for n in names)

    def _count(self, drawn: list[dict[str, float]]) -> int:
        """Count networks, and keep those within all limits; returns how many."""
        configs = [config_of(self.space, each) for each in drawn]
        costs = list(self.counter(configs))
        there = []
        for config, cost in zip(configs, costs, strict=True):
            if isinstance(cost, str):
                self.failed.append((config, cost))
            else:
                there.append((dict(config.parameters), cost))
        self.counted += len(there)
        if not there:
            return 0
        found, fits = _arrays(self.space, there), np.ones(len(there), dtype=np.bool_)
        for name, limit in self.space.limits.items():
            fits &= [_inside(value, limit) for value in found.metric(name)]
        for predicate in self.space.predicates.values():
            fits &= predicate(found)
        self.outside += int((~fits).sum())
        self.kept += [each for each, good in zip(there, fits, strict=True) if good]
        return int(fits.sum())

    def sample(self, count: int) -> CustomSample:
        """The first so many."""
        found = _arrays(self.space, self.kept[:count])
        return CustomSample(
            space=found.space,
            parameters=found.parameters,
            complexity=found.complexity,
            failed=tuple(self.failed),
        )


def _inside(value: float, limit: tuple[float | None, float | None]) -> bool:
    low, high = limit
    return (low is None or value >= low) and (high is None or value <= high)


def _arrays(
    space: Space, networks: Sequence[tuple[Mapping[str, float], Complexity[int]]]
) -> CustomSample:
    return CustomSample(
        space=space,
        parameters={
            name: np.array([drawn[name] for drawn, _ in networks], dtype=np.float64)
            for name in space.parameters
        },
        complexity=Complexity(
            **{
                name: np.array([getattr(cost, name) for _, cost in networks], dtype=np.int64)
                for name in COMPLEXITY
            }
        ),
    )
