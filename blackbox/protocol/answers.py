"""Answers of an LM: distributions over next tokens, scores of tokens, and sampled texts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import BackendResponseError
from blackbox.protocol.usage import Usage

NO_TOKEN = -1
"""Token id that fills a row of `TokenLogProbs` whose answer was shorter than the others."""

_SUM_TOLERANCE = 1e-3
_MAX_VOCABULARY = 2**22  # token ids below this are marked in a table, and not sorted
_FIRST_OPTION_ID = 2**30


class TooLong(str):
    """A reason in `row_errors`: the prompt is too long for the LM, and a shorter one may fit.

    Parameters
    ----------
    reason : str
        The reason, for people.
    max_bytes : int
        UTF-8 bytes of a prompt that is likely to fit; fewer than this one has.
    """

    max_bytes: int

    def __new__(cls, reason: str, max_bytes: int) -> TooLong:  # noqa: D102
        self = super().__new__(cls, reason)
        self.max_bytes = max_bytes
        return self


@dataclass(frozen=True)
class TokenLogProbs:
    """The most likely next tokens of n prompts and their natural log-probabilities.

    Parameters
    ----------
    token_ids : int32 array of shape (n, k)
        Most likely token first. A row with fewer than k answers ends in `NO_TOKEN`.
    log_probs : float32 array of shape (n, k)
        Natural logarithms before any sampling settings, in descending order; −inf at `NO_TOKEN`.
    token_bytes : mapping of int to bytes
        The bytes of every token id in `token_ids`.
    row_errors : mapping of int to str
        Rows that the provider refused, with the reason. Their token ids are all `NO_TOKEN`. With a
        `TooLong`, the caller may ask again with a shorter prompt.
    usage : Usage
        Usage of this call.

    Raises
    ------
    BackendResponseError
        On a positive log-probability, probabilities that sum to more than 1, NaN, a wrong shape,
        values that do not descend, a token that appears twice in a row or has no bytes.
    """

    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    token_bytes: Mapping[int, bytes]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        ids, values = self.token_ids, self.log_probs
        if ids.ndim != 2 or ids.shape != values.shape:
            raise BackendResponseError(
                f"token_ids {ids.shape} and log_probs {values.shape} must be equal and 2-d"
            )
        if ids.dtype != np.int32 or values.dtype != np.float32:
            raise BackendResponseError(
                f"token_ids must be int32 and log_probs float32, got {ids.dtype} and {values.dtype}"
            )
        if ids.size:
            self._check_values()

    def _check_values(self) -> None:
        ids, values = self.token_ids, self.log_probs
        absent = ids == NO_TOKEN
        if np.isnan(values).any():
            self._refuse(np.isnan(values), "a log-probability is NaN")
        if (values > 0).any():
            self._refuse(values > 0, "a log-probability is positive")
        if (absent != np.isneginf(values)).any():
            self._refuse(absent != np.isneginf(values), "NO_TOKEN and -inf must go together")
        rising = values[:, 1:] > values[:, :-1]
        if rising.any():
            self._refuse(rising, "log-probabilities must descend")
        total = np.exp(values.astype(np.float64)).sum(axis=1, keepdims=True)
        if (total > 1 + _SUM_TOLERANCE).any():
            self._refuse(total > 1 + _SUM_TOLERANCE, "probabilities sum to more than 1")
        in_order = np.sort(ids, axis=1)
        twice = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] != NO_TOKEN)
        if twice.any():
            self._refuse(twice, "a token appears twice")
        empty = set(np.flatnonzero(absent.all(axis=1)).tolist())
        if empty - set(self.row_errors):
            row = min(empty - set(self.row_errors))
            raise BackendResponseError(f"answer {row}: no tokens and no reason for it")
        if set(self.row_errors) - empty:
            raise BackendResponseError(
                f"answer {min(set(self.row_errors) - empty)}: both tokens and a reason for none"
            )
        nameless = [token for token in distinct_tokens(ids) if token not in self.token_bytes]
        if nameless:
            raise BackendResponseError(f"token {min(nameless)} has no bytes")

    @classmethod
    def of_checked(
        cls,
        token_ids: NDArray[np.int32],
        log_probs: NDArray[np.float32],
        token_bytes: Mapping[int, bytes],
        row_errors: Mapping[int, str],
        usage: Usage,
    ) -> TokenLogProbs:
        """Return answers whose arrays were checked before, without checking them again."""
        answers = object.__new__(cls)
        vars(answers).update(
            token_ids=token_ids,
            log_probs=log_probs,
            token_bytes=token_bytes,
            row_errors=row_errors,
            usage=usage,
        )
        return answers

    @classmethod
    def of_options(
        cls,
        options: Sequence[Sequence[str]],
        shares: Sequence[NDArray[np.float64] | None],
        row_errors: Mapping[int, str],
        usage: Usage,
    ) -> TokenLogProbs:
        """Return the shares of the options of n questions as answers, the likeliest first.

        Parameters
        ----------
        options : sequence of n sequences of str
            The options of each question.
        shares : sequence of n float64 arrays, or None
            A share above 0 for each option, scaled here to a sum of 1; None for a row without an
            answer.
        row_errors : mapping of int to str
            The reasons for those.
        usage : Usage
            Usage of this call.
        """
        shape = len(options), max(map(len, options), default=0)
        token_ids = np.full(shape, NO_TOKEN, np.int32)
        log_probs = np.full(shape, -np.inf, np.float32)
        names: dict[int, bytes] = {}
        for row, (some, of_row) in enumerate(zip(options, shares, strict=True)):
            if of_row is None:
                continue
            ids = [id_of_option(option) for option in some]
            names.update(
                (token, o.encode("utf-8", "surrogatepass"))
                for token, o in zip(ids, some, strict=True)
            )
            values = np.minimum(np.log(of_row / of_row.sum()), 0.0)
            order = np.argsort(-values, kind="stable")
            token_ids[row, : len(ids)] = np.array(ids, np.int32)[order]
            log_probs[row, : len(ids)] = values[order]
        return cls(token_ids, log_probs, names, row_errors, usage)

    def with_usage(self, usage: Usage) -> TokenLogProbs:
        """Return a copy with another usage; the arrays are not checked again."""
        same = copy.copy(self)
        object.__setattr__(same, "usage", usage)
        return same

    def take_rows(self, rows: NDArray[np.intp]) -> TokenLogProbs:
        """Return the answers of some rows, in the order given, with the usage of all."""
        place = {int(row): new for new, row in enumerate(rows)}
        return TokenLogProbs.of_checked(
            self.token_ids[rows],
            self.log_probs[rows],
            self.token_bytes,
            {place[row]: why for row, why in self.row_errors.items() if row in place},
            self.usage,
        )

    @staticmethod
    def _refuse(where: NDArray[np.bool_], what: str) -> None:
        row = int(np.flatnonzero(where.any(axis=1))[0])
        raise BackendResponseError(f"answer {row}: {what}")

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of m given tokens for n prompts.

    Parameters
    ----------
    log_probs : float32 array of shape (n, m)
        In the order of the token ids that were asked for; NaN rows where the provider refused.
    row_errors : mapping of int to str
        Rows that the provider refused, with the reason.
    usage : Usage
        Usage of this call.
    """

    log_probs: NDArray[np.float32]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        values = self.log_probs
        if values.ndim != 2 or values.dtype != np.float32:
            raise BackendResponseError(
                f"scores must be a 2-d float32 array, got {values.dtype} {values.shape}"
            )
        refused = np.zeros(len(values), bool)
        refused[list(self.row_errors)] = True
        if np.isnan(values[~refused]).any() or (values[~refused] > 0).any():
            raise BackendResponseError("a score is NaN or positive")


@dataclass(frozen=True)
class Draws:
    """Texts sampled from an LM.

    Parameters
    ----------
    texts : list of list of str
        The draws of each prompt; fewer where the provider refused.
    row_errors : mapping of int to str
        Prompts that the provider refused, with the reason.
    usage : Usage
        Usage of this call; each generated token is one forward pass.
    """

    texts: list[list[str]]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def with_usage(self, usage: Usage) -> Draws:
        """Return the same texts with another usage."""
        return replace(self, usage=usage)


DrawParts = Generator[tuple[list[int], Draws], None, None]
"""Draws in parts, as they arrive: the positions of some prompts, and their draws."""


def gather_draws(parts: Iterable[tuple[list[int], Draws]], n: int) -> Draws:
    """Return the parts that arrived for n prompts as one, in order."""
    texts: list[list[str]] = [[] for _ in range(n)]
    row_errors: dict[int, str] = {}
    usage = Usage()
    for where, part in parts:
        for row, drawn in zip(where, part.texts, strict=True):
            texts[row] = drawn
        row_errors.update({where[place]: why for place, why in part.row_errors.items()})
        usage += part.usage
    return Draws(texts, row_errors, usage)


AnswerParts = Generator[tuple[list[int], TokenLogProbs], None, None]
"""Answers in parts, as they arrive: the positions of some prompts, and their answers."""


def gather_parts(
    parts: Iterable[tuple[list[int], TokenLogProbs]], n: int, top_k: int
) -> TokenLogProbs:
    """Return the parts that arrived for n prompts as one answer, in order."""
    ids = np.full((n, top_k), NO_TOKEN, np.int32)
    values = np.full((n, top_k), -np.inf, np.float32)
    token_bytes: dict[int, bytes] = {}
    row_errors: dict[int, str] = {}
    usage = Usage()
    for where, part in parts:
        width = part.token_ids.shape[1]
        ids[where, :width], values[where, :width] = part.token_ids, part.log_probs
        token_bytes.update(part.token_bytes)
        row_errors.update({where[place]: why for place, why in part.row_errors.items()})
        usage += part.usage
    return TokenLogProbs(ids, values, token_bytes, row_errors, usage)


def distinct_tokens(token_ids: NDArray[np.int32]) -> list[int]:
    """Return the token ids that occur, in ascending order and without `NO_TOKEN`."""
    largest = int(token_ids.max(initial=NO_TOKEN))
    if largest >= _MAX_VOCABULARY or token_ids.min(initial=NO_TOKEN) < NO_TOKEN:
        tokens = np.unique(token_ids)
        return list(tokens[tokens != NO_TOKEN].tolist())
    occurs = np.zeros(largest + 2, bool)
    occurs[token_ids.ravel()] = True  # `NO_TOKEN` is at the end
    return list(np.flatnonzero(occurs[:-1]).tolist())


@lru_cache(maxsize=4096)
def id_of_option(option: str) -> int:
    """Return the token id of an option of a question, in [2³⁰, 2³¹), from the SHA-256 of its text.

    The ids of a tokenizer are smaller.
    """
    digest = hashlib.sha256(option.encode("utf-8", "surrogatepass")).digest()
    return _FIRST_OPTION_ID | int.from_bytes(digest[:4], "big") >> 2
