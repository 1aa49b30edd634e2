"""Finds words, codes and errors in the bodies of answers, whatever their shape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import unescape
from typing import Any

__all__ = [
    "ErrorBodyError",
    "check_no_error",
    "codes_of",
    "error_of",
    "is_moderated",
    "parsed",
    "words_of",
]

_DEEPEST = 6
_LONGEST = 100_000  # characters of a body that are looked at
_WORDS = (
    "error",
    "message",
    "msg",
    "detail",
    "details",
    "title",
    "description",
    "reason",
    "error_message",
    "error_description",
    "errors",
    "metadata",
    "raw",
)
_CODES = ("code", "type", "status", "error_type")


class ErrorBodyError(Exception):
    """An answer with a successful status whose body holds an error.

    Attributes
    ----------
    body
        The JSON data.
    """

    def __init__(self, body: Any) -> None:
        super().__init__("the answer holds an error")
        self.body = body


class NoJsonError(ValueError):
    """An answer with a successful status that is a page; its words are the message."""


def check_no_error(answer: Any) -> None:
    """Raise if the body of an answer holds an error, beside choices or in their place.

    Raises
    ------
    ErrorBodyError
        If it does.
    """
    if isinstance(answer, list):
        answer = answer[0] if answer else None
    if not isinstance(answer, Mapping):
        return
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (answer, first):
        if isinstance(holder, Mapping) and holder.get("error"):
            raise ErrorBodyError(dict(holder))
    if answer.get("object") == "error":
        raise ErrorBodyError(dict(answer))


def parsed(text: str) -> Any:
    """Return the JSON data in a body, or its text."""
    try:
        return json.loads(text[:_LONGEST])
    except (ValueError, RecursionError):
        return text[:_LONGEST]


def error_of(body: Any) -> tuple[str, str, int | None]:
    """Return the code of an error, the field that it names, and the status that it holds."""
    if isinstance(body, list):
        body = body[0] if body else None
    error = body.get("error", body) if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        error = body if isinstance(body, Mapping) else {}
    code, field = error.get("code"), error.get("param")
    statuses = (_status(error.get(name)) for name in ("code", "status", "status_code"))
    status = next((found for found in statuses if found is not None), None)
    code = "" if code is None or isinstance(code, Mapping | list) else str(code)
    return code, field if isinstance(field, str) else "", status


def codes_of(body: Any) -> set[str]:
    """Return every code and type in a body, at any depth."""
    return set(_codes(body, 0))


def is_moderated(body: Any) -> bool:
    """Return whether a body repeats an input that a moderation has flagged, as OpenRouter's do."""
    return "flagged_input" in set(_names(body, 0))


def words_of(body: Any) -> str:
    """Return what a body says for people, or an empty string."""
    parts: list[str] = []
    for part in _words(body, 0):
        part = " ".join(part.split())
        if part and not any(part in known for known in parts):
            parts.append(part)
    return ": ".join(parts)


def _words(body: Any, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(body, str):
        yield from _words_of_text(body, depth)
    elif isinstance(body, list):
        for one in body[:3]:
            yield from _words(one, depth + 1)
    elif isinstance(body, Mapping):
        place = body.get("loc")
        if isinstance(place, list) and isinstance(body.get("msg"), str):
            yield f"{'.'.join(map(str, place))}: {body['msg']}"
            return
        for name in _WORDS:
            yield from _words(body.get(name), depth + 1)


def _words_of_text(text: str, depth: int) -> Iterator[str]:
    text = text[:_LONGEST].strip()
    if text[:1] in ("{", "["):
        inner = parsed(text)
        if not isinstance(inner, str):
            yield from _words(inner, depth + 1)
            return
    if re.match(r"<(!doctype|html|head|body|title|h1|\?xml)", text, re.IGNORECASE):
        named = re.search(r"<(title|h1)[^>]*>(.*?)</\1", text, re.IGNORECASE | re.DOTALL)
        text = named[2] if named else re.sub(r"<[^>]*>", " ", text)
        text = unescape(text)
    yield text


def _codes(body: Any, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(body, list):
        for one in body[:3]:
            yield from _codes(one, depth + 1)
    elif isinstance(body, Mapping):
        for name, value in body.items():
            if name in _CODES and isinstance(value, str):
                yield value
            else:
                yield from _codes(value, depth + 1)


def _names(body: Any, depth: int) -> Iterator[str]:
    if isinstance(body, Mapping) and depth <= _DEEPEST:
        for name, value in body.items():
            yield str(name)
            yield from _names(value, depth + 1)


def _status(value: Any) -> int | None:
    """An HTTP status of an error in a field that may hold one."""
    if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value):
        value = int(value)
    return value if isinstance(value, int) and 400 <= value < 600 else None
