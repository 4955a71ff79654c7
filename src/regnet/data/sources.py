"""Where sets of images lie, as text: paths, data sets of the Hub (`hf:owner/name`), drawn ones.

A document in a folder (`run.json`, `study.json`) keeps relative paths from that folder on, so that
it can be read wherever a process runs, and moved together with its images.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from regnet.data import shapes

HUB_PREFIX: Final = "hf:"

Source = TypeVar("Source", str, str | None)


def beside(source: Source, folder: Path) -> Source:
    """Return a source as a document in a folder keeps it."""
    if source is None or not _depends_on_place(source):
        return source
    with suppress(ValueError):  # on another drive of Windows
        return os.path.relpath(source, folder)
    return os.path.abspath(source)  # noqa: PTH100 - links are kept


def from_beside(source: Source, folder: Path) -> Source:
    """Return the source that a document in a folder means."""
    if source is None or not _depends_on_place(source):
        return source
    return os.path.abspath(folder / source)  # noqa: PTH100 - links are kept


def moved(
    train: str, val: Source, data: str | Path | None, tests: str | Path | None
) -> tuple[str, Source]:
    """Return where images lie now, those that are trained on and those that are tested on.

    Args:
        train: where the first lay.
        val: where the others lay; None: there are none, and will be none.
        data: where the first lie now; None: where they did.
        tests: likewise of the others; None: where they did, or with the first if they lay there.
    """
    now = train if data is None else str(data)
    if val is None:
        return now, val
    if tests is not None:
        return now, str(tests)
    return now, now if val == train else val


def _depends_on_place(source: str) -> bool:
    """Whether a source is a relative path."""
    named = source == shapes.NAME or source.startswith((HUB_PREFIX, "~"))
    return not named and not Path(source).is_absolute()
