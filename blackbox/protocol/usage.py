"""The usage of an LM: passes, tokens, time and cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TimeEstimate:
    """About how long requests take.

    Parameters
    ----------
    seconds : float or None
        None where that is unknown.
    source : str
        What the estimate is from, in words; or why there is none.
    """

    seconds: float | None
    source: str


@dataclass(kw_only=True)
class Usage:
    """Usage of an LM: forward passes, tokens, time and cost.

    Parameters
    ----------
    passes_made : int
        Forward passes made.
    passes_from_store : int
        Answers from the cache, which took no forward pass.
    tokens : int
        Tokens of all prompts of the passes made, each counted in full.
    tokens_evaluated : int
        Tokens that the LM evaluated; the rest came out of its prefix cache.
    tokens_least : int
        Tokens that a perfect prefix cache would evaluate: the distinct prefixes of each call; for
        benchmarks of engines.
    tokens_written : int
        Tokens that the LM wrote, where it reports them.
    tokens_cached, tokens_cache_written : int
        Tokens of prompts that an API bills as read from its prefix cache, and as written to it.
    retries : int
        Requests that were sent again.
    seconds_lm : float
        Wall-clock time inside the backend.
    seconds_total : float
        Wall-clock time of the whole call, where it was measured.
    cost : float or None
        US dollars; None where a price is unknown.
    """

    passes_made: int = 0
    passes_from_store: int = 0
    tokens: int = 0
    tokens_evaluated: int = 0
    tokens_least: int = 0
    tokens_written: int = 0
    tokens_cached: int = 0
    tokens_cache_written: int = 0
    retries: int = 0
    seconds_lm: float = 0.0
    seconds_total: float = 0.0
    cost: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        sums = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(Usage)
            if f.name != "cost"
        }
        known = self.cost is not None and other.cost is not None
        cost = (self.cost or 0.0) + (other.cost or 0.0) if known else None
        return Usage(**sums, cost=cost)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON data for users: seconds to the millisecond, no inner counts."""
        data = asdict(self)
        for name in ("tokens_least", "tokens_written", "tokens_cached", "tokens_cache_written"):
            del data[name]
        return data | {name: round(data[name], 3) for name in ("seconds_lm", "seconds_total")}
