"""The `logit` algorithm: multinomial gradient boosting over soft verbalizers.

Scores F of each row and class begin at the log-odds of the classes. Each round takes the next
prompt, looks for the tokens whose standardised log-probabilities go along with what is
still wrong (the residual R = onehot(y) − softmax(F′)), lets the strongest of them speak for each
class, and adds that with one scalar Newton step, shrunk by the learning rate. F′ is F for the most
part; for the rest (`Settings.own_share`) it is what the prompt has said by itself so far, as if all
P prompts had said the same. With a share of 0 that is plain boosting, with 1 each prompt becomes a
model of its own and their scores are added. In between, prompts correct each other's errors without
leaving all that is easy to the first of them.

In the end what a prompt adds is limited (`blackbox.stopping`), and the scores are calibrated on
rows that were held out. There it is also found how much the names of the classes say, which were a
verbalizer before any label was seen (`blackbox.label_words`).

Sources: Friedman, "Greedy function approximation: a gradient boosting machine" (2001); Friedman,
Hastie and Tibshirani, "Additive logistic regression: a statistical view of boosting" (2000).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blackbox import arrays
from blackbox.boosting import Matrix, WeakLearner, softmax
from blackbox.stopping import limited, limits_of
from blackbox.verbalizers import correlated_tokens

__all__ = [
    "NAME_PRIOR",
    "Calibration",
    "FoldFit",
    "LogitFit",
    "Scaling",
    "Settings",
    "calibrate",
    "class_scores",
    "coefficients_of",
    "contributions",
    "cooled",
    "cross_validated_losses",
    "final_scores",
    "fit_folds",
    "fit_logit",
    "held_out_contributions",
    "held_out_scores",
    "scaling_of",
    "staged_scores",
]

NAME_PRIOR = (0.4, 10.0)
"""What names weigh where rows say nothing of it, and how strongly that is held."""

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]
"""Pairs of training rows and held-out rows."""

_SCALE_OFFSET = 0.6  # keeps tokens that hardly vary from being blown up
_BLOCK = 4096  # rows that are standardised at once
_STEP_RIDGE = 1.0  # as if one more row stood against every step
_NOTHING = 1e-8  # a mean correlation under this is rounding
_MOST_TEMPERATURE = 50.0
_MOST_NAME_WEIGHT = 4.0


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
        out = arrays.empty((n, matrix.shape[1]), np.float32)
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
class LogitFit:
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
) -> LogitFit:
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
    return LogitFit(learners, initial)


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


def final_scores(fit: LogitFit, standardised: Sequence[Matrix]) -> NDArray[np.float64]:
    """Scores of shape (n, n_classes) after all rounds, without limits."""
    widths = [matrix.shape[1] for matrix in standardised]
    spoken = coefficients_of(fit.learners, widths, len(fit.initial))
    return np.asarray(fit.initial + contributions(spoken, standardised).sum(axis=0))


def staged_scores(fit: LogitFit, standardised: Sequence[Matrix]) -> Iterator[NDArray[np.float64]]:
    """Scores of shape (n, n_classes) after each round; the same array, changed in place."""
    scores = np.tile(fit.initial, (len(standardised[0]) if standardised else 0, 1))
    for learner in fit.learners:
        scores += learner.weight * class_scores(learner, standardised[learner.prompt])
        yield scores


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
    for train, test in folds:
        one = _fit_fold(matrices, y, sample_weight, n_classes, train, test, settings)
        stages = itertools.chain(
            [one.fit.initial[None]], staged_scores(one.fit, one.read(matrices, test))
        )
        of_fold = [_log_losses(scores, y[test]) @ sample_weight[test] for scores in stages]
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
    least: float = 0.5,
    votes: NDArray[np.float64] | None = None,
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
    least : float, default=0.5
        The lowest temperature; the highest is 50.
    votes : float64 array of shape (n, n_classes), optional
        What the names say, of unit variance.
    prior : (float, float)
        The weight that the penalty holds to, and its curvature beside the summed loss.
    """
    from scipy.optimize import minimize

    size = float(scores.std()) or 1.0
    target = np.eye(scores.shape[1])[y]
    said = np.zeros_like(scores) if votes is None else votes
    total = judged_weight.sum()
    usual, strength = prior

    def objective(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixed = at[0] / size * scores + at[1] * said
        penalty = 0.0 if votes is None else strength * (at[1] - usual)
        loss = _log_losses(mixed, y) @ judged_weight + penalty * (at[1] - usual) / 2
        wrong = (softmax(mixed) - target) * judged_weight[:, None]
        slopes = (wrong * scores).sum() / size, (wrong * said).sum() + penalty
        return float(loss / total), np.array(slopes) / total

    # the loss has one minimum, as it is convex in the two factors
    weights = (0.0, 0.0) if votes is None else (0.0, _MOST_NAME_WEIGHT)
    found = minimize(
        objective, (min(size, size / least), 0.0 if votes is None else usual), jac=True,
        bounds=[(size / _MOST_TEMPERATURE, size / least), weights],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )  # fmt: skip
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
    fit : LogitFit
        What was found on them.
    """

    train: NDArray[np.intp]
    test: NDArray[np.intp]
    scalings: list[Scaling]
    fit: LogitFit

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
) -> list[FoldFit]:
    """Boost on the training part of each fold; parameters are as for `cross_validated_losses`."""
    return [
        _fit_fold(matrices, y, sample_weight, n_classes, train, test, settings)
        for train, test in folds
    ]


def held_out_contributions(
    fits: Sequence[FoldFit],
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    *,
    temperature: float = 1.0,
    names: Sequence[WeakLearner] = (),
    reach: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
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
    names : sequence of WeakLearner
        Learners that no label has a part in, added to what each fold found.
    reach : (low, high), float64 arrays of shape (P, n_classes), optional
        How far those go, by which the limits are wider.

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
        boosted = cooled(one.fit.learners, temperature)
        spoken = coefficients_of(boosted, widths, n_classes)
        seen = contributions(spoken, one.read(matrices, one.train))
        low, high = limits_of(seen, y[one.train], sample_weight[one.train])
        if reach is not None:
            low, high = low + reach[0], high + reach[1]
        spoken = coefficients_of([*names, *boosted], widths, n_classes)
        unseen = contributions(spoken, one.read(matrices, one.test))
        initial[one.test] = one.fit.initial / temperature
        added[:, one.test] = limited(unseen, low, high)
    return initial, added


def cooled(learners: Sequence[WeakLearner], temperature: float) -> list[WeakLearner]:
    """The same learners, their weights divided by the temperature."""
    return [replace(learner, weight=learner.weight / temperature) for learner in learners]


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
    for train, test in folds:
        one = _fit_fold(matrices, y, sample_weight, n_classes, train, test, settings)
        scores[test] = final_scores(one.fit, one.read(matrices, test))
    return scores


def _fit_fold(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    settings: Settings,
) -> FoldFit:
    """Boost on one part of the rows, standardised by itself."""
    scalings = [scaling_of(matrix, sample_weight[train], train) for matrix in matrices]
    seen = [scaling.apply(m, train) for scaling, m in zip(scalings, matrices, strict=True)]
    fit = fit_logit(seen, y[train], sample_weight[train], n_classes, settings)
    return FoldFit(train, test, scalings, fit)


def _log_losses(scores: NDArray[np.float64], y: NDArray[np.intp]) -> NDArray[np.float64]:
    scores = np.broadcast_to(scores, (len(y), scores.shape[-1]))
    highest = scores.max(axis=1)
    total = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
    return np.asarray(total - scores[np.arange(len(y)), y])
