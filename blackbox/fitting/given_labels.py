"""Labels as they are given: which are missing, and which are of none of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blackbox.answers.labels import is_missing

__all__ = ["is_same", "split_labels"]


def split_labels(
    y: ArrayLike, classes: Sequence[Any] | None, none_of_these: Any
) -> tuple[ArrayLike, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return labels, which are of no class, and which of these are of none of the classes.

    A label of no class is missing, with `classes`, or is that of `none_of_these`; another one
    stands in its place.

    Parameters
    ----------
    y : array-like of shape (n,)
        Labels as they were given.
    classes : sequence of labels, optional
        The classes that were named.
    none_of_these : label, optional
        The label of texts of none of the classes.

    Raises
    ------
    ValueError
        If no label is of a class.
    """
    none = np.zeros(len(np.asarray(y)), bool)
    if classes is None and none_of_these is None:
        return y, none, none
    values = list(np.asarray(y, object).ravel())
    missing = none.copy()
    if classes is not None:
        missing = np.array([is_missing(one) for one in values], bool)
    outside = none
    if none_of_these is not None:
        outside = np.array([is_same(one, none_of_these) for one in values], bool)
    missing = missing | outside
    if not missing.any():
        return y, missing, outside
    known = [one for one, is_missing in zip(values, missing, strict=True) if not is_missing]
    if not known and outside.any():
        raise ValueError(
            f"all labels are {none_of_these!r}, which stands for none of the classes: "
            "label texts of the classes"
        )
    filled = [
        known[0] if is_missing and known else one
        for one, is_missing in zip(values, missing, strict=True)
    ]
    return filled, missing, outside


def is_same(label: Any, other: Any) -> bool:
    """Return whether two labels are the same one, and not only equal, as 1 and True are."""
    value = label.item() if isinstance(label, np.generic) else label
    return type(value) is type(other) and bool(value == other)
