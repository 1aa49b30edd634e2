"""What a method asked for: forward passes and tokens, whether or not a store had them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from blackbox.errors import BackendError
from blackbox.protocol import (
    Backend,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    request_digest,
)

__all__ = ["ChargedBackend", "RecordedBackend", "TokenCounts"]

_AT_A_TIME = 500  # keys that one query asks for


class RecordedBackend:
    """An LM whose answers are all in the store; where one isn't, it says so and fails.

    So cells can be worked on in processes that have no engine.
    """

    def __init__(self, identity: BackendIdentity, limits: Limits) -> None:
        self.identity = identity
        self.limits = limits

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Fails."""
        raise BackendError(f"{len(prompts)} passes are not in the store, and there is no LM here")


class TokenCounts:
    """How many tokens requests have, counted once and kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            database.execute("CREATE TABLE IF NOT EXISTS tokens (key BLOB PRIMARY KEY, n INT)")

    def count(self, backend: Backend, requests: Sequence[RenderedPrompt]) -> int | None:
        """Tokens of all the requests together; None where nobody can count them."""
        keys = [
            bytes.fromhex(request_digest(backend.identity, request, "tokens"))
            for request in requests
        ]
        known: dict[bytes, int] = {}
        with self._open() as database:
            for start in range(0, len(keys), _AT_A_TIME):
                some = keys[start : start + _AT_A_TIME]
                marks = ",".join("?" * len(some))
                known.update(
                    database.execute(f"SELECT key, n FROM tokens WHERE key IN ({marks})", some)  # noqa: S608
                )
        missing = [place for place, key in enumerate(keys) if key not in known]
        if missing:
            counting = getattr(backend, "count_tokens", None)
            if counting is None:
                return None
            counted = counting([requests[place] for place in missing])
            new = {keys[place]: n for place, n in zip(missing, counted, strict=True)}
            with self._open() as database:
                database.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?)", new.items())
            known |= new
        return sum(known[key] for key in keys)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)


class ChargedBackend:
    """Notes the distinct requests that come through it, and the distinct draws.

    Parameters
    ----------
    backend : Backend
        The LM, behind its store.
    counts : TokenCounts
        Counts their tokens.
    """

    def __init__(self, backend: Any, counts: TokenCounts) -> None:
        self._backend = backend
        self._counts = counts
        self.identity: BackendIdentity = backend.identity
        self.limits: Limits = backend.limits
        self._asked: dict[RenderedPrompt, None] = {}
        self._drawn: dict[tuple[RenderedPrompt, Any], int] = {}
        for optional in ("count_tokens", "show"):
            if hasattr(backend, optional):
                setattr(self, optional, getattr(backend, optional))
        if hasattr(backend, "generate"):
            self.generate = self._generate

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """See `blackbox.protocol.Backend`."""
        self._asked.update(dict.fromkeys(prompts))
        answered: TokenLogProbs = self._backend.next_token(prompts, top_k)
        return answered

    def iter_next_token(
        self, prompts: Sequence[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        """See `blackbox.protocol.StreamingBackend`."""
        self._asked.update(dict.fromkeys(prompts))
        yield from self._backend.iter_next_token(prompts, top_k)

    def settle(self) -> tuple[int, int | None]:
        """Passes and tokens since the last time; no tokens where they can't be counted."""
        requests = [*self._asked, *(prompt for prompt, _ in self._drawn)]
        passes = len(self._asked) + sum(self._drawn.values())
        self._asked, self._drawn = {}, {}
        return passes, self._counts.count(self._backend, requests)

    def _generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        first: int = 0,
        **asked: Any,
    ) -> Draws:
        """Each draw is charged its prompt and all tokens that were asked for, each a pass.

        How many were written a store doesn't know, and a charge must not depend on it.
        """
        for number in range(first, first + n):
            kind = (number, max_tokens, *sorted(asked.items()))
            self._drawn.update({(prompt, kind): max_tokens for prompt in prompts})
        draws: Draws = self._backend.generate(
            prompts, n, max_tokens=max_tokens, first=first, **asked
        )
        return draws
