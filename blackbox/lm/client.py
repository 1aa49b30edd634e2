"""Puts a store and a budget between a classifier and its LM."""

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
"""The environment's name for the default store; ``off`` is none."""

_log = logging.getLogger(__name__)


def with_store_and_budget(
    lm: BaseBackend, store: Any, budget: Budget, meter: Meter | None = None
) -> BaseBackend:
    """Return the LM with what it answers metered and kept.

    Parameters
    ----------
    lm : BaseBackend
        The LM. One that is in a store already keeps it.
    store : StoreFile, path, bool or None
        See `find_store`.
    budget : Budget
        What may be spent from now on.
    meter : Meter, optional
        The account, where several LMs share one; by default a new one.

    Raises
    ------
    StoreError, BudgetError
        If the store can't be opened, or a cost is limited whose price is unknown.
    """
    account = meter or Meter(budget)

    def metered_and_kept(paid: BaseBackend) -> BaseBackend:
        if isinstance(paid, StoredBackend):
            return StoredBackend(MeteredBackend(paid.backend, account), paid.store)
        file = find_store(store)
        metered = MeteredBackend(paid, account)
        return metered if file is None else StoredBackend(metered, file)

    return lm.wrap_lm(metered_and_kept)


def find_store(store: Any) -> StoreFile | None:
    """Return the store that a parameter means.

    Parameters
    ----------
    store : StoreFile, path, bool or None
        A path or an open file is that store; False is none. None and True are the default: what the
        environment names, or the file in the user's cache directory. Where that can't be made, True
        is an error, and None goes without one and says so.
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
