"""Inputs of a classifier: a text, a pair of texts, or an image with or without a text."""

from __future__ import annotations

from blackbox.images import Image, plain_image

__all__ = [
    "KIND_NAMES",
    "Example",
    "Labelled",
    "Second",
    "input_kind",
    "sample_second",
    "texts_of",
]

Second = str | Image | None
"""The part that stands beside a text: nothing, the second text of a pair, or an image."""

Example = tuple[str, Second]
"""A text, and what stands beside it. The text of an image may be empty."""

Labelled = tuple[Example, str]
"""A text, or pair, and its label in words."""

KIND_NAMES = {"text": "single texts", "pair": "pairs", "image": "images"}
"""Kinds of input, in words."""


def input_kind(second: Second) -> str:
    """Return the kind of an input: ``"text"``, ``"pair"`` or ``"image"``."""
    return "image" if isinstance(second, Image) else "text" if second is None else "pair"


def texts_of(example: Example) -> list[str]:
    """Return the texts of an input that aren't empty."""
    return [part for part in example if isinstance(part, str) and part]


def sample_second(kind: str) -> Second:
    """Return something to stand beside a text, of a kind of input, where any will do."""
    return plain_image(128, 128, 128) if kind == "image" else "" if kind == "pair" else None
