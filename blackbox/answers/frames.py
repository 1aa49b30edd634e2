"""Tables and columns of other packages: Arrow, polars, and the data sets of `datasets`.

None of them is imported to find out: an object of a package can only exist where it was imported.
Containers of pandas are left to NumPy and scikit-learn, which read them as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["column_names", "label_names", "labels_of", "selected", "to_rows", "with_names_only"]

_ARROW = ("pyarrow", ("Table", "RecordBatch", "Array", "ChunkedArray"))
_POLARS = ("polars", ("DataFrame", "Series"))
_DATA_SET = ("datasets.arrow_dataset", ("Dataset", "Column"))
_MISSING_LABEL = -1  # in a `ClassLabel`


def column_names(data: Any) -> list[Any] | None:
    """Return the names of the columns of a table; None for anything else."""
    if _is_of(data, _ARROW) or _is_of(data, _DATA_SET):
        names: list[Any] | None = getattr(data, "column_names", None)
        return names
    if len(getattr(data, "shape", ())) != 2 or not hasattr(data, "columns"):
        return None
    return list(data.columns)


def selected(data: Any, names: Sequence[Any]) -> str:
    """Return the expression that selects columns of a table `X`, for messages."""
    if len(names) == 1:
        return f"X[{names[0]!r}]"
    if _is_of(data, _DATA_SET):
        return f"X.select_columns({list(names)!r})"
    return f"X.select({list(names)!r})" if _is_of(data, _ARROW) else f"X[{list(names)!r}]"


def to_rows(data: Any) -> Any:
    """Return a column as a list, and a table as an array of objects of shape (n, n_columns).

    Missing values are None. Images of a data set are the bytes or the paths of its files. Of other
    packages than Arrow, polars and `datasets` anything is returned as it is.
    """
    if not any(_is_of(data, package) for package in (_ARROW, _POLARS, _DATA_SET)):
        return data
    if column_names(data) is None:
        return _values(data)
    columns = _columns(data)
    rows = np.empty((len(data), len(columns)), object)
    for place, column in enumerate(columns):
        rows[:, place] = np.fromiter(column, object, len(data))  # a list stays one value
    return rows


def labels_of(y: Any) -> Any:
    """Return labels as the checks of labels take them: those of a single column as a list.

    A table of several columns is an indicator matrix, and stays as it is: it names its labels.
    """
    names = column_names(y)
    if names is not None and len(names) > 1:
        return y
    rows = to_rows(y)
    return rows[:, 0].tolist() if names is not None and rows is not y else rows


def label_names(
    y: Any, labels: Any, weights: Any = None, classes: Sequence[Any] | None = None
) -> dict[Any, str]:
    """Return the names of the labels of a data set that have some, by a feature `ClassLabel`.

    Parameters
    ----------
    y : object
        Labels as they were given; they have names where they are a column of `datasets`.
    labels : sequence
        The same, as `labels_of` returns them.
    weights : sequence of float, optional
        Weights of the rows. A label that only rows without a weight have is left out.
    classes : sequence of labels, optional
        Labels that there are, whether or not a row has them.
    """
    if not _is_of(y, _DATA_SET):
        return {}
    feature = y.features if column_names(y) is None else y.features[y.column_names[0]]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is None:
        return {}
    used = set(classes or ())
    for label, weight in zip(labels, repeat(1) if weights is None else weights, strict=False):
        if weight and label is not None:
            used.update(label if isinstance(label, list) else [label])
    return {code: name for code, name in enumerate(names) if code in used}


def with_names_only(X: Any) -> Any:
    """Return something of which scikit-learn reads the names of columns that `X` has, if any.

    It knows neither data sets nor, before version 1.9, polars.
    """
    names = column_names(X)
    if names is None or not any(_is_of(X, one) for one in (_ARROW, _POLARS, _DATA_SET)):
        return X
    import pyarrow

    return pyarrow.Table.from_arrays([pyarrow.nulls(0) for _ in names], names=names)


def _is_of(data: Any, package: tuple[str, tuple[str, ...]]) -> bool:
    module, names = package
    loaded = sys.modules.get(module)
    kinds = (getattr(loaded, name, None) for name in names)
    return loaded is not None and isinstance(data, tuple(kind for kind in kinds if kind))


def _columns(table: Any) -> list[list[Any]]:
    if _is_of(table, _DATA_SET):
        return [_of_data_set(table, name) for name in table.column_names]
    columns = table.columns if _is_of(table, _ARROW) else table.get_columns()
    return [_values(column) for column in columns]


def _values(column: Any) -> list[Any]:
    if _is_of(column, _ARROW):
        return _image_files(column.to_pylist())
    if _is_of(column, _POLARS):
        return _image_files(column.to_list())
    if hasattr(column.source, "column_names"):
        return _of_data_set(column.source, column.column_name)
    return list(column)  # a column of a column


def _of_data_set(data_set: Any, name: str) -> list[Any]:
    """Return a column of a data set, read at once: row after row is much slower."""
    if data_set.format["type"] == "custom":  # the user's own transform
        return list(data_set[name])
    feature = data_set.features[name]
    column = data_set.select_columns([name]).with_format(None)
    image = sys.modules["datasets"].Image
    if isinstance(feature, image):
        column = column.cast_column(name, image(decode=False))
    values = column[:][name]
    if hasattr(feature, "names"):
        return [None if value == _MISSING_LABEL else value for value in values]
    return _image_files(values)


def _image_files(values: Sequence[Any]) -> list[Any]:
    """Return values as they are, and images as data sets of the hub hold them as bytes or paths."""
    first = next((value for value in values if value is not None), None)
    if not isinstance(first, dict) or first.keys() != {"bytes", "path"}:
        return list(values)
    return [None if value is None else _image_file(value) for value in values]


def _image_file(value: dict[str, Any]) -> bytes | Path | None:
    return value["bytes"] or (Path(value["path"]) if value["path"] else None)
