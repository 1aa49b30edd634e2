"""Words and word pairs of a text as an expert: a linear readout of TF-IDF, as for embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from blackbox.experts.base import Expert
from blackbox.experts.embeddings import EmbeddingReadout

__all__ = ["WordReadout"]


@dataclass(frozen=True)
class WordReadout(Expert):
    """Multinomial logistic regression over TF-IDF of words and word pairs.

    Parameters
    ----------
    vectorizer : TfidfVectorizer
        Fitted on the training texts.
    readout : EmbeddingReadout
        The classifier over its features.
    """

    name: ClassVar[str] = "words"
    title: ClassVar[str] = "words"

    vectorizer: TfidfVectorizer
    readout: EmbeddingReadout

    @classmethod
    def fit(
        cls,
        evidence: NDArray[Any],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
    ) -> Self:
        """Return a readout of texts: an object array of shape (n,)."""
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        features = vectorizer.fit_transform(evidence.tolist()).toarray()
        return cls(vectorizer, EmbeddingReadout.fit(features, y, sample_weight, n_classes))

    def scores(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scores of texts: (n, n_classes)."""
        return self.readout.scores(self.vectorizer.transform(evidence.tolist()).toarray())

    def scaled(self, factor: float) -> Self:
        """Return the readout with its scores multiplied by a factor."""
        return replace(self, readout=self.readout.scaled(factor))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Not supported: no model file holds words."""
        raise NotImplementedError

    @classmethod
    def from_arrays(cls, read: Callable[[str, Any, int], NDArray[Any]]) -> Self:
        """Not supported: no model file holds words."""
        raise NotImplementedError
