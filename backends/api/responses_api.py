"""Answers of the Responses API, ``/responses``, in the shape of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_chat_completion"]

_FINISH = {"max_output_tokens": "length", "content_filter": "content_filter"}


def as_chat_completion(answer: Any) -> Any:
    """Return an answer of the Responses API as a chat completion, and any other as it is.

    What is no output text, such as a thought, becomes the message's ``reasoning``.

    Parameters
    ----------
    answer : object
        JSON data, of any shape.
    """
    if not isinstance(answer, Mapping) or not isinstance(answer.get("output"), list):
        return answer
    items = [item for item in answer["output"] if isinstance(item, Mapping)]
    parts = [
        part
        for item in items
        if item.get("type") == "message" and isinstance(item.get("content"), list)
        for part in item["content"]
        if isinstance(part, Mapping) and part.get("type") == "output_text"
    ]
    thoughts = [item for item in items if item.get("type") == "reasoning"]
    told = answer.get("incomplete_details")
    reason = told.get("reason") if isinstance(told, Mapping) else None
    choice = {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "".join(str(part.get("text") or "") for part in parts),
            "reasoning": "…" if thoughts and not parts else "",
        },
        "finish_reason": _FINISH.get(str(reason), "stop"),
        "logprobs": {"content": parts[0].get("logprobs")} if parts else None,
    }
    return {**answer, "choices": [choice], "usage": _usage(answer.get("usage"))}


def _usage(told: Any) -> Any:
    """Return a usage under the names that chat completions have for it."""
    if not isinstance(told, Mapping):
        return told
    names = {
        "input_tokens": "prompt_tokens",
        "output_tokens": "completion_tokens",
        "input_tokens_details": "prompt_tokens_details",
        "output_tokens_details": "completion_tokens_details",
    }
    return {names.get(name, name): value for name, value in told.items()}
