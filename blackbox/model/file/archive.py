"""The archive of a model file: a zip of JSON and arrays, read with bounded memory."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import ModelFileError

__all__ = ["MAX_FILE", "pack", "read_arrays", "unpack"]

MAX_FILE = 64 << 20
"""Bytes of a model file at most."""

_MAX_JSON = 16 << 20
_MAX_ARRAYS = 64 << 20
_MAX_ENTRY = 100  # bytes of a zip's directory per file
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time: the same model gives the same bytes


def pack(description: dict[str, Any], named: dict[str, NDArray[Any]]) -> bytes:
    """Return JSON data and named arrays as one zip: the same ones give the same bytes."""
    text = json.dumps(description, ensure_ascii=False, indent=1, allow_nan=False)
    arrays, packed = io.BytesIO(), io.BytesIO()
    np.savez_compressed(arrays, **named)  # type: ignore[arg-type]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        # "backslashreplace" escapes half a surrogate pair as JSON does, and changes nothing else
        _add(archive, "model.json", text.encode("utf-8", "backslashreplace"))
        _add(archive, "arrays.npz", arrays.getvalue())
    return packed.getvalue()


def unpack(file: BinaryIO) -> tuple[Any, bytes]:
    """Return what the JSON of a model file holds, and its arrays as they are packed.

    Raises
    ------
    ModelFileError, zipfile.BadZipFile, ValueError
        If it is too large, or no such file.
    """
    with _open_zip(file, 2) as archive:
        if sorted(archive.namelist()) != ["arrays.npz", "model.json"]:
            raise ModelFileError("not a saved model: other files are in it")
        described = _entry(archive, "model.json", _MAX_JSON)
        packed = _entry(archive, "arrays.npz", MAX_FILE)
    return json.loads(described.decode("utf-8")), packed


def read_arrays(packed: bytes, most: int) -> dict[str, NDArray[Any]]:
    """Return the arrays of a model file, by name.

    Raises
    ------
    ModelFileError
        If they are more than `most`, too large, or not what they claim to be.
    """
    arrays: dict[str, NDArray[Any]] = {}
    remaining = _MAX_ARRAYS
    with _open_zip(io.BytesIO(packed), most) as archive:
        for name in archive.namelist():
            data = _entry(archive, name, remaining)
            remaining -= len(data)
            # numpy allocates as much as a header claims: compare it with the bytes that exist
            file = io.BytesIO(data)
            if np.lib.format.read_magic(file) != (1, 0):
                raise ModelFileError(f"array {name:.40} is of an unknown format")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
                raise ModelFileError(f"array {name:.40} is not what its header says")
            file.seek(0)
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def _open_zip(file: BinaryIO, max_files: int) -> zipfile.ZipFile:
    """Return a zip of at most so many files, checked first: opening loads its whole directory."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 42))
    tail = file.read()
    # the last record of a zip without a comment, not preceded by a ZIP64 record
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0" or tail[:4] == b"PK\6\7":
        raise zipfile.BadZipFile("not a plain zip")
    if int.from_bytes(tail[-10:-6], "little") > max_files * _MAX_ENTRY:
        raise ModelFileError("too many files in it")
    return zipfile.ZipFile(file)


def _entry(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelFileError("compressed in an unknown way")
    if info.file_size > max_bytes:
        raise ModelFileError(f"unpacks to more than {max_bytes} bytes")
    with archive.open(info) as file:
        # one byte more than it claims: without a limit everything would be unpacked
        return file.read(info.file_size + 1)
