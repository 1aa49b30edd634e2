"""Makes the client of an OpenAI-compatible API, with a key and an address that can be sent."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from backends.api import credentials
from blackbox.errors import BackendError, MissingDependencyError

__all__ = ["make_client"]

_KEY = "OPENAI_API_KEY"


def make_client(client: Any, base_url: str | None, timeout: float, key_variable: str = _KEY) -> Any:
    """Return the client to use: the user's own, or a new one with the key of that variable.

    Neither follows a redirect to another host: what is sent there would be read there.

    Raises
    ------
    MissingDependencyError, BackendError, TypeError
        Without the `openai` package or a key, if the key or the address can't be used, or if the
        client isn't one of that package.
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
        key = client.api_key
        if isinstance(key, str):
            client = client.with_options(api_key=credentials.checked(key, "the client's api_key"))
        client = client.with_options(max_retries=0)
        hooks = client._client.event_hooks["response"]
        if _refuse_other_host not in hooks:
            hooks.append(_refuse_other_host)
    else:
        client = _new_client(base_url, timeout, key_variable)
    transport.install(client._client)
    _check_headers(client)
    return client


def _new_client(base_url: str | None, timeout: float, key_variable: str) -> Any:
    import httpx2
    import openai

    key = credentials.checked(os.environ.get(key_variable, ""), key_variable)
    if not key:
        raise BackendError(
            f"no key for the API: set {key_variable} (a server of your own takes any value)"
        )
    name = "OPENAI_BASE_URL" if base_url is None else "base_url"
    address = (os.environ.get(name, "") if base_url is None else str(base_url)).strip()
    if address:
        _check_address(address, name)
    try:
        http = openai.DefaultHttpxClient(event_hooks={"response": [_refuse_other_host]})
        return openai.OpenAI(
            api_key=key,
            base_url=address or None,
            timeout=timeout,
            max_retries=0,
            http_client=http,
        )
    except (openai.OpenAIError, httpx2.InvalidURL, ValueError, TypeError, ImportError) as error:
        secrets = [key, *credentials.in_address(address), *credentials.in_proxies()]
        why = credentials.scrubbed(error, secrets)
        raise BackendError(f"the API's client can't be made: {why}") from None


def _check_address(address: str, name: str) -> None:
    """Raise if an address has no scheme or host, or one that can't be."""
    shown = credentials.scrubbed(address, credentials.in_address(address))
    if "://" not in address:
        bare = address.rpartition("@")[2]
        raise BackendError(f"{name} has no http:// or https://; is it http://{bare} ?")
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not address.isprintable() or " " in address:
        raise BackendError(
            f"{name} is no address of a server: {shown!r}; give one such as "
            "http://127.0.0.1:8000/v1"
        )


def _check_headers(client: Any) -> None:
    """Raise if a header of the client can't be sent, such as one out of the environment."""
    for name, value in client.default_headers.items():
        text = str(value).strip() if isinstance(value, str) else ""
        if not (text.isascii() and text.isprintable()):
            raise BackendError(
                f"the header {name!r} of the API's client has a character that can't be sent: "
                "check the client's headers, OPENAI_ORG_ID and OPENAI_PROJECT_ID"
            )


def _refuse_other_host(response: Any) -> None:
    """Raise if an answer redirects to another server; an event hook of the HTTP client."""
    if not response.has_redirect_location:
        return
    here = response.request.url
    there = here.join(response.headers["location"])
    upgraded = (here.scheme, there.scheme) == ("http", "https")
    if there.host == here.host and (
        upgraded or (there.scheme, there.port) == (here.scheme, here.port)
    ):
        return
    raise BackendError(
        f"it redirects to {there.scheme}://{there.netloc.decode('ascii', 'replace')}, another "
        "server, and texts aren't sent on; give that address as base_url if it is right"
    )
