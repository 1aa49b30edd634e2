"""Cutting a long text, and never the template, to what the language model's context holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blackbox.errors import PromptError
from blackbox.prompts.template import Example, Prompt
from blackbox.protocol import Limits, RenderedPrompt

__all__ = ["CountTokens", "holds", "render_within", "size_of"]

CountTokens = Callable[[Sequence[RenderedPrompt]], list[int]]
"""Tokens of each request, as an LM's own tokenizer counts them."""


def size_of(prompt: Prompt, limits: Limits, count_tokens: CountTokens | None = None) -> int:
    """Tokens that a prompt takes without a text, at most; bytes, where no tokenizer counts."""
    bare = prompt.bare(masked=limits.mask)
    return max(count_tokens(bare) if count_tokens else [request.n_bytes for request in bare])


def holds(prompt: Prompt, limits: Limits, count_tokens: CountTokens | None = None) -> bool:
    """Whether the LM's context holds a prompt without a text, and the token that is predicted."""
    room = limits.context_length - 1
    if all(_surely_fits(bare, room) for bare in prompt.bare(masked=limits.mask)):
        return True
    return size_of(prompt, limits, count_tokens) <= room


def render_within(
    prompt: Prompt,
    example: Example,
    limits: Limits,
    count_tokens: CountTokens | None = None,
) -> tuple[RenderedPrompt, bool]:
    """Render a prompt so that it fits the LM's context, and tell whether its text was cut.

    Only the text is cut, at its end, and never the template; of a pair the longer text is cut
    first. Without `count_tokens` a byte counts as a token, which no tokenizer of bytes exceeds.

    Raises
    ------
    PromptError
        If the template alone fills the context.
    """
    text, text_pair = example
    full = prompt.render(text, text_pair, masked=limits.mask)
    room = limits.context_length - 1  # one place is for the predicted token
    if _surely_fits(full, room):
        return full, False

    def size(rendered: RenderedPrompt) -> int:
        return count_tokens([rendered])[0] if count_tokens else rendered.n_bytes

    def cut(keep: int) -> RenderedPrompt:
        pair = None if text_pair is None else text_pair[:keep]
        return prompt.render(text[:keep], pair, masked=limits.mask, row=example)

    if size(full) <= room:
        return full, False
    low, high = 0, max(len(text), len(text_pair or ""))
    if size(cut(0)) > room:
        raise PromptError(f"{prompt.template!r} alone fills the context of {room} tokens")
    while high - low > 1:
        middle = (low + high) // 2
        if size(cut(middle)) <= room:
            low = middle
        else:
            high = middle
    return cut(low), True


def _surely_fits(request: RenderedPrompt, room: int) -> bool:
    """Whether its bytes fit: no chat template spends this much on itself. Else tokens count."""
    return request.n_bytes + (256 if request.messages else 8) <= room
