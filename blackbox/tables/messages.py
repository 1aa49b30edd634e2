"""The words of a `DataError`: where it is, what stands there, what a library says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from blackbox.errors import DataError

__all__ = ["at_cell", "at_row", "data_errors", "kind_of", "reason"]


def at_row(name: str, number: int, line: int) -> str:
    """The place of a row; number 0 is the header."""
    return f"{name}, {f'row {number}' if number else 'header'} (line {line})"


def at_cell(name: str, row: int, column: str) -> str:
    """The place of a cell."""
    return f"{name}, row {row}, column {column!r}"


def kind_of(value: object) -> str:
    """A value in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    names = {"str": "a string", "list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")


def reason(error: Exception) -> str:
    """One line about an error that isn't ours."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos + 1}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def data_errors(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of the system and of libraries into ours."""
    try:
        yield
    except (DataError, BrokenPipeError):  # nothing is wrong with a table that `head` cuts off
        raise
    except kinds as error:
        raise DataError(f"{where}: {reason(error)}") from error
