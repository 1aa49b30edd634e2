"""The table of boosting algorithms. To add one, see `blackbox.boosting.base.Algorithm`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from blackbox.boosting.base import Algorithm
from blackbox.boosting.logit_algorithm import Logit
from blackbox.boosting.samme_algorithm import Samme

__all__ = ["ALGORITHMS"]

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {algorithm.name: algorithm for algorithm in (Logit(), Samme())}
)
"""The boosting algorithms by name, the default first."""
