"""Runs the forward passes of a training, each once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting import Matrix
from blackbox.passes import Answers, next_tokens
from blackbox.prompts import Example, Prompt, PromptPool
from blackbox.protocol import NO_TOKEN, Backend, Draws, RenderedPrompt, Usage

__all__ = ["Gatherer"]


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
        self._examples = examples
        self._top_k = top_k
        self._callback = callback
        self._known: dict[Prompt, tuple[NDArray[np.bool_], NDArray[np.int32], Matrix]] = {}
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
            known = self._slot(prompt)[0]
            missing.setdefault(np.packbits(~known[rows]).tobytes(), []).append(prompt)
        jobs = [(prompts, rows[~self._slot(prompts[0])[0][rows]]) for prompts in missing.values()]
        total = sum(len(prompts) * len(wanted) for prompts, wanted in jobs)
        self.asked += total
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
        ids = np.stack([self._slot(prompt)[1][rows] for prompt in pool])
        # what another prompt was refused is no matter here
        refused = np.flatnonzero((ids[:, :, 0] == NO_TOKEN).any(axis=0))
        return Answers(
            ids,
            np.stack([self._slot(prompt)[2][rows] for prompt in pool]),
            self._token_bytes,
            {int(number): self._row_errors[int(rows[number])] for number in refused},
            {place[row] for row in self._truncated if row in place},
            self.usage,
        )

    def _slot(self, prompt: Prompt) -> tuple[NDArray[np.bool_], NDArray[np.int32], Matrix]:
        if prompt not in self._known:
            shape = (len(self._examples), self._top_k)
            self._known[prompt] = (
                # untouched zeros take no memory: most candidates are tried on few rows only
                np.zeros(shape[0], bool),
                np.zeros(shape, np.int32),
                np.zeros(shape, np.float32),
            )
        return self._known[prompt]

    def _run(
        self, prompts: list[Prompt], rows: NDArray[np.intp], count: Callable[[int], None]
    ) -> None:
        examples = [self._examples[row] for row in rows]
        answers = next_tokens(self._backend, prompts, examples, self._top_k, count)
        for number, prompt in enumerate(prompts):
            known, ids, values = self._slot(prompt)
            known[rows] = True
            ids[rows], values[rows] = answers.token_ids[number], answers.log_probs[number]
        self._token_bytes.update(answers.token_bytes)
        self._row_errors.update({int(rows[p]): why for p, why in answers.row_errors.items()})
        self._truncated |= {int(rows[place]) for place in answers.truncated}
        self.usage += answers.usage
