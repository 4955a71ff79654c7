"""Tests of the card of a model, and of its conversion to timm's format."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import regnet
from regnet.data.preprocess import Preprocess
from regnet.design.variants import VARIANTS
from regnet.errors import ConfigError
from regnet.nn.model import AnyNet
from regnet.weights.card import Card, Metric
from regnet.weights.catalog import checkpoints

texts = st.text(min_size=1, max_size=8)
looks = st.builds(
    Preprocess,
    size=st.tuples(st.integers(1, 512), st.integers(1, 512)),
    crop_pct=st.floats(0.01, 1),
    resize=st.sampled_from(["short_side", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
)
cards = st.builds(
    Card,
    architecture=st.sampled_from(list(VARIANTS)),
    preprocess=looks,
    labels=st.lists(texts, max_size=3).map(tuple),
    license=st.none() | texts,
    metrics=st.lists(
        st.builds(Metric, dataset=texts, top1=st.floats(0, 100), image_size=st.none() | st.just(8)),
        max_size=2,
    ).map(tuple),
    tag=st.none() | texts,
    origin=st.none() | texts,
)


@given(cards)
def test_a_card_survives_conversion_to_timm_and_back(card):
    config = VARIANTS[card.architecture].config
    assert Card.from_timm(card.to_timm(config)) == card


@pytest.mark.parametrize("name", ["regnety_016", "regnetz_d8", "regnetv_040", "nf_regnet_b1"])
def test_the_entries_of_pretrained_cfg_match_the_network(name):
    """The names of layers exist in the module, and the sizes are those of its feature maps."""
    model = regnet.create(name, device="meta", num_classes=7, in_chans=1)
    cfg = model.pretrained_cfg
    assert cfg == model.default_cfg
    assert cfg["num_classes"] == 7
    assert model.get_submodule(cfg["first_conv"]).in_channels == cfg["input_size"][0] == 1
    assert model.get_submodule(cfg["classifier"]).out_features == 7
    reduction = model.feature_info[-1]["reduction"]
    assert cfg["min_input_size"] == (1, reduction, reduction)
    assert cfg["pool_size"] == tuple(-(-side // reduction) for side in cfg["input_size"][1:])


def test_pretrained_cfg_is_a_view_of_the_card():
    model = regnet.create("regnety_cifar", pretrained=True)
    with pytest.raises(TypeError):
        model.pretrained_cfg["mean"] = (0, 0, 0)
    with pytest.raises(AttributeError):
        model.pretrained_cfg = {}
    model.card = replace(model.card, license="mit")
    assert model.pretrained_cfg["license"] == "mit"
    assert AnyNet(model.config).pretrained_cfg == {}
    backbone = regnet.create("regnety_cifar", pretrained=True, features_only=True)
    assert backbone.card.tag == "cifar10"
    assert backbone.pretrained_cfg["tag"] == "cifar10"


def test_every_checkpoint_has_a_card():
    for row in checkpoints().values():
        card = row.card
        assert card.name == row.id
        assert Card.from_timm(card.to_timm(VARIANTS[row.variant].config)) == card


def test_wrong_values_are_refused():
    with pytest.raises(ConfigError, match="crop_pct must lie in"):
        Card.from_timm({"crop_pct": 7})
    with pytest.raises(ConfigError, match=r"metrics: has no field 'top_1'"):
        Card.from_timm({"metrics": [{"dataset": "x", "top_1": 3}]})
