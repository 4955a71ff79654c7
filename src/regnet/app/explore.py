"""Compute the tables and the plot of a RegNet that the explorer shows."""

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
    """Return a row per stage, with the columns `STAGE_COLUMNS`; widths are in channels."""
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
    """Return the cost of a network for images of a size, with the columns `COST_COLUMNS`."""
    cost = complexity(config, image_size)
    return [
        ["flops (multiply-adds), M", f"{cost.flops / 1e6:,.1f}"],
        ["parameters, M", f"{cost.params / 1e6:.2f}"],
        ["activations, M", f"{cost.activations / 1e6:.2f}"],
        ["blocks", f"{config.depth}"],
    ]


def nearest(config: RegNetConfig, image_size: int, count: int = 4) -> Table:
    """Return the published RegNetX and RegNetY of the most similar cost, the most similar first.

    Similarity is the distance between the logarithms of flops, parameters and activations.

    Args:
        config: the network to compare with.
        image_size: side of the images in pixels.
        count: number of networks to return.

    Returns:
        A row per network, with the columns `NEAR_COLUMNS`.
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
    """Plot block widths and the quantized line as SVG, whose text can be selected."""
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
