"""The `logit` algorithm: multinomial gradient boosting over soft verbalizers.

Scores F of each row and class begin at the log-odds of the classes. Each round takes the next
prompt, looks for the tokens whose standardised log-probabilities go along with what is
still wrong (the residual R = onehot(y) − softmax(F′)), lets the strongest of them speak for each
class, and adds that with one scalar Newton step, shrunk by the learning rate. F′ is F for the most
part; for the rest (`Settings.own_share`) it is what the prompt has said by itself so far, as if all
P prompts had said the same. With a share of 0 that is plain boosting, with 1 each prompt becomes a
model of its own and their scores are added. In between, prompts correct each other's errors without
leaving all that is easy to the first of them.

What a prompt adds is limited in the end, and the scores are calibrated
(`blackbox.boosting.calibration`).

Sources: Friedman, "Greedy function approximation: a gradient boosting machine" (2001); Friedman,
Hastie and Tibshirani, "Additive logistic regression: a statistical view of boosting" (2000).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.verbalizers import correlated_tokens
from blackbox.boosting.weak_learner import WeakLearner, softmax

__all__ = [
    "LogitModel",
    "Scaling",
    "Settings",
    "class_scores",
    "coefficients_of",
    "contributions",
    "final_scores",
    "fit_logit",
    "scale_by_temperature",
    "scaling_of",
    "staged_scores",
]

_SCALE_OFFSET = 0.6  # keeps tokens that hardly vary from being blown up
_BLOCK = 4096  # rows that are standardised at once
_STEP_RIDGE = 1.0  # as if one more row stood against every step
_NOTHING = 1e-8  # a mean correlation under this is rounding


@dataclass(frozen=True)
class Scaling:
    """How one prompt's matrix is standardised: (x − mean) / scale.

    Parameters
    ----------
    mean, scale : float32 array of shape (V,)
        Of the training rows.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    def apply(self, matrix: Matrix, rows: NDArray[np.intp] | None = None) -> Matrix:
        """Standardise a matrix of shape (n, V), or some of its rows."""
        n = len(matrix) if rows is None else len(rows)
        out = np.empty((n, matrix.shape[1]), np.float32)
        for start in range(0, n, _BLOCK):
            block = slice(start, min(start + _BLOCK, n))
            part = matrix[block] if rows is None else matrix[rows[block]]
            out[block] = (part - self.mean) / self.scale
        return out


@dataclass(frozen=True)
class Settings:
    """How to boost.

    Parameters
    ----------
    n_estimators : int
        Rounds at most; fewer when no token correlates with the residual any more.
    learning_rate : float
        Of the Newton step that each round makes.
    tokens_per_class : int
        Tokens that speak for a class in one round.
    own_share : float, default=0.3
        How much of the errors that a prompt looks at are its own, in [0, 1].
    """

    n_estimators: int
    learning_rate: float
    tokens_per_class: int
    own_share: float = 0.3


@dataclass(frozen=True)
class LogitModel:
    """What `fit_logit` found.

    Parameters
    ----------
    learners : list of WeakLearner
        In the order of the rounds.
    initial : float64 array of shape (n_classes,)
        Scores before the first round.
    """

    learners: list[WeakLearner]
    initial: NDArray[np.float64]


def scaling_of(
    matrix: Matrix, sample_weight: NDArray[np.float64], rows: NDArray[np.intp] | None = None
) -> Scaling:
    """Weighted mean and standard deviation of each column of a matrix of shape (n, V).

    Of some rows, where they are given: `sample_weight` is of those.
    """
    share = sample_weight / sample_weight.sum()
    # in blocks, so that no copy in double precision is as large as the matrix
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(share), _BLOCK)]
    mean, variance = (np.zeros(matrix.shape[1]) for _ in range(2))
    for block in blocks:
        part = matrix[block] if rows is None else matrix[rows[block]]
        mean += share[block] @ part.astype(np.float64)
    for block in blocks:
        part = matrix[block] if rows is None else matrix[rows[block]]
        variance += share[block] @ (part - mean) ** 2
    return Scaling(mean.astype(np.float32), (np.sqrt(variance) + _SCALE_OFFSET).astype(np.float32))


def fit_logit(
    standardised: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    settings: Settings,
) -> LogitModel:
    """Boost.

    Parameters
    ----------
    standardised : sequence of float32 arrays of shape (n, V_p)
        One matrix a prompt, standardised.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights; a weight of 2 is a row that stands twice.
    n_classes : int
        Number of classes.
    settings : Settings
        How to boost.
    """
    totals = np.bincount(y, weights=sample_weight, minlength=n_classes)
    initial = np.log(np.maximum(totals, 1e-9) / totals.sum())
    target = np.eye(n_classes)[y]
    said = np.zeros((len(standardised), len(y), n_classes))
    together = np.zeros((len(y), n_classes))
    learners: list[WeakLearner] = []
    idle = 0
    for number in range(settings.n_estimators):
        prompt = number % len(standardised)
        share = settings.own_share
        alone = len(standardised) * said[prompt]
        probabilities = softmax(initial + (1 - share) * together + share * alone)
        learner = _round(
            prompt,
            standardised[prompt],
            target,
            probabilities,
            sample_weight,
            settings.tokens_per_class,
        )
        if learner is None:
            idle += 1
            if idle == len(standardised):
                break
            continue
        idle = 0
        votes, spoken, weight = learner
        # the scores that the prompt looks at move by so much more than its own
        step = settings.learning_rate * weight / (1 - share + share * len(standardised))
        learners.append(WeakLearner(prompt, votes[0], votes[1], step))
        said[prompt] += step * spoken
        together += step * spoken
    return LogitModel(learners, initial)


def _round(
    prompt: int,
    matrix: Matrix,
    target: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    tokens_per_class: int,
) -> tuple[tuple[NDArray[np.intp], NDArray[np.float32]], NDArray[np.float64], float] | None:
    """One verbalizer, what it says of each row and class, and its Newton step.

    None when nothing is left to learn from a prompt.
    """
    residual = (target - probabilities) * sample_weight[:, None]
    correlation = residual.T.astype(np.float32) @ matrix
    if not correlation.size or np.abs(correlation).max() <= _NOTHING * sample_weight.sum():
        return None
    columns, weights = correlated_tokens(correlation, tokens_per_class)
    votes = class_scores(WeakLearner(prompt, columns, weights, 1.0), matrix)
    slope = float((residual * votes).sum())
    spread = probabilities * (1 - probabilities) * sample_weight[:, None]
    return (columns, weights), votes, slope / (float((spread * votes**2).sum()) + _STEP_RIDGE)


def class_scores(learner: WeakLearner, standardised: Matrix) -> NDArray[np.float64]:
    """What one learner says before its weight: the weighted sum of each class's tokens.

    Returns a float64 array of shape (n, n_classes).
    """
    n_classes, m = learner.columns.shape
    spoken = np.zeros((standardised.shape[1], n_classes), np.float32)
    classes = np.repeat(np.arange(n_classes), m)
    np.add.at(spoken, (learner.columns.ravel(), classes), learner.token_weights.ravel())
    return np.asarray(standardised @ spoken, np.float64)


def coefficients_of(
    learners: Sequence[WeakLearner], widths: Sequence[int], n_classes: int
) -> list[NDArray[np.float64]]:
    """All learners of a prompt in one: they are linear in its tokens.

    Returns for each prompt a float64 array of shape (V_p, n_classes) whose rows sum to 0: what all
    classes get alike decides nothing.
    """
    found = [np.zeros((width, n_classes)) for width in widths]
    for learner in learners:
        classes = np.repeat(np.arange(n_classes), learner.columns.shape[1])
        weights = learner.token_weights.ravel() * learner.weight
        np.add.at(found[learner.prompt], (learner.columns.ravel(), classes), weights)
    return [one - one.mean(axis=1, keepdims=True) for one in found]


def contributions(
    coefficients: Sequence[NDArray[np.float64]], standardised: Sequence[Matrix]
) -> NDArray[np.float64]:
    """What each prompt adds to the scores, without limits: (P, n, n_classes)."""
    return np.stack([m @ spoken for spoken, m in zip(coefficients, standardised, strict=True)])


def final_scores(fit: LogitModel, standardised: Sequence[Matrix]) -> NDArray[np.float64]:
    """Scores of shape (n, n_classes) after all rounds, without limits."""
    widths = [matrix.shape[1] for matrix in standardised]
    spoken = coefficients_of(fit.learners, widths, len(fit.initial))
    return np.asarray(fit.initial + contributions(spoken, standardised).sum(axis=0))


def staged_scores(fit: LogitModel, standardised: Sequence[Matrix]) -> Iterator[NDArray[np.float64]]:
    """Scores of shape (n, n_classes) after each round; the same array, changed in place."""
    scores = np.tile(fit.initial, (len(standardised[0]) if standardised else 0, 1))
    for learner in fit.learners:
        scores += learner.weight * class_scores(learner, standardised[learner.prompt])
        yield scores


def scale_by_temperature(learners: Sequence[WeakLearner], temperature: float) -> list[WeakLearner]:
    """The same learners, their weights divided by the temperature."""
    return [replace(learner, weight=learner.weight / temperature) for learner in learners]
