"""Checks of a request's head: its first line and its headers.

A head that a proxy may read in another way than this service is refused, as a request could be
smuggled past the proxy in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from blackbox.service.problems import Problem

__all__ = ["HEAD_TOO_LARGE", "MAX_HEAD_BYTES", "check_head"]

MAX_HEAD_BYTES = 1 << 14
"""Maximum size of a request's head."""

HEAD_TOO_LARGE = f"the head of a request has at most {MAX_HEAD_BYTES} bytes"
"""Detail of the problem."""

Headers = Sequence[tuple[bytes, bytes]]

_VERSIONS = ("1.0", "1.1")
_HEADER_OVERHEAD = 4  # the colon, the space and the line break
_ONCE = {
    b"host": "Host",
    b"authorization": "Authorization",
    b"content-type": "Content-Type",
    b"content-length": "Content-Length",
}


def check_head(target: bytes, headers: Headers, version: str, *, upgrades: bool) -> None:
    """Raise a `Problem` if a head is too large, ambiguous, or asks for what isn't served here.

    Parameters
    ----------
    target : bytes
        The request target as it was sent, such as ``/v1/predict``.
    headers : sequence of (name, value)
        Names are in lower case.
    version : str
        HTTP version, such as ``"1.1"``.
    upgrades : bool
        Whether the parser takes what follows the head for another protocol.
    """
    size = sum(len(name) + len(value) + _HEADER_OVERHEAD for name, value in headers)
    if len(target) + size > MAX_HEAD_BYTES:
        raise Problem(431, HEAD_TOO_LARGE)
    if version not in _VERSIONS:
        raise Problem(505, "send HTTP/1.1")
    names = [name for name, _ in headers]
    for name, shown in _ONCE.items():
        if names.count(name) > 1:
            raise Problem(400, f"a request has one {shown} header")
    values = dict(headers)
    _check_coding([value for name, value in headers if name == b"transfer-encoding"], version)
    has_body = b"transfer-encoding" in values or values.get(b"content-length", b"0") != b"0"
    if upgrades and has_body:
        # the parser would drop the body
        raise Problem(501, "there is no other protocol here: send the request without Upgrade")
    _check_target(target, values.get(b"host", b""))


def _check_coding(codings: list[bytes], version: str) -> None:
    if not codings:
        return
    if [coding.strip().lower() for coding in codings] != [b"chunked"]:
        raise Problem(501, "the only transfer coding here is chunked: send no other")
    if version == "1.0":
        raise Problem(400, "HTTP/1.0 has no transfer codings: send Content-Length")


def _check_target(target: bytes, host: bytes) -> None:
    """Raise if a target in absolute form, as for a proxy, names another host than the header."""
    if target.startswith(b"/") or target == b"*":
        return
    authority = target.partition(b"//")[2].partition(b"/")[0]
    if authority.lower() != host.strip().lower():
        raise Problem(400, "the request target names another host than the Host header")
