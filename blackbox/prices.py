"""What LMs cost, out of a table with dates (`prices.json`). An unknown price is None, never 0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from blackbox.protocol import BackendIdentity

__all__ = ["Price", "price_of"]

_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens.

    Parameters
    ----------
    input, output : float
        For tokens that are sent, and that are made.
    as_of : str
        The day that the price was looked up, as YYYY-MM-DD.
    """

    input: float
    output: float
    as_of: str = ""

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """What so many tokens cost, in US dollars."""
        return (self.input * input_tokens + self.output * output_tokens) / _MILLION


def price_of(identity: BackendIdentity) -> Price | None:
    """The price of an LM, or None where it is unknown."""
    for entry in _table():
        if entry["provider"] == identity.provider and entry["model"] in ("*", identity.model):
            return Price(entry["input"], entry["output"], entry["as_of"])
    return None


@cache
def _table() -> list[dict[str, Any]]:
    text = resources.files("blackbox").joinpath("prices.json").read_text("utf-8")
    table: list[dict[str, Any]] = json.loads(text)["prices"]
    return table
