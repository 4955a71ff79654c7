"""Analyze a study: compare its populations, and find what their best networks have in common."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from regnet.design.widths import FloatArray
from regnet.errors import ConfigError, unknown
from regnet.spaces.space import COMPLEXITY, LATENCY, Space
from regnet.studies import statistics
from regnet.studies.population import Population
from regnet.studies.statistics import Best, Comparison, Interval, SeedNoise

FEW: Final = 16
"""Networks of a space below which intervals mean little: the bootstrap draws a quarter of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceResult:
    """What is found of one space; errors in percent."""

    models: int
    failed: int
    minimum: float
    mean: float
    best: Mapping[str, Interval]
    """Of each metric, the values of the best networks: see `statistics.best_values`."""
    correlation: Mapping[str, float]
    """Rank correlation of each metric with the error; negative where more is better."""
    search: Mapping[int, Best]
    """The error of the best of so many random networks."""
    noise: SeedNoise | None
    """What lies between seeds; None where fewer than two networks were trained more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two spaces compared; p-values and verdicts are adjusted for all pairs of the study."""

    first: str
    second: str
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """All spaces that have results, in the order of the study."""

    spaces: Mapping[str, SpaceResult]
    pairs: tuple[Pair, ...]
    machines: tuple[str, ...]
    """What the networks were trained on, as far as is known."""
    finished: str
    """When the last of them was; empty where that is not known."""
    warnings: tuple[str, ...] = ()
    """What the numbers do not bear."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def analyze(
    populations: Mapping[str, Population],
    *,
    seed: int = 0,
    normalize: str | None = None,
    bins: int = 10,
    paired: bool = False,
) -> Analysis:
    """The statistics of a study; the same seed gives the same numbers.

    Args:
        populations: by the names of their spaces.
        seed: of everything random.
        normalize: a metric, such as `flops`, that spaces differ in and that shall not matter:
            errors are weighted so that it is uniform over the range that all spaces share (NDS,
            section 3.4). Best values and correlations stay those of the networks as they are.
        bins: of that range; each needs a network of every space.
        paired: networks of the same number belong together, such as one with and one without
            squeeze-excitation; spaces are compared by their differences.

    Raises:
        ConfigError: no network was trained yet, or weights cannot be had.
    """
    if paired and normalize is not None:
        raise ConfigError("pairs are alike but for what differs: leave normalize out")
    found = {name: population for name, population in populations.items() if len(population)}
    if not found:
        raise ConfigError("no network of the study is trained yet; resume it first")
    weights = _weights(found, normalize, bins)
    spaces = {}
    for name, population in found.items():
        errors, rng = population.errors, np.random.default_rng(seed)
        curve = statistics.edf(errors, weights[name])
        spaces[name] = SpaceResult(
            models=len(population),
            failed=len(population.failed),
            minimum=curve.minimum,
            mean=curve.mean,
            best=statistics.best_values(population.metrics, errors, rng),
            correlation={
                metric: statistics.rank_correlation(values, errors)
                for metric, values in population.metrics.items()
            },
            search=statistics.search_curve(errors, weights=weights[name]),
            noise=statistics.seed_noise(list(population.repeats.values()), rng)
            if len(population.repeats) > 1
            else None,
        )
    names = [(second, first) for first, second in combinations(found, 2)]
    if paired:
        compared = [_paired(found[a], found[b], seed) for a, b in names]
    else:
        compared = [
            statistics.compare(
                found[a].errors,
                found[b].errors,
                np.random.default_rng(seed),
                first_weights=weights[a],
                second_weights=weights[b],
            )
            for a, b in names
        ]
    comparisons = statistics.adjust(compared)
    pairs = tuple(
        Pair(first=a, second=b, comparison=comparison)
        for (a, b), comparison in zip(names, comparisons, strict=True)
    )
    few = [name for name, result in spaces.items() if result.models < FEW]
    warning = (
        f"fewer than {FEW} networks in {', '.join(few)}: intervals, p-values and best values say "
        "little"
    )
    outcomes = [
        row.outcome for population in found.values() for row in population.rows if row.outcome
    ]
    return Analysis(
        spaces=spaces,
        pairs=pairs,
        machines=tuple(sorted({_machine(found) for found in outcomes if "device" in found})),
        finished=max((found["finished"] for found in outcomes if "finished" in found), default=""),
        warnings=(*((warning,) if few else ()), *_not_repeated(outcomes)),
    )


def _not_repeated(outcomes: Iterable[Mapping[str, Any]]) -> list[str]:
    """What to say of objectives that give one network two errors."""
    return [
        f"the objective gave {found['error']:.4g} and {found['repeated_error']:.4g} for the same "
        "network and seed: it is not deterministic, and results do not repeat"
        for found in outcomes
        if found.get("repeated_error", found.get("error")) != found.get("error")
    ]


def _paired(first: Population, second: Population, seed: int) -> Comparison:
    """Two populations by the networks whose numbers both have."""
    by_number = [
        {row.number: error for row, error in zip(each.rows, each.errors, strict=True)}
        for each in (first, second)
    ]
    both = sorted(by_number[0].keys() & by_number[1].keys())
    if not both:
        raise ConfigError("the spaces have no networks of the same number that are trained")
    a, b = ([errors[number] for number in both] for errors in by_number)
    return statistics.compare_pairs(a, b, np.random.default_rng(seed))


def _machine(outcome: Mapping[str, Any]) -> str:
    return f"{outcome['device']}, {outcome['threads']} threads, torch {outcome['torch']}"


def _weights(
    found: Mapping[str, Population], metric: str | None, bins: int
) -> dict[str, FloatArray | None]:
    """Of the networks of each space, so that a metric is uniform over the range all share."""
    if metric is None:
        return dict.fromkeys(found)
    for name, population in found.items():
        if metric not in population.metrics:
            raise ConfigError(unknown(f"metric of {name}", metric, population.metrics))
    values = {name: population.metrics[metric] for name, population in found.items()}
    low = max(float(v.min()) for v in values.values())
    high = min(float(v.max()) for v in values.values())
    if not low < high:
        raise ConfigError(f"the spaces share no range of {metric}; leave normalize out")
    # The range is open, and the networks at its ends count.
    low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    try:
        return {
            name: statistics.uniform_weights(v, bins, float(low), float(high))
            for name, v in values.items()
        }
    except ConfigError as error:
        raise ConfigError(f"normalize by {metric}: {error}") from error


def refine(space: Space, result: SpaceResult, *metrics: str, name: str | None = None) -> Space:
    """The part of a space in which the bootstrap finds its best networks.

    Args:
        space: what was sampled.
        result: what was found of it.
        metrics: whose intervals to take; none: all parameters, and depths and widths of stages
            where these are the parameters.
        name: of the new space; None: the old one's and `_refined`.

    Raises:
        ConfigError: the space has no such metric.
    """
    for metric in metrics:
        if metric not in space.metric_names:
            raise ConfigError(unknown(f"metric of {space.name}", metric, space.metric_names))
    ranges: dict[str, Any] = {
        metric: (result.best[metric].low, result.best[metric].high)
        for metric in metrics or refinable(space)
    }
    return replace(space.restrict(**ranges), name=name or f"{space.name}_refined")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """How much better networks in the intervals of a refinement are than all networks."""

    inside: int
    """Networks that lie in all intervals."""
    points: float
    """By how much their mean error is lower than that of all networks; nan where there are none."""
    alone: Mapping[str, float]
    """The same for networks that lie in the interval of one metric, whatever the others are."""


def gain(population: Population, result: SpaceResult, *metrics: str) -> Gain:
    """What a refinement gains among the networks that it was found with, and by which metric.

    These networks chose the intervals: what a refined space gains is shown by training it.

    Args:
        population: what was trained.
        result: what was found of it.
        metrics: whose intervals are taken.
    """
    inside = {
        metric: (population.metrics[metric] >= result.best[metric].low)
        & (population.metrics[metric] <= result.best[metric].high)
        for metric in metrics
    }
    mean = float(population.errors.mean())

    def points(which: NDArray[np.bool_]) -> float:
        return mean - float(population.errors[which].mean()) if which.any() else math.nan

    every = np.logical_and.reduce(list(inside.values()))
    return Gain(
        inside=int(every.sum()),
        points=points(every),
        alone={metric: points(which) for metric, which in inside.items()},
    )


def refinable(space: Space) -> tuple[str, ...]:
    """The metrics that describe a network of a space: what `refine` takes by itself."""
    known = set(space.parameters) if space.family == "regnet" else set(space.metric_names)
    return tuple(name for name in space.metric_names if name in known - {*COMPLEXITY, LATENCY})
