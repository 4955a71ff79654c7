import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regnet.design.blocks import halo_key_width
from regnet.design.complexity import complexity, population_complexity
from regnet.design.config import ArchitectureConfig, RegNetConfig
from regnet.design.population import regnet_population
from regnet.design.variants import VARIANTS
from regnet.engines.base import Target, half_obstacle
from regnet.errors import ConfigError
from regnet.nn.count import count, count_flops_torch
from regnet.nn.model import AnyNet
from tests import golden
from tests.marks import one_per_family
from tests.strategies import anynets, regnet_parameters


def reference(name):
    return golden.load("variants.json").get(name) or golden.load("baselines.json")[name]


MEASURED = [*golden.load("variants.json"), *golden.load("baselines.json")]


def empty(config):
    """Return a module with uninitialized weights: a counter runs it, but needs no values.

    The weights are in half precision if the processor supports it; emulation takes 15 times as
    long.
    """
    fast = half_obstacle(Target(device=torch.device("cpu"), precision="bf16")) is None
    with torch.device("meta"):
        model = AnyNet(config).to(torch.bfloat16 if fast else torch.float32)
    return model.to_empty(device="cpu")


@pytest.mark.parametrize("name", MEASURED)
def test_complexity_equals_published_figures(name):
    row = reference(name)
    size = row.get("complexity_input_size", row.get("input_size"))[1]
    found = complexity(VARIANTS[name].config, size)
    expected = (row["flops"], row["params"], row["activations"])
    assert (found.flops, found.params, found.activations) == expected


@pytest.mark.parametrize("name", golden.load("variants.json"))
def test_complexity_at_other_image_sizes_equals_published_figures(name):
    for size, row in reference(name)["complexity_by_input_size"].items():
        found = complexity(VARIANTS[name].config, int(size))
        assert (found.flops, found.activations) == (row["flops"], row["activations"])


@pytest.mark.parametrize("name", one_per_family(MEASURED))
def test_the_module_has_as_many_parameters_as_counted(name):
    with torch.device("meta"):
        model = AnyNet(VARIANTS[name].config)
    assert sum(p.numel() for p in model.parameters()) == reference(name)["params"]


@pytest.mark.slow
@settings(max_examples=15)
@given(anynets(), st.integers(20, 70), st.integers(20, 70))
def test_arithmetic_equals_what_two_counters_find(config, height, width):
    expected = complexity(config, (height, width))
    model = empty(config)
    counted = count(model, (height, width))
    assert counted.params == expected.params
    assert counted.flops == expected.flops - bias_additions(config, (height, width))
    assert counted.activations == expected.activations - pooled(config, height, width)
    assert count_flops_torch(model, (height, width)) == counted.flops


def bias_additions(config, size):
    """Count the additions of biases, which only the paper's convention includes."""
    if config.block == "normfree_bottleneck":
        return complexity(config, size).activations  # every layer has a bias
    squeeze = sum(b.se_width + b.bottleneck_width for b in config.blocks() if b.se_width)
    return squeeze + config.num_classes


def pooled(config, height, width):
    """Count the outputs of the ResNet stem's max pool, which the paper's code includes."""
    if config.stem != "resnet":
        return 0
    return config.stem_width * -(-height // 4) * -(-width // 4)


@pytest.mark.parametrize("name", one_per_family(MEASURED, rest=pytest.mark.long))
def test_torchs_counter_agrees_on_published_networks(name):
    config = VARIANTS[name].config
    with torch.device("meta"):
        model = AnyNet(config)
    size = 224 if name.startswith("halo") else 96
    expected = complexity(config, size).flops - bias_additions(config, size)
    assert count_flops_torch(model, size) == expected + attention_products(config)[0]


def attention_products(config):
    """Multiply-adds and outputs of the products of activations in halo attention, at 224 x 224.

    The paper's convention counts convolutions and the classifier only. The other products are those
    of queries with keys, with the positions of rows and of columns, and of weights with values.
    There are 8 heads, and 121 pixels in a window.
    """
    flops = outputs = 0
    reduction = config.stem_stride
    for block in config.blocks():
        area = (224 // reduction) ** 2
        if block.attention:
            keys = halo_key_width(block.bottleneck_width)
            flops += area * (8 * keys * (121 + 11 + 11) + 121 * block.bottleneck_width)
            outputs += area * (8 * (121 + 11 + 11) + block.bottleneck_width)
        reduction *= block.stride
    return flops, outputs


COUNTED_BY_FVCORE = [name for name, row in golden.load("variants.json").items() if "fvcore" in row]


def recorded_by_fvcore(name):
    """Return the flops and activations that fvcore counted, and the size of the image."""
    recorded = reference(name)["fvcore"]
    by_operator = recorded["flops_by_operator"]
    flops = by_operator["conv"] + by_operator["linear"]
    return flops, recorded["activations"], tuple(recorded["input_size"][1:])


@pytest.mark.parametrize("name", COUNTED_BY_FVCORE)
def test_arithmetic_equals_what_fvcore_recorded(name):
    config = VARIANTS[name].config
    flops, activations, size = recorded_by_fvcore(name)
    ours = complexity(config, size)
    assert flops == ours.flops - bias_additions(config, size)
    if not name.startswith("halo"):  # timm multiplies positions in another order
        assert activations == ours.activations


# fvcore must run a network to count it, which takes minutes for all networks.
@pytest.mark.slow
@pytest.mark.parametrize("name", one_per_family(COUNTED_BY_FVCORE, rest=pytest.mark.long))
def test_fvcore_still_counts_what_was_recorded(name):
    config = VARIANTS[name].config
    flops, activations, size = recorded_by_fvcore(name)
    counted = count(empty(config), size)
    assert counted.flops == flops
    assert (
        counted.activations
        == complexity(config, size).activations + (attention_products(config)[1])
    )
    if not name.startswith("halo"):
        assert counted.activations == activations


@settings(max_examples=25)
@given(
    st.lists(regnet_parameters(), min_size=1, max_size=8),
    st.sampled_from(("half_even", "divisible")),
    st.sampled_from(
        (
            {},
            {"se_ratio": 0.25},
            {"se_ratio": 0.25, "se_from": "bottleneck"},
            {"se_ratio": 0.25, "block": "linear_bottleneck", "shortcut": "none", "head_width": 64},
            {"block": "preact_bottleneck", "se_ratio": 0.25},
            {"stem": "resnet", "stem_width": 64, "num_classes": 0},
            {"stem": "cifar", "num_classes": 10},
            {"block": "basic"},
            {"block": "vanilla"},
        )
    ),
)
def test_population_equals_one_network_after_another(rows, rounding, shared):
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    population = regnet_population(**arrays, rounding=rounding)
    counted = population_complexity(population, ArchitectureConfig(**shared), (97, 64))
    for i, row in enumerate(rows):
        config = RegNetConfig(**row, rounding=rounding, **shared)
        stages = config.stages
        present = population.depths[i] > 0
        assert population.num_stages[i] == len(stages)
        assert population.depths[i][present].tolist() == [s.depth for s in stages]
        assert population.widths[i][present].tolist() == [s.width for s in stages]
        assert population.group_widths[i][present].tolist() == [s.group_width for s in stages]
        one = complexity(config, (97, 64))
        assert counted.flops[i] == one.flops
        assert counted.params[i] == one.params
        assert counted.activations[i] == one.activations


def test_a_parameter_of_a_population_may_be_a_single_number():
    population = regnet_population(w0=24, wa=36.44, wm=2.49, depth=[12, 13], group_width=8)
    config = VARIANTS["regnetx_002"].config
    assert population_complexity(population, config).flops[1] == complexity(config).flops


def test_a_population_may_be_empty():
    population = regnet_population(w0=[], wa=[], wm=[], depth=[])
    assert len(population) == 0
    assert population_complexity(population, ArchitectureConfig()).flops.shape == (0,)


def test_a_population_of_extremes_is_counted_quickly_and_correctly():
    rows = {"w0": [8, 2000, 24], "wa": [2000.0, 1.0, 36.44], "wm": [1.05, 10.0, 1 + 1e-9]}
    population = regnet_population(**rows, depth=[200, 200, 13])
    for i, depth in enumerate((200, 200, 13)):
        config = RegNetConfig(depth=depth, **{name: values[i] for name, values in rows.items()})
        present = population.depths[i] > 0
        assert tuple(population.widths[i][present]) == config.widths
        assert tuple(population.depths[i][present]) == config.depths


def test_population_must_suit_the_norm():
    population = regnet_population(w0=24, wa=36.44, wm=2.49, depth=13, group_width=8)
    with pytest.raises(ConfigError, match="multiples of 16, but some widths of the population are"):
        population_complexity(population, ArchitectureConfig(norm="group"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w0": [24, 20]}, "w0 must be positive multiples of 8, and up to 10000000, got 20"),
        ({"w0": [80_000_000]}, "w0 must be .* up to 10000000, got 80000000"),
        ({"wm": [2.0, 1.0]}, "wm must be greater than 1, and up to 10000000, got 1.0"),
        ({"depth": [0, 3]}, "depth must be whole numbers from 1 to 10000, got 0"),
        ({"bottleneck_ratio": [1.0, 1.5]}, "bottleneck_ratio must be whole numbers or .* got 1.5"),
        ({"rounding": "up"}, "rounding must be one of half_even, divisible; got 'up'"),
        ({"wa": [-1.0]}, "wa must be from 0 to 10000000, got -1.0"),
        ({"depth": [13.5]}, "depth must be whole numbers from 1 to 10000, got 13.5"),
        ({"group_width": [np.inf]}, "group_width must be whole numbers from 1 to .* got inf"),
    ],
)
def test_population_refuses_what_a_config_refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        regnet_population(**{"w0": 24, "wa": 36.0, "wm": 2.5, "depth": 13} | change)


def test_population_refuses_what_it_cannot_count():
    population = regnet_population(w0=24, wa=36.44, wm=2.49, depth=13)
    with pytest.raises(ConfigError, match="one at a time"):
        population_complexity(population, VARIANTS["regnetz_b16"].config)


def test_image_must_have_pixels():
    config = VARIANTS["regnetx_002"].config
    assert complexity(config, np.int64(224)) == complexity(config, (224, 224))
    assert complexity(config, [224, 224]) == complexity(config, 224)
    for size in (0, -1, 224.5, True, "224", (224, 224, 3), None, (8, 0), np.ones(2)):
        with pytest.raises(ConfigError, match="image_size must be a"):
            complexity(config, size)
    with pytest.raises(ConfigError, match=r"complexity takes a config, such as model.config"):
        complexity(AnyNet(config), 32)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64])
def test_small_integers_do_not_overflow(kind):
    """NumPy would compute the counts in the type of the side of the image."""
    config = VARIANTS["regnety_320"].config
    found = complexity(config, kind(127))
    assert found == complexity(config, 127)
    assert all(type(value) is int for value in (found.flops, found.params, found.activations))
