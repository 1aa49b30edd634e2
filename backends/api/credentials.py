"""Credentials: checked before any request, and kept out of messages and identities."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import json
import re
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from blackbox.errors import BackendError

__all__ = [
    "checked",
    "in_address",
    "in_fields",
    "in_headers",
    "in_proxies",
    "scrubbed",
    "without_credentials",
    "without_userinfo",
]

_MAX_WORDS = 300  # characters of a server's words that a message repeats
_SHORTEST = 8  # what a server of one's own is given for a key is no secret, and a word like others
_SHORTEST_PASSWORD = 4
_ROUNDS = 100_000  # so that a weak password isn't guessed from its digest
_NAME = re.compile(
    r"(api|access|secret|private|subscription|auth|account)[-_]?key|^key$|token$|secret|passw|pwd"
    r"|credential|authori[sz]ation|bearer|cookie|signature|^sig$|^auth$|headers$",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"(Bearer|Basic)\s.*|(sk|pk|rk|ghp|hf|xox.|AKIA|AIza|eyJ)[-_]?[-\w.]{12,}|.*://[^/\s]*@.*"
    r"|(?=.*\d)(?=.*[A-Za-z])[-\w+=]{24,}",
    re.DOTALL,
)
_SCHEME = re.compile("bearer|basic|token|api-?key|negotiate", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_USERINFO = re.compile(r"(\w[\w+.-]*://)[^\s/]*@")


def checked(value: str, name: str) -> str:
    """Return a key or another header's value without white space around it.

    Raises
    ------
    BackendError
        If it has a character that no HTTP header can carry, or a blank in it; the message has the
        variable's name and not the value.
    """
    value = value.strip()
    for place, character in enumerate(value, 1):
        if not "!" <= character <= "~":
            raise BackendError(
                f"{name} can't be sent: its character {place} of {len(value)} is "
                f"U+{ord(character):04X}, and a key has printable ASCII characters only; copy it "
                "again, without quotation marks or line breaks"
            )
    return value


def scrubbed(text: object, secrets: Iterable[str]) -> str:
    """Return an error's words on one line, cut to 300 characters, without credentials.

    Control characters are left out: they could steer a terminal.

    `secrets` are removed in every spelling in which a message may repeat them, and so are user
    names and passwords in addresses.
    """
    words = without_userinfo(str(text))
    spelled = {spelling for secret in secrets for spelling in _spellings(secret)}
    if spelled:
        longest_first = sorted(spelled, key=len, reverse=True)
        words = re.sub("|".join(map(re.escape, longest_first)), "…", words, flags=re.IGNORECASE)
    return " ".join(_CONTROL.sub(" ", words).split())[:_MAX_WORDS]


def without_userinfo(text: str) -> str:
    """Return a text without the user names and passwords in its addresses."""
    return _USERINFO.sub(r"\1…@", text)


def in_address(address: str) -> list[str]:
    """Return the credentials in an address: user name, password, and keys in its query."""
    try:
        parts = urlsplit(address)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
    except ValueError:
        return []
    found = [user] if len(user) >= _SHORTEST else []
    if len(password) >= _SHORTEST_PASSWORD:
        found += [password, f"{user}:{password}"]
    named = parse_qsl(parts.query)
    return found + [value for name, value in named if _NAME.search(name) and _is_long(value)]


def in_proxies() -> list[str]:
    """Return the credentials in the addresses of the environment's proxies."""
    return [
        secret for proxy in urllib.request.getproxies().values() for secret in in_address(proxy)
    ]


def in_headers(headers: Mapping[str, object]) -> list[str]:
    """Return the values of headers, or of a query, that look like credentials, and their parts."""
    found = [
        value
        for name, value in headers.items()
        if isinstance(value, str)
        and (_VALUE.fullmatch(value) or (_NAME.search(name) and _is_long(value)))
    ]
    return [part for value in found for part in _with_parts(value)]


def in_fields(fields: Any) -> list[str]:
    """Return the strings among a request's own fields that look like credentials."""
    found = [part for value in _credentials(fields, "") for part in _with_parts(value)]
    return [value for value in found if len(value) >= _SHORTEST_PASSWORD]


def without_credentials(value: Any, name: str = "", *, below: bool = False) -> Any:
    """Return JSON data with a digest in the place of each value that looks like a credential.

    Parameters
    ----------
    value
        The data.
    name : str
        The field that it is the value of.
    below : bool
        Whether it belongs to a field that looks like a credential.
    """
    below = below or bool(_NAME.search(name))
    if isinstance(value, Mapping):
        return {key: without_credentials(one, str(key), below=below) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_credentials(one, name, below=below) for one in value]
    if not _is_credential(value, below=below):
        return value
    digest = hashlib.pbkdf2_hmac("sha256", str(value).encode("utf-8", "replace"), b"", _ROUNDS)
    return f"digest {digest.hex()[:16]}"


def _credentials(value: Any, name: str, *, below: bool = False) -> Iterator[str]:
    below = below or bool(_NAME.search(name))
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _credentials(one, str(key), below=below)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _credentials(one, name, below=below)
    elif _is_credential(value, below=below):
        yield str(value)


def _with_parts(value: str) -> list[str]:
    """Return a credential, and what stands behind its scheme: of ``Basic`` the password, too."""
    scheme, _, rest = value.strip().partition(" ")
    found = [value]
    if rest.strip() and _SCHEME.fullmatch(scheme):
        found.append(rest.strip())
        with contextlib.suppress(ValueError):
            pair = base64.b64decode(rest.strip(), validate=True).decode()
            found += [pair, pair.partition(":")[2]] if scheme.lower() == "basic" else []
    return [one for one in found if len(one) >= _SHORTEST_PASSWORD]


def _is_credential(value: Any, *, below: bool) -> bool:
    if isinstance(value, str):
        return bool(value) and (below or bool(_VALUE.fullmatch(value)))
    return below and isinstance(value, int | float) and not isinstance(value, bool)


def _is_long(value: str) -> bool:
    return len(value) >= _SHORTEST


def _spellings(secret: str) -> set[str]:
    """A secret as it is, stripped, and escaped as Python, JSON, HTML, addresses and Base64 do."""
    found = set[str]()
    for raw in {secret, secret.strip()}:
        data = raw.encode("utf-8", "surrogatepass")
        in_json = {json.dumps(raw)[1:-1], json.dumps(raw, ensure_ascii=False)[1:-1]}
        found |= {raw, repr(raw)[1:-1], repr(data)[2:-1], ascii(raw)[1:-1], html.escape(raw)}
        found |= in_json | {json.dumps(one)[1:-1] for one in in_json}
        found |= {quote(data, safe=""), quote(data), quote_plus(data)}
        found |= _in_base64(data)
    return {one for one in found if len(one) >= _SHORTEST_PASSWORD}


def _in_base64(data: bytes) -> set[str]:
    """The characters of Base64 that are the same whatever stands before and after the data."""
    found = set[str]()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode()
        # a character of Base64 holds six bits: those that share bits with a neighbour are left out
        start, end = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        core = encoded[start:end]
        if len(core) >= _SHORTEST:
            found |= {core, core.replace("+", "-").replace("/", "_")}
    return found
