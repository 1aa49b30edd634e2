"""OpenTelemetry traces: spans of requests, batches and calls of language models.

Only the API of OpenTelemetry is used, and only where it is installed. It does nothing until an
application, or `blackbox serve --traces`, sets up the SDK that records spans and exports them. No
attribute holds a text, a prompt, a credential, or a message that may repeat one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

__all__ = [
    "current_context",
    "error_class",
    "fail",
    "flush",
    "incoming_context",
    "outgoing_headers",
    "set_attributes",
    "span",
    "trace_ids",
]


def error_class(error: BaseException) -> str:
    """Return the name of an exception's class."""
    return type(error).__name__


@contextmanager
def span(
    name: str,
    kind: str = "INTERNAL",
    attributes: Mapping[str, Any] | None = None,
    contexts: Sequence[Any] = (),
    error_type: Callable[[BaseException], str] = error_class,
) -> Iterator[Any]:
    """Record what happens inside as a span; yields it, or None without OpenTelemetry.

    An exception makes the span's status an error. Its message is not recorded.

    Parameters
    ----------
    name : str
        An operation, and a route or a model: of few values.
    kind : {"INTERNAL", "SERVER", "CLIENT"}
        A name of `opentelemetry.trace.SpanKind`.
    attributes : mapping, optional
        Those known from the start.
    contexts : sequence, optional
        From `current_context` or `incoming_context`: the span of the first one that is sampled is
        the parent, and those of the others are linked. By default the span around this one is the
        parent.
    error_type : callable, optional
        Returns the attribute ``error.type`` of an exception.
    """
    tracer = _tracer()
    if tracer is None:
        yield None
        return
    from opentelemetry.trace import Link, SpanKind, get_current_span

    spans = [get_current_span(context).get_span_context() for context in contexts]
    parent = next((place for place, one in enumerate(spans) if one.trace_flags.sampled), 0)
    with tracer.start_as_current_span(
        name,
        context=contexts[parent] if contexts else None,
        kind=SpanKind[kind],
        attributes=attributes,
        links=[Link(one) for n, one in enumerate(spans) if n != parent and one.is_valid],
        record_exception=False,
        set_status_on_exception=False,
    ) as begun:
        try:
            yield begun
        except BaseException as error:
            fail(begun, error_type(error))
            raise


def set_attributes(span: Any, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a span, if there is one; those that are None are left out."""
    if span is not None:
        span.set_attributes({name: one for name, one in attributes.items() if one is not None})


def fail(span: Any, error_type: str) -> None:
    """Set a span's status, if there is one, to an error of a class or kind."""
    if span is not None:
        from opentelemetry.trace import StatusCode

        span.set_attribute("error.type", error_type)
        span.set_status(StatusCode.ERROR)


def current_context() -> Any:
    """Return the context of the span in force, for a span in another thread."""
    if _tracer() is None:
        return None
    from opentelemetry.context import get_current

    return get_current()


def incoming_context(headers: Mapping[str, str]) -> Any:
    """Return the context that the headers of a request name, in the forms of OTEL_PROPAGATORS."""
    if _tracer() is None:
        return None
    from opentelemetry.propagate import extract

    return extract(headers)


def outgoing_headers() -> dict[str, str]:
    """Return headers that name the span in force to another server, as W3C Trace Context.

    A client's baggage is not passed on.
    """
    if _tracer() is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


def trace_ids() -> dict[str, str]:
    """Return ``trace_id`` and ``span_id`` of the span in force, in hexadecimal, if there is one."""
    if _tracer() is None:
        return {}
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
    }


def flush(seconds: float) -> None:
    """Export what has been recorded, within so many seconds, where an SDK is set up."""
    if _tracer() is None:
        return
    from opentelemetry.trace import get_tracer_provider

    # of the SDK's provider alone
    force_flush = getattr(get_tracer_provider(), "force_flush", None)
    if force_flush is not None:
        force_flush(int(1000 * seconds))


@cache
def _tracer() -> Any:
    """Return the tracer of this package, or None where OpenTelemetry is not installed."""
    try:
        from opentelemetry import trace
    except ModuleNotFoundError:
        return None
    return trace.get_tracer("promptboosting", version("promptboosting"))
