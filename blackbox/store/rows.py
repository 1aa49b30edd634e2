"""Reads and writes the answers of a store file, inside a connection."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from blackbox.store.encoding import check_of
from blackbox.store.salvage import is_whole, token_check
from blackbox.store.schema import add_identity

__all__ = ["DAY", "Writing", "placeholders", "read", "slices", "write"]

DAY = 86_400
"""Seconds of a day; when an answer was made and used is kept in days."""

_MANY = 500  # values in one statement; SQLite takes 999 everywhere


class Writing(NamedTuple):
    """Answers on their way into the file."""

    identity: str
    data: str
    values: dict[bytes, bytes]
    token_bytes: Mapping[int, bytes]
    merge: Callable[[bytes, bytes], bytes]


def read(
    db: sqlite3.Connection, identity: str, keys: Sequence[bytes], today: int
) -> tuple[dict[bytes, bytes], list[int], list[int]]:
    """Return the values of keys; the rows of those not used today; the rows of damaged ones."""
    found: dict[bytes, bytes] = {}
    stale, broken = [], []
    for some in slices(list(keys)):
        rows = db.execute(
            "SELECT p.id, p.key, i.digest, p.used, p.digest, p.value FROM passes p "
            "LEFT JOIN identities i ON i.id = p.identity WHERE p.key IN " + placeholders(some),
            some,
        )
        for row, key, whose, used, digest, value in rows:
            if not is_whole(key, whose, digest, value):
                broken.append(row)
            elif whose == identity:
                found[key] = value
                if used != today:
                    stale.append(row)
    return found, stale, broken


def write(db: sqlite3.Connection, writing: Writing, known: Mapping[int, bytes]) -> None:
    """Write answers, and the bytes of those of their tokens that are not known to be there."""
    identity, data, values, token_bytes, merge = writing
    today = int(time.time()) // DAY
    number = add_identity(db, identity, data)
    there: dict[bytes, tuple[str, bytes, bytes, int]] = {}
    for some in slices(list(values)):
        rows = db.execute(
            "SELECT p.key, i.digest, p.digest, p.value, p.made FROM passes p "
            "LEFT JOIN identities i ON i.id = p.identity WHERE p.key IN " + placeholders(some),
            some,
        )
        there |= {key: (whose, digest, value, made) for key, whose, digest, value, made in rows}
    written = []
    for key, value in values.items():
        made = today
        if key in there:
            whose, digest, old, made = there[key]
            if whose == identity and is_whole(key, whose, digest, old):
                value = merge(old, value)
                if value == old:
                    continue
        check = check_of(key, identity.encode(), value)
        written.append((key, number, made, today, check, value))
    # a row that is replaced gets a new number, by which `Database` knows what is new
    db.executemany(
        "INSERT OR REPLACE INTO passes (key, identity, made, used, digest, value) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        written,
    )
    db.executemany(
        "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)",
        [
            (number, token, name, token_check(identity, token, name))
            for token, name in token_bytes.items()
            if known.get(token) != name
        ],
    )


def slices(keys: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    """Return keys in parts, each of which one statement takes."""
    return (keys[start : start + _MANY] for start in range(0, len(keys), _MANY))


def placeholders(values: Sequence[Any]) -> str:
    """Return the right side of ``IN`` for so many values."""
    return "(" + ",".join("?" * len(values)) + ")"
