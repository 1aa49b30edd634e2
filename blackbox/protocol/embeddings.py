"""Embedding vectors of texts."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blackbox.errors import BackendResponseError
from blackbox.protocol.usage import Usage

_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Embeddings:
    """Embedding vectors of n texts.

    Parameters
    ----------
    vectors : float32 array of shape (n, d)
        Vectors of norm 1; NaN rows where the provider refused.
    row_errors : mapping of int to str
        Rows that the provider refused, with the reason.
    usage : Usage
        Usage of this call; each text is one forward pass.

    Raises
    ------
    BackendResponseError
        On a wrong shape, NaN, or a norm other than 1 in a row that was not refused.
    """

    vectors: NDArray[np.float32]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        values = self.vectors
        if values.ndim != 2 or values.dtype != np.float32:
            raise BackendResponseError(
                f"embeddings must be a 2-d float32 array, got {values.dtype} {values.shape}"
            )
        answered = np.ones(len(values), bool)
        answered[list(self.row_errors)] = False
        squares = np.einsum("nd,nd->n", values, values)
        wrong = answered & ~(np.abs(np.sqrt(squares) - 1) <= _NORM_TOLERANCE)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise BackendResponseError(
                f"embedding {row}: the norm is {math.sqrt(squares[row]):.3g} and not 1"
            )

    @classmethod
    def of(
        cls,
        vectors: ArrayLike,
        row_errors: Mapping[int, str] | None = None,
        usage: Usage | None = None,
    ) -> Embeddings:
        """Return embeddings of any norm, normalised.

        Parameters
        ----------
        vectors : array-like of shape (n, d)
            Vectors of any norm above 0; the values of refused rows don't matter.
        row_errors : mapping of int to str, optional
            Rows that the provider refused, with the reason.
        usage : Usage, optional
            By default, one forward pass per row that was not refused.

        Raises
        ------
        BackendResponseError
            If a row that was not refused is zero or not finite, or the shape is wrong.
        """
        try:
            values = np.array(vectors, np.float64)
        except (TypeError, ValueError) as error:
            raise BackendResponseError("embeddings are not numbers of one length") from error
        if values.ndim != 2:
            raise BackendResponseError(f"embeddings must be 2-d, got shape {values.shape}")
        errors = dict(row_errors or {})
        values[list(errors)] = np.nan
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        passes = Usage(passes_made=len(values) - len(errors)) if usage is None else usage
        return cls(values.astype(np.float32), errors, passes)

    def with_usage(self, usage: Usage) -> Embeddings:
        """Return a copy with another usage; the vectors are not checked again."""
        same = copy.copy(self)
        object.__setattr__(same, "usage", usage)
        return same

    def __len__(self) -> int:
        return len(self.vectors)


EmbeddingParts = Generator[tuple[list[int], Embeddings], None, None]
"""Embeddings in parts, as they arrive: the positions of some texts, and their vectors."""


def gather_embeddings(
    parts: Iterable[tuple[list[int], Embeddings]], n: int, size: int
) -> Embeddings:
    """Return the parts that arrived for n texts as one, in order; `size` is the vectors' length.

    Raises
    ------
    BackendResponseError
        If vectors have another length, or a text got none and no reason for it.
    """
    vectors = np.full((n, size), np.nan, np.float32)
    row_errors: dict[int, str] = {}
    usage = Usage()
    for where, part in parts:
        if part.vectors.shape != (len(where), size):
            raise BackendResponseError(
                f"embeddings of shape {part.vectors.shape}, expected {(len(where), size)}"
            )
        vectors[where] = part.vectors
        row_errors.update({where[place]: why for place, why in part.row_errors.items()})
        usage += part.usage
    return Embeddings(vectors, row_errors, usage)
