"""Claims: which process is working on which passes, so that no two make the same.

A worker counts its signs of life in the store. Another one that waits for its passes watches the
count with its own monotonic clock: no clock of another machine and no bare process id is trusted.
Only a process of the same boot and the same process namespace can be asked whether it is alive.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from blackbox.errors import StoreError
from blackbox.store.rows import placeholders, slices

__all__ = ["LEASE_SECONDS", "Claims", "SignsOfLife"]

_T = TypeVar("_T")

LEASE_SECONDS = 60.0
"""The time that a claim on a pass holds without a sign of life from its worker."""

_LONGEST_LOOK = 1.0  # seconds that count between two looks: whoever looks may have been stopped


class Claims:
    """The claims in a store file, as one process sees them. All methods run in a transaction."""

    def __init__(self) -> None:
        # of each other worker: its count, the seconds it has stood still, and the last look
        self._watched: dict[str, tuple[object, float, float]] = {}

    def take(self, db: sqlite3.Connection, owner: str, keys: Sequence[bytes]) -> list[bytes]:
        """Claim keys; return those that nobody else is working on."""
        self._bury(db, owner)
        if not self.renew(db, owner):
            db.execute(
                "INSERT OR REPLACE INTO workers VALUES (?, ?, ?, 1)", (owner, _host(), os.getpid())
            )
        taken: set[bytes] = set()
        for some in slices(keys):
            rows = db.execute("SELECT key FROM claims WHERE key IN " + placeholders(some), some)
            taken.update(key for (key,) in rows)
        mine = [key for key in keys if key not in taken]
        db.executemany("INSERT INTO claims VALUES (?, ?)", [(key, owner) for key in mine])
        return mine

    def renew(self, db: sqlite3.Connection, owner: str) -> bool:
        """Give a sign of life; return whether the claims still hold."""
        return (
            db.execute("UPDATE workers SET beat = beat + 1 WHERE owner = ?", (owner,)).rowcount > 0
        )

    def finish(self, db: sqlite3.Connection, owner: str, keys: Sequence[bytes]) -> None:
        """End some claims of a worker."""
        db.executemany(
            "DELETE FROM claims WHERE key = ? AND owner = ?", [(key, owner) for key in keys]
        )

    def end(self, db: sqlite3.Connection, owner: str) -> None:
        """End all claims of a worker."""
        db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
        db.execute("DELETE FROM workers WHERE owner = ?", (owner,))

    def _bury(self, db: sqlite3.Connection, owner: str) -> None:
        """End the claims of workers that are gone, or were silent for a lease."""
        rows = db.execute(
            "SELECT owner, host, pid, beat FROM workers UNION ALL SELECT DISTINCT owner, NULL, "
            "NULL, NULL FROM claims WHERE owner NOT IN (SELECT owner FROM workers)"
        ).fetchall()
        watched = {}
        for other, host, pid, beat in rows:
            if other == owner:
                continue
            now = time.monotonic()
            last_beat, silent, looked = self._watched.get(other, (beat, 0.0, now))
            silent = silent + min(now - looked, _LONGEST_LOOK) if beat == last_beat else 0.0
            gone = isinstance(pid, int) and host == _host() and not _is_alive(pid)
            if gone or silent > LEASE_SECONDS:
                self.end(db, other)
            else:
                watched[other] = beat, silent, now
        self._watched = watched


class SignsOfLife:
    """Renews the claims of an owner while its LM is at work, and notices that they are gone."""

    def __init__(self, renew: Callable[[str], bool], owner: str) -> None:
        self.holds = True
        self._renew_claims, self._owner = renew, owner
        self._working, self._over = threading.Event(), threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def waiting_for(self, parts: Iterator[_T]) -> _T | None:
        """Return the next part; None after the last one, or when the claims are gone."""
        if time.monotonic() > self._last + LEASE_SECONDS / 4:  # whoever takes the parts was slow
            self.holds = self._renew_claims(self._owner)
        if not self.holds:
            return None
        if self._thread.ident is None:
            self._thread.start()
        self._working.set()
        try:
            return next(parts, None)
        finally:
            self._working.clear()
            self._last = time.monotonic()

    def _renew(self) -> None:
        while not self._over.wait(LEASE_SECONDS / 4):
            if self._working.is_set():
                with contextlib.suppress(StoreError):  # it was closed
                    self._renew_claims(self._owner)

    def __enter__(self) -> SignsOfLife:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


def _host() -> str:
    """Return what names the processes that can be asked for by their ids."""
    return f"{socket.gethostname()} {_boot()} {_namespace(os.getpid())}"


@functools.cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):  # a system without it has no process namespaces
        return ""


@functools.cache
def _namespace(pid: int) -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


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
