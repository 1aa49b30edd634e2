"""Wrapping of an LM by a store, which caches its answers, and a budget."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from blackbox.backend import BaseBackend
from blackbox.errors import StoreError
from blackbox.lm.budgets import Budget, Meter, MeteredBackend
from blackbox.store.file import StoreFile, open_store
from blackbox.store.stored_backend import StoredBackend

__all__ = ["STORE_VARIABLE", "find_store", "with_store_and_budget"]

STORE_VARIABLE = "PROMPTBOOSTING_STORE"
"""Environment variable with the path of the default store; ``off`` disables it."""

_log = logging.getLogger(__name__)


def with_store_and_budget(
    lm: BaseBackend, store: Any, budget: Budget, meter: Meter | None = None
) -> BaseBackend:
    """Return the LM with its requests metered and its answers cached.

    Parameters
    ----------
    lm : BaseBackend
        The LM. If it has a store already, that one is used.
    store : StoreFile, path, bool or None
        See `find_store`.
    budget : Budget
        Limits of what may be spent from now on.
    meter : Meter, optional
        The account, where several LMs share one, or where the LM was connected inside
        `Meter.charging`, so that the probe of an API is in the budget; by default a new one.

    Raises
    ------
    StoreError, BudgetError
        If the store can't be opened, or the cost is limited and the LM's price is unknown.
    """
    account = meter or Meter(budget)

    def metered_and_cached(paid: BaseBackend) -> BaseBackend:
        if isinstance(paid, StoredBackend):
            return StoredBackend(MeteredBackend(paid.backend, account), paid.store, account)
        file = find_store(store)
        metered = MeteredBackend(paid, account)
        return metered if file is None else StoredBackend(metered, file, account)

    with account.charging():
        return lm.wrap_lm(metered_and_cached)


def find_store(store: Any) -> StoreFile | None:
    """Return the store of a parameter, or None for no store.

    Parameters
    ----------
    store : StoreFile, path, bool or None
        A path or an open file is that store; False is no store. None and True are the default: the
        path in the environment variable, or the file in the user's cache directory.

    Raises
    ------
    StoreError
        If the store can't be opened; but for None, the default in the cache directory is left out
        with a warning.
    TypeError
        If `store` is something else.
    """
    if store is False:
        return None
    if isinstance(store, StoreFile):
        return store
    if isinstance(store, str | Path):
        return open_store(store)
    if store is not None and store is not True:
        raise TypeError(f"store must be a path, a StoreFile or False, got {type(store).__name__}")
    named = os.environ.get(STORE_VARIABLE) or None
    if named == "off":
        return None
    try:
        return open_store(named)
    except StoreError as error:
        if store or named:
            raise
        _log.warning("answers are not kept: %s", error)
        return None
