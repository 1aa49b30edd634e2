"""Makes a prompt pool for a task, within a number of forward passes.

Candidates are drawn from the sources and evaluated by successive halving (Jamieson and Talwalkar,
"Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016): hundreds on
few training rows, the survivors of each rung on more. They survive by what they add to an ensemble
(`blackbox.generation.ensemble_selection`), less a little for what they cost to run. After the first
rung, the sources that improve on candidates make variants of the best.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.boosting.splits import balanced_rows
from blackbox.generation.ensemble_selection import EnsembleSelection
from blackbox.generation.evaluator import Evaluator
from blackbox.generation.proposer import BudgetedWriter, Proposer
from blackbox.generation.schedule import Schedule, make_schedule, min_budget, writing_budget
from blackbox.generation.sources import SOURCES
from blackbox.generation.task import SearchState, Task
from blackbox.plurals import counted
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.protocol import Backend

__all__ = ["GeneratedPool", "PromptGenerator"]

_log = logging.getLogger(__name__)

_PROBED_ROWS = 4  # on which duplicates are recognised
_VARIANTS = 0.3  # share of the candidates, where there are sources that improve
_BY_SELECTION = 0.6  # share of the survivors; the others are the best alone


@dataclass(frozen=True)
class PromptGenerator:
    """The settings for a pool; ``PromptBoostingClassifier(prompts="auto")`` uses the defaults.

    Parameters
    ----------
    budget : int, default=4000
        Forward passes in all, those of the final pool on the training rows included, and those
        that a store has. A token that the LM writes is a pass. Where the training rows are many,
        candidates are tried on fewer of them and the pool gets fewer prompts, so that it is kept.
    sources : sequence of str
        Where candidates come from: names of `blackbox.generation.SOURCES`.
    writer : Backend, optional
        Another LM that writes templates and paraphrases; by default the one that reads texts.

    Raises
    ------
    ValueError
        If a source is unknown, or the budget isn't a positive whole number.
    """

    budget: int = 4000
    sources: Sequence[str] = tuple(SOURCES)
    writer: Backend | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sources) - set(SOURCES))
        if unknown or not self.sources:
            raise ValueError(f"sources are among {', '.join(SOURCES)}; got {list(self.sources)}")
        budget: Any = self.budget
        if not isinstance(budget, Integral) or int(budget) < 1:
            raise ValueError(f"a generation budget is a positive whole number, got {budget!r}")
        # a saved model holds it as JSON, which has no numpy integers
        object.__setattr__(self, "budget", int(budget))

    def generate(
        self,
        gatherer: Gatherer,
        task: Task,
        n_prompts: int,
        rng: np.random.Generator,
        *,
        prefix_price: float = 0.0,
    ) -> GeneratedPool:
        """Make a pool of prompts.

        Parameters
        ----------
        gatherer : Gatherer
            Runs forward passes over the task's rows, and has the LM write.
        task : Task
            The training rows.
        n_prompts : int
            How many prompts, at most.
        rng : numpy Generator
            For all that is drawn.
        prefix_price : float, default=0.0
            See `blackbox.generation.prefix_costs.prefix_costs`.

        Raises
        ------
        ValueError
            If the budget is too small for the rows.
        """
        halving = _Halving(gatherer, task, self, rng, prefix_price=prefix_price)
        return halving.run(n_prompts)


@dataclass(frozen=True)
class GeneratedPool:
    """A pool that was made for a task.

    Parameters
    ----------
    pool : PromptPool
        The prompts, those that add most first.
    notes : list of str
        For each of them where it comes from and what it adds.
    summary : dict
        Candidates, passes and gains, as JSON data.
    selection_rows : int array
        The training rows that prompts were selected on.
    """

    pool: PromptPool
    notes: list[str]
    summary: dict[str, Any]
    selection_rows: NDArray[np.intp]

    def first(self, n: int | None) -> GeneratedPool:
        """Return the same with the first n prompts alone, as `max_prompts` keeps them."""
        return replace(self, pool=self.pool[:n], notes=self.notes[:n])


class _Halving:
    """One run of successive halving."""

    def __init__(
        self,
        gatherer: Gatherer,
        task: Task,
        generator: PromptGenerator,
        rng: np.random.Generator,
        *,
        prefix_price: float,
    ) -> None:
        self._gatherer, self._task, self._rng = gatherer, task, rng
        self._budget = generator.budget
        self._passes_before = gatherer.asked
        self._n_duplicates = 0
        seed = int(rng.integers(2**31))
        write = BudgetedWriter(gatherer, writing_budget(generator.budget), seed)
        self._proposer = Proposer(task, generator.sources, write, rng)
        self._evaluator = Evaluator(gatherer, task, seed, prefix_price=prefix_price)

    def run(self, n_prompts: int) -> GeneratedPool:
        """Run all rungs, and the pool on all training rows."""
        schedule = self._schedule(n_prompts)
        self._gatherer.require_memory(schedule.n_prompts)  # before the LM writes
        order = self._order(schedule)
        first, second, third = (np.sort(order[:n]) for n in schedule.rows)
        _, n_second, n_third = schedule.candidates
        candidates = self._first_rung(schedule, np.sort(order[:_PROBED_ROWS]), first)
        for rows, n_survivors, more_rows in ((first, n_second, second), (second, n_third, third)):
            survivors = self._survivors(candidates, rows, n_survivors)
            candidates = self._evaluator.answered(survivors, more_rows, "trying the better ones")
        selection, _ = self._selection(candidates, third)
        selected, gains = selection.select(schedule.n_prompts)
        return self._generated([candidates[number] for number in selected], third, gains)

    def _order(self, schedule: Schedule) -> NDArray[np.intp]:
        """Return the rows to select on, in order; some groups are left out as a whole."""
        y, groups = self._task.y, self._task.groups
        order = balanced_rows(y, len(y), self._rng, groups)
        if groups is None:
            return order
        appearing = list(dict.fromkeys(groups[order].tolist()))
        return order[np.isin(groups[order], appearing[: schedule.most_rows(len(appearing))])]

    def _schedule(self, n_prompts: int) -> Schedule:
        """Return the rungs; warn if the budget doesn't hold the prompts that are wanted."""
        n, n_classes = len(self._task.examples), self._task.n_classes
        passes = self._gatherer.passes_per_prompt
        schedule = make_schedule(n, n_classes, n_prompts, self._budget, passes)
        if schedule.n_prompts < n_prompts:
            _log.warning(
                "making %d of %s: a generation budget of %s holds no more with %s; raise it to %d "
                "for all of them",
                schedule.n_prompts,
                counted(n_prompts, "prompt"),
                counted(self._budget, "forward pass"),
                counted(n, "training row"),
                min_budget(n, n_classes, n_prompts, passes),
            )
        return schedule

    def _first_rung(
        self, schedule: Schedule, probed: NDArray[np.intp], rows: NDArray[np.intp]
    ) -> list[Prompt]:
        """Draw candidates and evaluate them, then variants of the best."""
        n = schedule.candidates[0]
        n_variants = round(_VARIANTS * n) if self._proposer.improves else 0
        drawn = self._proposer.initial(n - n_variants, schedule.n_prompts)
        candidates = self._evaluate([], drawn, probed, rows, "trying prompts")
        if self._proposer.improves:
            state = self._state(candidates, rows)
            drawn = self._proposer.variants(state, n_variants)
            stage = "trying variants of the best"
            candidates = self._evaluate(candidates, drawn, probed, rows, stage)
        return candidates

    def _evaluate(
        self,
        known: list[Prompt],
        new: list[Prompt],
        probed: NDArray[np.intp],
        rows: NDArray[np.intp],
        stage: str,
    ) -> list[Prompt]:
        """Return known and new candidates but duplicates, once they are answered on the rows."""
        if not new:
            return known
        candidates, n_dropped = self._evaluator.distinct(known, new, probed, stage)
        self._n_duplicates += n_dropped
        return self._evaluator.answered(candidates, rows, stage)

    def _state(self, candidates: list[Prompt], rows: NDArray[np.intp]) -> SearchState:
        """Return the best candidates and the most typical rows, for sources that improve."""
        selection, answered_rows = self._selection(candidates, rows)
        selected, _ = selection.select(len(candidates))
        typical = selection.typical_rows(selected)
        return SearchState(
            [candidates[number] for number in selected],
            [answered_rows[places].tolist() for places in typical],
        )

    def _survivors(self, candidates: list[Prompt], rows: NDArray[np.intp], n: int) -> list[Prompt]:
        """Return the n best candidates: most of them by what they add to an ensemble."""
        if len(candidates) <= n:
            return candidates
        selection, _ = self._selection(candidates, rows)
        selected, _ = selection.select(round(_BY_SELECTION * n))
        survivors = list(dict.fromkeys([*selected, *selection.rank_alone()]))[:n]
        return [candidates[number] for number in sorted(survivors)]

    def _selection(
        self, candidates: list[Prompt], rows: NDArray[np.intp]
    ) -> tuple[EnsembleSelection, NDArray[np.intp]]:
        origins = [self._proposer.origins[prompt] for prompt in candidates]
        return self._evaluator.selection(candidates, rows, origins)

    def _generated(
        self, prompts: list[Prompt], rows: NDArray[np.intp], gains: list[float]
    ) -> GeneratedPool:
        pool = PromptPool(prompts)
        self._gatherer.answers(pool)
        sources = [self._proposer.origins[prompt] for prompt in prompts]
        notes = [
            f"{source}; lowers the log-loss by {gain:.3f}"
            for source, gain in zip(sources, gains, strict=True)
        ]
        summary = {
            "budget": self._budget,
            "passes": self._gatherer.asked - self._passes_before,
            "written": self._gatherer.written,
            "n_tried": self._proposer.counts(),
            "n_duplicates": self._n_duplicates,
            "sources": sources,
            "gains": [round(gain, 4) for gain in gains],
        }
        return GeneratedPool(pool, notes, summary, rows)
