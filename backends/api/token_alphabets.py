"""Tokens in the alphabet of a tokenizer: recognised, and decoded to the bytes that they stand for.

Some servers tell pieces of the vocabulary as they stand in its file, such as ``Ġgood`` or ``▁good``
for `` good``. They would be other tokens than those of a prompt, of the class names and of people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from backends.byte_level import bytes_of_piece

__all__ = ["BYTE_LEVEL", "IDS", "NAMED_IDS", "SENTENCEPIECE", "decoded", "recognised"]

BYTE_LEVEL = "byte-level pieces"
SENTENCEPIECE = "SentencePiece pieces"
IDS = "ids without text"
NAMED_IDS = "ids, named by the server's tokenizer"

_FEWEST_IDS = 3
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def recognised(names: Iterable[bytes]) -> str:
    """Return the alphabet that tokens are told in; empty where they are text.

    One token in the alphabet is enough where no token has a space: texts have both or neither.
    """
    texts = [name.decode("utf-8", "replace") for name in names]
    if any(text.startswith((" ", "\n")) for text in texts):
        return ""
    if any(text.startswith(("\u0120", "\u010a")) for text in texts):
        return BYTE_LEVEL
    if any(text.startswith("\u2581") or _BYTE.fullmatch(text) for text in texts):
        return SENTENCEPIECE
    if len(texts) >= _FEWEST_IDS and all(re.fullmatch(r"\d{1,7}", text) for text in texts):
        return IDS
    return ""


def decoded(name: bytes, alphabet: str) -> bytes:
    """Return the bytes that a token of an alphabet stands for; itself where it isn't of it."""
    text = name.decode("utf-8", "replace")
    if alphabet == SENTENCEPIECE:
        byte = _BYTE.fullmatch(text)
        return bytes([int(byte[1], 16)]) if byte else text.replace("\u2581", " ").encode()
    known = bytes_of_piece(text) if alphabet == BYTE_LEVEL else None
    return name if known is None else known
