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
"""With fewer networks in a space its intervals are unreliable: the bootstrap draws a quarter of
them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceResult:
    """The statistics of one space; errors are in percent."""

    models: int
    """Number of trained networks."""
    failed: int
    """Number of networks whose training failed."""
    minimum: float
    """Lowest error."""
    mean: float
    """Mean error, weighted if the analysis is normalized."""
    best: Mapping[str, Interval]
    """For each metric, the values of the best networks; see `statistics.best_values`."""
    correlation: Mapping[str, float]
    """Rank correlation of each metric with the error; negative if larger values are better."""
    search: Mapping[int, Best]
    """The error of the best of m random networks, by m."""
    noise: SeedNoise | None
    """The noise between seeds; None if fewer than two networks were trained more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A comparison of two spaces, with p-value and verdict adjusted for all pairs of the study."""

    first: str
    second: str
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The statistics of all spaces that have results, in the order of the study."""

    spaces: Mapping[str, SpaceResult]
    pairs: tuple[Pair, ...]
    machines: tuple[str, ...]
    """The machines that the networks were trained on, as far as they are known."""
    finished: str
    """Time at which the last network was finished; empty if it is not known."""
    warnings: tuple[str, ...] = ()
    """Limits on what the numbers can show."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a JSON-serializable dictionary."""
        pairs = [
            {"first": pair.first, "second": pair.second, "comparison": pair.comparison.to_dict()}
            for pair in self.pairs
        ]
        return {**asdict(self), "pairs": pairs}


def analyze(
    populations: Mapping[str, Population],
    *,
    seed: int = 0,
    normalize: str | None = None,
    bins: int = 10,
    paired: bool = False,
) -> Analysis:
    """Compute the statistics of a study; the same seed gives the same numbers.

    Args:
        populations: the populations by the names of their spaces, as `load` returns them.
        seed: seed of the bootstraps and permutations.
        normalize: a metric, such as `flops`, in which the spaces differ and whose effect is to be
            removed. Networks are weighted so that the metric is uniform over the range that all
            spaces share (NDS, section 3.4). Best values and correlations are not weighted.
        bins: number of bins of that range; every bin needs a network of each space.
        paired: compare networks of the same number with each other, such as one with and one
            without squeeze-excitation, instead of the means of the spaces.

    Returns:
        The statistics of each space that has results, and a comparison of each pair of them.

    Raises:
        ConfigError: no network is trained yet, no two networks form a pair, or the spaces cannot be
            normalized by this metric.
    """
    if paired and normalize is not None:
        raise ConfigError(
            "normalize cannot be used with paired, since pairs differ in one change only; leave "
            "normalize out"
        )
    found = {name: population for name, population in populations.items() if len(population)}
    if not found:
        raise ConfigError("no network of the study is trained yet; resume the study first")
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
        f"fewer than {FEW} networks in {', '.join(few)}: intervals, p-values and best values are "
        "unreliable"
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
    """Return a warning for each network to which the objective gave two different errors."""
    return [
        f"the objective gave {found['error']:.4g} and {found['repeated_error']:.4g} for the same "
        "network and seed: it is not deterministic, so results cannot be reproduced"
        for found in outcomes
        if found.get("repeated_error", found.get("error")) != found.get("error")
    ]


def _paired(first: Population, second: Population, seed: int) -> Comparison:
    """Compare two populations by the trained networks whose numbers both have."""
    by_number = [
        {row.number: error for row, error in zip(each.rows, each.errors, strict=True)}
        for each in (first, second)
    ]
    if any(len(found) < len(each) for found, each in zip(by_number, (first, second), strict=True)):
        raise ConfigError("networks of a space have the same number, so they form no pairs")
    both = sorted(by_number[0].keys() & by_number[1].keys())
    if not both:
        raise ConfigError(
            "no two trained networks of the spaces have the same number; leave paired out"
        )
    a, b = ([errors[number] for number in both] for errors in by_number)
    return statistics.compare_pairs(a, b, np.random.default_rng(seed))


def _machine(outcome: Mapping[str, Any]) -> str:
    threads = outcome["threads"]
    several = "s" if threads != 1 else ""
    return f"{outcome['device']}, {threads} thread{several}, torch {outcome['torch']}"


def _weights(
    found: Mapping[str, Population], metric: str | None, bins: int
) -> dict[str, FloatArray | None]:
    """Return weights of all networks that make a metric uniform over the range all spaces share."""
    if metric is None:
        return dict.fromkeys(found)
    for name, population in found.items():
        if metric not in population.metrics:
            known = ", ".join(population.metrics) or "none"
            raise ConfigError(
                f"normalizing by {metric} needs this metric of every network; the networks of "
                f"{name} have {known}"
            )
    values = {name: population.metrics[metric] for name, population in found.items()}
    low = max(float(v.min()) for v in values.values())
    high = min(float(v.max()) for v in values.values())
    if not low < high:
        raise ConfigError(f"the spaces share no range of {metric}; leave normalize out")
    # `uniform_weights` takes an open range, and the networks at its ends must count, too.
    low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    try:
        return {
            name: statistics.uniform_weights(v, bins, float(low), float(high))
            for name, v in values.items()
        }
    except ConfigError as error:
        raise ConfigError(f"normalize by {metric}: {error}") from error


def refine(space: Space, result: SpaceResult, *metrics: str, name: str | None = None) -> Space:
    """Return the part of a space in which the bootstrap finds its best networks.

    Args:
        space: the space that was sampled.
        result: its statistics.
        metrics: names of the metrics to restrict to the intervals of their best values. Without
            names, these are the parameters of a space of RegNets; for other spaces they are all
            metrics but complexity and latency.
        name: name of the new space; None: the name of the old one with `_refined`.

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
    """How much better the networks inside the intervals of a refinement are than all networks."""

    inside: int
    """Number of networks that lie inside all intervals."""
    points: float
    """Mean error of all networks minus that of those inside, in points; nan if none is inside."""
    alone: Mapping[str, float]
    """For each metric, the same difference for networks inside the interval of that metric."""


def gain(population: Population, result: SpaceResult, *metrics: str) -> Gain:
    """Compute what a refinement gains among the trained networks, in total and by metric.

    The gain is optimistic, because the same networks determined the intervals. To measure the gain
    of a refined space, train networks of it.

    Args:
        population: the trained networks.
        result: the statistics of the population.
        metrics: names of the metrics whose intervals are used.
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
    """Return the metrics that `refine` restricts by default: those that describe a network."""
    known = set(space.parameters) if space.family == "regnet" else set(space.metric_names)
    return tuple(name for name in space.metric_names if name in known - {*COMPLEXITY, LATENCY})
