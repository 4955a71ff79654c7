"""Plot the accuracy of published networks against their latency on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING

from regnet.figures import check_plot_file, finish, new_figure, save_figure
from regnet.selection.choose import Chosen

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_choice(found: Chosen, path: Path) -> None:
    """Save a plot of accuracy over latency as an image file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the file name does not end in the suffix of an image format.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    save_figure(draw(found), path)


def draw(found: Chosen) -> "Figure":
    """Draw accuracy over latency with matplotlib."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for measured, marker, label in ((True, "o", "measured"), (False, ".", "predicted")):
        rows = [row for row in found.front if row.measured is measured]
        if not rows:
            continue
        times, accuracies = [r.latency_ms for r in rows], [r.setting.accuracy for r in rows]
        axes.plot(times, accuracies, marker, color="tab:blue", label=label)
    times, accuracies = (
        [row.latency_ms for row in found.front],
        [row.setting.accuracy for row in found.front],
    )
    axes.step(times, accuracies, where="post", color="tab:blue", alpha=0.4)
    axes.axvline(found.latency_ms, color="0.5", linestyle=":", label="limit")
    if found.peers:
        axes.plot(
            [row.latency_ms for row in found.peers],
            [row.accuracy for row in found.peers],
            "x",
            color="tab:gray",
            label="EfficientNets, weights of pycls",
        )
    if pick := found.pick:
        axes.plot(pick.latency_ms, pick.setting.accuracy, "*", color="tab:red", ms=12)
        axes.annotate(
            pick.setting.checkpoint,
            (pick.latency_ms, pick.setting.accuracy),
            xytext=(6, -12),
            textcoords="offset points",
        )
    axes.set_xscale("log")
    axes.set_xlabel(f"ms per call, batch {found.batch_size}")
    axes.set_ylabel(f"{found.metric}, %")
    finish(axes)
    return figure
