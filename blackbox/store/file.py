"""The file of the forward-pass store: one SQLite database that many processes share.

It knows keys, values and identities, and nothing of prompts or backends. Each row carries a digest
over all that it says, checked on every read: a damaged row is dropped, reported and asked for
again. A damaged file is moved aside and named.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from blackbox.store.database import Database, transaction
from blackbox.store.encoding import check_of

__all__ = ["DEFAULT_MAX_BYTES", "LEASE_SECONDS", "StoreFile", "default_path", "open_store"]

DEFAULT_MAX_BYTES = 5_000_000_000
"""The size at which the least recently used answers go."""

LEASE_SECONDS = 60.0
"""How long a claim on a pass holds without news from the claimant."""

_MANY = 500  # values in one statement; SQLite takes 999 everywhere
_DAY = 86_400
_KEPT = 0.9  # how full a store is after the least recently used answers went

_opened: dict[Path, StoreFile] = {}
_open_lock = threading.Lock()

_log = logging.getLogger(__name__)


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
        self._identities: dict[str, int] = {}
        self._names: dict[str, dict[int, bytes]] = {}  # token bytes that are in the file
        self._database = Database(self.path, self._forget)

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
                with transaction(db):
                    db.executemany(
                        "UPDATE passes SET used = ? WHERE id = ?", [(today, row) for row in stale]
                    )
            return found

        return self._database.run(read)

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
            with transaction(db):
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

        self._database.run(write)

    def token_bytes(self, identity: str) -> dict[int, bytes]:
        """The bytes of every token that this LM's answers hold."""

        def read(db: sqlite3.Connection) -> dict[int, bytes]:
            rows = db.execute(
                "SELECT token, bytes, t.digest FROM tokens t JOIN identities i "
                "ON i.id = t.identity WHERE i.digest = ?",
                (identity,),
            )
            known = self._names.get(identity, {})
            self._names[identity] = {
                token: name
                for token, name, digest in rows
                if isinstance(name, bytes)
                and (known.get(token) == name or digest == _token_check(identity, token, name))
            }
            return dict(self._names[identity])

        return self._database.run(read)

    # claims

    def claim(self, owner: str, keys: Sequence[bytes]) -> list[bytes]:
        """Of some keys those that nobody else is working on; they are this owner's now."""

        def take(db: sqlite3.Connection) -> list[bytes]:
            with transaction(db):
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

        return self._database.run(take)

    def release(self, owner: str) -> None:
        """End all claims of an owner."""

        def end(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                db.execute("DELETE FROM owners WHERE owner = ?", (owner,))

        if not self._database.closed:
            self._database.run(end)

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

        return self._database.run(read)

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

        return self._database.run(check)

    def prune(self, older_than_days: float) -> int:
        """Drop answers that were not used for so many days, and give their space back."""
        oldest = int(time.time() - older_than_days * _DAY) // _DAY

        def drop(db: sqlite3.Connection) -> int:
            with transaction(db):
                gone = db.execute("DELETE FROM passes WHERE used < ?", (oldest,)).rowcount
            db.execute("VACUUM")
            return gone

        return self._database.run(drop)

    def rows(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Identity as JSON, key and value of every whole row."""
        with self._database.lock:
            rows = self._database.run(lambda db: db).execute(
                "SELECT i.data, i.digest, p.key, p.digest, p.value FROM passes p "
                "JOIN identities i ON i.id = p.identity ORDER BY p.id"
            )
            for data, whose, key, digest, value in rows:
                if _is_whole(key, whose, digest, value) and _tells(data, whose):
                    yield data, key, value

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _forget(self) -> None:
        """Forget what is known of the file: it may be another."""
        self._identities.clear()
        self._names.clear()

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
        _log.warning(
            "%s: %d damaged answers dropped; they are asked for again", self.path, len(rows)
        )
        with transaction(db):
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
        with transaction(db):
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
            "--store-max-bytes to keep more",
            self.path,
            self.max_bytes,
            surplus,
        )

    def __copy__(self) -> StoreFile:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreFile:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path, int]]:
        return _reopen, (self.path, self.max_bytes)

    def __repr__(self) -> str:
        return f"StoreFile({str(self.path)!r})"


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
