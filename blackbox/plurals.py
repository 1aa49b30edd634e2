"""Numbers with their nouns, in messages: "1 row", "2 rows"."""

from __future__ import annotations

__all__ = ["counted"]


def counted(n: int, noun: str) -> str:
    """Return a number with an English noun, which is given for one thing.

    >>> counted(1, "forward pass"), counted(2, "forward pass"), counted(0, "try")
    ('1 forward pass', '2 forward passes', '0 tries')
    """
    if n == 1:
        return f"{n} {noun}"
    if noun.endswith(("s", "ch", "x")):
        return f"{n} {noun}es"
    if noun.endswith("y"):
        return f"{n} {noun[:-1]}ies"
    return f"{n} {noun}s"
