"""Requests that several processes share: one of them makes each, and the others wait for it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from blackbox.store.claims import SignsOfLife
from blackbox.store.file import StoreFile

__all__ = ["Ask", "answer_once"]

_WAIT_SECONDS = 0.25  # between two looks at what another process is working on

Answer = TypeVar("Answer")
Part = TypeVar("Part")

Ask = Callable[[list[bytes], str, SignsOfLife], Iterator[tuple[list[bytes], Part]]]
"""Asks the LM for some keys under an owner's claims: yields answered keys, and their part."""


def answer_once(
    store: StoreFile,
    keys: Sequence[bytes],
    n_claimed: int,
    recall: Callable[[list[bytes]], dict[bytes, Answer]],
    part_of: Callable[[dict[bytes, Answer]], Part],
    ask: Ask[Part],
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
        Returns those answers that are in the store, by their keys.
    part_of : callable
        Makes a part of answers from the store.
    ask : callable
        Asks the LM, and keeps its answers; see `Ask`.
    """
    known = recall(list(keys))
    if known:
        yield part_of(known)
    waiting = [key for key in keys if key not in known]
    owner = uuid.uuid4().hex
    try:
        while waiting:
            some = waiting[:n_claimed]
            mine = store.claim(owner, some)
            # others may have answered meanwhile, also just before the claim
            known = recall(some)
            if known:
                yield part_of(known)
            mine = [key for key in mine if key not in known]
            if not mine and not known:
                time.sleep(_WAIT_SECONDS)
            done = set(known)
            with SignsOfLife(store.renew, owner) as life:
                if mine:
                    for answered, part in ask(mine, owner, life):
                        done.update(answered)
                        yield part
            if life.holds:
                done.update(mine)
            # what others are working on is looked at again when all else is done
            waiting = waiting[len(some) :] + [key for key in some if key not in done]
    finally:
        store.release(owner)
