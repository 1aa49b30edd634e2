"""The prompt refinement of the paper (Hou et al. 2023), to compare successive halving with."""

from __future__ import annotations

import logging
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.boosting.baseline import training_errors
from blackbox.generation import GeneratedPool, PromptGenerator, Task
from blackbox.generation.comparison import answered_prompts
from blackbox.generation.proposer import BudgetedWriter, Proposer
from blackbox.generation.schedule import writing_budget
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt

__all__ = ["Refinement", "n_candidates"]

_log = logging.getLogger(__name__)

_MAX_CANDIDATES = 100
_FEW_PROMPTS = 3
_MAX_BUDGET = 2**40


class Refinement(PromptGenerator):
    """A generator that tries candidates on all training rows and judges each by itself.

    Of up to a hundred candidates, those are kept whose best verbalizer makes the fewest training
    errors. Parameters are those of `blackbox.generation.PromptGenerator`.
    """

    def generate(
        self,
        gatherer: Gatherer,
        task: Task,
        n_prompts: int,
        rng: np.random.Generator,
        *,
        prefix_price: float = 0.0,
    ) -> GeneratedPool:
        """Make a pool of prompts; see `blackbox.generation.PromptGenerator.generate`."""
        rows = np.arange(len(task.examples))
        asked_before = gatherer.asked
        write = BudgetedWriter(gatherer, writing_budget(self.budget), int(rng.integers(2**31)))
        proposer = Proposer(task, self.sources, write, rng)
        n = n_candidates(len(rows), n_prompts, self.budget, gatherer.passes_per_prompt)
        if n < n_prompts:
            _log.warning(
                "making %d of %d prompts: the budget holds no more with %d training rows",
                n,
                n_prompts,
                len(rows),
            )
        candidates = proposer.initial(n, min(n, n_prompts))
        answers = gatherer.answers(PromptPool(candidates), rows, "trying prompts")
        candidates = [candidates[number] for number in answered_prompts(answers)]
        errors = _errors(gatherer, task, candidates)
        best = np.argsort(errors, kind="stable")[:n_prompts].tolist()
        pool = PromptPool(candidates[number] for number in best)
        sources = [proposer.origins[prompt] for prompt in pool]
        notes = [
            f"{source}; training error {errors[number]:.3f}"
            for source, number in zip(sources, best, strict=True)
        ]
        summary = {
            "budget": self.budget,
            "passes": gatherer.asked - asked_before,
            "written": gatherer.written,
            "n_tried": proposer.counts(),
            "sources": sources,
        }
        return GeneratedPool(pool, notes, summary, rows)


def n_candidates(n: int, n_prompts: int, budget: int, passes_per_prompt: int = 1) -> int:
    """Return the number of candidates that a budget holds on all n rows.

    Raises
    ------
    ValueError
        If it holds none; the message names one that holds a few.
    """

    def affordable(budget: int) -> int:
        return (budget - writing_budget(budget)) // (n * passes_per_prompt)

    if not affordable(budget):
        enough = bisect_left(range(_MAX_BUDGET), min(_FEW_PROMPTS, n_prompts), key=affordable)
        raise ValueError(
            f"a generation budget of {budget} forward passes is too small for {n} rows: raise it "
            f"to {enough}"
        )
    return min(_MAX_CANDIDATES, affordable(budget))


def _errors(gatherer: Gatherer, task: Task, candidates: list[Prompt]) -> NDArray[np.float64]:
    """Return the training error of each candidate, on the rows answered under all of them."""
    answers = gatherer.answers(PromptPool(candidates))
    kept = np.array([n for n in range(len(task.examples)) if n not in answers.row_errors], np.intp)
    return training_errors(
        answers.take_rows(kept), task.y[kept], task.sample_weight[kept], task.n_classes
    )
