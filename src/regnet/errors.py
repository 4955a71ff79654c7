"""The errors that callers may want to catch.

Each also derives from the built-in that a caller would expect, and its message is one line that
says what was wrong, with which value, and what to do about it.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import inf, nan
from numbers import Real
from typing import cast


class RegNetError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # Names and texts from outside are quoted in it; a terminal would obey what they hold.
        return printable(super().__str__())


class ConfigError(RegNetError, ValueError):
    """An architecture, an option or a name that cannot be used."""


class WeightsError(RegNetError, RuntimeError):
    """Weights that cannot be found, read or trusted, or that do not fit the model."""


class ImageError(RegNetError, ValueError):
    """A file that cannot be used as an image."""


class DataError(RegNetError, ValueError):
    """A set of images that cannot be used."""


class NotFoundError(ConfigError, DataError, ImageError, WeightsError):
    """A file, a folder or a name that was given, and that is not there."""


class NoSplitError(NotFoundError):
    """A set of images that holds other splits, and not the one asked for."""


class TrainingError(RegNetError, RuntimeError):
    """Training that cannot go on; what was saved is still there."""


class StudyError(RegNetError, RuntimeError):
    """A study that cannot be used or go on; the networks that were trained are still there."""


class FunctionError(ConfigError, StudyError):
    """A function that a space or a study names, and that cannot be imported."""


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


def check_number(
    name: str, value: object, *, least: float = -inf, most: float = inf, finite: bool = True
) -> None:
    """Refuse what is no number, not a number (NaN), or out of range; no comparison notices a NaN.

    Args:
        name: of the option, for the message.
        value: what was given.
        least: the smallest value that is allowed.
        most: the largest.
        finite: whether infinity is refused; else it stands for "no limit".

    Raises:
        ConfigError: the value cannot be used.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    number = cast("float", value) if real else nan
    if not least <= number <= most or (finite and number in (inf, -inf)):
        ends = [f"at least {least:g}"] * (least > -inf) + [f"at most {most:g}"] * (most < inf)
        needed = " and ".join(ends)
        raise ConfigError(f"{name} must be a number{needed and ', ' + needed}, got {value!r}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough; on a CPU, PyTorch has no type for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def in_one_line(error: BaseException, *, most: int | None = None) -> str:
    """Return the type and the message of another library's error as one line, cut to `most`."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


def printable(text: str) -> str:
    """Return a text with its control characters, which a terminal would obey, written out.

    Whatever comes from outside (files, servers, names) goes through it before it is shown.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
