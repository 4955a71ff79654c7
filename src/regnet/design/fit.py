"""Find the RegNet parameters w0, wa and wm of given stage widths and depths.

This inverts the parameterization, and answers two questions. The first is which parameters give
exactly these stages. The search assigns the stages to quantization levels in every possible way;
each condition (a level rounds to the observed width, a block falls on its level) then restricts wm
to an interval. The second is how close any RegNet comes to the network. The answer is the paper's
e_fit (section 3.3, figure 8), by a grid search over the parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil, inf, log
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from regnet.design.widths import (
    QUANTUM,
    linear_widths,
    round_to_groups,
    width_exponents,
)
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.design.config import RegNetConfig

_LEAST_WM = 1.1  # below this, neighbouring levels of a narrow network round to the same width
_MOST_POINTS = 1024  # the most values of w0, and of wa, on the grid


@dataclass(frozen=True, slots=True, kw_only=True)
class RegNetFit:
    """A RegNet fitted to stage widths and depths."""

    config: "RegNetConfig"
    """The RegNet that reproduces the stages, or comes closest to them by `e_fit`."""
    exact: bool
    """Whether `config` has exactly the given stages."""
    e_fit: float
    """The paper's fitting error: the mean over blocks of the squared log2(predicted width /
    observed width), the least on the grid of `paper_fit`. It is infinite if no RegNet on the grid
    has as many stages."""


def fit(
    kind: "type[RegNetConfig]", widths: Sequence[int], depths: Sequence[int], **fixed: Any
) -> RegNetFit:
    """See `RegNetConfig.fit`. `kind` is that class, which this module cannot import in turn."""
    if not 0 < len(widths) == len(depths) or min(*widths, *depths) < 1:
        raise ConfigError(
            "fit needs one positive width and one positive depth per stage, "
            f"got widths {list(widths)} and depths {list(depths)}"
        )
    widths, depths = [index(w) for w in widths], [index(d) for d in depths]
    # Candidates take only the fields that decide the widths: only the result must suit the norm.
    groups = {k: fixed[k] for k in ("group_width", "bottleneck_ratio", "rounding") if k in fixed}
    depth = sum(depths)

    def reproduces(w0: int, wa: float, wm: float) -> bool:
        candidate = kind(depth=depth, w0=w0, wa=wa, wm=wm, **groups)
        return list(candidate.widths) == widths and list(candidate.depths) == depths

    best, e_fit = paper_fit(widths, depths)
    exact = _exact(widths, depths, kind(depth=1, w0=QUANTUM, wa=0, wm=2, **groups))
    found = next((parameters for parameters in exact if reproduces(*parameters)), None)
    if found is None and best is None:
        raise ConfigError(
            f"no RegNet has {len(widths)} stages in {depth} blocks, as widths {widths} and "
            f"depths {depths} have, with wm of {_LEAST_WM} or more; use fewer stages or more blocks"
        )
    w0, wa, wm = found or best or (QUANTUM, 0.0, 2.0)
    config = kind(depth=depth, w0=w0, wa=wa, wm=wm, **fixed)
    return RegNetFit(config=config, exact=found is not None, e_fit=e_fit)


def paper_fit(
    widths: Sequence[int], depths: Sequence[int]
) -> tuple[tuple[int, float, float] | None, float]:
    """Return the parameters (w0, wa, wm) of the RegNet closest to a network, and the paper's e_fit.

    The paper states neither the norm nor the grid. The mean square of log2 ratios of unrounded
    widths, over RegNets with as many stages and without a skipped level, reproduces its figures 6
    and 8. The grid is that of the paper's search space: w0 in steps of 8 up to 256, wa in steps of
    1 up to 256, and wm from 1.5 to 3 in steps of 0.1. For wider networks the grid extends further,
    to at most 1024 values of w0 and of wa.

    Args:
        widths: width of each stage, in channels.
        depths: number of blocks of each stage.

    Returns:
        The parameters and e_fit; None and infinity if no RegNet on the grid has as many stages.
    """
    observed = np.log2(np.repeat(np.asarray(widths, dtype=np.float64), depths))
    block = np.arange(len(observed))
    w0_step = QUANTUM * ceil(max(256, 2 * widths[0]) / (_MOST_POINTS * QUANTUM))
    wa_most = max(256, 2 * max(widths) // len(observed))
    wa = np.arange(0, wa_most + 1, ceil(wa_most / _MOST_POINTS))[:, None]
    wm = np.arange(15, 31)[:, None, None] / 10
    best, least = None, inf
    for w0 in range(w0_step, max(256, 2 * widths[0]) + 1, w0_step):
        level = np.rint(width_exponents(linear_widths(w0, wa, block), w0, wm))
        complete = level[..., -1] == len(widths) - 1
        complete &= (np.diff(level, axis=-1) <= 1).all(axis=-1)
        error = ((log(w0, 2) + level * np.log2(wm) - observed) ** 2).mean(axis=-1)
        error = np.where(complete, error, inf)
        row, column = np.unravel_index(error.argmin(), error.shape)
        if error[row, column] < least:
            least = float(error[row, column])
            best = (w0, float(wa[column, 0]), float(wm[row, 0, 0]))
    return best, least


def _exact(
    widths: Sequence[int], depths: Sequence[int], base: "RegNetConfig"
) -> Iterator[tuple[int, float, float]]:
    """Yield candidates (w0, wa, wm) for exactly these stages, with as few decimals as possible."""
    if any(a > b for a, b in pairwise(widths)):
        return
    sources = np.arange(QUANTUM, 2 * max(widths) + 2 * base.group_width + QUANTUM, QUANTUM)
    rounded, _ = round_to_groups(sources, base.group_width, base.bottleneck_ratio, base.rounding)
    before_rounding = [sources[rounded == w].tolist() for w in widths]
    ends = list(accumulate(depths))
    first, last = [end - d for end, d in zip(ends, depths, strict=True)], [end - 1 for end in ends]
    # Try one level per stage, without gaps, first: so it is in the paper and in every published
    # RegNet.
    for consecutive in (True, False):
        for w0 in before_rounding[0]:
            search = _LevelSearch(w0, before_rounding, first, last, consecutive=consecutive)
            yield from search.candidates()


@dataclass(frozen=True, slots=True)
class _Span:
    """The levels of one stage: its blocks `first` to `last` lie on levels `low` to `high`."""

    low: int
    high: int
    first: int
    last: int


class _LevelSearch:
    """The search over all assignments of stages to quantization levels, each with its wm."""

    def __init__(
        self,
        w0: int,
        widths: Sequence[Sequence[int]],
        first: Sequence[int],
        last: Sequence[int],
        *,
        consecutive: bool,
    ) -> None:
        self.w0 = w0
        self.widths = widths
        self.first = first
        self.last = last
        self.consecutive = consecutive

    def candidates(self) -> Iterator[tuple[int, float, float]]:
        if len(self.widths) == 1:
            yield self.w0, 0.0, 2.0
            return
        for high in range(self._highest(self.w0, 0) + 1):
            span = _Span(0, high, 0, self.last[0])
            yield from self._extend([span], self.w0, self._levels_round_to(self.w0, 0, high))

    def _extend(
        self, spans: list[_Span], width: int, wm: tuple[float, float]
    ) -> Iterator[tuple[int, float, float]]:
        low, high = self._on_levels(spans, wm)
        if not low < high:
            return
        if len(spans) == len(self.widths):
            chosen = _simplest(low, high)
            slopes = self._slopes(spans, chosen)
            if slopes[0] < slopes[1]:
                yield self.w0, _simplest(*slopes), chosen
            return
        stage, start = len(spans), spans[-1].high + 1
        for wider in self.widths[stage]:
            if wider <= width:
                continue
            highest = self._highest(wider, start)
            for k_low in range(start, highest + 1):
                for k_high in range(k_low, highest + 1):
                    rounds_low, rounds_high = self._levels_round_to(wider, k_low, k_high)
                    narrower = max(low, rounds_low), min(high, rounds_high)
                    if narrower[0] < narrower[1]:
                        span = _Span(k_low, k_high, self.first[stage], self.last[stage])
                        yield from self._extend([*spans, span], wider, narrower)

    def _highest(self, width: int, start: int) -> int:
        """Return the highest level that can have this width; `start` is the lowest."""
        if self.consecutive:
            return start
        return int(log((width + QUANTUM / 2) / self.w0) / log(_LEAST_WM))

    def _levels_round_to(self, width: int, low: int, high: int) -> tuple[float, float]:
        """Return the interval of wm in which the levels `low` to `high` all round to `width`."""
        least, most = _LEAST_WM, inf
        for k in {low, high} - {0}:
            least = max(least, ((width - QUANTUM / 2) / self.w0) ** (1 / k))
            most = min(most, ((width + QUANTUM / 2) / self.w0) ** (1 / k))
        return least, most

    def _slopes(self, spans: list[_Span], wm: float) -> tuple[float, float]:
        """Return the interval of wa in which every block lies on a level of its stage."""
        lows = [self.w0 * (wm ** (s.low - 0.5) - 1) / s.first for s in spans if s.first]
        highs = [self.w0 * (wm ** (s.high + 0.5) - 1) / s.last for s in spans if s.last]
        return max(lows, default=0.0), min(highs, default=inf)

    def _on_levels(self, spans: list[_Span], wm: tuple[float, float]) -> tuple[float, float]:
        """Return the part of the interval of wm in which some wa puts every block on its level.

        There, no lower bound on wa exceeds an upper bound. The difference of two bounds, as a
        function of x = wm > 1, has the form a x^p - b x^q + c with a root at x = 1, so it changes
        sign at most once (Descartes), and each pair of bounds leaves an interval. Only the pairs
        that include the newest stage have not been checked before.
        """
        low, high = wm
        newest = spans[-1]
        for other in spans:
            for lower, upper in {(newest, other), (other, newest)}:
                if not lower.first or not upper.last or not low < high:
                    continue

                def excess(x: float, lower: _Span = lower, upper: _Span = upper) -> float:
                    least: float = (x ** (lower.low - 0.5) - 1) / lower.first
                    most: float = (x ** (upper.high + 0.5) - 1) / upper.last
                    return least - most

                low, high = _where_negative(excess, low, min(high, 1e6))
        return low, high


def _where_negative(
    function: Callable[[float], float], low: float, high: float
) -> tuple[float, float]:
    """Return the part of an interval where the function is negative, by bisection.

    The function may change its sign at most once.
    """
    at_low, at_high = function(low) < 0, function(high) < 0
    if at_low and at_high:
        return low, high
    if not at_low and not at_high:
        return low, low
    left, right = low, high
    while (middle := (left + right) / 2) not in (left, right):
        if (function(middle) < 0) == at_low:
            left = middle
        else:
            right = middle
    return (low, left) if at_low else (right, high)


def _simplest(low: float, high: float) -> float:
    """Return the number inside the open interval, near its middle, with the fewest decimals."""
    if high == inf:
        return ceil(low) + 1.0
    middle = (low + high) / 2
    for digits in range(16):
        if low < (rounded := round(middle, digits)) < high:
            return rounded
    return middle
