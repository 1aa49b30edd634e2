"""How the forward-pass store writes an answer: few bytes, and every bit of it comes back.

A value is token ids, float32 log-probabilities, and how many tokens were asked for: an answer to a
larger `top_k` holds the answers to all smaller ones. Ids take as few bytes each as the largest one
needs (two for a vocabulary below 65,536, three below 16 million), so that the 200 most likely
tokens of a small LM take 1,207 bytes. A text and an embedding vector are values of other kinds; a
vector stays float32, so that it comes back to the last bit.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import NO_TOKEN

__all__ = [
    "CHECK_BYTES",
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
_MOST = 2**16 - 1
_TEXT, _VECTOR = 0, 1  # in the place of the bytes an id


def encode(token_ids: NDArray[np.int32], log_probs: NDArray[np.float32], asked: int) -> bytes:
    """One answer as bytes; `NO_TOKEN` at its end is left out.

    Parameters
    ----------
    token_ids : int32 array of shape (k,)
        At most 65,535 ids.
    log_probs : float32 array of shape (k,)
        Their log-probabilities.
    asked : int
        How many of the most likely tokens were asked for; 0 where tokens were asked for by id.

    Raises
    ------
    ValueError
        If it is longer than that, or an id is negative.
    """
    known = token_ids != NO_TOKEN
    ids, values = token_ids[known], log_probs[known]
    if len(ids) > _MOST:
        raise ValueError(f"{len(ids)} tokens in one answer; the store takes {_MOST}")
    if len(ids) and ids.min() < 0:
        raise ValueError("token ids must not be negative")
    largest = int(ids.max(initial=0))
    width = 2 if largest < 2**16 else 3 if largest < 2**24 else 4
    octets = ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width]
    header = _HEADER.pack(width, asked, len(ids))
    return b"".join([header, octets.tobytes(), values.astype("<f4").tobytes()])


def decode(data: bytes) -> tuple[NDArray[np.int32], NDArray[np.float32], int]:
    """The inverse of `encode`: token ids, log-probabilities, tokens asked for.

    Raises
    ------
    ValueError
        If these bytes are no answer.
    """
    if len(data) < _HEADER.size:
        raise ValueError("an answer is cut short")
    width, asked, count = _HEADER.unpack_from(data)
    split = _HEADER.size + width * count
    if width not in (2, 3, 4) or len(data) != split + 4 * count:
        raise ValueError("an answer has another length than it says")
    octets = np.zeros((count, 4), np.uint8)
    octets[:, :width] = np.frombuffer(data, np.uint8, width * count, _HEADER.size).reshape(
        count, width
    )
    values = np.frombuffer(data, "<f4", count, split)
    return octets.view("<u4").ravel().astype(np.int32), values.astype(np.float32), asked


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
