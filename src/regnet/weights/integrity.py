"""Verify files of weights by their SHA-256, which is cached.

The SHA-256 of a file is saved beside the file, and computed again when the size or the modification
time of the file has changed.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnet import digest
from regnet.atomic import write_bytes
from regnet.errors import NotFoundError, WeightsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The result of reading a file and comparing its SHA-256."""

    path: str
    sha256: str
    whole: bool
    """Whether the file has the expected SHA-256; true if none is known."""
    against: str
    """The origin of the expected SHA-256, or "nothing"."""


def unreadable(path: Path, error: OSError) -> WeightsError:
    """Return the error for a file that cannot be read: NotFoundError if it does not exist."""
    kind = NotFoundError if isinstance(error, FileNotFoundError) else WeightsError
    return kind(f"{path}: {error.strerror or error}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        return digest.of_file(path)
    except OSError as error:
        raise unreadable(path, error) from error


def verify(path: Path, sha256: str) -> None:
    """Compare the SHA-256 of a file with an expected SHA-256, or with the first digits of one.

    Raises:
        WeightsError: the file is missing, unreadable, or has another SHA-256.
    """
    found = sha256_of(path)
    if not found.startswith(sha256):
        raise WeightsError(
            f"{path}: the file is damaged: its SHA-256 begins with {found[:12]}, not "
            f"{sha256[:12]}; download or install it again"
        )


def intact(path: Path, sha256: str | None) -> bool:
    """Return whether a file has a SHA-256; it is computed only if the file has changed.

    Args:
        path: the file.
        sha256: the expected SHA-256, or its first digits; None: the one from the first reading.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    seen = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    remembered = _recall(path)
    known = str(remembered.pop("sha256", ""))
    if remembered == seen and known:
        return known.startswith(sha256 or "")
    found = sha256_of(path)
    if not found.startswith(sha256 or known):
        return False
    with suppress(OSError):  # in a read-only cache, the file is read again each time
        write_bytes(_record(path), json.dumps({"sha256": found} | seen).encode())
    return True


def forget(path: Path) -> None:
    """Delete the saved SHA-256 of a file."""
    _record(path).unlink(missing_ok=True)


def verify_file(path: Path, sha256: str | None = None) -> Verified:
    """Compare a file with a SHA-256: the given one, the one the server declared, or the saved one.

    Args:
        path: the file.
        sha256: the expected SHA-256, or at least 8 first digits of it.

    Raises:
        WeightsError: the file cannot be read, or the given SHA-256 is not valid.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise WeightsError(f"a SHA-256 needs 8 to 64 digits from 0 to f, got {sha256!r}")
    found = sha256_of(path)
    choices = (
        (sha256 and sha256.lower(), "the one given"),
        (declared_sha256(path), "the server's"),
        (_recall(path).get("sha256"), "the first reading"),
    )
    expected, against = next(((e, a) for e, a in choices if e), ("", "nothing"))
    return Verified(
        path=str(path), sha256=found, whole=found.startswith(str(expected)), against=against
    )


def declared_sha256(path: Path) -> str | None:
    """Return the SHA-256 that the Hub declared, which names the file behind its cache's link."""
    return as_sha256(path.resolve().name)


def as_sha256(text: object) -> str | None:
    """Return the text if it is a SHA-256, or None."""
    return text if isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) else None


def _record(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f".{path.name}.verified")


def _recall(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_record(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
