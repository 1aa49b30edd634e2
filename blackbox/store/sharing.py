"""Single flight across processes: one of them makes each request, and the others wait for it."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from blackbox.spending import Account
from blackbox.store.claims import SignsOfLife
from blackbox.store.file import StoreFile

__all__ = ["Ask", "Recall", "answer_once"]

_log = logging.getLogger(__name__)

_BLOCK = 4096  # answers that are read out of the store together
_WAIT_SECONDS = 0.25  # between two looks at what another process is working on
_LOOKS_IN_SILENCE = 20  # until it is said that there is a wait

Part = TypeVar("Part")

Recall = Callable[[list[bytes]], tuple[Sequence[bytes], Part | None]]
"""Returns those of some keys whose answers are in the store, and their part; None if none are."""

Ask = Callable[[list[bytes], str, SignsOfLife], Iterator[tuple[list[bytes], Part]]]
"""Asks the LM for some keys under an owner's claims: yields answered keys, and their part."""


def answer_once(
    store: StoreFile,
    keys: Sequence[bytes],
    n_claimed: int,
    recall: Recall[Part],
    ask: Ask[Part],
    account: Account | None = None,
) -> Iterator[Part]:
    """Yield answers in parts: those in the store at once, the others as they come.

    Requests that another process is working on are waited for, not made again, unless that process
    is gone or its lease is over.

    Parameters
    ----------
    store : StoreFile
        Where answers are kept, and claims on requests.
    keys : sequence of bytes
        The keys of the requests, each once.
    n_claimed : int
        Largest number of requests that are claimed at a time.
    recall : callable
        Reads the store; see `Recall`.
    ask : callable
        Asks the LM, and keeps its answers; see `Ask`.
    account : Account, optional
        Whose seconds a wait takes.

    Raises
    ------
    BudgetError
        If a wait would go beyond the account's seconds.
    """
    n_looks = 0
    waiting: list[bytes] = []
    for start in range(0, len(keys), _BLOCK):
        some = list(keys[start : start + _BLOCK])
        known, part = recall(some)
        if part is not None:
            yield part
        held = set(known)
        waiting += [key for key in some if key not in held]
    owner = uuid.uuid4().hex
    try:
        while waiting:
            some = waiting[:n_claimed]
            mine = store.claim(owner, some)
            # others may have answered meanwhile, also just before the claim
            known, part = recall(some)
            if part is not None:
                yield part
            done = set(known)
            mine = [key for key in mine if key not in done]
            if not mine and not known:
                if account is not None:
                    account.check_wait(_WAIT_SECONDS)
                n_looks += 1
                if n_looks == _LOOKS_IN_SILENCE:
                    _log.warning("waiting for answers that another process is asking for")
                time.sleep(_WAIT_SECONDS)
            with SignsOfLife(store.renew, owner) as life:
                if mine:
                    for answered, new in ask(mine, owner, life):
                        done.update(answered)
                        yield new
            if life.holds:
                done.update(mine)
            # what others are working on is looked at again when all else is done
            waiting = waiting[len(some) :] + [key for key in some if key not in done]
    finally:
        store.release(owner)
