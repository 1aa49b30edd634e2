"""Distributions out of draws, for LMs that can only write: no log-probabilities needed.

Each prompt is continued n times at temperature 1. The first words of the continuations, in lower
case, are the tokens, and their smoothed frequencies the distribution. It is paid for n times over.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import log
from typing import Any

from backends.api.responses import ParsedAnswer, as_log_probs, id_of_bytes
from blackbox.errors import BackendError
from blackbox.protocol import (
    Backend,
    BackendIdentity,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    check_served,
    gather_parts,
)

__all__ = ["SamplingBackend"]

_WORD = re.compile(r"\w+|[^\w\s]")
_NOTHING = "∅"  # a continuation without a word is an answer too
_CALL = 16  # prompts that are handed over together


class SamplingBackend:
    """Next-token distributions as frequencies of words that an LM writes.

    Parameters
    ----------
    inner : str or Backend, default="openai"
        The LM: a name of `backends.names()`, or a backend with `generate`.
    n_draws : int, default=20
        Continuations of each prompt.
    max_tokens : int, default=4
        Tokens of each, of which the first word counts.
    smoothing : float, default=0.5
        What is added to the count of each word that was drawn, and once for all those that weren't.
    seed : int, default=0
        Of the draws, where the LM takes one.
    **options
        Arguments of a backend that is given by name.

    Raises
    ------
    BackendError
        If the LM can't write.
    """

    environment = ("OPENAI_API_KEY", "OPENAI_BASE_URL")  # of the API that it wraps by default

    def __init__(
        self,
        inner: str | Backend = "openai",
        *,
        n_draws: int = 20,
        max_tokens: int = 4,
        smoothing: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, number in (("n_draws", n_draws), ("max_tokens", max_tokens)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
        if not smoothing > 0:
            raise ValueError(f"smoothing must be more than 0, got {smoothing!r}")
        self.backend = _started(inner, options)
        if not hasattr(self.backend, "generate"):
            raise BackendError(f"{self.backend!r} can't write texts, so there is nothing to draw")
        self._options: dict[str, Any] = {
            "n_draws": n_draws,
            "max_tokens": max_tokens,
            "smoothing": smoothing,
            "seed": seed,
        }
        for optional in ("count_tokens", "show", "price_share"):
            if hasattr(self.backend, optional):
                setattr(self, optional, getattr(self.backend, optional))

    @property
    def identity(self) -> BackendIdentity:
        """The LM's, with how it is drawn from."""
        inner = self.backend.identity
        asked = " ".join(f"{name}={value}" for name, value in self._options.items())
        return replace(
            inner, endpoint=f"{inner.endpoint}, drawn", extra={**inner.extra, "draws": asked}
        )

    @property
    def limits(self) -> Limits:
        """The LM's, with at most as many tokens as there are draws."""
        return replace(self.backend.limits, max_top_k=self._options["n_draws"], max_score_ids=0)

    @property
    def usage(self) -> Usage:
        """What the LM took so far, where the backend around it counts that."""
        usage: Usage = getattr(self.backend, "usage", Usage())
        return usage

    @property
    def draws_per_prompt(self) -> int:
        """Texts that one answer takes."""
        return int(self._options["n_draws"])

    @property
    def passes_per_prompt(self) -> int:
        """Forward passes that one answer takes at most: one a token."""
        return int(self._options["n_draws"] * self._options["max_tokens"])

    def over(self, backend: Any) -> SamplingBackend:
        """The same around another backend, such as this one's LM with a store and a budget."""
        return SamplingBackend(backend, **self._options)

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """The `top_k` most frequent first words; see `blackbox.protocol.Backend`."""
        return gather_parts(self.iter_next_token(prompts, top_k), len(prompts), top_k)

    def iter_next_token(
        self, prompts: Sequence[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        """The same in parts; see `blackbox.protocol.StreamingBackend`."""
        check_served(self.limits, prompts, top_k)
        backend: Any = self.backend
        # draws have numbers, so the same prompt has the same draws: one answer for all its rows
        rows: dict[RenderedPrompt, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        distinct = list(rows)
        for start in range(0, len(distinct), _CALL):
            began = time.perf_counter()
            some = distinct[start : start + _CALL]
            draws = backend.generate(
                some,
                self._options["n_draws"],
                max_tokens=self._options["max_tokens"],
                temperature=1.0,
                seed=self._options["seed"],
            )
            places = [place for place, prompt in enumerate(some) for _ in rows[prompt]]
            errors = {
                new: draws.row_errors[place]
                for new, place in enumerate(places)
                if place in draws.row_errors
            }
            reads = [self._read(draws.texts[place]) for place in places]
            usage = replace(draws.usage, seconds_lm=time.perf_counter() - began)
            where = [row for prompt in some for row in rows[prompt]]
            yield where, replace(as_log_probs(reads, top_k, errors), usage=usage)

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Rows whose draws are all in the store, if there is one around the LM."""
        known_draws = getattr(self.backend, "known_draws", None)
        if known_draws is None:
            return []
        rows: list[int] = known_draws(
            prompts,
            self._options["n_draws"],
            max_tokens=self._options["max_tokens"],
            temperature=1.0,
            seed=self._options["seed"],
        )
        return rows

    def _read(self, texts: list[str]) -> ParsedAnswer:
        """The distribution over first words; nothing where the LM refused to write."""
        counts = Counter(_first_word(text) for text in texts)
        share = self._options["smoothing"]
        total = len(texts) + share * (len(counts) + 1)
        named = [(" " + word).encode("utf-8", "surrogatepass") for word in counts]
        tokens = [
            (id_of_bytes(name), name, log((count + share) / total))
            for name, count in zip(named, counts.values(), strict=True)
        ]
        tokens.sort(key=lambda token: (-token[2], token[0]))
        return ParsedAnswer(tokens, 0, 0, native_ids=False, named_bytes=True)

    def __sklearn_clone__(self) -> SamplingBackend:
        return self

    def __copy__(self) -> SamplingBackend:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SamplingBackend:
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, dict[str, Any]]]:
        return _restore, (self.backend, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r}, n_draws={self._options['n_draws']})"


def _first_word(text: str) -> str:
    found = _WORD.search(text)
    return found[0].lower() if found else _NOTHING


def _started(inner: str | Backend, options: dict[str, Any]) -> Backend:
    if not isinstance(inner, str):
        if options:
            raise TypeError(f"unexpected arguments {sorted(options)}: the backend is made already")
        return inner
    import backends

    if inner == "openai":
        options = {"log_probs": False, **options}  # it needs none
    return backends.load(inner, **options)


def _restore(backend: Backend, options: dict[str, Any]) -> SamplingBackend:
    return SamplingBackend(backend, **options)
