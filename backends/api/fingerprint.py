"""A fingerprint of an LM: its answers to the probe's prompts, as far as they are beyond doubt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise

from backends.api.responses import ParsedAnswer

__all__ = ["fingerprint"]

_LOOKED_AT = 10  # most likely tokens of an answer
_WIDE = 1.5  # natural log-probability: far above what batches, restarts and rounding change
_WIDER_BY = 0.5


def fingerprint(answers: Mapping[str, ParsedAnswer]) -> str:
    """Return a digest of the leading tokens of each answer, or an empty string if none is clear.

    Tokens lead where the widest gap between successive log-probabilities is wide, and clearly wider
    than any other. So last digits, batches and restarts of an LM leave it as it is, and another LM
    is told from it where it gives other leading tokens.
    """
    leading = {name: _leading(answer) for name, answer in answers.items()}
    clear = {name: tokens for name, tokens in leading.items() if tokens}
    if not clear:
        return ""
    return hashlib.sha256(json.dumps(clear, sort_keys=True).encode()).hexdigest()[:16]


def _leading(answer: ParsedAnswer) -> list[str]:
    tokens = answer.tokens[:_LOOKED_AT]
    gaps = [one[2] - other[2] for one, other in pairwise(tokens)]
    if not gaps:
        return []
    widest = max(range(len(gaps)), key=gaps.__getitem__)
    others = max((gap for place, gap in enumerate(gaps) if place != widest), default=0.0)
    if gaps[widest] < _WIDE or gaps[widest] < others + _WIDER_BY:
        return []
    return sorted(name.hex() for _, name, _ in tokens[: widest + 1])
