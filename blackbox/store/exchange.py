"""Stores as Parquet files: to look into, to move, to share."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import BackendResponseError, MissingDependencyError, StoreError
from blackbox.files import replacing
from blackbox.protocol import BackendIdentity, Embeddings, TokenLogProbs
from blackbox.store.encoding import (
    decode,
    decode_text,
    decode_vector,
    encode,
    encode_text,
    encode_vector,
    is_text,
    is_vector,
)
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import merge_values

__all__ = ["answer_tables", "export_store", "exports_in", "import_answers", "import_store"]

_BATCH = 1000
_NO_EXPORT = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    BackendResponseError,
)


def export_store(store: StoreFile, path: Path) -> int:
    """Write all answers, and the bytes of their tokens, to a Parquet file.

    A damaged store is recovered before, so that all that can be read is written.

    Returns
    -------
    int
        Answers written.

    Raises
    ------
    StoreError
        If the store can't be read as a whole; there is no file then.
    """
    _, parquet = _pyarrow()
    schema, tables = answer_tables(store)
    total = 0
    with (
        _whole_or_not_at_all(path) as partial,
        parquet.ParquetWriter(partial, schema, compression="zstd") as writer,
    ):
        for table in tables:
            total += table.num_rows
            writer.write_table(table)
    return total


def answer_tables(store: StoreFile) -> tuple[Any, Iterator[Any]]:
    """Return the schema of an export, and all answers as tables of Arrow; damage is dropped before.

    Parameters
    ----------
    store : StoreFile
        The store.

    Raises
    ------
    StoreError
        Here or by the iterator, if the store can't be read as a whole.
    """
    arrow, _ = _pyarrow()
    store.verify()
    schema = arrow.schema(
        {
            "identity": arrow.string(),
            "key": arrow.binary(),
            "asked": arrow.int32(),
            "token_ids": arrow.list_(arrow.int32()),
            "log_probs": arrow.list_(arrow.float32()),
            "text": arrow.string(),
            "vector": arrow.list_(arrow.float32()),
        }
    )
    names, engines = {}, {}
    for model in store.info()["models"]:
        identity = BackendIdentity.from_dict(json.loads(model["identity"]))
        known = store.token_bytes(identity.digest())
        names[identity.digest()] = {str(token): name.hex() for token, name in known.items()}
        engines[identity.digest()] = model["engines"]
    schema = schema.with_metadata(
        {"token_bytes": json.dumps(names), "engines": json.dumps(engines)}
    )
    return schema, (arrow.Table.from_pylist(rows, schema) for rows in _batches(store))


def _batches(store: StoreFile) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of an export; at least one batch, which may be empty."""
    batch: list[dict[str, Any]] = []
    for data, key, value in store.rows():
        row: dict[str, Any] = {"identity": data, "key": key, "asked": 0}
        if is_text(value):
            row["text"] = decode_text(value)
        elif is_vector(value):
            row["vector"] = decode_vector(value)
        else:
            row["token_ids"], row["log_probs"], row["asked"] = decode(value)
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


@contextlib.contextmanager
def _whole_or_not_at_all(path: Path) -> Iterator[Any]:
    try:
        with replacing(Path(os.path.realpath(path))) as file:
            yield file
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror or error}") from error


def exports_in(path: Path) -> list[Path]:
    """Return the exports at a path: itself, or the Parquet files of a folder.

    Raises
    ------
    StoreError
        If a folder has none.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("_"))
    if not files:
        raise StoreError(f"{path}: a folder without an exported store (.parquet)")
    return files


def import_store(store: StoreFile, path: Path) -> int:
    """Take over the answers of a file that `export_store` wrote.

    Returns
    -------
    int
        Answers read.

    Raises
    ------
    StoreError
        If it is no such file.
    """
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            return _take_over(store, file.schema_arrow, file.iter_batches(_BATCH))
    except (OSError, arrow.ArrowException, *_NO_EXPORT) as error:
        if isinstance(error, FileNotFoundError):
            raise StoreError(f"{path}: there is no such file") from error
        lacks = isinstance(error, KeyError | TypeError)
        said = "it lacks what an export has" if lacks else str(error)
        raise StoreError(f"{path}: not an exported store: {' '.join(said.split())}") from error


def import_answers(store: StoreFile, answers: Any) -> int:
    """Take over the answers of an export in memory, as a table of Arrow; return how many."""
    return _take_over(store, answers.schema, answers.to_batches(_BATCH))


def _take_over(store: StoreFile, schema: Any, batches: Iterable[Any]) -> int:
    metadata = schema.metadata
    names = json.loads(metadata[b"token_bytes"])
    engines = json.loads(metadata.get(b"engines", b"{}"))
    total = 0
    for batch in batches:
        groups: dict[str, dict[bytes, bytes]] = {}
        for row in batch.to_pylist():
            if row["identity"] is None:  # the id of a text, among answers of `blackbox collect`
                continue
            if isinstance(row["text"], str):
                value = encode_text(row["text"])
            elif row.get("vector") is not None:  # version 0.1 has no such column
                vector = np.array(row["vector"], np.float32)
                Embeddings(vector[None])
                value = encode_vector(vector)
            else:
                ids = np.array(row["token_ids"], np.int32)
                values = np.array(row["log_probs"], np.float32)
                _check(ids, values, row["asked"])
                value = encode(ids, values, row["asked"])
            groups.setdefault(row["identity"], {})[row["key"]] = value
        for data, values_of in groups.items():
            identity = BackendIdentity.from_dict(json.loads(data))
            known = names.get(identity.digest(), {})
            token_bytes = {int(token): bytes.fromhex(name) for token, name in known.items()}
            store.note_engines(identity.digest(), map(str, engines.get(identity.digest(), [])))
            store.put(identity.digest(), identity.canonical(), values_of, token_bytes, merge_values)
            names[identity.digest()] = {}
            total += len(values_of)
    return total


def _check(ids: NDArray[np.int32], values: NDArray[np.float32], asked: int) -> None:
    """Refuse what no LM answers."""
    if not 0 <= asked < 2**32 or ids.shape != values.shape or np.isnan(values).any():
        raise ValueError("an answer holds what no LM answers")
    if asked and 0 < len(ids) <= asked:
        TokenLogProbs(ids[None], values[None], dict.fromkeys(ids.tolist(), b""))
    elif asked or (values > 0).any():
        raise ValueError("an answer holds what no LM answers")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError("Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
