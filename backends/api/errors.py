"""What an API's errors mean: try again, stop, or leave this row out.

Decided on codes, not on words. The only place that knows the exceptions of the `openai` package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backends.api.responses import BadAnswerError
from backends.api.retries import RetryLaterError
from backends.api.waits import retry_after
from blackbox.errors import BackendError, ModelNotFoundError

__all__ = ["RefusedError", "RejectedError", "scrubbed", "translated"]

_RETRIED = {408, 409, 425, 429}
_LATER = {408: "timeout", 429: "rate_limit", 504: "timeout"}
_REFUSAL_CODES = {
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "exceed_context_size_error",
    "string_above_max_length",
    "invalid_prompt",
}
_STOPPING_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "account_deactivated",
    "access_terminated",
}


class RefusedError(Exception):
    """The provider refuses this prompt: too long, or a content filter."""


class RejectedError(BackendError):
    """The provider takes no request of this form.

    Attributes
    ----------
    field : str
        The field that it names, if any.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


def scrubbed(text: object, secrets: list[str]) -> str:
    """An error's words on one line, without secrets and without end."""
    words = " ".join(str(text).split())
    for secret in secrets:
        words = words.replace(secret, "…")
    return words[:300]


@contextmanager
def translated(who: str, secrets: list[str]) -> Iterator[None]:
    """Turn the client's exceptions into ours.

    Parameters
    ----------
    who : str
        Provider and model, for messages.
    secrets : list of str
        What must not stand in a message.

    Raises
    ------
    RetryLaterError
        On 408, 409, 425, 429, 5xx, a broken connection, a time-out, an answer that can't be read.
    RefusedError
        If this prompt is refused.
    RejectedError
        If the request's form is.
    ModelNotFoundError, BackendError
        On an unknown model, a bad key, an exhausted account: nothing more would succeed.
    """
    import openai

    try:
        yield
    except BadAnswerError as error:
        raise RetryLaterError(f"{who}: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RetryLaterError(f"{who}: the answer is no JSON") from error
    except openai.APIStatusError as error:
        raise _of_status(error, who, secrets) from None
    except openai.APITimeoutError:
        raise _marked(RetryLaterError(f"{who}: no answer in time"), "timeout") from None
    except openai.APIConnectionError as error:
        why = scrubbed(error.__cause__ or error, secrets)
        said = f"{who} can't be reached: {why}"
        raise _marked(RetryLaterError(said), "connection") from None
    except openai.OpenAIError as error:
        raise BackendError(f"{who}: {scrubbed(error, secrets)}") from None


def _of_status(error: Any, who: str, secrets: list[str]) -> Exception:
    status, code, kind = error.status_code, str(error.code or ""), str(error.type or "")
    words = scrubbed(error.message, secrets).removeprefix(f"Error code: {status} - ")
    said = f"{who} says ({status}{', ' + code if code not in ('', str(status)) else ''}): {words}"
    if {code, kind} & _STOPPING_CODES:
        stop = BackendError(f"{said}; nothing more would be answered")
        return _marked(stop, "refused", status)
    if {code, kind} & _REFUSAL_CODES or status == 413:
        return RefusedError(said)
    if status in (401, 403):
        stop = BackendError(f"{said}; check the key (OPENAI_API_KEY) and what it may use")
        return _marked(stop, "refused", status)
    if status == 404:
        unknown = ModelNotFoundError(f"{said}; check the model's name and the address")
        return _marked(unknown, "refused", status)
    if status in _RETRIED or status >= 500:
        later = RetryLaterError(said, retry_after(error.response.headers, error.body))
        return _marked(later, _LATER.get(status, "other"), status)
    return _marked(RejectedError(said, str(error.param or "")), "refused", status)


def _marked(error: Any, kind: str, status: int | None = None) -> Exception:
    """An error with its class, for whoever may not repeat a provider's words."""
    error.kind, error.status = kind, status
    marked: Exception = error
    return marked
