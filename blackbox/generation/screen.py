"""Screens candidate prompts: by the cross-validated loss of each alone, or without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.answers.texts import in_digest_order
from blackbox.boosting import calibration, logit
from blackbox.boosting.label_words import agreement, name_votes
from blackbox.boosting.splits import balanced_rows, stratified_folds
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.generation.comparison import answered_prompts
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.store.encoding import check_of

__all__ = ["Screening", "screen", "screen_by_names"]

_MODEL = logit.Settings(n_estimators=12, learning_rate=0.3, tokens_per_class=16)
_FOLDS = 4
_MIN_TOKEN_SHARE = 0.2  # of rows that must report a token before it is read
_SURVIVORS = 2  # candidates after half of the rows, per prompt that is wanted
_MAX_KNOWN = 256  # screenings whose losses are remembered
_LENGTH_PENALTY = 0.15  # share of its loss, for the longest template

# losses by a digest of the answers, labels and folds: the points of a grid search screen the same
_known_losses: dict[bytes, NDArray[np.float64]] = {}


@dataclass(frozen=True)
class Screening:
    """What `screen` found, and how it would choose by fewer rows.

    Parameters
    ----------
    chosen : list of int
        Numbers of the prompts chosen, in the order of the pool.
    losses : float64 array of shape (len(pool),)
        Cross-validated log-loss of each, on the rows that it was tried on; infinite for those that
        the LM refuses on too many (`blackbox.generation.comparison.answered_prompts`).
    finalists : PromptPool
        The prompts that were tried on all screening rows.
    losses_by : callable
        Takes some of these rows, and returns the losses of the finalists by them alone, each times
        the penalty of its length.
    """

    chosen: list[int]
    losses: NDArray[np.float64]
    finalists: PromptPool
    losses_by: Callable[[NDArray[np.intp]], NDArray[np.float64]]

    def ranked_by(self, rows: NDArray[np.intp]) -> list[Prompt]:
        """Return the finalists by what some of the screening rows alone say, the best first."""
        ranked = np.argsort(self.losses_by(rows), kind="stable")
        return [self.finalists[place] for place in ranked.tolist()]


def screen(
    gatherer: Gatherer,
    pool: PromptPool,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_prompts: int,
    n_rows: int,
    rng: np.random.Generator,
    groups: NDArray[np.intp] | None = None,
) -> Screening:
    """Choose the prompts with the least cross-validated loss of each alone.

    All candidates are tried on half of the screening rows, and the better ones on all of them:
    successive halving (Jamieson and Talwalkar 2016) in its shortest form. A long template costs
    tokens with every text, so its loss is penalised.

    Parameters
    ----------
    gatherer : Gatherer
        Runs the passes that are needed.
    pool : PromptPool
        The candidates.
    y : int array of shape (n,)
        Classes of the training rows.
    sample_weight : float array of shape (n,)
        Their weights.
    n_prompts : int
        How many to choose.
    n_rows : int
        Rows to try them on, at most; drawn evenly from the classes.
    rng : numpy Generator
        For the rows and the folds.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    """
    groups = np.arange(len(y)) if groups is None else groups
    order = balanced_rows(y, n_rows, rng, groups)
    seed = int(rng.integers(2**31))
    losses = np.full(len(pool), np.inf)
    lengths = np.array([len(prompt.template) for prompt in pool])
    penalty = 1 + _LENGTH_PENALTY * lengths / lengths.max()
    survivors = list(range(len(pool)))
    finalists, of_length = pool, penalty
    rungs = (
        ("trying prompts", 0.5, _SURVIVORS * n_prompts),
        ("trying the better ones", 1.0, n_prompts),
    )
    for stage, share, n_survivors in rungs:
        if share < 1 and len(pool) <= n_survivors:
            continue
        rows = np.sort(order[: round(share * len(order))])
        finalists, of_length = PromptPool(pool[n] for n in survivors), penalty[survivors]
        found = _losses(gatherer, finalists, rows, y, sample_weight, groups, seed, stage)
        losses[survivors] = found
        ranked = sorted(survivors, key=lambda number: losses[number] * penalty[number])
        survivors = sorted(n for n in ranked[:n_survivors] if np.isfinite(losses[n]))

    def losses_by(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        again = _losses(gatherer, finalists, rows, y, sample_weight, groups, seed, "trying again")
        return np.asarray(again * of_length)

    return Screening(survivors, losses, finalists, losses_by)


def screen_by_names(
    gatherer: Gatherer,
    pool: PromptPool,
    label_words: Sequence[Sequence[str]],
    n_prompts: int,
    n_rows: int,
) -> list[int]:
    """Choose the prompts under which the scores of the class names agree best with the others.

    Parameters
    ----------
    gatherer, pool, n_prompts
        As for `screen`.
    label_words : sequence of sequence of str
        Per class the words of its name.
    n_rows : int
        Texts to try the prompts on, at most.

    Returns
    -------
    list of int
        Numbers of the prompts, in the order of the pool: those with the largest `agreement`, a
        long template at the discount of `screen`. The first ones where no name is spelled.
    """
    rows = np.sort(in_digest_order(gatherer.texts)[:n_rows])
    usable = answered_prompts(gatherer.answers(pool, rows, "trying prompts"))
    tried = PromptPool(pool[number] for number in usable)
    answers = gatherer.answers(tried, rows, "trying prompts")
    kept = np.array([place for place in range(len(rows)) if place not in answers.row_errors], int)
    answers = answers.take_rows(kept)
    weight = np.ones(len(kept))
    matrices, tokens, _ = features.frequent_matrices(
        answers.token_ids, answers.log_probs, weight, _MIN_TOKEN_SHARE
    )
    scalings = [logit.scaling_of(matrix, weight) for matrix in matrices]
    learners, votes, _ = name_votes(
        range(len(tokens)),
        tokens,
        answers.token_bytes,
        matrices,
        scalings,
        label_words,
        len(label_words),
    )
    shares = np.zeros(len(usable))
    shares[[learner.prompt for learner in learners]] = agreement(votes)
    lengths = np.array([len(pool[number].template) for number in usable])
    shares /= 1 + _LENGTH_PENALTY * lengths / lengths.max()
    best = np.argsort(-shares, kind="stable")[:n_prompts]
    return sorted(usable[place] for place in best.tolist())


def _losses(
    gatherer: Gatherer,
    pool: PromptPool,
    rows: NDArray[np.intp],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    groups: NDArray[np.intp],
    seed: int,
    stage: str,
) -> NDArray[np.float64]:
    """Return the cross-validated log-loss of each prompt alone; zeros where no folds can be made.

    It is infinite for prompts that are refused on too many rows.
    """
    usable = answered_prompts(gatherer.answers(pool, rows, stage))
    losses = np.full(len(pool), np.inf)
    # rows that were refused under the other prompts alone are usable
    answers = gatherer.answers(PromptPool(pool[number] for number in usable), rows, stage)
    kept = np.array([place for place in range(len(rows)) if place not in answers.row_errors], int)
    answers, n_classes = answers.take_rows(kept), int(y.max()) + 1
    of_rows = (y[rows][kept], sample_weight[rows][kept], groups[rows][kept])
    arrays = (answers.token_ids, answers.log_probs, *of_rows)
    form = repr((answers.token_ids.shape, n_classes, seed)).encode()
    key = check_of(form, *(array.tobytes() for array in arrays))
    if key not in _known_losses:
        while len(_known_losses) >= _MAX_KNOWN:
            _known_losses.pop(next(iter(_known_losses)), None)
        _known_losses[key] = _losses_alone(answers, *of_rows, n_classes, seed)
    losses[usable] = _known_losses[key]
    return losses


def _losses_alone(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    groups: NDArray[np.intp],
    n_classes: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the cross-validated log-loss of each of P prompts alone, all answered: (P,)."""
    losses = np.zeros(len(answers.token_ids))
    folds = stratified_folds(y, _FOLDS, np.random.default_rng(seed), groups)
    if not folds:
        return losses
    matrices, _, _ = features.frequent_matrices(
        answers.token_ids, answers.log_probs, sample_weight, _MIN_TOKEN_SHARE
    )
    with one_blas_thread():
        for number, matrix in enumerate(matrices):
            curve = calibration.cross_validated_losses(
                [matrix], y, sample_weight, n_classes, folds, _MODEL
            )
            losses[number] = curve.min()
    return losses
