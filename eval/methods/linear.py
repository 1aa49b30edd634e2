"""Plain models over the log-probabilities that `logit` reads: the rivals to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from blackbox.boosting import Matrix, one_blas_thread
from blackbox.passes import Answers
from eval.methods.base import Codes, PromptedClassifier, Scores, TokenReader, best_temperature

__all__ = ["JointRegression", "LinearDiscriminant", "ProductOfRegressions"]

_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # C: inverse of the penalty
_FOLDS = 5

Fitted = Callable[[Sequence[Matrix]], Scores]
"""A fitted model: from matrices to scores of shape (n, n_classes)."""


class _Calibrated(PromptedClassifier):
    """A model whose strength and temperature are chosen by cross-validated log-loss.

    Tokens, floors and scales are those of each fold's training rows, as held-out rows must decide
    nothing.
    """

    _strengths: Sequence[float] = _STRENGTHS

    def _learn(self, answers: Answers, codes: Codes) -> None:
        self._reader = TokenReader(answers)
        matrices = self._reader.read(answers)
        n_folds = min(_FOLDS, int(np.bincount(codes).min()))
        self.strength_, self.temperature_ = self._strengths[len(self._strengths) // 2], 1.0
        with one_blas_thread():
            if n_folds >= 2:
                self._choose(answers, codes, n_folds)
            self._model = self._fitted(matrices, codes, self.strength_)

    def _choose(self, answers: Answers, codes: Codes, n_folds: int) -> None:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=self.random_state)
        held_out = np.zeros((len(self._strengths), len(codes), len(self.classes_)))
        for train, test in folds.split(codes, codes):
            reader = TokenReader(answers.take_rows(train))
            seen, unseen = (reader.read(answers.take_rows(rows)) for rows in (train, test))
            for place, strength in enumerate(self._strengths):
                held_out[place, test] = self._fitted(seen, codes[train], strength)(unseen)
        best = np.inf
        for strength, scores in zip(self._strengths, held_out, strict=True):
            temperature, loss = best_temperature(scores, codes)
            if loss < best:
                best, self.strength_, self.temperature_ = loss, strength, temperature

    def _fitted(self, matrices: Sequence[Matrix], codes: Codes, strength: float) -> Fitted:
        raise NotImplementedError

    def _scores(self, answers: Answers) -> Scores:
        return self._model(self._reader.read(answers)) / self.temperature_


def _regression(matrix: Matrix, codes: Codes, strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=1000).fit(matrix.astype(np.float64), codes)


def _log_proba(model: Any, matrix: Matrix) -> Scores:
    scores = model.decision_function(matrix.astype(np.float64))
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return np.asarray(log_softmax(scores, axis=1))


class JointRegression(_Calibrated):
    """One logistic regression over the tokens of all prompts together."""

    def _fitted(self, matrices: Sequence[Matrix], codes: Codes, strength: float) -> Fitted:
        model = _regression(np.concatenate(matrices, axis=1), codes, strength)
        return lambda others: _log_proba(model, np.concatenate(others, axis=1))


class ProductOfRegressions(_Calibrated):
    """One logistic regression a prompt, their log-probabilities added."""

    def _fitted(self, matrices: Sequence[Matrix], codes: Codes, strength: float) -> Fitted:
        models = [_regression(matrix, codes, strength) for matrix in matrices]
        return lambda others: np.sum(
            [_log_proba(model, other) for model, other in zip(models, others, strict=True)], axis=0
        )


class LinearDiscriminant(_Calibrated):
    """Linear discriminant analysis over the tokens of all prompts, with a shrunk covariance.

    Rows fewer than tokens span a small space: the analysis takes place in it, along the principal
    components of the training rows. There each class's covariance is shrunk towards the diagonal of
    its variances (scikit-learn scales to unit variance first), by as much as the formula of Ledoit
    and Wolf (2004) says, and the classes' mean is used.
    """

    _strengths = (0.0,)

    def _fitted(self, matrices: Sequence[Matrix], codes: Codes, strength: float) -> Fitted:
        together = np.concatenate(matrices, axis=1).astype(np.float64)
        rotation = PCA(svd_solver="full").fit(together)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        model.fit(rotation.transform(together), codes)
        return lambda others: _log_proba(
            model, rotation.transform(np.concatenate(others, axis=1).astype(np.float64))
        )
