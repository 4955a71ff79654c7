"""Compute what the explorer shows about a RegNet: stages, cost and similar published networks."""

from io import StringIO
from math import log
from typing import Final

from regnet.design.complexity import complexity
from regnet.design.config import RegNetConfig
from regnet.design.plot import draw_block_widths
from regnet.design.variants import PLAIN, VARIANTS, Variant
from regnet.weights.catalog import checkpoints
from regnet.zoo.listing import info

Table = list[list[str]]

STAGE_COLUMNS: Final = ("stage", "depth", "width", "bottleneck", "group width", "groups", "stride")
COST_COLUMNS: Final = ("", "this network")
NEAR_COLUMNS: Final = (
    "published",
    "flops, M",
    "params, M",
    "activations, M",
    "top-1, %",
    "license",
)


def stage_table(config: RegNetConfig) -> Table:
    """A row per stage, of `STAGE_COLUMNS`; widths in channels."""
    last_blocks = {block.stage: block for block in config.blocks()}
    return [
        [
            str(number),
            str(stage.depth),
            str(stage.width),
            str(last_blocks[number].bottleneck_width),
            str(last_blocks[number].group_width),
            str(last_blocks[number].groups),
            str(stage.stride),
        ]
        for number, stage in enumerate(config.stages, 1)
    ]


def cost_table(config: RegNetConfig, image_size: int) -> Table:
    """What it costs for images of a size, of `COST_COLUMNS`."""
    cost = complexity(config, image_size)
    return [
        ["flops (multiply-adds), M", f"{cost.flops / 1e6:,.1f}"],
        ["parameters, M", f"{cost.params / 1e6:.2f}"],
        ["activations, M", f"{cost.activations / 1e6:.2f}"],
        ["blocks", f"{config.depth}"],
    ]


def nearest(config: RegNetConfig, image_size: int, count: int = 4) -> Table:
    """Published RegNetX and RegNetY that cost about the same, nearest first, of `NEAR_COLUMNS`.

    Near is by the logarithms of flops, parameters and activations.
    """
    own = complexity(config, image_size)

    def distance(variant: Variant) -> float:
        other = complexity(variant.config, image_size)
        pairs = zip(
            (own.flops, own.params, own.activations),
            (other.flops, other.params, other.activations),
            strict=True,
        )
        return sum(log(a / b) ** 2 for a, b in pairs)

    nearest_first = sorted((VARIANTS[name] for name in PLAIN), key=distance)
    return [_published(variant, image_size) for variant in nearest_first[:count]]


def drawing(config: RegNetConfig) -> str:
    """Block widths beside the quantized line, as SVG with its text as text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    draw_block_widths(config, figure.add_subplot())
    text = StringIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg")
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _published(variant: Variant, image_size: int) -> list[str]:
    cost = complexity(variant.config, image_size)
    default = info(variant.name).default
    row = checkpoints()[default] if default else None
    return [
        variant.name,
        f"{cost.flops / 1e6:,.0f}",
        f"{cost.params / 1e6:.2f}",
        f"{cost.activations / 1e6:.2f}",
        f"{row.top1:.2f}" if row and row.top1 else "",
        row.license_terms.name if row else "no free weights",
    ]
