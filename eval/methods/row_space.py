"""Few rows of many columns, written in the small space that they span."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

__all__ = ["in_row_space"]

_MOST_ROWS = 1500  # making the basis grows with their cube
_LEAST = 1e-10  # of the largest squared length along a direction: less is rounding


def in_row_space(
    rows: Any,
) -> tuple[NDArray[np.float64], Callable[[Any], NDArray[np.float64]]]:
    """Rows in an orthonormal basis of the space that they span, and what writes others in it.

    A linear model whose weights are penalised by their squares has them in this space: fitted in it
    the model is the same, and smaller where rows are fewer than columns. Where they aren't, or are
    many, nothing changes.

    Parameters
    ----------
    rows : float array or sparse matrix of shape (n, n_columns)
        The training rows.
    """
    n, n_columns = rows.shape
    if n >= min(n_columns, _MOST_ROWS):
        return rows, lambda others: others
    if not issparse(rows):
        basis, triangle = np.linalg.qr(rows.T)
        return triangle.T, lambda others: others @ basis
    squares, directions = np.linalg.eigh((rows @ rows.T).toarray())
    real = squares > _LEAST * squares.max()
    lengths, directions = np.sqrt(squares[real]), directions[:, real]
    return directions * lengths, lambda others: (others @ rows.T).toarray() @ directions / lengths
