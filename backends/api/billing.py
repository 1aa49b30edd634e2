"""The worst cost of each try of a request, and what it took as far as the server can be believed.

A provider bills every request that it works on, whether or not the answer arrives or can be used.
So each try is charged at its worst before it is sent, and something is given back only

- when it was not worked on: no connection was made, or the status is 401, 403, 404 or 429;
- for a credible report in `usage`. Tokens of the prompt are credible from the fewest that the text
  can have (16 bytes each), written ones from one per text, both up to a billion.

Tokens that are reported as read from a prefix cache, or as written to it, have prices of their own;
where a report says nothing of writing, a long prompt counts as written.

A report above the worst case is counted as reported, as the bill will follow it, and from then on
each try reserves that much more: also those that are under way. So only what they take beyond the
room that is left then can exceed a budget.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from backends.api.request_format import parts_of_content
from blackbox.protocol import Usage
from blackbox.spending import CACHED_FROM, Account, Rate, TryLoad

__all__ = ["Billing", "Charge"]

_FRAME_TOKENS = 64  # what a chat template may add to a message
_MARK_TOKENS = 8  # what an embedding model may add to a text
_LONGEST_TOKEN = 16  # bytes; longer ones are blanks or lines, and rare
_LARGEST_REPORT = 10**9  # tokens; a larger number is a defect
_NOT_WORKED_ON = {401, 403, 404, 429}
_FREE_FIELDS = {
    "model",
    "input",
    "encoding_format",
    "dimensions",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "store",
    "include",
    "temperature",
    "logprobs",
    "top_logprobs",
    "n",
    "seed",
    "logit_bias",
    "logprob_token_ids",
    "return_tokens_as_token_ids",
    "continue_final_message",
    "add_generation_prompt",
}


class Billing:
    """Charges the tries of one backend; shared by its threads.

    Attributes
    ----------
    extra_input, extra_output : int
        Tokens that the server has reported beyond the worst case of a try, at most.
    """

    def __init__(self) -> None:
        self.extra_input = 0
        self.extra_output = 0
        self._under_way: set[Charge] = set()
        self._lock = threading.RLock()

    def begin(self, rate: Rate, body: Mapping[str, Any], account: Account | None) -> Charge:
        """Reserve the worst case of a try with this body.

        Raises
        ------
        BudgetError
            If the account has no room for it; it must not be sent.
        """
        if isinstance(asked := body.get("questions"), list | dict):
            fewest, most = _decision_tokens(body)  # a pass per question, and nothing is written
            worst = TryLoad(len(asked), most, 0)
            rate = replace(rate, is_decisions=True)
            return self._begun(Charge(self, rate, account, worst, fewest, 0, counts_written=False))
        fewest, most = _input_tokens(body)
        is_response = "max_output_tokens" in body  # of the Responses API
        if "input" in body and not is_response:
            # embeddings: a pass per text, and nothing is written
            worst = TryLoad(len(body["input"]), most, 0)
            return self._begun(Charge(self, rate, account, worst, fewest, 0, counts_written=False))
        n_texts = _whole(body.get("n"))
        fields = ("max_tokens", "max_completion_tokens", "max_output_tokens")
        written = _whole(next((body[name] for name in fields if body.get(name)), None))
        output = n_texts * written
        # texts are asked for, and not a distribution: each token is a pass
        counts_written = "n" in body or (is_response and "include" not in body)
        worst = TryLoad(output if counts_written else 1, most, output)
        return self._begun(
            Charge(self, rate, account, worst, fewest, n_texts, counts_written=counts_written)
        )

    def _begun(self, charge: Charge) -> Charge:
        charge.reserve()  # it may wait for what others give back
        with self._lock:
            self._under_way.add(charge)
            if charge.worst != charge.real:  # learned since
                charge.raise_to_worst()
        return charge

    @contextmanager
    def ending(self, charge: Charge) -> Iterator[None]:
        """End a charge: inside, nobody else changes what tries are charged."""
        with self._lock:
            self._under_way.discard(charge)
            yield

    def learn(self, worst: TryLoad, real: TryLoad) -> None:
        """Reserve more where a try took more than its worst case: for those under way, and later.

        `worst` is without what was learned before.
        """
        extra = (
            max(self.extra_input, real.input_tokens - worst.input_tokens),
            max(self.extra_output, real.output_tokens - worst.output_tokens),
        )
        if extra != (self.extra_input, self.extra_output):
            self.extra_input, self.extra_output = extra
            for charge in self._under_way:
                charge.raise_to_worst()


class Charge:
    """The charge of one try.

    Attributes
    ----------
    real : TryLoad
        The worst case, until `settle` or `cancel` knows better. One of them, `fail` or `lose` ends
        the charge.
    """

    def __init__(
        self,
        billing: Billing,
        rate: Rate,
        account: Account | None,
        worst: TryLoad,
        fewest: int,
        n_texts: int,
        *,
        counts_written: bool,
    ) -> None:
        self._billing, self._rate, self._account = billing, rate, account
        self._bare, self._fewest, self._n_texts = worst, fewest, n_texts
        self._counts_written = counts_written
        self.real = TryLoad()

    @property
    def worst(self) -> TryLoad:
        """The most that the try may take, as far as is known by now."""
        bare, written = self._bare, self._bare.output_tokens + self._billing.extra_output
        passes = written if self._counts_written else bare.passes
        most = bare.input_tokens + self._billing.extra_input
        return TryLoad(passes, most, written, cache_write_tokens=_written_at_most(most))

    def reserve(self) -> None:
        """Reserve the worst case, or raise `BudgetError`."""
        if self._account is not None:
            self._account.reserve_try(self._rate, self.worst)
        self.real = self.worst

    def raise_to_worst(self) -> None:
        """Count the worst case as it is known by now, whether or not there is room for it."""
        self._replace(self.worst)

    def settle(self, answer: Any) -> None:
        """Charge what an answer reports, as far as it is credible, and write that into it."""
        usage = answer.get("usage") if isinstance(answer, Mapping) else None
        told = usage if isinstance(usage, Mapping) else {}
        said = told.get("prompt_tokens", told.get("input_tokens"))
        tokens = _credible(said, self._fewest)
        # where nothing is written, nothing written is billed, whatever is reported
        written = _credible(told.get("completion_tokens"), self._n_texts) if self._n_texts else 0
        details = told.get("prompt_tokens_details", told.get("input_tokens_details"))
        cached, cache_written = _of_cache(details, tokens)
        with self._billing.ending(self):
            if tokens is None:
                tokens, cache_written = self.real.input_tokens, self.real.cache_write_tokens
            written = self.real.output_tokens if written is None else written
            passes = written if self._counts_written else self._bare.passes
            self._replace(TryLoad(passes, tokens, written, cached, cache_written))
            self._billing.learn(self._bare, self.real)
        if isinstance(answer, dict):
            answer["usage"] = {
                "prompt_tokens": tokens,
                "completion_tokens": written,
                "reported": _credible(said, 1),
                "prompt_tokens_details": {"cached_tokens": cached},
                # no charge: it shows whether a model reasons
                "completion_tokens_details": told.get("completion_tokens_details"),
            }

    def fail(self, status: int) -> None:
        """Charge a try that was answered with an error: nothing where it wasn't worked on."""
        if status in _NOT_WORKED_ON:
            self.cancel()
        else:
            self.lose()

    def lose(self) -> None:
        """Charge a try without an answer: its worst case."""
        with self._billing.ending(self):
            pass

    def cancel(self) -> None:
        """Give everything back."""
        with self._billing.ending(self):
            self._replace(TryLoad())

    @property
    def as_usage(self) -> Usage:
        """The charge, as usage."""
        return (
            Usage(
                passes_made=self.real.passes,
                tokens=self.real.input_tokens,
                tokens_evaluated=self.real.input_tokens,
            )
            + self.as_billed_apart
        )

    @property
    def as_billed_apart(self) -> Usage:
        """The tokens with prices of their own, as usage."""
        return Usage(
            tokens_written=self.real.output_tokens,
            tokens_cached=self.real.cached_tokens,
            tokens_cache_written=self.real.cache_write_tokens,
        )

    def _replace(self, real: TryLoad) -> None:
        if self._account is not None:
            self._account.settle_try(self._rate, self.real, real)
        self.real = real


def _credible(told: Any, fewest: int) -> int | None:
    """Return a reported number of tokens if it can be true, else None."""
    if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
        return None
    return int(told) if fewest <= told <= _LARGEST_REPORT and told == int(told) else None


def _of_cache(details: Any, tokens: int | None) -> tuple[int, int]:
    """Tokens of a prompt that were read from a prefix cache, and written to it, as reported."""
    if tokens is None:
        return 0, 0
    told = details if isinstance(details, Mapping) else {}
    cached = min(_credible(told.get("cached_tokens"), 0) or 0, tokens)
    written = _credible(told.get("cache_write_tokens"), 0)
    at_most = _written_at_most(tokens)
    return cached, min(at_most if written is None else written, tokens - cached)


def _written_at_most(tokens: int) -> int:
    return tokens if tokens >= CACHED_FROM else 0


def _whole(value: Any) -> int:
    """A number of a request's body; what a user's own field holds may be anything."""
    return value if isinstance(value, int) and value > 0 else 1


def _decision_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most tokens that a request of questions about a text can have.

    Some engines read, and report, the text once for each question.
    """
    given, asked = body.get("input", body.get("state")), body["questions"]
    messages = given if isinstance(given, list) else [{"content": str(given)}]
    text, image = parts_of_content(messages[0]["content"])
    rest = {key: value for key, value in body.items() if key not in ("input", "state")}
    dense = len("".join(text.split()).encode("utf-8", "replace"))
    of_text = len(text.encode("utf-8", "replace")) + image + _FRAME_TOKENS
    n_rest = len(json.dumps(rest, ensure_ascii=False).encode("utf-8", "replace"))
    return max(1, dense // _LONGEST_TOKEN), len(asked) * of_text + n_rest


def _input_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most tokens that the prompt of a request can have.

    No tokenizer makes more tokens of a text than it has bytes; of an image, see `DataUrl`.
    """
    prompt, messages = body.get("prompt"), body.get("messages") or []
    embedded = body.get("input") or []
    if "max_output_tokens" in body:
        messages, embedded = embedded, []
    if isinstance(prompt, list):
        return len(prompt), len(prompt) + _FRAME_TOKENS
    contents = [parts_of_content(message.get("content")) for message in messages]
    texts = [str(prompt or ""), *(text for text, _ in contents), *embedded]
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    dense = sum(len("".join(text.split()).encode("utf-8", "replace")) for text in texts)
    more = {name: value for name, value in body.items() if name not in _FREE_FIELDS}
    n_more = len(json.dumps(more).encode()) if more else 0
    most = n_bytes + n_more + _FRAME_TOKENS * (1 + len(messages))
    most += sum(of_images for _, of_images in contents)
    most += _MARK_TOKENS * len(embedded)
    return max(1, dense // _LONGEST_TOKEN), most
