"""From a path to bytes, and from bytes to lines of text."""

from __future__ import annotations

import codecs
import logging
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from blackbox.errors import DataError
from blackbox.tables.messages import data_errors, is_address, public, reason

__all__ = [
    "as_utf8",
    "check_encoding",
    "copy_to_disk",
    "decompressed",
    "open_source",
    "read_blocks",
    "read_head",
    "text_lines",
]

_log = logging.getLogger(__name__)

_BLOCK = 1 << 16
_MAX_LINE = 80_000_000


def open_source(path: str | Path, resources: ExitStack) -> BinaryIO:
    """Open a file, which `resources` will close, or take standard input."""
    if str(path) == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed: name a file")
        return sys.stdin.buffer
    if is_address(str(path)):
        raise DataError(
            f"{public(str(path))}: an address: predict and collect read it with --ray; copy it to "
            "a file"
        )
    with data_errors(f"{path}: can't be opened", OSError):
        if not Path(path).exists():
            raise DataError(f"{path}: no such file; check its name and folder")
        if Path(path).is_dir():
            raise DataError(f"{path}: is a folder; name a file in it")
        return resources.enter_context(Path(path).open("rb"))


def read_blocks(source: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield bytes as they come."""
    # read1 hands on what a pipe has now, where read would wait for a full block
    read = getattr(source, "read1", source.read)
    with data_errors(f"{name}: can't be read", OSError):
        while block := read(_BLOCK):
            yield block


def read_head(blocks: Iterator[bytes], name: str) -> bytes:
    """Return enough of the beginning to tell a format by."""
    head = b""
    while len(head.lstrip()) < 8 and len(head) < _BLOCK and (block := next(blocks, b"")):
        head += block
    if not head:
        raise DataError(f"{name}: is empty (0 bytes); fill it or name another file")
    return head


def decompressed(
    head: bytes, blocks: Iterator[bytes], name: str
) -> tuple[bytes, Iterator[bytes], bool]:
    """Return the head and the blocks of a table, unpacked where it is gzip, and whether it was."""
    if not head.startswith(b"\x1f\x8b"):
        return head, blocks, False
    unpacked = _unpack(chain([head], blocks), name)
    return read_head(unpacked, name), unpacked, True


def _unpack(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    with data_errors(f"{name}: damaged, or not gzip; pack it anew", zlib.error):
        for block in blocks:
            while block:
                if unpacker.eof:  # several packed parts may follow each other
                    unpacker = zlib.decompressobj(wbits=31)
                if part := unpacker.decompress(block, _BLOCK):
                    yield part
                block = unpacker.unconsumed_tail or unpacker.unused_data
    if not unpacker.eof:
        raise DataError(f"{name}: cut off in the middle of the compressed data; copy it anew")


def as_utf8(
    head: bytes, blocks: Iterator[bytes], name: str, encoding: str | None
) -> tuple[bytes, Iterator[bytes]]:
    """Return the head and the blocks in UTF-8, without a byte order mark.

    A table in another encoding is converted where the encoding is given, or the mark tells it.
    """
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
    marks |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    if encoding is None:
        encoding = next((name for mark, name in marks.items() if head.startswith(mark)), None)
    elif codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
        encoding = None
    if encoding is None:
        return head.removeprefix(codecs.BOM_UTF8), blocks
    converted = _convert(chain([head], blocks), name, encoding)
    return read_head(converted, name), converted


def check_encoding(encoding: str) -> None:
    """Raise if there is no text encoding of this name."""
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError) as error:
        raise DataError(
            f"no encoding {encoding!r:.100}; there are utf-8, utf-16, windows-1252, latin-1 and "
            "others that Python has"
        ) from error


def _convert(blocks: Iterable[bytes], name: str, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 0
    for block in chain(blocks, [b""]):
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeError as error:
            raise DataError(
                f"{name}, line {line + 1} or after it: not {encoding} ({reason(error)}); name "
                "its encoding, or save it in UTF-8"
            ) from error
        if not line:
            text = text.removeprefix("\ufeff")
        line += text.count("\n")
        if text:
            yield text.encode("utf-8", "surrogatepass")


def copy_to_disk(blocks: Iterable[bytes], resources: ExitStack, name: str) -> BinaryIO:
    """Copy a stream to where Parquet can be read from its end, without taking memory."""
    with data_errors(f"{name}: no room for a temporary copy", OSError):
        copy = resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        copy.writelines(blocks)
        copy.seek(0)
    return copy


def text_lines(blocks: Iterable[bytes], name: str, *, guess: bool = True) -> Iterator[str]:
    """Decode lines, each with its end (LF, CRLF or CR), as the csv module wants them.

    With `guess`, a table whose first non-ASCII line is not UTF-8 and looks like Windows-1252 is
    decoded as that from there on, and that is logged.
    """
    number = 0
    waiting = bytearray()
    decode = _Decoder(name, guess)
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
        yield from [decode(line, at) for at, line in enumerate(lines, number + 1)]
        number += len(lines)


class _Decoder:
    """Decodes the lines of one table, all in the same encoding."""

    def __init__(self, name: str, guess: bool) -> None:
        self._name = name
        self._guess = guess  # until a line shows which encoding it is
        self._encoding = "utf-8"

    def __call__(self, line: bytearray, number: int) -> str:
        """Decode one line."""
        if b"\0" in line:
            raise DataError(
                f"{self._name}, line {number}: a NUL byte, so this is a binary file or UTF-16; "
                "name its encoding, or save the table as text in UTF-8"
            )
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError as error:
            # a character that breaks off at the end is UTF-8 that was cut
            whole = error.reason != "unexpected end of data"
            if self._guess and whole and _looks_western(line):
                self._guess, self._encoding = False, "cp1252"
                _log.warning(
                    "%s: not UTF-8, read as Windows-1252 (line %d has %r); if that is wrong, give "
                    "the encoding (--encoding)",
                    self._name,
                    number,
                    _around(line.decode("cp1252")),
                )
                return line.decode("cp1252")
            raise DataError(f"{self._name}, line {number}: {self._words(error)}") from error
        self._guess = self._guess and text.isascii()
        return text

    def _words(self, error: UnicodeDecodeError) -> str:
        bad = error.object[error.start : error.start + 1]
        if self._encoding != "utf-8":
            return f"byte 0x{bad.hex()} is not Windows-1252 as lines before it; name the encoding"
        return (
            f"byte 0x{bad.hex()} is not UTF-8 (in Windows-1252 it is "
            f"{bad.decode('cp1252', 'replace')!r}); name its encoding, or save or convert the file "
            "as UTF-8"
        )


def _looks_western(line: bytearray) -> bool:
    """Return whether bytes may well be Windows-1252: each beyond ASCII stands beside a letter."""
    try:
        text = line.decode("cp1252")
    except UnicodeDecodeError:
        return False
    beyond = sum(not character.isascii() for character in text)
    letters = sum(character.isascii() and character.isalpha() for character in text)
    return beyond <= letters


def _around(text: str) -> str:
    """Return the part of a line around its first character beyond ASCII."""
    place = next(place for place, character in enumerate(text) if not character.isascii())
    return text[max(0, place - 15) : place + 15].strip()
