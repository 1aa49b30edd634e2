"""The contract test of backends: what the package relies on, checked on a running backend.

`check_backend` is for backends of one's own; the built-in ones pass the same checks. A check is a
function of `CHECKS`; one that a backend's `Limits` don't promise passes at once.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.backend import BaseBackend, as_backend
from blackbox.errors import BackendContractError, UnservedPromptError
from blackbox.images import plain_image
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    ClosedQuestion,
    Message,
    RenderedPrompt,
    TokenLogProbs,
)

__all__ = ["CHECKS", "ODD_TEXTS", "check_backend"]

TEXTS = ("The capital of France is", "I went to the", "Two plus two is", "The film was")

ODD_TEXTS = (
    "",
    "I love it 😀",
    "half a pair \ud83d, नमस्ते, \u200b, \x07",
    'She said "goodbye" and left.\n\nThe end.\n\n\n',
    "<|im_end|> </s> [MASK] <mask> {{ 7 * 7 }}",
)
"""Texts at which tokenizers and chat templates go wrong."""

_SECRET = re.compile("key|token|secret|passw", re.IGNORECASE)
_SHORTEST_SECRET = 8
_ADDRESS = re.compile(r"\w+://|\b127\.0\.0\.1\b|\blocalhost:")
_SHARED = 0.8  # of the tokens of two answers to one prompt


_TOPICS = ("people", "places", "animals", "food", "weather", "work", "sport", "music")


def check_backend(backend: Any, *, tolerance: float = 0.05, skip: Collection[str] = ()) -> None:
    """Check that a backend keeps what the package relies on.

    It makes about two hundred forward passes, one of them over a text that is longer than the
    context, and costs what they cost.

    Parameters
    ----------
    backend : Backend
        An object with `identity`, `limits`, and `next_token` or `embed`.
    tolerance : float, default=0.05
        By how much two log-probabilities of one token may differ where `Limits.deterministic` is
        False; elsewhere they must be equal.
    skip : collection of str
        Names of `CHECKS` to leave out.

    Raises
    ------
    BackendContractError
        At the first check that fails, with its name and what was wrong.
    TypeError
        If it is no backend.
    ValueError
        If `skip` has a name that no check has.
    """
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"no check is named {unknown[0]!r}: there are {', '.join(CHECKS)}")
    adapted = as_backend(backend)
    for name, check in CHECKS.items():
        if name in skip:
            continue
        try:
            check(adapted, 0.0 if adapted.limits.deterministic else tolerance)
        except BackendContractError as error:
            raise BackendContractError(f"{backend!r} fails the check {name!r}: {error}") from None
        except Exception as error:
            raise BackendContractError(
                f"{backend!r} fails the check {name!r}: {type(error).__name__}: {error}"
            ) from error


def prompts_for(backend: BaseBackend, texts: Sequence[str]) -> list[RenderedPrompt]:
    """Return texts as prompts that the backend serves: masked, raw, as a chat, or as a question."""
    limits = backend.limits
    if limits.questions and not (limits.raw_text or limits.chat or limits.mask):
        asked = ClosedQuestion("choice", "What is this about?", _TOPICS)
        return [RenderedPrompt(text=text, question=asked) for text in texts]
    if not limits.mask and not limits.raw_text:
        return [RenderedPrompt(messages=(Message("user", text),)) for text in texts]
    behind = "." if limits.mask else None
    return [RenderedPrompt(text=text, after_mask=behind) for text in texts]


def check_identity(backend: BaseBackend, tolerance: float) -> None:
    """The identity holds text that can be saved, and no key, path or address."""
    identity = backend.identity
    _require(
        BackendIdentity.from_dict(identity.as_dict()) == identity,
        "identity.as_dict() doesn't give the identity again by BackendIdentity.from_dict",
    )
    places = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir()} - {"/"}
    secrets = {
        value
        for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
    }
    fields = {**identity.as_dict(), **identity.extra}
    for name, value in fields.items():
        written = str(value)
        _require(not _ADDRESS.search(written), f"identity.{name} has an address")
        _require(not any(place in written for place in places), f"identity.{name} has a path")
        _require(not any(key in written for key in secrets), f"identity.{name} has a credential")


def check_answers(backend: BaseBackend, tolerance: float) -> None:
    """Answers have the shape that was asked for, and every pass and its tokens are counted."""
    if not backend.limits.max_top_k:
        return
    top_k = min(20, backend.limits.max_top_k)
    answer = backend.next_token(prompts_for(backend, TEXTS), top_k)
    _require(isinstance(answer, TokenLogProbs), "next_token returns no TokenLogProbs")
    shape = (len(TEXTS), top_k)
    _require(
        answer.token_ids.shape == shape,
        f"{shape[0]} prompts and top_k={top_k} give token_ids of shape {answer.token_ids.shape}; "
        "a row with fewer answers ends in NO_TOKEN",
    )
    _require(not answer.row_errors, f"a plain text is refused: {answer.row_errors}")
    made, tokens = answer.usage.passes_made, answer.usage.tokens
    _require(made >= shape[0], f"usage.passes_made is {made} for {shape[0]} prompts")
    _require(tokens >= shape[0], f"usage.tokens is {tokens} for {shape[0]} prompts")


def check_batches(backend: BaseBackend, tolerance: float) -> None:
    """A prompt gets the same answer again, alone and in any batch and order."""
    if not backend.limits.max_top_k:
        return
    cues = ("It was", "\nTopic:", "so")
    prompts = prompts_for(backend, [f"{text} {cue}" for text in TEXTS for cue in cues])
    top_k = min(20, backend.limits.max_top_k)
    together = backend.next_token(prompts, top_k)
    reverse = backend.next_token(prompts[::-1], top_k)
    for row, prompt in enumerate(prompts):
        here = _known(together, row)
        for other, where in (
            (_known(backend.next_token([prompt], top_k), 0), "alone"),
            (_known(reverse, len(prompts) - 1 - row), "in a batch of another order"),
        ):
            shared = here.keys() & other.keys()
            _require(
                len(shared) >= _SHARED * min(len(here), len(other)),
                f"prompt {row} has other likely tokens {where}",
            )
            apart = max(abs(here[token] - other[token]) for token in shared)
            _require(
                apart <= tolerance,
                f"prompt {row} has another answer {where}: log-probabilities differ by {apart:.3g}",
            )


def check_prompts_differ(backend: BaseBackend, tolerance: float) -> None:
    """Different prompts get different answers."""
    if not backend.limits.max_top_k:
        return
    answer = backend.next_token(prompts_for(backend, TEXTS), min(10, backend.limits.max_top_k))
    different = {tuple(row) for row in answer.log_probs.round(3).tolist()}
    _require(len(different) > 1, f"{len(TEXTS)} different prompts get one answer")


def check_top_k(backend: BaseBackend, tolerance: float) -> None:
    """The answer for a larger top_k begins with the one for a smaller."""
    largest = backend.limits.max_top_k
    if largest < 2:
        return
    prompt = prompts_for(backend, TEXTS[:1])
    few, many = min(5, largest - 1), min(100, largest)
    small, large = backend.next_token(prompt, few), backend.next_token(prompt, many)
    apart = np.abs(large.log_probs[0, :few] - small.log_probs[0]).max()
    _require(
        apart <= max(tolerance, 1e-6),
        f"the first {few} log-probabilities of top_k={many} differ by {apart:.3g} from those of "
        f"top_k={few}",
    )


def check_stream(backend: BaseBackend, tolerance: float) -> None:
    """A stream answers every prompt once, and can be closed before its end."""
    if not backend.limits.max_top_k:
        return
    top_k = min(5, backend.limits.max_top_k)
    prompts = prompts_for(backend, [f"Number {number} is" for number in range(70)])
    rows = [row for where, _ in backend.iter_next_token(prompts, top_k) for row in where]
    _require(sorted(rows) == list(range(len(prompts))), f"{len(prompts)} prompts give rows {rows}")
    begun: Any = backend.iter_next_token(prompts, top_k)
    next(begun)
    begun.close()
    _require(len(backend.next_token(prompts[:2], top_k)) == 2, "no answers after a closed stream")


def check_odd_texts(backend: BaseBackend, tolerance: float) -> None:
    """Any text gets a distribution: an empty one, half a character, a control token."""
    if not backend.limits.max_top_k:
        return
    for text in ODD_TEXTS:
        answer = backend.next_token(prompts_for(backend, [text]), min(5, backend.limits.max_top_k))
        why = answer.row_errors.get(0, "no token")
        _require(answer.token_ids[0, 0] != NO_TOKEN, f"the text {text!r} gets no answer: {why}")


def check_long_texts(backend: BaseBackend, tolerance: float) -> None:
    """A text beyond the context costs no other text its answer, and a refusal has its reason."""
    if not backend.limits.max_top_k:
        return
    long = "word " * (backend.limits.context_length + 10)
    prompts = prompts_for(backend, [TEXTS[0], long, TEXTS[1]])
    answer = backend.next_token(prompts, min(5, backend.limits.max_top_k))
    answered = (answer.token_ids[:, 0] != NO_TOKEN).tolist()
    _require(answered[0] and answered[2], "a text beyond the context costs others their answers")
    _require(
        answered[1] != (1 in answer.row_errors),
        "a text beyond the context has neither an answer nor its reason in row_errors, or both",
    )


def check_unserved(backend: BaseBackend, tolerance: float) -> None:
    """A request that isn't served raises UnservedPromptError; `check_served` does that."""
    limits = backend.limits
    if not limits.max_top_k:
        return
    wrong = RenderedPrompt(text="a", after_mask=None if limits.mask else "b")
    for prompts, top_k, what in (
        ([*prompts_for(backend, TEXTS), wrong], 1, "a prompt of another kind"),
        (prompts_for(backend, TEXTS), limits.max_top_k + 1, "a top_k above max_top_k"),
    ):
        try:
            backend.next_token(prompts, top_k)
        except UnservedPromptError:
            continue
        raise BackendContractError(f"{what} raises no UnservedPromptError; see check_served")


def check_chats(backend: BaseBackend, tolerance: float) -> None:
    """Conversations are answered where `Limits.chat`, begun answers where `answer_prefix`."""
    if not (backend.limits.chat and backend.limits.max_top_k):
        return
    asked = (Message("user", "What is the capital of France?"),)
    greeted = (Message("system", "Be brief."), Message("user", "Hello."))
    prompts = [RenderedPrompt(messages=asked), RenderedPrompt(messages=greeted)]
    if backend.limits.answer_prefix:
        prompts += [
            RenderedPrompt(messages=asked, answer_prefix=begun)
            for begun in ("The capital is", "Paris.")
        ]
    answer = backend.next_token(prompts, min(5, backend.limits.max_top_k))
    _require(not answer.row_errors, f"a conversation is refused: {answer.row_errors}")
    _require(bool((answer.token_ids[:, 0] != NO_TOKEN).all()), "a conversation gets no answer")


def check_images(backend: BaseBackend, tolerance: float) -> None:
    """Images are seen where `Limits.images`; elsewhere they raise UnservedPromptError."""
    limits = backend.limits
    if not limits.max_top_k:
        return
    images = [plain_image(*rgb, side=64) for rgb in ((0, 0, 0), (255, 255, 255), (20, 40, 250))]
    question = prompts_for(backend, ["What is in this picture?"])[0]
    prompts = [replace(question, image=image) for image in images]
    if not limits.images:
        try:
            backend.next_token([question, *prompts], 1)
        except UnservedPromptError:
            return
        raise BackendContractError("an image raises no UnservedPromptError; see check_served")
    top_k = min(20, limits.max_top_k)
    together = backend.next_token([question, *prompts], top_k)
    _require(not together.row_errors, f"an image is refused: {together.row_errors}")
    different = {tuple(row) for row in together.log_probs.round(4).tolist()}
    _require(
        len(different) == len(images) + 1,
        "an image changes no answer: different images, and none, get the same one",
    )
    for row, prompt in enumerate(prompts, 1):
        here, alone = _known(together, row), _known(backend.next_token([prompt], top_k), 0)
        apart = max(abs(here[token] - alone[token]) for token in here.keys() & alone.keys())
        _require(
            apart <= tolerance, f"image {row} has another answer alone: they differ by {apart:.3g}"
        )
    if limits.counts_tokens:
        bare, *counts = backend.count_tokens([question, *prompts])
        _require(min(counts) > bare, "count_tokens counts no tokens for an image")


def check_scores(backend: BaseBackend, tolerance: float) -> None:
    """`score` gives the log-probabilities of `next_token`, where `Limits.max_score_ids`."""
    most = min(20, backend.limits.max_score_ids, backend.limits.max_top_k)
    if not most:
        return
    prompts = prompts_for(backend, TEXTS)
    answer = backend.next_token(prompts, most)
    for row, prompt in enumerate(prompts):
        ids = answer.token_ids[row].tolist()
        values = backend.score([prompt], ids[::-1]).log_probs[0][::-1]
        apart = np.abs(values - answer.log_probs[row]).max()
        _require(
            apart <= max(tolerance, 1e-6),
            f"score differs from next_token by {apart:.3g} for prompt {row}",
        )
    shape = backend.score(prompts, [int(answer.token_ids[0, 0])]).log_probs.shape
    _require(shape == (len(TEXTS), 1), f"score of one token has shape {shape}")


def check_draws(backend: BaseBackend, tolerance: float) -> None:
    """`generate` writes as many texts as were asked for, where `Limits.generates`."""
    if not backend.limits.generates:
        return
    draws = backend.generate(prompts_for(backend, TEXTS[:2]), 3, max_tokens=4, seed=5)
    numbers = [len(texts) for texts in draws.texts]
    _require(numbers == [3, 3], f"generate(n=3) writes {numbers} texts for two prompts")


def check_token_counts(backend: BaseBackend, tolerance: float) -> None:
    """`count_tokens` counts the ids that `show` gives, where `Limits.counts_tokens`."""
    if not backend.limits.counts_tokens:
        return
    prompts = prompts_for(backend, [*TEXTS, *ODD_TEXTS])
    counts = backend.count_tokens(prompts)
    _require(len(counts) == len(prompts), f"{len(prompts)} prompts have {len(counts)} counts")
    for text, count, prompt in zip([*TEXTS, *ODD_TEXTS], counts, prompts, strict=True):
        shown = backend.show(prompt)[1]
        _require(
            shown is None or len(shown) == count,
            f"count_tokens says {count} for {text!r}, and show has {len(shown or [])} ids",
        )


def check_embeddings(backend: BaseBackend, tolerance: float) -> None:
    """Embeddings have the promised length, and don't depend on their batch."""
    size = backend.limits.embedding_size
    if not size:
        return
    made = backend.embed(TEXTS)
    shape = made.vectors.shape
    _require(shape == (len(TEXTS), size), f"{len(TEXTS)} texts give vectors of shape {shape}")
    _require(not made.row_errors, f"a plain text is refused: {made.row_errors}")
    reverse = backend.embed(TEXTS[::-1]).vectors[::-1]
    for row, text in enumerate(TEXTS):
        for other in (reverse[row], backend.embed([text]).vectors[0]):
            apart = np.abs(made.vectors[row] - other).max()
            _require(
                apart <= tolerance, f"text {row} has another vector in another batch ({apart:.3g})"
            )
    _require(
        any(np.abs(a - b).max() > 1e-3 for a, b in pairwise(made.vectors)),
        f"{len(TEXTS)} different texts get one vector",
    )


def check_copies(backend: BaseBackend, tolerance: float) -> None:
    """Copies share the engine; a pickle is the same LM again, or is refused by TypeError."""
    _require(
        copy.copy(backend) is backend and copy.deepcopy(backend) is backend,
        "a copy is another object; inherit from BaseBackend",
    )
    try:
        data = pickle.dumps(backend)
    except (TypeError, AttributeError, pickle.PicklingError):
        return
    _require(
        pickle.loads(data).identity == backend.identity,  # noqa: S301
        "a pickle has another identity",
    )


CHECKS: dict[str, Callable[[BaseBackend, float], None]] = {
    "identity": check_identity,
    "answers": check_answers,
    "batches": check_batches,
    "prompts differ": check_prompts_differ,
    "top k": check_top_k,
    "stream": check_stream,
    "odd texts": check_odd_texts,
    "long texts": check_long_texts,
    "unserved": check_unserved,
    "chats": check_chats,
    "images": check_images,
    "scores": check_scores,
    "draws": check_draws,
    "token counts": check_token_counts,
    "embeddings": check_embeddings,
    "copies": check_copies,
}
"""The checks by name, each called with the backend and its tolerance."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BackendContractError(otherwise)


def _known(answer: TokenLogProbs, row: int) -> dict[int, float]:
    ids, values = answer.token_ids[row].tolist(), answer.log_probs[row].tolist()
    return {token: value for token, value in zip(ids, values, strict=True) if token != NO_TOKEN}
