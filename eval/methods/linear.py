"""Linear baselines over the log-probabilities that `logit` reads."""

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
from eval.methods.row_space import project_to_row_space

__all__ = ["JointRegression", "LinearDiscriminant", "ProductOfRegressions"]

_STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # C: inverse of the penalty
_FOLDS = 5

FittedModels = Callable[[Sequence[Matrix]], Scores]
"""Function from matrices to the scores of models with several penalties, of shape
(n_penalties, n, n_classes)."""


class _CrossValidated(PromptedClassifier):
    """Linear model whose penalty and temperature are chosen by cross-validated log-loss.

    Tokens, floors and scales are taken from the training rows of each fold, as held-out rows must
    not influence them.
    """

    _strengths: Sequence[float] = _STRENGTHS

    def _learn(self, answers: Answers, codes: Codes) -> None:
        self._reader = TokenReader(answers)
        matrices = self._reader.read(answers)
        n_folds = min(_FOLDS, int(np.bincount(codes).min()))
        self.strength_, self.temperature_ = self._strengths[len(self._strengths) // 2], 1.0
        with one_blas_thread():
            if n_folds >= 2:
                self._choose_penalty(answers, codes, n_folds)
            self._model = self._fit_models(matrices, codes, [self.strength_])

    def _choose_penalty(self, answers: Answers, codes: Codes, n_folds: int) -> None:
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=self.random_state)
        held_out = np.zeros((len(self._strengths), len(codes), len(self.classes_)))
        for train, test in folds.split(codes, codes):
            reader = TokenReader(answers.take_rows(train))
            seen, unseen = (reader.read(answers.take_rows(rows)) for rows in (train, test))
            held_out[:, test] = self._fit_models(seen, codes[train], self._strengths)(unseen)
        best = np.inf
        for strength, scores in zip(self._strengths, held_out, strict=True):
            temperature, loss = best_temperature(scores, codes)
            if loss < best:
                best, self.strength_, self.temperature_ = loss, strength, temperature

    def _fit_models(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> FittedModels:
        raise NotImplementedError

    def _scores(self, answers: Answers) -> Scores:
        scores: Scores = self._model(self._reader.read(answers))[0] / self.temperature_
        return scores


def _fit_regressions(
    matrix: Matrix, codes: Codes, strengths: Sequence[float]
) -> Callable[[Matrix], Scores]:
    """Fit logistic regressions with several penalties; return their scores as `FittedModels`."""
    rows, write = project_to_row_space(matrix.astype(np.float64))
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


class JointRegression(_CrossValidated):
    """Logistic regression over the tokens of all prompts together."""

    def _fit_models(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> FittedModels:
        joint = _fit_regressions(np.concatenate(matrices, axis=1), codes, strengths)
        return lambda others: joint(np.concatenate(others, axis=1))


class ProductOfRegressions(_CrossValidated):
    """Sum of the log-probabilities of one logistic regression per prompt."""

    def _fit_models(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> FittedModels:
        factors = [_fit_regressions(matrix, codes, strengths) for matrix in matrices]
        return lambda others: np.sum(
            [factor(other) for factor, other in zip(factors, others, strict=True)], axis=0
        )


class LinearDiscriminant(_CrossValidated):
    """Linear discriminant analysis over the tokens of all prompts, with a shrunk covariance.

    Rows fewer than tokens span a small space: the analysis takes place in it, along the principal
    components of the training rows. There each class's covariance is shrunk towards the diagonal of
    its variances (scikit-learn scales to unit variance first), by the formula of Ledoit and Wolf
    (2004), and the mean over the classes is used.
    """

    _strengths = (0.0,)

    def _fit_models(
        self, matrices: Sequence[Matrix], codes: Codes, strengths: Sequence[float]
    ) -> FittedModels:
        together = np.concatenate(matrices, axis=1).astype(np.float64)
        rotation = PCA(svd_solver="full").fit(together)
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        model.fit(rotation.transform(together), codes)

        def scores(others: Sequence[Matrix]) -> Scores:
            rows = rotation.transform(np.concatenate(others, axis=1).astype(np.float64))
            return _log_proba(model, rows)[None]

        return scores
