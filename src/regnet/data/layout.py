"""Find splits and classes of labelled images in folders and archives, and count what is left out.

The same rules apply to the paths of every kind of source.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

from regnet.data.images import IMAGE_SUFFIXES
from regnet.errors import DataError, NoSplitError

Split = Literal["train", "val"]

Parts: TypeAlias = tuple[str, ...]
"""A path relative to the source, split into its parts."""

SPLITS: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "eval", "test", "testing"),
}
"""Words, in any case, that mark folders and files of each split; the first one that occurs is
used."""

SYSTEM: Final = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini")
)
"""Files and folders of operating systems, ignored like names that begin with a dot."""

HIDDEN: Final = "hidden or of the system"
NO_CLASS: Final = "outside class folders"
NO_SPLIT: Final = "outside the splits"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The contents of a folder or an archive."""

    files: list[Parts] = field(default_factory=list)
    """Images, recognized by the extension of their names."""
    folders: set[Parts] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of files that are left out, by reason."""

    def add(self, parts: Parts) -> bool:
        """Add a file and the folders that contain it; return whether it is an image."""
        if reason := _reason_to_skip(parts):
            self.skipped[reason] += 1
            return False
        self.files.append(parts)
        self.folders.update(parts[:depth] for depth in range(1, len(parts)))
        return True


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """The images of a split, and their classes."""

    chosen: list[int]
    """Indices of the images in `Listing.files`."""
    names: list[str]
    """The class of each image."""
    classes: list[str]
    """All classes, sorted, including those without images."""
    skipped: Counter[str]


def told(skipped: Mapping[str, int]) -> str:
    """Format how many files were left out, by reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())


def normal(name: str) -> str:
    """Return a name in Unicode form NFC, because file systems differ in how they encode accents.

    Bytes that are not UTF-8 become escape sequences, so that every file can hold the name.
    """
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def is_hidden(parts: Iterable[str]) -> bool:
    """Return whether any part of a path is hidden or belongs to the operating system."""
    return any(part.startswith(".") or part.lower() in SYSTEM for part in parts)


def _reason_to_skip(parts: Parts) -> str | None:
    if is_hidden(parts):
        return HIDDEN
    suffix = PurePosixPath(parts[-1]).suffix.lower()
    return None if suffix in IMAGE_SUFFIXES else suffix or "without an extension"


def walk(folder: Path, depth: float = inf) -> Iterator[tuple[Parts, bool]]:
    """Yield each path in a folder, in order, and whether it is a folder.

    Hidden folders are left out. Links are followed, except links to a folder that contains them.

    Args:
        folder: the folder.
        depth: the most parts that a path may have.

    Raises:
        DataError: a folder cannot be listed.
    """
    yield from _walk(folder, (), frozenset(), depth)


def _walk(
    folder: Path, here: Parts, around: frozenset[Path], depth: float
) -> Iterator[tuple[Parts, bool]]:
    real = folder.resolve()
    if real in around or len(here) == depth:
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _is_folder(entry)) for entry in found)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    for name, is_folder in entries:
        if not is_folder:
            yield (*here, name), False
        elif not is_hidden([name]):
            yield (*here, name), True
            yield from _walk(folder / name, (*here, name), around | {real}, depth)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: a file that cannot be read
        return False


def listed(folder: Path) -> Listing:
    """Return the contents of a folder, as `walk` finds them."""
    found = Listing()
    for parts, is_folder in walk(folder):
        if is_folder:
            found.folders.add(parts)
        else:
            found.add(parts)
    return found


def split_of(name: str) -> Split | None:
    """Return the split that the name of a folder or file stands for, or None."""
    return next((s for s, known in SPLITS.items() if split_word(name) in known), None)


def split_word(name: str) -> str:
    """Return the first word in the name of a folder or file that stands for a split, or ""."""
    known = {word for words in SPLITS.values() for word in words}
    return next((word for word in re.findall("[a-z]+", name.lower()) if word in known), "")


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def choose(names: Sequence[str], split: Split, source: str, *, flat: Sequence[str] = ()) -> str:
    """Return which of the names, each the name of some split, is that of the wanted split.

    Args:
        names: names of folders, or words in the names of files.
        split: the wanted split.
        source: the source, for error messages.
        flat: folders of the wanted split that contain images without class folders.

    Raises:
        NoSplitError: none of the names is.
        DataError: several of the names could be.
    """
    for word in SPLITS[split]:
        found = [name for name in names if word in _words(name)]
        found = [name for name in found if name.lower() == word] or found
        if len(found) > 1:
            raise DataError(f"{source}: {' and '.join(found)} could be {split!r}; leave only one")
        if found:
            return found[0]
    if flat:
        raise NoSplitError(
            f"{source}: {flat[0]} holds images without class folders, so they have no labels; "
            f"there are no other images for {split!r}"
        )
    raise NoSplitError(f"{source}: has no images for {split!r}, only {', '.join(sorted(names))}")


def of_split(files: Sequence[Path], split: Split, root: Path, source: str) -> list[Path]:
    """Return the Parquet files whose name, or else folder, names the split; all if none does.

    Raises:
        NoSplitError: the files belong to other splits.
        DataError: the files belong to several data sets.
    """
    places = {file: file.relative_to(root).parts for file in files}
    words = {
        file: next(filter(None, map(split_word, (file.stem, *reversed(parts[:-1])))), "")
        for file, parts in places.items()
    }
    chosen = list(files)
    if held := {word for word in words.values() if word}:
        name = choose(sorted(held), split, source)
        chosen = [file for file in files if words[file] == name]
    folders: dict[str, str] = {}
    for file in chosen:  # folders that differ in a number, such as part-0 and part-1, are shards
        around = [part for part in places[file][:-1] if not split_word(part)]
        if around:
            folders[re.sub(r"\d+", "#", "/".join(around))] = "/".join(places[file][:-1])
    if len(folders) > 1:
        raise DataError(
            f"{source}: holds several data sets; pass one of its folders: "
            f"{', '.join(sorted(folders.values()))}"
        )
    return chosen


def missing_shards(files: Iterable[Path]) -> str | None:
    """Return the beginning of the name of a file that is missing among numbered ones, if any.

    Such names begin like train-00000-of-00003; the files are numbered from 0.
    """
    there: dict[tuple[Path, str, str], set[str]] = {}
    for file in files:
        if found := re.match(r"(.*-)(\d+)-of-(\d+)[-.]", file.name):
            begins, number, count = found.groups()
            there.setdefault((file.parent, begins, count), set()).add(number)
    for (_, begins, count), numbers in there.items():
        digits = len(next(iter(numbers)))
        wanted = {f"{number:0{digits}}" for number in range(int(count))}
        if lacking := wanted - numbers:
            return f"{begins}{min(lacking)}-of-{count}"
    return None


def arrange(listing: Listing, split: Split, source: str) -> Arranged:
    """Find the images of a split and their classes.

    Args:
        listing: the contents of a folder or an archive.
        split: the split to find.
        source: the source, for error messages.

    Raises:
        NoSplitError: the source has only other splits.
        DataError: it is not clear which folders are the classes.
    """
    skipped = Counter(listing.skipped)
    places = dict(enumerate(listing.files))
    folders = listing.folders
    while (around := _around_all(places, folders)) is not None:
        places, folders = _inside(around, places, folders)
    if splits := _splits(places, folders):
        flat = {p[0] for p in places.values() if len(p) == 2 and split_of(p[0]) == split}
        name = choose(splits, split, source, flat=sorted(flat))
        beside = [p for p in places.values() if p[0] not in splits and split_of(p[0]) is None]
        skipped[NO_SPLIT] += len(beside)
        places, folders = _inside(name, places, folders)
    _check_classes(places, source)
    labelled = {number: parts for number, parts in places.items() if len(parts) > 1}
    skipped[NO_CLASS] += len(places) - len(labelled)
    tops = {parts[0] for parts in folders}
    return Arranged(
        chosen=list(labelled),
        names=[normal(parts[0]) for parts in labelled.values()],
        classes=sorted({normal(name) for name in tops}),
        skipped=+skipped,
    )


def _inside(
    name: str, places: dict[int, Parts], folders: set[Parts]
) -> tuple[dict[int, Parts], set[Parts]]:
    return (
        {n: parts[1:] for n, parts in places.items() if len(parts) > 1 and parts[0] == name},
        {parts[1:] for parts in folders if len(parts) > 1 and parts[0] == name},
    )


def _holds_folders(name: str, places: dict[int, Parts], folders: set[Parts]) -> bool:
    """Return whether a folder contains folders, and no images beside them."""
    deep = any(parts[0] == name and len(parts) > 1 for parts in folders)
    return deep and not any(parts[0] == name and len(parts) == 2 for parts in places.values())


def _around_all(places: dict[int, Parts], folders: set[Parts]) -> str | None:
    """Return the one folder that contains everything and is no class or split, or None."""
    tops = {parts[0] for parts in folders}
    if len(tops) != 1 or any(len(parts) == 1 for parts in places.values()):
        return None
    [name] = tops
    several = len({parts[1] for parts in places.values() if len(parts) > 2}) > 1
    around = several or _holds_folders(name, places, folders)
    return name if around and split_of(name) is None else None


def _splits(places: dict[int, Parts], folders: set[Parts]) -> list[str]:
    """Return the folders that are splits. A class named "train" contains images, not folders.

    If all folders have the names of splits, those are splits that contain folders with images,
    although there may be images beside these.
    """
    tops = sorted({parts[0] for parts in folders})
    named = [name for name in tops if split_of(name)]
    all_named = len(named) == len(tops)
    deep = {parts[0] for parts in places.values() if len(parts) > 2} if all_named else set()
    return [name for name in named if name in deep or _holds_folders(name, places, folders)]


def _check_classes(places: dict[int, Parts], source: str) -> None:
    """Refuse classes that all contain folders of the same names: those may be the classes."""
    inside: dict[str, set[str]] = {}
    for parts in places.values():
        if len(parts) > 1:
            inside.setdefault(parts[0], set()).add(parts[1] if len(parts) > 2 else "")
    names = list(inside.values())
    if len(names) < 2 or len(names[0]) < 2 or "" in names[0] or any(n != names[0] for n in names):
        return
    held, tops = ", ".join(sorted(names[0])[:5]), ", ".join(sorted(inside)[:5])
    if all(map(split_of, names[0])):
        raise DataError(
            f"{source}: every class ({tops}) holds the folders {held}; put the class folders "
            "inside train and val, not train and val inside each class"
        )
    raise DataError(
        f"{source}: {tops} all hold folders with the same names ({held}), so it is not clear which "
        "are the classes; if the outer folders are splits, rename them to train and val"
    )
