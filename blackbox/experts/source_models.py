"""Source models: trained models of other tasks, which score texts for classes of their own.

They read the answers to prompts that are asked anyway; see `blackbox.experts.source_readout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix

__all__ = ["MAX_SOURCES", "SourceModel", "stack_probabilities"]

MAX_SOURCES = 5
"""Source models that a model keeps, at most."""


@dataclass(frozen=True)
class SourceModel:
    """A trained model of another task, as a function of the answers to some prompts.

    Its score of a class is linear in the log-probabilities of tokens, and what a prompt adds is
    within bounds, as in the model that it was taken from.

    Parameters
    ----------
    name : str
        Its name in the library.
    classes : tuple of str
        Its Z classes.
    prompts : tuple of R int
        The prompts that it reads, by their numbers in the pool of the new task.
    token_ids : tuple of R int32 arrays of shape (V_r,)
        The tokens that it reads of each, in ascending order.
    coefficients : tuple of R float16 arrays of shape (V_r, Z)
        What a unit of log-probability adds to each score.
    offsets, low, high : float64 arrays of shape (R, Z)
        The constant and the bounds of what each prompt adds.
    floors : float64 array of shape (R,)
        The least log-probability under each prompt; see `blackbox.answers.features`.
    initial : float64 array of shape (Z,)
        Scores before the first prompt.
    """

    name: str
    classes: tuple[str, ...]
    prompts: tuple[int, ...]
    token_ids: tuple[NDArray[np.int32], ...]
    coefficients: tuple[NDArray[np.float16], ...]
    offsets: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    floors: NDArray[np.float64]
    initial: NDArray[np.float64]

    def probabilities(self, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return the probabilities of its classes: (n, Z).

        Parameters
        ----------
        matrices : sequence of R float32 arrays of shape (n, V_r)
            The log-probabilities of its tokens under each of its prompts.
        """
        scores = np.tile(self.initial, (len(matrices[0]), 1))
        for number, matrix in enumerate(matrices):
            values = np.maximum(matrix, self.floors[number]).astype(np.float64)
            # row by row in one order of summation, so that a row's scores are its own
            added = np.einsum("nv,vz->nz", values, self.coefficients[number].astype(np.float64))
            added += self.offsets[number]
            scores += np.clip(added, self.low[number], self.high[number])
        scores -= scores.max(axis=1, keepdims=True)
        exponentials = np.exp(scores)
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def stack_probabilities(each: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the probabilities of S sources as one array, 0 beyond their own classes: (n, S, Z)."""
    widest = max(one.shape[1] for one in each)
    return np.stack([np.pad(one, ((0, 0), (0, widest - one.shape[1]))) for one in each], axis=1)
