"""The benchmark as the paper draws it: latency against accuracy, and against activations."""

from pathlib import Path
from typing import Final

from regnet.bench.document import Document, Row
from regnet.figures import check_plot_file, finish, new_figure, save_figure

_COLORS: Final = {
    "efficientnet": "tab:red", "regnetx": "tab:cyan", "regnety": "tab:blue", "": "0.5",
}  # fmt: skip
"""By the beginning of the names of a family; the last is for all others."""


def save_benchmark(document: Document, path: Path) -> None:
    """Draw a run of the benchmark; of each network the fastest engine.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file names no image format.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    from matplotlib.ticker import LogFormatter

    figure = new_figure(12, 5.5)
    facts = document.environment
    figure.suptitle(f"{facts['device']}, {facts['threads']} threads, {facts['date'][:10]}")
    left, right = figure.subplots(1, 2)
    left.set(xlabel="ms per image", ylabel="top-1 error, %", xscale="log")
    right.set(xlabel="activations, M", ylabel="ms per image", xscale="log", yscale="log")
    for family, color in _COLORS.items():
        own = [row for row in document.fastest if _family(row) == family]
        for axes, x, y in ((left, _milliseconds, _error), (right, _activations, _milliseconds)):
            shown = [row for row in own if x(row) is not None and y(row) is not None]
            if not shown:
                continue
            axes.plot(
                [x(row) for row in shown], [y(row) for row in shown], "o", color=color,
                label=family or "others",
            )  # fmt: skip
            for row in shown:
                axes.annotate(
                    row.case.name.removeprefix(family).strip("_"), (x(row), y(row)),
                    textcoords="offset points", xytext=(5, 3), fontsize=7, color=color,
                )  # fmt: skip
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    finish(left, right)
    save_figure(figure, path)


def _family(row: Row) -> str:
    return next(family for family in _COLORS if row.case.name.startswith(family))


def _milliseconds(row: Row) -> float | None:
    return row.latency_ms and row.latency_ms / row.case.batch_size


def _activations(row: Row) -> float | None:
    return row.activations / 1e6


def _error(row: Row) -> float | None:
    return row.top1_error
