"""Tokenizers of servers that have one: llama.cpp's and vLLM's.

With them a prompt's tokens are counted and not estimated, token ids are the model's own, and a raw
text begins as the model was trained to see a document begin.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from backends.api.request_format import COMPLETIONS, RequestFormat, messages_of
from backends.llamacpp_tokenizer import LlamaCppTokenizer
from blackbox.errors import BackendError
from blackbox.protocol import Message, RenderedPrompt

__all__ = ["Detokenizer", "LlamaCppServer", "ServerTokenizer", "VllmServer"]

Get = Callable[[str], dict[str, Any]]
"""Gets the JSON of a path below the server's root."""

Post = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Posts JSON to a path below the server's root and gives back its JSON."""


class ServerTokenizer(Protocol):
    """The interface of a server's tokenizer.

    Attributes
    ----------
    document_start : str
        What a raw text needs before it.
    fields : mapping
        Request fields with which the server tells token ids.
    reading_temperature : float
        The temperature to read a distribution at.
    forces : bool
        Whether an ordinary token has to be forced, so that there is a distribution.
    """

    document_start: str
    fields: Mapping[str, Any]
    reading_temperature: float
    forces: bool

    def encode(self, prompt: RenderedPrompt, wire: RequestFormat) -> list[int]:
        """The token ids of a prompt, as the server evaluates them."""

    def ids_to_send(self, prompt: RenderedPrompt) -> list[int] | None:
        """Token ids to send in the place of a raw text, so that none of it is read as special."""

    def name_of(self, token: int) -> bytes:
        """The bytes of a token of which only the id was told."""


class LlamaCppServer:
    """The tokenizer of ``llama-server``."""

    reading_temperature = 1.0
    forces = True

    def __init__(self, get: Get, post: Post) -> None:
        self._tokenizer = LlamaCppTokenizer(post, get("/props"))
        self.document_start = self._tokenizer.start_piece
        self.fields: Mapping[str, Any] = {}

    def encode(self, prompt: RenderedPrompt, wire: RequestFormat) -> list[int]:
        """See `ServerTokenizer`."""
        if wire.path_of(prompt) == COMPLETIONS or not prompt.text:
            return self._tokenizer.encode(prompt)
        return self._tokenizer.encode(_as_chat(prompt, wire))

    def ids_to_send(self, prompt: RenderedPrompt) -> list[int] | None:
        """See `ServerTokenizer`."""
        return self._tokenizer.encode(prompt)

    def name_of(self, token: int) -> bytes:
        """Never asked: this server tells bytes."""
        raise KeyError(token)


class Detokenizer:
    """Names tokens of which a server tells the ids only, by its ``/detokenize``.

    Parameters
    ----------
    post : callable
        Reaches the server.
    model : str
        The model's name.
    """

    def __init__(self, post: Post, model: str) -> None:
        self._post = post
        self._model = model
        self._names: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def name_of(self, token: int) -> bytes:
        """Return a token's bytes; half a character has the name of the replacement character."""
        with self._lock:
            known = self._names.get(token)
        if known is None:
            answer = self._post("/detokenize", {"model": self._model, "tokens": [token]})
            known = _text_in(answer).encode("utf-8", "surrogatepass")
            with self._lock:
                self._names[token] = known
        return known


class VllmServer:
    """The tokenizer of ``vllm serve``.

    Its chats list the token that was drawn and the likeliest ones, cut to as many as were asked
    for. Drawn at temperature 0 it is the likeliest itself, and none is lost; what is reported stays
    raw.
    """

    reading_temperature = 0.0
    forces = False

    def __init__(self, post: Post, model: str) -> None:
        self._post = post
        self._model = model
        self._detokenizer = Detokenizer(post, model)
        self.document_start = self._find_document_start()
        self.fields: Mapping[str, Any] = {"return_tokens_as_token_ids": True}

    def encode(self, prompt: RenderedPrompt, wire: RequestFormat) -> list[int]:
        """See `ServerTokenizer`."""
        if wire.path_of(prompt) == COMPLETIONS:
            return self._tokenize({"prompt": wire.document_start + (prompt.text or "")})
        turns = messages_of(prompt, wire.begun is not None)
        begun = turns[-1]["role"] == "assistant"
        return self._tokenize(
            {"messages": turns, "continue_final_message": begun, "add_generation_prompt": not begun}
        )

    def ids_to_send(self, prompt: RenderedPrompt) -> list[int] | None:
        """None: this server's tokenizer reads special tokens in any text."""
        return None

    def name_of(self, token: int) -> bytes:
        """See `ServerTokenizer`."""
        return self._detokenizer.name_of(token)

    def _find_document_start(self) -> str:
        """A document start where the tokenizer adds none; see `LlamaCppTokenizer`."""
        if self._tokenize({"prompt": ""}):
            return ""
        piece = "<|endoftext|>"
        return piece if len(self._tokenize({"prompt": piece})) == 1 else ""

    def _tokenize(self, what: dict[str, Any]) -> list[int]:
        body = {"model": self._model, "add_special_tokens": "prompt" in what, **what}
        return [int(token) for token in _field(self._post("/tokenize", body), "tokens")]


def _text_in(answer: Any) -> str:
    """The text that a server's detokenizer answers, as vLLM, llama.cpp and SGLang name it."""
    for name in ("prompt", "content", "text"):
        if isinstance(answer, Mapping) and isinstance(answer.get(name), str):
            return str(answer[name])
    raise BackendError("the server's tokenizer answers without a text: is it still the same?")


def _field(answer: Any, name: str) -> Any:
    """A field of what a server's tokenizer answers."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get(name), str | list):
        raise BackendError(f"the server's tokenizer answers without {name!r}: is it still vLLM's?")
    return answer[name]


def _as_chat(prompt: RenderedPrompt, wire: RequestFormat) -> RenderedPrompt:
    """A raw text in the form in which it goes to a chat endpoint."""
    turns = messages_of(prompt, wire.begun is not None)
    answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
    messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    return RenderedPrompt(messages=messages, answer_prefix=answer)
