"""The file of the forward-pass store: one SQLite database that many processes share.

It knows keys, values and identities, and nothing of prompts or backends. Each row carries a digest
over all that it says, checked on every read: a damaged row is dropped, reported and asked for
again. A damaged file is moved aside and named, and what can be read of it stays.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from blackbox.errors import StoreError
from blackbox.plurals import counted
from blackbox.store import upkeep
from blackbox.store.claims import Claims
from blackbox.store.database import Database
from blackbox.store.engines import add_engines, engines_of
from blackbox.store.recent import RecentAnswers
from blackbox.store.rows import DAY, Writing, read, write
from blackbox.store.salvage import StoredPass, StoredToken, token_check
from blackbox.store.schema import StoreUnavailableError, transaction

__all__ = ["DEFAULT_MAX_BYTES", "StoreFile", "default_path", "open_store"]

DEFAULT_MAX_BYTES = 5_000_000_000
"""The size at which the least recently used answers go."""

_MOST_WAITING = 256_000_000  # bytes of answers that wait in memory for a file that can't be written

_opened: dict[Path, StoreFile] = {}
_open_lock = threading.Lock()

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def default_path() -> Path:
    """Return the store in the user's cache directory."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("promptboosting")) / "passes.sqlite"


def open_store(
    path: str | os.PathLike[str] | None = None, *, max_bytes: int | None = None
) -> StoreFile:
    """Return the store at a path, opened once per process.

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
        if known is None:
            known = _opened[where] = StoreFile(where)
        if max_bytes is not None:
            known.max_bytes = max_bytes
        return known


class StoreFile:
    """An open store file. Threads and processes may share it.

    A file that can't be written any more (a full disk, a lock that is held, no permission) costs no
    answer: what is put waits in memory, is found there, and is written when that works again.

    Parameters
    ----------
    path : str or Path, optional
        The file, made where there is none, readable by its owner only. By default `default_path()`.
    max_bytes : int, optional
        Beyond this size the least recently used answers go.

    Raises
    ------
    StoreError
        If the file can't be made or opened, is no store, or was written by a newer version.

    Attributes
    ----------
    n_damaged : int
        Rows that were dropped because their digest was wrong.
    trouble : str or None
        Why the file can't be used now.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.path = Path(path) if path is not None else default_path()
        self.max_bytes = max_bytes
        self.n_damaged = 0
        self.trouble: str | None = None
        self._waiting: list[Writing] = []
        self._names: dict[str, dict[int, bytes]] = {}  # token bytes that are in the file
        self._noted: set[tuple[str, str]] = set()  # identities and engines, as in the file
        self._compared: set[tuple[str, str]] = set()
        self._claims = Claims()
        self._recent = RecentAnswers()
        self._database = Database(self.path, self._forget, self._rescue)

    @property
    def n_waiting(self) -> int:
        """Answers that wait in memory until the file can be written."""
        return sum(len(writing.values) for writing in list(self._waiting))

    def _forget(self) -> None:
        """Forget what the file held: another one has been opened."""
        self._names.clear()
        self._noted.clear()
        self._recent.clear()

    def _rescue(self, rows: list[StoredPass | StoredToken]) -> None:
        """Write again what was written to a file that is gone."""
        for identity in {row.identity for row in rows}:
            some = [row for row in rows if row.identity == identity]
            values = {row.key: row.value for row in some if isinstance(row, StoredPass)}
            names = {row.token: row.name for row in some if isinstance(row, StoredToken)}
            data = self._database.identities[identity]
            self._waiting.append(Writing(identity, data, values, names, _longer))

    # rows

    def get(self, identity: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that are there, whole, and of this identity."""

        def read_and_note(db: sqlite3.Connection) -> dict[bytes, bytes]:
            today = int(time.time()) // DAY
            found, stale, broken = read(db, identity, keys, today)
            self._note_use(db, today, stale, broken)
            return found

        nothing: dict[bytes, bytes] = {}
        found = self._when_possible(lambda: self._database.run(read_and_note), nothing)
        for writing in list(self._waiting):
            if writing.identity == identity:
                found |= {key: writing.values[key] for key in keys if key in writing.values}
        return found

    def recall(self, requests: Hashable) -> Sequence[Any] | None:
        """Return what `remember` was given for these requests, as long as the file is the same."""
        with self._database.lock:
            self._when_possible(lambda: self._database.run(lambda db: None), None)
            return self._recent.get(requests)

    def remember(self, requests: Hashable, parts: Sequence[Any], n_bytes: int) -> None:
        """Keep in memory the answers that were read for some requests; see `RecentAnswers`."""
        with self._database.lock:
            self._recent.add(requests, parts, n_bytes)

    def _note_use(
        self, db: sqlite3.Connection, today: int, used: list[int], broken: list[int]
    ) -> None:
        """Write down what a read found; it is no reason for the read to fail."""
        if self._database.read_only or not used + broken:
            return
        self._database.be_patient(False)
        with contextlib.suppress(sqlite3.OperationalError):  # damage is none of these
            if broken:
                self.n_damaged += len(broken)
                upkeep.drop_rows(db, self.path, broken)
            if used:
                with transaction(db):
                    db.executemany(
                        "UPDATE passes SET used = ? WHERE id = ?", [(today, row) for row in used]
                    )
        self._database.be_patient(self.trouble is None)

    def put(
        self,
        identity: str,
        data: str,
        values: Mapping[bytes, bytes],
        token_bytes: Mapping[int, bytes],
        merge: Callable[[bytes, bytes], bytes],
        owner: str | None = None,
    ) -> bool:
        """Write answers, in one transaction, or keep them in memory until that is possible.

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

        Returns
        -------
        bool
            Whether the owner's other claims still hold.
        """
        self._database.identities[identity] = data
        with self._database.lock:
            new = Writing(identity, data, dict(values), dict(token_bytes), merge)
            self._waiting.append(new)
            try:
                return self._when_written(lambda: self._write_waiting(owner, list(values)), True)
            except BaseException:
                self._waiting.remove(new)
                raise

    def _write_waiting(self, owner: str | None = None, done: Sequence[bytes] = ()) -> bool:
        """Write all that waits, in one transaction, and end the claims on what is done."""
        waiting = list(self._waiting)

        def write_all(db: sqlite3.Connection) -> bool:
            with transaction(db):
                for writing in waiting:
                    write(db, writing, self._names.get(writing.identity, {}))
                if owner is None:
                    return True
                self._claims.finish(db, owner, done)
                return self._claims.renew(db, owner)

        holds = self._database.write(write_all)
        for writing in waiting:
            self._names.setdefault(writing.identity, {}).update(writing.token_bytes)
        del self._waiting[: len(waiting)]
        self._database.run(lambda db: upkeep.shrink(db, self.path, self.max_bytes))
        return holds

    def token_bytes(self, identity: str) -> dict[int, bytes]:
        """Return the bytes of every token that this LM's answers hold."""

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
                and (known.get(token) == name or digest == token_check(identity, token, name))
            }
            return dict(self._names[identity])

        nothing: dict[int, bytes] = {}
        names = self._when_possible(lambda: self._database.run(read), nothing)
        for writing in list(self._waiting):
            if writing.identity == identity:
                names |= writing.token_bytes
        return names

    def note_engines(self, identity: str, engines: Iterable[str]) -> None:
        """Write down which engines answer for an LM, before their answers are."""
        new = {name for name in engines if name and (identity, name) not in self._noted}
        if not new:
            return

        def note(db: sqlite3.Connection) -> None:
            with transaction(db):
                add_engines(db, identity, new)
            self._noted |= {(identity, name) for name in new}

        self._when_written(lambda: self._database.write(note), None)

    def compare_engines(self, identity: str, engine: str) -> None:
        """Warn, once, if answers of an LM that are used come from another engine, or version."""
        if not engine or (identity, engine) in self._compared:
            return
        self._compared.add((identity, engine))
        nothing: list[str] = []
        noted = self._when_possible(
            lambda: self._database.run(lambda db: engines_of(db, identity)), nothing
        )
        others = [name for name in noted if name != engine]
        if others:
            _log.warning(
                "the store has answers of %s, which are used, and %s answers now: last digits may "
                "differ; to have all from one version, give another --store",
                ", ".join(map(repr, others)),
                repr(engine),
            )

    def flush(self) -> None:
        """Write what waits in memory, if that is possible now."""
        with self._database.lock:
            if self._waiting and not self._database.closed:
                self._when_written(self._write_waiting, True)

    def _when_possible(self, work: Callable[[], _T], otherwise: _T) -> _T:
        """Do some work; where the file can't be used now, say so and give something else."""
        try:
            return work()
        except StoreUnavailableError as error:
            self._say(str(error))
            return otherwise

    def _when_written(self, work: Callable[[], _T], otherwise: _T) -> _T:
        """Do work that writes, as `_when_possible`; the trouble is over when that succeeds."""

        def written() -> _T:
            answer = work()
            if self.trouble is not None and not self._waiting:
                _log.warning("%s can be written again", self.path)
                self._database.be_patient(True)
                self.trouble = None
            return answer

        return self._when_possible(written, otherwise)

    def _say(self, why: str) -> None:
        """Say, once, that the file can't be used; let go of what memory doesn't hold."""
        if self.trouble is None and (self._waiting or not self._database.read_only):
            _log.warning(
                "answers can't be written to the store now (%s): the run goes on, they wait in "
                "memory and are written when that is possible",
                why,
            )
            self._database.be_patient(False)
            self.trouble = why
        held = sum(len(value) for some in self._waiting for value in some.values.values())
        if held > _MOST_WAITING:
            lost = counted(len(self._waiting[0].values), "answer")
            _log.warning("%s: not kept: %s", self.path, lost)
            del self._waiting[0]

    # claims

    def claim(self, owner: str, keys: Sequence[bytes]) -> list[bytes]:
        """Return those keys that nobody else is working on; they are this owner's now."""

        def take(db: sqlite3.Connection) -> list[bytes]:
            with transaction(db):
                return self._claims.take(db, owner, keys)

        return self._when_written(lambda: self._database.write(take), list(keys))

    def renew(self, owner: str) -> bool:
        """Give a sign of life of an owner; return whether its claims still hold."""

        def beat(db: sqlite3.Connection) -> bool:
            with transaction(db):
                return self._claims.renew(db, owner)

        return self._when_written(lambda: self._database.write(beat), True)

    def release(self, owner: str) -> None:
        """End all claims of an owner."""

        def end(db: sqlite3.Connection) -> None:
            with transaction(db):
                self._claims.end(db, owner)

        if not self._database.closed:
            self._when_written(lambda: self._database.write(end), None)
            self.flush()

    # upkeep

    def info(self) -> dict[str, Any]:
        """Return passes, LMs, bytes and days, as JSON data."""
        return self._database.run(lambda db: upkeep.info(db, self.path, self.max_bytes))

    def verify(self) -> tuple[int, int]:
        """Check every row, drop the damaged ones, and return how many were read and dropped."""

        def check(db: sqlite3.Connection) -> tuple[int, int]:
            total, broken = upkeep.verify(db)
            if broken and not self._database.read_only:
                self.n_damaged += len(broken)
                upkeep.drop_rows(db, self.path, broken)
            return total, len(broken)

        return self._database.run(check)

    def prune(self, older_than_days: float) -> int:
        """Drop answers that were not used for so many days, and give their space back."""
        with self._database.lock:
            self._recent.clear()
        return upkeep.prune(self._database, older_than_days)

    def recover(self, path: str | os.PathLike[str]) -> tuple[int, int]:
        """Add all that can be read of a damaged store, which is not changed.

        Returns
        -------
        tuple of int
            Answers that were read, and those of them that this store did not have.
        """
        return upkeep.recover(self._database, Path(path))

    def rows(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Yield identity as JSON, key and value of every whole row."""
        return upkeep.rows(self._database)

    def close(self) -> None:
        """Close the file. Answers that it doesn't take go into another one beside it."""
        self.flush()
        self._database.close()
        self._keep_elsewhere()

    def _keep_elsewhere(self) -> None:
        if not self._waiting:
            return
        number, waiting = self.n_waiting, self._waiting
        self._waiting = []
        path = self.path.with_name(f"{self.path.name}.waiting-{time.time_ns()}")
        try:
            database = Database(path, lambda: None, lambda _: None)
            for some in waiting:
                database.write(partial(write, writing=some, known={}))
            database.close()
        except StoreError as error:
            _log.warning("%s: not kept: %s: %s", self.path, counted(number, "answer"), error)
            return
        _log.warning(
            "%s: what it did not take, %s, is in %s: add it by `blackbox store recover`",
            self.path,
            counted(number, "answer"),
            path,
        )

    def __copy__(self) -> StoreFile:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreFile:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path, int]]:
        return _reopen, (self.path, self.max_bytes)

    def __repr__(self) -> str:
        return f"StoreFile({str(self.path)!r})"


def _longer(one: bytes, other: bytes) -> bytes:
    return max(one, other, key=len)


def _reopen(path: Path, max_bytes: int) -> StoreFile:
    return open_store(path, max_bytes=max_bytes)


@atexit.register
def _last_try() -> None:
    for store in list(_opened.values()):
        if store.n_waiting:
            store.close()
