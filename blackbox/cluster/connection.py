"""The connection to a Ray cluster: one that runs already, or one on this machine."""

from __future__ import annotations

import io
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib.util import find_spec
from typing import Any

from blackbox.errors import BackendError, MissingDependencyError

__all__ = ["LOCAL", "check_address", "connected"]

LOCAL = "local"
"""The address of a cluster that is started on this machine, for one job."""

_TIMEOUT = 10.0  # seconds in which the head node has to take a connection

_CUT_OFF = (
    "blackbox: this process was ended from outside: killed, or by Ray as its cluster went away; "
    "all that was written is kept, and the same command goes on from it\n"
)
_WATCH = "import sys\nif not sys.stdin.read():\n    sys.stderr.write(sys.argv[1])"


def check_address(address: str) -> None:
    """Raise if Ray is missing, or nothing listens where a cluster should be.

    Parameters
    ----------
    address : str
        ``"local"``, ``"auto"`` for the cluster of this machine, ``"HOST:PORT"`` of a head node, or
        ``"ray://HOST:PORT"`` of its client server.

    Raises
    ------
    MissingDependencyError
        If Ray is not installed.
    BackendError
        If the address is none, or nothing listens there.
    """
    if find_spec("ray") is None:
        raise MissingDependencyError("Ray is not installed: pip install 'promptboosting[ray]'")
    if address in (LOCAL, "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise BackendError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT of its head node, "
            "ray://HOST:PORT, auto, or local"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_TIMEOUT).close()
    except OSError as error:
        raise BackendError(
            f"no Ray cluster at {address}: {error.strerror or error}; `ray status` on its head "
            "node shows whether it runs"
        ) from error


def cores_here() -> int:
    """Return the cores of this machine that actors of a cluster on it may use.

    A cluster that is started here has two more, in name, so that reading and writing run beside
    actors that take all of them.
    """
    return os.cpu_count() or 1


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine that ends with the context.

    Parameters
    ----------
    address : str
        As for `check_address`.

    Raises
    ------
    BackendError
        If it can't be reached or started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    debug = logging.getLogger().isEnabledFor(logging.DEBUG)
    if not debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield ray
        return
    # what Ray prints, such as that a task is tried again, is no data
    with redirect_stdout(sys.stderr if debug else io.StringIO()), _watched():
        _connect(ray, address, debug)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, debug: bool) -> None:
    level = logging.INFO if debug else logging.CRITICAL  # what ends a job is raised
    started = {"num_cpus": cores_here() + 2, "include_dashboard": False}
    try:
        with nullcontext() if debug else _without_stderr():
            ray.init(
                address=address,
                logging_level=level,
                log_to_driver=debug,
                **(started if address == LOCAL else {}),
            )
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendError(f"no Ray cluster at {address}: {reason}") from error
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(level)
    DataContext.get_current().enable_progress_bars = sys.stderr.isatty()


@contextmanager
def _watched() -> Iterator[None]:
    """Print a line if this process ends at once: Ray ends it so where its node is gone.

    Nothing runs in this process then, so that another one waits for the end of a pipe.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCH, _CUT_OFF],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watcher.communicate(b"ended by itself")


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what is written to the file descriptor of standard error, past Python.

    Ray's own log begins with a line about its level, whatever that is.
    """
    before = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
