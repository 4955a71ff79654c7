"""The optimizer of a recipe: the weight decay and the learning rate of each parameter."""

import re
from typing import Any

import torch
from torch import nn

from regnet.nn.model import AnyNet
from regnet.training.recipe import Recipe


def build_optimizer(model: AnyNet, recipe: Recipe) -> torch.optim.SGD:
    """Build SGD with momentum 0.9 and one parameter group for each weight decay and depth.

    Each group has its factor of the learning rate (`Recipe.layer_decay`) in "lr_scale", which
    `set_learning_rate` applies.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    behind = layers_behind(model)
    for name, parameter in model.named_parameters():
        decay = recipe.weight_decay
        if parameter.ndim <= 1 and recipe.norm_weight_decay is not None:
            decay = recipe.norm_weight_decay
        scale = recipe.layer_decay ** behind[name]
        groups.setdefault((decay, scale), []).append(parameter)
    options: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]
    return torch.optim.SGD(
        options, lr=recipe.learning_rate(0), momentum=0.9, nesterov=recipe.nesterov
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the head to `rate`, and those of other layers in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def layers_behind(model: AnyNet) -> dict[str, int]:
    """Return how many blocks follow each parameter, by name: 0 in the head, most in the stem."""
    layers = {name: _layer(name) for name, _ in model.named_parameters()}
    order = list(dict.fromkeys(layers.values()))
    return {name: len(order) - 1 - order.index(layer) for name, layer in layers.items()}


def _layer(name: str) -> str:
    """Return the block of a parameter; the stem counts as one, and everything after the blocks."""
    block = re.match(r"s\d+\.b\d+", name)
    if block:
        return block[0]
    return "stem" if name.startswith("stem") else "head"
