"""Sentence embeddings of texts and of pairs of texts, as evidence for experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.prompts.inputs import Example
from blackbox.protocol import Usage

__all__ = ["Vectors", "read_vectors"]


@dataclass(frozen=True)
class Vectors:
    """Vectors of n texts, or of n pairs.

    Parameters
    ----------
    values : float32 array of shape (n, d), or (n, 4 d) for pairs
        NaN for refused rows.
    row_errors : dict of int to str
        Rows that the embedding model refused, with the reasons.
    usage : Usage
        Usage of the embedding model; each text is one forward pass, and a pair two.
    """

    values: NDArray[np.float32]
    row_errors: dict[int, str]
    usage: Usage

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which rows were not refused, of shape (n,)."""
        answered = np.ones(len(self.values), bool)
        answered[list(self.row_errors)] = False
        return answered

    def part(self, start: int, stop: int | None = None) -> Vectors:
        """Return the vectors of a range of rows, with the usage of all."""
        values = self.values[start:stop]
        last = start + len(values)
        errors = {row - start: why for row, why in self.row_errors.items() if start <= row < last}
        return Vectors(values, errors, self.usage)


def read_vectors(embedder: BaseBackend, examples: Sequence[Example]) -> Vectors:
    """Return the embeddings of texts; of a pair both vectors, their distance and their product.

    All is halved, so that a pair has about the norm of a text. Source:
    Conneau et al., "Supervised learning of universal sentence representations from natural
    language inference data", EMNLP 2017.

    Parameters
    ----------
    embedder : BaseBackend
        The embedding model, behind its store and its budget.
    examples : sequence of Example
        n texts, or pairs.
    """
    texts = [text for text, _ in examples]
    others = [other for _, other in examples if isinstance(other, str)]
    # one call, so that an engine fills its batches
    made = embedder.embed([*texts, *others])
    if not others:
        return Vectors(made.vectors, dict(made.row_errors), made.usage)
    n = len(texts)
    first, second = made.vectors[:n], made.vectors[n:]
    joined = np.concatenate([first, second, np.abs(first - second), first * second], axis=1)
    row_errors = {row % n: why for row, why in made.row_errors.items()}
    return Vectors((joined / 2).astype(np.float32), row_errors, made.usage)
