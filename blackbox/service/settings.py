"""Settings of a service: tokens, allowed hosts, timeouts and limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["ANY_HOST", "ServiceSettings", "Tokens", "is_loopback"]

ANY_HOST = "*"
"""The allowed host that stands for any."""


class Tokens:
    """Bearer tokens, of which only digests are kept.

    Parameters
    ----------
    tokens : iterable of str
        The tokens; without any, no request needs one.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: bytes) -> bool:
        """Return whether an Authorization header has one of the tokens."""
        scheme, _, token = authorization.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        # all are compared, in full, so that the time reveals nothing
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


@dataclass(frozen=True)
class ServiceSettings:
    """Settings of a service.

    Parameters
    ----------
    tokens : Tokens
        Tokens that clients must send.
    allowed_hosts : frozenset of str
        Allowed names in the Host header, in lower case and without ports; ``"*"`` allows any.
    window : float
        Seconds that the first request of a batch waits for others.
    batch_texts : int
        Maximum number of texts per batch.
    batches_at_once : int
        Maximum number of batches that run concurrently.
    queue_texts : int
        Maximum number of texts that wait; further requests are refused.
    timeout : float
        Seconds within which a request is answered or refused.
    read_timeout : float
        Seconds within which the head of a request, and then its body, must arrive, and within which
        a client must read half of the response data that waits for it.
    max_body : int
        Maximum size of a request's body in bytes.
    max_texts : int
        Maximum number of texts per request.
    max_explained : int
        Maximum number of texts per request with `explain`, whose response may be as long for one
        text as that for thousands without.
    max_characters : int
        Maximum length of a text in characters.
    passes_per_minute : int, optional
        Maximum number of forward passes in any minute. A request reserves all that it may need, and
        gets back those which the store already has.
    """

    tokens: Tokens = field(default_factory=Tokens)
    allowed_hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "[::1]"})
    window: float = 0.002
    batch_texts: int = 64
    batches_at_once: int = 1
    queue_texts: int = 1024
    timeout: float = 30.0
    read_timeout: float = 10.0
    max_body: int = 1 << 20
    max_texts: int = 256
    max_explained: int = 16
    max_characters: int = 20_000
    passes_per_minute: int | None = None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
