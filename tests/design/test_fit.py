import numpy as np
import pytest
from hypothesis import given, settings

from regnet.design.config import RegNetConfig
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError
from tests.marks import one_per_family
from tests.strategies import regnets

PUBLISHED = [v.name for v in VARIANTS.values() if isinstance(v.config, RegNetConfig)]


def refit(config):
    anynet = config.anynet()
    return RegNetConfig.fit(
        anynet.widths,
        anynet.depths,
        group_width=config.group_width,
        bottleneck_ratio=config.bottleneck_ratio,
        rounding=config.rounding,
    )


@pytest.mark.parametrize("name", one_per_family(PUBLISHED))
def test_published_stages_are_recovered(name):
    variant = VARIANTS[name]
    fit = refit(variant.config)
    assert fit.exact
    assert fit.config.stages == variant.config.stages
    assert fit.e_fit < 0.04  # largest if wide groups change the widths most


def test_a_network_with_group_norm_is_recovered():
    config = VARIANTS["regnety_040_sgn"].config
    shared = {"group_width": 64, "norm": "group", "activation": "silu", "se_ratio": 0.25}
    fit = RegNetConfig.fit(config.widths, config.depths, **shared)
    assert fit.exact
    assert fit.config.anynet() == config.anynet()


@pytest.mark.slow
@settings(max_examples=60)
@given(regnets())
def test_random_stages_are_recovered(config):
    fit = refit(config)
    assert fit.exact
    assert fit.config.stages == config.stages


@pytest.mark.parametrize(
    ("widths", "depths", "parameters", "e_fit"),
    [
        # Radosavovic et al. 2020, figure 8: the fits drawn there, and e_fit as read off the figure.
        ([64, 128, 272, 704], [2, 4, 5, 5], (80, 30, 1.9), 0.153),
        ([32, 144, 256, 448], [1, 1, 3, 5], (48, 61, 2.2), 0.078),
    ],
)
def test_fits_equal_those_of_the_paper(widths, depths, parameters, e_fit):
    fit = RegNetConfig.fit(widths, depths)
    assert fit.e_fit == pytest.approx(e_fit, abs=0.001)
    w0, wa, wm = parameters
    assert fit.config.w0 == w0
    assert fit.config.wa == pytest.approx(wa, abs=1)
    assert fit.config.wm == wm


@pytest.mark.parametrize(
    ("widths", "depths", "e_fit", "tolerance"),
    [
        # Figure 6 of the paper; the points with the same error in figure 8.
        ([48, 80, 352, 560], [1, 2, 2, 4], 0.22, 0.01),
        ([48, 704, 32, 48], [1, 1, 1, 2], 3.65, 0.1),
        ([48, 576, 128, 32], [3, 2, 2, 4], 2.9, 0.1),
        ([64, 960, 64, 64], [1, 1, 9, 9], 1.4, 0.1),
    ],
)
def test_fitting_errors_equal_those_of_the_paper(widths, depths, e_fit, tolerance):
    fit = RegNetConfig.fit(widths, depths)
    assert not fit.exact
    assert fit.e_fit == pytest.approx(e_fit, abs=tolerance)


def test_arrays_can_be_fitted():
    fit = RegNetConfig.fit(np.array([24, 56, 152, 368]), np.array([1, 1, 4, 7]))
    assert fit.config.widths == (24, 56, 152, 368)


@pytest.mark.parametrize(
    ("widths", "depths", "message"),
    [
        ([64], [1, 2], "one positive width and one positive depth per stage"),
        ([], [], "got widths [] and depths []"),
        ([64, -8], [1, 1], "got widths [64, -8]"),
        ([64, 32, 16, 8, 8, 8], [1] * 6, "no RegNet has 6 stages in 6 blocks"),
    ],
)
def test_widths_that_cannot_be_fitted_are_refused(widths, depths, message):
    with pytest.raises(ConfigError) as error:
        RegNetConfig.fit(widths, depths)
    assert message in str(error.value)
