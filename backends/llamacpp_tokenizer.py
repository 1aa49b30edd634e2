"""llama.cpp's own tokenizer and chat template, over its server's HTTP endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blackbox.protocol import RenderedPrompt

__all__ = ["LlamaCppTokenizer"]

Post = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Sends JSON to a path of the server and gives back its JSON."""


class LlamaCppTokenizer:
    """Token ids exactly as llama.cpp evaluates them.

    Parameters
    ----------
    post : callable
        Reaches the server.
    properties : dict
        What the server's ``/props`` says.

    Attributes
    ----------
    start_piece : str
        The document start that raw text gets here, where llama.cpp adds none by itself.
    """

    def __init__(self, post: Post, properties: dict[str, Any]) -> None:
        self._post = post
        self.start_piece, self._start = self._document_start(properties)

    def text_of(self, prompt: RenderedPrompt) -> str:
        """The text that is tokenised, without the document start."""
        if not prompt.messages:
            return prompt.text or ""
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        conversation = self._post("/apply-template", {"messages": messages})["prompt"]
        return str(conversation) + prompt.answer_prefix

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """The token ids of a prompt."""
        # special tokens are read out of the chat template only: in raw text they are just text
        if prompt.messages:
            return self._tokenize(self.text_of(prompt), special=True, parse=True)
        return self._start + self._tokenize(self.text_of(prompt), special=True, parse=False)

    def encode_raw(self, text: str) -> list[int]:
        """The token ids of a piece of text."""
        return self._tokenize(text, special=False, parse=False)

    def _document_start(self, properties: dict[str, Any]) -> tuple[str, list[int]]:
        """The token that a document begins with, where llama.cpp adds none by itself.

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

    def _tokenize(self, text: str, *, special: bool, parse: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": parse}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]
