"""Expand paths that users write, and recognize Git LFS pointers in place of files."""

import os
from pathlib import Path
from typing import Final

LFS_ADVICE: Final = (
    "a pointer of Git LFS, not the file itself; `git lfs pull` in its repository fetches the file"
)


def expanded(path: str | Path) -> Path:
    """Return a path with ~ expanded to the home folder, or unchanged if there is no such folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def is_lfs_pointer(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a Git LFS pointer to a large file."""
    return start.startswith(b"version https://")
