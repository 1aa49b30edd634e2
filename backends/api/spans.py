"""Spans of requests to an LM behind an API, by OpenTelemetry's conventions for generative AI.

One span is one try of a request, so that retries can be seen. Prompts, answers, and a server's own
words are in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from blackbox.spending import Rate
from blackbox.telemetry import error_class, set_attributes, span

__all__ = ["note_answer", "request_span"]

_OPERATIONS = {
    "/chat/completions": "chat",
    "/responses": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
}
"""Well-known names of operations; of another path, such as a decision endpoint, its last part."""

_KINDS = {"timeout", "rate_limit", "connection"}


@contextmanager
def request_span(path: str, address: str, rate: Rate, n_resent: int) -> Iterator[Any]:
    """Record one try of a request as a span; yields it, or None without OpenTelemetry.

    Parameters
    ----------
    path : str
        Where it is posted, below the server's address.
    address : str
        The server's.
    rate : Rate
        Provider and model.
    n_resent : int
        Tries of the same request before.
    """
    server = urlsplit(address)
    operation = _OPERATIONS.get(path, path.rpartition("/")[2])
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": rate.provider,
        "gen_ai.request.model": rate.model,
        "server.address": server.hostname or "",
    }
    if server.port:
        attributes["server.port"] = server.port
    if n_resent:
        attributes["http.request.resend_count"] = n_resent
    name = f"{operation} {rate.model}".strip()
    with span(name, "CLIENT", attributes, error_type=_error_type) as begun:
        try:
            yield begun
        except BaseException as error:
            status = getattr(error, "status", None)
            set_attributes(begun, {"http.response.status_code": status})
            raise


def note_answer(span: Any, answer: Any) -> None:
    """Set the tokens that an answer reports, once `Charge.settle` has read them.

    An answer that is no object reports none.
    """
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    if usage and usage["reported"]:
        set_attributes(
            span,
            {
                "gen_ai.usage.input_tokens": usage["prompt_tokens"],
                "gen_ai.usage.output_tokens": usage["completion_tokens"],
                "gen_ai.usage.cache_read.input_tokens": (
                    usage["prompt_tokens_details"]["cached_tokens"] or None
                ),
            },
        )


def _error_type(error: BaseException) -> str:
    """Return the kind of a failed request, its status, or the class of its cause."""
    kind, status = getattr(error, "kind", None), getattr(error, "status", None)
    if kind in _KINDS:
        return str(kind)
    return str(status) if status else error_class(error.__cause__ or error.__context__ or error)
