"""Compute the stages of a population of RegNets at once, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike

from regnet.design.widths import (
    MOST,
    MOST_BLOCKS,
    QUANTUM,
    FloatArray,
    IntArray,
    Rounding,
    is_ratio,
    level_widths,
    linear_widths,
    round_to_groups,
    width_exponents,
)
from regnet.errors import ConfigError

_ARRAYS = ("depths", "widths", "group_widths", "bottleneck_ratios")
_CHUNK = 4096  # networks computed at once, few enough for intermediate arrays to fit in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePopulation:
    """The stages of n networks as arrays (n, s), where s is the largest number of stages.

    Networks with fewer than s stages are padded with stages of depth 0 at the end.
    """

    depths: IntArray
    """Number of blocks of each stage; 0 for padding."""
    widths: IntArray
    """Width of each stage, in channels; 0 for padding."""
    group_widths: IntArray
    """Channels per group of the 3x3 convolutions of each stage; 1 for padding."""
    bottleneck_ratios: FloatArray
    """Block width divided by bottleneck width, for each stage."""
    strides: tuple[int, ...]
    """Stride of each stage, the same in all networks."""

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.depths)

    @property
    def num_stages(self) -> IntArray:
        """Number of stages of each network, an array (n,)."""
        present: IntArray = (self.depths > 0).sum(axis=1)
        return present

    def take(self, which: Any) -> "StagePopulation":
        """Return some of the networks, selected by indices, a mask or a slice."""
        arrays: dict[str, Any] = {name: getattr(self, name)[which] for name in _ARRAYS}
        return replace(self, **arrays)

    @classmethod
    def joined(cls, parts: Sequence["StagePopulation"]) -> "StagePopulation":
        """Join populations that have the same strides, and so the same number of stages."""
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
        }
        return replace(parts[0], **arrays)


def _are_whole(values: Any, most: int) -> Any:
    return (values >= 1) & (values <= most) & (np.floor(values) == values)


def regnet_population(
    *,
    w0: ArrayLike,
    wa: ArrayLike,
    wm: ArrayLike,
    depth: ArrayLike,
    group_width: ArrayLike = 1,
    bottleneck_ratio: ArrayLike = 1.0,
    rounding: Rounding = "half_even",
) -> StagePopulation:
    """Compute the stages of many RegNets at once, equal to `RegNetConfig(...).stages` of each.

    Args:
        w0: width of the first block, in channels. This and the other parameters are numbers, or
            arrays (n,), with the same meaning as in `RegNetConfig`.
        wa: slope of the line, in channels per block.
        wm: ratio between the widths of neighbouring quantization levels.
        depth: number of blocks.
        group_width: channels per group of the 3x3 convolutions.
        bottleneck_ratio: block width divided by bottleneck width.
        rounding: how bottleneck widths become multiples of the group width.

    Raises:
        ConfigError: `RegNetConfig` does not allow one of the values.
    """
    w0_, wa_, wm_, depth_, group_width_, ratio = np.broadcast_arrays(
        *(np.atleast_1d(value) for value in (w0, wa, wm, depth, group_width, bottleneck_ratio))
    )
    for name, values, valid, needs in (
        (
            "w0",
            w0_,
            (w0_ > 0) & (w0_ <= MOST) & (w0_ % QUANTUM == 0),
            f"positive multiples of {QUANTUM}, and up to {MOST}",
        ),
        ("wa", wa_, (wa_ >= 0) & (wa_ <= MOST), f"from 0 to {MOST}"),
        ("wm", wm_, (wm_ > 1) & (wm_ <= MOST), f"greater than 1, and up to {MOST}"),
        (
            "depth",
            depth_,
            _are_whole(depth_, MOST_BLOCKS),
            f"whole numbers from 1 to {MOST_BLOCKS}",
        ),
        (
            "group_width",
            group_width_,
            _are_whole(group_width_, MOST),
            f"whole numbers from 1 to {MOST}",
        ),
        ("bottleneck_ratio", ratio, is_ratio(ratio), "whole numbers or one over a whole number"),
    ):
        if not valid.all():
            raise ConfigError(f"{name} must be {needs}, got {values[~valid][0]}")
    if rounding not in get_args(Rounding):
        raise ConfigError(
            f"rounding must be one of {', '.join(get_args(Rounding))}; got {rounding!r}"
        )
    if not len(w0_):
        nothing = np.zeros((0, 0), dtype=np.int64)
        return StagePopulation(
            depths=nothing,
            widths=nothing,
            group_widths=nothing,
            bottleneck_ratios=nothing.astype(np.float64),
            strides=(),
        )
    chunks = [
        _stages(w0_[rows], wa_[rows], wm_[rows], depth_[rows])
        for rows in (slice(at, at + _CHUNK) for at in range(0, len(w0_), _CHUNK))
    ]
    num_stages = max(widths.shape[1] for widths, _ in chunks)
    widths, depths = (
        np.concatenate([np.pad(part, ((0, 0), (0, num_stages - part.shape[1]))) for part in parts])
        for parts in zip(*chunks, strict=True)
    )
    ratios = np.broadcast_to(ratio[:, None].astype(np.float64), widths.shape)
    rounded, groups = round_to_groups(widths, group_width_[:, None], ratios, rounding)
    present = depths > 0
    return StagePopulation(
        depths=depths,
        widths=np.where(present, rounded, 0),
        group_widths=np.where(present, groups, 1),
        bottleneck_ratios=ratios,
        strides=(2,) * num_stages,
    )


def _stages(
    w0: IntArray, wa: FloatArray, wm: FloatArray, depth: IntArray
) -> tuple[IntArray, IntArray]:
    """Return widths before group rounding, and depths, of every stage, as arrays (n, s)."""
    block = np.arange(depth.max())
    w0, wm = w0[:, None], wm[:, None]
    level = np.rint(width_exponents(linear_widths(w0, wa[:, None], block), w0, wm))
    block_widths = level_widths(w0, wm, level)
    exists = block < depth[:, None]
    starts = exists & (np.diff(block_widths, axis=1, prepend=0) != 0)
    stage = starts.cumsum(axis=1) - 1
    count, num_stages = len(w0), int(stage.max()) + 1
    flat = np.arange(count)[:, None] * num_stages + stage
    depths = np.bincount(flat[exists], minlength=count * num_stages)
    widths = np.zeros(count * num_stages, dtype=np.int64)
    widths[flat[starts]] = block_widths[starts]
    return widths.reshape(count, num_stages), depths.reshape(count, num_stages)
