"""Workbooks of spreadsheet programs, through calamine: the first sheet that has cells."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, BinaryIO

from blackbox.errors import DataError, MissingDependencyError
from blackbox.tables.messages import data_errors

__all__ = ["read_excel"]

_log = logging.getLogger(__name__)


def read_excel(file: BinaryIO, name: str) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the columns, which the first row names, and the rows to come.

    Whole numbers are int, as a workbook has no other; in a column that has texts, numbers are texts
    too, as a spreadsheet program makes a number of whatever looks like one. Empty cells are None,
    and blank rows are left out. Where there are several sheets, it is logged which one is read.

    Raises
    ------
    MissingDependencyError
        If the extra `excel` isn't installed.
    DataError
        If it is no workbook, or has no cells.
    """
    try:
        import python_calamine
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "a workbook needs python-calamine: pip install 'promptboosting[excel]', or save the "
            "table as CSV in UTF-8"
        ) from error
    with data_errors(f"{name}: damaged or locked, or not a workbook; save it anew", Exception):
        file.seek(0)
        workbook = python_calamine.load_workbook(file)
        for sheet in workbook.sheet_names:
            rows = workbook.get_sheet_by_name(sheet).to_python(skip_empty_area=True)
            if rows:
                break
        else:
            raise DataError(f"{name}: has no cells; its first row must name the columns")
    if len(workbook.sheet_names) > 1:
        _log.warning("%s: only its sheet %r is read, of %d", name, sheet, len(workbook.sheet_names))
    columns = [
        str(_value(cell)) if cell != "" else f"column {place}"
        for place, cell in enumerate(rows[0], 1)
    ]
    has_texts = [
        any(isinstance(cell, str) and cell for cell in column)
        for column in zip(*rows[1:], strict=True)
    ]

    def values() -> Iterator[dict[str, Any]]:
        for row in rows[1:]:
            found = list(map(_value, row))
            if any(value is not None for value in found):
                cells = map(_as_text, found, has_texts)
                yield dict(zip(columns, cells, strict=True))

    return columns, values()


def _as_text(value: Any, is_text: bool) -> Any:
    return str(value) if is_text and type(value) in (int, float) else value


def _value(cell: Any) -> Any:
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return None if cell == "" else cell
