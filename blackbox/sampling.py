"""Few-shot draws of training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blackbox.errors import DataError

__all__ = ["draw_shots"]


def draw_shots(labels: Sequence[str], shots: int, seed: int) -> list[int]:
    """Draw the same number of rows from each class, without replacement.

    Parameters
    ----------
    labels : sequence of str
        The label of each row.
    shots : int
        Rows a class.
    seed : int
        The same seed draws the same rows.

    Returns
    -------
    list of int
        Row numbers from 0, ascending.

    Raises
    ------
    DataError
        If a class has fewer rows.
    """
    rng = np.random.default_rng(seed)
    array = np.asarray(labels, object)  # text of a fixed width takes that of the longest label
    drawn: list[int] = []
    for label in sorted(set(labels)):
        rows = np.flatnonzero(array == label)
        if len(rows) < shots:
            raise DataError(
                f"class {label!r} has {len(rows)} rows and {shots} are wanted: lower --shots"
            )
        drawn += rng.choice(rows, shots, replace=False).tolist()
    return sorted(drawn)
