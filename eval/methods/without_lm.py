"""Without a language model that predicts: words counted, and sentences embedded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
from eval.methods.base import Codes, Scores
from eval.methods.embeddings import Embeddings
from eval.methods.row_space import in_row_space

__all__ = ["Majority", "SentenceEmbeddings", "TfIdf"]

_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5


class Majority(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The most frequent class of the whole training split, and the shares of all classes.

    Training rows are drawn with as many of each class, so they can't tell.

    Parameters
    ----------
    shares : mapping of label to float
        Of the split's rows; they sum to 1.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        self.shares = shares

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Take note of the classes."""
        self.classes_ = np.array(sorted(self.shares))
        return self

    def predict_proba(self, X: Any) -> Scores:
        """The shares, for each text: (n, n_classes)."""
        return np.tile([self.shares[label] for label in self.classes_], (len(X), 1))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most frequent class."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels


class _Regressed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression over features, its strength chosen by cross-validated log-loss."""

    def __init__(self, *, random_state: int = 0) -> None:
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Learn from labelled texts."""
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        inputs = self._inputs(X)
        n_folds = min(_FOLDS, int(np.bincount(codes).min()))
        strength = self._best_strength(inputs, codes, n_folds) if n_folds >= 2 else 1.0
        self.model_ = make_pipeline(*self._steps(), _regression(strength)).fit(inputs, codes)
        return self

    def _best_strength(self, inputs: NDArray[Any], codes: Codes, n_folds: int) -> float:
        """That of the least log-loss; a fold's features are made once for all of them."""
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=self.random_state)
        losses = np.zeros(len(_STRENGTHS))
        for train, test in folds.split(inputs, codes):
            steps = make_pipeline(*self._steps())
            seen, write = in_row_space(steps.fit_transform(inputs[train]))
            unseen = write(steps.transform(inputs[test]))
            for place, strength in enumerate(_STRENGTHS):
                model = _regression(strength).fit(seen, codes[train])
                losses[place] += log_loss(codes[test], model.predict_proba(unseen))
        return _STRENGTHS[int(losses.argmin())]

    def predict_proba(self, X: Any) -> Scores:
        """Class probabilities of shape (n, n_classes)."""
        return np.asarray(self.model_.predict_proba(self._inputs(X)))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _steps(self) -> list[Any]:
        raise NotImplementedError

    def _inputs(self, X: Any) -> NDArray[Any]:
        raise NotImplementedError


def _regression(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=2000)


def _joined(X: Any) -> list[str]:
    """Each text, a pair as one."""
    return ["\n".join(text for text in example if text) for example in check_texts(X)]


class TfIdf(_Regressed):
    """Words, pairs of words and groups of two to five letters, weighed by TF-IDF."""

    def _steps(self) -> list[Any]:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        return [FeatureUnion([("words", words), ("letters", letters)])]

    def _inputs(self, X: Any) -> NDArray[np.object_]:
        return np.array(_joined(X), object)


class SentenceEmbeddings(_Regressed):
    """all-MiniLM-L6-v2 (22 million weights, trained on a billion pairs of sentences).

    Of a pair both embeddings are used, and their product and distance.

    Parameters
    ----------
    random_state : int, default=0
        Seed of the folds.
    kept_in : Path, optional
        The file that keeps embeddings.

    Attributes
    ----------
    seconds_spared_ : float
        What the last step would have taken more, had the file been empty.
    """

    def __init__(self, *, random_state: int = 0, kept_in: Path | None = None) -> None:
        super().__init__(random_state=random_state)
        self.kept_in = kept_in

    def _steps(self) -> list[Any]:
        return [StandardScaler()]

    def _inputs(self, X: Any) -> NDArray[np.float32]:
        examples = list(check_texts(X))
        embeddings = Embeddings(self.kept_in)
        pairs = examples[0][1] is not None
        texts = [text for text, _ in examples]
        found = embeddings.of([*texts, *(pair or "" for _, pair in examples)] if pairs else texts)
        self.seconds_spared_ = embeddings.seconds_spared
        if not pairs:
            return found
        first, second = np.split(found, 2)
        return np.concatenate([first, second, first * second, np.abs(first - second)], axis=1)
