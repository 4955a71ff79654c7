"""Plot a benchmark as the paper does: error against latency, and latency against activations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from regnet.bench.document import Document, Row
from regnet.errors import ConfigError
from regnet.figures import as_drawn, check_plot_file, finish, label_points, new_figure, save_figure

Value = Callable[[Row], float | None]

_COLORS: Final = {
    "efficientnet": "tab:red", "regnetx": "tab:cyan", "regnety": "tab:blue", "": "0.5",
}  # fmt: skip
"""Colors by the beginning of a family's names; the last color is for all other networks."""


def save_benchmark(document: Document, path: Path) -> None:
    """Plot a benchmark run, with the fastest engine of each network.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the suffix of the file is no image format, or nothing was measured.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    from matplotlib.ticker import LogFormatter

    panels: list[tuple[Value, Value, dict[str, Any]]] = [
        (x, y, settings)
        for x, y, settings in (
            (_milliseconds, _error,
             {"xlabel": "ms per image", "ylabel": "top-1 error, %", "xscale": "log"}),
            (_activations, _milliseconds,
             {"xlabel": "activations, M", "ylabel": "ms per image", "xscale": "log",
              "yscale": "log"}),
        )
        if any(x(row) is not None and y(row) is not None for row in document.fastest)
    ]  # fmt: skip
    if not panels:
        raise ConfigError(f"{path}: no case was measured, so there is nothing to plot")
    figure = new_figure(6 * len(panels), 5.5)
    facts = document.environment
    figure.suptitle(
        f"{as_drawn(facts['device'])}, {facts['threads']} threads, {facts['date'][:10]}"
    )
    for axes, (x, y, settings) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        axes.set(**settings)
        labels = []
        for family, color in _COLORS.items():
            shown = [
                (across, up, row.case.name.removeprefix(family).strip("_"))
                for row in document.fastest
                if _family(row) == family
                and (across := x(row)) is not None
                and (up := y(row)) is not None
            ]
            if not shown:
                continue
            axes.plot(
                [row[0] for row in shown], [row[1] for row in shown], "o", color=color,
                label=family or "others",
            )  # fmt: skip
            labels += [(*row, color) for row in shown]
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(LogFormatter())
                axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        finish(axes)
        label_points(axes, labels)
    save_figure(figure, path)


def _family(row: Row) -> str:
    return next(family for family in _COLORS if row.case.name.startswith(family))


def _milliseconds(row: Row) -> float | None:
    return row.latency_ms and row.latency_ms / row.case.batch_size


def _activations(row: Row) -> float | None:
    return row.activations / 1e6


def _error(row: Row) -> float | None:
    return row.top1_error
