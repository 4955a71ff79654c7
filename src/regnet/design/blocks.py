"""Expand the stages of a network into blocks, and check that their widths fit together.

The model and the complexity of a single network are both built from this one list of blocks, in
which every width, stride and dilation is resolved.
"""

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from regnet.design.widths import bottleneck_widths, is_ratio
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.design.config import AnyNetConfig, ArchitectureConfig, StageConfig

NORMFREE_ALPHA = 0.2
"""Scale of the residual branches of norm-free blocks (Brock et al. 2021)."""

NORM_GROUP_WIDTH = 16
"""Channels per group of group normalization and of EvoNorm (timm)."""


HALO_BLOCK, HALO_SIZE, HALO_HEADS = 7, 2, 8
"""Halo attention in timm's HaloRegNetZ: side of a square of queries and width of the halo around
it, both in pixels, and the number of heads."""

HALO_WINDOW = HALO_BLOCK + 2 * HALO_SIZE
"""Side of the window that a square of queries attends to, in pixels."""


def halo_key_width(width: int) -> int:
    """Return the width of the queries, and of the keys, of one head, in channels.

    As in timm, all heads together have 0.33 times `width`, rounded to a multiple of 8.
    """
    return (int(0.33 * width) + 4) // 8 * 8 // HALO_HEADS


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """One block of a network, with everything resolved. Widths are in channels."""

    stage: int
    """Number of the stage, counted from 1."""
    index: int
    """Number of the block within its stage, counted from 1."""
    width_in: int
    width: int
    bottleneck_width: int
    group_width: int
    stride: int
    dilation: int
    se_width: int
    """Width between the two layers of squeeze-excitation; 0 for a block without it."""
    shortcut: Literal["identity", "projection", "none"]
    attention: bool
    """Whether halo attention replaces the 3x3 convolution and squeeze-excitation."""
    variance: float
    """Expected variance of the block's input. Norm-free blocks divide their input by its root."""

    @property
    def groups(self) -> int:
        """Number of groups of the 3x3 convolution."""
        return self.bottleneck_width // self.group_width


def expand(config: "AnyNetConfig") -> tuple[BlockConfig, ...]:
    """Return all blocks of the network in order.

    Raises:
        ConfigError: a width is not a multiple of what the block or the norm needs.
    """
    _check_norm(config, *config.stem_widths, where="the stem")
    _check_norm(config, config.head_width, where="the head")
    blocks: list[BlockConfig] = []
    width_in, reduction, dilation = config.stem_width, config.stem_stride, 1
    for number, stage in enumerate(config.stages, 1):
        stride, first_dilation = stage.stride, dilation
        if config.output_stride is not None and reduction * stride > config.output_stride:
            # The stride becomes dilation. As in timm, the first block of the stage has dilation 1
            # where the others have 2, and dilation 2 where they have 4 or more.
            stride, dilation = 1, dilation * stage.stride
            first_dilation = 1 if dilation <= 2 else 2
        reduction *= stride
        for index in range(1, stage.depth + 1):
            first = index == 1
            inner, group_width = _bottleneck(config, number, stage, width_in, first=not blocks)
            attention = bool(stage.attention_every) and index % (stage.attention_every or 1) == 0
            if attention:
                _check_attention(config, inner, where=f"stage {number}")
            # This looks at the configured stride, not at the one that dilation replaced, so that a
            # dilated network has the same parameters as the plain one.
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
                    se_width=0 if attention else int(se_width(config, width_in, inner)),
                    shortcut=_shortcut(config, changes_shape=changes_shape),
                    attention=attention,
                    variance=1 + NORMFREE_ALPHA**2 * _summed(config, number, index),
                )
            )
            width_in = stage.width
    return tuple(blocks)


def _summed(config: "AnyNetConfig", stage: int, index: int) -> int:
    """Count the residual branches that add to a block's input since the last projection."""
    if index > 1:
        return index - 1
    return config.stages[stage - 2].depth if stage > 1 else 0


def _bottleneck(
    config: "AnyNetConfig", number: int, stage: "StageConfig", width_in: int, *, first: bool
) -> tuple[int, int]:
    """Return the bottleneck width and the group width of a block; `first`: of the network."""
    if config.block in ("basic", "vanilla"):
        _check_norm(config, stage.width, where=f"stage {number}")
        return stage.width, stage.width
    base = stage.width if config.bottleneck_from == "output" else width_in
    ratio = stage.bottleneck_ratio
    if config.block == "normfree_bottleneck":
        # timm rounds to multiples of 8, and does not expand in the first block of the network.
        inner = int(width_in if first else max(8, (base / ratio + 4) // 8 * 8))
        group_width = min(stage.group_width, inner)
        return inner // group_width * group_width, group_width
    if not is_ratio(ratio):
        raise ConfigError(
            f"stage {number}: a {config.block} needs a bottleneck_ratio that is a whole number or "
            f"one over a whole number, such as 4 or 1/4; got {ratio!r}"
        )
    if ratio > 1 and base % round(ratio):
        raise ConfigError(
            f"stage {number}: the bottleneck ratio {ratio:g} does not divide the width {base}; "
            f"use a width that is a multiple of {ratio:g}"
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
            f"the nearest group width that divides it is {nearest}"
        )
    _check_norm(config, inner, stage.width, where=f"stage {number}")
    return inner, group_width


def _check_attention(config: "AnyNetConfig", inner: int, *, where: str) -> None:
    if config.block not in ("bottleneck", "linear_bottleneck"):
        raise ConfigError(
            f"{where}: a {config.block} block has no attention; set attention_every to None"
        )
    if inner % HALO_HEADS or not halo_key_width(inner):
        raise ConfigError(
            f"{where}: attention needs a bottleneck width that is a multiple of {HALO_HEADS} "
            f"and at least 16, got {inner}"
        )


def _check_norm(config: "AnyNetConfig", *widths: int, where: str) -> None:
    if config.norm == "batch":
        return
    for width in widths:
        if width % NORM_GROUP_WIDTH:
            raise ConfigError(
                f"{where}: norm {config.norm!r} needs widths that are multiples of "
                f"{NORM_GROUP_WIDTH}, got {width}; use such a width, or norm 'batch'"
            )


def se_width(config: "ArchitectureConfig", width_in: Any, bottleneck_width: Any) -> Any:
    """Return the width between the two layers of squeeze-excitation, in channels.

    Args:
        config: says whether there is squeeze-excitation, and how its width is computed.
        width_in: width of the block's input, in channels: a number or an array.
        bottleneck_width: width inside the block, in channels: a number or an array.
    """
    if not config.se_ratio:
        return 0 * width_in
    if config.se_from == "input":
        return np.maximum(np.rint(width_in * config.se_ratio), 1).astype(np.int64)
    return np.maximum(np.floor(bottleneck_width * config.se_ratio + 4) // 8 * 8, 8).astype(np.int64)


def has_projection(config: "ArchitectureConfig", changes_shape: Any) -> Any:
    """Return whether a block has a projection shortcut: a boolean or an array, as the argument.

    `changes_shape` says whether the block changes the width or the resolution of its input.
    """
    return changes_shape & (config.block != "vanilla" and config.shortcut != "none")


def _shortcut(
    config: "AnyNetConfig", *, changes_shape: bool
) -> Literal["identity", "projection", "none"]:
    if has_projection(config, changes_shape):
        return "projection"
    return "none" if changes_shape or config.block == "vanilla" else "identity"
