"""The errors that callers may want to catch.

Each also derives from the built-in that a caller would expect, and its message is one line that
says what was wrong, with which value, and what to do about it.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class RegNetError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(RegNetError, ValueError):
    """An architecture, an option or a name that cannot be used."""


class WeightsError(RegNetError, RuntimeError):
    """Weights that cannot be found, read or trusted, or that do not fit the model."""


class ImageError(RegNetError, ValueError):
    """A file that cannot be used as an image."""


class DataError(RegNetError, ValueError):
    """A set of images that cannot be used."""


class NoSplitError(DataError):
    """A set of images that holds other splits, and not the one asked for."""


class TrainingError(RegNetError, RuntimeError):
    """Training that cannot go on; what was saved is still there."""


class StudyError(RegNetError, RuntimeError):
    """A study that cannot be used or go on; the networks that were trained are still there."""


class ExecutorError(RegNetError, RuntimeError):
    """Tasks that cannot be worked on: their processes do not start, or cannot send results."""


class MissingExtraError(RegNetError, ImportError):
    """An optional package is needed and not installed."""


class EngineError(RegNetError, RuntimeError):
    """A network cannot be run or exported in the way that was asked for."""


class LicenseWarning(UserWarning):
    """Weights whose license restricts their use, or does not say."""


def unknown(
    kind: str,
    name: object,
    known: Iterable[str],
    *,
    meant: Sequence[str] | None = None,
    listing: str | None = None,
) -> str:
    """Return the message for a name that does not exist: the nearest ones, and all there are.

    Args:
        kind: what the name should name, such as "engine".
        name: what was given.
        known: the names that exist.
        meant: names that may have been meant; None: the one of `known` that is most similar.
        listing: how to list the names where there are too many for a message.
    """
    names = list(known)
    if meant is None:
        meant = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    rest = listing or f"there are {', '.join(names)}"
    return f"there is no {kind} {name!r}{hint}; {rest}"


def in_one_line(error: BaseException, *, most: int | None = None) -> str:
    """Return the type and the message of another library's error as one line, cut to `most`."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]
