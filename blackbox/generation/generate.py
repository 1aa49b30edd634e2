"""Makes a prompt pool for a task, within a number of forward passes.

Candidates come from the sources, by the hundred, and are tried on few training rows first: the
better ones stay and are tried on more (successive halving: Jamieson and Talwalkar, "Non-stochastic
best arm identification and hyperparameter optimization", AISTATS 2016). What counts is what a
prompt adds to those picked before it (`blackbox.generation.ensemble_selection`), less a little for
what it costs to run. In between, the sources that improve on what was found make more candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.boosting.baseline import training_errors
from blackbox.boosting.splits import balanced_rows
from blackbox.generation.ensemble_selection import (
    EnsembleSelection,
    answered,
    distances,
    prefix_costs,
    small_models,
)
from blackbox.generation.schedule import (
    Schedule,
    for_refinement,
    for_writing,
    least_budget,
    schedule,
)
from blackbox.generation.sources import SOURCES
from blackbox.generation.task import SearchState, Task, none_fits
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import render_within
from blackbox.protocol import Backend, RenderedPrompt

__all__ = ["Generated", "PromptGenerator", "generate_pool"]

_log = logging.getLogger(__name__)

METHODS = ("halving", "refinement")

_PROBED_ROWS = 4  # on which near-duplicates are recognised
_DUPLICATE = 0.03  # mean total variation distance under which two prompts are one
_IMPROVED = 0.3  # of the candidates, where there are sources that improve
_BY_WORTH = 0.6  # of those that stay; the others stay as they are best alone
_PRICE = 0.004  # nats that a prompt must earn to be worth one text read anew
_COSTED_TEXTS = 8


@dataclass(frozen=True)
class PromptGenerator:
    """How to make a pool; ``PromptBoostingClassifier(prompts="auto")`` uses the defaults.

    Parameters
    ----------
    budget : int, default=4000
        Forward passes in all, those of the final pool on the training rows included, and those
        that a store has. A token that the LM writes is a pass. Where the training rows are many,
        candidates are tried on fewer of them and the pool gets fewer prompts, so that it is kept.
    sources : sequence of str
        Where candidates come from: names of `blackbox.generation.SOURCES`.
    method : {"halving", "refinement"}, default="halving"
        ``"refinement"`` is the simpler way of the paper (Hou et al. 2023): up to a hundred
        candidates on all training rows, and those stay whose best verbalizer makes the fewest
        errors, each by itself.
    writer : Backend, optional
        Another LM that writes templates and paraphrases; by default the one that reads texts.

    Raises
    ------
    ValueError
        If a source or a method is unknown, or the budget isn't a positive whole number.
    """

    budget: int = 4000
    sources: Sequence[str] = tuple(SOURCES)
    method: str = "halving"
    writer: Backend | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sources) - set(SOURCES))
        if unknown or not self.sources:
            raise ValueError(f"sources are among {', '.join(SOURCES)}; got {list(self.sources)}")
        if self.method not in METHODS:
            raise ValueError(f"method is one of {', '.join(METHODS)}; got {self.method!r}")
        budget: Any = self.budget
        if not isinstance(budget, Integral) or int(budget) < 1:
            raise ValueError(f"a generation budget is a positive whole number, got {budget!r}")
        # numpy's integers are no JSON, in which a saved model tells of it
        object.__setattr__(self, "budget", int(budget))


@dataclass(frozen=True)
class Generated:
    """A pool that was made for a task.

    Parameters
    ----------
    pool : PromptPool
        The prompts, those that add most first.
    notes : list of str
        For each of them where it comes from and what it adds.
    summary : dict
        Candidates, passes and gains, as JSON data.
    looked_at : int array
        The training rows that prompts were chosen by.
    """

    pool: PromptPool
    notes: list[str]
    summary: dict[str, Any]
    looked_at: NDArray[np.intp]

    def first(self, n: int | None) -> Generated:
        """The same with the first n prompts alone, as `max_prompts` keeps them."""
        return replace(self, pool=self.pool[:n], notes=self.notes[:n])


def generate_pool(
    gatherer: Gatherer,
    task: Task,
    generator: PromptGenerator,
    n_prompts: int,
    rng: np.random.Generator,
    *,
    shared_prefixes: bool = True,
) -> Generated:
    """Make a pool of prompts.

    Parameters
    ----------
    gatherer : Gatherer
        Runs forward passes over the task's rows, and has the LM write.
    task : Task
        The training rows.
    generator : PromptGenerator
        How to make it.
    n_prompts : int
        How many prompts, at most.
    rng : numpy Generator
        For all that is drawn.
    shared_prefixes : bool, default=True
        See `prefix_costs`.

    Raises
    ------
    ValueError
        If the budget is too small for the rows.
    """
    search = _Search(gatherer, task, generator, rng, shared_prefixes=shared_prefixes)
    if generator.method == "refinement":
        return search.refine(n_prompts)
    return search.halve(n_prompts)


class _Writer:
    """The LM that writes, for as long as its share of the budget lasts."""

    def __init__(self, gatherer: Gatherer, most: int, seed: int) -> None:
        self.limits = gatherer.writer.limits
        self._gatherer, self._most, self._seed = gatherer, most, seed

    def __call__(
        self, requests: Sequence[RenderedPrompt], n: int, max_tokens: int
    ) -> list[list[str]]:
        left = self._most - self._gatherer.written
        some = requests[: left // (n * max_tokens)]
        return self._gatherer.write(some, n, max_tokens=max_tokens, seed=self._seed)


class _Search:
    """One search: the candidates so far, and where they come from."""

    def __init__(
        self,
        gatherer: Gatherer,
        task: Task,
        generator: PromptGenerator,
        rng: np.random.Generator,
        *,
        shared_prefixes: bool,
    ) -> None:
        self._gatherer = gatherer
        self._task = task
        self._generator = generator
        self._rng = rng
        self._shared = shared_prefixes
        self._origin: dict[Prompt, str] = {}
        self._duplicates = 0
        self._scores: dict[bytes, dict[Prompt, NDArray[np.float64]]] = {}
        self._begun = gatherer.asked
        self._seed = int(rng.integers(2**31))
        self._writer = _Writer(gatherer, for_writing(generator.budget), self._seed)

    def halve(self, n_prompts: int) -> Generated:
        """Successive halving by joint worth."""
        task = self._task
        plan = self._planned(n_prompts)
        order = balanced_rows(task.y, len(task.y), self._rng)
        first, second, third = (np.sort(order[:n]) for n in plan.rows)
        improving = [name for name in self._generator.sources if SOURCES[name].improves]
        n_first = plan.candidates[0] - round(bool(improving) * _IMPROVED * plan.candidates[0])
        drawn = self._drawn(n_first, plan.n_prompts)
        tried = self._tried(drawn, [], order, first, "trying prompts")
        worth, kept = self._worth(tried, first)
        picked, _ = worth.pick(len(tried), self._costs(tried), self._selection_bias(worth, tried))
        if improving:
            found = SearchState(
                [tried[number] for number in picked],
                [[int(first[kept[place]]) for place in rows] for rows in worth.typical(picked)],
            )
            more = self._propose(improving, found, plan.candidates[0] - n_first)
            tried = self._tried(more, tried, order, first, "trying variants of the best")
        for rows, n, after in (
            (first, plan.candidates[1], second),
            (second, plan.candidates[2], third),
        ):
            tried = self._staying(tried, rows, n)
            tried = self._answered(tried, after, "trying the better ones")
        worth, _ = self._worth(tried, third)
        picked, gains = worth.pick(
            plan.n_prompts, self._costs(tried), self._selection_bias(worth, tried)
        )
        return self._generated([tried[number] for number in picked], third, gains)

    def refine(self, n_prompts: int) -> Generated:
        """The paper's way: each prompt by the training error of its best verbalizer."""
        task = self._task
        rows = np.arange(len(task.examples))
        n = for_refinement(
            len(rows), n_prompts, self._generator.budget, self._gatherer.passes_per_prompt
        )
        if n < n_prompts:
            self._warn_of_few(n, n_prompts, None)
        self._gatherer.require_memory(n)  # before the LM writes
        tried = self._answered(self._drawn(n, min(n, n_prompts)), rows, "trying prompts")
        answers, kept = self._answers(tried, rows, "trying prompts")
        errors = training_errors(answers, task.y[kept], task.sample_weight[kept], task.n_classes)
        best = np.argsort(errors, kind="stable")[:n_prompts].tolist()
        return self._generated([tried[n] for n in best], rows, [], errors[best].tolist())

    def _planned(self, n_prompts: int) -> Schedule:
        """The steps, with a word where the budget doesn't hold the prompts that are wanted."""
        size = len(self._task.examples), self._task.n_classes
        a_prompt = self._gatherer.passes_per_prompt
        plan = schedule(*size, n_prompts, self._generator.budget, a_prompt)
        self._gatherer.require_memory(plan.n_prompts)
        if plan.n_prompts < n_prompts:
            self._warn_of_few(plan.n_prompts, n_prompts, least_budget(*size, n_prompts, a_prompt))
        return plan

    def _drawn(self, n: int, n_wanted: int) -> list[Prompt]:
        """The first n candidates: templates, where other sources don't give as many as wanted."""
        # what improves needs something to begin with
        basic = [name for name in self._generator.sources if not SOURCES[name].improves]
        drawn = self._propose(basic or ["templates"], SearchState(), n)
        if len(drawn) < n_wanted:
            drawn += self._propose(["templates"], SearchState(), n_wanted - len(drawn))
        if not drawn:
            raise none_fits(self._task)
        return drawn

    def _propose(self, sources: Sequence[str], found: SearchState, n: int) -> list[Prompt]:
        """n new candidates that the LM's context holds, of the sources in turn."""
        streams = {
            name: SOURCES[name].propose(self._task, found, self._writer, self._rng)
            for name in sources
        }
        new: list[Prompt] = []
        while streams and len(new) < n:
            for name in list(streams):
                new_ones = (p for p in streams[name] if p not in self._origin)
                prompt = next(filter(self._task.fits, new_ones), None)
                if prompt is None:
                    del streams[name]
                elif len(new) < n:
                    self._origin[prompt] = name
                    new.append(prompt)
        return new

    def _tried(
        self,
        new: list[Prompt],
        known: list[Prompt],
        order: NDArray[np.intp],
        rows: NDArray[np.intp],
        stage: str,
    ) -> list[Prompt]:
        """Known and new candidates on some rows, but those that say the same or get no answer."""
        if not new:
            return known
        together = [*known, *new]
        probed = self._gatherer.answers(PromptPool(together), np.sort(order[:_PROBED_ROWS]), stage)
        apart = distances(probed)
        costs = self._costs(together)
        # the cheaper one of two stays, and of two new ones that cost the same the earlier
        usable = [number for number in answered(probed) if number >= len(known)]
        by_cost = sorted(usable, key=lambda n: (costs[n], n))
        staying = list(range(len(known)))
        for number in by_cost:
            if not staying or apart[number, staying].min() >= _DUPLICATE:
                staying.append(number)
        self._duplicates += len(known) + len(usable) - len(staying)
        return self._answered([together[number] for number in sorted(staying)], rows, stage)

    def _staying(self, tried: list[Prompt], rows: NDArray[np.intp], n: int) -> list[Prompt]:
        """The n best candidates: most of them by what they add to each other."""
        if len(tried) <= n:
            return tried
        worth, _ = self._worth(tried, rows)
        costs = self._costs(tried)
        selection_bias = self._selection_bias(worth, tried)
        picked, _ = worth.pick(round(_BY_WORTH * n), costs, selection_bias)
        alone = np.argsort(worth.alone() + costs + selection_bias, kind="stable").tolist()
        chosen = list(dict.fromkeys([*picked, *alone]))[:n]
        return [tried[number] for number in sorted(chosen)]

    def _answered(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp], stage: str
    ) -> list[Prompt]:
        """The prompts that the LM answers on most rows; those that it refuses are left out."""
        answers = self._gatherer.answers(PromptPool(prompts), rows, stage)
        return [prompts[number] for number in answered(answers)]

    def _answers(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp], stage: str
    ) -> tuple[Answers, NDArray[np.intp]]:
        """Answers on rows that were answered under all prompts, and the places of those rows."""
        answers = self._gatherer.answers(PromptPool(prompts), rows, stage)
        kept = np.array([n for n in range(len(rows)) if n not in answers.row_errors], np.intp)
        return answers.take_rows(kept), kept

    def _worth(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp]
    ) -> tuple[EnsembleSelection, NDArray[np.intp]]:
        """What prompts are worth on rows, and the places of those that were answered."""
        answers, kept = self._answers(prompts, rows, "trying prompts")
        chosen = rows[kept]
        y, weights = self._task.y[chosen], self._task.sample_weight[chosen]
        known = self._scores.setdefault(chosen.tobytes(), {})
        new = [number for number, prompt in enumerate(prompts) if prompt not in known]
        if new:
            found = small_models(
                answers.take_prompts(new), y, weights, self._task.n_classes, self._seed
            )
            known.update(zip((prompts[number] for number in new), found, strict=True))
        return EnsembleSelection(np.stack([known[prompt] for prompt in prompts]), y, weights), kept

    def _selection_bias(
        self, worth: EnsembleSelection, prompts: Sequence[Prompt]
    ) -> NDArray[np.float64]:
        return worth.selection_bias([self._origin[prompt] for prompt in prompts])

    def _costs(self, prompts: Iterable[Prompt]) -> NDArray[np.float64]:
        examples = self._task.examples[:_COSTED_TEXTS]
        requests = [
            [
                render_within(prompt, example, self._task.limits, self._task.count_tokens)[0]
                for example in examples
            ]
            for prompt in prompts
        ]
        texts = [example[0] for example in examples]
        return _PRICE * prefix_costs(requests, texts, shared=self._shared)

    def _warn_of_few(self, n: int, n_wanted: int, enough: int | None) -> None:
        _log.warning(
            "%d of %d prompts are made: %d training rows take no more of a generation budget of "
            "%d forward passes; %s",
            n,
            n_wanted,
            len(self._task.examples),
            self._generator.budget,
            f"{enough} hold them all" if enough else "raise it for more",
        )

    def _generated(
        self,
        prompts: list[Prompt],
        rows: NDArray[np.intp],
        gains: list[float],
        errors: list[float] | None = None,
    ) -> Generated:
        final = PromptPool(prompts)
        self._gatherer.answers(final)
        tried: dict[str, int] = {}
        for name in self._origin.values():
            tried[name] = tried.get(name, 0) + 1
        sources = [self._origin[prompt] for prompt in prompts]
        if errors is None:
            notes = [
                f"{source}; lowers the log-loss by {gain:.3f}"
                for source, gain in zip(sources, gains, strict=True)
            ]
        else:
            notes = [f"{source}; training error {e:.3f}" for source, e in zip(sources, errors)]  # noqa: B905
        return Generated(
            final,
            notes,
            {
                "method": self._generator.method,
                "budget": self._generator.budget,
                "passes": self._gatherer.asked - self._begun,
                "written": self._gatherer.written,
                "n_tried": tried,
                "n_duplicates": self._duplicates,
                "sources": sources,
                "gains": [round(gain, 4) for gain in gains],
            },
            rows,
        )
