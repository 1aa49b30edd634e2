"""Budgets that stop a run before it spends more than it may.

`MeteredBackend` wraps a backend. Before a request leaves, its worst case is reserved out of the
budget, and what it really took is settled when the answer is there; a request whose worst case
doesn't fit is not sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from blackbox.backend import BaseBackend, WrappedBackend
from blackbox.errors import BudgetError
from blackbox.lm.prices import Price, price_of
from blackbox.protocol import (
    AnswerParts,
    Draws,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
)

__all__ = ["Budget", "Meter", "MeteredBackend"]

_FRAME_TOKENS = 64  # what a chat template may add to a message, where no tokenizer counts it
_OUTPUT_TOKENS = 1


@dataclass(frozen=True)
class Budget:
    """What a run may spend; None is no limit.

    Parameters
    ----------
    max_forward_passes : int, optional
        Forward passes made; those in the store are free.
    max_tokens : int, optional
        Tokens of their prompts.
    max_cost : float, optional
        US dollars.
    max_seconds : float, optional
        No request is begun later than this.
    """

    max_forward_passes: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is limited."""
        return self == Budget()

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of a request have to be known before it is sent."""
        return self.max_tokens is not None or self.max_cost is not None


@dataclass(frozen=True)
class _Load:
    """What one or more requests take, at worst or really."""

    passes: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: _Load) -> _Load:
        return _Load(self.passes + other.passes, self.tokens + other.tokens, self.cost + other.cost)

    def __sub__(self, other: _Load) -> _Load:
        return _Load(self.passes - other.passes, self.tokens - other.tokens, self.cost - other.cost)


class Meter:
    """The account of a budget, shared by the threads that spend it. Time runs from its making.

    Parameters
    ----------
    budget : Budget
        What may be spent.
    whole : bool, default=False
        Reserve all of the loads that are asked for together, or none. A training goes as far as
        its budget holds and keeps what it has; half an answer to a client is worth nothing.
    """

    def __init__(self, budget: Budget, *, whole: bool = False) -> None:
        self.budget = budget
        self._whole = whole
        self._started = time.monotonic()
        self._taken = _Load()
        self._lock = threading.Lock()

    def reserve(self, loads: Sequence[_Load]) -> int:
        """Reserve as many of these loads, from the first on, as still fit; returns how many.

        Raises
        ------
        BudgetError
            If not even the first one fits, or not all where they are reserved whole.
        """
        with self._lock:
            self._check_time()
            taken = self._taken
            for count, load in enumerate(loads):
                reason = self._overrun(taken + load)
                if reason:
                    if not count or self._whole:
                        raise BudgetError(reason)
                    self._taken = taken
                    return count
                taken += load
            self._taken = taken
            return len(loads)

    def settle(self, reserved: _Load, real: _Load) -> None:
        """Put what was really taken in the place of what was reserved for it."""
        with self._lock:
            self._taken = self._taken - reserved + real

    def is_late(self) -> bool:
        """Whether no request may be begun any more."""
        most = self.budget.max_seconds
        return most is not None and time.monotonic() - self._started >= most

    def _check_time(self) -> None:
        if self.is_late():
            raise BudgetError(f"the budget of {self.budget.max_seconds:g} seconds is used up")

    def _overrun(self, load: _Load) -> str | None:
        budget = self.budget
        if budget.max_forward_passes is not None and load.passes > budget.max_forward_passes:
            return f"the budget of {budget.max_forward_passes} forward passes is used up"
        if budget.max_tokens is not None and load.tokens > budget.max_tokens:
            return f"the budget of {budget.max_tokens} tokens is used up"
        if budget.max_cost is not None and load.cost > budget.max_cost * (1 + 1e-12):
            return f"the budget of {budget.max_cost:g} US dollars is used up"
        return None


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
    BudgetError
        If a cost is limited and the LM's price is unknown; nothing was sent.
    """

    def __init__(self, backend: BaseBackend, meter: Meter) -> None:
        super().__init__(backend)
        self._usage = Usage()
        self._meter = meter
        self._price = price_of(backend.identity, backend.limits.price_share)
        if meter.budget.max_cost is not None and self._price is None:
            raise BudgetError(
                f"the price of {backend.identity.provider} {backend.identity.model!r} is unknown, "
                "so a cost can't be limited: limit tokens or forward passes"
            )

    @property
    def usage(self) -> Usage:
        """What the LM took so far."""
        return self._usage

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield answers in parts; an error in the place of the first beyond the budget."""
        if self._meter.budget.is_open:
            for where, part in self.backend.iter_next_token(prompts, top_k):
                usage = self._priced(part.usage)
                self._usage += usage
                yield where, part.with_usage(usage)
            return
        loads = self._worst(prompts)
        begun = 0
        while begun < len(prompts):
            count = self._meter.reserve(loads[begun:])
            rows = list(range(begun, begun + count))
            open_rows = set(rows)
            try:
                requests = [prompts[row] for row in rows]
                with closing(self.backend.iter_next_token(requests, top_k)) as parts:
                    for where, part in parts:
                        answered = [rows[place] for place in where]
                        yield answered, self._settle(answered, open_rows, loads, part)
                        if self._meter.is_late() and open_rows and not self.backend.finish():
                            break
            finally:
                # what was not sent, or not answered, is free again
                for row in open_rows:
                    self._meter.settle(loads[row], _Load())
            if open_rows:
                self._meter.reserve([_Load()])
            begun += count

    def _settle(
        self, rows: list[int], open_rows: set[int], loads: list[_Load], part: TokenLogProbs
    ) -> TokenLogProbs:
        reserved = _Load()
        for row in rows:
            open_rows.discard(row)
            reserved += loads[row]
        usage = self._priced(part.usage)
        self._meter.settle(reserved, _Load(usage.passes_made, usage.tokens, usage.cost or 0.0))
        self._usage += usage
        return part.with_usage(usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the LM's scores, if the budget holds them."""
        total = sum(self._worst(prompts), _Load())
        self._meter.reserve([total])
        real = _Load()
        try:
            answer = self.backend.score(prompts, token_ids)
            usage = self._priced(answer.usage)
            real = _Load(usage.passes_made, usage.tokens, usage.cost or 0.0)
        finally:
            self._meter.settle(total, real)
        self._usage += usage
        return replace(answer, usage=usage)

    def generate(
        self, prompts: Sequence[RenderedPrompt], n: int = 1, *, max_tokens: int = 32, **asked: Any
    ) -> Draws:
        """Return the LM's draws, if the budget holds them."""
        loads = self._worst(prompts, n, max_tokens)
        total = sum(loads, _Load())
        self._meter.reserve([total])
        real = _Load()
        try:
            answer = self.backend.generate(prompts, n, max_tokens=max_tokens, **asked)
            usage = self._priced(answer.usage, output_tokens=answer.usage.passes_made)
            real = _Load(usage.passes_made, usage.tokens, usage.cost or 0.0)
        finally:
            self._meter.settle(total, real)
        self._usage += usage
        return replace(answer, usage=usage)

    def _worst(
        self, prompts: Sequence[RenderedPrompt], n: int = 1, max_tokens: int = _OUTPUT_TOKENS
    ) -> list[_Load]:
        """What `n` draws from each prompt take at worst, every try that may be billed included."""
        tries = self.limits.max_attempts
        if not self._meter.budget.counts_tokens:
            return [_Load(passes=n * max_tokens)] * len(prompts)
        if self.limits.counts_tokens:
            tokens = self.count_tokens(prompts)
        else:
            # no tokenizer makes more tokens of a text than it has bytes
            tokens = [
                prompt.n_bytes + _FRAME_TOKENS * (1 + len(prompt.messages)) for prompt in prompts
            ]
        price = self._price or Price(0.0, 0.0)
        return [
            _Load(n * max_tokens, n * tries * some, n * tries * price.of(some, max_tokens))
            for some in tokens
        ]

    def _priced(self, usage: Usage, output_tokens: int | None = None) -> Usage:
        if usage.cost:  # the backend knows better: it was told
            return usage
        if self._price is None:
            return replace(usage, cost=None)
        output = _OUTPUT_TOKENS * usage.passes_made if output_tokens is None else output_tokens
        return replace(usage, cost=self._price.of(usage.tokens, output))
