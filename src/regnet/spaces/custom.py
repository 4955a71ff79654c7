"""Sample spaces whose networks are built by a user's function.

Such a space draws numbers, and names a function that builds a network from them. The name has the
form `package.module:function`, so that spaces can be saved and workers can import the function.
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
    """Import a function by its name, which runs the code of its module.

    Args:
        text: `package.module:function`.
        folder: a further folder to search for modules, after the installed ones; it is appended to
            `sys.path`.

    Raises:
        FunctionError: the function cannot be imported, or the name is not that of a function.
    """
    if folder is not None and (place := str(Path(folder).resolve())) not in sys.path:
        sys.path.append(place)
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = in_one_line(error, most=200)
        raise FunctionError(
            f"{text} cannot be imported: {reason}; install its package, or start the study in the "
            "folder that contains it"
        ) from error
    if not callable(found):
        raise FunctionError(
            f"{text} is not a function, but of type {type(found).__name__}; name a function"
        )
    return found  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomConfig:
    """A network that a user's function builds: the function and its arguments."""

    build: str
    parameters: Mapping[str, float]
    num_classes: int
    image_size: int
    """Side of the images in pixels."""

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Return the arguments to call a function with.

        They are the drawn parameters, with whole numbers as `int`, and `num_classes` and
        `image_size` if the signature of the function names them.
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
        """Import a function by `find_function`, call it for this network, and return the result."""
        function = find_function(text, folder)
        return function(**self.arguments(function))

    def to_dict(self) -> dict[str, Any]:
        """Return the network as data for JSON; `from_dict` reads it."""
        return {
            "kind": KIND,
            "build": self.build,
            "parameters": dict(self.parameters),
            "num_classes": self.num_classes,
            "image_size": self.image_size,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CustomConfig":
        """Build the network from what `to_dict` returned."""
        return cls(**{name: value for name, value in values.items() if name != "kind"})


Cost: TypeAlias = Complexity[int] | str
"""The complexity of a network, or the reason why it could not be counted."""

Counter: TypeAlias = Callable[[Sequence[CustomConfig]], Sequence[Cost]]
"""A function that counts networks, and returns their costs in the same order."""


def counter_of(function: str, folder: str | Path | None = None) -> Counter:
    """Return a counter that calls the `count` function of a space.

    Args:
        function: the name of the function. It takes the parameters of a network, and returns a
            mapping with flops (multiply-adds), params and activations.
        folder: a further folder to search for its module; see `find_function`.
    """

    def count(networks: Sequence[CustomConfig]) -> list[Cost]:
        # A missing function is an error of the space, and must not be counted as failed networks.
        find_function(function, folder)
        return [_cost(network.called, function, folder) for network in networks]

    return count


def _cost(called: Callable[..., Any], function: str, folder: str | Path | None) -> Cost:
    try:
        found = called(function, folder)
        cost = {name: found[name] for name in COMPLEXITY}
        if not all(math.isfinite(value) and value >= 0 for value in cost.values()):
            return f"{function} returned {cost}"
        return Complexity(**{name: round(value) for name, value in cost.items()})
    except Exception as error:  # noqa: BLE001 - a user's function may fail in any way
        return in_one_line(error, most=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomSample:
    """n networks of a custom space, as arrays; the counterpart of `Sample`."""

    space: Space
    parameters: Mapping[str, FloatArray]
    """The drawn values of each parameter, an array (n,)."""
    complexity: Complexity[IntArray]
    failed: tuple[tuple[CustomConfig, str], ...] = ()
    """Networks that were drawn but could not be built or counted, each with the reason."""

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.complexity.flops)

    def take(self, which: Any) -> "CustomSample":
        """Return some of the networks, selected by indices, a mask or a slice."""
        return CustomSample(
            space=self.space,
            parameters={name: found[which] for name, found in self.parameters.items()},
            complexity=Complexity(
                **{name: getattr(self.complexity, name)[which] for name in COMPLEXITY}
            ),
            failed=self.failed,
        )

    def metric(self, name: str) -> FloatArray:
        """Return a metric of every network, an array (n,), by its name in `Space.metric_names`."""
        if name in COMPLEXITY:
            return np.asarray(getattr(self.complexity, name), dtype=np.float64)
        return self.parameters[name]

    @property
    def metrics(self) -> dict[str, FloatArray]:
        """All metrics of the space, by name."""
        return {name: self.metric(name) for name in self.space.metric_names}

    def config(self, index: int) -> CustomConfig:
        """Return one network."""
        return config_of(
            self.space, {name: found[index].item() for name, found in self.parameters.items()}
        )


def config_of(space: Space, parameters: Mapping[str, float]) -> CustomConfig:
    """Return the network of a custom space that has these parameters."""
    return CustomConfig(
        build=space.build,
        parameters=parameters,
        num_classes=space.architecture.num_classes,
        image_size=space.image_size,
    )


_CHUNK: Final = 256
"""Networks drawn at once: a constant, so that more networks of a seed begin with the same ones."""

PATIENCE: Final = 50_000
"""Sampling stops after this many draws in a row that yield no new network."""

MOST_FAILURES: Final = 100
"""Sampling stops when this many networks have failed before the first one could be counted."""


def sample_custom(
    space: Space,
    count: int,
    rng: np.random.Generator,
    counter: Counter,
    on_network: Callable[[int, int], None] | None = None,
) -> CustomSample:
    """Draw networks of a custom space, each at most once, until there are enough.

    Args:
        space: the space; its limits and predicates apply.
        count: number of networks to return.
        rng: the source of randomness.
        counter: counts the networks whose parameters lie within the limits of the space.
        on_network: called for progress with the number of networks found so far, and with `count`.

    Raises:
        ConfigError: the space has fewer networks than `count`, or the first `MOST_FAILURES`
            networks cannot be built and counted.
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
                f"and counted; the first, {dict(config.parameters)}, failed with: {reason}"
            )
        if draws.drawn - last >= PATIENCE:
            raise ConfigError(
                f"{space.name}: only {len(draws.kept)} of {count} networks were found in "
                f"{draws.drawn:,} draws; ask for fewer networks, or widen its limits: "
                f"{draws.outside:,} are outside its limits, {len(draws.failed)} could not be "
                "built, and the others repeat earlier draws"
            )
    return draws.sample(count)


class _Draws:
    """Draws from a custom space: the networks that belong to it, and counts of the others."""

    def __init__(self, space: Space, rng: np.random.Generator, counter: Counter) -> None:
        self.space, self.rng, self.counter = space, rng, counter
        self.kept: list[tuple[dict[str, float], Complexity[int]]] = []
        self.failed: list[tuple[CustomConfig, str]] = []
        self.seen: set[tuple[float, ...]] = set()
        self.drawn = self.outside = self.counted = 0

    def next(self, wanted: int) -> None:
        """Draw the next chunk, and count its networks until `wanted` of them are in the space."""
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
        """Return whether the parameters of a draw lie within the limits of the space."""
        return all(_inside(values[n], self.space.limits.get(n, (None, None))) for n in names)

    def _count(self, drawn: list[dict[str, float]]) -> int:
        """Count networks, keep those within all limits, and return how many were kept."""
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
        """Return the first `count` networks."""
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
