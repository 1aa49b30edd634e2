"""Budgets that stop a run before it spends more than it may.

Before a request is sent, its worst case is reserved out of the budget, and when its answer is
there, that is replaced by what it took; a request whose worst case doesn't fit is not sent.

A backend that may be billed (`Limits.charges_tries`) reserves every try by itself, in the account
that is in force (`Meter.charging`). For all others `MeteredBackend` reserves around their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from blackbox.backend import BaseBackend, WrappedBackend
from blackbox.lm.meter import Budget, Load, Meter, Prepaid, known_price
from blackbox.lm.prices import Price, price_of, rate_of
from blackbox.protocol import (
    AnswerParts,
    DrawParts,
    Draws,
    EmbeddingParts,
    Embeddings,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    gather_draws,
)
from blackbox.spending import Account, charged_to

__all__ = ["Budget", "Meter", "MeteredBackend"]

_FRAME_TOKENS = 64  # what a chat template may add to a message, where no tokenizer counts it
_ADDED_TOKENS = 256  # what a backend may write around a raw text that goes to a chat
_OUTPUT_TOKENS = 1

_Part = TypeVar("_Part", TokenLogProbs, Embeddings, Draws)
_Parts = Generator[tuple[list[int], _Part], None, None]


class MeteredBackend(WrappedBackend):
    """A backend that keeps to a budget and says what its answers cost.

    Parameters
    ----------
    backend : BaseBackend
        The LM.
    meter : Meter
        The account.

    Raises
    ------
    UnknownPriceError
        If a cost is limited and the LM's price is unknown; nothing was sent.
    """

    def __init__(self, backend: BaseBackend, meter: Meter) -> None:
        super().__init__(backend)
        self._usage = Usage()
        self._meter = meter
        with meter.charging():
            rate = rate_of(backend.identity, backend.limits)
        self._price = price_of(rate)
        if meter.budget.max_cost is not None:
            known_price(rate)

    @property
    def usage(self) -> Usage:
        """The usage of the LM so far."""
        return self._usage

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield answers in parts; an error in the place of the first beyond the budget."""
        yield from self._metered(
            prompts,
            lambda rows: self.backend.iter_next_token([prompts[row] for row in rows], top_k),
            _OUTPUT_TOKENS,
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts; an error in the place of the first beyond the budget."""
        yield from self._metered(
            [RenderedPrompt(text) for text in texts],
            lambda rows: self.backend.iter_embed([texts[row] for row in rows]),
            0,
        )

    def _metered(
        self,
        prompts: Sequence[RenderedPrompt],
        ask: Callable[[list[int]], _Parts[_Part]],
        output_tokens: int,
    ) -> _Parts[_Part]:
        """Yield what `ask` answers to rows, metered; each writes so many tokens."""
        if self._meter.budget.is_open:
            yield from self._with_costs(ask(list(range(len(prompts)))), output_tokens)
        elif self.limits.charges_tries:
            with self._account(prompts, whole=self._meter.whole) as account:
                parts = _charged(ask(list(range(len(prompts)))), account)
                yield from self._with_costs(parts, output_tokens)
        else:
            yield from self._reserved(prompts, ask, output_tokens)

    def _with_costs(self, parts: _Parts[_Part], output_tokens: int) -> _Parts[_Part]:
        for where, part in parts:
            usage = self._priced(part.usage, output_tokens * part.usage.passes_made)
            self._usage += usage
            yield where, part.with_usage(usage)

    def _reserved(
        self,
        prompts: Sequence[RenderedPrompt],
        ask: Callable[[list[int]], _Parts[_Part]],
        output_tokens: int,
    ) -> _Parts[_Part]:
        """Yield answers of a backend that doesn't charge its tries by itself."""
        loads = self._worst(prompts)
        begun = 0
        while begun < len(prompts):
            count = self._meter.reserve(loads[begun:])
            rows = list(range(begun, begun + count))
            open_rows = set(rows)
            try:
                with closing(ask(rows)) as parts:
                    for where, part in parts:
                        answered = [rows[place] for place in where]
                        usage = self._priced(part.usage, output_tokens * part.usage.passes_made)
                        self._settle(answered, open_rows, loads, usage, len(part.row_errors))
                        yield answered, part.with_usage(usage)
                        if self._meter.is_late() and open_rows and not self.backend.finish():
                            break
            finally:
                # what was not sent, or not answered, is free again
                for row in open_rows:
                    self._meter.settle(loads[row], Load())
            if open_rows:
                self._meter.reserve([Load()])
            begun += count

    def _settle(
        self, rows: list[int], open_rows: set[int], loads: list[Load], usage: Usage, n_errors: int
    ) -> None:
        reserved = Load()
        for row in rows:
            open_rows.discard(row)
            reserved += loads[row]
        answers = len(rows) - n_errors - usage.passes_from_store
        self._meter.settle(reserved, self._credible(usage, reserved, answers))
        self._usage += usage

    def _credible(self, usage: Usage, reserved: Load, answers: int) -> Load:
        """Return what answers took: what the backend reports, or what was reserved for them.

        A report is credible if it has one pass per answer, and tokens where there were passes.
        """
        passes = max(usage.passes_made, answers, 0)
        if passes and usage.tokens <= 0 and self._meter.budget.counts_tokens:
            return Load(passes, reserved.tokens, reserved.cost)
        return Load(passes, usage.tokens, max(usage.cost or 0.0, 0.0))

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the LM's scores, if the budget holds them."""
        if self.limits.charges_tries:
            with self._account(prompts, whole=True) as account, charged_to(account):
                answer = self.backend.score(prompts, token_ids)
            usage = self._priced(answer.usage, answer.usage.passes_made)
        else:
            total = sum(self._worst(prompts), Load())
            self._meter.reserve([total])
            real = Load()
            try:
                answer = self.backend.score(prompts, token_ids)
                usage = self._priced(answer.usage, answer.usage.passes_made)
                answers = len(prompts) - len(answer.row_errors) - usage.passes_from_store
                real = self._credible(usage, total, answers)
            finally:
                self._meter.settle(total, real)
        self._usage += usage
        return replace(answer, usage=usage)

    def generate(
        self, prompts: Sequence[RenderedPrompt], n: int = 1, *, max_tokens: int = 32, **asked: Any
    ) -> Draws:
        """Return the LM's draws, if the budget holds them."""
        parts = self.iter_generate(prompts, n, max_tokens=max_tokens, **asked)
        return gather_draws(parts, len(prompts))

    def iter_generate(
        self, prompts: Sequence[RenderedPrompt], n: int = 1, *, max_tokens: int = 32, **asked: Any
    ) -> DrawParts:
        """Yield the LM's draws in parts, if the budget holds them all."""
        if self.limits.charges_tries:
            with self._account(prompts, n, max_tokens, whole=True) as account:
                parts = self.backend.iter_generate(prompts, n, max_tokens=max_tokens, **asked)
                yield from self._with_costs(_charged(parts, account), 1)
            return
        total = sum(self._worst(prompts, n, max_tokens), Load())
        self._meter.reserve([total])
        real = Load()
        try:
            answer = self.backend.generate(prompts, n, max_tokens=max_tokens, **asked)
            usage = self._priced(answer.usage, answer.usage.passes_made)
            drawn = sum(len(texts) for texts in answer.texts)
            real = self._credible(usage, total, drawn - usage.passes_from_store)
        finally:
            self._meter.settle(total, real)
        self._usage += usage
        yield list(range(len(prompts))), answer.with_usage(usage)

    @contextmanager
    def _account(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        max_tokens: int = _OUTPUT_TOKENS,
        *,
        whole: bool,
    ) -> Iterator[Account | None]:
        """The account of one call of a backend that charges its tries; `whole` reserves all."""
        if self._meter.budget.is_open:
            yield None
        elif not whole:
            yield self._meter
        else:
            worst = self._worst(prompts, n, max_tokens, each_try=True)
            prepaid = Prepaid(self._meter, sum(worst, Load()))
            try:
                yield prepaid
            finally:
                prepaid.close()

    def _worst(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        max_tokens: int = _OUTPUT_TOKENS,
        *,
        each_try: bool = False,
    ) -> list[Load]:
        """Return what `n` draws from each prompt take at worst: in all billed tries, or in one.

        In one try, a prompt is billed once for all of its draws.
        """
        if not self._meter.budget.counts_tokens:
            return [Load(passes=n * max_tokens)] * len(prompts)
        if self.limits.counts_tokens and not each_try:
            tokens = self.count_tokens(prompts)
        else:
            # no tokenizer makes more tokens of a text than it has bytes
            added = _ADDED_TOKENS if each_try else 0
            tokens = [
                prompt.n_bytes
                + self.limits.tokens_of_image(prompt)
                + added
                + _FRAME_TOKENS * (1 + len(prompt.messages))
                for prompt in prompts
            ]
        price = self._price or Price(0.0, 0.0)
        tries = 1 if each_try else n * self.limits.max_attempts
        written = max(max_tokens, self.limits.tokens_written)
        output = n * written if each_try else written
        return [
            Load(n * max_tokens, tries * some, tries * price.at_most(some, output))
            for some in tokens
        ]

    def _priced(self, usage: Usage, output_tokens: int) -> Usage:
        """Return a usage with its cost, which `output_tokens` are in where the LM counts none."""
        if usage.cost:  # the backend knows better: it was told
            return usage
        if self._price is None:
            return replace(usage, cost=None)
        output = usage.tokens_written or (output_tokens if self.limits.tokens_written else 0)
        apart = usage.tokens_cached, usage.tokens_cache_written
        return replace(usage, cost=self._price.of(usage.tokens, output, *apart))


def _charged(parts: _Parts[_Part], account: Account | None) -> _Parts[_Part]:
    """Yield what an iterator does, with an account in force only while it works."""
    try:
        while True:
            with charged_to(account):
                try:
                    part = next(parts)
                except StopIteration:
                    return
            yield part
    finally:
        parts.close()
