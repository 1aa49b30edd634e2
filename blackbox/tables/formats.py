"""The names of the formats, and the format of a file by its ending or its first bytes."""

from __future__ import annotations

from pathlib import Path

from blackbox.errors import DataError

__all__ = [
    "DELIMITERS",
    "FORMATS",
    "READABLE",
    "format_of",
    "refuse_other_formats",
    "refuse_repeated",
    "sniff",
]

FORMATS = ("csv", "tsv", "jsonl", "parquet")
"""Names of the formats that tables are read and written in."""

READABLE = (*FORMATS, "feather", "excel")
"""Names of the formats that tables are read in."""

DELIMITERS = {"csv": ",", "tsv": "\t"}

_ENDINGS = {f".{name}": name for name in FORMATS} | {".ndjson": "jsonl"}
_READ_ONLY = {
    ".json": "jsonl",
    ".txt": None,  # its first bytes decide
    ".feather": "feather",
    ".arrow": "feather",
    ".xlsx": "excel",
    ".xls": "excel",
    ".ods": "excel",
}

_EXCEL = "is an Excel workbook or a zip archive; a workbook has the ending .xlsx"
_PACKED = "is compressed, and not by gzip; unpack it first"
_SIGNATURES = {
    b"PK\x03\x04": _EXCEL,
    b"\xd0\xcf\x11\xe0": _EXCEL,
    b"\x28\xb5\x2f\xfd": _PACKED,
    b"\xfd7zXZ": _PACKED,
    b"\x89PNG": "is an image, not a table; give it a table of texts",
    # "PAR1" alone may begin a text; both headers of Parquet that may follow it begin with 0x15
    b"PAR1\x15": "is Parquet; give it the ending .parquet",
    b"ARROW1\0\0": "is Feather; give it the ending .feather",
}


def format_of(path: str | Path, format: str | None, *, reading: bool = False) -> str | None:
    """Return the given format, or else that of the ending; None where the content decides."""
    if format is not None:
        if reading and format.lower() in READABLE:
            return format.lower()
        if f".{format.lower()}" not in _ENDINGS:
            known = ", ".join(READABLE if reading else FORMATS)
            raise DataError(f"no format {format!r}; there are {known}")
        return _ENDINGS[f".{format.lower()}"]
    if str(path) == "-":
        return None
    ending = Path(path).suffix
    if ending.lower() == ".gz":
        ending = Path(Path(path).stem).suffix
    if reading and ending.lower() in _READ_ONLY:
        return _READ_ONLY[ending.lower()]
    if ending.lower() not in _ENDINGS:
        *others, last = (*_ENDINGS, *(one for one in _READ_ONLY if reading))
        known = f"{', '.join(others)} and {last}"
        raise DataError(f"{path}: unknown ending {ending!r}; tables end in {known}")
    return _ENDINGS[ending.lower()]


def sniff(head: bytes) -> str:
    """Return the format of a table without a name, from its first bytes."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1\0\0"):
        return "feather"
    if head.startswith(b"PK\x03\x04"):
        return "excel"
    return "jsonl" if head.lstrip().startswith((b"{", b"[")) else "csv"


def refuse_other_formats(head: bytes, name: str) -> None:
    """Raise if a file that should be text is of a known other kind."""
    for signature, advice in _SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(f"{name}: {advice}")


def refuse_repeated(columns: list[str], name: str) -> None:
    """Raise if two columns have the same name, as a row is a dict."""
    if len(set(columns)) < len(columns):
        column = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"{name}: two columns are called {column!r}; rename one")
