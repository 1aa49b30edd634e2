"""The words of a `DataError`: the place, the value found there, the words of a library."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from blackbox.errors import DataError

__all__ = [
    "STDIN",
    "STDOUT",
    "at_cell",
    "at_row",
    "data_errors",
    "is_address",
    "kind_of",
    "public",
    "reason",
    "usable",
]

STDIN = "<stdin>"
"""The name of standard input."""

STDOUT = "<stdout>"
"""The name of standard output."""


_HARMLESS = ("region", "scheme", "endpoint_override", "allow_delayed_open")  # options, no keys


def is_address(path: str) -> bool:
    """Return whether a path is an address with a scheme, such as ``s3://bucket/folder``."""
    return "://" in path


def public(path: str) -> str:
    """Return a path or address as messages may show it.

    An address loses all before its last "@", as a key may hold any character, and those of its
    options that may be keys.
    """
    if not is_address(path):
        return path
    place, mark, options = re.sub(r"(?<=://).*@", "", path, flags=re.DOTALL).partition("?")
    shown = [
        option if option.partition("=")[0] in _HARMLESS else "…" for option in options.split("&")
    ]
    return place + mark + "&".join(shown) if mark else place


def at_row(name: str, number: int, line: int) -> str:
    """Return the place of a row; number 0 is the header."""
    return f"{name}, {f'row {number}' if number else 'header'} (line {line})"


def at_cell(name: str, row: int, column: str) -> str:
    """Return the place of a cell."""
    return f"{public(name)}, row {row}, column {column!r}"


def kind_of(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    names = {"str": "a string", "list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"a value of type {type(value).__name__}")


def reason(error: Exception) -> str:
    """Return one line about an error that isn't ours."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos + 1}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "int_max_str_digits" in str(error):  # Python's advice is for programs
        return f"a number of more than {sys.get_int_max_str_digits()} digits"
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def data_errors(where: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of the system and of libraries into `DataError`; `where` begins with a name."""
    try:
        yield
    except DataError:
        raise
    except kinds as error:
        if isinstance(error, BrokenPipeError) and where.startswith(STDOUT):
            raise  # nothing is wrong with a table that `head` cuts off
        raise DataError(f"{where}: {reason(error)}") from error


def usable(value: str, what: str, row: int, column: str, name: str) -> str:
    """Return a text or label that holds something; else raise `DataError`."""
    if not value or value.isspace():
        where = at_cell(name, row, column)
        raise DataError(f"{where}: the {what} is empty; fill it in or remove the row")
    if "\0" in value:
        where = at_cell(name, row, column)
        raise DataError(f"{where}: the {what} holds a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        where, half = at_cell(name, row, column), value[error.start]
        raise DataError(
            f"{where}: the {what} holds {half!r}, half a character; remove it"
        ) from error
    return value
