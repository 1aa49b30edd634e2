"""Options of budgets and of the store of answers, and the clients behind them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from blackbox.cli.help import option
from blackbox.cli.options import STORE, FiniteRange, together

__all__ = ["SpendingOptions", "spending_options"]

F = TypeVar("F", bound=Callable[..., Any])


class SpendingOptions:
    """The budgets of a command, and its store of answers."""

    def __init__(self, store: Any, limits: dict[str, Any]) -> None:
        self._store = store
        self._limits = limits
        self._started = time.monotonic()

    def parameters(self) -> dict[str, Any]:
        """Return the estimator's parameters; seconds run from the start of the command."""
        left = dict(self._limits)
        if left["max_seconds"] is not None:
            left["max_seconds"] = max(0.0, left["max_seconds"] - (time.monotonic() - self._started))
        return {"store": self._store, **left}

    def clients(self, *connects: Callable[[], Any]) -> list[Any]:
        """Return what each of `connects` reaches, behind the store and one budget; None stays."""
        from blackbox.lm.budgets import Budget, Meter
        from blackbox.lm.client import with_store_and_budget

        limits = self.parameters()
        store, budget = limits.pop("store"), Budget(**limits)
        meter = Meter(budget)
        with meter.charging():  # what connecting takes is in the budget
            reached = [connect() for connect in connects]
        return [
            None if one is None else with_store_and_budget(one, store, budget, meter)
            for one in reached
        ]


_LIMITS = ("max_forward_passes", "max_tokens", "max_cost", "max_seconds")
_add_spending_options = together(
    option(
        "--max-forward-passes",
        type=click.IntRange(min=0),
        metavar="N",
        group="Limits and cost",
        help="Limit on the forward passes.",
    ),
    option(
        "--max-cost",
        type=FiniteRange(min=0),
        metavar="USD",
        group="Limits and cost",
        help="Limit on the cost in US dollars.",
    ),
    option(
        "--max-tokens",
        type=click.IntRange(min=0),
        metavar="N",
        group="Limits and cost",
        advanced=True,
        help="Limit on the tokens sent.",
    ),
    option(
        "--max-seconds",
        type=FiniteRange(min=0),
        metavar="S",
        group="Limits and cost",
        advanced=True,
        help="Send no request after so many seconds.",
    ),
    option(
        "--store",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        group="Limits and cost",
        advanced=True,
        help="File that stores the LM's answers, so that none is asked for twice.  [default: in "
        "the cache directory]",
    ),
    option(
        "--no-store",
        is_flag=True,
        group="Limits and cost",
        advanced=True,
        help="Store no answers; a run that is killed then starts anew.",
    ),
    option(
        "--store-max-bytes",
        type=click.IntRange(min=1),
        metavar="N",
        group="Limits and cost",
        advanced=True,
        help="Size above which the store evicts the least recently used answers.  [default: 5 GB]",
    ),
)


def spending_options(function: F) -> F:
    """Add the options of the store and of budgets; the command gets them as `spending`."""

    @functools.wraps(function)
    def collected(
        *args: Any, store: Path | None, no_store: bool, store_max_bytes: int | None, **kwargs: Any
    ) -> Any:
        ctx = click.get_current_context()
        if no_store and store is not None:
            # from the command line, the environment or the settings: the first that has one wins
            default = ParameterSource.DEFAULT
            names = ("store", "no_store")
            found = [ctx.get_parameter_source(name) or default for name in names]
            if found[0] is found[1]:
                raise click.UsageError("--store and --no-store contradict each other")
            no_store = min(found, key=lambda source: source.value) is found[1]
        limits = {name: kwargs.pop(name) for name in _LIMITS}
        out = kwargs.get("out")
        if store is not None and out is not None and Path(out).resolve() == store.resolve():
            raise click.UsageError(f"--out {out} is the --store of this command: give another file")
        kept: Any = False if no_store else store
        if store_max_bytes is not None and not no_store:
            from blackbox.lm.client import find_store

            kept = find_store(store)
            if kept is not None:
                kept.max_bytes = store_max_bytes
        ctx.meta[STORE] = kept
        return function(*args, spending=SpendingOptions(kept, limits), **kwargs)

    return cast(F, _add_spending_options(collected))
