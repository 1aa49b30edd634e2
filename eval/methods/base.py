"""What the methods share: estimators over the answers of one LM to one pool of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers, next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting import logit
from blackbox.errors import RowError
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import Backend

__all__ = [
    "Codes",
    "PromptedClassifier",
    "Scores",
    "TokenReader",
    "best_temperature",
    "read_answers",
    "refuse",
]

Codes = NDArray[np.intp]
Scores = NDArray[np.float64]

_MOST = 50.0  # a temperature beyond it says nothing


def read_answers(backend: Backend, prompts: PromptPool, X: Any, top_k: int) -> Answers:
    """The answers to all texts under all prompts.

    Raises
    ------
    RowError
        If the LM refuses a row: a benchmark measures all of them.
    """
    examples = check_texts(X)
    refused = dict(examples.refused)
    if not refused:
        found = next_tokens(backend, prompts, list(examples), min(top_k, backend.limits.max_top_k))
        refused = found.row_errors
    refuse(refused)
    return found


def refuse(row_errors: Mapping[int, str]) -> None:
    """Raise a `RowError` if the LM refused rows."""
    if row_errors:
        row = min(row_errors)
        raise RowError(f"row {row} got no answer: {row_errors[row]}", dict(row_errors))


class PromptedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier over the answers of an LM; subclasses have `_learn` and `_scores`.

    Parameters
    ----------
    backend : Backend
        The LM.
    prompts : PromptPool
        The prompts.
    top_k : int, default=200
        Next tokens that are read of each answer.
    random_state : int, default=0
        Seed of what is drawn.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels.
    """

    def __init__(
        self, backend: Any, prompts: PromptPool, *, top_k: int = 200, random_state: int = 0
    ) -> None:
        self.backend = backend
        self.prompts = prompts
        self.top_k = top_k
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Learn from labelled texts."""
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self._learn(self._answers(X), codes)
        return self

    def predict_proba(self, X: Any) -> Scores:
        """Class probabilities of shape (n, n_classes)."""
        return np.asarray(softmax(self._scores(self._new_answers(X)), axis=1))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _answers(self, X: Any) -> Answers:
        return read_answers(self.backend, self.prompts, X, self.top_k)

    def _new_answers(self, X: Any) -> Answers:
        """What prediction asks, where that is less than training does."""
        return self._answers(X)

    def _learn(self, answers: Answers, codes: Codes) -> None:
        raise NotImplementedError

    def _scores(self, answers: Answers) -> Scores:
        """Logarithms of what is proportional to the probabilities, of shape (n, n_classes)."""
        raise NotImplementedError


class TokenReader:
    """The same matrices that `logit` reads: frequent tokens, floors, standardised.

    Parameters
    ----------
    answers : Answers
        Of the training rows.
    share : float, default=0.1
        Of the training rows that must report a token.
    """

    def __init__(self, answers: Answers, share: float = 0.1) -> None:
        weights = np.ones(answers.token_ids.shape[1])
        self.matrices, self.tokens, self._floors = features.frequent_matrices(
            answers.token_ids, answers.log_probs, weights, share
        )
        self._scalings = [logit.scaling_of(matrix, weights) for matrix in self.matrices]

    def read(self, answers: Answers) -> list[Matrix]:
        """One standardised matrix of shape (n, V_p) a prompt."""
        return [
            scaling.apply(features.gather(ids, values, tokens, floor))
            for ids, values, tokens, floor, scaling in zip(
                answers.token_ids,
                answers.log_probs,
                self.tokens,
                self._floors,
                self._scalings,
                strict=True,
            )
        ]


def best_temperature(scores: Scores, codes: Codes) -> tuple[float, float]:
    """What to divide scores by so that their log-loss is least, and that log-loss.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017. The scores are those
    of rows that nothing was fitted on.
    """
    rows = np.arange(len(codes))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(scores / np.exp(log_temperature), axis=1)[rows, codes].mean())

    found = minimize_scalar(loss, bounds=(-np.log(_MOST), np.log(_MOST)), method="bounded")
    return float(np.exp(found.x)), float(found.fun)


def one_hot_votes(codes: Sequence[int] | Codes, n_classes: int, sure: float) -> Scores:
    """Log-probabilities in which the class voted for has probability `sure`."""
    rest = (1 - sure) / max(n_classes - 1, 1)
    scores = np.full((len(codes), n_classes), np.log(rest))
    scores[np.arange(len(codes)), np.asarray(codes, np.intp)] = np.log(sure)
    return scores
