"""Memoised forward passes within one training run: each is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.answers.memory import require_memory
from blackbox.answers.passes import Answers, empty_answers, fill
from blackbox.backend import BaseBackend
from blackbox.prompts.inputs import Example
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.protocol import NO_TOKEN, RenderedPrompt, Usage
from blackbox.spending import current_gate

__all__ = ["Gatherer"]

_Part = tuple[NDArray[np.intp], NDArray[np.int32], Matrix]
"""Some rows, and the token ids and log-probabilities of one prompt on them."""

_REFUSALS = 3  # prompts under which a row is refused, until that is the row's fault
_BYTES_PER_TOKEN = 8  # an id and a log-probability


class Gatherer:
    """Memoises forward passes over one set of texts, so that each is made once.

    Parameters
    ----------
    backend : BaseBackend
        The LM.
    examples : sequence of Example
        The texts.
    top_k : int
        Number of next tokens to read per answer.
    callback : callable, optional
        Called with (stage, done, total).
    writer : BaseBackend, optional
        The LM that generates prompts; by default the same.
    on_refused : callable, optional
        Called with refused rows and the reasons, when they closed the gate in force; it raises.

    Attributes
    ----------
    texts : sequence of Example
        The texts.
    writer : BaseBackend
        The LM that generates prompts.
    usage : Usage
        Usage of the passes so far.
    asked : int
        Passes requested, cached or not; each generated token is one, counted at the maximum length
        of each draw.
    passes_per_prompt : int
        Passes per answer: more than one where an LM without log-probabilities is sampled.
    written : int
        Those of `asked` that were for generating prompts.
    """

    def __init__(
        self,
        backend: BaseBackend,
        examples: Sequence[Example],
        top_k: int,
        callback: Callable[[str, int, int], None] | None = None,
        writer: BaseBackend | None = None,
        on_refused: Callable[[dict[int, str]], None] | None = None,
    ) -> None:
        self._on_refused = on_refused
        self._backend = backend
        self.writer = writer or backend
        self.passes_per_prompt = backend.limits.passes_per_prompt
        self.texts = examples
        self._top_k = top_k
        self._callback = callback
        self._known: dict[Prompt, NDArray[np.bool_]] = {}
        self._parts: dict[Prompt, list[_Part]] = {}
        self._token_bytes: dict[int, bytes] = {}
        self._row_errors: dict[int, str] = {}
        self._truncated: set[int] = set()
        self.usage = Usage()
        self.asked = 0
        self.written = 0
        self.are_candidates = False  # whether each prompt may be left out, on all rows too

    def write(
        self, requests: Sequence[RenderedPrompt], n: int, *, max_tokens: int, seed: int
    ) -> list[list[str]]:
        """Return n generated continuations of each request; none where the LM can't generate."""
        served = [request for request in requests if self.writer.limits.serves(request)]
        if not self.writer.limits.generates or not served:
            return []
        drawn = self.writer.generate(served, n, max_tokens=max_tokens, seed=seed)
        passes = len(served) * n * max_tokens
        self.asked += passes
        self.written += passes
        self.usage += drawn.usage
        return drawn.texts

    def require_memory(self, n_prompts: int, n_rows: int | None = None) -> None:
        """Raise if the answers of so many prompts, on all rows or some, don't fit in memory.

        Raises
        ------
        DataError
            If they don't fit; nothing was requested.
        """
        n_rows = len(self.texts) if n_rows is None else n_rows
        require_memory(
            n_prompts * n_rows * self._top_k * _BYTES_PER_TOKEN,
            f"the answers to {n_rows:,} rows × {n_prompts:,} prompts × {self._top_k:,} tokens",
        )

    def answers(
        self,
        pool: PromptPool,
        rows: NDArray[np.intp] | None = None,
        stage: str = "forward passes",
    ) -> Answers:
        """Return the answers of all prompts of a pool, on all rows or some, in the order given.

        Their arrays must not be changed: later calls read them again.

        Raises
        ------
        DataError
            If they don't fit in memory; nothing was requested.
        """
        rows = np.arange(len(self.texts)) if rows is None else rows
        self.require_memory(len(pool), len(rows))
        missing: dict[bytes, list[int]] = {}
        for number, prompt in enumerate(pool):
            known = self._known.setdefault(prompt, np.zeros(len(self.texts), bool))
            missing.setdefault(np.packbits(~known[rows]).tobytes(), []).append(number)
        jobs = [
            (numbers, np.flatnonzero(~self._known[pool[numbers[0]]][rows]))
            for numbers in missing.values()
        ]
        total = sum(len(numbers) * len(places) for numbers, places in jobs)
        self.asked += total * self.passes_per_prompt
        done = 0

        def count(passes: int) -> None:
            nonlocal done
            done += passes
            if self._callback:
                self._callback(stage, done, total)

        answers = empty_answers(len(pool), len(rows), self._top_k)
        self._recall(answers, pool, rows)
        for numbers, places in jobs:
            if len(places):
                self._run(answers, numbers, places, pool, rows, count)
        place = {int(row): number for number, row in enumerate(rows)}
        # rows that were refused under prompts outside this pool don't matter here
        refused = np.flatnonzero((answers.token_ids[:, :, 0] == NO_TOKEN).any(axis=0))
        return Answers(
            answers.token_ids,
            answers.log_probs,
            self._token_bytes,
            {int(number): self._row_errors[int(rows[number])] for number in refused},
            {place[row] for row in self._truncated if row in place},
            self.usage,
        )

    def _recall(self, answers: Answers, pool: PromptPool, rows: NDArray[np.intp]) -> None:
        """Copy the memoised answers of prompts and rows into `answers`."""
        for number, prompt in enumerate(pool):
            for known, ids, values in self._parts.get(prompt, ()):
                places = np.full(len(self.texts), -1)
                places[known] = np.arange(len(known))
                here = np.flatnonzero(places[rows] >= 0)
                answers.token_ids[number, here] = ids[places[rows[here]]]
                answers.log_probs[number, here] = values[places[rows[here]]]

    def _run(
        self,
        answers: Answers,
        numbers: list[int],
        places: NDArray[np.intp],
        pool: PromptPool,
        rows: NDArray[np.intp],
        count: Callable[[int], None],
    ) -> None:
        """Make the missing passes of some prompts, write them into `answers`, and memoise them."""
        prompts = [pool[number] for number in numbers]
        examples = [self.texts[row] for row in rows[places]]
        new_answers = Answers(answers.token_ids, answers.log_probs, {})
        # under a candidate that may not be used, one refusal is no reason to stop
        is_needed = len(rows) == len(self.texts) and not self.are_candidates
        n_refusals = 1 if is_needed else min(_REFUSALS, len(prompts))
        fill(
            new_answers,
            np.array(numbers),
            places,
            self._backend,
            prompts,
            examples,
            count,
            n_refusals,
        )
        gate = current_gate()
        if gate is not None and gate.closed and self._on_refused:
            self.usage += new_answers.usage
            self._on_refused({int(rows[p]): why for p, why in new_answers.row_errors.items()})
        for number, prompt in zip(numbers, prompts, strict=True):
            self._known[prompt][rows] = True
            # no copy: the new array also holds the earlier answers to these rows
            parts = self._parts.get(prompt, [])
            others = [part for part in parts if not np.isin(part[0], rows).all()]
            new = rows, answers.token_ids[number], answers.log_probs[number]
            self._parts[prompt] = [*others, new]
        self._token_bytes.update(new_answers.token_bytes)
        self._row_errors.update({int(rows[p]): why for p, why in new_answers.row_errors.items()})
        self._truncated |= {int(rows[place]) for place in new_answers.truncated}
        self.usage += new_answers.usage
