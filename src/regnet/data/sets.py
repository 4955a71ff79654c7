"""Labelled images, wherever they lie: class folders, tar files, Parquet files, the Hub.

    images = open_set("imagenet/val")
    images.open(0), images.labels[0]

A set knows its images by number; nothing is decoded before it is asked for, and a set can be sent
to other processes.
"""

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regnet.data.images import IMAGE_SUFFIXES, decode_image, open_image
from regnet.errors import DataError, MissingExtraError

Split = Literal["train", "val"]

SPLITS: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
}
"""What folders and files of each split are called, the first that exists."""

HUB_PREFIX = "hf:"


class Reader(Protocol):
    """How the images of a set are read."""

    def open(self, index: int) -> Image.Image:
        """One image, 8-bit RGB, upright; raises ImageError where it cannot be read."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images."""

    source: str
    """Where they lie, for messages."""
    names: Sequence[str]
    """Of the images: paths in the folder or archive, or numbers of rows."""
    labels: NDArray[np.int64]
    """(N,): indices into `classes`."""
    classes: tuple[str, ...]
    """As the source calls them: names of folders, or what the file says."""
    reader: Reader

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """One image, 8-bit RGB, upright.

        Raises:
            ImageError: it cannot be read.
        """
        return self.reader.open(index)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and labels, 16 digits: whether it is the same set."""
        digest = hashlib.sha256(json.dumps([list(self.names), self.classes]).encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]


def open_set(source: str | Path, split: Split = "val") -> ImageSet:
    """The images of a folder, a tar file, Parquet files, or a data set of the Hub.

    Args:
        source: a folder with one folder per class; a `.tar` file of such folders; a `.parquet`
            file, or a folder of them (columns `image` or `img`, and `label`, as on the Hub); or
            `hf:owner/name`, whose Parquet files are fetched. Of a source that holds several
            splits, one is taken.
        split: which.

    Raises:
        DataError: there is nothing there, or not what a set needs.
        MissingExtraError: Parquet files need pyarrow.
    """
    if str(source).startswith(HUB_PREFIX):
        return _open_parquet(_fetch(str(source).removeprefix(HUB_PREFIX), split), str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, split)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; name one, or hf:owner/name")
    if path.suffix == ".parquet":
        return _open_parquet([path], str(path))
    if path.suffix == ".tar":
        return _open_tar(path)
    if path.name.endswith((".tar.gz", ".tgz")):
        raise DataError(f"{path}: compressed, so that no image can be found alone; unpack it first")
    raise DataError(f"{path}: not a folder, .tar or .parquet file")


def _open_folder(path: Path, split: Split) -> ImageSet:
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in inside if entry.suffix == ".parquet"]
    if not files and (path / "data").is_dir():  # a checkout of a data set of the Hub
        files = sorted((path / "data").glob("*.parquet"))
    if files:
        return _open_parquet(_of_split(files, split) or files, str(path))
    folders = [entry for entry in inside if entry.is_dir()]
    for name in SPLITS[split]:
        if path / name in folders:
            return _open_folder(path / name, split)
    if not folders:
        held = "is empty" if not inside else "holds no folders"
        raise DataError(f"{path}: {held}; images must lie in one folder per class")
    images = [
        (folder.name, file)
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    paths = tuple(file for _, file in images)
    return _labelled(
        str(path),
        names=[file.relative_to(path).as_posix() for file in paths],
        folders=[name for name, _ in images],
        classes=[folder.name for folder in folders],
        reader=_Files(paths),
    )


def _open_tar(path: Path) -> ImageSet:
    try:
        with tarfile.open(path, "r:") as archive:
            members = [
                (PurePosixPath(m.name), m.offset_data, m.size)
                for m in archive
                if m.isfile() and PurePosixPath(m.name).suffix.lower() in IMAGE_SUFFIXES
            ]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a tar file that can be read ({error})") from error
    members.sort()
    folders = [name.parent.name for name, _, _ in members]
    return _labelled(
        str(path),
        names=[str(name) for name, _, _ in members],
        folders=folders,
        classes=sorted(set(folders)),
        reader=_Archive(path, tuple((str(n), offset, size) for n, offset, size in members)),
    )


def _labelled(
    source: str, *, names: list[str], folders: list[str], classes: list[str], reader: Reader
) -> ImageSet:
    if not names:
        raise DataError(
            f"{source}: there are no images in it ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[folder] for folder in folders], dtype=np.int64)
    return ImageSet(
        source=source, names=names, labels=labels, classes=tuple(classes), reader=reader
    )


def _of_split(files: Sequence[Path], split: Split) -> list[Path]:
    for name in SPLITS[split]:
        if chosen := [file for file in files if file.name.split(".")[0].split("-")[0] == name]:
            return chosen
    return []


def _fetch(repository: str, split: Split) -> list[Path]:
    """The Parquet files of a split, from a data set of the Hub."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name, _, revision = repository.partition("@")
    commit = revision or None
    try:
        names = HfApi().list_repo_files(name, repo_type="dataset", revision=commit)
        held = [Path(file) for file in names if file.endswith(".parquet")]
        if not held:
            raise DataError(
                f"{HUB_PREFIX}{repository}: it holds no Parquet files; try @refs/convert/parquet"
            )
        chosen = _of_split(held, split)
        if not chosen:
            raise DataError(f"{HUB_PREFIX}{repository}: it has no split {split!r}")
        return [
            Path(hf_hub_download(name, str(file), repo_type="dataset", revision=commit))
            for file in chosen
        ]
    except (HfHubHTTPError, OSError) as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{HUB_PREFIX}{repository}: cannot be fetched: {reason}") from error


def _open_parquet(files: Sequence[Path], source: str) -> ImageSet:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files need pyarrow, which is not installed; pip install 'regnet[train]'"
        ) from error
    labels: list[int] = []
    groups: list[tuple[Path, int, int]] = []
    classes: tuple[str, ...] | None = None
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                image = next((c for c in ("image", "img") if c in columns), None)
                label = next((c for c in ("label", "labels", "fine_label") if c in columns), None)
                if image is None or label is None:
                    raise DataError(
                        f"{path}: needs columns 'image' (or 'img') and 'label', "
                        f"has {', '.join(columns)}"
                    )
                classes = classes or _class_names(file.schema_arrow.metadata, label)
                for group in range(file.num_row_groups):
                    groups.append((path, group, len(labels)))
                    labels += file.read_row_group(group, [label])[label].to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            [reason, *_] = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{path}: not a Parquet file that can be read ({reason})") from error
    if not labels:
        raise DataError(f"{source}: there are no rows in it")
    if any(not isinstance(label, int) for label in labels):
        raise DataError(f"{source}: labels must be whole numbers, and some are missing or not")
    known = classes or tuple(str(number) for number in range(max(labels) + 1))
    if min(labels) < 0 or max(labels) >= len(known):
        raise DataError(
            f"{source}: labels run from {min(labels)} to {max(labels)}, but there are "
            f"{len(known)} classes; a data set of the Hub has -1 where labels are kept secret"
        )
    return ImageSet(
        source=source,
        names=[f"row {number}" for number in range(len(labels))],
        labels=np.array(labels, dtype=np.int64),
        classes=known,
        reader=_Rows(tuple(groups), image or "image"),
    )


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """What the Hub's description of a file calls the classes."""
    try:
        described = json.loads((metadata or {})[b"huggingface"])
        return tuple(described["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class _Files:
    paths: tuple[Path, ...]

    def open(self, index: int) -> Image.Image:
        return open_image(self.paths[index])


@dataclass(frozen=True)
class _Archive:
    path: Path
    members: tuple[tuple[str, int, int], ...]
    """Name, offset and size."""

    def open(self, index: int) -> Image.Image:
        name, offset, size = self.members[index]
        with self.path.open("rb") as file:
            file.seek(offset)
            return decode_image(file.read(size), f"{self.path}/{name}")


class _Rows:
    """Rows of Parquet files; the groups of rows read last stay in memory."""

    kept = 4

    def __init__(self, groups: tuple[tuple[Path, int, int], ...], column: str) -> None:
        self.groups = groups
        """File, number of the group in it, and first row."""
        self.column = column
        self._starts = np.array([start for _, _, start in groups])
        self._read: dict[int, list[Any]] = {}

    def open(self, index: int) -> Image.Image:
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        path, _, start = self.groups[group]
        cell = self._rows(group)[index - start]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        return decode_image(data or b"", f"{path} row {index}")

    def _rows(self, group: int) -> list[Any]:
        if group not in self._read:
            import pyarrow.parquet as parquet

            path, number, _ = self.groups[group]
            while len(self._read) >= self.kept:
                self._read.pop(next(iter(self._read)))
            with parquet.ParquetFile(path) as file:
                rows = file.read_row_group(number, [self.column])[self.column].to_pylist()
            self._read[group] = rows
        return self._read[group]
