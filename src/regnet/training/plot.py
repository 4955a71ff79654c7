"""Plot the learning curve of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regnet.figures import check_plot_file, finish, new_figure, save_figure


def save_learning_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot loss and accuracy by epoch, from the rows of a run's log.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ConfigError: the ending of the file is not that of an image format.
        OSError: the file cannot be written.
    """
    check_plot_file(path)
    figure = new_figure(9, 4)
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
    left.set_ylabel("loss")
    right.set_ylabel("top-1, %")
    finish(left, right)
    save_figure(figure, path)
