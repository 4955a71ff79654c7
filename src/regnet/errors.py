"""The errors that callers may want to catch, and functions for their messages.

Each error also derives from the built-in exception that a caller would expect. Its message is one
line that says what was wrong, with which value, and what to do about it.
"""

import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from math import inf, nan
from numbers import Integral, Real
from typing import cast


class RegNetError(Exception):
    """Base class of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # Messages quote names and texts from outside, whose control characters a terminal obeys.
        return printable(super().__str__())


class ConfigError(RegNetError, ValueError):
    """Raised when an architecture, an option or a name cannot be used."""


class WeightsError(RegNetError, RuntimeError):
    """Raised when weights cannot be found, read or trusted, or do not fit the model."""


class ImageError(RegNetError, ValueError):
    """Raised when a file cannot be used as an image."""


class DataError(RegNetError, ValueError):
    """Raised when a set of images cannot be used."""


class NotFoundError(ConfigError, DataError, ImageError, WeightsError):
    """Raised when a given file, folder or name does not exist."""


class NoSplitError(NotFoundError):
    """Raised when a set of images has splits, but not the requested one."""


class TrainingError(RegNetError, RuntimeError):
    """Raised when training cannot continue; what it has saved is still there."""


class StudyError(RegNetError, RuntimeError):
    """Raised when a study cannot be used or continue; its trained networks are still there."""


class FunctionError(ConfigError, StudyError):
    """Raised when a function that a space or a study names cannot be imported."""


class ExecutorError(RegNetError, RuntimeError):
    """Raised when tasks cannot run, because processes do not start or cannot send results."""


class MissingExtraError(RegNetError, ImportError):
    """Raised when a required optional package is not installed."""


class EngineError(RegNetError, RuntimeError):
    """Raised when a network cannot be run or exported as requested."""


class LicenseWarning(UserWarning):
    """Warning about weights whose license restricts their use, or is unknown."""


def unknown(
    kind: str,
    name: object,
    known: Iterable[str],
    *,
    meant: Sequence[str] | None = None,
    listing: str | None = None,
) -> str:
    """Return the error message for an unknown name, with similar names and all known names.

    Args:
        kind: what the name should be the name of, such as "engine".
        name: the name that was given.
        known: the names that exist.
        meant: names to suggest; None: the most similar one of `known`, if any is similar.
        listing: a sentence that says how to list the names, if there are too many for a message.
    """
    names = list(known)
    if meant is None:
        meant = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    rest = listing or f"there are {', '.join(names)}"
    return f"there is no {kind} {name!r}{hint}; {rest}"


def shell(*words: object) -> str:
    """Return a command to type, for a message: in backquotes, with paths quoted where needed."""
    return f"`{shlex.join(map(str, words))}`"


def check_number(
    name: str, value: object, *, least: float = -inf, most: float = inf, finite: bool = True
) -> None:
    """Check that an option is a number within a range; NaN is never accepted.

    A separate check is needed because every comparison with NaN is false, so that `value < least`
    does not notice it.

    Args:
        name: the name of the option, for the error message.
        value: the value that was given.
        least: the smallest allowed value.
        most: the largest allowed value.
        finite: whether infinity is refused; otherwise it stands for "no limit".

    Raises:
        ConfigError: the value is not a number, or is out of range.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    number = cast("float", value) if real else nan
    if not least <= number <= most or (finite and number in (inf, -inf)):
        ends = [f"at least {least:g}"] * (least > -inf) + [f"at most {most:g}"] * (most < inf)
        needed = " and ".join(ends)
        raise ConfigError(f"{name} must be a number{needed and ', ' + needed}, got {value!r}")


def check_whole(name: str, value: object, *, least: int, most: float = inf) -> int:
    """Return a whole number as Python's `int`, in which nothing overflows.

    Args:
        name: the name of the option, for the error message.
        value: the value that was given; NumPy's whole numbers are accepted.
        least: the smallest allowed value.
        most: the largest allowed value.

    Raises:
        ConfigError: the value is not a whole number, or is out of range.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not least <= int(cast("int", value)) <= most:
        ends = f" from {least} to {most}" if most < inf else f" of at least {least}"
        raise ConfigError(f"{name} must be a whole number{ends}; got {value!r}")
    return int(cast("int", value))


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory.

    On a CPU, PyTorch has no type for this error, so that only its message tells.
    """
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def in_one_line(error: BaseException, *, most: int | None = None) -> str:
    """Return type and message of another library's error in one line, cut to `most` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


def printable(text: str) -> str:
    """Return a text with its control characters escaped, so that a terminal does not obey them.

    Every text from outside (files, servers, names) passes through this function before it is shown.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
