"""Tests of how other libraries use our networks, with stand-ins in place of the libraries.

Each stand-in makes the same calls in the same order as the library. `scripts/peer_suites.py` runs
the libraries' own tests if they are installed.
"""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import regnet
from regnet.nn.model import AnyNet


@pytest.fixture(scope="module")
def network() -> AnyNet:
    torch.manual_seed(0)
    return regnet.create("regnety_002").eval()


IMAGES = torch.randn(2, 3, 96, 64)


class LayerGetter(nn.ModuleDict):
    """Divide a backbone as torchvision's detection networks do (`BackboneWithFPN`).

    The children run in the order in which they are registered, up to the last one requested.
    """

    def __init__(self, model, return_layers):
        there = [name for name, _ in model.named_children()]
        assert set(return_layers) <= set(there)
        last = max(there.index(name) for name in return_layers)
        super().__init__(OrderedDict((n, getattr(model, n)) for n in there[: last + 1]))
        self.return_layers = dict(return_layers)

    def forward(self, x):
        out = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                out[self.return_layers[name]] = x
        return out


@pytest.mark.parametrize("name", ["regnetx_002", "regnety_002", "regnetz_005", "regnetv_040"])
def test_torchvisions_detection_networks_can_use_ours(name):
    model = regnet.create(name).eval()
    layers = {f"s{number}": str(number - 1) for number in (1, 2, 3, 4)}
    found = LayerGetter(model, layers)(IMAGES)
    wanted = model.forward_intermediates(IMAGES, [1, 2, 3], intermediates_only=True)
    for number, expected in enumerate(wanted):
        torch.testing.assert_close(found[str(number)], expected, atol=0, rtol=0)
    widths = model.feature_info.channels([1, 2, 3])
    assert [found[str(number)].shape[1] for number in range(3)] == widths


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_encoder_of_segmentation_models_can_use_ours(depth, channels):
    """Its universal encoder requests a pyramid of features, and puts the images in front of it."""
    with torch.device("meta"):
        probe = regnet.create("regnety_002", features_only=True)
    assert list(probe.feature_info.reduction()) == [2, 4, 8, 16, 32]
    model = regnet.create(
        "regnety_002", in_chans=channels, features_only=True, pretrained=False,
        out_indices=tuple(range(depth)),
    ).eval()  # fmt: skip
    images = torch.randn(1, channels, 64, 64)
    features = [images, *model(images)]
    assert [f.shape[1] for f in features] == [channels, *model.feature_info.channels()]
    assert [64 // f.shape[2] for f in features] == [1, 2, 4, 8, 16, 32][: depth + 1]
    assert getattr(model, "output_fmt", None) != "NHWC"


def test_the_wrapper_of_transformers_can_use_ours(network):
    """`TimmWrapperModel` needs a network without classifier, hidden states and pooled features."""
    model = regnet.create("regnety_002", pretrained=False, num_classes=0).eval()
    model.load_state_dict(network.state_dict(), strict=False)
    last, hidden = model.forward_intermediates(IMAGES)
    assert len(hidden) == 5
    torch.testing.assert_close(last, model.forward_features(IMAGES))
    pooled = model.forward_head(last)
    assert pooled.shape == (2, model.num_features)
    model.set_grad_checkpointing(enable=True)
    model.set_grad_checkpointing(enable=False)
    classifier = regnet.create("regnety_002", pretrained=False, num_classes=7)
    assert classifier(IMAGES).shape == (2, 7)


def test_the_backbone_of_transformers_can_use_ours():
    """`TimmBackbone` can request other layers, depending on what it finds in `feature_info`."""
    model = regnet.create(
        "regnety_002", features_only=True, in_chans=3, out_indices=[1, 3], output_stride=None
    ).eval()
    before = {row["module"]: str(row["index"]) for row in model.feature_info.get_dicts()}
    assert before == model.return_layers == {"s1": "1", "s3": "3"}
    some = model(IMAGES)
    model.return_layers = {row["module"]: str(i) for i, row in enumerate(model.feature_info.info)}
    every = model(IMAGES)
    assert [m.shape[1] for m in every] == model.feature_info.channels([0, 1, 2, 3])
    model.return_layers = before
    for maps in (some, model(IMAGES)):
        torch.testing.assert_close(maps, [every[1], every[3]], atol=0, rtol=0)


def test_timms_own_wrappers_read_feature_info(network):
    """The wrappers rebuild `FeatureInfo` from its rows, and add what is missing in them."""
    previous = 1
    for index, row in enumerate(network.feature_info):
        assert isinstance(row, dict)
        assert row["num_chs"] > 0
        assert row["reduction"] >= previous
        previous = row["reduction"]
        assert dict(network.named_modules())[row["module"]] is not None
        assert row.setdefault("index", index) == index
    assert isinstance(network.feature_info, tuple)
