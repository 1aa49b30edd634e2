"""Distributions out of draws, for LMs that can only write: no log-probabilities needed.

Each prompt is continued n times at temperature 1. The first words of the continuations, in lower
case, are the tokens, and their smoothed frequencies the distribution. It is paid for n times over.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import log
from typing import Any

from backends.api.responses import ParsedAnswer, as_log_probs, id_of_bytes
from blackbox.backend import BaseBackend, WrappedBackend, as_backend
from blackbox.errors import BackendError
from blackbox.protocol import (
    AnswerParts,
    Backend,
    BackendIdentity,
    Limits,
    RenderedPrompt,
    check_served,
)
from blackbox.spending import current_gate

__all__ = ["SamplingBackend"]

_WORD = re.compile(r"\w+|[^\w\s]")
_NOTHING = "∅"  # a continuation without a word is an answer too
_CALL = 16  # prompts that are handed over together


class SamplingBackend(WrappedBackend):
    """Next-token distributions as frequencies of words that an LM writes.

    Parameters
    ----------
    inner : str or Backend, default="openai"
        The LM: a name of `backends.names()`, or a backend that can `generate`.
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
        On first use, if the LM can't write.
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
        super().__init__(_started(inner, options))
        self._options: dict[str, Any] = {
            "n_draws": n_draws,
            "max_tokens": max_tokens,
            "smoothing": smoothing,
            "seed": seed,
        }

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """The LM's, with how it is drawn from."""
        inner = self.backend.identity
        asked = " ".join(f"{name}={value}" for name, value in self._options.items())
        return replace(
            inner, endpoint=f"{inner.endpoint}, drawn", extra={**inner.extra, "draws": asked}
        )

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The LM's, with at most as many tokens as there are draws; it writes nothing itself."""
        n_draws = self._options["n_draws"]
        inner = self.backend.limits  # of an API, its probe finds them out, which is paid for
        if not inner.generates:
            raise BackendError(f"{self.backend!r} can't write texts, so there is nothing to draw")
        return replace(
            inner,
            max_top_k=n_draws,
            max_score_ids=0,
            generates=False,
            requests_at_a_time=None,
            draws_per_prompt=n_draws,
            passes_per_prompt=n_draws * max(self._options["max_tokens"], inner.tokens_written),
            tokens_written=1,  # a pass is one already
            deduplicates=True,
        )

    def wrap_lm(self, wrap: Callable[[BaseBackend], BaseBackend]) -> SamplingBackend:
        """Return the same around a wrapped LM: what is paid for, and kept, are its draws."""
        return SamplingBackend(self.backend.wrap_lm(wrap), **self._options)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the `top_k` most frequent first words in parts; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        # draws have numbers, so the same prompt has the same draws: one answer for all its rows
        rows: dict[RenderedPrompt, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        distinct = list(rows)
        gate = current_gate()
        for start in range(0, len(distinct), _CALL):
            if gate is not None and gate.closed:
                return
            began = time.perf_counter()
            some = distinct[start : start + _CALL]
            draws = self.backend.generate(
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

    def estimate_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the tokens of each prompt, as the LM gets it."""
        return self.backend.estimate_tokens(prompts)

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows whose draws are all in the store, if there is one around the LM."""
        return self.backend.known_draws(
            prompts,
            self._options["n_draws"],
            max_tokens=self._options["max_tokens"],
            temperature=1.0,
            seed=self._options["seed"],
        )

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

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, dict[str, Any]]]:
        return _restore, (self.backend, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r}, n_draws={self._options['n_draws']})"


def _first_word(text: str) -> str:
    found = _WORD.search(text)
    return found[0].lower() if found else _NOTHING


def _started(inner: str | Backend, options: dict[str, Any]) -> BaseBackend:
    if not isinstance(inner, str):
        if options:
            raise TypeError(f"unexpected arguments {sorted(options)}: the backend is made already")
        return as_backend(inner)
    import backends

    if inner == "openai":
        options = {"log_probs": False, **options}  # it needs none
    return backends.load(inner, **options)


def _restore(backend: BaseBackend, options: dict[str, Any]) -> SamplingBackend:
    return SamplingBackend(backend, **options)
