"""Figures of matplotlib, in one style, written whole.

Each room draws its own figures; this module makes, checks and saves them. matplotlib is an optional
package (`pip install 'regnet[report]'`) and is imported when a figure is made.
"""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from regnet.atomic import write_bytes
from regnet.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".svg", ".png", ".pdf")
"""Endings of the files that a figure can be saved to."""


def check_plot_file(path: Path) -> None:
    """Refuse a path that no figure can be saved to, before the work for it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file names no image format.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: the file of a plot must end in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed; pip install 'regnet[report]'"
        ) from error


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure; sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finish(*panels: "Axes") -> None:
    """Give panels the grid and the legend that all our figures have."""
    for axes in panels:
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure, whole or not at all, in the format that the ending names.

    Raises:
        OSError: it cannot be written.
    """
    drawing = BytesIO()
    figure.savefig(drawing, format=path.suffix.lower().removeprefix("."))
    write_bytes(path, drawing.getvalue())
