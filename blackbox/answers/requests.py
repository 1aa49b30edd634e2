"""Requests of a pool over texts: rendered to fit the LM, and again with less of a text.

An LM may find a prompt too long that was estimated to fit (`blackbox.protocol.TooLong`). Its text
is then cut shorter and asked for again: the answer belongs to the prompt as it was sent, also in a
store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from blackbox.backend import BaseBackend
from blackbox.errors import BackendResponseError, PromptError
from blackbox.plurals import counted
from blackbox.prompts.inputs import Example
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import render_within
from blackbox.protocol import AnswerParts, RenderedPrompt, TokenLogProbs, TooLong, check_served
from blackbox.spending import current_gate

__all__ = ["Rendered", "answers_that_fit", "render_requests"]

_CUTS = 12  # times that a text is cut shorter and sent again


@dataclass
class Rendered:
    """The rendered requests of a pool over texts, ordered by text, then by prompt.

    Parameters
    ----------
    requests : list of RenderedPrompt
        The request of a row and a prompt is number ``row * n_prompts + prompt``.
    n_prompts : int
        Number of prompts in the pool.
    truncated : set of int
        Rows whose text was cut to fit the LM's context.
    """

    requests: list[RenderedPrompt]
    n_prompts: int
    truncated: set[int]


def render_requests(
    backend: BaseBackend, pool: Sequence[Prompt], examples: Sequence[Example]
) -> Rendered:
    """Return every text rendered with every prompt, truncated to the LM's context.

    Raises
    ------
    PromptError, UnservedPromptError
        If a prompt doesn't fit the texts or the backend.
    """
    count_tokens = backend.count_tokens if backend.limits.counts_tokens else None
    requests, truncated = [], set()
    for row, example in enumerate(examples):
        for prompt in pool:
            request, cut = render_within(prompt, example, backend.limits, count_tokens)
            requests.append(request)
            if cut:
                truncated.add(row)
    check_served(backend.limits, requests)
    return Rendered(requests, len(pool), truncated)


def answers_that_fit(
    backend: BaseBackend,
    rendered: Rendered,
    pool: Sequence[Prompt],
    examples: Sequence[Example],
    top_k: int,
) -> AnswerParts:
    """Yield a backend's answers; ask again with a shorter text where it finds a prompt too long.

    `rendered` is changed to what was asked. An answer belongs to the prompt as it was sent, also in
    a store.
    """
    waiting = list(range(len(rendered.requests)))
    for cut in range(_CUTS + 1):
        shorter: list[int] = []
        for where, part in _parts(backend, [rendered.requests[n] for n in waiting], top_k):
            numbers = [waiting[place] for place in where]
            again = [
                place
                for place, why in part.row_errors.items()
                if cut < _CUTS and _shorten(rendered, numbers[place], why, backend, pool, examples)
            ]
            shorter += [numbers[place] for place in again]
            yield _without(again, numbers, part)
        waiting = shorter
        if not waiting:
            return


def _shorten(
    rendered: Rendered,
    number: int,
    why: str,
    backend: BaseBackend,
    pool: Sequence[Prompt],
    examples: Sequence[Example],
) -> bool:
    """Render a request with a shorter text, if that is why it has no answer, and can be done."""
    if not isinstance(why, TooLong):
        return False
    row, place = divmod(number, rendered.n_prompts)
    # a limit of bytes is one of tokens of a byte
    limits = replace(backend.limits, context_length=why.max_bytes + 1, bytes_per_token=1.0)
    try:
        request, _ = render_within(pool[place], examples[row], limits)
    except PromptError:
        return False
    if request.n_bytes >= rendered.requests[number].n_bytes:
        return False
    rendered.requests[number] = request
    rendered.truncated.add(row)
    return True


def _without(
    places: list[int], numbers: list[int], part: TokenLogProbs
) -> tuple[list[int], TokenLogProbs]:
    """A part without some of its answers, which are asked for again."""
    if not places:
        return numbers, part
    kept = [place for place in range(len(numbers)) if place not in set(places)]
    return [numbers[place] for place in kept], part.take_rows(np.array(kept, np.intp))


def _parts(backend: BaseBackend, requests: list[RenderedPrompt], top_k: int) -> AnswerParts:
    """Yield a backend's answers; raise unless every request is answered once."""
    answered, n_answered = np.zeros(len(requests), bool), 0
    for where, part in backend.iter_next_token(requests, top_k):
        places = np.array(where, np.intp)
        if len(places) != len(part):
            raise BackendResponseError(
                f"{counted(len(part), 'answer')} to {counted(len(places), 'request')}"
            )
        if len(places) and not 0 <= places.min() <= places.max() < len(requests):
            raise BackendResponseError("an answer came to no request")
        if answered[places].any() or len(np.unique(places)) < len(places):
            raise BackendResponseError("an answer came twice")
        answered[places] = True
        n_answered += len(places)
        yield where, part
    gate = current_gate()
    if n_answered < len(requests) and not (gate is not None and gate.closed):
        raise BackendResponseError(
            f"{counted(n_answered, 'answer')} to {counted(len(requests), 'request')}"
        )
