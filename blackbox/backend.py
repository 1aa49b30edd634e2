"""Base classes of backends: `BaseBackend` for an engine, `WrappedBackend` for a wrapper.

A backend must have `identity`, `limits`, and `next_token` or `embed`. Every other ability is a
method of `BaseBackend` with a default, so the package never tests whether a method exists; `Limits`
tells which of them a backend supports. A wrapper overrides what it changes.

`as_backend` adapts any object that has these members, whatever its class.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

from blackbox.errors import BackendResponseError, UnservedPromptError
from blackbox.plurals import counted
from blackbox.protocol import (
    AnswerParts,
    Backend,
    BackendIdentity,
    DrawParts,
    Draws,
    EmbeddingParts,
    Embeddings,
    Limits,
    RenderedPrompt,
    TimeEstimate,
    TokenLogProbs,
    TokenScores,
    Usage,
    gather_embeddings,
    gather_parts,
)

__all__ = ["BaseBackend", "WrappedBackend", "as_backend", "estimate_tokens"]

_PIECES = re.compile(r"[^\W\d_]+|\d{1,3}|[^\w\s]+|_+|\n+")
_SENTENCE_END = re.compile(r"(?<=[.!?\n])\s+")
_COMMON = re.compile(
    r"\b(?:a|and|are|as|at|be|by|can|do|does|for|from|have|how|i|is|it|its|my|not|of|or|that|the"
    r"|their|this|to|what|when|where|which|who|with|you|your)\b",
    re.IGNORECASE,
)
_COMMON_SHARE = 0.1  # of the words of an English sentence, at least
# bytes of a word that is one token, and tokens per further byte: of English, of other languages in
# Latin letters, and of other scripts
_ENGLISH, _LATIN, _OTHER = (7, 0.13), (4, 0.2), (5, 0.22)
_LAST_LATIN = "\u024f"

_BYTES_PER_TOKEN = 4  # of a question in JSON
_CALL = 64  # prompts per call, where a backend has no stream of answers


class BaseBackend:
    """Base class of a backend: `identity`, `limits` and `next_token`, and defaults for the rest.

    A subclass implements `next_token` or `iter_next_token`; each has a default in terms of the
    other. One that makes embeddings implements `embed` or `iter_embed` in the same way. Copies and
    scikit-learn's clones of a backend are the backend itself, as an engine can't be copied.

    Attributes
    ----------
    identity : BackendIdentity
        The LM and all settings that can change an answer.
    limits : Limits
        The kinds and sizes of requests that the backend can serve.
    usage : Usage
        Passes, tokens and cost so far, where the backend counts them (a store or a budget does).
    environment : tuple of str
        Names of environment variables that the class reads: when their values change,
        `backends.load` makes a new instance.
    context_option : str
        The name of the option that sets the context length, if there is one.
    image_option : str
        The name of the option that says that images will be asked about, if it needs to be said.
    survives_fork : bool
        Whether it can be used in a process that was forked after it was made.
    """

    environment: ClassVar[tuple[str, ...]] = ()
    context_option: ClassVar[str] = ""
    image_option: ClassVar[str] = ""
    survives_fork: ClassVar[bool] = True

    identity: BackendIdentity
    limits: Limits

    @property
    def usage(self) -> Usage:
        """Passes, tokens and cost so far; zero where the backend does not count them."""
        return Usage()

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the `top_k` most likely next tokens of each prompt, in order.

        See `blackbox.protocol.Backend`.
        """
        return gather_parts(self.iter_next_token(prompts, top_k), len(prompts), top_k)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the answers of `next_token` in parts, as they arrive.

        Each part holds the positions of its prompts and their answers. Parts come in any order;
        together they cover every prompt once. Closing the iterator cancels requests that have not
        begun.
        """
        if type(self).next_token is BaseBackend.next_token:
            raise NotImplementedError(f"{type(self).__name__} must implement next_token")
        for start in range(0, len(prompts), _CALL):
            some = prompts[start : start + _CALL]
            yield list(range(start, start + len(some))), self.next_token(some, top_k)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the log-probabilities of `token_ids` as the next (or masked) token.

        Supported where `Limits.max_score_ids` is above 0; at most that many ids per call.
        """
        raise UnservedPromptError(f"{self!r} can't score given tokens")

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Draws:
        """Return `n` sampled continuations of each prompt: numbers `first` to ``first + n - 1``.

        Supported where `Limits.generates`. A draw depends on its prompt, `max_tokens`,
        `temperature`, `seed` and its number, so that more draws can be added to earlier ones.
        """
        raise UnservedPromptError(f"{self!r} can't write texts")

    def iter_generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> DrawParts:
        """Yield the draws of `generate` in parts, as they arrive; see `iter_next_token`."""
        yield (
            list(range(len(prompts))),
            self.generate(
                prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed, first=first
            ),
        )

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return the embedding vector of each text, of norm 1, in order.

        Supported where `Limits.embedding_size` is above 0. A text that is too long is truncated at
        its end, as the model's authors do.
        """
        return gather_embeddings(self.iter_embed(texts), len(texts), self.limits.embedding_size)

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield the vectors of `embed` in parts, as they arrive; see `iter_next_token`."""
        if type(self).embed is BaseBackend.embed:
            raise UnservedPromptError(f"{self!r} makes no embeddings")
        for start in range(0, len(texts), _CALL):
            some = texts[start : start + _CALL]
            yield list(range(start, start + len(some))), self.embed(some)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt in full.

        Supported where `Limits.counts_tokens`; elsewhere a long text is truncated by its bytes.
        """
        raise UnservedPromptError(f"{self!r} has no tokenizer")

    def estimate_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return about how many tokens each prompt has as it is sent: what will be paid.

        Counted where there is a tokenizer, and else estimated from the words.
        """
        if self.limits.counts_tokens:
            return self.count_tokens(prompts)
        limits = self.limits
        return [
            round(sum(map(estimate_tokens, _contents(one))) + _of_question(one))
            + limits.tokens_of_image(one)
            for one in prompts
        ]

    def estimate_seconds(
        self, calls: Sequence[Sequence[RenderedPrompt]], n_tokens: float
    ) -> TimeEstimate:
        """Return about how long calls of so many tokens take, without a request.

        Each call is one of `iter_next_token`, `generate` (with a prompt as often as it is drawn
        from) or `iter_embed`. It is asked where passes may cost money: free ones are measured.
        """
        return TimeEstimate(
            None, "this LM may cost money, so it was not probed, and its backend has no estimate"
        )

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int] | None]:
        """Return a prompt as it is sent, and its token ids or None where they are unknown."""
        turns = [f"<{turn.role}> {turn.content}" for turn in prompt.messages]
        asked = prompt.question.words if prompt.question else ""
        image = f"<image {prompt.image.digest[:12]}>" if prompt.image else ""
        parts = [image, *turns, prompt.text or "", asked, prompt.answer_prefix]
        return "\n".join(parts).strip(), None

    def describe(self) -> dict[str, Any]:
        """Return the results of probing the endpoint, as JSON data; empty where none is needed."""
        return {}

    def describe_context(self) -> str:
        """Return the context length in words, with the option that changes it."""
        words = f"{self.limits.context_length} tokens"
        option = self.context_option
        return f"{words}; --backend-option {option}=N changes that" if option else words

    def check(self) -> bool:
        """Return whether the LM is known to answer, without a forward pass.

        False where that is unknown.

        Raises
        ------
        BackendError
            If the LM is known to fail.
        """
        return False

    def finish(self) -> bool:
        """Stop sending new requests; return whether calls end with the requests in flight.

        False where the backend does not support it, and the caller has to stop by itself.
        """
        return False

    def close(self) -> None:
        """Release the engine; a later call may fail."""

    def caches_answers(self) -> bool:
        """Return whether a store around the LM keeps its answers just now.

        True where there is no store, as nothing is lost that was to be kept.
        """
        return True

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows whose answers are cached, so that they need no forward pass."""
        return []

    def known_draws(self, prompts: Sequence[RenderedPrompt], n: int, **asked: Any) -> list[int]:
        """Return the rows whose first `n` draws are cached; `asked` as for `generate`."""
        return []

    def known_embedding(self) -> tuple[str, Embeddings] | None:
        """Return a text and its vector that are known anyway, by which a store knows a model again.

        None where the identity says enough, as it does of weights on this machine.
        """
        return None

    def known_embeddings(self, texts: Sequence[str]) -> list[int]:
        """Return the rows whose vectors are cached."""
        return []

    def wrap_lm(self, wrap: Callable[[BaseBackend], BaseBackend]) -> BaseBackend:
        """Return this backend with `wrap` applied to the part that makes billed requests.

        That part is the backend itself, or the one that it calls.
        """
        return wrap(self)

    def __sklearn_clone__(self) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class WrappedBackend(BaseBackend):
    """Base class of a backend around another one: everything not overridden is passed on.

    Parameters
    ----------
    backend : BaseBackend
        The wrapped backend.
    """

    def __init__(self, backend: BaseBackend) -> None:
        self.backend = backend

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """The identity of the wrapped backend."""
        return self.backend.identity

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The limits of the wrapped backend."""
        return self.backend.limits

    @property
    def usage(self) -> Usage:
        """The usage of the wrapped backend."""
        return self.backend.usage

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the answers of the wrapped backend."""
        return self.backend.iter_next_token(prompts, top_k)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the scores of the wrapped backend."""
        return self.backend.score(prompts, token_ids)

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Draws:
        """Return the draws of the wrapped backend."""
        return self.backend.generate(
            prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed, first=first
        )

    def iter_generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> DrawParts:
        """Yield the draws of the wrapped backend, or those of a wrapper's own `generate`."""
        is_own = type(self).generate is not WrappedBackend.generate
        draws = super().iter_generate if is_own else self.backend.iter_generate
        return draws(
            prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed, first=first
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield the vectors of the wrapped backend."""
        return self.backend.iter_embed(texts)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the token counts of the wrapped backend."""
        return self.backend.count_tokens(prompts)

    def estimate_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the token estimates of the wrapped backend."""
        return self.backend.estimate_tokens(prompts)

    def estimate_seconds(
        self, calls: Sequence[Sequence[RenderedPrompt]], n_tokens: float
    ) -> TimeEstimate:
        """Return the time estimate of the wrapped backend."""
        return self.backend.estimate_seconds(calls, n_tokens)

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int] | None]:
        """Return the prompt as the wrapped backend sends it, and its token ids."""
        return self.backend.show(prompt)

    def describe(self) -> dict[str, Any]:
        """Return the probe results of the wrapped backend."""
        return self.backend.describe()

    def describe_context(self) -> str:
        """Return the context length of the wrapped backend in words."""
        return self.backend.describe_context()

    def check(self) -> bool:
        """Return whether the wrapped LM is known to answer."""
        return self.backend.check()

    def finish(self) -> bool:
        """Stop the wrapped backend from sending new requests."""
        return self.backend.finish()

    def close(self) -> None:
        """Release the wrapped engine."""
        self.backend.close()

    def caches_answers(self) -> bool:
        """Return whether the store around the LM inside keeps its answers."""
        return self.backend.caches_answers()

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows whose answers the wrapped backend has cached."""
        return self.backend.known_rows(prompts, top_k)

    def known_draws(self, prompts: Sequence[RenderedPrompt], n: int, **asked: Any) -> list[int]:
        """Return the rows whose draws the wrapped backend has cached."""
        return self.backend.known_draws(prompts, n, **asked)

    def known_embedding(self) -> tuple[str, Embeddings] | None:
        """Return what is known of the wrapped backend."""
        return self.backend.known_embedding()

    def known_embeddings(self, texts: Sequence[str]) -> list[int]:
        """Return the rows whose vectors the wrapped backend has cached."""
        return self.backend.known_embeddings(texts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r})"


class _DuckTyped(BaseBackend):
    """Adapter of a backend without the base class; optional methods are looked up by name."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._optional = [name for name in _OPTIONAL if hasattr(backend, name)]
        for name in self._optional:
            setattr(self, name, getattr(backend, name))

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """The identity of the adapted backend."""
        return self.backend.identity

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The limits of the adapted backend, restricted to the methods that it has."""
        own = self.backend.limits
        return replace(
            own,
            generates="generate" in self._optional,
            counts_tokens="count_tokens" in self._optional,
            max_score_ids=own.max_score_ids if "score" in self._optional else 0,
            embedding_size=own.embedding_size if hasattr(self.backend, "embed") else 0,
        )

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the answers of the adapted backend."""
        if not hasattr(self.backend, "next_token"):
            raise UnservedPromptError(f"{self!r} makes embeddings only")
        return self.backend.next_token(prompts, top_k)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the answers as they arrive, or call by call where it has no such method."""
        yield from getattr(self.backend, "iter_next_token", super().iter_next_token)(prompts, top_k)

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Return the vectors of the adapted backend, which may return a plain array of any norm."""
        if not hasattr(self.backend, "embed"):
            raise UnservedPromptError(f"{self!r} makes no embeddings")
        made = self.backend.embed(texts)
        vectors = made if isinstance(made, Embeddings) else Embeddings.of(made)
        if len(vectors) != len(texts):
            raise BackendResponseError(
                f"{counted(len(vectors), 'embedding')} of {counted(len(texts), 'text')}"
            )
        return vectors

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield the vectors as they arrive, or call by call where it has no such method."""
        yield from getattr(self.backend, "iter_embed", super().iter_embed)(texts)

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return as_backend, (self.backend,)

    def __repr__(self) -> str:
        return repr(self.backend)


_OPTIONAL = (
    "score",
    "generate",
    "count_tokens",
    "estimate_seconds",
    "show",
    "describe",
    "check",
    "finish",
    "close",
    "known_rows",
    "known_draws",
    "known_embeddings",
)


_ABSENT = object()


def _has(backend: object, name: str) -> bool:
    """Whether an object has an attribute; a property isn't run, as it may ask an engine."""
    return inspect.getattr_static(backend, name, _ABSENT) is not _ABSENT or (
        hasattr(type(backend), "__getattr__") and hasattr(backend, name)
    )


def as_backend(backend: Backend) -> BaseBackend:
    """Return a backend as a `BaseBackend`: itself, or an adapter around a duck-typed one.

    Raises
    ------
    TypeError
        If it has no `identity`, `limits`, and `next_token` or `embed`, or is a class.
    """
    if isinstance(backend, BaseBackend):
        return backend
    complete = (
        _has(backend, "identity")
        and _has(backend, "limits")
        and (_has(backend, "next_token") or _has(backend, "embed"))
    )
    if isinstance(backend, type) or not complete:
        raise TypeError(
            "backend must be a name or an object with identity, limits and next_token (or embed), "
            f"got {type(backend).__name__}"
        )
    return _DuckTyped(backend)


def estimate_tokens(text: str) -> float:
    """Return about how many tokens a text has, by its words.

    Most words of English are one token, and many of other languages are several. German, French
    and Spanish come out at 0.89 to 1.12 of what the tokenizers of current LMs count; in other
    scripts these differ by more than a factor of two (`python -m eval.perf.plan` has figures).
    """
    total = 0.0
    for sentence in _SENTENCE_END.split(text):
        pieces = _PIECES.findall(sentence)
        words = [piece for piece in pieces if piece[0].isalpha()]
        is_english = len(_COMMON.findall(sentence)) >= _COMMON_SHARE * len(words)
        for word in words:
            if word.isascii() and is_english:
                whole, per_byte = _ENGLISH
            else:
                whole, per_byte = _LATIN if max(word) <= _LAST_LATIN else _OTHER
            size = len(word.encode("utf-8", "surrogatepass"))
            total += max(0, size - whole) * per_byte
        total += len(pieces)
    return total


def _contents(prompt: RenderedPrompt) -> list[str]:
    """Return the texts of a prompt, on both sides of the answer."""
    return [
        *(message.content for message in prompt.messages),
        prompt.text or "",
        prompt.answer_prefix,
        prompt.after_mask or "",
    ]


def _of_question(prompt: RenderedPrompt) -> float:
    """Return about how many tokens the question of a prompt has, its options included."""
    return 0.0 if prompt.question is None else prompt.question.n_bytes / _BYTES_PER_TOKEN
