"""The journal of a study: a second copy of each result, as a line of a text file.

SQLite does not notice a changed byte of a value. From a damaged log it silently drops what does not
fit, and with it results that were committed. The journal shows which results there were, and can
restore them. A line is written after the store has committed the result.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from regnet import documents
from regnet.atomic import write_bytes
from regnet.errors import ConfigError, StudyError, shell

FILE: Final = "results.jsonl"

Key = tuple[str, int]
"""Name of the space, and number of the network in it."""


class Journal:
    """The results of a study by space and number, in the order in which they were committed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE

    def add(self, key: Key, outcome: dict[str, Any] | None) -> None:
        """Append the outcome of a network; None means that the network will be trained again.

        Raises:
            OSError: the line cannot be written; the store has the result.
        """
        space, number = key
        line = documents.line({"space": space, "number": number, "outcome": outcome})
        with self.path.open("a+b", buffering=0) as file:
            # If a killed process left an incomplete line, the next one must start on a new line.
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            cut = file.read(1) not in (b"", b"\n")
            file.write(b"\n" + line if cut else line)
            os.fsync(file.fileno())

    def results(self) -> dict[Key, dict[str, Any]]:
        """Return the newest outcome of each network that has one.

        Raises:
            StudyError: the journal is damaged.
        """
        try:
            return _newest(documents.lines(self.path, "a result"))
        except FileNotFoundError:
            return {}
        except (ConfigError, KeyError, TypeError) as error:
            raise StudyError(
                f"{error}; {shell('regnet', 'study', 'recover', self.folder)} rebuilds it from the "
                "results that are intact"
            ) from error

    def readable(self) -> dict[Key, dict[str, Any]]:
        """Return the newest outcome of each network from the lines that are not damaged."""
        try:
            return _newest(documents.lines(self.path, "a result", skip_damaged=True))
        except OSError:
            return {}

    def replace(self, results: Iterable[tuple[Key, dict[str, Any]]]) -> None:
        """Replace the journal by one with these results."""
        lines = [
            documents.line({"space": space, "number": number, "outcome": outcome})
            for (space, number), outcome in results
        ]
        write_bytes(self.path, b"".join(lines))


def _newest(lines: Iterable[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    found: dict[Key, dict[str, Any]] = {}
    for line in lines:
        key = line["space"], line["number"]
        found.pop(key, None)
        if line["outcome"] is not None:
            found[key] = line["outcome"]
    return found
