"""Plot block widths as the paper does: the line, its quantized steps, and the final widths."""

from pathlib import Path
from typing import TYPE_CHECKING

from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.figures import as_drawn, check_plot_file, finish, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_block_widths(config: AnyNetConfig | RegNetConfig, axes: "Axes") -> None:
    """Draw the width of every block, and for a RegNet also its line and the quantized steps.

    Args:
        config: the network.
        axes: the matplotlib axes to draw into.
    """
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
    finish(axes)


def save_block_widths(config: AnyNetConfig | RegNetConfig, path: Path, *, title: str) -> None:
    """Draw the block widths of a network into an image file.

    Args:
        config: the network.
        path: the file to write; its extension selects the format.
        title: the heading of the plot.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the extension of the file is not that of an image format.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    axes.set_title(as_drawn(title))
    draw_block_widths(config, axes)
    save_figure(figure, path)
