"""Count the forward passes and tokens that a method requests, stored or not.

Many cells send the same requests to one LM, so each process caches the answers that it read from
the store, and the token counts.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend, WrappedBackend
from blackbox.errors import BackendError
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    distinct_tokens,
    request_digest,
)
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend

__all__ = [
    "ChargedBackend",
    "Counts",
    "KnownCounts",
    "ReadOnce",
    "RecordedBackend",
    "Shipment",
    "ShippedAnswers",
    "TokenCounts",
    "shared_stored_answers",
    "shared_token_counts",
]

_KEYS_PER_QUERY = 500
_MAX_CACHED_TOKENS = 10_000_000  # of answers, eight bytes each
_MAX_CACHED_COUNTS = 50_000  # requests


class RecordedBackend(BaseBackend):
    """A backend without an LM: all answers must be in the store, and a missing one is an error.

    With it, cells can be computed in processes that have no engine.
    """

    def __init__(self, identity: BackendIdentity, limits: Limits) -> None:
        self.identity = identity
        self.limits = replace(limits, max_score_ids=0, generates=False, counts_tokens=False)

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Raise a `BackendError`: there is no LM to ask."""
        raise BackendError(f"{len(prompts)} passes are not in the store, and there is no LM here")


class ReadOnce(WrappedBackend):
    """A cache in memory over a store, for LMs that give next tokens only (`RecordedBackend`)."""

    def __init__(self, stored: StoredBackend) -> None:
        super().__init__(stored)
        self._kept: dict[tuple[int, RenderedPrompt], tuple[NDArray[Any], NDArray[Any]]] = {}
        self._n_kept = 0  # tokens
        self._seconds = 0.0
        self._token_bytes: dict[int, bytes] = {}

    @property
    def usage(self) -> Usage:
        """Of the store; reading it is its own time, and no other's."""
        return self.backend.usage + Usage(seconds_lm=self._seconds)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the answers of the store, or those that were read before."""
        found = [self._kept.get((top_k, prompt)) for prompt in prompts]
        missing = [row for row, answer in enumerate(found) if answer is None]
        known = {row: answer for row, answer in enumerate(found) if answer is not None}
        asked = [prompts[row] for row in missing]
        began = time.perf_counter()
        parts = list(self.backend.iter_next_token(asked, top_k))
        for where, part in parts:
            self._keep([(top_k, asked[place]) for place in where], part)
        self._seconds += time.perf_counter() - began
        for where, part in parts:
            yield [missing[place] for place in where], part
        if known:
            yield list(known), self._part_of(list(known.values()))

    def _keep(self, keys: list[tuple[int, RenderedPrompt]], part: TokenLogProbs) -> None:
        size = part.token_ids.size
        if self._n_kept + size > _MAX_CACHED_TOKENS:
            self._kept.clear()
            self._n_kept = 0
        if size > _MAX_CACHED_TOKENS:
            return
        self._n_kept += size
        self._token_bytes.update(part.token_bytes)
        answers = zip(part.token_ids, part.log_probs, strict=True)
        self._kept.update(
            (key, answer)
            for place, (key, answer) in enumerate(zip(keys, answers, strict=True))
            if place not in part.row_errors
        )

    def _part_of(self, answers: list[tuple[NDArray[Any], NDArray[Any]]]) -> TokenLogProbs:
        shape = len(answers), max(len(ids) for ids, _ in answers)
        ids, values = np.full(shape, NO_TOKEN, np.int32), np.full(shape, -np.inf, np.float32)
        for row, (some_ids, some_values) in enumerate(answers):
            ids[row, : len(some_ids)], values[row, : len(some_ids)] = some_ids, some_values
        names = {token: self._token_bytes[token] for token in np.unique(ids[ids != NO_TOKEN])}
        return TokenLogProbs(ids, values, names, usage=Usage(passes_from_store=len(answers)))


@dataclass(frozen=True)
class Shipment:
    """Answers and token counts for cells that are computed on another machine.

    Parameters
    ----------
    identity, limits
        Of the LM.
    requests : dict of int to list of RenderedPrompt
        By the number of tokens that are asked for, the requests whose answers are known.
    answers : dict of int to TokenLogProbs
        Their answers.
    tokens : dict of RenderedPrompt to int
        Tokens of requests; of none where the LM can't count them.
    """

    identity: BackendIdentity
    limits: Limits
    requests: dict[int, list[RenderedPrompt]]
    answers: dict[int, TokenLogProbs]
    tokens: dict[RenderedPrompt, int]


class ShippedAnswers(RecordedBackend):
    """A `RecordedBackend` over the answers of a shipment, in memory."""

    def __init__(self, shipment: Shipment) -> None:
        super().__init__(shipment.identity, shipment.limits)
        self._answers = shipment.answers
        self._rows = {
            top_k: {request: row for row, request in enumerate(requests)}
            for top_k, requests in shipment.requests.items()
        }
        self._usage = Usage()

    @property
    def usage(self) -> Usage:
        """Answers given; none takes time of the LM."""
        return self._usage

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return answers that were shipped; raise a `BackendError` if one is missing."""
        known = self._rows.get(top_k, {})
        if not all(prompt in known for prompt in prompts):
            return super().next_token(prompts, top_k)
        part = self._answers[top_k].take_rows(np.array([known[p] for p in prompts], np.intp))
        usage = Usage(passes_from_store=len(prompts))
        self._usage += usage
        names = {token: part.token_bytes[token] for token in distinct_tokens(part.token_ids)}
        return TokenLogProbs.of_checked(part.token_ids, part.log_probs, names, {}, usage)


class Counts(Protocol):
    """The token counts of requests."""

    def count(self, backend: BaseBackend, requests: Sequence[RenderedPrompt]) -> int | None:
        """Return the total tokens of the requests; None if they can't be counted."""


class KnownCounts:
    """Token counts that are known already; others can't be counted."""

    def __init__(self, tokens: Mapping[RenderedPrompt, int]) -> None:
        self._tokens = tokens

    def count(self, backend: BaseBackend, requests: Sequence[RenderedPrompt]) -> int | None:
        """See `Counts`."""
        known = [self._tokens.get(request) for request in requests]
        return None if None in known else sum(filter(None, known))


class TokenCounts:
    """Token counts of requests, cached in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: dict[tuple[str, RenderedPrompt], int] = {}
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS tokens (key BLOB PRIMARY KEY, n INT)")

    def count(self, backend: BaseBackend, requests: Sequence[RenderedPrompt]) -> int | None:
        """Return the total tokens of the requests; None if the LM can't count them."""
        lm = backend.identity.digest()
        unknown = [p for p in dict.fromkeys(requests) if (lm, p) not in self._kept]
        if unknown:
            found = self.count_each(backend, unknown)
            if found is None:
                return None
            self._kept.update({(lm, prompt): n for prompt, n in found.items()})
        total = sum(self._kept[lm, prompt] for prompt in requests)
        if len(self._kept) > _MAX_CACHED_COUNTS:
            self._kept.clear()
        return total

    def count_each(
        self, backend: BaseBackend, requests: Sequence[RenderedPrompt]
    ) -> dict[RenderedPrompt, int] | None:
        """Return the tokens of each request; None if the LM can't count them."""
        keys = [
            bytes.fromhex(request_digest(backend.identity, request, "tokens"))
            for request in requests
        ]
        known: dict[bytes, int] = {}
        with self._open() as database:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                known.update(
                    database.execute(f"SELECT key, n FROM tokens WHERE key IN ({marks})", some)  # noqa: S608
                )
        missing = [place for place, key in enumerate(keys) if key not in known]
        if missing:
            if not backend.limits.counts_tokens:
                return None
            counted = backend.count_tokens([requests[place] for place in missing])
            new = {keys[place]: n for place, n in zip(missing, counted, strict=True)}
            with self._open() as database:
                database.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?)", new.items())
            known |= new
        return {request: known[key] for request, key in zip(requests, keys, strict=True)}

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)


_read: dict[tuple[str, Limits, Path], ReadOnce] = {}


def shared_stored_answers(identity: BackendIdentity, limits: Limits, store: Path) -> ReadOnce:
    """Return a backend over the stored answers of an LM, shared within this process."""
    key = identity.digest(), limits, store
    if key not in _read:
        recorded = RecordedBackend(identity, limits)
        _read[key] = ReadOnce(StoredBackend(recorded, open_store(store)))
    return _read[key]


@cache
def shared_token_counts(path: Path) -> TokenCounts:
    """Return the token counts of a file, shared within this process."""
    return TokenCounts(path)


class ChargedBackend(WrappedBackend):
    """Notes the distinct requests that come through it, and the distinct draws.

    Parameters
    ----------
    backend : BaseBackend
        The LM, behind its store.
    counts : Counts
        Counts their tokens.
    """

    def __init__(self, backend: BaseBackend, counts: Counts) -> None:
        super().__init__(backend)
        self._counts = counts
        self._asked: dict[RenderedPrompt, None] = {}
        self._drawn: dict[tuple[RenderedPrompt, Any], int] = {}

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The LM's; scores are not charged, so there are none."""
        return replace(self.backend.limits, max_score_ids=0)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Note what is asked, and yield its answers."""
        self._asked.update(dict.fromkeys(prompts))
        yield from self.backend.iter_next_token(prompts, top_k)

    def settle(self) -> tuple[int, int | None]:
        """Passes and tokens since the last time; no tokens where they can't be counted."""
        requests = [*self._asked, *(prompt for prompt, _ in self._drawn)]
        passes = len(self._asked) + sum(self._drawn.values())
        self._asked, self._drawn = {}, {}
        return passes, self._counts.count(self.backend, requests)

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        first: int = 0,
        **asked: Any,
    ) -> Draws:
        """Return the LM's draws, each charged its prompt and a pass for each token asked for.

        How many were written a store doesn't know, and a charge must not depend on it.
        """
        for number in range(first, first + n):
            kind = (number, max_tokens, *sorted(asked.items()))
            self._drawn.update({(prompt, kind): max_tokens for prompt in prompts})
        return self.backend.generate(prompts, n, max_tokens=max_tokens, first=first, **asked)
