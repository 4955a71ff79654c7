"""The errors that callers may want to catch.

Each also derives from the built-in that a caller would expect, and its message is one line that
says what was wrong, with which value, and what to do about it.
"""

from collections.abc import Iterable
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


class MissingExtraError(RegNetError, ImportError):
    """An optional package is needed and not installed."""


class EngineError(RegNetError, RuntimeError):
    """A network cannot be run or exported in the way that was asked for."""


class LicenseWarning(UserWarning):
    """Weights whose license restricts their use, or does not say."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, if any."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def in_one_line(error: BaseException, *, most: int | None = None) -> str:
    """An error of another library, which may be of many lines: its type and message, cut."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]
