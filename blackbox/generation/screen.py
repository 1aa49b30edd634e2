"""Chooses prompts among candidates by what they show about training rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.gatherer import Gatherer
from blackbox.boosting import calibration, logit
from blackbox.boosting.splits import balanced_rows, stratified_folds
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.generation.ensemble_selection import answered
from blackbox.prompts.pool import PromptPool

__all__ = ["screen"]

_MODEL = logit.Settings(n_estimators=12, learning_rate=0.3, tokens_per_class=16)
_FOLDS = 4
_SHARE = 0.2
_STAYING = 2  # after half of the rows, so many times the prompts that are wanted stay
_LONGEST = 0.15  # the longest template must be so much better than one that costs nothing


def screen(
    gatherer: Gatherer,
    pool: PromptPool,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_prompts: int,
    n_rows: int,
    rng: np.random.Generator,
) -> tuple[list[int], NDArray[np.float64]]:
    """Choose prompts by how well each alone predicts training rows that it wasn't fitted on.

    All candidates are tried on half of the screening rows, and the better ones on all of them:
    successive halving (Jamieson and Talwalkar 2016) in its shortest form. Long templates are paid
    for with every text, so of two that are as good the shorter one is chosen.

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
        Most rows to try them on, drawn evenly from the classes.

    Returns
    -------
    chosen : list of int
        Numbers of the prompts, in the order of the pool.
    losses : float64 array of shape (len(pool),)
        Cross-validated log-loss of each, on as many rows as it was tried on; infinite for those
        that the LM refuses on too many (`blackbox.generation.ensemble_selection.answered`).
    """
    order = balanced_rows(y, n_rows, rng)
    seed = int(rng.integers(2**31))
    losses = np.full(len(pool), np.inf)
    lengths = np.array([len(prompt.template) for prompt in pool])
    handicap = 1 + _LONGEST * lengths / lengths.max()
    staying = list(range(len(pool)))
    steps = (
        ("trying prompts", 0.5, _STAYING * n_prompts),
        ("trying the better ones", 1.0, n_prompts),
    )
    for stage, share, n_staying in steps:
        if share < 1 and len(pool) <= n_staying:
            continue
        rows = np.sort(order[: round(share * len(order))])
        some = PromptPool(pool[number] for number in staying)
        losses[staying] = _losses(gatherer, some, rows, y, sample_weight, seed, stage)
        ranked = sorted(staying, key=lambda number: losses[number] * handicap[number])
        staying = sorted(number for number in ranked[:n_staying] if np.isfinite(losses[number]))
    return staying, losses


def _losses(
    gatherer: Gatherer,
    pool: PromptPool,
    rows: NDArray[np.intp],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    seed: int,
    stage: str,
) -> NDArray[np.float64]:
    """The cross-validated log-loss of each prompt alone; zeros where no folds can be made.

    It is infinite for prompts that are refused on too many rows.
    """
    usable = answered(gatherer.answers(pool, rows, stage))
    losses = np.full(len(pool), np.inf)
    # what the others were refused is no matter any more
    answers = gatherer.answers(PromptPool(pool[number] for number in usable), rows, stage)
    kept = np.array([place for place in range(len(rows)) if place not in answers.row_errors], int)
    codes, weights = y[rows][kept], sample_weight[rows][kept]
    folds = stratified_folds(codes, _FOLDS, np.random.default_rng(seed))
    losses[usable] = 0
    if not folds:
        return losses
    answers = answers.take_rows(kept)
    matrices, _, _ = features.frequent_matrices(
        answers.token_ids, answers.log_probs, weights, _SHARE
    )
    with one_blas_thread():
        for number, matrix in zip(usable, matrices, strict=True):
            curve = calibration.cross_validated_losses(
                [matrix], codes, weights, int(y.max()) + 1, folds, _MODEL
            )
            losses[number] = curve.min()
    return losses
