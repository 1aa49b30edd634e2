"""Nearest neighbours over sentence embeddings as an expert: kernel density estimates of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from blackbox.experts.base import Expert

__all__ = ["NeighbourReadout"]

_WIDTH = 0.1  # of the kernel, in cosine


@dataclass(frozen=True)
class NeighbourReadout(Expert):
    """Scores classes by the logarithm of the mean of exp(cosine / 0.1) over their rows.

    Parameters
    ----------
    vectors : float32 array of shape (n, d)
        Unit vectors of the training rows.
    weights : float64 array of shape (n, n_classes)
        The weight of each row in its class; columns sum to 1.
    factor : float
        Of the scores.
    """

    name: ClassVar[str] = "neighbours"
    title: ClassVar[str] = "nearest neighbours"

    vectors: NDArray[np.float32]
    weights: NDArray[np.float64]
    factor: float = 1.0

    @classmethod
    def fit(
        cls,
        evidence: NDArray[Any],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
    ) -> Self:
        """Return a readout that keeps the vectors: (n, d)."""
        weights = np.eye(n_classes)[y] * sample_weight[:, None]
        return cls(np.asarray(evidence, np.float32), weights / weights.sum(axis=0))

    def scores(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scores of vectors of shape (m, d): (m, n_classes)."""
        cosines: NDArray[np.float64] = np.asarray(evidence, np.float64) @ self.vectors.T
        densities: NDArray[np.float64] = np.log(np.exp((cosines - 1) / _WIDTH) @ self.weights)
        centred: NDArray[np.float64] = densities - densities.mean(axis=1, keepdims=True)
        return self.factor * centred

    def scaled(self, factor: float) -> Self:
        """Return the readout with its scores multiplied by a factor."""
        return replace(self, factor=self.factor * factor)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Not supported: no model file holds vectors of rows."""
        raise NotImplementedError

    @classmethod
    def from_arrays(cls, read: Callable[[str, Any, int], NDArray[Any]]) -> Self:
        """Not supported: no model file holds vectors of rows."""
        raise NotImplementedError
