"""An offline stand-in for an LM: a small, seeded function of the words of a prompt.

It understands nothing, needs no software, and gives the same answers to the last bit in any batch,
so it serves tests, documentation and measurements of everything but quality. It is defined
as follows. Each word (lower case, letters and digits) has a vector of standard normal numbers, one
per token, drawn from a generator seeded with the SHA-256 of the seed and the word. The logits of a
prompt are 1.5 / √(number of words) times the sum of its words' vectors, each factor stretched by
1 + c/2, where c is the vector of the prompt's last word, the cue. So the answer depends on the
words of the text and on how the prompt asks, and a classifier has something to learn. An embedding
is the sum of the vectors of a text's words, in their first 64 dimensions, normalised. An image is
16 words before the text: the brightness, in eight steps, of each field of a grid of 4 by 4.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from blackbox.backend import BaseBackend
from blackbox.images import Image
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    Draws,
    Embeddings,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    check_served,
)

__all__ = ["DeterministicBackend"]

_WORDS = re.compile(r"\w+|[^\w\s]")
_EMBEDDING_SIZE = 64
_GRID, _STEPS = 4, 8  # fields on each side of an image, and steps of brightness
_CHUNK = 256  # prompts whose distributions are in memory at once
_CONSONANTS, _VOWELS = "bdfgklmnprst", "aeio"


class DeterministicBackend(BaseBackend):
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

    context_option = "context_length"

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
            generates=True,
            counts_tokens=True,
            shares_prefixes=True,
            embedding_size=min(_EMBEDDING_SIZE, vocabulary_size),
            images=True,
            tokens_per_image=_GRID**2,
            tokens_per_megapixel=0.0,
        )
        self._vector = lru_cache(maxsize=20_000)(self._make_vector)

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the `top_k` most likely next tokens of each prompt; see `BaseBackend`."""
        started = time.perf_counter()
        check_served(self.limits, prompts, top_k)
        ids = np.full((len(prompts), top_k), NO_TOKEN, np.int32)
        values = np.full((len(prompts), top_k), -np.inf, np.float32)
        read = [_words_of(prompt) for prompt in prompts]
        usage, row_errors = self._take(read)
        answered = [row for row in range(len(prompts)) if row not in row_errors]
        for start in range(0, len(answered), _CHUNK):
            rows = answered[start : start + _CHUNK]
            log_probs = self._log_probs([read[row] for row in rows])
            order = _largest(log_probs, top_k)
            ids[rows], values[rows] = order, np.take_along_axis(log_probs, order, axis=1)
        usage.seconds_lm = time.perf_counter() - started
        return TokenLogProbs(ids, values, self.token_bytes, row_errors, usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the log-probabilities of given tokens; see `BaseBackend`."""
        started = time.perf_counter()
        check_served(self.limits, prompts)
        read = [_words_of(prompt) for prompt in prompts]
        usage, row_errors = self._take(read)
        values = np.full((len(prompts), len(token_ids)), np.nan, np.float32)
        for row, words in enumerate(read):
            if row not in row_errors:
                values[row] = self._log_probs([words])[0, list(token_ids)]
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
        """Return words drawn one after the other; see `BaseBackend`."""
        started = time.perf_counter()
        check_served(self.limits, prompts)
        usage, row_errors = self._take([_words_of(prompt) for prompt in prompts])
        texts: list[list[str]] = [[] for _ in prompts]
        for row, prompt in enumerate(prompts):
            for number in range(first, first + n) if row not in row_errors else ():
                asked = f"{number} {max_tokens} {temperature} {_text_of(prompt)}"
                rng = np.random.default_rng(_number(seed, asked))
                texts[row].append(self._write(prompt, max_tokens, temperature, rng))
        for name, times in (("passes_made", n * max_tokens), ("tokens", n)):
            setattr(usage, name, getattr(usage, name) * times)
        usage.seconds_lm = time.perf_counter() - started
        return Draws(texts, row_errors, usage)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return the normalised sum of the vectors of each text's words; see `BaseBackend`."""
        started = time.perf_counter()
        read = [_words_of(RenderedPrompt(text)) for text in texts]
        usage, row_errors = self._take(read)
        vectors = np.full((len(texts), self.limits.embedding_size), np.nan)
        for start in range(0, len(read), _CHUNK):
            some = read[start : start + _CHUNK]
            vectors[start : start + len(some)] = self._totals(some)[:, : vectors.shape[1]]
        usage.seconds_lm = time.perf_counter() - started
        return Embeddings.of(vectors, row_errors, usage)

    def _write(
        self,
        prompt: RenderedPrompt,
        max_tokens: int,
        temperature: float,
        rng: np.random.Generator,
    ) -> str:
        begun = _text_of(prompt)
        written = ""
        for _ in range(max_tokens):
            words = _words_of(RenderedPrompt(begun + written))
            log_probs = self._log_probs([words])[0].astype(np.float64)
            # the largest of them with Gumbel noise is a draw; without noise, the most likely
            token = int(np.argmax(log_probs + temperature * rng.gumbel(size=len(log_probs))))
            written += self.token_bytes[token].decode()
        return written

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of words and punctuation marks of each prompt."""
        return [_words_of(prompt).n for prompt in prompts]

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int]]:
        """Return the text that is read, and a number for each of its words."""
        text = _text_of(prompt)
        return text, [_number(0, word) % 2**31 for word in _WORDS.findall(text)]

    def _take(self, read: Sequence[_Words]) -> tuple[Usage, dict[int, str]]:
        refused = {
            row: f"{words.n} tokens, the context holds {self.limits.context_length}"
            for row, words in enumerate(read)
            if words.n > self.limits.context_length
        }
        total = sum(words.n for row, words in enumerate(read) if row not in refused)
        usage = Usage(
            passes_made=len(read) - len(refused),
            tokens=total,
            tokens_evaluated=total,
            tokens_least=total,
        )
        return usage, refused

    def _log_probs(self, read: Sequence[_Words]) -> NDArray[np.float32]:
        """Return the log-probabilities of all tokens for each prompt, whatever the batch."""
        totals = self._totals(read)
        cues = np.stack([self._vector(words.cue) for words in read])
        lengths = [len(words.words) for words in read]
        logits = totals * (1 + 0.5 * cues) * (1.5 / np.sqrt(lengths))[:, None]
        shifted = logits - logits.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(total), np.float32)

    def _totals(self, read: Sequence[_Words]) -> NDArray[np.float64]:
        """Return the sum of the vectors of each prompt's words, the same in any batch."""
        place: dict[str, int] = {}
        for words in read:
            for word in words.words:
                place.setdefault(word, len(place))
        vectors = np.stack([self._vector(word) for word in place])
        columns = [place[word] for words in read for word in words.words]
        ends = np.cumsum([0, *(len(words.words) for words in read)])
        # adds up a prompt's words one after the other
        return np.asarray(csr_array((np.ones(len(columns)), columns, ends)) @ vectors)

    def _make_vector(self, word: str) -> NDArray[np.float64]:
        generator = np.random.default_rng(_number(self._options["seed"], word))
        return generator.standard_normal(self._options["vocabulary_size"])

    def __reduce__(self) -> tuple[Any, tuple[dict[str, int]]]:
        return _make, (self._options,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity.model!r})"


class _Words(NamedTuple):
    """The words of a prompt in lower case, the last one before the answer, and their number."""

    words: list[str]
    cue: str
    n: int


def _words_of(prompt: RenderedPrompt) -> _Words:
    before = _WORDS.findall(_before(prompt).lower())
    after = _WORDS.findall(prompt.after_mask.lower()) if prompt.after_mask else []
    words = before + after
    return _Words(words or [""], before[-1] if before else "", len(words))


def _before(prompt: RenderedPrompt) -> str:
    seen = _words_of_image(prompt.image) if prompt.image is not None else ()
    turns = [message.content for message in prompt.messages]
    return " ".join([*seen, *turns, prompt.text or "", prompt.answer_prefix])


@lru_cache(maxsize=4096)
def _words_of_image(image: Image) -> tuple[str, ...]:
    small = np.asarray(image.pixels().convert("L").resize((_GRID, _GRID)), np.intp).ravel()
    return tuple(f"field{n}bright{v * _STEPS // 256}" for n, v in enumerate(small.tolist()))


def _text_of(prompt: RenderedPrompt) -> str:
    """Return the whole text of a prompt."""
    return f"{_before(prompt)} {prompt.after_mask or ''}"


def _largest(values: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Return the places of each row's k largest values, descending; ties by place."""
    order = np.argsort(-values, axis=1)[:, : k + 1]
    ranked = np.take_along_axis(values, order, axis=1)
    # equal values are rare, and only a slower sort keeps their order
    tied = np.flatnonzero((ranked[:, 1:] == ranked[:, :-1]).any(axis=1))
    order[tied] = np.argsort(-values[tied], axis=1, kind="stable")[:, : k + 1]
    return np.asarray(order[:, :k])


def _number(seed: int, word: str) -> int:
    digest = hashlib.sha256(f"{seed}:{word}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _make(options: dict[str, Any]) -> DeterministicBackend:
    return DeterministicBackend(**options)
