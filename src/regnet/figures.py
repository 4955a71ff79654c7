"""Make and save matplotlib figures in one style.

Each subpackage draws its own figures; this module creates, finishes and saves them. matplotlib is
an optional package (`pip install 'regnet[report]'`), and is imported when a figure is made.
"""

import re
from collections.abc import Callable, Sequence
from importlib import util
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from regnet import digest
from regnet.atomic import write_bytes
from regnet.errors import ConfigError, MissingExtraError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = (".svg", ".png", ".pdf")
"""File extensions that a figure can be saved with."""

_LONGEST: Final = 40
"""Longest name, in characters, for which a figure has room."""


def check_plot_file(path: Path) -> None:
    """Check that a figure can be saved to a path, to fail before the work for the figure begins.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the extension of the file is not one of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: the file of a plot must end in {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed; pip install 'regnet[report]'"
        ) from error


def as_drawn(name: str) -> str:
    """Return a name from outside as a text that matplotlib draws letter by letter.

    Without this, dollar signs would begin a formula, a label that begins with an underscore would
    be missing in the legend, and control characters would make an SVG file that is not XML. Long
    names are cut.
    """
    text = printable(name)
    text = (text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def as_file_name(name: str) -> str:
    """Return a name from outside as a part of a file name, which is different for each name."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100]
    if safe == name:
        return name
    return f"{safe}-{digest.of_bytes(name.encode('utf-8', 'replace'))[:8]}"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finish(*panels: "Axes") -> None:
    """Add the grid and the legend that all figures of this library have."""
    for axes in panels:
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)


def label_points(axes: "Axes", points: Sequence[tuple[float, float, str, Any]]) -> None:
    """Write a small label beside each point, where it covers as little as possible.

    Labels avoid points, other labels and the border of the panel.

    Args:
        axes: the panel, which must have its final scales and limits.
        points: x, y, text and color of each label.
    """
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # positions in pixels are known only after the layout
    pixel, frame = figure.dpi / 72, axes.get_window_extent()
    marks = axes.transData.transform([(x, y) for x, y, *_ in points])
    taken = [Bbox.from_bounds(x - 4 * pixel, y - 4 * pixel, 8 * pixel, 8 * pixel) for x, y in marks]

    def covered(box: Bbox) -> float:
        """Return the area that a box shares with others, plus its area outside the panel."""
        shared = [Bbox.intersection(box, other) for other in taken]
        inside = Bbox.intersection(box, frame)
        area = float(box.width * box.height)
        outside = area - (inside.width * inside.height if inside else 0)
        return outside + sum(part.width * part.height for part in shared if part)

    for (x, y, text, color), (left, down) in zip(points, marks, strict=True):
        label = axes.annotate(
            as_drawn(text),
            (x, y),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=7,
            color=color,
            va="bottom",
        )
        size = label.get_window_extent()
        wide, high = size.width / pixel, size.height / pixel
        places = [
            place
            for far in (5, 9, 14, 20)
            for place in (
                (far, -high / 2), (-wide - far, -high / 2), (-wide / 2, far),
                (-wide / 2, -high - far), (far, far / 2), (-wide - far, far / 2),
                (far, -high - far / 2), (-wide - far, -high - far / 2),
            )
        ]  # fmt: skip

        def box_at(
            place: tuple[float, float], corner: tuple[float, float] = (left, down),
            size: Bbox = size,
        ) -> Bbox:  # fmt: skip
            across, up = corner[0] + place[0] * pixel, corner[1] + place[1] * pixel
            return Bbox.from_bounds(across, up, size.width, size.height)

        best = min(places, key=lambda place: round(covered(box_at(place)), 3))
        label.set_position(best)
        taken.append(box_at(best))


def inside_page(draw: Callable[[], "Figure"]) -> str | None:
    """Return a figure as SVG text without its opening `<svg`, or None without matplotlib.

    Args:
        draw: makes the figure; it is called only if matplotlib is installed.
    """
    if util.find_spec("matplotlib") is None:
        return None
    drawing = BytesIO()
    draw().savefig(drawing, format="svg")
    return drawing.getvalue().decode().partition("<svg")[2]


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure atomically, in the format of the extension of the path.

    The same figure gives the same bytes, without a date or random names.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib

    drawing, format = BytesIO(), path.suffix.lower().removeprefix(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "regnet"}):
        figure.savefig(drawing, format=format, metadata=dates.get(format))
    write_bytes(path, drawing.getvalue())
