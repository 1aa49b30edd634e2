"""Backends that count, refuse or give less, around the deterministic one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from backends.deterministic import DeterministicBackend
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
)

__all__ = ["CountingBackend", "PlainBackend", "RefusingBackend", "text_of"]


def text_of(request: RenderedPrompt) -> str:
    """Everything that a request says."""
    contents = [message.content for message in request.messages]
    return " ".join(part for part in [*contents, request.text, request.answer_prefix] if part)


class CountingBackend(DeterministicBackend):
    """Keeps what it was asked: `calls` holds a name and the requests of each call."""

    constructed: ClassVar[int] = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        CountingBackend.constructed += 1
        self.calls: list[tuple[str, list[RenderedPrompt]]] = []

    @property
    def asked(self) -> list[RenderedPrompt]:
        """The requests of `next_token`."""
        return [request for name, some in self.calls if name == "next_token" for request in some]

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Count, and answer."""
        self.calls.append(("next_token", list(prompts)))
        return super().next_token(prompts, top_k)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Count, and answer."""
        self.calls.append(("score", list(prompts)))
        return super().score(prompts, token_ids)


class RefusingBackend(CountingBackend):
    """Refuses requests that hold all of the words, as a content filter does."""

    def __init__(self, *words: str, **options: Any) -> None:
        super().__init__(**options)
        self._words = words or ("forbidden",)

    def _refused(self, prompts: Sequence[RenderedPrompt]) -> dict[int, str]:
        return {
            row: "content filter"
            for row, prompt in enumerate(prompts)
            if all(word in text_of(prompt) for word in self._words)
        }

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Answers, but for what is refused."""
        answers, refused = super().next_token(prompts, top_k), self._refused(prompts)
        ids, values = answers.token_ids.copy(), answers.log_probs.copy()
        ids[list(refused)], values[list(refused)] = NO_TOKEN, -np.inf
        return TokenLogProbs(ids, values, answers.token_bytes, refused, answers.usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Answers, but for what is refused."""
        answers, refused = super().score(prompts, token_ids), self._refused(prompts)
        values = answers.log_probs.copy()
        values[list(refused)] = np.nan
        return TokenScores(values, refused, answers.usage)


class PlainBackend:
    """No more than a backend must have: two attributes and one method.

    Parameters
    ----------
    engine : DeterministicBackend
        Who answers.
    **limits
        What it serves less.
    """

    def __init__(self, engine: DeterministicBackend | None = None, **limits: Any) -> None:
        self._engine = engine or DeterministicBackend()
        given = {"max_score_ids": 0, **limits}
        theirs = self._engine.limits
        self._limits = Limits(**{**vars(theirs), **given})

    @property
    def identity(self) -> BackendIdentity:
        """The engine's."""
        return self._engine.identity

    @property
    def limits(self) -> Limits:
        """The engine's, or less."""
        return self._limits

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """The engine's answers."""
        return self._engine.next_token(prompts, top_k)
