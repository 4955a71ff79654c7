import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regnet.design.complexity import complexity
from regnet.design.config import AnyNetConfig, ArchitectureConfig, RegNetConfig, StageConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError
from regnet.spaces import sampling
from regnet.spaces.distributions import Distribution
from regnet.spaces.latency import FEATURES, LatencyModel, features_of_config
from regnet.spaces.paper import SPACES, constrained, find_space
from regnet.spaces.sampling import draw, sample
from regnet.spaces.space import Space

MF400 = 400e6


@pytest.mark.parametrize(
    ("name", "dimensions", "size"),
    [
        ("anynetx_a", 16, 1.8e18),
        ("anynetx_b", 13, 6.8e16),
        ("anynetx_c", 10, 3.2e14),
        ("anynetx_d", 10, 1.3e13),
        ("anynetx_e", 10, 5.5e11),
        ("regnetx", 6, 3.0e8),
    ],
)
def test_sizes_equal_those_of_the_papers_table_1(name: str, dimensions: int, size: float) -> None:
    """Radosavovic et al. 2020, table 1."""
    assert SPACES[name].dimensions == dimensions
    assert float(f"{SPACES[name].size:.1e}") == size


@pytest.mark.parametrize("name", SPACES)
def test_metrics_equal_the_arithmetic_and_lie_in_the_window(name: str) -> None:
    found = sample(find_space(name, flops=MF400), 20, 3)
    for at, config in enumerate(found.configs):
        cost = complexity(config, int(found.image_sizes[at]))
        assert 0.9 * MF400 <= cost.flops <= MF400
        for metric in ("flops", "params", "activations"):
            assert found.metric(metric)[at] == getattr(cost, metric)
        assert found.metric("d")[at] == sum(config.depths)
        assert [found.metric(f"d{s}")[at] for s in range(1, 5)] == list(config.depths)
        assert [found.metric(f"w{s}")[at] for s in range(1, 5)] == list(config.widths)
    assert set(found.metrics) == set(found.space.metric_names)


def test_relations_hold_for_every_network() -> None:
    for letter in "abcde":
        drawn = draw(SPACES[f"anynetx_{letter}"], 2000, np.random.default_rng(0)).parameters
        equal = {n for n in drawn if (np.diff(drawn[n], axis=1) == 0).all()}
        rising = {n for n in drawn if (np.diff(drawn[n], axis=1) >= 0).all()}
        assert equal == {"a": set(), "b": {"b_i"}}.get(letter, {"b_i", "g_i"})
        more = {"d": {"w_i"}, "e": {"w_i", "d_i"}}.get(letter, set())
        assert rising == equal | more
    falling = SPACES["anynetx_c"].relate(name="falling", w_i="decreasing")
    drawn = draw(falling, 500, np.random.default_rng(0)).parameters
    assert (np.diff(drawn["w_i"], axis=1) <= 0).all()
    assert falling.name == "falling"


def test_increasing_values_are_the_increasing_ones_of_the_larger_space() -> None:
    """Sorting the values, the other reading of the paper, makes ties rarer."""
    rng = np.random.default_rng(0)
    depths = Distribution(kind="log_uniform", low=1, high=16).draw(rng, (200_000, 4))
    kept = depths[(np.diff(depths, axis=1) >= 0).all(axis=1)]
    space = SPACES["anynetx_e"]
    drawn = draw(space, 20_000, rng).parameters["d_i"]
    for stage in range(4):
        assert stats.ks_2samp(kept[:, stage], drawn[:, stage]).pvalue > 1e-3
    ties = [(np.diff(d, axis=1) == 0).mean() for d in (
        drawn, draw(replace(space, ordering="sorting"), 20_000, rng).parameters["d_i"]
    )]  # fmt: skip
    assert ties[1] < 0.8 * ties[0]


RANGES = {
    "d_i": range(1, 17), "w_i": range(8, 1025, 8), "b_i": (1, 2, 4), "g_i": (1, 2, 4, 8, 16, 32),
}  # fmt: skip
"""Radosavovic et al. 2020, section 3.2."""


@pytest.mark.parametrize("name", RANGES)
def test_anynets_are_drawn_log_uniformly_over_the_papers_values(name: str) -> None:
    drawn = draw(SPACES["anynetx_a"], 20_000, np.random.default_rng(5)).parameters[name]
    values = np.asarray(RANGES[name])
    assert set(np.unique(drawn)) <= set(values)
    below = np.concatenate([[values[0] / 2], values[:-1]])
    share = np.log(values / below) / np.log(values[-1] / below[0])
    for stage in range(4):
        counts = np.array([(drawn[:, stage] == value).sum() for value in values])
        assert stats.chisquare(counts, 20_000 * share).pvalue > 1e-4


def test_drawn_regnets_have_the_conditional_distribution() -> None:
    """Group width and bottleneck ratio do not affect the stages, so their shares are unchanged."""
    drawn = draw(SPACES["regnetx"], 60_000, np.random.default_rng(5)).parameters
    for name, values in (("b", (1, 2, 4)), ("g", (1, 2, 4, 8, 16, 32))):
        counts = [(drawn[name] == value).sum() for value in values]
        assert stats.chisquare(counts).pvalue > 1e-4
    assert drawn["d"].max() <= 63
    assert drawn["w0"].max() <= 248
    assert drawn["wa"].max() <= 255.9
    assert 1.5 <= drawn["wm"].min() <= drawn["wm"].max() <= 3


def test_a_narrow_space_may_reject_a_complete_chunk() -> None:
    """Only few draws have four stages, or none can have them."""
    few = SPACES["regnetx"].restrict(d=(4, 5), wa=(33.5, None))
    assert len(sample(few, 3)) == 3
    none = SPACES["regnetx"].restrict(d=(1, 3), w4=(None, 900))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "PATIENCE", 20_000)
        with pytest.raises(ConfigError, match=r"32,768 draws do not have 4 stages$"):
            sample(none, 1)


@pytest.mark.slow
def test_regnets_have_four_stages_none_skipped_none_merged() -> None:
    """The fast vectorized search finds the same networks as checking the draws one at a time."""
    space, count = SPACES["regnetx"], 3000
    found = draw(space, count, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    drawn = {name: d.draw(rng, count) for name, d in space.parameters.items()}
    right = []
    for at in range(count):
        config = RegNetConfig(
            depth=int(drawn["d"][at]), w0=int(drawn["w0"][at]), wa=drawn["wa"][at],
            wm=drawn["wm"][at], group_width=int(drawn["g"][at]), bottleneck_ratio=drawn["b"][at],
        )  # fmt: skip
        levels = config.explain().levels
        if max(levels) == 3 and len(set(config.explain().widths)) == 4:
            right.append(at)
    assert len(found) == len(right)
    assert found.parameters["wm"].tolist() == drawn["wm"][right].tolist()


def test_the_first_networks_of_a_seed_are_the_same_for_any_count() -> None:
    space = find_space("regnetx", flops=MF400)
    assert sample(space, 3, 7).configs == sample(space, 40, 7).configs[:3]
    assert sample(space, 3, 7).configs != sample(space, 3, 8).configs


def test_no_network_is_sampled_twice() -> None:
    few = {
        "d": Distribution(kind="values", values=(12.0, 13.0)),
        "w0": Distribution(kind="values", values=(24.0,)),
        "wa": Distribution(kind="values", values=(36.4,)),
        "wm": Distribution(kind="values", values=(2.5,)),
        "b": Distribution(kind="values", values=(1.0,)),
        "g": Distribution(kind="values", values=(8.0, 16.0)),
    }
    space = Space(name="few", family="regnet", parameters=few)
    assert len(set(sample(space, 4).configs)) == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "PATIENCE", 20_000)
        with pytest.raises(ConfigError, match=r"few: only 4 networks were found in .* draws"):
            sample(space, 5)


def test_an_empty_space_reports_how_many_draws_each_condition_excludes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "PATIENCE", 30_000)
    space = find_space("anynetx_a", flops=MF400).restrict(params=(None, 1000))
    space = space.where("an odd depth", lambda networks: networks.metric("d") % 2 == 1)
    with pytest.raises(ConfigError) as caught:
        sample(space, 5)
    message = str(caught.value)
    assert message.startswith(
        "anynetx_a: only 0 networks were found in 32,768 draws; ask for fewer networks, or widen "
        "its ranges: 0 draws do not have 4 stages, and of the 32,768 others 32,768 fail params up "
        "to 1000, "
    )
    assert "fail flops from 3.6e+08 up to 4e+08" in message
    assert "fail an odd depth" in message
    assert message.endswith(", at 224 pixels")


def test_restrict_narrows_a_parameter_or_limits_a_metric() -> None:
    space = SPACES["regnetx"].restrict(d=(12, 28), b=1, w4=(None, 900), wm=(2, None))
    assert (space.parameters["d"].low, space.parameters["d"].high) == (12, 28)
    assert space.parameters["b"].count == 1
    assert space.parameters["wm"].low == 2
    assert space.limits == {"w4": (None, 900)}
    found = sample(space, 200)
    assert found.metric("d").min() >= 12
    assert found.metric("w4").max() <= 900
    both = space.restrict(w4=(100, 1000))
    assert both.limits == {"w4": (100, 900)}


REGIMES = {
    "002": 0.2, "004": 0.4, "006": 0.6, "008": 0.8, "016": 1.6, "032": 3.2, "040": 4.0, "064": 6.4,
    "080": 8.0, "120": 12.0, "160": 16.0,
}  # fmt: skip


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("family", ["regnetx", "regnety"])
def test_the_constrained_space_contains_the_published_networks(family: str, regime: str) -> None:
    """At the nominal flops of section 4, figure 12, but not 32 GF, whose w0 is too large."""
    giga = REGIMES[regime]
    space = constrained(SPACES[family], giga * 1e9)
    assert space.name == f"{family}_final"
    assert space.limits["params"] == (None, pytest.approx(3.0e6 + 5.5e6 * giga))
    assert space.limits["activations"] == (None, pytest.approx(6.5e6 * math.sqrt(giga)))
    config = VARIANTS[f"{family}_{regime}"].config
    assert isinstance(config, RegNetConfig)
    cost = complexity(config, 224)
    assert cost.params <= space.limits["params"][1]  # type: ignore[operator]
    assert cost.activations <= space.limits["activations"][1]  # type: ignore[operator]
    drawn = {"d": config.depth, "w0": config.w0, "wm": config.wm, "b": 1, "g": config.group_width}
    for name, value in drawn.items():
        assert space.parameters[name].within(value - 1e-9, value + 1e-9) or name == "g"
    assert config.group_width <= space.parameters["g"].high


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 1000))
def test_json_gives_the_same_networks(name: str, seed: int) -> None:
    space = find_space(name, flops=MF400)
    again = Space.from_dict(space.to_dict())
    assert again == space
    assert sample(again, 2, seed).configs == sample(space, 2, seed).configs


def test_networks_of_several_image_sizes_are_counted_at_their_own_size() -> None:
    found = sample(find_space("regnetz", flops=MF400), 30)
    assert len(set(found.image_sizes.tolist())) > 3
    assert found.image_sizes.tolist() == found.metric("r").tolist()


def test_networks_share_the_architecture_of_the_space() -> None:
    space = replace(
        SPACES["anynetx_a"],
        architecture=ArchitectureConfig(stem="cifar", stem_width=16, num_classes=10),
        image_size=32,
    )
    config = sample(space, 1).config(0)
    assert isinstance(config, AnyNetConfig)
    assert (config.stem, config.stem_width, config.num_classes) == ("cifar", 16, 10)


def test_a_space_for_small_images() -> None:
    space = find_space(
        "regnetx", flops=4e6, num_stages=3, image_size=32, stem="cifar", stem_width=16,
        num_classes=10,
    )  # fmt: skip
    found = sample(space, 3)
    for at in range(3):
        config = found.config(at).anynet()
        assert (len(config.stages), config.stem, config.num_classes) == (3, "cifar", 10)
        assert 3.6e6 <= complexity(config, 32).flops <= 4e6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: find_space("regnetx", stems="cifar"), "no field of an architecture 'stems'"),
        (lambda: find_space("regnetxx"), "there is no space 'regnetxx'; did you mean 'regnetx'"),
        (lambda: SPACES["regnetx"].restrict(d=(math.nan, 3)), "the range of d has an end"),
        (lambda: replace(SPACES["regnetx"], name="../x"), "a space's name has letters"),
        (
            lambda: replace(
                SPACES["anynetx_a"],
                parameters={
                    **SPACES["anynetx_a"].parameters,
                    "b_i": Distribution(kind="values", values=(1.5,)),
                },
            ),
            "b_i must be whole numbers or one over a whole number",
        ),
        (
            lambda: replace(
                SPACES["regnetx"],
                parameters={
                    **SPACES["regnetx"].parameters,
                    "wm": Distribution(kind="values", values=(1, 2)),
                },
            ),
            "wm must be greater than 1",
        ),
        (
            lambda: replace(
                SPACES["regnetx"],
                parameters={
                    **SPACES["regnetx"].parameters,
                    "wa": Distribution(low=-1, high=2),
                },
            ),
            "wa must be at least 0",
        ),
        (lambda: find_space("regnetx", final=True), "depend on flops; say how many"),
        (lambda: find_space("regnetx", flops=1e6, tolerance=2), r"lie in \(0, 1\], got 2"),
        (lambda: constrained(SPACES["anynetx_a"], 1e6), "anynetx_a is not a RegNet space"),
        (lambda: SPACES["regnetx"].restrict(wm=(3.5, 4)), "regnetx, wm: there is no value from"),
        (lambda: SPACES["regnetx"].restrict(depth=3), "no metric of regnetx 'depth'"),
        (lambda: SPACES["regnetx"].restrict(w1=(9, 8)), "w1 has an empty range: 9 to 8"),
        (lambda: SPACES["regnetx"].relate(d="equal"), "'d' is not drawn for each stage"),
        (lambda: Space(name="x", family="regnet", parameters={}), "'b' is missing"),
        (lambda: Space.from_dict({"name": "x"}), "not a design space"),
        (lambda: SPACES["regnetx"].where("p", lambda s: s.metric("d") > 3).to_dict(), "are code"),
        (lambda: sample(SPACES["regnetx"], 0), "count must be a whole number of at least 1; got 0"),
    ],
)
def test_impossible_spaces_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_latency_is_a_metric_of_a_space_with_a_model_of_a_device() -> None:
    space = find_space("regnetx").restrict(flops=(300e6, 400e6))
    with pytest.raises(ConfigError, match="latency_ms needs a model of a device"):
        space.restrict(latency_ms=(None, 5))
    drawn = sample(space, 40)
    assert "latency_ms" not in space.metric_names
    times = 0.1 * drawn.metric("d") + drawn.metric("activations") / 1e6
    model = LatencyModel.fit(drawn.latency_features, times, of="a law")
    middle = float(np.median(times))
    part = space.restrict(latency_ms=(None, middle), device=model)
    found = sample(part, 40, 1)
    assert (found.metric("latency_ms") <= middle).all()
    law = 0.1 * found.metric("d") + found.metric("activations") / 1e6
    assert np.median(np.abs(found.metric("latency_ms") / law - 1)) < 0.1
    assert "latency_ms" in found.metrics
    again = Space.from_dict(json.loads(json.dumps(part.to_dict())))
    assert again == part
    assert np.array_equal(sample(again, 40, 1).metric("latency_ms"), found.metric("latency_ms"))


def test_anynets_have_a_latency_too() -> None:
    space = find_space("anynetx_a")
    drawn = sample(space, 30)
    model = LatencyModel.fit(drawn.latency_features, drawn.metric("flops") / 1e8)
    part = space.restrict(latency_ms=(1, 20), device=model)
    assert len(sample(part, 10).metric("latency_ms")) == 10


def test_ordered_stages_that_are_too_rare_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(sampling, "ORDERED", 200_000)
    with pytest.raises(
        ConfigError, match='hardly ever drawn in order in 8 stages; use ordering="s'
    ):
        sample(find_space("anynetx_d", num_stages=8), 1)
    sorted_ = replace(find_space("anynetx_d", num_stages=8), ordering="sorting")
    assert len(sample(sorted_, 1)) == 1


def test_the_work_of_grouped_convolutions_grows_with_the_group_width() -> None:
    """Also where a group has a ninth of the channels, so that a filter has as many weights as a
    convolution of 1x1."""
    stage = StageConfig(depth=1, width=216)
    found = [
        features_of_config(AnyNetConfig(stages=(replace(stage, group_width=g),)), 64)[0]
        for g in (18, 24, 36)
    ]
    grouped = [row[FEATURES.index("grouped")] for row in found]
    assert grouped[0] < grouped[1] < grouped[2]
    assert len({row[FEATURES.index("dense")] for row in found}) == 1
