"""A SQLite file that threads, processes and forks share; a damaged one is replaced."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from blackbox.errors import StoreError

if sys.platform != "win32":
    import fcntl

__all__ = ["Database", "transaction"]

_SCHEMA = 1
_BUSY_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
# errors that say nothing of the file itself: busy, locked, no memory, read-only, I/O, full, …
_BUSY, _IO, _CORRUPT = 5, 10, 11
_NOT_DAMAGE = {3, 5, 6, 7, 8, 9, 10, 13, 14, 22, 23}
# Python can't decode SQLite's message about some damaged files
_FAILURES = (sqlite3.DatabaseError, UnicodeDecodeError)

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
CREATE TABLE IF NOT EXISTS owners
    (owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, expires REAL NOT NULL)
    WITHOUT ROWID;
"""

_databases: weakref.WeakSet[Database] = weakref.WeakSet()

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Database:
    """The store's tables in a SQLite file, opened when it is used.

    Parameters
    ----------
    path : Path
        The file, made where there is none, readable by its owner only.
    on_open : callable
        Called when a file was opened, which may be another than before.

    Attributes
    ----------
    lock : RLock
        Held while somebody works on it.
    """

    def __init__(self, path: Path, on_open: Callable[[], None]) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._on_open = on_open
        self._closed = False
        self._inode = 0
        self._process = 0  # whose connection it is; none is open at 0
        self._connection: sqlite3.Connection
        self.run(lambda db: None)
        _databases.add(self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close the file for good."""
        with self.lock:
            if not self._closed:
                self._closed = True
                self._connection.close()

    def suspend(self) -> None:
        """Close the file until it is used again."""
        self._connection.close()
        self._process = 0

    def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Work on the database; a damaged file is replaced by a new one."""
        with self.lock:
            if self._closed:
                raise StoreError(f"the store {self.path} is closed")
            for tries_left in (3, 2, 1, 0):
                try:
                    if self._process != os.getpid():  # there was a fork, or it is not open yet
                        self._connection = self._open()
                    return work(self._connection)
                except _FAILURES as error:
                    # another process may just be replacing the file, which is an I/O error here
                    is_io = _code_of(error) == _IO
                    if not tries_left or (_is_no_damage(error) and not is_io):
                        raise self._refusal(error) from error
                    if self._process:
                        self.suspend()
                    if is_io:
                        time.sleep(_PAUSE_SECONDS)
                    else:
                        self._set_aside(error)
            raise AssertionError

    def _open(self) -> sqlite3.Connection:
        with self._alone():
            return self._open_alone()

    def _open_alone(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite would make it with the mode of the umask, and give its journals the file's; one
            # that is there is not touched: closing it would end all locks of this process on it
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise StoreError(
                f"the store {self.path} can't be made: {error.strerror}; give another --store, or "
                "--no-store"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            self._inode = self.path.stat().st_ino
        db = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._process = os.getpid()
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        journal = _retry_while_locked(lambda: db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if journal != "wal":
            _log.warning(
                "%s: this file system can't do a write-ahead log (journal_mode=%s): the store is "
                "slower here",
                self.path,
                journal,
            )
        # a killed process loses nothing so; a power cut may lose the last moments
        db.execute("PRAGMA synchronous = NORMAL")
        with transaction(db):
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(_SCHEMA),))
            row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
            found = row and row[0]
        if found != str(_SCHEMA):
            raise StoreError(
                f"the store {self.path} has format {found!r} and this version reads {_SCHEMA}: "
                "give another --store"
            )
        self._on_open()

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        with self._alone():
            try:
                if self.path.stat().st_ino != self._inode:
                    return  # another process did that, and began a new one
                self.path.replace(aside)
            except FileNotFoundError:
                return
            except OSError as refused:
                raise self._refusal(error) from refused
            for ending in ("-wal", "-shm"):
                with contextlib.suppress(OSError):
                    self.path.with_name(self.path.name + ending).replace(
                        aside.with_name(aside.name + ending)
                    )
        _log.warning(
            "the store %s is damaged (%s): it is moved to %s and a new one is begun",
            self.path,
            error,
            aside.name,
        )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process opens or replaces a file of this folder meanwhile.

        Otherwise one could move aside what another has just begun in the place of a damaged file.
        Where the system has no such locks, or one is held for long, it goes without.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            folder = None if sys.platform == "win32" else os.open(self.path.parent, os.O_RDONLY)
        except OSError:  # what it is about shows when the file is opened
            folder = None
        try:
            if folder is not None:
                _lock(folder)
            yield
        finally:
            if folder is not None:
                os.close(folder)

    def _refusal(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self.path} can't be used: {error}; give another --store, or --no-store"
        )


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing of what is written inside."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _is_no_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.ProgrammingError):  # of this program, not of the file
        return True
    return _code_of(error) in _NOT_DAMAGE


def _code_of(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", _CORRUPT)) & 0xFF


def _retry_while_locked(work: Callable[[], _T]) -> _T:
    """Try again what SQLite itself doesn't wait with while another process has the file."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if _code_of(error) != _BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)


def _lock(folder: int) -> None:
    until = time.monotonic() + _BUSY_SECONDS
    while sys.platform != "win32":
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return
            time.sleep(_PAUSE_SECONDS / 10)
        except OSError:  # a file system without locks
            return
        else:
            return


def _before_fork() -> None:
    # SQLite's locks end at a fork, so nothing is open across it; it is opened again on use
    for database in list(_databases):
        database.lock.acquire()
        _held.append(database)
        database.suspend()


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


_held: list[Database] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
