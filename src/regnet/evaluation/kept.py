"""Answers saved on disk, so that an interrupted evaluation can be resumed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from regnet import documents, runfolder
from regnet.documents import plain
from regnet.errors import ConfigError
from regnet.process_group import Group

FILE: Final = "evaluation.json"
"""What was begun in the folder: weights, images and settings."""


class Kept:
    """Answers of one evaluation: a file per process, a line per image."""

    def __init__(self, folder: Path, group: Group) -> None:
        """Read the answers in a folder that this process, or its leader, owns."""
        self.records: list[dict[str, Any]] = []
        """Answers of all processes of earlier evaluations."""
        self.path = folder / f"answers-{group.rank}.jsonl"
        for path in sorted(folder.glob("answers-*.jsonl")):
            try:
                self.records += documents.lines(path, "an answer")
            except ConfigError as error:
                raise ConfigError(f"{error}; remove the file, or name another folder") from error
        group.gather(None)  # all have read before one writes
        self._remove_unfinished_line()

    def _remove_unfinished_line(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self.path.write_bytes(whole)

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Save the answers for some images."""
        with self.path.open("ab") as file:
            file.writelines(map(documents.line, records))


@contextmanager
def kept(folder: Path, what: Mapping[str, Any], group: Group) -> Iterator[Kept]:
    """Own a folder of answers.

    Args:
        folder: made if need be.
        what: weights, images and settings, which decide the answers.
        group: the processes that share the images.

    Raises:
        ConfigError: another process owns the folder, it holds the answers of another evaluation, or
            a file in it is damaged.
    """
    asked = json.loads(json.dumps(what, default=plain))
    with runfolder.owned(folder, "evaluating", group):
        if (folder / FILE).exists():
            if runfolder.begun(folder, FILE, "an evaluation") != asked:
                raise ConfigError(
                    f"{folder} holds the answers of another evaluation (weights, images or "
                    "settings differ); name another folder"
                )
        elif held := [name for name in runfolder.contents(folder) if name.startswith("answers-")]:
            raise ConfigError(f"{folder} holds {held[0]} without {FILE}; name another folder")
        group.gather(None)  # all have looked before one writes
        if group.leads and not (folder / FILE).exists():
            runfolder.begin(folder, FILE, asked)
        yield Kept(folder, group)
