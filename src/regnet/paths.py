"""Expand paths as people write them, and recognize what is there instead of the file."""

import os
from pathlib import Path
from typing import Final

LFS_ADVICE: Final = (
    "a pointer of Git LFS, not the file itself; `git lfs pull` in its repository fetches the file"
)


def expanded(path: str | Path) -> Path:
    """Return a path with ~ as the home folder; as it is where there is no such user or home."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - the method of Path raises RuntimeError


def is_lfs_pointer(start: bytes) -> bool:
    """Return whether a file that begins so is what Git leaves in place of a large file."""
    return start.startswith(b"version https://")
