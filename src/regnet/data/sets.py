"""Sets of labelled images: class folders, tar files, Parquet files, the Hub, or drawn shapes.

    images = open_set("imagenet/val")
    images.open(0), images.labels[0]

A set reads its images by index. No image is decoded before `open` is called, and a set can be
pickled and sent to other processes.
"""

import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regnet import digest
from regnet.data import shapes
from regnet.data.images import IMAGE_SUFFIXES
from regnet.data.layout import (
    SPLITS,
    Arranged,
    Listing,
    Parts,
    Split,
    arrange,
    is_hidden,
    listed,
    missing_shards,
    of_split,
    told,
    walk,
)
from regnet.data.readers import (
    IMAGE_COLUMNS,
    Archive,
    Files,
    Rows,
    Stored,
    column_of,
    image_column,
    linked,
    mark,
    open_parquet,
    refuse_compressed,
    resolved,
)
from regnet.data.sources import HUB_PREFIX
from regnet.errors import ConfigError, DataError, NoSplitError, NotFoundError
from regnet.hub.files import Repository
from regnet.hub.transfer import retrying
from regnet.paths import expanded

MOST_CLASSES: Final = 100_000
"""Without class names, the labels may have gaps if they stay below this number."""

LABEL_COLUMNS: Final = ("label", "labels", "fine_label", "wnid", "class_name", "cls")


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A set of labelled images."""

    source: str
    """The folder, file or data set, for messages."""
    names: Sequence[str]
    """The name of each image: its path in the folder or archive, or its row number."""
    labels: NDArray[np.int64]
    """(N,): indices into `classes`."""
    classes: tuple[str, ...]
    """Names of the classes in the source: of their folders, or from the metadata of the file."""
    reader: Stored
    sizes: Sequence[int] = ()
    """Bytes of each image file, or of each row group, for the fingerprint."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of files in the source that were left out, by reason."""

    @property
    def summary(self) -> str:
        """What was found, in one line."""
        parts = [f"{len(self):,} images of {len(self.present):,} classes"]
        if empty := [c for n, c in enumerate(self.classes) if n not in set(self.present)]:
            shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
            parts.append(f"{len(empty):,} classes without images ({shown})")
        if self.skipped:
            parts.append(f"skipped: {told(self.skipped)}")
        return f"{self.source}: {'; '.join(parts)}"

    def relabelled(self, classes: Sequence[str]) -> "ImageSet":
        """Return the same images with labels that are indices into another list of classes.

        Args:
            classes: names of classes, in any order; it must include every class that has images.

        Raises:
            DataError: a class with images is not in the list.
        """
        numbers = {name: number for number, name in enumerate(classes)}
        if odd := [
            self.classes[label] for label in self.present if self.classes[label] not in numbers
        ]:
            raise DataError(
                f"{self.source}: {len(odd)} of its classes are not among the trained classes: "
                f"{', '.join(odd[:5])}"
            )
        new = np.array([numbers.get(name, -1) for name in self.classes], dtype=np.int64)
        return replace(self, labels=new[self.labels], classes=tuple(classes))

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """Return one image, upright, in 8-bit RGB.

        Raises:
            ImageError: the image cannot be read.
        """
        return self.reader.open(index)

    def part(self, count: int) -> "ImageSet":
        """Return a subset with as equal a number of images per class as possible, always the same.

        Args:
            count: the number of images.

        Raises:
            DataError: the set has fewer images, or the count is less than 1.
        """
        if not 1 <= count <= len(self):
            raise DataError(f"{self.source}: {count} images were requested, it has {len(self)}")
        order = np.random.default_rng(0).permutation(len(self))
        # Take the first image of each class in this random order, then the second, and so on.
        place = np.empty(len(self), dtype=np.int64)
        for label in self.present:
            of_class = order[self.labels[order] == label]
            place[of_class] = np.arange(len(of_class))
        return self._chosen(order[np.argsort(place[order], kind="stable")][:count])

    def held_out(self, count: int) -> tuple["ImageSet", "ImageSet"]:
        """Return `count` of the images, always the same ones, and the rest.

        Classes are represented in proportion to their images. Each class keeps at least one image
        in the rest.

        Raises:
            DataError: the set is too small for that.
        """
        order = np.random.default_rng(0).permutation(len(self))
        by_class = order[np.argsort(self.labels[order], kind="stable")]
        _, first_of_class = np.unique(self.labels[by_class], return_index=True)
        free = np.delete(by_class, first_of_class)
        if not 1 <= count <= len(free):
            raise DataError(
                f"{self.source}: {count} of {len(self)} images cannot be held out; each of the "
                f"{len(self.present)} classes must keep one"
            )
        # At equal distances along the images sorted by class.
        held = free[((np.arange(count) + 0.5) * len(free) / count).astype(np.int64)]
        return self._chosen(held), self._chosen(np.setdiff1d(order, held))

    def _chosen(self, indices: NDArray[np.int64]) -> "ImageSet":
        """The images with these numbers, in the order of the whole set."""
        kept = np.sort(indices)
        return ImageSet(
            source=f"{self.source} ({len(kept)} of {len(self)})",
            names=[self.names[index] for index in kept],
            labels=self.labels[kept],
            classes=self.classes,
            reader=_Part(self.reader, tuple(kept.tolist())),
            # Files have a size per image. Row groups do not, so the sizes of all groups stay.
            sizes=[self.sizes[index] for index in kept]
            if len(self.sizes) == len(self)
            else self.sizes,
        )

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The indices of the classes that have images."""
        return tuple(np.unique(self.labels).tolist())

    @cached_property
    def fingerprint(self) -> str:
        """The first 16 digits of the SHA-256 of names, labels and sizes, which identify the set."""
        what = [list(self.names), self.classes, list(self.sizes)]
        return digest.of_bytes(json.dumps(what).encode(), self.labels.tobytes())[:16]

    @cached_property
    def modified(self) -> str:
        """The first 16 digits of the SHA-256 of when the files were modified.

        It notices other images in files of the same names and sizes. A copy of the files may have
        another value.
        """
        return digest.of_bytes(json.dumps([mark(path) for path in self.reader.files]).encode())[:16]


@dataclass(frozen=True)
class _Part:
    reader: Stored
    kept: tuple[int, ...]

    @property
    def files(self) -> Sequence[Path]:
        found = self.reader.files
        one_each = isinstance(self.reader, Files | _Part) and len(found) > max(self.kept)
        return [found[index] for index in self.kept] if one_each else found

    def open(self, index: int) -> Image.Image:
        return self.reader.open(self.kept[index])


def open_set(source: str | Path, split: Split = "val") -> ImageSet:
    """Open a folder, a tar file, Parquet files, or a data set of the Hub as a set of images.

    Args:
        source: one of: a folder with one folder per class; a `.tar` file with such folders; a
            `.parquet` file, or a folder of them, with the columns `image` (or `img`) and `label`,
            as on the Hub; a data set of the Hub, whose Parquet files are downloaded
            (`hf:owner/name`, `hf:owner/name@revision` or `hf:owner/name/folder`); or `shapes`,
            which are drawn (`./shapes` is a folder).
        split: the split to open if the source has several.

    Raises:
        ConfigError: the source is neither a string nor a path.
        NoSplitError: the source has only other splits.
        DataError: the source does not exist, contains no images, or lacks what a set needs.
        MissingExtraError: the source is a Parquet file, and pyarrow is not installed.
    """
    if not isinstance(source, (str, Path)):
        raise ConfigError(
            f"images are given as a path, hf:owner/name or shapes; got {type(source).__name__}"
        )
    if source == shapes.NAME:
        return _drawn(split)
    if str(source).startswith(HUB_PREFIX):
        return _open_parquet(fetch(str(source).removeprefix(HUB_PREFIX), split), str(source))
    path = expanded(source)
    if path.is_dir():
        return _open_folder(path, split)
    if not path.exists():
        raise NotFoundError(
            f"{path}: there is no such file or folder; pass a path, hf:owner/name, or shapes"
        )
    if path.suffix.lower() == ".parquet":
        return _open_parquet([path], str(path))
    if path.suffix.lower() == ".tar":
        return _open_tar(path, split)
    refuse_compressed(path)
    raise DataError(f"{path}: not a folder, .tar or .parquet file")


def _drawn(split: Split) -> ImageSet:
    count = shapes.COUNTS[split]
    return ImageSet(
        source=shapes.NAME,
        names=[str(index) for index in range(count)],
        labels=np.arange(count, dtype=np.int64) % len(shapes.CLASSES),
        classes=shapes.CLASSES,
        reader=shapes.Shapes(split),
        sizes=(shapes.VERSION,),
    )


def _parquet_in(folder: Path) -> list[Path]:
    """Return the Parquet files in a folder, or up to two folders deep as in copies from the Hub.

    Those without images, such as predictions, are left out if there are others or class folders.
    """
    found = [
        parts
        for parts, is_folder in walk(folder, depth=3)
        if not (is_folder or is_hidden(parts)) and parts[-1].lower().endswith(".parquet")
    ]
    least = min(map(len, found), default=0)
    files = [folder.joinpath(*parts) for parts in found if len(parts) == least]
    with_images = [file for file in files if _may_hold_images(file)]
    return with_images if with_images or listed(folder).files else files


def _may_hold_images(file: Path) -> bool:
    try:
        return image_column(file) is not None
    except DataError:  # whoever opens the file reports what is wrong
        return True


def refuse_new_class(out: Path, source: str | Path) -> None:
    """Refuse a new folder that would become a class of the images around it.

    Args:
        out: the folder, which need not exist.
        source: a source of images, as `open_set` takes it. Only folders can contain others.

    Raises:
        ConfigError: the folder would change the classes.
    """
    folder = expanded(source)
    try:
        parts = out.resolve().relative_to(folder.resolve()).parts
    except ValueError:
        return
    if not folder.is_dir() or is_hidden(parts) or _parquet_in(folder):
        return
    listing = listed(folder)
    around = {parts[:depth] for depth in range(1, len(parts) + 1)}
    files = [file for file in listing.files if file[: len(parts)] != parts]
    used = {file[:depth] for file in files for depth in range(1, len(file))}
    without = {p for p in listing.folders if p[: len(parts)] != parts and p not in around - used}
    for split in SPLITS:
        try:
            before, after = (
                arrange(replace(listing, folders=set(folders)), split, str(source)).classes
                for folders in (without, without | around)
            )
        except DataError:  # whoever opens the images reports what is wrong
            continue
        if before and before != after:
            raise ConfigError(
                f"{out} lies among the class folders of {source} and would become a class; name a "
                "folder elsewhere"
            )


def _open_folder(path: Path, split: Split) -> ImageSet:
    if files := _parquet_in(path):
        return _open_parquet(of_split(files, split, path, str(path)), str(path))
    listing = listed(path)
    if not listing.folders:
        held = "holds no folders" if listing.files or listing.skipped else "is empty"
        raise DataError(f"{path}: {held}; it must contain one folder of images per class")
    found = arrange(listing, split, str(path))
    places = [listing.files[number] for number in found.chosen]
    paths = tuple(path.joinpath(*parts) for parts in places)
    return _labelled(
        str(path),
        found,
        names=["/".join(parts) for parts in places],
        sizes=[file.stat().st_size if file.exists() else 0 for file in paths],
        reader=Files(paths),
    )


def _open_tar(path: Path, split: Split) -> ImageSet:
    listing = Listing()
    held: dict[Parts, tuple[int, int]] = {}
    links: dict[str, str] = {}
    offsets: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if not parts:  # the folder that was packed
                    continue
                if member.isdir():
                    if not is_hidden(parts):
                        listing.folders.add(parts)
                elif member.islnk() or member.issym():
                    image = PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES
                    if image and not is_hidden(parts):
                        links["/".join(parts)] = linked(member)
                elif member.isfile():
                    offsets["/".join(parts)] = member.offset_data, member.size
                    if listing.add(parts):
                        held[parts] = member.offset_data, member.size
        for name, offset, bytes_ in resolved(links, offsets):
            if bytes_ < 0:
                listing.skipped["links to nothing in the archive"] += 1
            elif listing.add(parts := PurePosixPath(name).parts):
                held[parts] = offset, bytes_
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: not a readable tar file ({error})") from error
    listing.files[:] = sorted(held)
    found = arrange(listing, split, str(path))
    members = tuple(
        ("/".join(parts), *held[parts]) for parts in map(listing.files.__getitem__, found.chosen)
    )
    return _labelled(
        str(path),
        found,
        names=[name for name, _, _ in members],
        sizes=[size for _, _, size in members],
        reader=Archive(path, members),
    )


def _labelled(
    source: str, found: Arranged, *, names: list[str], sizes: list[int], reader: Stored
) -> ImageSet:
    if not names:
        endings = ", ".join(sorted(IMAGE_SUFFIXES))
        left_out = f"; skipped: {told(found.skipped)}" if found.skipped else ""
        raise DataError(f"{source}: there are no images in class folders ({endings}){left_out}")
    numbers = {name: number for number, name in enumerate(found.classes)}
    return ImageSet(
        source=source,
        names=names,
        labels=np.array([numbers[name] for name in found.names], dtype=np.int64),
        classes=tuple(found.classes),
        sizes=sizes,
        reader=reader,
        skipped=dict(found.skipped),
    )


def _ends_as_parquet(path: Path) -> bool:
    """Return whether a file ends as a Parquet file does, which one that was cut does not."""
    with path.open("rb") as file:
        return path.stat().st_size > 8 and file.seek(-4, os.SEEK_END) > 0 and file.read() == b"PAR1"


def fetch(asked: str, split: Split) -> list[Path]:
    """Return the Parquet files of a split of a data set of the Hub, downloaded if necessary.

    Args:
        asked: the data set, as `open_set` takes it, without `hf:`.
        split: the split.

    Raises:
        NoSplitError: the data set has only other splits.
        DataError: the data set cannot be downloaded, or has no Parquet files.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    source = f"{HUB_PREFIX}{asked}"
    named, _, revision = asked.partition("@")
    owner, _, rest = named.partition("/")
    name, _, folder = rest.partition("/")
    repository, commit = f"{owner}/{name}", revision or None
    try:
        if constants.HF_HUB_OFFLINE:
            root = Path(
                snapshot_download(
                    repository, repo_type="dataset", revision=commit, local_files_only=True
                )
            )
            held = [path.relative_to(root) for path in sorted(root.rglob("*.parquet"))]
            get: Callable[[str], Path] = root.joinpath
        else:
            info = retrying(lambda: HfApi().dataset_info(repository, revision=commit))
            there = Repository(
                name=repository, type="dataset", revision=info.sha or "",
                cache=Path(constants.HF_HUB_CACHE), also=commit or "main",
            )  # fmt: skip
            get = partial(there.get, intact=_ends_as_parquet)
            names = sorted(s.rfilename for s in info.siblings or ())
            held = [Path(n) for n in names if n.endswith(".parquet")]
        held = [path for path in held if Path(folder) in path.parents]
        if not held:
            raise DataError(
                f"{source}: no Parquet files found; try the revision @refs/convert/parquet"
            )
        chosen = of_split(held, split, Path(folder), source)
        if constants.HF_HUB_OFFLINE and (lacking := missing_shards(chosen)):
            raise DataError(
                f"{source}: only a part of it is in the cache, without {lacking}; allow access to "
                "the network"
            )
        return [get(path.as_posix()) for path in chosen]
    except GatedRepoError as error:
        raise DataError(
            f"{source}: access is restricted; request it at "
            f"https://huggingface.co/datasets/{repository}, then run `hf auth login`"
        ) from error
    except DataError:
        raise
    except Exception as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{source}: cannot be downloaded: {reason}") from error


def _open_parquet(files: Sequence[Path], source: str) -> ImageSet:
    labels: list[Any] = []
    names: list[str] = []
    groups: list[tuple[Path, int, int]] = []
    sizes: list[int] = []
    classes: tuple[str, ...] | None = None
    for path in files:
        with open_parquet(path) as file:
            columns = file.schema_arrow.names
            image, label = (column_of(columns, known) for known in (IMAGE_COLUMNS, LABEL_COLUMNS))
            if image is None or label is None:
                raise DataError(
                    f"{path}: needs columns 'image' (or 'img') and 'label', "
                    f"has {', '.join(columns)}"
                )
            classes = classes or _class_names(file.schema_arrow.metadata, label)
            for group in range(file.num_row_groups):
                groups.append((path, group, len(labels)))
                sizes.append(file.metadata.row_group(group).total_byte_size)
                rows = file.read_row_group(group, [label, f"{image}.path"])
                held = rows[image].to_pylist() if image in rows.column_names else []
                paths = [cell and cell.get("path") for cell in held] or [None] * rows.num_rows
                first = len(labels)
                names += [p or f"row {first + n}" for n, p in enumerate(paths)]
                labels += rows[label].to_pylist()
    if not labels:
        raise DataError(f"{source}: has no rows")
    if all(isinstance(label, str) for label in labels):
        classes = tuple(sorted(set(labels)))
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[label] for label in labels]
    # pandas turns whole numbers into floats where it joins tables.
    labels = [int(x) if isinstance(x, float) and x.is_integer() else x for x in labels]
    if any(not isinstance(label, int) for label in labels):
        raise DataError(f"{source}: labels must all be whole numbers, or all be names")
    if max(labels) < 0:
        raise NoSplitError(f"{source}: its labels are not public, all are {max(labels)}")
    if max(labels) >= max(len(labels), MOST_CLASSES):
        raise DataError(
            f"{source}: a label is {max(labels)}, with {len(labels):,} rows; labels must number "
            "the classes from 0 up"
        )
    known = classes or tuple(str(number) for number in range(max(labels) + 1))
    if min(labels) < 0 or max(labels) >= len(known):
        raise DataError(
            f"{source}: labels run from {min(labels)} to {max(labels)}, but there are "
            f"{len(known)} classes; data sets of the Hub have -1 where labels are not public"
        )
    return ImageSet(
        source=source,
        names=names,
        labels=np.array(labels, dtype=np.int64),
        classes=known,
        sizes=sizes,
        reader=Rows(tuple(groups), image or "image"),
    )


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """Return the names of the classes in the metadata that the Hub writes into a Parquet file."""
    try:
        described = json.loads((metadata or {})[b"huggingface"])
        names = described["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed and names else None
