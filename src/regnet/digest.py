"""Digests of bytes, files and JSON values, to notice when they change."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

CHUNK: Final = 1 << 20
"""Number of bytes that are read from a file at once."""


def of_bytes(*parts: bytes) -> str:
    """Return the SHA-256 of the concatenated parts, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def of_file(path: Path) -> str:
    """Return the SHA-256 of the content of a file, as 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def has_sha1(path: Path, sha1: str) -> bool:
    """Return whether a small file has this SHA-1, by itself or as git computes it.

    The Hub names small files as git does, and some mirrors by the SHA-1 of the content alone.
    """
    data = path.read_bytes()
    header = b"blob %d\0" % len(data)
    return sha1 in {hashlib.sha1(part, usedforsecurity=False).hexdigest()
                    for part in (data, header + data)}  # fmt: skip


def of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, which does not depend on the order of keys or layout."""
    return of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
