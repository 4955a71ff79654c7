"""Scale a network up or down, by fast scaling (dWr) or by one of the older rules.

A stage of depth d, width w and resolution r has flops proportional to d w^2 r^2, but activations
proportional to d w r^2. If mostly the width grows, as with dWr, the activations, and with them the
running time, therefore grow much less than the flops.

Source: Dollár, Singh and Girshick, Fast and Accurate Model Scaling (2021), tables 1 and 2. Numbers
are rounded as in pycls (`models/scaler.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig
from regnet.design.widths import QUANTUM, round_to_groups
from regnet.errors import ConfigError, check_number, check_whole, unknown

Strategy = Literal["d", "w", "r", "dw", "wr", "dr", "dwr", "dWr"]

STRATEGIES: Final[Mapping[Strategy, tuple[float, float, float]]] = {
    "d": (1, 0, 0),
    "w": (0, 1, 0),
    "r": (0, 0, 1),
    "dw": (1 / 2, 1 / 2, 0),
    "wr": (0, 1 / 2, 1 / 2),
    "dr": (1 / 2, 0, 1 / 2),
    "dwr": (1 / 3, 1 / 3, 1 / 3),
    "dWr": (0.1, 0.8, 0.1),
}
"""The shares e_d, e_w and e_r of depth, width and resolution in the growth of flops (`scale`)."""

_SIZE_QUANTUM: Final = 4
"""The side of the image is rounded to a multiple of this many pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A scaled network, and the image size that it is meant for."""

    config: AnyNetConfig
    image_size: int
    """Side of the images in pixels."""


def scale(
    config: AnyNetConfig | RegNetConfig,
    factor: float,
    *,
    strategy: Strategy | float = "dWr",
    image_size: int = 224,
) -> Scaled:
    """Scale a network to about `factor` times its flops.

    With a factor s, depths are multiplied by s^e_d, widths and group widths by s^(e_w / 2), and the
    side of the image by s^(e_r / 2), where e_d + e_w + e_r = 1. The stem and the head stay as they
    are (pycls).

    Args:
        config: the network to start from.
        factor: how many times the flops of `config` the scaled network has, from 0.001 to 1000; a
            factor less than 1 makes a smaller network.
        strategy: the name of one of `STRATEGIES`, or a number from 0 to 1: the share e_w of the
            width, while depth and resolution each have half of the rest. 0.8 is the same as "dWr".
        image_size: side of the images that `config` is meant for, in pixels.

    Returns:
        The scaled network, and the image size to use with it.

    Raises:
        ConfigError: the factor or the strategy is not allowed, or the scaled widths do not suit
            the network. Widths are not rounded for `bottleneck_from="input"`, nor for norms over
            groups of channels.
    """
    check_number("factor", factor, least=1e-3, most=1e3)
    image_size = check_whole("image_size", image_size, least=1)
    of_depth, of_width, of_size = _exponents(strategy)
    depth, width, size = factor**of_depth, factor ** (of_width / 2), factor ** (of_size / 2)
    anynet = config.anynet()
    return Scaled(
        config=replace(
            anynet, stages=tuple(_stage(stage, depth, width) for stage in anynet.stages)
        ),
        image_size=max(1, round(image_size * size / _SIZE_QUANTUM)) * _SIZE_QUANTUM,
    )


def _exponents(strategy: Strategy | float) -> tuple[float, float, float]:
    if isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise ConfigError(unknown("strategy", strategy, STRATEGIES))
        return STRATEGIES[strategy]
    if not 0 <= strategy <= 1:
        raise ConfigError(
            "a strategy that is a number, the share of the width, must lie from 0 to 1, "
            f"got {strategy!r}"
        )
    return (1 - strategy) / 2, strategy, (1 - strategy) / 2


def _stage(stage: StageConfig, depth: float, width: float) -> StageConfig:
    widths, groups = round_to_groups(
        max(1, round(stage.width * width / QUANTUM)) * QUANTUM,
        _group_width(stage.group_width * width),
        stage.bottleneck_ratio,
        "half_even",
    )
    return replace(
        stage,
        depth=max(1, round(stage.depth * depth)),
        width=int(widths),
        group_width=int(groups),
    )


def _group_width(exact: float) -> int:
    """Round a group width to 1, 2, 4 or a multiple of 8 (pycls)."""
    group = max(1, round(exact))
    if group <= 2:
        return group
    return 4 if group <= 5 else round(group / 8) * 8
