"""Paths as people write them."""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return a path with ~ as the home folder; as it is where there is no such user or home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - the method of Path raises RuntimeError
