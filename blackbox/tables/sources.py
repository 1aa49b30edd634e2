"""From a path to bytes, and from bytes to lines of text."""

from __future__ import annotations

import codecs
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from blackbox.errors import DataError
from blackbox.tables.messages import data_errors

__all__ = ["copy_to_disk", "open_source", "read_blocks", "read_head", "text_lines"]

_BLOCK = 1 << 16
_MAX_LINE = 80_000_000


def open_source(path: str | Path, resources: ExitStack) -> BinaryIO:
    """Open a file, which `resources` will close, or take standard input."""
    if str(path) == "-":
        return sys.stdin.buffer
    with data_errors(f"{path}: can't be opened", OSError):
        if not Path(path).exists():
            raise DataError(f"{path}: no such file; check its name and folder")
        if Path(path).is_dir():
            raise DataError(f"{path}: is a folder; name a file in it")
        return resources.enter_context(Path(path).open("rb"))


def read_blocks(source: BinaryIO, name: str) -> Iterator[bytes]:
    """Read bytes as they come."""
    # read1 hands on what a pipe has now, where read would wait for a full block
    read = getattr(source, "read1", source.read)
    with data_errors(f"{name}: can't be read", OSError):
        while block := read(_BLOCK):
            yield block


def read_head(blocks: Iterator[bytes], name: str) -> bytes:
    """Read enough of the beginning to tell a format by; without the byte order mark of UTF-8."""
    head = b""
    while len(head.lstrip()) < 8 and len(head) < _BLOCK and (block := next(blocks, b"")):
        head += block
    if not head:
        raise DataError(f"{name}: is empty (0 bytes); fill it or name another file")
    return head.removeprefix(codecs.BOM_UTF8)


def copy_to_disk(blocks: Iterable[bytes], resources: ExitStack, name: str) -> BinaryIO:
    """Copy a stream to where Parquet can be read from its end, without taking memory."""
    with data_errors(f"{name}: no room for a temporary copy", OSError):
        copy = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        copy.writelines(blocks)
        copy.seek(0)
    return copy


def text_lines(blocks: Iterable[bytes], name: str) -> Iterator[str]:
    """Decode lines, each with its end (LF, CRLF or CR), as the csv module wants them."""
    number = 0
    waiting = bytearray()
    for block in chain(blocks, [b""]):
        waiting += block
        if block and b"\n" not in block and b"\r" not in block:
            if len(waiting) > _MAX_LINE:
                raise DataError(
                    f"{name}, line {number + 1}: longer than {_MAX_LINE:,} bytes; is it a table, "
                    "with line breaks?"
                )
            continue
        lines = waiting.splitlines(keepends=True)
        # The last line may go on in the next block, and so may its end: CR here, LF there
        waiting = lines.pop() if block and not lines[-1].endswith(b"\n") else bytearray()
        # All at once: bytes that are no text say more than what a parser finds before them
        yield from [_decode(line, name, at) for at, line in enumerate(lines, number + 1)]
        number += len(lines)


def _decode(line: bytearray, name: str, number: int) -> str:
    if b"\0" in line:
        raise DataError(
            f"{name}, line {number}: a NUL byte, so this is a binary file or UTF-16; save the "
            "table as text in UTF-8"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        bad = error.object[error.start : error.start + 1]
        raise DataError(
            f"{name}, line {number}: byte 0x{bad.hex()} is not UTF-8 (in Windows-1252 it is "
            f"{bad.decode('cp1252', 'replace')!r}); save or convert the file as UTF-8"
        ) from error
