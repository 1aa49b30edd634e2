"""The weak learner that every boosting algorithm grows: one prompt with one verbalizer.

A *matrix* throughout `blackbox.boosting` is the log-probabilities of one prompt, float32 of shape
(n rows, V tokens), with its columns in ascending order of token id.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

__all__ = ["WeakLearner", "one_blas_thread", "softmax"]


@dataclass(frozen=True)
class WeakLearner:
    """One prompt paired with one verbalizer, and its weight in the ensemble.

    Parameters
    ----------
    prompt : int
        Index of the prompt, and so of its matrix.
    columns : int array of shape (n_classes, m)
        Per class, the columns of the matrix whose tokens are its verbalizer.
    token_weights : float32 array of shape (n_classes, m)
        The weight of each token: above 0 where a likely token speaks for the class, below 0 where
        it speaks against, 0 for padding. The absolute weights of a class sum to 1.
    weight : float
        The weight of the vote: α in SAMME, the step along the class scores in `logit`.
    """

    prompt: int
    columns: NDArray[np.intp]
    token_weights: NDArray[np.float32]
    weight: float


def softmax(scores: NDArray[np.float64], axis: int = 1) -> NDArray[np.float64]:
    """Return probabilities for scores of shape (n, n_classes), or of another axis of classes."""
    shifted = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=axis, keepdims=True))


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which BLAS uses one thread.

    The products of a round are small: threads would wait for each other more than work.
    """
    limited: AbstractContextManager[Any] = _threads().limit(limits=1, user_api="blas")
    return limited


@functools.cache  # it looks through all libraries of the process, which takes milliseconds
def _threads() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  # its BLAS must be loaded by then

    return ThreadpoolController()
