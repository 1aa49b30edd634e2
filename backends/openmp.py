"""OpenMP's threads of an engine sleep while they wait, so that other processes get the processor.

By default an OpenMP thread that waits for others spins. On a machine that is busy otherwise the
threads it waits for then don't get to run, and an engine takes several times as long.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

__all__ = ["PASSIVE", "passive_waiting", "users_setting"]

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""The environment variable that every OpenMP runtime reads, once, as it is loaded."""

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_ASLEEP = {"PASSIVE", "0", "THROUGHPUT"}

_log = logging.getLogger(__name__)


@contextmanager
def passive_waiting(engine: str) -> Iterator[None]:
    """Let the threads of an engine that is imported inside sleep while they wait.

    A setting of the user's is respected, and the environment is left as it was.

    Parameters
    ----------
    engine : str
        Name of the module that loads the OpenMP runtime.
    """
    if users_setting() is not None:
        yield
        return
    if engine in sys.modules:
        _log.info(
            "%s was imported before: its threads wait as they did; OMP_WAIT_POLICY=PASSIVE in the "
            "environment keeps it fast on a busy machine",
            engine,
        )
        yield
        return
    os.environ.update(PASSIVE)
    try:
        yield
    finally:
        for name in PASSIVE:
            os.environ.pop(name, None)


def users_setting() -> str | None:
    """Return how threads wait by the user's own setting, if there is one; log one that spins."""
    for name in _SETTINGS:
        value = os.environ.get(name)
        if value is not None:
            if value.upper() not in _ASLEEP:
                _warn(f"{name}={value}")
            return value
    return None


@cache
def _warn(setting: str) -> None:
    _log.warning(
        "%s is set: threads that wait keep the processor busy, and the language model is much "
        "slower on a machine that others use too; OMP_WAIT_POLICY=PASSIVE avoids it",
        setting,
    )
