"""Checks of the labels to train on, and their conversion into an array."""

from __future__ import annotations

import functools
import logging
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blackbox.tables import similar_labels

__all__ = ["check_ending", "is_missing", "kind_of_label", "label_array"]

_log = logging.getLogger(__name__)


def label_array(y: ArrayLike) -> NDArray[Any]:
    """Return the labels as an array of shape (n,); labels that look alike are logged.

    Whole numbers in an array of objects, a list or a column that may lack values, as pandas makes
    them, become an array of int, and truth values one of bool.

    Raises
    ------
    ValueError
        If a label is missing, is a collection, is of another type than the others, or ends in NUL.
    """
    from blackbox.sklearn_compat import check_y

    if not isinstance(y, np.ndarray) or y.dtype.kind in "fO":
        y = _checked(y)
    labels: NDArray[Any] = check_y(y, estimator="PromptBoostingClassifier")
    pairs = similar_labels(np.unique(labels).tolist() if labels.dtype.kind == "U" else labels)
    if pairs:
        _warn_of_similar(tuple(pairs))
    return labels


def _checked(y: Any) -> Any:
    """Return labels that scikit-learn understands, or raise in our own words."""
    if getattr(y, "ndim", 1) != 1 or isinstance(y, str | bytes) or not hasattr(y, "__iter__"):
        return y  # scikit-learn's own words fit
    labels = list(y)
    dtype = getattr(y, "dtype", None)
    for row, label in enumerate(labels):
        if is_missing(label):
            raise ValueError(
                f"row {row}: the label is missing (y contains NaN); label the row or leave it out "
                "(pandas takes a class called NA, None or null for missing, unless it is read with "
                "keep_default_na=False)"
            )
        check_ending(label, row)
        several = isinstance(label, list | tuple | np.ndarray) and len(label) != 1
        if several or isinstance(label, set | frozenset | dict):
            raise ValueError(
                f"row {row}: y should be a 1d array, one str or whole number per row, got a "
                f"{type(label).__name__}; for several labels per text see docs/several-labels.md"
            )
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        return y
    kinds = {kind_of_label(label): row for row, label in reversed(list(enumerate(labels)))}
    if len(kinds) > 1:
        (one, first), (other, second) = sorted(kinds.items(), key=lambda kind: kind[1])[:2]
        raise ValueError(
            f"the label of row {second} is of type {other} and that of row {first} of type {one}; "
            "make all labels str or all int"
        )
    if kinds.keys() <= {"int", "bool"}:
        return np.array(labels)
    if dtype is None and kinds.keys() == {"str"}:
        return [str.__str__(label) for label in labels]  # of an enum the value
    return y


def check_ending(label: Any, row: int) -> None:
    """Raise if a label ends in NUL, which an array of NumPy can't tell from the same without."""
    if isinstance(label, str) and label.endswith("\0"):
        raise ValueError(
            f"row {row}: the label {label!r} ends in a NUL character, which an array of labels "
            "doesn't keep: rename it"
        )


def is_missing(label: Any) -> bool:
    """Return whether a label is None, NaN, or what pandas has for them."""
    is_nan = isinstance(label, float | np.floating) and bool(np.isnan(label))
    return label is None or is_nan or type(label).__name__ in ("NAType", "NaTType")


def kind_of_label(label: Any) -> str:
    """Return the type of a label, as messages call it."""
    if isinstance(label, str):
        return "str"
    if isinstance(label, bool | np.bool_):
        return "bool"
    return "int" if isinstance(label, int | np.integer) else type(label).__name__


def _both(one: str, other: str) -> str:
    """Return two labels as they are shown: by code points where they may look the same."""
    alike = unicodedata.normalize("NFKC", one) == unicodedata.normalize("NFKC", other)
    return f"{one!a} and {other!a}" if alike else f"{one!r} and {other!r}"


@functools.cache  # once, and not for each fold of a cross-validation
def _warn_of_similar(pairs: tuple[tuple[str, str], ...]) -> None:
    shown = "; ".join(_both(*pair) for pair in pairs[:5])
    more = f"; and {len(pairs) - 5} pairs more" if len(pairs) > 5 else ""
    _log.warning(
        "labels that differ only by blanks, case or Unicode form are different classes: %s%s; if "
        "that is a mistake, correct them",
        shown,
        more,
    )
