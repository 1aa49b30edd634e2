"""How a service behaves; and what it refuses before it starts."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Settings", "Tokens", "is_loopback"]


class Tokens:
    """Bearer tokens, kept as digests.

    Parameters
    ----------
    tokens : iterable of str
        The tokens; without any, everybody may ask.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: bytes) -> bool:
        """Whether an Authorization header carries one of them; all are compared, in full."""
        scheme, _, token = authorization.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(found)


@dataclass(frozen=True)
class Settings:
    """How a service behaves.

    Parameters
    ----------
    tokens : Tokens
        Who may ask.
    allowed_hosts : frozenset of str
        Host names under which it may be reached, in lower case and without ports.
    window : float
        Seconds that a request waits for others to be answered with it.
    batch_texts : int
        Texts that are answered together.
    batches_at_once : int
        Batches that the LM works on at a time.
    queue_texts : int
        Texts that may wait; more are refused.
    timeout : float
        Seconds in which a request is answered or refused.
    read_timeout : float
        Seconds in which the head of a request, and then its body, must arrive, and half of what
        waits of an answer be read.
    max_body : int
        Bytes of a body.
    max_texts : int
        Texts of a request.
    max_explained : int
        Texts of a request that asks why; the answer for one may be as long as that for thousands.
    max_characters : int
        Characters of a text.
    passes_per_minute : int, optional
        Forward passes in any minute. They are reserved before it is known which of them the store
        has, and those are given back.
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
    """Whether nobody but this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
