"""Training texts that a model keeps on request, to show the labelled ones nearest to a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.prompts.template import Example

__all__ = ["KeptExamples"]


@dataclass(frozen=True)
class KeptExamples:
    """Labelled texts with their embeddings.

    Parameters
    ----------
    texts : sequence of Example
        n texts, or pairs.
    codes : int array of shape (n,)
        Their classes, as indices into the model's classes.
    vectors : float32 array of shape (n, d)
        Their vectors, as from `blackbox.experts.vectors.read_vectors`.
    """

    texts: Sequence[Example]
    codes: NDArray[np.intp]
    vectors: NDArray[np.float32]

    def nearest(self, vector: NDArray[np.float32], n: int) -> list[tuple[int, float]]:
        """Return the numbers of the nearest n examples and their cosine similarities.

        Parameters
        ----------
        vector : float32 array of shape (d,)
            The vector of a text.
        n : int
            How many; ties go to the first.
        """
        lengths = np.linalg.norm(self.vectors, axis=1) * np.linalg.norm(vector)
        cosines = self.vectors @ vector / np.maximum(lengths, np.finfo(np.float32).tiny)
        order = np.argsort(-cosines, kind="stable")[:n].tolist()
        return [(number, float(cosines[number])) for number in order]
