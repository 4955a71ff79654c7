"""Tests of the statistics against numbers worked out by hand, and against scipy."""

import itertools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regnet.errors import ConfigError
from regnet.studies import statistics as s
from regnet.studies.tables import read_table

ERRORS = [40.0, 39.0, 50.0, 41.0, 41.0]

lists = st.lists(st.integers(200, 900).map(lambda n: n / 10), min_size=1, max_size=40)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_edf_equals_an_example_worked_out_by_hand() -> None:
    """Equation 1 of Radosavovic et al. 2020: the share of errors strictly below e."""
    curve = s.edf(ERRORS)
    assert curve.errors.tolist() == [39, 40, 41, 41, 50]
    assert curve.share == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert (curve.minimum, curve.mean) == (39, pytest.approx(42.2))
    assert s.edf_at([39, 39.5, 41, 41.1, 60], ERRORS) == pytest.approx([0, 0.2, 0.4, 0.8, 1])


@given(lists, st.integers(200, 900).map(lambda n: n / 10))
def test_the_edf_is_the_mean_of_the_indicator(errors: list[float], at: float) -> None:
    below = sum(e < at for e in errors) / len(errors)
    assert s.edf_at(at, errors) == pytest.approx(below)


def test_weights_of_uniform_complexity_equal_those_worked_out_by_hand() -> None:
    """NDS, section 3.4: the weight is 1 / (bins * networks of the bin), for the open range only."""
    weights = s.uniform_weights([0, 1, 2, 3, 6, 7, 9, 10], bins=2, low=0, high=10)
    assert weights.tolist() == pytest.approx([0, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6, 0])
    assert weights.sum() == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"no network between 5 and 7\.5; take fewer bins than 4"):
        s.uniform_weights([1, 3, 9], bins=4, low=0, high=10)


@given(lists, st.floats(1, 100))
def test_the_area_is_the_integral_of_the_edf(errors: list[float], limit: float) -> None:
    """(1 / limit) * integral of F from 0 to the limit (NDS)."""
    steps = np.linspace(0, limit, 20_001)
    middles = (steps[1:] + steps[:-1]) / 2
    assert s.edf_area(errors, limit) == pytest.approx(
        float(s.edf_at(middles, errors).mean()), abs=1e-3
    )


@given(lists, lists)
def test_the_ks_distance_equals_that_of_scipy(a: list[float], b: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's p-value is unreliable for few values
        theirs = stats.ks_2samp(a, b, method="asymp").statistic
    assert s.ks_distance(a, b) == pytest.approx(theirs)


def test_the_weighted_ks_distance_equals_one_worked_out_by_hand() -> None:
    assert s.ks_distance([1, 2], [1, 2], [1, 3], [1, 1]) == pytest.approx(0.25)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30))
def test_the_rank_correlation_equals_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert s.rank_correlation(a, b) == 0
    else:
        assert s.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_best_values_follow_the_best_of_a_quarter() -> None:
    """If all errors differ, the rank of the best of k draws follows a known law."""
    n, k = 40, 10
    ranks = np.arange(n)
    found = s.best_values({"rank": ranks, "minus": -ranks}, ranks + 30.0, rng())

    # P(best rank <= r) = 1 - (1 - (r + 1) / n) ** k
    def quantile(p: float) -> int:
        return next(r for r in range(n) if 1 - (1 - (r + 1) / n) ** k >= p)

    rank = found["rank"]
    assert rank.low == quantile(0.025)
    assert rank.median == pytest.approx(quantile(0.5), abs=1)
    assert rank.high == pytest.approx(quantile(0.975), abs=1)
    # All parameters use the same draws.
    assert (found["minus"].low, found["minus"].high) == (-rank.high, -rank.low)


def test_best_values_equal_those_of_a_loop_over_draws() -> None:
    """The loop follows footnote 4 of the paper line by line, with the same generator."""
    values, errors = rng().uniform(0, 1, 30), rng().normal(50, 5, 30)
    generator, best = np.random.default_rng(3), []
    for _ in range(500):
        drawn = generator.integers(30, size=7)
        best.append(values[drawn[np.argmin(errors[drawn])]])
    expected = np.percentile(best, [2.5, 50, 97.5])
    found = s.best_values({"x": values}, errors, np.random.default_rng(3), repeats=500)["x"]
    assert [found.low, found.median, found.high] == pytest.approx(expected)


@pytest.mark.parametrize("repeats", [1, 999, 2500])
def test_a_seed_gives_the_same_numbers(repeats: int) -> None:
    values = {"x": np.arange(30.0)}
    once, again = (
        s.best_values(values, np.arange(30.0) % 7 + 1, rng(), repeats=repeats) for _ in range(2)
    )
    assert once == again


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=5)
    .filter(lambda rows: any(weight for _, weight in rows)),
    st.sampled_from([0.5, 0.9, 0.95]),
)  # fmt: skip
def test_a_search_curve_equals_that_of_counting_every_search(
    rows: list[tuple[int, int]], level: float
) -> None:
    """Each of the n^m draws of m networks is as likely as the product of their weights."""
    errors, weights = zip(*rows, strict=True)
    share = np.array(weights) / sum(weights)
    for m, found in s.search_curve(errors, weights=weights, level=level).items():
        draws = [
            (min(errors[at] for at in drawn), math.prod(share[at] for at in drawn))
            for drawn in itertools.product(range(len(errors)), repeat=m)
        ]
        assert found.mean == pytest.approx(sum(least * p for least, p in draws))
        tail = (1 - level) / 2
        assert sum(p for least, p in draws if least <= found.low) >= tail - 1e-9
        assert sum(p for least, p in draws if least < found.low) <= tail + 1e-9
        assert sum(p for least, p in draws if least <= found.high) >= 1 - tail - 1e-9
        assert sum(p for least, p in draws if least < found.high) <= 1 - tail + 1e-9


@given(st.lists(st.floats(0, 100), min_size=2, max_size=200))
def test_more_networks_never_find_worse(errors: list[float]) -> None:
    curve = s.search_curve(errors)
    assert list(curve) == [2**power for power in range(len(errors).bit_length())]
    assert curve[1].mean == pytest.approx(np.mean(errors))
    points = list(curve.values())
    for before, after in itertools.pairwise(points):
        assert after.mean <= before.mean + 1e-9
        assert after.low <= before.low
        assert after.high <= before.high
    assert min(errors) <= points[-1].mean + 1e-9


def test_the_search_curve_of_the_shipped_study_equals_the_formula() -> None:
    """The expected values of the shipped study's AnyNetX_D were computed from the formula."""
    table = Path(__file__).parents[2] / "benchmarks/results/study.parquet"
    errors = read_table(table, "lowest")["anynetx_d"].errors
    found = [round(best.mean, 2) for best in s.search_curve(errors).values()]
    assert found == [60.15, 56.91, 54.74, 53.10, 51.69, 50.48, 49.46]


def test_seed_noise_is_that_of_an_analysis_of_variance() -> None:
    """For equal numbers of trainings, scipy's F is the ratio of between to within mean squares."""
    groups = [rng().normal(at, 1, 3) for at in (40.0, 44.0, 41.0, 47.0)]
    groups = [g + n for n, g in enumerate(groups)]
    found = s.seed_noise(groups, rng())
    within = np.mean([g.var(ddof=1) for g in groups])
    assert found.seed_deviation == pytest.approx(math.sqrt(within))
    between = np.var([g.mean() for g in groups], ddof=1) * 3
    assert stats.f_oneway(*groups).statistic == pytest.approx(between / within)
    assert found.network_deviation == pytest.approx(math.sqrt((between - within) / 3))
    assert 0 <= found.low <= found.share <= found.high <= 1


@pytest.mark.parametrize(("networks", "seeds"), [(0.0, 2.0), (3.0, 1.0), (4.0, 0.0)])
def test_seed_noise_recovers_known_deviations(networks: float, seeds: float) -> None:
    generator = rng()
    groups = [
        50 + generator.normal(0, networks) + generator.normal(0, seeds, int(n))
        for n in generator.integers(2, 5, 400)
    ]
    found = s.seed_noise(groups, generator)
    assert found.networks == 400
    assert found.seed_deviation == pytest.approx(seeds, rel=0.1, abs=0.05)
    assert found.network_deviation == pytest.approx(networks, rel=0.1, abs=0.4)


@pytest.mark.parametrize("groups", [[], [[1.0, 2.0]], [[1.0, 2.0], [3.0]]])
def test_seed_noise_needs_networks_that_were_trained_again(groups: list[list[float]]) -> None:
    with pytest.raises(ConfigError, match="at least two networks, each trained at least twice"):
        s.seed_noise(groups, rng())


def test_pairs_agree_with_scipys_permutation_test_of_pairs() -> None:
    base = rng().normal(50, 8, 20)
    a, b = base + rng().normal(0, 1, 20), base + np.random.default_rng(1).normal(0.9, 1, 20)
    found = s.compare_pairs(a, b, rng())
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
        vectorized=True, n_resamples=9999, rng=0,
    )  # fmt: skip
    assert found.difference == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    student = stats.ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx((student.low, student.high), abs=1e-4)
    assert found.verdict == "better"
    assert s.compare(a, b, rng()).verdict == "not told apart", "unpaired errors vary more"
    with pytest.raises(ConfigError, match="equally many errors of both, got 20 and 19"):
        s.compare_pairs(a, b[1:], rng())


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_bands_contain_the_truth_as_often_as_they_claim(share: float) -> None:
    """The 95 % band is tested on many populations of a known law, at its ends too."""
    generator, hits = rng(), 0
    at = stats.norm(50, 5).ppf(share)
    for _ in range(300):
        low, high = s.edf_band(generator.normal(50, 5, 64), at, generator, repeats=500)
        hits += low <= share <= high
    assert hits / 300 >= 0.9


def test_a_comparison_agrees_with_scipys_permutation_test() -> None:
    a, b = rng().normal(49, 5, 60), np.random.default_rng(1).normal(51, 5, 50)
    found = s.compare(a, b, rng())
    theirs = stats.permutation_test(
        (a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis),
        vectorized=True, n_resamples=9999, rng=0,
    )  # fmt: skip
    assert found.difference == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.02)
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high), abs=1e-4)


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 3, 7.3, 30, 500, 20_000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_students_t_is_scipys(freedom: float, level: float) -> None:
    theirs = stats.t.ppf((1 + level) / 2, freedom)
    assert s.student(freedom, level) == pytest.approx(theirs, rel=1e-4)


def test_weighted_intervals_contain_the_truth_as_often_as_they_claim() -> None:
    """Half of the weight lies on one of twelve networks, as in a bin with a single network."""
    generator, hits = rng(), 0
    uneven = [11.0, *[1.0] * 11]
    for _ in range(400):
        a, b = generator.normal(50, 5, (2, 12))
        found = s.compare(a, b, generator, first_weights=uneven, repeats=1)
        hits += found.low <= 0 <= found.high
    assert hits / 400 >= 0.9


def test_a_single_network_spreads_as_the_other_space_does() -> None:
    one, several = [50.0], [40.0, 44.0, 48.0]
    found = s.compare(one, several, rng())
    pooled = stats.ttest_ind(one, several, equal_var=True).confidence_interval()
    assert (found.low, found.high) == pytest.approx((pooled.low, pooled.high), abs=1e-3)
    alone = s.compare(one, [40.0], rng())
    assert (alone.low, alone.high) == (-math.inf, math.inf)
    assert json.dumps(alone.to_dict(), allow_nan=False).count("null") == 2


def test_a_weighted_comparison_equals_one_worked_out_by_hand() -> None:
    found = s.compare([30, 40], [50, 60], rng(), first_weights=[1, 3], second_weights=[1, 0])
    assert found.difference == pytest.approx(37.5 - 50)
    assert found.ks == 1
    equal = s.compare([1, 2, 3], [2, 3, 4], rng(), first_weights=[2, 2, 2])
    assert equal == s.compare([1, 2, 3], [2, 3, 4], rng())


def test_the_same_space_is_seldom_told_apart_from_itself() -> None:
    generator, claims, small = rng(), 0, 0
    for count in (3, 64):
        for _ in range(150):
            a, b = generator.normal(50, 5, (2, count))
            found = s.compare(a, b, generator, repeats=400)
            claims += found.verdict != "not told apart"
            small += found.p_value <= 0.05
    assert claims <= 0.08 * 300
    assert small <= 0.08 * 300


def test_many_comparisons_are_adjusted_by_holms_method() -> None:
    """Worked out by hand: of three comparisons, 0.01, 0.02 and 0.04 become 0.03, 0.04 and 0.04."""
    base = s.compare([30.0, 31.0], [40.0, 41.0], rng())
    three = [replace(base, p_value=p) for p in (0.04, 0.01, 0.02)]
    assert [c.p_value for c in s.adjust(three)] == pytest.approx([0.04, 0.03, 0.04])
    assert [c.verdict for c in s.adjust(three)] == ["better"] * 3
    ten = [replace(base, p_value=0.01)] * 10
    assert {c.verdict for c in s.adjust(ten)} == {"not told apart"}


def test_a_comparison_ends_in_one_of_three_verdicts() -> None:
    low, high = np.linspace(30, 40, 50), np.linspace(45, 55, 50)
    assert s.compare(low, high, rng()).verdict == "better"
    assert s.compare(high, low, rng()).verdict == "worse"
    assert s.compare(low, low, rng()).verdict == "not told apart"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.edf([]), "at least one"),
        (lambda: s.edf([math.nan]), "must be a list of at least one finite number"),
        (lambda: s.edf([1, 2], [1, -1]), "none of them negative"),
        (lambda: s.edf([1, 2], [1]), "one number per error"),
        (lambda: s.edf_area([1], 0), "must be positive, got 0"),
        (lambda: s.uniform_weights([1], 0, 0, 1), "weights need at least one bin"),
    ],
)
def test_impossible_inputs_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
