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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.verbalizers import correlated_tokens
from blackbox.boosting.weak_learner import WeakLearner, softmax

__all__ = [
    "BoostedRows",
    "LogitModel",
    "Scaling",
    "Settings",
    "class_scores",
    "coefficients_of",
    "contributions",
    "final_scores",
    "fit_logit",
    "fit_together",
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
        self._write(out, matrix, rows)
        return out

    def apply_by_token(self, matrix: Matrix, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return some rows of a matrix standardised, with a row for each token: (V, n)."""
        out = np.empty((matrix.shape[1], len(rows)), np.float32)
        self._write(out.T, matrix, rows)
        return out

    def _write(self, out: Matrix, matrix: Matrix, rows: NDArray[np.intp] | None) -> None:
        for start in range(0, len(out), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(out)))
            part = matrix[block] if rows is None else matrix[rows[block]]
            centred = part - self.mean
            np.divide(centred, self.scale, out=out[block])


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


class BoostedRows(NamedTuple):
    """Rows to boost on.

    Parameters
    ----------
    by_token : sequence of float32 arrays of shape (V_p, n)
        One matrix per prompt, standardised, with a row for each token.
    y, sample_weight : arrays of shape (n,)
        As for `fit_logit`.
    """

    by_token: Sequence[NDArray[np.float32]]
    y: NDArray[np.intp]
    sample_weight: NDArray[np.float64]


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
    by_token = [np.ascontiguousarray(matrix.T) for matrix in standardised]
    return fit_together([BoostedRows(by_token, y, sample_weight)], n_classes, settings)[0]


def fit_together(
    parts: Sequence[BoostedRows], n_classes: int, settings: Settings
) -> list[LogitModel]:
    """Boost on several sets of rows, all of them in each round.

    With few rows most of a round is the overhead of array operations, which the sets then share.
    The models are to the last bit those of `fit_logit`: no sum or product goes across sets.

    Parameters
    ----------
    parts : sequence of BoostedRows
        The sets, with the same tokens for each prompt.
    n_classes, settings
        As for `fit_logit`.
    """
    # a row for each class: sums over classes and products with tokens then read memory in order
    sizes = [len(part.y) for part in parts]
    spans = [slice(stop - n, stop) for n, stop in zip(sizes, np.cumsum(sizes), strict=True)]
    sample_weight = np.concatenate([part.sample_weight for part in parts])
    totals = [np.bincount(one.y, one.sample_weight, n_classes) for one in parts]
    initials = [np.log(np.maximum(one, 1e-9) / one.sum()) for one in totals]
    initial = np.repeat(np.transpose(initials), sizes, axis=1)
    target = np.eye(n_classes)[:, np.concatenate([part.y for part in parts])]
    n_prompts, share = len(parts[0].by_token), settings.own_share
    by_prompt = np.zeros((n_prompts, *target.shape))
    together = np.zeros(target.shape)
    learners: list[list[WeakLearner]] = [[] for _ in parts]
    idle = np.zeros(len(parts), int)
    for number in range(settings.n_estimators):
        prompt = number % n_prompts
        mixed = initial + (1 - share) * together + share * n_prompts * by_prompt[prompt]
        found = _round(
            [part.by_token[prompt] for part in parts],
            spans,
            target,
            softmax(mixed, axis=0),
            sample_weight,
            settings.tokens_per_class,
        )
        # a set of which no prompt had a token for is finished
        found.steps[idle >= n_prompts] = 0.0
        idle = np.where(found.steps != 0.0, 0, idle + 1)
        if (idle >= n_prompts).all():
            break
        # F′ moves by this factor more than the prompt's own scores
        steps = settings.learning_rate * found.steps / (1 - share + share * n_prompts)
        for part in np.flatnonzero(found.steps):
            learners[part].append(
                WeakLearner(prompt, found.columns[part], found.weights[part], float(steps[part]))
            )
        moved = np.repeat(steps, sizes) * found.scores
        by_prompt[prompt] += moved
        together += moved
    return [LogitModel(some, start) for some, start in zip(learners, initials, strict=True)]


class _Round(NamedTuple):
    """What a round adds to each of S sets of rows.

    Parameters
    ----------
    columns, weights : arrays of shape (S, n_classes, tokens_per_class)
        Verbalizers.
    scores : float64 array of shape (n_classes, n)
        Their class scores, of the rows of all sets.
    steps : float64 array of shape (S,)
        Newton steps; 0 where no token of the prompt correlates with the residual.
    """

    columns: NDArray[np.intp]
    weights: NDArray[np.float32]
    scores: NDArray[np.float64]
    steps: NDArray[np.float64]


def _round(
    by_token: Sequence[NDArray[np.float32]],
    spans: Sequence[slice],
    target: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    tokens_per_class: int,
) -> _Round:
    """Find a verbalizer for each set of rows, and its Newton step."""
    n_sets, n_classes, n_tokens = len(spans), len(target), len(by_token[0])
    shape = n_sets, n_classes, tokens_per_class
    if not n_tokens:
        columns = np.zeros(shape, np.intp)
        return _Round(columns, columns.astype(np.float32), np.zeros(target.shape), np.zeros(n_sets))
    residual = (target - probabilities) * sample_weight
    by_row = np.ascontiguousarray(residual.T, np.float32)
    correlation = np.empty((n_sets, n_classes, n_tokens), np.float32)
    for one, rows, matrix in zip(correlation, spans, by_token, strict=True):
        one[:] = (matrix @ by_row[rows]).T
    flat_columns, flat_weights = correlated_tokens(
        correlation.reshape(-1, n_tokens), tokens_per_class
    )
    columns, weights = flat_columns.reshape(shape), flat_weights.reshape(shape)
    scores = np.empty(target.shape)
    for number, (rows, matrix) in enumerate(zip(spans, by_token, strict=True)):
        # the products of a few tokens: most columns have no weight
        scores[:, rows] = np.matmul(weights[number][:, None], matrix[columns[number]])[:, 0]
    slopes = (residual * scores).sum(axis=0)
    # the variance of the scores under the probabilities of each row
    spread = scores - (probabilities * scores).sum(axis=0)
    variance = (probabilities * spread**2).sum(axis=0)
    steps = np.zeros(n_sets)
    strongest = np.abs(correlation).max(axis=(1, 2))
    for number, rows in enumerate(spans):
        weight = sample_weight[rows]
        if strongest[number] > _MIN_CORRELATION * weight.sum():
            curvature = float(variance[rows] @ weight)
            steps[number] = float(slopes[rows].sum()) / (curvature + _STEP_RIDGE)
    return _Round(columns, weights, scores, steps)


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
    cells: list[list[NDArray[np.intp]]] = [[] for _ in widths]
    weights: list[list[NDArray[np.float32]]] = [[] for _ in widths]
    classes = np.arange(n_classes)[:, None]
    for learner in learners:
        cells[learner.prompt].append((learner.columns * n_classes + classes).ravel())
        weights[learner.prompt].append((learner.token_weights * learner.weight).ravel())
    coefficients = []
    for width, some, theirs in zip(widths, cells, weights, strict=True):
        # in the order of the learners, as `np.add.at` would, and several times as fast
        summed = np.zeros(width * n_classes)
        if some:
            summed = np.bincount(np.concatenate(some), np.concatenate(theirs), len(summed))
        one = summed.reshape(width, n_classes)
        coefficients.append(one - one.mean(axis=1, keepdims=True))
    return coefficients


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


def staged_scores(fit: LogitModel, standardised: Sequence[Matrix]) -> NDArray[np.float64]:
    """Return the scores before the first round and after each: (rounds + 1, n, n_classes)."""
    n = len(standardised[0]) if standardised else 0
    added = np.empty((1 + len(fit.learners), n, len(fit.initial)))
    added[0] = fit.initial
    for place, learner in enumerate(fit.learners, 1):
        added[place] = learner.weight * class_scores(learner, standardised[learner.prompt])
    return np.cumsum(added, axis=0, out=added)


def scale_by_temperature(learners: Sequence[WeakLearner], temperature: float) -> list[WeakLearner]:
    """Return the learners with their weights divided by the temperature."""
    return [
        WeakLearner(one.prompt, one.columns, one.token_weights, one.weight / temperature)
        for one in learners
    ]
