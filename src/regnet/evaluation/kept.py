"""Save answers on disk, so that an interrupted evaluation can be resumed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from regnet import documents, runfolder
from regnet.documents import plain
from regnet.errors import ConfigError, check_number
from regnet.process_group import Group

FILE: Final = "evaluation.json"
"""File that records the evaluation in a folder: its weights, images and settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The content of a line about one image: its best outputs, or why there are none."""

    image: int
    top: tuple[int, ...] = ()
    confidence: float = 0.0
    error: str | None = None

    def check(self, images: int) -> None:
        """Raise ConfigError if this is no valid answer in a set of `images` images."""
        check_number("image", self.image, least=0, most=images - 1)
        check_number("confidence", self.confidence, least=0, most=1)
        if not (self.top or self.error) or min(self.top, default=0) < 0:
            raise ConfigError(f"image {self.image} has no answer")


class Kept:
    """The saved answers of one evaluation: a file per process, and a line per image."""

    def __init__(self, folder: Path, group: Group, images: int) -> None:
        """Read the saved answers of a set of `images` images, in a folder that the group owns."""
        self.records: list[dict[str, Any]] = []
        """Answers that all processes saved before the evaluation was interrupted."""
        self.path = folder / f"answers-{group.rank}.jsonl"
        for path in sorted(folder.glob("answers-*.jsonl")):
            try:
                found = documents.lines(path, "an answer")
                for number, record in enumerate(found, 1):
                    answer = documents.build(Answer, record, name=f"{path}: line {number}")
                    answer.check(images)
                self.records += found
            except ConfigError as error:
                raise ConfigError(f"{error}; remove the file, or name another folder") from error
        group.gather(None)  # every process has read before any process writes
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
def kept(folder: Path, what: Mapping[str, Any], group: Group, *, images: int) -> Iterator[Kept]:
    """Own a folder, and yield the answers that are saved in it.

    Args:
        folder: the folder, which is made if it does not exist.
        what: weights, images and settings: everything that decides the answers.
        group: the processes that share the images.
        images: number of images in the set.

    Raises:
        ConfigError: another process owns the folder, it holds the answers of another evaluation, or
            a file in it is damaged.
    """
    asked = json.loads(json.dumps(what, default=plain))
    with runfolder.owned(folder, "evaluating", group):
        if (folder / FILE).exists():
            if runfolder.begun(folder, FILE, "an evaluation") != asked:
                raise ConfigError(
                    f"{folder} holds the answers of another evaluation (weights, images, the "
                    "times at which their files were modified, or settings differ); name another "
                    "folder"
                )
        elif held := [name for name in runfolder.contents(folder) if name.startswith("answers-")]:
            raise ConfigError(f"{folder} holds {held[0]} without {FILE}; name another folder")
        group.gather(None)  # every process has looked before any process writes
        if group.leads and not (folder / FILE).exists():
            runfolder.begin(folder, FILE, asked)
        yield Kept(folder, group, images)
