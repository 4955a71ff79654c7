"""Print results on stdout and everything else on stderr."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from regnet.documents import finite
from regnet.errors import printable

for _name in ("stdin", "stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed by the parent process
        setattr(sys, _name, Path(os.devnull).open("r+", encoding="utf-8"))  # noqa: SIM115 - stays open


class _SafeConsole(Console):
    """Console that prints control characters as escape sequences, except line breaks."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_safe, objects), **options)


def _safe(item: Any) -> Any:
    return "\n".join(map(printable, item.split("\n"))) if isinstance(item, str) else item


# File names may contain what Rich takes for markup, so every text is printed as it is. Long lines
# are not wrapped, so that other programs can read them.
stdout = _SafeConsole(
    highlight=False,
    markup=False,
    emoji=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else 160,
)
stderr = _SafeConsole(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, and nothing else."""
    print(json.dumps(finite(value), indent=2))


def print_error(message: str) -> None:
    """Print an error as one line on stderr."""
    stderr.print("error:", " ".join(message.split()))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table on stdout, without columns that are empty in every row.

    A column named ">..." aligns right, and one named "~..." may be cut.
    """
    used = [n for n in range(len(columns)) if not n or any(row[n] for row in rows)]
    columns, rows = [columns[n] for n in used], [[row[n] for n in used] for row in rows]
    title = None if title is None else printable(title)
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        name = column.lstrip(">~")
        whole = max(len(text) for text in (name, *(row[number] for row in rows)))
        grid.add_column(
            name,
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            min_width=8 if column.startswith("~") else whole,
        )
    for row in rows:
        grid.add_row(*(printable(text) for text in row))
    stdout.print(grid)


def scaled(number: float) -> str:
    """Return a count with three digits and a unit, such as "1.61 G" or "11.2 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"
