"""Projection of a few rows with many columns onto the space that they span."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

__all__ = ["project_to_row_space"]

_MAX_ROWS = 1500  # the basis takes time cubic in them
_MIN_SHARE = 1e-10  # of the largest squared length along a direction: less is rounding


def project_to_row_space(
    rows: Any,
) -> tuple[NDArray[np.float64], Callable[[Any], NDArray[np.float64]]]:
    """Return rows in an orthonormal basis of their span, and a function that projects others.

    The weights of a linear model with a squared penalty lie in this space: a model fitted in it is
    the same, and smaller if there are fewer rows than columns. Otherwise, and with many rows, the
    rows are returned unchanged.

    Parameters
    ----------
    rows : float array or sparse matrix of shape (n, n_columns)
        The training rows.
    """
    n, n_columns = rows.shape
    if n >= min(n_columns, _MAX_ROWS):
        return rows, lambda others: others
    if not issparse(rows):
        basis, triangle = np.linalg.qr(rows.T)
        return triangle.T, lambda others: others @ basis
    squares, directions = np.linalg.eigh((rows @ rows.T).toarray())
    real = squares > _MIN_SHARE * squares.max()
    lengths, directions = np.sqrt(squares[real]), directions[:, real]
    return directions * lengths, lambda others: (others @ rows.T).toarray() @ directions / lengths
