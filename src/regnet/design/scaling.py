"""Larger and smaller networks from one: fast scaling, and the other rules beside it.

Source: Dollár, Singh and Girshick, Fast and Accurate Model Scaling (2021), tables 1 and 2; rounding
as in pycls (`models/scaler.py`). Of a stage of depth d, width w and resolution r, flops go with
d w^2 r^2 and activations with d w r^2: scaling mostly the width, as dWr does, leaves activations,
and with them the time, small.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from regnet.design.config import AnyNetConfig, RegNetConfig, StageConfig
from regnet.design.widths import QUANTUM, round_to_groups
from regnet.errors import ConfigError, unknown

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
"""Which part of the flops' growth, in logarithms, comes from depth, width and resolution."""

_SIZE_QUANTUM: Final = 4
"""Sides of images are multiples of this many pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A scaled network, and the images that it is for."""

    config: AnyNetConfig
    image_size: int
    """Side of the image in pixels."""


def scale(
    config: AnyNetConfig | RegNetConfig,
    factor: float,
    *,
    strategy: Strategy | float = "dWr",
    image_size: int = 224,
) -> Scaled:
    """A network with about `factor` times the flops.

    Depths grow by s^e_d, widths and group widths by s^(e_w / 2), the image by s^(e_r / 2), and
    e_d + e_w + e_r = 1. Stem and head stay as they are (pycls).

    Args:
        config: the network to start from.
        factor: of its flops, s; below 1 for a smaller one.
        strategy: one of `STRATEGIES`, or the part alpha of the width, the rest going in equal parts
            to depth and resolution: 0.8 is dWr.
        image_size: side of the image that the network is for, in pixels.

    Raises:
        ConfigError: the factor or the strategy cannot be used; or the scaled widths do not suit
            bottlenecks taken from the input, or a norm of groups, which no rule here rounds for.
    """
    if not 1e-3 <= factor <= 1e3:
        raise ConfigError(f"factor must lie between 0.001 and 1000, got {factor!r}")
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
        raise ConfigError(f"the part of the width must lie from 0 to 1, got {strategy!r}")
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
    """1 and 2 stay, up to 5 becomes 4, more a multiple of 8."""
    group = max(1, round(exact))
    if group <= 2:
        return group
    return 4 if group <= 5 else round(group / 8) * 8
