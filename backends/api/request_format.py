"""The form of requests to an OpenAI-compatible server, as the probe found out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blackbox.images import DataUrl
from blackbox.protocol import RenderedPrompt

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "CONTINUE_TEXT",
    "NEXT_WORD",
    "RESPONSES",
    "RequestFormat",
    "decision_input",
    "messages_of",
    "parts_of_content",
    "text_among",
]

_ANSWER = "answer"

CHAT, COMPLETIONS, RESPONSES = "/chat/completions", "/completions", "/responses"

CONTINUE_TEXT = "Continue this text."
"""The user's words where a raw text becomes the beginning of the assistant's answer."""

NEXT_WORD = (
    "Which one word comes next in the text below? Answer with that word only, in lower case and "
    "without anything else."
)
"""The user's words where an answer can't be begun, above the raw text."""


@dataclass(frozen=True)
class RequestFormat:
    """The form of requests to one model of one server.

    Parameters
    ----------
    model : str
        The model's name as the server knows it.
    endpoints : frozenset of str
        Which of `CHAT` and `COMPLETIONS` it serves; or `RESPONSES` alone.
    length_field : str
        The name of the limit of tokens to write, in chats.
    written : int
        Tokens that a chat writes for a distribution: some models take no limit of 1.
    temperature : bool
        Whether chats take a temperature.
    reading_temperature : float
        The one to read a distribution at.
    begun : mapping or None
        The fields that let a chat's answer be begun; None where it can't be.
    begun_message : mapping
        The same in the begun message itself.
    forced : mapping
        Fields that keep an answer from ending at once.
    constrains : bool
        Whether texts of chats that are to be among some choices are held to them by a JSON schema.
    thinks : bool
        Whether texts of chats come after thoughts, for which `written` leaves room.
    counted : bool
        Whether chats take the number of log-probabilities in the place of a switch.
    alphabet : str
        What tokens are told in; see `backends.api.token_alphabets`.
    document_start : str
        What stands before each raw text.
    extra : mapping
        The user's own fields.
    max_image_side : int
        Pixels of the longest side to which a larger image is resized; 0 where none is.
    """

    model: str
    endpoints: frozenset[str] = frozenset({CHAT})
    length_field: str = "max_tokens"
    written: int = 1
    temperature: bool = True
    reading_temperature: float = 1.0  # at 1 it is the same before and after temperature
    begun: Mapping[str, Any] | None = None
    begun_message: Mapping[str, Any] = field(default_factory=dict)
    forced: Mapping[str, Any] = field(default_factory=dict)
    constrains: bool = False
    thinks: bool = False
    counted: bool = False
    alphabet: str = ""
    document_start: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    max_image_side: int = 0

    @property
    def raw_text_by(self) -> str:
        """The way to send raw text: ``"completions"``, ``"begun answer"`` or ``"instruction"``."""
        if COMPLETIONS in self.endpoints:
            return "completions"
        return "instruction" if self.begun is None else "begun answer"

    def path_of(self, prompt: RenderedPrompt) -> str:
        """The endpoint that a prompt goes to; completions take no images."""
        if RESPONSES in self.endpoints:
            return RESPONSES
        is_raw = not prompt.messages and prompt.image is None
        by_completions = is_raw and COMPLETIONS in self.endpoints
        return COMPLETIONS if by_completions else CHAT

    def next_token(
        self, prompt: RenderedPrompt, top_k: int, token_ids: list[int] | None = None
    ) -> dict[str, Any]:
        """The body of a request for one distribution; `token_ids` stand in for a raw text."""
        path = self.path_of(prompt)
        if path == COMPLETIONS:
            body = self._completion(prompt, token_ids) | {"max_tokens": 1, "logprobs": top_k}
        elif path == RESPONSES:
            body = self._response(prompt, self.written)
            body |= {"include": ["message.output_text.logprobs"], "top_logprobs": top_k}
        else:
            body = self._chat(prompt)
            body |= {self.length_field: self.written}
            body |= (
                {"logprobs": top_k} if self.counted else {"logprobs": True, "top_logprobs": top_k}
            )
        return self._finished(body, self.reading_temperature, self.forced)

    def generate(
        self, prompt: RenderedPrompt, n: int, max_tokens: int, temperature: float, seed: int
    ) -> dict[str, Any]:
        """The body of a request for `n` texts; the Responses API takes neither `n` nor `seed`."""
        path = self.path_of(prompt)
        if path == COMPLETIONS:
            body = self._completion(prompt, None) | {"max_tokens": max_tokens}
        elif path == RESPONSES:
            body = self._response(prompt, max(max_tokens, self.written))
            return self._finished(body, temperature, {})
        else:
            body = self._chat(prompt) | {self.length_field: max(max_tokens, self.written)}
            if self.constrains and prompt.choices:
                body["response_format"] = _one_of(prompt.choices)
        return self._finished(body | {"n": n, "seed": seed}, temperature, {})

    def _completion(self, prompt: RenderedPrompt, token_ids: list[int] | None) -> dict[str, Any]:
        text = self.document_start + (prompt.text or "")
        return {"model": self.model, "prompt": text if token_ids is None else token_ids}

    def _chat(self, prompt: RenderedPrompt) -> dict[str, Any]:
        messages = messages_of(prompt, self.begun is not None)
        if prompt.image is not None:
            _put_image(messages, prompt, self.max_image_side, _CHAT_PARTS)
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if messages[-1]["role"] == "assistant":
            messages[-1] |= self.begun_message
            body |= self.begun or {}
        return body

    def _response(self, prompt: RenderedPrompt, n_tokens: int) -> dict[str, Any]:
        messages = messages_of(prompt, begun=False)
        if prompt.image is not None:
            _put_image(messages, prompt, self.max_image_side, _INPUT_PARTS)
        return {
            "model": self.model,
            "input": messages,
            "max_output_tokens": n_tokens,
            "store": False,  # else the provider keeps texts for weeks
        }

    def _finished(
        self, body: dict[str, Any], temperature: float, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        if self.temperature:
            body["temperature"] = temperature
        return body | dict(more) | dict(self.extra)


def text_among(choices: Sequence[str], text: str) -> str:
    """Return the answer that a constrained text has, and the text itself where it has none."""
    try:
        found = json.loads(text)[_ANSWER]
    except (ValueError, TypeError, LookupError):
        return text
    return found if found in choices else text


def _one_of(choices: Sequence[str]) -> dict[str, Any]:
    """The field that holds a chat to some answers."""
    answer = {"type": "string", "enum": list(choices)}
    schema = {
        "type": "object",
        "properties": {_ANSWER: answer},
        "required": [_ANSWER],
        "additionalProperties": False,
    }
    described = {"name": _ANSWER, "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": described}


def messages_of(prompt: RenderedPrompt, begun: bool) -> list[dict[str, Any]]:
    """The text of a prompt as the turns of a conversation; raw text becomes one."""
    turns = [(message.role, message.content) for message in prompt.messages]
    answer = prompt.answer_prefix
    if not turns and begun:
        turns, answer = [("user", CONTINUE_TEXT)], prompt.text or ""
    elif not turns:
        turns = [("user", f"{NEXT_WORD}\n\n{prompt.text or ''}")]
    if answer:
        turns.append(("assistant", answer))
    return [{"role": role, "content": content} for role, content in turns]


def _chat_image(url: DataUrl) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _input_image(url: DataUrl) -> dict[str, Any]:
    return {"type": "input_image", "image_url": url}


_CHAT_PARTS = ("text", _chat_image)
_INPUT_PARTS = ("input_text", _input_image)  # of the Responses API, and of decisions


def _put_image(
    messages: list[dict[str, Any]],
    prompt: RenderedPrompt,
    max_side: int,
    form: tuple[str, Callable[[DataUrl], dict[str, Any]]],
) -> None:
    """Put a prompt's image where it stands in what the user says; raw text stands at its end."""
    assert prompt.image is not None
    kind, as_part = form
    user = next(turn for turn in reversed(messages) if turn["role"] == "user")
    said = user["content"]
    text = prompt.messages[-1].content if prompt.messages else prompt.text or ""
    at = len(said) - len(text) + prompt.image_at if said.endswith(text) else 0
    before, after = ([{"type": kind, "text": part}] * bool(part) for part in (said[:at], said[at:]))
    user["content"] = [*before, as_part(prompt.image.data_url(max_side)), *after]


def decision_input(prompt: RenderedPrompt, max_side: int) -> str | list[dict[str, Any]]:
    """Return the state of a decision request: a text, or an image before it."""
    if prompt.image is None:
        return prompt.text or ""
    messages = [{"role": "user", "content": prompt.text or ""}]
    _put_image(messages, prompt, max_side, _INPUT_PARTS)
    return messages


def parts_of_content(content: Any) -> tuple[str, int]:
    """Return the text of a message's content, and the most tokens that its images take."""
    if not isinstance(content, list):
        return str(content or ""), 0
    texts, tokens = [], 0
    for part in content:
        texts.append(str(part.get("text") or ""))
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        tokens += url.max_tokens if isinstance(url, DataUrl) else 0
    return "".join(texts), tokens
