"""The tables of a store file: how one is recognised, prepared, and given rows."""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from blackbox.errors import StoreError
from blackbox.store.encoding import check_of
from blackbox.store.salvage import APPLICATION, StoredPass, StoredToken, token_check

__all__ = [
    "BUSY",
    "BUSY_SECONDS",
    "CANT_OPEN",
    "CORRUPT",
    "FULL",
    "IO",
    "READ_ONLY",
    "StoreUnavailableError",
    "add_identity",
    "add_rows",
    "code_of",
    "connect",
    "connect_read_only",
    "is_foreign",
    "is_overwritten",
    "place_of",
    "refuse_foreign",
    "side_files",
    "transaction",
]

BUSY_SECONDS = 10.0
"""The time to wait for another process that has the file."""

BUSY, READ_ONLY, IO, CORRUPT, FULL, CANT_OPEN = 5, 8, 10, 11, 13, 14
_NOT_A_DATABASE = 26
_PAUSE_SECONDS = 0.05
_SCHEMA = 1
_OURS = {"meta", "identities", "passes", "tokens", "claims"}

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS identities
    (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS passes
    (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, identity INTEGER NOT NULL,
     made INTEGER NOT NULL, used INTEGER NOT NULL, digest BLOB NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tokens
    (identity INTEGER NOT NULL, token INTEGER NOT NULL, bytes BLOB NOT NULL,
     digest BLOB NOT NULL, PRIMARY KEY (identity, token)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims
    (key BLOB PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS workers
    (owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, beat INTEGER NOT NULL)
    WITHOUT ROWID;
"""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class StoreUnavailableError(StoreError):
    """The file can't be used now: it is locked, the disk is full, another file is in its place."""


def connect(path: Path) -> sqlite3.Connection:
    """Return a connection to a store file that can be written, its tables made where they lack."""
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _check_ours(db, path)
        if not _is_prepared(db):
            _prepare(db, path)
        # a killed process loses nothing so; a power cut may lose the last moments
        db.execute("PRAGMA synchronous = NORMAL")
        # SQLite before 3.51.3 may lose a commit that comes while another connection's checkpoint
        # runs (https://sqlite.org/wal.html#walresetbug); `Database` makes all checkpoints, in a
        # mode that keeps writers out
        db.execute("PRAGMA wal_autocheckpoint = 0")
        _check_version(db, path)
    except BaseException:
        db.close()
        raise
    return db


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Return a connection that reads a store file and writes nothing, no side file either."""
    error: sqlite3.Error | None = None
    # where there is no room for SQLite's side files, what is in the log can't be read
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?{mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _check_ours(db, path)
            _check_version(db, path)
        except sqlite3.Error as failure:
            db.close()
            error = failure
        except BaseException:
            db.close()
            raise
        else:
            return db
    assert error is not None
    raise error


def is_foreign(path: Path) -> bool:
    """Return whether this is a whole SQLite file of another program. It is not touched.

    Opening it by itself would not do: its log would be worked off, or its journal rolled back.
    """
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        return _is_foreign(db)
    except (sqlite3.Error, UnicodeDecodeError):  # damaged, or it is being written: see `connect`
        return False
    finally:
        db.close()


def is_overwritten(path: Path, number: int) -> bool:
    """Return whether a store that is in use holds another file's bytes by now."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        # a new file's number may be in its log only
        return path.stat().st_size == 0 or found not in (0, number) or _is_foreign(db)
    except (sqlite3.Error, UnicodeDecodeError, OSError) as error:
        return code_of(error) == _NOT_A_DATABASE
    finally:
        db.close()


def refuse_foreign(path: Path) -> StoreUnavailableError:
    """Return the error for a file that is not a store."""
    return StoreUnavailableError(
        f"{path} is not a store of this program, and it is left as it is: give another --store, or "
        "--no-store"
    )


def _is_foreign(db: sqlite3.Connection) -> bool:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    names = db.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'")
    tables = {name for (name,) in names}
    # files of version 0.1 have no application id
    return application != APPLICATION and bool(tables or application) and not tables >= _OURS


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    if _is_foreign(db):
        raise refuse_foreign(path)


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the format of the store is not written down")
    if row[0] != str(_SCHEMA):
        raise StoreUnavailableError(
            f"the store {path} has format {row[0]!r} and this version reads {_SCHEMA}: "
            "give another --store"
        )


def _is_prepared(db: sqlite3.Connection) -> bool:
    """Return whether nothing has to be written before this file can be used."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (journal,) = db.execute("PRAGMA journal_mode").fetchone()
    return bool(application == APPLICATION and journal == "wal")


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    journal = _retry_while_locked(lambda: db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
    if journal != "wal":
        _log.warning(
            "%s: this file system can't do a write-ahead log (journal_mode=%s): the store is "
            "slower here",
            path,
            journal,
        )
    with transaction(db):
        for statement in _TABLES.split(";"):
            db.execute(statement)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(_SCHEMA),))
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        if db.execute("PRAGMA user_version").fetchone() == (0,):
            # by which this file is told from another store
            db.execute(f"PRAGMA user_version = {1 + secrets.randbelow(2**31 - 1)}")


def add_rows(
    db: sqlite3.Connection,
    identities: Mapping[str, str],
    rows: Iterable[StoredPass | StoredToken],
) -> int:
    """Add rows of another file, in one transaction; of two answers the longer one stays.

    Returns
    -------
    int
        Answers that are in the file now and were not before.
    """
    numbers: dict[str, int] = {}
    (before,) = db.execute("SELECT COUNT(*) FROM passes").fetchone()
    with transaction(db):
        for row in rows:
            if row.identity not in numbers:
                numbers[row.identity] = add_identity(db, row.identity, identities[row.identity])
            if isinstance(row, StoredToken):
                check = token_check(row.identity, row.token, row.name)
                values: tuple[Any, ...] = (numbers[row.identity], row.token, row.name, check)
                db.execute("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?)", values)
                continue
            check = check_of(row.key, row.identity.encode(), row.value)
            values = (row.key, numbers[row.identity], row.made, row.used, check, row.value)
            db.execute(
                "INSERT INTO passes (key, identity, made, used, digest, value) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "identity = excluded.identity, used = MAX(used, excluded.used), "
                "digest = excluded.digest, value = excluded.value "
                "WHERE LENGTH(excluded.value) > LENGTH(value)",
                values,
            )
    (after,) = db.execute("SELECT COUNT(*) FROM passes").fetchone()
    return int(after - before)


def add_identity(db: sqlite3.Connection, digest: str, data: str) -> int:
    """Write an identity where it lacks, and return its number."""
    db.execute(
        "INSERT INTO identities (digest, data) VALUES (?, ?) ON CONFLICT (digest) "
        "DO UPDATE SET data = excluded.data WHERE data != excluded.data",
        (digest, data),
    )
    # a second copy on another page: without its identity no digest of an answer could be checked
    db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (digest, data))
    row = db.execute("SELECT id FROM identities WHERE digest = ?", (digest,)).fetchone()
    if row is None or not isinstance(row[0], int):
        raise sqlite3.DatabaseError("an LM that was written down is not there")
    return row[0]


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing of what is written inside."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def code_of(error: Exception) -> int:
    """Return SQLite's code of an error; a message that Python can't decode is damage."""
    return int(getattr(error, "sqlite_errorcode", CORRUPT)) & 0xFF


def _retry_while_locked(work: Callable[[], _T]) -> _T:
    """Try again what SQLite itself doesn't wait with while another process has the file."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if code_of(error) != BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)


def side_files(path: Path) -> list[Path]:
    """Return SQLite's own files beside a store."""
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm")]


def place_of(path: Path) -> tuple[int, int] | None:
    """Return which file lies at a path, by device and inode; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
