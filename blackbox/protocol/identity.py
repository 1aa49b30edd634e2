"""The identity of an LM, and the digests of requests to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from json.encoder import encode_basestring_ascii as _json
from typing import Any

from blackbox.protocol.requests import ClosedQuestion, RenderedPrompt

REQUEST_SCHEMA = 1
"""Version of the fields that `request_digest` covers."""


@dataclass(frozen=True)
class BackendIdentity:
    """The LM and all settings that can change its answers; never a key, a path or an address.

    Parameters
    ----------
    provider : str
        The backend's name, such as ``"onnx"``.
    endpoint : str
        The kind of interface, such as ``"completions"`` or ``"in-process"``.
    model : str
        The model's name as its provider knows it.
    revision, weights_digest, tokenizer_digest, chat_template_digest : str
        Versions and SHA-256 digests, empty where the provider doesn't report them.
    extra : mapping of str to str
        Request fields and settings that change answers, such as the format of the weights.
    engine : str
        The software that evaluates the model here, with its version, such as ``"vllm 0.32.0"``. It
        is a note and no part of the identity: versions differ in the last digits, as batches do.
    """

    provider: str
    endpoint: str
    model: str
    revision: str = ""
    weights_digest: str = ""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    engine: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the identity and the engine as JSON data."""
        return asdict(self) | {"extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackendIdentity:
        """Return the identity that `as_dict` described.

        Raises
        ------
        ValueError
            On an unknown field, or a value that is not text.
        """
        known = {f.name for f in fields(cls)}
        if set(data) - known:
            raise ValueError(f"unknown fields of a backend identity: {sorted(set(data) - known)}")
        extra = data.get("extra", {})
        texts = [value for key, value in data.items() if key != "extra"]
        if not isinstance(extra, Mapping) or not all(
            isinstance(text, str) for text in [*texts, *extra, *extra.values()]
        ):
            raise ValueError("a backend identity holds text only")
        return cls(**dict(data))

    def canonical(self) -> str:
        """Return the JSON of all fields but the engine, over which `digest` is made."""
        return json.dumps(self._compared(), sort_keys=True, ensure_ascii=True)

    def digest(self) -> str:
        """Return the SHA-256 over all fields but the engine, in hexadecimal."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def _compared(self) -> dict[str, Any]:
        return {key: value for key, value in self.as_dict().items() if key != "engine"}

    def differences(self, other: BackendIdentity) -> list[str]:
        """Return one phrase per field in which the two differ, such as ``model 'a' / 'b'``."""
        mine, theirs = self._compared(), other._compared()
        return [
            f"{key} {mine[key]!r} / {theirs[key]!r}" for key in mine if mine[key] != theirs[key]
        ]


def request_digest(identity: BackendIdentity, prompt: RenderedPrompt, asked: Any) -> str:
    """Return the SHA-256 of a request: the LM's identity, the rendered prompt, and the arguments.

    `asked` holds the arguments as JSON data, such as ``{"top_k": 200}``.
    """
    return request_hasher(identity, asked)(prompt).hex()


def request_hasher(identity: BackendIdentity, asked: Any) -> Callable[[RenderedPrompt], bytes]:
    """Return a function that computes `request_digest` of prompts, as 32 bytes.

    The digest is of canonical JSON: sorted keys, ASCII. What the requests share is hashed once.
    """
    begun = hashlib.sha256(
        f'{{"asked": {json.dumps(asked, sort_keys=True)}, "identity": {_json(identity.digest())}, '
        '"prompt": '.encode()
    )

    def digest(prompt: RenderedPrompt) -> bytes:
        state = begun.copy()
        state.update(f'{_json_of(prompt)}, "schema": {REQUEST_SCHEMA}}}'.encode())
        return state.digest()

    return digest


def _json_of(prompt: RenderedPrompt) -> str:
    """Return `RenderedPrompt.as_dict` as canonical JSON; `json.dumps` takes ten times as long."""
    turns = ""
    if prompt.messages:
        turns = ", ".join(
            f'{{"content": {_json(turn.content)}, "role": {_json(turn.role)}}}'
            for turn in prompt.messages
        )
    after = "null" if prompt.after_mask is None else _json(prompt.after_mask)
    text = "null" if prompt.text is None else _json(prompt.text)
    asked = "" if prompt.question is None else f'"question": {_json_of_question(prompt.question)}, '
    choices = image = ""
    if prompt.choices:
        choices = f'"choices": [{", ".join(map(_json, prompt.choices))}], '
    if prompt.image is not None:  # without one, a request has the digest it always had
        image = f'"image": {{"at": {prompt.image_at}, "digest": "{prompt.image.digest}"}}, '
    return (
        f'{{"after_mask": {after}, "answer_prefix": {_json(prompt.answer_prefix)}, '
        f'{choices}{image}"messages": [{turns}], {asked}"text": {text}}}'
    )


def _json_of_question(question: ClosedQuestion) -> str:
    options = ", ".join(map(_json, question.options))
    return (
        f'{{"instructions": {_json(question.instructions)}, "kind": {_json(question.kind)}, '
        f'"options": [{options}]}}'
    )
