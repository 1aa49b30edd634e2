"""Common prefixes of token sequences, which an engine evaluates once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["common_prefix_length"]


def common_prefix_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """Return the number of leading tokens that two sequences have in common."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))
