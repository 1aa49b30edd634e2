"""Sends requests to one server: charged, within deadlines, and again where that may help."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from backends.api.billing import Billing, Charge
from backends.api.error_bodies import (
    ErrorBodyError,
    NoJsonError,
    check_no_error,
    error_of,
    parsed,
    words_of,
)
from backends.api.errors import RefusedError, translated
from backends.api.request_times import RequestTimes
from backends.api.responses import BadAnswerError
from backends.api.responses_api import as_chat_completion
from backends.api.retries import Pace, RetryLaterError, send_with_retries
from backends.api.spans import note_answer, request_span
from backends.api.streams import is_stream, joined
from blackbox.errors import BackendError
from blackbox.protocol import RenderedPrompt, Usage
from blackbox.spending import Rate, current_account
from blackbox.telemetry import outgoing_headers

__all__ = ["Sender"]

_PIXELS_A_TOKEN = 1000
_BYTES_A_TOKEN = 4
_GRACE = 2.0  # seconds that a request under way gets when the time of a run is up
_FILE_SECONDS = 3600.0  # for a batch's file, up or down
_MAX_BYTES = 32 * 2**20  # of one response
_MAX_FILE_BYTES = 2 * 2**30


class Sender:
    """Requests to one server, with pace, retries and errors in words.

    Parameters
    ----------
    client : openai.OpenAI
        Reaches it, without retries of its own.
    pace : Pace
        When a request may begin.
    max_attempts : int
        Tries of each.
    timeout : float
        Seconds that one try may take, from connecting to the last byte.
    renew : callable, optional
        Makes a client like it in a process that was forked, as two processes can't share
        connections; without it such a process is refused.

    Attributes
    ----------
    billing : Billing
        Charges each try.
    times : RequestTimes
        How long answered requests took.
    """

    def __init__(
        self,
        client: Any,
        pace: Pace,
        max_attempts: int,
        timeout: float,
        renew: Callable[[], Any] | None = None,
    ) -> None:
        self.client = client
        self._renew = renew
        self._process, self._renewing = os.getpid(), threading.Lock()
        self.billing = Billing()
        self.times = RequestTimes()
        self._pace = pace
        self._max_attempts = max_attempts
        self.max_image_side = 0
        self._timeout = timeout

    @property
    def who(self) -> str:
        """Server and model, for messages."""
        raise NotImplementedError

    @property
    def secrets(self) -> list[str]:
        """The texts that must stand in no message."""
        raise NotImplementedError

    def rate(self, price_share: float = 1.0) -> Rate:
        """Who bills a request, and what share of the list price."""
        raise NotImplementedError

    def post(
        self, path: str, body: dict[str, Any], stop: threading.Event | None = None
    ) -> dict[str, Any]:
        """Post JSON to a path, or a whole address, and return the JSON that comes."""
        import httpx2

        # half surrogates have no place in UTF-8
        body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
        with self._limited(stop):
            response = self.client.post(
                path,
                body=body,
                cast_to=httpx2.Response,
                options={"headers": outgoing_headers()},
            )
        self.times.announce(response.headers)
        streamed = is_stream(response.headers.get("Content-Type", ""), response.content)
        read = joined(response.content) if streamed else _json_in(response)
        answer: dict[str, Any] = as_chat_completion(read)
        check_no_error(answer)
        return answer

    def get(self, path: str) -> dict[str, Any]:
        """Get the JSON of a path, or a whole address."""
        import httpx2

        with self._limited():
            response = self.client.get(path, cast_to=httpx2.Response)
        answer: dict[str, Any] = _json_in(response)
        check_no_error(answer)
        return answer

    @contextmanager
    def _limited(
        self,
        stop: threading.Event | None = None,
        seconds: float | None = None,
        max_bytes: int | None = None,
    ) -> Iterator[None]:
        """One deadline for a whole exchange, and a limit to the size of its response."""
        from backends.api.transport import ResponseTooLargeError, limited

        self._keep_from_parent()
        account = current_account()
        left = float("inf") if account is None else max(account.seconds_left(), 0.0) + _GRACE
        try:
            with limited(min(seconds or self._timeout, left), max_bytes or _MAX_BYTES, stop):
                yield
        except ResponseTooLargeError as error:
            raise BadAnswerError(str(error)) from error

    def _keep_from_parent(self) -> None:
        """See that this process has connections of its own, after a fork."""
        with self._renewing:
            if self._process == os.getpid():
                return
            if self._renew is None:
                raise BackendError(
                    f"the client of {self.who} was given before this process was forked, and two "
                    "processes can't share connections: make the client and the backend in this one"
                )
            self.client, self._process = self._renew(), os.getpid()

    def send(
        self,
        path: str,
        body: Callable[[], dict[str, Any]],
        prompt: RenderedPrompt | None,
        stop: threading.Event,
        usage: Usage,
        read: Callable[[dict[str, Any]], Any],
        attempts: int | None = None,
    ) -> Any:
        """Post until it succeeds; `read` makes something of the JSON.

        Each try is charged before it is sent. Those without a usable answer are added to `usage`,
        and so are retries and the tokens that were written.

        Raises
        ------
        RetryLaterError
            When all tries are used up.
        RefusedError, RejectedError, BackendError
            As the server's errors mean.
        BudgetError
            If the account in force has no room for a try; it was not sent.
        """
        account = current_account()
        tries = itertools.count()

        def once() -> Any:
            began, busy = time.perf_counter(), time.thread_time()
            written, rate = body(), self.rate()
            charge = self.billing.begin(rate, written, account)
            try:
                with (
                    request_span(path, str(self.client.base_url), rate, next(tries)) as span,
                    translated(self.who, self.secrets),
                ):
                    answer = self._post_charged(path, written, stop, charge)
                    note_answer(span, answer)
                    found = read(answer)
            except BaseException:
                charge.lose()
                _add(usage, charge.as_usage)
                raise
            _add(usage, charge.as_billed_apart)
            self.times.add(time.perf_counter() - began, time.thread_time() - busy)
            return found

        def on_retry() -> None:
            usage.retries += 1

        tokens = 1 if prompt is None else self._tokens_about(prompt)
        return send_with_retries(
            once,
            attempts=attempts or self._max_attempts,
            pace=self._pace,
            tokens=tokens,
            stop=stop,
            on_retry=on_retry,
            account=account,
        )

    def _tokens_about(self, prompt: RenderedPrompt) -> int:
        """About how many tokens a prompt has, for the pace."""
        tokens = -(-prompt.n_bytes // _BYTES_A_TOKEN) + 1
        if prompt.image is not None:
            width, height = prompt.image.size_within(self.max_image_side)
            tokens += width * height // _PIXELS_A_TOKEN
        return tokens

    def _post_charged(
        self, path: str, body: dict[str, Any], stop: threading.Event, charge: Charge
    ) -> dict[str, Any]:
        import httpx2
        import openai

        try:
            answer = self.post(path, body, stop)
        except openai.APIStatusError as error:
            charge.fail(error.status_code)
            raise
        except ErrorBodyError as error:
            charge.fail(error_of(error.body)[2] or 500)
            raise
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
                charge.cancel()  # it never left
            raise
        charge.settle(answer)
        return answer

    def ask(self, call: Callable[[], Any], *, tries: int | None = None, file: bool = False) -> Any:
        """Return what the server says, with retries and errors in words.

        Parameters
        ----------
        call : callable
            Asks it.
        tries : int, optional
            Other than those of a request.
        file : bool
            Whether a file goes up or comes down, which may be large and take long.
        """

        def send() -> Any:
            seconds, size = (_FILE_SECONDS, _MAX_FILE_BYTES) if file else (None, None)
            with translated(self.who, self.secrets), self._limited(None, seconds, size):
                return call()

        try:
            return send_with_retries(
                send,
                attempts=tries or self._max_attempts,
                pace=self._pace,
                tokens=1,
                stop=threading.Event(),
                on_retry=lambda: None,
                account=current_account(),
            )
        except (RetryLaterError, RefusedError) as error:
            raise BackendError(str(error)) from error


def _json_in(response: Any) -> Any:
    """Return the JSON in a response; raise with the title of a page that came in its place."""
    try:
        return json.loads(response.content)
    except ValueError as error:
        if "html" in response.headers.get("Content-Type", ""):
            raise NoJsonError(words_of(parsed(response.text))) from error
        raise


def _add(usage: Usage, more: Usage) -> None:
    usage.__dict__.update((usage + more).__dict__)
