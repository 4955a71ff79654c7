"""Options and progress that `regnet study` and `regnet search --data` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regnet.cli.progress import ProgressBar

if TYPE_CHECKING:
    from regnet.studies.store import Row

Workers = Annotated[
    int | None,
    typer.Option(help="Networks trained at the same time. Default: one per core or GPU.", min=1),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a value of the recipe, such as epochs=5. Repeatable."),
]
TrainImages = Annotated[int | None, typer.Option(help="Train on this many images only.", min=1)]
ValImages = Annotated[int | None, typer.Option(help="Test on this many images only.", min=1)]


class Networks:
    """Counts the networks of a study that were trained or failed, and prints a line for each."""

    def __init__(self, folder: Path, bar: ProgressBar) -> None:
        self.folder, self.bar = folder, bar
        bar.step("training", *self._ended())

    def _ended(self) -> tuple[int, int]:
        """Return how many networks were trained or failed, in any process, and how many exist."""
        from regnet.studies import population

        return population.progress(self.folder)

    def result(self, row: "Row") -> None:
        """Print the outcome of a network and the estimated time for the rest.

        Spaces are trained in alternation, so the pace so far is typical of the rest.
        """
        from regnet.studies.population import error_of

        assert row.outcome is not None, "a finished network has an outcome"
        ended, total = self._ended()
        outcome = row.outcome.get("reason")
        if row.outcome.get("error") is not None:
            error = error_of(row, "last")  # the one that `regnet study analyze` counts
            outcome = f"{error:.2f} % error" if "epochs" in row.outcome else f"error {error:.4g}"
        self.bar.step("training", ended, total)
        left = self.bar.remaining(ended, total)
        self.bar.line(f"[{ended}/{total}] {row.space} {row.number}: {outcome}{left}")
