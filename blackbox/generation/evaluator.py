"""Evaluates candidate prompts on some of the training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.generation.comparison import answered_prompts, distinct_prompts, mean_distances
from blackbox.generation.ensemble_selection import EnsembleSelection, out_of_fold_scores
from blackbox.generation.prefix_costs import prefix_costs
from blackbox.generation.task import Task
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import render_within

__all__ = ["Evaluator"]

_NATS_PER_TEXT = 0.004  # that a prompt must gain to be worth evaluating one text anew
_COSTED_TEXTS = 8


class Evaluator:
    """Evaluates candidates; each is fitted once per set of rows.

    Parameters
    ----------
    gatherer : Gatherer
        Runs forward passes over the task's rows.
    task : Task
        The training rows.
    seed : int
        Seed of the folds.
    prefix_price : float
        See `prefix_costs`.
    """

    def __init__(self, gatherer: Gatherer, task: Task, seed: int, *, prefix_price: float) -> None:
        self._gatherer, self._task, self._seed = gatherer, task, seed
        self._prefix_price = prefix_price
        self._scores: dict[bytes, dict[Prompt, NDArray[np.float64]]] = {}

    def answered(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp], stage: str
    ) -> list[Prompt]:
        """Return the prompts that the LM answers on most rows and doesn't refuse."""
        answers = self._gatherer.answers(PromptPool(prompts), rows, stage)
        return [prompts[number] for number in answered_prompts(answers)]

    def distinct(
        self, known: Sequence[Prompt], new: Sequence[Prompt], rows: NDArray[np.intp], stage: str
    ) -> tuple[list[Prompt], int]:
        """Return known prompts and new ones that answer unlike them, and how many are dropped.

        New prompts that the LM refuses are left out and not counted.
        """
        prompts = [*known, *new]
        answers = self._gatherer.answers(PromptPool(prompts), rows, stage)
        usable = [number for number in answered_prompts(answers) if number >= len(known)]
        kept = distinct_prompts(
            mean_distances(answers), range(len(known)), usable, self.costs(prompts)
        )
        return [prompts[number] for number in kept], len(known) + len(usable) - len(kept)

    def selection(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp], origins: Sequence[str]
    ) -> tuple[EnsembleSelection, NDArray[np.intp]]:
        """Return a selection among prompts on rows, and the rows answered under all of them.

        Parameters
        ----------
        prompts : sequence of P Prompt
            The candidates.
        rows : int array
            Training rows.
        origins : sequence of P str
            The source of each candidate.
        """
        answers = self._gatherer.answers(PromptPool(prompts), rows, "trying prompts")
        places = np.array([n for n in range(len(rows)) if n not in answers.row_errors], np.intp)
        answers, rows = answers.take_rows(places), rows[places]
        y, weights = self._task.y[rows], self._task.sample_weight[rows]
        groups = None if self._task.groups is None else self._task.groups[rows]
        known = self._scores.setdefault(rows.tobytes(), {})
        new = [number for number, prompt in enumerate(prompts) if prompt not in known]
        if new:
            scores = out_of_fold_scores(
                answers.take_prompts(new), y, weights, self._task.n_classes, self._seed, groups
            )
            known.update(zip((prompts[number] for number in new), scores, strict=True))
        scores = np.stack([known[prompt] for prompt in prompts])
        costs = self.costs(prompts)
        return EnsembleSelection(scores, y, weights, costs, origins, groups), rows

    def costs(self, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
        """Return the penalty of each prompt for what it costs to run, in nats."""
        examples = self._task.examples[:_COSTED_TEXTS]
        requests = [
            [
                render_within(prompt, example, self._task.limits, self._task.count_tokens)[0]
                for example in examples
            ]
            for prompt in prompts
        ]
        texts = [example[0] for example in examples]
        return _NATS_PER_TEXT * prefix_costs(requests, texts, prefix_price=self._prefix_price)
