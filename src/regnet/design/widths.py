"""The quantized linear parameterization, which turns (w0, wa, wm, depth) into stages.

All functions take plain numbers or arrays of them and compute in float64, so that one
implementation serves a single network as well as a population of a hundred thousand.
Source: Radosavovic et al., Designing Network Design Spaces (2020), section 3.3 and appendix D.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]

Rounding = Literal["half_even", "divisible"]
"""How a bottleneck width is rounded to a multiple of the group width.

`half_even` takes the nearest multiple, and at a tie the even one (the paper's code, pycls, and
timm). `divisible` takes the larger one at a tie, and rounds up wherever rounding down would lose
more than a tenth of the width (torchvision).
"""

QUANTUM = 8
"""Before group rounding, widths are multiples of this many channels."""

MOST_BLOCKS = 10_000
"""Largest depth in a config: far more than any use needs, and still quick to expand."""

MOST = 10_000_000
"""Largest value of any number in a config."""


def is_ratio(bottleneck_ratio: Any) -> Any:
    """Return whether a ratio, or each of an array, is a whole number or one over a whole number."""
    b = np.asarray(bottleneck_ratio, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        larger = np.maximum(b, 1 / b)
        return (b > 0) & (larger < 1e6) & (np.abs(larger - np.rint(larger)) <= 1e-9 * larger)


def linear_widths(w0: Any, wa: Any, block: Any) -> FloatArray:
    """Return the width of each block on the line u_j = w0 + wa * j, in channels (Eq. 2)."""
    return np.asarray(w0 + wa * np.asarray(block, dtype=np.float64), dtype=np.float64)


def width_exponents(u: FloatArray, w0: Any, wm: Any) -> FloatArray:
    """Return the exponents s_j for which u_j = w0 * wm ** s_j (Eq. 3)."""
    return np.asarray(np.log(u / w0) / np.log(wm), dtype=np.float64)


def level_widths(w0: Any, wm: Any, level: Any) -> IntArray:
    """Return the width of each quantization level, in channels.

    It is w0 * wm ** level (Eq. 4), rounded to the nearest multiple of 8.
    """
    exact = w0 * np.power(np.asarray(wm, dtype=np.float64), level)
    return np.asarray(QUANTUM * np.rint(exact / QUANTUM), dtype=np.int64)


def block_widths(w0: int, wa: float, wm: float, depth: int) -> IntArray:
    """Return the width of every block before group rounding, in channels (Eqs. 2-4)."""
    s = width_exponents(linear_widths(w0, wa, np.arange(depth)), w0, wm)
    return level_widths(w0, wm, np.rint(s))


def stage_runs(widths: Sequence[int] | IntArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return widths and depths of the stages; neighbouring blocks of equal width form a stage."""
    runs = [(int(width), len(list(blocks))) for width, blocks in groupby(widths)]
    return tuple(width for width, _ in runs), tuple(depth for _, depth in runs)


def bottleneck_widths(width: Any, bottleneck_ratio: Any) -> IntArray:
    """Return the bottleneck width of a block, in channels: its width divided by b, rounded down.

    The ratio b is a whole number or one over a whole number, so that integer arithmetic is exact.
    """
    reduction, expansion = _as_fraction(bottleneck_ratio)
    return np.asarray(width, dtype=np.int64) * expansion // reduction


def round_to_groups(
    width: Any, group_width: Any, bottleneck_ratio: Any, rounding: Rounding
) -> tuple[IntArray, IntArray]:
    """Round block widths so that the group width divides the bottleneck width (paper, appendix D).

    The bottleneck width v = width / b is rounded to a multiple of the group width. If v is less
    than the group width, the group width becomes v instead. In an inverted bottleneck v is rounded
    to a multiple of 1 / b as well, so that the block width v * b is an integer (pycls,
    `adjust_block_compatibility`).

    Args:
        width: block widths, in channels.
        group_width: channels per group.
        bottleneck_ratio: b, block width divided by bottleneck width.
        rounding: the rule for the nearest multiple.

    Returns:
        Block widths and group widths, in channels.
    """
    reduction, expansion = _as_fraction(bottleneck_ratio)
    inner = np.maximum(bottleneck_widths(width, bottleneck_ratio), 1)
    group = np.minimum(np.asarray(group_width, dtype=np.int64), inner)
    unit = np.lcm(group, expansion)
    if rounding == "half_even":
        rounded = np.rint(inner / unit).astype(np.int64) * unit
    else:
        rounded = (2 * inner + unit) // (2 * unit) * unit
        rounded = np.where(rounded < 0.9 * inner, rounded + unit, rounded)
    rounded = np.maximum(rounded, unit)
    return rounded * reduction // expansion, group


def _as_fraction(bottleneck_ratio: Any) -> tuple[IntArray, IntArray]:
    """Return the integers by which a block width is divided and multiplied; one of them is 1."""
    b = np.asarray(bottleneck_ratio, dtype=np.float64)
    reduction = np.maximum(np.rint(b), 1).astype(np.int64)
    expansion = np.maximum(np.rint(1 / b), 1).astype(np.int64)
    return reduction, expansion
