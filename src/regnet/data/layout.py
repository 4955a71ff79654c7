"""How labelled images lie in folders and archives: splits, classes, and what is left out.

Paths are taken apart by one rule, wherever they come from.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal, TypeAlias

from regnet.data.images import IMAGE_SUFFIXES
from regnet.errors import DataError, NoSplitError

Split = Literal["train", "val"]

Parts: TypeAlias = tuple[str, ...]
"""A path, relative to the source, taken apart."""

SPLITS: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "eval", "test", "testing"),
}
"""Words in the names of folders and files of each split, in any case; the first that exists."""

SYSTEM: Final = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini")
)
"""What systems leave in folders, beside names that begin with a dot."""

HIDDEN: Final = "hidden, or of the system"
NO_CLASS: Final = "in no class folder"
NO_SPLIT: Final = "beside the splits"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a folder or an archive."""

    files: list[Parts] = field(default_factory=list)
    """Images, by the endings of their names."""
    folders: set[Parts] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that are left out, by reason."""

    def add(self, parts: Parts) -> bool:
        """Add a file, and the folders around it; return whether it is an image."""
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
    """Numbers of the listed files."""
    names: list[str]
    """The class of each."""
    classes: list[str]
    """All, in order, those without images too."""
    skipped: Counter[str]


def told(skipped: Mapping[str, int]) -> str:
    """Say how many files were left out for which reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())


def normal(name: str) -> str:
    """Return a name with its accents written one way (NFC): file systems differ in that."""
    return unicodedata.normalize("NFC", name)


def is_hidden(parts: Iterable[str]) -> bool:
    """Return whether a path leads through what people do not see."""
    return any(part.startswith(".") or part.lower() in SYSTEM for part in parts)


def _reason_to_skip(parts: Parts) -> str | None:
    if is_hidden(parts):
        return HIDDEN
    suffix = PurePosixPath(parts[-1]).suffix.lower()
    return None if suffix in IMAGE_SUFFIXES else suffix or "without an ending"


def walk(folder: Path) -> Iterator[tuple[Parts, bool]]:
    """Yield each path in a folder, at any depth and in order, and whether it is a folder.

    Hidden folders are left out; links are followed, but for those in circles.

    Raises:
        DataError: a folder cannot be listed.
    """
    yield from _walk(folder, (), frozenset())


def _walk(folder: Path, here: Parts, around: frozenset[Path]) -> Iterator[tuple[Parts, bool]]:
    real = folder.resolve()
    if real in around:
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir()) for entry in found)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    for name, is_folder in entries:
        if not is_folder:
            yield (*here, name), False
        elif not is_hidden([name]):
            yield (*here, name), True
            yield from _walk(folder / name, (*here, name), around | {real})


def listed(folder: Path) -> Listing:
    """Return what lies in a folder, as `walk` finds it."""
    found = Listing()
    for parts, is_folder in walk(folder):
        if is_folder:
            found.folders.add(parts)
        else:
            found.add(parts)
    return found


def split_of(name: str) -> Split | None:
    """Return the split that a folder's or a file's name stands for."""
    return next((s for s, known in SPLITS.items() if _words(name) & set(known)), None)


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def choose(names: Sequence[str], split: Split, source: str, *, flat: Sequence[str] = ()) -> str:
    """Return which of the names, all of splits, is this split's.

    Args:
        names: of folders, or words in the names of files.
        split: which.
        source: where they are, for messages.
        flat: folders of this split that hold images without classes.

    Raises:
        NoSplitError: none is.
        DataError: several could be.
    """
    for word in SPLITS[split]:
        found = [name for name in names if word in _words(name)]
        found = [name for name in found if name.lower() == word] or found
        if len(found) > 1:
            raise DataError(f"{source}: {' and '.join(found)} could be {split!r}; name one of them")
        if found:
            return found[0]
    if flat:
        raise NoSplitError(
            f"{source}: {flat[0]} holds images without class folders, which have no labels; "
            f"of {split!r} there is nothing else"
        )
    raise NoSplitError(f"{source}: has no images for {split!r}, only {', '.join(sorted(names))}")


def arrange(listing: Listing, split: Split, source: str) -> Arranged:
    """Find the images of a split and their classes.

    Raises:
        NoSplitError: there are other splits only.
        DataError: it cannot be told which folders are the classes.
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
    """Whether a folder holds folders, and no image beside them."""
    deep = any(parts[0] == name and len(parts) > 1 for parts in folders)
    return deep and not any(parts[0] == name and len(parts) == 2 for parts in places.values())


def _around_all(places: dict[int, Parts], folders: set[Parts]) -> str | None:
    """The one folder that holds all others, which is neither a class nor a split."""
    tops = {parts[0] for parts in folders}
    if len(tops) != 1 or any(len(parts) == 1 for parts in places.values()):
        return None
    [name] = tops
    several = len({parts[1] for parts in places.values() if len(parts) > 2}) > 1
    around = several or _holds_folders(name, places, folders)
    return name if around and split_of(name) is None else None


def _splits(places: dict[int, Parts], folders: set[Parts]) -> list[str]:
    """Folders of splits. A class may be called "train" too, but it holds images, not folders."""
    tops = sorted({parts[0] for parts in folders})
    return [name for name in tops if split_of(name) and _holds_folders(name, places, folders)]


def _check_classes(places: dict[int, Parts], source: str) -> None:
    """Refuse classes that all hold folders of the same names: those may be the classes."""
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
            f"{source}: every class ({tops}) holds the folders {held}; put train and val around "
            "the classes, not inside"
        )
    raise DataError(
        f"{source}: {tops} all hold folders of the same names ({held}), so that it is not clear "
        "which are the classes; if they are splits, call them train and val"
    )
