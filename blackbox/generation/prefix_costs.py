"""The cost of a prompt per text, where an engine or an API may cache the prefixes of requests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import RenderedPrompt
from blackbox.spending import CACHED_FROM

__all__ = ["cached_share", "prefix_costs"]

_CHARACTERS_PER_TOKEN = 4


def prefix_costs(
    requests: Sequence[Sequence[RenderedPrompt]], texts: Sequence[str], *, prefix_price: float
) -> NDArray[np.float64]:
    """Return the cost of each prompt, in requests of average length.

    A cost of 1 is that of evaluating a text and its cue without a cache.

    Parameters
    ----------
    requests : sequence of P sequences of RenderedPrompt
        For each prompt the same few texts filled in.
    texts : sequence of str
        Those texts.
    prefix_price : float
        Price of what is cached, as a share of any other's. With 0 a prefix that requests share is
        evaluated once, as by an engine with a prefix cache, and a text that a prompt begins with
        costs nothing, as other prompts need it too. With more, the same holds for a long prefix
        only, as with an API that has a price for it; with 1 each request costs its length.
    """
    shortest = CACHED_FROM * _CHARACTERS_PER_TOKEN if prefix_price else 0
    lengths, costs = [], []
    for of_prompt in requests:
        rendered = [_as_string(request) for request in of_prompt]
        shared_length = _common_prefix_length(rendered)
        lengths += [len(request) for request in rendered]
        cached_lengths = [
            # a text that was truncated is shared as far as it goes
            max(shared_length, _common_prefix_length([request, text]))
            for request, text in zip(rendered, texts, strict=True)
        ]
        evaluated = [
            len(request) - cached * (1 - prefix_price) * (cached >= shortest)
            for request, cached in zip(rendered, cached_lengths, strict=True)
        ]
        costs.append(float(np.mean(evaluated)))
    return np.asarray(costs) / max(float(np.mean(lengths)), 1.0)


def cached_share(requests: Sequence[RenderedPrompt]) -> list[float]:
    """Return the share of each request that an API with a prefix cache has read before.

    Requests are sent in the order of their content, as `backends.openai` does: those that begin
    alike one after the other. A share is that of the characters.
    """
    rendered = [_as_string(request) for request in requests]
    order = sorted(range(len(rendered)), key=rendered.__getitem__)
    shares = [0.0] * len(rendered)
    for before, row in pairwise(order):
        common = _common_prefix_length([rendered[before], rendered[row]])
        shares[row] = common / max(len(rendered[row]), 1)
    return shares


def _as_string(request: RenderedPrompt) -> str:
    turns = "".join(f"<{turn.role}>{turn.content}" for turn in request.messages)
    image = request.image.digest if request.image is not None else ""
    return image + turns + (request.text or "") + request.answer_prefix + (request.after_mask or "")


def _common_prefix_length(requests: list[str]) -> int:
    """Return the number of characters that all requests begin with."""
    first, last = min(requests), max(requests)
    low, high = 0, min(len(first), len(last))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == last[:middle] else (low, middle - 1)
    return low
