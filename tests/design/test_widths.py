import pytest
from hypothesis import given
from hypothesis import strategies as st

from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.design.widths import bottleneck_widths, round_to_groups
from tests import golden
from tests.strategies import powers_of_two, ratios, regnet_parameters, regnets

REGNETS = [name for name, row in golden.load("variants.json").items() if "generator" in row]


@given(regnet_parameters())
def test_widths_never_shrink_and_are_multiples_of_8_before_group_rounding(parameters):
    widths = RegNetConfig(**parameters).block_widths()
    assert len(widths) == parameters["depth"]
    assert list(widths) == sorted(widths)
    assert all(width >= 8 and width % 8 == 0 for width in widths)


@given(regnet_parameters())
def test_first_block_has_width_w0(parameters):
    assert RegNetConfig(**parameters).block_widths()[0] == parameters["w0"]


@given(regnets())
def test_group_width_divides_every_bottleneck_width(config):
    for block in config.blocks():
        assert block.bottleneck_width % block.group_width == 0
        assert block.group_width <= config.group_width
        assert block.bottleneck_width == round(block.width / config.bottleneck_ratio)


@given(
    st.integers(1, 300).map(lambda k: 8 * k),
    powers_of_two(0, 7),
    ratios(),
    st.sampled_from(("half_even", "divisible")),
)
def test_group_rounding_moves_a_bottleneck_by_half_a_unit_at_most(width, group, ratio, rounding):
    inner = bottleneck_widths(width, ratio)
    rounded, groups = round_to_groups(width, group, ratio, rounding)
    moved = abs(bottleneck_widths(rounded, ratio) - inner)
    unit = max(groups, 1 / ratio)
    # `divisible` rounds up by a complete unit if rounding down would lose more than a tenth.
    assert moved <= (unit if rounding == "divisible" or inner < unit else unit / 2)


@pytest.mark.parametrize("name", golden.load("variants.json"))
def test_stages_equal_the_published_ones(name):
    row = golden.load("variants.json")[name]
    config = VARIANTS[name].config.anynet()
    assert list(config.widths) == row["stage_widths"]
    assert list(config.depths) == row["stage_depths"]
    assert [stage.group_width for stage in config.stages] == row["stage_group_widths"]
    assert [stage.stride for stage in config.stages] == row["stage_strides"]
    assert config.num_features == row["num_features"]


@pytest.mark.parametrize("name", golden.load("variants.json"))
def test_blocks_equal_the_published_ones(name):
    blocks = VARIANTS[name].config.blocks()
    for number, stage in enumerate(golden.load("variants.json")[name]["stages"], 1):
        found = [block for block in blocks if block.stage == number]
        expected = stage.get("blocks") or [stage["first_block"]] + [stage.get("other_blocks")] * (
            len(found) - 1
        )
        for block, row in zip(found, expected, strict=True):
            assert block.width == row["out"]
            assert block.attention == (row.get("type") == "self_attention")
            if block.attention:
                continue
            assert block.width_in == row["in"]
            assert block.bottleneck_width == row["bottleneck"]
            assert block.groups == row["groups"]
            assert block.stride == row["stride"]
            assert block.se_width == row.get("se_width", 0)
            shortcut = row["shortcut"]
            if name.startswith("nf_") and shortcut == "none":
                shortcut = "identity"  # all blocks are residual, and these ones need no projection
            assert block.shortcut == (
                shortcut if shortcut in ("identity", "none") else "projection"
            )


@pytest.mark.parametrize(
    ("name", "last_or_first", "half_even", "divisible"),
    [
        ("regnetx_004", -1, 384, 400),
        ("regnety_008", 1, 128, 144),
        ("regnety_080", 0, 168, 224),
    ],
)
def test_the_two_rounding_rules_differ_where_published_models_do(
    name, last_or_first, half_even, divisible
):
    assert VARIANTS[name].config.widths[last_or_first] == half_even
    assert VARIANTS[f"{name}_tv"].config.widths[last_or_first] == divisible


def test_a_regnet_may_have_any_number_of_stages():
    counts = [
        len(RegNetConfig(depth=depth, w0=16, wa=wa, wm=2.0).stages)
        for depth, wa in ((1, 0.0), (4, 8.0), (12, 16.0), (30, 60.0), (60, 200.0))
    ]
    # The last level is round(log2((16 + wa * (depth - 1)) / 16)); lower levels may be skipped.
    assert counts == [1, 2, 5, 7, 8]


def test_explanation_shows_every_step():
    config = VARIANTS["regnetx_004"].config
    steps = config.explain()
    assert steps.u[:2] == pytest.approx((24.0, 48.48))
    assert steps.s[0] == 0.0
    assert steps.levels[-1] == 3
    assert steps.widths == config.block_widths()
    assert [stage.width for stage in steps.stages] == [32, 64, 160, 384]
    text = str(steps)
    assert "48.48" in text
    assert "384" in text
    assert "(-8 to fit the groups)" in text  # 392 is halfway between 384 and 400
