"""The cost of a prompt per text, where an engine may cache the prefixes of requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import RenderedPrompt

__all__ = ["prefix_costs"]


def prefix_costs(
    requests: Sequence[Sequence[RenderedPrompt]], texts: Sequence[str], *, shared: bool
) -> NDArray[np.float64]:
    """Return the cost of each prompt, in requests of average length.

    A cost of 1 is that of evaluating a text and its cue without a cache.

    Parameters
    ----------
    requests : sequence of P sequences of RenderedPrompt
        For each prompt the same few texts filled in.
    texts : sequence of str
        Those texts.
    shared : bool
        Whether a prefix that requests share is evaluated once, as by an engine with a prefix cache;
        else each request costs its length, as with an API that bills all tokens. Where prefixes are
        shared, a text that a prompt begins with costs nothing, as other prompts need it too.
    """
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
            len(request) - cached * shared
            for request, cached in zip(rendered, cached_lengths, strict=True)
        ]
        costs.append(float(np.mean(evaluated)))
    return np.asarray(costs) / max(float(np.mean(lengths)), 1.0)


def _as_string(request: RenderedPrompt) -> str:
    turns = "".join(f"<{turn.role}>{turn.content}" for turn in request.messages)
    return turns + (request.text or "") + request.answer_prefix + (request.after_mask or "")


def _common_prefix_length(requests: list[str]) -> int:
    """Return the number of characters that all requests begin with."""
    first, last = min(requests), max(requests)
    pairs = enumerate(zip(first, last, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(first), len(last)))
