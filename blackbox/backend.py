"""Base classes of backends: `BaseBackend` for an engine, `WrappedBackend` for what wraps one.

A backend has to have `identity`, `limits` and `next_token`. Everything else that the package may
ask of it is a method of `BaseBackend` with a default, so the core calls it without looking whether
it is there; what a default can't do, `Limits` says. A wrapper overrides what it changes.

`as_backend` makes a backend of any object that has the required three, whatever its class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

from blackbox.errors import UnservedPromptError
from blackbox.protocol import (
    AnswerParts,
    Backend,
    BackendIdentity,
    Draws,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    gather_parts,
)

__all__ = ["BaseBackend", "WrappedBackend", "as_backend"]

_CALL = 64  # prompts of one call, where a backend has no stream of answers


class BaseBackend:
    """Base class of a backend: `identity`, `limits` and `next_token`, and defaults for the rest.

    A subclass implements `next_token` or `iter_next_token`; each has a default in terms of the
    other. Copies and scikit-learn's clones of a backend are the backend itself, as an engine can't
    be copied.

    Attributes
    ----------
    identity : BackendIdentity
        Everything that can change an answer.
    limits : Limits
        What can be served, and how.
    usage : Usage
        What was used so far, where the backend keeps account (a store or a budget does).
    environment : tuple of str
        Names of environment variables that the class reads: with other values
        `backends.load` makes another instance.
    """

    environment: ClassVar[tuple[str, ...]] = ()

    identity: BackendIdentity
    limits: Limits

    @property
    def usage(self) -> Usage:
        """What was used so far; nothing where nobody keeps account."""
        return Usage()

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the `top_k` most likely next tokens of each prompt, in order.

        See `blackbox.protocol.Backend`.
        """
        return gather_parts(self.iter_next_token(prompts, top_k), len(prompts), top_k)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the answers of `next_token` in parts, as they come.

        Each part is the positions of its prompts, and their answers. Parts come in any order;
        together they cover every prompt once. Closing the iterator stops what has not begun.
        """
        if type(self).next_token is BaseBackend.next_token:
            raise NotImplementedError(f"{type(self).__name__} must implement next_token")
        for start in range(0, len(prompts), _CALL):
            some = prompts[start : start + _CALL]
            yield list(range(start, start + len(some))), self.next_token(some, top_k)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the log-probabilities of `token_ids` as the next (or masked) token.

        Only where `Limits.max_score_ids` is above 0; at most that many ids per call.
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
        """Return the draws number `first` to ``first + n - 1`` of each prompt's continuation.

        Only where `Limits.generates`. A draw depends on its prompt, `max_tokens`, `temperature`,
        `seed` and its number, so that more draws can be added to earlier ones.
        """
        raise UnservedPromptError(f"{self!r} can't write texts")

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt in full.

        Only where `Limits.counts_tokens`; elsewhere a long text is truncated by its bytes.
        """
        raise UnservedPromptError(f"{self!r} has no tokenizer")

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int] | None]:
        """Return a prompt as it is sent, and its token ids where they are known."""
        turns = [f"<{turn.role}> {turn.content}" for turn in prompt.messages]
        return "\n".join([*turns, prompt.text or "", prompt.answer_prefix]).strip(), None

    def describe(self) -> dict[str, Any]:
        """Return what a probe of the endpoint found, as JSON data; empty where none is needed."""
        return {}

    def check(self) -> bool:
        """Return whether the LM is known to answer, found out without a forward pass.

        False where that can't be known.

        Raises
        ------
        BackendError
            If the LM is known to fail.
        """
        return False

    def finish(self) -> bool:
        """Begin no new request; return whether calls under way end with what is under way.

        False where the backend can't do so, and the caller has to stop by itself.
        """
        return False

    def close(self) -> None:
        """Release the engine; a later call may fail."""

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows whose answers need no forward pass, as a store around the LM has them."""
        return []

    def known_draws(self, prompts: Sequence[RenderedPrompt], n: int, **asked: Any) -> list[int]:
        """Return the rows whose first `n` draws need no forward pass; `asked` as for `generate`."""
        return []

    def wrap_lm(self, wrap: Callable[[BaseBackend], BaseBackend]) -> BaseBackend:
        """Return the same with `wrap` applied to what is paid for.

        That is the backend itself, or the one that it asks.
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
    """A backend around another one, which does all that the subclass doesn't do itself.

    Parameters
    ----------
    backend : BaseBackend
        The backend inside.
    """

    def __init__(self, backend: BaseBackend) -> None:
        self.backend = backend

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """That of the backend inside."""
        return self.backend.identity

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """Those of the backend inside."""
        return self.backend.limits

    @property
    def usage(self) -> Usage:
        """That of the backend inside."""
        return self.backend.usage

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield the answers of the backend inside."""
        return self.backend.iter_next_token(prompts, top_k)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return the scores of the backend inside."""
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
        """Return the draws of the backend inside."""
        return self.backend.generate(
            prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed, first=first
        )

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the counts of the backend inside."""
        return self.backend.count_tokens(prompts)

    def show(self, prompt: RenderedPrompt) -> tuple[str, list[int] | None]:
        """Return the prompt as the backend inside sends it."""
        return self.backend.show(prompt)

    def describe(self) -> dict[str, Any]:
        """Return what the backend inside found."""
        return self.backend.describe()

    def check(self) -> bool:
        """Return whether the LM inside is known to answer."""
        return self.backend.check()

    def finish(self) -> bool:
        """Let the backend inside begin no new request."""
        return self.backend.finish()

    def close(self) -> None:
        """Release the engine inside."""
        self.backend.close()

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows that the backend inside knows."""
        return self.backend.known_rows(prompts, top_k)

    def known_draws(self, prompts: Sequence[RenderedPrompt], n: int, **asked: Any) -> list[int]:
        """Return the rows whose draws the backend inside knows."""
        return self.backend.known_draws(prompts, n, **asked)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r})"


class _DuckTyped(BaseBackend):
    """A backend that doesn't inherit from `BaseBackend`; its optional methods are found by name."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._there = [name for name in _OPTIONAL if hasattr(backend, name)]
        for name in self._there:
            setattr(self, name, getattr(backend, name))

    @cached_property
    def identity(self) -> BackendIdentity:  # type: ignore[override]
        """Its own."""
        return self.backend.identity

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """Its own, with what its methods show that it can."""
        own = self.backend.limits
        return replace(
            own,
            generates="generate" in self._there,
            counts_tokens="count_tokens" in self._there,
            max_score_ids=own.max_score_ids if "score" in self._there else 0,
        )

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return its answers."""
        return self.backend.next_token(prompts, top_k)

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield its answers as they come, or call by call where it has no such method."""
        yield from getattr(self.backend, "iter_next_token", super().iter_next_token)(prompts, top_k)

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return as_backend, (self.backend,)

    def __repr__(self) -> str:
        return repr(self.backend)


_OPTIONAL = (
    "score",
    "generate",
    "count_tokens",
    "show",
    "describe",
    "check",
    "finish",
    "close",
    "known_rows",
    "known_draws",
)


def as_backend(backend: Backend) -> BaseBackend:
    """Return a backend as a `BaseBackend`: itself, or an adapter around a duck-typed one.

    Raises
    ------
    TypeError
        If it has no `identity`, `limits` and `next_token`, or is a class.
    """
    if isinstance(backend, BaseBackend):
        return backend
    if isinstance(backend, type) or not isinstance(backend, Backend):
        raise TypeError(
            "backend must be a name or an object with identity, limits and next_token, "
            f"got {type(backend).__name__}"
        )
    return _DuckTyped(backend)
