"""Held-out rows of `logit`: their calibration together with experts, and their scores after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.calibration import (
    NAME_PRIOR,
    SCORE_PRIOR,
    Calibration,
    FoldFit,
    calibrate,
    held_out_contributions,
)
from blackbox.boosting.expert_selection import select_experts
from blackbox.boosting.label_words import NamePrior
from blackbox.boosting.weak_learner import softmax
from blackbox.experts.base import ExpertScores

__all__ = ["HeldOut", "calibrate_held_out"]


@dataclass(frozen=True)
class HeldOut:
    """The calibration of n held-out rows, and their calibrated scores.

    Parameters
    ----------
    temperature : float
        The divisor of the boosted scores.
    name_weight : float
        The weight of the class-name prior.
    expert_weights : dict of str to float
        The weights of the other experts that stay.
    loss : float
        Mean log-loss.
    rows : int array of shape (n,)
        The rows among all training rows, in ascending order.
    initial : float64 array of shape (n, n_classes)
        Scores before the first prompt, experts included whose scores are known by then.
    contributions : float64 array of shape (P, n, n_classes)
        What each prompt adds; where folds chose their own prompts, the one in its place.
    late : float64 array of shape (n, n_classes)
        What experts that read the answers to prompts add.
    """

    temperature: float
    name_weight: float
    expert_weights: dict[str, float]
    loss: float
    rows: NDArray[np.intp]
    initial: NDArray[np.float64]
    contributions: NDArray[np.float64]
    late: NDArray[np.float64]

    def probabilities(self) -> NDArray[np.float64]:
        """Return the calibrated class probabilities of the rows: (n, n_classes)."""
        return softmax(self.initial + self.contributions.sum(axis=0) + self.late)


def calibrate_held_out(
    fits: Sequence[FoldFit],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    calibration_weight: NDArray[np.float64],
    *,
    min_temperature: float,
    priors: Sequence[NamePrior],
    experts: Sequence[ExpertScores] = (),
    groups: NDArray[np.intp] | None = None,
) -> HeldOut:
    """Fit the temperature, the weight of the class-name prior, and those of other experts.

    Parameters
    ----------
    fits, y, sample_weight
        As for `blackbox.boosting.calibration.held_out_contributions`. The folds of `fits` needn't
        hold out every row; calibration is on those that they do.
    calibration_weight : float64 array of shape (n,)
        Weights of the rows in the loss; see `blackbox.boosting.training.boost`.
    min_temperature : float
        The lowest temperature.
    priors : sequence of NamePrior
        The class-name prior under the prompts of each fold.
    experts : sequence of ExpertScores, default=()
        Other experts, of which those stay that lower the loss clearly.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    """
    rows = np.sort(np.concatenate([fold.test for fold in fits]))
    labels, loss_weight = y[rows], calibration_weight[rows]
    experts = [replace(expert, scores=expert.scores[rows]) for expert in experts]
    initial, added = held_out_contributions(fits, y, sample_weight)
    initial, added = initial[rows], added[:, rows]
    scores = initial + added.sum(axis=0)
    votes = _votes(fits, priors, rows)
    names = [] if votes is None else [ExpertScores("names", votes, *NAME_PRIOR)]
    kept = select_experts(
        scores,
        labels,
        loss_weight,
        names,
        experts,
        min_temperature=min_temperature,
        groups=None if groups is None else groups[rows],
    )
    first = calibrate(
        scores,
        labels,
        loss_weight,
        min_temperature=min_temperature,
        experts=[*names, *kept],
    )
    name_weight = first.weights[0] if names else 0.0
    weights = first.weights[len(names) :]
    offset, late = np.zeros((2, *scores.shape))
    for expert, weight in zip(kept, weights, strict=True):
        added_by = late if expert.reads_answers else offset
        added_by += weight * expert.scores
    if name_weight:
        weighed = {id(prior): prior.scaled(name_weight) for prior in priors}
        initial, added = held_out_contributions(
            fits,
            y,
            sample_weight,
            temperature=first.temperature,
            priors=[weighed[id(prior)] for prior in priors],
        )
        initial, added = initial[rows], added[:, rows]
        # clipped together, the two are not quite what was calibrated apart
        clipped = initial + offset + late + added.sum(axis=0)
        second = calibrate(
            clipped,
            labels,
            loss_weight,
            min_temperature=min_temperature / first.temperature,
            prior=(float(clipped.std()), SCORE_PRIOR[1]),
        )
    else:
        initial, added = initial / first.temperature, added / first.temperature
        second = Calibration(1.0, (), first.loss)
    by_name = {e.name: weight for e, weight in zip(kept, weights, strict=True) if weight}
    return HeldOut(
        first.temperature * second.temperature,
        name_weight / second.temperature,
        {name: weight / second.temperature for name, weight in by_name.items()},
        second.loss,
        rows,
        (initial + offset) / second.temperature,
        added / second.temperature,
        late / second.temperature,
    )


def _votes(
    fits: Sequence[FoldFit], priors: Sequence[NamePrior], rows: NDArray[np.intp]
) -> NDArray[np.float64] | None:
    """Return what each fold's names say of the rows that it holds out; None where all say none."""
    spoken = [prior.votes for prior in priors if prior.votes is not None]
    if not spoken:
        return None
    votes = np.zeros_like(spoken[0])
    for fold, prior in zip(fits, priors, strict=True):
        if prior.votes is not None:
            votes[fold.test] = prior.votes[fold.test]
    return votes[rows]
