"""The `samme` algorithm: boosting as in the paper, by hard votes of one token per class.

Each round draws a prompt, searches for the tuple of tokens, one per class, with the least weighted
error on it, adds that as a learner whose weight α grows as the error falls, and raises the weights
of the rows that it gets wrong. With validation rows, the ensemble is cut after the round that
predicts them best.

Sources: Hou et al., "PromptBoosting: Black-Box Text Classification with Ten Forward Passes" (ICML
2023); Zhu, Zou, Rosset and Hastie, "Multi-class AdaBoost" (2009). Scores and probabilities follow
scikit-learn's `AdaBoostClassifier`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.early_stopping import argmax_with_ties, as_decision
from blackbox.boosting.tuples import best_tuple
from blackbox.boosting.verbalizers import TIE, signed_sums, top_tokens
from blackbox.boosting.weak_learner import WeakLearner, softmax

__all__ = [
    "LEAST_WEIGHT",
    "candidates_per_class",
    "decision",
    "fit_samme",
    "probabilities",
    "staged_decision",
    "votes",
]

LEAST_WEIGHT = 1e-10
"""The weight of a learner that is no better than chance and stands alone."""

_LEAST_ERROR = 1e-10  # so that a learner without error has a finite weight, 23 for two classes

Validation = tuple[Sequence[Matrix], NDArray[np.intp], NDArray[np.float64]]


def candidates_per_class(n_classes: int) -> int:
    """Return how many tokens per class the search tries: fewer for more classes."""
    if n_classes == 2:
        return 50
    return 10 if n_classes <= 4 else 5


def fit_samme(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    *,
    n_estimators: int = 200,
    max_tuples: int = 20_000,
    rng: np.random.Generator,
    validation: Validation | None = None,
    on_round: Callable[[int], None] | None = None,
) -> list[WeakLearner]:
    """Boost, and return the learners.

    Parameters
    ----------
    matrices : sequence of float32 arrays of shape (n, V_p)
        Log-probabilities, one matrix per prompt.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights, not negative; a weight of 2 is a row that occurs twice, one of 0 none.
    n_classes : int
        Number of classes, at least 2.
    n_estimators : int, default=200
        Rounds. Each adds a learner, unless even the best tuple is no better than chance (its error
        is 1 − 1/n_classes or more): then the next round draws another prompt.
    max_tuples : int, default=20_000
        Tuples of tokens to try in a round at most; see `blackbox.boosting.tuples.best_tuple`.
    rng : numpy Generator
        Draws prompts, and tuples where there are more than `max_tuples`.
    validation : tuple of (matrices, y, sample_weight), optional
        Other rows, in the same form: learners after the round with the highest weighted accuracy
        on them (the earliest of several) are dropped.
    on_round : callable, optional
        Called after each round with the number of rounds done.

    Returns
    -------
    list of WeakLearner
        In the order of the rounds: `columns` of shape (n_classes, 1), `token_weights` all 1,
        `weight` α.
        Never empty: if no learner is better than chance, the best of any prompt stands alone, with
        a weight of `LEAST_WEIGHT`.

    Raises
    ------
    ValueError
        If shapes don't match, a class or a weight is out of range, or there is no token.
    """
    _check(matrices, y, sample_weight, n_classes)
    if validation is not None:
        _check(*validation, n_classes)
        if [m.shape[1] for m in matrices] != [m.shape[1] for m in validation[0]]:
            raise ValueError("the validation matrices don't have the columns of the training ones")
    if n_estimators < 1:
        raise ValueError(f"n_estimators is {n_estimators}; at least 1 round is needed")
    training = _Training(matrices, y, sample_weight, n_classes, max_tuples, rng)
    learners: list[WeakLearner] = []
    for number in range(n_estimators):
        learner, error = training.best_learner(training.draw_prompt())
        if error < training.chance:
            learners.append(learner)
            training.raise_weights(learner)
        if on_round is not None:
            on_round(number + 1)
    if not learners:
        return [training.least_bad_learner()]
    if validation is not None:
        learners = learners[: _best_n_rounds(learners, validation, n_classes)]
    return learners


class _Training:
    """Training rows and their current weights; constants of all rounds are computed once."""

    def __init__(
        self,
        matrices: Sequence[Matrix],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
        max_tuples: int,
        rng: np.random.Generator,
    ) -> None:
        kept = sample_weight > 0
        self.matrices = list(matrices) if kept.all() else [matrix[kept] for matrix in matrices]
        self.y = y[kept]
        self.weights = sample_weight[kept] / sample_weight.sum()
        self.n_classes = n_classes
        # the learner of the last round has exactly this error on the weights that it raised
        self.chance = 1 - 1 / n_classes - TIE
        self._max_tuples = max_tuples
        self._rng = rng
        self._prompts = [p for p, matrix in enumerate(matrices) if matrix.shape[1]]
        self._probabilities = [np.exp(matrix) for matrix in self.matrices]
        self._target = np.eye(n_classes)[self.y]

    def draw_prompt(self) -> int:
        """Return a random prompt, out of those that have tokens."""
        return self._prompts[int(self._rng.integers(len(self._prompts)))]

    def best_learner(self, prompt: int) -> tuple[WeakLearner, float]:
        """Return the best learner of one prompt on the current weights, and its error."""
        scores = signed_sums(self._probabilities[prompt], self._target, self.weights)
        columns, error = best_tuple(
            self.matrices[prompt],
            self.y,
            self.weights,
            top_tokens(scores, candidates_per_class(self.n_classes)),
            rng=self._rng,
            max_tuples=self._max_tuples,
        )
        ones = np.ones((self.n_classes, 1), np.float32)
        return WeakLearner(prompt, columns[:, None], ones, _alpha(error, self.n_classes)), error

    def raise_weights(self, learner: WeakLearner) -> None:
        """Raise the weights of the rows that a learner gets wrong."""
        wrong = votes(learner, self.matrices) != self.y
        raised = self.weights * np.exp(learner.weight * wrong)
        self.weights = raised / raised.sum()

    def least_bad_learner(self) -> WeakLearner:
        """Return the learner with the least error over all prompts, the first of several."""
        learners = [self.best_learner(prompt) for prompt in self._prompts]
        least = min(error for _, error in learners) + TIE
        best = next(learner for learner, error in learners if error <= least)
        return WeakLearner(
            best.prompt, best.columns, best.token_weights, max(best.weight, LEAST_WEIGHT)
        )


def _alpha(error: float, n_classes: int) -> float:
    error = min(max(error, _LEAST_ERROR), 1 - _LEAST_ERROR)
    return float(np.log((1 - error) / error) + np.log(n_classes - 1))


def _best_n_rounds(learners: Sequence[WeakLearner], validation: Validation, n_classes: int) -> int:
    """Return how many learners predict the validation rows best, the fewest of several."""
    matrices, y, sample_weight = validation
    accuracies = []
    for scores in staged_decision(learners, matrices, n_classes):
        right = argmax_with_ties(scores) == y
        accuracies.append(float(right @ sample_weight / sample_weight.sum()))
    return 1 + int(np.argmax(np.array(accuracies) >= max(accuracies) - TIE))


def votes(learner: WeakLearner, matrices: Sequence[Matrix]) -> NDArray[np.intp]:
    """Return for each row the class whose token is most probable, the lowest on a tie.

    Parameters
    ----------
    learner : WeakLearner
        With `columns` of shape (n_classes, 1).
    matrices : sequence of float32 arrays of shape (n, V_p)
        Log-probabilities, one matrix per prompt.

    Returns
    -------
    int array of shape (n,)
        Classes from 0.
    """
    return np.asarray(matrices[learner.prompt][:, learner.columns[:, 0]].argmax(axis=1), np.intp)


def staged_decision(
    learners: Sequence[WeakLearner], matrices: Sequence[Matrix], n_classes: int
) -> Iterator[NDArray[np.float64]]:
    """Yield the scores after each learner, by scikit-learn's formula for SAMME.

    The score of class c is Σ α ([vote = c] − [vote ≠ c] / (n_classes − 1)) / Σ α. Learners of equal
    weight tie often: classes that differ by rounding alone are level.

    Parameters
    ----------
    learners : sequence of WeakLearner
        As from `fit_samme`.
    matrices : sequence of float32 arrays of shape (n, V_p)
        Log-probabilities, one matrix per prompt.
    n_classes : int
        Number of classes.

    Yields
    ------
    float64 array of shape (n, n_classes)
        For two classes of shape (n,) instead, the second class's score less the first's.
    """
    n_rows = len(matrices[0])
    total = np.zeros((n_rows, n_classes))
    norm = 0.0
    for learner in learners:
        voted = votes(learner, matrices)[:, None] == np.arange(n_classes)
        total += np.where(voted, learner.weight, -1 / (n_classes - 1) * learner.weight)
        norm += learner.weight
        yield as_decision(total / norm)


def decision(
    learners: Sequence[WeakLearner], matrices: Sequence[Matrix], n_classes: int
) -> NDArray[np.float64]:
    """Return the scores of all learners: the last of `staged_decision`, with its parameters.

    Raises
    ------
    ValueError
        If there is no learner.
    """
    if not learners:
        raise ValueError("an ensemble needs at least one learner")
    return deque(staged_decision(learners, matrices, n_classes), maxlen=1)[0]


def probabilities(decision: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
    """Return class probabilities: the softmax of decision / (n_classes − 1).

    Source: Zhu et al. (2009), equation 15, as scikit-learn computes it.

    Parameters
    ----------
    decision : float array of shape (n, n_classes), or (n,) for two classes
        As from `decision`.
    n_classes : int
        Number of classes.

    Returns
    -------
    float64 array of shape (n, n_classes)
    """
    if n_classes == 2:
        return softmax(np.column_stack([-decision, decision]) / 2)
    return softmax(decision / (n_classes - 1))


def _check(
    matrices: Sequence[Matrix],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
) -> None:
    if n_classes < 2:
        raise ValueError(f"n_classes is {n_classes}; at least 2 are needed")
    if y.ndim != 1 or sample_weight.shape != y.shape:
        raise ValueError(f"y {y.shape} and sample_weight {sample_weight.shape} must be (n,)")
    for number, matrix in enumerate(matrices):
        if matrix.ndim != 2 or len(matrix) != len(y):
            raise ValueError(f"matrix {number} is {matrix.shape}, not ({len(y)}, V)")
    if not any(matrix.shape[1] for matrix in matrices):
        raise ValueError("no prompt has a token to choose from")
    if len(y) and not 0 <= y.min() <= y.max() < n_classes:
        raise ValueError(f"y has classes outside 0 to {n_classes - 1}")
    if not (sample_weight >= 0).all() or not 0 < sample_weight.sum() < np.inf:
        raise ValueError("sample_weight must be finite, not negative, and not all zero")
