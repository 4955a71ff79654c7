"""Tests of the arithmetic of recipes against pycls 5719de6 (core/optimizer.py, core/trainer.py)."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regnet.design.config import RegNetConfig
from regnet.errors import ConfigError
from regnet.nn.model import AnyNet
from regnet.training.average import Average
from regnet.training.optimizer import build_optimizer, layers_behind, set_learning_rate
from regnet.training.recipe import RECIPES, Recipe, find_recipe, recipe_from_json

AVERAGED = [name for name, recipe in RECIPES.items() if recipe.ema_alpha]
TINY = RegNetConfig(
    depth=4, w0=16, wa=16.0, wm=2.0, group_width=8, se_ratio=0.25, stem="cifar", num_classes=3
)


def pycls_rate(recipe: Recipe, epoch: float) -> float:
    """Compute `get_epoch_lr` of pycls (core/optimizer.py) by its formula; BASE_LR is the peak."""
    rate = 0.5 * (1.0 + math.cos(math.pi * epoch / recipe.epochs)) * recipe.peak_lr
    if epoch < recipe.warmup_epochs:
        alpha = epoch / recipe.warmup_epochs
        rate *= 0.1 * (1 - alpha) + alpha
    return rate


def test_the_recipe_of_the_paper_has_its_settings():
    recipe = RECIPES["dds"]
    # Configs of pycls: 0.8, 0.4 and 0.2 for batches of 1024, 512 and 256.
    assert recipe.peak_lr == pytest.approx(0.8)
    assert replace(recipe, batch_size=512).peak_lr == pytest.approx(0.4)
    assert replace(recipe, batch_size=256).peak_lr == pytest.approx(0.2)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.weight_decay) == (100, 5, 5e-5)
    assert recipe.norm_weight_decay is None  # norms decay like all other parameters
    assert (recipe.lighting, recipe.flip, recipe.crop, recipe.min_area) == (
        0.1, True, "resized", 0.08,
    )  # fmt: skip
    assert not any((recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.erasing))
    assert recipe.precise_bn == 8192
    assert RECIPES["dds-short"].peak_lr == 0.05
    assert RECIPES["dds-short-25"].peak_lr == 0.1


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.08),  # a tenth of 0.8
        (1, 0.8 * 0.5 * (1 + math.cos(math.pi / 100)) * 0.28),
        (5, 0.8 * 0.5 * (1 + math.cos(math.pi * 0.05))),
        (50, 0.4),
        (99, 0.8 * 0.5 * (1 + math.cos(math.pi * 0.99))),  # above 0 in the last epoch
    ],
)
def test_the_learning_rate_per_epoch_equals_that_of_pycls(epoch, expected):
    recipe = RECIPES["dds"]
    for step in (0, 7, 9):
        assert recipe.learning_rate(epoch, step, 10) == pytest.approx(expected)
    assert recipe.learning_rate(epoch) == pytest.approx(pycls_rate(recipe, epoch))


def test_the_learning_rate_per_step_uses_fractional_epochs():
    recipe = replace(RECIPES["dds"], lr_per="step")
    for epoch, step in ((0, 0), (3, 5), (4, 9), (5, 0), (70, 3), (99, 9)):
        expected = pycls_rate(recipe, epoch + step / 10)
        assert recipe.learning_rate(epoch, step, 10) == pytest.approx(expected)


def test_the_weight_of_the_average_equals_that_of_its_sources():
    # pycls's CIFAR sweeps: alpha 2.5e-4, batch 1024, 50 epochs and period 32 give 0.164.
    sweeps = Recipe(epochs=50, batch_size=1024, ema_alpha=2.5e-4, warmup_epochs=5)
    assert sweeps.ema_steps(50_000 // 1024) == 32
    assert sweeps.ema_weight(10, 50_000 // 1024) == pytest.approx(0.164, abs=5e-4)
    assert sweeps.ema_weight(4, 50_000 // 1024) == 1.0  # during the warm-up, the average is a copy
    # torchvision's references: decay 0.99998, 8 x 128 images, 32 steps, 600 epochs.
    weight = RECIPES["tv2"].ema_weight(10, 1_281_167 // 1024)
    assert weight == pytest.approx((1 - 0.99998) * 1024 * 32 / 600)


@given(
    images=st.integers(32, 2_000_000), epochs=st.integers(10, 600), recipe=st.sampled_from(AVERAGED)
)
def test_an_average_follows_the_training_even_with_few_images(images, epochs, recipe):
    recipe = find_recipe(recipe, epochs=epochs)
    steps = max(1, images // recipe.batch_size)
    every, left = recipe.ema_steps(steps), 1.0
    for epoch in range(recipe.epochs):
        updates = len(range(0, steps, every))
        left *= (1 - recipe.ema_weight(epoch, steps)) ** updates if epoch else 1.0
    assert left < 0.01, "the initial weights no longer contribute to the average"


def test_the_average_includes_buffers():
    model = AnyNet(TINY)
    average = Average(model)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    average.update(model, 0.25)
    for name, tensor in average.tensors.items():
        step = 0.25 if tensor.is_floating_point() else 1
        torch.testing.assert_close(tensor, before[name] + step)
    mine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.swapped_in(model):
        inside = model.state_dict()["stem.conv.weight"].clone()
    torch.testing.assert_close(inside, average.tensors["stem.conv.weight"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, mine[name])


def test_weight_decay_depends_on_the_kind_of_parameter():
    model = AnyNet(TINY)
    for recipe, expected in (
        (RECIPES["dds"], {5e-5: 2}),  # pycls decays norms and biases too
        (RECIPES["cifar"], {5e-4: 2, 0.0: 1}),
    ):
        optimizer = build_optimizer(model, recipe)
        found: dict[float, set[int]] = {}
        for group in optimizer.param_groups:
            dims = {min(p.ndim, 2) for p in group["params"]}
            found.setdefault(group["weight_decay"], set()).update(dims)
            assert group["momentum"] == 0.9
        assert {decay: max(dims) for decay, dims in found.items()} == expected
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(
            list(model.parameters())
        )


def test_deeper_layers_learn_faster():
    model = AnyNet(TINY)
    assert layers_behind(model)["head.fc.weight"] == 0
    assert layers_behind(model)["stem.conv.weight"] == 5  # four blocks and the head
    optimizer = build_optimizer(model, replace(RECIPES["cifar"], layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.fc.weight)] == 1.0
    assert rates[id(model.stem.conv.weight)] == 0.5**5
    assert rates[id(model.s1.b1.conv1.conv.weight)] == 0.5**4


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    recipe = RECIPES[name]
    assert recipe_from_json(json.dumps(recipe.to_dict())) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"lr": -1}, "lr must be positive, got -1"),
        ({"batch_size": 128.5}, "batch_size must be a whole number, got 128.5"),
        ({"flip": "no"}, "flip must be true or false, got 'no'"),
        ({"clip_norm": 0}, "clip_norm must be positive, got 0"),
        ({"lr": "0,1"}, "lr must be a number, got '0,1'"),
        ({"label_smoothing": None}, "label_smoothing must be a number, got None"),
        ({"image_size": 64.5}, "image_size must be a whole number, got 64.5"),
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
        ({"warmup_epochs": 100}, "warmup_epochs must be below epochs, got 100 of 100"),
        ({"micro_batch_size": 100}, "micro_batch_size must divide batch_size, got 100 and 1024"),
        ({"crop": "centre"}, "crop must be one of pad, resized, got 'centre'"),
        ({"epoch": 3}, "no field of a recipe 'epoch'; did you mean 'epochs'"),
    ],
)
def test_bad_recipes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        find_recipe("dds", **change)
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(change)


def test_unknown_recipes_and_bad_json_are_refused():
    with pytest.raises(ConfigError, match="no recipe 'ddz'; did you mean 'dds'"):
        find_recipe("ddz")
    with pytest.raises(ConfigError, match="must be JSON"):
        recipe_from_json("{")
    with pytest.raises(ConfigError, match="must be a JSON object, got list"):
        recipe_from_json("[]")
    with pytest.raises(ConfigError, match="epochs must be a whole number, got 'ten'"):
        recipe_from_json('{"epochs": "ten"}')


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 1000])
def test_omitted_settings_follow_from_the_epochs(name, epochs):
    """Any recipe can be shortened to one epoch, although its warm-up is longer than that."""
    base, found = RECIPES[name], find_recipe(name, epochs=epochs)
    assert found.epochs == epochs
    for part in ("warmup_epochs", "clean_epochs"):
        assert 0 <= getattr(found, part) <= min(getattr(base, part), epochs - 1)
    assert found.warmup_epochs + found.clean_epochs <= epochs
    if epochs > base.epochs:
        assert found.warmup_epochs == base.warmup_epochs
    given = find_recipe(name, epochs=10, warmup_epochs=4)
    assert given.warmup_epochs == 4


@pytest.mark.parametrize("batch", [1, 8, 96, 100, 128, 1000, 1024])
def test_the_images_of_a_pass_follow_from_the_batch_size(batch):
    found = find_recipe("tv2", batch_size=batch)
    assert found.micro_batch_size is not None
    assert batch % found.micro_batch_size == 0
    assert found.micro_batch_size <= 128
    assert find_recipe("tv2", batch_size=64, micro_batch_size=16).micro_batch_size == 16
    assert find_recipe("dds", batch_size=64).micro_batch_size is None
