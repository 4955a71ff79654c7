"""Tests that the EfficientNet baseline is the paper's."""

import pytest
import torch

from regnet.design.complexity import total
from regnet.nn.efficientnet import EFFICIENTNETS, EfficientNet

# pycls 5719de64, dev/model_complexity.json: image size, flops, params, activations
PYCLS = {
    "efficientnet_b0": (224, 385_825_092, 5_288_548, 6_748_036),
    "efficientnet_b1": (240, 686_817_992, 7_794_184, 10_884_328),
    "efficientnet_b2": (260, 993_578_282, 9_109_994, 13_832_834),
    "efficientnet_b3": (300, 1_827_162_472, 12_233_232, 23_831_296),
    "efficientnet_b4": (380, 4_393_801_064, 19_341_616, 49_489_032),
    "efficientnet_b5": (456, 10_266_426_072, 30_389_784, 98_857_400),
}


@pytest.mark.parametrize("name", PYCLS)
def test_complexity_equals_that_of_pycls(name):
    size, flops, params, activations = PYCLS[name]
    assert EFFICIENTNETS[name].image_size == size
    found = total(EFFICIENTNETS[name].layers(size))
    assert (found.flops, found.params, found.activations) == (flops, params, activations)


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_the_module_has_the_counted_parameters(name):
    with torch.device("meta"):
        model = EfficientNet(EFFICIENTNETS[name])
        logits = model(torch.empty(2, 3, 64, 64))
    assert logits.shape == (2, 1000)
    counted = total(EFFICIENTNETS[name].layers(64))
    assert sum(p.numel() for p in model.parameters()) == counted.params


def test_names_equal_those_of_timm():
    with torch.device("meta"):
        names = EfficientNet(EFFICIENTNETS["efficientnet_b0"]).state_dict()
    for name in (
        "conv_stem.weight", "bn1.running_mean", "blocks.0.0.conv_dw.weight",
        "blocks.0.0.conv_pw.weight", "blocks.1.0.conv_pwl.weight", "blocks.1.0.bn3.bias",
        "blocks.6.0.se.conv_reduce.bias", "conv_head.weight", "classifier.weight",
    ):  # fmt: skip
        assert name in names
