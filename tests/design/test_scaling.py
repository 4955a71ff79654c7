"""Tests of the scaling rules, against the paper's table and rounding worked out by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import regnet
from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, StageConfig
from regnet.design.scaling import STRATEGIES, scale
from regnet.errors import ConfigError

LARGE = AnyNetConfig(
    stages=tuple(
        StageConfig(depth=d, width=w, group_width=64, stride=2)
        for d, w in ((8, 256), (16, 512), (24, 1024), (8, 2048))
    )
)
"""A network so large that rounding hardly matters."""

COSTS = {
    "d": (1, 1), "w": (1, 0.5), "r": (0, 1), "dw": (1, 0.75), "wr": (0.5, 0.75), "dr": (0.5, 1),
    "dwr": (2 / 3, 5 / 6), "dWr": (0.9, 0.6),
}  # fmt: skip
"""Exponents of parameters and activations (Dollár et al. 2021, table 2)."""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_costs_grow_as_the_papers_table_says(strategy: Any) -> None:
    s = 4.0
    before = complexity(LARGE, 512)
    found = scale(LARGE, s, strategy=strategy, image_size=512)
    after = complexity(found.config, found.image_size)
    params, activations = COSTS[strategy]
    assert after.flops / before.flops == pytest.approx(s, rel=0.08)
    assert after.params / before.params == pytest.approx(s**params, rel=0.08)
    assert after.activations / before.activations == pytest.approx(s**activations, rel=0.08)


def test_rounding_equals_an_example_worked_out_by_hand() -> None:
    """RegNetY-400MF by 4: depths s^0.1 = 1.149, widths s^0.4 = 1.741, image s^0.05 = 1.072."""
    found = scale(regnet.info("regnety_004").config, 4)
    assert found.image_size == 240  # 240.08
    assert found.config.depths == (1, 3, 7, 7)  # 1.1, 3.4, 6.9, 6.9
    # Widths of 48, 104, 208 and 440 are scaled to 83.6, 181.1, 362.1 and 766.1, and rounded to
    # multiples of 8: 80, 184, 360 and 768. The group width of 13.9 becomes 16. 184 is 11.5 groups
    # and 360 is 22.5 groups, which are rounded to the even numbers 12 and 22.
    assert found.config.widths == (80, 192, 352, 768)
    assert [stage.group_width for stage in found.config.stages] == [16] * 4
    assert found.config.se_ratio == 0.25


@pytest.mark.parametrize(("g", "s", "expected"), [(1, 4, 2), (2, 4, 4), (4, 1, 4), (8, 1, 8)])
def test_group_widths_grow_with_the_width(g: int, s: float, expected: int) -> None:
    config = AnyNetConfig(stages=(StageConfig(depth=2, width=64, group_width=g),))
    assert scale(config, s, strategy="w").config.stages[0].group_width == expected


@given(st.floats(0.1, 10), st.sampled_from(sorted(regnet.list_models("regnet[xy]_???"))))
def test_any_factor_gives_a_network(factor: float, name: str) -> None:
    config = regnet.info(name).config
    found = scale(config, factor)
    assert found.config.num_classes == config.num_classes
    assert found == scale(config, factor, strategy=0.8)


@pytest.mark.parametrize(
    ("factor", "strategy", "message"),
    [
        (0, "dWr", "factor must be a number, at least 0.001 and at most 1000, got 0"),
        (2, "dWR", "there is no strategy 'dWR'; did you mean 'dWr'"),
        (2, 1.5, "must lie from 0 to 1, got 1.5"),
    ],
)
def test_impossible_factors_are_refused(factor: float, strategy: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scale(LARGE, factor, strategy=strategy)
