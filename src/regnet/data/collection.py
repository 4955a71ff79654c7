"""Any images, labelled or not, in chunks: however many there are, only a chunk is in memory.

    for chunk in chunks(["photos/", "shard-000.tar", "more.parquet"], 1024):
        chunk.names, chunk.open(0)

The same sources give the same chunks, in the same order.
"""

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
from regnet.data.readers import IMAGE_COLUMNS, Archive, Files, Reader, Rows, open_parquet
from regnet.data.sets import fetch
from regnet.data.sources import HUB_PREFIX
from regnet.errors import DataError, NotFoundError
from regnet.paths import expanded

ARCHIVES: Final = (".tar", ".parquet")
"""Files that hold images, by their endings."""

COMPRESSED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some images of a source."""

    names: tuple[str, ...]
    """Where each lies: a path, a path in an archive, or a row of a file."""
    marks: tuple[int, ...]
    """What changes with the images' files, such as sizes and times."""
    reader: Reader
    first: int = 0
    """The reader's number of the first."""

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """One image, 8-bit RGB, upright.

        Raises:
            ImageError: it cannot be read.
        """
        return self.reader.open(self.first + index)

    @property
    def digest(self) -> str:
        """Whether it is the same chunk: SHA-256 over names and marks, 16 digits."""
        return digest.of_json([self.names, self.marks])[:16]


def chunks(
    sources: Sequence[str],
    size: int,
    *,
    split: Split = "val",
    without: Collection[Path] = (),
) -> Iterator[Chunk]:
    """The images of all sources, at most `size` in a chunk.

    Args:
        sources: image files; folders, of which all images are taken, at any depth, and those in
            `.tar` and `.parquet` files too; such files; data sets of the Hub (`hf:owner/name`).
        size: most images of a chunk.
        split: which images of a data set of the Hub.
        without: files and folders to leave out.

    Raises:
        NotFoundError: a source is not there.
        DataError: it holds no images, or an archive or a folder cannot be read.
        MissingExtraError: Parquet files need pyarrow.
    """
    left_out = {path.resolve() for path in without}
    places = (place for source in sources for place in _places(source, split, left_out))
    for suffix, group in groupby(places, key=_kind):
        if not suffix:
            while paths := tuple(islice(group, size)):
                yield Chunk(
                    names=tuple(map(str, paths)), marks=tuple(map(_mark, paths)),
                    reader=Files(paths),
                )  # fmt: skip
        for path in group:
            yield from (_in_tar if suffix == ".tar" else _in_parquet)(path, size)


def _places(source: str, split: Split, without: Collection[Path]) -> Iterator[Path]:
    """The files of a source: of images, and archives."""
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
    if path.name.lower().endswith(COMPRESSED):
        raise DataError(f"{path}: compressed, so that no image can be found alone; unpack it first")
    yield path


def _usable(path: Path, without: Collection[Path]) -> bool:
    """Whether a file in a folder holds images."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES and suffix not in ARCHIVES:
        return False
    resolved = path.resolve()
    if any(place == resolved or place in resolved.parents for place in without):
        return False
    return suffix != ".parquet" or _image_column(path) is not None


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return suffix if suffix in ARCHIVES else ""


def _mark(path: Path) -> int:
    try:
        found = path.stat()
    except OSError:
        return 0
    return found.st_size ^ found.st_mtime_ns


def _in_tar(path: Path, size: int) -> Iterator[Chunk]:
    members: list[tuple[str, int, int]] = []
    count = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it would remember all
                parts = PurePosixPath(member.name).parts
                image = member.isfile() and PurePosixPath(member.name).suffix.lower()
                if image not in IMAGE_SUFFIXES or is_hidden(parts):
                    continue
                members.append((member.name, member.offset_data, member.size))
                count += 1
                if len(members) == size:
                    yield _chunk_of_tar(path, members)
                    members = []
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a tar file that can be read ({error})") from error
    if not count:
        raise DataError(f"{path}: there are no images in this archive")
    if members:
        yield _chunk_of_tar(path, members)


def _chunk_of_tar(path: Path, members: Sequence[tuple[str, int, int]]) -> Chunk:
    return Chunk(
        names=tuple(f"{path}/{name}" for name, _, _ in members),
        marks=(_mark(path), *(offset for _, offset, _ in members)),
        reader=Archive(path, tuple(members)),
    )


def _in_parquet(path: Path, size: int) -> Iterator[Chunk]:
    column = _image_column(path)
    if column is None:
        raise DataError(f"{path}: has no column of images ({', '.join(IMAGE_COLUMNS)})")
    with open_parquet(path) as file:
        counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    starts = [sum(counts[:n]) for n in range(len(counts))]
    reader = Rows(tuple((path, n, start) for n, start in enumerate(starts)), column)
    for start, count in zip(starts, counts, strict=True):
        # Chunks end with groups: a group is read as a whole.
        for first in range(start, start + count, size):
            rows = range(first, min(first + size, start + count))
            yield Chunk(
                names=tuple(f"{path} row {row}" for row in rows),
                marks=(_mark(path),),
                reader=reader,
                first=first,
            )


def _image_column(path: Path) -> str | None:
    """The column that holds images, as bytes or as the Hub keeps them; None where none does."""
    with open_parquet(path) as file:
        schema = file.schema_arrow
    for name in IMAGE_COLUMNS:
        if name in schema.names:
            kind = str(schema.field(name).type)
            if kind.startswith(("binary", "large_binary", "struct")):
                return name
    return None
