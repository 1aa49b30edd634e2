"""Estimates of the tokens of requests, where no tokenizer counts them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from backends.api.request_format import (
    COMPLETIONS,
    RequestFormat,
    messages_of,
    parts_of_content,
)
from blackbox.backend import estimate_tokens
from blackbox.protocol import RenderedPrompt

__all__ = ["TokenEstimate"]

_FRAME, _FRAME_OF_MESSAGE = 3.0, 4.0  # of OpenAI's chats; other templates are learned
_LARGEST_FRAME = 64.0
_PRIOR_WORDS = 200.0  # of one token each, before answers show what they take


class TokenEstimate:
    """Tokens of a request: those of its texts by their words, and those of the chat's frame.

    A chat template adds tokens around each message. How many shows in what the server reports for
    the requests of the probe, whose texts are known.

    Parameters
    ----------
    reports : sequence of (mapping, int)
        The bodies of requests, and the tokens that the server reported for their prompts.
    """

    def __init__(self, reports: Sequence[tuple[Mapping[str, Any], int]]) -> None:
        self._frames: dict[int, float] = {}
        for body, reported in reports:
            messages = body.get("messages") or body.get("input") or []
            texts = [parts_of_content(message.get("content"))[0] for message in messages]
            words = sum(map(estimate_tokens, texts or [str(body.get("prompt") or "")]))
            frame = min(max(0.0, reported - words), _LARGEST_FRAME)
            self._frames.setdefault(len(messages), round(frame))
        self._words = self._tokens = 0.0  # of answers, less their frames
        self._lock = threading.Lock()

    def count(self, prompt: RenderedPrompt, wire: RequestFormat) -> int:
        """Return the estimated tokens of a prompt's text, as it is sent."""
        words, frame = self._parts(prompt, wire)
        per_word = (self._tokens + _PRIOR_WORDS) / (self._words + _PRIOR_WORDS)
        return round(words * per_word + frame)

    def learn(self, prompt: RenderedPrompt, wire: RequestFormat, reported: int) -> None:
        """Learn from an answer how many tokens the words of such prompts take.

        Parameters
        ----------
        prompt, wire
            As for `count`.
        reported : int
            The tokens of the prompt, as the server reports them.
        """
        if prompt.image is not None:
            return  # how many of the tokens are the image's isn't told
        words, frame = self._parts(prompt, wire)
        if words / 2 < reported - frame < words * 4:
            with self._lock:
                self._words += words
                self._tokens += reported - frame

    def _parts(self, prompt: RenderedPrompt, wire: RequestFormat) -> tuple[float, float]:
        """Return the estimated tokens of the texts that are sent, and those around them."""
        if wire.path_of(prompt) == COMPLETIONS:
            text = wire.document_start + (prompt.text or "")
            return estimate_tokens(text), self._frames.get(0, 0.0)
        turns = messages_of(prompt, wire.begun is not None)
        return sum(estimate_tokens(turn["content"]) for turn in turns), self._frame(len(turns))

    def _frame(self, n_messages: int) -> float:
        """The tokens around the messages of a chat: observed, or as for another number of them."""
        usual = _FRAME + _FRAME_OF_MESSAGE * n_messages
        seen = sorted(self._frames.keys() - {0}, key=lambda n: abs(n - n_messages))
        if not seen:
            return usual
        nearest = seen[0]
        return self._frames[nearest] * usual / (_FRAME + _FRAME_OF_MESSAGE * nearest)
