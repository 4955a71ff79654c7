"""Drawings as the paper has them: networks, how fast they are, and how they learn.

Needs matplotlib (`pip install regnet[report]`).
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from regnet.atomic import write_bytes
from regnet.design.config import AnyNetConfig, RegNetConfig
from regnet.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    check_plot_file(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    draw_block_widths(config, axes)
    save_figure(figure, path)


def save_benchmark(document: Mapping[str, Any], path: Path) -> None:
    """Draw a document of `regnet bench`: latency against accuracy and against activations.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file names no image format.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    rows = _fastest([row for row in document["rows"] if row["latency_ms"]])
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    facts = document["environment"]
    figure.suptitle(f"{facts['device']}, {facts['threads']} threads, {facts['date'][:10]}")
    left, right = figure.subplots(1, 2)
    left.set_xlabel("ms per image")
    left.set_ylabel("top-1 error, %")
    right.set_xlabel("activations, M")
    right.set_ylabel("ms per image")
    left.set_xscale("log")
    right.set_xscale("log")
    right.set_yscale("log")
    for family, color in _COLORS.items():
        own = [row for row in rows if _family(row["case"]["model"]) == family]
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
                    row["case"]["model"].removeprefix(family).strip("_"), (x(row), y(row)),
                    textcoords="offset points", xytext=(5, 3), fontsize=7, color=color,
                )  # fmt: skip
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_major_formatter(LogFormatter())
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        if axes.lines:
            axes.legend(frameon=False)
    right.yaxis.set_major_formatter(LogFormatter())
    right.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    save_figure(figure, path)


def save_learning_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of a run's log: loss and accuracy by epoch.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file names no image format.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names in (
        (left, {"loss": "training loss"}),
        (right, {"train_top1": "training", "top1": "test", "average_top1": "test, average"}),
    ):
        for name, label in names.items():
            shown = [(row["epoch"], row[name]) for row in log if name in row]
            if shown:
                axes.plot(*zip(*shown, strict=True), ".-", label=label)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    left.set_ylabel("loss")
    right.set_ylabel("top-1, %")
    save_figure(figure, path)


def check_plot_file(path: Path) -> None:
    """Refuse a path that no plot can be written to, before the work for it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file names no image format.
    """
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"{path}: a plot's file must end in .svg, .png or .pdf")
    try:
        import matplotlib  # noqa: F401 - whether it is there
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed; pip install 'regnet[report]'"
        ) from error


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure whole or not at all, in the format that the ending names."""
    drawing = BytesIO()
    figure.savefig(drawing, format=path.suffix.lower().removeprefix("."))
    write_bytes(path, drawing.getvalue())


_COLORS: Final = {
    "efficientnet": "tab:red", "regnetx": "tab:cyan", "regnety": "tab:blue", "": "0.5",
}  # fmt: skip


def _family(name: str) -> str:
    return next(family for family in _COLORS if name.startswith(family))


def _fastest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each network at a batch size and in a precision, the engine that is fastest."""
    best: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["latency_ms"]):
        case = row["case"]
        best[case["model"], case["batch_size"], case["precision"], case["train"]] = row
    return [row for row in rows if row in best.values()]


def _milliseconds(row: Mapping[str, Any]) -> float:
    return float(row["latency_ms"]) / int(row["case"]["batch_size"])


def _activations(row: Mapping[str, Any]) -> float:
    return float(row["activations"]) / 1e6


def _error(row: Mapping[str, Any]) -> float | None:
    error: float | None = row["top1_error"]
    return error
