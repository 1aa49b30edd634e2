"""What LMs cost, out of a table with dates (`prices.json`). An unknown price is None, never 0.

A user's own prices stand in a file of the same form that the environment's `PROMPTBOOSTING_PRICES`
names; they come before those of the table.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from blackbox.errors import DataError
from blackbox.protocol import BackendIdentity

__all__ = ["PRICES_VARIABLE", "Price", "price_of"]

PRICES_VARIABLE = "PROMPTBOOSTING_PRICES"
"""The environment's name for the user's own table of prices."""

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


def price_of(identity: BackendIdentity, share: float = 1.0) -> Price | None:
    """The price of an LM, or None where it is unknown; `share` of it, as batches cost less."""
    for entry in [*_own_table(os.environ.get(PRICES_VARIABLE)), *_table()]:
        if entry["provider"] == identity.provider and entry["model"] in ("*", identity.model):
            return Price(share * entry["input"], share * entry["output"], entry["as_of"])
    return None


@cache
def _table() -> list[dict[str, Any]]:
    text = resources.files("blackbox").joinpath("prices.json").read_text("utf-8")
    table: list[dict[str, Any]] = json.loads(text)["prices"]
    return table


@cache
def _own_table(path: str | None) -> list[dict[str, Any]]:
    if not path:
        return []
    try:
        entries = json.loads(Path(path).read_text("utf-8"))["prices"]
        return [
            {
                "provider": str(entry["provider"]),
                "model": str(entry["model"]),
                "input": _amount(entry["input"]),
                "output": _amount(entry["output"]),
                "as_of": str(entry.get("as_of", "")),
            }
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, named by {PRICES_VARIABLE}, is no table of prices: {error}; it needs "
            '{"prices": [{"provider": …, "model": …, "input": …, "output": …}]}, in US dollars a '
            "million tokens"
        ) from error


def _amount(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"a price must be a number from 0, got {value!r}")
    return float(value)
