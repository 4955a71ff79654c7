import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given

from regnet.design.config import (
    AnyNetConfig,
    RegNetConfig,
    StageConfig,
    config_from_dict,
    config_from_json,
)
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError
from tests.strategies import anynets, regnets

REGNET = {"depth": 13, "w0": 24, "wa": 36.44, "wm": 2.49, "group_width": 8}
STAGE = {"depth": 2, "width": 64}


@given(regnets())
def test_regnet_survives_json(config):
    assert config_from_json(config.to_json()) == config


@given(anynets())
def test_anynet_survives_json(config):
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=lambda v: v.name)
def test_published_config_survives_json(variant):
    assert config_from_dict(json.loads(variant.config.to_json())) == variant.config


@given(regnets())
def test_regnet_is_an_anynet_of_its_stages(config):
    anynet = config.anynet()
    assert anynet.stages == config.stages
    assert anynet.se_ratio == config.se_ratio
    assert sum(anynet.depths) == config.depth == len(anynet.blocks())


def test_configs_are_frozen_and_hashable():
    config = RegNetConfig(**REGNET)
    with pytest.raises(FrozenInstanceError):
        config.depth = 3  # type: ignore[misc]
    assert len({config, RegNetConfig(**REGNET), replace(config, depth=14)}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wm": 1.0}, "wm must be greater than 1 so that stages differ in width, got 1.0"),
        ({"wm": 0.5}, "got 0.5"),
        ({"wm": float("nan")}, "got nan"),
        ({"w0": 20}, "w0 must be a multiple of 8 channels, got 20; use 16"),
        ({"w0": 0}, "w0 must be a whole number from 1 to 10000000; got 0"),
        ({"w0": 24.0}, "w0 must be a whole number from 1 to 10000000; got 24.0"),
        ({"depth": 0}, "depth must be a whole number from 1 to 10000; got 0"),
        ({"depth": 10**9}, "got 1000000000"),
        ({"wa": 1e18}, "wa must be a number up to 10000000, got 1e+18"),
        ({"wa": 10**400}, "wa must be a number up to 10000000"),
        ({"bottleneck_ratio": 1e30}, "bottleneck_ratio must be a number up to"),
        ({"bottleneck_ratio": 1e-320}, "bottleneck_ratio must be a whole number or one over"),
        ({"stem": "tiered", "stem_width": 2}, "stem_width of 8 or more, got 2"),
        ({"depth": True}, "got True"),
        ({"wa": -1.0}, "wa must be 0 or more, got -1.0"),
        ({"wa": "36"}, "wa must be a number, got '36'"),
        ({"group_width": 0}, "group_width must be a whole number from 1 to"),
        ({"bottleneck_ratio": 1.5}, "bottleneck_ratio must be a whole number or one over"),
        ({"bottleneck_ratio": 0}, "got 0"),
        ({"rounding": "up"}, "rounding must be one of half_even, divisible; got 'up'"),
        ({"se_ratio": 2}, "se_ratio must lie between 0 (none) and 1, got 2"),
        ({"stem": "big"}, "stem must be one of simple, resnet, cifar, tiered, deep; got 'big'"),
        ({"output_stride": 12}, "output_stride must be a power of two up to 64, or None; got 12"),
        ({"num_classes": -1}, "num_classes must be a whole number from 0 to 10000000; got -1"),
        ({"block": "basic", "se_ratio": 0.25}, "a basic block has no squeeze-excitation"),
        ({"bottleneck_from": "input"}, "AnyNetConfig"),
        ({"norm": "group"}, "norm 'group' needs widths that are multiples of 16, got 24"),
    ],
)
def test_impossible_regnet_is_refused_with_the_value(changes, message):
    with pytest.raises(ConfigError) as error:
        RegNetConfig(**REGNET | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stage", "network", "message"),
    [
        ({"group_width": 24}, {}, "a group width of 24 does not divide the bottleneck width 64"),
        ({"group_width": 24}, {}, "the nearest group width that divides it is 16"),
        ({"bottleneck_ratio": 3}, {}, "the bottleneck ratio 3 does not divide the width 64"),
        ({"depth": 0}, {}, "depth must be a whole number from 1 to 10000; got 0"),
        ({"stride": 3}, {}, "stride of a stage must be 1 or 2, got 3"),
        ({"width": 56}, {"norm": "evonorm_s0a"}, "multiples of 16, got 56"),
        ({}, {"block": "preact_bottleneck", "stem": "deep"}, "use 'simple'"),
        ({}, {"norm": "group", "head_width": 8}, "the head: norm 'group' needs"),
        (
            {"width": 9_999_991, "group_width": 2},
            {},
            "the nearest group width that divides it is 1",
        ),
        ({"attention_every": 1}, {"block": "preact_bottleneck"}, "has no attention; set"),
        (
            {"attention_every": 1, "width": 36, "group_width": 4},
            {},
            "multiple of 8 and at least 16",
        ),
        ({"attention_every": 1, "width": 8}, {}, "multiple of 8 and at least 16, got 8"),
        ({}, {"block": "normfree_bottleneck"}, "set shortcut='avg_pool' and norm='batch'"),
        ({}, {"output_stride": 3}, "power of two up to 64, or None; got 3"),
        ({}, {"head_feature": "no"}, "head_feature must be true or false, got 'no'"),
    ],
)
def test_impossible_anynet_is_refused_with_the_value(stage, network, message):
    with pytest.raises(ConfigError) as error:
        AnyNetConfig(stages=(StageConfig(**STAGE | stage),), **network)
    assert message in str(error.value)


def test_anynet_needs_a_stage():
    for stages in ((), None, [{"depth": 1, "width": 8}]):
        with pytest.raises(ConfigError, match="at least one StageConfig"):
            AnyNetConfig(stages=stages)


def test_numpy_numbers_become_python_numbers():
    stage = StageConfig(depth=np.int64(2), width=np.int32(64), bottleneck_ratio=np.float32(0.5))
    assert stage == StageConfig(depth=2, width=64, bottleneck_ratio=0.5)
    config = RegNetConfig(depth=np.int64(13), w0=np.int64(24), wa=np.float32(36), wm=np.float64(2))
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a config must be JSON text"),
        ('{"depth": 13, "w0": 24, "depth": 20}', "the key 'depth' is given twice"),
        ("9" * 5000, "a config must be JSON text"),
        ("[1]", "a config must be a JSON object, got list"),
        ("[" * 100_000, "a config must be JSON text"),
        ('{"kind": "vgg"}', "'regnet' or 'anynet'; got 'vgg'"),
        ('{"kind": "regnet", "width": 3}', "RegNetConfig has no field 'width'"),
        ('{"kind": "regnet", "w0": 8}', "RegNetConfig needs depth, wa, wm"),
        ('{"kind": "anynet"}', "an anynet needs a list of stages, got None"),
        ('{"kind": "anynet", "stages": [3]}', "StageConfig needs a mapping of fields, got 3"),
    ],
)
def test_bad_json_is_refused(text, message):
    with pytest.raises(ConfigError) as error:
        config_from_json(text)
    assert message in str(error.value)
