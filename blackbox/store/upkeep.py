"""Upkeep of a store file: what is in it, its check, and what goes out of it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blackbox.errors import StoreError
from blackbox.plurals import counted
from blackbox.store.database import Database
from blackbox.store.engines import engines_of
from blackbox.store.salvage import Remains, StoredPass, is_identity, is_whole
from blackbox.store.schema import (
    FULL,
    IO,
    StoreUnavailableError,
    add_rows,
    code_of,
    transaction,
)

__all__ = ["drop_rows", "info", "prune", "recover", "rows", "shrink", "used_bytes", "verify"]

_DAY = 86_400
_KEPT = 0.9  # how full a store is after the least recently used answers went
_ROWS = 1000  # read at a time, so that no reader holds up those who write

_log = logging.getLogger(__name__)


def info(db: sqlite3.Connection, path: Path, max_bytes: int) -> dict[str, Any]:
    """Return passes, LMs, bytes and days, as JSON data."""
    models = db.execute(
        "SELECT i.data, i.digest, COUNT(*), SUM(LENGTH(p.value)) FROM passes p "
        "JOIN identities i ON i.id = p.identity GROUP BY i.id ORDER BY 3 DESC"
    ).fetchall()
    total, first, last = db.execute("SELECT COUNT(*), MIN(made), MAX(used) FROM passes").fetchone()
    return {
        "path": str(path),
        "bytes": used_bytes(db),
        "max_bytes": max_bytes,
        "passes": total,
        "journal": db.execute("PRAGMA journal_mode").fetchone()[0],
        "first_made": _date(first),
        "last_used": _date(last),
        "models": [
            {
                "identity": data,
                "engines": engines_of(db, digest),
                "passes": count,
                "value_bytes": size,
            }
            for data, digest, count, size in models
            if is_identity(data, digest)
        ],
    }


def verify(db: sqlite3.Connection) -> tuple[int, list[int]]:
    """Return how many answers there are, and the rows of damaged ones.

    Raises
    ------
    sqlite3.DatabaseError
        If the file itself is damaged.
    """
    found = db.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(str(found).split()))
    total, broken = 0, []
    for row, key, whose, digest, value in db.execute(
        "SELECT p.id, p.key, i.digest, p.digest, p.value FROM passes p "
        "LEFT JOIN identities i ON i.id = p.identity"
    ):
        total += 1
        if not is_whole(key, whose, digest, value):
            broken.append(row)
    return total, broken


def rows(database: Database) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield identity as JSON, key and value of every whole row.

    Raises
    ------
    StoreError
        If the file turns out to be damaged, or is replaced, meanwhile.
    """
    last, opened = 0, database.n_opened
    while True:
        after = last

        def read(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return db.execute(
                "SELECT p.id, i.data, i.digest, p.key, p.digest, p.value FROM passes p "
                "LEFT JOIN identities i ON i.id = p.identity WHERE p.id > ? ORDER BY p.id LIMIT ?",
                (after, _ROWS),  # noqa: B023
            ).fetchall()

        some = database.run(read)
        if database.n_opened != opened:
            raise StoreError(f"the store {database.path} was replaced meanwhile: run this again")
        if not some:
            return
        last = some[-1][0]
        for _, data, whose, key, digest, value in some:
            if is_whole(key, whose, digest, value) and is_identity(data, whose):
                yield data, key, value


def prune(database: Database, older_than_days: float) -> int:
    """Drop answers that were not used for so many days, and give their space back."""
    oldest = int(max(0.0, time.time() - older_than_days * _DAY)) // _DAY
    gone = 0

    def drop(db: sqlite3.Connection) -> None:
        nonlocal gone
        with transaction(db):
            gone += db.execute("DELETE FROM passes WHERE used < ?", (oldest,)).rowcount
        db.execute("VACUUM")

    try:
        database.write(drop)
    except StoreUnavailableError as error:
        full = database.read_only or _code(error) in (FULL, IO)
        if not full:
            raise
        return gone + _prune_in_place(database, oldest)
    database.checkpoint(0)
    return gone


def _prune_in_place(database: Database, oldest: int) -> int:
    """Drop answers where the disk has no room for a journal: it is held in memory.

    A process that is killed meanwhile leaves a damaged file, of which all whole rows are read.
    """
    with database.lock:
        database.suspend()
        db = sqlite3.connect(database.path, timeout=1.0, isolation_level=None)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")  # no side file of shared memory
            db.execute("PRAGMA journal_mode = MEMORY")
            with transaction(db):
                gone = db.execute("DELETE FROM passes WHERE used < ?", (oldest,)).rowcount
            with contextlib.suppress(sqlite3.OperationalError):
                db.execute("VACUUM")
            return gone
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(
                f"{database.path} can't be pruned: {error}; on a full disk, end the other "
                "processes that have the store open, or free some space"
            ) from error
        finally:
            db.close()


def _code(error: StoreUnavailableError) -> int:
    return code_of(error.__cause__) if isinstance(error.__cause__, sqlite3.Error) else 0


def recover(into: Database, path: Path) -> tuple[int, int]:
    """Add every answer that can be read of a damaged file, which is not changed.

    Returns
    -------
    tuple of int
        Answers that were read, and those of them that the store did not have.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such file")
    with contextlib.ExitStack() as stack:
        try:
            remains = Remains(stack, path, into.identities)
        except OSError as error:
            raise StoreError(f"{path} can't be read: {error.strerror}") from error
        if not remains.is_ours:
            raise StoreError(f"{path} is not a store of this program: nothing is read of it")
        keys = {row.key for row in remains.rows() if isinstance(row, StoredPass)}
        added = into.write(lambda db: add_rows(db, remains.identities, remains.rows()))
    return len(keys), added


def drop_rows(db: sqlite3.Connection, path: Path, numbers: list[int]) -> None:
    """Drop damaged answers, and say so."""
    _log.warning("%s: %d damaged answers dropped; they are asked for again", path, len(numbers))
    with transaction(db):
        db.executemany("DELETE FROM passes WHERE id = ?", [(row,) for row in numbers])


def used_bytes(db: sqlite3.Connection) -> int:
    """Return the size of what is in the file."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def shrink(db: sqlite3.Connection, path: Path, max_bytes: int) -> None:
    """Let the least recently used answers go when the file is too large."""
    held = used_bytes(db)
    if held <= max_bytes:
        return
    with transaction(db):
        (count,) = db.execute("SELECT COUNT(*) FROM passes").fetchone()
        if not count:
            return
        each = held / count
        surplus = min(count, int((held - _KEPT * max_bytes) / each) + 1)
        db.execute(
            "DELETE FROM passes WHERE id IN (SELECT id FROM passes ORDER BY used, id LIMIT ?)",
            (surplus,),
        )
    _log.warning(
        "%s is over %d bytes: what was least recently used, %s, is gone; raise "
        "--store-max-bytes to keep more",
        path,
        max_bytes,
        counted(surplus, "answer"),
    )


def _date(day: Any) -> str | None:
    if not isinstance(day, int) or not 0 <= day < 10**6:  # none, or damaged
        return None
    return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY))
