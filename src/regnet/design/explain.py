"""Explain step by step how the parameters of a RegNet become stages."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from regnet.design.widths import linear_widths, stage_runs, width_exponents

if TYPE_CHECKING:
    from regnet.design.config import RegNetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExplanation:
    """One stage, from its quantization level to its final width. Widths are in channels."""

    depth: int
    exact_width: float
    """w0 * wm ** level (Eq. 4), for the lowest level if several levels round to the same width."""
    quantized_width: int
    """The exact width rounded to the nearest multiple of 8."""
    width: int
    """The final width, after the bottleneck width was rounded to a multiple of the group width."""
    group_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All steps of Eqs. 2-4 and of the rounding to groups; `str` returns them as a table."""

    config: "RegNetConfig"
    u: tuple[float, ...]
    """Width of each block on the line (Eq. 2), in channels."""
    s: tuple[float, ...]
    """Exponent s_j of each block, so that u_j = w0 * wm ** s_j (Eq. 3)."""
    levels: tuple[int, ...]
    """Quantization level of each block: s_j rounded to the nearest integer."""
    widths: tuple[int, ...]
    """Quantized width of each block (Eq. 4), in channels; a multiple of 8."""
    stages: tuple[StageExplanation, ...]

    def __str__(self) -> str:
        c = self.config
        lines = [
            f"w0={c.w0} wa={c.wa:g} wm={c.wm:g} depth={c.depth} group_width={c.group_width} "
            f"bottleneck_ratio={c.bottleneck_ratio:g} rounding={c.rounding}",
            "",
            "block    u_j = w0 + wa*j     s_j  level    w_j",
        ]
        steps = zip(self.u, self.s, self.levels, self.widths, strict=True)
        lines += [
            f"{j:5d} {u:18.2f} {s:7.3f} {k:6d} {w:6d}" for j, (u, s, k, w) in enumerate(steps)
        ]
        lines += ["", "stage  depth  w0*wm^level  to 8s  width  group width"]
        for number, stage in enumerate(self.stages, 1):
            moved = stage.width - stage.quantized_width
            note = f"  ({moved:+d} to fit the groups)" if moved else ""
            lines.append(
                f"{number:5d} {stage.depth:6d} {stage.exact_width:12.2f} "
                f"{stage.quantized_width:6d} {stage.width:6d} {stage.group_width:12d}{note}"
            )
        return "\n".join(lines)


def explain(config: "RegNetConfig") -> Explanation:
    """See `RegNetConfig.explain`."""
    u = linear_widths(config.w0, config.wa, np.arange(config.depth))
    s = width_exponents(u, config.w0, config.wm)
    levels = np.rint(s).astype(np.int64)
    widths = config.block_widths()
    quantized, depths = stage_runs(widths)
    first_blocks = np.cumsum((0, *depths[:-1]))
    return Explanation(
        config=config,
        u=tuple(u.tolist()),
        s=tuple(s.tolist()),
        levels=tuple(levels.tolist()),
        widths=widths,
        stages=tuple(
            StageExplanation(
                depth=stage.depth,
                exact_width=float(config.w0 * config.wm ** levels[block]),
                quantized_width=width,
                width=stage.width,
                group_width=stage.group_width,
            )
            for stage, width, block in zip(
                config.stages, quantized, first_blocks.tolist(), strict=True
            )
        ),
    )
