"""Several labels per text: checks of what was given, and an indicator matrix of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.frames import column_names, to_rows
from blackbox.answers.labels import check_ending, kind_of_label, label_array

__all__ = ["LabelSets", "has_label_sets", "read_label_sets"]

_SETS = (list, tuple, set, frozenset, np.ndarray)


@dataclass(frozen=True)
class LabelSets:
    """The labels of n texts, of which each has any number.

    Parameters
    ----------
    labels : array of shape (n_labels,)
        The labels, in the order of the columns.
    targets : bool array of shape (n, n_labels)
        Which text has which label.
    indicator : bool
        Whether they were given as an indicator matrix, so that predictions are one too.
    """

    labels: NDArray[Any]
    targets: NDArray[np.bool_]
    indicator: bool


def has_label_sets(y: Any) -> bool:
    """Return whether labels are several per text: an indicator matrix, or collections of labels.

    A matrix of a single column is a column of labels, one per text.
    """
    if hasattr(y, "toarray"):  # a sparse matrix
        return bool(y.ndim == 2)
    names = column_names(y)
    if names is not None:
        return len(names) > 1
    n_dimensions = getattr(y, "ndim", None)
    if n_dimensions == 2:
        return bool(y.shape[1] > 1)
    if isinstance(y, str | bytes) or not hasattr(y, "__iter__") or n_dimensions not in (None, 1):
        return False
    return any(isinstance(one, _SETS) for one in y)


def read_label_sets(y: Any, classes: Sequence[Any] | None = None) -> LabelSets:
    """Return the labels of texts that may have several.

    Parameters
    ----------
    y : array or sparse matrix of shape (n, n_labels), frame, or sequence of collections of labels
        As from `has_label_sets`. Lists of the same length that hold nothing but 0 and 1 are the
        rows of a matrix, as for scikit-learn. The columns of a frame are its labels.
    classes : sequence, optional
        The labels: of the columns of a matrix, or those that collections may hold. By default the
        columns are counted from 0, and collections have those that they hold, sorted. The columns
        of a frame are found by their names.

    Raises
    ------
    ValueError
        On values that are neither 0 nor 1, missing labels, labels of several types, or labels that
        are not among `classes`; with the row. On a frame whose columns aren't the `classes`.
    TypeError
        If a row is no collection of labels.
    """
    names = None if classes is None else _named(classes)
    if column_names(y) is not None or getattr(y, "ndim", 1) == 2:
        return _of_matrix(y, names)
    rows = list(y)
    if _are_matrix_rows(rows):
        return _of_matrix(np.array(rows), names)
    return _of_collections(rows, names)


def _named(classes: Sequence[Any]) -> NDArray[Any]:
    named = label_array(list(classes))
    if len(set(named.tolist())) < len(named):
        raise ValueError(f"classes must be distinct labels, got {list(classes)!r}")
    return named


def _are_matrix_rows(rows: Sequence[Any]) -> bool:
    """Whether lists are the rows of an indicator matrix."""
    if not all(isinstance(row, list | tuple | np.ndarray) for row in rows):
        return False
    values = [value for row in rows for value in row]
    return (
        len({len(row) for row in rows}) == 1
        and len(rows[0]) > 1
        and all(isinstance(v, int | np.integer | np.bool_) and v in (0, 1) for v in values)
    )


def _is_unnamed(columns: list[Any], names: NDArray[Any]) -> bool:
    """Whether columns have pandas' own numbers, and labels have names."""
    return columns == list(range(len(columns))) and set(columns) != set(names.tolist())


def _of_matrix(y: Any, names: NDArray[Any] | None) -> LabelSets:
    given = column_names(y)
    values = y.toarray() if hasattr(y, "toarray") else np.asarray(to_rows(y))
    if names is None:
        names = np.arange(values.shape[1]) if given is None else _named(given)
    elif given is not None and not _is_unnamed(given, names):
        wanted = names.tolist()
        if set(given) != set(wanted) or len(given) > len(wanted):
            raise ValueError(
                f"the columns of y are {_shown(given)}, and the classes are {_shown(wanted)}: "
                "rename the columns or the classes, so that each label is found by its name"
            )
        values = values[:, [given.index(name) for name in wanted]]
    if len(names) != values.shape[1]:
        raise ValueError(
            f"y has {values.shape[1]} columns, and classes names {len(names)} labels: name each "
            "column"
        )
    try:
        targets = values.astype(np.float64)
    except (TypeError, ValueError):
        targets = np.array([[_as_number(value) for value in row] for row in values.tolist()])
    wrong = ~np.isin(targets, (0, 1))
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        value, label = values.tolist()[row][column], names.tolist()[column]
        what = "is missing" if value is None or value != value else f"{value!r} is neither 0 nor 1"
        raise ValueError(
            f"row {row}, label {label!r}: {what}; y of several labels per text is a matrix of 0 "
            "and 1, or a list of labels for each text"
        )
    return LabelSets(names, targets == 1, True)


def _shown(labels: Sequence[Any]) -> str:
    more = f" and {len(labels) - 10} more" if len(labels) > 10 else ""
    return ", ".join(map(repr, labels[:10])) + more


def _as_number(value: Any) -> float:
    return float(value) if isinstance(value, int | float | np.number | np.bool_) else np.nan


def _of_collections(rows: Sequence[Any], names: NDArray[Any] | None) -> LabelSets:
    sets = [list(_labels_of(one, row)) for row, one in enumerate(rows)]
    kinds: dict[str, tuple[int, Any]] = {}
    for row, labels in enumerate(sets):
        for label in labels:
            kinds.setdefault(kind_of_label(label), (row, label))
    if len(kinds) > 1:
        (one, (first, _)), (other, (second, _)) = sorted(
            kinds.items(), key=lambda kind: kind[1][0]
        )[:2]
        raise ValueError(
            f"row {second} has a label of type {other}, and row {first} one of type {one}; make "
            "all labels str or all int"
        )
    found = list(dict.fromkeys(label for labels in sets for label in labels))
    if names is None:
        if not found:
            raise ValueError("no text has a label: there is nothing to learn")
        names = np.unique(label_array(np.array(found)))
    places = {label: place for place, label in enumerate(names.tolist())}
    targets = np.zeros((len(sets), len(names)), bool)
    for row, labels in enumerate(sets):
        for label in labels:
            if label not in places:
                some = ", ".join(map(repr, names.tolist()[:10]))
                raise ValueError(f"row {row} has the label {label!r}, and the classes are {some}")
            targets[row, places[label]] = True
    return LabelSets(names, targets, False)


def _labels_of(given: Any, row: int) -> Iterable[Hashable]:
    """Return the labels of a row, checked to be labels."""
    if given is None or (isinstance(given, float) and given != given):
        raise ValueError(
            f"row {row}: the labels are missing; a text without any label has an empty list, and "
            "a text of unknown labels is left out"
        )
    if not isinstance(given, _SETS):
        raise TypeError(
            f"row {row}: a list of labels is needed, as other rows have, got {type(given).__name__}"
        )
    for label in given:
        if label is None or (isinstance(label, float) and label != label):
            raise ValueError(f"row {row}: one of its labels is missing (None or NaN)")
        if not isinstance(label, Hashable) or isinstance(label, tuple | frozenset):
            raise TypeError(
                f"row {row}: a label is a str or a whole number, got {type(label).__name__}"
            )
        check_ending(label, row)
        yield label.item() if isinstance(label, np.generic) else label
