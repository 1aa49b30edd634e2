"""Plain models over the log-probabilities that `logit` reads: the rivals to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting.weak_learner import one_blas_thread
from eval.methods.base import Codes, PromptedClassifier, Scores, TokenReader, best_temperature
from eval.methods.row_space import in_row_space

__all__ = ["JointRegression", "LinearDiscriminant", "ProductOfRegressions"]

_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # C: inverse of the penalty
_FOLDS = 5

Fitted = Callable[[Sequence[Matrix]], Scores]
"""Models that were fitted with several strengths: from matrices to scores of shape
(n_strengths, n, n_classes)."""


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
            self._model = self._fitted(matrices, codes, [self.strength_])

    def _choose(self, answers: Answers, codes: Codes, n_folds: int) -> None:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=self.random_state)
        held_out = np.zeros((len(self._strengths), len(codes), len(self.classes_)))
        for train, test in folds.split(codes, codes):
            reader = TokenReader(answers.take_rows(train))
            seen, unseen = (reader.read(answers.take_rows(rows)) for rows in (train, test))
            held_out[:, test] = self._fitted(seen, codes[train], self._strengths)(unseen)
        best = np.inf
        for strength, scores in zip(self._strengths, held_out, strict=True):
            temperature, loss = best_temperature(scores, codes)
            if loss < best:
                best, self.strength_, self.temperature_ = loss, strength, temperature

    def _fitted(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> Fitted:
        raise NotImplementedError

    def _scores(self, answers: Answers) -> Scores:
        scores: Scores = self._model(self._reader.read(answers))[0] / self.temperature_
        return scores


def _regressions(
    matrix: Matrix, codes: Codes, strengths: Sequence[float]
) -> Callable[[Matrix], Scores]:
    """Logistic regressions of several strengths, as `Fitted` of one matrix."""
    rows, write = in_row_space(matrix.astype(np.float64))
    models = [LogisticRegression(C=one, max_iter=1000).fit(rows, codes) for one in strengths]

    def scores(other: Matrix) -> Scores:
        others = write(other.astype(np.float64))
        return np.stack([_log_proba(model, others) for model in models])

    return scores


def _log_proba(model: Any, rows: NDArray[np.float64]) -> Scores:
    scores = model.decision_function(rows)
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=1)
    return np.asarray(log_softmax(scores, axis=1))


class JointRegression(_Calibrated):
    """One logistic regression over the tokens of all prompts together."""

    def _fitted(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> Fitted:
        joint = _regressions(np.concatenate(matrices, axis=1), codes, strengths)
        return lambda others: joint(np.concatenate(others, axis=1))


class ProductOfRegressions(_Calibrated):
    """One logistic regression a prompt, their log-probabilities added."""

    def _fitted(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> Fitted:
        factors = [_regressions(matrix, codes, strengths) for matrix in matrices]
        return lambda others: np.sum(
            [factor(other) for factor, other in zip(factors, others, strict=True)], axis=0
        )


class LinearDiscriminant(_Calibrated):
    """Linear discriminant analysis over the tokens of all prompts, with a shrunk covariance.

    Rows fewer than tokens span a small space: the analysis takes place in it, along the principal
    components of the training rows. There each class's covariance is shrunk towards the diagonal of
    its variances (scikit-learn scales to unit variance first), by as much as the formula of Ledoit
    and Wolf (2004) says, and the classes' mean is used.
    """

    _strengths = (0.0,)

    def _fitted(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> Fitted:
        together = np.concatenate(matrices, axis=1).astype(np.float64)
        rotation = PCA(svd_solver="full").fit(together)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        model.fit(rotation.transform(together), codes)

        def scores(others: Sequence[Matrix]) -> Scores:
            rows = rotation.transform(np.concatenate(others, axis=1).astype(np.float64))
            return _log_proba(model, rows)[None]

        return scores
