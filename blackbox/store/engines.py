"""Notes in a store file on which engines, by name and version, answered for each language model.

Versions of an engine are one LM: they differ in the last digits, as the batches of one version do.
So an update leaves the answers in use, and a mix is told instead.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

__all__ = ["add_engines", "engines_of"]


def engines_of(db: sqlite3.Connection, identity: str) -> list[str]:
    """Return the engines that are noted for the LM with this digest, in the order of their names.

    A note that is damaged is none.
    """
    row = db.execute("SELECT value FROM meta WHERE name = ?", (_name(identity),)).fetchone()
    try:
        found = json.loads(row[0]) if row else []
    except (TypeError, ValueError, RecursionError):
        return []
    return (
        sorted(name for name in found if isinstance(name, str)) if isinstance(found, list) else []
    )


def add_engines(db: sqlite3.Connection, identity: str, engines: Iterable[str]) -> None:
    """Note engines that answered for the LM with this digest, inside a transaction."""
    noted = engines_of(db, identity)
    added = sorted({*noted, *engines})
    if added != noted:
        values = _name(identity), json.dumps(added)
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", values)


def _name(identity: str) -> str:
    return f"engines {identity}"
