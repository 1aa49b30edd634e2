"""Makes a prompt pool for a task, within a number of forward passes.

Candidates come from the sources, by the hundred, and are tried on few training rows first: the
better ones stay and are tried on more (successive halving: Jamieson and Talwalkar, "Non-stochastic
best arm identification and hyperparameter optimization", AISTATS 2016). What counts is what a
prompt adds to those picked before it (`blackbox.generation.worth`), less a little for what it costs
to run. In between, the sources that improve on what was found make more candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.baseline import training_errors
from blackbox.gathering import Gatherer
from blackbox.generation.sources import SOURCES
from blackbox.generation.task import Found, Task
from blackbox.generation.worth import Worth, distances, prefix_costs, small_models
from blackbox.passes import Answers
from blackbox.prompts import Prompt, PromptPool, render_within
from blackbox.protocol import Backend, RenderedPrompt
from blackbox.sampling import balanced_rows

__all__ = ["Generated", "PromptGenerator", "generate_pool"]

METHODS = ("halving", "refinement")

_FIRST_ROWS, _CLASS_ROWS = 32, 4  # of the first step: in all and a class, at least
_PROBED_ROWS = 4  # on which near-duplicates are recognised
_DUPLICATE = 0.03  # mean total variation distance under which two prompts are one
_STAYING = (2.4, 1.3)  # so many times the prompts that are wanted stay after each step
_IMPROVED = 0.3  # of the candidates, where there are sources that improve
_BY_WORTH = 0.6  # of those that stay; the others stay as they are best alone
_MOST_POOLED = 0.75  # of the budget, for the final pool alone
_UNSEEN = 0.25  # of the training rows, which prompts are not chosen by
_WRITTEN = 0.1  # of the budget, for what the LM writes
_PRICE = 0.004  # nats that a prompt must earn to be worth one text read anew
_COSTED_TEXTS = 8
_MOST_REFINED = 100


@dataclass(frozen=True)
class PromptGenerator:
    """How to make a pool; ``PromptBoostingClassifier(prompts="auto")`` uses the defaults.

    Parameters
    ----------
    budget : int, default=4000
        Forward passes in all, those of the final pool on the training rows included, and those
        that a store has. A token that the LM writes is a pass. Where the training rows are many,
        the pool gets fewer prompts, so that it is kept.
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
        If a source or a method is unknown, or the budget isn't positive.
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
        if self.budget < 1:
            raise ValueError(f"a generation budget is a positive number, got {self.budget}")


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


@dataclass(frozen=True)
class _Schedule:
    """How many candidates are tried on how many rows."""

    n_prompts: int
    rows: tuple[int, int, int]
    candidates: tuple[int, int, int]


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
        self._writer = _Writer(gatherer, round(_WRITTEN * generator.budget), self._seed)

    def halve(self, n_prompts: int) -> Generated:
        """Successive halving by joint worth."""
        task = self._task
        plan = _schedule(len(task.examples), task.n_classes, n_prompts, self._generator.budget)
        order = balanced_rows(task.y, len(task.y), self._rng)
        first, second, third = (np.sort(order[:n]) for n in plan.rows)
        basic = [name for name in self._generator.sources if not SOURCES[name].improves]
        improving = [name for name in self._generator.sources if SOURCES[name].improves]
        n_first = plan.candidates[0] - round(bool(improving) * _IMPROVED * plan.candidates[0])
        # what improves needs something to begin with
        drawn = self._propose(basic or ["templates"], Found(), n_first)
        if len(drawn) < plan.n_prompts:
            drawn += self._propose(["templates"], Found(), plan.n_prompts - len(drawn))
        tried = self._tried(drawn, [], order, first, "trying prompts")
        worth, kept = self._worth(tried, first)
        picked, _ = worth.pick(len(tried), self._costs(tried), self._luck(worth, tried))
        if improving:
            found = Found(
                [tried[number] for number in picked],
                [[int(first[kept[place]]) for place in rows] for rows in worth.typical(picked)],
            )
            more = self._propose(improving, found, plan.candidates[0] - n_first)
            tried += self._tried(more, tried, order, first, "trying variants of the best")
        for rows, n, after in (
            (first, plan.candidates[1], second),
            (second, plan.candidates[2], third),
        ):
            tried = self._staying(tried, rows, n)
            self._gatherer.answers(PromptPool(tried), after, "trying the better ones")
        worth, _ = self._worth(tried, third)
        picked, gains = worth.pick(plan.n_prompts, self._costs(tried), self._luck(worth, tried))
        return self._generated([tried[number] for number in picked], third, gains)

    def refine(self, n_prompts: int) -> Generated:
        """The paper's way: each prompt by the training error of its best verbalizer."""
        task = self._task
        left = self._generator.budget - round(_WRITTEN * self._generator.budget)
        n = min(_MOST_REFINED, left // len(task.examples))
        if n < 1:
            raise ValueError(_too_small(self._generator.budget, len(task.examples)))
        basic = [name for name in self._generator.sources if not SOURCES[name].improves]
        tried = self._propose(basic or ["templates"], Found(), n)
        rows = np.arange(len(task.examples))
        answers, kept = self._answers(tried, rows, "trying prompts")
        errors = training_errors(answers, task.y[kept], task.sample_weight[kept], task.n_classes)
        best = np.argsort(errors, kind="stable")[:n_prompts].tolist()
        return self._generated([tried[n] for n in best], rows, [], errors[best].tolist())

    def _propose(self, sources: Sequence[str], found: Found, n: int) -> list[Prompt]:
        """n new candidates, of the sources in turn."""
        streams = {
            name: SOURCES[name].propose(self._task, found, self._writer, self._rng)
            for name in sources
        }
        new: list[Prompt] = []
        while streams and len(new) < n:
            for name in list(streams):
                prompt = next((p for p in streams[name] if p not in self._origin), None)
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
        """New candidates with their answers on some rows, without those that say the same."""
        if not new:
            return []
        together = [*known, *new]
        probed = np.sort(order[:_PROBED_ROWS])
        apart = distances(self._answers(together, probed, stage)[0])
        costs = self._costs(together)
        # the cheaper one of two stays, and of two new ones that cost the same the earlier
        by_cost = sorted(range(len(known), len(together)), key=lambda n: (costs[n], n))
        staying = list(range(len(known)))
        for number in by_cost:
            if not staying or apart[number, staying].min() >= _DUPLICATE:
                staying.append(number)
        self._duplicates += len(together) - len(staying)
        kept = [together[number] for number in sorted(staying) if number >= len(known)]
        if kept:
            self._gatherer.answers(PromptPool(kept), rows, stage)
        return kept

    def _staying(self, tried: list[Prompt], rows: NDArray[np.intp], n: int) -> list[Prompt]:
        """The n best candidates: most of them by what they add to each other."""
        if len(tried) <= n:
            return tried
        worth, _ = self._worth(tried, rows)
        costs = self._costs(tried)
        luck = self._luck(worth, tried)
        picked, _ = worth.pick(round(_BY_WORTH * n), costs, luck)
        alone = np.argsort(worth.alone() + costs + luck, kind="stable").tolist()
        chosen = list(dict.fromkeys([*picked, *alone]))[:n]
        return [tried[number] for number in sorted(chosen)]

    def _answers(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp], stage: str
    ) -> tuple[Answers, NDArray[np.intp]]:
        """Answers on rows that were answered under all prompts, and the places of those rows."""
        answers = self._gatherer.answers(PromptPool(prompts), rows, stage)
        kept = np.array([n for n in range(len(rows)) if n not in answers.row_errors], np.intp)
        return answers.take_rows(kept), kept

    def _worth(
        self, prompts: Sequence[Prompt], rows: NDArray[np.intp]
    ) -> tuple[Worth, NDArray[np.intp]]:
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
        return Worth(np.stack([known[prompt] for prompt in prompts]), y, weights), kept

    def _luck(self, worth: Worth, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
        return worth.luck([self._origin[prompt] for prompt in prompts])

    def _costs(self, prompts: Iterable[Prompt]) -> NDArray[np.float64]:
        examples = self._task.examples[:_COSTED_TEXTS]
        requests = [
            [render_within(prompt, example, self._task.limits)[0] for example in examples]
            for prompt in prompts
        ]
        texts = [example[0] for example in examples]
        return _PRICE * prefix_costs(requests, texts, shared=self._shared)

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


def _schedule(n: int, n_classes: int, n_prompts: int, budget: int) -> _Schedule:
    """Rows and candidates of each step, for n training rows.

    The passes of the last steps are set aside, and the first step takes what is left.
    """
    first = min(n, max(_CLASS_ROWS * n_classes, _FIRST_ROWS))
    # some rows decide nothing, so that probabilities can be calibrated on them
    most = max(first, n - math.ceil(_UNSEEN * n))
    rows = first, min(most, 2 * first), min(most, 4 * first)
    pool = min(n_prompts, math.floor(_MOST_POOLED * budget / n))
    while pool:
        staying = [math.ceil(share * pool) for share in _STAYING]
        later = staying[0] * (rows[1] - rows[0]) + staying[1] * (rows[2] - rows[1])
        left = budget - round(_WRITTEN * budget) - pool * (n - rows[2]) - later
        if left >= rows[0] * staying[1]:
            return _Schedule(pool, rows, (left // rows[0], *staying))  # type: ignore[arg-type]
        pool -= 1
    raise ValueError(_too_small(budget, n))


def _too_small(budget: int, n: int) -> str:
    return (
        f"a generation budget of {budget} forward passes is too small for {n} rows: a prompt takes "
        f"{n}, and others must be tried; raise the budget, or name the prompts"
    )
