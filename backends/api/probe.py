"""Probes what an OpenAI-compatible endpoint really gives, with a few requests of a few tokens.

Nothing is inferred from a model's name: each field is tried, and one that is rejected is left out.
"""

from __future__ import annotations

import json
import logging
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backends.api.errors import RejectedError
from backends.api.fingerprint import fingerprint
from backends.api.image_probe import ImageTokens, probe_images
from backends.api.profile import EndpointProfile
from backends.api.reasoning import SWITCH_OFF, SWITCHES, reasons_first
from backends.api.request_format import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    RequestFormat,
    text_among,
)
from backends.api.responses import (
    BadAnswerError,
    NameOf,
    ParsedAnswer,
    read_answer,
    read_text,
    text_of,
)
from backends.api.retries import RetryLaterError
from backends.api.token_alphabets import IDS, NAMED_IDS, recognised
from backends.api.token_estimate import TokenEstimate
from blackbox.errors import BackendError, ModelNotFoundError, UnservedPromptError
from blackbox.protocol import Message, RenderedPrompt, Usage

__all__ = ["Prober", "probed_prompt"]

_log = logging.getLogger(__name__)

Send = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Posts JSON to a path, with retries, and gives back the answer's JSON."""

_RAW = RenderedPrompt(text="The capital of France is")
_CHAT = RenderedPrompt(messages=(Message("user", "What is the capital of France?"),))
_BEGUN = RenderedPrompt(
    messages=(Message("user", "Name the days of the week."),), answer_prefix="Monday, Tuesday, Wed"
)
_LETTERS = RenderedPrompt(
    messages=(
        Message("user", "Which can be eaten?\nA. a stone\nB. a pear\nAnswer with the letter only."),
    ),
    choices=("A", "B"),
)
_LETTER_TOKENS, _SCHEMA_TOKENS = 4, 16
_THOUGHTS = (256, 1024)  # tokens that are left for them
_BEGUN_GOES_ON = (b"nes", b"n")  # no answer that starts anew begins so
_PATHS = {
    "auto": (COMPLETIONS, CHAT, RESPONSES),
    "completions": (COMPLETIONS,),
    "chat": (CHAT,),
    "responses": (RESPONSES,),
}
_FEWER = {20, 10, 5, 1}
_MOST_FORMS = 10  # of one endpoint
_TEMPERATURES = (2.0, 0.5)  # at either, log-probabilities after temperature differ from those at 1
_CONTINUING: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"continue_final_message": True, "add_generation_prompt": False}, {}),
    ({}, {}),
    ({}, {"prefix": True}),
)
_WRITTEN = (1, 4, 16)  # tokens, of which a chat without reasoning may refuse the fewest
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_SAME = 0.1  # log-probabilities closer than this differ by the numerics of batches only


def probed_prompt(path: str) -> RenderedPrompt:
    """Return a prompt that a path has answered in the probe."""
    return _RAW if path == COMPLETIONS else _CHAT


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
    find_names : callable, optional
        Returns what names the token of an id, and others, where there is something that does.
    images : bool
        Whether to find out how the endpoint takes images.

    Attributes
    ----------
    name_of : callable or None
        As given, or as found.
    reports : list of (dict, int)
        The bodies that were answered, and the tokens that were reported for their prompts.
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
        find_names: Callable[[int], NameOf | None] = lambda token: None,
        images: bool = False,
    ) -> None:
        self._send = send
        self._who = who
        self._wanted = wanted
        self._begin_answers = begin_answers
        self._forces = forces
        self.name_of = name_of
        self._find_names = find_names
        self._images = images
        self.reports: list[tuple[dict[str, Any], int]] = []
        self._seconds: list[float] = []
        self._usage = Usage()
        self._answers: dict[str, ParsedAnswer] = {}
        self._names: set[bytes] = set()
        self._models: set[str] = set()
        self._versions: set[str] = set()
        self._reasons_first = False
        self._n_draws = 2  # asked for at once, where the endpoint only writes

    def run(self, wire: RequestFormat, endpoint: str) -> EndpointProfile:
        """Probe `endpoint`: a name as for `OpenAIBackend`; ``"auto"`` for what there is.

        Raises
        ------
        BackendError
            If no endpoint gives log-probabilities; the message names provider, model and field.
        """
        reads: dict[str, tuple[ParsedAnswer, int]] = {}
        refusals: dict[str, BackendError] = {}
        for path in _PATHS[endpoint]:
            if path == RESPONSES:
                if reads or any(map(_server_failed, refusals.values())):
                    break
                self._forget()
            try:
                found = self._without_reasoning(replace(wire, endpoints=frozenset({path})), path)
                wire, read, count = found
                reads[path] = read, count
            except (RejectedError, ModelNotFoundError) as error:
                refusals[path] = error
        if not reads:
            raise self._nothing(refusals)
        wire = replace(wire, endpoints=frozenset(reads))
        begun = self._begun(wire) if CHAT in reads and self._begin_answers else None
        if begun is not None:
            wire = replace(wire, begun=begun[0], begun_message=begun[1])
        if CHAT in reads and not self._wanted:
            wire = self._constrained(wire)
        path, (read, _) = next(iter(reads.items()))
        top_k = min(count for _, count in reads.values())
        raw, spread = None, float("nan")
        if self._wanted:
            wire, raw, spread = self._force(wire, path, read, top_k)
            wire = replace(wire, alphabet=self._alphabet())
        self._warn(wire)
        seen = self._see(wire) if self._images else None
        return EndpointProfile(
            wire=wire,
            max_top_k=top_k if self._wanted else 0,
            native_ids=all(read.native_ids for read, _ in reads.values()),
            named_bytes=all(read.named_bytes for read, _ in reads.values()),
            raw=raw,
            spread=spread,
            prompt_tokens=read.prompt_tokens,
            seconds=statistics.median(self._seconds),
            usage=self._usage,
            reasons_first=self._reasons_first,
            not_served={path: self._reason(error) for path, error in refusals.items()},
            answered_by=_only(self._models),
            system_fingerprint=_only(self._versions),
            answers_digest=fingerprint(self._answers) if self._wanted else "",
            draws_at_once=self._n_draws > 1 and RESPONSES not in reads,
            images=seen is not None,
            tokens_per_image=seen.per_image if seen else 0.0,
            tokens_per_megapixel=seen.per_megapixel if seen else 0.0,
        )

    def _see(self, wire: RequestFormat) -> ImageTokens:
        """Return the number of tokens that images take; see `probe_images`."""

        def ask(prompt: RenderedPrompt) -> tuple[dict[bytes, float], int]:
            top_k = min(self._wanted, 5)
            body = wire.next_token(prompt, top_k) if top_k else wire.generate(prompt, 1, 1, 1.0, 0)
            answer = self._send(wire.path_of(prompt), body)
            read = read_answer(answer, self.name_of) if top_k else read_text(answer)
            self._usage += Usage(
                passes_made=1, tokens=read.prompt_tokens, tokens_evaluated=read.prompt_tokens
            )
            named = {name: value for _, name, value in read.tokens} if top_k else {}
            return named, int(answer["usage"].get("reported") or 0)

        if not {CHAT, RESPONSES} & wire.endpoints:
            raise UnservedPromptError(f"{self._who} has completions only, which take no images")
        estimate = TokenEstimate(self.reports)
        return probe_images(self._who, ask, lambda bare: estimate.count(bare, wire))

    def _force(
        self, wire: RequestFormat, path: str, read: ParsedAnswer, top_k: int
    ) -> tuple[RequestFormat, bool | None, float]:
        """The format that forces a token where that changes nothing, and what was compared."""
        forced = replace(wire, forced=_forced(read) if self._forces else {})
        raw, spread = self._compare(forced, path, read, top_k)
        if raw or not forced.forced:
            return forced, raw, spread
        return wire, *self._compare(wire, path, read, top_k)

    def _alphabet(self) -> str:
        """Return the alphabet that tokens are told in."""
        alphabet = recognised(self._names)
        if alphabet == IDS:
            names = self._find_names(int(min(self._names)))
            if names is not None:
                self.name_of, alphabet = names, NAMED_IDS
        return alphabet

    def _warn(self, wire: RequestFormat) -> None:
        """Say what would train to chance in silence."""
        if self._reasons_first and self._wanted:
            _log.warning(
                "%s reasons before it answers a chat, so its next token says nothing about a "
                "text; %s",
                self._who,
                SWITCH_OFF,
            )
        if RESPONSES in wire.endpoints:
            _log.warning(
                "%s is asked through the Responses API (/responses), and each answer writes up to "
                "%d tokens; that is part of the model's identity",
                self._who,
                wire.written,
            )
        if wire.alphabet == IDS:
            _log.warning(
                "%s tells ids of tokens and no text, so class names can't be found among them; "
                "update the server (recent versions of mlx_lm.server tell text), use another one, "
                "or train with --no-label-words",
                self._who,
            )

    def _warn_of_switch(self, fields: Mapping[str, Any]) -> None:
        _log.warning(
            "%s reasons before it answers: that is switched off by %s, which is part of the "
            "model's identity",
            self._who,
            json.dumps(fields),
        )

    def _without_reasoning(
        self, wire: RequestFormat, path: str
    ) -> tuple[RequestFormat, ParsedAnswer, int]:
        """The first answer as `_first`; of a chat that reasons first, without reasoning if it can.

        Models that reason may refuse log-probabilities, or a limit of one token.
        """
        failure, found = None, None
        try:
            found = self._first(wire, path)
        except RejectedError as error:
            failure = error
        # an answer without log-probabilities was paid for: others cost as much; and a server that
        # fails says nothing of reasoning
        is_final = failure is not None and isinstance(failure.__cause__, BadAnswerError)
        is_final = (is_final or found is not None) and not self._reasons_first
        is_final = is_final or (failure is not None and _server_failed(failure))
        if path == COMPLETIONS or not self._wanted or is_final:
            if failure is not None:
                raise failure
            assert found is not None
            return found
        kept = self._reasons_first, dict(self._answers), set(self._names)
        for fields in SWITCHES:
            if fields.keys() & wire.extra.keys():
                continue  # the user has said it
            self._forget()
            try:
                switched = self._first(replace(wire, extra={**wire.extra, **fields}), path)
            except RejectedError:
                continue
            if not self._reasons_first:
                self._warn_of_switch(fields)
                return switched
        self._reasons_first, self._answers, self._names = kept
        if failure is not None:
            raise failure
        assert found is not None
        return found

    def _forget(self) -> None:
        """Forget the answers to another form of requests."""
        self._reasons_first = False
        self._answers.clear()
        self._names.clear()

    def _first(self, wire: RequestFormat, path: str) -> tuple[RequestFormat, ParsedAnswer, int]:
        """The first answer without what the endpoint rejects, and its number of tokens."""
        prompt = probed_prompt(path)
        top_k = self._wanted
        for form in range(_MOST_FORMS):
            try:
                read = self._ask(wire, prompt, top_k)
                return wire, read, min(top_k, len(read.tokens))
            except RejectedError as error:
                if isinstance(error.__cause__, BadAnswerError):
                    raise  # it was answered, and paid for: fewer tokens would change nothing
                lengths = _WRITTEN if self._wanted else (*_WRITTEN, *_THOUGHTS)
                adjusted = _adjusted(wire, path, error, lengths)
                fewer = _fewer(top_k, str(error))
                if adjusted is not None:
                    wire = adjusted
                elif fewer and form < _MOST_FORMS - 1:
                    top_k = fewer
                elif not self._wanted and self._n_draws > 1:
                    self._n_draws = 1
                else:
                    raise
        raise AssertionError("unreachable")

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

    def _constrained(self, wire: RequestFormat) -> RequestFormat:
        """The format in which questions are answered by letters: as it is, or with what that takes.

        A letter is written in one token, an answer of a JSON schema in several, and one that comes
        after thoughts in many, unless these can be switched off.
        """
        if wire.thinks:
            return self._with_thoughts(wire)  # fewer tokens were refused
        text, thinks = self._letter(wire)
        if text is None or text in _LETTERS.choices:
            return wire
        if thinks:
            return self._with_thoughts(wire)
        held = replace(wire, constrains=True, written=max(wire.written, _SCHEMA_TOKENS))
        if self._letter(held)[0] in _LETTERS.choices:
            _log.warning(
                "%s doesn't answer a question by a letter alone: it is held to letters by a JSON "
                "schema, which is part of the model's identity",
                self._who,
            )
            return held
        return wire

    def _with_thoughts(self, wire: RequestFormat) -> RequestFormat:
        """The format for a model that thinks first: without thoughts, or with room for them."""
        for fields in SWITCHES:
            if fields.keys() & wire.extra.keys():
                continue  # the user has said it
            switched = replace(wire, extra={**wire.extra, **fields}, written=1, thinks=False)
            if self._letter(switched)[0] in _LETTERS.choices:
                self._warn_of_switch(fields)
                self._reasons_first = False
                return switched
        for room in _THOUGHTS:
            if room < wire.written:
                continue
            roomy = replace(wire, written=room, thinks=True)
            if self._letter(roomy)[0] in _LETTERS.choices:
                _log.warning(
                    "%s thinks before it answers, which could not be switched off: each draw may "
                    "write %d tokens, which are planned and billed; that is part of the model's "
                    "identity",
                    self._who,
                    room,
                )
                return roomy
        _log.warning(
            "%s thinks before it answers, and answered no question within %d tokens; leave more "
            "with --backend-option max_tokens=N, or %s",
            self._who,
            _THOUGHTS[-1],
            SWITCH_OFF,
        )
        return wire

    def _letter(self, wire: RequestFormat) -> tuple[str | None, bool]:
        """The letter, or text, that answers a question, and whether thoughts came in its place.

        None where the endpoint doesn't take the request.
        """
        try:
            answer = self._send(CHAT, wire.generate(_LETTERS, 1, _LETTER_TOKENS, 1.0, 0))
            text = text_of(answer["choices"][0])
        except (RejectedError, LookupError, TypeError, AttributeError):
            return None, False
        read = read_text(answer)
        self._usage += Usage(
            passes_made=1, tokens=read.prompt_tokens, tokens_evaluated=read.prompt_tokens
        )
        if wire.constrains:
            text = text_among(_LETTERS.choices, text)
        return text.strip().rstrip(".):"), reasons_first(answer, b"")

    def _compare(
        self, wire: RequestFormat, path: str, read: ParsedAnswer, top_k: int
    ) -> tuple[bool | None, float]:
        """Whether log-probabilities are raw, and how much two answers differ."""
        prompt = probed_prompt(path)
        if path == COMPLETIONS or wire.temperature:
            for temperature in _TEMPERATURES:
                other = self._try(wire, prompt, top_k, temperature)
                if other is None:
                    continue
                difference = _difference(read, other)
                if difference < _SAME:
                    return True, difference
                repeated = self._repeated(wire, prompt, read, top_k)
                return (False if repeated < _SAME else None), repeated
        return None, self._repeated(wire, prompt, read, top_k)

    def _repeated(
        self, wire: RequestFormat, prompt: RenderedPrompt, read: ParsedAnswer, top_k: int
    ) -> float:
        """Return by how much a second answer differs; not a number where there is none."""
        again = self._try(wire, prompt, top_k, None)
        return float("nan") if again is None else _difference(read, again)

    def _try(
        self, wire: RequestFormat, prompt: RenderedPrompt, top_k: int, temperature: float | None
    ) -> ParsedAnswer | None:
        """An answer, or None where the endpoint doesn't take the request."""
        try:
            return self._ask(wire, prompt, top_k, temperature)
        except RejectedError:
            return None

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
            body = wire.generate(prompt, self._n_draws, 2, 1.0, 0)
        if "temperature" in body and temperature is not None:
            body["temperature"] = temperature
        started = time.perf_counter()
        answer = self._send(wire.path_of(prompt), body)
        self._seconds.append(time.perf_counter() - started)
        try:
            read = read_answer(answer, self.name_of) if self._wanted else read_text(answer)
        except BadAnswerError as error:
            if prompt is _CHAT and reasons_first(answer, b""):
                self._reasons_first = True
            field_name = "logprobs" if wire.path_of(prompt) == COMPLETIONS else "top_logprobs"
            raise RejectedError(
                f"{self._who} was asked for {field_name!r} at {wire.path_of(prompt)}, and {error}",
                field_name,
            ) from error
        reported = answer["usage"].get("reported") if isinstance(answer.get("usage"), dict) else 0
        if reported:
            self.reports.append((body, reported))
        if not self._wanted:
            self._n_draws = min(self._n_draws, len(answer["choices"]))  # some servers ignore `n`
        self._learn(wire, prompt, answer, read)
        self._usage += Usage(
            passes_made=1,
            tokens=read.prompt_tokens,
            tokens_evaluated=read.prompt_tokens - read.cached_tokens,
        )
        return read

    def _learn(
        self,
        wire: RequestFormat,
        prompt: RenderedPrompt,
        answer: dict[str, Any],
        read: ParsedAnswer,
    ) -> None:
        """Keep what one answer shows of the LM."""
        name = read.tokens[0][1]
        self._names |= {token for _, token, _ in read.tokens}
        self._answers.setdefault(json.dumps([wire.path_of(prompt), prompt.as_dict()]), read)
        self._models.add(str(answer.get("model") or ""))
        self._versions.add(str(answer.get("system_fingerprint") or ""))
        if prompt is _CHAT and reasons_first(answer, name if self._wanted else b""):
            self._reasons_first = True

    def _reason(self, error: BackendError) -> str:
        """Why an endpoint isn't served, in a list of several."""
        return str(error).removeprefix(f"{self._who} ").partition("; check the model")[0]

    def _nothing(self, refusals: Mapping[str, BackendError]) -> BackendError:
        reasons = [error for path, error in refusals.items() if path != RESPONSES]
        last = refusals.get(RESPONSES)
        is_absent = all(isinstance(error, ModelNotFoundError) for error in reasons)
        is_form = isinstance(last, RejectedError) and not isinstance(last.__cause__, BadAnswerError)
        if last is not None and (not reasons or (is_absent and is_form)):
            reasons.append(last)
        if reasons and all(isinstance(error, ModelNotFoundError) for error in reasons):
            return reasons[-1]
        forms = [error for error in reasons if isinstance(error, RejectedError)]
        said = str(forms[0])
        if all("no JSON" in str(error) for error in forms):
            return BackendError(said)  # it is no API
        for error in forms[1:]:
            said += f"; and {self._reason(error)}"
        return BackendError(
            f"{said}; without log-probabilities use another model, or draws (--backend sampling)"
        )


def _server_failed(error: BackendError) -> bool:
    """Return whether a form was not refused, but the server failed at it in each try."""
    return isinstance(error.__cause__, RetryLaterError)


def _only(values: set[str]) -> str:
    """The one value that all answers have, or an empty string."""
    return next(iter(values)) if len(values) == 1 else ""


def _fewer(top_k: int, said: str) -> int | None:
    """The next number of tokens to ask for: the largest usual or named one below the refused."""
    words = re.sub(r", in (1 try|\d+ tries)$", "", said.partition(" says ")[2])
    named = {int(number) for number in re.findall(r"(?<![\w.])\d{1,4}(?![\w.])", words)}
    return max((number for number in _FEWER | named if 1 <= number < top_k), default=None)


def _adjusted(
    wire: RequestFormat, path: str, error: RejectedError, lengths: Sequence[int]
) -> RequestFormat | None:
    """The format without what was just rejected, if it is a field that can be changed."""
    if path == COMPLETIONS:
        return None
    said = f"{error.field} {error}"
    if path == CHAT and wire.length_field == "max_tokens" and "max_completion_tokens" in said:
        return replace(wire, length_field="max_completion_tokens")
    if any(name in said for name in _LENGTHS) and wire.written < lengths[-1]:
        written = next(n for n in lengths if n > wire.written)
        return replace(wire, written=written, thinks=written in _THOUGHTS)
    if wire.temperature and "temperature" in said:
        return replace(wire, temperature=False)
    is_switch = path == CHAT and not wire.counted and error.field != "top_logprobs"
    if is_switch and "integer" in said.lower() and "logprobs" in said:
        return replace(wire, counted=True)
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
