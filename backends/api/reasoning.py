"""Recognises models that reason before they answer: their next token is about no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["SWITCHES", "SWITCH_OFF", "reasons_first"]

SWITCHES: tuple[Mapping[str, Any], ...] = (
    {"reasoning_effort": "none"},
    {"reasoning": {"effort": "none"}},
    {"thinking": {"type": "disabled"}},
    {"chat_template_kwargs": {"enable_thinking": False}},
)
"""Fields that switch reasoning off: of OpenAI, OpenRouter, DeepSeek, and vLLM with SGLang."""

SWITCH_OFF = (
    "switch that off with --backend-option 'extra_body=…': "
    '{"chat_template_kwargs": {"enable_thinking": false}} for vLLM, SGLang and llama.cpp, '
    '{"reasoning_effort": "none"} for OpenAI, {"thinking": {"type": "disabled"}} for DeepSeek; '
    "or use another model"
)
"""The advice on making a model answer at once."""

_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
_BEGINNINGS = ("<think", "<thought", "<reason", "<|channel|>", "<|begin_of_thought|>", "[THINK]")


def reasons_first(answer: Any, likeliest: bytes) -> bool:
    """Return whether the answer of a chat begins with reasoning.

    Parameters
    ----------
    answer : dict
        Its JSON data.
    likeliest : bytes
        The most likely first token; empty where only texts are asked for.
    """
    try:
        message = answer["choices"][0].get("message") or {}
        content = message.get("content")
        reasoning = any(message.get(name) for name in _FIELDS)
    except (LookupError, TypeError, AttributeError):
        return False
    blank = not (isinstance(content, str) and content.strip())
    texts = [likeliest.decode("utf-8", "replace"), "" if blank else str(content)]
    return (blank and (reasoning or _spent_on_reasoning(answer) > 0)) or any(
        text.strip().startswith(_BEGINNINGS) for text in texts
    )


def _spent_on_reasoning(answer: Mapping[str, Any]) -> float:
    usage = answer.get("usage")
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    spent = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    return spent if isinstance(spent, int | float) else 0
