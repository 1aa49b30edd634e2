"""Forward passes of a pool of prompts over texts: the one place where they are requested."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.requests import answers_that_fit, render_requests
from blackbox.backend import BaseBackend
from blackbox.errors import BackendResponseError
from blackbox.prompts.inputs import Example
from blackbox.prompts.question import Question
from blackbox.prompts.template import Prompt
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    BackendIdentity,
    TokenScores,
    Usage,
    check_served,
)
from blackbox.spending import current_gate

__all__ = ["Answers", "empty_answers", "fill", "next_tokens", "scores"]

_SCORED = 64  # rows whose scores are asked for together, where a refused row ends the work

_log = logging.getLogger(__name__)

_WASTE = 3  # times the tokens that a perfect prefix cache would evaluate
_FEW_TOKENS = 2000  # below which it doesn't matter
_wasteful: set[str] = set()  # LMs of which it was logged

OnPasses = Callable[[int], None]
"""Called with the number of forward passes that were just answered."""


@dataclass
class Answers:
    """The next-token log-probabilities of n texts under each of P prompts.

    Parameters
    ----------
    token_ids : int32 array of shape (P, n, k)
        As in `TokenLogProbs`.
    log_probs : float32 array of shape (P, n, k)
        As in `TokenLogProbs`.
    token_bytes : dict of int to bytes
        The bytes of each token that occurs.
    row_errors : dict of int to str
        Rows that the provider refused under at least one prompt, with the first reason.
    truncated : set of int
        Rows whose text was cut to fit the LM's context.
    usage : Usage
        Usage of these passes.
    """

    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    token_bytes: dict[int, bytes]
    row_errors: dict[int, str] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)

    def take_rows(self, rows: NDArray[np.intp]) -> Answers:
        """Return the answers of some of the rows, in the order given."""
        if len(rows) == self.token_ids.shape[1] and (rows == np.arange(len(rows))).all():
            return self
        place = {int(row): new for new, row in enumerate(rows)}
        return Answers(
            self.token_ids[:, rows],
            self.log_probs[:, rows],
            self.token_bytes,
            {place[row]: why for row, why in self.row_errors.items() if row in place},
            {place[row] for row in self.truncated if row in place},
            self.usage,
        )

    def take_prompts(self, prompts: Sequence[int]) -> Answers:
        """Return the answers of some of the prompts, in the order given."""
        chosen = list(prompts)
        if chosen == list(range(len(self.token_ids))):
            return self
        return Answers(
            self.token_ids[chosen],
            self.log_probs[chosen],
            self.token_bytes,
            self.row_errors,
            self.truncated,
            self.usage,
        )


def empty_answers(n_prompts: int, n_rows: int, top_k: int) -> Answers:
    """Return answers without any token, for `fill`."""
    shape = (n_prompts, n_rows, top_k)
    return Answers(np.full(shape, NO_TOKEN, np.int32), np.full(shape, -np.inf, np.float32), {})


def next_tokens(
    backend: BaseBackend,
    pool: Sequence[Prompt],
    examples: Sequence[Example],
    top_k: int,
    on_passes: OnPasses | None = None,
) -> Answers:
    """Return the `top_k` most likely next tokens of every text under every prompt.

    Raises
    ------
    PromptError, UnservedPromptError
        If a prompt doesn't fit the texts or the backend; nothing was spent.
    """
    answers = empty_answers(len(pool), len(examples), top_k)
    prompts, rows = np.arange(len(pool)), np.arange(len(examples))
    fill(answers, prompts, rows, backend, pool, examples, on_passes)
    return answers


def fill(
    answers: Answers,
    prompts: NDArray[np.intp],
    rows: NDArray[np.intp],
    backend: BaseBackend,
    pool: Sequence[Prompt],
    examples: Sequence[Example],
    on_passes: OnPasses | None = None,
    n_refusals: int = 1,
) -> None:
    """Request the next tokens of every text under every prompt, and write them into `answers`.

    Where a gate is in force (`blackbox.spending`), a refused row closes it, and the answers end
    with those that were under way.

    Parameters
    ----------
    answers : Answers
        Changed in place; its last dimension is the number of tokens to read.
    prompts : int array of shape (len(pool),)
        Index of each prompt in `answers`.
    rows : int array of shape (len(examples),)
        Index of each text in `answers`.
    backend, pool, examples, on_passes
        As for `next_tokens`.
    n_refusals : int, default=1
        Prompts under which a row has to be refused, to close the gate; with more than one, and
        answered under none.

    Raises
    ------
    PromptError, UnservedPromptError
        If a prompt doesn't fit the texts or the backend; nothing was spent.
    """
    gate = current_gate()
    if gate is not None and gate.closed:
        return
    refusals, answered = Counter[int](), np.zeros(len(examples), bool)
    ids, values, top_k = answers.token_ids, answers.log_probs, answers.token_ids.shape[2]
    rendered = render_requests(backend, pool, examples)
    check_served(backend.limits, [], top_k)
    before = answers.usage
    # answers are stored by prompt, as boosting reads them; requests are ordered by text
    parts = answers_that_fit(backend, rendered, pool, examples, top_k)
    if not backend.limits.questions:
        parts = _as_options(parts, pool)
    for where, part in parts:
        width = min(part.token_ids.shape[1], top_k)  # a question may have more options
        of_text, of_prompt = np.divmod(np.array(where, np.intp), len(pool))
        ids[prompts[of_prompt], rows[of_text], :width] = part.token_ids[:, :width]
        values[prompts[of_prompt], rows[of_text], :width] = part.log_probs[:, :width]
        answers.token_bytes.update(part.token_bytes)
        answers.usage += part.usage
        for place, why in part.row_errors.items():
            answers.row_errors.setdefault(int(rows[of_text[place]]), why)
        if on_passes:
            on_passes(len(where))
        if gate is None:
            continue
        refusals.update(int(of_text[place]) for place in part.row_errors)
        answered[np.delete(of_text, list(part.row_errors))] = True
        if any(
            count >= n_refusals and (n_refusals == 1 or not answered[text])
            for text, count in refusals.items()
        ):
            gate.closed = True
            if not backend.limits.charges_tries:
                break
    answers.truncated |= {int(rows[place]) for place in rendered.truncated}
    _log_waste(
        backend.identity,
        answers.usage.tokens_evaluated - before.tokens_evaluated,
        answers.usage.tokens_least - before.tokens_least,
    )


def _as_options(parts: AnswerParts, pool: Sequence[Prompt]) -> AnswerParts:
    """Yield the parts, with the answers to questions read as distributions over their options."""
    questions = {n: prompt for n, prompt in enumerate(pool) if isinstance(prompt, Question)}
    for where, part in parts:
        of_prompt = np.array(where, np.intp) % len(pool)
        is_question = np.isin(of_prompt, list(questions))
        if not is_question.any():
            yield where, part
            continue
        for number in [*np.unique(of_prompt[is_question]).tolist(), None]:
            rows = np.flatnonzero(of_prompt == number if number is not None else ~is_question)
            if len(rows):
                some = part.take_rows(rows)
                read = some if number is None else questions[number].read(some)
                yield [where[row] for row in rows], read
                part = part.with_usage(Usage())  # counted once


def scores(
    backend: BaseBackend,
    prompt: Prompt,
    examples: Sequence[Example],
    token_ids: Sequence[int],
) -> tuple[TokenScores, set[int]]:
    """Return scores of given tokens for every text under one prompt, and the truncated rows.

    Where a gate is in force (`blackbox.spending`), a refused row closes it, and the rows after it
    are not scored: their values are minus infinity.
    """
    rendered, gate = render_requests(backend, [prompt], examples), current_gate()
    limit = backend.limits.max_score_ids
    together = max(len(examples), 1) if gate is None else _SCORED
    values = np.full((len(examples), len(token_ids)), -np.inf, np.float32)
    usage = Usage()
    row_errors: dict[int, str] = {}
    for first in range(0, len(examples), together):
        if gate is not None and gate.closed:
            break
        requests = rendered.requests[first : first + together]
        for start in range(0, len(token_ids), limit):
            part = backend.score(requests, token_ids[start : start + limit])
            asked = len(requests), len(token_ids[start : start + limit])
            if part.log_probs.shape != asked:
                raise BackendResponseError(
                    f"score answered {part.log_probs.shape}, asked for {asked}"
                )
            values[first : first + together, start : start + limit] = part.log_probs
            row_errors.update({first + place: why for place, why in part.row_errors.items()})
            usage += part.usage
        if gate is not None and row_errors:
            gate.closed = True
    values[list(row_errors)] = np.nan
    return TokenScores(values, row_errors, usage), rendered.truncated


def _log_waste(identity: BackendIdentity, evaluated: int, least: int) -> None:
    """Log once if an LM evaluates far more tokens than it needs to."""
    if not evaluated > _WASTE * least > 0 or evaluated < _FEW_TOKENS:
        return
    if identity.digest() not in _wasteful:
        _wasteful.add(identity.digest())
        _log.warning(
            "%s evaluated %d tokens where %d would do: its engine reuses little of what prompts "
            "have in common, and takes %.1f times as long as it could",
            identity.model,
            evaluated,
            least,
            evaluated / least,
        )
