"""Sources of image sets as text: paths, data sets of the Hub (`hf:owner/name`), and drawn shapes.

Documents in a folder (`run.json`, `study.json`) store relative paths relative to that folder. They
can then be read from any working directory, and moved together with their images.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from regnet.data import shapes
from regnet.errors import ConfigError

HUB_PREFIX: Final = "hf:"

Source = TypeVar("Source", str, str | None)


def beside(source: Source, folder: Path) -> Source:
    """Return a source in the form in which a document in this folder stores it."""
    if source is None or not _depends_on_place(source):
        return source
    with suppress(ValueError):  # on Windows, no relative path leads to another drive
        return os.path.relpath(source, folder)
    return os.path.abspath(source)  # noqa: PTH100 - resolve() would replace links


def from_beside(source: Source, folder: Path) -> Source:
    """Return the source that a document in this folder refers to."""
    if source is None or not _depends_on_place(source):
        return source
    return os.path.abspath(folder / source)  # noqa: PTH100 - resolve() would replace links


def moved(
    train: str, val: Source, data: str | Path | None, tests: str | Path | None
) -> tuple[str, Source]:
    """Return the current sources of the training and the test images of a run.

    Args:
        train: the stored source of the training images.
        val: the stored source of the test images; None: the run has none, and will have none.
        data: the new source of the training images; None: unchanged.
        tests: the new source of the test images; None: unchanged, or the new source of the training
            images if both were stored with the same source.
    """
    now = train if data is None else str(data)
    if val is None:
        if tests is not None:
            raise ConfigError(f"this run has no test images, so they cannot be in {tests}")
        return now, val
    if tests is not None:
        return now, str(tests)
    return now, now if val == train else val


def _depends_on_place(source: str) -> bool:
    """Return whether a source is a relative path."""
    named = source == shapes.NAME or source.startswith((HUB_PREFIX, "~"))
    return not named and not Path(source).is_absolute()
