"""The syntax of prompt templates: slots, labelled examples, and the literal text between them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from blackbox.errors import PromptError

__all__ = [
    "LITERAL",
    "MAX_NEAREST",
    "ROLES",
    "SLOTS",
    "Piece",
    "literal",
    "literal_text",
    "pieces_of",
    "quoted",
]

MAX_NEAREST = 8
"""Largest number of texts of each class that `{nearest: K}` shows."""

ROLES = re.compile(r"<(system|user|assistant)>")
"""The mark at which a turn of a conversation begins."""

SLOTS = ("{text}", "{text_pair}", "{image}", "{mask}")
"""Slots as they are written, but labelled examples."""

LITERAL = "literal"
"""The kind of a piece that is text."""

_PIECES = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")
_ESCAPED = {"{{": "{", "}}": "}", "{<}": "<"}
_EXAMPLES = ("example", "example_pair")
_MAX_SHOWN = 200  # characters of a template in an error


@dataclass(frozen=True)
class Piece:
    """A part of a template: a slot or literal text.

    `kind` is the slot as written, ``"example"``, ``"example_pair"``, ``"nearest"`` or `LITERAL`;
    `words` is the literal text, an example and its spare, or the number of texts of each class.
    """

    kind: str
    words: tuple[str, ...] = ()


def quoted(template: str) -> str:
    """Return a template for a message, cut to a reasonable length."""
    cut = template[:_MAX_SHOWN]
    return repr(template if cut == template else f"{cut}…")


def pieces_of(part: str, whole: str | None = None, offset: int = 0) -> Iterator[Piece]:
    """Yield the slots, the examples, and the literal text between them, unescaped."""
    plain, position = "", 0
    for match in _PIECES.finditer(part):
        plain += part[position : match.start()]
        position = match.end()
        written = match[0]
        if written in _ESCAPED:
            plain += _ESCAPED[written]
            continue
        piece = Piece(written) if written in SLOTS else _example(written) or _nearest(written)
        if piece is None:
            place = offset + match.start()
            raise PromptError(
                f"{quoted(whole or part)}: {written[:_MAX_SHOWN]} at character {place + 1} is no "
                "slot; the slots are {text}, {text_pair}, {image}, {mask}, "
                f"{{example: TEXT || SPARE TEXT}} and {{nearest: K}}, K from 1 to {MAX_NEAREST}; "
                "a brace itself is written twice"
            )
        if plain:
            yield Piece(LITERAL, (plain,))
        plain = ""
        yield piece
    plain += part[position:]
    if plain:
        yield Piece(LITERAL, (plain,))


def _example(found: str) -> Piece | None:
    """Return the example that `{…}` is, or None if it is none.

    Without a regular expression: one for this takes cubic time where it doesn't match.
    """
    kind, _, words = found[1:-1].partition(":")
    first, _, spare = (part.strip() for part in words.partition("||"))
    return Piece(kind, (first, spare)) if kind in _EXAMPLES and first and spare else None


def _nearest(found: str) -> Piece | None:
    """Return the slot of the nearest texts that `{…}` is, or None if it is none."""
    kind, _, number = (part.strip() for part in found[1:-1].partition(":"))
    if kind != "nearest" or number not in map(str, range(1, MAX_NEAREST + 1)):
        return None
    return Piece(kind, (number,))


def literal_text(part: str, whole: str) -> str:
    """Return the text that a part of a template without slots stands for, without escapes.

    Raises
    ------
    PromptError
        If there is a slot in it, or a brace that isn't doubled.
    """
    pieces = list(pieces_of(part, whole, whole.find(part)))
    slots = [piece.kind for piece in pieces if piece.kind != LITERAL]
    if slots:
        raise PromptError(
            f"{quoted(whole)} has the slot {slots[0]}, and a question has none: the text is put "
            "before it"
        )
    return "".join(piece.words[0] for piece in pieces)


def literal(text: str) -> str:
    """Return text on one line, escaped so that a template has it literally: no slot, no turn."""
    braced = " ".join(text.split()).replace("{", "{{").replace("}", "}}")
    return ROLES.sub(r"{<}\1>", braced)
