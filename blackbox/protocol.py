"""The backend protocol: `Backend`, and the requests and answers that it exchanges.

A backend runs forward passes of a language model. It implements one method, `Backend.next_token`,
and has two attributes, `identity` and `limits`. This module imports only the package's
errors and images, so that a backend can be written against it alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from json.encoder import encode_basestring_ascii as _json
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blackbox.errors import BackendResponseError, UnservedPromptError
from blackbox.images import Image

__all__ = [
    "NO_TOKEN",
    "AnswerParts",
    "Backend",
    "BackendIdentity",
    "ClosedQuestion",
    "Draws",
    "EmbeddingParts",
    "Embeddings",
    "Limits",
    "Message",
    "RenderedPrompt",
    "TimeEstimate",
    "TokenLogProbs",
    "TokenScores",
    "TooLong",
    "Usage",
    "check_served",
    "gather_embeddings",
    "gather_parts",
    "id_of_option",
    "request_digest",
    "require_images",
]

NO_TOKEN = -1
"""Token id that fills a row of `TokenLogProbs` whose answer was shorter than the others."""

REQUEST_SCHEMA = 1
"""Version of the fields that `request_digest` covers."""

_SUM_TOLERANCE = 1e-3
_MAX_VOCABULARY = 2**22  # token ids below this are marked in a table, and not sorted
_NORM_TOLERANCE = 1e-3
_FIRST_OPTION_ID = 2**30
_FRAME_BYTES, _OPTION_BYTES = 80, 16  # what a request adds to a question, and to each option


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is ``"system"``, ``"user"`` or ``"assistant"``."""

    role: str
    content: str


@dataclass(frozen=True)
class ClosedQuestion:
    """A question with a closed set of options, for an LM that takes questions as they are.

    Parameters
    ----------
    kind : str
        ``"predicate"`` (yes or no), ``"choice"``, or ``"scale"``, whose options are ordered.
    instructions : str
        What is asked.
    options : tuple of str
        The options, in the order in which they are listed.
    """

    kind: str
    instructions: str
    options: tuple[str, ...]

    @property
    def words(self) -> str:
        """The question and its options as one text."""
        return "\n".join([self.instructions, *self.options])

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the question in a request, an upper bound for its tokens."""
        return _n_bytes(self.words) + _FRAME_BYTES + _OPTION_BYTES * len(self.options)


@dataclass(frozen=True)
class RenderedPrompt:
    """A request for one forward pass: a prompt with its text filled in.

    Parameters
    ----------
    text : str or None
        Raw text that the LM continues. None for a chat.
    messages : tuple of Message
        The conversation, for a chat; empty for raw text.
    answer_prefix : str
        Beginning of the assistant's answer, for a chat; the LM continues it.
    after_mask : str or None
        None for a causal LM. For a masked LM the text after the masked token; the backend puts its
        own mask token between `text` and this.
    question : ClosedQuestion or None
        A question about `text`, for an LM that takes questions as they are (`Limits.questions`).
    choices : tuple of str
        The only texts that `generate` should write; a backend may hold the LM to them.
    image : Image or None
        An image, for an LM that takes images (`Limits.images`).
    image_at : int
        Where it stands: the number of characters of `text`, or of the user's message, before it.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    answer_prefix: str = ""
    after_mask: str | None = None
    question: ClosedQuestion | None = None
    choices: tuple[str, ...] = ()
    image: Image | None = None
    image_at: int = 0

    @property
    def masked(self) -> bool:
        """Whether the prompt is for a masked LM."""
        return self.after_mask is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the request as JSON data."""
        data: dict[str, Any] = {
            "text": self.text,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "answer_prefix": self.answer_prefix,
            "after_mask": self.after_mask,
        }
        if self.question is not None:  # without one, a request has the digest it always had
            data["question"] = asdict(self.question) | {"options": list(self.question.options)}
        if self.choices:
            data["choices"] = list(self.choices)
        if self.image is not None:
            data["image"] = {"at": self.image_at, "digest": self.image.digest}
        return data

    def around_image(self, text: str) -> tuple[str, str]:
        """Return `text`, the one in which the image stands, before and after it."""
        return text[: self.image_at], text[self.image_at :]

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all text: an upper bound for its tokens of byte-level tokenizers."""
        total = _n_bytes(self.text or "")
        if self.messages or self.after_mask or self.answer_prefix:  # few requests have one
            parts = (self.answer_prefix, self.after_mask, *(m.content for m in self.messages))
            total += sum(_n_bytes(part) for part in parts if part)
        return total + (self.question.n_bytes if self.question else 0)


@dataclass(frozen=True)
class BackendIdentity:
    """The LM and all settings that can change its answers; never a key, a path or an address.

    Parameters
    ----------
    provider : str
        The backend's name, such as ``"onnx"``.
    endpoint : str
        The kind of interface, such as ``"completions"`` or ``"in-process"``.
    model : str
        The model's name as its provider knows it.
    revision, weights_digest, tokenizer_digest, chat_template_digest : str
        Versions and SHA-256 digests, empty where the provider doesn't report them.
    extra : mapping of str to str
        Request fields and settings that change answers, such as the format of the weights.
    engine : str
        The software that evaluates the model here, with its version, such as ``"vllm 0.32.0"``. It
        is a note and no part of the identity: versions differ in the last digits, as batches do.
    """

    provider: str
    endpoint: str
    model: str
    revision: str = ""
    weights_digest: str = ""
    tokenizer_digest: str = ""
    chat_template_digest: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    engine: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the identity and the engine as JSON data."""
        return asdict(self) | {"extra": dict(self.extra)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackendIdentity:
        """Return the identity that `as_dict` described.

        Raises
        ------
        ValueError
            On an unknown field, or a value that is not text.
        """
        known = {f.name for f in fields(cls)}
        if set(data) - known:
            raise ValueError(f"unknown fields of a backend identity: {sorted(set(data) - known)}")
        extra = data.get("extra", {})
        texts = [value for key, value in data.items() if key != "extra"]
        if not isinstance(extra, Mapping) or not all(
            isinstance(text, str) for text in [*texts, *extra, *extra.values()]
        ):
            raise ValueError("a backend identity holds text only")
        return cls(**dict(data))

    def canonical(self) -> str:
        """Return the JSON of all fields but the engine, over which `digest` is made."""
        return json.dumps(self._compared(), sort_keys=True, ensure_ascii=True)

    def digest(self) -> str:
        """Return the SHA-256 over all fields but the engine, in hexadecimal."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def _compared(self) -> dict[str, Any]:
        return {key: value for key, value in self.as_dict().items() if key != "engine"}

    def differences(self, other: BackendIdentity) -> list[str]:
        """Return one phrase per field in which the two differ, such as ``model 'a' / 'b'``."""
        mine, theirs = self._compared(), other._compared()
        return [
            f"{key} {mine[key]!r} / {theirs[key]!r}" for key in mine if mine[key] != theirs[key]
        ]


@dataclass(frozen=True)
class Limits:
    """The kinds and sizes of requests that a backend can serve, and how it bills them.

    Parameters
    ----------
    max_top_k : int
        Largest `top_k` of `next_token`.
    max_score_ids : int
        Largest number of token ids per call of `score`; 0 where there is no `score`.
    context_length : int
        Context length in tokens.
    deterministic : bool
        Whether the same prompt gets the same answer to the last bit, alone and in any batch.
    raw_text, chat, answer_prefix, mask, questions : bool
        Whether it serves raw text, conversations, conversations with the beginning of an answer,
        prompts for masked LMs, and questions as they are (`RenderedPrompt.question`).
    generates : bool
        Whether it has `generate`.
    counts_tokens : bool
        Whether it has `count_tokens`, by the LM's own tokenizer.
    bytes_per_token : float
        UTF-8 bytes of a text that take one token, by a careful estimate, where no tokenizer counts;
        1 is never exceeded.
    shares_prefixes : bool
        Whether a prefix that several prompts of a call share is evaluated, and paid for, once.
    max_attempts : int
        Largest number of times that a request may be sent, and billed.
    requests_at_a_time : int or None
        Number of requests that a caller should pass in one call; None leaves it to the caller.
    price_share : float
        Share of the list price that is paid, such as 0.5 for a batch endpoint.
    api_host : str
        The host name of a public API, by which list prices are found.
    tokens_written : int
        Tokens that an answer, or a text, writes where fewer were asked for, at most; 0 where
        nothing that is written is billed.
    draws_per_prompt, passes_per_prompt : int
        Texts sampled per answer, and largest number of forward passes per answer: more than 1
        where an LM without log-probabilities is sampled.
    draws_at_once : bool
        Whether all texts sampled from a prompt are one request, whose prompt is paid for once.
    deduplicates : bool
        Whether repeated prompts are paid for once.
    charges_tries : bool
        Whether each try of a request is charged to the account in force before it is sent; see
        `blackbox.spending`.
    embedding_size : int
        Length of the vectors of `embed`; 0 where there is no `embed`.
    languages : tuple of str
        The languages that the LM knows, by their ISO 639 codes; empty where that isn't known.
    images : bool
        Whether prompts may have an image (`RenderedPrompt.image`).
    max_image_side : int
        Pixels of the longest side to which a larger image is resized; 0 where none is resized.
    tokens_per_image, tokens_per_megapixel : float
        Tokens that an image takes, about: so many, and so many per million pixels, as resized.
    """

    max_top_k: int
    max_score_ids: int
    context_length: int
    deterministic: bool
    raw_text: bool = True
    chat: bool = False
    answer_prefix: bool = False
    mask: bool = False
    questions: bool = False
    generates: bool = False
    counts_tokens: bool = False
    bytes_per_token: float = 1.0
    shares_prefixes: bool = False
    max_attempts: int = 1
    requests_at_a_time: int | None = None
    price_share: float = 1.0
    api_host: str = ""
    tokens_written: int = 1
    draws_per_prompt: int = 1
    draws_at_once: bool = False
    passes_per_prompt: int = 1
    deduplicates: bool = False
    charges_tries: bool = False
    embedding_size: int = 0
    languages: tuple[str, ...] = ()
    images: bool = False
    max_image_side: int = 0
    tokens_per_image: float = 0.0
    tokens_per_megapixel: float = 1000.0

    def tokens_of_image(self, prompt: RenderedPrompt) -> int:
        """Return about how many tokens the image of a prompt takes; 0 where there is none."""
        if prompt.image is None:
            return 0
        width, height = prompt.image.size_within(self.max_image_side)
        return math.ceil(
            self.tokens_per_image + self.tokens_per_megapixel * width * height / 1_000_000
        )

    def serves(self, prompt: RenderedPrompt) -> bool:
        """Return whether a prompt of this kind can be served (its length aside)."""
        if prompt.image is not None and not self.images:
            return False
        if prompt.question is not None:
            return self.questions
        if prompt.masked:
            return self.mask
        if prompt.messages:
            return self.chat and (self.answer_prefix or not prompt.answer_prefix)
        return self.raw_text


@dataclass(frozen=True)
class TimeEstimate:
    """About how long requests take.

    Parameters
    ----------
    seconds : float or None
        None where that is unknown.
    source : str
        What the estimate is from, in words; or why there is none.
    """

    seconds: float | None
    source: str


@dataclass(kw_only=True)
class Usage:
    """Usage of an LM: forward passes, tokens, time and cost.

    Parameters
    ----------
    passes_made : int
        Forward passes made.
    passes_from_store : int
        Answers from the cache, which took no forward pass.
    tokens : int
        Tokens of all prompts of the passes made, each counted in full.
    tokens_evaluated : int
        Tokens that the LM evaluated; the rest came out of its prefix cache.
    tokens_least : int
        Tokens that a perfect prefix cache would evaluate: the distinct prefixes of each call; for
        benchmarks of engines.
    tokens_written : int
        Tokens that the LM wrote, where it reports them.
    tokens_cached, tokens_cache_written : int
        Tokens of prompts that an API bills as read from its prefix cache, and as written to it.
    retries : int
        Requests that were sent again.
    seconds_lm : float
        Wall-clock time inside the backend.
    seconds_total : float
        Wall-clock time of the whole call, where it was measured.
    cost : float or None
        US dollars; None where a price is unknown.
    """

    passes_made: int = 0
    passes_from_store: int = 0
    tokens: int = 0
    tokens_evaluated: int = 0
    tokens_least: int = 0
    tokens_written: int = 0
    tokens_cached: int = 0
    tokens_cache_written: int = 0
    retries: int = 0
    seconds_lm: float = 0.0
    seconds_total: float = 0.0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        sums = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(Usage)
            if f.name != "cost"
        }
        known = self.cost is not None and other.cost is not None
        cost = (self.cost or 0.0) + (other.cost or 0.0) if known else None
        return Usage(**sums, cost=cost)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON data for users: seconds to the millisecond, no inner counts."""
        data = asdict(self)
        for name in ("tokens_least", "tokens_written", "tokens_cached", "tokens_cache_written"):
            del data[name]
        return data | {name: round(data[name], 3) for name in ("seconds_lm", "seconds_total")}


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
        The draws of each prompt; none where the provider refused.
    row_errors : mapping of int to str
        Prompts that the provider refused, with the reason.
    usage : Usage
        Usage of this call; each generated token is one forward pass.
    """

    texts: list[list[str]]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Embeddings:
    """Embedding vectors of n texts.

    Parameters
    ----------
    vectors : float32 array of shape (n, d)
        Vectors of norm 1; NaN rows where the provider refused.
    row_errors : mapping of int to str
        Rows that the provider refused, with the reason.
    usage : Usage
        Usage of this call; each text is one forward pass.

    Raises
    ------
    BackendResponseError
        On a wrong shape, NaN, or a norm other than 1 in a row that was not refused.
    """

    vectors: NDArray[np.float32]
    row_errors: Mapping[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        values = self.vectors
        if values.ndim != 2 or values.dtype != np.float32:
            raise BackendResponseError(
                f"embeddings must be a 2-d float32 array, got {values.dtype} {values.shape}"
            )
        answered = np.ones(len(values), bool)
        answered[list(self.row_errors)] = False
        squares = np.einsum("nd,nd->n", values, values)
        wrong = answered & ~(np.abs(np.sqrt(squares) - 1) <= _NORM_TOLERANCE)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise BackendResponseError(
                f"embedding {row}: the norm is {math.sqrt(squares[row]):.3g} and not 1"
            )

    @classmethod
    def of(
        cls,
        vectors: ArrayLike,
        row_errors: Mapping[int, str] | None = None,
        usage: Usage | None = None,
    ) -> Embeddings:
        """Return embeddings of any norm, normalised.

        Parameters
        ----------
        vectors : array-like of shape (n, d)
            Vectors of any norm above 0; the values of refused rows don't matter.
        row_errors : mapping of int to str, optional
            Rows that the provider refused, with the reason.
        usage : Usage, optional
            By default, one forward pass per row that was not refused.

        Raises
        ------
        BackendResponseError
            If a row that was not refused is zero or not finite, or the shape is wrong.
        """
        try:
            values = np.array(vectors, np.float64)
        except (TypeError, ValueError) as error:
            raise BackendResponseError("embeddings are not numbers of one length") from error
        if values.ndim != 2:
            raise BackendResponseError(f"embeddings must be 2-d, got shape {values.shape}")
        errors = dict(row_errors or {})
        values[list(errors)] = np.nan
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            values /= np.linalg.norm(values, axis=1, keepdims=True)
        passes = Usage(passes_made=len(values) - len(errors)) if usage is None else usage
        return cls(values.astype(np.float32), errors, passes)

    def with_usage(self, usage: Usage) -> Embeddings:
        """Return a copy with another usage; the vectors are not checked again."""
        same = copy.copy(self)
        object.__setattr__(same, "usage", usage)
        return same

    def __len__(self) -> int:
        return len(self.vectors)


@runtime_checkable
class Backend(Protocol):
    """The members that an object needs to be a backend, which runs forward passes.

    Optional abilities are methods of `blackbox.backend.BaseBackend`, each with a default.
    """

    @property
    def identity(self) -> BackendIdentity:
        """The LM and all settings that can change an answer."""

    @property
    def limits(self) -> Limits:
        """The kinds and sizes of requests that can be served."""

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the `top_k` most likely next (or masked) tokens of each prompt, in order.

        Callers pass all their prompts in one call: the backend orders and batches them.
        """


AnswerParts = Generator[tuple[list[int], TokenLogProbs], None, None]
"""Answers in parts, as they arrive: the positions of some prompts, and their answers."""


EmbeddingParts = Generator[tuple[list[int], Embeddings], None, None]
"""Embeddings in parts, as they arrive: the positions of some texts, and their vectors."""


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


def gather_embeddings(
    parts: Iterable[tuple[list[int], Embeddings]], n: int, size: int
) -> Embeddings:
    """Return the parts that arrived for n texts as one, in order; `size` is the vectors' length.

    Raises
    ------
    BackendResponseError
        If vectors have another length, or a text got none and no reason for it.
    """
    vectors = np.full((n, size), np.nan, np.float32)
    row_errors: dict[int, str] = {}
    usage = Usage()
    for where, part in parts:
        if part.vectors.shape != (len(where), size):
            raise BackendResponseError(
                f"embeddings of shape {part.vectors.shape}, expected {(len(where), size)}"
            )
        vectors[where] = part.vectors
        row_errors.update({where[place]: why for place, why in part.row_errors.items()})
        usage += part.usage
    return Embeddings(vectors, row_errors, usage)


def check_served(limits: Limits, prompts: Sequence[RenderedPrompt], top_k: int = 0) -> None:
    """Raise if a backend can't serve the prompts, before anything is spent.

    Raises
    ------
    UnservedPromptError
        If `top_k` is over the limit or one of the prompts is of a kind that isn't served.
    """
    if top_k > limits.max_top_k:
        raise UnservedPromptError(
            f"top_k={top_k} is more than this backend gives ({limits.max_top_k}); lower top_k"
        )
    for number, prompt in enumerate(prompts):
        if not limits.serves(prompt):
            if prompt.image is not None:
                require_images(limits)
            kind = "masked" if prompt.masked else "chat" if prompt.messages else "raw text"
            begun = " whose answer is begun (prefill)" if prompt.answer_prefix else ""
            only = ", only questions (<predicate>, <choice>, <scale>)" if limits.questions else ""
            raise UnservedPromptError(
                f"request {number}: this backend serves no {kind}{begun}{only}"
            )


def require_images(limits: Limits) -> None:
    """Raise `UnservedPromptError` if a backend takes no images."""
    if not limits.images:
        raise UnservedPromptError(
            "this backend takes no images: use a model that does, and of an API say that it does "
            "(backend option images); docs/images.md has both"
        )


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


def request_digest(identity: BackendIdentity, prompt: RenderedPrompt, asked: Any) -> str:
    """Return the SHA-256 of a request: the LM's identity, the rendered prompt, and the arguments.

    `asked` holds the arguments as JSON data, such as ``{"top_k": 200}``.
    """
    return request_hasher(identity, asked)(prompt).hex()


def request_hasher(identity: BackendIdentity, asked: Any) -> Callable[[RenderedPrompt], bytes]:
    """Return a function that computes `request_digest` of prompts, as 32 bytes.

    The digest is of canonical JSON: sorted keys, ASCII. What the requests share is hashed once.
    """
    begun = hashlib.sha256(
        f'{{"asked": {json.dumps(asked, sort_keys=True)}, "identity": {_json(identity.digest())}, '
        '"prompt": '.encode()
    )

    def digest(prompt: RenderedPrompt) -> bytes:
        state = begun.copy()
        state.update(f'{_json_of(prompt)}, "schema": {REQUEST_SCHEMA}}}'.encode())
        return state.digest()

    return digest


def _json_of(prompt: RenderedPrompt) -> str:
    """Return `RenderedPrompt.as_dict` as canonical JSON; `json.dumps` takes ten times as long."""
    turns = ""
    if prompt.messages:
        turns = ", ".join(
            f'{{"content": {_json(turn.content)}, "role": {_json(turn.role)}}}'
            for turn in prompt.messages
        )
    after = "null" if prompt.after_mask is None else _json(prompt.after_mask)
    text = "null" if prompt.text is None else _json(prompt.text)
    asked = "" if prompt.question is None else f'"question": {_json_of_question(prompt.question)}, '
    image = ""
    if prompt.image is not None:  # without one, a request has the digest it always had
        image = f'"image": {{"at": {prompt.image_at}, "digest": "{prompt.image.digest}"}}, '
    return (
        f'{{"after_mask": {after}, "answer_prefix": {_json(prompt.answer_prefix)}, '
        f'{image}"messages": [{turns}], {asked}"text": {text}}}'
    )


def _json_of_question(question: ClosedQuestion) -> str:
    options = ", ".join(map(_json, question.options))
    return (
        f'{{"instructions": {_json(question.instructions)}, "kind": {_json(question.kind)}, '
        f'"options": [{options}]}}'
    )


def _n_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
