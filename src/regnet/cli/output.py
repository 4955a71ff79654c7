"""Print results on stdout and everything else on stderr."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
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

    def on_broken_pipe(self) -> None:
        if not self.stderr:
            super().on_broken_pipe()
        # Nobody reads the progress, but the work goes on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _safe(item: Any) -> Any:
    return "\n".join(map(printable, item.split("\n"))) if isinstance(item, str) else item


def _console(**options: Any) -> _SafeConsole:
    # File names may contain what Rich takes for markup, so every text is printed as it is. Long
    # lines are not wrapped, so that other programs can read them.
    return _SafeConsole(highlight=False, markup=False, emoji=False, soft_wrap=True, **options)


stdout = _console(width=None if sys.stdout.isatty() else 160)
stderr = _console(stderr=True)


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

    A column named ">..." aligns right. One named "~..." may be cut to fit into the terminal.
    """
    used = [n for n in range(len(columns)) if not n or any(row[n] for row in rows)]
    columns, rows = [columns[n] for n in used], [[row[n] for n in used] for row in rows]
    title = None if title is None else printable(title)
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    rows = [[printable(text) for text in row] for row in rows]
    names = [column.lstrip(">~") for column in columns]
    widths = [max(map(cell_len, cells)) for cells in zip(names, *rows, strict=True)]
    gaps = 2 * (len(columns) - 1)
    flexible = [n for n, column in enumerate(columns) if column.startswith("~")]
    for n in reversed(flexible):
        excess = max(0, gaps + sum(widths) - stdout.width)
        widths[n] = max(min(8, widths[n]), widths[n] - excess)
    for name, column, width in zip(names, columns, widths, strict=True):
        justify: Any = "right" if column.startswith(">") else "left"
        grid.add_column(name, justify=justify, no_wrap=True, min_width=width, max_width=width)
    for row in rows:
        grid.add_row(*row)
    # In a narrow terminal Rich would cut all columns, so the terminal breaks the lines instead.
    total = gaps + sum(widths)
    (stdout if total <= stdout.width else _console(width=total)).print(grid)


def scaled(number: float) -> str:
    """Return a count with three digits and a unit, such as "1.61 G" or "11.2 M"."""
    number = float(f"{number:.3g}")  # rounded before the unit is chosen: 999,999 is 1 M
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"
