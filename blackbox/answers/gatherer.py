"""Runs the forward passes of a training, each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import arrays
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers, next_tokens
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Example, Prompt
from blackbox.protocol import NO_TOKEN, Backend, Draws, RenderedPrompt, Usage

__all__ = ["Gatherer"]

_Part = tuple[NDArray[np.intp], NDArray[np.int32], Matrix]
"""Some rows, and what one prompt was answered to them."""


class Gatherer:
    """Forward passes over one set of texts, each made once.

    Parameters
    ----------
    backend : Backend
        The LM.
    examples : sequence of Example
        The texts.
    top_k : int
        Next tokens to read of each answer.
    callback : callable, optional
        Called with (stage, done, total).
    writer : Backend, optional
        The LM that writes; by default the same.

    Attributes
    ----------
    writer : Backend
        The LM that writes.
    usage : Usage
        What the passes took so far.
    asked : int
        Passes that were asked for, whether or not a store had them; a token that the LM writes is
        one, and each draw counts at its longest.
    passes_per_prompt : int
        Passes that one answer takes: more than one where the LM is drawn from.
    written : int
        Those of them that were for writing.
    """

    def __init__(
        self,
        backend: Backend,
        examples: Sequence[Example],
        top_k: int,
        callback: Callable[[str, int, int], None] | None = None,
        writer: Backend | None = None,
    ) -> None:
        self._backend = backend
        self.writer = writer or backend
        self.passes_per_prompt: int = getattr(backend, "passes_per_prompt", 1)
        self._examples = examples
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

    def write(
        self, requests: Sequence[RenderedPrompt], n: int, *, max_tokens: int, seed: int
    ) -> list[list[str]]:
        """n texts that the LM writes after each request; none where it can't write or refuses."""
        generate = getattr(self.writer, "generate", None)
        served = [request for request in requests if self.writer.limits.serves(request)]
        if generate is None or not served:
            return []
        drawn: Draws = generate(served, n, max_tokens=max_tokens, seed=seed)
        passes = len(served) * n * max_tokens
        self.asked += passes
        self.written += passes
        self.usage += drawn.usage
        return drawn.texts

    def answers(
        self,
        pool: PromptPool,
        rows: NDArray[np.intp] | None = None,
        stage: str = "forward passes",
    ) -> Answers:
        """Answers of all the pool's prompts, for all rows or some, in the order given."""
        rows = np.arange(len(self._examples)) if rows is None else rows
        missing: dict[bytes, list[Prompt]] = {}
        for prompt in pool:
            known = self._known.setdefault(prompt, np.zeros(len(self._examples), bool))
            missing.setdefault(np.packbits(~known[rows]).tobytes(), []).append(prompt)
        jobs = [(prompts, rows[~self._known[prompts[0]][rows]]) for prompts in missing.values()]
        total = sum(len(prompts) * len(wanted) for prompts, wanted in jobs)
        self.asked += total * self.passes_per_prompt
        done = 0

        def count(passes: int) -> None:
            nonlocal done
            done += passes
            if self._callback:
                self._callback(stage, done, total)

        for prompts, wanted in jobs:
            if len(wanted):
                self._run(prompts, wanted, count)
        place = {int(row): number for number, row in enumerate(rows)}
        ids, values = self._put_together(pool, rows)
        # what another prompt was refused is no matter here
        refused = np.flatnonzero((ids[:, :, 0] == NO_TOKEN).any(axis=0))
        return Answers(
            ids,
            values,
            self._token_bytes,
            {int(number): self._row_errors[int(rows[number])] for number in refused},
            {place[row] for row in self._truncated if row in place},
            self.usage,
        )

    def _put_together(
        self, pool: PromptPool, rows: NDArray[np.intp]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What is known of prompts and rows, (P, n, k) both: in files where it is much."""
        shape = (len(pool), len(rows), self._top_k)
        ids, values = arrays.empty(shape, np.int32), arrays.empty(shape, np.float32)
        for number, prompt in enumerate(pool):
            for known, its_ids, its_values in self._parts.get(prompt, ()):
                places = np.full(len(self._examples), -1)
                places[known] = np.arange(len(known))
                here = np.flatnonzero(places[rows] >= 0)
                ids[number, here] = its_ids[places[rows[here]]]
                values[number, here] = its_values[places[rows[here]]]
        return ids, values

    def _run(
        self, prompts: list[Prompt], rows: NDArray[np.intp], count: Callable[[int], None]
    ) -> None:
        examples = [self._examples[row] for row in rows]
        answers = next_tokens(self._backend, prompts, examples, self._top_k, count)
        for number, prompt in enumerate(prompts):
            self._known[prompt][rows] = True
            part = rows, answers.token_ids[number], answers.log_probs[number]
            self._parts.setdefault(prompt, []).append(part)
        self._token_bytes.update(answers.token_bytes)
        self._row_errors.update({int(rows[p]): why for p, why in answers.row_errors.items()})
        self._truncated |= {int(rows[place]) for place in answers.truncated}
        self.usage += answers.usage
