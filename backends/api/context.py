"""The context of an LM behind an API: how long its prompts may be, as reports and refusals show.

Few servers count tokens, so a prompt's tokens are estimated from its bytes: four bytes a token at
first, and fewer where `usage` reports it or where a prompt is refused as too long. Estimates step
down a fixed ladder, so that a text is cut at the same place whatever was asked before it, and its
stored answer is found again.

A server may also cut a long prompt without a word (Ollama, beyond ``num_ctx``). Its reports then
stop at one number, whatever is sent; an answer that reports it isn't used.
"""

from __future__ import annotations

import logging
import re
import statistics
import threading
from bisect import bisect_left
from collections import deque

from blackbox.protocol import RenderedPrompt, TooLong

__all__ = ["BYTES_A_TOKEN", "ContextWindow"]

BYTES_A_TOKEN = 4.0
"""Bytes of a text that are likely to take one token."""

_ASSUMED = 8192  # tokens of a context that nobody tells
_log = logging.getLogger(__name__)

_STEP = 0.8
_LADDER = [BYTES_A_TOKEN * _STEP**place for place in reversed(range(20))]  # to 0.06
_LEARNED_FROM = 4  # reports
_LONG = 800  # bytes of a prompt from which tokens per byte are learned
_SURELY = 1.1  # an estimate that is exceeded by so much is wrong
_FEWEST_CUT = 256  # tokens; no context is smaller
_MANY_CHARACTERS = 5.0  # a token; texts have fewer, but for runs of one character
_LOOKED_AT = 4000  # characters of a refusal

_LIMIT = re.compile(
    r"(?:maximum|max\b|limit|less than|at most|allowed|context (?:length|size|window)|n_ctx)"
    r"\D{0,40}?(\d[\d,_]{1,9})"
    r"|(\d[\d,_]{1,9})\s*(?:tokens?\s*)?(?:maximum|max\b|limit)",
    re.IGNORECASE,
)


class ContextWindow:
    """The limit on the length of one LM's prompts; shared by its threads.

    Parameters
    ----------
    who : str
        Server and model, for messages.
    given, listed : int or None
        Tokens of the context: as the user says, and as the server's list does.
    counts : bool
        Whether a tokenizer counts the tokens of prompts, so that none is estimated.
    """

    def __init__(
        self, who: str, given: int | None, listed: int | None, *, counts: bool = False
    ) -> None:
        self.length = given or listed or _ASSUMED
        self._source = "" if given or listed else "assumed"
        self._who = who
        self._counts = counts
        self._lock = threading.Lock()
        self._ratios: deque[float] = deque(maxlen=32)
        self._refused: list[int] = []  # bytes of the two shortest prompts that were refused
        self._accepted = 0  # bytes of the longest prompt that was answered
        self._largest: dict[int, int] = {}  # reported tokens, and the characters that were sent
        self._stops_at: int | None = None

    @property
    def words(self) -> str:
        """The length, and where it is known from."""
        return f"{self.length} tokens{f' ({self._source})' if self._source else ''}"

    @property
    def shown(self) -> int | str:
        """The length if it is known, else words."""
        return self.words if self._source else self.length

    def check(self, prompt: RenderedPrompt) -> TooLong | None:
        """Return why a prompt isn't sent, if it surely doesn't fit by what is known."""
        if self._counts:
            return None
        with self._lock:
            most = self._likely_bytes()
            if prompt.n_bytes <= most:
                return None
            return TooLong(f"{prompt.n_bytes} bytes don't fit {self.words}", most)

    def answered(self, prompt: RenderedPrompt, reported: int | None) -> TooLong | None:
        """Learn from an answer; return why it isn't used, if the server has cut the prompt.

        Parameters
        ----------
        prompt : RenderedPrompt
            What was sent.
        reported : int or None
            Its tokens, as the server reports them.
        """
        if self._counts:
            return None
        with self._lock:
            if reported is not None and prompt.image is None and self._is_cut(prompt, reported):
                return TooLong(
                    f"{self._who} evaluates {reported} tokens of a prompt at most, and cuts longer "
                    "ones in silence",
                    self._next_below(prompt.n_bytes),
                )
            self._accepted = max(self._accepted, prompt.n_bytes)
            # a longer report than the context shows that one of the two is wrong
            if prompt.image is not None:
                return None
            if reported and reported <= self.length and prompt.n_bytes >= _LONG:
                self._ratios.append(prompt.n_bytes / reported)
            return None

    def refused(self, prompt: RenderedPrompt, said: str, body: str) -> str:
        """Return the reason for a prompt that the server refuses as too long.

        A `TooLong`, as long as a shorter one may fit.

        Parameters
        ----------
        prompt : RenderedPrompt
            What was sent.
        said : str
            The server's words, for people.
        body : str
            The whole answer: some name the limit, and how many tokens the prompt has.
        """
        if self._counts:
            return said
        limit, numbers = _numbers_in(body)
        with self._lock:
            if 16 <= limit < min(self.length, prompt.n_bytes):
                self.length, self._source = limit, "as the server says"
            self._refused = sorted([*self._refused, prompt.n_bytes])[:2]
            most = self._next_below(prompt.n_bytes)
            # no tokenizer makes more tokens of a text than it has bytes
            needed = max((some for some in numbers if some <= prompt.n_bytes), default=0)
            if needed > limit >= 16:
                self._ratios.append(prompt.n_bytes / needed)
                most = min(most, self._max_bytes(_at_most(prompt.n_bytes / needed)))
            return TooLong(said, most) if 0 < most < prompt.n_bytes else said

    def _max_bytes(self, bytes_a_token: float) -> int:
        return int((self.length - 1) * bytes_a_token)

    def _likely_bytes(self) -> int:
        """Bytes of a prompt that is likely to fit."""
        step = BYTES_A_TOKEN
        if len(self._ratios) >= _LEARNED_FROM:
            step = _at_most(statistics.median(self._ratios) * _SURELY)
        most = self._max_bytes(step)
        # one refusal may be about an odd text
        if len(self._refused) > 1 and self._refused[1] > self._accepted:
            most = min(most, self._next_below(self._refused[1]))
        return max(most, self._accepted)

    def _next_below(self, n_bytes: int) -> int:
        return self._max_bytes(_below(n_bytes / max(self.length - 1, 1)))

    def _is_cut(self, prompt: RenderedPrompt, reported: int) -> bool:
        """Whether a report is where the reports of prompts of any length stop."""
        if self._stops_at is not None and reported > self._stops_at:
            self._stops_at = None  # it was chance
        if self._stops_at is not None:
            return reported == self._stops_at
        sent = _distinct_characters(prompt)
        if reported < _FEWEST_CUT or sent < _MANY_CHARACTERS * reported:
            return False
        known = self._largest.setdefault(reported, sent)
        if known == sent or reported < max(self._largest):
            return False
        self._stops_at, self._accepted = reported, 0
        self.length, self._source = min(self.length, reported), "as the server cuts prompts"
        _log.warning(
            "%s evaluates %d tokens of a prompt at most and cuts longer ones in silence, their "
            "beginning or their end: texts are truncated to fit; give the server a longer context "
            "(for Ollama: num_ctx)",
            self._who,
            reported,
        )
        return True


def _numbers_in(body: str) -> tuple[int, list[int]]:
    """Return the limit of tokens in a refusal, 0 where there is none, and all numbers."""
    found = _LIMIT.search(body[:_LOOKED_AT])
    limit = _whole(found[1] or found[2]) if found else 0
    return limit, [_whole(some) for some in re.findall(r"\d[\d,_]{0,9}", body[:_LOOKED_AT])]


def _whole(number: str) -> int:
    return int(re.sub(r"[,_]", "", number))


def _below(ratio: float) -> float:
    """The step of the ladder below a number of bytes a token."""
    return _LADDER[max(bisect_left(_LADDER, ratio * 0.999) - 1, 0)]


def _at_most(ratio: float) -> float:
    """The step of the ladder at a number of bytes a token, or the next below."""
    return _LADDER[max(bisect_left(_LADDER, ratio * 1.001) - 1, 0)]


def _distinct_characters(prompt: RenderedPrompt) -> int:
    """Characters of a prompt, where a run of one character counts as three."""
    texts = [prompt.text or "", *(turn.content for turn in prompt.messages), prompt.answer_prefix]
    return sum(len(re.sub(r"(.)\1{3,}", r"\1\1\1", text, flags=re.DOTALL)) for text in texts)
