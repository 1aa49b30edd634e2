"""The account of a budget: what may be spent, what was reserved, and what was taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from blackbox.errors import BudgetError, UnknownPriceError
from blackbox.lm.prices import Price, price_advice, price_of
from blackbox.spending import Rate, TryLoad, charged_to

__all__ = ["Budget", "Load", "Meter", "Prepaid", "known_price"]


@dataclass(frozen=True)
class Budget:
    """The most that a run may spend; None is no limit.

    Parameters
    ----------
    max_forward_passes : int, optional
        Forward passes made; those in the store are free.
    max_tokens : int, optional
        Tokens of their prompts.
    max_cost : float, optional
        US dollars.
    max_seconds : float, optional
        No request is begun later than this.
    """

    max_forward_passes: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    max_seconds: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is limited."""
        return self == Budget()

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of a request have to be known before it is sent."""
        return self.max_tokens is not None or self.max_cost is not None


@dataclass(frozen=True)
class Load:
    """The load of one or more requests, at worst or really."""

    passes: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(self.passes + other.passes, self.tokens + other.tokens, self.cost + other.cost)

    def __mul__(self, times: int) -> Load:
        return Load(self.passes * times, self.tokens * times, self.cost * times)

    def __sub__(self, other: Load) -> Load:
        return Load(self.passes - other.passes, self.tokens - other.tokens, self.cost - other.cost)

    def fits(self, room: Load) -> bool:
        """Whether there is room for it."""
        return (
            self.passes <= room.passes
            and self.tokens <= room.tokens
            and self.cost <= room.cost * (1 + 1e-12)
        )


class Meter:
    """The account of a budget, shared by the threads that spend it. Time runs from its making.

    Parameters
    ----------
    budget : Budget
        What may be spent.
    whole : bool, default=False
        Reserve all of the loads that are asked for together, or none. A training goes as far as
        its budget holds and keeps what it has; half an answer to a client is worth nothing.
    """

    def __init__(self, budget: Budget, *, whole: bool = False) -> None:
        self.budget = budget
        self.whole = whole
        self._started = time.monotonic()
        self._taken = Load()
        self._lock = threading.Lock()

    @contextmanager
    def charging(self) -> Iterator[None]:
        """Charge the tries of all backends that are used inside, such as the probe of an API."""
        with charged_to(None if self.budget.is_open else self):
            yield

    def reserve(self, loads: Sequence[Load]) -> int:
        """Reserve as many of these loads, from the first on, as still fit; returns how many.

        Raises
        ------
        BudgetError
            If not even the first one fits, or not all where they are reserved whole.
        """
        with self._lock:
            self._check_time()
            taken = self._taken
            for count, load in enumerate([sum(loads, Load())] if self.whole else loads):
                reason = self._overrun(taken, load)
                if reason and not count:
                    raise BudgetError(reason)
                if reason:
                    self._taken = taken
                    return count
                taken += load
            self._taken = taken
            return len(loads)

    def holds(self, load: Load) -> bool:
        """Return whether a load fits into what is left; nothing is reserved."""
        with self._lock:
            return self._overrun(self._taken, load) is None

    def settle(self, reserved: Load, real: Load) -> None:
        """Replace what was reserved by what was really taken."""
        with self._lock:
            self._taken = self._taken - reserved + real

    def load_of(self, rate: Rate, load: TryLoad) -> Load:
        """Return a try as a load with its cost.

        Raises
        ------
        UnknownPriceError
            If a cost is limited and the LM's price is unknown.
        """
        cost = 0.0
        if self.budget.max_cost is not None:
            cost = known_price(rate).of(
                load.input_tokens, load.output_tokens, load.cached_tokens, load.cache_write_tokens
            )
        return Load(load.passes, load.input_tokens, cost)

    def reserve_try(self, rate: Rate, worst: TryLoad) -> None:
        """See `blackbox.spending.Account`."""
        self.reserve([self.load_of(rate, worst)])

    def settle_try(self, rate: Rate, worst: TryLoad, real: TryLoad) -> None:
        """See `blackbox.spending.Account`."""
        self.settle(self.load_of(rate, worst), self.load_of(rate, real))

    def seconds_left(self) -> float:
        """See `blackbox.spending.Account`."""
        most = self.budget.max_seconds
        return float("inf") if most is None else most - (time.monotonic() - self._started)

    def check_wait(self, seconds: float) -> None:
        """See `blackbox.spending.Account`."""
        if seconds > self.seconds_left():
            raise BudgetError(
                f"the budget of {self.budget.max_seconds:g} seconds is used up: the next request "
                f"would have to wait {seconds:.3g} s"
            )

    def is_late(self) -> bool:
        """Whether no request may be begun any more."""
        return self.seconds_left() <= 0

    def _check_time(self) -> None:
        if self.is_late():
            raise BudgetError(f"the budget of {self.budget.max_seconds:g} seconds is used up")

    def _overrun(self, taken: Load, load: Load) -> str | None:
        """Why a load doesn't fit beside what is taken; None where it does."""
        budget = self.budget
        for needed, total, most, unit in (
            (load.passes, taken.passes + load.passes, budget.max_forward_passes, "forward passes"),
            (load.tokens, taken.tokens + load.tokens, budget.max_tokens, "tokens"),
            (load.cost, taken.cost + load.cost, budget.max_cost, "US dollars"),
        ):
            if most is None or total <= most * (1 + 1e-12):
                continue
            if needed > most:
                return (
                    f"a request may need {needed:.6g} {unit}, more than the budget of "
                    f"{most:.6g} {unit}"
                )
            return f"the budget of {most:.6g} {unit} is used up"
        return None


class Prepaid:
    """The account of one call for which all was reserved; what goes beyond that is reserved too."""

    def __init__(self, meter: Meter, total: Load) -> None:
        meter.reserve([total])
        self._meter = meter
        self._rest = total
        self._lock = threading.Lock()

    def reserve_try(self, rate: Rate, worst: TryLoad) -> None:
        """See `blackbox.spending.Account`."""
        load = self._meter.load_of(rate, worst)
        with self._lock:
            if load.fits(self._rest):
                self._rest -= load
                return
        self._meter.reserve_try(rate, worst)

    def settle_try(self, rate: Rate, worst: TryLoad, real: TryLoad) -> None:
        """See `blackbox.spending.Account`."""
        self._meter.settle_try(rate, worst, real)

    def seconds_left(self) -> float:
        """See `blackbox.spending.Account`."""
        return self._meter.seconds_left()

    def check_wait(self, seconds: float) -> None:
        """See `blackbox.spending.Account`."""
        self._meter.check_wait(seconds)

    def close(self) -> None:
        """Give back what no try took."""
        with self._lock:
            rest, self._rest = self._rest, Load()
        self._meter.settle(rest, Load())


def known_price(rate: Rate) -> Price:
    """Return the price of an LM.

    Raises
    ------
    UnknownPriceError
        If it is unknown.
    """
    price = price_of(rate)
    if price is None:
        raise UnknownPriceError(
            f"the price of {rate.provider} {rate.model!r} is unknown, so its cost can't be "
            f"limited: {price_advice(rate.provider, rate.model)}; or limit tokens or forward passes"
        )
    return price
