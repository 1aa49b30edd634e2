"""Prices of language models per million tokens: the user's own, or list prices.

List prices are those of `genai-prices`, a table that others keep, at the prices of today: with
those of prefix caches, batches and decision endpoints. An LM that runs in this process
is free, and an unknown price is None, never 0. Users' own prices are read from a JSON file that the
environment variable `PROMPTBOOSTING_PRICES` names; they go before list prices.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from blackbox.errors import DataError
from blackbox.protocol import BackendIdentity, Limits
from blackbox.spending import CACHED_FROM, Rate

__all__ = ["PRICES_VARIABLE", "Price", "price_advice", "price_of", "rate_of", "undated"]

PRICES_VARIABLE = "PROMPTBOOSTING_PRICES"
"""Environment variable with the path of the user's own table of prices."""

_IN_PROCESS = ("in-process", "causal", "masked")  # the latter are those of transformers
_MILLION = 1_000_000
_VERSION = re.compile(r"[-@](\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|\d{4}|\d{3}|latest)$")
_OPTIONAL = ("cached_input", "cache_write")  # of the user's own prices
_BATCH = {"processing": "batch"}
_DECISIONS = {"api.openai.com": "openai-decisions"}  # where they have a list of their own
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
    cached, cache_write : float, optional
        Price of prompt tokens that are read from a prefix cache, and of those that are written to
        it; by default that of any other.
    """

    input: float
    output: float
    source: str = ""
    cached: float | None = None
    cache_write: float | None = None

    @property
    def cached_share(self) -> float:
        """The price of a token that is read from a prefix cache, as a share of any other's."""
        return self.cached / self.input if self.cached is not None and self.input else 1.0

    def of(
        self,
        input_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
    ) -> float:
        """Return the cost of so many tokens, in US dollars; cached ones are among the input."""
        cost = self.input * input_tokens + self.output * output_tokens
        if self.cached is not None:
            cost += (self.cached - self.input) * cached_tokens
        if self.cache_write is not None:
            cost += (self.cache_write - self.input) * cache_write_tokens
        return cost / _MILLION

    def at_most(self, input_tokens: int, output_tokens: int) -> float:
        """Return the most that so many tokens of one request can cost, in US dollars."""
        written = input_tokens if input_tokens >= CACHED_FROM else 0
        return max(self.of(input_tokens, output_tokens, 0, some) for some in (0, written))

    def scaled(self, share: float) -> Price:
        """Return a share of this price."""
        cached = None if self.cached is None else share * self.cached
        written = None if self.cache_write is None else share * self.cache_write
        return Price(share * self.input, share * self.output, self.source, cached, written)


def rate_of(identity: BackendIdentity, limits: Limits) -> Rate:
    """Return who bills the requests of an LM."""
    # a wrapper may add to the kind of interface, as in "in-process, drawn"
    is_free = identity.endpoint.split(",")[0] in _IN_PROCESS
    return Rate(
        identity.provider,
        identity.model,
        limits.price_share,
        limits.api_host,
        is_free,
        identity.endpoint == "decisions",
    )


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
                return _of_entry(entry).scaled(share)
    for entry in own:
        if entry["provider"] == rate.provider and entry["model"] == "*":
            return _of_entry(entry).scaled(share)
    if rate.is_free:
        return Price(0.0, 0.0, "runs in this process")
    if not rate.host:
        return None
    if rate.is_decisions and rate.host in _DECISIONS:
        listed = _list_price(rate.host, rate.model, _DECISIONS[rate.host])
        if listed is not None:
            return listed.scaled(share)
    listed = _list_price(rate.host, rate.model)
    if listed is None or share == 1:
        return listed
    batch = _list_price(rate.host, rate.model, is_batch=True)
    # the table may have no price of batches, and gives the usual one then
    return listed.scaled(share) if batch is None or batch.input == listed.input else batch


@cache
def _list_price(
    host: str, model: str, provider: str | None = None, *, is_batch: bool = False
) -> Price | None:
    try:
        import genai_prices
    except ImportError:
        return None
    where: dict[str, Any] = {"price_context": _BATCH if is_batch else None}
    where |= {"provider_id": provider} if provider else {"provider_api_url": f"https://{host}/"}
    usages = [
        genai_prices.Usage(input_tokens=_SMALL),
        genai_prices.Usage(output_tokens=_SMALL),
        genai_prices.Usage(input_tokens=_SMALL, cache_read_tokens=_SMALL),
        genai_prices.Usage(input_tokens=_SMALL, cache_write_tokens=_SMALL),
    ]
    for name in dict.fromkeys((model, undated(model))):
        try:
            found = [genai_prices.calc_price(usage, name, **where) for usage in usages]
        except LookupError:
            continue
        reads, writes, cached, cache_writes = (
            float(one.total_price) * _MILLION / _SMALL for one in found
        )
        kind = "list price of batches" if is_batch else "list price"
        other = "" if name == model else f" of {name}"
        source = f"{kind}{other}, genai-prices {genai_prices.__version__}"
        return _as_billed(Price(reads, writes, source, cached, cache_writes))
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
                "source": f"your own of {entry['as_of']}" if entry.get("as_of") else "your own",
                **{name: _amount(entry[name]) for name in ("input", "output")},
                **{name: _amount(entry[name]) for name in _OPTIONAL if name in entry},
            }
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}, named by {PRICES_VARIABLE}, is not a table of prices: {error}; expected "
            '{"prices": [{"provider": …, "model": …, "input": …, "output": …}]}, in US dollars per '
            "million tokens"
        ) from error


def _of_entry(entry: dict[str, Any]) -> Price:
    cached, cache_write = map(entry.get, _OPTIONAL)
    return _as_billed(Price(entry["input"], entry["output"], entry["source"], cached, cache_write))


def _as_billed(price: Price) -> Price:
    """Return a price of which no part is below what a budget may have to pay.

    Some lists have the fee of keeping tokens in a cache as the price of writing them, below that of
    the input, which is billed all the same; and some have cached tokens dearer than others.
    """
    dearest = max(price.input, price.cached or 0.0)
    written = None if price.cache_write is None else max(price.cache_write, dearest)
    return replace(price, input=dearest, cache_write=written)


def _amount(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"a price must be a number of at least 0, got {value!r}")
    return float(value)
