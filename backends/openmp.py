"""Threads of an engine: as many as the process has cores, and asleep while they wait.

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

__all__ = ["PASSIVE", "available_cores", "is_ours_to_set", "limit_torch", "passive_waiting"]

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""The environment variable that every OpenMP runtime reads, once, as it is loaded."""

_log = logging.getLogger(__name__)


def available_cores() -> int:
    """Return the number of cores that the process may use, by affinity and container quotas."""
    from joblib import cpu_count

    return int(cpu_count())


def limit_torch() -> None:
    """Let torch use no more threads than there are cores for it; it doesn't know quotas."""
    import torch

    # LLVM's OpenMP reads its settings at its first use, which this is
    threads = torch.get_num_threads()
    if threads > available_cores():
        torch.set_num_threads(available_cores())


@contextmanager
def passive_waiting(engine: str) -> Iterator[None]:
    """Let the threads of an engine that is imported inside sleep while they wait.

    A setting of the user's is respected, and the environment is left as it was.

    Parameters
    ----------
    engine : str
        Name of the module that loads the OpenMP runtime.
    """
    if not is_ours_to_set():
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


def is_ours_to_set() -> bool:
    """Return whether the user has not said how threads wait; log a setting of theirs that spins.

    Settings of one runtime alone, such as GOMP_SPINCOUNT, come before the common one in any case.
    """
    policy, count = (os.environ.get(name, "") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    if policy.upper() == "ACTIVE":
        _warn(f"OMP_WAIT_POLICY={policy}")
    elif count not in ("", "0"):
        _warn(f"GOMP_SPINCOUNT={count}")
    return not policy


@cache
def _warn(setting: str) -> None:
    _log.warning(
        "%s is set: threads that wait keep the processor busy, and the language model is much "
        "slower on a machine that others use too; OMP_WAIT_POLICY=PASSIVE alone avoids it",
        setting,
    )
