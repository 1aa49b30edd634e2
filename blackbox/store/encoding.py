"""The form of an answer in the forward-pass store: few bytes, and every bit of it comes back.

A value is token ids, float32 log-probabilities, and how many tokens were asked for: an answer to a
larger `top_k` holds the answers to all smaller ones. Ids take as few bytes each as the largest one
needs (two for a vocabulary below 65,536, three below 16 million), so that the 200 most likely
tokens of a small LM take 1,207 bytes. A text and an embedding vector are values of other kinds; a
vector stays float32, so that it comes back to the last bit.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import NO_TOKEN

__all__ = [
    "CHECK_BYTES",
    "MAX_TOKENS",
    "check_of",
    "decode",
    "decode_text",
    "decode_vector",
    "encode",
    "encode_text",
    "encode_vector",
    "is_text",
    "is_vector",
]

CHECK_BYTES = 16

_HEADER = struct.Struct("<BIH")  # bytes an id, tokens asked for, ids
MAX_TOKENS = 2**16 - 1
"""The most tokens of an answer."""

_TEXT, _VECTOR = 0, 1  # in the place of the bytes an id


def encode(token_ids: NDArray[np.int32], log_probs: NDArray[np.float32], asked: int) -> bytes:
    """One answer as bytes: `encode_block` of a single row."""
    return encode_block(token_ids[None], log_probs[None], [asked])[0]


def encode_block(
    token_ids: NDArray[np.int32], log_probs: NDArray[np.float32], asked: Sequence[int]
) -> list[bytes]:
    """Answers as bytes; `NO_TOKEN` at the end of one is left out.

    Parameters
    ----------
    token_ids : int32 array of shape (n, k)
        At most `MAX_TOKENS` ids each.
    log_probs : float32 array of shape (n, k)
        Their log-probabilities.
    asked : sequence of n int
        How many of the most likely tokens were asked for; 0 where tokens were asked for by id.

    Raises
    ------
    ValueError
        If one is longer than that, or an id is negative.
    """
    known = token_ids != NO_TOKEN
    counts = known.sum(axis=1)
    if counts.max(initial=0) > MAX_TOKENS:
        raise ValueError(f"{counts.max()} tokens in one answer; the store takes {MAX_TOKENS}")
    if (token_ids < NO_TOKEN).any():
        raise ValueError("token ids must not be negative")
    largest = token_ids.max(axis=1, initial=0)
    widths = 2 + (largest >= 2**16) + (largest >= 2**24)
    alike: dict[tuple[int, int, int], list[int]] = {}
    for row, form in enumerate(zip(widths.tolist(), asked, counts.tolist(), strict=True)):
        alike.setdefault(form, []).append(row)
    encoded = [b""] * len(token_ids)
    for (width, n_asked, count), rows in alike.items():
        ids, values = token_ids[rows], log_probs[rows]
        if count < ids.shape[1]:
            kept = known[rows]
            ids, values = ids[kept].reshape(len(rows), count), values[kept]
        octets = np.empty((len(rows), _HEADER.size + (width + 4) * count), np.uint8)
        split = _HEADER.size + width * count
        octets[:, : _HEADER.size] = np.frombuffer(_HEADER.pack(width, n_asked, count), np.uint8)
        octets[:, _HEADER.size : split] = _id_octets(ids, width).reshape(len(rows), width * count)
        octets[:, split:] = (
            values.astype("<f4", order="C").view(np.uint8).reshape(len(rows), 4 * count)
        )
        written, length = octets.tobytes(), octets.shape[1]
        for place, row in enumerate(rows):
            encoded[row] = written[place * length : (place + 1) * length]
    return encoded


def _id_octets(ids: NDArray[np.int32], width: int) -> NDArray[np.uint8]:
    """Return the low bytes of ids of shape (n, k), so many of each."""
    if width == 2:
        return ids.astype("<u2", order="C").view(np.uint8)
    octets = ids.astype("<u4", order="C").view(np.uint8)
    return octets.reshape(*ids.shape, 4)[:, :, :width]


def decode(data: bytes) -> tuple[NDArray[np.int32], NDArray[np.float32], int]:
    """The inverse of `encode`: token ids, log-probabilities, tokens asked for.

    Raises
    ------
    ValueError
        If these bytes are no answer.
    """
    width, asked, count = _read_header(data, len(data))
    split = _HEADER.size + width * count
    octets = np.zeros((count, 4), np.uint8)
    octets[:, :width] = np.frombuffer(data, np.uint8, width * count, _HEADER.size).reshape(
        count, width
    )
    values = np.frombuffer(data, "<f4", count, split)
    return octets.view("<u4").ravel().astype(np.int32), values.astype(np.float32), asked


def decode_block(
    data: Sequence[bytes], top_k: int
) -> tuple[list[int], NDArray[np.int32], NDArray[np.float32]]:
    """Decode those of n answers that hold the `top_k` most likely tokens.

    Returns
    -------
    places : list of m int
        Their places in `data`.
    token_ids : int32 array of shape (m, k)
        The first `top_k` tokens; `NO_TOKEN` where an answer has fewer.
    log_probs : float32 array of shape (m, k)
        Likewise; −inf where it has fewer.

    Raises
    ------
    ValueError
        If some bytes are no answer.
    """
    alike: dict[tuple[bytes, int], list[int]] = {}
    for place, value in enumerate(data):
        alike.setdefault((value[: _HEADER.size], len(value)), []).append(place)
    places: list[int] = []
    parts = []
    for (header, length), some in alike.items():
        width, asked, count = _read_header(header, length)
        if asked < top_k:
            continue
        kept, split = min(count, top_k), _HEADER.size + width * count
        joined = b"".join([data[place] for place in some])
        octets = np.frombuffer(joined, np.uint8).reshape(len(some), length)
        stored = np.ascontiguousarray(octets[:, _HEADER.size : _HEADER.size + width * kept])
        values = np.ascontiguousarray(octets[:, split : split + 4 * kept])
        parts.append((_ids_of(stored, width), values.view("<f4")))
        places += some
    longest = max((ids.shape[1] for ids, _ in parts), default=0)
    token_ids = np.full((len(places), longest), NO_TOKEN, np.int32)
    log_probs = np.full((len(places), longest), -np.inf, np.float32)
    start = 0
    for ids, values in parts:
        rows = slice(start, start + len(ids))
        token_ids[rows, : ids.shape[1]], log_probs[rows, : ids.shape[1]] = ids, values
        start = rows.stop
    return places, token_ids, log_probs


def _ids_of(octets: NDArray[np.uint8], width: int) -> NDArray[np.unsignedinteger]:
    """Return the ids of shape (n, k) whose low bytes these are, of shape (n, width * k)."""
    if width == 2:
        return octets.view("<u2")
    n, size = octets.shape
    whole = np.zeros((n, size // width, 4), np.uint8)
    whole[:, :, :width] = octets.reshape(n, size // width, width)
    return whole.reshape(n, 4 * size // width).view("<u4")


def _read_header(header: bytes, length: int) -> tuple[int, int, int]:
    """Return bytes an id, tokens asked for, and ids, of an answer of this length."""
    if length < _HEADER.size:
        raise ValueError("an answer is cut short")
    width, asked, count = _HEADER.unpack_from(header)
    if width not in (2, 3, 4) or length != _HEADER.size + (width + 4) * count:
        raise ValueError("an answer has another length than it says")
    return width, asked, count


def encode_text(text: str) -> bytes:
    """A text that an LM wrote, as bytes."""
    return bytes([_TEXT]) + text.encode("utf-8", "surrogatepass")


def decode_text(data: bytes) -> str:
    """The inverse of `encode_text`."""
    return data[1:].decode("utf-8", "surrogatepass")


def is_text(data: bytes) -> bool:
    """Whether a value is a text, and no distribution."""
    return data[:1] == bytes([_TEXT])


def encode_vector(vector: NDArray[np.float32]) -> bytes:
    """An embedding vector of shape (d,) as bytes."""
    return bytes([_VECTOR]) + vector.astype("<f4").tobytes()


def decode_vector(data: bytes) -> NDArray[np.float32]:
    """The inverse of `encode_vector`.

    Raises
    ------
    ValueError
        If these bytes are no vector.
    """
    if not is_vector(data) or len(data) % 4 != 1:
        raise ValueError("this is no vector")
    return np.frombuffer(data, "<f4", offset=1).astype(np.float32)


def is_vector(data: bytes) -> bool:
    """Whether a value is an embedding vector."""
    return data[:1] == bytes([_VECTOR])


def check_of(*parts: bytes) -> bytes:
    """A digest over parts, in which no byte can move from one part to the next."""
    digest = hashlib.blake2b(digest_size=CHECK_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
