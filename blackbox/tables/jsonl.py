"""JSONL, one object a line, each with keys of its own; and JSON, an array of such objects."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, BinaryIO

from blackbox.errors import DataError
from blackbox.tables.cells import as_json
from blackbox.tables.exports import flat_row, leaves_out_label, rows_within
from blackbox.tables.messages import at_row, kind_of, reason

__all__ = ["JsonlWriter", "read_jsonl"]

_log = logging.getLogger(__name__)

_MAX_ARRAY = 80_000_000
_BLANK = " \t\r\n"

Found = tuple[dict[str, Any], str | None]
"""An object, and the JSON that it was read from; None for an export, whose objects are changed."""


def read_jsonl(
    lines: Iterator[str], name: str, required: list[str]
) -> tuple[list[str], Iterator[Found]]:
    """Return the keys of the first object and all objects, each with its own JSON.

    An object that lacks a key of `required` is refused; keys may be added to that list later. A
    table that begins with `[` is one array of objects. Exports of annotation tools are recognised;
    see `blackbox.tables.exports`.
    """
    objects = _objects(lines, name, required)
    first = next(objects, None)
    if first is None:
        raise DataError(f"{name}: is empty; write one JSON object a line")
    return list(first[0]), chain([first], objects)


def _objects(lines: Iterator[str], name: str, required: list[str]) -> Iterator[Found]:
    number = 0
    for line, text in enumerate(lines, 1):
        if text.isspace():
            continue
        if not number and text.lstrip().startswith("["):
            yield from _array(text, lines, line, name, required)
            return
        number += 1
        where = at_row(name, number, line)
        if number == 1 and text.strip() in ("{", '{"examples": [', '{"examples":['):
            yield from _of_one_object(text, lines, name, required)
            return
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: broken JSON ({reason(error)}); each line must be one whole object"
            ) from error
        if number == 1 and (rows := rows_within(value)) is not None:
            yield from _listed(rows, name, required)
            return
        yield _found(value, text, required, where, "each line must be one JSON object", number)


def _array(
    text: str, lines: Iterator[str], line: int, name: str, required: list[str]
) -> Iterator[Found]:
    """Objects of an array, which is read whole."""
    text = _whole(text, lines, name)
    number, before, place = 0, 0, _skip(text, text.index("[") + 1)
    while text[place : place + 1] != "]":
        number += 1
        line, before = line + text.count("\n", before, place), place
        where = at_row(name, number, line)
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: broken JSON ({reason(error)}); the file must be one array of objects"
            ) from error
        advice = "each item of the array must be one JSON object"
        source = text[place:end].replace("\n", " ").replace("\r", " ")
        yield _found(value, source, required, where, advice, number)
        place = _skip(text, end)
        if text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place : place + 1] != "]":
            raise DataError(f"{where}: broken JSON (no comma or ']' after it); add it")
    if text[place + 1 :].strip(_BLANK):
        raise DataError(f"{name}: broken JSON (text after the array); remove it")


def _skip(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _BLANK:
        place += 1
    return place


def _whole(text: str, lines: Iterator[str], name: str) -> str:
    """Return a text with all lines to come."""
    parts, size = [text], len(text)
    for part in lines:
        parts.append(part)
        size += len(part)
        if size > _MAX_ARRAY:
            raise DataError(
                f"{name}: a JSON array of more than {_MAX_ARRAY:,} characters; save it as JSONL, "
                "one object a line"
            )
    return "".join(parts)


def _of_one_object(
    text: str, lines: Iterator[str], name: str, required: list[str]
) -> Iterator[Found]:
    """Objects inside one object over several lines, which is read whole."""
    try:
        value = _DECODER.decode(_whole(text, lines, name))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{at_row(name, 1, 1)}: broken JSON ({reason(error)}); each line must be one whole "
            "object, or the file one array of objects"
        ) from error
    rows = rows_within(value)
    yield from _listed([value] if rows is None else rows, name, required)


def _listed(rows: list[Any], name: str, required: list[str]) -> Iterator[Found]:
    for number, value in enumerate(rows, 1):
        where = f"{name}, row {number}"
        text = as_json(value)
        yield _found(value, text, required, where, "each must be one JSON object", number)


def _found(
    value: Any, text: str, required: list[str], where: str, advice: str, number: int
) -> Found:
    """Return an object as a row; raise if it can't be one."""
    if type(value) is not dict:
        raise DataError(f"{where}: {kind_of(value)}; {advice}")
    row, tool = flat_row(value)
    if tool and number == 1:
        table = where.rpartition(", ")[0]
        _log.warning("%s: read as an export of %s", table, tool)
        if leaves_out_label(value, row, tool):
            _log.warning(
                "%s: the field 'label' of its data is left out: the annotations are the column "
                "'label'",
                table,
            )
    for column in required:
        if column not in row:
            raise DataError(f"{where}: no key {column!r}; every object needs it")
    return row, None if tool else text


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {key!r:.100} is there twice; remove one")
    return found


def _float(text: str) -> float | str:
    """A number as a float, or its digits where no float is as large."""
    value = float(text)
    return text if math.isinf(value) else value


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeated_keys, parse_float=_float)


class JsonlWriter:
    """Writes rows as JSONL."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, values: Mapping[str, Any], before: str | None = None) -> None:
        """Write one row; `before` is the JSON of an object whose other keys come first, as is."""
        line = as_json(dict(values))
        if before is not None:
            old, new = before.strip()[1:-1].strip(), line[1:-1]
            line = "{" + old + (", " if old and new else "") + new + "}"
        # "backslashreplace" spells half a surrogate pair as JSON does, and changes nothing else
        self._file.write((line + "\n").encode("utf-8", "backslashreplace"))
