"""Answers of servers that stream also where no stream was asked for: events become one answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["is_stream", "joined"]

_LINE_END = re.compile(r"\r\n|\r|\n")
_KEPT = ("id", "model", "system_fingerprint", "usage", "error")


def is_stream(content_type: str, data: bytes) -> bool:
    """Return whether the body of a response is a stream of events."""
    return content_type.startswith("text/event-stream") or data.lstrip()[:5] == b"data:"


def joined(data: bytes) -> dict[str, Any]:
    """Return the events of a stream as one answer.

    Raises
    ------
    ValueError
        If they can't be read.
    """
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for event in _events(data):
        answer |= {name: event[name] for name in _KEPT if event.get(name)}
        for place, part in enumerate(_mappings(event.get("choices"))):
            index = part.get("index", place)
            if not isinstance(index, int):
                raise ValueError("a choice without a number")
            _join(choices.setdefault(index, {"index": index}), part)
    if choices:
        answer["choices"] = [choices[index] for index in sorted(choices)]
    return answer


def _events(data: bytes) -> Iterator[Mapping[str, Any]]:
    for line in _LINE_END.split(data.decode("utf-8")):  # a text may have others in it
        field, _, value = line.partition(":")
        if field == "data" and value.strip() not in ("", "[DONE]"):
            event = json.loads(value)
            if not isinstance(event, Mapping):
                raise ValueError("an event that is no object")
            yield event


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    some = value if isinstance(value, list) else []
    return [one for one in some if isinstance(one, Mapping)]


def _join(choice: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Add a part of a choice to it; a token's log-probabilities come with its text."""
    if part.get("finish_reason"):
        choice["finish_reason"] = part["finish_reason"]
    if isinstance(part.get("text"), str):
        choice["text"] = choice.get("text", "") + part["text"]
    if part.get("logprobs") and not choice.get("logprobs"):
        choice["logprobs"] = part["logprobs"]  # only those of the first token are read
    for name in ("message", "delta"):
        message = part.get(name)
        if isinstance(message, Mapping):
            known: dict[str, Any] = choice.setdefault("message", {})
            for field, value in message.items():
                if isinstance(value, str) and isinstance(known.get(field), str):
                    known[field] += "" if field == "role" else value
                elif known.get(field) is None:
                    known[field] = value
