"""Statistics of populations: pure functions of errors and parameters.

Sources: Radosavovic et al., Designing Network Design Spaces (2020), called DDS here, and On Network
Design Spaces for Visual Recognition (2019), called NDS. Errors are in percent, lower is better;
randomness is an argument.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from regnet.design.widths import FloatArray, IntArray
from regnet.errors import ConfigError

REPEATS: Final = 10_000
"""Draws of the empirical bootstrap in DDS; pycls takes 2500."""

SHARE: Final = 0.25
"""Part of a population in each draw of the empirical bootstrap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A likely best value, and the range of likely ones."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The error of the best of so many random networks."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edf:
    """An error distribution: `share` of the weight has an error up to and with `errors`."""

    errors: FloatArray
    """(n,), ascending."""
    share: FloatArray
    """(n,), from 1/n to 1."""
    minimum: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedNoise:
    """What trainings of the same networks with other seeds say."""

    networks: int
    """That were trained more than once."""
    seed_deviation: float
    """Standard deviation of a network's error over seeds, in points."""
    network_deviation: float
    """Standard deviation of errors over networks, without that of seeds."""
    share: float
    """Of the variance of single trainings, the part that lies between networks."""
    low: float
    """Of the share, the ends of its bootstrap interval."""
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Whether networks of one space are better than those of another."""

    difference: float
    """Mean error of the first less that of the second; negative where the first is better."""
    low: float
    """Of the difference, the ends of its bootstrap interval."""
    high: float
    p_value: float
    """Of so large a difference in either direction, were the spaces the same: by permutations."""
    ks: float
    """Largest distance of the two EDFs (Kolmogorov and Smirnov)."""
    verdict: str
    """"better", "worse" or "not told apart", for the first."""


def edf(errors: ArrayLike, weights: ArrayLike | None = None) -> Edf:
    """The error empirical distribution function as steps (DDS, equation 1).

    Args:
        errors: of n networks, in percent.
        weights: of the networks, for a comparison of spaces of unlike complexity (NDS); None: all
            the same.

    Raises:
        ConfigError: there are no errors, or one is not a number.
    """
    found, share = _weighted(errors, weights)
    order = np.argsort(found, kind="stable")
    return Edf(
        errors=found[order],
        share=np.cumsum(share[order]),
        minimum=float(found.min()),
        mean=float(found @ share),
    )


def edf_at(error: ArrayLike, errors: ArrayLike, weights: ArrayLike | None = None) -> FloatArray:
    """F(e), the share of networks with an error strictly below e (DDS, equation 1)."""
    found = edf(errors, weights)
    before = np.searchsorted(found.errors, np.asarray(error, dtype=np.float64), side="left")
    return np.concatenate([[0.0], found.share])[before]


def edf_area(errors: ArrayLike, limit: float, weights: ArrayLike | None = None) -> float:
    """Mean of F over errors from 0 to a limit: 1 - sum of w_i min(1, e_i / limit) (NDS)."""
    found, share = _weighted(errors, weights)
    if not limit > 0:
        raise ConfigError(f"the limit of the area must be positive, got {limit!r}")
    return float(1 - share @ np.minimum(1, found / limit))


def edf_band(
    errors: ArrayLike,
    at: ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    repeats: int = 2000,
) -> tuple[FloatArray, FloatArray]:
    """Where F(e) lies with some confidence, at each e: a bootstrap over resampled populations.

    A resampled F(e) is a binomial share. Drawn from the share that was seen, it says too little at
    both ends, where none or all of a population lies below e, and 46 % of bands hold the truth for
    95 %. So each is drawn from what the share may be (its Beta distribution after Jeffreys' prior),
    which keeps the level everywhere.

    Returns:
        The lower and the upper end, each with the shape of `at`.
    """
    found, _ = _weighted(errors, None)
    points = np.asarray(at, dtype=np.float64)
    below = (found[:, None] < points.ravel()).sum(axis=0)
    shares = rng.beta(below + 0.5, len(found) - below + 0.5, (repeats, points.size))
    tail = 50 * (1 - level)
    low, high = np.percentile(shares, [tail, 100 - tail], axis=0)
    low, high = np.where(below == 0, 0, low), np.where(below == len(found), 1, high)
    return low.reshape(points.shape), high.reshape(points.shape)


def uniform_weights(complexity: ArrayLike, bins: int, low: float, high: float) -> FloatArray:
    """Weights that make a population's complexity uniform from low to high (NDS, section 3.4).

    The range is split into equal bins; a network weighs 1 / (bins * networks in its bin), and one
    outside of the open range weighs nothing. Two populations with such weights can be compared
    whatever their complexities are.

    Raises:
        ConfigError: a bin is empty.
    """
    found = np.asarray(complexity, dtype=np.float64)
    if bins < 1 or not low < high:
        raise ConfigError(f"weights need bins and a range, got {bins} from {low:g} to {high:g}")
    inside = (found > low) & (found < high)
    edges = np.linspace(low, high, bins + 1)
    which = np.clip(np.searchsorted(edges, found, side="right") - 1, 0, bins - 1)
    counts = np.bincount(which[inside], minlength=bins)
    if not counts.all():
        empty = int(np.argmin(counts))
        raise ConfigError(
            f"no network between {edges[empty]:g} and {edges[empty + 1]:g}; take fewer bins than "
            f"{bins}, or a narrower range"
        )
    return np.where(inside, 1 / (bins * counts[which]), 0.0)


def ks_distance(
    first: ArrayLike,
    second: ArrayLike,
    first_weights: ArrayLike | None = None,
    second_weights: ArrayLike | None = None,
) -> float:
    """Largest distance between two EDFs, weighted or not (NDS)."""
    steps = np.concatenate([np.asarray(first, dtype=np.float64), np.asarray(second)])
    above = np.nextafter(steps, np.inf)  # F changes just above an error
    distance = edf_at(above, first, first_weights) - edf_at(above, second, second_weights)
    return float(np.abs(distance).max())


def best_values(
    values: Mapping[str, ArrayLike],
    errors: ArrayLike,
    rng: np.random.Generator,
    *,
    share: float = SHARE,
    repeats: int = REPEATS,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Which values the best networks have: the empirical bootstrap (DDS, footnote 4).

    A quarter of the networks is drawn with replacement, the best of them is kept, and so on; the
    median of the kept ones' values is the likely best, and percentiles are the range. The same
    draws serve all parameters (pycls `sweep/analysis.py`, which takes 2500).

    Args:
        values: of each parameter, those of all networks (n,).
        errors: of all networks (n,).
        rng: where randomness comes from.
        share: part of the networks in a draw; at least one is drawn.
        repeats: draws.
        level: part of the kept values in the range.
    """
    found, _ = _weighted(errors, None)
    size = max(1, int(share * len(found)))
    best = np.empty(repeats, dtype=np.int64)
    for at in range(0, repeats, 1000):  # in parts, for memory
        drawn = rng.integers(len(found), size=(min(1000, repeats - at), size))
        best[at : at + len(drawn)] = drawn[np.arange(len(drawn)), found[drawn].argmin(axis=1)]
    tail = 50 * (1 - level)
    ends = {
        name: np.percentile(np.asarray(given, dtype=np.float64)[best], [tail, 50, 100 - tail])
        for name, given in values.items()
    }
    return {
        name: Interval(low=float(low), median=float(median), high=float(high))
        for name, (low, median, high) in ends.items()
    }


def search_curve(
    errors: ArrayLike, *, weights: ArrayLike | None = None, level: float = 0.95
) -> dict[int, Best]:
    """What a random search finds: the best of m networks (NDS), for every power of two m up to n.

    The networks are drawn with replacement by their weights, and the mean and the quantiles of
    the least of m errors are exact. With S_i the share of networks that are at least as bad as the
    i-th best, the least is the i-th best or worse with probability S_i^m. (NDS draws floor(n / m)
    times, which leaves one draw at m = n.)

    Args:
        errors: of n networks, in percent.
        weights: of the networks (NDS, see `uniform_weights`); None: all equal.
        level: part of all searches that end between `low` and `high`.
    """
    found, share = _weighted(errors, weights)
    order = np.argsort(found, kind="stable")
    found, share = found[order], share[order]
    # Summed from the worst, whose share is small: as exact as it can be.
    at_least = np.append(np.cumsum(share[::-1])[::-1], 0.0)
    at_least[0] = 1.0
    tail, curve = (1 - level) / 2, {}
    for size in (2**power for power in range(len(found).bit_length())):
        probability = -np.diff(at_least**size)
        reached = 1 - at_least[1:] ** size  # the least error is the i-th best or better
        low, high = np.searchsorted(reached, [tail, 1 - tail])
        curve[size] = Best(
            mean=float(probability @ found), low=float(found[low]), high=float(found[high])
        )
    return curve


def seed_noise(
    repeats: Sequence[ArrayLike], rng: np.random.Generator, *, level: float = 0.95
) -> SeedNoise:
    """How much of the variance of errors lies between networks, and how much between seeds.

    A one-way analysis of variance with random effects; networks may be trained unlike often.

    Args:
        repeats: errors of each network that was trained more than once, in percent.
        rng: where randomness comes from.
        level: of the interval of `share`, a bootstrap over networks.

    Raises:
        ConfigError: there are fewer than two networks, or one was trained once.
    """
    groups = [np.asarray(errors, dtype=np.float64) for errors in repeats]
    if len(groups) < 2 or any(len(errors) < 2 for errors in groups):
        raise ConfigError("seed noise needs two networks or more, each trained twice or more")
    counts = np.array([len(errors) for errors in groups], dtype=np.float64)
    means = np.array([errors.mean() for errors in groups])
    squares = np.array([((errors - errors.mean()) ** 2).sum() for errors in groups])
    drawn = rng.integers(len(groups), size=(2000, len(groups)))
    every = np.vstack([np.arange(len(groups)), drawn])
    between, within = _variances(counts[every], means[every], squares[every])
    total = between + within
    share = np.divide(between, total, out=np.zeros_like(total), where=total > 0)
    tail = 50 * (1 - level)
    low, high = np.percentile(share[1:], [tail, 100 - tail])
    return SeedNoise(
        networks=len(groups),
        seed_deviation=math.sqrt(within[0]),
        network_deviation=math.sqrt(between[0]),
        share=float(share[0]),
        low=float(low),
        high=float(high),
    )


def _variances(
    counts: FloatArray, means: FloatArray, squares: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Between networks and between seeds, of sets of networks (m, n): each two (m,)."""
    n, total = counts.shape[1], counts.sum(axis=1)
    within = squares.sum(axis=1) / (total - n)
    grand = (counts * means).sum(axis=1) / total
    mean_square = (counts * (means - grand[:, None]) ** 2).sum(axis=1) / (n - 1)
    each = (total - (counts**2).sum(axis=1) / total) / (n - 1)
    return np.maximum(0.0, (mean_square - within) / each), within


def compare_pairs(
    first: ArrayLike,
    second: ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    repeats: int = REPEATS,
) -> Comparison:
    """As `compare`, of networks that belong together one by one.

    The interval is a bootstrap over pairs; the test changes signs of differences, which is exact
    for differences that are symmetric about zero.

    Args:
        first: errors of n networks, in percent.
        second: of their partners.
        rng: where randomness comes from.
        level: of the interval.
        repeats: resampled sets of pairs, and changes of signs.

    Raises:
        ConfigError: there are not as many of both.
    """
    a, _ = _weighted(first, None)
    b, _ = _weighted(second, None)
    if len(a) != len(b):
        raise ConfigError(f"pairs need as many of both, got {len(a)} and {len(b)}")
    differences = a - b
    means = differences[rng.integers(len(a), size=(repeats, len(a)))].mean(axis=1)
    mixed = (differences * rng.choice([-1.0, 1.0], size=(repeats, len(a)))).mean(axis=1)
    ks = ks_distance(a, b)
    return _compared(float(differences.mean()), means, mixed, ks, level)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's, from -1 to 1; 0 where one of the two is the same everywhere."""
    ranks = np.array([_ranks(first), _ranks(second)])
    spread = ranks.std(axis=1)
    if not spread.all():
        return 0.0
    centered = ranks - ranks.mean(axis=1, keepdims=True)
    return float((centered[0] * centered[1]).mean() / spread.prod())


def compare(
    first: ArrayLike,
    second: ArrayLike,
    rng: np.random.Generator,
    *,
    first_weights: ArrayLike | None = None,
    second_weights: ArrayLike | None = None,
    level: float = 0.95,
    repeats: int = REPEATS,
) -> Comparison:
    """Whether the networks of one space are better on average than those of another.

    The mean is what DDS reads off an EDF. The paper gives no test; this one is a two-sided
    permutation test of the difference of means, beside its bootstrap interval. A space counts as
    better where the interval leaves out 0 and the test agrees.

    Args:
        first: errors of the first space's networks, in percent.
        second: those of the second's.
        rng: where randomness comes from.
        first_weights: of the first space's networks (NDS, see `uniform_weights`); None: all equal.
        second_weights: of the second's.
        level: of the interval.
        repeats: permutations, and resampled pairs of populations.
    """
    a, a_share = _weighted(first, first_weights)
    b, b_share = _weighted(second, second_weights)
    difference = float(a @ a_share - b @ b_share)
    resampled = _resampled_means(a, a_share, rng, repeats) - _resampled_means(
        b, b_share, rng, repeats
    )
    # A network keeps its weight, in units of its population's mean one, wherever it is put.
    errors = np.concatenate([a, b])
    weights = np.concatenate([a_share * len(a), b_share * len(b)])
    order = rng.permuted(np.broadcast_to(np.arange(len(errors)), (repeats, len(errors))), axis=1)
    ours, theirs = order[:, : len(a)], order[:, len(a) :]
    mixed = _means(errors, weights, ours) - _means(errors, weights, theirs)
    return _compared(difference, resampled, mixed, ks_distance(a, b, a_share, b_share), level)


def _compared(
    difference: float, resampled: FloatArray, mixed: FloatArray, ks: float, level: float
) -> Comparison:
    """A difference with the interval of resampled ones, and the share of mixed ones as large."""
    tail = 50 * (1 - level)
    low, high = map(float, np.percentile(resampled, [tail, 100 - tail]))
    # Less a little, since equal means differ by rounding; the one observed counts too.
    as_large = np.abs(mixed) >= abs(difference) * (1 - 1e-9)
    p_value = float((1 + as_large.sum()) / (1 + len(mixed)))
    return Comparison(
        difference=difference,
        low=low,
        high=high,
        p_value=p_value,
        ks=ks,
        verdict=_verdict(low, high, p_value, level),
    )


def _means(errors: FloatArray, weights: FloatArray, chosen: IntArray) -> FloatArray:
    """Weighted means of chosen networks (repeats,)."""
    there = weights[chosen]
    return np.asarray((errors[chosen] * there).sum(axis=1) / there.sum(axis=1), dtype=np.float64)


def adjust(comparisons: Sequence[Comparison], *, level: float = 0.95) -> list[Comparison]:
    """Comparisons that were made together: their p-values after Holm, and verdicts by those.

    Of many pairs some differ by luck; with Holm's rule the chance that any verdict is luck stays
    1 - level.
    """
    order = sorted(range(len(comparisons)), key=lambda at: comparisons[at].p_value)
    adjusted, least = list(comparisons), 0.0
    for rank, at in enumerate(order):
        found = comparisons[at]
        least = max(least, min(1.0, (len(order) - rank) * found.p_value))
        adjusted[at] = replace(
            found, p_value=least, verdict=_verdict(found.low, found.high, least, level)
        )
    return adjusted


def _verdict(low: float, high: float, p_value: float, level: float) -> str:
    if p_value > 1 - level:
        return "not told apart"
    return "better" if high < 0 else "worse" if low > 0 else "not told apart"


def _resampled_means(
    values: FloatArray, share: FloatArray, rng: np.random.Generator, repeats: int
) -> FloatArray:
    """Means of populations drawn from one by its weights, with replacement (repeats,)."""
    counts = rng.multinomial(len(values), share, size=repeats)
    return np.asarray(counts @ values / len(values), dtype=np.float64)


def _ranks(values: ArrayLike) -> FloatArray:
    """From 1, equal values sharing the mean of theirs."""
    found = np.asarray(values, dtype=np.float64)
    _, which, counts = np.unique(found, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[which], dtype=np.float64)


def _weighted(errors: ArrayLike, weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Errors, and weights that sum to 1, of the networks that weigh anything."""
    found = np.asarray(errors, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ConfigError("errors must be a list of numbers, at least one")
    if weights is None:
        return found, np.full(len(found), 1 / len(found))
    share = np.asarray(weights, dtype=np.float64)
    if share.shape != found.shape or (share < 0).any() or not share.sum() > 0:
        raise ConfigError("weights must be one number per error, not negative, and not all 0")
    return found[share > 0], share[share > 0] / share.sum()
