"""Distributions out of draws, for LMs that can only write: no log-probabilities needed.

Each prompt is continued n times at temperature 1. The first words of the continuations, in lower
case, are the tokens, and their smoothed frequencies the distribution. It is paid for n times over.

A question with closed options is asked by letters, in several orders of its options, as LMs prefer
some places: the draws are spread over the orders and counted by option.
"""

from __future__ import annotations

import logging
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from backends.api.responses import ParsedAnswer, as_log_probs, id_of_bytes
from blackbox.backend import BaseBackend, WrappedBackend, as_backend
from blackbox.errors import BackendError
from blackbox.protocol import (
    AnswerParts,
    Backend,
    BackendIdentity,
    ClosedQuestion,
    Limits,
    Message,
    RenderedPrompt,
    TimeEstimate,
    TokenLogProbs,
    Usage,
    check_served,
)
from blackbox.spending import current_gate

__all__ = ["SamplingBackend"]

_log = logging.getLogger(__name__)

_WORD = re.compile(r"\w+|[^\w\s]")
_LEAD = re.compile(r"\W*(the )?(correct )?(answer|option|choice|letter|number)( is)?\b\W*", re.I)
_LABEL = re.compile(r"\W*(\w+)[ \t]*(?![\w \t'’])")  # alone: "A good one" begins with none
_NOTHING = "∅"  # a continuation without a word is an answer too
_CALL = 16  # prompts that are handed over together


class SamplingBackend(WrappedBackend):
    """Next-token distributions as frequencies of words that an LM writes.

    Parameters
    ----------
    inner : str or Backend, default="openai"
        The LM: a name of `backends.names()`, or a backend that can `generate`.
    n_draws : int, default=8
        Continuations of each prompt. Words need more of them than letters.
    max_tokens : int, default=4
        Tokens of each, of which the first word counts.
    smoothing : float, default=0.5
        What is added to the count of each word that was drawn, and once for all those that weren't.
    seed : int, default=0
        Of the draws, where the LM takes one.
    **options
        Arguments of a backend that is given by name.

    Raises
    ------
    BackendError
        On first use, if the LM can't write.
    """

    environment = ("OPENAI_API_KEY", "OPENAI_BASE_URL")  # of the API that it wraps by default
    max_orders: ClassVar[int] = 4  # in which the options of a question are listed

    def __init__(
        self,
        inner: str | Backend = "openai",
        *,
        n_draws: int = 8,
        max_tokens: int = 4,
        smoothing: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, number in (("n_draws", n_draws), ("max_tokens", max_tokens)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {number!r}")
        if not smoothing > 0:
            raise ValueError(f"smoothing must be more than 0, got {smoothing!r}")
        super().__init__(_started(inner, options))
        self._options: dict[str, Any] = {
            "n_draws": n_draws,
            "max_tokens": max_tokens,
            "smoothing": smoothing,
            "seed": seed,
        }
        self._has_warned = False

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """The LM's, with how it is drawn from."""
        inner = self.backend.identity
        asked = " ".join(f"{name}={value}" for name, value in self._options.items())
        return replace(
            inner, endpoint=f"{inner.endpoint}, drawn", extra={**inner.extra, "draws": asked}
        )

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The LM's, with at most as many tokens as there are draws; it writes nothing itself."""
        n_draws = self._options["n_draws"]
        inner = self.backend.limits  # of an API, its probe finds them out, which is paid for
        if not inner.generates:
            raise BackendError(f"{self.backend!r} can't write texts, so there is nothing to draw")
        return replace(
            inner,
            max_top_k=n_draws,
            max_score_ids=0,
            generates=False,
            requests_at_a_time=None,
            draws_per_prompt=n_draws,
            passes_per_prompt=n_draws * max(self._options["max_tokens"], inner.tokens_written),
            tokens_written=1,  # a pass is one already
            questions=True,
            deduplicates=True,
        )

    def wrap_lm(self, wrap: Callable[[BaseBackend], BaseBackend]) -> SamplingBackend:
        """Return the same around a wrapped LM: what is paid for, and kept, are its draws."""
        return type(self)(self.backend.wrap_lm(wrap), **self._options)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the `top_k` most frequent first words in parts; see `BaseBackend`."""
        check_served(self.limits, prompts, top_k)
        # draws have numbers, so the same prompt has the same draws: one answer for all its rows
        rows: dict[RenderedPrompt, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(prompt, []).append(row)
        for is_asked in (False, True):
            some = [prompt for prompt in rows if (prompt.question is not None) == is_asked]
            parts = self._options_drawn(some, top_k) if is_asked else self._words(some, top_k)
            for answered, part in parts:
                source = [n for n, prompt in enumerate(answered) for _ in rows[prompt]]
                where = [row for prompt in answered for row in rows[prompt]]
                errors = {
                    new: part.row_errors[old]
                    for new, old in enumerate(source)
                    if old in part.row_errors
                }
                ids, values = part.token_ids[source], part.log_probs[source]
                yield where, TokenLogProbs(ids, values, part.token_bytes, errors, part.usage)

    def _words(
        self, distinct: list[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[RenderedPrompt], TokenLogProbs]]:
        """Yield distributions over first words, for some prompts at a time."""
        for some in _calls(distinct):
            began = time.perf_counter()
            draws = self.backend.generate(some, self._options["n_draws"], **self._asked)
            reads = [
                self._read([] if row in draws.row_errors else texts)
                for row, texts in enumerate(draws.texts)
            ]
            usage = replace(draws.usage, seconds_lm=time.perf_counter() - began)
            yield some, replace(as_log_probs(reads, top_k, draws.row_errors), usage=usage)

    def _options_drawn(
        self, distinct: list[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[RenderedPrompt], TokenLogProbs]]:
        """Yield distributions over the options of questions, for some prompts at a time."""
        for some in _calls(distinct):
            began = time.perf_counter()
            counts = [Counter[str]() for _ in some]
            errors: dict[int, str] = {}
            usage = Usage()
            for n, requests in self._requests(some).items():
                draws = self.backend.generate([one.prompt for one in requests], n, **self._asked)
                usage += draws.usage
                for place, (one, texts) in enumerate(zip(requests, draws.texts, strict=True)):
                    if place in draws.row_errors:
                        errors.setdefault(one.of, draws.row_errors[place])
                    counts[one.of].update(one.option_in(text) for text in texts)
            self._warn_of_others(sum(counts, Counter[str]()))
            usage.seconds_lm = time.perf_counter() - began
            options = [_question_of(prompt).options for prompt in some]
            shares = [
                None if row in errors else self._shares(options[row], counts[row])
                for row in range(len(some))
            ]
            part = TokenLogProbs.of_options(options, shares, errors, usage)
            ids, values = part.token_ids[:, :top_k], part.log_probs[:, :top_k]
            yield some, TokenLogProbs(ids, values, part.token_bytes, errors, usage)

    def _warn_of_others(self, counts: Counter[str]) -> None:
        """Warn, once, where most of what the LM writes names no option."""
        if counts[""] <= counts.total() / 2 or self._has_warned:
            return
        self._has_warned = True
        _log.warning(
            "%s of %s draws name none of the options, and count for nothing: take an LM that "
            "follows instructions, or leave it more room (--backend-option max_tokens=N)",
            f"{counts['']:,}",
            f"{counts.total():,}",
        )

    def _shares(self, options: Sequence[str], counts: Counter[str]) -> NDArray[np.float64]:
        """The smoothed frequencies of options; texts that name none count for nothing."""
        return np.array([counts[option] + self._options["smoothing"] for option in options])

    def _requests(self, prompts: Sequence[RenderedPrompt]) -> dict[int, list[_Lettered]]:
        """The requests for the draws of questions, by the number of draws from each."""
        by_number: dict[int, list[_Lettered]] = {}
        for of, prompt in enumerate(prompts):
            most = min(self.max_orders, self._options["n_draws"])
            orders = _orders(_question_of(prompt).options, most)
            each, more = divmod(self._options["n_draws"], len(orders))
            for number, order in enumerate(orders):
                request = _Lettered.of_question(of, prompt, order, self.backend.limits)
                by_number.setdefault(each + (number < more), []).append(request)
        return by_number

    @property
    def _asked(self) -> dict[str, Any]:
        """The arguments of `generate` beside prompts and their number."""
        options = self._options
        return {"max_tokens": options["max_tokens"], "temperature": 1.0, "seed": options["seed"]}

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the tokens of each prompt, of a question in one order of its options."""
        return self.backend.count_tokens([self._as_sent(prompt)[0] for prompt in prompts])

    def estimate_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the tokens of each prompt as it is paid for: a question in several orders."""
        counts = []
        for prompt in prompts:
            tokens = self.backend.estimate_tokens(self._as_sent(prompt))
            # each draw is paid for elsewhere where one request gives one
            counts.append(sum(tokens) if self.limits.draws_at_once else max(tokens))
        return counts

    def estimate_seconds(
        self, calls: Sequence[Sequence[RenderedPrompt]], n_tokens: float
    ) -> TimeEstimate:
        """Return about how long the draws of calls take, by the LM's own estimate."""
        at_once = self.limits.draws_at_once
        drawn = []
        for prompts in calls:
            distinct = list(dict.fromkeys(prompts))
            for start in range(0, len(distinct), _CALL):
                some = distinct[start : start + _CALL]
                words = [prompt for prompt in some if prompt.question is None]
                drawn.append(words * (1 if at_once else self._options["n_draws"]))
                questions = [prompt for prompt in some if prompt.question is not None]
                for n, requests in self._requests(questions).items():
                    drawn.append([one.prompt for one in requests] * (1 if at_once else n))
        return self.backend.estimate_seconds(drawn, n_tokens)

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int] | None]:
        """Return a prompt as it is sent, of a question in the first order of its options."""
        return self.backend.show(self._as_sent(prompt)[0])

    def _as_sent(self, prompt: RenderedPrompt) -> list[RenderedPrompt]:
        """A prompt, or a question in each order of its options."""
        if prompt.question is None:
            return [prompt]
        return [one.prompt for some in self._requests([prompt]).values() for one in some]

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows whose draws are all in the store, if there is one around the LM."""
        missing = set()
        for is_asked in (False, True):
            rows = [row for row, p in enumerate(prompts) if (p.question is not None) == is_asked]
            some = [prompts[row] for row in rows]
            if is_asked:
                requests = self._requests(some)
            else:
                drawn = [_Lettered(of, prompt, {}) for of, prompt in enumerate(some)]
                requests = {self._options["n_draws"]: drawn}
            for n, wanted in requests.items():
                known = self.backend.known_draws([one.prompt for one in wanted], n, **self._asked)
                there = set(known)
                missing |= {rows[one.of] for at, one in enumerate(wanted) if at not in there}
        return [row for row in range(len(prompts)) if row not in missing]

    def _read(self, texts: list[str]) -> ParsedAnswer:
        """The distribution over first words; nothing where the LM refused to write."""
        counts = Counter(_first_word(text) for text in texts)
        share = self._options["smoothing"]
        total = len(texts) + share * (len(counts) + 1)
        named = [(" " + word).encode("utf-8", "surrogatepass") for word in counts]
        tokens = [
            (id_of_bytes(name), name, log((count + share) / total))
            for name, count in zip(named, counts.values(), strict=True)
        ]
        tokens.sort(key=lambda token: (-token[2], token[0]))
        return ParsedAnswer(tokens, 0, 0, native_ids=False, named_bytes=True)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, dict[str, Any]]]:
        return _restore, (self.backend, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r}, n_draws={self._options['n_draws']})"


def _calls(prompts: list[RenderedPrompt]) -> Iterator[list[RenderedPrompt]]:
    """Yield the prompts of each call of the LM, until nothing more may be asked."""
    gate = current_gate()
    for start in range(0, len(prompts), _CALL):
        if gate is not None and gate.closed:
            return
        yield prompts[start : start + _CALL]


@dataclass(frozen=True)
class _Lettered:
    """A question about a text with its options in one order, and the option of each label."""

    of: int
    prompt: RenderedPrompt
    options: Mapping[str, str]

    @classmethod
    def of_question(
        cls, of: int, prompt: RenderedPrompt, order: Sequence[str], limits: Limits
    ) -> _Lettered:
        """Return the question of a prompt as an LM of these limits gets it."""
        are_letters = len(order) <= len(string.ascii_uppercase)
        numbers = map(str, range(1, len(order) + 1))
        labels = dict(zip(string.ascii_uppercase if are_letters else numbers, order, strict=False))
        lines = [f"{label}. {option}" for label, option in labels.items()]
        asked = "\n".join([_question_of(prompt).instructions, *lines])
        text = f"{prompt.text or ''}\n\n{asked}"
        bare = RenderedPrompt(image=prompt.image, choices=tuple(labels))
        if not limits.chat:
            return cls(of, replace(bare, text=f"{text}\nAnswer:"), labels)
        only = f"{text}\nAnswer with the {'letter' if are_letters else 'number'} only."
        return cls(of, replace(bare, messages=(Message("user", only),)), labels)

    def option_in(self, text: str) -> str:
        """Return the option that a text names by its label or its words; "" where it names none."""
        said = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
        found = _LABEL.match(said)
        if found and found[1].upper() in self.options:
            return self.options[found[1].upper()]
        label, _, rest = said.strip().partition(" ")
        its_own = self.options.get(label.upper())
        if its_own is not None and rest.strip(" .!").casefold() == its_own.casefold():
            return its_own
        longest_first = sorted(self.options.values(), key=len, reverse=True)
        parts = (text.strip(), said.strip())
        return next((o for part in parts for o in longest_first if _begins(part, o)), "")


def _begins(text: str, option: str) -> bool:
    """Return whether a text begins with the words of an option, whole ones where words have ends.

    Scripts without blanks between words have no letters of two cases.
    """
    said, words = text.casefold(), option.casefold()
    following = said[len(words) : len(words) + 1]
    has_ends = option[-1:].isdigit() or option[-1:].lower() != option[-1:].upper()
    return said.startswith(words) and not (has_ends and following.isalnum())


def _orders(options: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Return orders of options, at most so many, in which each stands in other places."""
    n_options = len(options)
    n_orders = min(most, n_options)
    shifts = [number * n_options // n_orders for number in range(n_orders)]
    return [(*options[shift:], *options[:shift]) for shift in shifts]


def _question_of(prompt: RenderedPrompt) -> ClosedQuestion:
    assert prompt.question is not None
    return prompt.question


def _first_word(text: str) -> str:
    found = _WORD.search(text)
    return found[0].lower() if found else _NOTHING


def _started(inner: str | Backend, options: dict[str, Any]) -> BaseBackend:
    if not isinstance(inner, str):
        if options:
            raise TypeError(f"unexpected arguments {sorted(options)}: the backend is made already")
        return as_backend(inner)
    import backends

    if inner == "openai":
        options = {"log_probs": False, **options}  # it needs none
    return backends.load(inner, **options)


def _restore(backend: BaseBackend, options: dict[str, Any]) -> SamplingBackend:
    return SamplingBackend(backend, **options)
