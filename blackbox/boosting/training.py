"""Training: the step of `fit` from forward passes to an ensemble. It sees training rows only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.boosting.base import Algorithm
from blackbox.boosting.ensemble import Ensemble
from blackbox.boosting.prompt_choice import PromptChoice
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.experts.base import ExpertInput

__all__ = ["HeldOutPredictions", "TrainingOptions", "TrainingResult", "boost", "top_k_coverage"]

_BLOCK = 1024  # rows in double precision at a time


@dataclass(frozen=True)
class TrainingOptions:
    """The estimator's parameters that boosting needs; see `PromptBoostingClassifier`."""

    algorithm: Algorithm
    n_classes: int
    n_estimators: int | None
    learning_rate: float
    tokens_per_class: int
    cv: int | None
    validation_fraction: float
    min_token_share: float
    label_words: Sequence[Sequence[str]] = ()

    def rounds(self, weight: float) -> int:
        """Return how many rounds to boost, for training rows of this summed weight."""
        return self.n_estimators or self.algorithm.default_n_estimators(weight, self.n_classes)


@dataclass(frozen=True)
class HeldOutPredictions:
    """Predictions for n training rows by models that were boosted on others.

    Parameters
    ----------
    folds : sequence of (int array, int array)
        Rows boosted on, and rows held out.
    rows : int array of shape (n,)
        The rows that the folds hold out, in ascending order.
    probabilities : float64 array of shape (n, n_classes)
        Their class probabilities.
    """

    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
    rows: NDArray[np.intp]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True)
class TrainingResult:
    """A trained ensemble, and a summary of the training.

    Parameters
    ----------
    ensemble : Ensemble
        The ensemble, over the prompts that it reads.
    prompts : list of int
        Those prompts, by their numbers in the answers.
    coverage : float
        The `top_k_coverage` of the answers.
    summary : dict
        Rounds and losses, as JSON data.
    held_out : HeldOutPredictions or None
        Predictions for held-out rows; None where none were held out.
    """

    ensemble: Ensemble
    prompts: list[int]
    coverage: float
    summary: dict[str, Any]
    held_out: HeldOutPredictions | None = None


def boost(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    options: TrainingOptions,
    rng: np.random.Generator,
    calibration_weight: NDArray[np.float64] | None = None,
    groups: NDArray[np.intp] | None = None,
    experts: Sequence[ExpertInput] = (),
    unlabelled: Answers | None = None,
    choice: PromptChoice | None = None,
) -> TrainingResult:
    """Train an ensemble on the answers to training rows.

    Parameters
    ----------
    answers : Answers
        Of n rows under P prompts, all answered.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    options : TrainingOptions
        The algorithm and its parameters.
    rng : numpy Generator
        For folds, and whatever else an algorithm draws.
    calibration_weight : float array of shape (n,), optional
        The weight of each row in calibration, for algorithms that calibrate; by default
        `sample_weight`. Give it where some of the rows were used to choose the prompts, and so
        look too good: probabilities are then made no surer than boosting made them.
    groups : int array of shape (n,), optional
        The groups of the rows; see `blackbox.boosting.splits`.
    experts : sequence of ExpertInput, default=()
        Experts to consider beside the prompts, with their evidence of the rows; for algorithms
        that use experts, where rows can be held out.
    unlabelled : Answers, optional
        Of texts without labels, which tell algorithms that use label words what the LM says anyway.
    choice : PromptChoice, optional
        How the prompts were chosen by these rows, for algorithms that calibrate: each fold then
        chooses anew, and held-out rows are honest about the choice too.

    Raises
    ------
    ValueError
        If there is nothing to learn from the answers.
    """
    with one_blas_thread():
        return options.algorithm.fit(
            answers,
            y,
            sample_weight,
            options,
            rng,
            calibration_weight,
            groups,
            experts,
            unlabelled,
            choice,
        )


def top_k_coverage(log_probs: NDArray[np.float32]) -> float:
    """Return the mean probability mass of the top k tokens.

    Parameters
    ----------
    log_probs : float32 array of shape (P, n, k)
        Of all answers; never copied in double precision as a whole.
    """
    n_rows = log_probs.shape[1]
    mass = np.empty((len(log_probs), n_rows))
    for start in range(0, n_rows, _BLOCK):
        block = log_probs[:, start : start + _BLOCK].astype(np.float64)
        mass[:, start : start + _BLOCK] = np.exp(block).sum(axis=2)
    return float(mass.mean())
