"""Where a population lies: one SQLite file, a committed row per network.

Any process may die at any time: what was committed stays, and what was being trained is free again
once its owner is gone. SQLite's write-ahead log needs all processes that open a store on one host;
workers elsewhere report to the process that drives them.
"""

import contextlib
import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock, Timeout

from regnet.atomic import writing
from regnet.errors import StudyError

FILE: Final = "study.db"
COPY: Final = "study-copy.db"
OWNERS: Final = "owners"

_COPY_AFTER: Final = 25
"""Results from one copy of the file to the next; a damaged file costs at most so many."""

Status = Literal["pending", "running", "done", "failed"]

_WAIT: Final = 60.0
"""Seconds to wait for another process's transaction."""

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
  digest TEXT,
  UNIQUE (space, number)
)
"""

_SELECT: Final = (
    "SELECT id, space, number, config, metrics, seed, status, attempts, outcome, digest "
    "FROM networks"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A network of a population."""

    id: int
    space: str
    number: int
    """From 0, in its space."""
    config: dict[str, Any]
    metrics: dict[str, float]
    """Parameters and complexity."""
    seed: int
    status: Status = "pending"
    attempts: int = 0
    """How often its training was begun."""
    outcome: dict[str, Any] | None = None
    """What came out: errors by epoch, seconds, host, fingerprints; or why nothing did."""


class Store:
    """The networks of a study. Methods raise StudyError where the file cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / FILE
        self._lock: FileLock | None = None
        self.owner = ""
        self._finished = 0
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
        """Give back what this process was training, and close the file."""
        if self._lock is not None:
            with contextlib.suppress(StudyError):  # an owner that is gone gives back as well
                self._free(self.owner)
            self._lock.release()
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock = None
            if self._finished:
                self._copy()
        self._connection.close()

    def add(self, rows: Iterable[Row]) -> None:
        """Networks to train; those that are there already stay as they are."""
        with self._transaction():
            self._connection.executemany(
                "INSERT OR IGNORE INTO networks (space, number, config, metrics, seed) "
                "VALUES (?, ?, ?, ?, ?)",
                [
                    (r.space, r.number, json.dumps(r.config), json.dumps(r.metrics), r.seed)
                    for r in rows
                ],
            )

    def claim(self) -> Row | None:
        """The next network to train, which from now on is this process's; None where none is left.

        Spaces take turns, so that a part of a study compares all of them.
        """
        self._own()
        with self._transaction():
            found = self._rows("status = 'pending' ORDER BY number, space LIMIT 1")
            if not found:
                return None
            self._connection.execute(
                "UPDATE networks SET status = 'running', owner = ?, attempts = attempts + 1 "
                "WHERE id = ?",
                (self.owner, found[0].id),
            )
        return found[0]

    def finish(self, row: Row, outcome: dict[str, Any], *, failed: bool) -> Row:
        """Keep what came out of a network that this process claimed; returns the row as it is."""
        text = json.dumps(outcome)
        status: Status = "failed" if failed else "done"
        with self._transaction():
            changed = self._connection.execute(
                "UPDATE networks SET status = ?, owner = NULL, outcome = ?, digest = ? "
                "WHERE id = ? AND status = 'running' AND owner = ?",
                (status, text, _digest(row, text), row.id, self.owner),
            ).rowcount
        if changed != 1:
            raise StudyError(
                f"{self.path}: {row.space} number {row.number} is no longer this process's; "
                "another one took it over"
            )
        self._finished += 1
        if self._finished % _COPY_AFTER == 0:
            self._copy()
        return replace(row, status=status, attempts=row.attempts + 1, outcome=outcome)

    def restore(self, rows: Iterable[Row]) -> None:
        """Results of networks that this store has, from another."""
        with self._transaction():
            self._connection.executemany(
                "UPDATE networks SET status = ?, attempts = ?, outcome = ?, digest = ? "
                "WHERE space = ? AND number = ? AND config = ? AND seed = ?",
                [
                    (r.status, r.attempts, text, _digest(r, text), r.space, r.number,
                     json.dumps(r.config), r.seed)
                    for r in rows
                    for text in [json.dumps(r.outcome)]
                ],
            )  # fmt: skip

    def rows(self, *statuses: Status) -> list[Row]:
        """Networks by space and number; of some statuses only, if any are named.

        Raises:
            StudyError: a row is not as it was written; `recover` keeps the others.
        """
        where = f"status IN ({', '.join('?' * len(statuses))})" if statuses else "1"
        return self._rows(f"{where} ORDER BY space, number", statuses)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many networks of each space have each status."""
        found: dict[str, dict[str, int]] = {}
        with self._explained():
            for space, status, count in self._connection.execute(
                "SELECT space, status, count(*) FROM networks GROUP BY space, status"
            ):
                found.setdefault(space, {})[status] = count
        return found

    def free_orphans(self) -> int:
        """Networks whose owner is gone are free again; returns how many."""
        with self._explained():
            owners = [
                name
                for (name,) in self._connection.execute(
                    "SELECT DISTINCT owner FROM networks WHERE status = 'running'"
                )
            ]
        freed = 0
        for name in owners:
            if name == self.owner:
                continue
            lock = FileLock(self._lock_path(name))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue  # it lives
            freed += self._free(name)
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
        return freed

    def retry_failed(self) -> int:
        """Networks whose training failed are to be trained again; returns how many."""
        with self._transaction():
            return self._connection.execute(
                "UPDATE networks SET status = 'pending', outcome = NULL, digest = NULL "
                "WHERE status = 'failed'"
            ).rowcount

    def check(self) -> None:
        """Read everything.

        Raises:
            StudyError: the file is damaged.
        """
        with self._explained():
            [(told,)] = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
            if told != "ok":
                raise StudyError(self._damaged(told))
        self.rows()

    def _rows(self, where: str, values: Sequence[Any] = ()) -> list[Row]:
        with self._explained():
            found = self._connection.execute(f"{_SELECT} WHERE {where}", values).fetchall()
            return [_row(values) for values in found]

    def _copy(self) -> None:
        with (
            self._explained(),
            writing(self.folder / COPY) as path,
            contextlib.closing(sqlite3.connect(path)) as copy,
        ):
            self._connection.backup(copy)

    def _own(self) -> None:
        """From the first claim on this process holds a lock, which goes when the process does."""
        if self._lock is None:
            self.owner = uuid.uuid4().hex
            (self.folder / OWNERS).mkdir(exist_ok=True)
            self._lock = FileLock(self._lock_path(self.owner))
            self._lock.acquire(timeout=0)

    def _lock_path(self, owner: str) -> Path:
        return self.folder / OWNERS / f"{owner}.lock"

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
        except sqlite3.OperationalError as error:
            raise StudyError(f"{self.path}: {error}; what was committed is kept") from error
        except (sqlite3.DatabaseError, ValueError) as error:
            raise StudyError(self._damaged(str(error))) from error

    def _damaged(self, told: str) -> str:
        reason = " ".join(told.split())
        return (
            f"{self.path} is damaged ({reason}); `regnet study recover {self.folder}` keeps what "
            "can be read, and the rest is trained again"
        )


def recover(folder: Path, count: int) -> tuple[list[Row], Path]:
    """Read what a damaged store and its copy still hold, row by row, and put the file aside.

    Args:
        folder: of the study.
        count: networks that there were.

    Returns:
        The trained networks that are as they were written, and where the old file lies now.
    """
    rows: dict[int, Row] = {}
    for path in (folder / COPY, folder / FILE):
        if not path.exists():
            continue
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT)) as connection:
            for at in range(1, count + 1):
                with contextlib.suppress(sqlite3.DatabaseError, ValueError):
                    found = connection.execute(f"{_SELECT} WHERE id = ?", (at,)).fetchone()
                    row = _row(found) if found else None
                    if row and row.outcome is not None:
                        rows[at] = row
    path = folder / FILE
    kept = folder / f"{FILE}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return list(rows.values()), kept


def _row(values: Sequence[Any]) -> Row:
    """A row of the table; ValueError where it is not as it was written."""
    at, space, number, config, metrics, seed, status, attempts, outcome, digest = values
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
    if outcome is not None and _digest(row, outcome) != digest:
        raise ValueError(f"{space} number {number} is not as it was written")
    return row


def _digest(row: Row, outcome: str) -> str:
    """Of what a result is and of which network: SQLite itself does not notice a changed byte."""
    what = json.dumps([row.space, row.number, row.config, row.metrics, row.seed, outcome])
    return hashlib.sha256(what.encode()).hexdigest()
