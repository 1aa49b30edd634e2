"""llama.cpp's own tokenizer and chat template, over its server's HTTP endpoints."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from backends.control_tokens import ControlTokens
from blackbox.errors import BackendError
from blackbox.images import Image, plain_image
from blackbox.protocol import NO_TOKEN, RenderedPrompt

__all__ = ["ImageSequence", "LlamaCppTokenizer"]

Post = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Sends JSON to a path of the server and returns its JSON."""


_JOINER = "\u2060"  # of words: no character that is seen
_ENCODED_IMAGES = 16  # that are kept as they are sent
_ANY_IMAGE = plain_image(0, 0, 0, side=1).data_url()


class ImageSequence(list[int]):
    """The token ids of a prompt with an image; those of the image are one negative number.

    Parameters
    ----------
    before, after : list of int
        The ids of the text before the image, and after it.
    n_tokens : int
        Tokens of the image.
    image : Image
        The image, which gives the number.
    text : str
        The prompt as it is sent, with a marker in the place of the image.
    """

    def __init__(
        self, before: list[int], n_tokens: int, after: list[int], image: Image, text: str
    ) -> None:
        number = NO_TOKEN - 1 - int(image.digest[:12], 16)
        super().__init__([*before, *[number] * n_tokens, *after])
        self.image = image
        self.text = text
        self.ends_with_image = not after


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
    max_image_side : int
        Pixels of the longest side to which a larger image is resized first; 0 for none.

    Attributes
    ----------
    start_piece : str
        The document start that is put before raw text, where llama.cpp adds none by itself.
    """

    def __init__(self, post: Post, properties: dict[str, Any], max_image_side: int = 0) -> None:
        self._post = post
        self.max_image_side = max_image_side
        self._marker = str(properties.get("media_marker", ""))
        self._image_sizes: dict[tuple[int, int], int] = {}
        self.image_data = lru_cache(maxsize=_ENCODED_IMAGES)(self._image_data)
        self._control_ids: dict[str, int] = {}
        self._controls = ControlTokens()
        self.start_piece, self._start = self._document_start(properties)

    def text_of(self, prompt: RenderedPrompt) -> str:
        """Return the text that is tokenised, without the document start."""
        if prompt.image is not None:
            return self._text_around_image(prompt).replace(self._marker, "<image>")
        if not prompt.messages:
            return prompt.text or ""
        messages = [{"role": m.role, "content": m.content} for m in prompt.messages]
        conversation = self._post("/apply-template", {"messages": messages})["prompt"]
        return str(conversation) + prompt.answer_prefix

    def encode(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt; with an image an `ImageSequence`."""
        if prompt.image is not None:
            return self._encode_with_image(prompt, prompt.image)
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

    def count_image_tokens(self, image: Image) -> int:
        """Return the number of tokens of an image, which depends on its size."""
        size = image.size_within(self.max_image_side)
        if size not in self._image_sizes:
            url = f"data:image/png;base64,{self.image_data(image)}"
            said = [_image_part(url), *_text_parts("a")]
            body = {"messages": [{"role": "user", "content": said}]}
            whole = self._post("/v1/chat/completions/input_tokens", body)["input_tokens"]
            text = sum(map(len, self._ids_around(self._post("/apply-template", body)["prompt"])))
            self._image_sizes[size] = int(whole) - text
        return self._image_sizes[size]

    def _image_data(self, image: Image) -> str:
        """Return an image as a request has it."""
        return base64.b64encode(image.png(self.max_image_side)).decode()

    def _encode_with_image(self, prompt: RenderedPrompt, image: Image) -> ImageSequence:
        text = self._text_around_image(prompt)
        before, after = self._ids_around(text)
        if not prompt.messages:
            before = self._start + before
            text = self.start_piece + text
        return ImageSequence(before, self.count_image_tokens(image), after, image, text)

    def _text_around_image(self, prompt: RenderedPrompt) -> str:
        """Return the text of a prompt with a marker in the place of its image."""
        *others, last = [message.content for message in prompt.messages] or [prompt.text or ""]
        first, second = map(self._without_controls, prompt.around_image(last))
        if not prompt.messages:
            return f"{first}{self._marker}{second}"
        said = [*_text_parts(first), _image_part(_ANY_IMAGE), *_text_parts(second)]
        contents: list[Any] = [*map(self._without_controls, others), said]
        messages = [
            {"role": message.role, "content": content}
            for message, content in zip(prompt.messages, contents, strict=True)
        ]
        conversation = str(self._post("/apply-template", {"messages": messages})["prompt"])
        return conversation + self._without_controls(prompt.answer_prefix)

    def _ids_around(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text before the marker of its image, and after it."""
        parts = text.split(self._marker)
        if len(parts) != 2:
            raise BackendError(
                f"the chat template puts {len(parts) - 1} images into a prompt of one"
            )
        before = self._tokenize(parts[0], special=True, parse=True)
        return before, self._tokenize(parts[1], special=False, parse=True)

    def _without_controls(self, text: str) -> str:
        """Return a text in which no control token is read, as it would be beside an image.

        Each has an unseen character put into it.
        """
        parsed, plain = (
            self._tokenize(text, special=False, parse=parse) for parse in (True, False)
        )
        if parsed == plain:
            return text
        self._learn(text, set())
        return _JOINER.join(self._controls.cut(text))

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


def _image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _text_parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []
