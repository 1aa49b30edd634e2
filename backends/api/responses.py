"""Reads next-token log-probabilities out of the answers of OpenAI-compatible servers.

There are three shapes: `top_logprobs` of chat completions (text and bytes), the text-keyed dict of
legacy completions, and the chat shape inside legacy completions, as llama.cpp writes it. Some
servers tell the token's id too. Where none is told, a token's id is made from its bytes, so that it
is the same in every run: tokens are ids and bytes, never the text that is shown for them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.api.token_alphabets import NAMED_IDS, decoded
from blackbox.protocol import NO_TOKEN, TokenLogProbs, Usage

__all__ = [
    "BadAnswerError",
    "ParsedAnswer",
    "as_log_probs",
    "count_of",
    "id_of_bytes",
    "read_answer",
    "read_text",
    "text_of",
]

_ABSENT = -9000.0  # OpenAI writes -9999.0 for a token that is not among the most likely
_ROUNDING = 1e-3
_ID_PREFIX = "token_id:"

NameOf = Callable[[int], bytes]
"""The bytes of a token of which only the id was told."""


class BadAnswerError(Exception):
    """An answer that holds no usable distribution; asking again may give one."""


@dataclass(frozen=True)
class ParsedAnswer:
    """One answer.

    Parameters
    ----------
    tokens : list of (int, bytes, float)
        Id, bytes and natural log-probability, most likely first, ties by id.
    prompt_tokens : int
        Tokens of the prompt, as the server counts them.
    cached_tokens : int
        How many of them came out of its prefix cache, where it tells.
    native_ids : bool
        Whether the ids are the model's own.
    named_bytes : bool
        Whether the server told bytes, not only text.
    """

    tokens: list[tuple[int, bytes, float]]
    prompt_tokens: int
    cached_tokens: int
    native_ids: bool
    named_bytes: bool


def id_of_bytes(name: bytes) -> int:
    """A token id in [0, 2³¹) for a token that is known by its bytes only.

    The first 31 bits of their SHA-256. Among 20,000 tokens two share an id with a chance of 9%;
    the less likely one of such a pair is then left out of an answer that holds both.
    """
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1


def read_answer(answer: Any, name_of: NameOf | None = None, alphabet: str = "") -> ParsedAnswer:
    """Return the distribution in one answer.

    Parameters
    ----------
    answer : dict
        The JSON of a chat completion or a legacy completion with one choice.
    name_of : callable, optional
        Names a token of which the server told the id only.
    alphabet : str
        What tokens are told in; see `backends.api.token_alphabets`.

    Raises
    ------
    BadAnswerError
        If the answer holds none, not exactly one choice, or numbers that can't be probabilities.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        count = len(choices) if isinstance(choices, list) else 0
        raise BadAnswerError(f"the answer has {count} choices, one was asked for")
    try:
        entries = _entries(choices[0].get("logprobs"))
        named = [_named(entry, name_of, alphabet) for entry in entries]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise BadAnswerError("the answer's log-probabilities can't be read") from error
    tokens = _merged(named)
    _check(tokens)
    prompt_tokens, cached_tokens = _tokens_of_prompt(answer)
    return ParsedAnswer(
        tokens,
        prompt_tokens,
        cached_tokens,
        native_ids=all(native for *_, native in named),
        named_bytes=any(isinstance(entry.get("bytes"), list) for entry in entries),
    )


def read_text(answer: Any) -> ParsedAnswer:
    """Return the text in one answer, as its only token.

    Raises
    ------
    BadAnswerError
        If it holds none.
    """
    try:
        text = text_of(answer["choices"][0])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadAnswerError("the answer holds no text") from error
    name = text.encode("utf-8", "surrogatepass")
    return ParsedAnswer([(0, name, 0.0)], _tokens_of_prompt(answer)[0], 0, False, False)


def text_of(choice: Mapping[str, Any]) -> str:
    """Return the text of one choice, in either shape."""
    said = choice.get("text") or (choice.get("message") or {}).get("content") or ""
    if isinstance(said, list):  # parts, of which some are thoughts
        texts = [part.get("text") for part in said if part.get("type") == "text"]
        said = "".join(text for text in texts if isinstance(text, str))
    return str(said)


def count_of(value: Any) -> int:
    """Return a count that a server tells, and 0 where it is no count."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return 0
    return int(value)


def _tokens_of_prompt(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt, and how many of them came out of a cache."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):
        return 0, 0
    tokens = count_of(usage.get("prompt_tokens"))
    details = usage.get("prompt_tokens_details")
    cached = count_of(details.get("cached_tokens")) if isinstance(details, Mapping) else 0
    return tokens, min(cached, tokens)


def as_log_probs(
    reads: Sequence[ParsedAnswer], top_k: int, row_errors: Mapping[int, str] | None = None
) -> TokenLogProbs:
    """Return answers as arrays of shape (len(reads), top_k), with what they took.

    Those of `row_errors` hold no tokens.
    """
    ids = np.full((len(reads), top_k), NO_TOKEN, np.int32)
    values = np.full((len(reads), top_k), -np.inf, np.float32)
    names: dict[int, bytes] = {}
    usage = Usage()
    for row, read in enumerate(reads):
        some = read.tokens[:top_k]
        ids[row, : len(some)] = [token for token, _, _ in some]
        values[row, : len(some)] = [value for _, _, value in some]
        names.update((token, name) for token, name, _ in some)
        usage.passes_made += bool(some)
        usage.tokens += read.prompt_tokens
        usage.tokens_evaluated += read.prompt_tokens - read.cached_tokens
    return TokenLogProbs(ids, values, names, row_errors or {}, usage)


def _entries(logprobs: Any) -> list[dict[str, Any]]:
    """One dict a token, whatever the shape."""
    if not logprobs:
        raise BadAnswerError("the answer holds no log-probabilities")
    if logprobs.get("content"):
        entries: list[dict[str, Any]] = logprobs["content"][0]["top_logprobs"]
    else:
        keyed = (logprobs.get("top_logprobs") or [None])[0]
        entries = [{"token": text, "logprob": value} for text, value in (keyed or {}).items()]
    # null stands for minus infinity, which JSON lacks
    values = [entry["logprob"] for entry in entries]
    entries = [
        entry
        for entry, value in zip(entries, values, strict=True)
        if value is not None and not value <= _ABSENT
    ]
    if not entries:
        raise BadAnswerError("the answer holds no log-probabilities")
    return entries


def _named(
    entry: dict[str, Any], name_of: NameOf | None, alphabet: str
) -> tuple[int, bytes, float, bool]:
    """Id, bytes, log-probability, and whether the id is the model's own."""
    text, value = str(entry["token"]), float(entry["logprob"])
    if text.startswith(_ID_PREFIX) and name_of is not None:
        token = int(text.removeprefix(_ID_PREFIX))
        return _checked_id(token), name_of(token), value, True
    if alphabet == NAMED_IDS and name_of is not None:
        return _checked_id(int(text)), name_of(int(text)), value, True
    told = entry.get("bytes")
    name = bytes(told) if isinstance(told, list) else text.encode("utf-8", "surrogatepass")
    if alphabet:
        name = decoded(name, alphabet)
    if entry.get("id") is not None:
        return _checked_id(int(entry["id"])), name, value, True
    return id_of_bytes(name), name, value, False


def _checked_id(token: int) -> int:
    if not 0 <= token < 2**31:
        raise ValueError("no token has this id")
    return token


def _merged(tokens: list[tuple[int, bytes, float, bool]]) -> list[tuple[int, bytes, float]]:
    """Tokens in order; those that look alike to the server become one, with their joint chance.

    One that is listed twice under the model's own id is the same, and counts once.
    """
    known: dict[int, tuple[bytes, float]] = {}
    for token, name, value, is_native in sorted(tokens, key=lambda entry: (-entry[2], entry[0])):
        before = known.get(token)
        if before is None:
            known[token] = name, value
        elif before[0] == name and not is_native:
            known[token] = name, float(np.logaddexp(before[1], value))
    ordered = sorted(known.items(), key=lambda entry: (-entry[1][1], entry[0]))
    # a few thousandths above zero come from rounding inside an engine's softmax
    return [
        (token, name, min(value, 0.0) if value < _ROUNDING else value)
        for token, (name, value) in ordered
    ]


def _check(tokens: list[tuple[int, bytes, float]]) -> None:
    values = [value for _, _, value in tokens]
    if any(math.isnan(value) for value in values):
        raise BadAnswerError("a log-probability is not a number")
    if max(values) > 0:
        raise BadAnswerError("a log-probability is positive")
    if math.fsum(map(math.exp, values)) > 1 + _ROUNDING:
        raise BadAnswerError("probabilities sum to more than 1")
