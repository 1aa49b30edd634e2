"""The `logit` algorithm: multinomial gradient boosting over soft verbalizers.

Scores F of each row and class start at the log-odds of the classes. Each round takes the next
prompt, correlates the standardised log-probabilities of its tokens with the residual
R = onehot(y) − softmax(F′), makes a verbalizer of the strongest tokens per class, and adds its
class scores with one scalar Newton step, shrunk by the learning rate. F′ mixes F with P times the
prompt's own contribution so far, by the share `Settings.own_share`. A share of 0 is plain boosting;
with 1 each prompt becomes a model of its own and their scores are added. In between, prompts
correct each other's errors without leaving all that is easy to the first of them.

After boosting, contributions are clipped to bounds (`blackbox.boosting.early_stopping`) and scores
are calibrated (`blackbox.boosting.calibration`).

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
_BLOCK = 512  # rows that are standardised at once
_STEP_RIDGE = 1.0  # as if one more row stood against every step
_MIN_CORRELATION = 1e-8  # a mean correlation under this is rounding


@dataclass(frozen=True)
class Scaling:
    """The standardisation of one prompt's matrix: (x − mean) / scale.

    Parameters
    ----------
    mean, scale : float32 array of shape (V,)
        Of the training rows.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def identity(cls, n_tokens: int) -> Scaling:
        """Return the scaling that changes nothing."""
        return cls(np.zeros(n_tokens, np.float32), np.ones(n_tokens, np.float32))

    def apply(self, matrix: Matrix, rows: NDArray[np.intp] | None = None) -> Matrix:
        """Return a matrix of shape (n, V), or some of its rows, standardised: float32."""
        n = len(matrix) if rows is None else len(rows)
        out = np.empty((n, matrix.shape[1]), np.float32)
        for start in range(0, n, _BLOCK):
            block = slice(start, min(start + _BLOCK, n))
            part = matrix[block] if rows is None else matrix[rows[block]]
            np.subtract(part, self.mean, out=out[block])
            np.divide(out[block], self.scale, out=out[block])
        return out


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of boosting.

    Parameters
    ----------
    n_estimators : int
        Rounds at most; fewer when no token correlates with the residual any more.
    learning_rate : float
        The factor of each Newton step.
    tokens_per_class : int
        Tokens per class in the verbalizer of one round.
    own_share : float, default=0.3
        The share of a prompt's own scores in its residual, in [0, 1].
    """

    n_estimators: int
    learning_rate: float
    tokens_per_class: int
    own_share: float = 0.3


@dataclass(frozen=True)
class LogitModel:
    """The learners and initial scores that `fit_logit` returns.

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
    """Return the scaling of a matrix: weighted mean and standard deviation of each column.

    Parameters
    ----------
    matrix : float32 array of shape (n, V)
        Log-probabilities.
    sample_weight : float64 array of shape (n,), or of the length of `rows`
        Weights of the rows.
    rows : int array, optional
        The rows to use; by default all.
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
        centred = part - mean
        variance += share[block] @ np.square(centred, out=centred)
    return Scaling(mean.astype(np.float32), (np.sqrt(variance) + _SCALE_OFFSET).astype(np.float32))


def fit_logit(
    standardised: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    settings: Settings,
) -> LogitModel:
    """Boost, and return the learners.

    Parameters
    ----------
    standardised : sequence of float32 arrays of shape (n, V_p)
        One matrix per prompt, standardised.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights; a weight of 2 is a row that occurs twice.
    n_classes : int
        Number of classes.
    settings : Settings
        Hyperparameters.
    """
    totals = np.bincount(y, weights=sample_weight, minlength=n_classes)
    initial = np.log(np.maximum(totals, 1e-9) / totals.sum())
    target = np.eye(n_classes)[y]
    by_prompt = np.zeros((len(standardised), len(y), n_classes))
    together = np.zeros((len(y), n_classes))
    learners: list[WeakLearner] = []
    idle = 0
    for number in range(settings.n_estimators):
        prompt = number % len(standardised)
        share = settings.own_share
        alone = len(standardised) * by_prompt[prompt]
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
        verbalizer, scores, newton_step = learner
        # F′ moves by this factor more than the prompt's own scores
        step = settings.learning_rate * newton_step / (1 - share + share * len(standardised))
        learners.append(WeakLearner(prompt, *verbalizer, step))
        by_prompt[prompt] += step * scores
        together += step * scores
    return LogitModel(learners, initial)


def _round(
    prompt: int,
    matrix: Matrix,
    target: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    tokens_per_class: int,
) -> tuple[tuple[NDArray[np.intp], NDArray[np.float32]], NDArray[np.float64], float] | None:
    """Return a verbalizer, its class scores and its Newton step.

    None if no token of the prompt correlates with the residual.
    """
    residual = (target - probabilities) * sample_weight[:, None]
    correlation = residual.T.astype(np.float32) @ matrix
    if not correlation.size or np.abs(correlation).max() <= _MIN_CORRELATION * sample_weight.sum():
        return None
    columns, weights = correlated_tokens(correlation, tokens_per_class)
    scores = class_scores(WeakLearner(prompt, columns, weights, 1.0), matrix)
    slope = float((residual * scores).sum())
    # the variance of the scores under the probabilities of each row
    spread = scores - (probabilities * scores).sum(axis=1, keepdims=True)
    curvature = float((probabilities * spread**2).sum(axis=1) @ sample_weight)
    return (columns, weights), scores, slope / (curvature + _STEP_RIDGE)


def class_scores(learner: WeakLearner, standardised: Matrix) -> NDArray[np.float64]:
    """Return the weighted sum of each class's tokens, without the weight of the learner.

    Parameters
    ----------
    learner : WeakLearner
        Any.
    standardised : float32 array of shape (n, V)
        The matrix of its prompt.

    Returns
    -------
    float64 array of shape (n, n_classes)
    """
    n_classes, m = learner.columns.shape
    coefficients = np.zeros((standardised.shape[1], n_classes), np.float32)
    classes = np.repeat(np.arange(n_classes), m)
    np.add.at(coefficients, (learner.columns.ravel(), classes), learner.token_weights.ravel())
    return np.asarray(standardised @ coefficients, np.float64)


def coefficients_of(
    learners: Sequence[WeakLearner], widths: Sequence[int], n_classes: int
) -> list[NDArray[np.float64]]:
    """Return the sum of each prompt's learners, which are linear in its tokens.

    Parameters
    ----------
    learners : sequence of WeakLearner
        Over P prompts.
    widths : sequence of P int
        Number of tokens V_p per prompt.
    n_classes : int
        Number of classes.

    Returns
    -------
    list of P float64 arrays of shape (V_p, n_classes)
        Their rows sum to 0: a constant over the classes decides nothing.
    """
    coefficients = [np.zeros((width, n_classes)) for width in widths]
    for learner in learners:
        classes = np.repeat(np.arange(n_classes), learner.columns.shape[1])
        weights = learner.token_weights.ravel() * learner.weight
        np.add.at(coefficients[learner.prompt], (learner.columns.ravel(), classes), weights)
    return [one - one.mean(axis=1, keepdims=True) for one in coefficients]


def contributions(
    coefficients: Sequence[NDArray[np.float64]], standardised: Sequence[Matrix]
) -> NDArray[np.float64]:
    """Return what each prompt adds to the scores, not clipped: (P, n, n_classes).

    Parameters
    ----------
    coefficients : sequence of P arrays of shape (V_p, n_classes)
        As from `coefficients_of`.
    standardised : sequence of P float32 arrays of shape (n, V_p)
        One matrix per prompt.
    """
    return np.stack([m @ linear for linear, m in zip(coefficients, standardised, strict=True)])


def final_scores(fit: LogitModel, standardised: Sequence[Matrix]) -> NDArray[np.float64]:
    """Return the scores after all rounds, not clipped: (n, n_classes)."""
    widths = [matrix.shape[1] for matrix in standardised]
    coefficients = coefficients_of(fit.learners, widths, len(fit.initial))
    return np.asarray(fit.initial + contributions(coefficients, standardised).sum(axis=0))


def staged_scores(fit: LogitModel, standardised: Sequence[Matrix]) -> Iterator[NDArray[np.float64]]:
    """Yield the scores after each round: one array (n, n_classes), changed in place."""
    scores = np.tile(fit.initial, (len(standardised[0]) if standardised else 0, 1))
    for learner in fit.learners:
        scores += learner.weight * class_scores(learner, standardised[learner.prompt])
        yield scores


def scale_by_temperature(learners: Sequence[WeakLearner], temperature: float) -> list[WeakLearner]:
    """Return the learners with their weights divided by the temperature."""
    return [replace(learner, weight=learner.weight / temperature) for learner in learners]
