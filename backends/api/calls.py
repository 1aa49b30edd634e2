"""Single requests to an endpoint: one distribution, or texts; and whose failure each one is.

A request that is refused or fails leaves one row out, with the reason; a failure that is not the
row's own ends the run (`backends.api.circuit`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from backends.api.circuit import Circuit
from backends.api.connection import Connection
from backends.api.context import ContextWindow
from backends.api.errors import RefusedError, RejectedError, TooLongError, scrubbed
from backends.api.probe import probed_prompt
from backends.api.request_format import COMPLETIONS, RequestFormat, text_among
from backends.api.responses import (
    BadAnswerError,
    NameOf,
    ParsedAnswer,
    as_log_probs,
    read_answer,
    read_text,
    text_of,
)
from backends.api.retries import RetryLaterError
from backends.api.servers import ServerTokenizer
from backends.api.token_estimate import TokenEstimate
from blackbox.errors import BackendError
from blackbox.plurals import counted
from blackbox.protocol import RenderedPrompt, TokenLogProbs, TooLong, Usage

__all__ = ["EndpointCalls", "as_part", "check_finish"]

_NOTHING = ParsedAnswer([], 0, 0, native_ids=False, named_bytes=False)


class _CutError(RefusedError):
    """The server has cut a prompt, and answered what was left of it."""

    def __init__(self, reason: TooLong) -> None:
        super().__init__(reason)
        self.reason = reason


class EndpointCalls:
    """Requests to one endpoint whose form is known.

    Parameters
    ----------
    server : Connection
        Sends them.
    wire : RequestFormat
        How they are written.
    tokenizer : ServerTokenizer or None
        The server's own, where it has one.
    name_of : callable or None
        Names a token of which only the id is told.
    context : ContextWindow
        How long prompts may be.
    estimate : TokenEstimate
        Learns from answers how many tokens prompts have.
    draws_at_once : bool
        Whether to ask for all texts of a prompt in one request.

    Attributes
    ----------
    draws_at_once : bool
        As given, or as found.
    """

    def __init__(
        self,
        server: Connection,
        wire: RequestFormat,
        tokenizer: ServerTokenizer | None,
        name_of: NameOf | None,
        context: ContextWindow,
        estimate: TokenEstimate,
        *,
        draws_at_once: bool,
    ) -> None:
        self._server = server
        self._wire = wire
        self._tokenizer = tokenizer
        self._context = context
        self._estimate = estimate
        self._name_of = name_of
        # the probe proves the form of requests for distributions; draws and scores prove theirs
        self._circuits = {
            "next_token": Circuit(proven=True, ask_again=self._ask_again),
            "score": Circuit(proven=False, ask_again=self._ask_again),
            "generate": Circuit(proven=False, ask_again=partial(self._ask_again, writes=True)),
        }
        self.draws_at_once = draws_at_once

    def distribution(
        self,
        prompt: RenderedPrompt,
        top_k: int,
        stop: threading.Event,
        more: Mapping[str, Any] | None = None,
    ) -> tuple[ParsedAnswer | str, Usage]:
        """Return one distribution, or why there is none; and what the tries before it took."""
        wire = self._wire
        tokenizer = self._tokenizer if wire.path_of(prompt) == COMPLETIONS else None
        circuit = self._circuits["score" if more else "next_token"]
        wasted = Usage()
        too_long = self._context.check(prompt)
        if too_long is not None:
            return too_long, wasted

        def body() -> dict[str, Any]:
            ids = tokenizer.ids_to_send(prompt) if tokenizer else None
            return wire.next_token(prompt, top_k, ids) | dict(more or {})

        def read(answer: dict[str, Any]) -> ParsedAnswer:
            try:
                found = read_answer(answer, self._name_of, wire.alphabet)
            except BadAnswerError as error:
                check_finish(answer)
                circuit.bad_answer(f"{self._server.who}: {error}")
                raise
            circuit.answered()
            self._check_whole(prompt, answer)
            return found

        def ask() -> ParsedAnswer | str:
            try:
                path = wire.path_of(prompt)
                found: ParsedAnswer = self._server.send(path, body, prompt, stop, wasted, read)
                return found
            except RetryLaterError as error:
                if isinstance(error.__cause__, BadAnswerError) and "no log-prob" in str(error):
                    return f"the LM gave no log-probabilities in {counted(error.tries, 'try')}"
                return _failed(error, circuit)
            except (RefusedError, RejectedError) as error:
                return self._refused(prompt, error, circuit)

        return circuit.pass_through(stop, wasted, ask, str), wasted

    def texts(
        self,
        prompt: RenderedPrompt,
        n: int,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop: threading.Event,
    ) -> Iterator[tuple[list[str], str | None, Usage]]:
        """Yield `n` texts that the LM writes, why there are fewer, and what they took.

        Those that are there are yielded too where an error ends the rest.
        """
        wire = self._wire
        usage = Usage()
        texts: list[str] = []
        too_long = self._context.check(prompt)
        if too_long is not None:
            yield texts, too_long, usage
            return

        circuit = self._circuits["generate"]

        def read(answer: dict[str, Any]) -> list[str]:
            try:
                choices = answer.get("choices") or []
                some = [text_of(choice) for choice in choices]
                _check_texts(choices, some, self._server.secrets)
                if wire.constrains and prompt.choices:
                    some = [text_among(prompt.choices, text) for text in some]
            except (AttributeError, TypeError):
                some = []
            if not some:
                circuit.bad_answer(f"{self._server.who}: the answer has no choices")
                raise BadAnswerError("the answer has no choices")
            circuit.answered()
            self._check_whole(prompt, answer)
            usage.tokens += _tokens_in(answer)
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            usage.tokens_evaluated += _tokens_in(answer) - cached
            usage.passes_made += max(int(answer["usage"]["completion_tokens"]), len(some))
            return some

        def send(count: int) -> None:
            nonlocal texts
            asked = count, max_tokens, temperature, (seed + len(texts)) % 2**31
            body = partial(wire.generate, prompt, *asked)
            texts += self._server.send(wire.path_of(prompt), body, prompt, stop, usage, read)

        def ask() -> str | None:
            try:
                self._send_draws(send, lambda: n - len(texts))
            except RetryLaterError as error:
                return _failed(error, circuit)
            except (RefusedError, RejectedError) as error:
                return self._refused(prompt, error, circuit)
            return None

        try:
            why = circuit.pass_through(stop, usage, ask, str)
        except Exception:
            if texts:
                yield texts[:n], None, usage
            raise
        yield texts[:n], why, usage

    def _ask_again(self, stop: threading.Event, usage: Usage, *, writes: bool = False) -> None:
        """Send a prompt of the probe, for a distribution or a text; raise where it isn't answered.

        A circuit does so once a request of its own form was answered.
        """
        wire = self._wire
        path = min(wire.endpoints)
        prompt = probed_prompt(path)

        def body() -> dict[str, Any]:
            return wire.generate(prompt, 1, 2, 1.0, 0) if writes else wire.next_token(prompt, 1)

        def read(answer: dict[str, Any]) -> ParsedAnswer:
            return (
                read_text(answer) if writes else read_answer(answer, self._name_of, wire.alphabet)
            )

        found = self._server.send(path, body, prompt, stop, usage, read, 1)
        sent = found.prompt_tokens
        more = Usage(passes_made=1, tokens=sent, tokens_evaluated=sent - found.cached_tokens)
        usage.__dict__.update((usage + more).__dict__)

    def _check_whole(self, prompt: RenderedPrompt, answer: Mapping[str, Any]) -> None:
        """Learn how long prompts may be; raise if the server has cut this one."""
        reported = answer["usage"]["reported"]
        cut = self._context.answered(prompt, reported)
        if cut is not None:
            raise _CutError(cut)
        if reported:
            self._estimate.learn(prompt, self._wire, reported)

    def _refused(
        self, prompt: RenderedPrompt, error: RefusedError | RejectedError, circuit: Circuit
    ) -> str:
        """Return why a row was refused; raise where all are."""
        if isinstance(error, _CutError):
            return error.reason
        if isinstance(error, TooLongError):
            said = self._context.refused(prompt, str(error), error.body)
            if isinstance(said, TooLong):
                return said
        if isinstance(error, RefusedError):
            circuit.refused(error)
        else:
            circuit.rejected(error)
        return str(error)

    def _send_draws(self, send: Callable[[int], None], n_missing: Callable[[], int]) -> None:
        """Ask for all draws at once, or one by one where the server takes no `n`."""
        single = not self.draws_at_once
        while (missing := n_missing()) > 0:  # some servers give fewer than were asked for
            try:
                send(1 if single else missing)
            except RejectedError:
                if single or missing == 1:
                    raise
                single = True
            else:
                self.draws_at_once = not single


def as_part(
    answers: list[tuple[ParsedAnswer | str, Usage]], top_k: int, started: float
) -> TokenLogProbs:
    """Return distributions, and reasons for none, as arrays; `started` is when work began."""
    refused = {place: read for place, (read, _) in enumerate(answers) if isinstance(read, str)}
    reads = [read if isinstance(read, ParsedAnswer) else _NOTHING for read, _ in answers]
    part = as_log_probs(reads, top_k, refused)
    usage = sum((wasted for _, wasted in answers), part.usage)
    return part.with_usage(replace(usage, seconds_lm=time.perf_counter() - started))


def _failed(error: RetryLaterError, circuit: Circuit) -> str:
    """Return why a row has no answer; raise where that is not for the row alone."""
    said = error.after_tries()
    if getattr(error, "kind", None) in ("connection", "rate_limit"):
        raise BackendError(said) from error
    try:
        circuit.failed(said)
    except BackendError as ended:
        raise ended from error
    return said


def check_finish(answer: Any) -> None:
    """Raise `RefusedError` where a filter has emptied an answer: no second try changes that."""
    try:
        finish = answer["choices"][0]["finish_reason"]
    except (KeyError, IndexError, TypeError):
        return
    if str(finish).startswith("content_filter"):  # Gemini adds why
        raise RefusedError("the provider's content filter left nothing of the answer")


def _check_texts(
    choices: Sequence[Mapping[str, Any]], texts: Sequence[str], secrets: list[str]
) -> None:
    """Raise `RefusedError` where a filter or the LM itself has refused a text."""
    for choice, text in zip(choices, texts, strict=True):
        said = (choice.get("message") or {}).get("refusal")
        if said:
            raise RefusedError(scrubbed(f"the LM refuses: {said}", secrets))
        if not text:
            check_finish({"choices": [choice]})


def _tokens_in(answer: Mapping[str, Any]) -> int:
    return int(answer["usage"]["prompt_tokens"])
