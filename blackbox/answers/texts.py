"""Validation of input texts, and the error for rows without an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.frames import column_names, selected, to_rows
from blackbox.errors import ImageError, RowError
from blackbox.images import NO_IMAGE, Image
from blackbox.plurals import counted
from blackbox.prompts.inputs import Example

__all__ = ["CheckedTexts", "check_texts", "raise_row_errors", "row_digests"]

_SHOWN = 10  # columns in a message


class CheckedTexts(list[Example]):
    """A list of texts, pairs or images, with the reasons why some of them can't be used.

    Attributes
    ----------
    kind : str
        ``"text"``, ``"pair"`` or ``"image"``.
    refused : dict of int to str
        Rows whose text is empty or missing, or whose image can't be used.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        *,
        kind: str = "text",
        refused: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(examples)
        self.kind = kind
        self.refused: dict[int, str] = dict(refused or {})
        if kind == "image":
            return
        for row, (text, second) in enumerate(self):
            if not text.strip() or (isinstance(second, str) and not second.strip()):
                self.refused[row] = "empty text"


def check_texts(X: Any) -> CheckedTexts:
    """Return the texts of a sequence of str or pairs, or of an array or frame of 1 or 2 columns.

    A frame is one of pandas or polars, a table of Arrow, or a data set of `datasets`; a column of
    any of them is a sequence. Texts that were checked are returned as they are.

    An image is a `pathlib.Path`, the bytes of a file, a `PIL.Image.Image` or a
    `blackbox.images.Image`; in a pair with a text, in either order, it is an image with a text.

    Raises
    ------
    TypeError
        If an entry is neither a str, an image, nor a pair of them.
    ValueError
        If there are no rows, or other than one or two columns.
    """
    if isinstance(X, CheckedTexts):
        return X
    if isinstance(X, str | bytes):
        raise TypeError("X must hold texts, one a row; got a single str: put it into a list")
    names = column_names(X)
    if names is None:
        return _check_rows(_rows(X))
    if len(names) not in (1, 2):
        some = ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
        raise ValueError(
            f"X has {len(names)} columns ({some}); it needs one (text) or two (text, text_pair): "
            f"select them, as {selected(X, names[:1])} or {selected(X, names[:2])}"
        )
    try:
        return _check_rows(_rows(X))
    except TypeError as error:
        shown = " and ".join(map(repr, names))
        raise TypeError(
            f"{error}; X has the columns {shown}: select those of texts, such as "
            f"{selected(X, names[:1])}"
        ) from None


def _rows(X: Any) -> list[Any]:
    """Return the rows of what may hold texts; those of a table of two columns as tuples."""
    X = to_rows(X)
    if isinstance(X, Mapping) or hasattr(X, "column_names"):
        columns = list(X) if isinstance(X, Mapping) else list(X.column_names)
        shown = ", ".join(map(repr, columns[:_SHOWN]))
        parts = "splits" if type(X).__name__.endswith("DatasetDict") else "columns"
        raise TypeError(
            f"X is a {type(X).__name__} with the {parts} {shown}; it must hold texts, one a row: "
            f"give one of its {parts}, such as X[{columns[0]!r}]"
        )
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if hasattr(X, "toarray"):
        raise TypeError("X is a sparse matrix; it must hold texts, one str a row")
    if isinstance(X, np.ndarray):
        if X.dtype.kind == "c":
            raise ValueError("Complex data not supported: X must hold texts")
        if X.ndim == 2 and X.shape[1] not in (1, 2):
            raise ValueError(
                f"X has {X.shape[1]} columns; it needs one (text) or two (text, text_pair)"
            )
        if X.ndim not in (1, 2):
            raise ValueError(f"X must have one or two dimensions, got {X.ndim}: reshape your data")
        return [row[0] if len(row) == 1 else tuple(row) for row in X] if X.ndim == 2 else list(X)
    try:
        return list(X)
    except TypeError:
        advice = ": collect() it first" if hasattr(X, "collect") else ""
        raise TypeError(f"X must be a sequence of texts, got {type(X).__name__}{advice}") from None


def _check_rows(rows: Sequence[Any]) -> CheckedTexts:
    if not rows:
        raise ValueError("X has 0 sample(s) while a minimum of 1 is required: no texts")
    if _has_image(next((row for row in rows if row is not None), None)):
        return _images(rows)
    pair = not _is_text(rows[0])
    return CheckedTexts(
        (_example(row, number, pair) for number, row in enumerate(rows)),
        kind="pair" if pair else "text",
    )


def _has_image(row: Any) -> bool:
    return Image.is_one(row) or (isinstance(row, tuple | list) and any(map(Image.is_one, row)))


def _images(rows: Sequence[Any]) -> CheckedTexts:
    """Return images, each with or without a text; those that can't be used are refused."""
    found: list[Example] = []
    refused: dict[int, str] = {}
    for number, row in enumerate(rows):
        parts = list(row) if isinstance(row, tuple | list) else [row]
        images = [part for part in parts if Image.is_one(part)]
        texts = [_text(part, number) for part in parts if not Image.is_one(part)]
        image = NO_IMAGE
        if len(images) > 1 or len(parts) > 2:
            raise TypeError(f"row {number}: an input is one image, or one image and one text")
        if not images or images[0] is NO_IMAGE:
            refused[number] = "no image"
        else:
            try:
                image = Image.of(images[0])
            except ImageError as error:
                refused[number] = str(error)
        found.append((texts[0] if images and texts else "", image))
    return CheckedTexts(found, kind="image", refused=refused)


def raise_row_errors(reasons: Mapping[int, str], on_row_error: str) -> None:
    """Raise if rows got no answer and the policy is to raise.

    Parameters
    ----------
    reasons : mapping of int to str
        The rows without an answer, with the reasons.
    on_row_error : {"raise", "abstain"}
        The policy.

    Raises
    ------
    RowError
        If there are such rows and the policy is ``"raise"``.
    """
    if not reasons or on_row_error != "raise":
        return
    first = min(reasons)
    others = f" (and {counted(len(reasons) - 1, 'other row')})" if len(reasons) > 1 else ""
    raise RowError(
        f"row {first}: {reasons[first]}{others}; fix or remove it, or set on_row_error='abstain'",
        dict(reasons),
    )


def _is_text(value: Any) -> bool:
    # a missing value in a frame is None, NaN or pandas.NA: an empty text, for the row policy
    missing = value is None or type(value).__name__ == "NAType"
    return isinstance(value, str) or missing or (isinstance(value, float) and value != value)


def _text(value: Any, number: int) -> str:
    if isinstance(value, str):
        return str(value)
    if _is_text(value):
        return ""
    raise TypeError(f"row {number}: a text is a str, got {type(value).__name__}")


def _example(row: Any, number: int, pair: bool) -> Example:
    if not pair:
        return _text(row, number), None
    if not isinstance(row, tuple | list) or len(row) != 2:
        raise TypeError(
            f"row {number}: expected a pair (text, text_pair) of str, got {type(row).__name__}"
            if pair and number
            else f"row {number}: a text is a str or a pair of str, got {type(row).__name__}"
        )
    return _text(row[0], number), _text(row[1], number)


def in_digest_order(examples: Sequence[Example]) -> NDArray[np.intp]:
    """Return texts in an order that is as good as random, and the same for each subset of them."""
    digests = [int(row_digests([one])[0]) for one in examples]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.intp)


def _json(example: Example) -> str:
    text, second = example
    return json.dumps([text, {"image": second.digest}] if isinstance(second, Image) else example)


def row_digests(examples: Sequence[Example]) -> NDArray[np.uint64]:
    """Return the first 8 bytes of the digest of each distinct text, or pair, ascending.

    They recognise a text that somebody has; no text can be read out of them.
    """
    found = [hashlib.blake2b(_json(one).encode(), digest_size=8).digest() for one in examples]
    return np.unique(np.frombuffer(b"".join(found), "<u8").astype(np.uint64))
