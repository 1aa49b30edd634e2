"""Finds out what an OpenAI-compatible endpoint really gives, with a few requests of a few tokens.

Nothing is inferred from a model's name: each field is tried, and one that is rejected is left out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backends.api.errors import RejectedError
from backends.api.request_format import CHAT, COMPLETIONS, RequestFormat
from backends.api.responses import BadAnswerError, NameOf, ParsedAnswer, read_answer, read_text
from blackbox.errors import BackendError, ModelNotFoundError
from blackbox.protocol import Message, RenderedPrompt, Usage

__all__ = ["EndpointProfile", "Prober"]

Send = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Posts JSON to a path, with retries, and gives back the answer's JSON."""

_RAW = RenderedPrompt(text="The capital of France is")
_CHAT = RenderedPrompt(messages=(Message("user", "What is the capital of France?"),))
_BEGUN = RenderedPrompt(
    messages=(Message("user", "Name the days of the week."),), answer_prefix="Monday, Tuesday, Wed"
)
_BEGUN_GOES_ON = (b"nes", b"n")  # no answer that starts anew begins so
_PATHS = {"auto": (COMPLETIONS, CHAT), "completions": (COMPLETIONS,), "chat": (CHAT,)}
_FEWER = (20, 5, 1)
_CONTINUING: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"continue_final_message": True, "add_generation_prompt": False}, {}),
    ({}, {}),
    ({}, {"prefix": True}),
)
_SAME = 0.1  # log-probabilities closer than this differ by the numerics of batches only


@dataclass(frozen=True)
class EndpointProfile:
    """What an endpoint gives.

    Parameters
    ----------
    wire : RequestFormat
        How requests to it are written.
    max_top_k : int
        Most tokens that it gives for one prompt.
    native_ids, named_bytes : bool
        Whether it tells the model's own token ids, and bytes instead of text only.
    raw : bool or None
        Whether log-probabilities are those before temperature; None where it couldn't be seen.
    spread : float
        Largest difference of a log-probability between two answers to one prompt.
    prompt_tokens : int
        Tokens of one request of the probe.
    seconds : float
        Median time of a request.
    usage : Usage
        What the probe took.
    """

    wire: RequestFormat
    max_top_k: int
    native_ids: bool
    named_bytes: bool
    raw: bool | None
    spread: float
    prompt_tokens: int
    seconds: float
    usage: Usage = field(default_factory=Usage)

    def as_dict(self) -> dict[str, Any]:
        """The same in words, as JSON data."""
        endpoints = {CHAT: "chat", COMPLETIONS: "completions"}
        return {
            "endpoints": sorted(endpoints[path] for path in self.wire.endpoints),
            "max_top_k": self.max_top_k,
            "log_probs": {True: "raw", False: "after temperature", None: "unknown"}[self.raw],
            "tokens": "ids and bytes"
            if self.native_ids
            else "bytes"
            if self.named_bytes
            else "text",
            "repeats_differ_by": None if math.isnan(self.spread) else round(self.spread, 6),
            "begun_answers": self.wire.begun is not None,
            "raw_text_sent_as": self.wire.raw_text_by,
            "length_field": self.wire.length_field,
            "temperature_taken": self.wire.temperature,
            "prompt_tokens": self.prompt_tokens,
            "seconds_a_request": round(self.seconds, 3),
            "requests": self.usage.passes_made,
            "tokens_spent": self.usage.tokens,
        }


class Prober:
    """One probe of one model.

    Parameters
    ----------
    send : callable
        Reaches the server.
    who : str
        Provider and model, for messages.
    wanted : int
        Tokens to ask for at most; with 0 the endpoint only writes.
    begin_answers : bool
        Whether to find out if an answer can be begun.
    forces : bool
        Whether to force an ordinary token where the server tells ids.
    name_of : callable, optional
        Names tokens that the server tells the ids of.
    """

    def __init__(
        self,
        send: Send,
        who: str,
        wanted: int,
        *,
        begin_answers: bool = True,
        forces: bool = True,
        name_of: NameOf | None = None,
    ) -> None:
        self._send = send
        self._who = who
        self._wanted = wanted
        self._begin_answers = begin_answers
        self._forces = forces
        self._name_of = name_of
        self._seconds: list[float] = []
        self._usage = Usage()

    def run(self, wire: RequestFormat, endpoint: str) -> EndpointProfile:
        """Probe `endpoint`: ``"chat"``, ``"completions"``, or ``"auto"`` for what there is.

        Raises
        ------
        BackendError
            If no endpoint gives log-probabilities; the message names provider, model and field.
        """
        reads: dict[str, tuple[ParsedAnswer, int]] = {}
        refusals: dict[str, BackendError] = {}
        for path in _PATHS[endpoint]:
            try:
                wire, read, count = self._first(replace(wire, endpoints=frozenset({path})), path)
                reads[path] = read, count
            except (RejectedError, ModelNotFoundError) as error:
                refusals[path] = error
        if not reads:
            raise self._nothing(refusals)
        wire = replace(wire, endpoints=frozenset(reads))
        begun = self._begun(wire) if CHAT in reads and self._begin_answers else None
        if begun is not None:
            wire = replace(wire, begun=begun[0], begun_message=begun[1])
        path, (read, _) = next(iter(reads.items()))
        if not self._wanted:
            return self._found(wire, reads, 0, None, float("nan"))
        top_k = min(count for _, count in reads.values())
        forced = replace(wire, forced=_forced(read) if self._forces else {})
        raw, spread = self._compare(forced, path, read, top_k)
        if raw or not forced.forced:
            wire = forced
        else:
            raw, spread = self._compare(wire, path, read, top_k)
        return self._found(wire, reads, top_k, raw, spread)

    def _found(
        self,
        wire: RequestFormat,
        reads: Mapping[str, tuple[ParsedAnswer, int]],
        top_k: int,
        raw: bool | None,
        spread: float,
    ) -> EndpointProfile:
        some = [read for read, _ in reads.values()]
        return EndpointProfile(
            wire=wire,
            max_top_k=top_k,
            native_ids=all(read.native_ids for read in some),
            named_bytes=all(read.named_bytes for read in some),
            raw=raw,
            spread=spread,
            prompt_tokens=some[0].prompt_tokens,
            seconds=statistics.median(self._seconds),
            usage=self._usage,
        )

    def _first(self, wire: RequestFormat, path: str) -> tuple[RequestFormat, ParsedAnswer, int]:
        """The first answer without what the endpoint rejects, and its number of tokens."""
        prompt = _RAW if path == COMPLETIONS else _CHAT
        top_k = self._wanted
        while True:
            try:
                read = self._ask(wire, prompt, top_k)
                return wire, read, min(top_k, len(read.tokens))
            except RejectedError as error:
                if isinstance(error.__cause__, BadAnswerError):
                    raise  # it was answered, and paid for: fewer tokens would change nothing
                adjusted = _adjusted(wire, path, error)
                fewer = [number for number in _FEWER if number < top_k]
                if adjusted is not None:
                    wire = adjusted
                elif fewer:
                    top_k = fewer[0]
                else:
                    raise

    def _begun(self, wire: RequestFormat) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The fields with which a begun answer is continued, if any are."""
        for fields, message in _CONTINUING:
            tried = replace(wire, begun=fields, begun_message=message, endpoints=frozenset({CHAT}))
            try:
                read = self._ask(tried, _BEGUN, 5)
            except BackendError:
                continue
            if read.tokens[0][1].startswith(_BEGUN_GOES_ON):
                return fields, message
        return None

    def _compare(
        self, wire: RequestFormat, path: str, read: ParsedAnswer, top_k: int
    ) -> tuple[bool | None, float]:
        """Whether log-probabilities are raw, and how much two answers differ."""
        prompt = _RAW if path == COMPLETIONS else _CHAT
        hot = path == COMPLETIONS or wire.temperature
        difference = _difference(read, self._ask(wire, prompt, top_k, 2.0 if hot else None))
        if not hot:
            return None, difference
        if difference < _SAME:
            return True, difference
        repeated = _difference(read, self._ask(wire, prompt, top_k))
        return (False if repeated < _SAME else None), repeated

    def _ask(
        self,
        wire: RequestFormat,
        prompt: RenderedPrompt,
        top_k: int,
        temperature: float | None = None,
    ) -> ParsedAnswer:
        if self._wanted:
            body = wire.next_token(prompt, top_k)
        else:
            body = wire.generate(prompt, 1, 2, 1.0, 0)
        if "temperature" in body and temperature is not None:
            body["temperature"] = temperature
        started = time.perf_counter()
        answer = self._send(wire.path_of(prompt), body)
        self._seconds.append(time.perf_counter() - started)
        try:
            read = read_answer(answer, self._name_of) if self._wanted else read_text(answer)
        except BadAnswerError as error:
            field_name = "logprobs" if wire.path_of(prompt) == COMPLETIONS else "top_logprobs"
            raise RejectedError(
                f"{self._who} was asked for {field_name!r} at {wire.path_of(prompt)}, and {error}",
                field_name,
            ) from error
        self._usage += Usage(
            passes_made=1,
            tokens=read.prompt_tokens,
            tokens_evaluated=read.prompt_tokens - read.cached_tokens,
        )
        return read

    def _nothing(self, refusals: Mapping[str, BackendError]) -> BackendError:
        reasons = list(refusals.values())
        if reasons and all(isinstance(error, ModelNotFoundError) for error in reasons):
            return reasons[-1]
        said = next((e for e in reasons if isinstance(e, RejectedError)), None) or reasons[-1]
        return BackendError(
            f"{said}; without log-probabilities use another model, or draws (--backend sampling)"
        )


def _adjusted(wire: RequestFormat, path: str, error: RejectedError) -> RequestFormat | None:
    """The wire without what was just rejected, if it is a field that can be changed."""
    if path != CHAT:
        return None
    said = f"{error.field} {error}"
    if wire.length_field == "max_tokens" and "max_completion_tokens" in said:
        return replace(wire, length_field="max_completion_tokens")
    if wire.temperature and "temperature" in said:
        return replace(wire, temperature=False)
    return None


def _forced(read: ParsedAnswer) -> dict[str, Any]:
    """The field that makes a server with native ids write an ordinary token.

    llama.cpp's server gives no log-probabilities at all when the token that it writes ends the text
    or is half a character. Those that it reports are taken before the bias.
    """
    if not read.native_ids:
        return {}
    harmless = next((token for token, name, _ in read.tokens if name.strip().isalpha()), None)
    return {} if harmless is None else {"logit_bias": {str(harmless): 100.0}}


def _difference(one: ParsedAnswer, other: ParsedAnswer) -> float:
    """The largest difference of a log-probability that both hold."""
    known = {token: value for token, _, value in one.tokens}
    shared = [abs(known[token] - value) for token, _, value in other.tokens if token in known]
    return max(shared, default=float("inf"))
