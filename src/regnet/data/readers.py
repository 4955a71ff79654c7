"""Read one of many images: from its file, from a tar file, or from a row of a Parquet file."""

import posixpath
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image

from regnet.data.images import decode_image, open_image
from regnet.errors import DataError, ImageError, MissingExtraError

IMAGE_COLUMNS: Final = ("image", "img", "jpg")
"""Names of the columns of Parquet files that contain images."""


COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Archives that would have to be read from their beginning for every image."""


def refuse_compressed(path: Path) -> None:
    """Refuse an archive whose images cannot be read one by one.

    Raises:
        DataError: the archive is compressed.
    """
    if path.name.lower().endswith(COMPRESSED):
        raise DataError(
            f"{path}: compressed, so single images cannot be read from it; unpack it first"
        )


def mark(path: Path) -> int:
    """Return a number that is likely to change when a file is written to; 0 for a missing file."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return found.st_size ^ found.st_mtime_ns


class Reader(Protocol):
    """Reads the images of a set."""

    def open(self, index: int) -> Image.Image:
        """Return one image, upright, in 8-bit RGB; raise ImageError if it cannot be read."""
        ...


class Stored(Reader, Protocol):
    """A reader that knows its files."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that contain the images."""
        ...


@dataclass(frozen=True)
class Files:
    """Images in files of their own."""

    paths: tuple[Path, ...]

    @property
    def files(self) -> Sequence[Path]:
        """See `Stored.files`."""
        return self.paths

    def open(self, index: int) -> Image.Image:
        """See `Reader.open`."""
        return open_image(self.paths[index])


def linked(member: tarfile.TarInfo) -> str:
    """Return the name of the member that a link in a tar file refers to."""
    if member.issym():  # relative to the folder of the link
        return posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
    return posixpath.normpath(member.linkname)


def resolved(
    links: Mapping[str, str], offsets: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, int, int]]:
    """Yield the links of a tar file as members: name, and offset and size of what they refer to.

    The size is -1 if that is not a file in the archive.

    Args:
        links: what each link refers to, by its name.
        offsets: offset and size of each file, by its name. Names are normalized.
    """
    for name, target in links.items():
        seen = {name}
        while target in links and target not in seen:  # a link to a link
            seen.add(target)
            target = links[target]
        yield (name, *offsets.get(target, (0, -1)))


@dataclass(frozen=True)
class Archive:
    """Images in a tar file, each read directly at its offset."""

    path: Path
    members: tuple[tuple[str, int, int], ...]
    """Name, offset and size in bytes of each image; the size of a link to nothing is -1."""

    @property
    def files(self) -> Sequence[Path]:
        """See `Stored.files`."""
        return (self.path,)

    def open(self, index: int) -> Image.Image:
        """See `Reader.open`."""
        name, offset, size = self.members[index]
        if size < 0:
            raise ImageError(f"{self.path}/{name}: a link to a file that is not in the archive")
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ImageError(f"{self.path}/{name}: {error.strerror or error}") from error
        return decode_image(data, f"{self.path}/{name}")


class Rows:
    """Images in rows of Parquet files; the row group that was read last stays in memory."""

    def __init__(self, groups: tuple[tuple[Path, int, int], ...], column: str) -> None:
        self.groups = groups
        """For each row group: its file, its number in the file, and its first row."""
        self.column = column
        self._starts = np.array([start for _, _, start in groups])
        self._last: tuple[int, Any] | None = None

    @property
    def files(self) -> Sequence[Path]:
        """See `Stored.files`."""
        return sorted({path for path, _, _ in self.groups})

    def open(self, index: int) -> Image.Image:
        """See `Reader.open`."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        path, _, start = self.groups[group]
        try:
            cell = self._rows(group)[index - start].as_py()
        except Exception as error:  # on damaged files, pyarrow raises errors of any type
            [reason, *_] = str(error).splitlines() or [type(error).__name__]
            raise ImageError(f"{path} row {index}: damaged file ({reason})") from error
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        return decode_image(data or b"", f"{path} row {index}")

    def _rows(self, group: int) -> Any:
        if self._last is None or self._last[0] != group:
            import pyarrow.parquet as parquet

            path, number, _ = self.groups[group]
            self._last = None
            with parquet.ParquetFile(path, page_checksum_verification=True) as file:
                self._last = group, file.read_row_group(number, [self.column])[self.column]
        return self._last[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}


def image_column(path: Path) -> str | None:
    """Return the column with images, as bytes or in the Hub's form; None if there is none."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = str(schema.field(name).type)
            if kind.startswith(("binary", "large_binary", "struct")):
                return name
    return None


def column_of(columns: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the first of the known names that is a column."""
    return next((name for name in known if name in columns), None)


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a `pyarrow.parquet.ParquetFile` that verifies its pages.

    Errors raised inside the `with` block, too, become errors that name the file.

    Raises:
        DataError: the file cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow, which is not installed; pip install 'regnet[train]'"
        ) from error
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # on damaged files, pyarrow raises errors of any type
        [reason, *_] = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{path}: not a readable Parquet file ({reason})") from error
