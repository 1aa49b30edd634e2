"""Makes the client of an OpenAI-compatible API, with a key and an address that can be sent."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from backends.api import credentials
from blackbox.errors import BackendError, MissingDependencyError

if TYPE_CHECKING:
    import ssl

__all__ = ["ADDRESS_OPTIONS", "API_KEY_ENV", "make_client"]

API_KEY_ENV = "OPENAI_API_KEY"
"""The environment variable that has the key, where no other is named."""

_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~\w]+", re.ASCII)

ADDRESS_OPTIONS = ("base_url", "api_key_env", "api_version", "default_headers")
"""Options of a backend that say where an API is and how it is entered."""


def make_client(
    client: Any,
    timeout: float,
    base_url: str | None = None,
    api_key_env: str = API_KEY_ENV,
    api_version: str | None = None,
    default_headers: Mapping[str, str] | None = None,
) -> Any:
    """Return the client to use: the user's own, or a new one with the key of that variable.

    Neither follows a redirect to another host: what is sent there would be read there.

    Raises
    ------
    MissingDependencyError, BackendError, TypeError
        Without the `openai` package or a key, if the key or the address can't be used, or if the
        client isn't one of that package.
    ValueError
        If a client is given and an option that is the client's own.
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
        if base_url is not None or api_version is not None or default_headers:
            raise ValueError("a client has its own base_url, api_version and default_headers")
        key = client.api_key
        if isinstance(key, str):
            client = client.with_options(api_key=credentials.checked(key, "the client's api_key"))
        client = client.with_options(max_retries=0)
        hooks = client._client.event_hooks["response"]
        if _refuse_other_host not in hooks:
            hooks.append(_refuse_other_host)
    else:
        client = _new_client(base_url, timeout, api_key_env, api_version, default_headers or {})
    transport.install(client._client)
    _check_headers(client)
    return client


def _new_client(
    base_url: str | None,
    timeout: float,
    api_key_env: str,
    api_version: str | None,
    headers: Mapping[str, str],
) -> Any:
    import httpx2
    import openai

    _check_header_names(headers)
    key = credentials.checked(os.environ.get(api_key_env, ""), api_key_env)
    if not key:
        raise BackendError(
            f"no key for the API: set {api_key_env} (a server of your own takes any value), or "
            "name another variable with --backend-option api_key_env=NAME"
        )
    name = "OPENAI_BASE_URL" if base_url is None else "base_url"
    address = (os.environ.get(name, "") if base_url is None else str(base_url)).strip()
    if address:
        _check_address(address, name)
    try:
        common: dict[str, Any] = {
            "api_key": key,
            "timeout": timeout,
            "max_retries": 0,
            "default_headers": dict(headers),
            "http_client": openai.DefaultHttpxClient(
                event_hooks={"response": [_refuse_other_host]},
                verify=_tls_context(
                    os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
                ),
            ),
        }
        if api_version is None:
            return openai.OpenAI(base_url=address or None, **common)
        return openai.AzureOpenAI(
            base_url=_azure_address(address), api_version=str(api_version), **common
        )
    except (openai.OpenAIError, httpx2.InvalidURL, ValueError, TypeError, ImportError) as error:
        secrets = [key, *credentials.in_address(address), *credentials.in_proxies()]
        secrets += credentials.in_fields(dict(headers))
        why = credentials.scrubbed(error, secrets)
        raise BackendError(f"the API's client can't be made: {why}") from None


@cache
def _tls_context(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Return httpx2's own TLS context, made once: it reads all certificates, for half a second.

    The arguments are the variables that it reads.

    Raises
    ------
    BackendError
        If they name no certificates that can be read.
    """
    import httpx2

    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        given = {"SSL_CERT_FILE": file, "SSL_CERT_DIR": folder}
        named = ", ".join(f"{name}={value}" for name, value in given.items() if value)
        raise BackendError(
            f"the certificates of {named or 'this machine'} can't be read: {error}; name those "
            "that are there, or unset the variable"
        ) from None


def _azure_address(address: str) -> str:
    """Return the address below which Azure's deployments are, from that of a resource."""
    parts = urlsplit(address)
    if not parts.hostname:
        raise ValueError(
            "api_version is of Azure's API, which has no address by default: give base_url, such "
            "as https://NAME.openai.azure.com"
        )
    return address if parts.path.strip("/") else f"{address.rstrip('/')}/openai"


def _check_header_names(headers: Mapping[str, str]) -> None:
    """Raise if the headers are not names and texts; what they hold is in no message."""
    for name, value in headers.items():
        if not (isinstance(name, str) and _HEADER_NAME.fullmatch(name)):
            raise BackendError(f"default_headers has a name that no header can have: {name!r}")
        if not isinstance(value, str):
            raise BackendError(f"default_headers: the value of {name!r} must be text")


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
                "check default_headers, OPENAI_ORG_ID and OPENAI_PROJECT_ID"
            )


def _refuse_other_host(response: Any) -> None:
    """Raise if an answer redirects to another server; an event hook of the HTTP client."""
    if not response.has_redirect_location:
        return
    here = response.request.url
    there = here.join(response.headers["location"])
    where = f"{there.scheme}://{there.netloc.decode('ascii', 'replace')}"
    if response.request.method == "POST" and response.status_code in (301, 302, 303):
        raise BackendError(
            f"it redirects to {where}{there.path}, where a request arrives without what it asks: "
            "check base_url"
        )
    upgraded = (here.scheme, there.scheme) == ("http", "https")
    if there.host == here.host and (
        upgraded or (there.scheme, there.port) == (here.scheme, here.port)
    ):
        return
    raise BackendError(
        f"it redirects to {where}, another server, and texts aren't sent on; give that address as "
        "base_url if it is right"
    )
