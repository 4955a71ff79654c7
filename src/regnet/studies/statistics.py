"""Statistics of populations, as pure functions of errors and parameters.

The sources are Radosavovic et al., Designing Network Design Spaces (2020), called DDS here, and On
Network Design Spaces for Visual Recognition (2019), called NDS. Errors are in percent, and lower is
better. Functions that need randomness take a generator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from regnet.design.widths import FloatArray, IntArray
from regnet.errors import ConfigError

REPEATS: Final = 10_000
"""Number of draws of the empirical bootstrap in DDS; pycls uses 2500."""

SHARE: Final = 0.25
"""Fraction of a population in each draw of the empirical bootstrap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The values of a parameter that the best networks have: the median, and a range."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The error of the best of a number of random networks: its mean, and a range."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edf:
    """An error distribution: networks with an error of at most `errors[i]` weigh `share[i]`."""

    errors: FloatArray
    """Errors (n,), ascending."""
    share: FloatArray
    """Cumulative weights (n,), the last of which is 1."""
    minimum: float
    """Lowest error."""
    mean: float
    """Weighted mean of the errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedNoise:
    """The variance between seeds and between networks, from repeated trainings."""

    networks: int
    """Number of networks that were trained more than once."""
    seed_deviation: float
    """Standard deviation of the error of a network between seeds, in points."""
    network_deviation: float
    """Standard deviation of the error between networks, without that of seeds, in points."""
    share: float
    """Fraction of the variance of single trainings that lies between networks."""
    low: float
    """Lower end of the bootstrap interval of `share`."""
    high: float
    """Upper end of the bootstrap interval of `share`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison of the networks of two spaces."""

    difference: float
    """Mean error of the first minus that of the second; negative if the first is better."""
    low: float
    """Lower end of the interval of the difference; infinite if neither space has two networks."""
    high: float
    """Upper end of the interval of the difference, likewise."""
    p_value: float
    """Probability of a difference at least this large in either direction if the spaces were the
    same, from a permutation test."""
    ks: float
    """Largest distance between the two EDFs (Kolmogorov and Smirnov)."""
    verdict: str
    """Whether the first space is "better", "worse" or "not told apart" from the second."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields; ends of an infinite interval, which JSON does not have, are None."""
        ends = {name: end if math.isfinite(end := getattr(self, name)) else None
                for name in ("low", "high")}  # fmt: skip
        return {**asdict(self), **ends}


def edf(errors: ArrayLike, weights: ArrayLike | None = None) -> Edf:
    """Compute the empirical distribution function of errors as steps (DDS, equation 1).

    Args:
        errors: errors of n networks, in percent.
        weights: weights of the networks, to compare spaces of different complexity (NDS, see
            `uniform_weights`); None: equal weights.

    Raises:
        ConfigError: there are no errors, one of them is not a number, or the weights are not valid.
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
    """Return F(e), the share of networks with an error strictly below e (DDS, equation 1).

    Args:
        error: errors e at which to evaluate F, of any shape.
        errors: errors of n networks, in percent.
        weights: weights of the networks; None: equal weights.

    Returns:
        The shares, with the shape of `error`.
    """
    found = edf(errors, weights)
    before = np.searchsorted(found.errors, np.asarray(error, dtype=np.float64), side="left")
    return np.concatenate([[0.0], found.share])[before]


def edf_area(errors: ArrayLike, limit: float, weights: ArrayLike | None = None) -> float:
    """Return the mean of F over errors from 0 to a limit (NDS): 1 - sum of w_i min(1, e_i / limit).

    Args:
        errors: errors of n networks, in percent.
        limit: largest error of the area.
        weights: weights of the networks; None: equal weights.

    Raises:
        ConfigError: the limit is not positive.
    """
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
    """Return a confidence band of F(e), separately for each e.

    F(e) of a resampled population is a binomial share. The plain bootstrap draws it with the
    observed share. This makes the band too narrow at both ends, where none or all of the networks
    have an error below e: there as few as 46 % of the bands contain the true value instead of 95 %.
    So F(e) is drawn from its Beta distribution with Jeffreys' prior, which keeps the level
    everywhere.

    Args:
        errors: errors of n networks, in percent.
        at: errors e at which to evaluate the band, of any shape.
        rng: random generator.
        level: probability that the interval at one e contains the true F(e).
        repeats: number of draws.

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
    """Return weights that make the complexity uniform from low to high (NDS, section 3.4).

    The open range from low to high is split into equal bins. A network in it weighs 1 / (bins *
    networks in its bin), and any other network weighs 0. Populations of different complexity can be
    compared with such weights.

    Args:
        complexity: complexity of n networks, such as their flops.
        bins: number of bins.
        low: lower end of the range.
        high: upper end of the range.

    Raises:
        ConfigError: a bin is empty, or there is no bin or no range.
    """
    found = np.asarray(complexity, dtype=np.float64)
    if bins < 1 or not low < high:
        raise ConfigError(
            f"weights need at least one bin and low < high, got {bins} from {low:g} to {high:g}"
        )
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
    """Return the largest distance between two EDFs, with or without weights (NDS)."""
    steps = np.concatenate([np.asarray(first, dtype=np.float64), np.asarray(second)])
    above = np.nextafter(steps, np.inf)  # F(e) is strict, so it steps just above an error.
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
    """Find the parameter values of the best networks by the empirical bootstrap (DDS, footnote 4).

    Each draw takes a quarter of the networks with replacement, and the best of them. The median of
    the values of these best networks is the likely best value, and percentiles give the range. All
    parameters use the same draws, as in pycls (`sweep/analysis.py`, with 2500 draws).

    Args:
        values: values (n,) of all networks, by the name of the parameter.
        errors: errors (n,) of all networks, in percent.
        rng: random generator.
        share: fraction of the networks in a draw; at least one network is drawn.
        repeats: number of draws.
        level: fraction of the best networks whose values lie in the range.
    """
    found, _ = _weighted(errors, None)
    size = max(1, int(share * len(found)))
    best = np.empty(repeats, dtype=np.int64)
    for at in range(0, repeats, 1000):  # in parts, to limit memory
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
    """Compute the error of a random search after m networks (NDS), for each power of two m up to n.

    The networks are drawn with replacement by their weights, and the mean and the quantiles of the
    lowest of m errors are exact. Let S_i be the share of networks that are at least as bad as the
    i-th best. Then the best of m networks is the i-th best or worse with probability S_i^m. (NDS
    simulates floor(n / m) searches instead, of which only one is left at m = n.)

    Args:
        errors: errors of n networks, in percent.
        weights: weights of the networks (NDS, see `uniform_weights`); None: equal weights.
        level: fraction of all searches that end between `low` and `high`.
    """
    found, share = _weighted(errors, weights)
    order = np.argsort(found, kind="stable")
    found, share = found[order], share[order]
    # Summing from the worst network on keeps small shares exact.
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
    """Split the variance of errors into a part between networks and a part between seeds.

    This is a one-way analysis of variance with random effects. The networks need not have the same
    number of trainings.

    Args:
        repeats: for each network that was trained more than once, its errors in percent.
        rng: random generator.
        level: level of the interval of `share`, which is a bootstrap over networks.

    Raises:
        ConfigError: there are fewer than two networks, or a network was trained only once.
    """
    groups = [np.asarray(errors, dtype=np.float64) for errors in repeats]
    if len(groups) < 2 or any(len(errors) < 2 for errors in groups):
        raise ConfigError("seed noise needs at least two networks, each trained at least twice")
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
    """Return the variances (m,) between networks and between seeds, for m sets of n networks."""
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
    """Compare two populations as `compare` does, but by pairs of networks.

    The interval is Student's for the mean of the differences. The test flips the signs of the
    differences at random, which is exact for differences that are symmetric about zero.

    Args:
        first: errors of n networks, in percent.
        second: errors of their n partners, in the same order.
        rng: random generator.
        level: level of the interval and of the test.
        repeats: number of random sign flips.

    Raises:
        ConfigError: the two populations differ in size.
    """
    a, _ = _weighted(first, None)
    b, _ = _weighted(second, None)
    if len(a) != len(b):
        raise ConfigError(f"pairs need equally many errors of both, got {len(a)} and {len(b)}")
    differences = a - b
    difference = float(differences.mean())
    mixed = (differences * rng.choice([-1.0, 1.0], size=(repeats, len(a)))).mean(axis=1)
    half = half_width([MeanError.of(differences)], level)
    return compared(difference, half, mixed, ks_distance(a, b), level)


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation, from -1 to 1; 0 if one of the two is constant."""
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
    """Test whether the networks of one space are better on average than those of another.

    DDS compares spaces by the mean of an EDF, but has no test. This function computes a two-sided
    permutation test of the difference of means, and Welch's interval of the difference, which keeps
    its level in small populations, too. The verdict is "better" or "worse" if the interval excludes
    0 and the p-value is at most 1 - level.

    Args:
        first: errors of the first space's networks, in percent.
        second: errors of the second space's networks, in percent.
        rng: random generator.
        first_weights: weights of the first space's networks (NDS, see `uniform_weights`); None:
            equal weights.
        second_weights: weights of the second space's networks.
        level: level of the interval and of the test.
        repeats: number of permutations.
    """
    a, a_share = _weighted(first, first_weights)
    b, b_share = _weighted(second, second_weights)
    difference = float(a @ a_share - b @ b_share)
    half = half_width([MeanError.of(a, a_share), MeanError.of(b, b_share)], level)
    # A permuted network keeps its weight. Weights are scaled to a mean of 1 in each population, so
    # that they are comparable between the two.
    errors = np.concatenate([a, b])
    weights = np.concatenate([a_share * len(a), b_share * len(b)])
    mixed = np.empty(repeats)
    for at in range(0, repeats, 1000):  # in parts, to limit memory
        order = np.tile(np.arange(len(errors)), (min(1000, repeats - at), 1))
        order = rng.permuted(order, axis=1)
        ours, theirs = order[:, : len(a)], order[:, len(a) :]
        mixed[at : at + len(order)] = _means(errors, weights, ours) - _means(
            errors, weights, theirs
        )
    return compared(difference, half, mixed, ks_distance(a, b, a_share, b_share), level)


@dataclass(frozen=True, slots=True)
class MeanError:
    """The squared standard error of a mean, and its degrees of freedom."""

    square: float
    freedom: float
    """0 if the mean is of one value, so that its standard error is not known."""

    @classmethod
    def of(cls, values: FloatArray, share: FloatArray | None = None) -> "MeanError":
        """Estimate the standard error of the mean of values, with weights that sum to 1."""
        weights = np.full(len(values), 1 / len(values)) if share is None else share
        freedom = max(1 / float(weights @ weights) - 1, 0.0)  # equal weights: n - 1
        if len(values) == 1:
            return cls(0.0, 0.0)
        spread = float(weights**2 @ (values - values @ weights) ** 2)
        return cls(spread * (freedom + 1) / freedom, freedom)

    def scaled(self, factor: float) -> "MeanError":
        """Return the standard error of a multiple of the mean."""
        return MeanError(factor**2 * self.square, self.freedom)


def half_width(means: Sequence[MeanError], level: float = 0.95) -> float:
    """Return half the width of the interval of a sum or difference of independent means.

    The degrees of freedom are those of Welch and Satterthwaite. A mean of one value is taken to
    spread as the others do; if there is no other, the width is infinite.
    """
    known = [mean for mean in means if mean.freedom > 0]
    if not known:
        return math.inf
    square = sum(mean.square for mean in known)
    for mean in means:
        if mean.freedom == 0:  # the spread of single values, from a mean of n = freedom + 1
            square += sum(one.square * (one.freedom + 1) for one in known) / len(known)
    if square == 0:
        return 0.0
    freedom = sum(mean.square for mean in known) ** 2 / sum(
        mean.square**2 / mean.freedom for mean in known
    )
    return student(freedom, level) * math.sqrt(square)


def student(freedom: float, level: float = 0.95) -> float:
    """Return the number of standard errors on each side of the interval of a mean (Student's t).

    Args:
        freedom: degrees of freedom; numbers below 1 are taken as 1.
        level: probability that the interval contains the mean.
    """
    # t = sqrt(freedom) tan(angle) has this density in the angle, from 0 to a right angle.
    freedom = max(freedom, 1.0)
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, area / area[-1], angles)))


def compared(
    difference: float, half: float, mixed: FloatArray, ks: float = 0.0, level: float = 0.95
) -> Comparison:
    """Return the comparison of two means.

    Args:
        difference: the first mean minus the second.
        half: half the width of its interval; see `half_width`.
        mixed: the differences after random permutations.
        ks: distance between the two EDFs.
        level: level of the interval and of the test.
    """
    low, high = difference - half, difference + half
    # The tolerance counts differences that are equal up to rounding. The observed arrangement is
    # one of the permutations, hence the 1 in both terms.
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
    """Return the weighted means (repeats,) of the chosen networks (repeats, n)."""
    there = weights[chosen]
    return np.asarray((errors[chosen] * there).sum(axis=1) / there.sum(axis=1), dtype=np.float64)


def adjust(comparisons: Sequence[Comparison], *, level: float = 0.95) -> list[Comparison]:
    """Adjust the p-values and verdicts of comparisons that were made together, by Holm's rule.

    Of many pairs some differ by chance. With Holm's rule the probability that at least one verdict
    is due to chance is at most 1 - level.

    Args:
        comparisons: comparisons of one analysis.
        level: level of the verdicts.
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


def _ranks(values: ArrayLike) -> FloatArray:
    """Return ranks from 1; equal values share the mean of their ranks."""
    found = np.asarray(values, dtype=np.float64)
    _, which, counts = np.unique(found, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[which], dtype=np.float64)


def _weighted(errors: ArrayLike, weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
    """Check errors and weights; return those of weight above 0, with weights that sum to 1."""
    found = np.asarray(errors, dtype=np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise ConfigError("errors must be a list of at least one finite number")
    if weights is None:
        return found, np.full(len(found), 1 / len(found))
    share = np.asarray(weights, dtype=np.float64)
    if share.shape != found.shape or (share < 0).any() or not share.sum() > 0:
        raise ConfigError(
            "weights must be one number per error, none of them negative, and not all 0"
        )
    return found[share > 0], share[share > 0] / share.sum()
