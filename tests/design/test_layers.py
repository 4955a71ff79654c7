"""Tests of the walk over layers, and of the sums and floors that are computed from it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from regnet.bench.floors import Ceilings, floor
from regnet.design.blocks import HALO_WINDOW
from regnet.design.layers import network_layers
from regnet.design.variants import VARIANTS
from regnet.nn.layers import HaloAttention
from regnet.nn.model import AnyNet
from tests.strategies import anynets

EVEN = Ceilings(bytes_per_second=1.0, flops_per_second=1e30)
"""Ceilings of a device whose computations take no time, so that only bytes count."""


@settings(max_examples=30)
@given(anynets())
def test_each_convolution_is_a_layer_of_its_size(config):
    """Widths, areas and weights of the layers equal those of the modules that run, in any order."""
    with torch.device("meta"):
        model = AnyNet(config.anynet())
        seen = []

        def note(module, inputs, output):
            maps = inputs[0].shape[2:]
            seen.append((module.weight.numel(), inputs[0].shape[1], *maps, *output.shape[2:]))

        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(note)
        model.forward_features(torch.empty(1, config.in_chans, 64, 64))
    walked = [
        (layer.fan_in * layer.width, layer.width_in)
        for layer in network_layers(config.anynet(), 64)
        if layer.kind in ("conv", "squeeze", "excite") and layer.times
    ]
    if config.num_classes:
        walked.pop()  # the classifier
    assert sorted(walked) == sorted((weights, width) for weights, width, *_ in seen)


def test_halo_attention_has_a_floor_of_its_own():
    """Its products read queries, keys and values once, where a 3x3 convolution reads the map."""
    config = VARIANTS["haloregnetz_b"].config.anynet()
    plain = replace(
        config, stages=tuple(replace(stage, attention_every=None) for stage in config.stages)
    )
    found, other = (
        floor(network_layers(c, 224), 1, EVEN, element_bytes=4) for c in (config, plain)
    )
    assert found.fused != other.fused
    with torch.device("meta"):
        modules = [m for m in AnyNet(config).modules() if isinstance(m, HaloAttention)]
    layers = [layer for layer in network_layers(config, 224) if layer.kind == "attention"]
    assert len(layers) == len(modules) > 0
    for layer, module in zip(layers, modules, strict=True):
        queries, both = module.q.out_channels, module.kv.out_channels
        assert layer.width_in == queries + both
        assert layer.products == layer.area_in * HALO_WINDOW**2 * both
        assert layer.flops == layer.activations == 0, (
            "the paper does not count products of activations"
        )
        positions = module.pos_embed.height_rel.numel() + module.pos_embed.width_rel.numel()
        assert layer.params == positions


def test_a_floor_equals_one_worked_out_by_hand():
    """In a RegNetX's first block, count each map and weight, and what a fused shortcut adds."""
    config = VARIANTS["regnetx_002"].config.anynet()
    layers = [layer for layer in network_layers(config, 224) if layer.kind == "conv"]
    stem, first, grouped, last, projection, *_ = layers
    assert (stem.width_in, stem.width, stem.area_in, stem.area) == (3, 32, 224**2, 112**2)
    assert (first.fan_in, first.width, first.area) == (32, 24, 112**2)
    assert (grouped.fan_in, grouped.area_in, grouped.area) == (9 * 8, 112**2, 56**2)
    assert last.added == 24 * 56**2
    assert (projection.area_in, projection.area) == (56**2, 56**2), (
        "its stride skips rows and columns"
    )
    read_and_written = 24 * 112**2 + 24 * 56**2
    one = floor([grouped], 2, EVEN, element_bytes=4)
    assert one.fused == pytest.approx(4 * (2 * read_and_written + 9 * 8 * 24))
