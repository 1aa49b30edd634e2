"""Recovery from a store file that is damaged, or gone while it is in use."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from blackbox.store.salvage import Remains, StoredPass, StoredToken, is_identity, is_whole
from blackbox.store.schema import add_rows, connect, is_foreign, refuse_foreign, side_files

__all__ = ["replace_damaged", "written_since"]

_log = logging.getLogger(__name__)


def replace_damaged(
    path: Path, identities: Mapping[str, str], error: Exception, *, is_ours: bool
) -> None:
    """Move a damaged file aside, and put a new one with all that can be read in its place.

    Parameters
    ----------
    path : Path
        The damaged file, which nobody here has open.
    identities : mapping of str to str
        Identities that are known, by their digests.
    error : Exception
        What was found.
    is_ours : bool
        Whether it is known to be a store; otherwise it has to show that it is one.

    Raises
    ------
    StoreUnavailableError
        If it may be a file of another program, which is left as it is.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    new = path.with_name(f"{path.name}.recovering-{os.getpid()}-{time.time_ns()}")
    with contextlib.ExitStack() as stack:
        remains = Remains(stack, path, identities)
        if is_foreign(path) or not (is_ours or remains.is_ours):
            raise refuse_foreign(path) from error
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with contextlib.closing(connect(new)) as db:
                n_kept = add_rows(db, remains.identities, remains.rows())
            stack.close()  # Windows moves no file that is open
            _keep_aside(path, aside)
            new.replace(path)
        except BaseException:
            for file in (new, *side_files(new)):
                file.unlink(missing_ok=True)
            raise
    _log.warning(
        "the store %s is damaged (%s): it is moved to %s and a new one is begun with the %d "
        "answers that can be read",
        path,
        error,
        aside.name,
        n_kept,
    )


def _keep_aside(path: Path, aside: Path) -> None:
    try:
        os.link(path, aside)  # so that at no time there is no store at the path
    except OSError:
        path.replace(aside)
    for file, kept in zip(side_files(path), side_files(aside), strict=True):
        with contextlib.suppress(FileNotFoundError):
            file.replace(kept)


def written_since(
    db: sqlite3.Connection, row: int
) -> Iterator[tuple[StoredPass | StoredToken, str]]:
    """Yield the answers after a row, and the tokens of their LMs, with the identity as JSON."""
    models: dict[str, str] = {}
    for identity, data, key, value, made, used, digest in db.execute(
        "SELECT i.digest, i.data, p.key, p.value, p.made, p.used, p.digest FROM passes p "
        "JOIN identities i ON i.id = p.identity WHERE p.id > ?",
        (row,),
    ):
        if is_whole(key, identity, digest, value) and is_identity(data, identity):
            models[identity] = data
            yield StoredPass(identity, key, value, made, used), data
    for identity, token, name in db.execute(
        "SELECT i.digest, t.token, t.bytes FROM tokens t JOIN identities i ON i.id = t.identity"
    ):
        if identity in models:
            yield StoredToken(identity, token, name), models[identity]
