"""An offline stand-in for an LM: a small, seeded function of the words of a prompt.

It understands nothing, needs nothing and always answers the same, to the last bit and in any
batch, so it serves tests, documentation and measurements of everything but quality. It is defined
as follows. Each word (lower case, letters and digits) has a vector of standard normal numbers, one
a token, drawn from a generator seeded with SHA-256 of the seed and the word. The logits of a
prompt are 1.5 / √(number of words) times the sum of its words' vectors, each factor stretched by
1 + c/2, where c is the vector of the prompt's last word, the cue. So the answer depends on the
words of the text and on how the prompt asks, and a classifier has something to learn.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    check_served,
)

__all__ = ["DeterministicBackend"]

_WORDS = re.compile(r"\w+|[^\w\s]")
_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeio"


class DeterministicBackend:
    """Next-token distributions out of a seeded function of the prompt's words.

    Parameters
    ----------
    seed : int, default=0
        Another seed is another "LM".
    vocabulary_size : int, default=512
        Number of tokens, at most 2,304.
    context_length : int, default=4096
        Tokens that one prompt may have; a token is a word or a punctuation mark.
    """

    def __init__(
        self, seed: int = 0, *, vocabulary_size: int = 512, context_length: int = 4096
    ) -> None:
        syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
        names = [" " + one + other for one in syllables for other in syllables]
        if not 2 <= vocabulary_size <= len(names):
            raise ValueError(f"vocabulary_size must be in [2, {len(names)}], got {vocabulary_size}")
        self._options = {
            "seed": seed,
            "vocabulary_size": vocabulary_size,
            "context_length": context_length,
        }
        # a stride that is prime to the number of names keeps neighbours from looking alike
        self.token_bytes = {
            token: names[token * 1_009 % len(names)].encode() for token in range(vocabulary_size)
        }
        self.identity = BackendIdentity(
            provider="deterministic",
            endpoint="in-process",
            model=f"seed-{seed}-vocabulary-{vocabulary_size}",
        )
        self.limits = Limits(
            max_top_k=vocabulary_size,
            max_score_ids=vocabulary_size,
            context_length=context_length,
            deterministic=True,
            raw_text=True,
            chat=True,
            answer_prefix=True,
        )
        self._vector = lru_cache(maxsize=20_000)(self._make_vector)

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """The `top_k` most likely next tokens of each prompt; see `blackbox.protocol.Backend`."""
        started = time.perf_counter()
        check_served(self.limits, prompts, top_k)
        ids = np.full((len(prompts), top_k), NO_TOKEN, np.int32)
        values = np.full((len(prompts), top_k), -np.inf, np.float32)
        usage, row_errors = self._take(prompts)
        for row, prompt in enumerate(prompts):
            if row in row_errors:
                continue
            log_probs = self._log_probs(prompt)
            # stable, so that equal values stand in the order of their ids
            order = np.argsort(-log_probs, kind="stable")[:top_k]
            ids[row], values[row] = order, log_probs[order]
        usage.seconds_lm = time.perf_counter() - started
        return TokenLogProbs(ids, values, self.token_bytes, row_errors, usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Log-probabilities of given tokens; see `blackbox.protocol.ScoringBackend`."""
        started = time.perf_counter()
        check_served(self.limits, prompts)
        usage, row_errors = self._take(prompts)
        values = np.full((len(prompts), len(token_ids)), np.nan, np.float32)
        for row, prompt in enumerate(prompts):
            if row not in row_errors:
                values[row] = self._log_probs(prompt)[list(token_ids)]
        usage.seconds_lm = time.perf_counter() - started
        return TokenScores(values, row_errors, usage)

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
        """Words drawn one after the other; see `blackbox.protocol.GeneratingBackend`."""
        started = time.perf_counter()
        check_served(self.limits, prompts)
        usage, row_errors = self._take(prompts)
        texts: list[list[str]] = [[] for _ in prompts]
        for row, prompt in enumerate(prompts):
            for number in range(first, first + n) if row not in row_errors else ():
                asked = f"{number} {max_tokens} {temperature} {_text_of(prompt)[0]}"
                rng = np.random.default_rng(_number(seed, asked))
                texts[row].append(self._write(prompt, max_tokens, temperature, rng))
        for name, times in (("passes_made", n * max_tokens), ("tokens", n)):
            setattr(usage, name, getattr(usage, name) * times)
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, row_errors, usage)

    def _write(
        self,
        prompt: RenderedPrompt,
        max_tokens: int,
        temperature: float,
        rng: np.random.Generator,
    ) -> str:
        begun = _text_of(prompt)[0]
        written = ""
        for _ in range(max_tokens):
            log_probs = self._log_probs(RenderedPrompt(begun + written)).astype(np.float64)
            # the largest of them with Gumbel noise is a draw; without noise, the most likely
            token = int(np.argmax(log_probs + temperature * rng.gumbel(size=len(log_probs))))
            written += self.token_bytes[token].decode()
        return written

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Words and punctuation marks of each prompt."""
        return [len(_WORDS.findall(_text_of(prompt)[0])) for prompt in prompts]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """The text that is read, and a number for each of its words."""
        text = _text_of(prompt)[0]
        return text, [_number(0, word) % 2**31 for word in _WORDS.findall(text)]

    def _take(self, prompts: Sequence[RenderedPrompt]) -> tuple[Usage, dict[int, str]]:
        counts = self.count_tokens(prompts)
        refused = {
            row: f"{count} tokens, the context holds {self.limits.context_length}"
            for row, count in enumerate(counts)
            if count > self.limits.context_length
        }
        total = sum(count for row, count in enumerate(counts) if row not in refused)
        usage = Usage(
            passes_made=len(prompts) - len(refused),
            tokens=total,
            tokens_evaluated=total,
            tokens_least=total,
        )
        return usage, refused

    def _log_probs(self, prompt: RenderedPrompt) -> NDArray[np.float32]:
        text, cue = _text_of(prompt)
        words = _WORDS.findall(text.lower()) or [""]
        total = np.zeros(self._options["vocabulary_size"])
        for word in words:
            total += self._vector(word)
        logits = total * (1 + 0.5 * self._vector(cue)) * (1.5 / np.sqrt(len(words)))
        shifted = logits - logits.max()
        return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float32)

    def _make_vector(self, word: str) -> NDArray[np.float64]:
        generator = np.random.default_rng(_number(self._options["seed"], word))
        return generator.standard_normal(self._options["vocabulary_size"])

    def __sklearn_clone__(self) -> DeterministicBackend:
        return self

    def __copy__(self) -> DeterministicBackend:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> DeterministicBackend:
        return self

    def __reduce__(self) -> tuple[Any, tuple[dict[str, int]]]:
        return _make, (self._options,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


def _text_of(prompt: RenderedPrompt) -> tuple[str, str]:
    """Everything that is read, and the last word before the answer."""
    before = " ".join(
        [*(message.content for message in prompt.messages), prompt.text or "", prompt.answer_prefix]
    )
    cues = _WORDS.findall(before.lower()[-200:])
    return f"{before} {prompt.after_mask or ''}", cues[-1] if cues else ""


def _number(seed: int, word: str) -> int:
    digest = hashlib.sha256(f"{seed}:{word}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _make(options: dict[str, Any]) -> DeterministicBackend:
    return DeterministicBackend(**options)
