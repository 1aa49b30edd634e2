"""Base class of the methods that read the answers of one LM to one pool of prompts."""

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
from blackbox.backend import BaseBackend
from blackbox.boosting import logit
from blackbox.errors import RowError
from blackbox.prompts.pool import PromptPool

__all__ = [
    "Codes",
    "PromptedClassifier",
    "Scores",
    "TokenReader",
    "best_temperature",
    "read_answers",
    "require_all_answered",
]

Codes = NDArray[np.intp]
Scores = NDArray[np.float64]

_MAX_TEMPERATURE = 50.0  # greater temperatures make no difference


def read_answers(backend: BaseBackend, prompts: PromptPool, X: Any, top_k: int) -> Answers:
    """Return the answers to all texts under all prompts.

    Raises
    ------
    RowError
        If the LM refuses a row: a benchmark needs all rows.
    """
    examples = check_texts(X)
    refused = dict(examples.refused)
    if not refused:
        found = next_tokens(backend, prompts, list(examples), min(top_k, backend.limits.max_top_k))
        refused = found.row_errors
    require_all_answered(refused)
    return found


def require_all_answered(row_errors: Mapping[int, str]) -> None:
    """Raise a `RowError` if the LM refused rows."""
    if row_errors:
        row = min(row_errors)
        raise RowError(f"row {row} got no answer: {row_errors[row]}", dict(row_errors))


class PromptedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier over the answers of an LM; subclasses define `_learn` and `_scores`.

    Parameters
    ----------
    backend : BaseBackend
        The LM.
    prompts : PromptPool
        The prompts.
    top_k : int, default=200
        Number of next tokens read of each answer.
    random_state : int, default=0
        Random seed.

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
        """Train on labelled texts."""
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self._learn(self._answers(X), codes)
        return self

    def predict_proba(self, X: Any) -> Scores:
        """Return class probabilities of shape (n, n_classes)."""
        return np.asarray(softmax(self._scores(self._new_answers(X)), axis=1))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _answers(self, X: Any) -> Answers:
        return read_answers(self.backend, self.prompts, X, self.top_k)

    def _new_answers(self, X: Any) -> Answers:
        """Return the answers for prediction, which may need fewer prompts than training."""
        return self._answers(X)

    def _learn(self, answers: Answers, codes: Codes) -> None:
        raise NotImplementedError

    def _scores(self, answers: Answers) -> Scores:
        """Return unnormalised log-probabilities of shape (n, n_classes)."""
        raise NotImplementedError


class TokenReader:
    """Standardised log-probability matrices as `logit` reads them: frequent tokens, floors.

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
        """Return one standardised matrix of shape (n, V_p) per prompt."""
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
    """Return the temperature that minimises the log-loss of scores, and that log-loss.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017. The scores are those
    of rows that nothing was fitted on.
    """
    rows = np.arange(len(codes))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(scores / np.exp(log_temperature), axis=1)[rows, codes].mean())

    found = minimize_scalar(
        loss, bounds=(-np.log(_MAX_TEMPERATURE), np.log(_MAX_TEMPERATURE)), method="bounded"
    )
    return float(np.exp(found.x)), float(found.fun)


def one_hot_votes(codes: Sequence[int] | Codes, n_classes: int, confidence: float) -> Scores:
    """Return log-probabilities in which the predicted class has probability `confidence`."""
    rest = (1 - confidence) / max(n_classes - 1, 1)
    scores = np.full((len(codes), n_classes), np.log(rest))
    scores[np.arange(len(codes)), np.asarray(codes, np.intp)] = np.log(confidence)
    return scores
