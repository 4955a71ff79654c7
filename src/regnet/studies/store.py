"""The store of a study: one SQLite file with a committed row per network.

Any process may die at any time. Committed results stay, and a network that was being trained can be
claimed again once its owner is gone. Because of SQLite's write-ahead log, all processes that open a
store must run on one host. Workers on other hosts report to the process that drives them.
"""

import contextlib
import json
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from regnet import digest
from regnet.errors import StudyError, shell
from regnet.studies.journal import Journal

FILE: Final = "study.db"
_PARTS: Final = ("", "-wal", "-shm")
"""Suffixes of the files of a SQLite store: the database, its log, and the index of the log."""

OWNERS: Final = "owners"
"""Folder with a lock file per process that trains networks of the study."""

Status = Literal["pending", "running", "done", "failed"]

_WAIT: Final = 60.0
"""Seconds to wait for the transaction of another process."""

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS networks (
  id INTEGER PRIMARY KEY,
  space TEXT NOT NULL,
  number INTEGER NOT NULL,
  config TEXT NOT NULL,
  metrics TEXT NOT NULL,
  seed INTEGER NOT NULL,
  status TEXT NOT NULL DEFAULT 'pending',
  owner TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  outcome TEXT,
  digest TEXT NOT NULL,
  UNIQUE (space, number)
)
"""

_SELECT: Final = (
    "SELECT id, space, number, config, metrics, seed, status, attempts, outcome, digest "
    "FROM networks"
)

_ROOM: Final = 10_000
"""Number of ids that recovery tries beyond the number of networks of the study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A network of a population."""

    id: int
    space: str
    number: int
    """Number in its space, from 0."""
    config: dict[str, Any]
    metrics: dict[str, float]
    """Values of its parameters and its complexity."""
    seed: int
    status: Status = "pending"
    attempts: int = 0
    """How often a process claimed it. Repetitions inside an executor are not counted."""
    outcome: dict[str, Any] | None = None
    """The result: errors by epoch, seconds, host and fingerprints, or the reason of a failure."""


class Store:
    """The networks of a study. All methods raise StudyError if the file cannot be used."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder, self.path = folder, folder / FILE
        self.journal = Journal(folder)
        self._lock: FileLock | None = None
        self.owner = ""
        if not create and not self.path.is_file():
            raise StudyError(
                f"{self.path} is missing; {shell('regnet', 'study', 'recover', folder)} rebuilds "
                f"it with the results of {self.journal.path.name}"
            )
        with self._explained():
            self._connection = sqlite3.connect(
                self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute(_TABLE)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the networks that this process claimed, and close the file."""
        try:
            if self._lock is not None:
                # If this fails, another process can release them once the lock is removed below.
                with contextlib.suppress(StudyError):
                    self._free(self.owner)
                self._lock.release()
                Path(self._lock.lock_file).unlink(missing_ok=True)
                self._lock = None
        finally:
            self._connection.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Add networks, trained or not. Those that are in the store already are not changed."""
        with self._transaction():
            self._connection.executemany(
                "INSERT OR IGNORE INTO networks "
                "(space, number, config, metrics, seed, status, attempts, outcome, digest) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (r.space, r.number, json.dumps(r.config), json.dumps(r.metrics), r.seed,
                     r.status, r.attempts, outcome, _digest(r, r.status, outcome))
                    for r in rows
                    for outcome in [None if r.outcome is None else json.dumps(r.outcome)]
                ],
            )  # fmt: skip

    def claim(self, spaces: Sequence[str]) -> Row | None:
        """Claim the next network to train for this process; return None if none is left.

        The spaces take turns, so that an unfinished study can already compare all of them.
        """
        self._own()
        marks = ", ".join("?" * len(spaces))
        with self._transaction():
            found = self._rows(
                f"status = 'pending' AND space IN ({marks}) ORDER BY number, id LIMIT 1", spaces
            )
            if found:
                self._connection.execute(
                    "UPDATE networks SET status = 'running', owner = ?, attempts = attempts + 1 "
                    "WHERE id = ?",
                    (self.owner, found[0].id),
                )
        if found:
            return found[0]
        return self.claim(spaces) if self.free_orphans() else None

    def finish(self, row: Row, outcome: dict[str, Any], *, failed: bool) -> Row:
        """Commit the outcome of a network that this process claimed, and return its new row."""
        text = json.dumps(outcome)
        status: Status = "failed" if failed else "done"
        with self._transaction():
            changed = self._connection.execute(
                "UPDATE networks SET status = ?, owner = NULL, outcome = ?, digest = ? "
                "WHERE id = ? AND status = 'running' AND owner = ?",
                (status, text, _digest(row, status, text), row.id, self.owner),
            ).rowcount
        if changed != 1:
            raise StudyError(
                f"{self.path}: {row.space} number {row.number} is no longer claimed by this "
                "process; another one took it over"
            )
        self.journal.add((row.space, row.number), outcome)
        return replace(row, status=status, attempts=row.attempts + 1, outcome=outcome)

    def rows(self, *statuses: Status) -> list[Row]:
        """Return the networks in the order of space and number, optionally only some statuses.

        All rows are read and checked in any case, so that a damaged row cannot stay unnoticed.

        Raises:
            StudyError: the file is damaged, or lacks results that the journal has; `recover`
                restores them.
        """
        self.check()
        rows = self._rows("1 ORDER BY space, number")
        return [row for row in rows if not statuses or row.status in statuses]

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the networks of each space by status, to show progress; rows are not checked."""
        found: dict[str, dict[str, int]] = {}
        with self._explained():
            for space, status, count in self._connection.execute(
                "SELECT space, status, count(*) FROM networks GROUP BY space, status"
            ):
                found.setdefault(space, {})[status] = count
        return found

    def free_orphans(self) -> int:
        """Release the networks of processes that have ended, and return how many there were."""
        with self._explained():
            owners = [
                name
                for (name,) in self._connection.execute(
                    "SELECT DISTINCT owner FROM networks WHERE status = 'running'"
                )
            ]
        freed = 0
        for name in owners:
            if name != self.owner:
                with _taken(self.folder / OWNERS / f"{name}.lock") as gone:
                    freed += self._free(name) if gone else 0
        return freed

    def retry_failed(self) -> int:
        """Mark the networks whose training failed as pending, and return how many there are.

        Networks that could not be built when they were drawn stay failed: no process ever claimed
        them.
        """
        failed = [row for row in self.rows("failed") if row.attempts]
        for row in failed:
            self.journal.add((row.space, row.number), None)
        with self._transaction():
            self._connection.executemany(
                "UPDATE networks SET status = 'pending', outcome = NULL, digest = ? WHERE id = ?",
                [(_digest(row, "pending", None), row.id) for row in failed],
            )
        return len(failed)

    def check(self) -> None:
        """Check all rows, and compare them with the journal.

        Raises:
            StudyError: the file is damaged, or lacks results that the journal has.
        """
        # The journal is read first. A network that another process finishes in between is then only
        # in the store, which is no error.
        results = self.journal.results()
        with self._explained():
            rows = _check(self._connection)
        finished = {(row.space, row.number): row.outcome for row in rows if row.outcome is not None}
        lost = [key for key, outcome in results.items() if finished.get(key) != outcome]
        if lost:
            raise StudyError(
                f"{self.path} lacks {len(lost)} of {len(results)} results; "
                f"{shell('regnet', 'study', 'recover', self.folder)} restores them from "
                f"{self.journal.path.name}"
            )

    def _rows(self, where: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._explained():
            found = self._connection.execute(f"{_SELECT} WHERE {where}", values).fetchall()
            return [_row(values) for values in found]

    def _own(self) -> None:
        """Take a lock at the first claim; the system releases it when this process ends."""
        if self._lock is None:
            self.owner = uuid.uuid4().hex
            (self.folder / OWNERS).mkdir(exist_ok=True)
            self._lock = FileLock(self.folder / OWNERS / f"{self.owner}.lock")
            self._lock.acquire(timeout=0)

    def _free(self, owner: str) -> int:
        with self._transaction():
            return self._connection.execute(
                "UPDATE networks SET status = 'pending', owner = NULL "
                "WHERE status = 'running' AND owner = ?",
                (owner,),
            ).rowcount

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, ValueError) as error:
            reason = " ".join(str(error).split())
            transient = isinstance(error, sqlite3.OperationalError)
            # "Could not decode to UTF-8" is an OperationalError, too, but it means damaged text.
            if transient and "decode" not in reason:
                raise StudyError(f"{self.path}: {reason}; committed results are safe") from error
            raise StudyError(
                f"{self.path} is damaged ({reason[:200]}); "
                f"{shell('regnet', 'study', 'recover', self.folder)} saves what can be read, and "
                f"{shell('regnet', 'study', 'run', self.folder)} trains the rest again"
            ) from error


def recover(folder: Path, rows: Sequence[Row]) -> tuple[int, Path | None]:
    """Rebuild a damaged or lost store from the results that it and the journal still have.

    Args:
        folder: the folder of the study.
        rows: all networks of the study, without results.

    Returns:
        The number of recovered results, and the new path of the former file; None if there was no
        file.

    Raises:
        StudyError: a process is training the study.
    """
    for lock in (folder / OWNERS).glob("*.lock"):
        with _taken(lock) as gone:
            if not gone:
                raise StudyError(f"{folder}: a process is training this study; end it first")
    path, journal = folder / FILE, Journal(folder)
    results = {
        (row.space, row.number): row.outcome for row in _readable(path, len(rows)) if row.outcome
    } | journal.readable()
    restored = [_restored(row, results.get((row.space, row.number))) for row in rows]
    kept = None
    with tempfile.TemporaryDirectory(dir=folder, prefix=".recover-") as new:
        with Store(Path(new), create=True) as store:
            store.add(restored)
        former = folder / f"{FILE}.former-{uuid.uuid4().hex[:8]}"
        for suffix in _PARTS:
            part = path.with_name(path.name + suffix)
            if part.exists():
                moved = part.rename(former.with_name(former.name + suffix))
                kept = kept or moved
        (Path(new) / FILE).rename(path)
    found = [row for row in restored if row.outcome is not None]
    journal.replace(((row.space, row.number), row.outcome) for row in found if row.outcome)
    return len(found), kept


def _restored(row: Row, outcome: dict[str, Any] | None) -> Row:
    """Return a network with its former outcome."""
    if outcome is None or row.outcome is not None:  # a network that cannot be built stays so
        return row
    status: Status = "done" if "error" in outcome else "failed"
    return replace(row, status=status, attempts=1, outcome=outcome)


def _readable(path: Path, count: int) -> Iterator[Row]:
    """Return the rows that have a result and are not damaged.

    They are read from a copy, because SQLite deletes a log that it cannot use, and the log may
    contain results.
    """
    if not path.is_file():
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for suffix in _PARTS:
            part = path.with_name(path.name + suffix)
            if part.is_file():
                shutil.copy(part, folder)
        connection = sqlite3.connect(Path(folder) / path.name, timeout=_WAIT)
        stack.enter_context(contextlib.closing(connection))
        for at in range(1, count + _ROOM):
            with contextlib.suppress(sqlite3.DatabaseError, ValueError):
                found = connection.execute(f"{_SELECT} WHERE id = ?", (at,)).fetchone()
                row = _row(found) if found else None
                if row and row.outcome is not None:
                    yield row


def _check(connection: sqlite3.Connection) -> list[Row]:
    """Return all rows.

    Raises:
        sqlite3.DatabaseError: the file is damaged.
        ValueError: a row is damaged.
    """
    [(answer,)] = connection.execute("PRAGMA integrity_check(1)").fetchall()
    if answer != "ok":
        raise sqlite3.DatabaseError(answer)
    return [_row(values) for values in connection.execute(_SELECT)]


@contextlib.contextmanager
def _taken(path: Path) -> Iterator[bool]:
    """Return whether the owner of a lock has ended; if so, remove the lock file at the end."""
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
        path.unlink(missing_ok=True)


def _row(values: Sequence[Any]) -> Row:
    """Build a row from the columns of the table; raise ValueError if it is damaged."""
    at, space, number, config, metrics, seed, status, attempts, outcome, written = values
    with contextlib.suppress(TypeError):  # a flipped bit can give a value another type
        row = Row(
            id=at,
            space=space,
            number=number,
            config=json.loads(config),
            metrics=json.loads(metrics),
            seed=seed,
            status=status,
            attempts=attempts,
            outcome=json.loads(outcome) if outcome is not None else None,
        )
        if _digest(row, status, outcome) == written:
            return row
    raise ValueError(f"{space!r} number {number!r} is not as it was written")


def _digest(row: Row, status: str, outcome: str | None) -> str:
    """Return the digest of a network and its result, since SQLite does not notice a changed byte.

    The statuses pending and running give the same digest, because they change without a new one.
    """
    final = "open" if status in ("pending", "running") else status
    what = json.dumps([row.space, row.number, row.config, row.metrics, row.seed, final, outcome])
    return digest.of_bytes(what.encode())
