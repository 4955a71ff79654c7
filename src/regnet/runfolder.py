"""Lock the folder of a run, and record the settings that the run was started with.

Training, evaluation and studies write their files into folders that outlive the process. Each such
folder has at most one owner at a time, whose lock ends with its process, and one document
(`regnet.documents`) with the settings of the run. A run is therefore resumed with the settings it
was started with, or not at all.
"""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from regnet import documents
from regnet.errors import ConfigError

if TYPE_CHECKING:
    from regnet.process_group import Group

LOCK: Final = ".lock"
OWNER: Final = ".owner.json"
"""Describes the owner of the folder, for the error message of a second process; only the lock
decides who owns it."""


@contextmanager
def owned(folder: Path, doing: str, group: "Group | None" = None) -> Iterator[None]:
    """Own a folder until the end of the `with` statement; the folder is created if needed.

    The lock is also released when the process dies, and forked workers do not inherit it.

    Args:
        folder: the folder of the run.
        doing: what this process does there, such as "training", for the error message of others.
        group: the processes of one job; the first of them owns the folder for all.

    Raises:
        ConfigError: another process owns the folder, or it is a file.
        OSError: the folder cannot be created or written to.
    """
    lock, problem = None, None
    if group is None or group.leads:
        try:
            lock = _locked(folder, doing)
        except ConfigError as error:
            problem = error
    problems = [problem] if group is None else group.gather(problem)
    try:
        if found := next(filter(None, problems), None):
            raise ConfigError(str(found))
        yield
    finally:
        if lock is not None:
            _release(folder, lock)


def contents(folder: Path) -> list[str]:
    """Return the names of the files in a folder, without the files of this module."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name not in (LOCK, OWNER))


def begin(folder: Path, file: str, values: Any) -> None:
    """Write the document with the settings of a run into its folder.

    Args:
        folder: the folder of the run.
        file: name of the document.
        values: the settings.
    """
    documents.write(folder / file, values)


def begun(path: Path, file: str, what: str) -> dict[str, Any]:
    """Return the settings that the run of a folder was started with.

    Args:
        path: the folder, or the document itself.
        file: name of the document in the folder.
        what: what the folder should contain, such as "a run of `regnet train`".

    Raises:
        ConfigError: there is no such document, or it has changed since it was written.
    """
    document = path / file if path.is_dir() or path.suffix != ".json" else path
    try:
        return documents.read(document, f"the description of {what}")
    except FileNotFoundError as error:
        missing = f"there is no {file}; name the folder of {what}"
        if document is path:
            missing = "there is no such file"
        raise ConfigError(f"{path}: {missing}") from error


def _locked(folder: Path, doing: str) -> FileLock:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder} is in use{_owner(folder)}; wait until that process ends, or name another "
            "folder"
        ) from None
    documents.write(
        folder / OWNER,
        {
            "pid": os.getpid(),
            "host": platform.node(),
            "doing": doing,
            "command": Path(sys.argv[0]).name,
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )
    return lock


def _owner(folder: Path) -> str:
    """Return a description of the owner of a folder, or an empty text if it is unknown."""
    with suppress(ConfigError, OSError, KeyError):
        found = documents.read(folder / OWNER, "the owner of a folder")
        who = f"process {found['pid']} on {found['host']}"
        return f": {who} has been {found['doing']} there since {found['since']}"
    return ""


def _release(folder: Path, lock: FileLock) -> None:
    (folder / OWNER).unlink(missing_ok=True)
    if not contents(folder):  # nothing was written, so leave no trace
        (folder / LOCK).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
    lock.release()
