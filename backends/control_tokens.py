"""Control tokens of a chat template, told apart from the same strings in a text.

A tokenizer reads ``<|im_end|>`` in a conversation as the end of a turn, whoever wrote it. So the
occurrences in messages are hidden behind placeholders while the chat template is applied, the
conversation is split at the control tokens that are left, which are the template's own, and the
text between them is encoded as text, with the hidden strings restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from blackbox.protocol import Message, RenderedPrompt

__all__ = ["ControlTokens"]

Restore = Callable[[str], str]
"""Puts the hidden strings back into a piece of a conversation."""


class ControlTokens:
    """Hides control tokens in messages, and splits conversations at control tokens.

    Parameters
    ----------
    patterns : iterable of str
        Regular expressions of the control tokens as a tokenizer matches them.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        # of two that begin alike, tokenizers match the longer
        alternatives = "|".join(sorted(patterns, key=len, reverse=True))
        self._pattern = re.compile(alternatives or r"(?!)")

    def hide(self, prompt: RenderedPrompt) -> tuple[RenderedPrompt, Restore]:
        """Return a conversation without control tokens in its messages and its answer prefix.

        It is `prompt` itself where there are none.
        """
        contents = [*(message.content for message in prompt.messages), prompt.answer_prefix]
        if not any(map(self._pattern.search, contents)):
            return prompt, str
        mark = "\ue000"
        while any(mark in content for content in contents):
            mark += "\ue000"
        hidden: list[str] = []

        def hide_one(match: re.Match[str]) -> str:
            hidden.append(match[0])
            return f"{mark}{len(hidden) - 1}{mark}"

        def restore(text: str) -> str:
            return re.sub(f"{mark}([0-9]+){mark}", lambda match: hidden[int(match[1])], text)

        messages = tuple(
            Message(message.role, self._pattern.sub(hide_one, message.content))
            for message in prompt.messages
        )
        answer_prefix = self._pattern.sub(hide_one, prompt.answer_prefix)
        return replace(prompt, messages=messages, answer_prefix=answer_prefix), restore

    def split(self, conversation: str) -> list[tuple[str, bool]]:
        """Return the pieces of a conversation in order, and whether each is a control token.

        Text and control tokens take turns; the first piece and the last are text, maybe empty.
        """
        pieces: list[tuple[str, bool]] = []
        start = 0
        for match in self._pattern.finditer(conversation):
            pieces += [(conversation[start : match.start()], False), (match[0], True)]
            start = match.end()
        return [*pieces, (conversation[start:], False)]

    def cut(self, text: str) -> list[str]:
        """Return a text cut inside each control token, so that no piece holds a whole one."""
        cuts = [match.start() + 1 for match in self._pattern.finditer(text)]
        bounds = zip([0, *cuts], [*cuts, len(text)], strict=True)
        return [text[start:end] for start, end in bounds]
