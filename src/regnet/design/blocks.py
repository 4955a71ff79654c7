"""From stages to blocks: every width, stride and dilation resolved, and checked to fit.

The model and the complexity arithmetic both build from this one list.
"""

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regnet.design.widths import bottleneck_widths
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.design.config import AnyNetConfig, ArchitectureConfig, StageConfig

NORM_GROUP_WIDTH = 16
"""Channels per group of the group norm and of EvoNorm (timm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """One block; widths in channels."""

    stage: int
    """Number of the stage, from 1."""
    index: int
    """Number of the block inside its stage, from 1."""
    width_in: int
    width: int
    bottleneck_width: int
    group_width: int
    stride: int
    dilation: int
    se_width: int
    """Width between the two layers of squeeze-excitation; 0 without."""
    shortcut: Literal["identity", "projection", "none"]

    @property
    def groups(self) -> int:
        """Number of groups of the 3x3 convolution."""
        return self.bottleneck_width // self.group_width


def expand(config: "AnyNetConfig") -> tuple[BlockConfig, ...]:
    """All blocks of the network in order.

    Raises:
        ConfigError: a width is not divisible as the block or the norm needs it.
    """
    _check_norm(config, *config.stem_widths, where="the stem")
    _check_norm(config, config.head_width, where="the head")
    blocks = []
    width_in, reduction, dilation = config.stem_width, config.stem_stride, 1
    for number, stage in enumerate(config.stages, 1):
        stride, first_dilation = stage.stride, dilation
        if config.output_stride is not None and reduction * stride > config.output_stride:
            # The stride becomes dilation, of which the first block has half at most (timm).
            stride, dilation = 1, dilation * stage.stride
            first_dilation = 1 if dilation <= 2 else 2
        reduction *= stride
        for index in range(1, stage.depth + 1):
            first = index == 1
            inner, group_width = _bottleneck(config, number, stage, width_in)
            # The stride counts as configured: a dilated network keeps the parameters of the plain
            # one.
            changes_shape = width_in != stage.width or (first and stage.stride != 1)
            blocks.append(
                BlockConfig(
                    stage=number,
                    index=index,
                    width_in=width_in,
                    width=stage.width,
                    bottleneck_width=inner,
                    group_width=group_width,
                    stride=stride if first else 1,
                    dilation=first_dilation if first else dilation,
                    se_width=int(se_width(config, width_in, inner)),
                    shortcut=_shortcut(config, changes_shape=changes_shape),
                )
            )
            width_in = stage.width
    return tuple(blocks)


def _bottleneck(
    config: "AnyNetConfig", number: int, stage: "StageConfig", width_in: int
) -> tuple[int, int]:
    if config.block in ("basic", "vanilla"):
        _check_norm(config, stage.width, where=f"stage {number}")
        return stage.width, stage.width
    base = stage.width if config.bottleneck_from == "output" else width_in
    ratio = stage.bottleneck_ratio
    if ratio > 1 and base % round(ratio):
        raise ConfigError(
            f"stage {number}: the bottleneck ratio {ratio:g} does not divide the width {base}; "
            f"use a multiple of {ratio:g}"
        )
    inner = int(bottleneck_widths(base, ratio))
    group_width = min(stage.group_width, inner)
    if inner % group_width:
        nearest = next(
            divisor
            for distance in count(1)
            for divisor in (stage.group_width - distance, stage.group_width + distance)
            if divisor > 0 and inner % divisor == 0
        )
        raise ConfigError(
            f"stage {number}: a group width of {stage.group_width} does not divide the bottleneck "
            f"width {inner} (width {base}, bottleneck ratio {ratio:g}); "
            f"the nearest that does is {nearest}"
        )
    _check_norm(config, inner, stage.width, where=f"stage {number}")
    return inner, group_width


def _check_norm(config: "AnyNetConfig", *widths: int, where: str) -> None:
    if config.norm == "batch":
        return
    for width in widths:
        if width % NORM_GROUP_WIDTH:
            raise ConfigError(
                f"{where}: norm {config.norm!r} needs widths that are multiples of "
                f"{NORM_GROUP_WIDTH}, got {width}; use one, or norm 'batch'"
            )


def se_width(config: "ArchitectureConfig", width_in: Any, bottleneck_width: Any) -> Any:
    """Width between the layers of squeeze-excitation; numbers or arrays of them, in channels."""
    if not config.se_ratio:
        return 0 * width_in
    if config.se_from == "input":
        return np.maximum(np.rint(width_in * config.se_ratio), 1).astype(np.int64)
    return np.maximum(np.floor(bottleneck_width * config.se_ratio + 4) // 8 * 8, 8).astype(np.int64)


def has_projection(config: "ArchitectureConfig", changes_shape: Any) -> Any:
    """Whether a projection shortcut stands in blocks that change the shape; booleans, or arrays."""
    return changes_shape & (config.block != "vanilla" and config.shortcut != "none")


def _shortcut(
    config: "AnyNetConfig", *, changes_shape: bool
) -> Literal["identity", "projection", "none"]:
    if has_projection(config, changes_shape):
        return "projection"
    return "none" if changes_shape or config.block == "vanilla" else "identity"
