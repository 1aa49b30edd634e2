"""GPT-2's alphabet of bytes, in which byte-level vocabularies write their pieces."""

from __future__ import annotations

from functools import cache

__all__ = ["bytes_of_piece"]


def bytes_of_piece(piece: str) -> bytes | None:
    """Return the bytes of a piece such as ``Ġgood``; None if it is not of the alphabet."""
    table = _byte_of_character()
    if any(character not in table for character in piece):
        return None
    return bytes(table[character] for character in piece)


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte that each character stands for.

    Printable bytes stand for themselves; the others are numbered from 256 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
