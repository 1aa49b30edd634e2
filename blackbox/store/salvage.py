"""Reads what is left of a damaged store file: every row whose digest holds, page by page.

SQLite stops at the first damaged page of a table, and reads nothing at all without the first page
of the file. The rows are still in the other pages. This module looks at each page on its own, in
the file and in its write-ahead log, and takes a row only if its digest holds; so a page that is
damaged, stale or of another program gives nothing. The format is https://sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from blackbox.store.encoding import check_of

__all__ = [
    "APPLICATION",
    "Remains",
    "StoredPass",
    "StoredToken",
    "is_identity",
    "is_whole",
    "token_check",
]

APPLICATION = 0x50425053
"""The application id of a store file: PBPS, prompt boosting's passes."""

_MAGIC = b"SQLite format 3\0"
_DEFAULT_PAGE = 4096
_LONGEST = 1 << 20  # bytes of a record; the longest answer has half as many
_TABLE_LEAF, _INDEX_LEAF, _INDEX_INTERIOR = 0x0D, 0x0A, 0x02
_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8}  # serial type: bytes
_FLOAT = 7
_NO_RECORD = (IndexError, ValueError, struct.error, RecursionError)


class StoredPass(NamedTuple):
    """One answer, as the file has it."""

    identity: str
    key: bytes
    value: bytes
    made: int
    used: int


class StoredToken(NamedTuple):
    """The bytes of one token of an LM."""

    identity: str
    token: int
    name: bytes


def is_whole(key: Any, identity: Any, digest: Any, value: Any) -> bool:
    """Return whether the digest of an answer holds."""
    return (
        isinstance(key, bytes)
        and isinstance(identity, str)
        and isinstance(value, bytes)
        and bool(digest == check_of(key, identity.encode(), value))
    )


def is_identity(data: Any, digest: Any) -> bool:
    """Return whether this is the identity with that digest (see `BackendIdentity.digest`)."""
    return isinstance(data, str) and hashlib.sha256(data.encode()).hexdigest() == digest


def token_check(identity: str, token: int, name: bytes) -> bytes:
    """Return the digest of the bytes of a token."""
    return check_of(identity.encode(), str(token).encode(), name)


class Remains:
    """The readable part of a store file, damaged or not. The file is not changed.

    Parameters
    ----------
    stack : ExitStack
        Closes the file.
    path : Path
        The file; its write-ahead log is read too.
    identities : mapping of str to str
        Identities that are known, by their digests, where the file may have lost them.

    Attributes
    ----------
    identities : dict of str to str
        Those, and all that the file holds.
    """

    def __init__(
        self, stack: contextlib.ExitStack, path: Path, identities: Mapping[str, str]
    ) -> None:
        self._views = _views(stack, path)
        self.identities = dict(identities)
        self._holds_identities = False
        for record in self._records():
            if len(record) in (2, 3) and is_identity(record[-1], record[-2]):
                self.identities[str(record[-2])] = str(record[-1])
                self._holds_identities = True

    @property
    def is_ours(self) -> bool:
        """Whether anything shows that this is a store."""
        start = self._views[0].page(1)
        application = int.from_bytes(start[68:72], "big")
        named = start[:16] == _MAGIC and application == APPLICATION
        return named or b"CREATE TABLE passes" in start or self._holds_identities

    def rows(self) -> Iterator[StoredPass | StoredToken]:
        """Yield every answer and every token whose digest holds; some may come more than once."""
        guess = _Guess(self.identities)
        for record in self._records():
            if len(record) == 7 and isinstance(record[1], bytes):
                _, key, number, made, used, digest, value = record
                for identity in guess.of(number):
                    if is_whole(key, identity, digest, value):
                        guess.right[number] = identity
                        yield StoredPass(identity, key, value, _day(made), _day(used))
                        break
            elif len(record) == 4 and isinstance(record[2], bytes):
                number, token, name, digest = record
                for identity in guess.of(number):
                    if isinstance(token, int) and digest == token_check(identity, token, name):
                        guess.right[number] = identity
                        yield StoredToken(identity, token, name)
                        break

    def _records(self) -> Iterator[tuple[Any, ...]]:
        for view in self._views:
            yield from view.records()


class _Guess:
    """Which identity has which number: the one under which the digests hold."""

    def __init__(self, known: dict[str, str]) -> None:
        self._known = list(known)
        self.right: dict[Any, str] = {}

    def of(self, number: Any) -> Iterator[str]:
        """The identities to try, the likeliest first."""
        likeliest = self.right.get(number)
        if likeliest is not None:
            yield likeliest
        yield from (identity for identity in self._known if identity != likeliest)


def _day(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**6 else 0


class _View:
    """Pages by number, of which some are scanned for records."""

    def __init__(
        self, main: bytes | mmap.mmap, log: bytes | mmap.mmap, size: int, overlay: dict[int, int]
    ) -> None:
        self._main, self._log, self._size, self._overlay = main, log, size, overlay
        self.scanned: list[int] = sorted({*range(1, len(main) // size + 1), *overlay})

    def page(self, number: int) -> bytes:
        """Return the bytes of a page, from the log where it has it."""
        start = self._overlay.get(number)
        if start is not None:
            return self._log[start : start + self._size]
        return self._main[(number - 1) * self._size : number * self._size]

    def records(self) -> Iterator[tuple[Any, ...]]:
        """Yield the records of all pages that hold some."""
        for number in self.scanned:
            page = self.page(number)
            start = 100 if number == 1 else 0
            if len(page) == self._size and page[start] in (
                _TABLE_LEAF,
                _INDEX_LEAF,
                _INDEX_INTERIOR,
            ):
                yield from self._records_of(page, start)

    def _records_of(self, page: bytes, start: int) -> Iterator[tuple[Any, ...]]:
        kind = page[start]
        first = start + (12 if kind == _INDEX_INTERIOR else 8)
        (count,) = struct.unpack_from(">H", page, start + 3)
        for place in range(first, min(first + 2 * count, self._size - 1), 2):
            try:
                (at,) = struct.unpack_from(">H", page, place)
                yield _record(self._payload(page, at, kind))
            except _NO_RECORD:
                continue

    def _payload(self, page: bytes, at: int, kind: int) -> bytes:
        """Return the bytes of a record, which may go on in overflow pages."""
        at += 4 if kind == _INDEX_INTERIOR else 0
        length, at = _varint(page, at)
        if length > _LONGEST:
            raise ValueError("no record is so long")
        if kind == _TABLE_LEAF:
            _, at = _varint(page, at)
        usable = self._size
        most = usable - 35 if kind == _TABLE_LEAF else (usable - 12) * 64 // 255 - 23
        if length <= most:
            return page[at : at + length]
        least = (usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (usable - 4)
        local = local if local <= most else least
        parts, have = [page[at : at + local]], local
        (following,) = struct.unpack_from(">I", page, at + local)
        while have < length:
            page = self.page(following) if following else b""
            (following,) = struct.unpack_from(">I", page)
            parts.append(page[4 : 4 + length - have])
            have += len(parts[-1])
        return b"".join(parts)


def _views(stack: contextlib.ExitStack, path: Path) -> list[_View]:
    """Return the file with its log, and the file alone where the log has other pages."""
    main, log = (_mapped(stack, file) for file in (path, path.with_name(path.name + "-wal")))
    size = _DEFAULT_PAGE
    if main[:16] == _MAGIC:
        (told,) = struct.unpack(">H", main[16:18])
        told = 65536 if told == 1 else told
        size = told if told >= 512 and told & (told - 1) == 0 else _DEFAULT_PAGE
    overlay = {}
    # frames of a header of 24 bytes and a page each; those of an earlier round have other salts
    for start in range(32, len(log) - 24 - size + 1, 24 + size):
        if log[start + 8 : start + 16] == log[16:24]:
            (number,) = struct.unpack(">I", log[start : start + 4])
            overlay[number] = start + 24
    views = [_View(main, log, size, overlay)]
    if overlay:
        alone = _View(main, log, size, {})
        alone.scanned = [number for number in alone.scanned if number in overlay]
        views.append(alone)
    return views


def _mapped(stack: contextlib.ExitStack, path: Path) -> bytes | mmap.mmap:
    try:
        file = stack.enter_context(path.open("rb"))
    except FileNotFoundError:
        return b""
    try:
        return stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:  # an empty file
        return b""


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(8):
        octet = data[at + place]
        value = value << 7 | octet & 0x7F
        if octet < 0x80:
            return value, at + place + 1
    return value << 8 | data[at + 8], at + 9


def _record(payload: bytes) -> tuple[Any, ...]:
    """Return the columns of a record; any other bytes are an error or nonsense."""
    end, at = _varint(payload, 0)
    types = []
    while at < end:
        kind, at = _varint(payload, at)
        types.append(kind)
        if len(types) > 7:
            raise ValueError("no table has so many columns")
    columns: list[Any] = []
    for kind in types:
        size = (kind - 12) // 2 if kind >= 12 else _SIZES.get(kind, 0)
        data = payload[at : at + size]
        if len(data) != size:
            raise ValueError("a record is cut short")
        at += size
        columns.append(_column(kind, data))
    return tuple(columns)


def _column(kind: int, data: bytes) -> Any:
    if kind in _SIZES and kind != _FLOAT:
        return int.from_bytes(data, "big", signed=True)
    if kind in (8, 9):
        return kind - 8
    if kind >= 12:
        return data if kind % 2 == 0 else data.decode()
    return None
