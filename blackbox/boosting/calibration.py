"""Cross-validation and calibration of `logit`: the temperature, and the weights of experts.

Boosting is repeated in each fold. The held-out rows give the temperature of the scores and the
weight of each expert, the class-name prior (`blackbox.boosting.label_words`) among them, and the
cross-validated losses and scores by which prompts are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.early_stopping import clip_contributions
from blackbox.boosting.early_stopping_fit import contribution_bounds
from blackbox.boosting.label_words import NamePrior
from blackbox.boosting.logit import (
    LogitModel,
    Scaling,
    Settings,
    coefficients_of,
    contributions,
    fit_together,
    scaling_of,
    staged_scores,
)
from blackbox.boosting.weak_learner import softmax
from blackbox.experts.base import ExpertScores

__all__ = [
    "NAME_PRIOR",
    "SCORE_PRIOR",
    "Calibration",
    "FoldFit",
    "Folds",
    "calibrate",
    "cross_validated_losses",
    "fit_folds",
    "held_out_contributions",
    "held_out_scores",
    "log_losses",
    "with_all_rows",
]

NAME_PRIOR = (0.4, 10.0)
"""Mean and strength of the Gaussian prior on the weight of the class-name prior."""

SCORE_PRIOR = (0.5, 5.0)
"""The same of the factor of the boosted scores, once they have variance 1."""

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
"""Pairs of training rows and held-out rows."""

_NUMBERS_TOGETHER = 2**22  # contributions of folds that are boosted together: 32 MB
_MAX_TEMPERATURE = 50.0
_MAX_WEIGHT = 4.0  # of an expert


def cross_validated_losses(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    settings: Settings,
) -> NDArray[np.float64]:
    """Return the mean log-loss on held-out rows, before the first round and after each.

    Parameters
    ----------
    matrices : sequence of float32 arrays of shape (n, V_p)
        Log-probabilities, not standardised: each fold is standardised by its own training part.
    y, sample_weight, n_classes, settings
        As for `fit_logit`.
    folds : sequence of (training rows, held-out rows)
        The splits.

    Returns
    -------
    float64 array of shape (settings.n_estimators + 1,)
    """
    losses = np.zeros(settings.n_estimators + 1)
    for fold in fit_folds(matrices, y, sample_weight, n_classes, folds, settings):
        stages = staged_scores(fold.fit, fold.read(fold.test))
        of_rows = log_losses(stages.reshape(-1, n_classes), np.tile(y[fold.test], len(stages)))
        fold_weight = sample_weight[fold.test]
        of_fold = [some @ fold_weight for some in of_rows.reshape(len(stages), -1)]
        # a fold that stopped early keeps its last loss
        losses += of_fold + of_fold[-1:] * (len(losses) - len(of_fold))
    return np.asarray(losses / sum(sample_weight[test].sum() for _, test in folds))


class Calibration(NamedTuple):
    """A calibration of scores.

    Parameters
    ----------
    temperature : float
        The divisor of the boosted scores.
    weights : tuple of float
        The factor of each expert's scores.
    loss : float
        Mean log-loss of the calibrated held-out rows.
    """

    temperature: float
    weights: tuple[float, ...]
    loss: float

    def apply(
        self, scores: NDArray[np.float64], experts: Sequence[ExpertScores] = ()
    ) -> NDArray[np.float64]:
        """Return calibrated scores of shape (n, n_classes)."""
        calibrated = scores / self.temperature
        for expert, weight in zip(experts, self.weights, strict=True):
            calibrated = calibrated + weight * expert.scores
        return calibrated


def calibrate(
    scores: NDArray[np.float64],
    y: NDArray[np.intp],
    calibration_weight: NDArray[np.float64],
    *,
    min_temperature: float = 0.5,
    experts: Sequence[ExpertScores] = (),
    prior: tuple[float, float] = SCORE_PRIOR,
) -> Calibration:
    """Fit the temperature, and the weights of experts, on held-out rows.

    A temperature alone changes probabilities and no label. Source: Guo et al., "On calibration of
    modern neural networks", ICML 2017, with cross-validation in place of a held-out set.

    The scores of experts are added with the weights, at least 0, that minimise the loss. Few rows
    determine a temperature or a weight poorly, so penalties pull them towards the means of priors.

    Parameters
    ----------
    scores : float64 array of shape (n, n_classes)
        Of held-out rows.
    y : int array of shape (n,)
        Classes from 0.
    calibration_weight : float array of shape (n,)
        Weights of the rows in the loss.
    min_temperature : float, default=0.5
        The lowest temperature; the highest is 50.
    experts : sequence of ExpertScores, default=()
        Scores of the same rows.
    prior : (float, float), default=SCORE_PRIOR
        Mean and strength of the Gaussian prior on the standard deviation of the calibrated scores,
        those of experts not among them.
    """
    from scipy.optimize import minimize

    size = float(scores.std()) or 1.0
    target = np.eye(scores.shape[1])[y]
    parts = np.stack([scores / size, *(expert.scores for expert in experts)])
    total = calibration_weight.sum()
    mean = np.array([prior[0], *(expert.mean for expert in experts)])
    strength = np.array([prior[1], *(expert.strength for expert in experts)])

    def objective(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixed = np.einsum("j,jnk->nk", at, parts)
        penalty = strength * (at - mean)
        loss = log_losses(mixed, y) @ calibration_weight + penalty @ (at - mean) / 2
        error = (softmax(mixed) - target) * calibration_weight[:, None]
        gradient = np.einsum("nk,jnk->j", error, parts) + penalty
        return float(loss / total), gradient / total

    # the loss has one minimum, as it is convex in the factors
    optimum = minimize(
        objective,
        (min(size, size / min_temperature), *mean[1:]),
        jac=True,
        bounds=[
            (size / _MAX_TEMPERATURE, size / min_temperature),
            *[(0.0, _MAX_WEIGHT)] * len(experts),
        ],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    mixed = np.einsum("j,jnk->nk", optimum.x, parts)
    loss = float(log_losses(mixed, y) @ (calibration_weight / total))
    return Calibration(float(size / optimum.x[0]), tuple(optimum.x[1:].tolist()), loss)


@dataclass(frozen=True)
class FoldFit:
    """A model boosted on the training part of a fold.

    Parameters
    ----------
    train, test : int arrays
        Rows boosted on, and rows held out.
    matrices : sequence of P float32 arrays of shape (n, V_p)
        Log-probabilities of all rows, not standardised, under the prompts boosted with.
    scalings : list of Scaling
        One per prompt, of the rows boosted on.
    fit : LogitModel
        The model boosted on them.
    contributions : float64 array of shape (P, n, n_classes)
        What its prompts add to the scores of all n rows; see `BoostedSet`.
    """

    train: NDArray[np.intp]
    test: NDArray[np.intp]
    matrices: Sequence[Matrix]
    scalings: list[Scaling]
    fit: LogitModel
    contributions: NDArray[np.float64]

    def read(self, rows: NDArray[np.intp]) -> list[Matrix]:
        """Return some rows of each prompt's matrix, standardised as the rows boosted on were."""
        parts = zip(self.scalings, self.matrices, strict=True)
        return [scaling.apply(matrix, rows) for scaling, matrix in parts]


def fit_folds(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    settings: Settings,
    scalings: Sequence[Scaling] | None = None,
    same: bool = False,
) -> Iterator[FoldFit]:
    """Yield a model per fold, boosted on its training part, which is standardised by itself.

    Parameters are as for `cross_validated_losses`; `scalings` are those of all rows, if known;
    `same` takes them for each fold too, as they know more texts than the rows.
    """
    of_all = list(scalings or [scaling_of(matrix, sample_weight) for matrix in matrices])
    by_token = [one.apply_by_token(m) for one, m in zip(of_all, matrices, strict=True)]
    together = max(1, _NUMBERS_TOGETHER // max(len(matrices) * len(y) * n_classes, 1))
    for some in (folds[start : start + together] for start in range(0, len(folds), together)):
        of_folds = [
            of_all
            if same or np.array_equal(train, np.arange(len(y)))
            else [scaling_of(m, sample_weight[train], train) for m in matrices]
            for train, _ in some
        ]
        left = [[one.after(s) for one, s in zip(own, of_all, strict=True)] for own in of_folds]
        weights = np.zeros((len(some), len(y)))
        for of_fold, (train, _) in zip(weights, some, strict=True):
            of_fold[train] = sample_weight[train]
        fits = fit_together(by_token, y, weights, left, n_classes, settings)
        for (train, test), own, found in zip(some, of_folds, fits, strict=True):
            yield FoldFit(train, test, matrices, own, *found)


def with_all_rows(folds: Folds, n: int) -> Folds:
    """Return folds after one that boosts on all n rows, for `fit_folds`."""
    return [(np.arange(n), np.empty(0, np.intp)), *folds]


def held_out_contributions(
    fits: Sequence[FoldFit],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    *,
    temperature: float = 1.0,
    priors: Sequence[NamePrior] = (),
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what prompts add to the scores of rows that they were not boosted on.

    Parameters
    ----------
    fits : sequence of FoldFit
        Each row is held out once.
    y, sample_weight
        As for `fit_folds`.
    temperature : float, default=1.0
        The divisor of the boosted scores.
    priors : sequence of NamePrior, optional
        The class-name prior under the prompts of each fold, added to its learners; it widens the
        bounds.

    Returns
    -------
    initial : float64 array of shape (n, n_classes)
        Scores before the first prompt.
    contributions : float64 array of shape (P, n, n_classes)
        Within the bounds of each fold's training rows.
    """
    n_classes = len(fits[0].fit.initial)
    initial = np.zeros((len(y), n_classes))
    added = np.zeros((len(fits[0].matrices), len(y), n_classes))
    prior, named = None, list[NDArray[np.float64]]()
    for number, fold in enumerate(fits):
        seen = fold.contributions[:, fold.train] / temperature
        unseen = fold.contributions[:, fold.test] / temperature
        low, high = contribution_bounds(seen, y[fold.train], sample_weight[fold.train])
        if priors:
            if priors[number] is not prior:  # most folds have the same prompts
                prior = priors[number]
                widths = [matrix.shape[1] for matrix in fold.matrices]
                named = coefficients_of(prior.learners, widths, n_classes)
            low, high = low + prior.low, high + prior.high
            unseen = unseen + contributions(named, fold.read(fold.test))
        initial[fold.test] = fold.fit.initial / temperature
        added[:, fold.test] = clip_contributions(unseen, low, high)
    return initial, added


def held_out_scores(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    settings: Settings,
) -> NDArray[np.float64]:
    """Return the score of each row under the model of the fold that held it out.

    Parameters are as for `cross_validated_losses`.

    Returns
    -------
    float64 array of shape (n, n_classes)
        NaN for rows that no fold holds out.
    """
    scores = np.full((len(y), n_classes), np.nan)
    for fold in fit_folds(matrices, y, sample_weight, n_classes, folds, settings):
        scores[fold.test] = fold.fit.initial + fold.contributions[:, fold.test].sum(axis=0)
    return scores


def log_losses(scores: NDArray[np.float64], y: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the log-loss of each row of scores (n, n_classes), or of the same for all: (n,)."""
    scores = np.broadcast_to(scores, (len(y), scores.shape[-1]))
    highest = scores.max(axis=1)
    total = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
    return np.asarray(total - scores[np.arange(len(y)), y])
