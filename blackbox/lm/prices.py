"""Prices of language models per million tokens: the user's own, or list prices.

List prices are those of `genai-prices`, a table that others keep. An LM that runs in this process
is free, and an unknown price is None, never 0. Users' own prices are read from a JSON file that the
environment variable `PROMPTBOOSTING_PRICES` names; they go before list prices.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from blackbox.errors import DataError
from blackbox.protocol import BackendIdentity, Limits
from blackbox.spending import Rate

__all__ = ["PRICES_VARIABLE", "Price", "price_advice", "price_of", "rate_of", "undated"]

PRICES_VARIABLE = "PROMPTBOOSTING_PRICES"
"""Environment variable with the path of the user's own table of prices."""

_IN_PROCESS = ("in-process", "causal", "masked")  # the latter are those of transformers
_MILLION = 1_000_000
_VERSION = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{3}|latest)$")
_SMALL = 1000  # tokens of a usual request: list prices can be higher for very long ones


@dataclass(frozen=True)
class Price:
    """Price in US dollars per million tokens.

    Parameters
    ----------
    input, output : float
        Price of prompt tokens, and of generated tokens.
    source : str
        Where the price is from, for people.
    """

    input: float
    output: float
    source: str = ""

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """Return the cost of so many tokens, in US dollars."""
        return (self.input * input_tokens + self.output * output_tokens) / _MILLION


def rate_of(identity: BackendIdentity, limits: Limits) -> Rate:
    """Return who bills the requests of an LM."""
    # a wrapper may add to the kind of interface, as in "in-process, drawn"
    is_free = identity.endpoint.split(",")[0] in _IN_PROCESS
    return Rate(identity.provider, identity.model, limits.price_share, limits.api_host, is_free)


def price_of(rate: Rate) -> Price | None:
    """Return an LM's price, or None where it is unknown.

    Parameters
    ----------
    rate : Rate
        Who bills, and the share of the list price that is paid, as batches cost less.
    """
    share = rate.price_share
    own = _own_table(os.environ.get(PRICES_VARIABLE))
    for name in (rate.model, undated(rate.model)):
        for entry in own:
            if entry["provider"] == rate.provider and entry["model"] == name:
                return Price(share * entry["input"], share * entry["output"], entry["source"])
    for entry in own:
        if entry["provider"] == rate.provider and entry["model"] == "*":
            return Price(share * entry["input"], share * entry["output"], entry["source"])
    if rate.is_free:
        return Price(0.0, 0.0, "runs in this process")
    listed = _list_price(rate.host, rate.model) if rate.host else None
    return listed and Price(share * listed.input, share * listed.output, listed.source)


@cache
def _list_price(host: str, model: str) -> Price | None:
    try:
        import genai_prices
    except ImportError:
        return None
    reads = genai_prices.Usage(input_tokens=_SMALL)
    writes = genai_prices.Usage(output_tokens=_SMALL)
    scale = _MILLION / _SMALL
    for name in dict.fromkeys((model, undated(model))):
        try:
            found = [
                genai_prices.calc_price(usage, name, provider_api_url=f"https://{host}/")
                for usage in (reads, writes)
            ]
        except LookupError:
            continue
        other = "" if name == model else f" of {name}"
        return Price(
            scale * float(found[0].total_price),
            scale * float(found[1].total_price),
            f"list price{other}, genai-prices {genai_prices.__version__}",
        )
    return None


def undated(model: str) -> str:
    """Return the name of a model without the date or number of its version, or a folder."""
    return _VERSION.sub("", model.removeprefix("models/"))


def price_advice(provider: str, model: str) -> str:
    """Return how a user gives the price of an LM, in words."""
    entry = (
        f'{{"prices": [{{"provider": {json.dumps(provider)}, "model": {json.dumps(model)}, '
        '"input": …, "output": …}]}'
    )
    return (
        f"write {entry}, in US dollars per million tokens, into a file that {PRICES_VARIABLE} names"
    )


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
                "source": f"your own of {entry['as_of']}" if entry.get("as_of") else "your own",
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
