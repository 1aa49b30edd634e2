"""The file of the forward-pass store: one SQLite database that many processes share.

It knows keys, values and identities, and nothing of prompts or backends. Each row carries a digest
over all that it says, checked on every read: a damaged row is dropped, reported and asked for
again. A damaged file is moved aside and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from blackbox.errors import StoreError
from blackbox.store_encoding import check_of

__all__ = ["DEFAULT_MAX_BYTES", "LEASE_SECONDS", "StoreFile", "default_path", "open_store"]

DEFAULT_MAX_BYTES = 5_000_000_000
"""The size at which the least recently used answers go."""

LEASE_SECONDS = 60.0
"""How long a claim on a pass holds without news from the claimant."""

_SCHEMA = 1
_BUSY_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_MANY = 500  # values in one statement; SQLite takes 999 everywhere
_DAY = 86_400
# errors that say nothing of the file itself: busy, locked, no memory, read-only, I/O, full, …
_BUSY, _IO, _CORRUPT = 5, 10, 11
_NOT_DAMAGE = {3, 5, 6, 7, 8, 9, 10, 13, 14, 22, 23}
# Python can't decode SQLite's message about some damaged files
_FAILURES = (sqlite3.DatabaseError, UnicodeDecodeError)
_KEPT = 0.9  # how full a store is after the least recently used answers went

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

_opened: dict[Path, StoreFile] = {}
_open_lock = threading.Lock()
_files: weakref.WeakSet[StoreFile] = weakref.WeakSet()

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def default_path() -> Path:
    """The store in the user's cache directory."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("promptboosting")) / "passes.sqlite"


def open_store(
    path: str | os.PathLike[str] | None = None, *, max_bytes: int | None = None
) -> StoreFile:
    """The store at a path, opened once per process.

    Parameters
    ----------
    path : str or Path, optional
        The file; by default the one in the user's cache directory.
    max_bytes : int, optional
        See `StoreFile`; without it an open one keeps its own.
    """
    where = (Path(path) if path is not None else default_path()).expanduser().absolute()
    with _open_lock:
        known = _opened.get(where)
        if known is not None and not where.exists():  # somebody removed it
            known.close()
            known = None
        if known is None:
            known = _opened[where] = StoreFile(where)
        if max_bytes is not None:
            known.max_bytes = max_bytes
        return known


class StoreFile:
    """An open store file. Threads and processes may share it.

    Parameters
    ----------
    path : str or Path, optional
        The file, made where there is none, readable by its owner only. By default `default_path()`.
    max_bytes : int, optional
        Beyond this size the least recently used answers go.

    Raises
    ------
    StoreError
        If the file can't be made or opened, or was written by a newer version.

    Attributes
    ----------
    n_damaged : int
        Rows that were dropped because their digest was wrong.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.max_bytes = max_bytes
        self.n_damaged = 0
        self._lock = threading.RLock()
        self._closed = False
        self._inode = 0
        self._identities: dict[str, int] = {}
        self._names: dict[str, dict[int, bytes]] = {}  # token bytes that are in the file
        self._process = 0  # whose connection it is; none is open at 0
        self._connection: sqlite3.Connection
        self._run(lambda db: None)
        _files.add(self)

    # rows

    def get(self, identity: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there, whole, and of this identity."""

        def read(db: sqlite3.Connection) -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = {}
            broken, stale = [], []
            today = int(time.time()) // _DAY
            for some in _slices(list(keys)):
                rows = db.execute(
                    "SELECT p.id, p.key, i.digest, p.used, p.digest, p.value FROM passes p "
                    "LEFT JOIN identities i ON i.id = p.identity WHERE p.key IN " + _in(some),
                    some,
                )
                for row, key, whose, used, digest, value in rows:
                    if not _is_whole(key, whose, digest, value):
                        broken.append(row)
                    elif whose == identity:
                        found[key] = value
                        if used != today:
                            stale.append(row)
            if broken:
                self._drop(db, broken)
            if stale:
                with _transaction(db):
                    db.executemany(
                        "UPDATE passes SET used = ? WHERE id = ?", [(today, row) for row in stale]
                    )
            return found

        return self._run(read)

    def put(
        self,
        identity: str,
        data: str,
        values: Mapping[bytes, bytes],
        token_bytes: Mapping[int, bytes],
        merge: Callable[[bytes, bytes], bytes],
        owner: str | None = None,
    ) -> None:
        """Write answers, in one transaction.

        Parameters
        ----------
        identity, data : str
            The digest of the LM's identity, and that identity as JSON.
        values : mapping of bytes to bytes
            The value of each key.
        token_bytes : mapping of int to bytes
            The bytes of their tokens; those that the file has are not written again.
        merge : callable
            Makes one value out of the one that is there and the new one.
        owner : str, optional
            Whose claims on these keys end, and whose others are renewed.
        """
        today = int(time.time()) // _DAY

        def write(db: sqlite3.Connection) -> None:
            known = self._names.get(identity, {})
            new = {token: name for token, name in token_bytes.items() if known.get(token) != name}
            with _transaction(db):
                number = self._number_of(db, identity, data)
                there: dict[bytes, tuple[str, bytes, bytes]] = {}
                for some in _slices(list(values)):
                    rows = db.execute(
                        "SELECT p.key, i.digest, p.digest, p.value FROM passes p "
                        "LEFT JOIN identities i ON i.id = p.identity WHERE p.key IN " + _in(some),
                        some,
                    )
                    there |= {key: (whose, digest, value) for key, whose, digest, value in rows}
                written = []
                for key, value in values.items():
                    if key in there:
                        whose, digest, old = there[key]
                        if whose == identity and _is_whole(key, whose, digest, old):
                            value = merge(old, value)
                            if value == old:
                                continue
                    check = check_of(key, identity.encode(), value)
                    written.append((key, number, today, today, check, value))
                db.executemany(
                    "INSERT INTO passes (key, identity, made, used, digest, value) "
                    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                    "identity = excluded.identity, used = excluded.used, "
                    "digest = excluded.digest, value = excluded.value",
                    written,
                )
                db.executemany(
                    "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)",
                    [
                        (number, token, name, _token_check(identity, token, name))
                        for token, name in new.items()
                    ],
                )
                if owner is not None:
                    db.executemany(
                        "DELETE FROM claims WHERE key = ? AND owner = ?",
                        [(key, owner) for key in values],
                    )
                    self._renew(db, owner)
            self._names.setdefault(identity, {}).update(new)
            self._shrink(db)

        self._run(write)

    def token_bytes(self, identity: str) -> dict[int, bytes]:
        """The bytes of every token that this LM's answers hold."""

        def read(db: sqlite3.Connection) -> dict[int, bytes]:
            rows = db.execute(
                "SELECT token, bytes, t.digest FROM tokens t JOIN identities i "
                "ON i.id = t.identity WHERE i.digest = ?",
                (identity,),
            )
            self._names[identity] = {
                token: name
                for token, name, digest in rows
                if isinstance(name, bytes) and digest == _token_check(identity, token, name)
            }
            return dict(self._names[identity])

        return self._run(read)

    # claims

    def claim(self, owner: str, keys: Sequence[bytes]) -> list[bytes]:
        """Of some keys those that nobody else is working on; they are this owner's now."""

        def take(db: sqlite3.Connection) -> list[bytes]:
            with _transaction(db):
                self._bury(db)
                self._renew(db, owner)
                before = db.total_changes
                mine = []
                for key in keys:
                    db.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (key, owner))
                    if db.total_changes > before:
                        mine.append(key)
                        before = db.total_changes
                return mine

        return self._run(take)

    def release(self, owner: str) -> None:
        """End all claims of an owner."""

        def end(db: sqlite3.Connection) -> None:
            with _transaction(db):
                db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                db.execute("DELETE FROM owners WHERE owner = ?", (owner,))

        if not self._closed:
            self._run(end)

    def _renew(self, db: sqlite3.Connection, owner: str) -> None:
        db.execute(
            "INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?)",
            (owner, socket.gethostname(), os.getpid(), time.time() + LEASE_SECONDS),
        )

    def _bury(self, db: sqlite3.Connection) -> None:
        """End the claims of those whose lease is over or whose process is gone."""
        now, here = time.time(), socket.gethostname()
        for owner, host, pid, expires in db.execute("SELECT * FROM owners").fetchall():
            # a clock that was set back must not make a lease endless
            whole = isinstance(expires, float) and isinstance(pid, int)
            over = not whole or not now <= expires <= now + 2 * LEASE_SECONDS
            if over or (host == here and not _is_alive(pid)):
                db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                db.execute("DELETE FROM owners WHERE owner = ?", (owner,))

    # upkeep

    def info(self) -> dict[str, Any]:
        """Passes, LMs, bytes and days, as JSON data."""

        def read(db: sqlite3.Connection) -> dict[str, Any]:
            models = db.execute(
                "SELECT i.data, i.digest, COUNT(*), SUM(LENGTH(p.value)) FROM passes p "
                "JOIN identities i ON i.id = p.identity GROUP BY i.id ORDER BY 3 DESC"
            ).fetchall()
            total, first, last = db.execute(
                "SELECT COUNT(*), MIN(made), MAX(used) FROM passes"
            ).fetchone()
            return {
                "path": str(self.path),
                "bytes": self._bytes(db),
                "max_bytes": self.max_bytes,
                "passes": total,
                "journal": db.execute("PRAGMA journal_mode").fetchone()[0],
                "first_made": _date(first),
                "last_used": _date(last),
                "models": [
                    {"identity": data, "passes": count, "value_bytes": size}
                    for data, digest, count, size in models
                    if _tells(data, digest)
                ],
            }

        return self._run(read)

    def verify(self) -> tuple[int, int]:
        """Check every row; drop the damaged ones. Returns how many were read, and dropped."""

        def check(db: sqlite3.Connection) -> tuple[int, int]:
            found = db.execute("PRAGMA integrity_check").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(str(found))
            total, broken = 0, []
            rows = db.execute(
                "SELECT p.id, p.key, i.digest, p.digest, p.value FROM passes p "
                "LEFT JOIN identities i ON i.id = p.identity"
            )
            for row, key, whose, digest, value in rows:
                total += 1
                if not _is_whole(key, whose, digest, value):
                    broken.append(row)
            if broken:
                self._drop(db, broken)
            return total, len(broken)

        return self._run(check)

    def prune(self, older_than_days: float) -> int:
        """Drop answers that were not used for so many days, and give their space back."""
        oldest = int(time.time() - older_than_days * _DAY) // _DAY

        def drop(db: sqlite3.Connection) -> int:
            with _transaction(db):
                gone = db.execute("DELETE FROM passes WHERE used < ?", (oldest,)).rowcount
            db.execute("VACUUM")
            return gone

        return self._run(drop)

    def rows(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Identity as JSON, key and value of every whole row."""
        with self._lock:
            rows = self._run(lambda db: db).execute(
                "SELECT i.data, i.digest, p.key, p.digest, p.value FROM passes p "
                "JOIN identities i ON i.id = p.identity ORDER BY p.id"
            )
            for data, whose, key, digest, value in rows:
                if _is_whole(key, whose, digest, value) and _tells(data, whose):
                    yield data, key, value

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._connection.close()

    def _number_of(self, db: sqlite3.Connection, identity: str, data: str) -> int:
        for _ in range(2):
            if identity not in self._identities:
                db.execute(
                    "INSERT OR IGNORE INTO identities (digest, data) VALUES (?, ?)",
                    (identity, data),
                )
            row = db.execute("SELECT id FROM identities WHERE digest = ?", (identity,)).fetchone()
            if row is not None and isinstance(row[0], int):
                self._identities[identity] = row[0]
                return row[0]
            self._identities.pop(identity, None)
        raise sqlite3.DatabaseError("an LM that was written down is not there")

    def _drop(self, db: sqlite3.Connection, rows: list[int]) -> None:
        self.n_damaged += len(rows)
        _log.warning("%s: %d damaged answers dropped; they are asked for again", self.path,
                     len(rows))  # fmt: skip
        with _transaction(db):
            db.executemany("DELETE FROM passes WHERE id = ?", [(row,) for row in rows])

    def _bytes(self, db: sqlite3.Connection) -> int:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Let the least recently used answers go when the file is too large."""
        held = self._bytes(db)
        if held <= self.max_bytes:
            return
        with _transaction(db):
            (count,) = db.execute("SELECT COUNT(*) FROM passes").fetchone()
            if not count:
                return
            each = held / count
            surplus = min(count, int((held - _KEPT * self.max_bytes) / each) + 1)
            db.execute(
                "DELETE FROM passes WHERE id IN (SELECT id FROM passes ORDER BY used, id LIMIT ?)",
                (surplus,),
            )
        _log.warning(
            "%s is over %d bytes: the %d answers that were least recently used are gone; raise "
            "--store-max-bytes to keep more", self.path, self.max_bytes, surplus,
        )  # fmt: skip

    def __copy__(self) -> StoreFile:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreFile:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path, int]]:
        return _reopen, (self.path, self.max_bytes)

    def __repr__(self) -> str:
        return f"StoreFile({str(self.path)!r})"

    # opening

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Work on the database; a damaged file is replaced by a new one."""
        with self._lock:
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
                        self._connection.close()
                        self._process = 0
                    if is_io:
                        time.sleep(_PAUSE_SECONDS)
                    else:
                        self._set_aside(error)
            raise AssertionError

    def _open(self) -> sqlite3.Connection:
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
        journal = _patiently(lambda: db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if journal != "wal":
            _log.warning(
                "%s: this file system can't do a write-ahead log (journal_mode=%s): the store is "
                "slower here", self.path, journal,
            )  # fmt: skip
        # a killed process loses nothing so; a power cut may lose the last moments
        db.execute("PRAGMA synchronous = NORMAL")
        with _transaction(db):
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
        self._identities.clear()
        self._names.clear()

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        try:
            if self.path.stat().st_ino != self._inode:
                return  # another process did that, and began a new one
            self.path.replace(aside)
            if aside.stat().st_ino != self._inode:  # it did so just now: put the new one back
                with contextlib.suppress(OSError):
                    os.link(aside, self.path)
                    aside.unlink()
                return
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
            self.path, error, aside.name,
        )  # fmt: skip

    def _refusal(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self.path} can't be used: {error}; give another --store, or --no-store"
        )


def _reopen(path: Path, max_bytes: int) -> StoreFile:
    return open_store(path, max_bytes=max_bytes)


def _is_whole(key: Any, identity: Any, digest: Any, value: Any) -> bool:
    return (
        isinstance(key, bytes)
        and isinstance(identity, str)
        and isinstance(value, bytes)
        and bool(digest == check_of(key, identity.encode(), value))
    )


def _tells(data: Any, digest: Any) -> bool:
    """Whether this is the identity with that digest (see `BackendIdentity.digest`)."""
    return isinstance(data, str) and hashlib.sha256(data.encode()).hexdigest() == digest


def _is_no_damage(error: Exception) -> bool:
    if isinstance(error, sqlite3.ProgrammingError):  # of this program, not of the file
        return True
    return _code_of(error) in _NOT_DAMAGE


def _code_of(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", _CORRUPT)) & 0xFF


def _patiently(work: Callable[[], _T]) -> _T:
    """Try again what SQLite itself doesn't wait with while another process has the file."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if _code_of(error) != _BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)


def _token_check(identity: str, token: int, name: bytes) -> bytes:
    return check_of(identity.encode(), str(token).encode(), name)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # elsewhere a signal of 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _slices(keys: list[bytes]) -> Iterable[list[bytes]]:
    return (keys[start : start + _MANY] for start in range(0, len(keys), _MANY))


def _in(values: Sequence[Any]) -> str:
    return "(" + ",".join("?" * len(values)) + ")"


def _date(day: Any) -> str | None:
    if not isinstance(day, int) or not 0 <= day < 10**6:  # none, or damaged
        return None
    return time.strftime("%Y-%m-%d", time.gmtime(day * _DAY))


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _before_fork() -> None:
    # SQLite's locks end at a fork, so nothing is open across it; it is opened again on use
    for file in list(_files):
        file._lock.acquire()
        _held.append(file)
        file._connection.close()
        file._process = 0


def _after_fork() -> None:
    while _held:
        _held.pop()._lock.release()


_held: list[StoreFile] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
