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
    """A model whose strength and temperature are chosen by cross-validated log-loss."""

    _strengths: Sequence[float] = _STRENGTHS

    def _learn(self, answers: Answers, codes: Codes) -> None:
        self._reader = TokenReader(answers)
        matrices = self._reader.read(answers)
        n_folds = min(_FOLDS, int(np.bincount(codes).min()))
        self.strength_, self.temperature_ = self._strengths[len(self._strengths) // 2], 1.0
        with one_blas_thread():
            if n_folds >= 2:
                self._choose(matrices, codes, n_folds)
            self._model = self._fitted(matrices, codes, self.strength_)

    def _choose(self, matrices: list[Matrix], codes: Codes, n_folds: int) -> None:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=self.random_state)
        splits = list(folds.split(matrices[0], codes))
        best = np.inf
        for strength in self._strengths:
            held_out = np.zeros((len(codes), len(self.classes_)))
            for train, test in splits:
                model = self._fitted([matrix[train] for matrix in matrices], codes[train], strength)
                held_out[test] = model([matrix[test] for matrix in matrices])
            temperature, loss = best_temperature(held_out, codes)
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

    The shrinkage is that of Ledoit and Wolf (2004). Rows fewer than tokens span a small space: the
    analysis takes place in it, along the principal components of the training rows.
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
