"""Baselines without a generative LM: majority class, TF-IDF, sentence embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler

from blackbox.answers.texts import check_texts
from blackbox.prompts.inputs import texts_of
from eval.methods.base import Codes, Scores
from eval.methods.embeddings import CachedEmbeddings
from eval.methods.row_space import project_to_row_space

__all__ = ["Majority", "RegressionOverFeatures", "SentenceEmbeddings", "TfIdf", "join_pairs"]

_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5


class Majority(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Majority-class baseline; its probabilities are the class shares of the training split.

    Training rows are drawn balanced over the classes, so they don't have these shares.

    Parameters
    ----------
    shares : mapping of label to float
        Of the split's rows; they sum to 1.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        self.shares = shares

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Store the classes."""
        self.classes_ = np.array(sorted(self.shares))
        return self

    def predict_proba(self, X: Any) -> Scores:
        """Return the class shares for each text, of shape (n, n_classes)."""
        return np.tile([self.shares[label] for label in self.classes_], (len(X), 1))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most frequent class for each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


class RegressionOverFeatures(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression over features, its penalty chosen by cross-validated log-loss."""

    def __init__(self, *, random_state: int = 0) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Train on labelled texts."""
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        inputs = self._inputs(X)
        n_folds = min(_FOLDS, int(np.bincount(codes).min()))
        strength = self._best_strength(inputs, codes, n_folds) if n_folds >= 2 else 1.0
        self.model_ = make_pipeline(*self._steps(), _logistic_regression(strength)).fit(
            inputs, codes
        )
        return self

    def _best_strength(self, inputs: NDArray[Any], codes: Codes, n_folds: int) -> float:
        """Return the penalty of the least log-loss; a fold's features are computed once for all."""
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=self.random_state)
        losses = np.zeros(len(_STRENGTHS))
        for train, test in folds.split(inputs, codes):
            steps = make_pipeline(*self._steps())
            seen, write = project_to_row_space(steps.fit_transform(inputs[train]))
            unseen = write(steps.transform(inputs[test]))
            for place, strength in enumerate(_STRENGTHS):
                model = _logistic_regression(strength).fit(seen, codes[train])
                losses[place] += log_loss(codes[test], model.predict_proba(unseen))
        return _STRENGTHS[int(losses.argmin())]

    def predict_proba(self, X: Any) -> Scores:
        """Return class probabilities of shape (n, n_classes)."""
        return np.asarray(self.model_.predict_proba(self._inputs(X)))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _steps(self) -> list[Any]:
        raise NotImplementedError

    def _inputs(self, X: Any) -> NDArray[Any]:
        raise NotImplementedError


def _logistic_regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=2000)


def join_pairs(X: Any) -> list[str]:
    """Return each text; the two texts of a pair are joined."""
    return ["\n".join(texts_of(example)) for example in check_texts(X)]


class TfIdf(RegressionOverFeatures):
    """Logistic regression over TF-IDF of words, word pairs and groups of two to five letters."""

    def _steps(self) -> list[Any]:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        return [FeatureUnion([("words", words), ("letters", letters)])]

    def _inputs(self, X: Any) -> NDArray[np.object_]:
        return np.array(join_pairs(X), object)


class SentenceEmbeddings(RegressionOverFeatures):
    """Logistic regression over all-MiniLM-L6-v2 (22 million weights) sentence embeddings.

    Of a pair both embeddings are used, and their product and distance.

    Parameters
    ----------
    random_state : int, default=0
        Seed of the folds.
    embeddings : CachedEmbeddings, optional
        The embedding model; by default one without a cache.
    """

    def __init__(
        self, *, random_state: int = 0, embeddings: CachedEmbeddings | None = None
    ) -> None:
        super().__init__(random_state=random_state)
        self.embeddings = embeddings

    def _steps(self) -> list[Any]:
        return [StandardScaler()]

    def _inputs(self, X: Any) -> NDArray[np.float32]:
        examples = list(check_texts(X))
        embeddings = self.embeddings or CachedEmbeddings()
        pairs = examples[0][1] is not None
        texts = [text for text, _ in examples]
        found = embeddings.embed(
            [*texts, *(str(pair or "") for _, pair in examples)] if pairs else texts
        ).vectors
        if not pairs:
            return found
        first, second = np.split(found, 2)
        return np.concatenate([first, second, first * second, np.abs(first - second)], axis=1)
