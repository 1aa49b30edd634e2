"""A SQLite file that threads, processes and forks share.

A damaged file is moved aside, and what can be read of it is in the new one. A file that is deleted,
moved or replaced while it is in use is noticed, and what was written to it is written again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from blackbox.errors import StoreError
from blackbox.plurals import counted
from blackbox.store import recovery, schema
from blackbox.store.folder_lock import folder_lock
from blackbox.store.salvage import StoredPass, StoredToken
from blackbox.store.schema import (
    StoreUnavailableError,
    code_of,
    place_of,
    side_files,
)

__all__ = ["Database"]

_PAUSE_SECONDS = 0.05
_LOG_BYTES = 4_000_000  # of the write-ahead log, at which it is worked off
_REOPEN_SECONDS = 5.0  # between two tries to write to a file that could only be read
# errors that say nothing of the file itself: busy, locked, no memory, read-only, I/O, full, …
_NOT_DAMAGE = {3, 5, 6, 7, 8, 9, 10, 13, 14, 22, 23}
_ONLY_READ = {schema.READ_ONLY, schema.IO, schema.FULL, schema.CANT_OPEN}
# Python can't decode SQLite's message about some damaged files
_FAILURES = (sqlite3.DatabaseError, UnicodeDecodeError)

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
    on_rescue : callable
        Called with the rows that were written to a file that is no longer at the path.

    Attributes
    ----------
    lock : RLock
        Held while somebody works on it.
    identities : dict of str to str
        The LMs that answers were written for; they help to read a file that has lost them.
    read_only : bool
        Whether the open file can be read, and not be written.
    n_opened : int
        How often a file was opened.
    """

    def __init__(
        self,
        path: Path,
        on_open: Callable[[], None],
        on_rescue: Callable[[list[StoredPass | StoredToken]], None],
    ) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.identities: dict[str, str] = {}
        self.read_only = False
        self._on_open, self._on_rescue = on_open, on_rescue
        self._closed = False
        self._place: tuple[int, int] | None = None  # the open file, by device and inode
        self._state: tuple[int, ...] | None = None  # and when it was changed
        self._number = 0  # its own, by which another store's bytes are told
        self._log_place: tuple[int, int] | None = None  # its write-ahead log
        self._first = 0  # rows after this one were written since the file was opened
        self._tried: tuple[int, int] | None = None  # the file that was opened, or was to be
        self._log_bytes = _LOG_BYTES
        self._opened_at = 0.0
        self.n_opened = 0
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
        """Work on the database; a damaged file is replaced by what can be read of it.

        Raises
        ------
        StoreUnavailableError
            If the file can't be used now.
        StoreError
            If it is closed, or the work itself is wrong.
        """
        with self.lock:
            if self._closed:
                raise StoreError(f"the store {self.path} is closed")
            for tries_left in (3, 2, 1, 0):
                try:
                    return work(self._current())
                except _FAILURES as error:
                    # another process may just be replacing the file, which is an I/O error here
                    is_io = code_of(error) == schema.IO
                    if not tries_left or (_is_no_damage(error) and not is_io):
                        raise self._refusal(error) from error
                    if self._process:
                        self.suspend()
                    if is_io:
                        time.sleep(_PAUSE_SECONDS)
                    else:
                        self._replace_damaged(error)
            raise AssertionError

    def write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Run work that writes; as `run`.

        Raises
        ------
        StoreUnavailableError
            If the file can only be read, too.
        """
        with self.lock:
            if self.read_only and time.monotonic() > self._opened_at + _REOPEN_SECONDS:
                self.suspend()

            def checked(db: sqlite3.Connection) -> _T:
                if self.read_only:
                    raise StoreUnavailableError(f"{self.path} can be read, and not written")
                return work(db)

            answer = self.run(checked)
            self.checkpoint()
            return answer

    def be_patient(self, patient: bool) -> None:
        """Wait for another process that has the file, or hardly."""
        with self.lock, contextlib.suppress(sqlite3.Error):
            seconds = schema.BUSY_SECONDS if patient else _PAUSE_SECONDS
            self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * seconds)}")

    def checkpoint(self, above: int | None = None) -> None:
        """Work off the write-ahead log if it is long, with all other writers kept out."""
        try:
            size = side_files(self.path)[0].stat().st_size
        except OSError:
            return
        if size > (self._log_bytes if above is None else above):
            with contextlib.suppress(sqlite3.Error):
                busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                # somebody reads for long: he is not waited for again at every write
                self._log_bytes = 2 * size if busy else _LOG_BYTES

    def _current(self) -> sqlite3.Connection:
        """Return a connection of this process to the file that lies at the path now."""
        if self._process == os.getpid() and self._is_gone():
            self._leave()
        if self._process != os.getpid():  # there was a fork, or it is not open yet
            self._open()
        return self._connection

    def _is_gone(self) -> bool:
        """Return whether the open file is no longer at the path, or was overwritten there."""
        state = _state_of(self.path)
        if state == self._state:
            return False
        if state is None or place_of(self.path) != self._place:
            return True
        self._state = state  # a log was worked off, most likely
        return schema.is_overwritten(self.path, self._number)

    def _open(self) -> None:
        with folder_lock(self.path.parent):
            left = self._place
            db = self._connect()
            self._process, self._place = os.getpid(), place_of(self.path)
            self._log_place = place_of(side_files(self.path)[0])
            self._state = _state_of(self.path)
            (self._number,) = db.execute("PRAGMA user_version").fetchone()
            self._connection, self._opened_at = db, time.monotonic()
            self.n_opened += 1
            self._on_open()
            self._first = db.execute("SELECT COALESCE(MAX(id), 0) FROM passes").fetchone()[0]
        if left not in (None, self._place):
            _log.warning("the store %s is another file than before", self.path)

    def _connect(self) -> sqlite3.Connection:
        new = self._create()
        self._tried = place_of(self.path)
        if not new and schema.is_foreign(self.path):
            raise schema.refuse_foreign(self.path)
        writable = os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        refused: Exception = PermissionError("there is no permission to write")
        try:
            if writable:
                db = schema.connect(self.path)
                self.read_only = False
                return db
        except sqlite3.OperationalError as error:
            if code_of(error) not in _ONLY_READ:
                raise
            refused = error
        try:
            db = schema.connect_read_only(self.path)
        except sqlite3.Error as error:
            raise refused if writable else error from None
        if not self.read_only:
            _log.warning(
                "the store %s can be read, and not written (%s)",
                self.path,
                refused,
            )
        self.read_only = True
        return db

    def _create(self) -> bool:
        """Create the file where there is none; return whether it was created."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                return False
            # a log without its file is that of a file that is gone: SQLite must not work it off
            for file in side_files(self.path):
                file.unlink(missing_ok=True)
            # SQLite would make it with the mode of the umask, and give its journals the file's; one
            # that is there is not touched: closing it would end all locks of this process on it
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise StoreUnavailableError(
                f"the store {self.path} can't be made: {error.strerror}; give another --store, or "
                "--no-store"
            ) from error
        return True

    def _leave(self) -> None:
        """Leave a file that is no longer at the path, with what was written since it was opened."""
        rescued: list[StoredPass | StoredToken] = []
        try:
            for row, data in recovery.written_since(self._connection, self._first):
                self.identities[row.identity] = data
                rescued.append(row)
        except _FAILURES as error:
            _log.warning("the store %s: not all of the file that is gone: %s", self.path, error)
        files = side_files(self.path)
        if place_of(self.path) == self._place and place_of(files[0]) == self._log_place:
            with contextlib.suppress(OSError):
                os.truncate(files[0], 0)  # SQLite must not work it off into another file's bytes
        self.suspend()
        self._place = None
        _log.warning(
            "the store %s was deleted, moved or replaced while it was in use: what was "
            "written to it since it was opened, %s, is written again, to the file that is there",
            self.path,
            counted(sum(isinstance(row, StoredPass) for row in rescued), "answer"),
        )
        self._on_rescue(rescued)
        if self._log_place is not None and place_of(files[0]) == self._log_place:
            for file in files:  # another file has come to the path, not its log
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def _replace_damaged(self, error: Exception) -> None:
        with folder_lock(self.path.parent):
            if place_of(self.path) != self._tried:
                return  # another process did that
            try:
                recovery.replace_damaged(
                    self.path, self.identities, error, is_ours=self._tried == self._place
                )
            except (OSError, *_FAILURES) as refused:
                raise self._refusal(error) from refused
            self._place = None

    def _refusal(self, error: Exception) -> StoreError:
        kind = StoreError if isinstance(error, sqlite3.ProgrammingError) else StoreUnavailableError
        return kind(
            f"the store {self.path} can't be used: {error}; give another --store, or --no-store"
        )


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _is_no_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.ProgrammingError):  # of this program, not of the file
        return True
    return code_of(error) in _NOT_DAMAGE


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
