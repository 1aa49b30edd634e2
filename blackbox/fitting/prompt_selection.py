"""Leaves the prompts to train with, and says how held-out rows stay honest about the choice.

Rows by which prompts were chosen look too good under them. Where folds can choose anew they do;
elsewhere such rows count less.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.boosting.prompt_choice import PromptChoice
from blackbox.boosting.splits import groups_per_class
from blackbox.fitting.multilabel_rows import MultilabelRows
from blackbox.fitting.run import Run
from blackbox.generation import best_prompts
from blackbox.generation.choose import Choice
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import NO_TOKEN

__all__ = ["Selection", "select_prompts"]

_CHOSEN_BY_WEIGHT = 0.25  # in calibration, of rows by which the prompts were chosen


@dataclass(frozen=True)
class Selection:
    """The prompts to train with.

    Parameters
    ----------
    prompts : list of int
        Their numbers among those that were asked.
    again : PromptChoice or None
        How folds choose anew; None where they don't.
    trust : float array or None
        By what the weight of each row is multiplied in calibration; None for all by 1.
    """

    prompts: list[int]
    again: PromptChoice | None
    trust: NDArray[np.float64] | None


def select_prompts(
    run: Run,
    choice: Choice,
    pool: PromptPool,
    answers: Answers,
    kept: NDArray[np.bool_],
    codes: NDArray[np.intp],
    weights: NDArray[np.float64],
    rng: np.random.Generator,
) -> Selection:
    """Leave as many prompts as `max_prompts` allows.

    Folds choose anew among prompts that were screened, and for `max_prompts`, where the rows are no
    more than are screened on: all candidates have answers to all of them then. With more rows the
    choice is seen less in the rest. Generated prompts are another matter, as each was made by what
    others answered; and of texts without labels, and for each of several labels, it isn't done.

    Parameters
    ----------
    run : Run
        The training, its answers gathered.
    choice : Choice
        How the prompts were chosen among the candidates.
    pool : PromptPool
        These prompts, and further ones of a library.
    answers : Answers
        Of the n rows that are trained on, under the pool.
    kept : bool array
        Which of all rows these are.
    codes, weights : arrays of shape (n,)
        Their classes and weights.
    rng : numpy Generator
        For the folds in which prompts are selected.
    """
    groups, n_classes = run.rows.groups[kept], int(codes.max()) + 1
    most = min(run.options.max_prompts or len(pool), len(pool))
    is_narrowed = most < len(pool) and not choice.is_generated
    selected = list(range(most))  # generated ones are in the order of their worth
    if is_narrowed:
        selected = best_prompts(answers, codes, weights, n_classes, most, rng, groups)
    screening = choice.screening
    if not (screening or is_narrowed) or not _folds_choose(run):
        return Selection(selected, None, _trust(run, choice, kept, by_all=is_narrowed))

    places, n_screened = np.flatnonzero(kept), len(choice.pool)
    finalists = screening.finalists if screening else ()
    candidates = PromptPool(dict.fromkeys([*pool, *finalists]))
    place_of = {prompt: place for place, prompt in enumerate(candidates)}
    of_all = run.gatherer.answers(candidates, places)
    answered = (of_all.token_ids[:, :, 0] != NO_TOKEN).all(axis=1)
    answered[n_screened : len(pool)] = False  # those of a library are in every pool

    def choose(rows: NDArray[np.intp]) -> list[int]:
        rows = _comparable(rows, codes, groups)
        chosen = list(range(len(pool)))
        if screening:
            ranked = [place_of[prompt] for prompt in screening.ranked_by(places[rows])]
            best = [place for place in ranked if answered[place]]
            best += [place for place in range(n_screened) if place not in best]
            chosen[:n_screened] = sorted(best[:n_screened])
        if is_narrowed:
            own = of_all.take_prompts(chosen).take_rows(rows)
            labelled = (codes[rows], weights[rows], n_classes)
            folds = np.random.default_rng(0)
            best = best_prompts(own, *labelled, most, folds, groups[rows])
            chosen = [chosen[number] for number in best]
        return chosen

    return Selection(selected, PromptChoice(of_all, selected, choose), None)


def _folds_choose(run: Run) -> bool:
    """Return whether each fold chooses its own prompts."""
    options, rows = run.options, run.rows
    algorithm = options.boosting(rows.classes).algorithm
    return (
        options.cv is not None
        and algorithm.chooses_in_folds
        and len(rows.texts) <= options.n_screening_rows
        and not rows.unlabelled
        and not isinstance(rows, MultilabelRows)
    )


def _comparable(
    rows: NDArray[np.intp], codes: NDArray[np.intp], groups: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the rows of classes with several groups among them, where two classes have some."""
    several = groups_per_class(codes[rows], groups[rows]) > 1
    return rows[several[codes[rows]]] if several.sum() > 1 else rows


def _trust(
    run: Run, choice: Choice, kept: NDArray[np.bool_], *, by_all: bool
) -> NDArray[np.float64] | None:
    """Return less than 1 for rows by which prompts were chosen, and for others of their groups."""
    if by_all:
        return np.full(int(kept.sum()), _CHOSEN_BY_WEIGHT)
    if not len(choice.selection_rows):
        return None
    groups = run.rows.groups
    chosen_by = np.isin(groups, groups[choice.selection_rows])[kept]
    return np.where(chosen_by, _CHOSEN_BY_WEIGHT, 1.0)
