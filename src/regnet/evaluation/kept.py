"""Answers on disk, so that an evaluation that was interrupted goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regnet.errors import ConfigError
from regnet.process_group import Group


class Kept:
    """Answers in files, a line per image and a file per process, so that a kill loses little."""

    def __init__(self, folder: Path, what: Mapping[str, Any], group: Group) -> None:
        head = json.loads(json.dumps(what))
        self.records: list[dict[str, Any]] = []
        self.path = folder / f"answers-{group.rank}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("answers-*.jsonl")):
            first, *lines = path.read_text(encoding="utf-8").split("\n")
            if not lines:
                continue  # killed before the first line was whole
            try:
                found = json.loads(first)
                # A line that was not finished has no end.
                self.records += [json.loads(line) for line in lines[:-1]]
            except ValueError as error:
                raise ConfigError(f"{path}: damaged; remove it, or name another folder") from error
            if found != head:
                raise ConfigError(
                    f"{folder}: holds the answers of another evaluation (weights, images or "
                    "settings differ); name another folder"
                )
        group.gather(None)  # all have read before one writes
        self.head = json.dumps(head)
        self._mend()

    def _mend(self) -> None:
        """The own file begins with the head and ends with a whole line."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1] or f"{self.head}\n"
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the records of some images."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
