"""Embedding vectors in the forward-pass store: none is ever paid for twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.errors import BackendError
from blackbox.protocol import EmbeddingParts, Embeddings, RenderedPrompt, Usage, request_hasher
from blackbox.spending import Account
from blackbox.store.claims import SignsOfLife
from blackbox.store.encoding import decode_vector, encode_vector
from blackbox.store.file import StoreFile
from blackbox.store.sharing import answer_once

__all__ = ["StoredEmbeddings"]

_SAME_MODEL = 0.99  # cosine of two vectors of one text: formats of numbers change less

_Rows = dict[bytes, list[int]]


class StoredEmbeddings:
    """The vectors of a backend, kept in a store.

    Parameters
    ----------
    backend : BaseBackend
        The embedding model.
    store : StoreFile
        Where its vectors are kept.
    n_claimed : int
        Texts that one process claims at a time.
    get : callable
        Returns the values of keys of this backend that are in the store.
    put : callable
        Writes values under an owner's claims, and returns whether the others still hold.
    account : Account, optional
        As for `StoredBackend`.
    """

    def __init__(
        self,
        backend: BaseBackend,
        store: StoreFile,
        n_claimed: int,
        get: Callable[[Sequence[bytes]], dict[bytes, bytes]],
        put: Callable[[dict[bytes, bytes], str | None], bool],
        account: Account | None = None,
    ) -> None:
        self._backend, self._store, self._n_claimed = backend, store, n_claimed
        self._get, self._put, self._account = get, put, account
        self._is_checked = False

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts: those in the store at once, the others as they come.

        Raises
        ------
        BackendError
            If another model of this identity has made those of the store.
        """
        self._check_model()
        rows = self._rows_of(texts)
        ask = partial(self._ask, {key: texts[where[0]] for key, where in rows.items()}, rows)
        recall = partial(self._recall, rows)
        yield from answer_once(self._store, list(rows), self._n_claimed, recall, ask, self._account)

    def known(self, texts: Sequence[str]) -> list[int]:
        """Return the rows whose vectors are in the store."""
        self._check_model()
        rows = self._rows_of(texts)
        known, _ = self._recall(rows, list(rows))
        return sorted(row for key in known for row in rows[key])

    def _check_model(self) -> None:
        """Compare a vector that is known anyway with the one in the store, once."""
        if self._is_checked:
            return
        self._is_checked = True
        known = self._backend.known_embedding()
        if known is None:
            return
        text, made = known
        (key,) = self._rows_of([text])
        held = self._get([key])
        if not held:
            self._put({key: encode_vector(made.vectors[0])}, None)
        elif not _is_same(decode_vector(held[key]), made.vectors[0]):
            identity = self._backend.identity
            raise BackendError(
                f"the store has vectors of another model that was called {identity.model!r} too: "
                "give this one a name of its own (--embeddings-option revision=NAME), or another "
                "--store"
            )

    def _rows_of(self, texts: Sequence[str]) -> _Rows:
        rows: _Rows = {}
        key_of = request_hasher(self._backend.identity, {"call": "embed"})
        for row, text in enumerate(texts):
            rows.setdefault(key_of(RenderedPrompt(text)), []).append(row)
        return rows

    def _recall(
        self, rows: _Rows, keys: list[bytes]
    ) -> tuple[list[bytes], tuple[list[int], Embeddings] | None]:
        held = self._get(keys)
        if not held:
            return [], None
        places = [row for key in held for row in rows[key]]
        vectors = np.stack([decode_vector(held[key]) for key in held for _ in rows[key]])
        return list(held), (places, Embeddings(vectors, usage=Usage(passes_from_store=len(places))))

    def _ask(
        self, texts: dict[bytes, str], rows: _Rows, keys: list[bytes], owner: str, life: SignsOfLife
    ) -> Iterator[tuple[list[bytes], tuple[list[int], Embeddings]]]:
        """Yield the vectors of the model itself, written down as they come."""
        parts = self._backend.iter_embed([texts[key] for key in keys])
        while life.holds and (part := life.waiting_for(parts)) is not None:
            where, made = part
            answered = [keys[number] for number in where]
            values = {
                key: encode_vector(made.vectors[place])
                for place, key in enumerate(answered)
                if place not in made.row_errors
            }
            life.holds = self._put(values, owner)
            yield answered, _spread([rows[key] for key in answered], made)


def _is_same(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Return whether two vectors of norm 1 are one model's, of one text."""
    return len(one) == len(other) and float(one @ other) >= _SAME_MODEL


def _spread(places: list[list[int]], made: Embeddings) -> tuple[list[int], Embeddings]:
    """Return a part in which each vector stands once for every row that asked for it."""
    source = [place for place, wanted in enumerate(places) for _ in wanted]
    errors = {new: made.row_errors[old] for new, old in enumerate(source) if old in made.row_errors}
    usage = made.usage + Usage(passes_from_store=len(source) - len(places))
    where = [row for wanted in places for row in wanted]
    return where, Embeddings(made.vectors[source], errors, usage)
