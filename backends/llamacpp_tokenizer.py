"""llama.cpp's own tokenizer and chat template, over its server's HTTP endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from backends.control_tokens import ControlTokens
from blackbox.protocol import RenderedPrompt

__all__ = ["LlamaCppTokenizer"]

Post = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Sends JSON to a path of the server and returns its JSON."""


class LlamaCppTokenizer:
    """Token ids of prompts, by llama.cpp's tokenizer.

    No part of a text or a message is read as a control token; a chat template's own ones are. The
    server doesn't list its control tokens, so each is learned where it is first met.

    Parameters
    ----------
    post : callable
        Sends a request to the server.
    properties : dict
        The server's ``/props``.

    Attributes
    ----------
    start_piece : str
        The document start that is put before raw text, where llama.cpp adds none by itself.
    """

    def __init__(self, post: Post, properties: dict[str, Any]) -> None:
        self._post = post
        self._control_ids: dict[str, int] = {}
        self._controls = ControlTokens()
        self.start_piece, self._start = self._document_start(properties)

    def text_of(self, prompt: RenderedPrompt) -> str:
        """Return the text that is tokenised, without the document start."""
        if not prompt.messages:
            return prompt.text or ""
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        conversation = self._post("/apply-template", {"messages": messages})["prompt"]
        return str(conversation) + prompt.answer_prefix

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt."""
        if not prompt.messages:
            return self._start + self._tokenize(self.text_of(prompt), special=True, parse=False)
        while True:
            hidden, restore = self._controls.hide(prompt)
            pieces = self._controls.split(self.text_of(hidden))
            conversation = "".join(piece for piece, _ in pieces)
            ids = self._tokenize(conversation, special=True, parse=True)
            apart = self._tokenize_apart(pieces)
            # equal unless a control token was read that isn't known yet
            if ids == apart or not self._learn(conversation, set(apart)):
                break
        if hidden is prompt:
            return ids
        return self._tokenize_apart([(restore(piece), control) for piece, control in pieces])

    def encode_raw(self, text: str) -> list[int]:
        """Return the token ids of a piece of text."""
        return self._tokenize(text, special=False, parse=False)

    def _document_start(self, properties: dict[str, Any]) -> tuple[str, list[int]]:
        """Return the document start and its ids, where llama.cpp adds none by itself.

        Attention needs a first token that means nothing: without one the first word of a text
        takes that place, and the predictions of a model trained on separated documents suffer much.
        """
        if self._tokenize("", special=True, parse=False):
            return "", []
        for piece in ("<|endoftext|>", properties.get("bos_token"), properties.get("eos_token")):
            ids = self._tokenize(piece, special=False, parse=True) if piece else []
            if len(ids) == 1:
                return str(piece), ids
        return "", []

    def _learn(self, conversation: str, known: set[int]) -> bool:
        """Look for unknown control tokens in a conversation; return whether there are any."""
        body = {"content": conversation, "add_special": True, "parse_special": True}
        answer = self._post("/tokenize", body | {"with_pieces": True})["tokens"]
        # half a character has a list of bytes as its piece
        found = {str(t["piece"]): int(t["id"]) for t in answer if isinstance(t["piece"], str)}
        new = {
            piece: token
            for piece, token in found.items()
            if token not in known
            and piece not in self._control_ids
            and piece in conversation
            and self._tokenize(piece, special=False, parse=True) == [token]
            and self._tokenize(piece, special=False, parse=False) != [token]
        }
        self._control_ids = self._control_ids | new
        self._controls = ControlTokens(map(re.escape, self._control_ids))
        return bool(new)

    def _tokenize_apart(self, pieces: list[tuple[str, bool]]) -> list[int]:
        """Return the ids of pieces of a conversation, where text holds no control tokens."""
        ids = self._control_ids
        content = [ids[piece] if control else piece for piece, control in pieces]
        return self._tokenize(content, special=True, parse=False)

    def _tokenize(self, content: str | list[str | int], *, special: bool, parse: bool) -> list[int]:
        body = {"content": content, "add_special": special, "parse_special": parse}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]
