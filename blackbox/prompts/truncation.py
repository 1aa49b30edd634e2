"""Truncation of a long text, never of the template, to the language model's context length."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence

from blackbox.errors import PromptError
from blackbox.prompts.inputs import Example
from blackbox.prompts.template import Prompt
from blackbox.protocol import Limits, RenderedPrompt

__all__ = ["CountTokens", "holds", "render_within", "size_of"]

_JOINER = "\u200d"  # between the parts of one emoji
_MAX_PARTS = 8  # code points of one character as readers see it, but for made-up ones

CountTokens = Callable[[Sequence[RenderedPrompt]], list[int]]
"""Counts the tokens of each request with an LM's own tokenizer."""


def size_of(prompt: Prompt, limits: Limits, count_tokens: CountTokens | None = None) -> int:
    """Return the largest size of a prompt without a text, in tokens, estimated if not counted."""
    bare = prompt.bare(limits)
    return max(count_tokens(bare) if count_tokens else [_estimate(one, limits) for one in bare])


def holds(prompt: Prompt, limits: Limits, count_tokens: CountTokens | None = None) -> bool:
    """Return whether a prompt without a text, and the predicted token, fit the LM's context."""
    room = limits.context_length - 1
    if all(_surely_fits(bare, room, limits) for bare in prompt.bare(limits)):
        return True
    return size_of(prompt, limits, count_tokens) <= room


def render_within(
    prompt: Prompt,
    example: Example,
    limits: Limits,
    count_tokens: CountTokens | None = None,
) -> tuple[RenderedPrompt, bool]:
    """Return a prompt rendered to fit the LM's context, and whether its text was truncated.

    Only the text is truncated, at its end, and never the template; of a pair the longer text is
    truncated first. Without `count_tokens`, tokens are estimated by `Limits.bytes_per_token`.

    Raises
    ------
    PromptError
        If the template alone fills the context.
    """
    text, second = example
    full = prompt.render_for(limits, text, second)
    room = limits.context_length - 1  # one place is for the predicted token
    if _surely_fits(full, room, limits):
        return full, False
    text_pair = second if isinstance(second, str) else None

    def size(rendered: RenderedPrompt) -> int:
        return count_tokens([rendered])[0] if count_tokens else _estimate(rendered, limits)

    def cut(keep: int) -> RenderedPrompt:
        rest = second if text_pair is None else _first(text_pair, keep)
        return prompt.render_for(limits, _first(text, keep), rest, row=example)

    if size(full) <= room:
        return full, False
    low, high = 0, max(len(text), len(text_pair or ""))
    if size(cut(0)) > room:
        if full.image is not None:
            raise PromptError(
                f"{prompt.template!r} with an image of {full.image.width} × {full.image.height} "
                f"pixels fills the context of {room} tokens: resize images (max_image_side)"
            )
        raise PromptError(f"{prompt.template!r} alone fills the context of {room} tokens")
    while high - low > 1:
        middle = (low + high) // 2
        if size(cut(middle)) <= room:
            low = middle
        else:
            high = middle
    return cut(low), True


def _first(text: str, n: int) -> str:
    """Return at most the first n characters of a text, and none without the marks on it."""
    end = n
    while n - end < _MAX_PARTS and 0 < end < len(text) and _continues(text[end - 1], text[end]):
        end -= 1
    return text[:end]


def _continues(left: str, right: str) -> bool:
    """Return whether a character is part of the one before it: a vowel sign, an accent."""
    return _JOINER in (left, right) or unicodedata.category(right)[0] == "M"


def _estimate(request: RenderedPrompt, limits: Limits) -> int:
    n_tokens = math.ceil(request.n_bytes / limits.bytes_per_token)
    return n_tokens if request.image is None else n_tokens + limits.tokens_of_image(request)


def _surely_fits(request: RenderedPrompt, room: int, limits: Limits) -> bool:
    """Return whether it fits by its bytes, with a margin for the chat template and for an image."""
    size = math.ceil(request.n_bytes / limits.bytes_per_token)
    if request.image is not None:
        size += 2 * limits.tokens_of_image(request)
    return size + (256 if request.messages else 8) <= room
