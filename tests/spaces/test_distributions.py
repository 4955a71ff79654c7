"""Tests of the samplers against pycls (`sweep/samplers.py`), by chi-square and KS tests."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regnet.errors import ConfigError
from regnet.spaces.distributions import Distribution

DRAWS = 40_000


def log_share(low: float, high: float, whole: float) -> float:
    return math.log(high / low) / whole


def expected(distribution: Distribution) -> dict[float, float]:
    """Return the probability of each value, computed only from the definition."""
    d = distribution
    if d.kind == "uniform":
        return {d.low + k * d.quantum: 1 / d.count for k in range(d.count)}
    if d.kind == "values":
        return {v: d.values.count(v) / len(d.values) for v in d.values}
    if d.kind == "power2_uniform":
        return {d.low * 2**k: 1 / d.count for k in range(d.count)}
    assert d.kind == "log_uniform"
    below = d.low - min(d.quantum, d.low / 2)
    whole, found = math.log(d.high / below), {}
    for k in range(d.count):
        value = d.low + k * d.quantum
        found[value] = log_share(max(below, value - d.quantum), value, whole)
    return found


DISCRETE = (
    Distribution(low=12, high=28),
    Distribution(low=2, high=3, quantum=0.125),
    Distribution(kind="log_uniform", low=1, high=16),
    Distribution(kind="log_uniform", low=8, high=256, quantum=8),
    Distribution(kind="power2_uniform", low=1, high=32),
    Distribution(kind="power2_uniform", low=0.125, high=1, quantum=0.125),
    Distribution(kind="values", values=(4.0, 1.0, 1.0)),
)


@pytest.mark.parametrize("distribution", DISCRETE, ids=lambda d: f"{d.kind} {d.low:g}-{d.high:g}")
def test_values_are_as_likely_as_defined(distribution: Distribution) -> None:
    drawn = distribution.draw(np.random.default_rng(1), DRAWS)
    share = expected(distribution)
    values, counts = np.unique(drawn, return_counts=True)
    assert set(values.tolist()) <= {round(v, 9) for v in share}
    observed = dict(zip(values.tolist(), counts.tolist(), strict=True))
    test = stats.chisquare(
        [observed.get(round(v, 9), 0) for v in share], [DRAWS * p for p in share.values()]
    )
    assert test.pvalue > 1e-3


def test_powers_of_two_or_log_uniform_has_worked_shares() -> None:
    """The shares of [1, 32] with quantum 8 are worked out from the same source."""
    d = Distribution(kind="power2_or_log_uniform", low=1, high=32, quantum=8)
    share = {1: 1 / 6, 2: 1 / 6, 4: 1 / 6, 8: 1 / 6, 16: 1 / 6, 24: 0.0975, 32: 0.0692}
    values, counts = np.unique(d.draw(np.random.default_rng(0), DRAWS), return_counts=True)
    assert values.tolist() == list(share)
    whole = sum(share.values())
    assert stats.chisquare(counts, [DRAWS * p / whole for p in share.values()]).pvalue > 1e-3
    assert d.count == 7


@pytest.mark.parametrize("kind", ["normal", "log_normal"])
def test_normal_distributions_are_cut_off_at_three_deviations(kind: Any) -> None:
    d = Distribution(kind=kind, low=16, high=256, quantum=1e-6)
    drawn = d.draw(np.random.default_rng(0), DRAWS)
    low, high = (16.0, 256.0) if kind == "normal" else (math.log(16), math.log(256))
    cut = stats.truncnorm(-3, 3, loc=(low + high) / 2, scale=(high - low) / 6)
    assert stats.kstest(drawn if kind == "normal" else np.log(drawn), cut.cdf).pvalue > 1e-3


def test_a_log_uniform_distribution_with_fine_steps_is_log_uniform() -> None:
    d = Distribution(kind="log_uniform", low=8, high=256, quantum=0.001)
    found = np.log(d.draw(np.random.default_rng(0), DRAWS))
    assert stats.kstest(found, stats.uniform(math.log(8), math.log(32)).cdf).pvalue > 1e-3


@given(st.sampled_from(DISCRETE), st.floats(0, 1), st.floats(0, 1))
def test_a_narrowed_distribution_is_the_conditional_one(
    distribution: Distribution, a: float, b: float
) -> None:
    """The probabilities are the same, conditioned on the range."""
    all_values = sorted(expected(distribution))
    first, last = all_values[0], all_values[-1]
    low, high = sorted(round(first + part * (last - first), 6) for part in (a, b))
    kept = {v: p for v, p in expected(distribution).items() if low <= v <= high}
    if not kept:
        with pytest.raises(ConfigError, match="there is no value from"):
            distribution.within(low, high)
        return
    narrower = distribution.within(low, high)
    assert narrower is not None
    found = expected(narrower)
    assert {round(v, 9) for v in found} == {round(v, 9) for v in kept}
    for value, share in zip(sorted(kept), sorted(found), strict=True):
        assert found[share] == pytest.approx(kept[value] / sum(kept.values()))


@given(st.sampled_from(DISCRETE))
def test_distributions_survive_json(distribution: Distribution) -> None:
    assert Distribution.from_dict(distribution.to_dict()) == distribution


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "uniformly"}, "kind must be one of uniform, .* got 'uniformly'"),
        ({"low": 3, "high": 2}, "low <= high"),
        ({"low": 1.5, "high": 2}, "multiples of its quantum 1"),
        ({"kind": "log_uniform", "low": 0, "high": 2}, "above 0, got low 0"),
        ({"kind": "power2_uniform", "low": 3, "high": 4}, "powers of two as bounds, got 3 to 4"),
        ({"kind": "values"}, "values must be a list of numbers"),
        ({"low": 1, "high": 2, "quantum": 0}, "quantum must be positive, got 0"),
    ],
)
def test_impossible_distributions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distribution(**changes)
