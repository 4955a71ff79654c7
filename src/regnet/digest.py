"""SHA-256 digests of what must not change unnoticed: bytes, files and JSON values."""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

CHUNK: Final = 1 << 20
"""Bytes that are read from a file at once."""


def of_bytes(*parts: bytes) -> str:
    """Return the 64 hexadecimal digits of the SHA-256 of these bytes, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def of_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value; the order of its keys and its layout do not matter."""
    return of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
