"""JSONL: one object a line, each with keys of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

from blackbox.errors import DataError
from blackbox.tables.cells import as_json
from blackbox.tables.messages import at_row, kind_of, reason

__all__ = ["JsonlWriter", "read_jsonl"]


def read_jsonl(
    lines: Iterator[str], name: str, required: list[str]
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the keys of the first object and all objects.

    An object that lacks a key of `required` is refused; keys may be added to that list later.
    """
    objects = _objects(lines, name, required)
    first = next(objects, None)
    if first is None:
        raise DataError(f"{name}: is empty; write one JSON object a line")
    return list(first), chain([first], objects)


def _objects(lines: Iterator[str], name: str, required: list[str]) -> Iterator[dict[str, Any]]:
    number = 0
    for line, text in enumerate(lines, 1):
        if text.isspace():
            continue
        number += 1
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{at_row(name, number, line)}: broken JSON ({reason(error)}); each line must be "
                "one whole object"
            ) from error
        if type(value) is not dict:
            where = at_row(name, number, line)
            raise DataError(f"{where}: {kind_of(value)}; each line must be one JSON object")
        for column in required:
            if column not in value:
                where = at_row(name, number, line)
                raise DataError(f"{where}: no key {column!r}; every object needs it")
        yield value


class JsonlWriter:
    """Writes rows as JSONL."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, values: dict[str, Any]) -> None:
        """Write one row."""
        line = as_json(values) + "\n"
        # "backslashreplace" spells half a surrogate pair as JSON does, and changes nothing else
        self._file.write(line.encode("utf-8", "backslashreplace"))
