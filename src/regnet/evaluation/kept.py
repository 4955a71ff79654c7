"""Answers saved on disk, so that an interrupted evaluation can be resumed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from regnet import digest, runfolder
from regnet.documents import plain
from regnet.errors import ConfigError
from regnet.process_group import Group

FILE: Final = "evaluation.json"
"""What was begun in the folder: weights, images and settings."""

_DIGITS: Final = 16
"""Of the digest at the beginning of each line."""


class Kept:
    """Answers of one evaluation: a file per process, a line per image."""

    def __init__(self, folder: Path, group: Group) -> None:
        """Read the answers in a folder that this process, or its leader, owns."""
        self.records: list[dict[str, Any]] = []
        """Answers of all processes of earlier evaluations."""
        self.path = folder / f"answers-{group.rank}.jsonl"
        for path in sorted(folder.glob("answers-*.jsonl")):
            # A kill may have cut the last line short: it has no end.
            lines = path.read_bytes().split(b"\n")[:-1]
            self.records += [_record(line, path) for line in lines]
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
            file.writelines(_line(record) for record in records)


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


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record).encode()
    return digest.of_bytes(text)[:_DIGITS].encode() + b" " + text + b"\n"


def _record(line: bytes, path: Path) -> dict[str, Any]:
    written, _, text = line.partition(b" ")
    if digest.of_bytes(text)[:_DIGITS].encode() != written:
        raise ConfigError(f"{path} is damaged; remove it, or name another folder")
    record: dict[str, Any] = json.loads(text)
    return record
