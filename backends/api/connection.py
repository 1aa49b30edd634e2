"""A server behind an OpenAI-compatible API: its client, its list of models, its identity."""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from backends.api import credentials
from backends.api.errors import RefusedError, RejectedError, translated
from backends.api.listing import ListedModel, find, models_in
from backends.api.profile import EndpointProfile
from backends.api.request_format import CHAT, COMPLETIONS, CONTINUE_TEXT, NEXT_WORD, RESPONSES
from backends.api.responses import BadAnswerError, NameOf
from backends.api.retries import Pace, RetryLaterError, send_with_retries
from backends.api.sending import Sender
from backends.api.servers import Detokenizer, LlamaCppServer, ServerTokenizer, VllmServer
from blackbox.errors import BackendError, ModelNotFoundError
from blackbox.protocol import BackendIdentity, Usage
from blackbox.spending import Rate, current_account

__all__ = ["Connection"]

R = TypeVar("R")

_CHECK_SECONDS = 5.0
_FORM_TRIES = 2
_SHORTEST_SECRET = 8  # what a server of one's own is given for a key is no secret
_ENDPOINT_NAMES = {
    frozenset({CHAT}): "chat",
    frozenset({COMPLETIONS}): "completions",
    frozenset({CHAT, COMPLETIONS}): "chat+completions",
    frozenset({RESPONSES}): "responses",
}


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
    renew : callable or None
        Makes such a client anew. Then this one is ours, and closed when the connection is gone.
    timeout : float
        Seconds that one try may take, from connecting to the last byte.
    secrets : sequence of str
        Credentials among the user's own fields, which no message may repeat.
    """

    def __init__(
        self,
        client: Any,
        model: str | None,
        pace: Pace,
        max_attempts: int,
        *,
        renew: Callable[[], Any] | None,
        timeout: float = 60.0,
        secrets: Sequence[str] = (),
    ) -> None:
        super().__init__(client, pace, max_attempts, timeout, renew)
        self._secrets = [
            *secrets,
            *credentials.in_address(str(client.base_url)),
            *credentials.in_headers(client.default_headers),
            *credentials.in_headers(client.default_query),
            *credentials.in_proxies(),
        ]
        if renew is not None:
            weakref.finalize(self, client.close)
        self._model = model
        self._names: list[str] = []  # those that the server lists

    @property
    def who(self) -> str:
        """Server and model, for messages."""
        parts = urlsplit(str(self.client.base_url))
        model = self._model or ""
        name = f" {_name_of(model) if _is_path(model) else repr(model)}"
        return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{name if model else ''}"

    @property
    def secrets(self) -> list[str]:
        """Credentials that no message may repeat."""
        key = self.client.api_key
        known = isinstance(key, str) and len(key) >= _SHORTEST_SECRET
        return [key, *self._secrets] if known else self._secrets

    @property
    def provider(self) -> str:
        """The provider, as it stands in the identity."""
        return "openai" if self.public_host == "api.openai.com" else "openai-compatible"

    @property
    def public_host(self) -> str:
        """The host of the API, where it is on no private network; else ""."""
        host = urlsplit(str(self.client.base_url)).hostname or ""
        return host if _is_public(host) else ""

    def rate(self, price_share: float = 1.0) -> Rate:
        """Who bills a request, and what share of the list price."""
        return Rate(self.provider, _name_of(self._model or ""), price_share, self.public_host)

    def check(self) -> None:
        """Whether the server answers, for nothing and in one try.

        Raises
        ------
        BackendError
            If it doesn't.
        """
        try:
            with translated(self.who, self.secrets), self._limited(None, _CHECK_SECONDS):
                import httpx2

                quick = self.client.with_options(timeout=_CHECK_SECONDS)
                quick.get("/models", cast_to=httpx2.Response)
        except (RejectedError, ModelNotFoundError, RefusedError):
            return  # it has no list, and says so
        except RetryLaterError as error:
            raise BackendError(str(error)) from error

    def look_up(self) -> ListedModel:
        """Return our model's entry in the server's list, which is optional where ours is named.

        Raises
        ------
        BackendError
            If the server can't be reached, or if no model was named and the list isn't of one.
        """
        named, answered = self._model, True
        try:
            models = self._free(lambda: models_in(self.get("/models")), is_known=False)
        except (RetryLaterError, RefusedError, BackendError) as error:
            if getattr(error, "status", None) in (401, 403) and named is None:
                raise  # it answers, and says what to check
            if named is None or "can't be reached" in str(error):
                raise BackendError(
                    f"{error}; start the server, or check base_url{self.address_hint()}"
                ) from error
            models, answered = [], False
        self._names = [model["id"] for model in models]
        if named is None:
            if len(models) != 1:
                some = ", ".join(model["id"] for model in models[:8])
                raise ModelNotFoundError(
                    f"{self.who} lists {len(models)} models: name one (--model); {some}"
                )
            named = str(models[0]["id"])
        self._model = named
        return find(named, models, answered=answered)

    def name_hint(self) -> str:
        """Return words for an error where the server lists a model of a similar name."""
        near = difflib.get_close_matches(str(self._model), self._names, 1)
        return f"; did you mean {near[0]!r}?" if near and near[0] != self._model else ""

    def address_hint(self) -> str:
        """Return words for an error where the address has no path, and most servers have one."""
        parts = urlsplit(str(self.client.base_url))
        if parts.path.strip("/"):
            return ""
        return f"; it has no path: is it {parts.scheme}://{parts.netloc.rpartition('@')[2]}/v1 ?"

    def send_form(self, path: str, body: dict[str, Any], *, listed: bool) -> dict[str, Any]:
        """Post a request whose form may not be served, for the probe.

        There are two tries where the server fails or hangs up, as some do at a field that they
        don't take, and all of them where it is busy. Where its list was answered the key is good,
        and a 403 is about the form.

        Raises
        ------
        RejectedError
            If the form isn't served.
        BackendError
            If the server is busy for too long, or nothing more would succeed.
        """
        tries = min(_FORM_TRIES, self._max_attempts)

        def post(attempts: int) -> dict[str, Any]:
            stop, usage = threading.Event(), Usage()
            answer: dict[str, Any] = self.send(
                path, lambda: body, None, stop, usage, lambda found: found, attempts
            )
            return answer

        try:
            try:
                return post(tries)
            except RetryLaterError as error:
                # a rate limit was waited out for as long as it is worth
                if not _is_busy(error) or getattr(error, "kind", None) == "rate_limit":
                    raise
                rest, tries = self._max_attempts - tries, self._max_attempts
                if not rest:
                    raise
                return post(rest)
        except RetryLaterError as error:
            said = error.after_tries(max(tries, error.tries))
            if _is_busy(error):
                raise BackendError(said) from error
            # without a kind it was answered, and paid for
            raise RejectedError(said) from (
                error if hasattr(error, "kind") else BadAnswerError(str(error))
            )
        except RefusedError as error:
            raise RejectedError(str(error)) from error
        except BackendError as error:
            said, advice, _ = str(error).partition("; check the key")
            if listed and advice and getattr(error, "status", None) == 403:
                raise RejectedError(said) from error
            raise

    def find_tokenizer(self, listed: ListedModel) -> ServerTokenizer | None:
        """The tokenizer of a server that says what it is, and really has one."""
        try:
            if listed.server == "llamacpp":
                return LlamaCppServer(self._get_below, self._post_below)
            if listed.server == "vllm":
                return VllmServer(self._post_below, listed.model)
        except (BackendError, LookupError, TypeError, AttributeError):
            pass  # a proxy may repeat the name of a server, and have none of its paths
        return None

    def find_names(self, model: str, token: int) -> NameOf | None:
        """Return what names tokens that are told by id only; None where it can't name `token`."""
        names = Detokenizer(self._post_below, model)
        try:
            names.name_of(token)
        except BackendError:
            return None
        return names.name_of

    @property
    def _root(self) -> str:
        return str(self.client.base_url).rstrip("/").removesuffix("/v1")

    def _get_below(self, path: str) -> dict[str, Any]:
        return self._free(lambda: self.get(self._root + path))

    def _post_below(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._free(lambda: self.post(self._root + path, body))

    def _free(self, ask: Callable[[], R], *, is_known: bool = True) -> R:
        """Ask for what costs nothing, and again while the server is busy.

        A moment without an answer must not change which tokens are read, and so the identity.

        Parameters
        ----------
        ask : callable
            Sends one request.
        is_known : bool
            Whether the server has answered before. Else one that can't be reached is an error at
            once, as its address may be wrong.

        Raises
        ------
        BackendError
            If there is no answer.
        """

        def once() -> R:
            try:
                with translated(self.who, self.secrets):
                    return ask()
            except RetryLaterError as error:
                is_lost = not is_known and "can't be reached" in str(error)
                if is_lost or not hasattr(error, "kind"):  # without one it is a malformed answer
                    raise BackendError(str(error)) from error
                raise

        try:
            return send_with_retries(
                once,
                attempts=self._max_attempts,
                pace=Pace(),
                tokens=1,
                stop=threading.Event(),
                on_retry=lambda: None,
                account=current_account(),
            )
        except (RetryLaterError, RefusedError) as error:
            raise BackendError(str(error)) from error

    def identify(
        self, found: EndpointProfile, listed: ListedModel, revision: str
    ) -> BackendIdentity:
        """Return who answers: everything known that can change an answer."""
        wire = found.wire
        extra = {"raw_text": wire.raw_text_by}
        if wire.raw_text_by != "completions":
            said = CONTINUE_TEXT if wire.raw_text_by == "begun answer" else NEXT_WORD
            extra["raw_text"] += " " + hashlib.sha256(said.encode()).hexdigest()[:8]
        if wire.document_start:
            extra["document_start"] = wire.document_start
        if wire.extra:
            fields = credentials.without_credentials(dict(wire.extra))
            extra["fields"] = json.dumps(fields, sort_keys=True)
        if listed.facts:
            extra["weights"] = json.dumps(dict(listed.facts), sort_keys=True)
        if wire.thinks:
            extra["thoughts"] = f"at most {wire.written} tokens"
        if wire.constrains:
            extra["choices"] = "by a JSON schema"
        if not wire.temperature:
            extra["temperature"] = "the provider's"
        if wire.max_image_side:
            extra["max_image_side"] = str(wire.max_image_side)
        if wire.alphabet:
            extra["tokens"] = f"{wire.alphabet}, decoded"
        model = _name_of(wire.model)
        if _name_of(found.answered_by) not in ("", model):
            extra["answered_by"] = _name_of(found.answered_by)
        if found.answers_digest:
            extra["answers"] = found.answers_digest
        extra |= self._host()
        return BackendIdentity(
            provider=self.provider,
            endpoint=_ENDPOINT_NAMES[wire.endpoints],
            model=model,
            revision=revision,
            extra=extra,
            engine=f"system_fingerprint {found.system_fingerprint}"
            if found.system_fingerprint
            else "",
        )

    def identify_by_fields(
        self,
        endpoint: str,
        listed: ListedModel,
        fields: Mapping[str, Any],
        revision: str,
        *,
        answered_by: str = "",
    ) -> BackendIdentity:
        """Return who answers at an endpoint, as `identify`; `fields` are those of each request."""
        extra = {}
        if _name_of(answered_by) not in ("", _name_of(listed.model)):
            extra["answered_by"] = _name_of(answered_by)
        if fields:
            shown = credentials.without_credentials(dict(fields))
            extra["fields"] = json.dumps(shown, sort_keys=True)
        if listed.facts:
            extra["weights"] = json.dumps(dict(listed.facts), sort_keys=True)
        if self.max_image_side:
            extra["max_image_side"] = str(self.max_image_side)
        return BackendIdentity(
            provider=self.provider,
            endpoint=endpoint,
            model=_name_of(listed.model),
            revision=revision,
            extra=extra | self._host(),
        )

    def _host(self) -> dict[str, str]:
        """Return a name for a public provider that tells models of the same name apart."""
        host = self.public_host
        if not host:
            return {}
        parts = urlsplit(str(self.client.base_url))
        path = parts.path.strip("/")
        place = host if path in ("", "v1") else f"{host}/{path}"
        place += f":{parts.port}" if parts.port else ""
        return {"host": hashlib.sha256(place.encode()).hexdigest()[:16]}


def _name_of(model: str) -> str:
    """A model's name, and of a path the last part only."""
    return PureWindowsPath(model).name if _is_path(model) else model


def _is_path(model: str) -> bool:
    """Whether a model's name is a place in a file system, of whatever kind the server has."""
    return re.match(r"[/.]|[A-Za-z]:[\\/]|\\\\", model) is not None


def _is_busy(error: RetryLaterError) -> bool:
    """Whether a failure is about the server's load or the way to it, and not about a request."""
    waits = getattr(error, "kind", None) in ("rate_limit", "timeout") or error.after is not None
    return (
        waits
        or getattr(error, "status", None) in (408, 425, 502, 503)
        or "can't be reached" in str(error)
    )


def _is_public(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_private
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".lan"))
