"""What `logit` is worth on rows that it was not boosted on, and what its scores are divided by.

The whole is boosted once more in each fold. From the rows that a fold left out come the temperature
of the scores and how much the names of the classes say, which were a verbalizer before any label
was seen (`blackbox.boosting.label_words`); and cross-validated losses and scores, by which prompts
are chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.early_stopping import clip_contributions, contribution_bounds
from blackbox.boosting.label_words import NamePrior
from blackbox.boosting.logit import (
    LogitModel,
    Scaling,
    Settings,
    coefficients_of,
    contributions,
    final_scores,
    fit_logit,
    scale_by_temperature,
    scaling_of,
    staged_scores,
)
from blackbox.boosting.weak_learner import softmax

__all__ = [
    "NAME_PRIOR",
    "Calibration",
    "FoldFit",
    "calibrate",
    "cross_validated_losses",
    "fit_folds",
    "held_out_contributions",
    "held_out_scores",
]

NAME_PRIOR = (0.4, 10.0)
"""What names weigh where rows say nothing of it, and how strongly that is held."""

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
"""Pairs of training rows and held-out rows."""

_MOST_TEMPERATURE = 50.0
_MOST_NAME_WEIGHT = 4.0


def cross_validated_losses(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    settings: Settings,
) -> NDArray[np.float64]:
    """Mean log-loss on held-out rows, before the first round and after each.

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
    for one in fit_folds(matrices, y, sample_weight, n_classes, folds, settings):
        stages = itertools.chain(
            [one.fit.initial[None]], staged_scores(one.fit, one.read(matrices, one.test))
        )
        judged = y[one.test], sample_weight[one.test]
        of_fold = [_log_losses(scores, judged[0]) @ judged[1] for scores in stages]
        # a fold that ran out of things to learn stays where it stopped
        losses += of_fold + of_fold[-1:] * (len(losses) - len(of_fold))
    return np.asarray(losses / sum(sample_weight[test].sum() for _, test in folds))


class Calibration(NamedTuple):
    """What `calibrate` found.

    Parameters
    ----------
    temperature : float
        What scores are divided by.
    name_weight : float
        What the votes of the classes' names are multiplied by.
    loss : float
        Mean log-loss of the rows with both.
    """

    temperature: float
    name_weight: float
    loss: float


def calibrate(
    scores: NDArray[np.float64],
    y: NDArray[np.intp],
    judged_weight: NDArray[np.float64],
    *,
    min_temperature: float = 0.5,
    expert_scores: NDArray[np.float64] | None = None,
    prior: tuple[float, float] = NAME_PRIOR,
) -> Calibration:
    """What to divide scores by, from rows that each fold didn't see, and what names are worth.

    A temperature alone changes probabilities and no label. Source: Guo et al., "On calibration of
    modern neural networks", ICML 2017, with cross-validation in place of a held-out set.

    What the names of the classes say is added, with the weight that goes along with the least loss;
    as few rows tell little of it, a penalty holds the weight near what it was on other data sets.

    Parameters
    ----------
    scores : float64 array of shape (n, n_classes)
        Of held-out rows.
    y : int array of shape (n,)
        Classes from 0.
    judged_weight : float array of shape (n,)
        What each row counts in the loss.
    min_temperature : float, default=0.5
        The lowest temperature; the highest is 50.
    expert_scores : float64 array of shape (n, n_classes), optional
        What the names say, of unit variance.
    prior : (float, float)
        The weight that the penalty holds to, and its curvature beside the summed loss.
    """
    from scipy.optimize import minimize

    size = float(scores.std()) or 1.0
    target = np.eye(scores.shape[1])[y]
    said = np.zeros_like(scores) if expert_scores is None else expert_scores
    total = judged_weight.sum()
    usual, strength = prior

    def objective(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixed = at[0] / size * scores + at[1] * said
        penalty = 0.0 if expert_scores is None else strength * (at[1] - usual)
        loss = _log_losses(mixed, y) @ judged_weight + penalty * (at[1] - usual) / 2
        wrong = (softmax(mixed) - target) * judged_weight[:, None]
        slopes = (wrong * scores).sum() / size, (wrong * said).sum() + penalty
        return float(loss / total), np.array(slopes) / total

    # the loss has one minimum, as it is convex in the two factors
    weights = (0.0, 0.0) if expert_scores is None else (0.0, _MOST_NAME_WEIGHT)
    found = minimize(
        objective,
        (min(size, size / min_temperature), 0.0 if expert_scores is None else usual),
        jac=True,
        bounds=[(size / _MOST_TEMPERATURE, size / min_temperature), weights],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    factor, weight = found.x[0] / size, float(found.x[1])
    share = judged_weight / total
    loss = float(_log_losses(factor * scores + weight * said, y) @ share)
    return Calibration(float(1 / factor), weight, loss)


@dataclass(frozen=True)
class FoldFit:
    """One part of the rows boosted on, the other held out.

    Parameters
    ----------
    train, test : int arrays
        Rows boosted on, and rows held out.
    scalings : list of Scaling
        One a prompt, of the rows boosted on.
    fit : LogitModel
        What was found on them.
    """

    train: NDArray[np.intp]
    test: NDArray[np.intp]
    scalings: list[Scaling]
    fit: LogitModel

    def read(self, matrices: Sequence[Matrix], rows: NDArray[np.intp]) -> list[Matrix]:
        """Some rows of each prompt's matrix, standardised as the rows boosted on were."""
        return [s.apply(matrix, rows) for s, matrix in zip(self.scalings, matrices, strict=True)]


def fit_folds(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    settings: Settings,
) -> Iterator[FoldFit]:
    """Boost on the training part of each fold, standardised by itself, one after the other.

    Parameters are as for `cross_validated_losses`.
    """
    for train, test in folds:
        scalings = [scaling_of(matrix, sample_weight[train], train) for matrix in matrices]
        seen = [scaling.apply(m, train) for scaling, m in zip(scalings, matrices, strict=True)]
        fit = fit_logit(seen, y[train], sample_weight[train], n_classes, settings)
        yield FoldFit(train, test, scalings, fit)


def held_out_contributions(
    fits: Sequence[FoldFit],
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    *,
    temperature: float = 1.0,
    names: NamePrior | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What prompts add to the scores of rows that they were not boosted on.

    Parameters
    ----------
    fits : sequence of FoldFit
        Each row is held out once.
    matrices, y, sample_weight
        As for `fit_folds`.
    temperature : float, default=1.0
        What is boosted is divided by it.
    names : NamePrior, optional
        What the names of the classes say, added to what each fold found; limits are wider by it.

    Returns
    -------
    initial : float64 array of shape (n, n_classes)
        Scores before the first prompt.
    contributions : float64 array of shape (P, n, n_classes)
        Within the limits that what was boosted has on each fold's training rows.
    """
    n_classes = len(fits[0].fit.initial)
    initial = np.zeros((len(y), n_classes))
    added = np.zeros((len(matrices), len(y), n_classes))
    widths = [matrix.shape[1] for matrix in matrices]
    for one in fits:
        boosted = scale_by_temperature(one.fit.learners, temperature)
        spoken = coefficients_of(boosted, widths, n_classes)
        seen = contributions(spoken, one.read(matrices, one.train))
        low, high = contribution_bounds(seen, y[one.train], sample_weight[one.train])
        if names:
            low, high = low + names.low, high + names.high
            spoken = coefficients_of([*names.learners, *boosted], widths, n_classes)
        unseen = contributions(spoken, one.read(matrices, one.test))
        initial[one.test] = one.fit.initial / temperature
        added[:, one.test] = clip_contributions(unseen, low, high)
    return initial, added


def held_out_scores(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Folds,
    settings: Settings,
) -> NDArray[np.float64]:
    """Scores of shape (n, n_classes), of each row from the folds that it was held out of.

    Parameters are as for `cross_validated_losses`; NaN for rows that no fold holds out.
    """
    scores = np.full((len(y), n_classes), np.nan)
    for one in fit_folds(matrices, y, sample_weight, n_classes, folds, settings):
        scores[one.test] = final_scores(one.fit, one.read(matrices, one.test))
    return scores


def _log_losses(scores: NDArray[np.float64], y: NDArray[np.intp]) -> NDArray[np.float64]:
    scores = np.broadcast_to(scores, (len(y), scores.shape[-1]))
    highest = scores.max(axis=1)
    total = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
    return np.asarray(total - scores[np.arange(len(y)), y])
