"""Translates an API's errors: try again, stop, or leave this row out.

Decided on codes, and on words only where a prompt is too long. The only place that knows the
exceptions of the `openai` package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backends.api.credentials import scrubbed
from backends.api.error_bodies import (
    ErrorBodyError,
    NoJsonError,
    codes_of,
    error_of,
    is_moderated,
    parsed,
    words_of,
)
from backends.api.responses import BadAnswerError
from backends.api.retries import RetryLaterError
from backends.api.waits import retry_after
from blackbox.errors import BackendError, ModelNotFoundError

__all__ = ["RefusedError", "RejectedError", "TooLongError", "failure_of", "scrubbed", "translated"]

_RETRIED = {408, 409, 425, 429}
_LATER = {408: "timeout", 429: "rate_limit", 504: "timeout"}
_REFUSAL_CODES = {
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "ResponsibleAIPolicyViolation",
    "data_inspection_failed",
}
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_FORM = {400, 413, 422}
_TOO_LONG_WORDS = re.compile(
    r"context (length|size|window)|maximum (number of )?(input )?tokens|too many (input )?tokens"
    r"|(prompt|input|text|message)s?\b[^.]{0,40} too (long|large)|less than \d+ tokens"
    r"|reduce the length|ContextWindowExceeded",
    re.IGNORECASE,
)
"""The words of servers without such a code."""

_STOPPING_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "account_deactivated",
    "access_terminated",
}


_UNSENDABLE = {"LocalProtocolError", "UnsupportedProtocol", "InvalidURL", "UnicodeEncodeError"}
"""Exceptions of an HTTP client about a request that it can't write."""

_HUNG_UP = {"RemoteProtocolError", "ReadError", "WriteError", "CloseError"}
"""Its exceptions about a server that was reached."""


class RefusedError(Exception):
    """The provider refuses this prompt: too long, or a content filter."""


class TooLongError(RefusedError):
    """This prompt is too long.

    Attributes
    ----------
    body : str
        The server's whole answer.
    """

    def __init__(self, message: str, body: str = "") -> None:
        super().__init__(message)
        self.body = body


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
    except ErrorBodyError as error:
        raise failure_of(error_of(error.body)[2], error.body, {}, who, secrets) from None
    except NoJsonError as page:
        said = f"the answer is a page, {scrubbed(page, secrets)!r}, and no JSON; check base_url"
        later = RetryLaterError(f"{who}: {said}")
        raise later from None
    except (ValueError, RecursionError):
        # bad JSON, bad UTF-8, numbers of thousands of digits, lists in lists without end
        raise RetryLaterError(f"{who}: the answer is no JSON that can be read") from None
    except openai.APIStatusError as error:
        body, headers = parsed(error.response.text), error.response.headers
        raise failure_of(error.status_code, body, headers, who, secrets) from None
    except openai.APITimeoutError:
        raise _marked(RetryLaterError(f"{who}: no answer in time"), "timeout") from None
    except openai.APIConnectionError as error:
        raise _of_connection(error.__cause__ or error, who, secrets) from None
    except openai.OpenAIError as error:
        raise BackendError(f"{who}: {scrubbed(error, secrets)}") from None


def _of_connection(cause: BaseException, who: str, secrets: list[str]) -> Exception:
    why = scrubbed(cause, secrets)
    if isinstance(cause, BackendError):
        return _marked(BackendError(f"{who}: {why}"), "refused")
    if type(cause).__name__ == "TooManyRedirects":
        return BackendError(f"{who} redirects without an end: check base_url")
    if type(cause).__name__ in _UNSENDABLE:
        return BackendError(
            f"{who}: the request can't be written: {why}; check base_url, the key, and the "
            "headers of the client"
        )
    reached = type(cause).__name__ in _HUNG_UP
    said = f"{who} closed the connection" if reached else f"{who} can't be reached"
    return _marked(RetryLaterError(f"{said}: {why}"), "connection")


def failure_of(
    status: int | None, body: Any, headers: Mapping[str, str], who: str, secrets: list[str]
) -> Exception:
    """Return the error that a status and the body of an answer mean; see `translated`."""
    code, field, _ = error_of(body)
    shown = [str(status)] if status else []
    shown += [code] if code not in ("", str(status)) else []
    words = (words_of(body) or "no explanation").rstrip(".")
    where = f" ({', '.join(shown)})" if shown else ""
    said = scrubbed(f"{who} says{where}: {words}", secrets)
    codes = codes_of(body)
    if codes & _STOPPING_CODES or status == 402:
        stop = BackendError(f"{said}; nothing more would be answered")
        return _marked(stop, "refused", status)
    named = status in _FORM and _TOO_LONG_WORDS.search(words)
    if codes & _TOO_LONG or status == 413 or named:
        advice = "take a shorter prompt, or an LM with a longer context"
        return TooLongError(f"{said}; {advice}", json.dumps(body, default=str))
    if codes & _REFUSAL_CODES or is_moderated(body):
        return RefusedError(said)
    if status in (401, 403):
        variable = "OPENAI_API_KEY, or the variable that api_key_env names"
        stop = BackendError(f"{said}; check the key ({variable}) and what it may use")
        return _marked(stop, "refused", status)
    if status == 404:
        unknown = ModelNotFoundError(f"{said}; check the model's name and the address")
        return _marked(unknown, "refused", status)
    if status is None or status in _RETRIED or status >= 500:
        later = RetryLaterError(said, retry_after(headers, body))
        return _marked(later, _LATER.get(status or 0, "other"), status)
    if status < 400:
        moved = scrubbed(headers.get("location", "another address"), secrets)
        stop = BackendError(f"{said}; it redirects to {moved}: check base_url")
        return _marked(stop, "refused", status)
    return _marked(RejectedError(said, field), "refused", status)


def _marked(error: Any, kind: str, status: int | None = None) -> Exception:
    """An error with its class, for whoever may not repeat a provider's words."""
    error.kind, error.status = kind, status
    marked: Exception = error
    return marked
