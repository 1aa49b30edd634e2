"""Vectors of texts with a cache: each is made once, and kept in a file beside the store."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import backends
from backends.onnx_embeddings import DEFAULT_MODEL
from blackbox.backend import BaseBackend
from blackbox.protocol import BackendIdentity, Embeddings, Limits

__all__ = ["CachedEmbeddings", "VectorCache"]

_KEYS_PER_QUERY = 500


class VectorCache:
    """Vectors of texts, and the time that each took, in a file.

    Parameters
    ----------
    path : Path or None
        The file; None caches nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seconds_saved = 0.0

    def of(
        self, model: str, texts: Sequence[str], make: Callable[[list[str]], NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Return one vector per text, of shape (n, size).

        Parameters
        ----------
        model : str
            What makes the vectors; another is another key.
        texts : sequence of str
            The texts.
        make : callable
            From texts to their vectors; called with those that are missing.
        """
        keys = {text: _key(model, text) for text in texts}
        known = self._read(list(keys.values()))
        missing = [text for text, key in keys.items() if key not in known]
        if missing:
            started = time.perf_counter()
            made = make(missing)
            each = (time.perf_counter() - started) / len(missing)
            new = {
                keys[text]: (each, np.asarray(vector, "<f4"))
                for text, vector in zip(missing, made, strict=True)
            }
            self._write(new)
            known |= new
        cached = keys.keys() - set(missing)
        self._seconds_saved += sum(known[keys[text]][0] for text in cached)
        return np.stack([known[keys[text]][1] for text in texts]).astype(np.float32)

    def take_seconds_saved(self) -> float:
        """Return the time that cached vectors took when they were made, since the last call."""
        saved, self._seconds_saved = self._seconds_saved, 0.0
        return saved

    def _read(self, keys: list[bytes]) -> dict[bytes, tuple[float, NDArray[Any]]]:
        if self._path is None:
            return {}
        found: dict[bytes, tuple[float, NDArray[Any]]] = {}
        with closing(_open(self._path)) as database:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                rows = database.execute(
                    "SELECT key, seconds, vector FROM embeddings WHERE key IN "  # noqa: S608
                    f"({','.join('?' * len(some))})",
                    some,
                )
                found |= {key: (took, np.frombuffer(data, "<f4")) for key, took, data in rows}
        return found

    def _write(self, new: dict[bytes, tuple[float, NDArray[Any]]]) -> None:
        if self._path is None:
            return
        rows = [(key, took, vector.tobytes()) for key, (took, vector) in new.items()]
        with closing(_open(self._path)) as database, database:
            database.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)", rows)


class CachedEmbeddings(BaseBackend):
    """The embedding model that the program uses by default, behind a cache.

    Parameters
    ----------
    vectors : VectorCache, optional
        The cache; by default none.
    """

    def __init__(self, vectors: VectorCache | None = None) -> None:
        self._vectors = vectors or VectorCache(None)

    @cached_property
    def backend(self) -> BaseBackend:
        """The model, loaded when it is first needed."""
        return backends.load_embeddings(DEFAULT_MODEL)

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """The identity of the model."""
        return self.backend.identity

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The limits of the model."""
        return self.backend.limits

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return one embedding per text, of norm 1."""
        model = self.identity.digest()
        return Embeddings.of(self._vectors.of(model, texts, self._make))

    def _make(self, texts: list[str]) -> NDArray[np.float32]:
        return self.backend.embed(texts).vectors


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    with database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS embeddings "
            "(key BLOB PRIMARY KEY, seconds REAL, vector BLOB)"
        )
    return database


def _key(model: str, text: str) -> bytes:
    return hashlib.sha256(f"{model}\n{text}".encode("utf-8", "surrogatepass")).digest()
