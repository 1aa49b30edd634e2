"""Fingerprints of models: their answers to a probe, as far as they are beyond doubt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from backends.api.responses import ParsedAnswer

__all__ = ["fingerprint", "vector_fingerprint"]

_LOOKED_AT = 10  # most likely tokens of an answer
_WIDE = 1.5  # natural log-probability: far above what batches, restarts and rounding change
_WIDER_BY = 0.5
_WIDE_SHARE, _WIDER_BY_SHARE = 0.02, 0.005  # of the largest number of a vector


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


def vector_fingerprint(vector: NDArray[np.float32]) -> str:
    """Return a digest of the length of a vector and of its leading numbers, as far as any lead.

    They are the places and signs of the largest, down to the widest gap between successive ones,
    as in `fingerprint`.
    """
    order = np.argsort(-np.abs(vector), kind="stable")[:_LOOKED_AT]
    sizes = np.abs(vector[order]) / np.abs(vector[order[0]])
    gaps = -np.diff(sizes)
    leading: list[int] = []
    if len(gaps):
        widest = int(gaps.argmax())
        others = float(np.delete(gaps, widest).max(initial=0.0))
        if gaps[widest] >= _WIDE_SHARE and gaps[widest] >= others + _WIDER_BY_SHARE:
            signed = (order + 1) * np.sign(vector[order]).astype(int)
            leading = sorted(signed[: widest + 1].tolist())
    return hashlib.sha256(json.dumps([len(vector), leading]).encode()).hexdigest()[:16]
