"""RegNets by the hundred thousand: the stages of a whole population as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from regnet.design.widths import (
    QUANTUM,
    FloatArray,
    IntArray,
    Rounding,
    level_widths,
    linear_widths,
    round_to_groups,
    width_exponents,
)
from regnet.errors import ConfigError

_CHUNK = 4096  # rows worked on at once, so that intermediate arrays stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePopulation:
    """Stages of n networks as arrays (n, s); one with fewer than s has stages of depth 0 last."""

    depths: IntArray
    widths: IntArray
    """In channels; 0 where there is no stage."""
    group_widths: IntArray
    bottleneck_ratios: FloatArray
    strides: tuple[int, ...]
    """Stride of each stage, the same in all networks."""

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.depths)

    @property
    def num_stages(self) -> IntArray:
        """Number of stages of each network (n,)."""
        present: IntArray = (self.depths > 0).sum(axis=1)
        return present


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
    """The stages of many RegNets at once, equal to `RegNetConfig(...).stages` of each.

    Arguments are as in `RegNetConfig`: numbers, or arrays (n,).

    Raises:
        ConfigError: a value is one that `RegNetConfig` refuses.
    """
    w0_, wa_, wm_, depth_, group_width_, ratio = np.broadcast_arrays(
        *(np.atleast_1d(value) for value in (w0, wa, wm, depth, group_width, bottleneck_ratio))
    )
    for name, values, valid, needs in (
        ("w0", w0_, (w0_ > 0) & (w0_ % QUANTUM == 0), f"positive multiples of {QUANTUM}"),
        ("wa", wa_, wa_ >= 0, "0 or more"),
        ("wm", wm_, wm_ > 1, "greater than 1"),
        ("depth", depth_, depth_ >= 1, "1 or more"),
        ("group_width", group_width_, group_width_ >= 1, "1 or more"),
        ("bottleneck_ratio", ratio, ratio > 0, "positive"),
    ):
        if not valid.all():
            raise ConfigError(f"{name} must be {needs}, got {values[~valid][0]}")
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
    """Widths before group rounding, and depths, of every stage: arrays (n, s)."""
    count = len(w0)
    block = np.arange(depth.max())
    u = linear_widths(w0[:, None], wa[:, None], block)
    level = np.rint(width_exponents(u, w0[:, None], wm[:, None])).astype(np.int64)
    exists = block < depth[:, None]
    num_levels = int(level[exists].max()) + 1
    flat = (np.arange(count)[:, None] * num_levels + level)[exists]
    blocks = np.bincount(flat, minlength=count * num_levels).reshape(count, num_levels)

    # Levels that no block uses are skipped; neighbours that 8 rounds to one width are one stage.
    row, stage = np.arange(count), np.full(count, -1)
    last_width = np.zeros(count, dtype=np.int64)
    widths, depths = np.zeros((2, count, num_levels), dtype=np.int64)
    for k in range(num_levels):
        width = level_widths(w0, wm, k)
        used = blocks[:, k] > 0
        stage += used & (width != last_width)
        last_width = np.where(used, width, last_width)
        widths[row, stage] = last_width
        depths[row, stage] += blocks[:, k]
    num_stages = int(stage.max()) + 1
    return widths[:, :num_stages], depths[:, :num_stages]
