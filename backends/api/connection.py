"""A server behind an OpenAI-compatible API: the client, what it lists, and who answers."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from backends.api.errors import RefusedError, RejectedError, translated
from backends.api.request_format import CHAT, COMPLETIONS, CONTINUE_TEXT, NEXT_WORD, RequestFormat
from backends.api.retries import Pace, RetryLaterError
from backends.api.sending import Sender
from backends.api.servers import LlamaCppServer, ServerTokenizer, VllmServer
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError
from blackbox.protocol import BackendIdentity
from blackbox.spending import Rate

__all__ = ["Connection", "ListedModel", "make_client"]

_CHECK_SECONDS = 5.0
_SHORTEST_SECRET = 8
_ENDPOINT_NAMES = {
    frozenset({CHAT}): "chat",
    frozenset({COMPLETIONS}): "completions",
    frozenset({CHAT, COMPLETIONS}): "chat+completions",
}


@dataclass(frozen=True)
class ListedModel:
    """What a server's list says of a model.

    Parameters
    ----------
    model : str
        Its name.
    server : str
        What the server calls itself, if it does.
    context_length : int or None
        Tokens that a prompt may have, where it tells.
    facts : mapping
        What tells its weights from others of that name; never a path.
    """

    model: str
    server: str
    context_length: int | None
    facts: Mapping[str, Any]


class Connection(Sender):
    """A server: what it lists, who answers, and requests to it.

    Parameters
    ----------
    client : openai.OpenAI
        Reaches it, without retries of its own.
    model : str or None
        The model's name as the user gave it.
    pace : Pace
        When a request may begin.
    max_attempts : int
        Tries of each.
    owned : bool
        Whether the client is closed when the connection is gone.
    timeout : float
        Seconds that one try may take, from connecting to the last byte.
    """

    def __init__(
        self,
        client: Any,
        model: str | None,
        pace: Pace,
        max_attempts: int,
        *,
        owned: bool,
        timeout: float = 60.0,
    ) -> None:
        super().__init__(client, pace, max_attempts, timeout)
        if owned:
            weakref.finalize(self, client.close)
        self._model = model

    @property
    def who(self) -> str:
        """Server and model, for messages."""
        parts = urlsplit(str(self.client.base_url))
        model = self._model or ""
        name = f" {_name_of(model) if model.startswith(('/', '.')) else repr(model)}"
        return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{name if model else ''}"

    @property
    def secrets(self) -> list[str]:
        """What must stand in no message."""
        parts = urlsplit(str(self.client.base_url))
        secrets = [self.client.api_key, parts.password or "", parts.username or ""]
        # what a server of one's own is given for a key is no secret, and a word like any other
        return [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]

    @property
    def provider(self) -> str:
        """The provider, as it stands in the identity."""
        host = urlsplit(str(self.client.base_url)).hostname or ""
        return "openai" if host == "api.openai.com" else "openai-compatible"

    def rate(self, price_share: float = 1.0) -> Rate:
        """Who bills a request, and what share of the list price."""
        return Rate(self.provider, _name_of(self._model or ""), price_share)

    def check(self) -> None:
        """Whether the server answers, for nothing and in one try.

        Raises
        ------
        BackendError
            If it doesn't.
        """
        try:
            with translated(self.who, self.secrets), self._limited(None, _CHECK_SECONDS):
                self.client.with_options(timeout=_CHECK_SECONDS).models.list()
        except (RejectedError, ModelNotFoundError, RefusedError):
            return  # it has no list, and says so
        except RetryLaterError as error:
            raise BackendError(str(error)) from error

    def look_up(self) -> ListedModel:
        """What the server's list of models says of ours; it needs none where ours is named."""
        named = self._model
        try:
            with translated(self.who, self.secrets), self._limited():
                models = [model.model_dump() for model in self.client.models.list()]
        except (RetryLaterError, RejectedError, ModelNotFoundError) as error:
            if named is None or "can't be reached" in str(error):
                raise BackendError(f"{error}; start the server, or check base_url") from error
            models = []
        entry: dict[str, Any] = next((m for m in models if m["id"] == named), {})
        if named is None:
            if len(models) != 1:
                some = ", ".join(str(model["id"]) for model in models[:8])
                raise ModelNotFoundError(
                    f"{self.who} lists {len(models)} models: name one (--model); {some}"
                )
            entry, named = models[0], models[0]["id"]
        elif not entry and len(models) == 1:
            entry = models[0]  # a server of one model takes any name for it
        meta = entry.get("meta") or {}
        self._model = str(named)
        return ListedModel(
            model=self._model,
            server=str(entry.get("owned_by") or ""),
            context_length=entry.get("max_model_len") or meta.get("n_ctx"),
            facts=_facts_of(entry),
        )

    def find_tokenizer(self, listed: ListedModel) -> ServerTokenizer | None:
        """The tokenizer of a server that says what it is, and really has one."""
        root = str(self.client.base_url).rstrip("/").removesuffix("/v1")

        def get(path: str) -> dict[str, Any]:
            return self.get(root + path)

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            try:
                with translated(self.who, self.secrets):
                    return self.post(root + path, body)
            except (RetryLaterError, RefusedError) as error:
                raise BackendError(str(error)) from error

        try:
            with translated(self.who, self.secrets):
                if listed.server == "llamacpp":
                    return LlamaCppServer(get, post)
                if listed.server == "vllm":
                    return VllmServer(post, listed.model)
        except (BackendError, RetryLaterError, RefusedError, KeyError, TypeError):
            pass
        return None

    def identify(self, wire: RequestFormat, listed: ListedModel, revision: str) -> BackendIdentity:
        """Who answers, in all that can change an answer."""
        host = urlsplit(str(self.client.base_url)).hostname or ""
        extra = {"raw_text": wire.raw_text_by}
        if wire.raw_text_by != "completions":
            said = CONTINUE_TEXT if wire.raw_text_by == "begun answer" else NEXT_WORD
            extra["raw_text"] += " " + hashlib.sha256(said.encode()).hexdigest()[:8]
        if wire.document_start:
            extra["document_start"] = wire.document_start
        if wire.extra:
            extra["fields"] = json.dumps(dict(wire.extra), sort_keys=True)
        if listed.facts:
            extra["weights"] = json.dumps(dict(listed.facts), sort_keys=True)
        if not wire.temperature:
            extra["temperature"] = "the provider's"
        if _is_public(host):
            # a name for the provider that tells models of the same name apart
            extra["host"] = hashlib.sha256(host.encode()).hexdigest()[:16]
        return BackendIdentity(
            provider=self.provider,
            endpoint=_ENDPOINT_NAMES[wire.endpoints],
            model=_name_of(wire.model),
            revision=revision,
            extra=extra,
        )


def make_client(client: Any, base_url: str | None, timeout: float) -> Any:
    """Return the client to use: the user's own, or a new one with the environment's key.

    Raises
    ------
    MissingDependencyError, BackendError, TypeError
        Without the `openai` package or a key, or if the client is none of its.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError(
            "OpenAI-compatible APIs need openai: pip install 'promptboosting[openai]'"
        ) from error
    from backends.api import transport

    if client is not None:
        if not isinstance(client, openai.OpenAI):
            raise TypeError(f"client must be an openai.OpenAI, got {type(client).__name__}")
        transport.install(client._client)
        return client.with_options(max_retries=0)
    if not os.environ.get("OPENAI_API_KEY"):
        raise BackendError(
            "no key for the API: set OPENAI_API_KEY (a server of your own takes any value)"
        )
    try:
        made = openai.OpenAI(base_url=base_url, timeout=timeout, max_retries=0)
    except openai.OpenAIError as error:
        raise BackendError(f"the API's client can't be made: {error}") from None
    transport.install(made._client)
    return made


def _name_of(model: str) -> str:
    """A model's name; of a path only its last part."""
    return PurePath(model).name if model.startswith(("/", ".")) else model


def _facts_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a server's list says of a model's weights; never a path."""
    meta = entry.get("meta") or {}
    facts = {name: meta[name] for name in ("n_vocab", "n_params", "size") if name in meta}
    if entry.get("root"):
        facts["root"] = PurePath(str(entry["root"])).name
    return facts


def _is_public(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_private
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".lan"))
