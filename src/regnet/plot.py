"""Drawings of networks, as the paper has them. Needs matplotlib (`pip install regnet[report]`)."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from regnet.atomic import write_bytes
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_block_widths(config: AnyNetConfig | RegNetConfig, axes: "Axes") -> None:
    """Width of every block; for a RegNet the line u_j and its quantized steps behind it."""
    widths = [block.width for block in config.blocks()]
    numbers = range(len(widths))
    if isinstance(config, RegNetConfig):
        steps = config.explain()
        axes.plot(numbers, steps.u, ":", color="0.4", label="$u_j = w_0 + w_a j$")
        exact = [config.w0 * config.wm**level for level in steps.levels]
        axes.step(numbers, exact, where="mid", color="0.7", label=r"$w_0 w_m^{\lfloor s_j \rceil}$")
    axes.plot(
        numbers, widths, "o-", color="tab:blue", drawstyle="steps-mid", ms=4, label="block width"
    )
    axes.set_xlabel("block $j$")
    axes.set_ylabel("width (channels)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def save_block_widths(config: AnyNetConfig | RegNetConfig, path: Path, *, title: str) -> None:
    """Draw the block widths into an image file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file names no image format.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed; pip install 'regnet[report]'"
        ) from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    image_format = path.suffix.lower().removeprefix(".")
    if image_format not in ("svg", "png", "pdf"):
        raise ConfigError(f"{path}: a plot's file must end in .svg, .png or .pdf")
    axes = figure.add_subplot()
    axes.set_title(title)
    draw_block_widths(config, axes)
    drawing = BytesIO()
    figure.savefig(drawing, format=image_format)
    write_bytes(path, drawing.getvalue())
