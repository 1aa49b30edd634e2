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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.verbalizers import correlated_tokens
from blackbox.boosting.weak_learner import WeakLearner, softmax

__all__ = [
    "BoostedSet",
    "LogitModel",
    "Scaling",
    "Settings",
    "class_scores",
    "coefficients_of",
    "contributions",
    "fit_logit",
    "fit_together",
    "scale_by_temperature",
    "scaling_of",
    "staged_scores",
]

_SCALE_OFFSET = 0.6  # keeps tokens that hardly vary from being blown up
_BLOCK = 512  # rows that are standardised at once
_STEP_RIDGE = 1.0  # as if one more row stood against every step
_UNSEEN = 1.0  # rows as which a class without any counts, so that it isn't impossible
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

    def apply_by_token(self, matrix: Matrix) -> NDArray[np.float32]:
        """Return a matrix standardised, with a row for each token: (V, n)."""
        out = np.empty(matrix.shape[::-1], np.float32)
        self._write(out.T, matrix, None)
        return out

    def after(self, first: Scaling) -> Scaling:
        """Return the scaling that is left to do where `first` was applied."""
        return Scaling((self.mean - first.mean) / first.scale, self.scale / first.scale)

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

    def read(block: slice) -> NDArray[np.float64]:
        part = matrix[block] if rows is None else matrix[rows[block]]
        return part.astype(np.float64)

    mean, variance = (np.zeros(matrix.shape[1]) for _ in range(2))
    for block in blocks:
        part = read(block)
        mean += share[block] @ part
    for block in blocks:
        if len(blocks) > 1:  # or else it is still there
            part = read(block)
        part -= mean
        variance += share[block] @ np.square(part, out=part)
    return Scaling(mean.astype(np.float32), (np.sqrt(variance) + _SCALE_OFFSET).astype(np.float32))


class BoostedSet(NamedTuple):
    """The result of boosting on a set of the rows.

    Parameters
    ----------
    model : LogitModel
        The learners.
    contributions : float64 array of shape (P, n, n_classes)
        What each prompt adds to the scores of all rows, also those outside the set; not clipped.
        They sum to 0 over the classes.
    """

    model: LogitModel
    contributions: NDArray[np.float64]


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
    scalings = [Scaling.identity(len(matrix)) for matrix in by_token]
    (found,) = fit_together(by_token, y, sample_weight[None], [scalings], n_classes, settings)
    return found.model


def fit_together(
    by_token: Sequence[NDArray[np.float32]],
    y: NDArray[np.intp],
    weights: NDArray[np.float64],
    scalings: Sequence[Sequence[Scaling]],
    n_classes: int,
    settings: Settings,
) -> list[BoostedSet]:
    """Boost on S sets of the same rows, such as the training parts of folds, all in each round.

    A class without a row in a set gets the score 0 from each learner, which is that of the others
    for a text that speaks neither for nor against them, and the initial score of a class with a
    single row.

    A round reads a prompt's matrix once for all sets, which share the overhead of its array
    operations. No set learns from another: each model is that of `fit_logit` but for rounding.

    Parameters
    ----------
    by_token : sequence of P float32 arrays of shape (V_p, n)
        One matrix per prompt, standardised by all rows, with a row for each token.
    y : int array of shape (n,)
        Classes from 0.
    weights : float64 array of shape (S, n)
        The weights of the rows in each set; 0 for rows outside it.
    scalings : sequence of S sequences of P Scaling
        What then standardises each matrix by the rows of each set; see `Scaling.after`.
    n_classes, settings
        As for `fit_logit`.
    """
    n_sets, n_prompts, share = len(weights), len(by_token), settings.own_share
    lines = [_Lines.of([of_set[prompt] for of_set in scalings]) for prompt in range(n_prompts)]
    totals = np.stack([np.bincount(y, one, n_classes) for one in weights])
    seen = totals > 0
    initial = np.log(np.maximum(totals, 1e-9) / totals.sum(axis=1, keepdims=True))
    # a row for each class: sums over classes and products with tokens then read memory in order
    target = np.eye(n_classes)[:, y]
    by_prompt = np.zeros((n_prompts, n_sets, *target.shape))
    together = np.zeros((n_sets, *target.shape))
    learners: list[list[WeakLearner]] = [[] for _ in weights]
    idle = np.zeros(n_sets, int)
    for number in range(settings.n_estimators):
        prompt = number % n_prompts
        mixed = (1 - share) * together + share * n_prompts * by_prompt[prompt]
        found = _round(
            by_token[prompt],
            lines[prompt],
            target,
            softmax(initial[:, :, None] + mixed, axis=1),
            weights,
            seen,
            settings.tokens_per_class,
        )
        # a set of which no prompt had a token for is finished
        found.steps[idle >= n_prompts] = 0.0
        idle = np.where(found.steps != 0.0, 0, idle + 1)
        if (idle >= n_prompts).all():
            break
        # F′ moves by this factor more than the prompt's own scores
        steps = settings.learning_rate * found.steps / (1 - share + share * n_prompts)
        for one in np.flatnonzero(found.steps):
            learners[one].append(
                WeakLearner(prompt, found.columns[one], found.weights[one], float(steps[one]))
            )
        moved = steps[:, None, None] * found.scores
        by_prompt[prompt] += moved
        together += moved
    by_prompt -= by_prompt.mean(axis=2, keepdims=True)
    initial = np.where(seen, initial, np.log(_UNSEEN / totals.sum(axis=1, keepdims=True)))
    return [
        BoostedSet(
            LogitModel(some, start), np.ascontiguousarray(by_prompt[:, one].transpose(0, 2, 1))
        )
        for one, (some, start) in enumerate(zip(learners, initial, strict=True))
    ]


class _Lines(NamedTuple):
    """The scalings of a prompt's matrix by S sets, as x · factor + shift.

    Parameters
    ----------
    factors, shifts : float32 arrays of shape (S, V)
        Per set and token.
    """

    factors: NDArray[np.float32]
    shifts: NDArray[np.float32]

    @classmethod
    def of(cls, scalings: Sequence[Scaling]) -> _Lines:
        factors: NDArray[Any] = np.stack([1 / one.scale for one in scalings])
        return cls(factors, np.stack([-one.mean for one in scalings]) * factors)


class _Round(NamedTuple):
    """The terms that a round adds to each of S sets of rows.

    Parameters
    ----------
    columns, weights : arrays of shape (S, n_classes, tokens_per_class)
        Verbalizers.
    scores : float array of shape (S, n_classes, n)
        Their class scores of all rows.
    steps : float64 array of shape (S,)
        Newton steps; 0 where no token of the prompt correlates with the residual.
    """

    columns: NDArray[np.intp]
    weights: NDArray[np.float32]
    scores: NDArray[np.float64]
    steps: NDArray[np.float64]


def _round(
    by_token: NDArray[np.float32],
    lines: _Lines,
    target: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    sample_weight: NDArray[np.float64],
    seen: NDArray[np.bool_],
    tokens_per_class: int,
) -> _Round:
    """Find a verbalizer for each set of rows, and its Newton step."""
    n_sets, n_classes, n = probabilities.shape
    n_tokens, shape = len(by_token), (n_sets, n_classes, tokens_per_class)
    if not n_tokens:
        columns = np.zeros(shape, np.intp)
        nothing = np.zeros(probabilities.shape)
        return _Round(columns, columns.astype(np.float32), nothing, np.zeros(n_sets))
    residual = (target - probabilities) * sample_weight[:, None]
    products = residual.reshape(-1, n).astype(np.float32) @ by_token.T
    sums = residual.sum(axis=2, keepdims=True).astype(np.float32)
    correlation = products.reshape(n_sets, n_classes, n_tokens) * lines.factors[:, None]
    correlation += sums * lines.shifts[:, None]
    columns, weights = correlated_tokens(correlation.reshape(-1, n_tokens), tokens_per_class)
    weights *= seen.reshape(-1, 1)  # of a class without rows it would be rounding
    scores = _scores_of_sets(by_token, lines, columns, weights)
    slopes = (residual * scores).sum(axis=(1, 2))
    # the variance of the scores under the probabilities of each row
    spread = scores - (probabilities * scores).sum(axis=1, keepdims=True)
    curvatures = ((probabilities * spread**2).sum(axis=1) * sample_weight).sum(axis=1)
    strongest = np.abs(correlation).max(axis=(1, 2))
    correlates = strongest > _MIN_CORRELATION * sample_weight.sum(axis=1)
    steps = np.where(correlates, slopes / (curvatures + _STEP_RIDGE), 0.0)
    return _Round(columns.reshape(shape), weights.reshape(shape), scores, steps)


def _scores_of_sets(
    by_token: NDArray[np.float32],
    lines: _Lines,
    columns: NDArray[np.intp],
    weights: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return the class scores of verbalizers of shape (S * n_classes, m): (S, n_classes, n)."""
    n_sets, n_tokens = lines.factors.shape
    n_rows = len(columns)
    of_set = np.arange(n_rows)[:, None] // (n_rows // n_sets)
    shifts = (weights * lines.shifts[of_set, columns]).sum(axis=1, dtype=np.float64)
    used = np.zeros(n_tokens, bool)
    used[columns] = True
    place = np.cumsum(used) - 1
    # by all tokens that any of them reads: one product, of which a few terms are 0
    coefficients = np.zeros((n_rows, place[-1] + 1), np.float32)
    columns, weights = columns[:, :n_tokens], weights[:, :n_tokens]  # the rest is padding
    scaled = weights * lines.factors[of_set, columns]
    coefficients[np.arange(n_rows)[:, None], place[columns]] = scaled
    scores = coefficients @ by_token[used] + shifts[:, None]
    return np.asarray(scores.reshape(n_sets, -1, by_token.shape[1]), np.float64)


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
        summed: NDArray[Any] = np.zeros(width * n_classes)
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
