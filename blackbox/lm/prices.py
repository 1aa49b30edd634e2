"""Prices of language models per million tokens, from a dated table (`prices.json`).

An unknown price is None, never 0. Users' own prices are read from a file of the same form, named by
the environment variable `PROMPTBOOSTING_PRICES`; they override those of the table.
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
"""Environment variable with the path of the user's own table of prices."""

_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Price in US dollars per million tokens.

    Parameters
    ----------
    input, output : float
        Price of prompt tokens, and of generated tokens.
    as_of : str
        The date on which the price was looked up, as YYYY-MM-DD.
    """

    input: float
    output: float
    as_of: str = ""

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of so many tokens, in US dollars."""
        return (self.input * input_tokens + self.output * output_tokens) / _MILLION


def price_of(identity: BackendIdentity, share: float = 1.0) -> Price | None:
    """Return `share` of an LM's list price, as batches cost less; None where it is unknown."""
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
            f"{path}, named by {PRICES_VARIABLE}, is not a table of prices: {error}; expected "
            '{"prices": [{"provider": …, "model": …, "input": …, "output": …}]}, in US dollars per '
            "million tokens"
        ) from error


def _amount(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"a price must be a number of at least 0, got {value!r}")
    return float(value)
