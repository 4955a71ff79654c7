"""Read any number of images, labelled or not, in chunks, with only one chunk in memory at a time.

    for chunk in chunks(["photos/", "shard-000.tar", "more.parquet"], 1024):
        chunk.names, chunk.open(0)

The same sources give the same chunks, in the same order.
"""

import posixpath
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import Final

from PIL import Image

from regnet import digest
from regnet.data.images import IMAGE_SUFFIXES
from regnet.data.layout import Split, is_hidden, walk
from regnet.data.readers import (
    IMAGE_COLUMNS,
    Archive,
    Files,
    Reader,
    Rows,
    image_column,
    linked,
    mark,
    open_parquet,
    refuse_compressed,
    resolved,
)
from regnet.data.sets import fetch
from regnet.data.sources import HUB_PREFIX
from regnet.errors import DataError, NotFoundError
from regnet.paths import expanded

ARCHIVES: Final = (".tar", ".parquet")
"""Extensions of files that hold many images."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some of the images of a source."""

    names: tuple[str, ...]
    """The place of each image: its path, its path inside an archive, or its row of a Parquet
    file."""
    marks: tuple[int, ...]
    """Numbers that change with the image files, such as sizes and modification times."""
    reader: Reader
    first: int = 0
    """The index of the chunk's first image in the reader."""

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Return one image, upright, in 8-bit RGB.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.reader.open(self.first + index)

    @property
    def digest(self) -> str:
        """The first 16 digits of the SHA-256 of names and marks, which identify the chunk."""
        return digest.of_json([self.names, self.marks])[:16]


def chunks(
    sources: Sequence[str],
    size: int,
    *,
    split: Split = "val",
    without: Collection[Path] = (),
) -> Iterator[Chunk]:
    """Yield the images of all sources, in chunks of at most `size` images.

    Args:
        sources: image files; `.tar` and `.parquet` files; folders, of which all images at any depth
            are read, also those in `.tar` and `.parquet` files; data sets of the Hub
            (`hf:owner/name`).
        size: the most images in a chunk.
        split: the split that is read of a data set of the Hub.
        without: files and folders to leave out.

    Raises:
        NotFoundError: a source does not exist.
        DataError: a source contains no images, or an archive or a folder cannot be read.
        MissingExtraError: a source is a Parquet file, and pyarrow is not installed.
    """
    left_out = {path.resolve() for path in without}
    places = (place for source in sources for place in _places(source, split, left_out))
    for suffix, group in groupby(places, key=_kind):
        if not suffix:
            while paths := tuple(islice(group, size)):
                yield Chunk(
                    names=tuple(map(str, paths)), marks=tuple(map(mark, paths)),
                    reader=Files(paths),
                )  # fmt: skip
        for path in group:
            yield from (_in_tar if suffix == ".tar" else _in_parquet)(path, size)


def _places(source: str, split: Split, without: Collection[Path]) -> Iterator[Path]:
    """Yield the image files and archives of a source."""
    if source.startswith(HUB_PREFIX):
        yield from fetch(source.removeprefix(HUB_PREFIX), split)
        return
    path = expanded(source)
    if source and path.is_dir():
        found = False
        for parts, is_folder in walk(path):
            place = path.joinpath(*parts)
            if is_folder or is_hidden(parts) or not _usable(place, without):
                continue
            found = True
            yield place
        if not found:
            raise DataError(f"{path}: there are no images in this folder")
        return
    if not source or not path.exists():
        raise NotFoundError(f"{source!r}: there is no such file or folder")
    refuse_compressed(path)
    yield path


def _usable(path: Path, without: Collection[Path]) -> bool:
    """Return whether a file in a folder contains images."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES and suffix not in ARCHIVES:
        return False
    resolved = path.resolve()
    if any(place == resolved or place in resolved.parents for place in without):
        return False
    return suffix != ".parquet" or image_column(path) is not None


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix in ARCHIVES else ""


def _in_tar(path: Path, size: int) -> Iterator[Chunk]:
    count = 0
    members = _members(path)
    try:
        while chosen := tuple(islice(members, size)):
            count += len(chosen)
            yield Chunk(
                names=tuple(f"{path}/{name}" for name, _, _ in chosen),
                marks=(mark(path), *(offset for _, offset, _ in chosen)),
                reader=Archive(path, chosen),
            )
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a readable tar file ({error})") from error
    if not count:
        raise DataError(f"{path}: there are no images in this archive")


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the images in a tar file, and after them those of links."""
    links: dict[str, str] = {}
    for member in _each(path):
        place = PurePosixPath(member.name)
        if member.isdir() or place.suffix.lower() not in IMAGE_SUFFIXES or is_hidden(place.parts):
            continue
        if member.islnk() or member.issym():
            links[posixpath.normpath(member.name)] = linked(member)
        else:
            yield member.name, member.offset_data, member.size
    if links:  # what they refer to may come after them, so the file is read again
        wanted = {*links.values()}
        offsets = {
            name: (member.offset_data, member.size)
            for member in _each(path)
            if member.isfile() and (name := posixpath.normpath(member.name)) in wanted
        }
        yield from resolved(links, offsets)


def _each(path: Path) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # else it stores every member
            yield member


def _in_parquet(path: Path, size: int) -> Iterator[Chunk]:
    column = image_column(path)
    if column is None:
        raise DataError(f"{path}: has no image column; name it one of {', '.join(IMAGE_COLUMNS)}")
    with open_parquet(path) as file:
        counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    starts = [sum(counts[:n]) for n in range(len(counts))]
    reader = Rows(tuple((path, n, start) for n, start in enumerate(starts)), column)
    for start, count in zip(starts, counts, strict=True):
        # A reader loads a complete row group, so a chunk never spans two groups.
        for first in range(start, start + count, size):
            rows = range(first, min(first + size, start + count))
            yield Chunk(
                names=tuple(f"{path} row {row}" for row in rows),
                marks=(mark(path),),
                reader=reader,
                first=first,
            )
