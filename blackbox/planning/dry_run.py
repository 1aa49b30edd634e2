"""A backend for dry runs, which sends nothing and counts what would be sent."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.generation.prefix_costs import cached_share
from blackbox.lm.prices import price_of, rate_of
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    Draws,
    EmbeddingParts,
    Embeddings,
    RenderedPrompt,
    TokenLogProbs,
)
from blackbox.spending import CACHED_FROM

__all__ = ["DryRunBackend"]


class DryRunBackend(BaseBackend):
    """A backend for dry runs: it answers from the store, and counts all other requests.

    Parameters
    ----------
    backend : BaseBackend
        The backend of the run.

    Attributes
    ----------
    needs_unknown_answers : bool
        Whether an answer was requested that the store doesn't have.
    calls : list of list of RenderedPrompt
        What the LM will be asked in each call; a prompt as often as it is drawn from.
    """

    def __init__(self, backend: BaseBackend) -> None:
        self.backend = backend
        self.identity = backend.identity
        self.limits = replace(backend.limits, max_score_ids=0)
        self.needs_unknown_answers = False
        self.calls: list[list[RenderedPrompt]] = []
        self.known = 0
        # before and after the first made-up answer, as such answers may choose prompts
        self.asked = [0, 0]
        self.tokens = [0, 0]
        # of long prompts: what an API may read from a prefix cache, and all of their tokens
        self.cached = self.long = 0
        self.price = price_of(rate_of(self.identity, self.limits))
        self.first: RenderedPrompt | None = None
        self._seen: set[RenderedPrompt] = set()

    @property
    def times_paid(self) -> int:
        """The times a prompt's tokens are paid for: an LM that is sampled may be paid per draw."""
        return 1 if self.limits.draws_at_once else self.limits.draws_per_prompt

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield all answers in one part, so that one call is one step of the run."""
        yield list(range(len(prompts))), self.next_token(prompts, top_k)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the counts of the LM's own tokenizer."""
        return self.backend.count_tokens(prompts)

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the stored answers, and made-up ones for the rest."""
        chosen_by = int(self.needs_unknown_answers)
        if prompts and self.first is None:
            self.first = prompts[0]
        known = self.backend.known_rows(prompts, top_k)
        ids = np.full((len(prompts), top_k), NO_TOKEN, np.int32)
        values = np.full((len(prompts), top_k), -np.inf, np.float32)
        # no two alike: identical answers would be taken for duplicate prompts
        made_up = [zlib.crc32(repr(prompt).encode("utf-8", "surrogatepass")) for prompt in prompts]
        ids[:, 0], values[:, 0] = np.array(made_up, np.int64) >> 1, 0.0
        names = dict.fromkeys(ids[:, 0].tolist(), b"")
        if known:
            answers = self.backend.next_token([prompts[row] for row in known], top_k)
            ids[known], values[known] = answers.token_ids, answers.log_probs
            names |= answers.token_bytes
        there = set(known)
        missing = self._not_seen([p for row, p in enumerate(prompts) if row not in there])
        self.calls.append(missing)
        self.known += len(prompts) - len(missing)
        self.needs_unknown_answers |= len(there) < len(prompts)
        self.asked[chosen_by] += len(missing) * self.limits.passes_per_prompt
        tokens, times = self.tokens_of(missing), self.times_paid
        self.tokens[chosen_by] += sum(tokens) * times
        if self.price is not None and self.price.cached_share < 1 and not chosen_by:
            shares = zip(tokens, cached_share(missing), strict=True)
            cached = (int(n * share) for n, share in shares)
            self.cached += sum(n for n in cached if n >= CACHED_FROM) * times
            self.long += sum(n for n in tokens if n >= CACHED_FROM) * times
        return TokenLogProbs(ids, values, names)

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
        """Return the stored texts; the others are empty and counted at their maximum length."""
        asked: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        known = self.backend.known_draws(prompts, first + n, **asked)
        texts = [[""] * n for _ in prompts]
        if known:
            some_prompts = [prompts[row] for row in known]
            drawn = self.backend.generate(some_prompts, n, first=first, **asked)
            for row, some in zip(known, drawn.texts, strict=True):
                texts[row] = some
        self.known += len(known) * n
        missing = [prompt for row, prompt in enumerate(prompts) if row not in set(known)]
        self.needs_unknown_answers |= bool(missing)
        self.asked[0] += len(missing) * n * max(max_tokens, self.limits.tokens_written)
        times = 1 if self.limits.draws_at_once else n
        self.calls.append(missing * times)
        self.tokens[0] += sum(self.tokens_of(missing)) * times
        return Draws(texts)

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield the stored vectors, and made-up ones for the rest, in one part."""
        known = self.backend.known_embeddings(texts)
        there = set(known)
        vectors = _made_up_vectors(texts, self.limits.embedding_size)
        if known:
            vectors[known] = self.backend.embed([texts[row] for row in known]).vectors
        prompts = [RenderedPrompt(text) for row, text in enumerate(texts) if row not in there]
        new = self._not_seen(prompts)
        self.known += len(texts) - len(new)
        self.needs_unknown_answers |= bool(prompts)
        self.calls.append(new)
        # vectors choose no prompts
        self.asked[0] += len(new)
        self.tokens[0] += sum(self.tokens_of(new))
        yield list(range(len(texts))), Embeddings(vectors)

    def _not_seen(self, missing: Sequence[RenderedPrompt]) -> list[RenderedPrompt]:
        """Return those that will be paid for: repeated ones once, where the LM sees to that."""
        if not self.limits.deduplicates:
            return list(missing)
        new = [prompt for prompt in dict.fromkeys(missing) if prompt not in self._seen]
        self._seen.update(new)
        return new

    def tokens_of(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt as it is sent: counted, or estimated.

        Of several questions about one text, the first one has the tokens of the text where that is
        sent once for all of them.
        """
        if self.limits.counts_tokens:
            return self.count_tokens(prompts)
        shortened, sent = [], set()
        for prompt in prompts:
            is_known = prompt.question is not None and (prompt.text, prompt.image) in sent
            is_known &= self.limits.shares_prefixes
            shortened.append(replace(prompt, text=None, image=None) if is_known else prompt)
            sent.add((prompt.text, prompt.image))
        return self.backend.estimate_tokens(shortened)


def _made_up_vectors(texts: Sequence[str], size: int) -> NDArray[np.float32]:
    """Return a vector of norm 1 per text, the same one each time, no two alike."""
    seeds = [zlib.crc32(text.encode("utf-8", "surrogatepass")) for text in texts]
    values = [np.random.default_rng(seed).standard_normal(size) for seed in seeds]
    return Embeddings.of(np.array(values).reshape(len(texts), size)).vectors
