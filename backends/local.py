"""Base class of engines that evaluate token sequences in this process."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.errors import BackendError
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    Draws,
    RenderedPrompt,
    TokenLogProbs,
    Usage,
    check_served,
)

__all__ = ["LocalBackend", "Tokenizer", "TopPart"]

TopPart = tuple[list[int], NDArray[np.int32], NDArray[np.float32], int]
"""Numbers of sequences, their likeliest tokens (n, k), log-probabilities, and tokens evaluated."""


class Tokenizer(Protocol):
    """A model's own tokenizer and chat template."""

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt."""

    def text_of(self, prompt: RenderedPrompt) -> str:
        """Return the text that is tokenised, control tokens included."""

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated tokens."""

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, also where they are half a character."""


class LocalBackend(BaseBackend):
    """An engine in this process: everything but how sequences are evaluated.

    A subclass sets `identity` and `limits` and implements `top`, `least` and, where
    `Limits.generates`, `write`. One call has the engine at a time.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._busy = threading.Lock()
        self._token_bytes: dict[int, bytes] = {}

    @abstractmethod
    def top(self, sequences: Sequence[list[int]], top_k: int) -> Iterator[TopPart]:
        """Yield the likeliest tokens at the end of each sequence, in parts, in any order."""

    @abstractmethod
    def least(self, sequences: Sequence[list[int]]) -> int:
        """Return the number of tokens that a perfect prefix cache would evaluate."""

    def write(
        self, sequence: list[int], seeds: Sequence[int], max_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Return the continuation of a sequence, once for each seed."""
        raise BackendError("this LM writes no texts")

    def encode(self, prompts: Sequence[RenderedPrompt]) -> list[list[int]]:
        """Return the token ids of prompts."""
        return [self._tokenizer.encode(prompt) for prompt in prompts]

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the likeliest next or masked tokens in parts; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        sequences = self.encode(prompts)
        # one place is for the token that is predicted, where it isn't in the prompt
        limit = self.limits.context_length - (0 if self.limits.mask else 1)
        refused = {
            row: f"{len(sequence)} tokens, the context holds {limit}"
            if sequence
            else "no tokens: the LM needs at least one"
            for row, sequence in enumerate(sequences)
            if not 0 < len(sequence) <= limit
        }
        if refused:
            nothing = np.full((len(refused), top_k), NO_TOKEN, np.int32)
            minus_infinity = np.full((len(refused), top_k), -np.inf, np.float32)
            reasons = dict(enumerate(refused.values()))
            yield list(refused), TokenLogProbs(nothing, minus_infinity, {}, reasons)
        served = [row for row in range(len(prompts)) if row not in refused]
        least = self.least([sequences[row] for row in served])
        with self._busy:
            started = time.perf_counter()
            for places, ids, values, evaluated in self.top(
                [sequences[row] for row in served], top_k
            ):
                rows = [served[place] for place in places]
                usage = Usage(
                    passes_made=len(rows),
                    tokens=sum(len(sequences[row]) for row in rows),
                    tokens_evaluated=evaluated,
                    tokens_least=least,
                    seconds_lm=time.perf_counter() - started,
                )
                least = 0
                yield rows, TokenLogProbs(ids, values, self._names(ids), {}, usage)
                started = time.perf_counter()  # what the caller does with them isn't the LM's

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Draws:
        """Return texts that the LM writes; see `BaseBackend`."""
        check_served(self.limits, prompts)
        if not self.limits.generates:
            raise BackendError("a masked LM writes no texts")
        started = time.perf_counter()
        usage, errors = Usage(), dict[int, str]()
        texts: list[list[str]] = [[] for _ in prompts]
        most = self.limits.context_length - max_tokens
        for row, prompt in enumerate(prompts):
            sequence = self._tokenizer.encode(prompt)
            if not 0 < len(sequence) <= most:
                errors[row] = f"{len(sequence)} tokens, and {max_tokens} more to write"
                continue
            seeds = [seed + number for number in range(first, first + n)]
            with self._busy:
                written = self.write(sequence, seeds, max_tokens, temperature)
            texts[row] = [self._tokenizer.decode(ids) for ids in written]
            usage += Usage(
                passes_made=sum(len(ids) + (len(ids) < max_tokens) for ids in written),
                tokens=n * len(sequence),
                tokens_evaluated=len(sequence),
                tokens_least=len(sequence),
            )
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, errors, usage)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt, special ones included."""
        return [len(sequence) for sequence in self.encode(prompts)]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """Return the exact text and token ids that are evaluated for a prompt."""
        return self._tokenizer.text_of(prompt), self._tokenizer.encode(prompt)

    def _names(self, ids: NDArray[np.int32]) -> dict[int, bytes]:
        tokens = np.unique(ids).tolist()
        for token in tokens:
            if token not in self._token_bytes:
                self._token_bytes[token] = self._tokenizer.bytes_of(token)
        return {token: self._token_bytes[token] for token in tokens}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"
