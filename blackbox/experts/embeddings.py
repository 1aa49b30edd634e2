"""The expert of sentence embeddings: multinomial logistic regression over vectors.

The penalty is fixed, and the readout is linear, so that a model keeps no row. The problem is solved
by L-BFGS in the principal axes of the training rows, each divided by the square root of its
curvature, in which about ten steps are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import BackendError
from blackbox.experts.base import Expert

__all__ = ["EmbeddingReadout"]

_PENALTY = 0.1  # curvature of the penalty of each coefficient, beside the summed loss of the rows
_MAX_STEPS = 100
_TOLERANCE = 1e-3  # of the gradient of the summed loss
_NO_VARIANCE = 1e-9  # of an axis, beside the first one


@dataclass(frozen=True)
class EmbeddingReadout(Expert):
    """A linear classifier over sentence embeddings.

    Parameters
    ----------
    coefficients : float32 array of shape (d, n_classes)
        What a unit of each dimension adds to the score of each class; rows sum to 0.
    intercept : float64 array of shape (n_classes,)
        The scores of the zero vector; their sum is 0.
    """

    name: ClassVar[str] = "embeddings"
    title: ClassVar[str] = "sentence embeddings"

    coefficients: NDArray[np.float32]
    intercept: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        evidence: NDArray[Any],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
    ) -> Self:
        """Return a readout of vectors of shape (n, d); see `Expert.fit`.

        A class without rows gets the score 0, the mean of the others.
        """
        seen, y = np.unique(y, return_inverse=True)
        vectors = np.asarray(evidence, np.float64)
        mean = sample_weight @ vectors / sample_weight.sum()
        axes = _principal_axes(vectors - mean, sample_weight, len(seen))
        inputs = (vectors - mean) @ axes
        weights, shift = _regress(inputs, y, sample_weight, (axes**2).sum(axis=0), len(seen))
        linear = axes @ weights
        shift = shift - mean @ linear
        coefficients, intercept = np.zeros((len(linear), n_classes)), np.zeros(n_classes)
        coefficients[:, seen] = linear - linear.mean(axis=1, keepdims=True)
        intercept[seen] = shift - shift.mean()
        return cls(coefficients.astype(np.float32), intercept)

    def scores(self, evidence: NDArray[Any]) -> NDArray[np.float64]:
        """Return the scores of vectors of shape (n, d): (n, n_classes).

        Raises
        ------
        BackendError
            If the vectors have another length than those of the training.
        """
        if evidence.shape[1] != len(self.coefficients):
            raise BackendError(
                f"the embedding model gives {evidence.shape[1]} numbers per text, and that of the "
                f"training gave {len(self.coefficients)}: give the same embedding model"
            )
        # row by row in one order of summation, so that a row's scores are its own
        linear = np.einsum("nd,dk->nk", evidence.astype(np.float64), self.coefficients)
        return np.asarray(linear + self.intercept)

    def scaled(self, factor: float) -> Self:
        """Return the readout with its scores multiplied by a factor."""
        coefficients = (self.coefficients * factor).astype(np.float32)
        return replace(self, coefficients=coefficients, intercept=self.intercept * factor)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the coefficients and the intercept."""
        return {"coefficients": self.coefficients, "intercept": self.intercept}

    @classmethod
    def from_arrays(cls, read: Callable[[str, Any, int], NDArray[Any]]) -> Self:
        """Return a readout from the arrays of a model file."""
        return cls(read("coefficients", np.float32, 2), read("intercept", np.float64, 1))


def _principal_axes(
    centred: NDArray[np.float64], sample_weight: NDArray[np.float64], n_classes: int
) -> NDArray[np.float64]:
    """Return orthogonal axes of shape (d, r), such that the loss is about as curved along each."""
    weighted = centred * np.sqrt(sample_weight)[:, None]
    n, d = weighted.shape
    if n < d:
        variances, directions = np.linalg.eigh(weighted @ weighted.T)
    else:
        variances, directions = np.linalg.eigh(weighted.T @ weighted)
    kept = variances > _NO_VARIANCE * max(float(variances[-1]), _NO_VARIANCE)
    variances, directions = variances[kept], directions[:, kept]
    axes = weighted.T @ directions / np.sqrt(variances) if n < d else directions
    curvature = variances * (n_classes - 1) / n_classes**2 + _PENALTY
    return np.asarray(axes / np.sqrt(curvature))


def _regress(
    inputs: NDArray[np.float64],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    squares: NDArray[np.float64],
    n_classes: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights of shape (r, n_classes) and intercepts of the least penalised log-loss.

    `squares` are the squared lengths of the axes that `inputs` were projected on.
    """
    from scipy.optimize import minimize

    r = inputs.shape[1]
    target = np.eye(n_classes)[y]
    shares = sample_weight @ target / sample_weight.sum()
    penalty = (_PENALTY * squares)[:, None]
    # the scale of the intercepts, whose curvature is that of all rows
    unit = 1 / np.sqrt(sample_weight.sum() * (n_classes - 1) / n_classes**2)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, intercept = flat[: r * n_classes].reshape(r, n_classes), flat[r * n_classes :]
        scores = inputs @ weights + unit * intercept
        scores -= scores.max(axis=1, keepdims=True)
        exponentials = np.exp(scores)
        totals = exponentials.sum(axis=1)
        losses = np.log(totals) - scores[np.arange(len(y)), y]
        error = (exponentials / totals[:, None] - target) * sample_weight[:, None]
        loss = losses @ sample_weight + (penalty * weights**2).sum() / 2
        gradient = inputs.T @ error + penalty * weights
        return float(loss), np.concatenate([gradient.ravel(), unit * error.sum(axis=0)])

    start = np.concatenate([np.zeros(r * n_classes), np.log(shares) / unit])
    optimum = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _MAX_STEPS, "gtol": _TOLERANCE, "ftol": 1e-9},
    )
    return optimum.x[: r * n_classes].reshape(r, n_classes), unit * optimum.x[r * n_classes :]
