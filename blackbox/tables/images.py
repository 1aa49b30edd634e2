"""Images of a table: cells that hold the path of a file, or the bytes of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from blackbox.errors import DataError, ImageError
from blackbox.images import Image
from blackbox.tables.addresses import read_beside
from blackbox.tables.messages import STDIN, at_cell, is_address, kind_of

__all__ = ["image_of"]


def image_of(value: Any, *, row: int, column: str, name: str) -> Image:
    """Return the image in a cell.

    That is a path, which is relative to the table's folder, a ``file:`` or ``data:`` URL, the
    bytes of a file, or an object with `bytes` or `path`, as data sets of the Hugging Face hub have
    them. Addresses are not fetched.

    Raises
    ------
    DataError
        If there is none, or it can't be used; the message names the cell.
    """
    try:
        return _image(value, "" if name == STDIN else name)
    except ImageError as error:
        raise ImageError(f"{at_cell(name, row, column)}: {error}") from error
    except DataError as error:
        raise DataError(f"{at_cell(name, row, column)}: {error}") from error


def _image(value: Any, table: str) -> Image:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Image.of(value)
    if not isinstance(value, str) or not value.strip():
        found = "an empty cell" if isinstance(value, str) else kind_of(value)
        raise DataError(f"an image is the path of a file, not {found}")
    scheme = value.partition(":")[0].lower()
    if scheme == "data":
        return Image.of_data_url(value)
    if scheme == "file":
        return Image.of(Path(url2pathname(urlsplit(value).path)))
    if "://" in value[:16]:
        raise DataError("an image is a file on this machine, and addresses are not fetched")
    if is_address(table) and not Path(value).is_absolute():
        return Image.of(read_beside(table, value))
    return Image.of(Path(table).parent / value)
